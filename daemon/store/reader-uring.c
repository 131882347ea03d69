/* SPDX-License-Identifier: MIT */
/*
 * The io_uring reader
 *
 * Pieces are queued by submit() and go to the kernel together, with start() or the next reap() that blocks. A read of the event
 * file is always among them, so that one wait covers both completions and new work.
 *
 * Registered buffers save the kernel the work of pinning pages for each read (the larger part of its CPU time where
 * pages are 4 KiB). The region is registered in windows of at least 2 MiB, each when the first piece goes there: memory
 * nobody uses is not touched. Pieces never cross a window. If the kernel refuses (RLIMIT_MEMLOCK), the windows there are
 * stay in use and all other pieces are read unregistered.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "daemon/base/error.h"
#include "daemon/base/list.h"
#include "daemon/os/uring.h"
#include "daemon/store/reader.h"

#define WINDOW_LEAST ((size_t)2 << 20)
#define WINDOWS_MOST 1024u
#define WAKE_TAG 0u /* of the event file's read; pieces have their address */

enum { FILE_DATA, FILE_EVENT, N_FILES };

struct uring_reader {
	struct reader reader;
	struct uring uring;
	uint8_t *region;
	size_t region_bytes;
	unsigned n_windows;
	bool *registered;        /* [n_windows] */
	bool wake_armed;
	uint64_t wake_count;     /* what the event file's read writes to */
	int event_fd;
};

/* The registered buffer around a piece, registering it where that is still to be done; else URING_NO_BUFFER. */
static int buffer_of(struct uring_reader *ur, const struct reader_piece *piece)
{
	size_t at, window, bytes;

	if (!ur->n_windows || piece->to < ur->region || (size_t)(piece->to - ur->region) >= ur->region_bytes)
		return URING_NO_BUFFER;
	window = (size_t)(piece->to - ur->region) / ur->reader.window;
	if (ur->registered[window])
		return (int)window;
	if (ur->reader.method != PAGER_URING_FIXED)
		return URING_NO_BUFFER;
	at = window * ur->reader.window;
	bytes = ur->region_bytes - at < ur->reader.window ? ur->region_bytes - at : ur->reader.window;
	if (uring_set_buffer(&ur->uring, (unsigned)window, ur->region + at, bytes) < 0) {
		ur->reader.method = PAGER_URING;
		return URING_NO_BUFFER;
	}
	ur->registered[window] = true;
	return (int)window;
}

static void uring_submit(struct reader *reader, struct reader_piece *piece)
{
	struct uring_reader *ur = container_of(reader, struct uring_reader, reader);
	struct uring_read read = {
		.file = FILE_DATA,
		.buffer = buffer_of(ur, piece),
		.to = piece->to,
		.bytes = piece->bytes,
		.offset = piece->file_offset,
		.tag = (uintptr_t)piece,
	};
	int r = uring_read(&ur->uring, &read);

	assert(r == 0); /* the ring has room for depth pieces and the event file */
}

static void uring_start_pieces(struct reader *reader)
{
	struct uring_reader *ur = container_of(reader, struct uring_reader, reader);

	(void)error_origin(uring_start(&ur->uring));
}

static void arm_wake(struct uring_reader *ur)
{
	struct uring_read read = {
		.file = FILE_EVENT,
		.buffer = URING_NO_BUFFER,
		.to = &ur->wake_count,
		.bytes = sizeof(ur->wake_count),
		.offset = (uint64_t)-1,
		.tag = WAKE_TAG,
	};

	if (!ur->wake_armed)
		ur->wake_armed = uring_read(&ur->uring, &read) == 0;
}

static struct reader_piece *uring_reap_piece(struct reader *reader, bool block)
{
	struct uring_reader *ur = container_of(reader, struct uring_reader, reader);
	struct reader_piece *piece;
	uint64_t tag;
	int result;

	if (block) {
		arm_wake(ur);
		(void)error_origin(uring_wait(&ur->uring));
	}
	if (!uring_reap(&ur->uring, &tag, &result))
		return NULL;
	if (tag == WAKE_TAG) {
		ur->wake_armed = false;
		return NULL;
	}
	piece = (struct reader_piece *)(uintptr_t)tag;
	piece->result = result;
	return piece;
}

/* The event file's read still points into this object: let it end before the memory goes. */
static void disarm_wake(struct uring_reader *ur)
{
	const uint64_t one = 1;

	if (ur->wake_armed && write(ur->event_fd, &one, sizeof(one)) != (ssize_t)sizeof(one))
		return;
	while (ur->wake_armed)
		(void)uring_reap_piece(&ur->reader, /* block= */ true);
}

static void uring_free(struct reader *reader)
{
	struct uring_reader *ur = container_of(reader, struct uring_reader, reader);

	disarm_wake(ur);
	uring_deinit(&ur->uring);
	free(ur->registered);
	free(ur);
}

static const struct reader_ops uring_ops = { uring_submit, uring_start_pieces, uring_reap_piece, uring_free };

static int init_windows(struct uring_reader *ur, const struct reader_options *options)
{
	ur->region = options->region;
	ur->region_bytes = options->region_bytes;
	ur->reader.region = options->region;
	ur->reader.window = WINDOW_LEAST;
	while (ur->region_bytes / ur->reader.window >= WINDOWS_MOST)
		ur->reader.window *= 2;
	ur->n_windows = (unsigned)((ur->region_bytes + ur->reader.window - 1) / ur->reader.window);
	ur->registered = calloc(ur->n_windows, sizeof(*ur->registered));
	return ur->registered ? 0 : error_origin(-ENOMEM);
}

/* Called on the thread that will use it. */
int reader_uring_new(struct reader **ret, enum pager_method method, const struct reader_options *options)
{
	const int fds[N_FILES] = { [FILE_DATA] = options->fd, [FILE_EVENT] = options->event_fd };
	_cleanup_(reader_freep) struct reader *reader = NULL;
	struct uring_reader *ur;
	int r;

	if (method == PAGER_URING_FIXED && !options->region)
		return -EINVAL;
	ur = calloc(1, sizeof(*ur));
	if (!ur)
		return error_origin(-ENOMEM);
	ur->uring = (struct uring)URING_NULL;
	ur->event_fd = options->event_fd;
	ur->reader = (struct reader){ .ops = &uring_ops, .method = method, .depth = options->depth };
	reader = &ur->reader;
	if (method == PAGER_URING_FIXED) {
		r = init_windows(ur, options);
		if (r)
			return error_trace(r);
	}
	r = uring_init(&ur->uring, options->depth + 1, fds, N_FILES, ur->n_windows);
	if (r)
		return r;
	*ret = TAKE_PTR(reader);
	return 0;
}
