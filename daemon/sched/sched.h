/* SPDX-License-Identifier: MIT */
/* Who runs next: admission, batching, preemption, the step loop on the engine thread. See sched.c. */
#ifndef LORAD_SCHED_SCHED_H
#define LORAD_SCHED_SCHED_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "daemon/base/cleanup.h"
#include "daemon/base/hist.h"
#include "daemon/cache/cache.h"
#include "daemon/ipc/ipc.h"
#include "daemon/model/step.h"
#include "daemon/store/store.h"

struct sched;

#define SCHED_KV_WORTH 8u /* an unused KV block counts as used so many times more lately than it was: see memory.c */

/* Whose requests may begin with keys and values that others' requests computed. */
enum sched_prefix { SCHED_PREFIX_USER /* each user's own */, SCHED_PREFIX_SHARED /* everybody's */, SCHED_PREFIX_OFF };

#define SCHED_WEIGHTS_MAX 64
#define SCHED_BATCH_ADAPTERS_MAX 256u

/* Between users; see fair.c. All 0: everybody has the same weight, nothing is bounded. */
struct sched_fairness {
	bool first_come;            /* first come, first served instead */
	struct sched_weight {
		uid_t uid;
		double weight;      /* above 0; 1 for who is not listed */
	} weight[SCHED_WEIGHTS_MAX];
	uint32_t n_weights;
	uint32_t queue_limit;       /* most waiting requests of one user */
	uint32_t batch_adapters;    /* most distinct adapters in the running batch, up to SCHED_BATCH_ADAPTERS_MAX */
};

/* One user, as far as is remembered. */
struct sched_user {
	uid_t uid;
	double weight, service;     /* what it was served: prompt tokens, and twice the generated ones */
	uint64_t requests, prompt_tokens, generated_tokens;
	uint64_t refused, aborted;  /* at a full queue; because of a target or deadline */
	uint32_t running, waiting;
};

struct sched_options {
	const struct model *model;
	struct store *store;
	struct cache *cache;
	struct kv *kv;
	struct step *step;
	struct step_limits limits;
	enum sched_prefix prefix;
	struct sched_fairness fairness;
	void (*device_lost)(void *userdata, const struct kern_failure *why); /* engine thread; it steps no more */
	void *userdata;
};

struct sched_stats {
	uint64_t steps, rows, prompt_tokens, generated_tokens;
	uint64_t prefix_asked_tokens, prefix_hit_tokens; /* of prompts, and what of them was there */
	uint64_t requests, finished, failed, cancelled, preempted;
	uint64_t turned_away;        /* at a full queue, or because of a target or deadline */
	uint64_t adapters_in_steps;  /* sum over steps of distinct adapters: / steps = adapters per step */
	uint64_t max_adapters;       /* most distinct adapters in one step */
	uint64_t max_rows;           /* most rows in one step */
	uint32_t running, waiting;
	struct hist step;            /* duration of a step */
	struct hist queue, page_in;  /* per request, before it started: waiting for its turn, for its adapters */
	struct hist first_token;     /* from arrival to the first token */
};

int sched_new(struct sched **ret, const struct sched_options *options);
struct sched *sched_free(struct sched *sched);
DEFINE_CLEANUP(struct sched *, sched_free)

extern const struct ipc_ops sched_ipc_ops;      /* userdata: the sched */
void sched_wake(void *sched);                   /* cache_options.changed */
void sched_drain(struct sched *sched, uint64_t deadline_ns); /* finish or fail what is in flight, then stop stepping */
uint64_t sched_progress(const struct sched *sched); /* moves whenever the engine does, or is idle: feeds the watchdog */
void sched_read_stats(struct sched *sched, struct sched_stats *ret);
int sched_read_users(struct sched *sched, struct sched_user **ret, size_t *ret_n); /* malloc'd; the busiest first */

#endif
