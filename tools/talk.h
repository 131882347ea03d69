/* SPDX-License-Identifier: MIT */
/* One request over the client socket, with Ctrl-C and a slow stdout taken care of. See talk.c. */
#ifndef LORAD_TOOLS_TALK_H
#define LORAD_TOOLS_TALK_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/base/error.h"
#include "libclient/loraclient.h"

struct talk {
	/* set by the caller */
	const char *socket;
	const lc_request *request;    /* NULL: list the adapters */
	int (*event)(struct talk *talk, const struct lc_event *event); /* every event but LC_EVENT_ERROR */
	void *userdata;
	struct diag *diag;
	/* the conversation's own */
	lc_connection *connection;
	uint64_t id;
	sigset_t old_signals;
	int signal_fd, result;
	unsigned interrupts;          /* how often someone pressed Ctrl-C */
	bool ended;
	char *out;                    /* text on its way to stdout */
	size_t n_out, out_room;
};

int talk_run(struct talk *talk);
int talk_print(struct talk *talk, const char *text, size_t bytes);

#endif
