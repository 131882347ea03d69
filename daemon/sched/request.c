/* SPDX-License-Identifier: MIT */
/*
 * Request
 *
 * Made by admission on the loop's thread, then handed to the engine thread, which alone uses it until it is freed.
 *
 * There are no phases of prefill and decode: a request is a row of tokens, of which the first n_computed have their keys
 * and values in place. What is left to do is run through the model in as many steps as it takes; once nothing is left,
 * the last row's logits give the next token, which is appended and is then the one thing left to do. Preemption sets
 * n_computed to 0 and drops the blocks; the same rule then runs prompt and generated tokens again, and the next draw
 * has the number it would have had.
 *
 * A request that waits holds nothing but references; one that runs holds its KV blocks and its adapters in memory.
 */
#include "daemon/sched/request.h"

#include <assert.h>
#include <stdlib.h>

static_assert(IPC_ADAPTERS_MAX <= STEP_ADAPTERS_MAX, "a request's adapters fit one row of a step");

/**
 * request_free() - drop everything but KV blocks and holds, which the engine has given back before
 */
struct request *request_free(struct request *request)
{
	if (!request)
		return NULL;
	assert(!list_linked(&request->link) && !list_linked(&request->unsent_link));
	assert(!request->kv.n_blocks && !request->held);

	for (uint32_t i = 0; i < request->n_adapters; ++i)
		cache_put(request->cache, request->adapter[i]);
	charge_drop(request->charges, &request->charge);
	stops_deinit(&request->stops);
	if (request->unsent)
		free(request->unsent->text);
	free(request->unsent);
	free(request->scores.logprob);
	free(request->scores.top);
	free(request->seen);
	free(request->seen_bits);
	free(request->token);
	ipc_request_free(request->ipc);
	free(request);
	return NULL;
}

/**
 * request_insert() - put a request where its arrival says
 * @head:       a list of requests by arrival
 * @request:    one that is not on it
 * @link:       offset of the link in struct request
 *
 * Almost everything arrives last; a preempted request finds its old place.
 */
void request_insert(struct list *head, struct request *request, size_t link)
{
	struct list *after = head->prev;

	while (after != head &&
	       ((struct request *)(void *)((char *)after - link))->ipc->arrived_ns > request->ipc->arrived_ns)
		after = after->prev;
	list_insert_before(after->next, (struct list *)(void *)((char *)request + link));
}

/* Remember a token for the repetition penalty, once. */
static void see(struct request *request, uint32_t token)
{
	uint8_t bit = (uint8_t)(1u << token % 8);

	if (!request->seen || request->seen_bits[token / 8] & bit)
		return;
	request->seen_bits[token / 8] |= bit;
	request->seen[request->sampling.n_seen++] = token;
	request->sampling.seen = request->seen;
}

/**
 * request_append() - add a token, of the prompt or generated
 * @request:    the request; has room for the tokens it was admitted for
 * @token:      the token, inside the vocabulary
 */
void request_append(struct request *request, uint32_t token)
{
	assert(request->n_tokens < request->room);
	request->token[request->n_tokens++] = token;
	see(request, token);
}

/**
 * request_todo() - tokens that must still run before the next result
 *
 * A score needs no result for the row of its last token, so that row never runs.
 */
uint32_t request_todo(const struct request *request)
{
	uint32_t n = request->n_tokens - request->n_computed;

	return request->ipc->kind == IPC_SCORE ? n - 1 : n;
}

bool request_is(const struct request *request, const struct ipc_session *session, uint64_t id)
{
	return request->ipc->session == session && request->ipc->id == id;
}
