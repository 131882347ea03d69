/* SPDX-License-Identifier: MIT */
/* One pool for KV blocks and adapters: each fills it in turn, and no restart lies between. */
#include "tests/unit/cache-rig.h"

#include "daemon/base/clock.h"
#include "daemon/model/kv.h"

#define POOL_BYTES ((size_t)8 << 20)
#define ADAPTERS 100u
#define SEQS 80u
#define SEQ_BLOCKS 2u

/* Keys and values that nobody uses now but may again, as a prefix cache keeps them; oldest first. */
static struct {
	struct kv *kv;
	struct kv_seq seq[SEQS];
	uint64_t used_ns[SEQS];
	unsigned first, end;
} kept;

static bool yield(void *userdata, size_t bytes, uint64_t idle_ns)
{
	size_t given = 0;

	(void)userdata;
	while (given < bytes && kept.first < kept.end && clock_ns() - kept.used_ns[kept.first] > idle_ns) {
		given += kept.seq[kept.first].n_blocks * kv_block_bytes(kept.kv);
		kv_drop(kept.kv, &kept.seq[kept.first++]);
	}
	return given > 0;
}

static void setup(void)
{
	const struct kv_shape shape = { .n_layers = 2, .n_kv_heads = 2, .head_dim = 64, .dtype = KERN_F32 };

	memset(&kept, 0, sizeof(kept));
	rig_open(POOL_BYTES, (struct cache_options){ .device_bytes = POOL_BYTES, .yield = yield });
	ck_assert_int_eq(kv_new(&kept.kv, pool, &shape), 0);
	for (uint64_t i = 1; i <= ADAPTERS; ++i) {
		char name[24];

		(void)snprintf(name, sizeof(name), "n%d", (int)i);
		add_of_rank(name, i, test_geometry(), 8u << i % 8); /* 1 to 9 pages */
	}
}

static void teardown(void)
{
	while (kept.first < kept.end)
		kv_drop(kept.kv, &kept.seq[kept.first++]);
	kv_free(kept.kv);
	ck_assert_uint_eq(pool_used(pool, POOL_KV), 0);
	rig_close();
}

/* Requests that run one after the other and leave their blocks behind, as the engine does it: unused adapters give way. */
static void fill_with_kv(void)
{
	uint32_t tokens = SEQ_BLOCKS * kv_layout(kept.kv)->block_tokens;

	kept.first = kept.end = 0;
	while (kept.end < SEQS && pool_used(pool, POOL_KV) < POOL_BYTES / 10 * 9) {
		struct kv_seq *seq = &kept.seq[kept.end];
		int r;

		while ((r = kv_reserve(kept.kv, seq, tokens)) == KV_E_FULL)
			ck_assert(cache_shrink(cache, kv_block_bytes(kept.kv), 1));
		ck_assert_int_eq(r, KV_OK);
		kept.used_ns[kept.end++] = clock_ns();
	}
	ck_assert_uint_ge(pool_used(pool, POOL_KV), POOL_BYTES / 10 * 9);
}

static void fill_with_adapters(void)
{
	size_t most = 0;

	for (uint64_t i = 1; i <= ADAPTERS; ++i) {
		struct cache_adapter *adapter = get(i);

		ck_assert_int_eq(hold(adapter, NULL), CACHE_OK);
		cache_unhold(cache, adapter);
		cache_put(cache, adapter);
		if (pool_used(pool, POOL_ADAPTERS) > most)
			most = pool_used(pool, POOL_ADAPTERS);
	}
	ck_assert_uint_ge(most, POOL_BYTES / 10 * 9);
}

START_TEST(each_fills_the_pool_in_turn)
{
	for (unsigned round = 0; round < 3; ++round) {
		fill_with_kv();
		ck_assert_uint_le(pool_used(pool, POOL_ADAPTERS), POOL_BYTES / 10);
		fill_with_adapters();
		ck_assert_uint_le(pool_used(pool, POOL_KV), POOL_BYTES / 10);
		assert_consistent();
	}
	fill_with_kv();
	ck_assert_uint_gt(stats().tier[CACHE_TIER_DEVICE].evictions[CACHE_FOR_KV], 0);
}
END_TEST

/* What is in use by either side stays: both then say that there is no room, and get it once something is let go. */
START_TEST(what_is_used_stays)
{
	struct cache_adapter *held = get(1), *other = get(2);
	uint32_t tokens = SEQ_BLOCKS * kv_layout(kept.kv)->block_tokens;
	struct kv_seq running[SEQS] = { 0 };
	unsigned n = 0;

	ck_assert_int_eq(hold(held, NULL), CACHE_OK);
	while (n < SEQS && kv_reserve(kept.kv, &running[n], tokens) == KV_OK)
		++n;
	while (n < SEQS && kv_reserve(kept.kv, &running[n], 1) == KV_OK)
		++n;
	ck_assert_uint_lt(n, SEQS);
	ck_assert(!cache_shrink(cache, 1, 0));
	ck_assert_int_eq(hold(other, NULL), CACHE_E_NO_ROOM);
	ck_assert_int_eq(state_of(1), CACHE_DEVICE);
	kv_drop(kept.kv, &running[--n]);
	kv_drop(kept.kv, &running[--n]);
	ck_assert_int_eq(hold(other, NULL), CACHE_OK);
	for (n = 0; n < SEQS; ++n) /* those that got nothing, too */
		kv_drop(kept.kv, &running[n]);
	cache_unhold(cache, held);
	cache_unhold(cache, other);
	cache_put(cache, held);
	cache_put(cache, other);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("cache-share");
	TCase *tc = tcase_create("cache-share");

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 120);
	tcase_add_test(tc, each_fills_the_pool_in_turn);
	tcase_add_test(tc, what_is_used_stays);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
