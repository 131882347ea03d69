/* SPDX-License-Identifier: MIT */
/* A restricted io_uring for reading a few known files. See uring.c. */
#ifndef LORAD_OS_URING_H
#define LORAD_OS_URING_H

#include <liburing.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define URING_FILES_MAX 256u
#define URING_NO_BUFFER (-1)

struct uring {
	struct io_uring ring; /* ring_fd < 0: not open */
};

#define URING_NULL { .ring = { .ring_fd = -1 } }

/* One read; tag comes back with its result. */
struct uring_read {
	unsigned file;        /* index into the files given to uring_init() */
	int buffer;           /* index of the registered buffer that holds [to, to + bytes), or URING_NO_BUFFER */
	void *to;
	uint32_t bytes;
	uint64_t offset;
	uint64_t tag;
};

int uring_init(struct uring *uring, unsigned entries, const int *fds, unsigned n_fds, unsigned n_buffers);
void uring_deinit(struct uring *uring);
int uring_set_buffer(struct uring *uring, unsigned buffer, void *p, size_t bytes);
int uring_read(struct uring *uring, const struct uring_read *read);
int uring_start(struct uring *uring);
int uring_wait(struct uring *uring);
bool uring_reap(struct uring *uring, uint64_t *ret_tag, int *ret_result);

#endif
