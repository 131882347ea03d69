/* SPDX-License-Identifier: MIT */
/*
 * Who starts
 *
 * In turn (fair.c), with one exception that the whole daemon is about: a request whose adapter is being paged in lets
 * those behind it pass, so that reading from the disk never idles the model. To start, a request needs a place in
 * the step, all its adapters held in memory and KV blocks for all its tokens so far. What it cannot get decides:
 *
 *   an adapter is on its way      others pass; the cache wakes the engine when it is there
 *   no room for an adapter        others pass, for ENGINE_NO_ROOM_NS: then the rest of the queue waits with it, so that
 *                                 running requests end and room appears
 *   too many adapters             others pass, for ENGINE_APART_NS; only where the batch's adapters are bounded
 *   no KV blocks                  the rest of the queue waits: smaller ones must not starve a large one
 *   its prompt's beginning is     others pass: computing it twice would take longer than to wait
 *   being computed
 *
 * A request holds adapters either all or not at all; waiting with half of them could wait for another's half for ever.
 * Memory for keys and values, and who yields it, is memory.c's.
 */
#include <assert.h>
#include <errno.h>

#include "daemon/sched/engine.h"

enum start {
	START_RUNS,    /* or failed: it waits no more */
	START_PASS,    /* it waits, others may pass */
	START_BAR,     /* it waits, and so must all behind it */
};

/* ---- adapters ---- */

/* Take hold of all adapters or of none; asks for every missing one, so that they are paged in side by side. */
static int hold_adapters(struct engine *engine, struct request *request, struct diag *diag)
{
	struct cache *cache = engine->options.cache;
	int result[IPC_ADAPTERS_MAX], worst = CACHE_OK;

	for (uint32_t i = 0; i < request->n_adapters; ++i) {
		struct diag why = { 0 };

		result[i] = cache_hold(cache, request->adapter[i], &why);
		if (result[i] == CACHE_OK || (worst != CACHE_OK && worst != CACHE_E_PENDING))
			continue;
		worst = result[i];
		if (worst != CACHE_E_PENDING) /* which says nothing, every turn */
			(void)diag_set(diag, worst, "adapter \"%s\": %s", request->used[i].name, why.text);
	}
	for (uint32_t i = 0; worst != CACHE_OK && i < request->n_adapters; ++i)
		if (result[i] == CACHE_OK)
			cache_unhold(cache, request->adapter[i]);
	request->held = worst == CACHE_OK;
	return worst;
}

static void note_wait(struct request *request, int result, uint64_t now_ns)
{
	if (result == CACHE_E_PENDING && !request->pending_ns)
		request->pending_ns = now_ns;
	if (result != CACHE_E_PENDING && request->pending_ns) {
		request->page_in_ns += now_ns - request->pending_ns;
		request->pending_ns = 0;
	}
	if (result != CACHE_E_NO_ROOM)
		request->no_room_ns = 0;
	else if (!request->no_room_ns)
		request->no_room_ns = now_ns;
}

struct adapter_set {
	const struct cache_adapter *adapter[SCHED_BATCH_ADAPTERS_MAX];
	uint32_t n, most;
};

/* False: there is no room for the request's. */
static bool add_adapters(struct adapter_set *set, const struct request *request)
{
	for (uint32_t i = 0; i < request->n_adapters; ++i) {
		uint32_t at = 0;

		while (at < set->n && set->adapter[at] != request->adapter[i])
			++at;
		if (at == set->most)
			return false;
		set->adapter[at] = request->adapter[i];
		set->n += at == set->n;
	}
	return true;
}

/* May it join the batch, as far as the number of unlike adapters goes? Alone it always may. */
static bool is_alike(const struct engine *engine, const struct request *joining)
{
	struct adapter_set set = { .most = engine->options.fairness.batch_adapters };
	const struct request *request;

	if (!set.most || list_empty(&engine->running))
		return true;
	list_for_each(request, &engine->running, link)
		if (!add_adapters(&set, request))
			return false;
	return add_adapters(&set, joining);
}

/* Is some adapter on its way? Then memory that is taken now may be free later. */
static bool is_loading(struct engine *engine)
{
	struct cache_stats stats;

	cache_read_stats(engine->options.cache, &stats);
	return stats.loading > 0;
}

static enum start no_room_for_adapter(struct engine *engine, struct request *request, const struct diag *diag,
				      uint64_t now_ns)
{
	if (list_empty(&engine->running) && !is_loading(engine)) {
		engine_fail(engine, request, ENOMEM, diag->text);
		return START_RUNS;
	}
	return now_ns - request->no_room_ns > ENGINE_NO_ROOM_NS ? START_BAR : START_PASS;
}

static int code_of(int cache_result)
{
	switch (cache_result) {
	case CACHE_E_UNFIT:
		return EINVAL;
	case CACHE_E_NOT_FOUND:
		return ENOENT;
	case CACHE_E_TOO_LARGE:
		return ENOMEM;
	default:
		return EIO;
	}
}

/* ---- start ---- */

static void note_start(struct engine *engine, struct request *request, uint64_t now_ns)
{
	uint64_t waited = now_ns - request->ipc->arrived_ns;

	if (request->started_ns)
		return; /* again, after a preemption */
	fair_start(request, now_ns);
	request->started_ns = now_ns;
	request->n_cached = request->n_computed;
	engine->stats.prefix_asked_tokens += request->kv.root ? request->n_prompt : 0;
	engine->stats.prefix_hit_tokens += request->n_cached;
	hist_add(&engine->stats.queue, waited > request->page_in_ns ? waited - request->page_in_ns : 0);
	if (request->n_adapters)
		hist_add(&engine->stats.page_in, request->page_in_ns);
}

static enum start start_held(struct engine *engine, struct request *request, uint64_t now_ns)
{
	int r = engine_take_kv(engine, request);

	if (r == KV_E_PENDING || (r == KV_E_FULL && (!list_empty(&engine->running) || is_loading(engine)))) {
		engine_release(engine, request);
		return r == KV_E_PENDING ? START_PASS : START_BAR;
	}
	if (r) {
		engine_fail_without_kv(engine, request, r);
		return START_RUNS;
	}
	for (uint32_t i = 0; i < request->n_adapters; ++i)
		request->lora[i] = (struct step_adapter){
			.lora = cache_lora(request->adapter[i]),
			.scale = request->used[i].scale,
		};
	note_start(engine, request, now_ns);
	engine_place(engine, request, REQUEST_RUNNING);
	return START_RUNS;
}

static enum start start_now(struct engine *engine, struct request *request, uint64_t now_ns)
{
	struct diag diag = { 0 };
	int r = hold_adapters(engine, request, &diag);

	note_wait(request, r, now_ns);
	switch (r) {
	case CACHE_OK:
		return start_held(engine, request, now_ns);
	case CACHE_E_PENDING:
		return START_PASS;
	case CACHE_E_NO_ROOM:
		return no_room_for_adapter(engine, request, &diag, now_ns);
	default:
		engine_fail(engine, request, code_of(r), diag.text);
		return START_RUNS;
	}
}

/* ---- the queue ---- */

/* Would it bring more unlike adapters into the batch than there may be? Bounded in time, then the others wait for it. */
static enum start keep_apart(struct engine *engine, struct request *request, uint64_t now_ns)
{
	if (is_alike(engine, request)) {
		request->apart_ns = 0;
		return START_RUNS;
	}
	if (!request->apart_ns)
		request->apart_ns = now_ns;
	return now_ns - request->apart_ns > ENGINE_APART_NS ? START_BAR : START_PASS;
}

/* No place yet, but soon: have its adapters read meanwhile, and kept. */
static void look_ahead(struct engine *engine, struct request *request)
{
	for (uint32_t i = 0; i < request->n_adapters; ++i)
		(void)cache_want(engine->options.cache, request->adapter[i], NULL);
}

/* *started: tokens of prompts that have started, its own added. */
static enum start start(struct engine *engine, struct request *request, uint64_t *started, uint64_t now_ns)
{
	enum start apart = keep_apart(engine, request, now_ns);
	uint32_t running = engine->n_running;

	if (apart == START_RUNS)
		apart = start_now(engine, request, now_ns);
	else
		look_ahead(engine, request);
	if (engine->n_running > running)
		*started += request_todo(request);
	return apart;
}

/** engine_running_prompts() - tokens of prompts that have started and are not computed, or not again */
uint64_t engine_running_prompts(const struct engine *engine)
{
	const struct request *request;
	uint64_t n = 0;

	list_for_each(request, &engine->running, link)
		n += request_todo(request) > 1 ? request_todo(request) : 0;
	return n;
}

/* Rows for prompts in the next step. */
static uint32_t prompt_rows(const struct engine *engine)
{
	const struct request *request;

	list_for_each(request, &engine->running, link)
		if (request_todo(request) == 1)
			return engine->mixed_rows;
	return engine->options.limits.rows;
}

/**
 * engine_start_waiting() - start whoever can, turn away who comes too late
 *
 * In the order of fair.c. Those who have started are not put in order any more, so no more start than the next step has
 * rows for; nor would it help them. When nobody can start, the next ENGINE_LOOKAHEAD have their adapters read.
 */
void engine_start_waiting(struct engine *engine, uint64_t now_ns)
{
	uint64_t started = engine_running_prompts(engine), ahead = started;
	uint32_t looked_ahead = 0, rows = prompt_rows(engine);
	struct request *request;
	bool barred = false;

	fair_begin_walk(&engine->fair, now_ns);
	for (uint32_t seen = 0; seen < ENGINE_SCAN_MAX && (request = fair_next(&engine->fair)); ++seen) {
		uint32_t prompt = request->n_prompt;
		bool full = barred || started >= rows || engine->n_running == engine->options.limits.seqs;

		if (full && looked_ahead >= ENGINE_LOOKAHEAD && !engine->fair.n_targets)
			break;
		if (request_is_stuck(request) || engine_drop_late(engine, request, ahead, now_ns))
			continue;
		if (!full)
			barred = start(engine, request, &started, now_ns) == START_BAR; /* or it is gone */
		else if (looked_ahead++ < ENGINE_LOOKAHEAD)
			look_ahead(engine, request);
		ahead += prompt;
	}
}
