/* SPDX-License-Identifier: MIT */
/* Adapter residency: joined page-ins, holds and references, eviction, failures, and many threads at once. */
#include "tests/unit/cache-rig.h"

/* Room for three. */
static void setup(void)
{
	rig_open(REGION_BYTES, (struct cache_options){ .device_bytes = 3 * CHARGE });
}

START_TEST(a_hold_brings_it_in)
{
	struct cache_adapter *one, *same;

	add("a", 1, test_geometry());
	ck_assert_int_eq(state_of(1), CACHE_STORE);
	one = get(1);
	same = get(1);
	ck_assert_ptr_eq(one, same);
	ck_assert_int_eq(hold(one, NULL), CACHE_OK);
	ck_assert_int_eq(cache_hold(cache, same, NULL), CACHE_OK);
	ck_assert_int_eq(state_of(1), CACHE_DEVICE);
	assert_content(one, 1);
	ck_assert_uint_gt(cache_load_ns(one), 0);
	cache_unhold(cache, one);
	cache_unhold(cache, same);
	cache_put(cache, one);
	cache_put(cache, same);
	ck_assert_int_eq(state_of(1), CACHE_DEVICE);
	ck_assert_int_eq(touch(1), CACHE_OK);
	ck_assert_uint_eq(stats().loads, 1);
	ck_assert_uint_eq(stats().misses, 2);
	ck_assert_uint_eq(stats().tier[CACHE_TIER_DEVICE].hits, 1);
}
END_TEST

START_TEST(least_recently_used_goes_first)
{
	add_many(4);
	for (uint64_t i = 1; i <= 3; ++i)
		ck_assert_int_eq(touch(i), CACHE_OK);
	ck_assert_int_eq(touch(1), CACHE_OK);
	ck_assert_int_eq(touch(4), CACHE_OK);
	ck_assert_int_eq(state_of(1), CACHE_DEVICE);
	ck_assert_int_eq(state_of(2), CACHE_STORE);
	ck_assert_int_eq(state_of(3), CACHE_DEVICE);
	ck_assert_uint_eq(evictions(), 1);
	ck_assert_uint_eq(stats().tier[CACHE_TIER_DEVICE].bytes, 3 * CHARGE);
	ck_assert_uint_eq(pool_used(pool, POOL_ADAPTERS), 3 * CHARGE);
}
END_TEST

START_TEST(what_is_held_or_pinned_stays)
{
	const struct store_digest digest = test_digest(3);
	struct cache_adapter *held[2], *more;
	struct diag diag = { "" };

	add_many(4);
	for (uint64_t i = 0; i < 2; ++i) {
		held[i] = get(i + 1);
		ck_assert_int_eq(hold(held[i], NULL), CACHE_OK);
	}
	ck_assert_int_eq(cache_pin(cache, &digest, true), CACHE_OK);
	ck_assert(cache_is_pinned(cache, &digest));
	ck_assert_int_eq(touch(3), CACHE_OK);
	more = get(4);
	ck_assert_int_eq(cache_hold(cache, more, &diag), CACHE_E_NO_ROOM);
	ck_assert_str_ne(diag.text, "");
	ck_assert(!cache_shrink(cache, 1, 0));
	for (uint64_t i = 0; i < 2; ++i)
		assert_content(held[i], i + 1);
	ck_assert_int_eq(cache_pin(cache, &digest, false), CACHE_OK);
	ck_assert_int_eq(hold(more, NULL), CACHE_OK);
	ck_assert_int_eq(state_of(3), CACHE_STORE);
	for (uint64_t i = 0; i < 2; ++i) {
		cache_unhold(cache, held[i]);
		cache_put(cache, held[i]);
	}
	cache_unhold(cache, more);
	cache_put(cache, more);
	ck_assert(cache_shrink(cache, 2 * CHARGE, 0));
	ck_assert_uint_eq(stats().tier[CACHE_TIER_DEVICE].adapters, 1);
}
END_TEST

START_TEST(a_failure_is_told_to_those_who_waited)
{
	struct cache_adapter *waiting[2];
	struct diag diag = { "" };
	uint64_t at;

	add("a", 1, test_geometry());
	at = test_chunk_offset(store, 1, 0) + 5000;
	test_flip(store, at);
	waiting[0] = get(1);
	waiting[1] = get(1);
	ck_assert_int_eq(cache_hold(cache, waiting[0], NULL), CACHE_E_PENDING);
	ck_assert_int_eq(hold(waiting[0], &diag), CACHE_E_FAILED);
	ck_assert_ptr_nonnull(strstr(diag.text, "checksum"));
	ck_assert_int_eq(hold(waiting[1], &diag), CACHE_E_FAILED);
	ck_assert_uint_eq(stats().failures, 1);
	ck_assert_uint_eq(pool_used(pool, POOL_ADAPTERS), 0);
	cache_put(cache, waiting[0]);
	cache_put(cache, waiting[1]);
	/* repaired: the next one tries again */
	test_flip(store, at);
	ck_assert_int_eq(touch(1), CACHE_OK);
}
END_TEST

START_TEST(removal_spares_those_who_use_it)
{
	const struct store_digest digest = test_digest(1);
	struct cache_adapter *user, *late = NULL;

	add("a", 1, test_geometry());
	user = get(1);
	ck_assert_int_eq(store_remove(store, "a"), 0);
	ck_assert_int_eq(hold(user, NULL), CACHE_OK);
	assert_content(user, 1);
	cache_unhold(cache, user);
	cache_put(cache, user);
	add("b", 2, test_geometry());
	ck_assert_int_eq(cache_get(cache, &digest, &late), CACHE_E_NOT_FOUND);
	ck_assert_int_eq(cache_prefetch(cache, &digest, NULL), CACHE_E_NOT_FOUND);
}
END_TEST

START_TEST(what_never_fits_is_refused)
{
	struct image_geometry other = *test_geometry();
	struct cache_adapter *adapter;
	struct diag diag = { "" };

	other.hidden = 128;
	other.head_dim = 32;
	add("a", 1, &other);
	ck_assert_int_eq(state_of(1), CACHE_UNFIT);
	adapter = get(1);
	ck_assert_int_eq(cache_hold(cache, adapter, &diag), CACHE_E_UNFIT);
	cache_put(cache, adapter);
	ck_assert_int_eq(test_put(store, "b", 2, 4 * CHARGE, false, NULL), 0);
	adapter = get(2);
	ck_assert_int_eq(cache_hold(cache, adapter, &diag), CACHE_E_TOO_LARGE);
	ck_assert_str_ne(diag.text, "");
	cache_put(cache, adapter);
	/* a payload whose sums are right, but which is no image of this model */
	ck_assert_int_eq(test_put(store, "c", 3, CHARGE, false, NULL), 0);
	adapter = get(3);
	ck_assert_int_eq(hold(adapter, &diag), CACHE_E_FAILED);
	cache_put(cache, adapter);
}
END_TEST

START_TEST(a_prefetch_needs_nobody)
{
	const struct store_digest digest = test_digest(1);
	int r;

	add("a", 1, test_geometry());
	ck_assert_int_eq(cache_prefetch(cache, &digest, NULL), CACHE_E_PENDING);
	do
		r = cache_prefetch(cache, &digest, NULL);
	while (r == CACHE_E_PENDING);
	ck_assert_int_eq(r, CACHE_OK);
	ck_assert_int_eq(touch(1), CACHE_OK);
	ck_assert_uint_eq(stats().loads, 1);
	ck_assert_uint_eq(stats().tier[CACHE_TIER_DEVICE].hits, 1);
}
END_TEST

/* ---- many threads ---- */

enum { THREADS = 4, ADAPTERS = 12, ROUNDS = 300 };

static void *use_at_random(void *userdata)
{
	uint64_t x = (uintptr_t)userdata;

	for (unsigned i = 0; i < ROUNDS; ++i) {
		uint64_t seed;
		int r;

		test_fill(&seed, sizeof(seed), x * ROUNDS + i);
		seed = seed % ADAPTERS + 1;
		r = touch(seed);
		ck_assert_msg(r == CACHE_OK || r == CACHE_E_NO_ROOM, "%d", r);
	}
	return NULL;
}

START_TEST(threads_fault_and_evict)
{
	pthread_t threads[THREADS];
	struct cache_stats s;

	add_many(ADAPTERS);
	for (uintptr_t i = 0; i < THREADS; ++i)
		ck_assert_int_eq(pthread_create(&threads[i], NULL, use_at_random, (void *)i), 0);
	for (size_t i = 0; i < THREADS; ++i)
		pthread_join(threads[i], NULL);
	s = stats();
	ck_assert_uint_le(s.tier[CACHE_TIER_DEVICE].adapters, 3);
	ck_assert_uint_eq(s.loading, 0);
	ck_assert_uint_eq(s.failures, 0);
	ck_assert_uint_eq(s.tier[CACHE_TIER_DEVICE].hits + s.misses, THREADS * ROUNDS);
	ck_assert_uint_eq(s.loads, cache_evictions(&s) + s.tier[CACHE_TIER_DEVICE].adapters);
}
END_TEST

static void *hold_once(void *userdata)
{
	struct cache_adapter *adapter = userdata;

	ck_assert_int_eq(hold(adapter, NULL), CACHE_OK);
	return NULL;
}

START_TEST(faults_for_one_version_join)
{
	pthread_t threads[THREADS];
	struct cache_adapter *adapter;

	add("a", 1, test_geometry());
	adapter = get(1);
	for (size_t i = 0; i < THREADS; ++i)
		ck_assert_int_eq(pthread_create(&threads[i], NULL, hold_once, adapter), 0);
	for (size_t i = 0; i < THREADS; ++i)
		pthread_join(threads[i], NULL);
	ck_assert_uint_eq(stats().loads, 1);
	for (size_t i = 0; i < THREADS; ++i)
		cache_unhold(cache, adapter);
	cache_put(cache, adapter);
}
END_TEST

static Suite *suite(void)
{
	Suite *s = suite_create("cache");
	TCase *tc = tcase_create("cache");

	tcase_set_timeout(tc, 120);
	tcase_add_checked_fixture(tc, setup, rig_close);
	tcase_add_test(tc, a_hold_brings_it_in);
	tcase_add_test(tc, least_recently_used_goes_first);
	tcase_add_test(tc, what_is_held_or_pinned_stays);
	tcase_add_test(tc, a_failure_is_told_to_those_who_waited);
	tcase_add_test(tc, removal_spares_those_who_use_it);
	tcase_add_test(tc, what_never_fits_is_refused);
	tcase_add_test(tc, a_prefetch_needs_nobody);
	tcase_add_test(tc, threads_fault_and_evict);
	tcase_add_test(tc, faults_for_one_version_join);
	suite_add_tcase(s, tc);
	return s;
}

int main(void)
{
	return run_suite(suite());
}
