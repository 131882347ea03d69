/* SPDX-License-Identifier: MIT */
/*
 * What goes wrong under the cache: memory that is not there, at every place it is asked for, on all threads; images that are
 * damaged; and everything at once from many threads. Whatever happens, the counters agree with the copies in the end.
 */
#include "tests/unit/cache-rig.h"

#include <errno.h>
#include <stdatomic.h>

/* ---- allocations that fail ---- */

static _Atomic long fail_in = -1; /* allocations until one fails; negative: none does */

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t n, size_t bytes);
void *__real_aligned_alloc(size_t alignment, size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t bytes);

static bool fails(void)
{
	return atomic_load(&fail_in) >= 0 && atomic_fetch_sub(&fail_in, 1) == 0;
}

void *__wrap_malloc(size_t bytes)
{
	return fails() ? NULL : __real_malloc(bytes);
}

void *__wrap_calloc(size_t n, size_t bytes)
{
	return fails() ? NULL : __real_calloc(n, bytes);
}

void *__wrap_aligned_alloc(size_t alignment, size_t bytes)
{
	return fails() ? NULL : __real_aligned_alloc(alignment, bytes);
}

/* Room for three. */
static void setup(void)
{
	rig_open(REGION_BYTES, (struct cache_options){ .device_bytes = 3 * CHARGE });
	add_many(5);
}

/* One request's way; Check is not asked meanwhile, it allocates itself. Return: the first result that is not OK. */
static int use_once(uint64_t seed)
{
	const struct store_digest digest = test_digest(seed);
	struct cache_adapter *adapter = NULL;
	int r = cache_get(cache, &digest, &adapter);

	if (r)
		return r;
	r = hold(adapter, NULL);
	if (r == CACHE_OK)
		cache_unhold(cache, adapter);
	cache_put(cache, adapter);
	return r;
}

static int prefetch_once(uint64_t seed)
{
	const struct store_digest digest = test_digest(seed);
	int r;

	while ((r = cache_prefetch(cache, &digest, NULL)) == CACHE_E_PENDING)
		settle_loads();
	return r;
}

/* Fails the first allocation of a way, then the second ..., until it is through without one failing. Return: how many. */
static long fail_each(int (*way)(uint64_t seed))
{
	const struct store_digest digest = test_digest(1);

	for (long n = 0;; ++n) {
		bool failed;
		int r;

		cache_forget(cache, &digest);
		atomic_store(&fail_in, n);
		r = way(1);
		failed = atomic_exchange(&fail_in, -1) < 0;
		settle_loads();
		if (!failed) {
			ck_assert_int_eq(r, CACHE_OK);
			return n;
		}
		ck_assert_msg(r == CACHE_OK || r == -ENOMEM || r == CACHE_E_FAILED, "allocation %ld: %d", n, r);
		assert_consistent();
		ck_assert_int_eq(touch(2), CACHE_OK); /* others are not harmed */
		ck_assert_int_eq(touch(1), CACHE_OK); /* and the next attempt succeeds */
	}
}

START_TEST(every_allocation_may_fail)
{
	ck_assert_int_ge(fail_each(use_once), 3);
	ck_assert_int_ge(fail_each(prefetch_once), 3);
	assert_consistent();
}
END_TEST

/* The same for a version nobody has heard of yet, whose own memory cannot be had. */
START_TEST(a_new_version_may_fail)
{
	for (long n = 0; n < 4; ++n) {
		int r;

		atomic_store(&fail_in, n);
		r = use_once(3);
		atomic_store(&fail_in, -1);
		settle_loads();
		ck_assert_msg(r == CACHE_OK || r == -ENOMEM || r == CACHE_E_FAILED, "allocation %ld: %d", n, r);
		ck_assert_uint_le(stats().known, 1);
	}
	ck_assert_int_eq(touch(3), CACHE_OK);
	assert_consistent();
}
END_TEST

START_TEST(no_cache_without_memory)
{
	struct cache_options options = { .pool = pool };
	struct cache *none = NULL;
	int r;

	atomic_store(&fail_in, 0);
	r = cache_new(&none, &options);
	atomic_store(&fail_in, -1);
	ck_assert_int_eq(r, -ENOMEM);
	ck_assert_ptr_null(none);
}
END_TEST

/* ---- everything at once ---- */

enum { THREADS = 4, ADAPTERS = 10, DAMAGED = 11, ROUNDS = 250 };

static _Atomic unsigned n_failed, n_other;

static void use_at_random(uint64_t random)
{
	uint64_t seed = random % DAMAGED + 1;
	int r = use_once(seed);

	if (seed == DAMAGED)
		n_failed += r == CACHE_E_FAILED;
	else if (r != CACHE_OK && r != CACHE_E_NO_ROOM)
		++n_other;
}

static void disturb(uint64_t random)
{
	const struct store_digest digest = test_digest(random / 8 % ADAPTERS + 1);
	struct cache_adapter *adapter = NULL;

	switch (random % 8) {
	case 0:
		(void)cache_pin(cache, &digest, true);
		(void)cache_pin(cache, &digest, false);
		break;
	case 1:
		(void)cache_prefetch(cache, &digest, NULL);
		break;
	case 2:
		cache_forget(cache, &digest);
		break;
	case 3:
		(void)cache_shrink(cache, CHARGE, random / 8 % 2);
		break;
	default:
		if (cache_get(cache, &digest, &adapter) == CACHE_OK)
			(void)cache_want(cache, adapter, NULL);
		cache_note_tokens(adapter, 1);
		cache_put(cache, adapter);
	}
}

static void *churn(void *userdata)
{
	uint64_t x = (uintptr_t)userdata;

	for (unsigned i = 0; i < ROUNDS; ++i) {
		uint64_t random;

		test_fill(&random, sizeof(random), x * ROUNDS + i);
		random >>= 8;
		if (x == 0)
			disturb(random);
		else
			use_at_random(random);
	}
	return NULL;
}

START_TEST(all_at_once)
{
	pthread_t threads[THREADS];

	for (uint64_t i = 6; i <= DAMAGED; ++i) {
		char name[24];

		(void)snprintf(name, sizeof(name), "n%d", (int)i);
		add(name, i, test_geometry());
	}
	test_flip(store, test_chunk_offset(store, DAMAGED, 0) + 5000);
	for (uintptr_t i = 0; i < THREADS; ++i)
		ck_assert_int_eq(pthread_create(&threads[i], NULL, churn, (void *)i), 0);
	for (size_t i = 0; i < THREADS; ++i)
		pthread_join(threads[i], NULL);
	settle_loads();
	ck_assert_uint_gt(n_failed, 0);
	ck_assert_uint_eq(n_other, 0);
	assert_consistent();
	for (uint64_t i = 1; i <= ADAPTERS; ++i)
		ck_assert_int_eq(touch(i), CACHE_OK);
	assert_consistent();
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("cache-faults");
	TCase *tc = tcase_create("cache-faults");

	tcase_add_checked_fixture(tc, setup, rig_close);
	tcase_set_timeout(tc, 120);
	tcase_add_test(tc, every_allocation_may_fail);
	tcase_add_test(tc, a_new_version_may_fail);
	tcase_add_test(tc, no_cache_without_memory);
	tcase_add_test(tc, all_at_once);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
