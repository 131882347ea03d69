/* SPDX-License-Identifier: MIT */
/*
 * Who starts
 *
 * First come, first served, with one exception that the whole daemon is about: a request whose adapter is being paged in
 * lets those behind it pass, so that reading from the disk never idles the model. To start, a request needs a place in
 * the step, all its adapters held in memory and KV blocks for all its tokens so far. What it cannot get decides:
 *
 *   an adapter is on its way      others pass; the cache wakes the engine when it is there
 *   no room for an adapter        others pass, for ENGINE_NO_ROOM_NS: then the rest of the queue waits with it, so that
 *                                 running requests end and room appears
 *   no KV blocks                  the rest of the queue waits: smaller ones must not starve a large one
 *
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
	request->started_ns = now_ns;
	request->n_cached = request->n_computed;
	engine->stats.prefix_asked_tokens += request->n_prompt;
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

static enum start start(struct engine *engine, struct request *request, uint64_t now_ns)
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

/* No place yet, but soon: have its adapters read meanwhile. */
static void prefetch(struct engine *engine, struct request *request)
{
	for (uint32_t i = 0; i < request->n_adapters; ++i)
		(void)cache_want(engine->options.cache, request->adapter[i], NULL);
}

/**
 * engine_start_waiting() - start whoever can
 */
void engine_start_waiting(struct engine *engine, uint64_t now_ns)
{
	uint32_t seen = 0, ahead = 0;
	struct request *request;

	list_for_each(request, &engine->waiting, link) {
		if (seen++ == ENGINE_SCAN_MAX || ahead == ENGINE_PREFETCH_AHEAD)
			break;
		if (request_is_stuck(request))
			continue;
		if (engine->n_running == engine->options.limits.seqs) {
			prefetch(engine, request);
			ahead++;
		} else if (start(engine, request, now_ns) == START_BAR) {
			break;
		}
	}
}
