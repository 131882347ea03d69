/* SPDX-License-Identifier: MIT */
/* What tests of the store and of what lies above it share: folders that go away, images of random bytes. */
#ifndef LORAD_TESTS_STORE_UTIL_H
#define LORAD_TESTS_STORE_UTIL_H

#include <check.h>
#include <ftw.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/store/store.h"

#define TEST_CONFIG "{\"peft_type\": \"LORA\"}"

static inline const struct image_geometry *test_geometry(void)
{
	static const struct image_geometry geometry = {
		.n_layers = 2, .hidden = 64, .intermediate = 128, .n_heads = 4, .n_kv_heads = 2, .head_dim = 16, .vocab = 256,
	};

	return &geometry;
}

static inline char *test_folder(void)
{
	const char *base = getenv("TMPDIR");
	char *path = NULL;

	ck_assert_int_gt(asprintf(&path, "%s/lorad-test-XXXXXX", base ? base : "/tmp"), 0);
	ck_assert_ptr_nonnull(mkdtemp(path));
	return path;
}

static inline int test_remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st, (void)type, (void)ftw;
	return remove(path);
}

static inline void test_folder_free(char *path)
{
	(void)nftw(path, test_remove_one, 8, FTW_DEPTH | FTW_PHYS);
	free(path);
}

static inline struct store *test_open(const char *folder)
{
	struct diag diag = { "" };
	struct store *store = NULL;
	int r = store_open(&store, folder, &diag);

	ck_assert_msg(r == 0, "store_open: %d %s", r, diag.text);
	return store;
}

/* xorshift: the same bytes for the same seed everywhere. */
static inline void test_fill(void *to, size_t bytes, uint64_t seed)
{
	uint64_t x = seed * 0x9e3779b97f4a7c15u + 1;
	uint8_t *at = to;

	for (size_t i = 0; i < bytes; i += sizeof(x)) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		memcpy(at + i, &x, bytes - i < sizeof(x) ? bytes - i : sizeof(x));
	}
}

static inline struct store_digest test_digest(uint64_t seed)
{
	struct store_digest digest;

	test_fill(&digest, sizeof(digest), seed + 1000003);
	return digest;
}

/* The record of an image of that many bytes whose content test_fill(seed) made. */
static inline struct store_record test_record(uint64_t seed, uint64_t payload_bytes)
{
	return (struct store_record){
		.kind = IMAGE_KIND_LORA,
		.digest = test_digest(seed),
		.payload_bytes = payload_bytes,
		.n_chunks = (uint32_t)((payload_bytes + IMAGE_CHUNK_PAYLOAD - 1) / IMAGE_CHUNK_PAYLOAD),
		.n_modules = 1,
		.max_rank = 1,
		.geometry = *test_geometry(),
		.config_bytes = strlen(TEST_CONFIG),
		.imported_at = 1,
	};
}

static inline uint8_t *test_payload(uint64_t seed, uint64_t payload_bytes)
{
	uint8_t *payload = malloc(payload_bytes);

	ck_assert_ptr_nonnull(payload);
	test_fill(payload, payload_bytes, seed);
	return payload;
}

static inline int test_put(struct store *store, const char *name, uint64_t seed, uint64_t payload_bytes, bool replace,
			   struct diag *diag)
{
	struct store_record record = test_record(seed, payload_bytes);
	uint8_t *payload = test_payload(seed, payload_bytes);
	int r = store_put(store, name, replace, &record, TEST_CONFIG, payload, diag);

	free(payload);
	return r;
}

/* What the packed image of that version consists of. */
static inline uint8_t *test_packed(uint64_t seed, uint64_t packed_bytes)
{
	return test_payload(seed + 500009, packed_bytes);
}

/* As test_put(), with a packed image beside it. */
static inline int test_put_packed(struct store *store, const char *name, uint64_t seed, uint64_t payload_bytes,
				  uint64_t packed_bytes, struct diag *diag)
{
	struct store_record record = test_record(seed, payload_bytes);
	uint8_t *payload = test_payload(seed, payload_bytes), *packed = test_packed(seed, packed_bytes);
	struct store_item item = { .name = name, .replace = true, .record = &record, .config = TEST_CONFIG,
				   .payload = payload, .packed = packed, .diag = diag };

	record.packed_bytes = packed_bytes;
	ck_assert_int_eq(store_put_many(store, &item, 1), 0);
	free(payload);
	free(packed);
	return item.result;
}

/* Turns one byte of data.mdb over, past LMDB. */
static inline void test_flip(const struct store *store, uint64_t offset)
{
	FILE *file = fopen(store_data_path(store), "r+");
	int byte;

	ck_assert_ptr_nonnull(file);
	ck_assert_int_eq(fseek(file, (long)offset, SEEK_SET), 0);
	byte = fgetc(file);
	ck_assert_int_ne(byte, EOF);
	ck_assert_int_eq(fseek(file, (long)offset, SEEK_SET), 0);
	ck_assert_int_ne(fputc(byte ^ 0x10, file), EOF);
	ck_assert_int_eq(fclose(file), 0);
}

/* Where a chunk's payload lies in data.mdb. */
static inline uint64_t test_image_offset(struct store *store, uint64_t seed, enum image_encoding encoding,
					 uint32_t chunk)
{
	const struct store_digest digest = test_digest(seed);
	struct store_snapshot *snapshot = NULL;
	const struct store_chunk *chunks;
	uint64_t offset;

	ck_assert_int_eq(store_snapshot_open(store, &digest, encoding, &snapshot), 0);
	ck_assert_uint_gt(store_snapshot_chunks(snapshot, &chunks), chunk);
	offset = chunks[chunk].file_offset;
	store_snapshot_close(snapshot);
	return offset;
}

static inline uint64_t test_chunk_offset(struct store *store, uint64_t seed, uint32_t chunk)
{
	return test_image_offset(store, seed, IMAGE_SOURCE, chunk);
}

#endif
