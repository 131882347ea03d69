/* SPDX-License-Identifier: MIT */
/* One connection of the control socket: messages and descriptors in and out. See control-peer.c. */
#ifndef LORAD_CONTROL_PEER_H
#define LORAD_CONTROL_PEER_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "daemon/base/list.h"
#include "daemon/os/loop.h"

#define CONTROL_MESSAGE_MAX (1u << 20) /* of what a peer sends */
#define CONTROL_FDS_MAX 8

struct control_call;
struct control_peer;

/* What its owner does with a peer. Both may free it. */
struct control_peer_ops {
	void (*message)(struct control_peer *peer, const char *text, size_t bytes);
	void (*hung_up)(struct control_peer *peer);
};

struct control_peer {
	struct list link;            /* the owner's */
	const struct control_peer_ops *ops;
	void *owner;
	struct control_call *call;   /* the one in progress, or NULL: then the next message is read */
	uid_t uid;
	int fd;
	struct loop_source source;
	char *in;                    /* read and not yet consumed; no NUL in the first n_scanned bytes */
	size_t n_in, n_scanned, room;
	int fds[CONTROL_FDS_MAX];    /* that arrived and belong to no call yet */
	size_t n_fds;
	struct list out;             /* messages on their way */
	bool reading;                /* inside the loop that hands out messages */
};

int control_peer_new(struct control_peer **ret, struct loop *loop, int fd, uid_t uid,
		     const struct control_peer_ops *ops, void *owner); /* takes over the fd on success */
struct control_peer *control_peer_free(struct control_peer *peer);
int control_peer_send(struct control_peer *peer, char *text, const int *fds, size_t n_fds); /* takes over text and fds */
bool control_peer_is_slow(const struct control_peer *peer);           /* something is still on its way */
void control_peer_go_on(struct control_peer *peer);                   /* the call ended: look for the next message */

#endif
