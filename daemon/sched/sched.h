/* SPDX-License-Identifier: MIT */
/* Who runs next: admission, batching, preemption, the step loop on the engine thread. See sched.c. */
#ifndef LORAD_SCHED_SCHED_H
#define LORAD_SCHED_SCHED_H

#include <stdint.h>

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

struct sched_options {
	const struct model *model;
	struct store *store;
	struct cache *cache;
	struct kv *kv;
	struct step *step;
	struct step_limits limits;
	enum sched_prefix prefix;
	void (*device_lost)(void *userdata, const struct kern_failure *why); /* engine thread; it steps no more */
	void *userdata;
};

struct sched_stats {
	uint64_t steps, rows, prompt_tokens, generated_tokens;
	uint64_t prefix_asked_tokens, prefix_hit_tokens; /* of prompts, and what of them was there */
	uint64_t requests, finished, failed, cancelled, preempted;
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

#endif
