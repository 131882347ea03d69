/* SPDX-License-Identifier: MIT */
/*
 * A connection of the control socket
 *
 * Messages end with a NUL byte. One call is in progress at a time: while it is, nothing more is read from its peer, so
 * whatever descriptors have arrived belong to the message at hand, and a peer that sends faster than it is answered fills
 * its own socket. Answers that the peer does not read wait here; since there is one call, that is one answer and at most
 * one report of progress.
 */
#include "daemon/control-peer.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "daemon/base/cleanup.h"
#include "daemon/base/error.h"
#include "libclient/wire.h"

#define READ_ROOM 4096u

struct letter_out {
	struct list link;
	char *text;
	size_t bytes, sent;      /* with the NUL */
	int fds[CONTROL_FDS_MAX];
	size_t n_fds;            /* not sent yet */
};

static void close_fds(int *fds, size_t *n)
{
	while (*n)
		close(fds[--*n]);
}

static void free_letter(struct letter_out *letter)
{
	list_unlink(&letter->link);
	close_fds(letter->fds, &letter->n_fds);
	free(letter->text);
	free(letter);
}

struct control_peer *control_peer_free(struct control_peer *peer)
{
	struct letter_out *letter;

	if (!peer)
		return NULL;
	loop_remove(&peer->source);
	list_unlink(&peer->link);
	list_for_each(letter, &peer->out, link)
		free_letter(letter);
	close_fds(peer->fds, &peer->n_fds);
	close(peer->fd);
	free(peer->in);
	free(peer);
	return NULL;
}

/* ---- out ---- */

static bool would_block(void)
{
	return errno == EAGAIN;
}

/* One sendmsg(). The descriptors go with the first byte. false: the peer is gone; *blocked: it does not read. */
static bool send_some(struct control_peer *peer, struct letter_out *letter, bool *blocked)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int) * CONTROL_FDS_MAX)];
	} ancillary = { 0 };
	struct iovec part = { letter->text + letter->sent, letter->bytes - letter->sent };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };
	ssize_t n;

	if (letter->n_fds) {
		message.msg_control = ancillary.bytes;
		message.msg_controllen = CMSG_SPACE(sizeof(int) * letter->n_fds);
		ancillary.align = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof(int) * letter->n_fds),
						    .cmsg_level = SOL_SOCKET,
						    .cmsg_type = SCM_RIGHTS };
		memcpy(CMSG_DATA(&ancillary.align), letter->fds, sizeof(int) * letter->n_fds);
	}
	n = sendmsg(peer->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
	*blocked = n < 0 && would_block();
	if (n < 0)
		return *blocked || errno == EINTR;
	letter->sent += (size_t)n;
	close_fds(letter->fds, &letter->n_fds);
	return true;
}

/* Sends what the socket takes. false: the peer is gone. */
static bool send_out(struct control_peer *peer)
{
	struct letter_out *letter;
	bool blocked = false;

	while (!blocked && (letter = list_first(&peer->out, struct letter_out, link))) {
		if (!send_some(peer, letter, &blocked))
			return false;
		if (letter->sent == letter->bytes)
			free_letter(letter);
	}
	return true;
}

static void watch(struct control_peer *peer)
{
	uint32_t events = (peer->call ? 0 : EPOLLIN) | (list_empty(&peer->out) ? 0 : EPOLLOUT);

	(void)error_trace(loop_modify(&peer->source, events));
}

bool control_peer_is_slow(const struct control_peer *peer)
{
	return !list_empty(&peer->out);
}

/**
 * control_peer_send() - send one message
 * @peer:       to whom
 * @text:       malloc'd and taken over, also on failure
 * @fds:        descriptors beside it; taken over, also on failure
 * @n_fds:      how many
 *
 * Whether the peer is still there shows later, by hung_up().
 */
int control_peer_send(struct control_peer *peer, char *text, const int *fds, size_t n_fds)
{
	struct letter_out *letter = calloc(1, sizeof(*letter));

	assert(n_fds <= CONTROL_FDS_MAX);
	if (!letter) {
		for (size_t i = 0; i < n_fds; ++i)
			close(fds[i]);
		free(text);
		return error_origin(-ENOMEM);
	}
	letter->text = text;
	letter->bytes = strlen(text) + 1;
	letter->n_fds = n_fds;
	if (n_fds)
		memcpy(letter->fds, fds, n_fds * sizeof(*fds));
	list_append(&peer->out, &letter->link);
	(void)send_out(peer);
	watch(peer);
	return 0;
}

/* ---- in ---- */

/* Room to read into. false: the peer's message is too long, or there is no memory. */
static bool make_room(struct control_peer *peer)
{
	size_t room = peer->room ? 2 * peer->room : READ_ROOM;
	char *in;

	if (peer->n_in < peer->room)
		return true;
	if (peer->room >= CONTROL_MESSAGE_MAX)
		return false;
	in = realloc(peer->in, room);
	if (!in)
		return false;
	peer->in = in;
	peer->room = room;
	return true;
}

/* One recvmsg(). false: hung up, or does what no peer should. */
static bool read_some(struct control_peer *peer)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int) * CONTROL_FDS_MAX)];
	} ancillary;
	struct iovec part = { peer->in + peer->n_in, peer->room - peer->n_in };
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1, .msg_control = ancillary.bytes, .msg_controllen = sizeof(ancillary)
	};
	ssize_t n = recvmsg(peer->fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	int fds;

	if (n < 0)
		return would_block() || errno == EINTR;
	fds = wire_take_fds(&message, peer->fds + peer->n_fds, CONTROL_FDS_MAX - peer->n_fds);
	peer->n_fds += fds > 0 ? (size_t)fds : 0;
	if (n == 0 || fds < 0 || message.msg_flags & MSG_CTRUNC)
		return false;
	peer->n_in += (size_t)n;
	return true;
}

/* Takes the next whole message off the input: malloc'd, or NULL. */
static char *next_message(struct control_peer *peer, size_t *ret_bytes)
{
	const char *end = peer->n_in ? memchr(peer->in + peer->n_scanned, 0, peer->n_in - peer->n_scanned) : NULL;
	size_t bytes;
	char *text;

	if (!end) {
		peer->n_scanned = peer->n_in;
		return NULL;
	}
	bytes = (size_t)(end - peer->in);
	text = malloc(bytes + 1);
	if (!text)
		return NULL;
	memcpy(text, peer->in, bytes + 1);
	peer->n_in -= bytes + 1;
	memmove(peer->in, peer->in + bytes + 1, peer->n_in);
	peer->n_scanned = 0;
	*ret_bytes = bytes;
	return text;
}

/**
 * control_peer_go_on() - hand out messages until one is not answered at once
 *
 * Called when something was read and when a call ended. A call that ends while this runs is noticed by its loop.
 */
void control_peer_go_on(struct control_peer *peer)
{
	size_t bytes;

	if (peer->reading)
		return;
	peer->reading = true;
	while (!peer->call) {
		_cleanup_free_ char *text = next_message(peer, &bytes);

		if (!text)
			break;
		peer->ops->message(peer, text, bytes);
	}
	peer->reading = false;
	watch(peer);
}

static void on_event(struct loop_source *source, uint32_t events)
{
	struct control_peer *peer = container_of(source, struct control_peer, source);
	bool alive = !(events & EPOLLERR);

	if (alive && events & EPOLLOUT) {
		alive = send_out(peer);
		watch(peer);
	}
	if (alive && events & EPOLLIN && !peer->call) {
		alive = make_room(peer) && read_some(peer);
		if (alive)
			control_peer_go_on(peer);
	} else if (events & EPOLLHUP) {
		alive = false;
	}
	if (!alive)
		peer->ops->hung_up(peer);
}

int control_peer_new(struct control_peer **ret, struct loop *loop, int fd, uid_t uid,
		     const struct control_peer_ops *ops, void *owner)
{
	struct control_peer *peer = calloc(1, sizeof(*peer));
	int r;

	if (!peer)
		return error_origin(-ENOMEM);
	peer->ops = ops;
	peer->owner = owner;
	peer->uid = uid;
	peer->fd = fd;
	peer->source = (struct loop_source)LOOP_SOURCE_NULL;
	list_init(&peer->out);
	r = loop_add(loop, &peer->source, fd, EPOLLIN, on_event);
	if (r < 0) {
		free(peer);
		return error_trace(r);
	}
	*ret = peer;
	return 0;
}
