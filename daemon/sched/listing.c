/* SPDX-License-Identifier: MIT */
/*
 * Listing
 *
 * A snapshot of the store's names with the state of each version. A client asks for it on its ring, which may be far
 * too small for thousands of entries, so the engine sends what fits and goes on when the client has read.
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
	if (listing->session)
		ipc_session_unref(listing->session);
	free(listing->entry);
	free(listing);
	return NULL;
}

static int send_entry(const struct listing *listing, const struct listing_entry *entry)
{
	struct ipc_listed message = {
		.name = entry->name,
		.kind = entry->kind,
		.state = entry->state,
		.bytes = entry->bytes,
	};

	memcpy(message.digest, entry->digest.bytes, sizeof(message.digest));
	return ipc_send_adapter(listing->session, listing->id, &message);
}

/**
 * listing_send() - send what the client's ring has room for; after the last entry also the end
 * @listing:    a listing with a session
 *
 * Return: true if something left.
 */
bool listing_send(struct listing *listing)
{
	struct ipc_done done = { .finish = LC_FINISH_STOP };
	size_t before = listing->n_sent;

	while (listing->n_sent < listing->n) {
		if (send_entry(listing, &listing->entry[listing->n_sent]) == IPC_E_FULL)
			break;
		listing->n_sent++;
	}
	if (listing_is_sent(listing))
		(void)ipc_send_done(listing->session, listing->id, &done);
	return listing->n_sent > before || listing_is_sent(listing);
}
