/* SPDX-License-Identifier: MIT */
/* config.json, rope frequencies, tokenizer.json and the regular expressions in it: what is read, what is refused. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/format/base-config.h"
#include "daemon/format/split-regex.h"
#include "daemon/format/vocab.h"
#include "tests/unit/format-mutate.h"
#include "tests/lib/run-suite.h"

#define SHAPE                                                                                                         \
	"\"model_type\":\"llama\",\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":2,"                  \
	"\"num_attention_heads\":4,\"num_key_value_heads\":2,\"vocab_size\":100,\"max_position_embeddings\":256,"         \
	"\"rms_norm_eps\":1e-5"
#define LLAMA3                                                                                                        \
	"\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"                       \
	"\"original_max_position_embeddings\":8192"

static struct diag diag;

static int parse(struct base_config *ret, const char *text)
{
	diag.text[0] = '\0';
	return base_config_from_json(ret, text, strlen(text), &diag);
}

START_TEST(spellings)
{
	struct base_config c;

	ck_assert_msg(parse(&c, "{" SHAPE ",\"rope_theta\":10000,\"eos_token_id\":[2,7,2],\"architectures\":[\"LlamaForCausalLM\"]}")
		      == 0, "%s", diag.text);
	ck_assert_uint_eq(c.geometry.head_dim, 16);
	ck_assert_uint_eq(c.n_stops, 2);
	ck_assert(!c.tied);
	ck_assert_int_eq(base_config_add_generation(&c, "{\"eos_token_id\":9}", 18, &diag), 0);
	ck_assert_uint_eq(c.n_stops, 3);
	ck_assert_int_eq(base_config_add_generation(&c, "{\"eos_token_id\":900}", 19, &diag), FORMAT_E_INVALID);
	ck_assert_uint_eq(c.n_stops, 3);
	ck_assert_int_eq(parse(&c, "{" SHAPE ",\"rope_parameters\":{\"rope_theta\":5000.0,\"rope_type\":\"default\"},"
				   "\"tie_word_embeddings\":true,\"head_dim\":32}"), 0);
	ck_assert_double_eq(c.rope_theta, 5000);
	ck_assert_uint_eq(c.geometry.head_dim, 32);
	ck_assert(c.tied);
	ck_assert_int_eq(parse(&c, "{" SHAPE ",\"rope_theta\":5e5,\"rope_scaling\":{" LLAMA3 "}}"), 0);
	ck_assert_int_eq(c.rope, BASE_ROPE_LLAMA3);
	ck_assert_int_eq(parse(&c, "{" SHAPE ",\"rope_theta\":5e5,\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}}"), 0);
	ck_assert_int_eq(c.rope, BASE_ROPE_LINEAR);
}
END_TEST

static const struct {
	const char *text, *words;
} refused[] = {
	{ "{" SHAPE "}", "config.json: rope_theta: missing" },
	{ "{" SHAPE ",\"rope_theta\":1e4,\"rope_parameters\":{\"rope_theta\":5e5}}", "rope_parameters.rope_theta is 500000" },
	{ "{" SHAPE ",\"rope_theta\":1e4,\"attention_bias\":true}", "attention_bias: is set" },
	{ "{" SHAPE ",\"rope_theta\":1e4,\"mlp_bias\":true}", "mlp_bias: is set" },
	{ "{" SHAPE ",\"rope_theta\":1e4,\"hidden_act\":\"gelu\"}", "hidden_act: 'gelu'" },
	{ "{" SHAPE ",\"rope_theta\":1e4,\"rope_scaling\":{\"rope_type\":\"yarn\"}}", "rope_scaling: rope_type: 'yarn'" },
	{ "{" SHAPE ",\"rope_theta\":1e4,\"rope_scaling\":{\"rope_type\":\"llama3\"}}", "rope_scaling: factor: missing" },
	{ "{" SHAPE ",\"rope_theta\":1e4,\"quantization_config\":{\"bits\":4}}", "quantization_config: is set" },
	{ "{" SHAPE ",\"rope_theta\":1e4,\"architectures\":[\"LlamaForSequenceClassification\"]}", "architectures:" },
	{ "{" SHAPE ",\"rope_theta\":1e4,\"eos_token_id\":\"x\"}", "eos_token_id:" },
	{ "{" SHAPE ",\"rope_theta\":1e4,\"eos_token_id\":100}", "outside the vocabulary" },
	{ "{" SHAPE ",\"rope_theta\":-1}", "rope theta: -1" },
	{ "{" SHAPE ",\"rope_theta\":1e4,\"head_dim\":15}", "head size 15 is odd" },
	{ "{\"model_type\":\"qwen2\"}", "model_type: 'qwen2'" },
	{ "{\"model_type\":\"llama\",\"hidden_size\":-4}", "hidden_size: not a whole number" },
	{ "{\"model_type\":\"llama\"}", "hidden_size: missing" },
};

START_TEST(refused_by_key)
{
	struct base_config c;

	ck_assert_int_eq(parse(&c, refused[_i].text), FORMAT_E_INVALID);
	ck_assert_msg(strstr(diag.text, refused[_i].words) != NULL, "'%s' does not say '%s'", diag.text, refused[_i].words);
}
END_TEST

/* transformers 5: ROPE_INIT_FUNCTIONS["llama3"], theta 500,000, head size 64. */
START_TEST(llama3_frequencies)
{
	static const struct {
		unsigned i;
		double f;
	} expected[] = {
		{ 0, 1 },
		{ 8, 0.0376060307 },
		{ 14, 0.00321144611 },
		{ 15, 0.00137189368 },
		{ 16, 0.000524846022 },
		{ 17, 0.000178507791 },
		{ 18, 7.78465546e-05 },
		{ 20, 3.42810235e-05 },
		{ 31, 3.7673226e-07 },
	};
	struct base_config c;
	float inv_freq[32];

	ck_assert_int_eq(parse(&c, "{" SHAPE ",\"head_dim\":64,\"rope_parameters\":{\"rope_theta\":500000.0," LLAMA3 "}}"), 0);
	base_config_inv_freq(&c, inv_freq);
	for (size_t i = 0; i < sizeof(expected) / sizeof(*expected); ++i)
		ck_assert_msg(fabs(inv_freq[expected[i].i] / expected[i].f - 1) < 2e-6, "%u: %.9g, not %.9g", expected[i].i,
			      (double)inv_freq[expected[i].i], expected[i].f);
}
END_TEST

/* ---- tokenizer.json ---- */

#define BYTE_LEVEL "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":true}"
#define MODEL(more) "\"model\":{" more "\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}"
#define FILE_OF(pre, model, more) "{\"pre_tokenizer\":" pre ",\"decoder\":" BYTE_LEVEL "," model more "}"

static int read_vocab(const char *text)
{
	struct vocab *vocab = NULL;
	int r;

	diag.text[0] = '\0';
	r = vocab_from_json(&vocab, text, strlen(text), &diag);
	vocab_free(vocab);
	return r;
}

static const struct {
	const char *text, *words;
} vocab_refused[] = {
	{ FILE_OF(BYTE_LEVEL, MODEL(""), ",\"normalizer\":{\"type\":\"NFC\"}"), "normalizer: not supported" },
	{ FILE_OF(BYTE_LEVEL, MODEL("\"byte_fallback\":true,"), ""), "model.byte_fallback: not supported" },
	{ FILE_OF(BYTE_LEVEL, MODEL("\"unk_token\":\"a\","), ""), "model.unk_token:" },
	{ FILE_OF(BYTE_LEVEL, MODEL("\"dropout\":0.1,"), ""), "model.dropout: not supported" },
	{ FILE_OF("{\"type\":\"Metaspace\"}", MODEL(""), ""), "pre_tokenizer: 'Metaspace'" },
	{ FILE_OF("null", MODEL(""), ""), "pre_tokenizer:" },
	{ FILE_OF("{\"type\":\"Sequence\",\"pretokenizers\":[" BYTE_LEVEL ",{\"type\":\"Digits\"}]}", MODEL(""), ""),
	  "'ByteLevel' is not supported before" },
	{ FILE_OF("{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":"
		  "\"MergedWithNext\"}," BYTE_LEVEL "]}", MODEL(""), ""), "Split.behavior: 'MergedWithNext'" },
	{ FILE_OF("{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\w\"},\"behavior\":"
		  "\"Isolated\"}," BYTE_LEVEL "]}", MODEL(""), ""), "not supported at '\\w'" },
	{ FILE_OF(BYTE_LEVEL, MODEL(""), ",\"post_processor\":{\"type\":\"BertProcessing\"}"), "post_processor: 'BertProcessing'" },
	{ FILE_OF(BYTE_LEVEL, MODEL(""), ",\"added_tokens\":[{\"id\":0,\"content\":\"b\"}]"), "added_tokens: token" },
	{ "{\"decoder\":" BYTE_LEVEL ",\"pre_tokenizer\":" BYTE_LEVEL ",\"model\":{\"type\":\"Unigram\"}}", "model.type: 'Unigram'" },
	{ "{\"decoder\":" BYTE_LEVEL ",\"pre_tokenizer\":" BYTE_LEVEL ",\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a b\"]}}",
	  "model.merges: merge 0" },
	{ "{\"decoder\":" BYTE_LEVEL ",\"pre_tokenizer\":" BYTE_LEVEL ",\"model\":{\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}",
	  "model.vocab: token 0 has two texts" },
	{ "{\"decoder\":" BYTE_LEVEL ",\"pre_tokenizer\":" BYTE_LEVEL ",\"model\":{\"vocab\":{\"a\":99999999},\"merges\":[]}}",
	  "model.vocab: a: its id" },
};

START_TEST(vocab_refused_by_key)
{
	ck_assert_int_eq(read_vocab(vocab_refused[_i].text), FORMAT_E_INVALID);
	ck_assert_msg(strstr(diag.text, vocab_refused[_i].words) != NULL, "'%s' does not say '%s'", diag.text,
		      vocab_refused[_i].words);
}
END_TEST

START_TEST(chat_template_sources)
{
	static const char config[] = "{\"model_max_length\":1000000000000000019884624838656,\"chat_template\":"
				     "[{\"name\":\"tool\",\"template\":\"T\"},{\"name\":\"default\",\"template\":\"D\"}]}";
	static const char file[] = FILE_OF(BYTE_LEVEL, MODEL(""), "");
	struct vocab *vocab = NULL;

	ck_assert_msg(vocab_from_json(&vocab, file, strlen(file), &diag) == 0, "%s", diag.text);
	ck_assert_ptr_null(vocab->chat_template);
	ck_assert_msg(vocab_add_tokenizer_config(vocab, config, strlen(config), &diag) == 0, "%s", diag.text);
	ck_assert_str_eq(vocab->chat_template, "D");
	ck_assert_int_eq(vocab_set_chat_template(vocab, "Jinja...", 5), 0);
	ck_assert_str_eq(vocab->chat_template, "Jinja");
	vocab_free(vocab);
}
END_TEST

START_TEST(expressions)
{
	static const char *const bad[] = { "[a", "[[:alpha:]]", "[a&&b]", "\\w", "^a", "a$", "a{2,3}+", "a{,3}", "(?x)a", "(*UTF)",
					   "[^\\S]", "[]a]", "\\p{^L}", "a\\" };
	char *out = NULL;

	ck_assert_int_eq(split_regex_translate("\\p{L}+|[^\\r\\n\\p{Lu}]?+.\\p{Han}{1,3}(?i:'s)", &out, &diag), 0);
	ck_assert_str_eq(out, "\\p{L}+|[^\\r\\n\\p{Lu}]?+[^\\n]\\p{sc:Han}{1,3}(?i:'s)");
	free(out);
	ck_assert_int_eq(split_regex_translate("\\s+(?!\\S)", &out, &diag), 0);
	ck_assert_ptr_null(strstr(out, "\\s"));
	free(out);
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); ++i)
		ck_assert_msg(split_regex_translate(bad[i], &out, &diag) == FORMAT_E_INVALID, "'%s'", bad[i]);
}
END_TEST

/* ---- damage ---- */

static bool read_config(const void *bytes, size_t n, void *userdata)
{
	struct base_config c;
	float inv_freq[BASE_HEAD_DIM_MAX / 2];

	(void)userdata;
	if (base_config_from_json(&c, bytes, n, &diag))
		return false;
	base_config_inv_freq(&c, inv_freq);
	return true;
}

static bool read_tokenizer(const void *bytes, size_t n, void *userdata)
{
	struct vocab *vocab = NULL;
	int r = vocab_from_json(&vocab, bytes, n, &diag);

	(void)userdata;
	vocab_free(vocab);
	return r == 0;
}

START_TEST(damage_anywhere)
{
	static const char config[] = "{" SHAPE ",\"rope_parameters\":{\"rope_theta\":500000.0," LLAMA3 "},\"eos_token_id\":[1,2]}";
	static const char file[] = FILE_OF("{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":"
					   "\"[a-b]+\\\\s{1,2}\"},\"behavior\":\"Isolated\"}," BYTE_LEVEL "]}", MODEL(""),
					   ",\"added_tokens\":[{\"id\":5,\"content\":\"<x>\",\"special\":true}]");
	static const char regex[] = "'(?i:[sdmt]|ll)|[^\\r\\n\\p{L}]?+\\p{L}+|\\p{N}{1,3}|\\s*[\\r\\n]+|\\s+(?!\\S)";
	char copy[sizeof(regex)], *out = NULL;

	ck_assert(mutate_try(read_config, config, strlen(config), NULL));
	ck_assert_uint_eq(mutate_truncate(read_config, config, strlen(config), NULL), 0);
	ck_assert_uint_lt(mutate_flip(read_config, config, strlen(config), 20000, NULL), 20000);
	ck_assert_msg(mutate_try(read_tokenizer, file, strlen(file), NULL), "%s", diag.text);
	ck_assert_uint_eq(mutate_truncate(read_tokenizer, file, strlen(file), NULL), 0);
	ck_assert_uint_lt(mutate_flip(read_tokenizer, file, strlen(file), 20000, NULL), 20000);
	for (size_t i = 0; i < 8 * strlen(regex); ++i) {
		memcpy(copy, regex, sizeof(copy));
		copy[i / 8] ^= (char)(1 << i % 8);
		if (!split_regex_translate(copy, &out, &diag))
			free(out);
	}
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("format-config");
	TCase *tests = tcase_create("config");

	tcase_set_timeout(tests, 60);
	tcase_add_test(tests, spellings);
	tcase_add_loop_test(tests, refused_by_key, 0, sizeof(refused) / sizeof(*refused));
	tcase_add_test(tests, llama3_frequencies);
	tcase_add_loop_test(tests, vocab_refused_by_key, 0, sizeof(vocab_refused) / sizeof(*vocab_refused));
	tcase_add_test(tests, chat_template_sources);
	tcase_add_test(tests, expressions);
	tcase_add_test(tests, damage_anywhere);
	suite_add_tcase(suite, tests);
	return run_suite(suite);
}
