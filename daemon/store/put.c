/* SPDX-License-Identifier: MIT */
/*
 * Writing a version
 *
 * A large version is written in several short transactions, a few chunks each, so that nobody waits long for the one
 * writer's lock. Its chunks are those of the source's image, then those of the packed one if there is one; a
 * transaction may take the last of the one and the first of the other. Until the last transaction they have no record:
 * nothing leads to them. The first also notes the digest in the database `pending`; the last removes that note and adds
 * record, config and name, all at once. An import that dies in between leaves a note, and whoever writes or opens the
 * store next deletes the chunks, whichever image they are of, and reuses their pages. A version of a few chunks needs
 * one transaction, and no note.
 *
 * Small versions share a transaction (store_put_many()): a commit waits for the disk twice, however little it writes.
 * If one of them cannot be written each is put by itself, so that its own reason is its own.
 *
 * Chunks are reserved in LMDB's own pages and filled there: no second copy of the payload is made. All values but an
 * image's last have one size, 1,024 pages with LMDB's header, so that the space of a deleted one fits the next.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "daemon/store/store-internal.h"

#define CHUNKS_PER_WRITE 4u
#define FORGET_BYTES ((uint64_t)64 << 20) /* written between two times that the page cache is emptied */

/* One of a version's images; of no bytes and no chunks where the version has none in that encoding. */
struct put_image {
	const uint8_t *payload;
	uint64_t bytes;
	uint32_t n_chunks;
	struct image_header header; /* of chunk 0; the others' are made from it */
};

/* What is being put, from a struct store_item. */
struct put {
	struct store *store;
	const char *name;
	bool replace;
	struct store_record record;
	const char *config;
	struct put_image image[_IMAGE_ENCODING_N];
	uint64_t bytes;    /* of all images */
	uint32_t n_chunks; /* of all images; counted through, the source's first */
	struct diag *diag;
};

static const uint8_t *chunk_payload(const struct put_image *image, uint32_t chunk)
{
	return image->payload + (size_t)chunk * IMAGE_CHUNK_PAYLOAD;
}

static void make_header(const struct store_record *record, struct put_image *image)
{
	assert(image->payload || !image->n_chunks); /* only a version that is there needs none: it gets a name */
	image->header = (struct image_header){
		.layout_version = IMAGE_LAYOUT_VERSION,
		.kind = record->kind,
		.payload_bytes = image->bytes,
		.n_chunks = image->n_chunks,
		.n_modules = record->n_modules,
		.max_rank = record->max_rank,
		.geometry = record->geometry,
	};
	memcpy(image->header.digest, record->digest.bytes, sizeof(image->header.digest));
	for (uint32_t i = 0; i < image->n_chunks; ++i)
		image->header.chunk_crc[i] = crc32c(0, chunk_payload(image, i), store_chunk_bytes(image->bytes, i));
}

static void make_headers(struct put *put)
{
	for (enum image_encoding encoding = IMAGE_SOURCE; encoding < _IMAGE_ENCODING_N; ++encoding)
		make_header(&put->record, &put->image[encoding]);
}

static int write_image_chunk(struct put *put, struct store_write *write, enum image_encoding encoding, uint32_t chunk)
{
	const struct put_image *image = &put->image[encoding];
	struct store_chunk_key id = store_chunk_key(&put->record.digest, encoding, chunk);
	uint32_t bytes = store_chunk_bytes(image->bytes, chunk);
	MDB_val key = store_val(&id, sizeof(id)), value = store_val(NULL, IMAGE_HEADER_BYTES + bytes);
	struct image_header header = image->header;
	int rc;

	rc = mdb_put(write->txn, put->store->file.chunks, &key, &value, MDB_RESERVE);
	if (rc)
		return store_result(rc, put->diag);
	header.chunk = chunk;
	if (chunk > 0)
		memset(header.chunk_crc, 0, sizeof(header.chunk_crc));
	image_header_seal(&header);
	memcpy(value.mv_data, &header, sizeof(header));
	memset((uint8_t *)value.mv_data + sizeof(header), 0, IMAGE_HEADER_BYTES - sizeof(header));
	memcpy((uint8_t *)value.mv_data + IMAGE_HEADER_BYTES, chunk_payload(image, chunk), bytes);
	return 0;
}

/* A chunk of the version: the number goes on from one image to the next. */
static int write_chunk(struct put *put, struct store_write *write, uint32_t chunk)
{
	enum image_encoding encoding = IMAGE_SOURCE;

	assert(chunk < put->n_chunks);
	while (chunk >= put->image[encoding].n_chunks)
		chunk -= put->image[encoding++].n_chunks;
	return write_image_chunk(put, write, encoding, chunk);
}

static int write_chunks(struct put *put, struct store_write *write, uint32_t first, uint32_t n)
{
	int r = 0;

	for (uint32_t i = first; i < first + n && !r; ++i)
		r = write_chunk(put, write, i);
	return r;
}

/* Judges the name, then points it to the version. The version it pointed to goes if nothing else leads to it. */
static int write_name(struct put *put, struct store_write *write)
{
	MDB_val key = store_val(put->name, strlen(put->name)), value = store_val_digest(&put->record.digest);
	struct store_digest old;
	int r, found;

	found = store_get_name(put->store, write->txn, put->name, &old);
	if (found && found != STORE_E_NOT_FOUND)
		return found;
	if (!found && memcmp(&old, &put->record.digest, sizeof(old)) == 0)
		return STORE_E_SAME;
	if (!found && !put->replace)
		return diag_set(put->diag, STORE_E_EXISTS, "%s: the name is taken by other content", put->name);
	r = store_result(mdb_put(write->txn, put->store->file.names, &key, &value, 0), put->diag);
	if (r || found)
		return r;
	return store_retire(write, &old);
}

/* The version is there already: only the name is new. STORE_E_NOT_FOUND: it is not there, but the name may have it. */
static int put_name(struct put *put)
{
	_cleanup_(store_write_end) struct store_write write = {};
	struct store_digest old;
	struct store_record there;
	int r;

	r = store_write_begin(&write, put->store);
	if (r)
		return r;
	r = store_get_record(put->store, write.txn, &put->record.digest, &there);
	if (r == STORE_E_NOT_FOUND && !put->replace && !store_get_name(put->store, write.txn, put->name, &old))
		return diag_set(put->diag, STORE_E_EXISTS, "%s: the name is taken by other content", put->name);
	if (!r)
		r = write_name(put, &write);
	if (!r)
		r = store_write_commit(&write, put->diag);
	return r;
}

static int put_some_chunks(struct put *put, uint32_t first, uint32_t n)
{
	_cleanup_(store_write_end) struct store_write write = {};
	MDB_val key = store_val_digest(&put->record.digest), nothing = store_val("", 0);
	int r;

	r = store_write_begin(&write, put->store);
	if (!r)
		r = store_result(mdb_put(write.txn, put->store->file.pending, &key, &nothing, 0), put->diag);
	if (!r)
		r = write_chunks(put, &write, first, n);
	if (!r)
		r = store_write_commit(&write, put->diag);
	return r;
}

/* The chunks from first on, and everything that makes the version visible. */
static int write_last_chunks(struct put *put, struct store_write *write, uint32_t first)
{
	struct store *store = put->store;
	MDB_val key = store_val_digest(&put->record.digest);
	MDB_val record = store_val(&put->record, sizeof(put->record));
	MDB_val config = store_val(put->config, put->record.config_bytes);
	int r;

	r = write_chunks(put, write, first, put->n_chunks - first);
	if (!r)
		r = store_result(mdb_del(write->txn, store->file.pending, &key, NULL), put->diag);
	if (!r || r == STORE_E_NOT_FOUND)
		r = store_result(mdb_put(write->txn, store->file.records, &key, &record, 0), put->diag);
	if (!r)
		r = store_result(mdb_put(write->txn, store->file.configs, &key, &config, 0), put->diag);
	return r ? r : write_name(put, write);
}

static int put_last_chunks(struct put *put, uint32_t first)
{
	_cleanup_(store_write_end) struct store_write write = {};
	int r;

	r = store_write_begin(&write, put->store);
	if (!r)
		r = write_last_chunks(put, &write, first);
	if (!r)
		r = store_write_commit(&write, put->diag);
	return r;
}

/* Readers go past the page cache: what was written need not stay there. */
static void forget_written(struct store *store, uint64_t bytes)
{
	store->written += bytes;
	if (store->written < FORGET_BYTES)
		return;
	store->written = 0;
	(void)posix_fadvise(store->file.data_fd, 0, 0, POSIX_FADV_DONTNEED);
}

static int put_version(struct put *put)
{
	uint32_t at;
	int r = 0;

	make_headers(put);
	for (at = 0; put->n_chunks - at > CHUNKS_PER_WRITE && !r; at += CHUNKS_PER_WRITE)
		r = put_some_chunks(put, at, CHUNKS_PER_WRITE);
	if (!r)
		r = put_last_chunks(put, at);
	if (!r)
		forget_written(put->store, put->bytes);
	return r;
}

/* A version in transactions of its own. */
static int try_alone(struct put *put)
{
	int r, swept;

	r = put_name(put);
	if (r != STORE_E_NOT_FOUND)
		return r;
	r = put_version(put);
	swept = r ? store_sweep_pending(put->store) : 0;
	return swept < 0 ? swept : r;
}

/* A commit that changes nothing: LMDB gives out what a commit freed only after the one that follows it. */
static int commit_nothing(struct store *store)
{
	_cleanup_(store_write_end) struct store_write write = {};
	MDB_val key = store_val("ripe", 4), value = store_val("", 0);
	int r = store_write_begin(&write, store);

	if (!r)
		r = store_result(mdb_put(write.txn, store->file.meta, &key, &value, 0), NULL);
	return r ? r : store_write_commit(&write, NULL);
}

/* On a full disk a second time, with what the removal before may have freed. */
static int put_alone(struct put *put)
{
	int r = try_alone(put);

	if (r != STORE_E_FULL || commit_nothing(put->store))
		return r;
	return try_alone(put);
}

/* A version among others of one transaction. SAME, EXISTS: nothing was written for it, the others go on. */
static int write_together(struct put *put, struct store_write *write)
{
	struct store_digest old;
	struct store_record there;
	int r;

	r = store_get_record(put->store, write->txn, &put->record.digest, &there);
	if (!r)
		return write_name(put, write);
	if (r != STORE_E_NOT_FOUND)
		return r;
	if (!put->replace && !store_get_name(put->store, write->txn, put->name, &old))
		return diag_set(put->diag, STORE_E_EXISTS, "%s: the name is taken by other content", put->name);
	make_headers(put);
	return write_last_chunks(put, write, 0);
}

/* Return: 0, committed, with each one's result; else nothing was written. */
static int put_together(struct store *store, struct put *puts, struct store_item *items, size_t n)
{
	_cleanup_(store_write_end) struct store_write write = {};
	uint64_t bytes = 0;
	int r;

	r = store_write_begin(&write, store);
	for (size_t i = 0; i < n && !r; ++i) {
		items[i].result = write_together(&puts[i], &write);
		bytes += items[i].result ? 0 : puts[i].bytes;
		if (items[i].result != STORE_E_SAME && items[i].result != STORE_E_EXISTS)
			r = items[i].result;
	}
	if (!r)
		r = store_write_commit(&write, NULL);
	if (!r)
		forget_written(store, bytes);
	return r;
}

static void add_image(struct put *put, enum image_encoding encoding, const void *payload)
{
	struct put_image *image = &put->image[encoding];

	image->payload = payload;
	image->bytes = store_image_bytes(&put->record, encoding);
	image->n_chunks = store_chunks(image->bytes);
	assert(image->n_chunks <= IMAGE_CHUNKS_MAX);
	put->bytes += image->bytes;
	put->n_chunks += image->n_chunks;
}

static struct put make_put(struct store *store, const struct store_item *item)
{
	const struct store_record *record = item->record;
	struct put put = { .store = store, .name = item->name, .replace = item->replace, .record = *record,
			   .config = item->config, .diag = item->diag };

	assert(store_name_valid(item->name));
	add_image(&put, IMAGE_SOURCE, item->payload);
	add_image(&put, IMAGE_PACKED, item->packed);
	assert(!item->packed == !record->packed_bytes);
	assert(record->n_chunks > 0 && record->n_chunks == put.image[IMAGE_SOURCE].n_chunks);
	put.record.version = STORE_FORMAT;
	put.record.config_crc = crc32c(0, item->config, record->config_bytes);
	return put;
}

static bool fit_together(const struct store_item *items, size_t n)
{
	uint64_t bytes = 0;

	for (size_t i = 0; i < n; ++i)
		bytes += items[i].record->payload_bytes + items[i].record->packed_bytes;
	return n > 1 && bytes <= STORE_TOGETHER_BYTES;
}

/**
 * store_put_many() - add versions and their names
 * @items:      with or without a packed image; result of each is set: see store_put()
 * @n:          at least 1; those that fit in STORE_TOGETHER_BYTES are committed at once, all others one by one
 *
 * Return: 0, -errno: the store cannot go on, and some results may not be set.
 */
int store_put_many(struct store *store, struct store_item *items, size_t n)
{
	_cleanup_free_ struct put *puts = calloc(n, sizeof(*puts));
	bool together = fit_together(items, n);
	int r;

	if (!puts)
		return error_origin(-ENOMEM);
	for (size_t i = 0; i < n; ++i)
		puts[i] = make_put(store, &items[i]);
	pthread_mutex_lock(&store->put_lock);
	r = store_sweep_versions(store, /* all= */ false);
	if (!r)
		r = store_sweep_pending(store);
	together = together && !r && !put_together(store, puts, items, n);
	for (size_t i = 0; i < n && !together; ++i)
		items[i].result = r ? r : put_alone(&puts[i]);
	pthread_mutex_unlock(&store->put_lock);
	return r < 0 ? error_trace(r) : 0;
}

/**
 * store_put() - add a version and its name
 * @name:       valid by store_name_valid()
 * @replace:    may take a name away from other content
 * @record:     all of it but config_crc; no packed_bytes
 * @config:     record->config_bytes, kept verbatim
 * @payload:    record->payload_bytes
 * @diag:       says why not
 *
 * Content that is there already gets the name only, its images stay as they are. Nothing is visible before all of it is
 * on the disk.
 *
 * Return: 0; STORE_E_SAME: nothing to do; STORE_E_EXISTS; STORE_E_FULL: the store is as it was; STORE_E_CORRUPT; -errno.
 */
int store_put(struct store *store, const char *name, bool replace, const struct store_record *record, const char *config,
	      const void *payload, struct diag *diag)
{
	struct store_item item = { .name = name, .replace = replace, .record = record, .config = config, .payload = payload,
				   .diag = diag };
	int r;

	assert(record->packed_bytes == 0);
	r = store_put_many(store, &item, 1);
	return error_trace(r ? r : item.result);
}
