/* SPDX-License-Identifier: MIT */
/* The list of adapters, as a snapshot and as an answer on the ring: see listing.c. */
#ifndef LORAD_SCHED_LISTING_H
#define LORAD_SCHED_LISTING_H

#include "daemon/base/cleanup.h"
#include "daemon/base/list.h"
#include "daemon/cache/cache.h"
#include "daemon/ipc/ipc.h"
#include "daemon/store/store.h"

struct listing_entry {
	char name[STORE_NAME_MAX + 1];
	struct store_digest digest;
	const char *kind, *state;
	uint64_t bytes;
};

struct listing {
	struct list link;            /* the engine's listings */
	struct ipc_session *session; /* a reference; NULL for a snapshot of nobody's request */
	uint64_t id;
	struct listing_entry *entry; /* by name, in byte order */
	size_t n, room, n_sent;
	uint64_t stuck_ns;
	struct cache *cache;         /* while reading */
};

int listing_new(struct listing **ret, struct store *store, struct cache *cache);
struct listing *listing_free(struct listing *listing);
DEFINE_CLEANUP(struct listing *, listing_free)

bool listing_send(struct listing *listing);
static inline bool listing_is_sent(const struct listing *listing)
{
	return listing->n_sent == listing->n;
}

#endif
