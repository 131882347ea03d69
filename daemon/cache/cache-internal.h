/* SPDX-License-Identifier: MIT */
/* What the files of the cache share. Nobody outside daemon/cache/ includes this. */
#ifndef LORAD_CACHE_CACHE_INTERNAL_H
#define LORAD_CACHE_CACHE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "daemon/base/list.h"
#include "daemon/cache/cache.h"
#include "daemon/cache/policy.h"

#define CACHE_BUCKETS 16384u
#define CACHE_RETIRED_MAX 16384u /* versions without memory or users whose counters are kept: about 7 MB */
#define CACHE_NO_TURN UINT64_MAX /* protects nothing: no stamp is as new */

enum copy_state {
	COPY_ABSENT,
	COPY_FILLING,               /* has memory that is being written: by the pager, or by an upload */
	COPY_WHOLE,
};

/* A version's copy in one tier. */
struct cache_copy {
	enum copy_state state;
	struct policy_item item;    /* linked: whole and free to be evicted */
	struct pool_run run;        /* unless absent */
};

/* What only a version needs that is used or in memory: the larger part. */
struct cache_work {
	struct cache_adapter *adapter;
	struct pager_load load;     /* the pager's while it reads; its header stays */
	struct kern_upload upload;  /* the device's while it copies */
	uint64_t began_ns, load_ns; /* of the last page-in, from disk or host to where it can be used */
	struct diag failure;        /* of the last one that failed, for to_tell more callers */
	unsigned to_tell;
};

/* One version. Without users and memory it is retired: only counters are left, and the oldest of those goes some day. */
struct cache_adapter {
	struct list bucket;
	struct list uploaded;       /* linked: its upload ended and waits to be joined */
	struct list retired;        /* linked: it is */
	struct cache *cache;
	struct store_record record;
	struct cache_copy copy[_CACHE_TIER_N];
	unsigned refs, holds;
	bool pinned, forgotten;     /* forgotten: its name was removed, and nobody asked since */
	uint64_t turn;              /* the last in which a request asked for it */
	uint64_t used_ns;           /* when it was used last; 0: never */
	uint64_t requests, loads;
	_Atomic uint64_t tokens;
	struct step_lora lora;      /* device copy whole or on its way */
	struct cache_work *work;    /* NULL: retired */
};

struct cache_tier_state {
	struct pool *pool;          /* NULL: there is no such tier */
	size_t limit, used;         /* bytes of the pool */
	struct policy policy;       /* of copies free to be evicted */
	size_t spare;               /* their bytes */
};

struct cache {
	struct cache_options options;
	enum cache_tier lowest;     /* where page-ins from the store go */
	size_t table_bytes;         /* behind a payload, where the device needs the module table: else 0 */
	pthread_mutex_t lock;       /* all below, and all adapters; held for list operations only */
	struct list buckets[CACHE_BUCKETS];
	struct list retired;        /* oldest first */
	uint64_t n_known, n_retired;
	uint64_t turn;
	size_t reading_bytes;       /* of page-ins from the store under way */
	struct cache_tier_state tier[_CACHE_TIER_N];
	struct list uploaded;
	struct cache_stats stats;
};

static inline bool cache_is_reading(const struct cache_adapter *adapter)
{
	return adapter->copy[adapter->cache->lowest].state == COPY_FILLING;
}

static inline bool cache_is_uploading(const struct cache_adapter *adapter)
{
	return adapter->cache->lowest != CACHE_TIER_DEVICE && adapter->copy[CACHE_TIER_DEVICE].state == COPY_FILLING;
}

/* Which of its images a version is used as. */
static inline enum image_encoding cache_encoding(const struct cache_adapter *adapter)
{
	return adapter->cache->options.packed && adapter->record.packed_bytes ? IMAGE_PACKED : IMAGE_SOURCE;
}

/* Bytes of that one: whole pages, as all records' (store.c). */
static inline size_t cache_image_bytes(const struct cache_adapter *adapter)
{
	return store_image_bytes(&adapter->record, cache_encoding(adapter));
}

/* cache.c; with the lock */
struct cache_adapter *cache_find(struct cache *cache, const struct store_digest *digest);
bool cache_fits(const struct cache *cache, const struct store_record *record);
enum cache_state cache_state_of(const struct cache_adapter *adapter);

/* evict.c; all with the lock */
size_t cache_charge(const struct cache_adapter *adapter); /* bytes it takes from a pool */
void cache_touch(struct cache_adapter *adapter);          /* somebody asks for it */
int cache_alloc(struct cache_adapter *adapter, enum cache_tier tier, uint64_t since); /* POOL_OK: filling; POOL_E_FULL */
void cache_note_whole(struct cache_adapter *adapter, enum cache_tier tier);
void cache_drop(struct cache_adapter *adapter, enum cache_tier tier);  /* gives its memory there back */
void cache_settle(struct cache_adapter *adapter);         /* after a change: onto or off the lists, or retired */
uint8_t *cache_address(const struct cache_adapter *adapter, enum cache_tier tier);

/* upload.c; all without the lock */
int cache_make_usable(struct cache_adapter *adapter, const void *host, struct diag *diag); /* the payload's modules */
int cache_upload(struct cache_adapter *adapter);          /* after its device copy was set to filling: 0, -errno */
void cache_poll(struct cache *cache);                     /* on the thread that runs steps */
void cache_wait_uploads(struct cache *cache);             /* before the end: until none is under way */

#endif
