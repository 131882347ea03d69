/* SPDX-License-Identifier: MIT */
/* What the files of the cache share. Nobody outside daemon/cache/ includes this. */
#ifndef LORAD_CACHE_CACHE_INTERNAL_H
#define LORAD_CACHE_CACHE_INTERNAL_H

#include <pthread.h>

#include "daemon/base/list.h"
#include "daemon/cache/cache.h"

#define CACHE_BUCKETS 1024u

enum cache_tier { TIER_HOST, TIER_DEVICE, _TIER_N };

/* A version's copy in one tier. */
struct cache_copy {
	struct list lru;            /* linked: present and free to be evicted */
	struct pool_run run;        /* if taken */
	bool taken, present;        /* has memory; and what is in it is whole */
};

/* One version. Lives while somebody references it, it has memory anywhere, or it is pinned. */
struct cache_adapter {
	struct list bucket;
	struct list uploaded;       /* linked: its upload ended and waits to be joined */
	struct cache *cache;
	struct store_record record;
	struct cache_copy copy[_TIER_N];
	bool reading, uploading;
	unsigned refs, holds;
	bool pinned;
	struct step_lora lora;      /* device copy present or on its way */
	struct pager_load load;     /* the pager's while reading; its header stays */
	struct kern_upload upload;  /* the device's while uploading */
	uint64_t began_ns, load_ns; /* of the last page-in, from disk or host to where it can be used */
	struct diag failure;        /* of the last one that failed, for to_tell more callers */
	unsigned to_tell;
};

struct cache_tier_state {
	struct pool *pool;          /* NULL: there is no such tier */
	size_t limit, used;         /* bytes of the pool */
	struct list lru;            /* least recently used first */
};

struct cache {
	struct cache_options options;
	enum cache_tier lowest;     /* where page-ins from the store go */
	size_t table_bytes;         /* behind a payload, where the device needs the module table: else 0 */
	pthread_mutex_t lock;       /* all below, and all adapters; held for list operations only */
	struct list buckets[CACHE_BUCKETS];
	struct cache_tier_state tier[_TIER_N];
	struct list uploaded;
	struct cache_stats stats;
};

/* evict.c; all with the lock */
size_t cache_charge(const struct cache_adapter *adapter); /* bytes it takes from a pool */
int cache_alloc(struct cache_adapter *adapter, enum cache_tier tier);  /* POOL_OK or POOL_E_FULL; evicts for it */
void cache_drop(struct cache_adapter *adapter, enum cache_tier tier);  /* gives its memory there back */
void cache_settle(struct cache_adapter *adapter);         /* after a change: onto or off the LRU lists, or freed */
uint8_t *cache_address(const struct cache_adapter *adapter, enum cache_tier tier);

/* cache.c, with the lock: the device copy is there. */
void cache_note_load(struct cache_adapter *adapter);

/* upload.c; all without the lock */
int cache_make_usable(struct cache_adapter *adapter, const void *host, struct diag *diag); /* the payload's modules */
int cache_upload(struct cache_adapter *adapter);          /* after adapter->uploading was set: 0, -errno */
void cache_wait_uploads(struct cache *cache);             /* before the end: until none is under way */

#endif
