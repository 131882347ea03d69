/* SPDX-License-Identifier: MIT */
/*
 * One record over a SOCK_SEQPACKET socket, with file descriptors beside it. Header only; private to lorad, its tools and
 * libloraclient.
 *
 * A received descriptor is the caller's; those that arrive with a record that is refused here are closed. Descriptors
 * are never blocking points: nothing is read from them here.
 */
#ifndef LORAD_WIRE_H
#define LORAD_WIRE_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define WIRE_FDS_MAX 64

/* 0, or a negative errno (-EAGAIN, -EPIPE ...). Never raises SIGPIPE. flags: MSG_DONTWAIT or 0. */
static inline int wire_send(int socket, const void *record, size_t bytes, const int *fds, size_t n_fds, int flags)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int) * WIRE_FDS_MAX)];
	} control;
	struct iovec vec;
	struct msghdr message;
	ssize_t n;

	if (n_fds > WIRE_FDS_MAX)
		return -E2BIG;
	memset(&message, 0, sizeof(message));
	memset(&control, 0, sizeof(control));
	memcpy(&vec.iov_base, &record, sizeof(record)); /* iovec is not const-correct */
	vec.iov_len = bytes;
	message.msg_iov = &vec;
	message.msg_iovlen = 1;
	if (n_fds) {
		message.msg_control = control.bytes;
		message.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
		struct cmsghdr *c = CMSG_FIRSTHDR(&message);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
		memcpy(CMSG_DATA(c), fds, sizeof(int) * n_fds);
	}
	do
		n = sendmsg(socket, &message, flags | MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	return (size_t)n == bytes ? 0 : -EIO;
}

/* Moves the descriptors of a received message into fds and returns their number; more than max: all are closed, -1. */
static inline int wire_take_fds(struct msghdr *message, int *fds, size_t max)
{
	size_t n = 0, i, many;
	int fd, spilt = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		many = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (i = 0; i < many; ++i) {
			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
			if (n < max) {
				fds[n++] = fd;
			} else {
				close(fd);
				spilt = 1;
			}
		}
	}
	if (!spilt)
		return (int)n;
	for (i = 0; i < n; ++i)
		close(fds[i]);
	return -1;
}

/*
 * The length of one record (0: the peer has hung up), or a negative errno: -EMSGSIZE for one that is longer than room or
 * brings more than max_fds descriptors. With max_fds 0 the kernel drops what descriptors there are.
 */
static inline ssize_t wire_recv(int socket, void *record, size_t room, int *ret_fds, size_t max_fds, size_t *ret_n_fds,
				int flags)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int) * WIRE_FDS_MAX)];
	} control;
	struct iovec vec;
	struct msghdr message;
	ssize_t n;
	int n_fds;

	if (max_fds > WIRE_FDS_MAX)
		return -E2BIG;
	memset(&message, 0, sizeof(message));
	vec.iov_base = record;
	vec.iov_len = room;
	message.msg_iov = &vec;
	message.msg_iovlen = 1;
	if (max_fds) {
		message.msg_control = control.bytes;
		message.msg_controllen = CMSG_SPACE(sizeof(int) * max_fds);
	}
	do
		n = recvmsg(socket, &message, flags | MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	n_fds = max_fds ? wire_take_fds(&message, ret_fds, max_fds) : 0;
	if (n_fds >= 0 && ((message.msg_flags & MSG_TRUNC) || (max_fds && (message.msg_flags & MSG_CTRUNC)))) {
		for (int i = 0; i < n_fds; ++i)
			close(ret_fds[i]);
		n_fds = -1;
	}
	if (n_fds < 0)
		return -EMSGSIZE;
	if (ret_n_fds)
		*ret_n_fds = (size_t)n_fds;
	return n;
}

#endif
