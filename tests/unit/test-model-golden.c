/* SPDX-License-Identifier: MIT */
/*
 * The real model against transformers and PEFT: log-probabilities of texts under the base and under every variant of
 * tests/golden/variants.json, and greedy continuations.
 *
 * LORAD_TEST_HF        SmolLM2-135M-Instruct's Q4_1 file dequantised, a Hugging Face folder: compared in f32
 * LORAD_TEST_MODEL     that GGUF file: compared in int8, within what quantised activations cost
 * LORAD_TEST_ADAPTERS  what tests/golden/make-adapters.py wrote
 */
#include <check.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "tests/unit/model-rig.h"
#include "tests/lib/run-suite.h"

#define TOKENS_MAX 256
#define GREEDY_MAX 64
#define CLEAR_MARGIN 0.02 /* a choice closer than that may fall either way */

struct limits {
	double mean, max;
};

struct difference {
	double sum, max;
	unsigned n;
};

static json_t *golden;

static const char *setting(const char *name)
{
	const char *value = getenv(name);

	return value && *value ? value : NULL;
}

static uint32_t read_tokens(const json_t *array, uint32_t *ret)
{
	size_t n = json_array_size(array);

	ck_assert_uint_gt(n, 1);
	ck_assert_uint_le(n, TOKENS_MAX);
	for (size_t i = 0; i < n; ++i)
		ret[i] = (uint32_t)json_integer_value(json_array_get(array, i));
	return (uint32_t)n;
}

static void compare_texts(struct rig *rig, const json_t *expected, const struct step_adapter *adapter, unsigned n_adapters,
			  struct difference *d)
{
	const char *name;
	json_t *values;

	json_object_foreach(json_object_get(expected, "logprobs"), name, values) {
		uint32_t tokens[TOKENS_MAX];
		float got[TOKENS_MAX];
		uint32_t n = read_tokens(json_object_get(json_object_get(golden, "texts"), name), tokens);

		rig_score(rig, tokens, n, adapter, n_adapters, RIG_ROWS, got);
		for (uint32_t i = 1; i < n; ++i) {
			double diff = fabs((double)got[i] - json_real_value(json_array_get(values, i)));

			d->sum += diff;
			d->max = fmax(d->max, diff);
			++d->n;
		}
	}
}

/* Fed with the expected tokens, it must choose each of them unless the choice was close. Returns how many were not. */
static uint32_t compare_greedy(struct rig *rig, const json_t *expected, const struct step_adapter *adapter,
			       unsigned n_adapters)
{
	const json_t *greedy = json_object_get(expected, "greedy"), *margins = json_object_get(greedy, "margins");
	uint32_t prompt[TOKENS_MAX], tokens[TOKENS_MAX], n_clear = 0;
	struct kern_result got[GREEDY_MAX];
	uint32_t n_prompt = read_tokens(json_object_get(golden, "prompt"), prompt);
	uint32_t n = read_tokens(json_object_get(greedy, "tokens"), tokens);

	ck_assert_uint_le(n, GREEDY_MAX);
	rig_greedy(rig, prompt, n_prompt, adapter, n_adapters, tokens, n, got);
	for (uint32_t i = 0; i < n; ++i)
		if (json_real_value(json_array_get(margins, i)) > CLEAR_MARGIN) {
			ck_assert_uint_eq(got[i].token, tokens[i]);
			++n_clear;
		}
	ck_assert_uint_gt(n_clear, n / 2);
	return n_clear;
}

static void compare(struct rig *rig, const char *name, const json_t *expected, const struct step_adapter *adapter,
		    const struct limits *limits, bool exact)
{
	struct difference d = { 0 };
	uint32_t same = 0;

	compare_texts(rig, expected, adapter, adapter ? 1 : 0, &d);
	if (exact)
		same = compare_greedy(rig, expected, adapter, adapter ? 1 : 0);
	printf("%-12s %-12s mean %.6f max %.6f over %u tokens", rig->backend->name, name, d.sum / d.n, d.max, d.n);
	printf(exact ? ", %u greedy tokens equal\n" : "\n", same);
	ck_assert_msg(d.sum / d.n <= limits->mean && d.max <= limits->max, "%s: mean %g, max %g", name, d.sum / d.n, d.max);
}

static void compare_all(const char *path, enum model_precision precision, enum kern_dtype kv_type,
			bool packed, const struct limits *base, const struct limits *adapted)
{
	const char *adapters = setting("LORAD_TEST_ADAPTERS"), *name;
	_cleanup_(rig_freep) struct rig *rig = rig_new_kv(path, precision, kv_type, kern_cpu(kern_cpu_best()), 2);
	bool exact = precision == MODEL_F32 && kv_type != KERN_I8 && !packed;
	json_t *expected;

	compare(rig, "base", json_object_get(golden, "base"), NULL, base, exact);
	if (!adapters)
		printf("LORAD_TEST_ADAPTERS is not set: the base only\n");
	json_object_foreach(adapters ? json_object_get(golden, "variants") : NULL, name, expected) {
		struct step_adapter adapter = { .scale = 1 };
		char folder[4096];
		struct rig_lora lora;

		(void)snprintf(folder, sizeof(folder), "%s/%s", adapters, name);
		rig_lora_open(&lora, &model_config(rig->model)->geometry, folder, packed);
		adapter.lora = &lora.lora;
		compare(rig, name, expected, &adapter, adapted, exact);
		rig_lora_close(&lora);
	}
}

START_TEST(f32_equals_transformers)
{
	static const struct limits limits = { 0.001, 0.01 };

	if (setting("LORAD_TEST_HF"))
		compare_all(setting("LORAD_TEST_HF"), MODEL_F32, KERN_F32, false, &limits, &limits);
}
END_TEST

/* Bounds of the issue; llama.cpp with the same file: means of 0.060 and 0.062 to 0.073. */
START_TEST(int8_is_close)
{
	static const struct limits base = { 0.07, 0.6 }, adapted = { 0.085, 0.6 };

	if (setting("LORAD_TEST_MODEL"))
		compare_all(setting("LORAD_TEST_MODEL"), MODEL_AUTO, KERN_BF16, false, &base, &adapted);
}
END_TEST

/* Adapters in int8, in f32 otherwise: what packing costs by itself; and as they are served. */
START_TEST(packed_adapters_are_close)
{
	static const struct limits exact = { 0.001, 0.01 }, packed = { 0.006, 0.08 }, base = { 0.07, 0.6 },
				   adapted = { 0.085, 0.6 };

	if (!setting("LORAD_TEST_MODEL"))
		return;
	compare_all(setting("LORAD_TEST_MODEL"), MODEL_F32, KERN_F32, true, &exact, &packed);
	compare_all(setting("LORAD_TEST_MODEL"), MODEL_AUTO, KERN_BF16, true, &base, &adapted);
}
END_TEST

START_TEST(int8_keys_and_values_are_close)
{
	static const struct limits exact = { 0.03, 0.4 }, base = { 0.07, 0.6 }, adapted = { 0.085, 0.7 };

	if (!setting("LORAD_TEST_MODEL"))
		return;
	compare_all(setting("LORAD_TEST_MODEL"), MODEL_F32, KERN_I8, false, &exact, &exact);
	compare_all(setting("LORAD_TEST_MODEL"), MODEL_AUTO, KERN_I8, false, &base, &adapted);
}
END_TEST

/* The exact path from the quantised file: unpermuted rows and all block formats, with no rounding of activations. */
START_TEST(f32_of_gguf_equals_transformers)
{
	static const struct limits limits = { 0.001, 0.01 };

	if (setting("LORAD_TEST_MODEL"))
		compare_all(setting("LORAD_TEST_MODEL"), MODEL_F32, KERN_F32, false, &limits, &limits);
}
END_TEST

int main(void)
{
	Suite *suite;
	TCase *tc;
	char path[4096];
	int failed;

	if (!setting("LORAD_TEST_HF") && !setting("LORAD_TEST_MODEL")) {
		printf("skipped: neither LORAD_TEST_HF nor LORAD_TEST_MODEL is set\n");
		return 77;
	}
	(void)snprintf(path, sizeof(path), "%s/tests/golden/logprobs.json", setting("top_srcdir") ? setting("top_srcdir") : ".");
	golden = json_load_file(path, 0, NULL);
	if (!golden) {
		fprintf(stderr, "%s: cannot be read\n", path);
		return EXIT_FAILURE;
	}
	suite = suite_create("model-golden");
	tc = tcase_create("golden");
	tcase_set_timeout(tc, 600);
	tcase_add_test(tc, f32_equals_transformers);
	tcase_add_test(tc, int8_is_close);
	tcase_add_test(tc, packed_adapters_are_close);
	tcase_add_test(tc, int8_keys_and_values_are_close);
	tcase_add_test(tc, f32_of_gguf_equals_transformers);
	suite_add_tcase(suite, tc);
	failed = run_suite(suite);
	json_decref(golden);
	return failed;
}
