/* SPDX-License-Identifier: MIT */
/* What requests ask for turn by turn: stamps, lookahead and its bound, and the pool shared with the KV cache by age. */
#include "tests/unit/cache-rig.h"

#include <unistd.h>

#include "daemon/base/clock.h"

/* The other side of the pool, as yield() sees it. */
static struct {
	unsigned asked;
	size_t bytes;
	uint64_t idle_ns;
	struct pool_run run[8]; /* what it can give, last first */
	unsigned n;
	uint64_t unused_ns;     /* for how long all of it was */
} kv_side;

static bool yield(void *userdata, size_t bytes, uint64_t idle_ns)
{
	(void)userdata;
	++kv_side.asked;
	kv_side.bytes = bytes;
	kv_side.idle_ns = idle_ns;
	if (!kv_side.n || kv_side.unused_ns <= idle_ns)
		return false;
	pool_release(pool, POOL_KV, kv_side.run[--kv_side.n]);
	return true;
}

static void setup(void)
{
	memset(&kv_side, 0, sizeof(kv_side));
	rig_open(3 * CHARGE, (struct cache_options){
				     .device_bytes = 3 * CHARGE, .lookahead_bytes = 2 * CHARGE, .yield = yield });
	add_many(6);
}

static int want(struct cache_adapter *adapter)
{
	return cache_want(cache, adapter, NULL);
}

static void get_all(struct cache_adapter **ret, unsigned n)
{
	for (unsigned i = 0; i < n; ++i)
		ret[i] = get(i + 1);
}

static void put_all(struct cache_adapter **adapters, unsigned n)
{
	for (unsigned i = 0; i < n; ++i)
		cache_put(cache, adapters[i]);
}

/* Who asked earlier in a turn keeps what it asked for; in the next turn the order counts anew. */
START_TEST(the_nearer_keeps_it)
{
	struct cache_adapter *a[4];

	get_all(a, 4);
	for (unsigned i = 0; i < 3; ++i) {
		cache_begin_turn(cache);
		ck_assert_int_eq(want(a[i]), CACHE_E_PENDING);
		settle_loads();
	}
	cache_begin_turn(cache);
	for (unsigned i = 0; i < 3; ++i)
		ck_assert_int_eq(want(a[i]), CACHE_OK);
	ck_assert_int_eq(want(a[3]), CACHE_E_NO_ROOM);
	ck_assert_int_eq(cache_hold(cache, a[3], NULL), CACHE_E_NO_ROOM);
	ck_assert_uint_eq(evictions(), 0);
	/* now the fourth is the nearest: it may take from those behind it */
	cache_begin_turn(cache);
	ck_assert_int_eq(want(a[3]), CACHE_E_PENDING);
	ck_assert_uint_eq(evictions(), 1);
	put_all(a, 4);
}
END_TEST

/* A stamp is a request's: it goes with the last reference, even within the turn. */
START_TEST(a_stamp_ends_with_its_request)
{
	struct cache_adapter *a[4];

	get_all(a, 4);
	cache_begin_turn(cache);
	for (unsigned i = 0; i < 3; ++i) {
		(void)want(a[i]);
		settle_loads();
	}
	ck_assert_int_eq(want(a[3]), CACHE_E_NO_ROOM);
	cache_put(cache, a[1]);
	ck_assert_int_eq(want(a[3]), CACHE_E_PENDING);
	ck_assert_int_eq(state_of(2), CACHE_STORE);
	cache_put(cache, a[0]);
	cache_put(cache, a[2]);
	cache_put(cache, a[3]);
}
END_TEST

/* An administrator's prefetch takes nothing that requests asked for in the turn before. */
START_TEST(a_prefetch_spares_the_last_turn)
{
	const struct store_digest digest = test_digest(4);
	struct cache_adapter *a[3];

	get_all(a, 3);
	cache_begin_turn(cache);
	for (unsigned i = 0; i < 3; ++i) {
		(void)want(a[i]);
		settle_loads();
	}
	cache_begin_turn(cache);
	ck_assert_int_eq(cache_prefetch(cache, &digest, NULL), CACHE_E_NO_ROOM);
	cache_begin_turn(cache);
	ck_assert_int_eq(cache_prefetch(cache, &digest, NULL), CACHE_E_PENDING);
	put_all(a, 3);
}
END_TEST

/* Lookahead stops at its bound, demand does not. The pager is busy with something slow meanwhile. */
START_TEST(lookahead_is_bounded)
{
	struct cache_adapter *a[3], *large;

	cache_free(cache);
	pool_free(pool);
	ck_assert_int_eq(pool_new(&pool, (void *)(((uintptr_t)region + (2u << 20) - 1) & ~(uintptr_t)((2u << 20) - 1)),
				  REGION_BYTES), 0);
	ck_assert_int_eq(cache_new(&cache, &(struct cache_options){ .store = store, .pager = pager, .pool = pool,
			.device_bytes = REGION_BYTES, .geometry = *test_geometry(), .changed = on_changed,
			.lookahead_bytes = 16u << 20 }), 0);
	ck_assert_int_eq(test_put(store, "large", 9, 20u << 20, false, NULL), 0);
	large = get(9);
	get_all(a, 3);
	cache_begin_turn(cache);
	ck_assert_int_eq(want(large), CACHE_E_PENDING); /* the first may be larger than the bound */
	ck_assert_int_eq(want(a[0]), CACHE_E_LATER);
	ck_assert_int_eq(state_of(1), CACHE_STORE);
	ck_assert_int_eq(cache_hold(cache, a[1], NULL), CACHE_E_PENDING);
	settle_loads();
	ck_assert_int_eq(want(a[0]), CACHE_E_PENDING);
	settle_loads();
	cache_put(cache, large);
	put_all(a, 3);
}
END_TEST

/* Wanting does not use up the news of a failure. */
START_TEST(a_wish_leaves_the_failure_to_be_told)
{
	struct cache_adapter *adapter;
	struct diag diag = { "" };

	test_flip(store, test_chunk_offset(store, 1, 0) + 5000);
	adapter = get(1);
	cache_begin_turn(cache);
	ck_assert_int_eq(want(adapter), CACHE_E_PENDING);
	settle_loads();
	ck_assert_int_eq(want(adapter), CACHE_E_FAILED);
	ck_assert_int_eq(want(adapter), CACHE_E_FAILED);
	ck_assert_int_eq(cache_hold(cache, adapter, &diag), CACHE_E_FAILED);
	ck_assert_ptr_nonnull(strstr(diag.text, "checksum"));
	ck_assert_int_eq(want(adapter), CACHE_E_PENDING); /* told: a new attempt */
	settle_loads();
	cache_put(cache, adapter);
}
END_TEST

static void take_for_kv(unsigned n)
{
	for (unsigned i = 0; i < n; ++i)
		ck_assert_int_eq(pool_alloc(pool, POOL_KV, CHARGE, &kv_side.run[kv_side.n++]), POOL_OK);
}

/* Whoever was idle for longer gives way. */
START_TEST(age_decides_between_adapters_and_kv)
{
	ck_assert_int_eq(touch(1), CACHE_OK);
	take_for_kv(2);
	usleep(2000);
	kv_side.unused_ns = 1; /* just used: the adapter goes */
	ck_assert_int_eq(touch(2), CACHE_OK);
	ck_assert_uint_ge(kv_side.asked, 1);
	ck_assert_uint_eq(kv_side.bytes, CHARGE);
	ck_assert_uint_ge(kv_side.idle_ns, 2000000);
	ck_assert_uint_eq(kv_side.n, 2);
	ck_assert_int_eq(state_of(1), CACHE_STORE);
	kv_side.unused_ns = UINT64_C(1) << 60; /* old: it goes first */
	ck_assert_int_eq(touch(3), CACHE_OK);
	ck_assert_uint_eq(kv_side.n, 1);
	ck_assert_int_eq(state_of(2), CACHE_DEVICE);
	ck_assert_uint_eq(stats().tier[CACHE_TIER_DEVICE].evictions[CACHE_FOR_ADAPTER], 1);
	pool_release(pool, POOL_KV, kv_side.run[--kv_side.n]);
}
END_TEST

/* With no victim of its own the cache takes whatever the other side has. */
START_TEST(without_a_victim_anything_is_asked_for)
{
	struct cache_adapter *a[2];

	get_all(a, 2);
	ck_assert_int_eq(hold(a[0], NULL), CACHE_OK);
	take_for_kv(2);
	kv_side.unused_ns = 1;
	ck_assert_int_eq(hold(a[1], NULL), CACHE_OK);
	ck_assert_uint_eq(kv_side.idle_ns, 0);
	ck_assert_uint_eq(kv_side.n, 1);
	pool_release(pool, POOL_KV, kv_side.run[--kv_side.n]);
	cache_unhold(cache, a[0]);
	cache_unhold(cache, a[1]);
	put_all(a, 2);
}
END_TEST

START_TEST(shrinks_by_age)
{
	struct cache_adapter *stamped;
	uint64_t idle;

	ck_assert_uint_eq(cache_idle_ns(cache, clock_ns()), 0);
	ck_assert(!cache_shrink(cache, 1, 0));
	ck_assert_int_eq(touch(1), CACHE_OK);
	ck_assert_int_eq(touch(2), CACHE_OK);
	usleep(2000);
	idle = cache_idle_ns(cache, clock_ns());
	ck_assert_uint_ge(idle, 2000000);
	ck_assert(!cache_shrink(cache, CHARGE, idle + NS_PER_S * 60));
	ck_assert(cache_shrink(cache, CHARGE, 1000000));
	ck_assert_int_eq(state_of(1), CACHE_STORE);
	ck_assert_int_eq(state_of(2), CACHE_DEVICE);
	/* what was asked for in this turn goes for nothing but a running request's need */
	stamped = get(2);
	cache_begin_turn(cache);
	ck_assert_int_eq(want(stamped), CACHE_OK);
	ck_assert(!cache_shrink(cache, CHARGE, 1));
	ck_assert_uint_eq(cache_idle_ns(cache, clock_ns()), 0);
	ck_assert(cache_shrink(cache, CHARGE, 0));
	ck_assert_uint_eq(stats().tier[CACHE_TIER_DEVICE].evictions[CACHE_FOR_KV], 2);
	cache_put(cache, stamped);
}
END_TEST

/* ---- counters ---- */

static void count(void *userdata, const struct cache_info *info)
{
	unsigned *n = userdata;

	n[0]++;
	n[1] += info->state == CACHE_DEVICE;
}

START_TEST(counters_outlive_memory)
{
	const struct store_digest first = test_digest(1), unknown = test_digest(77);
	struct cache_info info;
	struct cache_adapter *adapter;
	unsigned n[2] = { 0 };

	for (uint64_t i = 1; i <= 5; ++i)
		ck_assert_int_eq(touch(i), CACHE_OK);
	ck_assert(cache_read_info(cache, &first, &info));
	ck_assert_int_eq(info.state, CACHE_STORE);
	ck_assert_uint_eq(info.requests, 1);
	adapter = get(1);
	ck_assert_int_eq(hold(adapter, NULL), CACHE_OK);
	cache_note_tokens(adapter, 7);
	cache_note_tokens(adapter, 5);
	ck_assert(cache_read_info(cache, &first, &info));
	ck_assert_int_eq(info.state, CACHE_DEVICE);
	ck_assert_uint_eq(info.requests, 2);
	ck_assert_uint_eq(info.loads, 2);
	ck_assert_uint_eq(info.tokens, 12);
	ck_assert_uint_eq(info.bytes, CHARGE);
	ck_assert_uint_eq(info.references, 1);
	ck_assert_uint_eq(info.holds, 1);
	ck_assert_uint_le((uint64_t)time(NULL) - info.last_use, 10);
	ck_assert(!cache_read_info(cache, &unknown, &info));
	cache_each(cache, count, n);
	ck_assert_uint_eq(n[0], 5);
	ck_assert_uint_eq(n[1], 3);
	ck_assert_uint_eq(stats().known, 5);
	ck_assert_uint_eq(stats().page_in.n, 6);
	cache_unhold(cache, adapter);
	cache_put(cache, adapter);
}
END_TEST

/* Without a name it goes once nobody uses it; who asks again keeps it. */
START_TEST(the_forgotten_go)
{
	const struct store_digest first = test_digest(1), second = test_digest(2);
	struct cache_adapter *adapter;

	ck_assert_int_eq(touch(1), CACHE_OK);
	ck_assert_int_eq(cache_pin(cache, &first, true), CACHE_OK);
	cache_forget(cache, &first);
	ck_assert_int_eq(state_of(1), CACHE_STORE);
	adapter = get(2);
	ck_assert_int_eq(hold(adapter, NULL), CACHE_OK);
	cache_forget(cache, &second);
	ck_assert_int_eq(state_of(2), CACHE_DEVICE);
	cache_unhold(cache, adapter);
	ck_assert_int_eq(state_of(2), CACHE_DEVICE);
	cache_put(cache, adapter);
	ck_assert_int_eq(state_of(2), CACHE_STORE);
	ck_assert_uint_eq(stats().tier[CACHE_TIER_DEVICE].evictions[CACHE_FORGOTTEN], 2);
	ck_assert_int_eq(touch(2), CACHE_OK);
	ck_assert_int_eq(state_of(2), CACHE_DEVICE);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("cache-turn");
	TCase *tc = tcase_create("cache-turn");

	tcase_add_checked_fixture(tc, setup, rig_close);
	tcase_set_timeout(tc, 60);
	tcase_add_test(tc, the_nearer_keeps_it);
	tcase_add_test(tc, a_stamp_ends_with_its_request);
	tcase_add_test(tc, a_prefetch_spares_the_last_turn);
	tcase_add_test(tc, lookahead_is_bounded);
	tcase_add_test(tc, a_wish_leaves_the_failure_to_be_told);
	tcase_add_test(tc, age_decides_between_adapters_and_kv);
	tcase_add_test(tc, without_a_victim_anything_is_asked_for);
	tcase_add_test(tc, shrinks_by_age);
	tcase_add_test(tc, counters_outlive_memory);
	tcase_add_test(tc, the_forgotten_go);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
