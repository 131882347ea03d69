/* SPDX-License-Identifier: MIT */
/* Adapter residency: which images are in memory, who uses them, what is evicted. See cache.c. */
#ifndef LORAD_CACHE_CACHE_H
#define LORAD_CACHE_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/model/pool.h"
#include "daemon/model/step.h"
#include "daemon/store/pager.h"

struct cache;
struct cache_adapter; /* one version, by digest */

enum cache_state { CACHE_STORE, CACHE_LOADING, CACHE_HOST, CACHE_DEVICE, CACHE_UNFIT, _CACHE_STATE_N };
extern const char *const cache_state_names[_CACHE_STATE_N]; /* store, loading, host, device, unfit */

enum cache_result {
	CACHE_OK,          /* usable now */
	CACHE_E_PENDING,   /* a page-in is under way; changed() will be called */
	CACHE_E_NO_ROOM,   /* everything resident is in use or pinned; try again when something was released */
	CACHE_E_FAILED,    /* the page-in failed; the reason is in diag */
	CACHE_E_UNFIT,     /* made for another base */
	CACHE_E_NOT_FOUND, /* removed */
	CACHE_E_TOO_LARGE, /* never fits */
};

struct cache_options {
	struct store *store;
	struct pager *pager;
	struct pool *pool;                  /* of device memory, shared with the KV cache */
	size_t device_bytes;                /* most bytes of it that adapters take */
	struct image_geometry geometry;
	struct pool *host_pool;             /* host memory adapters are read to; NULL: the ops read it where it is, one tier */
	const struct kern_device_ops *memory; /* with host_pool: how its contents get to the device */
	struct kern_device *device;
	void (*changed)(void *userdata);    /* any thread: a load ended, or a pin was dropped */
	void *userdata;
};

struct cache_stats {
	uint64_t hits_device, hits_host, misses; /* of cache_get(): resident when it was asked for, or not */
	uint64_t loads, uploads, evictions, failures;
	uint64_t resident, resident_bytes;  /* on the device */
	uint64_t host_bytes;                /* of copies in the host tier, where there is one */
	uint64_t loading;
	uint64_t load_ns;                   /* sum of all page-ins */
};

int cache_new(struct cache **ret, const struct cache_options *options);
struct cache *cache_free(struct cache *cache); /* after the pager is gone */
DEFINE_CLEANUP(struct cache *, cache_free)

/* A reference to a version, resident or not; keeps it usable after its name is removed. get adds one, put drops one. */
int cache_get(struct cache *cache, const struct store_digest *digest, struct cache_adapter **ret);
struct cache_adapter *cache_put(struct cache *cache, struct cache_adapter *adapter);

/* Once a turn, on the thread that runs steps: what has arrived on the device since becomes usable. */
void cache_poll(struct cache *cache);

/* Make it resident and hold it there: CACHE_OK holds, all other results do not. Unhold lets it be evicted again. On the
 * thread that runs steps. */
int cache_hold(struct cache *cache, struct cache_adapter *adapter, struct diag *diag);
void cache_unhold(struct cache *cache, struct cache_adapter *adapter);

const struct step_lora *cache_lora(const struct cache_adapter *adapter); /* while held */
uint64_t cache_load_ns(const struct cache_adapter *adapter);             /* duration of its last page-in */

enum cache_state cache_state(struct cache *cache, const struct store_record *record);
int cache_pin(struct cache *cache, const struct store_digest *digest, bool pinned);
bool cache_is_pinned(struct cache *cache, const struct store_digest *digest);
int cache_prefetch(struct cache *cache, const struct store_digest *digest, struct diag *diag);
bool cache_shrink(struct cache *cache, size_t bytes); /* evict unused ones so that KV can have bytes; false: none left */
void cache_read_stats(struct cache *cache, struct cache_stats *ret);

#endif
