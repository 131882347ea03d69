/* SPDX-License-Identifier: MIT */
/*
 * One turn of the step loop
 *
 *   take in what was uploaded -> send what found no room before -> start who can -> KV blocks for everyone -> share out
 *   the rows -> run the step -> results to answers -> wake each client once
 *
 * Requests that share a step need nothing in common: not the adapter, not the phase, not the kind.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>

#include "daemon/model/prefix.h"
#include "daemon/sched/engine.h"

/* Rows for everyone who runs. Fills item[] and in_step[], both [n_running]. Return: rows of the step. */
static uint32_t share_rows(struct engine *engine)
{
	const struct batch_limits limits = {
		.rows = engine->options.limits.rows,
		.mixed_rows = engine->mixed_rows,
	};
	struct request *request;
	uint32_t n = 0;

	list_for_each(request, &engine->running, link) {
		engine->in_step[n] = request;
		engine->item[n++] = (struct batch_item){
			.todo = request_todo(request),
			.ready = !request_is_stuck(request),
		};
	}
	assert(n == engine->n_running);
	return batch_fill(engine->item, n, &limits);
}

/* What the model is to give back for a request's rows. */
static void set_output(struct step_seq *seq, const struct request *request)
{
	uint32_t end = request->n_computed + seq->n_tokens;

	seq->sampling = request->sampling;
	if (request->ipc->kind == IPC_SCORE) {
		seq->output = end < request->scores.n_known ? STEP_OUTPUT_NONE : STEP_OUTPUT_ALL;
		seq->sampling.target = (int32_t)request->token[end];
	} else if (end == request->n_tokens) {
		seq->output = STEP_OUTPUT_LAST;
		seq->sampling.draw = request_n_generated(request);
	} else {
		seq->output = STEP_OUTPUT_NONE;
	}
}

/* Turn in_step[] and item[] into seq[], dropping those without rows. Return: sequences of the step. */
static uint32_t build_step(struct engine *engine)
{
	struct kern_result *result = engine->result;
	uint32_t n = 0;

	for (uint32_t i = 0; i < engine->n_running; ++i) {
		struct request *request = engine->in_step[i];
		struct step_seq *seq = &engine->seq[n];

		if (!engine->item[i].rows)
			continue;
		*seq = (struct step_seq){
			.token = request->token + request->n_computed,
			.n_tokens = engine->item[i].rows,
			.position = request->n_computed,
			.kv = &request->kv,
			.copy_from = prefix_source(&request->kv),
			.adapter = request->lora,
			.n_adapters = request->n_adapters,
			.result = result,
		};
		set_output(seq, request);
		result += seq->n_tokens;
		engine->in_step[n++] = request;
	}
	return n;
}

static void take_result(struct engine *engine, struct request *request, const struct step_seq *seq, uint64_t now_ns)
{
	engine->stats.prompt_tokens += seq->position < request->n_prompt ? seq->n_tokens : 0;
	request->n_to_note += seq->n_tokens;
	if (seq->output == STEP_OUTPUT_ALL) {
		answer_scores(request, seq->result, seq->n_tokens);
		(void)answer_send_unsent(request);
	}
	request->n_computed += seq->n_tokens;
	prefix_copied(engine->options.kv, &request->kv);
	prefix_computed(engine->options.kv, &request->kv, request->token, request->n_computed);
	if (seq->output == STEP_OUTPUT_NONE)
		return;
	if (!request->first_ns) {
		request->first_ns = now_ns;
		hist_add(&engine->stats.first_token, now_ns - request->ipc->arrived_ns);
	}
	if (seq->output == STEP_OUTPUT_LAST) {
		engine->stats.generated_tokens++;
		fair_generated(request);
		if (answer_token(request, engine->options.model, seq->result) < 0) {
			engine_fail(engine, request, EIO, "the daemon ran out of memory");
			return;
		}
	}
	engine_after_result(engine, request, now_ns);
}

static void count_step(struct engine *engine, uint64_t took_ns)
{
	const struct step_stats *last = step_last(engine->options.step);
	struct sched_stats *stats = &engine->stats;

	stats->steps++;
	stats->rows += last->rows;
	stats->adapters_in_steps += last->adapters;
	if (last->adapters > stats->max_adapters)
		stats->max_adapters = last->adapters;
	if (last->rows > stats->max_rows)
		stats->max_rows = last->rows;
	hist_add(&stats->step, took_ns);
}

/* What this step tells of how many prefill rows the next one that decodes should take. */
static void set_pace(struct engine *engine, uint32_t n, uint64_t took_ns)
{
	uint32_t decodes = 0, prefills = 0;

	for (uint32_t i = 0; i < n; ++i) {
		decodes += engine->seq[i].n_tokens == 1;
		prefills += engine->seq[i].n_tokens > 1 ? engine->seq[i].n_tokens : 0;
	}
	if (decodes && prefills)
		engine->mixed_rows = batch_pace(engine->mixed_rows, engine_mixed_most(engine), prefills, took_ns);
}

/* A step did not happen. A device that failed takes all requests with it, and the daemon after them. */
static void fail_step(struct engine *engine, uint32_t n)
{
	char text[256];

	step_failure(engine->options.step, &engine->lost);
	for (uint32_t i = 0; i < n && !engine->lost.code; ++i)
		engine_fail(engine, engine->in_step[i], EIO, "the step failed; the daemon's log has the reason");
	if (!engine->lost.code)
		return;
	(void)snprintf(text, sizeof(text), "the device failed: %s", engine->lost.text);
	engine_fail_all(engine, EIO, text);
	engine->options.device_lost(engine->options.userdata, &engine->lost);
}

static void run_step(struct engine *engine, uint32_t n, uint64_t now_ns)
{
	uint64_t began = clock_ns(), took;
	int r = step_run(engine->options.step, engine->seq, n);

	took = clock_ns() - began;
	if (r < 0) {
		fail_step(engine, n);
		return;
	}
	count_step(engine, took);
	set_pace(engine, n, took);
	for (uint32_t i = 0; i < n; ++i)
		take_result(engine, engine->in_step[i], &engine->seq[i], now_ns + took);
}

/* Prompt tokens that are behind us, computed or found. */
static uint64_t prompts_done(const struct engine *engine)
{
	return engine->stats.prompt_tokens + engine->stats.prefix_hit_tokens;
}

static bool has_prompts(const struct engine *engine)
{
	return engine->n_waiting > 0 || engine_running_prompts(engine) > 0;
}

/* How long prompts take, from turn to turn as long as there are any. Time in which nothing ran says nothing: a page-in that
 * everybody waited for would make all that follow look hopeless. */
static void note_pace(struct engine *engine, uint64_t done, bool ran)
{
	uint64_t now_ns = clock_ns();

	if (engine->paced_ns && ran)
		estimate_note(&engine->estimate, done, now_ns - engine->paced_ns);
	engine->paced_ns = has_prompts(engine) ? now_ns : 0;
}

/**
 * engine_turn() - one turn of the step loop
 * @engine:     the engine
 * @now_ns:     monotonic time
 *
 * Never sleeps.
 *
 * Return: whether the next turn may find something to do at once.
 */
enum engine_turn engine_turn(struct engine *engine, uint64_t now_ns)
{
	uint64_t before = prompts_done(engine);
	uint32_t rows;

	if (!engine->paced_ns && has_prompts(engine))
		engine->paced_ns = clock_ns();
	if (engine->lost.code)
		engine_fail_all(engine, EIO, "the device failed, the daemon is ending");
	cache_begin_turn(engine->options.cache);
	engine_send_unsent(engine, now_ns);
	engine_expire(engine, now_ns);
	engine_start_waiting(engine, now_ns);
	engine_reserve_kv(engine);
	rows = share_rows(engine);
	if (rows)
		run_step(engine, build_step(engine), now_ns);
	engine_flush(engine);
	note_pace(engine, prompts_done(engine) - before, rows > 0);
	engine->stats.running = engine->n_running;
	engine->stats.waiting = engine->n_waiting;
	return rows ? ENGINE_BUSY : ENGINE_IDLE;
}
