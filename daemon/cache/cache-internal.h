/* SPDX-License-Identifier: MIT */
/* What the files of the cache share. Nobody outside daemon/cache/ includes this. */
#ifndef LORAD_CACHE_CACHE_INTERNAL_H
#define LORAD_CACHE_CACHE_INTERNAL_H

#include <pthread.h>

#include "daemon/base/list.h"
#include "daemon/cache/cache.h"

#define CACHE_BUCKETS 1024u

enum residency { ABSENT, LOADING, RESIDENT };

/* One version. Lives while somebody references it, it is in memory or on its way there, or pinned. */
struct cache_adapter {
	struct list bucket;
	struct list lru;            /* linked: resident and free to be evicted */
	struct cache *cache;
	struct store_record record;
	enum residency residency;
	unsigned refs, holds;
	bool pinned;
	struct pool_run run;        /* LOADING, RESIDENT */
	struct step_lora lora;      /* RESIDENT */
	struct pager_load load;     /* the pager's while LOADING */
	uint64_t load_ns;           /* of the last page-in */
	struct diag failure;        /* of the last one that failed, for to_tell more callers */
	unsigned to_tell;
};

struct cache {
	struct cache_options options;
	pthread_mutex_t lock;       /* all below, and all adapters; held for list operations only */
	struct list buckets[CACHE_BUCKETS];
	struct list lru;            /* least recently used first */
	size_t used_bytes;          /* of the pool, LOADING and RESIDENT */
	struct cache_stats stats;
};

/* evict.c; all with the lock */
size_t cache_charge(const struct cache_adapter *adapter); /* bytes it takes from the pool */
int cache_alloc(struct cache_adapter *adapter);           /* POOL_OK or POOL_E_FULL; evicts for it */
void cache_drop(struct cache_adapter *adapter);           /* gives its memory back */
void cache_settle(struct cache_adapter *adapter);         /* after a change: onto or off the LRU list, or freed */

#endif
