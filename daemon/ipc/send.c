/* SPDX-License-Identifier: MIT */
/*
 * Answers: the response ring, written by any thread under the session's lock.
 *
 * Flow control: tokens and scores are refused with IPC_E_FULL when there is no room. The entries of a list and the answers
 * that end a request are not: they wait in the session, and while one waits nothing overtakes it and no further request is
 * taken from the client; so what waits is at most a list and IPC_IN_FLIGHT_MAX ends. Whoever was refused is told by
 * ipc_ops.room(): the session sets `starved`, and the client rings the doorbell after it has read.
 *
 * A message is visible to the client once it is written; ipc_flush() only wakes one that sleeps. The client's `waiting`
 * word names the wait it is in, so each wait is ended once however often is flushed.
 */
#include <assert.h>
#include <errno.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "daemon/base/cleanup.h"
#include "daemon/ipc/session.h"
#include "libclient/message.h"

/* A message under construction. Not initialised as a whole: it is far larger than what most messages use. */
struct draft {
	struct message_writer w;
	_Alignas(8) uint8_t bytes[LORAD_RESPONSE_BYTES_MAX];
};

static void draft_begin(struct draft *draft)
{
	message_begin(&draft->w, draft->bytes, sizeof(draft->bytes));
}

static void put_text(struct draft *draft, uint16_t type, const char *text, size_t bytes)
{
	const char nul = 0;

	message_put_pair(&draft->w, type, 0, text, bytes, &nul, 1);
}

static void put_u64(struct draft *draft, uint16_t type, uint64_t value)
{
	message_put(&draft->w, type, 0, &value, sizeof(value));
}

/* --- the ring, under the lock ------------------------------------------------------------------------------------- */

static uint8_t *slots_of(struct ipc_session *session)
{
	return (uint8_t *)session->response + LORAD_SLOTS_OFFSET;
}

/* Asks for the loop's attention. The session is not gone, so the module is there. */
static void kick_loop(struct ipc_session *session)
{
	const uint64_t one = 1;

	assert(!session->gone);
	(void)!write(session->ipc->kick, &one, sizeof(one));
}

static bool has_room(struct ipc_session *session, uint32_t n_slots)
{
	enum ring_result r = ring_reserve(&session->out, n_slots);

	if (r == RING_E_VIOLATION && !session->doomed) {
		session->doomed = true;
		kick_loop(session);
	}
	return r == RING_OK;
}

/* No room: says so to the client and looks once more, lest it has read in between and not seen it. */
static bool starve(struct ipc_session *session, uint32_t n_slots)
{
	if (!session->starved)
		word_publish(&session->response->starved, 1);
	session->starved = true;
	word_fence();
	return has_room(session, n_slots);
}

static bool put_message(struct ipc_session *session, const void *message, size_t bytes)
{
	uint32_t n = ring_slots(bytes);

	if (!has_room(session, n) && !starve(session, n))
		return false;
	ring_copy_in(slots_of(session), session->out.n_slots, session->out.at, message, bytes);
	ring_publish(&session->out, n);
	return true;
}

/* Moves waiting answers into the ring. True: none waits any more. */
static bool pump_kept(struct ipc_session *session)
{
	struct kept *kept;

	while ((kept = session->kept)) {
		if (!put_message(session, kept->message, kept->bytes))
			return false;
		session->kept = kept->next;
		free(kept);
	}
	session->kept_end = &session->kept;
	return true;
}

/* Frees what waits; the session is going. */
void send_drop_kept(struct ipc_session *session)
{
	struct kept *next;

	for (struct kept *kept = session->kept; kept; kept = next) {
		next = kept->next;
		free(kept);
	}
	session->kept = NULL;
	session->kept_end = &session->kept;
}

static int keep(struct ipc_session *session, const void *message, size_t bytes)
{
	struct kept *kept = malloc(sizeof(*kept) + bytes);

	if (!kept)
		return error_origin(-ENOMEM);
	kept->next = NULL;
	kept->bytes = bytes;
	memcpy(kept->message, message, bytes);
	*session->kept_end = kept;
	session->kept_end = &kept->next;
	return 0;
}

static bool may_take(const struct ipc_session *session)
{
	return session->in_flight < IPC_IN_FLIGHT_MAX && !session->kept;
}

/* If requests wait for what has just changed, the loop shall look at their ring again. */
static void resume_if_paused(struct ipc_session *session)
{
	if (!session->paused || !may_take(session))
		return;
	session->paused = false;
	session->resume = true;
	kick_loop(session);
}

/* --- what the endpoint asks for ----------------------------------------------------------------------------------- */

/** send_admit() - may one more request be taken? If so it counts as in flight; else the session is paused until it may */
bool send_admit(struct ipc_session *session)
{
	bool ok;

	pthread_mutex_lock(&session->lock);
	ok = may_take(session);
	session->in_flight += ok;
	session->paused = !ok;
	pthread_mutex_unlock(&session->lock);
	return ok;
}

/** send_readmit() - what was taken needs no answer: it is not in flight after all */
void send_readmit(struct ipc_session *session)
{
	pthread_mutex_lock(&session->lock);
	assert(session->in_flight > 0);
	--session->in_flight;
	pthread_mutex_unlock(&session->lock);
}

/** send_room_again() - the client rang: has it made the room that somebody was refused? */
bool send_room_again(struct ipc_session *session)
{
	bool again = false;

	pthread_mutex_lock(&session->lock);
	if (session->starved && pump_kept(session) && has_room(session, ring_slots(LORAD_RESPONSE_BYTES_MAX))) {
		session->starved = false;
		word_publish(&session->response->starved, 0);
		resume_if_paused(session);
		again = true;
	}
	pthread_mutex_unlock(&session->lock);
	return again;
}

/* --- sending ------------------------------------------------------------------------------------------------------ */

static int send_draft(struct ipc_session *session, struct draft *draft, uint16_t type, uint64_t id)
{
	int r = IPC_OK;

	if (!message_end(&draft->w, type, id))
		return error_origin(-EMSGSIZE);
	pthread_mutex_lock(&session->lock);
	if (session->gone)
		r = IPC_E_GONE;
	else if (!pump_kept(session) || !put_message(session, draft->bytes, draft->w.bytes))
		r = IPC_E_FULL;
	pthread_mutex_unlock(&session->lock);
	return r;
}

/* As send_draft(), but what finds no room is kept. Without memory for that the client is lost, and dropped. */
static int send_surely(struct ipc_session *session, struct draft *draft, uint16_t type, uint64_t id)
{
	bool ends = type == LORAD_DONE || type == LORAD_ERROR;
	int r = 0;

	if (!message_end(&draft->w, type, id))
		return error_origin(-EMSGSIZE);
	pthread_mutex_lock(&session->lock);
	if (session->gone) {
		pthread_mutex_unlock(&session->lock);
		return IPC_E_GONE;
	}
	assert(!ends || session->in_flight > 0);
	session->in_flight -= ends;
	if (!pump_kept(session) || !put_message(session, draft->bytes, draft->w.bytes))
		r = keep(session, draft->bytes, draft->w.bytes);
	if (r < 0) {
		session->doomed = true;
		kick_loop(session);
	}
	resume_if_paused(session);
	pthread_mutex_unlock(&session->lock);
	return r < 0 ? error_trace(r) : IPC_OK;
}

/**
 * ipc_send_token() - one generated token
 * @session: whose
 * @id:      of the request
 * @token:   its text has whole UTF-8 characters only; top has at most LORAD_TOP_MAX entries
 *
 * Return: IPC_OK, IPC_E_FULL, IPC_E_GONE.
 */
int ipc_send_token(struct ipc_session *session, uint64_t id, const struct ipc_token *token)
{
	const struct lorad_token fixed = { token->token, token->logprob };
	struct draft draft;

	assert(token->n_top <= LORAD_TOP_MAX);
	draft_begin(&draft);
	message_put(&draft.w, LORAD_ITEM_TOKEN, 0, &fixed, sizeof(fixed));
	put_text(&draft, LORAD_ITEM_PIECE, token->text, token->text_bytes);
	if (token->n_top)
		message_put(&draft.w, LORAD_ITEM_TOP, 0, token->top, token->n_top * sizeof(struct lorad_top));
	return send_draft(session, &draft, LORAD_TOKEN, id);
}

/** ipc_send_scores() - a run of at most IPC_SCORES_MAX scored prompt tokens. Returns as ipc_send_token(). */
int ipc_send_scores(struct ipc_session *session, uint64_t id, const struct ipc_scores *scores)
{
	struct draft draft;

	assert(scores->n > 0 && scores->n <= IPC_SCORES_MAX && scores->n_top <= LORAD_TOP_MAX);
	draft_begin(&draft);
	put_u64(&draft, LORAD_ITEM_FIRST, scores->first);
	message_put(&draft.w, LORAD_ITEM_SCORED, 0, scores->tokens, scores->n * sizeof(*scores->tokens));
	message_put(&draft.w, LORAD_ITEM_SCORES, 0, scores->logprobs, scores->n * sizeof(*scores->logprobs));
	if (scores->n_top)
		message_put(&draft.w, LORAD_ITEM_TOP, 0, scores->top,
			    (size_t)scores->n * scores->n_top * sizeof(struct lorad_top));
	return send_draft(session, &draft, LORAD_SCORES, id);
}

/** ipc_send_adapter() - one entry of a list. Returns as ipc_send_done(). */
int ipc_send_adapter(struct ipc_session *session, uint64_t id, const struct ipc_listed *adapter)
{
	struct lorad_listed fixed = { .bytes = adapter->bytes };
	struct draft draft;

	memcpy(fixed.digest, adapter->digest, sizeof(fixed.digest));
	draft_begin(&draft);
	message_put(&draft.w, LORAD_ITEM_LISTED, 0, &fixed, sizeof(fixed));
	put_text(&draft, LORAD_ITEM_NAME, adapter->name, strlen(adapter->name));
	put_text(&draft, LORAD_ITEM_KIND, adapter->kind, strlen(adapter->kind));
	put_text(&draft, LORAD_ITEM_STATE, adapter->state, strlen(adapter->state));
	return send_surely(session, &draft, LORAD_ADAPTER, id);
}

/** ipc_send_done() - a request ended as asked. IPC_OK also if it waits for room; or IPC_E_GONE, or a negative errno. */
int ipc_send_done(struct ipc_session *session, uint64_t id, const struct ipc_done *done)
{
	const struct lorad_done fixed = {
		.finish = done->finish,
		.prompt_tokens = done->prompt_tokens,
		.generated_tokens = done->generated_tokens,
		.cached_tokens = done->cached_tokens,
		.queue_ms = done->queue_ms,
		.page_in_ms = done->page_in_ms,
		.prefill_ms = done->prefill_ms,
		.decode_ms = done->decode_ms,
	};
	struct draft draft;

	assert(done->n_adapters <= IPC_ADAPTERS_MAX);
	draft_begin(&draft);
	message_put(&draft.w, LORAD_ITEM_DONE, 0, &fixed, sizeof(fixed));
	for (uint32_t i = 0; i < done->n_adapters; ++i) {
		const struct ipc_used_adapter *adapter = &done->adapters[i];
		struct lorad_used used = { .scale = adapter->scale };

		memcpy(used.digest, adapter->digest, sizeof(used.digest));
		message_put_pair(&draft.w, LORAD_ITEM_USED, 0, &used, sizeof(used), adapter->name,
				 strlen(adapter->name) + 1);
	}
	return send_surely(session, &draft, LORAD_DONE, id);
}

/**
 * ipc_send_error() - a request was refused or failed
 * @session:  whose
 * @id:       of the request
 * @code:     a positive errno
 * @retry_ms: when a new attempt makes sense, from now; 0: nothing is said about it
 * @text:     one line
 *
 * Return: as ipc_send_done().
 */
int ipc_send_error(struct ipc_session *session, uint64_t id, int code, uint32_t retry_ms, const char *text)
{
	struct draft draft;

	assert(code > 0);
	draft_begin(&draft);
	put_u64(&draft, LORAD_ITEM_CODE, (uint64_t)code);
	put_text(&draft, LORAD_ITEM_REASON, text, strnlen(text, sizeof(((struct diag *)0)->text)));
	if (retry_ms)
		put_u64(&draft, LORAD_ITEM_RETRY_MS, retry_ms);
	return send_surely(session, &draft, LORAD_ERROR, id);
}

/* Ends the wait that the client says it is in. Nothing here blocks, whatever the client wrote there. */
static void wake(struct ipc_session *session, uint32_t waiting)
{
	switch (waiting & LORAD_WAIT_MASK) {
	case LORAD_WAIT_FUTEX:
		(void)syscall(SYS_futex, &session->response->tail, FUTEX_WAKE, 1, NULL, NULL, 0);
		break;
	case LORAD_WAIT_POLL:
		(void)send(session->socket, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
		break;
	default:
		break;
	}
}

/** ipc_flush() - wake the client, if it sleeps, for what was sent since its last look */
void ipc_flush(struct ipc_session *session)
{
	uint32_t waiting;

	pthread_mutex_lock(&session->lock);
	if (!session->gone) {
		(void)pump_kept(session);
		word_fence(); /* between publishing the tail and asking whether somebody sleeps on it */
		waiting = word_glance(&session->request->waiting);
		if (waiting != session->woken) {
			session->woken = waiting;
			wake(session, waiting);
		}
	}
	pthread_mutex_unlock(&session->lock);
}
