/* SPDX-License-Identifier: MIT */
/* lorabench's plans: what the random numbers are distributed like, that a seed means one sequence, traces. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "tools/bench.h"
#include "tests/lib/run-suite.h"

#define N_DRAWS 200000
#define N_ADAPTERS 50

static struct bench_adapter list[N_ADAPTERS];
static char names[N_ADAPTERS][8];

static struct bench_adapters make_adapters(size_t n)
{
	for (size_t i = 0; i < n; ++i) {
		(void)snprintf(names[i], sizeof(names[i]), "a%02zu", i);
		list[i] = (struct bench_adapter){ .name = names[i] };
	}
	return (struct bench_adapters){ .list = list, .n = n };
}

/* The standard error of the mean is sqrt(shape / N); that of the variance by the fourth moment, 3 k^2 + 6 k. */
START_TEST(gamma_has_its_mean_and_variance)
{
	static const double shapes[] = { 1.0 / 64, 0.25, 0.999, 1, 4, 100 };

	for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); ++i) {
		struct bench_random random = bench_random_stream(7, i);
		double shape = shapes[i], sum = 0, squares = 0, mean, variance;

		for (int n = 0; n < N_DRAWS; ++n) {
			double x = bench_random_gamma(&random, shape);

			ck_assert(isfinite(x) && x >= 0);
			sum += x;
			squares += x * x;
		}
		mean = sum / N_DRAWS;
		variance = squares / N_DRAWS - mean * mean;
		ck_assert_double_eq_tol(mean, shape, 5 * sqrt(shape / N_DRAWS));
		ck_assert_double_eq_tol(variance, shape, 5 * sqrt((2 * shape * shape + 6 * shape) / N_DRAWS));
	}
}
END_TEST

/* A gamma distribution of shape 1 is exponential: P(x > t) = e^-t; of shape 1/2 P(x > 1) = erfc(1). */
START_TEST(gamma_has_its_tail)
{
	struct bench_random random = bench_random_stream(8, 0);
	int one = 0, half = 0;

	for (int n = 0; n < N_DRAWS; ++n) {
		one += bench_random_gamma(&random, 1) > 2;
		half += bench_random_gamma(&random, 0.5) > 1;
	}
	ck_assert_double_eq_tol((double)one / N_DRAWS, exp(-2), 5 * sqrt(0.12 / N_DRAWS));
	ck_assert_double_eq_tol((double)half / N_DRAWS, erfc(1), 5 * sqrt(0.14 / N_DRAWS));
}
END_TEST

static void count_choices(struct bench_adapters *adapters, double share[N_ADAPTERS])
{
	struct bench_random random = bench_random_stream(3, 1);

	memset(share, 0, N_ADAPTERS * sizeof(*share));
	for (uint64_t n = 0; n < N_DRAWS; ++n)
		share[bench_adapters_choose(adapters, n, &random) - adapters->list] += 1.0 / N_DRAWS;
}

static void expect_share(double got, double wanted)
{
	ck_assert_double_eq_tol(got, wanted, 5 * sqrt(wanted * (1 - wanted) / N_DRAWS) + 1e-9);
}

/* floor(N u^(1/A)) = k where u is in [(k / N)^A, ((k + 1) / N)^A). */
START_TEST(power_law)
{
	static const double exponents[] = { 0.1, 0.5, 1, 3 };
	double share[N_ADAPTERS];

	for (size_t i = 0; i < sizeof(exponents) / sizeof(exponents[0]); ++i) {
		struct bench_adapters adapters = make_adapters(N_ADAPTERS);

		bench_adapters_power(&adapters, exponents[i]);
		count_choices(&adapters, share);
		for (int k = 0; k < N_ADAPTERS; ++k)
			expect_share(share[k], pow((k + 1.0) / N_ADAPTERS, exponents[i]) -
						       pow((double)k / N_ADAPTERS, exponents[i]));
	}
}
END_TEST

START_TEST(zipf_law)
{
	static const double exponents[] = { 0, 1, 1.5 };
	double share[N_ADAPTERS];
	struct diag diag;

	for (size_t i = 0; i < sizeof(exponents) / sizeof(exponents[0]); ++i) {
		struct bench_adapters adapters = make_adapters(N_ADAPTERS);
		double sum = 0;

		ck_assert_int_eq(bench_adapters_zipf(&adapters, exponents[i], &diag), TOOL_OK);
		count_choices(&adapters, share);
		for (int k = 1; k <= N_ADAPTERS; ++k)
			sum += pow(k, -exponents[i]);
		for (int k = 1; k <= N_ADAPTERS; ++k)
			expect_share(share[k - 1], pow(k, -exponents[i]) / sum);
		free(adapters.sums);
	}
}
END_TEST

START_TEST(one_adapter_or_none)
{
	struct bench_random random = bench_random_stream(3, 1);
	struct bench_adapters adapters = make_adapters(1);

	bench_adapters_power(&adapters, 100);
	for (int i = 0; i < 10000; ++i)
		ck_assert_ptr_eq(bench_adapters_choose(&adapters, 0, &random), list);
	adapters.n = 0;
	ck_assert_ptr_null(bench_adapters_choose(&adapters, 0, &random));
}
END_TEST

static struct bench_plan make_plan(struct bench_adapters *adapters, uint64_t seed, double rate, double cv)
{
	struct bench_plan plan = { .adapters = adapters, .seed = seed, .n_requests = N_DRAWS, .prompt_tokens = 12,
				   .gen_tokens = 3, .rate = rate, .cv = cv };

	bench_plan_begin(&plan);
	return plan;
}

START_TEST(pauses_have_their_rate_and_variation)
{
	static const double cvs[] = { 0.5, 1, 3 };
	struct bench_adapters adapters = make_adapters(0);

	for (size_t i = 0; i < sizeof(cvs) / sizeof(cvs[0]); ++i) {
		struct bench_plan plan = make_plan(&adapters, 11 + i, 10, cvs[i]);
		double last = 0, sum = 0, squares = 0, mean;
		struct bench_ask ask;

		while (bench_plan_next(&plan, &ask)) {
			double at = (double)ask.at_ns / NS_PER_S;

			sum += at - last;
			squares += (at - last) * (at - last);
			last = at;
		}
		mean = sum / (N_DRAWS - 1);
		ck_assert_double_eq_tol(mean, 0.1, 5 * 0.1 * cvs[i] / sqrt(N_DRAWS));
		ck_assert_double_eq_tol(sqrt(squares / N_DRAWS - mean * mean) / mean, cvs[i], 0.05 * cvs[i]);
	}
}
END_TEST

START_TEST(a_steady_beat)
{
	struct bench_adapters adapters = make_adapters(0);
	struct bench_plan plan = make_plan(&adapters, 1, 4, 0);
	struct bench_ask ask;

	for (uint64_t i = 0; i < 9; ++i) {
		ck_assert(bench_plan_next(&plan, &ask));
		ck_assert_uint_eq(ask.at_ns, i * NS_PER_S / 4);
	}
}
END_TEST

/* These numbers must never change: a seed that somebody wrote down means this. */
START_TEST(a_seed_is_one_sequence)
{
	struct bench_adapters adapters = make_adapters(N_ADAPTERS);
	struct bench_plan plan = make_plan(&adapters, 42, 100, 2);
	static const uint64_t at_us[] = { 0, 24571, 28621, 28644 };
	static const unsigned chosen[] = { 1, 12, 26, 2 };
	static const uint32_t last_token[] = { 380, 133, 533, 327 };
	struct bench_ask ask;
	uint32_t tokens[12];

	bench_adapters_power(&adapters, 0.5);
	for (int i = 0; i < 4; ++i) {
		ck_assert(bench_plan_next(&plan, &ask));
		bench_plan_prompt(&plan, &ask, 100, 1000, tokens);
		ck_assert_uint_eq(ask.at_ns / 1000, at_us[i]);
		ck_assert_uint_eq(ask.adapter - list, chosen[i]);
		ck_assert_uint_eq(tokens[11], last_token[i]);
	}
	bench_plan_begin(&plan); /* and again */
	ck_assert(bench_plan_next(&plan, &ask) && bench_plan_next(&plan, &ask));
	ck_assert_uint_eq(ask.at_ns / 1000, at_us[1]);
	ck_assert_uint_eq(ask.number, 1);
}
END_TEST

/* A prompt depends on its number alone, so one that had to be made twice is the same. */
START_TEST(prompts_share_what_they_shall)
{
	struct bench_adapters adapters = make_adapters(0);
	struct bench_plan plan = make_plan(&adapters, 5, 0, 1);
	uint32_t first[12], second[12], again[12];
	struct bench_ask ask;
	unsigned equal = 0;

	plan.shared_prefix = 8;
	ck_assert(bench_plan_next(&plan, &ask));
	bench_plan_prompt(&plan, &ask, 1000, 100000, first);
	bench_plan_prompt(&plan, &ask, 1000, 100000, again);
	ck_assert_mem_eq(first, again, sizeof(first));
	ck_assert(bench_plan_next(&plan, &ask));
	bench_plan_prompt(&plan, &ask, 1000, 100000, second);
	ck_assert_mem_eq(first, second, 8 * sizeof(*first));
	for (int i = 8; i < 12; ++i)
		equal += first[i] == second[i];
	ck_assert_uint_eq(equal, 0);
	for (int i = 0; i < 12; ++i)
		ck_assert(first[i] >= 1000 && first[i] < 101000);
	plan.seed = 6; /* another run has another prefix */
	bench_plan_prompt(&plan, &ask, 1000, 100000, again);
	ck_assert_mem_ne(second, again, 8 * sizeof(*first));
}
END_TEST

/* ---- traces ---- */

static char path[64];

static int load_trace(const char *text, struct bench_adapters *adapters, struct bench_trace *trace, struct diag *diag)
{
	FILE *file = fopen(path, "w");

	ck_assert_ptr_nonnull(file);
	(void)fputs(text, file);
	(void)fclose(file);
	*trace = (struct bench_trace){ .n = 0 };
	return bench_trace_load(trace, path, adapters, diag);
}

static void make_path(void)
{
	(void)snprintf(path, sizeof(path), "/tmp/test-tools-bench.%d", (int)getpid());
}

static void remove_path(void)
{
	unlink(path);
}

START_TEST(a_trace_is_followed)
{
	struct bench_adapters adapters = make_adapters(3);
	struct bench_plan plan = make_plan(&adapters, 1, 0, 1);
	struct bench_trace trace;
	struct bench_ask ask;
	struct diag diag = { "" };
	uint32_t longest;

	ck_assert_int_eq(load_trace("# a trace\n\n0 2 10 1\n0.5\ta01  20 2 # why\r\n0.5 - 30 3", &adapters, &trace, &diag), 0);
	plan.trace = &trace;
	ck_assert_uint_eq(bench_plan_size(&plan), 3);
	ck_assert_int_eq(bench_plan_check(&plan, 33, &longest, &diag), TOOL_OK);
	ck_assert_uint_eq(longest, 30);
	ck_assert_int_eq(bench_plan_check(&plan, 32, &longest, &diag), TOOL_FAILED);
	ck_assert_ptr_nonnull(strstr(diag.text, "request 3"));
	ck_assert(bench_plan_next(&plan, &ask));
	ck_assert(ask.at_ns == 0 && ask.adapter == &list[2] && ask.prompt_tokens == 10 && ask.gen_tokens == 1);
	ck_assert(bench_plan_next(&plan, &ask));
	ck_assert(ask.at_ns == NS_PER_S / 2 && ask.adapter == &list[1] && ask.prompt_tokens == 20 && ask.gen_tokens == 2);
	ck_assert(bench_plan_next(&plan, &ask));
	ck_assert(ask.at_ns == NS_PER_S / 2 && !ask.adapter && ask.number == 2);
	ck_assert(!bench_plan_next(&plan, &ask));
	plan.n_requests = 2;
	ck_assert_uint_eq(bench_plan_size(&plan), 2);
	bench_trace_deinit(&trace);
}
END_TEST

START_TEST(a_wrong_trace_is_refused)
{
	static const struct {
		const char *text, *words;
	} table[] = {
		{ "", "without requests" },
		{ "# nothing\n", "without requests" },
		{ "0 0 1\n", ":1: 0: a line has" },
		{ "0 0 1 1 1\n", ":1: 0: a line has" },
		{ "0 0 1 1\nx 0 1 1\n", ":2: x: must be from 0 to 1000000 seconds" },
		{ "-1 0 1 1\n", "-1: must be" },
		{ "nan 0 1 1\n", "nan: must be" },
		{ "1e7 0 1 1\n", "1e7: must be" },
		{ "2 0 1 1\n1.5 0 1 1\n", ":2: 1.5: before" },
		{ "0 3 1 1\n", "3: no index" },
		{ "0 ghost 1 1\n", "ghost: no adapter" },
		{ "0 0 0 1\n", "0: must be from 1" },
		{ "0 0 1 16777217\n", "16777217: must be from 1" },
	};
	struct bench_adapters adapters = make_adapters(3);
	struct bench_trace trace;
	struct diag diag;

	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); ++i) {
		ck_assert_int_eq(load_trace(table[i].text, &adapters, &trace, &diag), TOOL_FAILED);
		ck_assert_msg(strstr(diag.text, table[i].words) != NULL, "\"%s\" is not in \"%s\"", table[i].words, diag.text);
		bench_trace_deinit(&trace);
	}
	trace = (struct bench_trace){ .n = 0 };
	ck_assert_int_eq(bench_trace_load(&trace, "/nowhere/trace", &adapters, &diag), TOOL_FAILED);
	ck_assert_ptr_nonnull(strstr(diag.text, "/nowhere/trace: No such file"));
}
END_TEST

START_TEST(percentiles_by_nearest_rank)
{
	struct bench_samples samples = { .n = 0 };

	ck_assert(isnan(bench_samples_percentile(&samples, 50)));
	for (int i = 1000; i > 0; --i)
		ck_assert_int_eq(bench_samples_add(&samples, i), 0);
	ck_assert_double_eq(bench_samples_percentile(&samples, 50), 500);
	ck_assert_double_eq(bench_samples_percentile(&samples, 99), 990);
	ck_assert_double_eq(bench_samples_percentile(&samples, 99.9), 999);
	bench_samples_deinit(&samples);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("tools/bench");
	TCase *tcase = tcase_create("plan"), *traces = tcase_create("trace");

	tcase_add_test(tcase, gamma_has_its_mean_and_variance);
	tcase_add_test(tcase, gamma_has_its_tail);
	tcase_add_test(tcase, power_law);
	tcase_add_test(tcase, zipf_law);
	tcase_add_test(tcase, one_adapter_or_none);
	tcase_add_test(tcase, pauses_have_their_rate_and_variation);
	tcase_add_test(tcase, a_steady_beat);
	tcase_add_test(tcase, a_seed_is_one_sequence);
	tcase_add_test(tcase, prompts_share_what_they_shall);
	tcase_add_test(tcase, percentiles_by_nearest_rank);
	tcase_set_timeout(tcase, 60);
	suite_add_tcase(suite, tcase);
	tcase_add_checked_fixture(traces, make_path, remove_path);
	tcase_add_test(traces, a_trace_is_followed);
	tcase_add_test(traces, a_wrong_trace_is_refused);
	suite_add_tcase(suite, traces);
	return run_suite(suite);
}
