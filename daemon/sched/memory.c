/* SPDX-License-Identifier: MIT */
/*
 * Memory of running requests
 *
 * To start, a request takes the KV blocks that were computed for its prompt's beginning before (daemon/model/prefix.h) and
 * room for the rest of its tokens. While running it takes one more block now and then. Where the pool has none, first those
 * yield who are not in use, adapters or kept blocks, whichever was unused for longer; then a running request is preempted
 * (batch.c says which). The oldest request is never preempted for another, so the head of the queue always gets on.
 *
 * What a block holds took many times longer to compute than it takes to read as many bytes of an adapter from the disk.
 * So a block counts as used SCHED_KV_WORTH times more lately than it was.
 *
 * Blocks are shared by requests of one user (or of all, by option) with the same adapters at the same scales. A score wants
 * a result for each of its tokens and therefore computes them all.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "daemon/model/prefix.h"
#include "daemon/sched/engine.h"

/* ---- room ---- */

/* Something that is not in use yields; false: there is nothing. For who runs, in need also what those who wait will need. */
static bool make_room(struct engine *engine, bool runs)
{
	struct kv *kv = engine->options.kv;
	size_t bytes = kv_block_bytes(kv);
	uint64_t adapter_ns = cache_idle_ns(engine->options.cache, clock_ns()), kv_ns = kv_idle_ns(kv);

	if (kv_ns && kv_ns / SCHED_KV_WORTH >= adapter_ns && kv_evict(kv, bytes, 0))
		return true;
	return cache_shrink(engine->options.cache, bytes, runs ? 0 : 1) || kv_evict(kv, bytes, 0);
}

/* Would there be enough if all yielded who are not in use? If not, nobody should: the memory would be taken again at once by
 * adapters read ahead, only to be evicted in the next turn. */
static bool can_make_room(struct engine *engine, const struct request *request)
{
	size_t missing = kv_missing_bytes(engine->options.kv, &request->kv, request->n_tokens);

	return missing == 0 || missing <= cache_spare_bytes(engine->options.cache);
}

/* Blocks for all tokens so far. */
static int reserve_kv(struct engine *engine, struct request *request)
{
	int r;

	while ((r = kv_reserve(engine->options.kv, &request->kv, request->n_tokens)) == KV_E_FULL)
		if (!make_room(engine, request->place == REQUEST_RUNNING))
			return KV_E_FULL;
	return error_trace(r);
}

void engine_fail_without_kv(struct engine *engine, struct request *request, int result)
{
	if (result == KV_E_FULL)
		engine_fail(engine, request, ENOMEM, "no memory for the keys and values of this request");
	else
		engine_fail(engine, request, EIO, "the daemon ran out of memory");
}

/* ---- beginnings that were computed before ---- */

#define KEY_MAX (sizeof(uid_t) + IPC_ADAPTERS_MAX * (sizeof(((struct ipc_used_adapter *)0)->digest) + sizeof(float)))

/* All that decides keys and values beside the tokens, and who may share them. Return: its length. */
static size_t make_key(const struct engine *engine, const struct request *request, uint8_t key[static KEY_MAX])
{
	uid_t uid = engine->options.prefix == SCHED_PREFIX_USER ? request->ipc->uid : (uid_t)-1;
	uint8_t *at = mempcpy(key, &uid, sizeof(uid));

	for (uint32_t i = 0; i < request->n_adapters; ++i) {
		at = mempcpy(at, request->used[i].digest, sizeof(request->used[i].digest));
		at = mempcpy(at, &request->used[i].scale, sizeof(request->used[i].scale));
	}
	return (size_t)(at - key);
}

static int find_prefix(struct engine *engine, struct request *request)
{
	uint8_t key[KEY_MAX];
	int r;

	if (engine->options.prefix == SCHED_PREFIX_OFF || request->ipc->kind == IPC_SCORE)
		return KV_OK;
	r = prefix_open(engine->options.kv, &request->kv, key, make_key(engine, request, key));
	if (r == 0)
		r = prefix_match(engine->options.kv, &request->kv, request->token, request->n_tokens, &request->n_computed);
	return error_trace(r);
}

/**
 * engine_take_kv() - memory for a request that is to start
 * @request:    one without blocks; on success it has room for its tokens, and n_computed of them have keys and values, the
 *              last of them perhaps only once its first step has copied them
 *
 * Return: KV_OK, or KV_E_FULL, KV_E_PENDING, negative errno, and then it has nothing.
 */
int engine_take_kv(struct engine *engine, struct request *request)
{
	struct kv *kv = engine->options.kv;
	int r = find_prefix(engine, request);

	if (r == KV_OK)
		r = can_make_room(engine, request) ? reserve_kv(engine, request) : KV_E_FULL;
	if (r == KV_OK) {
		prefix_announce(kv, &request->kv, request->token, request->n_tokens);
		return KV_OK;
	}
	kv_drop(kv, &request->kv);
	request->n_computed = 0;
	return r;
}

/* ---- preemption ---- */

static void preempt(struct engine *engine, struct request *request)
{
	engine_release(engine, request);
	request->n_computed = 0;
	engine->stats.preempted++;
	engine_place(engine, request, REQUEST_WAITING);
}

static struct request *choose_victim(struct engine *engine)
{
	struct request *request;
	size_t n = 0, chosen;

	list_for_each(request, &engine->running, link)
		engine->victim[n++] = (struct batch_victim){
			.arrived_ns = request->ipc->arrived_ns,
			.ready = !request_is_stuck(request),
			.holds = request->kv.n_blocks > 0,
		};
	chosen = batch_choose_victim(engine->victim, n);
	list_for_each(request, &engine->running, link)
		if (chosen-- == 0)
			return request;
	return NULL;
}

/* Blocks for a running request's next step, at the expense of others or of itself. */
static void reserve_or_preempt(struct engine *engine, struct request *request)
{
	int r;

	while ((r = reserve_kv(engine, request)) == KV_E_FULL) {
		struct request *victim = choose_victim(engine);

		if (!victim || (victim == request && engine->n_running == 1))
			break;
		preempt(engine, victim);
		if (victim == request)
			return;
	}
	if (r)
		engine_fail_without_kv(engine, request, r);
}

/**
 * engine_reserve_kv() - KV blocks for the next step of everyone who runs, oldest first
 */
void engine_reserve_kv(struct engine *engine)
{
	struct request *request;
	uint32_t n = 0;

	/* Preemption changes the list, so walk a copy; who was preempted meanwhile is passed over. */
	list_for_each(request, &engine->running, link)
		engine->in_step[n++] = request;
	for (uint32_t i = 0; i < n; ++i)
		if (engine->in_step[i]->place == REQUEST_RUNNING && !request_is_stuck(engine->in_step[i]))
			reserve_or_preempt(engine, engine->in_step[i]);
}
