/* SPDX-License-Identifier: MIT */
/* A cache of one tier, as on a CPU: the pager reads to where the ops would read. */
#ifndef LORAD_TESTS_CACHE_RIG_H
#define LORAD_TESTS_CACHE_RIG_H

#include "tests/unit/cache-util.h"

/* Store, pager, pool of pool_bytes, and a cache with these options; what is not given is filled in. */
static inline void rig_open(size_t pool_bytes, struct cache_options options)
{
	struct pager_options pager_options = {};

	folder = test_folder();
	store = test_open(folder);
	region = mmap(NULL, 2 * REGION_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ck_assert_ptr_ne(region, MAP_FAILED);
	ck_assert_int_eq(pool_new(&pool, (void *)(((uintptr_t)region + (2u << 20) - 1) & ~(uintptr_t)((2u << 20) - 1)),
				  pool_bytes), 0);
	pager_options.region = region;
	pager_options.region_bytes = 2 * REGION_BYTES;
	ck_assert_int_eq(pager_new(&pager, store, &pager_options), 0);
	options.store = store;
	options.pager = pager;
	options.pool = pool;
	options.geometry = *test_geometry();
	options.changed = on_changed;
	ck_assert_int_eq(cache_new(&cache, &options), 0);
}

static inline void rig_close(void)
{
	pager_free(pager);
	cache_free(cache);
	ck_assert_uint_eq(pool_used(pool, POOL_ADAPTERS), 0);
	pool_free(pool);
	munmap(region, 2 * REGION_BYTES);
	store_close(store);
	test_folder_free(folder);
}

static inline void add_many(uint64_t n)
{
	for (uint64_t i = 1; i <= n; ++i) {
		char name[24];

		(void)snprintf(name, sizeof(name), "n%d", (int)i);
		add(name, i, test_geometry());
	}
}

/* Without a turn of its own, as a pager that ends on another thread: until nothing is under way. */
static inline void settle_loads(void)
{
	struct cache_stats s;

	do
		cache_read_stats(cache, &s);
	while (s.loading > 0);
}

static inline void sum_up(void *userdata, const struct cache_info *info)
{
	struct cache_tier_stats *sum = userdata;

	if (info->state == CACHE_DEVICE) {
		sum->bytes += info->bytes;
		++sum->adapters;
	}
}

/* Nothing is under way: the counters agree with the copies there are, and with the pool. */
static inline void assert_consistent(void)
{
	struct cache_tier_stats sum = { 0 };
	struct cache_stats s;

	cache_read_stats(cache, &s);
	cache_each(cache, sum_up, &sum);
	ck_assert_uint_eq(s.loading, 0);
	ck_assert_uint_eq(s.tier[CACHE_TIER_DEVICE].adapters, sum.adapters);
	ck_assert_uint_eq(s.tier[CACHE_TIER_DEVICE].bytes, sum.bytes);
	ck_assert_uint_eq(pool_used(pool, POOL_ADAPTERS), sum.bytes);
	ck_assert_uint_eq(s.loads, sum.adapters + cache_evictions(&s));
}

#endif
