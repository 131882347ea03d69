/* SPDX-License-Identifier: MIT */
/* Adapter residency: which images are in memory, who uses them, what is evicted. See cache.c. */
#ifndef LORAD_CACHE_CACHE_H
#define LORAD_CACHE_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/base/hist.h"
#include "daemon/model/pool.h"
#include "daemon/model/step.h"
#include "daemon/store/pager.h"

struct cache;
struct cache_adapter; /* one version, by digest */

enum cache_state { CACHE_STORE, CACHE_LOADING, CACHE_HOST, CACHE_DEVICE, CACHE_UNFIT, _CACHE_STATE_N };
extern const char *const cache_state_names[_CACHE_STATE_N]; /* store, loading, host, device, unfit */

enum cache_tier { CACHE_TIER_HOST, CACHE_TIER_DEVICE, _CACHE_TIER_N };

enum cache_result {
	CACHE_OK,          /* usable now */
	CACHE_E_PENDING,   /* a page-in is under way; changed() will be called */
	CACHE_E_NO_ROOM,   /* everything resident is in use or pinned; try again when something was released */
	CACHE_E_FAILED,    /* the page-in failed; the reason is in diag */
	CACHE_E_UNFIT,     /* made for another base */
	CACHE_E_NOT_FOUND, /* removed */
	CACHE_E_TOO_LARGE, /* never fits */
	CACHE_E_LATER,     /* of cache_want() only: enough page-ins are under way; changed() will be called */
};

struct cache_options {
	struct store *store;
	struct pager *pager;
	struct pool *pool;                  /* of device memory, shared with the KV cache */
	size_t device_bytes;                /* most bytes of it that adapters take */
	size_t lookahead_bytes;             /* cache_want() starts no page-in beyond so many under way; 0: no bound */
	struct image_geometry geometry;
	bool packed;                        /* packed images are taken where there are */
	struct pool *host_pool;             /* host memory adapters are read to; NULL: the ops read it where it is, one tier */
	const struct kern_device_ops *memory; /* with host_pool: how its contents get to the device */
	struct kern_device *device;
	void (*changed)(void *userdata);    /* any thread: a load ended, or a pin was dropped */
	/* Give back bytes of the pool that were unused for longer than idle_ns; true: something was given. May be NULL. Any
	 * thread, with the cache's lock: never calls back into the cache. */
	bool (*yield)(void *userdata, size_t bytes, uint64_t idle_ns);
	void *userdata;
};

enum cache_reason { CACHE_FOR_ADAPTER, CACHE_FOR_KV, CACHE_FORGOTTEN, _CACHE_REASON_N };

struct cache_tier_stats {
	uint64_t bytes, adapters;           /* whole copies there now */
	uint64_t hits;                      /* of cache_get(): this was the best tier it was in */
	uint64_t evictions[_CACHE_REASON_N]; /* why they went */
};

struct cache_stats {
	struct cache_tier_stats tier[_CACHE_TIER_N]; /* host: all 0 where the device has no memory of its own */
	uint64_t misses;                    /* of cache_get(): in no tier */
	uint64_t loads, uploads, failures;
	uint64_t loading;                   /* page-ins and uploads under way */
	uint64_t known;                     /* versions with counters, in memory or not */
	struct hist page_in, upload;        /* from the store; from host to device */
};

/* What is known of one version. */
struct cache_info {
	struct store_digest digest;
	enum cache_state state;
	size_t bytes;                       /* of a copy */
	bool pinned;
	uint32_t references, holds;
	uint64_t requests, tokens, loads;   /* since the daemon knows of it: see CACHE_RETIRED_MAX */
	uint64_t last_use;                  /* seconds since 1970; 0: never */
};

int cache_new(struct cache **ret, const struct cache_options *options);
struct cache *cache_free(struct cache *cache); /* after the pager is gone */
DEFINE_CLEANUP(struct cache *, cache_free)

/* A reference to a version, resident or not; keeps it usable after its name is removed. get adds one, put drops one. */
int cache_get(struct cache *cache, const struct store_digest *digest, struct cache_adapter **ret);
struct cache_adapter *cache_put(struct cache *cache, struct cache_adapter *adapter);

/* At the start of each turn, on the thread that runs steps: what has arrived on the device since becomes usable. Then ask
 * for what requests need in the order of their age: what is asked for in a turn, no later one can take away. */
void cache_begin_turn(struct cache *cache);

/* Make it resident and hold it there: CACHE_OK holds, all other results do not. Unhold lets it be evicted again. Want does
 * the same without a hold, within bounds: for who has to wait for something else. On the thread that runs steps. */
int cache_hold(struct cache *cache, struct cache_adapter *adapter, struct diag *diag);
void cache_unhold(struct cache *cache, struct cache_adapter *adapter);
int cache_want(struct cache *cache, struct cache_adapter *adapter, struct diag *diag);

const struct step_lora *cache_lora(const struct cache_adapter *adapter); /* while held */
uint64_t cache_load_ns(const struct cache_adapter *adapter);             /* duration of its last page-in */

enum cache_state cache_state(struct cache *cache, const struct store_record *record);
int cache_pin(struct cache *cache, const struct store_digest *digest, bool pinned);
bool cache_is_pinned(struct cache *cache, const struct store_digest *digest);
int cache_prefetch(struct cache *cache, const struct store_digest *digest, struct diag *diag);
void cache_forget(struct cache *cache, const struct store_digest *digest); /* its name is gone: out with it once unused */

/* KV blocks and adapters share the pool: evict adapters that were unused for so long; false: none. And for how long the
 * next one was. */
bool cache_shrink(struct cache *cache, size_t bytes, uint64_t idle_ns);
uint64_t cache_idle_ns(struct cache *cache, uint64_t now_ns);
size_t cache_spare_bytes(struct cache *cache); /* of the pool: adapters that may be evicted */

/* stats.c */
void cache_note_tokens(struct cache_adapter *adapter, uint64_t n); /* computed with it; any thread, while referenced */
void cache_read_stats(struct cache *cache, struct cache_stats *ret);
uint64_t cache_evictions(const struct cache_stats *stats); /* of all tiers, for all reasons */
bool cache_read_info(struct cache *cache, const struct store_digest *digest, struct cache_info *ret); /* false: unknown */
void cache_each(struct cache *cache, void (*fn)(void *userdata, const struct cache_info *info), void *userdata);

#endif
