/* SPDX-License-Identifier: MIT */
/* Letters from other threads to the loop's: see mailbox.c. */
#ifndef LORAD_MAILBOX_H
#define LORAD_MAILBOX_H

#include <pthread.h>
#include <stdbool.h>

#include "daemon/base/list.h"

struct loop;

/* Embedded in what it is about; may be sent again once fn was called. */
struct letter {
	struct list link;
	void (*fn)(struct letter *letter); /* on the loop's thread */
};

struct mailbox {
	pthread_mutex_t lock;
	struct list letters;
	struct loop *loop;
	bool posted;
};

int mailbox_init(struct mailbox *mailbox, struct loop *loop);
void mailbox_deinit(struct mailbox *mailbox);
void mailbox_send(struct mailbox *mailbox, struct letter *letter); /* any thread; a letter under way stays one letter */
void mailbox_deliver(struct mailbox *mailbox);                     /* the loop's thread */

#endif
