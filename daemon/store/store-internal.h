/* SPDX-License-Identifier: MIT */
/* What the files of the store share. Nobody outside daemon/store/ includes this. */
#ifndef LORAD_STORE_STORE_INTERNAL_H
#define LORAD_STORE_STORE_INTERNAL_H

#include <lmdb.h>
#include <pthread.h>

#include "daemon/base/list.h"
#include "daemon/store/store.h"

#define STORE_FORMAT 1u
#define STORE_HOLD_BUCKETS 1024u
#define STORE_PAGE_HEADER 16u    /* LMDB's, in front of every large value */

/* The key of a chunk. Big-endian number: a version's chunks are neighbours, image by image, in order. */
struct store_chunk_key {
	struct store_digest digest;
	uint8_t encoding;        /* enum image_encoding */
	uint8_t layout;          /* IMAGE_LAYOUT_VERSION */
	uint8_t chunk[4];
};

/* A version somebody holds, or one that is being deleted right now. */
struct store_held {
	struct list bucket;
	struct store_digest digest;
	unsigned holds;
	bool dying;              /* its deletion is being committed */
	bool nameless;           /* its last name went while it was held */
	struct store_held *next_dying; /* in the same write */
};

/* An open data.mdb. Compaction puts another one in its place, see compact.c. */
struct store_file {
	int data_fd;
	MDB_env *env;
	MDB_dbi meta, names, records, configs, chunks, pending;
	const uint8_t *map;      /* where data.mdb is mapped; NULL: not proven, see probe.c */
	size_t page;             /* LMDB's */
	struct store_chunk probe; /* a value that never changes, to try readers on */
};

struct store {
	char *directory, *data_path;
	int lock_fd;
	struct store_file file;  /* written under all locks, with no transaction open */

	pthread_mutex_t put_lock; /* one image is written at a time; outermost */
	uint64_t written;        /* bytes, since they were last dropped from the page cache; under put_lock */
	pthread_mutex_t write_lock; /* one writing transaction at a time, with what belongs to it in memory */
	pthread_mutex_t lock;    /* all below; innermost */
	pthread_cond_t died;
	struct list held[STORE_HOLD_BUCKETS];
	bool garbage;            /* a nameless version lost its last hold: sweep */
	unsigned n_reads;        /* reading transactions */
	bool replacing;          /* the file is to be replaced once there are none */
	uint64_t generation;     /* how often it was */
	pthread_cond_t quiet, replaced;
};

DEFINE_CLEANUP(MDB_txn *, mdb_txn_abort)
DEFINE_CLEANUP(MDB_cursor *, mdb_cursor_close)

static inline MDB_val store_val(const void *data, size_t bytes)
{
	return (MDB_val){ .mv_size = bytes, .mv_data = (void *)(uintptr_t)data };
}

static inline MDB_val store_val_digest(const struct store_digest *digest)
{
	return store_val(digest, sizeof(*digest));
}

struct store_chunk_key store_chunk_key(const struct store_digest *digest, enum image_encoding encoding, uint32_t chunk);

/* An image of that many bytes: its chunks, and the payload of one of them. All are full but the last. */
static inline uint32_t store_chunks(uint64_t image_bytes)
{
	return (uint32_t)((image_bytes + IMAGE_CHUNK_PAYLOAD - 1) / IMAGE_CHUNK_PAYLOAD);
}

static inline uint32_t store_chunk_bytes(uint64_t image_bytes, uint32_t chunk)
{
	uint64_t left = image_bytes - (uint64_t)chunk * IMAGE_CHUNK_PAYLOAD;

	return left < IMAGE_CHUNK_PAYLOAD ? (uint32_t)left : IMAGE_CHUNK_PAYLOAD;
}

/* What messages call a chunk: the source's image is what people know of. */
static inline const char *store_chunk_word(enum image_encoding encoding)
{
	return encoding == IMAGE_PACKED ? "packed chunk" : "chunk";
}

/* A reading transaction: a snapshot. Zeroed, it is none; end it with store_read_end() on every path. */
struct store_read {
	struct store *store;
	MDB_txn *txn;
};

/* store.c */
int store_read_begin(struct store_read *read, struct store *store);
void store_read_end(struct store_read *read);
struct store *store_alloc(void);
int store_open_file(struct store *store, const char *env_path, unsigned env_flags, struct diag *diag);
int store_result(int rc, struct diag *diag);   /* LMDB's results -> ours */
int store_get_record(struct store *store, MDB_txn *txn, const struct store_digest *digest, struct store_record *ret);
int store_get_name(struct store *store, MDB_txn *txn, const char *name, struct store_digest *ret);

struct store_held *store_held_find(struct store *store, const struct store_digest *digest); /* with lock */
struct store_held *store_held_add(struct store *store, const struct store_digest *digest);
void store_held_drop(struct store_held *held);

/* A writing transaction; end it with store_write_end() on every path, committed or not. */
struct store_write {
	struct store *store;
	MDB_txn *txn;
	struct store_held *dying; /* the versions it deletes */
};

int store_write_begin(struct store_write *write, struct store *store);
int store_write_commit(struct store_write *write, struct diag *diag);
void store_write_end(struct store_write *write);

/* sweep.c: deletion */
int store_retire(struct store_write *write, const struct store_digest *digest);
int store_sweep_versions(struct store *store, bool all); /* not all: only if one lost its last hold */
int store_sweep_pending(struct store *store);            /* with put_lock */

/* compact.c */
int store_drop_compact(struct store *store); /* what a killed compaction left */

/* probe.c: where values lie in the file */
int store_probe_init(struct store *store);
uint64_t store_file_offset(const struct store *store, const void *value);

/* verify.c */
int store_open_direct(const struct store *store, bool *ret_direct);
int store_check_header(const struct store_record *record, enum image_encoding encoding, uint32_t chunk,
		       const void *value, size_t bytes, const struct image_header **ret, struct diag *diag);

#endif
