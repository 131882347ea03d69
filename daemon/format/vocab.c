/* SPDX-License-Identifier: MIT */
/*
 * Vocabularies of byte-level BPE
 *
 * Files spell tokens in GPT-2's byte-level alphabet: each byte is one character, printable ones stand for themselves, the
 * others are moved to U+0100 and up, so that a space is U+0120. A vocabulary here has the alphabet undone: tokens are
 * plain bytes. A token with a character outside the alphabet (an added one, with a space in it) stands for its text, as
 * it does for Hugging Face's decoder.
 *
 * Merges are resolved to ids once: (left, right) -> result, best first. Everything is looked up by the file's spelling,
 * because two tokens may be the same bytes (an added " " and the alphabet's U+0120).
 *
 * The readers are gguf-vocab.c and hf-vocab.c; this file has what they share. A finished vocabulary is sound: ids are
 * below n_tokens and have a text, every merge's parts and result exist.
 */
#include "daemon/format/vocab.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/format/vocab-build.h"

/* ---- the byte-level alphabet: 33..126, 161..172 and 174..255 are themselves, the other 68 follow from U+0100 ---- */

#define MOVED_FIRST 256u
#define MOVED_N 68u
#define TEXT_MAX 65536u /* bytes of a token */

static bool stands_for_itself(unsigned c)
{
	return (c >= 33 && c <= 126) || (c >= 161 && c <= 172) || (c >= 174 && c <= 255);
}

/* The byte of a character, or -1. */
static int byte_of(unsigned c)
{
	unsigned moved = c - MOVED_FIRST;

	if (c < MOVED_FIRST)
		return stands_for_itself(c) ? (int)c : -1;
	if (moved >= MOVED_N)
		return -1;
	return (int)(moved < 33 ? moved : moved < 67 ? moved - 33 + 127 : 173);
}

static unsigned character_of(unsigned byte)
{
	if (stands_for_itself(byte))
		return byte;
	return MOVED_FIRST + (byte < 33 ? byte : byte < 161 ? byte - 127 + 33 : 67);
}

/* Undoes the alphabet into to (room for text->n bytes); false: a character is not of it. */
static bool decode(const struct format_text *text, char *to, uint32_t *ret_n)
{
	uint32_t n = 0;
	size_t i = 0;

	while (i < text->n) {
		unsigned c = (uint8_t)text->bytes[i++];
		int byte;

		if (c >= 0x80) { /* the alphabet ends at U+0143: two bytes */
			if ((c & 0xe0) != 0xc0 || i == text->n || ((uint8_t)text->bytes[i] & 0xc0) != 0x80)
				return false;
			c = (c & 0x1f) << 6 | ((uint8_t)text->bytes[i++] & 0x3f);
		}
		byte = byte_of(c);
		if (byte < 0)
			return false;
		to[n++] = (char)byte;
	}
	*ret_n = n;
	return true;
}

/* ---- spelling -> id ---- */

static uint64_t hash_text(struct format_text text) /* FNV-1a */
{
	uint64_t h = 0xcbf29ce484222325u;
	size_t i;

	for (i = 0; i < text.n; ++i)
		h = (h ^ (uint8_t)text.bytes[i]) * 0x100000001b3u;
	return h ^ h >> 32;
}

int lexicon_init(struct lexicon *lexicon, uint32_t n_tokens)
{
	assert(n_tokens <= VOCAB_TOKENS_MAX);
	lexicon->n_slots = 16;
	while (lexicon->n_slots < 2 * n_tokens)
		lexicon->n_slots *= 2;
	lexicon->text = calloc((size_t)n_tokens + 1, sizeof(*lexicon->text));
	lexicon->slot = calloc(lexicon->n_slots, sizeof(*lexicon->slot));
	return lexicon->text && lexicon->slot ? 0 : error_origin(-ENOMEM);
}

void lexicon_deinit(struct lexicon *lexicon)
{
	free(lexicon->text);
	free(lexicon->slot);
	*lexicon = (struct lexicon){ 0 };
}

/* The slot of a text: its own, or the free one where it would go. There always is one: half of them stay free. */
static uint32_t *slot_of(const struct lexicon *lexicon, struct format_text text)
{
	uint32_t mask = lexicon->n_slots - 1, i = (uint32_t)hash_text(text) & mask;

	for (;; i = (i + 1) & mask) {
		const struct format_text *there = &lexicon->text[lexicon->slot[i] ? lexicon->slot[i] - 1 : 0];

		if (!lexicon->slot[i] || (there->n == text.n && !memcmp(there->bytes, text.bytes, text.n)))
			return &lexicon->slot[i];
	}
}

/** lexicon_add() - an id's text; refused if the id or the text was there already, or the text is empty or too long */
int lexicon_add(struct lexicon *lexicon, uint32_t id, struct format_text text, struct diag *diag)
{
	uint32_t *slot;

	if (!text.n || text.n > TEXT_MAX)
		return diag_set(diag, FORMAT_E_INVALID, "token %u has no text, or too long a one", id);
	if (lexicon->text[id].n)
		return diag_set(diag, FORMAT_E_INVALID, "token %u has two texts", id);
	slot = slot_of(lexicon, text);
	if (*slot)
		return diag_set(diag, FORMAT_E_INVALID, "tokens %u and %u have the same text '%.*s'", *slot - 1, id,
				text.n > 64 ? 64 : (int)text.n, text.bytes);
	*slot = id + 1;
	lexicon->text[id] = text;
	return FORMAT_OK;
}

int64_t lexicon_find(const struct lexicon *lexicon, struct format_text text)
{
	return (int64_t)*slot_of(lexicon, text) - 1;
}

/* ---- building ---- */

/**
 * vocab_new() - an empty vocabulary
 * @ret:        the vocabulary
 * @n_tokens:   ids it has
 * @text_bytes: sum of the lengths of all texts that will be put in
 * @n_merges:   most merges that will be put in
 * @n_added:    most added tokens that will be put in
 */
int vocab_new(struct vocab **ret, uint32_t n_tokens, size_t text_bytes, uint32_t n_merges, uint32_t n_added)
{
	_cleanup_(vocab_freep) struct vocab *vocab = calloc(1, sizeof(*vocab));

	if (!vocab)
		return error_origin(-ENOMEM);
	vocab->n_tokens = n_tokens;
	vocab->room = text_bytes;
	vocab->tokens = calloc((size_t)n_tokens + 1, sizeof(*vocab->tokens));
	vocab->merges = calloc((size_t)n_merges + 1, sizeof(*vocab->merges));
	vocab->added = calloc((size_t)n_added + 1, sizeof(*vocab->added));
	vocab->bytes = malloc(text_bytes + 1);
	if (!vocab->tokens || !vocab->merges || !vocab->added || !vocab->bytes)
		return error_origin(-ENOMEM);
	*ret = TAKE_PTR(vocab);
	return 0;
}

struct vocab *vocab_free(struct vocab *vocab)
{
	uint32_t i;

	if (!vocab)
		return NULL;
	for (i = 0; i < vocab->n_steps; ++i)
		free(vocab->steps[i].pattern);
	free(vocab->tokens);
	free(vocab->merges);
	free(vocab->added);
	free(vocab->chat_template);
	free(vocab->bytes);
	free(vocab);
	return NULL;
}

/* Copies a text into the vocabulary, undoing the alphabet where it is in it. */
static const char *keep(struct vocab *vocab, struct format_text text, bool in_alphabet, uint32_t *ret_n)
{
	char *to = vocab->bytes + vocab->n_bytes;

	assert(text.n <= vocab->room - vocab->n_bytes);
	if (!in_alphabet || !decode(&text, to, ret_n)) {
		memcpy(to, text.bytes, text.n);
		*ret_n = (uint32_t)text.n;
	}
	vocab->n_bytes += *ret_n;
	return to;
}

/** vocab_put_tokens() - take over all texts of the lexicon, and find the tokens of single bytes */
void vocab_put_tokens(struct vocab *vocab, const struct lexicon *lexicon)
{
	uint32_t i;

	for (i = 0; i < vocab->n_tokens; ++i)
		if (lexicon->text[i].n)
			vocab->tokens[i].bytes = keep(vocab, lexicon->text[i], true, &vocab->tokens[i].n);
	for (i = 0; i < 256; ++i) {
		unsigned c = character_of(i);
		char spelled[2] = { (char)(0xc0 | c >> 6), (char)(0x80 | (c & 0x3f)) };

		if (c < 0x80)
			spelled[0] = (char)c;
		vocab->byte_token[i] =
			(int32_t)lexicon_find(lexicon, (struct format_text){ spelled, c < 0x80 ? 1 : 2 });
	}
}

/** vocab_put_merge() - the next best merge, in the file's spelling */
int vocab_put_merge(struct vocab *vocab, const struct lexicon *lexicon, struct format_text left, struct format_text right,
		    struct diag *diag)
{
	int64_t l = lexicon_find(lexicon, left), r = lexicon_find(lexicon, right), whole = -1;
	char text[1024];

	if (left.n + right.n <= sizeof(text)) {
		memcpy(text, left.bytes, left.n);
		memcpy(text + left.n, right.bytes, right.n);
		whole = lexicon_find(lexicon, (struct format_text){ text, left.n + right.n });
	}
	if (l < 0 || r < 0 || whole < 0)
		return diag_set(diag, FORMAT_E_INVALID, "merge %u: '%.*s' and '%.*s' or what they make is no token",
				vocab->n_merges, left.n > 64 ? 64 : (int)left.n, left.bytes,
				right.n > 64 ? 64 : (int)right.n, right.bytes);
	vocab->merges[vocab->n_merges++] = (struct vocab_merge){ (uint32_t)l, (uint32_t)r, (uint32_t)whole };
	return FORMAT_OK;
}

/** vocab_put_added() - a token recognised in text; added->text is the file's and is copied */
int vocab_put_added(struct vocab *vocab, const struct vocab_added *added, bool special, struct diag *diag)
{
	struct vocab_added *to = &vocab->added[vocab->n_added];

	if (added->id >= vocab->n_tokens || !vocab->tokens[added->id].n)
		return diag_set(diag, FORMAT_E_INVALID, "added token %u is not in the vocabulary", added->id);
	*to = *added;
	to->text = keep(vocab, (struct format_text){ added->text, added->n }, false, &to->n);
	vocab->tokens[added->id].special = special;
	++vocab->n_added;
	return FORMAT_OK;
}

/** vocab_put_step() - the next step of the pre-split; the pattern is copied, NULL for none */
int vocab_put_step(struct vocab *vocab, const struct vocab_step *step, const char *pattern, struct diag *diag)
{
	struct vocab_step *to = &vocab->steps[vocab->n_steps];

	if (vocab->n_steps == VOCAB_STEPS_MAX)
		return diag_set(diag, FORMAT_E_INVALID, "pre_tokenizer: more than %d steps", VOCAB_STEPS_MAX);
	*to = *step;
	to->pattern = pattern ? strdup(pattern) : NULL;
	if (pattern && !to->pattern)
		return error_origin(-ENOMEM);
	++vocab->n_steps;
	return FORMAT_OK;
}

/** vocab_set_chat_template() - the text of the model's chat template, replacing one that is there */
int vocab_set_chat_template(struct vocab *vocab, const char *text, size_t bytes)
{
	char *copy = strndup(text, bytes);

	if (!copy)
		return error_origin(-ENOMEM);
	free(vocab->chat_template);
	vocab->chat_template = copy;
	return 0;
}
