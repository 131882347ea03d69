/* SPDX-License-Identifier: MIT */
/*
 * What the fast number paths cost: the perplexity of a text in the default precision against that in f32, which decodes
 * the same file's weights exactly. It must not move by more than 0.5 %.
 *
 * The text is tests/golden/perplexity.txt, the title and chapters I to III of Lewis Carroll's "Alice's Adventures in
 * Wonderland" (1865, in the public domain): the first 34,072 bytes of alice29.txt of the Canterbury corpus (SHA-256
 * 7467306ee0feed4971260f3c87421154a05be571d944e9cb021a5713700c38f0, tests/testdata/alice29.txt in Brotli 1.1.0's source
 * package on PyPI) without the blank lines at both ends and with Unix line ends. It is read in windows that know nothing of
 * each other; the first token of each is not counted.
 *
 * LORAD_TEST_MODEL   SmolLM2-135M-Instruct's Q4_1 file: all of the text
 * LORAD_TEST_MIXES   the folder of what tests/make-gguf.py made of it: the start of the text
 */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "daemon/base/clock.h"
#include "tests/lib/run-suite.h"
#include "tests/unit/model-rig.h"

#define WINDOW 512
#define TEXT_TOKENS 8192 /* at least, of the text */
#define TEXT_MAX (64 << 10)

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) /* five tokens a second: a few, to find faults; they scatter */
#define TOKENS_MAX 32
#define MIX_TOKENS 32
#define LIMIT 0.05
#else
#define TOKENS_MAX TEXT_TOKENS
#define MIX_TOKENS 2048
#define LIMIT 0.005 /* of the perplexity, either way */
#endif

static const char *const mixes[] = { "q4_k_m", "q5_k_m" };

static const char *setting(const char *name)
{
	const char *value = getenv(name);

	return value && *value ? value : NULL;
}

static size_t read_text(char *ret)
{
	const char *source = setting("top_srcdir");
	char path[4096];
	FILE *file;
	size_t n;

	(void)snprintf(path, sizeof(path), "%s/tests/golden/perplexity.txt", source ? source : ".");
	file = fopen(path, "re");
	ck_assert_msg(file != NULL, "%s: cannot be opened", path);
	n = fread(ret, 1, TEXT_MAX, file);
	ck_assert_uint_lt(n, TEXT_MAX);
	(void)fclose(file);
	return n;
}

/* The text's tokens, at most `most` of them; malloc'd. */
static uint32_t *encode_text(const struct rig *rig, uint32_t most, uint32_t *ret_n)
{
	static char text[TEXT_MAX];
	uint32_t *tokens = NULL;
	size_t n = 0;

	ck_assert_int_eq(tokenizer_encode(model_tokenizer(rig->model), text, read_text(text), &tokens, &n), TOKENIZER_OK);
	ck_assert_uint_ge(n, TEXT_TOKENS);
	*ret_n = n < most ? (uint32_t)n : most;
	return tokens;
}

static double perplexity(const char *file, enum model_precision precision, enum kern_dtype kv_type, uint32_t most)
{
	_cleanup_(rig_freep) struct rig *rig = rig_new_kv(file, precision, kv_type, kern_cpu(kern_cpu_best()), 2);
	uint32_t n, n_scored = 0, *tokens = encode_text(rig, most, &n);
	uint64_t start = clock_ns();
	double sum = 0, result;

	ck_assert((model_precision(rig->model) == KERN_PRECISION_F32) == (precision == MODEL_F32));
	for (uint32_t at = 0, m; at < n; at += m) {
		float logprob[WINDOW];

		m = n - at < WINDOW ? n - at : WINDOW;
		rig_score(rig, tokens + at, m, NULL, 0, WINDOW, logprob);
		for (uint32_t i = 1; i < m; ++i)
			sum += logprob[i];
		n_scored += m - 1;
	}
	free(tokens);
	result = exp(-sum / n_scored);
	printf("  %-7s %-4s keys and values: %.4f over %u tokens, %.1f s\n", precision == MODEL_F32 ? "f32" : "default",
	       kv_type == KERN_I8 ? "int8" : kv_type == KERN_BF16 ? "bf16" : "f32", result, n_scored,
	       clock_ms(clock_ns() - start) / 1000);
	(void)fflush(stdout); /* a check that fails would lose it */
	return result;
}

static void compare(const char *file, enum kern_dtype kv_type, double exact, uint32_t most)
{
	double ratio = perplexity(file, MODEL_AUTO, kv_type, most) / exact;

	printf("  ratio to f32: %.5f\n", ratio);
	ck_assert_msg(fabs(ratio - 1) <= LIMIT, "%s: %.5f of the perplexity of f32", file, ratio);
}

START_TEST(one_type)
{
	const char *file = setting("LORAD_TEST_MODEL");
	double exact;

	printf("Q4_1, %s:\n", kern_cpu(kern_cpu_best())->name);
	exact = perplexity(file, MODEL_F32, KERN_F32, TOKENS_MAX);
	compare(file, KERN_BF16, exact, TOKENS_MAX);
	compare(file, KERN_I8, exact, TOKENS_MAX);
}
END_TEST

START_TEST(mixed_types)
{
	const char *folder = setting("LORAD_TEST_MIXES");
	char file[4096];

	if (!folder) {
		printf("LORAD_TEST_MIXES is not set: %s is not compared\n", mixes[_i]);
		return;
	}
	(void)snprintf(file, sizeof(file), "%s/%s.gguf", folder, mixes[_i]);
	printf("%s:\n", mixes[_i]);
	compare(file, KERN_BF16, perplexity(file, MODEL_F32, KERN_F32, MIX_TOKENS), MIX_TOKENS);
}
END_TEST

int main(void)
{
	Suite *suite;
	TCase *one, *mixed;

	if (!setting("LORAD_TEST_MODEL")) {
		printf("skipped: LORAD_TEST_MODEL is not set\n");
		return 77;
	}
	suite = suite_create("model-perplexity");
	one = tcase_create("one-type");
	tcase_set_timeout(one, 600);
	tcase_add_test(one, one_type);
	suite_add_tcase(suite, one);
	mixed = tcase_create("mixed-types");
	tcase_set_timeout(mixed, 600);
	tcase_add_loop_test(mixed, mixed_types, 0, (int)(sizeof(mixes) / sizeof(*mixes)));
	suite_add_tcase(suite, mixed);
	return run_suite(suite);
}
