/* SPDX-License-Identifier: MIT */
/* The control socket: JSON calls of administrators, see control.c. */
#ifndef LORAD_CONTROL_H
#define LORAD_CONTROL_H

#include "daemon/base/cleanup.h"

struct control;
struct parts;

int control_new(struct control **ret, const struct parts *parts, int listen_fd); /* the fd stays the caller's */
struct control *control_free(struct control *control); /* once no job of a call is under way any more */
void control_hang_up(struct control *control);         /* tell every call's job that nobody waits for it */
DEFINE_CLEANUP(struct control *, control_free)

#endif
