/* SPDX-License-Identifier: MIT */
/* One pool of bytes for KV blocks and adapters: runs of 64 KiB pages. See pool.c. */
#ifndef LORAD_MODEL_POOL_H
#define LORAD_MODEL_POOL_H

#include <stddef.h>
#include <stdint.h>

#include "daemon/base/cleanup.h"

#define POOL_PAGE 65536u

struct pool;

enum pool_owner { POOL_KV, POOL_ADAPTERS, _POOL_OWNER_N };
enum pool_result { POOL_OK, POOL_E_FULL };

struct pool_run {
	uint32_t first, n_pages;
};

int pool_new(struct pool **ret, void *base, size_t bytes); /* base: 2 MiB aligned, the caller's; outlives the pool */
struct pool *pool_free(struct pool *pool);
int pool_alloc(struct pool *pool, enum pool_owner owner, size_t bytes, struct pool_run *ret);
void pool_release(struct pool *pool, enum pool_owner owner, struct pool_run run);
void *pool_address(const struct pool *pool, struct pool_run run);
size_t pool_size(const struct pool *pool);
size_t pool_used(const struct pool *pool, enum pool_owner owner);
size_t pool_largest_free(const struct pool *pool); /* bytes of the longest free run */

DEFINE_CLEANUP(struct pool *, pool_free)

#endif
