/* SPDX-License-Identifier: MIT */
/*
 * Engine
 *
 * All requests between admission and their last message, on the engine thread. A request is in one of three places:
 *
 *   waiting --start--> running --computed to the end--> leaving --all sent--> gone
 *      ^                  |
 *      '-----preempt------'
 *
 * Waiting requests hold nothing, running ones their KV blocks and adapters, leaving ones only text that their client has
 * not read yet. A request that is cancelled, fails or loses its client leaves from any place. Independent of its place, a
 * request with something unsent is on `unsent` as well; one with an unsent token runs no further until its client has read.
 *
 * This file keeps the places; fair.c the order of those who wait; late.c turns away who comes too late; start.c decides
 * who starts, memory.c who gets and yields memory; runner.c runs a turn.
 */
#include "daemon/sched/engine.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "daemon/model/prefix.h"
#include "daemon/sched/answer.h"

static int alloc_step(struct engine *engine, const struct step_limits *limits)
{
	engine->seq = calloc(limits->seqs, sizeof(*engine->seq));
	engine->in_step = calloc(limits->seqs, sizeof(struct request *));
	engine->item = calloc(limits->seqs, sizeof(*engine->item));
	engine->victim = calloc(limits->seqs, sizeof(*engine->victim));
	engine->flush = calloc(limits->seqs, sizeof(struct ipc_session *));
	engine->result = calloc(limits->rows, sizeof(*engine->result));
	if (!engine->seq || !engine->in_step || !engine->item || !engine->victim || !engine->flush || !engine->result)
		return error_origin(-ENOMEM);
	return 0;
}

/**
 * engine_init() - an engine without requests
 * @engine:     the engine; engine_deinit() also after a failure
 * @options:    what it works with; limits.rows >= limits.seqs, so that every running request can decode in every step
 */
int engine_init(struct engine *engine, const struct sched_options *options)
{
	assert(options->limits.seqs && options->limits.rows >= options->limits.seqs);
	*engine = (struct engine){ .options = *options };
	engine->mixed_rows = batch_pace(ENGINE_MIXED_START, engine_mixed_most(engine), ENGINE_MIXED_START, BATCH_PACE_NS);
	list_init(&engine->waiting);
	list_init(&engine->running);
	list_init(&engine->leaving);
	list_init(&engine->unsent);
	fair_init(&engine->fair, &options->fairness);
	return error_trace(alloc_step(engine, &options->limits));
}

void engine_deinit(struct engine *engine)
{
	assert(engine_empty(engine));
	fair_deinit(&engine->fair);
	free(engine->seq);
	free(engine->in_step);
	free(engine->item);
	free(engine->victim);
	free(engine->flush);
	free(engine->result);
}

bool engine_empty(const struct engine *engine)
{
	return list_empty(&engine->waiting) && list_empty(&engine->running) && list_empty(&engine->leaving);
}

/* ---- places ---- */

static void leave_place(struct engine *engine, struct request *request)
{
	list_unlink(&request->link);
	if (request->place == REQUEST_WAITING) {
		fair_leave(&engine->fair, request);
		engine->n_waiting--;
		engine->waiting_tokens -= request->n_prompt;
	} else if (request->place == REQUEST_RUNNING) {
		engine->n_running--;
		request->user->stats.running--;
	}
}

/**
 * engine_place() - move a request; one that waits is in its user's queue as well
 * @engine:     the engine
 * @request:    a request without a place, or in one
 * @place:      where to; REQUEST_NOWHERE takes it out
 */
void engine_place(struct engine *engine, struct request *request, enum request_place place)
{
	leave_place(engine, request);
	request->place = place;
	switch (place) {
	case REQUEST_NOWHERE:
		break;
	case REQUEST_WAITING:
		request_insert(&engine->waiting, request, offsetof(struct request, link));
		fair_queue(&engine->fair, request);
		engine->n_waiting++;
		engine->waiting_tokens += request->n_prompt;
		break;
	case REQUEST_RUNNING:
		request_insert(&engine->running, request, offsetof(struct request, link));
		engine->n_running++;
		request->user->stats.running++;
		break;
	case REQUEST_LEAVING:
		list_append(&engine->leaving, &request->link);
		break;
	}
}

/* Give back what only a running request holds. */
void engine_release(struct engine *engine, struct request *request)
{
	prefix_keep_tail(engine->options.kv, &request->kv, request->token, request->n_computed);
	kv_drop(engine->options.kv, &request->kv);
	for (uint32_t i = 0; request->held && i < request->n_adapters; ++i) {
		cache_note_tokens(request->adapter[i], request->n_to_note);
		cache_unhold(engine->options.cache, request->adapter[i]);
	}
	request->held = false;
	request->n_to_note = 0;
}

static void remove_request(struct engine *engine, struct request *request)
{
	engine_release(engine, request);
	engine_place(engine, request, REQUEST_NOWHERE);
	list_unlink(&request->unsent_link);
	request_free(request);
}

/* ---- the ways out ---- */

/**
 * engine_touch() - remember to wake a session's client
 *
 * Messages of a step are published as they are made; the client is woken once per step, by engine_flush().
 */
void engine_touch(struct engine *engine, struct ipc_session *session)
{
	for (uint32_t i = 0; i < engine->n_flush; ++i)
		if (engine->flush[i] == session)
			return;
	if (engine->n_flush == engine->options.limits.seqs)
		engine_flush(engine);
	engine->flush[engine->n_flush++] = ipc_session_ref(session);
}

void engine_flush(struct engine *engine)
{
	for (uint32_t i = 0; i < engine->n_flush; ++i) {
		ipc_flush(engine->flush[i]);
		ipc_session_unref(engine->flush[i]);
	}
	engine->n_flush = 0;
}

/* A request that ends as it should, or by its client's wish. */
void engine_finish(struct engine *engine, struct request *request, enum answer_finish finish, uint64_t now_ns)
{
	answer_done(request, finish, now_ns);
	engine_touch(engine, request->ipc->session);
	if (finish == ANSWER_CANCELLED)
		engine->stats.cancelled++;
	else
		engine->stats.finished++;
	remove_request(engine, request);
}

void engine_fail(struct engine *engine, struct request *request, int code, const char *text)
{
	answer_error(request, code, 0, text);
	engine_touch(engine, request->ipc->session);
	engine->stats.failed++;
	remove_request(engine, request);
}

/* It is not served, through no fault of anybody. */
void engine_turn_away(struct engine *engine, struct request *request, int code, uint32_t retry_ms, const char *text)
{
	answer_error(request, code, retry_ms, text);
	engine_touch(engine, request->ipc->session);
	engine->stats.turned_away++;
	remove_request(engine, request);
}

static enum answer_finish finish_of(enum request_end end)
{
	return end == REQUEST_FULL_LENGTH ? ANSWER_LENGTH : ANSWER_STOP;
}

/**
 * engine_after_result() - a request took in a step's result: keep what could not be sent, let go of one that ended
 */
void engine_after_result(struct engine *engine, struct request *request, uint64_t now_ns)
{
	engine_touch(engine, request->ipc->session);
	if (request_has_unsent(request) && !list_linked(&request->unsent_link))
		list_append(&engine->unsent, &request->unsent_link);
	if (request->end == REQUEST_GOES_ON)
		return;
	if (!request_has_unsent(request)) {
		engine_finish(engine, request, finish_of(request->end), now_ns);
		return;
	}
	engine_release(engine, request);
	engine_place(engine, request, REQUEST_LEAVING);
}

/* ---- what comes in ---- */

/** engine_add() - take over an admitted request: it waits, or is turned away */
void engine_add(struct engine *engine, struct request *request)
{
	uint32_t most = engine->options.fairness.queue_limit;
	char text[96];

	engine->stats.requests++;
	if (request->ipc->kind == IPC_SCORE && request->n_prompt == 1) { /* one token: nothing precedes it */
		request->end = REQUEST_SCORED;
		engine_after_result(engine, request, clock_ns());
		return;
	}
	request->user = fair_user(&engine->fair, request->ipc->uid);
	if (!request->user) {
		engine_fail(engine, request, EIO, "the daemon ran out of memory");
	} else if (most && request->user->stats.waiting >= most) {
		(void)snprintf(text, sizeof(text), "the queue is full: %u requests of this user wait", (unsigned)most);
		request->user->stats.refused++;
		engine_turn_away(engine, request, EAGAIN, engine_retry_ms(engine), text);
	} else {
		fair_arrive(&engine->fair, request);
		engine_place(engine, request, REQUEST_WAITING);
	}
}

static struct request *find_in(struct list *head, const struct ipc_session *session, uint64_t id)
{
	struct request *request;

	list_for_each(request, head, link)
		if (request_is(request, session, id))
			return request;
	return NULL;
}

/* End a request by its client's wish. One that ended already is none any more: its client has the last message. */
void engine_cancel(struct engine *engine, const struct ipc_session *session, uint64_t id, uint64_t now_ns)
{
	struct list *const places[] = { &engine->running, &engine->waiting, &engine->leaving };
	struct request *request = NULL;

	for (size_t i = 0; i < sizeof(places) / sizeof(*places) && !request; ++i)
		request = find_in(places[i], session, id);
	if (request)
		engine_finish(engine, request, ANSWER_CANCELLED, now_ns);
}

static void close_in(struct engine *engine, struct list *head, const struct ipc_session *session)
{
	struct request *request;

	list_for_each(request, head, link)
		if (request->ipc->session == session) {
			engine->stats.cancelled++;
			remove_request(engine, request);
		}
}

/* The client is gone: nobody is told. */
void engine_close(struct engine *engine, const struct ipc_session *session)
{
	close_in(engine, &engine->running, session);
	close_in(engine, &engine->waiting, session);
	close_in(engine, &engine->leaving, session);
}

static void fail_in(struct engine *engine, struct list *head, int code, const char *text)
{
	struct request *request;

	list_for_each(request, head, link)
		engine_fail(engine, request, code, text);
}

/* End everything with a reason. */
void engine_fail_all(struct engine *engine, int code, const char *text)
{
	fail_in(engine, &engine->running, code, text);
	fail_in(engine, &engine->waiting, code, text);
	fail_in(engine, &engine->leaving, code, text);
	engine_flush(engine);
}

/* ---- clients that do not read ---- */

static void send_unsent(struct engine *engine, struct request *request, uint64_t now_ns)
{
	bool sent = answer_send_unsent(request);

	if (sent)
		engine_touch(engine, request->ipc->session);
	if (sent || !request->stuck_ns)
		request->stuck_ns = now_ns;
	if (now_ns - request->stuck_ns > ENGINE_STUCK_NS) {
		engine_finish(engine, request, ANSWER_CANCELLED, now_ns);
		return;
	}
	if (request_has_unsent(request))
		return;
	list_unlink(&request->unsent_link);
	request->stuck_ns = 0;
	if (request->place == REQUEST_LEAVING)
		engine_finish(engine, request, finish_of(request->end), now_ns);
}

/**
 * engine_send_unsent() - try again what found no room
 *
 * A client that reads nothing for ENGINE_STUCK_NS loses the request.
 */
void engine_send_unsent(struct engine *engine, uint64_t now_ns)
{
	struct request *request;

	list_for_each(request, &engine->unsent, unsent_link)
		send_unsent(engine, request, now_ns);
}
