/* SPDX-License-Identifier: MIT */
/*
 * Snapshots: where the chunks of one image of a version lie, for as long as somebody reads them
 *
 * A snapshot is a reading transaction. While it is open LMDB reuses none of the pages it can see, so that the file
 * offsets stay true even if the version is deleted meanwhile. That has a price: the file grows instead of reusing space
 * as long as an old snapshot is open. Keep it for the length of one load.
 *
 * Looking chunks up touches index pages only, never a page of an image: LMDB computes a large value's address from its
 * page number, and the file offset follows from the address (see probe.c).
 */
#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "daemon/store/store-internal.h"

struct store_snapshot {
	struct store_read read;
	struct store_record record;
	enum image_encoding encoding;
	uint32_t n_chunks;
	struct store_chunk chunks[]; /* [n_chunks] */
};

static int locate(struct store *store, struct store_snapshot *snapshot, uint32_t chunk)
{
	struct store_chunk_key id = store_chunk_key(&snapshot->record.digest, snapshot->encoding, chunk);
	uint32_t bytes = store_chunk_bytes(store_image_bytes(&snapshot->record, snapshot->encoding), chunk);
	MDB_val key = store_val(&id, sizeof(id)), value;
	int r;

	r = store_result(mdb_get(snapshot->read.txn, store->file.chunks, &key, &value), NULL);
	if (r == STORE_E_NOT_FOUND || (!r && value.mv_size != IMAGE_HEADER_BYTES + bytes))
		return STORE_E_CORRUPT;
	if (r)
		return error_trace(r);
	snapshot->chunks[chunk] = (struct store_chunk){
		.value = value.mv_data,
		.file_offset = store_file_offset(store, value.mv_data),
		.bytes = bytes,
	};
	return 0;
}

/**
 * store_snapshot_open() - pin a version and find the chunks of one of its images
 * @ret:        close it when the last read is done, from any thread
 *
 * Return: 0; STORE_E_NOT_FOUND: no such version, or it has no image in that encoding; STORE_E_CORRUPT, -errno.
 */
int store_snapshot_open(struct store *store, const struct store_digest *digest, enum image_encoding encoding,
			struct store_snapshot **ret)
{
	_cleanup_(store_snapshot_closep) struct store_snapshot *snapshot = NULL;
	_cleanup_(store_read_end) struct store_read read = {};
	struct store_record record;
	uint32_t n_chunks;
	int r;

	r = store_read_begin(&read, store);
	if (!r)
		r = store_get_record(store, read.txn, digest, &record);
	if (r)
		return error_trace(r);
	n_chunks = store_chunks(store_image_bytes(&record, encoding));
	if (!n_chunks)
		return STORE_E_NOT_FOUND;
	snapshot = calloc(1, sizeof(*snapshot) + n_chunks * sizeof(snapshot->chunks[0]));
	if (!snapshot)
		return error_origin(-ENOMEM);
	snapshot->read = read;
	read = (struct store_read){};
	snapshot->record = record;
	snapshot->encoding = encoding;
	snapshot->n_chunks = n_chunks;
	for (uint32_t i = 0; i < n_chunks && !r; ++i)
		r = locate(store, snapshot, i);
	if (r)
		return error_trace(r);
	*ret = TAKE_PTR(snapshot);
	return 0;
}

struct store_snapshot *store_snapshot_close(struct store_snapshot *snapshot)
{
	if (!snapshot)
		return NULL;
	store_read_end(&snapshot->read);
	free(snapshot);
	return NULL;
}

const struct store_record *store_snapshot_record(const struct store_snapshot *snapshot)
{
	return &snapshot->record;
}

uint32_t store_snapshot_chunks(const struct store_snapshot *snapshot, const struct store_chunk **ret)
{
	*ret = snapshot->chunks;
	return snapshot->n_chunks;
}
