/* SPDX-License-Identifier: MIT */
/*
 * Who comes too late
 *
 * A client may say by when it wants its first token, and by when the whole answer. A waiting request whose first token is
 * going to miss its target (estimate.c) is turned away at once: the client learns early, with a hint when to try again, and
 * the time goes to those that can still make it. One that has started is finished. Whoever is beyond its deadline ends,
 * waiting or running, and everything it held is free.
 */
#include <errno.h>
#include <stdio.h>

#include "daemon/sched/engine.h"

#define RETRY_LEAST_MS 10u

static uint64_t until(const struct request *request, int64_t ms)
{
	return ms > 0 ? request->ipc->arrived_ns + (uint64_t)ms * NS_PER_MS : UINT64_MAX;
}

static uint32_t retry_ms(uint64_t ns)
{
	uint64_t ms = ns / NS_PER_MS;

	return ms < RETRY_LEAST_MS ? RETRY_LEAST_MS : ms < UINT32_MAX ? (uint32_t)ms : UINT32_MAX;
}

/** engine_retry_ms() - when all that waits now will be through */
uint32_t engine_retry_ms(const struct engine *engine)
{
	uint64_t ns = 0;

	(void)estimate_ns(&engine->estimate, engine->waiting_tokens, &ns);
	return retry_ms(ns);
}

/**
 * engine_drop_late() - turn a waiting request away if its first token misses its target
 * @request:    one that never started
 * @ahead:      tokens of prompts that will be computed before its own
 *
 * Return: true if the request is gone.
 */
bool engine_drop_late(struct engine *engine, struct request *request, uint64_t ahead, uint64_t now_ns)
{
	uint64_t target = until(request, request->ipc->first_token_ms), takes = 0;
	char text[128];

	if (request->started_ns || target == UINT64_MAX)
		return false;
	(void)estimate_ns(&engine->estimate, ahead + request->n_prompt, &takes);
	if (now_ns < target && takes < target - now_ns)
		return false;
	(void)snprintf(text, sizeof(text), "the first token would come later than the %lld ms asked for",
		       (long long)request->ipc->first_token_ms);
	request->user->stats.aborted++;
	engine_turn_away(engine, request, ETIME, retry_ms(now_ns + takes > target ? now_ns + takes - target : 0), text);
	return true;
}

static void expire_in(struct engine *engine, struct list *head, uint64_t now_ns)
{
	struct request *request;
	char text[128];

	list_for_each(request, head, link) {
		if (now_ns < until(request, request->ipc->deadline_ms)) {
			if (request->place == REQUEST_WAITING)
				(void)engine_drop_late(engine, request, 0, now_ns);
			continue;
		}
		(void)snprintf(text, sizeof(text), "the answer was not complete within the %lld ms asked for",
			       (long long)request->ipc->deadline_ms);
		request->user->stats.aborted++;
		engine_turn_away(engine, request, ETIMEDOUT, 0, text);
	}
}

/**
 * engine_expire() - end whoever is beyond its deadline, or beyond what any luck could mend
 *
 * Walks all requests, so only now and then.
 */
void engine_expire(struct engine *engine, uint64_t now_ns)
{
	if (now_ns - engine->expired_ns < ENGINE_EXPIRE_NS)
		return;
	engine->expired_ns = now_ns;
	expire_in(engine, &engine->running, now_ns);
	expire_in(engine, &engine->waiting, now_ns);
}
