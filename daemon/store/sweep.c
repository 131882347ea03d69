/* SPDX-License-Identifier: MIT */
/*
 * Deletion
 *
 * A version is deleted in one transaction, record, config and chunks together, when no name points to it and nobody
 * holds it. That is cheap however large it is: LMDB touches one page per chunk. Three ways lead here:
 *
 * - its last name goes (store_remove(), or store_put() that gives the name to another version): store_retire(), in the
 *   transaction that drops the name. A version somebody holds is only marked nameless.
 * - its last hold goes later: store_release() never writes, as it is called by the step loop; it raises store->garbage,
 *   and the next writer sweeps.
 * - the daemon ends in between, or in mid-import: store_open() sweeps everything.
 *
 * While a deletion is being committed the version is marked dying, and store_hold() waits for the outcome.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "daemon/store/store-internal.h"

/* Names are few and short: a walk over all of them costs less than keeping a second index true. */
static int has_name(struct store *store, MDB_txn *txn, const struct store_digest *digest, bool *ret)
{
	_cleanup_(mdb_cursor_closep) MDB_cursor *cursor = NULL;
	MDB_val key, value;
	int r;

	*ret = false;
	r = store_result(mdb_cursor_open(txn, store->file.names, &cursor), NULL);
	while (!r && !*ret) {
		r = store_result(mdb_cursor_get(cursor, &key, &value, MDB_NEXT), NULL);
		if (!r)
			*ret = value.mv_size == sizeof(*digest) && memcmp(value.mv_data, digest, sizeof(*digest)) == 0;
	}
	return r == STORE_E_NOT_FOUND ? 0 : r;
}

/* Marks a version dying for the length of a write. One that is held stays, and is remembered as nameless. */
static int mark_dying(struct store_write *write, const struct store_digest *digest, bool *ret_dying)
{
	struct store *store = write->store;
	struct store_held *held;

	pthread_mutex_lock(&store->lock);
	held = store_held_find(store, digest);
	*ret_dying = !held || held->dying; /* dying already: put again and retired again by this very write */
	if (held) {
		held->nameless = true;
	} else {
		held = store_held_add(store, digest);
		if (held) {
			held->dying = true;
			held->next_dying = write->dying;
			write->dying = held;
		}
	}
	pthread_mutex_unlock(&store->lock);
	return held ? 0 : error_origin(-ENOMEM);
}

/* Deletes all chunks of a version, of every encoding and layout. */
static int delete_chunks(struct store_write *write, const struct store_digest *digest)
{
	_cleanup_(mdb_cursor_closep) MDB_cursor *cursor = NULL;
	int r;

	r = store_result(mdb_cursor_open(write->txn, write->store->file.chunks, &cursor), NULL);
	while (!r) {
		MDB_val key = store_val_digest(digest), value;

		r = store_result(mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE), NULL);
		if (r)
			break;
		if (key.mv_size < sizeof(*digest) || memcmp(key.mv_data, digest, sizeof(*digest)) != 0)
			return 0;
		r = store_result(mdb_cursor_del(cursor, 0), NULL);
	}
	return r == STORE_E_NOT_FOUND ? 0 : error_trace(r);
}

static int delete_version(struct store_write *write, const struct store_digest *digest)
{
	const MDB_dbi from[] = { write->store->file.records, write->store->file.configs };
	MDB_val key = store_val_digest(digest);
	int r;

	for (size_t i = 0; i < sizeof(from) / sizeof(from[0]); ++i) {
		r = store_result(mdb_del(write->txn, from[i], &key, NULL), NULL);
		if (r && r != STORE_E_NOT_FOUND)
			return error_trace(r);
	}
	return error_trace(delete_chunks(write, digest));
}

/* Deletes a version if it lost its last name and nobody holds it. */
int store_retire(struct store_write *write, const struct store_digest *digest)
{
	bool named, dying;
	int r;

	r = has_name(write->store, write->txn, digest, &named);
	if (r || named)
		return error_trace(r);
	r = mark_dying(write, digest, &dying);
	if (r || !dying)
		return error_trace(r);
	return error_trace(delete_version(write, digest));
}

/**
 * store_remove() - drop a name
 *
 * Return: 0, STORE_E_NOT_FOUND; STORE_E_FULL where not even the index can be changed; STORE_E_CORRUPT, -errno.
 */
int store_remove(struct store *store, const char *name)
{
	_cleanup_(store_write_end) struct store_write write = {};
	MDB_val key = store_val(name, strlen(name));
	struct store_digest digest;
	int r;

	r = store_sweep_versions(store, /* all= */ false);
	if (!r)
		r = store_write_begin(&write, store);
	if (!r)
		r = store_get_name(store, write.txn, name, &digest);
	if (!r)
		r = store_result(mdb_del(write.txn, store->file.names, &key, NULL), NULL);
	if (!r)
		r = store_retire(&write, &digest);
	if (!r)
		r = store_write_commit(&write, NULL);
	return error_trace(r);
}

/* ---- sweeping ---- */

/* All digests of one database: the keys of records and pending, the values of names. */
struct digests {
	struct store_digest *all;
	size_t n, room;
};

static void digests_deinit(struct digests *digests)
{
	free(digests->all);
}

static int digest_compare(const void *a, const void *b)
{
	return memcmp(a, b, sizeof(struct store_digest));
}

static int digests_add(struct digests *digests, const MDB_val *value)
{
	struct store_digest *grown;

	if (value->mv_size != sizeof(*digests->all))
		return STORE_E_CORRUPT;
	if (digests->n == digests->room) {
		digests->room = digests->room ? 2 * digests->room : 256;
		grown = reallocarray(digests->all, digests->room, sizeof(*grown));
		if (!grown)
			return error_origin(-ENOMEM);
		digests->all = grown;
	}
	memcpy(&digests->all[digests->n++], value->mv_data, value->mv_size);
	return 0;
}

static int digests_read(struct digests *digests, MDB_txn *txn, MDB_dbi dbi, bool values)
{
	_cleanup_(mdb_cursor_closep) MDB_cursor *cursor = NULL;
	MDB_val key, value;
	int r;

	r = store_result(mdb_cursor_open(txn, dbi, &cursor), NULL);
	while (!r) {
		r = store_result(mdb_cursor_get(cursor, &key, &value, MDB_NEXT), NULL);
		if (!r)
			r = digests_add(digests, values ? &value : &key);
	}
	return r == STORE_E_NOT_FOUND ? 0 : error_trace(r);
}

/* Each version in a transaction of its own; store_retire() looks at names and holds again. */
static int retire_nameless(struct store *store, const struct digests *names, const struct digests *records)
{
	int r = 0;

	for (size_t i = 0; i < records->n && !r; ++i) {
		const struct store_digest *digest = &records->all[i];
		_cleanup_(store_write_end) struct store_write write = {};

		if (names->n && bsearch(digest, names->all, names->n, sizeof(*digest), digest_compare))
			continue;
		r = store_write_begin(&write, store);
		if (!r)
			r = store_retire(&write, digest);
		if (!r)
			r = store_write_commit(&write, NULL);
	}
	return error_trace(r);
}

/* All versions that no name leads to and nobody holds. */
int store_sweep_versions(struct store *store, bool all)
{
	_cleanup_(digests_deinit) struct digests names = {}, records = {};
	_cleanup_(store_read_end) struct store_read read = {};
	bool garbage;
	int r;

	pthread_mutex_lock(&store->lock);
	garbage = store->garbage || all;
	store->garbage = false;
	pthread_mutex_unlock(&store->lock);
	if (!garbage)
		return 0;

	r = store_read_begin(&read, store);
	if (!r)
		r = digests_read(&names, read.txn, store->file.names, /* values= */ true);
	if (!r)
		r = digests_read(&records, read.txn, store->file.records, /* values= */ false);
	if (r)
		return error_trace(r);
	store_read_end(&read);
	if (names.n)
		qsort(names.all, names.n, sizeof(*names.all), digest_compare);
	return error_trace(retire_nameless(store, &names, &records));
}

/* Chunks of imports that never ended. The caller holds put_lock, so that none of them is just being written. */
int store_sweep_pending(struct store *store)
{
	_cleanup_(digests_deinit) struct digests pending = {};
	_cleanup_(store_read_end) struct store_read read = {};
	int r;

	r = store_read_begin(&read, store);
	if (!r)
		r = digests_read(&pending, read.txn, store->file.pending, /* values= */ false);
	if (r)
		return error_trace(r);
	store_read_end(&read);
	for (size_t i = 0; i < pending.n && !r; ++i) {
		_cleanup_(store_write_end) struct store_write write = {};
		MDB_val key = store_val_digest(&pending.all[i]);

		r = store_write_begin(&write, store);
		if (!r)
			r = delete_chunks(&write, &pending.all[i]);
		if (!r)
			r = store_result(mdb_del(write.txn, store->file.pending, &key, NULL), NULL);
		if (!r)
			r = store_write_commit(&write, NULL);
	}
	return error_trace(r);
}
