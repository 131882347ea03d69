/* SPDX-License-Identifier: MIT */
/* One thread for what would block the loop: see worker.c. */
#ifndef LORAD_WORKER_H
#define LORAD_WORKER_H

#include <stdatomic.h>

#include "daemon/base/cleanup.h"
#include "daemon/mailbox.h"

struct worker;

enum worker_kind { WORKER_QUICK, WORKER_SLOW };

/* Embedded in its owner, who keeps it until done() was called. */
struct worker_job {
	void (*run)(struct worker_job *job);  /* on the worker's thread; not called once `cancelled` is set */
	void (*done)(struct worker_job *job); /* on the loop's thread, always */
	atomic_bool cancelled;                /* may be set at any time: end soon */
	struct list link;
	struct letter letter;
};

int worker_new(struct worker **ret, struct mailbox *mailbox, enum worker_kind kind);
struct worker *worker_free(struct worker *worker); /* cancels all jobs; their done() is in the mailbox then */
DEFINE_CLEANUP(struct worker *, worker_free)
void worker_submit(struct worker *worker, struct worker_job *job);

#endif
