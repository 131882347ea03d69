/* SPDX-License-Identifier: MIT */
/* One call of the control socket, as its verb sees it: see control.c. */
#ifndef LORAD_CONTROL_CALL_H
#define LORAD_CONTROL_CALL_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "daemon/control-peer.h"
#include "daemon/parts.h"
#include "daemon/store/store.h"

struct control_call {
	struct control_peer *peer;   /* NULL: gone, answers are dropped */
	const struct parts *parts;
	const char *verb;
	json_t *parameters;          /* an object */
	bool more;                   /* progress is wanted */
	int fd[CONTROL_FDS_MAX];     /* what came with it; -1 once a verb took it over */
	size_t n_fds;
	void (*gone)(struct control_call *call); /* set by a verb that works on: its peer hung up */
	void *work;                  /* that verb's own */
};

/* A verb either answers before it returns or keeps the call and answers later, exactly once. Answering frees the call. */
typedef void control_verb_fn(struct control_call *call);

void control_reply(struct control_call *call, json_t *parameters);  /* takes over parameters */
void control_reply_files(struct control_call *call, json_t *parameters, const int *fds, size_t n_fds); /* and the fds */
void control_progress(struct control_call *call, json_t *parameters);
void control_fail(struct control_call *call, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* A string parameter, or NULL after the call was failed because it is missing. */
const char *control_text(struct control_call *call, const char *key);

/* The adapter that the parameter "name" names, or NULL after the call was failed; ret_record may be NULL. */
const char *control_find(struct control_call *call, struct store_digest *ret_digest, struct store_record *ret_record);

control_verb_fn control_list, control_show, control_pin, control_unpin, control_prefetch; /* control-adapters.c */
control_verb_fn control_export, control_remove;                                           /* control-files.c */
control_verb_fn control_verify, control_compact;                                          /* control-upkeep.c */
control_verb_fn control_import;                                                           /* control-import.c */
control_verb_fn control_status, control_metrics;                                          /* control-status.c */

#endif
