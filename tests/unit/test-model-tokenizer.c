/* SPDX-License-Identifier: MIT */
/* The tokenizer on vocabularies made by hand: every stage of it, and text that comes back in pieces. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/format/vocab.h"
#include "daemon/model/tokenizer.h"
#include "tests/lib/run-suite.h"

#define SPACE "\xc4\xa0" /* U+0120, what a space is in the byte-level alphabet */
#define BYTE_LEVEL "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":true}"
#define TOKENS "\"a\":0,\"b\":1,\"c\":2,\"1\":3,\"2\":4,\"" SPACE "\":5,\"ab\":6,\"abc\":7,\"aa\":8,\"12\":9,\"" SPACE "a\":10,\"aaaa\":11"
#define MERGES "[\"a b\",[\"ab\",\"c\"],\"a a\",\"1 2\",\"" SPACE " a\",\"aa aa\"]"
#define ADDED(flags) "{\"id\":12,\"content\":\"<x>\"," flags "\"special\":true}"

/* tokenizer.json with this pre_tokenizer, these added tokens, further keys of the model and of the root. */
static struct tokenizer *make(const char *pre, const char *added, const char *model, const char *root)
{
	struct tokenizer *tokenizer = NULL;
	struct vocab *vocab = NULL;
	struct diag diag = { "" };
	char text[4096];

	(void)snprintf(text, sizeof(text),
		       "{\"added_tokens\":[%s],\"pre_tokenizer\":%s,\"decoder\":%s,\"model\":{\"type\":\"BPE\",%s\"vocab\":{"
		       TOKENS "},\"merges\":" MERGES "}%s}", added, pre, BYTE_LEVEL, model, root);
	ck_assert_msg(vocab_from_json(&vocab, text, strlen(text), &diag) == 0, "%s", diag.text);
	ck_assert_msg(tokenizer_new(&tokenizer, vocab, &diag) == 0, "%s", diag.text);
	return tokenizer;
}

static void expect(const struct tokenizer *tokenizer, const char *text, const char *expected)
{
	char got[512] = "";
	uint32_t *tokens = NULL;
	size_t n = 0;

	ck_assert_int_eq(tokenizer_encode(tokenizer, text, strlen(text), &tokens, &n), TOKENIZER_OK);
	for (size_t i = 0; i < n; ++i)
		(void)snprintf(got + strlen(got), sizeof(got) - strlen(got), i ? " %u" : "%u", tokens[i]);
	ck_assert_str_eq(got, expected);
	free(tokens);
}

START_TEST(merges_by_rank)
{
	struct tokenizer *t = make(BYTE_LEVEL, "", "", "");

	expect(t, "abc", "7");
	expect(t, "aab", "0 6");   /* "a b" is better than "a a" */
	expect(t, "aaa", "8 0");   /* of equals the leftmost */
	expect(t, "aaaaa", "11 0");
	expect(t, "c ab", "2 5 6"); /* the better merge takes the a away from the space */
	expect(t, "b a", "1 10");
	expect(t, "12a", "9 0");
	expect(t, "azb", "6");     /* a byte without a token is left out, its neighbours meet */
	expect(t, "", "");
	tokenizer_free(t);
}
END_TEST

START_TEST(steps_of_the_pre_split)
{
	struct tokenizer *t = make("{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\",\"individual_digits\":true},"
				   BYTE_LEVEL "]}", "", "", "");

	expect(t, "12", "3 4");
	tokenizer_free(t);
	t = make("{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"b\\\\s*\"},"
		 "\"behavior\":\"Removed\",\"invert\":false}," BYTE_LEVEL "]}", "", "", "");
	expect(t, "ab  c", "0 2");
	tokenizer_free(t);
	t = make("{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true}", "", "", "");
	expect(t, "a", "10");
	expect(t, " a", "10");
	tokenizer_free(t);
	t = make(BYTE_LEVEL, "", "\"ignore_merges\":true,", "");
	expect(t, "aaaa", "11");
	tokenizer_free(t);
}
END_TEST

START_TEST(added_tokens)
{
	struct tokenizer *t = make(BYTE_LEVEL, ADDED(""), "", "");

	expect(t, "a<x>b<x", "0 12 1");
	expect(t, "<<x>>", "12");
	ck_assert(tokenizer_is_special(t, 12));
	ck_assert(!tokenizer_is_special(t, 0));
	ck_assert_uint_eq(tokenizer_size(t), 13);
	tokenizer_free(t);
	t = make(BYTE_LEVEL, ADDED("\"lstrip\":true,"), "", "");
	expect(t, "a  <x> a", "0 12 10");
	tokenizer_free(t);
	t = make(BYTE_LEVEL, ADDED("\"rstrip\":true,"), "", "");
	expect(t, "a <x>  a", "0 5 12 0");
	tokenizer_free(t);
	t = make(BYTE_LEVEL, ADDED("\"single_word\":true,"), "", "");
	expect(t, "<x> <x>a", "12 5 0"); /* the second touches a word */
	tokenizer_free(t);
	t = make(BYTE_LEVEL, ADDED("") ",{\"id\":13,\"content\":\"<x>a\"}", "", "");
	expect(t, "<x>ab<x>", "13 1 12"); /* the longest */
	tokenizer_free(t);
}
END_TEST

START_TEST(tokens_around_the_text)
{
	struct tokenizer *t = make(BYTE_LEVEL, ADDED(""), "",
				   ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":"
				   "\"<x>\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"pair\":[],"
				   "\"special_tokens\":{\"<x>\":{\"id\":\"<x>\",\"ids\":[12],\"tokens\":[\"<x>\"]}}}");

	expect(t, "ab", "12 6");
	tokenizer_free(t);
}
END_TEST

START_TEST(only_valid_utf8)
{
	static const char *const bad[] = { "\xff", "a\xc3", "\xed\xa0\x80", "\xc0\xaf", "\xf4\x90\x80\x80", "\xe2\x82" "a" };
	struct tokenizer *t = make(BYTE_LEVEL, "", "", "");
	uint32_t *tokens = NULL;
	size_t n;

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); ++i)
		ck_assert_int_eq(tokenizer_encode(t, bad[i], strlen(bad[i]), &tokens, &n), TOKENIZER_E_INVALID);
	ck_assert_ptr_null(tokens);
	tokenizer_free(t);
}
END_TEST

/* A quadratic merge would take hours: the test's own time limit is the check. */
START_TEST(long_runs)
{
	struct tokenizer *t = make(BYTE_LEVEL, "", "", "");
	size_t bytes = 1 << 20, n = 0;
	char *text = malloc(bytes);
	uint32_t *tokens = NULL;

	memset(text, 'a', bytes);
	ck_assert_int_eq(tokenizer_encode(t, text, bytes, &tokens, &n), TOKENIZER_OK);
	ck_assert_uint_eq(n, bytes / 4);
	free(tokens);
	memset(text, ' ', bytes);
	ck_assert_int_eq(tokenizer_encode(t, text, bytes, &tokens, &n), TOKENIZER_OK);
	ck_assert_uint_eq(n, bytes);
	free(tokens);
	free(text);
	tokenizer_free(t);
}
END_TEST

#define FFFD "\xef\xbf\xbd"

static const struct {
	const char *bytes, *text; /* text: Python's bytes.decode("utf-8", "replace") */
} decoded[] = {
	{ "plain", "plain" },
	{ "\xe2\x82\xac", "\xe2\x82\xac" },
	{ "a\xe2\x82", "a" FFFD },
	{ "\xe2\x28\xa1", FFFD "(" FFFD },
	{ "\xc0\xaf", FFFD FFFD },
	{ "\xed\xa0\x80", FFFD FFFD FFFD },
	{ "\xf0\x9f\x98\x80!", "\xf0\x9f\x98\x80!" },
	{ "\xf0\x9f\x98", FFFD },
	{ "\xf0\x90\x41\xf0\x9f\x98\x80", FFFD "A\xf0\x9f\x98\x80" },
	{ "\xf4\x90\x80\x80", FFFD FFFD FFFD FFFD },
	{ "\xf1\x80\x80\xc3\xa9\x80", FFFD "\xc3\xa9" FFFD },
	{ "\xe0\x9f\x80\xff\xc2", FFFD FFFD FFFD FFFD FFFD },
};

/* Every way of cutting the bytes in three gives the same text, and each part of it is whole characters. */
START_TEST(detokenizer_any_cut)
{
	const char *bytes = decoded[_i].bytes;
	size_t n = strlen(bytes);

	for (size_t i = 0; i <= n; ++i)
		for (size_t j = i; j <= n; ++j) {
			struct detokenizer d = { 0 };
			char out[256] = "";
			size_t at = 0;

			at += detokenizer_push(&d, bytes, i, false, out + at);
			ck_assert(!at || ((uint8_t)out[0] & 0xc0) != 0x80);
			at += detokenizer_push(&d, bytes + i, j - i, false, out + at);
			at += detokenizer_push(&d, bytes + j, n - j, true, out + at);
			out[at] = '\0';
			ck_assert_str_eq(out, decoded[_i].text);
		}
}
END_TEST

START_TEST(chat_templates)
{
	char *text = NULL;
	size_t n;

	ck_assert_int_eq(chat_recognise(NULL), CHAT_NONE);
	ck_assert_int_eq(chat_recognise(""), CHAT_NONE);
	ck_assert_int_eq(chat_recognise("{{ messages }}"), CHAT_UNKNOWN);
	ck_assert_int_eq(chat_render(CHAT_UNKNOWN, "a", 1, &text, &n), TOKENIZER_E_INVALID);
	ck_assert_int_eq(chat_render(CHAT_SMOLLM2, "Hi", 2, &text, &n), TOKENIZER_OK);
	ck_assert_uint_eq(n, strlen("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
				    "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"));
	free(text);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("model-tokenizer");
	TCase *tests = tcase_create("tokenizer");

	tcase_set_timeout(tests, 60);
	tcase_add_test(tests, merges_by_rank);
	tcase_add_test(tests, steps_of_the_pre_split);
	tcase_add_test(tests, added_tokens);
	tcase_add_test(tests, tokens_around_the_text);
	tcase_add_test(tests, only_valid_utf8);
	tcase_add_test(tests, long_runs);
	tcase_add_loop_test(tests, detokenizer_any_cut, 0, sizeof(decoded) / sizeof(*decoded));
	tcase_add_test(tests, chat_templates);
	suite_add_tcase(suite, tests);
	return run_suite(suite);
}
