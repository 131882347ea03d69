/* SPDX-License-Identifier: MIT */
/* The control socket, from the caller's side. See control.c. */
#ifndef LORAD_TOOLS_CONTROL_H
#define LORAD_TOOLS_CONTROL_H

#include <jansson.h>
#include <stddef.h>

#include "daemon/base/cleanup.h"
#include "daemon/base/error.h"

#define CONTROL_FDS_MAX 16

struct control;

struct control_call {
	const char *method;       /* "Import" */
	json_t *parameters;       /* borrowed */
	const int *fds;           /* sent along, borrowed */
	size_t n_fds;
	void (*progress)(void *userdata, const json_t *parameters); /* NULL: one reply is enough */
	void *userdata;
};

struct control_reply {
	json_t *parameters;
	int fds[CONTROL_FDS_MAX];
	size_t n_fds;
};

int control_open(struct control **ret, const char *client_socket, struct diag *diag);
struct control *control_close(struct control *control);
int control_fd(const struct control *control);
int control_send(struct control *control, const struct control_call *call, struct diag *diag);
int control_await(struct control *control, const struct control_call *call, struct control_reply *ret, struct diag *diag);
int control_call(struct control *control, const struct control_call *call, struct control_reply *ret, struct diag *diag);
void control_reply_deinit(struct control_reply *reply);

DEFINE_CLEANUP(struct control *, control_close)

#endif
