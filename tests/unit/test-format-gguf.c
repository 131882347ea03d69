/* SPDX-License-Identifier: MIT */
/* GGUF: what a view says, what is refused and in which words; the model's configuration and vocabulary in it. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/format/base-config.h"
#include "daemon/format/gguf.h"
#include "daemon/format/vocab.h"
#include "tests/unit/format-gguf.h"
#include "tests/unit/format-mutate.h"
#include "tests/lib/run-suite.h"

#define TYPE_F32 0
#define TYPE_Q8_0 8
#define TYPE_Q3_K 11
#define TYPE_Q4_K 12

static struct gguf_writer w;
static struct diag diag;

static int parse(struct gguf **ret)
{
	diag.text[0] = '\0';
	return gguf_parse(ret, w.bytes, w.n, &diag);
}

static void refused(const char *words)
{
	struct gguf *gguf = NULL;

	ck_assert_int_eq(parse(&gguf), FORMAT_E_INVALID);
	ck_assert_msg(strstr(diag.text, words) != NULL, "'%s' does not say '%s'", diag.text, words);
}

/* A whole tiny model: 1 layer of width 64, 7 tokens. */
static void put_model(uint32_t version, const char *pre)
{
	static const char *const tokens[] = { "a", "b", "1", "\xc4\xa0", "ab", "\xc4\xa0" "a", "<|x|>" };

	put_head(&w, version);
	put_key_text(&w, "general.architecture", "llama");
	put_key_u32(&w, "llama.block_count", 1);
	put_key_u32(&w, "llama.context_length", 128);
	put_key_u32(&w, "llama.embedding_length", 64);
	put_key_u32(&w, "llama.feed_forward_length", 96);
	put_key_u32(&w, "llama.attention.head_count", 4);
	put_key_u32(&w, "llama.attention.head_count_kv", 2);
	put_key_f32(&w, "llama.rope.freq_base", 10000);
	put_key_f32(&w, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
	put_key_u32(&w, "tokenizer.ggml.eos_token_id", 6);
	put_key_u32(&w, "tokenizer.ggml.eot_token_id", 6);
	put_key_text(&w, "tokenizer.ggml.model", "gpt2");
	put_key_text(&w, "tokenizer.ggml.pre", pre);
	put_key_array(&w, "tokenizer.ggml.tokens", GGUF_STRING, 7);
	for (int i = 0; i < 7; ++i)
		put_text(&w, tokens[i]);
	put_key_array(&w, "tokenizer.ggml.token_type", GGUF_I32, 7);
	for (int i = 0; i < 7; ++i)
		put_u32(&w, i == 6 ? 3 : 1);
	put_key_array(&w, "tokenizer.ggml.merges", GGUF_STRING, 2);
	put_text(&w, "a b");
	put_text(&w, "\xc4\xa0 a");
	put_tensor(&w, "token_embd.weight", 64, 7, TYPE_Q8_0, 0);
	put_tensor(&w, "output_norm.weight", 64, 1, TYPE_F32, 480);
	put_data(&w, 480 + 256);
}

START_TEST(a_view)
{
	struct gguf *gguf = NULL;
	const struct gguf_tensor *t;
	struct format_text text;
	uint32_t n;

	put_model((uint32_t)_i, "smollm");
	ck_assert_msg(parse(&gguf) == 0, "%s", diag.text);
	ck_assert_uint_eq(gguf_version(gguf), (uint32_t)_i);
	t = gguf_tensor(gguf, "token_embd.weight");
	ck_assert_ptr_nonnull(t);
	ck_assert_int_eq(t->dtype, KERN_Q8_0);
	ck_assert_uint_eq(t->bytes, 7 * 2 * 34);
	ck_assert_uint_eq(t->dims[0], 64);
	ck_assert_uint_eq(t->dims[1], 7);
	ck_assert_ptr_eq(t->data, w.bytes + w.n - 480 - 256);
	ck_assert_ptr_null(gguf_tensor(gguf, "token_embd"));
	ck_assert_int_eq(gguf_get_u32(gguf, "llama.block_count", &n, NULL), FORMAT_OK);
	ck_assert_uint_eq(n, 1);
	ck_assert_int_eq(gguf_get_u32(gguf, "llama.block", &n, NULL), FORMAT_E_MISSING);
	ck_assert_int_eq(gguf_get_u32(gguf, "general.architecture", &n, &diag), FORMAT_E_INVALID);
	ck_assert_str_eq(diag.text, "general.architecture: not a whole number of 32 bits");
	ck_assert_int_eq(gguf_get_string(gguf, "tokenizer.ggml.pre", &text, NULL), FORMAT_OK);
	ck_assert_uint_eq(text.n, 6);
	gguf_free(gguf);
}
END_TEST

START_TEST(damage_by_name)
{
	put_head(&w, 3);
	put_key_u32(&w, "k", 1);
	put_key_u32(&w, "k", 2);
	refused("k: key appears twice");
	put_head(&w, 3);
	put_tensor(&w, "q.weight", 256, 1, TYPE_Q3_K, 0);
	put_data(&w, 256);
	refused("tensor 'q.weight': type Q3_K is not supported");
	put_head(&w, 3);
	put_tensor(&w, "q.weight", 288, 1, TYPE_Q4_K, 0);
	put_data(&w, 256);
	refused("tensor 'q.weight': rows of 288 are no whole Q4_K blocks");
	put_head(&w, 3);
	put_tensor(&w, "q.weight", 512, 1, TYPE_Q4_K, 0);
	put_data(&w, 256);
	refused("tensor 'q.weight': lies beyond the end of the file");
	put_head(&w, 3);
	put_tensor(&w, "q.weight", 33, 1, TYPE_Q8_0, 0);
	put_data(&w, 256);
	refused("tensor 'q.weight': rows of 33 are no whole Q8_0 blocks");
	put_head(&w, 3);
	put_tensor(&w, "a", 8, 1, TYPE_F32, 0);
	put_tensor(&w, "a", 8, 1, TYPE_F32, 32);
	put_data(&w, 64);
	refused("tensor 'a': appears twice");
	put_head(&w, 3);
	put_tensor(&w, "a", 16, 1, TYPE_F32, 0);
	put_tensor(&w, "b", 8, 1, TYPE_F32, 32);
	put_data(&w, 64);
	refused("tensor 'b': overlaps tensor 'a'");
	put_head(&w, 3);
	put_tensor(&w, "a", 8, 1, TYPE_F32, 4);
	put_data(&w, 64);
	refused("tensor 'a': offset 4 is not aligned");
	put_head(&w, 3);
	put_tensor(&w, "a", 8, 2, TYPE_F32, 32);
	put_data(&w, 64);
	refused("tensor 'a': lies beyond the end of the file");
	put_head(&w, 3);
	put_tensor(&w, "a", UINT64_MAX / 4, 8, TYPE_F32, 0);
	put_data(&w, 64);
	refused("tensor 'a': too large");
	put_head(&w, 1);
	refused("GGUF version 1");
	put_head(&w, 3);
	put_key_array(&w, "big", GGUF_U64, UINT64_MAX / 4);
	refused("big: value is damaged");
	put_head(&w, 3);
	put_key_u32(&w, "general.alignment", 24);
	refused("general.alignment: 24");
}
END_TEST

START_TEST(configuration)
{
	struct base_config c;
	struct gguf *gguf = NULL;

	put_model(3, "smollm");
	ck_assert_int_eq(parse(&gguf), 0);
	ck_assert_msg(base_config_from_gguf(&c, gguf, &diag) == 0, "%s", diag.text);
	ck_assert_uint_eq(c.geometry.head_dim, 16);
	ck_assert_uint_eq(c.geometry.n_kv_heads, 2);
	ck_assert_uint_eq(c.geometry.vocab, 7);
	ck_assert_uint_eq(c.n_stops, 1);
	ck_assert_uint_eq(c.stop[0], 6);
	ck_assert(c.tied);
	gguf_free(gguf);
	put_model(3, "smollm");
	memcpy(memmem(w.bytes, w.n, "llama.rope.freq_base", 20), "llama.rope.freq_bass", 20);
	ck_assert_int_eq(parse(&gguf), 0);
	ck_assert_int_eq(base_config_from_gguf(&c, gguf, &diag), FORMAT_E_INVALID);
	ck_assert_str_eq(diag.text, "llama.rope.freq_base: missing");
	gguf_free(gguf);
}
END_TEST

START_TEST(vocabulary)
{
	struct vocab *vocab = NULL;
	struct gguf *gguf = NULL;

	put_model(3, "smollm");
	ck_assert_int_eq(parse(&gguf), 0);
	ck_assert_msg(vocab_from_gguf(&vocab, gguf, &diag) == 0, "%s", diag.text);
	gguf_free(gguf);
	ck_assert_uint_eq(vocab->n_merges, 2);
	ck_assert_uint_eq(vocab->merges[1].left, 3);
	ck_assert_uint_eq(vocab->merges[1].result, 5);
	ck_assert_uint_eq(vocab->tokens[5].n, 2);
	ck_assert_mem_eq(vocab->tokens[5].bytes, " a", 2);
	ck_assert_int_eq(vocab->byte_token[' '], 3);
	ck_assert_int_eq(vocab->byte_token['c'], -1);
	ck_assert_uint_eq(vocab->n_added, 1);
	ck_assert_uint_eq(vocab->n_steps, 2);
	vocab_free(vocab);
	put_model(3, "qwen2");
	ck_assert_int_eq(parse(&gguf), 0);
	ck_assert_int_eq(vocab_from_gguf(&vocab, gguf, &diag), FORMAT_E_INVALID);
	ck_assert_ptr_nonnull(strstr(diag.text, "tokenizer.ggml.pre: 'qwen2'"));
	gguf_free(gguf);
}
END_TEST

/* All three readers; touches each tensor's first and last byte, as a loader would. */
static bool read_all(const void *bytes, size_t n, void *userdata)
{
	const struct gguf_tensor *tensors;
	struct vocab *vocab = NULL;
	struct base_config config;
	struct gguf *gguf = NULL;
	float inv_freq[BASE_HEAD_DIM_MAX / 2];
	volatile uint8_t sum = 0;

	(void)userdata;
	if (gguf_parse(&gguf, bytes, n, &diag))
		return false;
	for (size_t i = 0, k = gguf_tensors(gguf, &tensors); i < k; ++i)
		sum = (uint8_t)(sum + ((const uint8_t *)tensors[i].data)[0] +
				((const uint8_t *)tensors[i].data)[tensors[i].bytes - 1]);
	if (!base_config_from_gguf(&config, gguf, &diag))
		base_config_inv_freq(&config, inv_freq);
	if (!vocab_from_gguf(&vocab, gguf, &diag))
		vocab_free(vocab);
	gguf_free(gguf);
	return true;
}

START_TEST(damage_anywhere)
{
	put_model(3, "smollm");
	ck_assert(mutate_try(read_all, w.bytes, w.n, NULL));
	ck_assert_uint_eq(mutate_truncate(read_all, w.bytes, w.n, NULL), 0);
	ck_assert_uint_lt(mutate_flip(read_all, w.bytes, w.n, 20000, NULL), 20000);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("format-gguf");
	TCase *tests = tcase_create("gguf");

	tcase_set_timeout(tests, 60);
	tcase_add_loop_test(tests, a_view, 2, 4);
	tcase_add_test(tests, damage_by_name);
	tcase_add_test(tests, configuration);
	tcase_add_test(tests, vocabulary);
	tcase_add_test(tests, damage_anywhere);
	suite_add_tcase(suite, tests);
	return run_suite(suite);
}
