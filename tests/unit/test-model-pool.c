/* SPDX-License-Identifier: MIT */
/* The pool against a model of one byte per page, with random traffic of both owners; and the KV cache on top of it. */
#include <check.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/model/kv.h"
#include "daemon/model/pool.h"
#include "tests/lib/run-suite.h"

enum { FREE = 0xff, RUNS_MAX = 4000 };

struct model {
	uint32_t n_pages;
	uint8_t owner[2048];
	struct pool_run run[RUNS_MAX];
	uint8_t run_owner[RUNS_MAX];
	uint32_t n_runs;
};

static uint64_t state = 88172645463325252ull;

static uint32_t below(uint32_t n)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (uint32_t)((state >> 16) % n);
}

/* The slow way. KV: first fit from below. Adapters: the shortest stretch, of equals the highest, its end. n_pages: none. */
static uint32_t expected_place(const struct model *m, enum pool_owner owner, uint32_t n)
{
	uint32_t place = m->n_pages, shortest = UINT32_MAX;

	for (uint32_t end, first = 0; first < m->n_pages; first = end + 1) {
		end = first;
		while (end < m->n_pages && m->owner[end] == FREE)
			++end;
		if (end - first < n || (owner == POOL_ADAPTERS && end - first > shortest))
			continue;
		if (owner == POOL_KV)
			return first;
		shortest = end - first;
		place = end - n;
	}
	return place;
}

static uint32_t longest_free(const struct model *m)
{
	uint32_t longest = 0, length = 0;

	for (uint32_t i = 0; i < m->n_pages; ++i) {
		length = m->owner[i] == FREE ? length + 1 : 0;
		longest = length > longest ? length : longest;
	}
	return longest;
}

static void allocate(struct pool *pool, struct model *m)
{
	enum pool_owner owner = below(2) ? POOL_KV : POOL_ADAPTERS;
	uint32_t n = owner == POOL_KV ? 6 : 1 + below(200), place = expected_place(m, owner, n);
	struct pool_run run = { 0 };
	int r = pool_alloc(pool, owner, n * POOL_PAGE - below(POOL_PAGE), &run);

	ck_assert_int_eq(r, place == m->n_pages ? POOL_E_FULL : POOL_OK);
	if (r)
		return;
	ck_assert_uint_eq(run.first, place);
	ck_assert_uint_eq(run.n_pages, n);
	memset(m->owner + place, (int)owner, n);
	m->run[m->n_runs] = run;
	m->run_owner[m->n_runs++] = (uint8_t)owner;
}

static void release(struct pool *pool, struct model *m, uint32_t i)
{
	pool_release(pool, m->run_owner[i], m->run[i]);
	memset(m->owner + m->run[i].first, FREE, m->run[i].n_pages);
	m->run[i] = m->run[--m->n_runs];
	m->run_owner[i] = m->run_owner[m->n_runs];
}

static void compare(const struct pool *pool, const struct model *m)
{
	size_t used[2] = { 0, 0 };

	for (uint32_t i = 0; i < m->n_pages; ++i)
		if (m->owner[i] != FREE)
			used[m->owner[i]] += POOL_PAGE;
	ck_assert_uint_eq(pool_used(pool, POOL_KV), used[POOL_KV]);
	ck_assert_uint_eq(pool_used(pool, POOL_ADAPTERS), used[POOL_ADAPTERS]);
	ck_assert_uint_eq(pool_largest_free(pool), (size_t)longest_free(m) * POOL_PAGE);
}

START_TEST(random_traffic_matches_model)
{
	static const uint32_t sizes[] = { 1, 63, 64, 65, 1000, 2048 };
	static struct model m;
	_cleanup_(pool_freep) struct pool *pool = NULL;

	m = (struct model){ .n_pages = sizes[_i] };
	memset(m.owner, FREE, sizeof(m.owner));
	ck_assert_int_eq(pool_new(&pool, (void *)(uintptr_t)(1u << 30), (size_t)m.n_pages * POOL_PAGE + 17), 0);
	ck_assert_uint_eq(pool_size(pool), (size_t)m.n_pages * POOL_PAGE);
	for (unsigned step = 0; step < 6000; ++step) {
		/* Waves of filling and draining, so that both a full and a scattered pool are seen. */
		if (m.n_runs == 0 || (m.n_runs < RUNS_MAX && below(100) < (step / 1000 % 2 ? 40u : 60u)))
			allocate(pool, &m);
		else
			release(pool, &m, below(m.n_runs));
		if (step % 16 == 0)
			compare(pool, &m);
	}
	while (m.n_runs > 0)
		release(pool, &m, 0);
	compare(pool, &m);
	ck_assert_uint_eq(pool_largest_free(pool), pool_size(pool));
}
END_TEST

START_TEST(double_release_is_caught)
{
	struct pool *pool = NULL;
	struct pool_run run;

	ck_assert_int_eq(pool_new(&pool, (void *)(uintptr_t)(1u << 30), 8 * POOL_PAGE), 0);
	ck_assert_int_eq(pool_alloc(pool, POOL_KV, 1, &run), POOL_OK);
	if (_i == 0)
		pool_release(pool, POOL_KV, run);
	pool_release(pool, _i == 0 ? POOL_KV : POOL_ADAPTERS, run); /* aborts */
}
END_TEST

START_TEST(block_tokens_waste_little)
{
	static const struct kv_shape shapes[] = {
		{ .n_layers = 30, .n_kv_heads = 3, .head_dim = 64, .dtype = KERN_BF16 },
		{ .n_layers = 30, .n_kv_heads = 3, .head_dim = 64, .dtype = KERN_F32 },
		{ .n_layers = 16, .n_kv_heads = 8, .head_dim = 64, .dtype = KERN_BF16 },
		{ .n_layers = 32, .n_kv_heads = 8, .head_dim = 128, .dtype = KERN_BF16 },
		{ .n_layers = 30, .n_kv_heads = 3, .head_dim = 64, .dtype = KERN_I8 },
	};
	static const uint32_t expected[] = { 48, 32, 16, 16, 64 };
	static const uint32_t part_lost[] = { 32, 32, 32, 32, 18 }; /* the last one's best */
	static const size_t token_bytes[] = { 768, 1536, 2048, 4096, 3 * (2 * 64 + 3 * 4) };
	_cleanup_(pool_freep) struct pool *pool = NULL;
	_cleanup_(kv_freep) struct kv *kv = NULL;
	const struct kv_shape *s = &shapes[_i];
	const struct kern_kv_layout *l;

	ck_assert_int_eq(pool_new(&pool, (void *)(uintptr_t)(1u << 30), 64 << 20), 0);
	ck_assert_int_eq(kv_new(&kv, pool, s), 0);
	l = kv_layout(kv);
	ck_assert_uint_eq(l->block_tokens, expected[_i]);
	ck_assert_uint_eq(l->layer_bytes, l->block_tokens * token_bytes[_i]);
	ck_assert_uint_ge(kv_block_bytes(kv), l->layer_bytes * s->n_layers);
	ck_assert_uint_le(kv_block_bytes(kv) * (part_lost[_i] - 1) / part_lost[_i], l->layer_bytes * s->n_layers);
}
END_TEST

START_TEST(reserve_takes_all_or_nothing)
{
	struct kv_shape shape = { .n_layers = 16, .n_kv_heads = 8, .head_dim = 64, .dtype = KERN_BF16 };
	_cleanup_(pool_freep) struct pool *pool = NULL;
	_cleanup_(kv_freep) struct kv *kv = NULL;
	struct kv_seq a = KV_SEQ_NULL, b = KV_SEQ_NULL;

	ck_assert_int_eq(pool_new(&pool, (void *)(uintptr_t)(1u << 30), 80 * POOL_PAGE), 0);
	ck_assert_int_eq(kv_new(&kv, pool, &shape), 0);
	ck_assert_uint_eq(kv_block_bytes(kv), 8 * POOL_PAGE);
	ck_assert_uint_eq(kv_max_tokens(kv), 160);

	ck_assert_int_eq(kv_reserve(kv, &a, 17), KV_OK);
	ck_assert_uint_eq(a.n_blocks, 2);
	ck_assert_int_eq(kv_reserve(kv, &a, 32), KV_OK);
	ck_assert_uint_eq(a.n_blocks, 2);
	ck_assert_ptr_eq(a.block[1], (void *)((uintptr_t)(1u << 30) + 8 * POOL_PAGE));
	ck_assert_int_eq(kv_reserve(kv, &b, 129), KV_E_FULL);
	ck_assert_uint_eq(b.n_blocks, 0);
	ck_assert_int_eq(kv_reserve(kv, &b, 128), KV_OK);
	ck_assert_int_eq(kv_reserve(kv, &a, 33), KV_E_FULL);
	ck_assert_uint_eq(a.n_blocks, 2);
	kv_drop(kv, &b);
	ck_assert_ptr_null(b.block);
	ck_assert_int_eq(kv_reserve(kv, &a, 160), KV_OK);
	kv_drop(kv, &a);
	ck_assert_uint_eq(pool_used(pool, POOL_KV), 0);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("model-pool");
	TCase *tc = tcase_create("pool");

	tcase_set_timeout(tc, 60);
	tcase_add_loop_test(tc, random_traffic_matches_model, 0, 6);
	tcase_add_loop_test_raise_signal(tc, double_release_is_caught, SIGABRT, 0, 2);
	tcase_add_loop_test(tc, block_tokens_waste_little, 0, 5);
	tcase_add_test(tc, reserve_takes_all_or_nothing);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
