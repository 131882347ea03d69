/* SPDX-License-Identifier: MIT */
/*
 * Readers that block: pread and the map
 *
 * They do the work inside submit(), one piece at a time, and hand it back with the next reap(). With pages of 2 MiB at
 * the target one thread that reads past the page cache comes close to what the ring gives.
 *
 * The map is the last resort, for a file system that gives no offsets to rely on: pages are brought in by the kernel
 * before they are touched, which is fast and turns a bad sector into an error instead of a SIGBUS.
 */
#include "daemon/store/reader.h"

#include <assert.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include "daemon/base/error.h"
#include "daemon/store/store-internal.h"

struct blocking_reader {
	struct reader reader;
	int fd, event_fd;
	struct reader_piece *done; /* a stack: order does not matter */
};

static void push(struct blocking_reader *blocking, struct reader_piece *piece)
{
	piece->next = blocking->done;
	blocking->done = piece;
}

static void pread_submit(struct reader *reader, struct reader_piece *piece)
{
	struct blocking_reader *blocking = container_of(reader, struct blocking_reader, reader);
	ssize_t n;

	do
		n = pread(blocking->fd, piece->to, piece->bytes, (off_t)piece->file_offset);
	while (n < 0 && errno == EINTR);
	piece->result = n < 0 ? -errno : (int)n;
	push(blocking, piece);
}

static void map_submit(struct reader *reader, struct reader_piece *piece)
{
	struct blocking_reader *blocking = container_of(reader, struct blocking_reader, reader);
	uintptr_t begin = (uintptr_t)piece->mapped & ~(uintptr_t)(IMAGE_PAGE - 1);
	size_t bytes = (uintptr_t)piece->mapped + piece->bytes - begin;

	piece->result = (int)piece->bytes;
	/* EINVAL: a kernel before 5.14, which brings pages in when they are touched. */
	if (madvise((void *)begin, bytes, MADV_POPULATE_READ) < 0 && errno != EINVAL)
		piece->result = -EIO;
	else
		memcpy(piece->to, piece->mapped, piece->bytes);
	push(blocking, piece);
}

static void blocking_start(struct reader *reader)
{
	(void)reader;
}

static struct reader_piece *blocking_reap(struct reader *reader, bool block)
{
	struct blocking_reader *blocking = container_of(reader, struct blocking_reader, reader);
	struct reader_piece *piece = blocking->done;
	uint64_t count;

	if (piece)
		blocking->done = piece->next;
	else if (block && read(blocking->event_fd, &count, sizeof(count)) < 0)
		assert(errno == EINTR);
	return piece;
}

static void blocking_free(struct reader *reader)
{
	free(container_of(reader, struct blocking_reader, reader));
}

static const struct reader_ops pread_ops = { pread_submit, blocking_start, blocking_reap, blocking_free };
static const struct reader_ops map_ops = { map_submit, blocking_start, blocking_reap, blocking_free };

/**
 * reader_new() - one way of reading
 * @method:     which; the caller tries it out before relying on it
 *
 * Return: 0; -errno where the machine cannot do it.
 */
int reader_new(struct reader **ret, enum pager_method method, const struct reader_options *options)
{
	struct blocking_reader *blocking;

	if (method == PAGER_URING || method == PAGER_URING_FIXED)
		return reader_uring_new(ret, method, options);
	blocking = calloc(1, sizeof(*blocking));
	if (!blocking)
		return error_origin(-ENOMEM);
	blocking->reader = (struct reader){
		.ops = method == PAGER_MAP ? &map_ops : &pread_ops,
		.method = method,
		.depth = 1,
	};
	blocking->fd = options->fd;
	blocking->event_fd = options->event_fd;
	*ret = &blocking->reader;
	return 0;
}

struct reader *reader_free(struct reader *reader)
{
	if (reader)
		reader->ops->free(reader);
	return NULL;
}
