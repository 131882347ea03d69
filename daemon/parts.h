/* SPDX-License-Identifier: MIT */
/* What the daemon consists of, as server.c wires it: the control verbs read and steer it. Loop's thread. */
#ifndef LORAD_PARTS_H
#define LORAD_PARTS_H

#include <stdint.h>

struct parts {
	const struct options *options;
	struct loop *loop;
	struct mailbox *mailbox;
	struct worker *worker, *upkeep; /* for what a caller waits for; for what takes minutes */
	struct store *store;
	struct pager *pager;
	struct cache *cache;
	struct pool *pool;
	struct kv *kv;
	struct model *model;
	struct sched *sched;
	struct ipc *ipc;
	struct importer *importer;
	const struct compute *compute; /* what was chosen at start */
	uint64_t host_cache;          /* bytes that adapters may take of host memory */
	uint64_t started_ns;
};

#endif
