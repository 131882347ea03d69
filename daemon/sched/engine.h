/* SPDX-License-Identifier: MIT */
/* The engine: all admitted requests and one turn of the step loop. Engine thread only; see engine.c. */
#ifndef LORAD_SCHED_ENGINE_H
#define LORAD_SCHED_ENGINE_H

#include "daemon/base/clock.h"
#include "daemon/sched/answer.h"
#include "daemon/sched/batch.h"
#include "daemon/sched/estimate.h"
#include "daemon/sched/fair.h"
#include "daemon/sched/request.h"
#include "daemon/sched/sched.h"

#define ENGINE_LOOKAHEAD 64u             /* waiting requests beyond the free places whose adapters are fetched */
#define ENGINE_SCAN_MAX 512u             /* waiting requests looked at in one turn */
#define ENGINE_MIXED_PART 4u             /* a step that decodes takes at most 1/4 of its rows as prefill */
#define ENGINE_MIXED_START 32u           /* and so many until it is known how long they take */
#define ENGINE_NO_ROOM_NS (1 * NS_PER_S) /* a request that found no room for its adapters lets others pass so long */
#define ENGINE_APART_NS (1 * NS_PER_S)   /* and so does one whose adapters would be too many for the batch */
#define ENGINE_EXPIRE_NS (20 * NS_PER_MS) /* how often deadlines are looked at */
#define ENGINE_STUCK_NS (30 * NS_PER_S)  /* a client that reads nothing keeps its requests so long */

struct engine {
	struct sched_options options;
	struct list waiting, running; /* by arrival */
	struct list leaving;
	struct list unsent;           /* by unsent_link */
	uint32_t n_waiting, n_running;
	struct fair fair;             /* the order of those who wait */
	struct estimate estimate;
	uint64_t waiting_tokens;      /* of prompts */
	uint64_t expired_ns;          /* when deadlines were looked at last */
	uint64_t paced_ns;            /* prompts since then are not counted in the estimate yet; 0: there are none */
	uint32_t mixed_rows;          /* prefill rows of a step that decodes, by batch_pace() */

	/* Scratch of one turn: [limits.seqs] each, results [limits.rows]. */
	struct step_seq *seq;
	struct request **in_step;
	struct batch_item *item;
	struct batch_victim *victim;
	struct kern_result *result;
	struct ipc_session **flush;   /* sessions that were sent something since the last flush */
	uint32_t n_flush;

	struct kern_failure lost;     /* what the device failed of; code 0: it has not */

	struct sched_stats stats;
};

/* Prefill rows that a step which decodes takes at most. */
static inline uint32_t engine_mixed_most(const struct engine *engine)
{
	return (engine->options.limits.rows + ENGINE_MIXED_PART - 1) / ENGINE_MIXED_PART;
}

enum engine_turn {
	ENGINE_IDLE,  /* nothing can go on until something comes in or an adapter changes its state */
	ENGINE_BUSY,  /* a step ran */
};

int engine_init(struct engine *engine, const struct sched_options *options);
void engine_deinit(struct engine *engine);
bool engine_empty(const struct engine *engine);

void engine_add(struct engine *engine, struct request *request);          /* takes it over */
void engine_cancel(struct engine *engine, const struct ipc_session *session, uint64_t id, uint64_t now_ns);
void engine_close(struct engine *engine, const struct ipc_session *session);
void engine_fail_all(struct engine *engine, int code, const char *text);
enum engine_turn engine_turn(struct engine *engine, uint64_t now_ns);     /* runner.c */

/* Between the engine's own files. */
void engine_place(struct engine *engine, struct request *request, enum request_place place);
void engine_release(struct engine *engine, struct request *request);
void engine_touch(struct engine *engine, struct ipc_session *session);
void engine_flush(struct engine *engine);
void engine_finish(struct engine *engine, struct request *request, enum answer_finish finish, uint64_t now_ns);
void engine_fail(struct engine *engine, struct request *request, int code, const char *text);
void engine_turn_away(struct engine *engine, struct request *request, int code, uint32_t retry_ms, const char *text);
void engine_after_result(struct engine *engine, struct request *request, uint64_t now_ns);
void engine_send_unsent(struct engine *engine, uint64_t now_ns);
uint64_t engine_running_prompts(const struct engine *engine);             /* start.c: their tokens still to do */
void engine_start_waiting(struct engine *engine, uint64_t now_ns);
int engine_take_kv(struct engine *engine, struct request *request);       /* memory.c */
void engine_fail_without_kv(struct engine *engine, struct request *request, int result);
void engine_reserve_kv(struct engine *engine);
uint32_t engine_retry_ms(const struct engine *engine);                    /* late.c */
bool engine_drop_late(struct engine *engine, struct request *request, uint64_t ahead, uint64_t now_ns);
void engine_expire(struct engine *engine, uint64_t now_ns);

#endif
