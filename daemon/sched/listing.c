/* SPDX-License-Identifier: MIT */
/*
 * Listing
 *
 * A snapshot of the store's names with the state of each version, for a client's ring and for the control socket.
 */
#include "daemon/sched/listing.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "libclient/loraclient.h"

static struct listing_entry *add_entry(struct listing *listing)
{
	size_t room = listing->room ? 2 * listing->room : 64;
	struct listing_entry *entry;

	if (listing->n == listing->room) {
		entry = realloc(listing->entry, room * sizeof(*entry));
		if (!entry)
			return NULL;
		listing->entry = entry;
		listing->room = room;
	}
	return &listing->entry[listing->n++];
}

static int add_record(void *userdata, const char *name, const struct store_record *record)
{
	struct listing *listing = userdata;
	struct listing_entry *entry = add_entry(listing);

	if (!entry)
		return error_origin(-ENOMEM);
	*entry = (struct listing_entry){
		.digest = record->digest,
		.kind = image_kind_name(record->kind),
		.state = cache_state_names[cache_state(listing->cache, record)],
		.bytes = record->payload_bytes,
		.packed_bytes = record->packed_bytes,
	};
	(void)strncpy(entry->name, name, sizeof(entry->name) - 1);
	return 0;
}

/**
 * listing_new() - read the list of adapters
 * @ret:        the snapshot
 * @store:      names and records
 * @cache:      states
 */
int listing_new(struct listing **ret, struct store *store, struct cache *cache)
{
	_cleanup_(listing_freep) struct listing *listing = calloc(1, sizeof(*listing));
	int r;

	if (!listing)
		return error_origin(-ENOMEM);
	listing->cache = cache;
	r = store_each(store, add_record, listing);
	if (r < 0)
		return error_trace(r);
	*ret = TAKE_PTR(listing);
	return 0;
}

struct listing *listing_free(struct listing *listing)
{
	if (!listing)
		return NULL;
	free(listing->entry);
	free(listing);
	return NULL;
}

/**
 * listing_send() - answer a client's list request
 * @listing:    the snapshot
 * @session:    the client
 * @id:         its request
 */
void listing_send(const struct listing *listing, struct ipc_session *session, uint64_t id)
{
	struct ipc_done done = { .finish = LC_FINISH_STOP };

	for (size_t i = 0; i < listing->n; ++i) {
		const struct listing_entry *entry = &listing->entry[i];
		struct ipc_listed message = {
			.name = entry->name,
			.kind = entry->kind,
			.state = entry->state,
			.bytes = entry->bytes,
		};

		memcpy(message.digest, entry->digest.bytes, sizeof(message.digest));
		(void)ipc_send_adapter(session, id, &message);
	}
	(void)ipc_send_done(session, id, &done);
}
