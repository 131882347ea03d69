/* SPDX-License-Identifier: MIT */
/*
 * What a token is drawn from: Philox's published vectors, and every filter against a second implementation that sorts
 * the whole vocabulary, on each backend. Those that are exact must agree bit for bit, others up to the rounding of
 * sums.
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

/* Penalised and sorted; returns how many of n tokens top-k, top-p and min-p leave. */
static uint32_t filtered(const struct kern_sampling *s, uint32_t n, const float *logits, struct choice *c)
{
	double sum = 0, reached = 0;

	for (uint32_t i = 0; i < n; i++)
		c[i] = (struct choice){ .id = i, .logit = (double)logits[i] };
	for (uint32_t i = 0; i < s->n_seen; i++) {
		struct choice *seen = &c[s->seen[i]];
		float l = logits[s->seen[i]];
		seen->logit = (double)(l > 0 ? l / s->repetition_penalty : l * s->repetition_penalty);
	}
	qsort(c, n, sizeof *c, larger_first);
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

static uint32_t expected_token(const struct kern_sampling *s, uint32_t vocab, const float *logits)
{
	struct choice *c = malloc(vocab * sizeof *c);
	uint32_t n = filtered(s, vocab, logits, c), token, i = 0;
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

struct rows { /* to draw from */
	uint32_t n, vocab;
	const float *logits;             /* [n][vocab] */
	const struct kern_sampling *s;   /* [n] */
	struct kern_result *truth, *result; /* [n] */
};

/* The outputs of a step in two pieces. A queued backend is asked for two rows more, as in a recorded step. */
static void run_sample(const struct kern_backend *b, const struct rows *r, struct kern_result *result)
{
	uint32_t half = r->n / 2, more = b->queued ? 2 : 0;
	struct fixture_step s = fixture_step(
		&(struct kern_step){ .n_outputs = r->n, .sampling = r->s, .result = result }, 1);

	memset(result, 0, r->n * sizeof *result);
	for (uint32_t first = 0, n; first < r->n; first += n) {
		n = first == 0 && half > 0 ? half : r->n - first;
		size_t numbers = (size_t)n * r->vocab, room = (size_t)(n + more) * r->vocab;
		float *copy = fixture_bytes(room * sizeof *copy);
		memcpy(copy, r->logits + (size_t)first * r->vocab, numbers * sizeof *copy);
		struct kern_sample a = { s.step, first, first > 0 || half == 0 ? n + more : n, r->vocab, copy };
		fixture_run(b, b->ops->sample, &a, 1);
		fixture_free(copy);
	}
	fixture_free_step(&s);
}

/* Tokens that differ are counted: a sum that is rounded in another way changes a draw, rarely. */
static void check_against_truth(const struct kern_backend *b, const struct rows *r)
{
	uint32_t unlike = 0;

	run_sample(b, r, r->result);
	if (b->exact_rows) {
		fixture_equal(r->result, r->truth, r->n * sizeof *r->truth, b->name);
		return;
	}
	for (uint32_t i = 0; i < r->n; i++)
		if (r->result[i].token != r->truth[i].token)
			unlike++;
		else
			fixture_close(&r->result[i].logprob, &r->truth[i].logprob, 1, 2e-6f, b->name);
	if (unlike > 1)
		ck_abort_msg("%s: %u of %u draws differ", b->name, unlike, r->n);
}

static const uint32_t seen_tokens[] = { 3, 17, 500, 1002, 44 };
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
	  .n_seen = 5 },
};

/* n draws with each of the settings, from n rows with some likely tokens and many equal ones. */
static void check_settings(uint32_t n, uint32_t vocab)
{
	float *logits = fixture_floats((size_t)n * vocab, 6);
	uint32_t *seen = fixture_copy(seen_tokens, sizeof seen_tokens);
	struct kern_sampling *s = fixture_bytes(n * sizeof *s);
	struct kern_result *truth = fixture_bytes(n * sizeof *truth), *result = fixture_bytes(n * sizeof *result);
	struct rows r = { n, vocab, logits, s, truth, result };

	for (size_t i = 0; i < (size_t)n * vocab; i++)
		logits[i] = floorf(logits[i] * 4) / 4 + (fixture_random(50) == 0 ? 6 : 0);
	for (size_t k = 0; k < sizeof settings / sizeof *settings; k++) {
		uint32_t unlike = 0;
		for (uint32_t i = 0; i < n; i++) {
			s[i] = settings[k];
			s[i].seen = s[i].n_seen ? seen : NULL;
			s[i].seed = 1234567890123 + i / 2;
			s[i].draw = i;
		}
		run_sample(&kern_ref, &r, truth);
		for (uint32_t i = 0; i < n; i++)
			unlike += truth[i].token != expected_token(&s[i], vocab, logits + (size_t)i * vocab);
		/* f32 and f64 sums: rarely */
		ck_assert_msg(unlike <= 1, "setting %zu: %u of %u draws differ", k, unlike, n);
		for (unsigned b = 0; fixture_backend(b); b++)
			check_against_truth(fixture_backend(b), &r);
	}
	fixture_free(logits), fixture_free(seen), fixture_free(s), fixture_free(truth), fixture_free(result);
}

START_TEST(filters)
{
	check_settings(200, VOCAB);
}
END_TEST

START_TEST(filters_of_a_large_vocabulary)
{
	check_settings(5, 50021);
}
END_TEST

/* A draw from one row of VOCAB logits. */
static struct kern_result draw(const struct kern_backend *b, const struct kern_sampling *like, const float *logits)
{
	struct kern_sampling *s = fixture_copy(like, sizeof *like);
	struct kern_result *result = fixture_bytes(sizeof *result), ret;
	uint32_t *seen = fixture_copy(like->seen, like->n_seen * sizeof *seen);
	struct rows r = { 1, VOCAB, logits, s };

	s->seen = seen;
	run_sample(b, &r, result);
	ret = *result;
	fixture_free(s), fixture_free(result), fixture_free(seen);
	return ret;
}

START_TEST(greedy_and_log_probabilities)
{
	float *logits = fixture_floats(VOCAB, 5);
	struct kern_sampling s = { DEFAULTS, .n_top = KERN_TOP_MAX };
	struct choice *c = malloc(VOCAB * sizeof *c);
	const struct kern_backend *b;
	struct kern_result r;
	double sum = 0;

	logits[100] = logits[900] = logits[400] = 5.5f; /* ties: the lowest id */
	for (uint32_t i = 0; i < VOCAB; i++)
		sum += exp((double)logits[i]);
	struct kern_sampling sorted = { DEFAULTS, .temperature = 1 };
	filtered(&sorted, VOCAB, logits, c);
	for (unsigned k = 0; (b = fixture_backend(k)); k++) {
		r = draw(b, &s, logits);
		ck_assert_uint_eq(r.token, 100);
		ck_assert_float_eq_tol(r.logprob, (float)(5.5 - log(sum)), 2e-6f);
		for (unsigned i = 0; i < KERN_TOP_MAX; i++) {
			ck_assert_uint_eq(r.top_token[i], c[i].id);
			ck_assert_float_eq_tol(r.top_logprob[i], (float)(c[i].logit - log(sum)), 2e-6f);
		}
		s.target = 1002;
		r = draw(b, &s, logits);
		ck_assert_uint_eq(r.token, 1002);
		ck_assert_float_eq_tol(r.logprob, (float)((double)logits[1002] - log(sum)), 2e-6f);
		s.target = -1;
	}
	fixture_free(logits);
	free(c);
}
END_TEST

/* A penalty changes the choice, not the reported log-probability. */
START_TEST(penalty)
{
	static const uint32_t seen[] = { 5, 6 };
	float *logits = fixture_floats(VOCAB, 1);
	const struct kern_backend *b;

	logits[5] = 8;
	logits[6] = 7;
	logits[7] = 6;
	for (unsigned k = 0; (b = fixture_backend(k)); k++) {
		struct kern_sampling s = { DEFAULTS, .seen = seen, .n_seen = 2 };
		struct kern_result plain = draw(b, &s, logits), punished;
		ck_assert_uint_eq(plain.token, 5);
		s.repetition_penalty = 1.2f; /* 6.67, 5.83, 6 */
		punished = draw(b, &s, logits);
		ck_assert_uint_eq(punished.token, 5);
		ck_assert_float_eq_tol(punished.logprob, plain.logprob, 2e-6f);
		s.repetition_penalty = 2;
		punished = draw(b, &s, logits);
		ck_assert_uint_eq(punished.token, 7);
	}
	fixture_free(logits);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("sample");
	TCase *tc = tcase_create("sample");

	fixture_seed(11);
	tcase_set_timeout(tc, 0);
	tcase_add_checked_fixture(tc, fixture_set_up, fixture_tear_down);
	tcase_add_test(tc, philox_vectors);
	tcase_add_test(tc, filters);
	tcase_add_test(tc, filters_of_a_large_vocabulary);
	tcase_add_test(tc, greedy_and_log_probabilities);
	tcase_add_test(tc, penalty);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
