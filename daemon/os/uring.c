/* SPDX-License-Identifier: MIT */
/*
 * A restricted io_uring
 *
 * The ring can do two things, for as long as it lives: read from the files it was made with, and take further buffers
 * of this process. Everything else is refused by the kernel (opening, writing, sending, other files): what a seccomp
 * filter does for system calls it cannot do for a ring, so the ring's own restrictions must.
 *
 * The buffer table is sparse: its slots are filled one by one when they are first needed, so that a large region is
 * neither touched nor pinned before it is used.
 *
 * One thread makes the ring and uses it. Where the kernel can (6.1), completions are then processed only when that
 * thread waits, without interrupting it.
 *
 * Functions return -errno without a word: not having io_uring is an ordinary condition, the caller has another way.
 */
#include "daemon/os/uring.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

static int init_ring(struct uring *uring, unsigned entries)
{
	static const unsigned flags[] = {
		IORING_SETUP_SUBMIT_ALL | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
		IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN,
		0,
	};
	int r = -EINVAL;

	for (size_t i = 0; i < sizeof(flags) / sizeof(flags[0]) && r == -EINVAL; ++i) {
		struct io_uring_params params = { .flags = flags[i] | IORING_SETUP_R_DISABLED };

		r = io_uring_queue_init_params(entries, &uring->ring, &params);
	}
	return r;
}

/*
 * liburing 2.3 declares io_uring_register_restrictions() and io_uring_enable_rings(), but Debian's library does not
 * export them; io_uring_register() is.
 */
static int restrict_and_enable(struct uring *uring)
{
	struct io_uring_restriction allowed[] = {
		{ .opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_READ },
		{ .opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_READ_FIXED },
		{ .opcode = IORING_RESTRICTION_SQE_FLAGS_REQUIRED, .sqe_flags = IOSQE_FIXED_FILE },
		{ .opcode = IORING_RESTRICTION_REGISTER_OP, .register_op = IORING_REGISTER_BUFFERS_UPDATE },
	};
	unsigned fd = (unsigned)uring->ring.ring_fd;
	int r;

	r = io_uring_register(fd, IORING_REGISTER_RESTRICTIONS, allowed, sizeof(allowed) / sizeof(allowed[0]));
	if (r < 0)
		return r;
	r = io_uring_register(fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
	return r < 0 ? r : 0;
}

/**
 * uring_init() - make a ring that reads from @fds
 * @entries:    most reads in flight
 * @fds:        kept by the kernel: the caller may close them
 * @n_buffers:  slots for registered buffers, all empty; 0: none
 *
 * Return: 0; -errno: -ENOSYS, -EPERM where the machine does not allow it.
 */
int uring_init(struct uring *uring, unsigned entries, const int *fds, unsigned n_fds, unsigned n_buffers)
{
	int r;

	assert(n_fds > 0 && n_fds <= URING_FILES_MAX);
	*uring = (struct uring)URING_NULL;
	r = init_ring(uring, entries);
	if (r < 0) {
		uring->ring.ring_fd = -1;
		return r;
	}
	r = io_uring_register_files(&uring->ring, fds, n_fds);
	if (r >= 0 && n_buffers > 0)
		r = io_uring_register_buffers_sparse(&uring->ring, n_buffers);
	if (r >= 0)
		r = restrict_and_enable(uring);
	if (r < 0)
		uring_deinit(uring);
	return r < 0 ? r : 0;
}

/** uring_deinit() - close the ring; no read may be in flight, or its memory must stay */
void uring_deinit(struct uring *uring)
{
	if (uring->ring.ring_fd >= 0)
		io_uring_queue_exit(&uring->ring);
	*uring = (struct uring)URING_NULL;
}

/**
 * uring_set_buffer() - register memory in a slot that is empty
 *
 * Touches and pins all of it. Return: 0; -ENOMEM where RLIMIT_MEMLOCK forbids it; another -errno.
 */
int uring_set_buffer(struct uring *uring, unsigned buffer, void *p, size_t bytes)
{
	struct iovec iov = { .iov_base = p, .iov_len = bytes };
	__u64 tag = 0;
	int r;

	r = io_uring_register_buffers_update_tag(&uring->ring, buffer, &iov, &tag, 1);
	return r < 0 ? r : 0;
}

/** uring_read() - queue a read; it starts with the next uring_start() or uring_wait(). -EBUSY: more than the ring's entries */
int uring_read(struct uring *uring, const struct uring_read *read)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);

	if (!sqe)
		return -EBUSY;
	if (read->buffer == URING_NO_BUFFER)
		io_uring_prep_read(sqe, (int)read->file, read->to, read->bytes, read->offset);
	else
		io_uring_prep_read_fixed(sqe, (int)read->file, read->to, read->bytes, read->offset, read->buffer);
	sqe->flags |= IOSQE_FIXED_FILE;
	sqe->user_data = read->tag;
	return 0;
}

/* What the kernel asks to be tried again. */
static int unless_passing(int r)
{
	return r < 0 && r != -EINTR && r != -EAGAIN && r != -EBUSY ? r : 0;
}

/** uring_start() - start what is queued; nothing queued costs nothing */
int uring_start(struct uring *uring)
{
	return io_uring_sq_ready(&uring->ring) ? unless_passing(io_uring_submit(&uring->ring)) : 0;
}

/** uring_wait() - start what is queued and sleep until a read is done */
int uring_wait(struct uring *uring)
{
	return unless_passing(io_uring_submit_and_wait(&uring->ring, 1));
}

/** uring_reap() - the next read that is done, if there is one: bytes read, or -errno */
bool uring_reap(struct uring *uring, uint64_t *ret_tag, int *ret_result)
{
	struct io_uring_cqe *cqe;

	if (io_uring_peek_cqe(&uring->ring, &cqe) < 0 || !cqe)
		return false;
	*ret_tag = cqe->user_data;
	*ret_result = cqe->res;
	io_uring_cqe_seen(&uring->ring, cqe);
	return true;
}
