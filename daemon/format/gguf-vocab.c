/* SPDX-License-Identifier: MIT */
/*
 * The vocabulary in a GGUF file's metadata (keys tokenizer.ggml.*, tokenizer.chat_template)
 *
 * The file names its pre-split instead of describing it; lorad knows gpt-2 and smollm (each digit alone, then gpt-2).
 * Tokens of the types control, user-defined and unknown are recognised in text; the first and last count as special.
 */
#include "daemon/format/vocab.h"

#include <inttypes.h>
#include <string.h>

#include "daemon/format/split-regex.h"
#include "daemon/format/vocab-build.h"

enum token_type { TYPE_UNKNOWN = 2, TYPE_CONTROL = 3, TYPE_USER_DEFINED = 4 };

struct source {
	const struct gguf *gguf;
	struct gguf_array tokens, types, merges;
};

static bool text_is(const struct format_text *text, const char *string)
{
	return text->n == strlen(string) && !memcmp(text->bytes, string, text->n);
}

static int require_array(const struct gguf *gguf, const char *key, enum gguf_type type, struct gguf_array *ret,
			 struct diag *diag)
{
	int r = gguf_get_array(gguf, key, type, ret, diag);

	return r == FORMAT_E_MISSING ? diag_set(diag, FORMAT_E_INVALID, "%s: missing", key) : r;
}

static int check_model(const struct gguf *gguf, struct diag *diag)
{
	struct format_text model = { "(missing)", 9 };
	int r;

	r = gguf_get_string(gguf, "tokenizer.ggml.model", &model, diag);
	if (r == FORMAT_E_INVALID)
		return r;
	if (!text_is(&model, "gpt2"))
		return diag_set(diag, FORMAT_E_INVALID, "tokenizer.ggml.model: '%.*s' is not supported (gpt2 is)",
				model.n > 64 ? 64 : (int)model.n, model.bytes);
	return FORMAT_OK;
}

static int read_arrays(struct source *s, struct diag *diag)
{
	int r;

	if ((r = require_array(s->gguf, "tokenizer.ggml.tokens", GGUF_STRING, &s->tokens, diag)) ||
	    (r = require_array(s->gguf, "tokenizer.ggml.token_type", GGUF_I32, &s->types, diag)) ||
	    (r = require_array(s->gguf, "tokenizer.ggml.merges", GGUF_STRING, &s->merges, diag)))
		return r;
	if (!s->tokens.n || s->tokens.n > VOCAB_TOKENS_MAX || s->merges.n > VOCAB_MERGES_MAX)
		return diag_set(diag, FORMAT_E_INVALID, "tokenizer.ggml: %" PRIu64 " tokens and %" PRIu64 " merges",
				s->tokens.n, s->merges.n);
	if (s->types.n != s->tokens.n)
		return diag_set(diag, FORMAT_E_INVALID, "tokenizer.ggml.token_type: %" PRIu64 " types for %" PRIu64 " tokens",
				s->types.n, s->tokens.n);
	return FORMAT_OK;
}

/* Fills the lexicon; *ret_bytes: of all texts together, *ret_added: how many are recognised in text. */
static int read_tokens(const struct source *s, struct lexicon *lexicon, size_t *ret_bytes, uint32_t *ret_added,
		       struct diag *diag)
{
	struct gguf_array tokens = s->tokens, types = s->types;
	struct format_text text;
	size_t bytes = 0;
	uint32_t id, type, added = 0;
	int r;

	for (id = 0; gguf_array_next_string(&tokens, &text) && gguf_array_next_u32(&types, &type); ++id) {
		r = lexicon_add(lexicon, id, text, diag);
		if (r)
			return r;
		bytes += text.n;
		added += type == TYPE_UNKNOWN || type == TYPE_CONTROL || type == TYPE_USER_DEFINED;
	}
	*ret_bytes = bytes;
	*ret_added = added;
	return FORMAT_OK;
}

static int put_added(struct vocab *vocab, const struct source *s, const struct lexicon *lexicon, struct diag *diag)
{
	struct gguf_array types = s->types;
	uint32_t id, type;
	int r;

	for (id = 0; gguf_array_next_u32(&types, &type); ++id) {
		struct vocab_added added = { .text = lexicon->text[id].bytes, .n = (uint32_t)lexicon->text[id].n, .id = id };

		if (type != TYPE_UNKNOWN && type != TYPE_CONTROL && type != TYPE_USER_DEFINED)
			continue;
		r = vocab_put_added(vocab, &added, type != TYPE_USER_DEFINED, diag);
		if (r)
			return r;
	}
	return FORMAT_OK;
}

static int put_merges(struct vocab *vocab, const struct source *s, const struct lexicon *lexicon, struct diag *diag)
{
	struct gguf_array merges = s->merges;
	struct format_text line;
	int r;

	while (gguf_array_next_string(&merges, &line)) {
		const char *space = memchr(line.bytes, ' ', line.n);
		struct format_text left = { line.bytes, 0 }, right = { NULL, 0 };

		if (!space)
			return diag_set(diag, FORMAT_E_INVALID, "tokenizer.ggml.merges: no space in merge %u", vocab->n_merges);
		left.n = (size_t)(space - line.bytes);
		right.bytes = space + 1;
		right.n = line.n - left.n - 1;
		r = vocab_put_merge(vocab, lexicon, left, right, diag);
		if (r)
			return diag_prefix(diag, r, "tokenizer.ggml.merges");
	}
	return FORMAT_OK;
}

static int put_steps(struct vocab *vocab, const struct gguf *gguf, struct diag *diag)
{
	const struct vocab_step split = { .kind = VOCAB_SPLIT };
	struct format_text pre = { "(missing)", 9 };
	int r;

	r = gguf_get_string(gguf, "tokenizer.ggml.pre", &pre, diag);
	if (r == FORMAT_E_INVALID)
		return r;
	if (text_is(&pre, "smollm")) {
		r = vocab_put_step(vocab, &split, split_regex_digit, diag);
		if (r)
			return error_trace(r);
	} else if (!text_is(&pre, "gpt-2")) {
		return diag_set(diag, FORMAT_E_INVALID, "tokenizer.ggml.pre: '%.*s' is not supported (smollm, gpt-2 are)",
				pre.n > 64 ? 64 : (int)pre.n, pre.bytes);
	}
	return error_trace(vocab_put_step(vocab, &split, split_regex_gpt2, diag));
}

/* add_*_token says whether the token is put before or after every text. */
static int put_affix(const struct vocab *vocab, const struct gguf *gguf, const char *flag, const char *id_key,
		     uint32_t affix[VOCAB_AFFIX_MAX], uint32_t *n, struct diag *diag)
{
	bool wanted = false;
	int r;

	r = gguf_get_bool(gguf, flag, &wanted, diag);
	if (r == FORMAT_E_INVALID)
		return r;
	if (!wanted)
		return FORMAT_OK;
	r = gguf_get_u32(gguf, id_key, &affix[0], diag);
	if (r == FORMAT_E_INVALID)
		return r;
	if (r || affix[0] >= vocab->n_tokens)
		return diag_set(diag, FORMAT_E_INVALID, "%s: missing or no token, but %s asks for it", id_key, flag);
	*n = 1;
	return FORMAT_OK;
}

static int put_rest(struct vocab *vocab, const struct gguf *gguf, struct diag *diag)
{
	struct format_text template;
	int r;

	if ((r = put_affix(vocab, gguf, "tokenizer.ggml.add_bos_token", "tokenizer.ggml.bos_token_id", vocab->prefix,
			   &vocab->n_prefix, diag)) ||
	    (r = put_affix(vocab, gguf, "tokenizer.ggml.add_eos_token", "tokenizer.ggml.eos_token_id", vocab->suffix,
			   &vocab->n_suffix, diag)))
		return r;
	r = gguf_get_string(gguf, "tokenizer.chat_template", &template, diag);
	if (r == FORMAT_E_INVALID)
		return r;
	return r ? FORMAT_OK : error_trace(vocab_set_chat_template(vocab, template.bytes, template.n));
}

/**
 * vocab_from_gguf() - the vocabulary of a GGUF file
 * @ret:        the vocabulary; holds nothing of the file
 * @gguf:       the view
 * @diag:       the reason of a refusal, with the key
 *
 * Return: 0, -ENOMEM or FORMAT_E_INVALID.
 */
int vocab_from_gguf(struct vocab **ret, const struct gguf *gguf, struct diag *diag)
{
	_cleanup_(lexicon_deinit) struct lexicon lexicon = { 0 };
	_cleanup_(vocab_freep) struct vocab *vocab = NULL;
	struct source s = { .gguf = gguf };
	uint32_t n_added;
	size_t bytes;
	int r;

	if ((r = check_model(gguf, diag)) || (r = read_arrays(&s, diag)))
		return r;
	r = lexicon_init(&lexicon, (uint32_t)s.tokens.n);
	if (r)
		return error_trace(r);
	r = read_tokens(&s, &lexicon, &bytes, &n_added, diag);
	if (r)
		return diag_prefix(diag, r, "tokenizer.ggml.tokens");
	r = vocab_new(&vocab, (uint32_t)s.tokens.n, 2 * bytes, (uint32_t)s.merges.n, n_added);
	if (r)
		return error_trace(r);
	vocab_put_tokens(vocab, &lexicon);
	if ((r = put_added(vocab, &s, &lexicon, diag)) || (r = put_merges(vocab, &s, &lexicon, diag)) ||
	    (r = put_steps(vocab, gguf, diag)) || (r = put_rest(vocab, gguf, diag)))
		return error_trace(r);
	*ret = TAKE_PTR(vocab);
	return FORMAT_OK;
}
