/* SPDX-License-Identifier: MIT */
/*
 * The pool: one budget of bytes for KV blocks and adapters
 *
 * A region is cut into pages of 64 KiB and handed out in runs. The pool knows two owners and neither's purpose: who has
 * to yield when it is full is decided above. KV blocks are all of one small size and are taken from the low end, first fit;
 * adapters of many sizes from the high end, best fit, which loses half as much to splinters as first fit did
 * (docs/RESIDENCY.md). So the two hardly interleave: the small blocks fill each other's holes, and the free space between
 * the two stays in one piece for as long as it can.
 *
 * Each owner has one bit per page. Two maps instead of one cost 32 KiB per 16 GiB and let every release be checked: a
 * page that is freed twice, or by the wrong owner, is caught by an assert there and not as a corrupted answer later.
 *
 * One mutex, held for walks over the maps only.
 */
#include "daemon/model/pool.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/cleanup.h"
#include "daemon/base/error.h"

#define BASE_ALIGNMENT (2u << 20)

struct pool {
	pthread_mutex_t mutex;
	uint8_t *base;
	uint32_t n_pages;
	uint32_t used[_POOL_OWNER_N]; /* pages */
	uint64_t *map[_POOL_OWNER_N]; /* bit set: the owner's */
};

static bool is_taken(const struct pool *pool, uint32_t page)
{
	return ((pool->map[POOL_KV][page / 64] | pool->map[POOL_ADAPTERS][page / 64]) >> (page % 64)) & 1;
}

/* The end of the stretch of pages [from, end) that are all taken or all free. Whole words are skipped at once. */
static uint32_t stretch_up(const struct pool *pool, uint32_t from, bool taken)
{
	uint32_t page = from;

	while (page < pool->n_pages) {
		uint64_t bits = pool->map[POOL_KV][page / 64] | pool->map[POOL_ADAPTERS][page / 64];

		bits = (taken ? ~bits : bits) >> (page % 64); /* set: the stretch ends here */
		if (bits) {
			page += (uint32_t)__builtin_ctzll(bits);
			break;
		}
		page = (page / 64 + 1) * 64;
	}
	return page < pool->n_pages ? page : pool->n_pages;
}

/* The same downwards: the first page of the stretch that ends before page `to`. */
static uint32_t stretch_down(const struct pool *pool, uint32_t to, bool taken)
{
	uint32_t page = to;

	while (page > 0) {
		uint32_t word = (page - 1) / 64, above = word * 64 + 64 - page;
		uint64_t bits = pool->map[POOL_KV][word] | pool->map[POOL_ADAPTERS][word];

		bits = (taken ? ~bits : bits) << above;
		if (bits)
			return page - (uint32_t)__builtin_clzll(bits);
		page = word * 64;
	}
	return 0;
}

static bool find_low(const struct pool *pool, uint32_t n, uint32_t *ret)
{
	uint32_t page = 0, end;

	for (;;) {
		page = stretch_up(pool, page, true);
		if (n > pool->n_pages - page)
			return false;
		end = stretch_up(pool, page, false);
		if (end - page >= n)
			break;
		page = end;
	}
	*ret = page;
	return true;
}

/* The shortest free stretch that is long enough; of equals the highest. */
static bool find_high(const struct pool *pool, uint32_t n, uint32_t *ret)
{
	uint32_t page = pool->n_pages, best = UINT32_MAX, start;

	while (best != n) {
		page = stretch_down(pool, page, true);
		if (n > page)
			break;
		start = stretch_down(pool, page, false);
		if (page - start >= n && page - start < best) {
			best = page - start;
			*ret = page - n;
		}
		page = start;
	}
	return best != UINT32_MAX;
}

/**
 * pool_new() - make a pool over a region
 * @ret:        the new pool
 * @base:       start of the region, 2 MiB aligned; stays the caller's and must outlive the pool
 * @bytes:      its size; what is left of a page at its end is not used
 */
int pool_new(struct pool **ret, void *base, size_t bytes)
{
	_cleanup_(pool_freep) struct pool *pool = NULL;

	assert((uintptr_t)base % BASE_ALIGNMENT == 0);
	if (bytes < POOL_PAGE || bytes / POOL_PAGE > UINT32_MAX - 64)
		return error_origin(-EINVAL);
	pool = calloc(1, sizeof(*pool));
	if (!pool)
		return error_origin(-ENOMEM);
	(void)pthread_mutex_init(&pool->mutex, NULL);
	pool->base = base;
	pool->n_pages = (uint32_t)(bytes / POOL_PAGE);
	for (unsigned i = 0; i < _POOL_OWNER_N; ++i) {
		pool->map[i] = calloc(((size_t)pool->n_pages + 63) / 64, sizeof(uint64_t));
		if (!pool->map[i])
			return error_origin(-ENOMEM);
	}
	*ret = TAKE_PTR(pool);
	return 0;
}

struct pool *pool_free(struct pool *pool)
{
	if (!pool)
		return NULL;
	for (unsigned i = 0; i < _POOL_OWNER_N; ++i) {
		assert(pool->used[i] == 0);
		free(pool->map[i]);
	}
	(void)pthread_mutex_destroy(&pool->mutex);
	free(pool);
	return NULL;
}

/**
 * pool_alloc() - take a run of pages
 * @bytes:      how much, at least 1; rounded up to pages
 * @ret:        the run on success
 *
 * Return: POOL_OK, or POOL_E_FULL if no free stretch is long enough.
 */
int pool_alloc(struct pool *pool, enum pool_owner owner, size_t bytes, struct pool_run *ret)
{
	size_t n = bytes / POOL_PAGE + (bytes % POOL_PAGE != 0);
	uint32_t first = 0;
	bool found;

	assert(owner < _POOL_OWNER_N && n > 0);
	if (n > pool->n_pages)
		return POOL_E_FULL;

	(void)pthread_mutex_lock(&pool->mutex);
	found = owner == POOL_KV ? find_low(pool, (uint32_t)n, &first) : find_high(pool, (uint32_t)n, &first);
	if (found) {
		for (uint32_t i = first; i < first + n; ++i) {
			assert(!is_taken(pool, i));
			pool->map[owner][i / 64] |= 1ull << (i % 64);
		}
		pool->used[owner] += (uint32_t)n;
	}
	(void)pthread_mutex_unlock(&pool->mutex);

	if (!found)
		return POOL_E_FULL;
	*ret = (struct pool_run){ .first = first, .n_pages = (uint32_t)n };
	return POOL_OK;
}

/* Gives a run back. It must be one that pool_alloc() gave to this owner, whole. */
void pool_release(struct pool *pool, enum pool_owner owner, struct pool_run run)
{
	assert(owner < _POOL_OWNER_N);
	assert(run.n_pages > 0 && run.first < pool->n_pages && run.n_pages <= pool->n_pages - run.first);

	(void)pthread_mutex_lock(&pool->mutex);
	for (uint32_t i = run.first; i < run.first + run.n_pages; ++i) {
		assert((pool->map[owner][i / 64] >> (i % 64)) & 1);
		pool->map[owner][i / 64] &= ~(1ull << (i % 64));
	}
	pool->used[owner] -= run.n_pages;
	(void)pthread_mutex_unlock(&pool->mutex);
}

void *pool_address(const struct pool *pool, struct pool_run run)
{
	assert(run.first < pool->n_pages && run.n_pages <= pool->n_pages - run.first);
	return pool->base + (size_t)run.first * POOL_PAGE;
}

/* Bytes of the whole pool. */
size_t pool_size(const struct pool *pool)
{
	return (size_t)pool->n_pages * POOL_PAGE;
}

/* The caller sees a const pool; taking its lock does not change what it is about. */
static pthread_mutex_t *lock_of(const struct pool *pool)
{
	return (pthread_mutex_t *)(uintptr_t)&pool->mutex;
}

/* Bytes an owner holds, in whole pages. */
size_t pool_used(const struct pool *pool, enum pool_owner owner)
{
	size_t pages;

	(void)pthread_mutex_lock(lock_of(pool));
	pages = pool->used[owner];
	(void)pthread_mutex_unlock(lock_of(pool));
	return pages * POOL_PAGE;
}

/* Bytes of the longest free run: what one allocation can get at most. */
size_t pool_largest_free(const struct pool *pool)
{
	uint32_t page = 0, end, largest = 0;

	(void)pthread_mutex_lock(lock_of(pool));
	while ((page = stretch_up(pool, page, true)) < pool->n_pages) {
		end = stretch_up(pool, page, false);
		largest = end - page > largest ? end - page : largest;
		page = end;
	}
	(void)pthread_mutex_unlock(lock_of(pool));
	return (size_t)largest * POOL_PAGE;
}
