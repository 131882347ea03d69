/* SPDX-License-Identifier: MIT */
/*
 * What a token is drawn from: Philox's published vectors, and every filter against a second implementation that sorts
 * the whole vocabulary, on each backend. Backends must agree bit for bit.
 */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/philox.h"
#include "tests/kernels/fixture.h"
#include "tests/lib/run-suite.h"

/* The known answers that Random123 publishes for philox4x32 with 10 rounds. */
START_TEST(philox_vectors)
{
	static const struct { uint32_t counter[4], key[2], expected[4]; } known[] = {
		{ { 0, 0, 0, 0 }, { 0, 0 }, { 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 } },
		{ { 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff },
		  { 0xffffffff, 0xffffffff },
		  { 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd } },
		{ { 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344 },
		  { 0xa4093822, 0x299f31d0 },
		  { 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 } },
	};
	uint32_t r[4];

	for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
		philox4x32(known[i].counter, known[i].key, r);
		fixture_equal(r, known[i].expected, sizeof r, "philox");
	}
	for (uint32_t i = 0; i < 1000; i++)
		ck_assert(philox_uniform(i, i) >= 0 && philox_uniform(i, i) < 1);
	ck_assert(philox_uniform(1, 0) != philox_uniform(2, 0) && philox_uniform(1, 0) != philox_uniform(1, 1));
	ck_assert(philox_uniform(1, 0) != philox_uniform(1 + (1ull << 32), 0));
}
END_TEST

#define VOCAB 1003 /* odd: ends in part of a vector */
#define DEFAULTS .top_p = 1, .repetition_penalty = 1, .target = -1

struct choice { /* a token of the second implementation */
	uint32_t id;
	double logit, weight;
};

static int larger_first(const void *a, const void *b)
{
	const struct choice *x = a, *y = b;

	return x->logit != y->logit ? (x->logit < y->logit ? 1 : -1) : (x->id > y->id) - (x->id < y->id);
}

static int lower_id_first(const void *a, const void *b)
{
	const struct choice *x = a, *y = b;

	return (x->id > y->id) - (x->id < y->id);
}

/* Penalised and sorted; returns how many tokens top-k, top-p and min-p leave. */
static uint32_t filtered(const struct kern_sampling *s, const float *logits, struct choice *c)
{
	uint32_t n = VOCAB;
	double sum = 0, reached = 0;

	for (uint32_t i = 0; i < VOCAB; i++)
		c[i] = (struct choice){ .id = i, .logit = (double)logits[i] };
	for (uint32_t i = 0; i < s->n_seen; i++) {
		struct choice *seen = &c[s->seen[i]];
		float l = logits[s->seen[i]];
		seen->logit = (double)(l > 0 ? l / s->repetition_penalty : l * s->repetition_penalty);
	}
	qsort(c, VOCAB, sizeof *c, larger_first);
	if (s->top_k && s->top_k < n)
		n = s->top_k;
	for (uint32_t i = 0; i < n; i++)
		sum += c[i].weight = exp((c[i].logit - c[0].logit) / (double)s->temperature);
	for (uint32_t i = 0; s->top_p < 1 && i < n; i++) {
		reached += c[i].weight;
		if (reached >= (double)s->top_p * sum)
			n = i + 1;
	}
	while (n > 1 && c[n - 1].weight < (double)s->min_p)
		n--;
	return n;
}

static uint32_t expected_token(const struct kern_sampling *s, const float *logits)
{
	struct choice *c = fixture_bytes(VOCAB * sizeof *c);
	uint32_t n = filtered(s, logits, c), token, i = 0;
	double sum = 0, goal;

	for (uint32_t j = 0; j < n; j++)
		sum += c[j].weight;
	qsort(c, n, sizeof *c, lower_id_first);
	goal = philox_uniform(s->seed, s->draw) * sum;
	for (sum = c[0].weight; i + 1 < n && sum <= goal; sum += c[++i].weight)
		;
	token = c[i].id;
	free(c);
	return token;
}

/* The first part draws nothing that the second should, and so on: n outputs in two parts. */
static void run_sample(const struct kern_backend *b, const struct kern_sampling *s, uint32_t n, const float *logits,
		       struct kern_result *result)
{
	float *copy = fixture_bytes((size_t)n * VOCAB * 4);
	struct kern_step step = { .n_outputs = n, .sampling = s, .result = result };
	struct kern_sample a = { &step, 0, n, VOCAB, copy };

	memcpy(copy, logits, (size_t)n * VOCAB * 4);
	fixture_run(b->ops->sample, &a, 2);
	free(copy);
}

static const struct kern_backend *backend_or_ref(unsigned i)
{
	return i == 0 ? &kern_ref : fixture_backend(i - 1);
}

START_TEST(filters)
{
	static const uint32_t seen[] = { 3, 17, 500, 1002, 44 };
	static const struct kern_sampling settings[] = {
		{ DEFAULTS, .temperature = 1 },
		{ DEFAULTS, .temperature = 0.3f },
		{ DEFAULTS, .temperature = 2, .top_k = 1 },
		{ DEFAULTS, .temperature = 0.9f, .top_k = 40 },
		{ DEFAULTS, .temperature = 1.5f, .top_k = VOCAB + 5 },
		{ DEFAULTS, .temperature = 1, .top_k = 900 },
		{ .target = -1, .repetition_penalty = 1, .temperature = 0.8f, .top_p = 0.9f },
		{ .target = -1, .repetition_penalty = 1, .temperature = 5, .top_p = 0.999f },
		{ .target = -1, .repetition_penalty = 1, .temperature = 1, .top_p = 0.01f },
		{ DEFAULTS, .temperature = 1.2f, .min_p = 0.05f },
		{ DEFAULTS, .temperature = 1, .min_p = 1 },
		{ .target = -1, .temperature = 0.7f, .top_p = 0.95f, .top_k = 50, .min_p = 0.02f, .repetition_penalty = 1.3f,
		  .n_seen = 5, .seen = seen },
	};
	enum { N = 200 };
	float *logits = fixture_floats((size_t)N * VOCAB, 6);
	struct kern_sampling s[N];
	struct kern_result truth[N], result[N];

	for (uint32_t i = 0; i < N * VOCAB; i++) /* some likely tokens, many equal ones */
		logits[i] = floorf(logits[i] * 4) / 4 + (fixture_random(50) == 0 ? 6 : 0);
	for (size_t k = 0; k < sizeof settings / sizeof *settings; k++) {
		uint32_t unlike = 0;
		for (uint32_t i = 0; i < N; i++) {
			s[i] = settings[k];
			s[i].seed = 1234567890123 + i / 2;
			s[i].draw = i;
		}
		memset(truth, 0, sizeof truth);
		run_sample(&kern_ref, s, N, logits, truth);
		for (uint32_t i = 0; i < N; i++)
			unlike += truth[i].token != expected_token(&s[i], logits + (size_t)i * VOCAB);
		ck_assert_msg(unlike <= 1, "setting %zu: %u of %d draws differ", k, unlike, N); /* f32 and f64 sums: rarely */
		for (unsigned b = 0; backend_or_ref(b); b++) {
			memset(result, 0, sizeof result);
			run_sample(backend_or_ref(b), s, N, logits, result);
			fixture_equal(result, truth, sizeof result, backend_or_ref(b)->name);
		}
	}
	free(logits);
}
END_TEST

START_TEST(greedy_and_log_probabilities)
{
	float *logits = fixture_floats(VOCAB, 5);
	struct kern_sampling s = { DEFAULTS, .n_top = 7 };
	struct choice *c = fixture_bytes(VOCAB * sizeof *c);
	struct kern_result r;
	double sum = 0;

	logits[100] = logits[900] = logits[400] = 5.5f; /* ties: the lowest id */
	for (uint32_t i = 0; i < VOCAB; i++)
		sum += exp((double)logits[i]);
	struct kern_sampling sorted = { DEFAULTS, .temperature = 1 };
	filtered(&sorted, logits, c);
	for (unsigned k = 0; backend_or_ref(k); k++) {
		run_sample(backend_or_ref(k), &s, 1, logits, &r);
		ck_assert_uint_eq(r.token, 100);
		ck_assert_float_eq_tol(r.logprob, (float)(5.5 - log(sum)), 2e-6f);
		for (unsigned i = 0; i < 7; i++) {
			ck_assert_uint_eq(r.top_token[i], c[i].id);
			ck_assert_float_eq_tol(r.top_logprob[i], (float)(c[i].logit - log(sum)), 2e-6f);
		}
		s.target = 1002;
		run_sample(backend_or_ref(k), &s, 1, logits, &r);
		ck_assert_uint_eq(r.token, 1002);
		ck_assert_float_eq_tol(r.logprob, (float)((double)logits[1002] - log(sum)), 2e-6f);
		s.target = -1;
	}
	free(logits);
	free(c);
}
END_TEST

/* A penalty changes the choice, not the reported log-probability. */
START_TEST(penalty)
{
	static const uint32_t seen[] = { 5, 6 };
	float *logits = fixture_floats(VOCAB, 1);
	struct kern_sampling s = { DEFAULTS, .seen = seen, .n_seen = 2 };
	struct kern_result plain, punished;

	logits[5] = 8;
	logits[6] = 7;
	logits[7] = 6;
	run_sample(&kern_ref, &s, 1, logits, &plain);
	ck_assert_uint_eq(plain.token, 5);
	s.repetition_penalty = 1.2f; /* 6.67, 5.83, 6 */
	run_sample(&kern_ref, &s, 1, logits, &punished);
	ck_assert_uint_eq(punished.token, 5);
	ck_assert_float_eq_tol(punished.logprob, plain.logprob, 2e-6f);
	s.repetition_penalty = 2;
	run_sample(&kern_ref, &s, 1, logits, &punished);
	ck_assert_uint_eq(punished.token, 7);
	free(logits);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("sample");
	TCase *tc = tcase_create("sample");

	fixture_seed(11);
	tcase_set_timeout(tc, 0);
	tcase_add_test(tc, philox_vectors);
	tcase_add_test(tc, filters);
	tcase_add_test(tc, greedy_and_log_probabilities);
	tcase_add_test(tc, penalty);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
