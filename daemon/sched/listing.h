/* SPDX-License-Identifier: MIT */
/* The list of adapters: see listing.c. */
#ifndef LORAD_SCHED_LISTING_H
#define LORAD_SCHED_LISTING_H

#include "daemon/base/cleanup.h"
#include "daemon/cache/cache.h"
#include "daemon/ipc/ipc.h"
#include "daemon/store/store.h"

struct listing_entry {
	char name[STORE_NAME_MAX + 1];
	struct store_digest digest;
	const char *kind, *state;
	uint64_t bytes, packed_bytes; /* of its images, packed: 0 if there is none */
};

struct listing {
	struct listing_entry *entry; /* by name, in byte order */
	size_t n, room;
	struct cache *cache;         /* while reading */
};

int listing_new(struct listing **ret, struct store *store, struct cache *cache);
struct listing *listing_free(struct listing *listing);
DEFINE_CLEANUP(struct listing *, listing_free)

void listing_send(const struct listing *listing, struct ipc_session *session, uint64_t id);

#endif
