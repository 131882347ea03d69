/* SPDX-License-Identifier: MIT */
/* What the tests of the cache share: a store of small adapters, and the step loop's way to hold one. */
#ifndef LORAD_TESTS_CACHE_UTIL_H
#define LORAD_TESTS_CACHE_UTIL_H

#include "tests/unit/store-util.h"

#include <pthread.h>
#include <sys/mman.h>

#include "daemon/cache/cache.h"
#include "kernels/kernels.h"
#include "tests/lib/run-suite.h"

#define REGION_BYTES ((size_t)32 << 20)
#define RANK 8u
#define CHARGE ((size_t)POOL_PAGE) /* what one of these small adapters takes */

static char *folder;
static struct store *store;
static uint8_t *region;
static struct pool *pool;
static struct pager *pager;
static struct cache *cache;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t moved = PTHREAD_COND_INITIALIZER;
static unsigned changes;

/* What a device address is in host memory: the same on the CPU. */
static const void *(*seen_by_host)(const void *device);

static inline void on_changed(void *userdata)
{
	(void)userdata;
	pthread_mutex_lock(&lock);
	++changes;
	pthread_cond_broadcast(&moved);
	pthread_mutex_unlock(&lock);
}

/* An adapter of one module; every number of its A is the seed. */
static inline void add_of_rank(const char *name, uint64_t seed, const struct image_geometry *geometry, uint32_t rank)
{
	struct image_module m = { .module = 0, .rank = rank, .dtype = KERN_F32, .scale = 1 };
	struct store_record record = test_record(seed, IMAGE_PAGE);
	float *numbers;
	uint8_t *payload;

	ck_assert_int_eq(image_plan(&m, 1, geometry, &record.payload_bytes, NULL), 0);
	record.n_modules = 1;
	record.max_rank = rank;
	record.geometry = *geometry;
	payload = aligned_alloc(IMAGE_PAGE, record.payload_bytes);
	numbers = calloc((size_t)rank * (m.in > m.out ? m.in : m.out), sizeof(*numbers));
	image_begin(payload, record.payload_bytes, &m, 1);
	ck_assert_int_eq(image_put_b(payload, &m, numbers, "b", NULL), 0);
	for (size_t i = 0; i < (size_t)rank * m.in; ++i)
		numbers[i] = (float)seed;
	ck_assert_int_eq(image_put_a(payload, &m, numbers, "a", NULL), 0);
	ck_assert_int_eq(store_put(store, name, true, &record, TEST_CONFIG, payload, NULL), 0);
	free(numbers);
	free(payload);
}

static inline void add(const char *name, uint64_t seed, const struct image_geometry *geometry)
{
	add_of_rank(name, seed, geometry, RANK);
}

static inline struct cache_adapter *get(uint64_t seed)
{
	const struct store_digest digest = test_digest(seed);
	struct cache_adapter *adapter = NULL;

	ck_assert_int_eq(cache_get(cache, &digest, &adapter), CACHE_OK);
	return adapter;
}

/* As the step loop does it: ask, and ask again after each change. */
static inline int hold(struct cache_adapter *adapter, struct diag *diag)
{
	unsigned seen;
	int r;

	for (;;) {
		pthread_mutex_lock(&lock);
		seen = changes;
		pthread_mutex_unlock(&lock);
		cache_begin_turn(cache);
		r = cache_hold(cache, adapter, diag);
		if (r != CACHE_E_PENDING)
			return r;
		pthread_mutex_lock(&lock);
		while (changes == seen)
			pthread_cond_wait(&moved, &lock);
		pthread_mutex_unlock(&lock);
	}
}

static inline void assert_content(const struct cache_adapter *adapter, uint64_t seed)
{
	const struct step_lora *lora = cache_lora(adapter);
	const float *a = seen_by_host ? seen_by_host(lora->modules[0].a) : lora->modules[0].a;

	ck_assert_uint_eq(lora->max_rank, RANK);
	ck_assert_ptr_null(lora->modules[1].a);
	for (size_t i = 0; i < 64; ++i)
		ck_assert_float_eq(a[i], (float)seed);
}

static inline enum cache_state state_of(uint64_t seed)
{
	const struct store_digest digest = test_digest(seed);
	struct store_record record;

	ck_assert_int_eq(store_record(store, &digest, &record), 0);
	return cache_state(cache, &record);
}

/* Makes it resident and lets go of it at once. */
static inline int touch(uint64_t seed)
{
	struct cache_adapter *adapter = get(seed);
	int r = hold(adapter, NULL);

	if (r == CACHE_OK) {
		assert_content(adapter, seed);
		cache_unhold(cache, adapter);
	}
	cache_put(cache, adapter);
	return r;
}

static inline struct cache_stats stats(void)
{
	struct cache_stats s;

	cache_read_stats(cache, &s);
	return s;
}

static inline uint64_t evictions(void)
{
	const struct cache_stats s = stats();

	return cache_evictions(&s);
}

#endif
