/* SPDX-License-Identifier: MIT */
/* The ways to read pieces of data.mdb, behind one small table. See reader.c and reader-uring.c. */
#ifndef LORAD_STORE_READER_H
#define LORAD_STORE_READER_H

#include <stddef.h>
#include <stdint.h>

#include "daemon/base/cleanup.h"
#include "daemon/store/pager.h"

#define READER_PIECE_BYTES (1u << 20) /* most of one read */

/* One read; the caller's memory until reap() gave it back. */
struct reader_piece {
	uint64_t file_offset;
	const uint8_t *mapped;    /* the same bytes in the map */
	uint8_t *to;
	uint32_t bytes;
	int result;               /* bytes read, or -errno */
	void *owner;
	uint32_t chunk;           /* the owner's */
	struct reader_piece *next; /* the reader's, while submitted */
};

struct reader;

struct reader_ops {
	void (*submit)(struct reader *reader, struct reader_piece *piece);
	void (*start)(struct reader *reader); /* have what was submitted begin, if submit() has not */
	/* The next piece that is done. NULL: none yet; if block, only when reader->event_fd was written to. */
	struct reader_piece *(*reap)(struct reader *reader, bool block);
	void (*free)(struct reader *reader);
};

struct reader {
	const struct reader_ops *ops;
	enum pager_method method; /* FIXED falls to URING when the kernel refuses to register more */
	unsigned depth;           /* most pieces submitted at once */
	size_t window;            /* pieces must not cross a multiple of it, counted from region; 0: anywhere */
	const uint8_t *region;
};

struct reader_options {
	int fd;                   /* of data.mdb; the caller's */
	int event_fd;             /* wakes a reader that blocks; blocking, the caller's */
	void *region;             /* where most pieces go, or NULL */
	size_t region_bytes;
	unsigned depth;
};

/* -errno: this machine cannot do it. */
int reader_new(struct reader **ret, enum pager_method method, const struct reader_options *options);
struct reader *reader_free(struct reader *reader);
DEFINE_CLEANUP(struct reader *, reader_free)

int reader_uring_new(struct reader **ret, enum pager_method method, const struct reader_options *options);

#endif
