/* SPDX-License-Identifier: MIT */
/* From what a client sent to a request the engine can run, or to the words why not: see admit.c. */
#ifndef LORAD_SCHED_ADMIT_H
#define LORAD_SCHED_ADMIT_H

#include "daemon/sched/request.h"

struct admit {
	const struct model *model;
	struct store *store;
	struct cache *cache;
	struct kv *kv;
	struct charges *charges;
};

int admit_judge(const struct ipc_request *ipc, struct diag *diag);
int admit_request(const struct admit *admit, struct ipc_request *ipc, struct request **ret, struct diag *diag);

#endif
