/* SPDX-License-Identifier: MIT */
/*
 * Verifying a version: every byte of its images, as it lies on the disk
 *
 * Reads each chunk with its header past the page cache where that is possible, and checks the header's own sum, that it
 * is the right header (digest, number, sizes as in the record), and the sum of the payload. The config has a sum in the
 * record.
 *
 * Who verifies slowly, with a watch, holds neither a snapshot nor a descriptor between two chunks: deleted pages can be
 * reused and the file can be replaced by a compacted one meanwhile.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "daemon/store/store-internal.h"

/* data.mdb for reading past the page cache, or else through it. */
int store_open_direct(const struct store *store, bool *ret_direct)
{
	int fd;

	fd = open(store->data_path, O_RDONLY | O_CLOEXEC | O_DIRECT);
	*ret_direct = fd >= 0;
	if (fd < 0 && errno == EINVAL)
		fd = open(store->data_path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? error_origin(-errno) : fd;
}

/* The chunk's value into the buffer; *ret_value points to where it begins. */
static int read_value(int fd, const struct store_chunk *chunk, uint8_t *buffer, const uint8_t **ret_value,
		      struct diag *diag)
{
	size_t bytes = IMAGE_PAGE + chunk->bytes;
	ssize_t n;

	if (!chunk->file_offset) {
		*ret_value = chunk->value;
		return 0;
	}
	n = pread(fd, buffer, bytes, (off_t)(chunk->file_offset - IMAGE_PAGE));
	if (n < 0)
		return diag_set(diag, STORE_E_CORRUPT, "cannot be read: %s", strerror(errno));
	if ((size_t)n != bytes)
		return diag_set(diag, STORE_E_CORRUPT, "the file ends in it");
	*ret_value = buffer + STORE_PAGE_HEADER;
	return 0;
}

/*
 * Is this the header of that chunk of that image? The sizes it has must be the record's. It does not say which encoding
 * it is of: where both images have one size, only the chunk's key tells them apart.
 */
int store_check_header(const struct store_record *record, enum image_encoding encoding, uint32_t chunk,
		       const void *value, size_t bytes, const struct image_header **ret, struct diag *diag)
{
	const uint64_t image_bytes = store_image_bytes(record, encoding);
	const struct image_header *header;
	int r;

	r = image_header_check(value, bytes, &header, diag);
	if (r < 0)
		return error_trace(r);
	if (r)
		return STORE_E_CORRUPT;
	if (memcmp(header->digest, &record->digest, sizeof(header->digest)) != 0 || header->chunk != chunk ||
	    header->n_chunks != store_chunks(image_bytes) || header->payload_bytes != image_bytes ||
	    header->n_modules != record->n_modules || header->kind != record->kind ||
	    memcmp(&header->geometry, &record->geometry, sizeof(header->geometry)) != 0)
		return diag_set(diag, STORE_E_CORRUPT, "its header is another one's");
	*ret = header;
	return 0;
}

struct verify {
	int fd;
	const struct store_record *record;
	enum image_encoding encoding;
	uint8_t *buffer;                 /* a page and a chunk */
	uint32_t sums[IMAGE_CHUNKS_MAX]; /* of all chunks; from chunk 0 */
	uint8_t *to;                     /* where payloads are wanted, or NULL */
	struct diag *diag;
};

static int verify_chunk(struct verify *verify, uint32_t number, const struct store_chunk *chunk)
{
	const struct image_header *header;
	const uint8_t *value = NULL;
	int r;

	r = read_value(verify->fd, chunk, verify->buffer, &value, verify->diag);
	if (r)
		return r;
	r = store_check_header(verify->record, verify->encoding, number, value, IMAGE_HEADER_BYTES + chunk->bytes,
			       &header, verify->diag);
	if (r)
		return error_trace(r);
	if (number == 0)
		memcpy(verify->sums, header->chunk_crc, sizeof(verify->sums));
	if (crc32c(0, value + IMAGE_HEADER_BYTES, chunk->bytes) != verify->sums[number])
		return diag_set(verify->diag, STORE_E_CORRUPT, "its checksum is wrong");
	if (verify->to)
		memcpy(verify->to + (size_t)number * IMAGE_CHUNK_PAYLOAD, value + IMAGE_HEADER_BYTES, chunk->bytes);
	return 0;
}

/* The chunks of one snapshot, from first on, at most n. */
static int verify_chunks(struct verify *verify, const struct store_snapshot *snapshot, uint32_t first, uint32_t n)
{
	const struct store_chunk *chunks;
	uint32_t all = store_snapshot_chunks(snapshot, &chunks);

	verify->record = store_snapshot_record(snapshot);
	for (uint32_t i = first; i < all && i - first < n; ++i) {
		int r = verify_chunk(verify, i, &chunks[i]);

		if (r > 0)
			return diag_prefix(verify->diag, r, "%s %u of %u at byte %llu of data.mdb",
					   store_chunk_word(verify->encoding), i, all,
					   (unsigned long long)chunks[i].file_offset);
		if (r)
			return error_trace(r);
	}
	return 0;
}

static int open_snapshot(struct store *store, const struct store_digest *digest, enum image_encoding encoding,
			 struct store_snapshot **ret, struct diag *diag)
{
	int r = store_snapshot_open(store, digest, encoding, ret);

	if (r == STORE_E_CORRUPT)
		return diag_set(diag, r, "its record or its list of chunks is damaged");
	return error_trace(r);
}

static int make_buffer(struct verify *verify)
{
	verify->buffer = aligned_alloc(IMAGE_PAGE, IMAGE_PAGE + IMAGE_CHUNK_PAYLOAD);
	return verify->buffer ? 0 : error_origin(-ENOMEM);
}

static void verify_deinit(struct verify *verify)
{
	close_cleanup(&verify->fd);
	free(verify->buffer);
}

/**
 * store_read() - all of the payload of a version's source image, every sum checked
 * @ret_payload: record.payload_bytes, malloc'd
 * @ret_record: or NULL
 * @diag:       names the chunk and its place in the file
 *
 * Return: 0, STORE_E_NOT_FOUND, STORE_E_CORRUPT, -errno.
 */
int store_read(struct store *store, const struct store_digest *digest, uint8_t **ret_payload,
	       struct store_record *ret_record, struct diag *diag)
{
	_cleanup_(store_snapshot_closep) struct store_snapshot *snapshot = NULL;
	_cleanup_(verify_deinit) struct verify verify = { .fd = -1, .diag = diag };
	_cleanup_free_ uint8_t *payload = NULL;
	bool direct;
	int r;

	r = open_snapshot(store, digest, IMAGE_SOURCE, &snapshot, diag);
	if (!r)
		r = make_buffer(&verify);
	if (r)
		return error_trace(r);
	payload = aligned_alloc(IMAGE_PAGE, store_snapshot_record(snapshot)->payload_bytes);
	if (!payload)
		return error_origin(-ENOMEM);
	verify.to = payload;
	verify.fd = store_open_direct(store, &direct);
	if (verify.fd < 0)
		return error_trace(verify.fd);
	r = verify_chunks(&verify, snapshot, 0, IMAGE_CHUNKS_MAX);
	if (r)
		return error_trace(r);
	if (ret_record)
		*ret_record = *store_snapshot_record(snapshot);
	*ret_payload = TAKE_PTR(payload);
	return 0;
}

/* One chunk, on a snapshot of its own: see the essay. */
static int verify_one(struct store *store, struct verify *verify, const struct store_digest *digest, uint32_t chunk)
{
	_cleanup_(store_snapshot_closep) struct store_snapshot *snapshot = NULL;
	bool direct;
	int r;

	r = open_snapshot(store, digest, verify->encoding, &snapshot, verify->diag);
	if (r)
		return error_trace(r);
	close_cleanup(&verify->fd);
	verify->fd = store_open_direct(store, &direct);
	if (verify->fd < 0)
		return error_trace(verify->fd);
	return error_trace(verify_chunks(verify, snapshot, chunk, 1));
}

static int verify_image(struct store *store, struct verify *verify, const struct store_record *record,
			const struct store_watch *watch)
{
	const uint64_t bytes = store_image_bytes(record, verify->encoding);
	int r = 0;

	for (uint32_t i = 0; i < store_chunks(bytes) && !r; ++i) {
		if (watch && !watch->go_on(watch->userdata, store_chunk_bytes(bytes, i)))
			return STORE_E_CANCELLED;
		r = verify_one(store, verify, &record->digest, i);
	}
	return error_trace(r);
}

static int verify_images(struct store *store, struct verify *verify, const struct store_record *record,
			 const struct store_watch *watch)
{
	int r;

	r = make_buffer(verify);
	for (verify->encoding = IMAGE_SOURCE; verify->encoding < _IMAGE_ENCODING_N && !r; ++verify->encoding)
		r = verify_image(store, verify, record, watch);
	return error_trace(r);
}

/**
 * store_verify() - check every byte of a version: its images, its config too
 * @watch:      is asked before each chunk; may wait, or end it. NULL: at full speed
 * @diag:       names the chunk, "packed" if it is one of that image, and its place in the file
 *
 * Return: 0, STORE_E_NOT_FOUND: it is not there, or went meanwhile; STORE_E_CORRUPT, STORE_E_CANCELLED, -errno.
 */
int store_verify(struct store *store, const struct store_digest *digest, const struct store_watch *watch,
		 struct diag *diag)
{
	_cleanup_(verify_deinit) struct verify verify = { .fd = -1, .diag = diag };
	_cleanup_free_ char *config = NULL;
	struct store_record record;
	size_t config_bytes;
	int r;

	r = store_record(store, digest, &record);
	if (r == STORE_E_CORRUPT)
		return diag_set(diag, r, "its record is damaged");
	if (!r)
		r = verify_images(store, &verify, &record, watch);
	if (r)
		return error_trace(r);
	r = store_config(store, digest, &config, &config_bytes);
	if (r == STORE_E_CORRUPT)
		return diag_set(diag, r, "its config is damaged");
	return error_trace(r);
}
