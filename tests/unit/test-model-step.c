/* SPDX-License-Identifier: MIT */
/*
 * The step's promises, on a tiny random model: results do not depend on how prefill is cut, on what shares the step, on
 * its order or on the number of threads, bit for bit; an adapter is what merging it into the weights would be; every
 * request gets its own results back.
 */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/model-rig.h"
#include "tests/unit/model-tiny.h"
#include "tests/lib/run-suite.h"

#define N_TOKENS 150 /* more than the head takes at once, several KV blocks */
#define N_LORAS 4

static struct tiny tiny;
static struct tiny_lora loras[N_LORAS];

static void setup(void)
{
	static const uint32_t max_rank[N_LORAS] = { 3, 8, 17, 40 };

	tiny_init(&tiny, false);
	tiny_write(&tiny, 1);
	for (uint32_t i = 0; i < N_LORAS; ++i)
		tiny_lora_init(&loras[i], &tiny, i, max_rank[i]);
}

static void teardown(void)
{
	for (uint32_t i = 0; i < N_LORAS; ++i)
		tiny_lora_deinit(&loras[i]);
	tiny_deinit(&tiny);
}

static void fill_tokens(uint32_t *tokens, uint32_t n, uint32_t seed)
{
	for (uint32_t i = 0; i < n; ++i)
		tokens[i] = (i * i * 7 + i * 13 + seed * 31 + (i >> 3)) % 128;
}

/* isa: one of the machine's; skipped (false) where it is not there. */
static const struct kern_backend *backend_of(int isa)
{
	return kern_cpu((enum kern_isa)isa);
}

static const struct step_adapter weighted[] = {
	{ &loras[2].lora, 0.75f },
	{ &loras[0].lora, -0.5f },
	{ &loras[3].lora, 1.25f },
};

START_TEST(prefill_may_be_cut_anywhere)
{
	static const uint32_t cuts[] = { 1, 2, 7, 31, 64, 100 };
	const struct kern_backend *backend = backend_of(_i);
	float whole[N_TOKENS], cut[N_TOKENS];
	uint32_t tokens[N_TOKENS];
	struct rig *rig;

	if (!backend)
		return;
	rig = rig_new(tiny.folder, MODEL_F32, backend, 2);
	fill_tokens(tokens, N_TOKENS, 1);
	rig_score(rig, tokens, N_TOKENS, weighted, 3, N_TOKENS, whole);
	for (size_t i = 0; i < sizeof(cuts) / sizeof(*cuts); ++i) {
		rig_score(rig, tokens, N_TOKENS, weighted, 3, cuts[i], cut);
		ck_assert_msg(!memcmp(whole, cut, sizeof(whole)), "%s: cut at %u", backend->name, cuts[i]);
	}
	rig_free(rig);
}
END_TEST

/* ---- a batch of unlike requests ---- */

#define N_REQUESTS 9

struct request {
	uint32_t tokens[64], n_prompt, n_new;
	struct step_adapter adapter[2];
	uint32_t n_adapters, position;
	bool scores;
	struct kv_seq kv;
	struct kern_result result[64];
};

static void make_requests(struct request *requests)
{
	for (uint32_t i = 0; i < N_REQUESTS; ++i) {
		struct request *r = &requests[i];

		*r = (struct request){ .n_prompt = 3 + i * 5, .n_new = 6, .n_adapters = i % 3, .scores = i % 4 == 3 };
		fill_tokens(r->tokens, 64, i);
		r->adapter[0] = (struct step_adapter){ &loras[i / 3 % N_LORAS].lora, 1 };
		r->adapter[1] = (struct step_adapter){ &loras[(i + 1) % N_LORAS].lora, 0.5f };
	}
}

/* The request's share of the next step: up to `chunk` tokens of what it knows so far. */
static struct step_seq next_share(struct rig *rig, struct request *r, uint32_t chunk)
{
	uint32_t known = r->position < r->n_prompt ? r->n_prompt : r->position + 1;
	uint32_t n = known - r->position < chunk ? known - r->position : chunk;
	struct step_seq seq = rig_seq(r->tokens + r->position, n, r->position, &r->kv, r->result + r->position);

	ck_assert_int_eq(kv_reserve(rig->kv, &r->kv, r->position + n), KV_OK);
	seq.adapter = r->adapter;
	seq.n_adapters = r->n_adapters;
	seq.output = r->scores ? STEP_OUTPUT_ALL : r->position + n == known ? STEP_OUTPUT_LAST : STEP_OUTPUT_NONE;
	seq.sampling.temperature = r->scores ? 0 : 0.9f;
	seq.sampling.seed = 17;
	seq.sampling.draw = r->position + n; /* whatever the cuts were */
	seq.sampling.n_top = 3;
	seq.sampling.target = r->scores ? (int32_t)r->tokens[r->position + n] : -1;
	r->position += n;
	return seq;
}

/* What the step said: drawn tokens go on as input. Results of draws are kept at the position they were drawn from. */
static void take_share(struct request *r, const struct step_seq *seq)
{
	uint32_t last = r->position - 1;

	if (seq->output != STEP_OUTPUT_LAST)
		return;
	if (seq->n_tokens > 1)
		r->result[last] = *seq->result;
	r->tokens[r->position] = r->result[last].token;
}

static bool is_done(const struct request *r)
{
	return r->position >= r->n_prompt + r->n_new;
}

static void run_together(struct rig *rig, struct request *requests, uint32_t n, uint32_t chunk, bool reversed)
{
	struct step_seq seqs[N_REQUESTS];
	struct request *owner[N_REQUESTS];
	uint32_t n_seqs;

	do {
		n_seqs = 0;
		for (uint32_t i = 0; i < n; ++i) {
			struct request *r = &requests[reversed ? n - 1 - i : i];

			if (is_done(r))
				continue;
			owner[n_seqs] = r;
			seqs[n_seqs++] = next_share(rig, r, chunk + (uint32_t)(r - requests) % 3);
		}
		if (n_seqs > 0)
			ck_assert_int_eq(step_run(rig->step, seqs, n_seqs), 0);
		for (uint32_t i = 0; i < n_seqs; ++i)
			take_share(owner[i], &seqs[i]);
	} while (n_seqs > 0);
	for (uint32_t i = 0; i < n; ++i)
		kv_drop(rig->kv, &requests[i].kv);
}

static bool same_results(const struct request *a, const struct request *b)
{
	uint32_t first = a->scores ? 0 : a->n_prompt - 1, end = a->n_prompt + a->n_new;

	for (uint32_t i = first; i < end; ++i)
		if (a->result[i].token != b->result[i].token ||
		    memcmp(&a->result[i].logprob, &b->result[i].logprob, sizeof(float)) ||
		    memcmp(a->result[i].top_token, b->result[i].top_token, 3 * sizeof(uint32_t)))
			return false;
	return true;
}

static void compare_batch_with_alone(const struct kern_backend *backend, enum model_precision precision,
				     enum kern_dtype kv_type, unsigned threads)
{
	static struct request alone[N_REQUESTS], together[N_REQUESTS], backwards[N_REQUESTS];
	struct rig *rig = rig_new_kv(tiny.folder, precision, kv_type, backend, threads);

	make_requests(alone);
	make_requests(together);
	make_requests(backwards);
	for (uint32_t i = 0; i < N_REQUESTS; ++i)
		run_together(rig, &alone[i], 1, 64, false);
	run_together(rig, together, N_REQUESTS, 4, false);
	ck_assert_uint_gt(step_last(rig->step)->seqs, 0);
	run_together(rig, backwards, N_REQUESTS, 7, true);
	for (uint32_t i = 0; i < N_REQUESTS; ++i) {
		ck_assert_msg(same_results(&alone[i], &together[i]), "%s: request %u", backend->name, i);
		ck_assert_msg(same_results(&alone[i], &backwards[i]), "%s: request %u, reversed", backend->name, i);
	}
	ck_assert_uint_eq(pool_used(rig->pool, POOL_KV), 0);
	rig_free(rig);
}

START_TEST(batch_equals_alone)
{
	const struct kern_backend *backend = backend_of(_i % _KERN_ISA_N);

	if (backend)
		compare_batch_with_alone(backend, MODEL_F32 + _i / _KERN_ISA_N % 2, _KERN_DTYPE_N,
					 1 + (unsigned)_i / (2 * _KERN_ISA_N) * 2);
}
END_TEST

START_TEST(batch_equals_alone_with_int8_keys)
{
	const struct kern_backend *backend = backend_of(_i);

	if (backend)
		compare_batch_with_alone(backend, MODEL_BF16, KERN_I8, 3);
}
END_TEST

START_TEST(unlike_adapters_are_counted)
{
	struct rig *rig = rig_new(tiny.folder, MODEL_F32, &kern_ref, 1);
	uint32_t tokens[4] = { 1, 2, 3, 4 };
	struct kv_seq kv[4] = { KV_SEQ_NULL, KV_SEQ_NULL, KV_SEQ_NULL, KV_SEQ_NULL };
	struct kern_result result[4];
	struct step_seq seqs[4];

	for (unsigned i = 0; i < 4; ++i) {
		ck_assert_int_eq(kv_reserve(rig->kv, &kv[i], 4), KV_OK);
		seqs[i] = rig_seq(tokens, 4, 0, &kv[i], &result[i]);
		seqs[i].adapter = weighted + i % 3;
		seqs[i].n_adapters = i < 3;
	}
	seqs[2].n_adapters = 0;
	ck_assert_int_eq(step_run(rig->step, seqs, 4), 0);
	ck_assert_uint_eq(step_last(rig->step)->adapters, 2);
	ck_assert_uint_eq(step_last(rig->step)->rows, 16);
	ck_assert_uint_eq(step_last(rig->step)->outputs, 4);
	ck_assert_msg(fabsf(result[0].logprob - result[3].logprob) > 0, "an adapter changes nothing");
	ck_assert_msg(!memcmp(&result[2].logprob, &result[3].logprob, sizeof(float)), "two bare requests differ");
	for (unsigned i = 0; i < 4; ++i)
		kv_drop(rig->kv, &kv[i]);
	rig_free(rig);
}
END_TEST

/* The strongest statement about adapters that needs no other program: x W + sum of s_i (x A_i) B_i = x (W + ...). */
START_TEST(adapters_equal_merged_weights)
{
	struct rig *rig = rig_new(tiny.folder, MODEL_F32, kern_cpu(kern_cpu_best()), 2), *merged;
	float adapted[N_TOKENS], expected[N_TOKENS], base[N_TOKENS], change = 0;
	uint32_t tokens[N_TOKENS];

	fill_tokens(tokens, N_TOKENS, 5);
	rig_score(rig, tokens, N_TOKENS, weighted, 3, N_TOKENS, adapted);
	rig_score(rig, tokens, N_TOKENS, NULL, 0, N_TOKENS, base);
	tiny_merge(&tiny, &loras[2], weighted[0].scale);
	tiny_merge(&tiny, &loras[0], weighted[1].scale);
	tiny_merge(&tiny, &loras[3], weighted[2].scale);
	tiny_write(&tiny, 1);
	merged = rig_new(tiny.folder, MODEL_F32, &kern_ref, 1);
	rig_score(merged, tokens, N_TOKENS, NULL, 0, N_TOKENS, expected);
	for (uint32_t i = 1; i < N_TOKENS; ++i) {
		ck_assert_msg(fabsf(adapted[i] - expected[i]) < 2e-3f, "token %u: %f, merged %f", i, (double)adapted[i],
			      (double)expected[i]);
		change += fabsf(adapted[i] - base[i]) / N_TOKENS;
	}
	ck_assert_msg(change > 0.1f, "the adapters change too little to tell: %f", (double)change);
	rig_free(merged);
	rig_free(rig);
}
END_TEST

/* A penalised token is less likely to be drawn: the tokens seen reach the sampler. */
START_TEST(tokens_seen_reach_the_sampler)
{
	struct rig *rig = rig_new(tiny.folder, MODEL_F32, &kern_ref, 1);
	uint32_t tokens[3] = { 7, 8, 9 };
	struct kern_result result[2];
	struct kv_seq kv = KV_SEQ_NULL;
	struct step_seq seq;

	ck_assert_int_eq(kv_reserve(rig->kv, &kv, 3), KV_OK);
	seq = rig_seq(tokens, 3, 0, &kv, &result[0]);
	ck_assert_int_eq(step_run(rig->step, &seq, 1), 0);
	seq.sampling.repetition_penalty = 50;
	seq.sampling.n_seen = 1;
	seq.sampling.seen = &result[0].token;
	seq.result = &result[1];
	ck_assert_int_eq(step_run(rig->step, &seq, 1), 0);
	ck_assert_uint_ne(result[0].token, result[1].token);
	kv_drop(rig->kv, &kv);
	rig_free(rig);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("model-step");
	TCase *tc = tcase_create("step");

	tcase_set_timeout(tc, 120);
	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_loop_test(tc, prefill_may_be_cut_anywhere, 0, _KERN_ISA_N);
	tcase_add_loop_test(tc, batch_equals_alone, 0, 4 * _KERN_ISA_N);
	tcase_add_loop_test(tc, batch_equals_alone_with_int8_keys, 0, _KERN_ISA_N);
	tcase_add_test(tc, unlike_adapters_are_counted);
	tcase_add_test(tc, adapters_equal_merged_weights);
	tcase_add_test(tc, tokens_seen_reach_the_sampler);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
