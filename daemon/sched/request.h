/* SPDX-License-Identifier: MIT */
/* One admitted request, from the inbox to its last message: see request.c. */
#ifndef LORAD_SCHED_REQUEST_H
#define LORAD_SCHED_REQUEST_H

#include "daemon/base/cleanup.h"
#include "daemon/base/list.h"
#include "daemon/cache/cache.h"
#include "daemon/ipc/ipc.h"
#include "daemon/model/step.h"
#include "daemon/sched/charge.h"
#include "daemon/sched/stops.h"

enum request_place { REQUEST_NOWHERE, REQUEST_WAITING, REQUEST_RUNNING, REQUEST_LEAVING };
enum request_end { REQUEST_GOES_ON, REQUEST_STOPPED, REQUEST_FULL_LENGTH, REQUEST_SCORED };

/* Tokens whose probabilities are asked for; the answer to score. */
struct request_scores {
	float *logprob;           /* [n_prompt], the first is NaN */
	struct ipc_top *top;      /* [n_prompt][n_top] */
	uint32_t n_known, n_sent; /* how many of them are computed, and sent */
};

/* A generated token that the client's ring had no room for. */
struct request_unsent {
	struct ipc_token token;   /* its pointers are the buffers below */
	char *text;
	struct ipc_top top[KERN_TOP_MAX];
};

struct request {
	struct list link;         /* the engine's list of its place */
	struct fair_user *user;   /* once it is the engine's */
	struct list user_link;    /* that one's queue, while waiting */
	struct list unsent_link;  /* the engine's list of requests that have something to send */
	enum request_place place;
	struct ipc_request *ipc;  /* what the client sent; its session is whom to answer */
	struct charges *charges;
	struct charge charge;

	/* All tokens so far: the prompt, then what was generated. The first n_computed have their keys and values. */
	uint32_t *token;          /* [room] */
	uint32_t n_tokens, n_prompt, n_computed, room;
	uint32_t n_cached;        /* of the prompt: were there when it first started */
	uint32_t n_to_note;       /* computed with its adapters, and not told to the cache */
	struct kv_seq kv;

	struct cache *cache;
	struct cache_adapter *adapter[IPC_ADAPTERS_MAX]; /* references */
	struct step_adapter lora[IPC_ADAPTERS_MAX];      /* while held */
	struct ipc_used_adapter used[IPC_ADAPTERS_MAX];
	uint32_t n_adapters;
	bool held;

	struct kern_sampling sampling;
	uint32_t *seen;           /* distinct tokens so far, for the repetition penalty; NULL: not needed */
	uint8_t *seen_bits;       /* [vocab / 8] */

	struct detokenizer detokenizer;
	struct stops stops;
	struct request_unsent *unsent; /* generate: NULL unless a token waits for room */
	struct request_scores scores;  /* score */
	enum request_end end;

	/* Monotonic times; 0: not yet. */
	uint64_t started_ns, first_ns, pending_ns, no_room_ns, stuck_ns, apart_ns;
	uint64_t page_in_ns;      /* sum of the times spent waiting for adapters */
};

struct request *request_free(struct request *request);
DEFINE_CLEANUP(struct request *, request_free)

void request_insert(struct list *head, struct request *request, size_t link);
void request_append(struct request *request, uint32_t token);
uint32_t request_todo(const struct request *request);
bool request_is(const struct request *request, const struct ipc_session *session, uint64_t id);

static inline uint32_t request_n_generated(const struct request *request)
{
	return request->n_tokens - request->n_prompt;
}

/* Must its client read before the next step? Scores are kept, so that they never have to wait. */
static inline bool request_is_stuck(const struct request *request)
{
	return request->unsent;
}

/* Is something computed that the client has not been sent? */
static inline bool request_has_unsent(const struct request *request)
{
	return request->unsent || request->scores.n_sent < request->scores.n_known;
}

#endif
