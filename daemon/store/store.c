/* SPDX-License-Identifier: MIT */
/*
 * The adapter store
 *
 * One LMDB environment in a directory of its own, written by one daemon only. Its databases:
 *
 *   meta      "format" -> u32; "probe-a", "probe-b" -> values to try readers on (probe.c)
 *   names     name -> digest
 *   records   digest -> struct store_record
 *   configs   digest -> the source's adapter_config.json, verbatim
 *   chunks    digest, encoding, layout, number -> image_header, payload (see daemon/format/image.h)
 *   pending   digest -> nothing: its chunks are being written and have no record yet
 *
 * Identity is content: a version is its digest, a name points to one, several names may share it. Versions are never
 * changed, only added and deleted, which is what lets readers use file offsets: LMDB never rewrites a page that a
 * reader's transaction can see.
 *
 * A version has an image of the source's numbers, bit for bit: exports are made of it. Beside it may stand one of the
 * same numbers packed as int8, made by the import, for whoever loads. Both have headers and sums of their own; they
 * come, are verified and go together. The packed one is no part of the identity: a version that is there stays as it
 * is, with or without it.
 *
 * What is visible is always whole: the last transaction of an import adds the record and the name together, when all
 * chunks of both images are there (put.c). A
 * version goes when no name points to it and nobody holds it (sweep.c).
 *
 * Opening is in open.c, writing in put.c, deletion in sweep.c, compaction in compact.c.
 *
 * Threads: everything here may be called from any thread. A reader takes a lock to be counted, and LMDB's for a slot;
 * writers wait for each other, for one commit at most, or for a compaction.
 */
#include "daemon/store/store.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "daemon/store/store-internal.h"

#define RECORD_BYTES_BEFORE 104u /* of records from before there were packed images */

_Static_assert(sizeof(struct store_record) == 112, "records lie on disk as they are");
_Static_assert(offsetof(struct store_record, packed_bytes) == RECORD_BYTES_BEFORE, "older records lack its end only");
_Static_assert(sizeof(struct store_chunk_key) == 38, "chunk keys lie on disk as they are");

/**
 * store_result() - turn LMDB's result into ours
 * @rc:         of an mdb_*() function: 0, an errno, or an MDB_* value
 * @diag:       gets words for what a person can do something about
 *
 * Return: STORE_E_NOT_FOUND, STORE_E_FULL, STORE_E_CORRUPT, STORE_E_INVALID; -errno for all that is left.
 */
int store_result(int rc, struct diag *diag)
{
	switch (rc) {
	case 0:
		return 0;
	case MDB_NOTFOUND:
		return STORE_E_NOT_FOUND;
	case MDB_MAP_FULL:
		return diag_set(diag, STORE_E_FULL, "the store's map is full");
	case ENOSPC:
	case EDQUOT:
	case EFBIG:
		return diag_set(diag, STORE_E_FULL, "no space left in the store's folder: %s", strerror(rc));
	case MDB_CORRUPTED:
	case MDB_PAGE_NOTFOUND:
	case MDB_PANIC:
		return diag_set(diag, STORE_E_CORRUPT, "the store's index is damaged: %s", mdb_strerror(rc));
	case MDB_INVALID:
	case MDB_VERSION_MISMATCH:
		return diag_set(diag, STORE_E_INVALID, "data.mdb is no LMDB file of this version");
	default:
		return error_origin(rc > 0 ? -rc : -EIO);
	}
}

/* MDB_MAP_RESIZED cannot come: the store is locked, so nobody else writes. */
int store_read_begin(struct store_read *read, struct store *store)
{
	assert(!read->store);
	pthread_mutex_lock(&store->lock);
	++store->n_reads;
	pthread_mutex_unlock(&store->lock);
	read->store = store;
	return store_result(mdb_txn_begin(store->file.env, NULL, MDB_RDONLY, &read->txn), NULL);
}

void store_read_end(struct store_read *read)
{
	struct store *store = read->store;

	if (!store)
		return;
	if (read->txn)
		mdb_txn_abort(read->txn);
	pthread_mutex_lock(&store->lock);
	if (--store->n_reads == 0 && store->replacing)
		pthread_cond_signal(&store->quiet);
	pthread_mutex_unlock(&store->lock);
	*read = (struct store_read){};
}

int store_write_begin(struct store_write *write, struct store *store)
{
	assert(!write->store);
	pthread_mutex_lock(&store->write_lock);
	write->store = store;
	return store_result(mdb_txn_begin(store->file.env, NULL, 0, &write->txn), NULL);
}

/* LMDB reports a short write, which is how a disk first shows that it is full, as EIO. */
int store_write_commit(struct store_write *write, struct diag *diag)
{
	int rc = mdb_txn_commit(TAKE_PTR(write->txn));

	if (rc == EIO)
		return diag_set(diag, STORE_E_FULL, "the store's disk took only a part: no space left, or it fails");
	return store_result(rc, diag);
}

/* Drops what was not committed; whoever waits to hold the version that died, or did not, may look again. */
void store_write_end(struct store_write *write)
{
	struct store *store = write->store;

	if (!store)
		return;
	if (write->txn)
		mdb_txn_abort(write->txn);
	pthread_mutex_lock(&store->lock);
	while (write->dying) {
		struct store_held *dying = write->dying;

		write->dying = dying->next_dying;
		store_held_drop(dying);
		pthread_cond_broadcast(&store->died);
	}
	pthread_mutex_unlock(&store->lock);
	pthread_mutex_unlock(&store->write_lock);
	*write = (struct store_write){};
}

struct store_chunk_key store_chunk_key(const struct store_digest *digest, enum image_encoding encoding, uint32_t chunk)
{
	return (struct store_chunk_key){
		.digest = *digest,
		.encoding = (uint8_t)encoding,
		.layout = IMAGE_LAYOUT_VERSION,
		.chunk = { (uint8_t)(chunk >> 24), (uint8_t)(chunk >> 16), (uint8_t)(chunk >> 8), (uint8_t)chunk },
	};
}

static bool image_bytes_sane(uint64_t bytes)
{
	return bytes % IMAGE_PAGE == 0 && bytes <= (uint64_t)IMAGE_CHUNKS_MAX * IMAGE_CHUNK_PAYLOAD;
}

/* The sizes of an image follow from each other; a record whose do not would send the pager astray. */
static bool record_sane(const struct store_record *record)
{
	return record->version == STORE_FORMAT && record->payload_bytes > 0 &&
	       image_bytes_sane(record->payload_bytes) && record->n_chunks == store_chunks(record->payload_bytes) &&
	       image_bytes_sane(record->packed_bytes);
}

/* One from before there were packed images is shorter, and says that it has none. */
int store_get_record(struct store *store, MDB_txn *txn, const struct store_digest *digest, struct store_record *ret)
{
	MDB_val key = store_val_digest(digest), value;
	struct store_record record = {};
	int r;

	r = store_result(mdb_get(txn, store->file.records, &key, &value), NULL);
	if (r)
		return r;
	if (value.mv_size != sizeof(record) && value.mv_size != RECORD_BYTES_BEFORE)
		return STORE_E_CORRUPT;
	memcpy(&record, value.mv_data, value.mv_size);
	if (!record_sane(&record) || memcmp(&record.digest, digest, sizeof(*digest)) != 0)
		return STORE_E_CORRUPT;
	*ret = record;
	return 0;
}

int store_get_name(struct store *store, MDB_txn *txn, const char *name, struct store_digest *ret)
{
	MDB_val key = store_val(name, strlen(name)), value;
	int r;

	if (!store_name_valid(name))
		return STORE_E_NOT_FOUND;
	r = store_result(mdb_get(txn, store->file.names, &key, &value), NULL);
	if (r)
		return r;
	if (value.mv_size != sizeof(*ret))
		return STORE_E_CORRUPT;
	memcpy(ret, value.mv_data, sizeof(*ret));
	return 0;
}

/* ---- the index ---- */

/** store_name_valid() - [A-Za-z0-9][A-Za-z0-9._-]{0,127} */
bool store_name_valid(const char *name)
{
	static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
	size_t n = strnlen(name, STORE_NAME_MAX + 1);

	return n > 0 && n <= STORE_NAME_MAX && !strchr("._-", name[0]) && strspn(name, letters) == n;
}

void store_digest_hex(const struct store_digest *digest, char hex[65])
{
	static const char digits[] = "0123456789abcdef";

	for (size_t i = 0; i < sizeof(digest->bytes); ++i) {
		hex[2 * i] = digits[digest->bytes[i] >> 4];
		hex[2 * i + 1] = digits[digest->bytes[i] & 15];
	}
	hex[64] = '\0';
}

/**
 * store_find() - look a name up
 * @ret_digest, @ret_record: either may be NULL
 *
 * Return: 0, STORE_E_NOT_FOUND, STORE_E_CORRUPT, -errno.
 */
int store_find(struct store *store, const char *name, struct store_digest *ret_digest, struct store_record *ret_record)
{
	_cleanup_(store_read_end) struct store_read read = {};
	struct store_record record;
	struct store_digest digest;
	int r;

	r = store_read_begin(&read, store);
	if (!r)
		r = store_get_name(store, read.txn, name, &digest);
	if (r)
		return error_trace(r);
	r = store_get_record(store, read.txn, &digest, &record);
	if (r)
		return error_trace(r == STORE_E_NOT_FOUND ? STORE_E_CORRUPT : r);
	if (ret_digest)
		*ret_digest = digest;
	if (ret_record)
		*ret_record = record;
	return 0;
}

int store_record(struct store *store, const struct store_digest *digest, struct store_record *ret)
{
	_cleanup_(store_read_end) struct store_read read = {};
	int r;

	r = store_read_begin(&read, store);
	if (!r)
		r = store_get_record(store, read.txn, digest, ret);
	return error_trace(r);
}

/**
 * store_config() - the adapter_config.json a version came with
 * @ret:        its bytes, malloc'd, with a NUL behind them
 *
 * Return: 0, STORE_E_NOT_FOUND, STORE_E_CORRUPT, -errno.
 */
int store_config(struct store *store, const struct store_digest *digest, char **ret, size_t *ret_bytes)
{
	_cleanup_(store_read_end) struct store_read read = {};
	MDB_val key = store_val_digest(digest), value;
	struct store_record record;
	char *copy;
	int r;

	r = store_read_begin(&read, store);
	if (!r)
		r = store_get_record(store, read.txn, digest, &record);
	if (!r)
		r = store_result(mdb_get(read.txn, store->file.configs, &key, &value), NULL);
	if (r)
		return error_trace(r);
	if (value.mv_size != record.config_bytes || crc32c(0, value.mv_data, value.mv_size) != record.config_crc)
		return STORE_E_CORRUPT;
	copy = malloc(value.mv_size + 1);
	if (!copy)
		return error_origin(-ENOMEM);
	memcpy(copy, value.mv_data, value.mv_size);
	copy[value.mv_size] = '\0';
	*ret = copy;
	*ret_bytes = value.mv_size;
	return 0;
}

/**
 * store_each() - call @fn for every name, in byte order
 * @fn:         must not write to the store; what it returns unless 0 ends the walk
 *
 * The walk sees one moment of the store. Return: what @fn returned last, STORE_E_CORRUPT, -errno.
 */
int store_each(struct store *store,
	       int (*fn)(void *userdata, const char *name, const struct store_record *record), void *userdata)
{
	_cleanup_(store_read_end) struct store_read read = {};
	_cleanup_(mdb_cursor_closep) MDB_cursor *cursor = NULL;
	MDB_cursor_op op = MDB_FIRST;
	MDB_val key, value;
	int r;

	r = store_read_begin(&read, store);
	if (!r)
		r = store_result(mdb_cursor_open(read.txn, store->file.names, &cursor), NULL);
	if (r)
		return error_trace(r);
	for (; !(r = store_result(mdb_cursor_get(cursor, &key, &value, op), NULL)); op = MDB_NEXT) {
		struct store_record record;
		struct store_digest digest;
		char name[STORE_NAME_MAX + 1];

		if (key.mv_size > STORE_NAME_MAX || value.mv_size != sizeof(digest))
			return STORE_E_CORRUPT;
		memcpy(name, key.mv_data, key.mv_size);
		name[key.mv_size] = '\0';
		memcpy(&digest, value.mv_data, sizeof(digest));
		r = store_get_record(store, read.txn, &digest, &record);
		if (r)
			return error_trace(r == STORE_E_NOT_FOUND ? STORE_E_CORRUPT : r);
		r = fn(userdata, name, &record);
		if (r)
			return r;
	}
	return error_trace(r == STORE_E_NOT_FOUND ? 0 : r);
}

/* ---- holding versions ---- */

static struct list *bucket_of(struct store *store, const struct store_digest *digest)
{
	uint32_t hash;

	memcpy(&hash, digest, sizeof(hash)); /* a digest's bytes are random */
	return &store->held[hash % STORE_HOLD_BUCKETS];
}

struct store_held *store_held_find(struct store *store, const struct store_digest *digest)
{
	struct list *bucket = bucket_of(store, digest);
	struct store_held *held;

	list_for_each(held, bucket, bucket)
		if (memcmp(&held->digest, digest, sizeof(*digest)) == 0)
			return held;
	return NULL;
}

struct store_held *store_held_add(struct store *store, const struct store_digest *digest)
{
	struct store_held *held = calloc(1, sizeof(*held));

	if (!held)
		return NULL;
	held->digest = *digest;
	list_append(bucket_of(store, digest), &held->bucket);
	return held;
}

void store_held_drop(struct store_held *held)
{
	list_unlink(&held->bucket);
	free(held);
}

static int hold_unchecked(struct store *store, const struct store_digest *digest)
{
	struct store_held *held;
	int r = 0;

	pthread_mutex_lock(&store->lock);
	while ((held = store_held_find(store, digest)) && held->dying)
		pthread_cond_wait(&store->died, &store->lock);
	if (!held)
		held = store_held_add(store, digest);
	if (held)
		++held->holds;
	else
		r = -ENOMEM;
	pthread_mutex_unlock(&store->lock);
	return error_origin(r);
}

/**
 * store_hold() - keep a version readable whatever becomes of its names
 *
 * The hold is counted before the record is looked up: a deletion either sees the hold and leaves the version alone, or
 * had begun before and is waited for (one commit).
 *
 * Return: 0, STORE_E_NOT_FOUND, STORE_E_CORRUPT, -errno.
 */
int store_hold(struct store *store, const struct store_digest *digest, struct store_record *ret_record)
{
	int r;

	r = hold_unchecked(store, digest);
	if (r)
		return error_trace(r);
	r = store_record(store, digest, ret_record);
	if (r)
		store_release(store, digest);
	return error_trace(r);
}

/** store_release() - drop one hold; a version without names then goes with the next put, remove or open */
void store_release(struct store *store, const struct store_digest *digest)
{
	struct store_held *held;

	pthread_mutex_lock(&store->lock);
	held = store_held_find(store, digest);
	assert(held && held->holds > 0 && !held->dying);
	if (--held->holds == 0) {
		store->garbage |= held->nameless;
		store_held_drop(held);
	}
	pthread_mutex_unlock(&store->lock);
}
