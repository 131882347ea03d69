/* SPDX-License-Identifier: MIT */
/*
 * The vocabulary in a Hugging Face folder: tokenizer.json, tokenizer_config.json
 *
 * tokenizer.json describes a pipeline: added tokens are cut out of the text, the rest passes a normalizer, a
 * pre_tokenizer, the model and a post_processor. lorad does byte-level BPE: model BPE without byte fallback or affixes,
 * no normalizer, a pre_tokenizer that ends in ByteLevel, a post_processor that at most puts fixed tokens around the text.
 * Every key with another value, and every key that is not known here, is refused by name unless it is switched off.
 */
#include "daemon/format/vocab.h"

#include <string.h>

#include "daemon/format/json.h"
#include "daemon/format/split-regex.h"
#include "daemon/format/vocab-build.h"

#define TOKENIZER_CONFIG_MAX (16u << 20)

struct source {
	json_t *root, *model, *vocab, *merges, *added;
	struct lexicon lexicon;
	uint32_t n_tokens;
	size_t bytes;
};

static const char *type_of(json_t *object)
{
	const char *type = json_string_value(json_object_get(object, "type"));

	return type ? type : "(no type)";
}

static struct format_text text_of(json_t *string)
{
	return (struct format_text){ json_string_value(string), json_string_length(string) };
}

/* ---- the model: vocabulary and merges ---- */

static int check_model(struct source *s, struct diag *diag)
{
	static const char *const root_keys[] = { "version", "truncation", "padding", "added_tokens", "pre_tokenizer",
						 "post_processor", "decoder", "model", NULL };
	static const char *const model_keys[] = { "type", "vocab", "merges", "fuse_unk", "unk_token", "ignore_merges",
						  NULL };
	int r;

	r = json_check_keys("", s->root, root_keys, diag);
	if (r)
		return r;
	s->model = json_object_get(s->root, "model");
	if (!json_is_object(s->model))
		return diag_set(diag, FORMAT_E_INVALID, "model: missing");
	if (json_object_get(s->model, "type") && strcmp(type_of(s->model), "BPE") != 0)
		return diag_set(diag, FORMAT_E_INVALID, "model.type: '%s' is not supported (BPE is)", type_of(s->model));
	r = json_check_keys("model", s->model, model_keys, diag);
	if (r)
		return r;
	s->vocab = json_object_get(s->model, "vocab");
	s->merges = json_object_get(s->model, "merges");
	s->added = json_object_get(s->root, "added_tokens");
	if (!json_is_object(s->vocab) || !json_object_size(s->vocab))
		return diag_set(diag, FORMAT_E_INVALID, "model.vocab: missing or empty");
	if (!json_is_array(s->merges) || json_array_size(s->merges) > VOCAB_MERGES_MAX)
		return diag_set(diag, FORMAT_E_INVALID, "model.merges: missing or too long");
	if (s->added && !json_is_array(s->added))
		return diag_set(diag, FORMAT_E_INVALID, "added_tokens: not an array");
	return FORMAT_OK;
}

static int check_id(const char *where, json_t *id, struct diag *diag)
{
	if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= VOCAB_TOKENS_MAX)
		return diag_set(diag, FORMAT_E_INVALID, "%.100s: its id is not in 0..%u", where, VOCAB_TOKENS_MAX - 1);
	return FORMAT_OK;
}

/* n_tokens: the largest id of model and added tokens, plus one. */
static int count_tokens(struct source *s, struct diag *diag)
{
	json_int_t largest = 0;
	json_t *entry;
	size_t i;
	void *it;
	int r;

	for (it = json_object_iter(s->vocab); it; it = json_object_iter_next(s->vocab, it)) {
		json_t *id = json_object_iter_value(it);

		r = check_id(json_object_iter_key(it), id, diag);
		if (r)
			return diag_prefix(diag, r, "model.vocab");
		if (json_integer_value(id) > largest)
			largest = json_integer_value(id);
	}
	json_array_foreach (s->added, i, entry) {
		json_t *id = json_object_get(entry, "id");
		const char *content = json_string_value(json_object_get(entry, "content"));

		if (!content || !*content)
			return diag_set(diag, FORMAT_E_INVALID, "added_tokens: number %zu has no content", i);
		r = check_id(content, id, diag);
		if (r)
			return diag_prefix(diag, r, "added_tokens");
		if (json_integer_value(id) > largest)
			largest = json_integer_value(id);
	}
	s->n_tokens = (uint32_t)largest + 1;
	return FORMAT_OK;
}

/* Texts by id. An added token may stand in the model's vocabulary too, then with the same id. */
static int read_tokens(struct source *s, struct diag *diag)
{
	json_t *entry;
	size_t i;
	void *it;
	int r;

	for (it = json_object_iter(s->vocab); it; it = json_object_iter_next(s->vocab, it)) {
		const char *key = json_object_iter_key(it);
		struct format_text text = { key, strlen(key) };

		r = lexicon_add(&s->lexicon, (uint32_t)json_integer_value(json_object_iter_value(it)), text, diag);
		if (r)
			return diag_prefix(diag, r, "model.vocab");
		s->bytes += text.n;
	}
	json_array_foreach (s->added, i, entry) {
		uint32_t id = (uint32_t)json_integer_value(json_object_get(entry, "id"));
		struct format_text text = text_of(json_object_get(entry, "content"));

		if (lexicon_find(&s->lexicon, text) != id) {
			r = lexicon_add(&s->lexicon, id, text, diag);
			if (r)
				return diag_prefix(diag, r, "added_tokens");
			s->bytes += text.n;
		}
		s->bytes += text.n; /* kept once more as an added token */
	}
	return FORMAT_OK;
}

/* "left right" or ["left", "right"]. */
static int put_merges(struct vocab *vocab, const struct source *s, struct diag *diag)
{
	json_t *entry;
	size_t i;
	int r;

	json_array_foreach (s->merges, i, entry) {
		const char *line = json_string_value(entry), *space = line ? strchr(line, ' ') : NULL;
		struct format_text left, right;

		if (space && !strchr(space + 1, ' ')) {
			left = (struct format_text){ line, (size_t)(space - line) };
			right = (struct format_text){ space + 1, strlen(space + 1) };
		} else if (!line && json_array_size(entry) == 2 && json_is_string(json_array_get(entry, 0)) &&
			   json_is_string(json_array_get(entry, 1))) {
			left = text_of(json_array_get(entry, 0));
			right = text_of(json_array_get(entry, 1));
		} else {
			return diag_set(diag, FORMAT_E_INVALID, "model.merges: merge %zu is no pair", i);
		}
		r = vocab_put_merge(vocab, &s->lexicon, left, right, diag);
		if (r)
			return diag_prefix(diag, r, "model.merges");
	}
	return FORMAT_OK;
}

/*
 * Bytes without a token vanish where the model has no unknown token, and become that one where it has. The latter is
 * not done here, so each byte that valid UTF-8 can have must then have its token.
 */
static int check_unknown(const struct vocab *vocab, const struct source *s, struct diag *diag)
{
	unsigned b;

	if (!json_truthy(json_object_get(s->model, "unk_token")))
		return FORMAT_OK;
	for (b = 0; b <= 0xf4; ++b)
		if (vocab->byte_token[b] < 0 && b != 0xc0 && b != 0xc1)
			return diag_set(diag, FORMAT_E_INVALID, "model.unk_token: set, and byte 0x%02x has no token", b);
	return FORMAT_OK;
}

static int put_added(struct vocab *vocab, const struct source *s, struct diag *diag)
{
	static const char *const keys[] = { "id", "content", "single_word", "lstrip", "rstrip", "normalized", "special",
					    NULL };
	json_t *entry;
	size_t i;
	int r;

	json_array_foreach (s->added, i, entry) {
		struct format_text text = text_of(json_object_get(entry, "content"));
		struct vocab_added added = {
			.text = text.bytes,
			.n = (uint32_t)text.n,
			.id = (uint32_t)json_integer_value(json_object_get(entry, "id")),
			.lstrip = json_is_true(json_object_get(entry, "lstrip")),
			.rstrip = json_is_true(json_object_get(entry, "rstrip")),
			.single_word = json_is_true(json_object_get(entry, "single_word")),
			.normalized = json_is_true(json_object_get(entry, "normalized")),
		};

		r = json_check_keys("added_tokens", entry, keys, diag);
		if (!r)
			r = vocab_put_added(vocab, &added, json_is_true(json_object_get(entry, "special")), diag);
		if (r)
			return r;
	}
	return FORMAT_OK;
}

/* ---- the pre_tokenizer ---- */

/* {"Regex": "..."} or {"String": "..."} as a PCRE2 pattern. */
static int read_pattern(json_t *pattern, char **ret, struct diag *diag)
{
	const char *regex = json_string_value(json_object_get(pattern, "Regex"));
	const char *string = json_string_value(json_object_get(pattern, "String"));

	if (regex && *regex)
		return split_regex_translate(regex, ret, diag);
	if (string && *string)
		return split_regex_literal(string, ret);
	return diag_set(diag, FORMAT_E_INVALID, "neither a Regex nor a String");
}

static int put_split(struct vocab *vocab, json_t *pre, struct diag *diag)
{
	static const char *const keys[] = { "type", "pattern", "behavior", "invert", NULL };
	const char *behavior = json_string_value(json_object_get(pre, "behavior"));
	bool invert = json_is_true(json_object_get(pre, "invert"));
	struct vocab_step step = { .kind = VOCAB_SPLIT };
	_cleanup_free_ char *pattern = NULL;
	int r;

	r = json_check_keys("pre_tokenizer.Split", pre, keys, diag);
	if (r)
		return r;
	if (behavior && !strcmp(behavior, "Removed")) {
		step.drop_matched = !invert;
		step.drop_between = invert;
	} else if (!behavior || strcmp(behavior, "Isolated") != 0) {
		return diag_set(diag, FORMAT_E_INVALID,
				"pre_tokenizer.Split.behavior: '%s' is not supported (Isolated, Removed are)",
				behavior ? behavior : "(none)");
	}
	r = read_pattern(json_object_get(pre, "pattern"), &pattern, diag);
	if (r > 0)
		return diag_prefix(diag, r, "pre_tokenizer.Split.pattern");
	return error_trace(r ? r : vocab_put_step(vocab, &step, pattern, diag));
}

static int put_digits(struct vocab *vocab, json_t *pre, struct diag *diag)
{
	static const char *const keys[] = { "type", "individual_digits", NULL };
	const struct vocab_step step = { .kind = VOCAB_SPLIT };
	bool each = json_is_true(json_object_get(pre, "individual_digits"));
	int r;

	r = json_check_keys("pre_tokenizer.Digits", pre, keys, diag);
	if (r)
		return r;
	return error_trace(vocab_put_step(vocab, &step, each ? split_regex_digit : split_regex_digits, diag));
}

static int put_byte_level(struct vocab *vocab, json_t *pre, struct diag *diag)
{
	static const char *const keys[] = { "type", "add_prefix_space", "trim_offsets", "use_regex", NULL };
	const struct vocab_step space = { .kind = VOCAB_PREFIX_SPACE }, split = { .kind = VOCAB_SPLIT };
	json_t *add = json_object_get(pre, "add_prefix_space"), *regex = json_object_get(pre, "use_regex");
	int r;

	r = json_check_keys("pre_tokenizer.ByteLevel", pre, keys, diag);
	if (r)
		return r;
	if (!add || json_is_true(add)) { /* both are on where they are not mentioned */
		r = vocab_put_step(vocab, &space, NULL, diag);
		if (r)
			return error_trace(r);
	}
	if (regex && !json_is_true(regex))
		return FORMAT_OK;
	return error_trace(vocab_put_step(vocab, &split, split_regex_gpt2, diag));
}

/* One step; a Sequence of them is walked, and ByteLevel must come last: it leaves nothing to split. */
static int put_pre_tokenizer(struct vocab *vocab, json_t *pre, bool last, struct diag *diag)
{
	json_t *list = json_object_get(pre, "pretokenizers");
	size_t i, n = json_array_size(list);
	const char *type = type_of(pre);
	int r = FORMAT_OK;

	if (!strcmp(type, "Sequence") && n) {
		for (i = 0; i < n && !r; ++i)
			r = put_pre_tokenizer(vocab, json_array_get(list, i), last && i == n - 1, diag);
		return r;
	}
	if (last != !strcmp(type, "ByteLevel"))
		return diag_set(diag, FORMAT_E_INVALID, "pre_tokenizer: '%s' is not supported %s", type,
				last ? "as the last step (ByteLevel is)" : "before another step");
	if (last)
		return put_byte_level(vocab, pre, diag);
	if (!strcmp(type, "Digits"))
		return put_digits(vocab, pre, diag);
	if (!strcmp(type, "Split"))
		return put_split(vocab, pre, diag);
	return diag_set(diag, FORMAT_E_INVALID, "pre_tokenizer: '%s' is not supported (Split, Digits, ByteLevel are)", type);
}

/* ---- the post_processor: fixed tokens around the text ---- */

static int put_special(struct vocab *vocab, json_t *template, json_t *item, bool before, struct diag *diag)
{
	const char *name = json_string_value(json_object_get(item, "id"));
	json_t *entry = name ? json_object_get(json_object_get(template, "special_tokens"), name) : NULL;
	json_t *ids = json_object_get(entry, "ids");
	uint32_t *affix = before ? vocab->prefix : vocab->suffix;
	uint32_t *n = before ? &vocab->n_prefix : &vocab->n_suffix;
	size_t i;

	if (!json_array_size(ids))
		return diag_set(diag, FORMAT_E_INVALID, "post_processor: token '%s' has no ids", name ? name : "(no name)");
	for (i = 0; i < json_array_size(ids); ++i) {
		json_t *id = json_array_get(ids, i);

		if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= vocab->n_tokens)
			return diag_set(diag, FORMAT_E_INVALID, "post_processor: token '%s' has an id outside the vocabulary",
					name);
		if (*n == VOCAB_AFFIX_MAX)
			return diag_set(diag, FORMAT_E_INVALID, "post_processor: more than %d tokens around a text",
					VOCAB_AFFIX_MAX);
		affix[(*n)++] = (uint32_t)json_integer_value(id);
	}
	return FORMAT_OK;
}

static int put_template(struct vocab *vocab, json_t *post, struct diag *diag)
{
	json_t *single = json_object_get(post, "single"), *item;
	bool before = true;
	size_t i;
	int r;

	for (i = 0; i < json_array_size(single); ++i) {
		item = json_object_get(json_array_get(single, i), "SpecialToken");
		if (item) {
			r = put_special(vocab, post, item, before, diag);
			if (r)
				return r;
		} else if (before && json_object_get(json_array_get(single, i), "Sequence")) {
			before = false;
		} else {
			return diag_set(diag, FORMAT_E_INVALID, "post_processor: item %zu of its template is not supported", i);
		}
	}
	return before ? diag_set(diag, FORMAT_E_INVALID, "post_processor: its template has no text") : FORMAT_OK;
}

static int put_post_processor(struct vocab *vocab, json_t *post, struct diag *diag)
{
	json_t *list = json_object_get(post, "processors");
	const char *type = type_of(post);
	size_t i;
	int r = FORMAT_OK;

	if (!post || json_is_null(post) || !strcmp(type, "ByteLevel")) /* ByteLevel only moves offsets */
		return FORMAT_OK;
	if (!strcmp(type, "TemplateProcessing"))
		return put_template(vocab, post, diag);
	if (strcmp(type, "Sequence") != 0)
		return diag_set(diag, FORMAT_E_INVALID,
				"post_processor: '%s' is not supported (TemplateProcessing, ByteLevel are)", type);
	for (i = 0; i < json_array_size(list) && !r; ++i)
		r = put_post_processor(vocab, json_array_get(list, i), diag);
	return r;
}

/* ---- the files ---- */

static int build(struct vocab **ret, struct source *s, struct diag *diag)
{
	_cleanup_(vocab_freep) struct vocab *vocab = NULL;
	json_t *decoder = json_object_get(s->root, "decoder");
	int r;

	r = vocab_new(&vocab, s->n_tokens, s->bytes, (uint32_t)json_array_size(s->merges),
		      (uint32_t)json_array_size(s->added));
	if (r)
		return error_trace(r);
	vocab_put_tokens(vocab, &s->lexicon);
	if (strcmp(type_of(decoder), "ByteLevel") != 0)
		return diag_set(diag, FORMAT_E_INVALID, "decoder: '%s' is not supported (ByteLevel is)", type_of(decoder));
	if ((r = put_merges(vocab, s, diag)) || (r = put_added(vocab, s, diag)) || (r = check_unknown(vocab, s, diag)) ||
	    (r = put_pre_tokenizer(vocab, json_object_get(s->root, "pre_tokenizer"), true, diag)) ||
	    (r = put_post_processor(vocab, json_object_get(s->root, "post_processor"), diag)))
		return error_trace(r);
	vocab->ignore_merges = json_is_true(json_object_get(s->model, "ignore_merges"));
	*ret = TAKE_PTR(vocab);
	return FORMAT_OK;
}

/**
 * vocab_from_json() - the vocabulary of a tokenizer.json
 * @ret:        the vocabulary, without a chat template
 * @text:       the file
 * @bytes:      its length
 * @diag:       the reason of a refusal, with the key
 *
 * Return: 0, -ENOMEM or FORMAT_E_INVALID.
 */
int vocab_from_json(struct vocab **ret, const char *text, size_t bytes, struct diag *diag)
{
	_cleanup_(json_decrefp) json_t *root = NULL;
	struct source s = { 0 };
	int r;

	r = json_parse(&root, text, bytes, VOCAB_FILE_MAX, JSON_PLAIN, "tokenizer.json", diag);
	if (r)
		return error_trace(r);
	s.root = root;
	r = check_model(&s, diag);
	if (!r)
		r = count_tokens(&s, diag);
	if (!r)
		r = lexicon_init(&s.lexicon, s.n_tokens);
	if (!r)
		r = read_tokens(&s, diag);
	if (!r)
		r = build(ret, &s, diag);
	lexicon_deinit(&s.lexicon);
	return r > 0 ? diag_prefix(diag, r, "tokenizer.json") : error_trace(r);
}

/* A template's text, or a list of {name, template} of which "default" counts. */
static json_t *find_template(json_t *value)
{
	size_t i;

	for (i = 0; json_is_array(value) && i < json_array_size(value); ++i) {
		json_t *entry = json_array_get(value, i);
		const char *name = json_string_value(json_object_get(entry, "name"));

		if (name && !strcmp(name, "default"))
			return json_object_get(entry, "template");
	}
	return value;
}

/**
 * vocab_add_tokenizer_config() - the chat template of a tokenizer_config.json
 * @vocab:      gets the template; one that is there already stays
 * @text:       the file
 * @bytes:      its length
 * @diag:       the reason of a refusal
 *
 * Everything else in that file repeats or steers Hugging Face's own classes; tokenizer.json has what counts.
 */
int vocab_add_tokenizer_config(struct vocab *vocab, const char *text, size_t bytes, struct diag *diag)
{
	_cleanup_(json_decrefp) json_t *root = NULL;
	json_t *template;
	int r;

	r = json_parse(&root, text, bytes, TOKENIZER_CONFIG_MAX, JSON_HUGE_INTEGERS, "tokenizer_config.json", diag);
	if (r)
		return error_trace(r);
	template = find_template(json_object_get(root, "chat_template"));
	if (!json_is_string(template) || vocab->chat_template)
		return FORMAT_OK;
	return error_trace(vocab_set_chat_template(vocab, json_string_value(template), json_string_length(template)));
}
