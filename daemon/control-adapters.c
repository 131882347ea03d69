/* SPDX-License-Identifier: MIT */
/* Verbs that look at adapters or steer the cache: List, Show, Pin, Unpin, Prefetch. Memory and index only: no waiting. */
#include <errno.h>
#include <string.h>

#include "daemon/base/clock.h"
#include "daemon/cache/cache.h"
#include "daemon/control-call.h"
#include "daemon/sched/listing.h"

static json_t *hex_of(const struct store_digest *digest)
{
	char hex[65];

	store_digest_hex(digest, hex);
	return json_string(hex);
}

void control_list(struct control_call *call)
{
	_cleanup_(listing_freep) struct listing *listing = NULL;
	json_t *adapters;

	if (listing_new(&listing, call->parts->store, call->parts->cache) < 0) {
		control_fail(call, EIO, "the list of adapters could not be read; the daemon's log has the reason");
		return;
	}
	adapters = json_array();
	for (size_t i = 0; i < listing->n; ++i) {
		const struct listing_entry *entry = &listing->entry[i];

		json_array_append_new(adapters, json_pack("{s:s, s:o, s:s, s:I, s:I, s:s}", "name", entry->name, "digest",
							  hex_of(&entry->digest), "kind", entry->kind, "bytes",
							  (json_int_t)entry->bytes, "packed_bytes", (json_int_t)entry->packed_bytes,
							  "state", entry->state));
	}
	control_reply(call, json_pack("{s:o}", "adapters", adapters));
}

/**
 * control_find() - look up the adapter that a call names
 * @call:       the call; failed and gone if this returns NULL
 * @ret_digest: its version
 * @ret_record: what is known of it; or NULL
 *
 * Return: its name, which lives as long as the call.
 */
const char *control_find(struct control_call *call, struct store_digest *ret_digest, struct store_record *ret_record)
{
	const char *name = control_text(call, "name");
	struct store_record record;
	int r;

	if (!name)
		return NULL;
	r = store_find(call->parts->store, name, ret_digest, ret_record ? ret_record : &record);
	if (!r)
		return name;
	if (r == STORE_E_NOT_FOUND)
		control_fail(call, ENOENT, "adapter \"%s\": there is none of this name", name);
	else
		control_fail(call, EIO, "adapter \"%s\": could not be looked up; the daemon's log has the reason", name);
	return NULL;
}

static json_t *geometry_json(const struct image_geometry *geometry)
{
	return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "layers", (json_int_t)geometry->n_layers, "hidden",
			 (json_int_t)geometry->hidden, "intermediate", (json_int_t)geometry->intermediate, "heads",
			 (json_int_t)geometry->n_heads, "kv_heads", (json_int_t)geometry->n_kv_heads, "head_dim",
			 (json_int_t)geometry->head_dim, "vocab", (json_int_t)geometry->vocab);
}

/* The source's adapter_config.json; it was checked when it was imported. */
static json_t *config_json(struct store *store, const struct store_digest *digest)
{
	_cleanup_free_ char *text = NULL;
	json_t *config = NULL;
	size_t bytes;

	if (store_config(store, digest, &text, &bytes) == 0)
		config = json_loadb(text, bytes, 0, NULL);
	return config ? config : json_null();
}

void control_show(struct control_call *call)
{
	const struct parts *parts = call->parts;
	struct cache_info info = { .requests = 0 };
	struct store_digest digest;
	struct store_record record;
	const char *name = control_find(call, &digest, &record);

	if (!name)
		return;
	(void)cache_read_info(parts->cache, &digest, &info);
	control_reply(call,
		      json_pack("{s:s, s:o, s:s, s:I, s:I, s:s, s:I, s:I, s:o, s:o, s:I, s:b, s:I, s:I, s:I, s:I, s:I}",
				"name", name, "digest",
				hex_of(&digest), "kind", image_kind_name(record.kind), "bytes",
				(json_int_t)record.payload_bytes, "packed_bytes", (json_int_t)record.packed_bytes, "state",
				cache_state_names[cache_state(parts->cache, &record)], "rank",
				(json_int_t)record.max_rank, "modules", (json_int_t)record.n_modules, "geometry",
				geometry_json(&record.geometry), "config", config_json(parts->store, &digest),
				"imported_at", (json_int_t)record.imported_at, "pinned",
				cache_is_pinned(parts->cache, &digest), "requests", (json_int_t)info.requests, "tokens",
				(json_int_t)info.tokens, "loads", (json_int_t)info.loads, "running", (json_int_t)info.holds,
				"last_use", (json_int_t)info.last_use));
}

/* The answer of a verb that asked the cache for something. */
static void answer_cache(struct control_call *call, const char *name, int result, const struct diag *diag)
{
	switch (result) {
	case CACHE_OK:
	case CACHE_E_PENDING:
		control_reply(call, json_pack("{s:s, s:s}", "name", name, "result",
					      result == CACHE_OK ? "done" : "loading"));
		break;
	case CACHE_E_NO_ROOM:
		control_fail(call, ENOSPC, "adapter \"%s\": all adapters in memory are in use or pinned", name);
		break;
	case CACHE_E_UNFIT:
		control_fail(call, EINVAL, "adapter \"%s\": made for another base model", name);
		break;
	case CACHE_E_NOT_FOUND:
		control_fail(call, ENOENT, "adapter \"%s\": there is none of this name", name);
		break;
	case CACHE_E_TOO_LARGE:
		control_fail(call, ENOSPC, "adapter \"%s\": larger than the memory for adapters", name);
		break;
	default:
		control_fail(call, EIO, "adapter \"%s\": %s", name,
			     *diag->text ? diag->text : "failed; the daemon's log has the reason");
	}
}

static void pin(struct control_call *call, bool pinned)
{
	struct diag diag = { 0 };
	struct store_digest digest;
	const char *name = control_find(call, &digest, NULL);

	if (name)
		answer_cache(call, name, cache_pin(call->parts->cache, &digest, pinned), &diag);
}

void control_pin(struct control_call *call)
{
	pin(call, true);
}

void control_unpin(struct control_call *call)
{
	pin(call, false);
}

void control_prefetch(struct control_call *call)
{
	struct diag diag = { 0 };
	struct store_digest digest;
	const char *name = control_find(call, &digest, NULL);

	if (name)
		answer_cache(call, name, cache_prefetch(call->parts->cache, &digest, &diag), &diag);
}
