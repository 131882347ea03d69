/* SPDX-License-Identifier: MIT */
/*
 * Tokenizer: byte-level BPE as Hugging Face's tokenizers does it
 *
 * A text passes these, each working on the pieces the one before left:
 *   1. added tokens (special ones among them) are cut out, then those marked "normalized" (tokenizer-added.c)
 *   2. the steps of the pre-split, by PCRE2, here
 *   3. merges inside each piece (tokenizer-merge.c)
 * and fixed tokens are put around the whole if the model's metadata says so.
 *
 * Only valid UTF-8 is tokenised: Hugging Face's interface takes nothing else, so for other bytes there is no right
 * answer to agree with. A tokenizer is immutable; all that an encoding changes is in its own struct encoding.
 */
#include "daemon/model/tokenizer.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/cleanup.h"
#include "daemon/model/tokenizer-private.h"

#define TEXT_MAX (1u << 30)
#define JIT_STACK_START 32768u
#define JIT_STACK_MAX (1u << 20)

/* What Rust's regex crate means by \s and \w. */
#define WHITE "[\\x09-\\x0d\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}]"
#define WORD "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{200c}\\x{200d}]"

struct tokenizer {
	struct vocab *vocab;
	struct trie added[2];     /* plain, normalized */
	struct merge_table merges;
	pcre2_code *step[VOCAB_STEPS_MAX]; /* NULL for steps without a pattern */
	pcre2_code *white_run, *word; /* at the place of matching */
	struct piece_table {      /* whole tokens, where merges are ignored for them */
		uint32_t *slot;   /* token + 1 */
		uint32_t mask;
	} pieces;
};

struct encoding {
	const struct tokenizer *tokenizer;
	struct token_list out;
	struct merge_scratch scratch;
	pcre2_match_data *match;
	pcre2_match_context *context;
	pcre2_jit_stack *stack;
};

DEFINE_CLEANUP(struct tokenizer *, tokenizer_free)

static void encoding_deinit(struct encoding *e)
{
	free(e->out.token);
	merge_scratch_deinit(&e->scratch);
	pcre2_match_data_free(e->match);
	pcre2_match_context_free(e->context);
	pcre2_jit_stack_free(e->stack);
}

/* ---- making one ---- */

static int compile(pcre2_code **ret, const char *pattern, struct diag *diag)
{
	PCRE2_UCHAR reason[120] = "";
	PCRE2_SIZE offset;
	uint32_t matches_empty = 0;
	int error;

	*ret = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP, &error, &offset, NULL);
	if (!*ret) {
		pcre2_get_error_message(error, reason, sizeof(reason));
		return diag_set(diag, TOKENIZER_E_INVALID, "pre-split '%.100s': %s", pattern, (const char *)reason);
	}
	(void)pcre2_pattern_info(*ret, PCRE2_INFO_MATCHEMPTY, &matches_empty);
	if (matches_empty)
		return diag_set(diag, TOKENIZER_E_INVALID, "pre-split '%.100s': matches nothing at all", pattern);
	(void)pcre2_jit_compile(*ret, PCRE2_JIT_COMPLETE); /* slower without */
	return TOKENIZER_OK;
}

static int compile_steps(struct tokenizer *t, struct diag *diag)
{
	uint32_t i;
	int r;

	for (i = 0; i < t->vocab->n_steps; ++i) {
		if (t->vocab->steps[i].kind != VOCAB_SPLIT)
			continue;
		r = compile(&t->step[i], t->vocab->steps[i].pattern, diag);
		if (r)
			return r;
	}
	r = compile(&t->white_run, WHITE "+", diag);
	return r ? r : compile(&t->word, WORD, diag);
}

static uint32_t hash_bytes(const char *bytes, size_t n)
{
	uint64_t h = 0xcbf29ce484222325u; /* FNV-1a */
	size_t i;

	for (i = 0; i < n; ++i)
		h = (h ^ (uint8_t)bytes[i]) * 0x100000001b3u;
	return (uint32_t)(h ^ h >> 32);
}

/* The slot of these bytes: the first token that has them, or a free one. */
static uint32_t *piece_slot(const struct tokenizer *t, const char *bytes, size_t n)
{
	uint32_t i = hash_bytes(bytes, n) & t->pieces.mask;

	for (;; i = (i + 1) & t->pieces.mask) {
		const struct vocab_token *token;

		if (!t->pieces.slot[i])
			return &t->pieces.slot[i];
		token = &t->vocab->tokens[t->pieces.slot[i] - 1];
		if (token->n == n && !memcmp(token->bytes, bytes, n))
			return &t->pieces.slot[i];
	}
}

static int index_pieces(struct tokenizer *t)
{
	uint32_t n = 16, i;

	if (!t->vocab->ignore_merges)
		return 0;
	while (n < 2 * t->vocab->n_tokens)
		n *= 2;
	t->pieces.mask = n - 1;
	t->pieces.slot = calloc(n, sizeof(*t->pieces.slot));
	if (!t->pieces.slot)
		return error_origin(-ENOMEM);
	for (i = 0; i < t->vocab->n_tokens; ++i) {
		uint32_t *slot;

		if (!t->vocab->tokens[i].n)
			continue;
		slot = piece_slot(t, t->vocab->tokens[i].bytes, t->vocab->tokens[i].n);
		if (!*slot)
			*slot = i + 1;
	}
	return 0;
}

/**
 * tokenizer_new() - a tokenizer for a vocabulary
 * @ret:        the tokenizer
 * @vocab:      taken over on success
 * @diag:       why a pre-split cannot be used
 *
 * Return: 0, -ENOMEM or TOKENIZER_E_INVALID.
 */
int tokenizer_new(struct tokenizer **ret, struct vocab *vocab, struct diag *diag)
{
	_cleanup_(tokenizer_freep) struct tokenizer *t = calloc(1, sizeof(*t));
	int r;

	if (!t)
		return error_origin(-ENOMEM);
	t->vocab = vocab;
	if ((r = compile_steps(t, diag)) || (r = trie_init(&t->added[0], vocab, false)) ||
	    (r = trie_init(&t->added[1], vocab, true)) || (r = merge_table_init(&t->merges, vocab)) ||
	    (r = index_pieces(t))) {
		t->vocab = NULL; /* stays the caller's */
		return error_trace(r);
	}
	*ret = TAKE_PTR(t);
	return TOKENIZER_OK;
}

struct tokenizer *tokenizer_free(struct tokenizer *tokenizer)
{
	uint32_t i;

	if (!tokenizer)
		return NULL;
	for (i = 0; i < VOCAB_STEPS_MAX; ++i)
		pcre2_code_free(tokenizer->step[i]);
	pcre2_code_free(tokenizer->white_run);
	pcre2_code_free(tokenizer->word);
	trie_deinit(&tokenizer->added[0]);
	trie_deinit(&tokenizer->added[1]);
	merge_table_deinit(&tokenizer->merges);
	free(tokenizer->pieces.slot);
	vocab_free(tokenizer->vocab);
	free(tokenizer);
	return NULL;
}

/* ---- step 2 and 3: the pre-split and what lies below it ---- */

/* The next match at or after @at. Return: 1 found, 0 none, or a negative errno (-E2BIG: beyond PCRE2's limits). */
static int match_next(struct encoding *e, const pcre2_code *code, const char *text, size_t n, size_t at, uint32_t options,
		      size_t range[2])
{
	PCRE2_SIZE *found;
	int r;

	r = pcre2_match(code, (PCRE2_SPTR)text, n, at, options | PCRE2_NO_UTF_CHECK, e->match, e->context);
	if (r == PCRE2_ERROR_NOMATCH)
		return 0;
	if (r < 0)
		return error_origin(r == PCRE2_ERROR_NOMEMORY ? -ENOMEM : -E2BIG);
	found = pcre2_get_ovector_pointer(e->match);
	range[0] = found[0];
	range[1] = found[1];
	return 1;
}

static int put_piece(struct encoding *e, const char *text, size_t n)
{
	const struct tokenizer *t = e->tokenizer;

	if (t->vocab->ignore_merges) {
		uint32_t token = *piece_slot(t, text, n);

		if (token)
			return error_trace(token_list_push(&e->out, token - 1));
	}
	return error_trace(merge_piece(&t->merges, t->vocab, &e->scratch, text, n, &e->out));
}

static int put_steps(struct encoding *e, uint32_t step, const char *text, size_t n);

static int put_split(struct encoding *e, uint32_t step, const char *text, size_t n)
{
	const struct vocab_step *s = &e->tokenizer->vocab->steps[step];
	size_t at = 0, range[2] = { 0 };
	int r;

	while (at < n) {
		r = match_next(e, e->tokenizer->step[step], text, n, at, 0, range);
		if (r < 0)
			return error_trace(r);
		if (!r || range[1] <= at)
			range[0] = range[1] = n;
		if (range[0] > at && !s->drop_between) {
			r = put_steps(e, step + 1, text + at, range[0] - at);
			if (r)
				return error_trace(r);
		}
		if (range[1] > range[0] && !s->drop_matched) {
			r = put_steps(e, step + 1, text + range[0], range[1] - range[0]);
			if (r)
				return error_trace(r);
		}
		at = range[1];
	}
	return 0;
}

static int put_prefix_space(struct encoding *e, uint32_t step, const char *text, size_t n)
{
	_cleanup_free_ char *longer = NULL;

	if (*text == ' ')
		return error_trace(put_steps(e, step + 1, text, n));
	longer = malloc(n + 1);
	if (!longer)
		return error_origin(-ENOMEM);
	longer[0] = ' ';
	memcpy(longer + 1, text, n);
	return error_trace(put_steps(e, step + 1, longer, n + 1));
}

/* All steps from this one on, and the merges after the last. */
static int put_steps(struct encoding *e, uint32_t step, const char *text, size_t n)
{
	assert(n);
	if (step == e->tokenizer->vocab->n_steps)
		return put_piece(e, text, n);
	if (e->tokenizer->vocab->steps[step].kind == VOCAB_PREFIX_SPACE)
		return put_prefix_space(e, step, text, n);
	return put_split(e, step, text, n);
}

/* ---- step 1: added tokens ---- */

/* The start of the white space that ends at @end, not before @least. */
static int white_before(struct encoding *e, const char *text, size_t end, size_t least, size_t *ret)
{
	size_t at = end, range[2];
	int r;

	while (at > least) {
		size_t start = at - 1;

		while (start > least && ((uint8_t)text[start] & 0xc0) == 0x80)
			--start;
		r = match_next(e, e->tokenizer->white_run, text + start, at - start, 0, PCRE2_ANCHORED, range);
		if (r < 0)
			return error_trace(r);
		if (!r)
			break;
		at = start;
	}
	*ret = at;
	return 0;
}

/* Whether a word character touches the match on either side. Return: 0, 1 or a negative error. */
static int touches_word(struct encoding *e, const char *text, size_t n, const struct added_match *m)
{
	size_t start = m->begin, range[2];
	int r = 0;

	if (start) {
		do
			--start;
		while (start && ((uint8_t)text[start] & 0xc0) == 0x80);
		r = match_next(e, e->tokenizer->word, text + start, m->begin - start, 0, PCRE2_ANCHORED, range);
	}
	if (!r && m->end < n)
		r = match_next(e, e->tokenizer->word, text + m->end, n - m->end, 0, PCRE2_ANCHORED, range);
	return error_trace(r);
}

/* Widens a match over the white space it swallows; @done: what lies before is taken already. */
static int strip(struct encoding *e, const char *text, size_t n, size_t done, struct added_match *m)
{
	const struct vocab_added *added = &e->tokenizer->vocab->added[m->added];
	size_t range[2];
	int r;

	if (added->lstrip && m->begin > done) {
		r = white_before(e, text, m->begin, done, &m->begin);
		if (r)
			return error_trace(r);
	}
	if (added->rstrip && m->end < n) {
		r = match_next(e, e->tokenizer->white_run, text + m->end, n - m->end, 0, PCRE2_ANCHORED, range);
		if (r < 0)
			return error_trace(r);
		if (r)
			m->end += range[1];
	}
	return 0;
}

static int put_between(struct encoding *e, unsigned kind, const char *text, size_t n);

/* Cuts the added tokens of a kind (0 plain, 1 normalized) out of a text; what lies between goes on. */
static int put_added(struct encoding *e, unsigned kind, const char *text, size_t n)
{
	size_t done = 0, next;
	struct added_match m;
	int r;

	trie_find(&e->tokenizer->added[kind], text, n, 0, &m);
	for (; m.added >= 0; trie_find(&e->tokenizer->added[kind], text, n, next, &m)) {
		next = m.end;
		if (e->tokenizer->vocab->added[m.added].single_word) {
			r = touches_word(e, text, n, &m);
			if (r < 0)
				return error_trace(r);
			if (r)
				continue;
		}
		r = strip(e, text, n, done, &m);
		if (!r && m.begin > done)
			r = put_between(e, kind, text + done, m.begin - done);
		if (!r)
			r = token_list_push(&e->out, e->tokenizer->vocab->added[m.added].id);
		if (r)
			return error_trace(r);
		done = m.end;
	}
	return done < n ? error_trace(put_between(e, kind, text + done, n - done)) : 0;
}

static int put_between(struct encoding *e, unsigned kind, const char *text, size_t n)
{
	return kind ? put_steps(e, 0, text, n) : put_added(e, 1, text, n);
}

/* ---- the whole ---- */

static bool valid_utf8(const char *text, size_t n)
{
	size_t at = 0;

	while (at < n) {
		int step = (uint8_t)text[at] < 0x80 ? 1 : utf8_step((const uint8_t *)text + at, n - at);

		if (step <= 0)
			return false;
		at += (size_t)step;
	}
	return true;
}

static int put_affix(struct encoding *e, const uint32_t *affix, uint32_t n)
{
	uint32_t i;
	int r;

	for (i = 0; i < n; ++i) {
		r = token_list_push(&e->out, affix[i]);
		if (r)
			return error_trace(r);
	}
	return 0;
}

static int encoding_init(struct encoding *e)
{
	e->match = pcre2_match_data_create(1, NULL);
	e->context = pcre2_match_context_create(NULL);
	if (!e->match || !e->context)
		return error_origin(-ENOMEM);
	e->stack = pcre2_jit_stack_create(JIT_STACK_START, JIT_STACK_MAX, NULL); /* NULL: no JIT in this PCRE2 */
	if (e->stack)
		pcre2_jit_stack_assign(e->context, NULL, e->stack);
	return 0;
}

/**
 * tokenizer_encode() - tokens of a text
 * @tokenizer:  the tokenizer
 * @text:       valid UTF-8; NUL is a character like any other
 * @bytes:      its length
 * @ret:        the tokens, malloc'd; NULL if there are none
 * @ret_n:      how many
 *
 * Return: 0, a negative errno, or TOKENIZER_E_INVALID for a text that is no valid UTF-8 or above 1 GiB.
 */
int tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t bytes, uint32_t **ret, size_t *ret_n)
{
	_cleanup_(encoding_deinit) struct encoding e = { .tokenizer = tokenizer };
	const struct vocab *vocab = tokenizer->vocab;
	int r;

	if (bytes > TEXT_MAX || !valid_utf8(text, bytes))
		return TOKENIZER_E_INVALID;
	if ((r = encoding_init(&e)) || (r = put_affix(&e, vocab->prefix, vocab->n_prefix)) ||
	    (r = put_added(&e, 0, text, bytes)) || (r = put_affix(&e, vocab->suffix, vocab->n_suffix)))
		return error_trace(r);
	*ret = TAKE_PTR(e.out.token);
	*ret_n = e.out.n;
	return TOKENIZER_OK;
}

/** tokenizer_bytes() - what a token stands for; NULL and 0 for an id without a token */
const char *tokenizer_bytes(const struct tokenizer *tokenizer, uint32_t token, size_t *ret_bytes)
{
	if (token >= tokenizer->vocab->n_tokens) {
		*ret_bytes = 0;
		return NULL;
	}
	*ret_bytes = tokenizer->vocab->tokens[token].n;
	return tokenizer->vocab->tokens[token].bytes;
}

bool tokenizer_is_special(const struct tokenizer *tokenizer, uint32_t token)
{
	return token < tokenizer->vocab->n_tokens && tokenizer->vocab->tokens[token].special;
}

uint32_t tokenizer_size(const struct tokenizer *tokenizer)
{
	return tokenizer->vocab->n_tokens;
}
