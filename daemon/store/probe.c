/* SPDX-License-Identifier: MIT */
/*
 * Where values lie in the file: proven, not assumed
 *
 * LMDB keeps a value larger than a page in neighbouring pages of its own. In front of it stands a page header of 16
 * bytes: the number of the page (8 bytes), 2 unused, flags (2 bytes; 4: overflow page), the count of pages (4 bytes).
 * The file is mapped as one, so that
 *
 *   address of the map = address of the value - 16 - page number * page size
 *   offset in the file = address of the value - address of the map
 *
 * None of this is LMDB's promise. So the store keeps two values of its own, the probes, and at each open checks on both
 * that flag and page count are as expected, that both give the same map address, and that reading the file at the
 * computed offset gives the very bytes that mdb_get() returned. If not, file offsets stay unknown (0) and the pager
 * falls back to copying out of the map. Page headers of images are never looked at: that would fault their pages in.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "daemon/store/store-internal.h"

#define OVERFLOW_FLAG 4u
#define PROBE_PAYLOAD (2u * IMAGE_PAGE)
#define PROBE_BYTES (IMAGE_HEADER_BYTES + PROBE_PAYLOAD)

static const char *const probe_keys[] = { "probe-a", "probe-b" };

struct page_header {
	uint64_t number;
	uint16_t unused, flags;
	uint32_t pages;
};

_Static_assert(sizeof(struct page_header) == STORE_PAGE_HEADER, "LMDB's page header");

/* Writes the probes once in a store's life: their pages then never move. */
static int write_probes(struct store *store)
{
	_cleanup_(store_write_end) struct store_write write = {};
	uint8_t bytes[PROBE_BYTES];
	int r;

	r = store_write_begin(&write, store);
	for (size_t i = 0; i < 2 && !r; ++i) {
		MDB_val key = store_val(probe_keys[i], strlen(probe_keys[i])), value = store_val(bytes, sizeof(bytes));

		for (size_t j = 0; j < sizeof(bytes); ++j)
			bytes[j] = (uint8_t)(j * 131 + (j >> 8) + i);
		r = store_result(mdb_put(write.txn, store->file.meta, &key, &value, MDB_NOOVERWRITE), NULL);
	}
	if (!r)
		r = store_write_commit(&write, NULL);
	return error_trace(r);
}

/* The map's address as this value's page header gives it; NULL where something is not as expected. */
static const uint8_t *map_from(const struct store *store, const MDB_val *value)
{
	struct page_header header;
	uint8_t bytes[PROBE_BYTES];
	off_t offset;

	if (value->mv_size != PROBE_BYTES)
		return NULL;
	memcpy(&header, (const uint8_t *)value->mv_data - sizeof(header), sizeof(header));
	if (!(header.flags & OVERFLOW_FLAG) ||
	    header.pages != (sizeof(header) + value->mv_size + store->file.page - 1) / store->file.page)
		return NULL;
	offset = (off_t)(header.number * store->file.page + sizeof(header));
	if (pread(store->file.data_fd, bytes, sizeof(bytes), offset) != (ssize_t)sizeof(bytes) ||
	    memcmp(bytes, value->mv_data, sizeof(bytes)) != 0)
		return NULL;
	return (const uint8_t *)value->mv_data - offset;
}

/* Sets store->file.map where both probes agree on it, and store->file.probe. STORE_E_NOT_FOUND: there are no probes yet. */
static int read_probes(struct store *store)
{
	_cleanup_(store_read_end) struct store_read read = {};
	const uint8_t *map[2];
	MDB_val value[2];
	int r;

	r = store_read_begin(&read, store);
	for (size_t i = 0; i < 2 && !r; ++i) {
		MDB_val key = store_val(probe_keys[i], strlen(probe_keys[i]));

		r = store_result(mdb_get(read.txn, store->file.meta, &key, &value[i]), NULL);
		if (!r)
			map[i] = map_from(store, &value[i]);
	}
	if (r)
		return r;
	if (map[0] && map[0] == map[1] && value[0].mv_data != value[1].mv_data)
		store->file.map = map[0];
	store->file.probe = (struct store_chunk){
		.value = value[0].mv_data,
		.file_offset = store_file_offset(store, value[0].mv_data),
		.bytes = PROBE_PAYLOAD,
	};
	return 0;
}

/* Return: 0, proven or not; -errno; what LMDB says where the index cannot be read. */
int store_probe_init(struct store *store)
{
	int r;

	r = read_probes(store);
	if (r == STORE_E_NOT_FOUND) {
		r = write_probes(store);
		if (!r)
			r = read_probes(store);
	}
	return error_trace(r);
}

/* The offset of a value's payload in data.mdb, or 0 where it is not known. */
uint64_t store_file_offset(const struct store *store, const void *value)
{
	if (!store->file.map)
		return 0;
	return (uint64_t)((const uint8_t *)value - store->file.map) + IMAGE_HEADER_BYTES;
}
