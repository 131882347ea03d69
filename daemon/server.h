/* SPDX-License-Identifier: MIT */
/* The daemon as a whole: see server.c. */
#ifndef LORAD_SERVER_H
#define LORAD_SERVER_H

#include "daemon/base/cleanup.h"
#include "daemon/base/error.h"

struct options;
struct server;

enum server_result {
	SERVER_OK,
	SERVER_E_REFUSED, /* it cannot serve as asked; why is in diag */
	SERVER_E_LOST,    /* it ended because its device failed: only a new process can go on */
};

int server_new(struct server **ret, const struct options *options, struct diag *diag);
struct server *server_free(struct server *server);
DEFINE_CLEANUP(struct server *, server_free)
int server_run(struct server *server); /* until SIGTERM or SIGINT */

#endif
