/* SPDX-License-Identifier: MIT */
/*
 * The tokenizer on the real vocabulary against Hugging Face's: tests/golden/tokenizer.json, made by make-tokenizer.py.
 *
 * LORAD_TEST_MODEL   the GGUF file of SmolLM2-135M-Instruct (pre-split smollm)
 * LORAD_TEST_HF      the same as a Hugging Face folder (its own tokenizer.json), optional
 */
#include <check.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/format/gguf.h"
#include "daemon/format/vocab.h"
#include "daemon/model/tokenizer.h"
#include "tests/lib/run-suite.h"

static json_t *golden;

static const char *setting(const char *name)
{
	const char *value = getenv(name);

	return value && *value ? value : NULL;
}

static void *map(const char *path, size_t *ret_bytes)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	void *p;

	ck_assert_msg(fd >= 0 && fstat(fd, &st) == 0, "%s cannot be opened", path);
	*ret_bytes = (size_t)st.st_size;
	p = mmap(NULL, *ret_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
	ck_assert_ptr_ne(p, MAP_FAILED);
	close(fd);
	return p;
}

static struct tokenizer *from_gguf(enum chat_template *ret_chat)
{
	struct tokenizer *tokenizer = NULL;
	struct vocab *vocab = NULL;
	struct gguf *gguf = NULL;
	struct diag diag = { "" };
	size_t bytes;
	void *file = map(setting("LORAD_TEST_MODEL"), &bytes);

	ck_assert_msg(gguf_parse(&gguf, file, bytes, &diag) == 0, "%s", diag.text);
	ck_assert_msg(vocab_from_gguf(&vocab, gguf, &diag) == 0, "%s", diag.text);
	*ret_chat = chat_recognise(vocab->chat_template);
	ck_assert_msg(tokenizer_new(&tokenizer, vocab, &diag) == 0, "%s", diag.text);
	gguf_free(gguf);
	munmap(file, bytes); /* a vocabulary holds nothing of its file */
	return tokenizer;
}

static struct tokenizer *from_folder(void)
{
	struct tokenizer *tokenizer = NULL;
	struct vocab *vocab = NULL;
	struct diag diag = { "" };
	char path[4096];
	size_t bytes;
	void *file;

	(void)snprintf(path, sizeof(path), "%s/tokenizer.json", setting("LORAD_TEST_HF"));
	file = map(path, &bytes);
	ck_assert_msg(vocab_from_json(&vocab, file, bytes, &diag) == 0, "%s", diag.text);
	ck_assert_msg(tokenizer_new(&tokenizer, vocab, &diag) == 0, "%s", diag.text);
	munmap(file, bytes);
	return tokenizer;
}

static void compare(const struct tokenizer *tokenizer, const json_t *text, const json_t *expected)
{
	const char *string = json_string_value(text);
	uint32_t *tokens = NULL;
	size_t n = 0;

	ck_assert_int_eq(tokenizer_encode(tokenizer, string, json_string_length(text), &tokens, &n), TOKENIZER_OK);
	ck_assert_msg(n == json_array_size(expected), "'%s': %zu tokens, not %zu", string, n, json_array_size(expected));
	for (size_t i = 0; i < n; ++i)
		ck_assert_msg(tokens[i] == json_integer_value(json_array_get(expected, i)), "'%s': token %zu is %u", string, i,
			      tokens[i]);
	free(tokens);
}

/* All tokens one by one through the detokenizer: the text itself, unless the vocabulary lacks one of its bytes. */
static bool comes_back(const struct tokenizer *tokenizer, const char *text)
{
	struct detokenizer d = { 0 };
	char *out = malloc(3 * strlen(text) + 64);
	uint32_t *tokens = NULL;
	size_t n = 0, at = 0, bytes;
	bool same;

	ck_assert_int_eq(tokenizer_encode(tokenizer, text, strlen(text), &tokens, &n), TOKENIZER_OK);
	for (size_t i = 0; i < n; ++i) {
		const char *p = tokenizer_bytes(tokenizer, tokens[i], &bytes);

		at += detokenizer_push(&d, p, bytes, i == n - 1, out + at);
	}
	same = at == strlen(text) && !memcmp(out, text, at);
	free(tokens);
	free(out);
	return same;
}

START_TEST(cases_of_the_file)
{
	json_t *cases = json_object_get(golden, "cases"), *one;
	enum chat_template chat;
	struct tokenizer *gguf = from_gguf(&chat), *folder = setting("LORAD_TEST_HF") ? from_folder() : NULL;
	size_t i, back = 0;

	ck_assert_uint_ge(json_array_size(cases), 2000);
	json_array_foreach (cases, i, one) {
		const json_t *own = json_array_get(one, 2);

		compare(gguf, json_array_get(one, 0), json_array_get(one, 1));
		if (folder)
			compare(folder, json_array_get(one, 0), json_is_null(own) ? json_array_get(one, 1) : own);
		back += comes_back(gguf, json_string_value(json_array_get(one, 0)));
	}
	ck_assert_uint_ge(back, json_array_size(cases) * 3 / 4); /* the rest has bytes that the vocabulary lacks */
	tokenizer_free(gguf);
	tokenizer_free(folder);
}
END_TEST

START_TEST(chat_of_the_file)
{
	json_t *cases = json_object_get(golden, "chat"), *one;
	enum chat_template chat;
	struct tokenizer *tokenizer = from_gguf(&chat);
	size_t i, n;

	ck_assert_int_eq(chat, CHAT_SMOLLM2);
	ck_assert_uint_gt(json_array_size(cases), 0);
	json_array_foreach (cases, i, one) {
		const json_t *message = json_array_get(one, 0), *expected = json_array_get(one, 1);
		char *text = NULL;

		ck_assert_int_eq(chat_render(chat, json_string_value(message), json_string_length(message), &text, &n), 0);
		ck_assert_uint_eq(n, json_string_length(expected));
		ck_assert_mem_eq(text, json_string_value(expected), n);
		free(text);
	}
	tokenizer_free(tokenizer);
}
END_TEST

int main(void)
{
	const char *source = setting("top_srcdir");
	Suite *suite;
	TCase *tests;
	char path[4096];
	int failed;

	if (!setting("LORAD_TEST_MODEL")) {
		printf("LORAD_TEST_MODEL is not set: no real vocabulary to compare on\n");
		return 77;
	}
	(void)snprintf(path, sizeof(path), "%s/tests/golden/tokenizer.json", source ? source : ".");
	golden = json_load_file(path, 0, NULL);
	if (!golden) {
		printf("%s cannot be read\n", path);
		return EXIT_FAILURE;
	}
	suite = suite_create("model-tokenizer-golden");
	tests = tcase_create("golden");
	tcase_set_timeout(tests, 120);
	tcase_add_test(tests, cases_of_the_file);
	tcase_add_test(tests, chat_of_the_file);
	suite_add_tcase(suite, tests);
	failed = run_suite(suite);
	json_decref(golden);
	return failed;
}
