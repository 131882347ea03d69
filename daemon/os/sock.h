/* SPDX-License-Identifier: MIT */
/* Local sockets: listening and accepting. See sock.c. Records and descriptors: libclient/wire.h. */
#ifndef LORAD_OS_SOCK_H
#define LORAD_OS_SOCK_H

#include <sys/socket.h>
#include <sys/types.h>

#include "daemon/base/error.h"

enum sock_result {
	SOCK_OK,
	SOCK_E_REFUSED, /* the path cannot be used; the reason is in the diag */
	SOCK_E_AGAIN,   /* nobody is waiting */
	SOCK_E_LIMIT,   /* no descriptors or memory left to accept with; try later */
};

int sock_listen(int *ret_fd, int type, const char *path, mode_t mode, struct diag *diag);
int sock_accept(int listen_fd, int *ret_fd, struct ucred *ret_peer);

#endif
