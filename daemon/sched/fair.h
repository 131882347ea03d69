/* SPDX-License-Identifier: MIT */
/* Whose turn it is: users, their queues and what they were served. Engine thread only; see fair.c. */
#ifndef LORAD_SCHED_FAIR_H
#define LORAD_SCHED_FAIR_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "daemon/base/list.h"
#include "daemon/base/rate.h"
#include "daemon/sched/sched.h"

struct request;

#define FAIR_PROMPT 1.0      /* wp: what a token of a prompt counts */
#define FAIR_GENERATED 2.0   /* wq: and one of an answer */
#define FAIR_USERS_MAX 1024u /* remembered; beyond, the idle one that was served least is forgotten */
#define FAIR_OVERLOAD 1.1    /* arrivals for each start that make an overload: more than chance */

struct fair_user {
	struct list link;
	struct list queue;       /* its waiting requests, by arrival */
	uint32_t n_targets;      /* of them have a target for their first token */
	double counter;          /* what it was served, over its weight, and lifts */
	struct rate arrivals, starts;
	struct sched_user stats;

	/* of a walk */
	struct list *cursor;
	double ahead;            /* its counter if all that the walk has passed were started */
	bool newest_first;
};

struct fair {
	struct list users;
	uint32_t n_users, n_targets; /* waiting requests with a target, of all users */
	double left;             /* the counter of the user whose queue became empty last */
	struct sched_fairness options;
};

void fair_init(struct fair *fair, const struct sched_fairness *options);
void fair_deinit(struct fair *fair);
struct fair_user *fair_user(struct fair *fair, uid_t uid);
void fair_arrive(struct fair *fair, struct request *request);
void fair_queue(struct fair *fair, struct request *request);
void fair_leave(struct fair *fair, struct request *request);
void fair_start(struct request *request, uint64_t now_ns);
void fair_generated(struct request *request);
uint32_t fair_read(const struct fair *fair, struct sched_user *ret);
void fair_begin_walk(struct fair *fair, uint64_t now_ns);
struct request *fair_next(struct fair *fair);

#endif
