/* SPDX-License-Identifier: MIT */
/* What other threads tell the engine: see inbox.c. */
#ifndef LORAD_SCHED_INBOX_H
#define LORAD_SCHED_INBOX_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "daemon/base/list.h"

struct ipc_session;
struct request;

enum inbox_kind { INBOX_REQUEST, INBOX_CANCEL, INBOX_CLOSE };

struct inbox_message {
	struct list link;
	enum inbox_kind kind;
	struct request *request;
	struct ipc_session *session; /* a reference, of cancel and close */
	uint64_t id;
};

struct inbox {
	pthread_mutex_t lock;
	pthread_cond_t news;
	struct list messages;
	bool woken;                  /* something changed that is no message */
};

int inbox_init(struct inbox *inbox);
void inbox_deinit(struct inbox *inbox);
int inbox_put(struct inbox *inbox, const struct inbox_message *message); /* copied; its objects go with it */
void inbox_wake(struct inbox *inbox);
void inbox_take(struct inbox *inbox, uint64_t wait_ns, struct list *ret);

#endif
