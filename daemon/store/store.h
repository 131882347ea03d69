/* SPDX-License-Identifier: MIT */
/* The adapter store: LMDB index (names -> digests -> records) and images (chunks). See store.c. */
#ifndef LORAD_STORE_STORE_H
#define LORAD_STORE_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/base/cleanup.h"
#include "daemon/base/error.h"
#include "daemon/format/image.h"

struct store;

enum store_result {
	STORE_OK,
	STORE_E_NOT_FOUND,
	STORE_E_EXISTS,    /* the name has other content */
	STORE_E_SAME,      /* the name has this content already */
	STORE_E_BUSY,      /* another daemon holds the store */
	STORE_E_FULL,      /* the disk or the map */
	STORE_E_CORRUPT,
	STORE_E_INVALID,   /* what lies there is no store of ours */
	STORE_E_CANCELLED, /* the watch said so */
};

#define STORE_NAME_MAX 128

struct store_digest {
	uint8_t bytes[IMAGE_DIGEST_BYTES];
};

/*
 * What the index knows of one version; the images lie beside it. Stored as it is, version first; grown at its end once,
 * see store_get_record().
 */
struct store_record {
	uint32_t version, kind;
	struct store_digest digest;
	uint64_t payload_bytes;      /* of the source's image, and its chunks */
	uint32_t n_chunks, n_modules, max_rank;
	uint32_t config_crc;         /* crc32c of config, set by store_put() */
	struct image_geometry geometry;
	uint32_t config_bytes;       /* of the source's adapter_config.json, kept verbatim for export */
	uint64_t imported_at;        /* seconds since 1970 */
	uint64_t packed_bytes;       /* payload of the packed image beside it; 0: there is none */
};

/* Payload of one of a version's images; 0: it has none in this encoding. */
static inline uint64_t store_image_bytes(const struct store_record *record, enum image_encoding encoding)
{
	return encoding == IMAGE_PACKED ? record->packed_bytes : record->payload_bytes;
}

int store_open(struct store **ret, const char *directory, struct diag *diag);
struct store *store_close(struct store *store);
DEFINE_CLEANUP(struct store *, store_close)
const char *store_data_path(const struct store *store); /* data.mdb */

bool store_name_valid(const char *name);
void store_digest_hex(const struct store_digest *digest, char hex[65]);

int store_find(struct store *store, const char *name, struct store_digest *ret_digest, struct store_record *ret_record);
int store_record(struct store *store, const struct store_digest *digest, struct store_record *ret);
int store_config(struct store *store, const struct store_digest *digest, char **ret, size_t *ret_bytes);
int store_each(struct store *store,
	       int (*fn)(void *userdata, const char *name, const struct store_record *record), void *userdata);

/*
 * Makes name -> digest and the source's image appear at once; with a packed image beside it: store_put_many(). Blocks
 * for disk writes: call it on a thread that may wait.
 */
int store_put(struct store *store, const char *name, bool replace, const struct store_record *record, const char *config,
	      const void *payload, struct diag *diag);

/* One of several to be put, as store_put()'s arguments, and the packed image. */
struct store_item {
	const char *name;
	bool replace;
	const struct store_record *record;
	const char *config;
	const void *payload;
	const void *packed;       /* record->packed_bytes, or NULL */
	struct diag *diag;
	int result;               /* what store_put() would return */
};

#define STORE_TOGETHER_BYTES ((uint64_t)16 << 20) /* of payload, at most, one transaction takes of several versions */

int store_put_many(struct store *store, struct store_item *items, size_t n);
int store_remove(struct store *store, const char *name);
int store_read(struct store *store, const struct store_digest *digest, uint8_t **ret_payload,
	       struct store_record *ret_record, struct diag *diag); /* the source's image, every byte checked; slow */

/* How work on many bytes is paced and ended; called on the thread that does it. */
struct store_watch {
	bool (*go_on)(void *userdata, uint64_t bytes); /* before that many more; may wait; false: end */
	void *userdata;
};

int store_verify(struct store *store, const struct store_digest *digest, const struct store_watch *watch,
		 struct diag *diag);

struct store_space {
	uint64_t file_bytes, free_bytes; /* of data.mdb; the part of it that what comes next can use */
};

int store_space(struct store *store, struct store_space *ret);
int store_compact(struct store *store, const struct store_watch *watch, struct store_space *ret_before,
		  struct store_space *ret_after, struct diag *diag);

/* While a version is held it can be read, whatever becomes of its names. Release never writes and never waits. */
int store_hold(struct store *store, const struct store_digest *digest, struct store_record *ret_record);
void store_release(struct store *store, const struct store_digest *digest);

/* A pinned snapshot with the place of every chunk of one image in data.mdb; hold it until the last read is done. */
struct store_snapshot;

struct store_chunk {
	const uint8_t *value;   /* the mapped value, header first */
	uint64_t file_offset;   /* of the payload in data.mdb, page-aligned, header right before; 0: unknown, use the map */
	uint32_t bytes;         /* of the payload */
};

int store_snapshot_open(struct store *store, const struct store_digest *digest, enum image_encoding encoding,
			struct store_snapshot **ret);
struct store_snapshot *store_snapshot_close(struct store_snapshot *snapshot);
DEFINE_CLEANUP(struct store_snapshot *, store_snapshot_close)
const struct store_record *store_snapshot_record(const struct store_snapshot *snapshot);
uint32_t store_snapshot_chunks(const struct store_snapshot *snapshot, const struct store_chunk **ret);

/* For threads that have snapshots open nearly all the time: see compact.c. */
bool store_may_read(struct store *store, bool has);
uint64_t store_generation(struct store *store);

#endif
