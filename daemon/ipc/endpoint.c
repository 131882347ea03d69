/* SPDX-License-Identifier: MIT */
/*
 * The request rings, read on the loop's thread.
 *
 * A session whose ring is looked at is on the active list, and its `doorbell` word is 0: the client need not ring. It
 * leaves the list 50 us after its last message, by setting the word, fencing, and looking once more: either the client
 * sees the word and rings, or this look sees the message. It leaves at once on one CPU, or if looking on has been in vain
 * a few times (then it is tried now and then). The eventfd is never read nor written here, only its edges are seen, so a
 * client that misuses it hurts nobody.
 *
 * endpoint_look() is the loop's idle hook. It goes round the active sessions, a bounded number of messages each, for at
 * most 50 us before the descriptors get their turn again; while messages keep coming no system call is made for them.
 *
 * Each message is copied out once, into memory that the client cannot reach, and what is checked is the copy.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "daemon/base/clock.h"
#include "daemon/ipc/session.h"
#include "libclient/loraclient.h"

#define MESSAGES_PER_LOOK 64
#define LOOK_NS (50 * NS_PER_US)
#define MISSES_MAX 3
#define RETRY_EVERY 32

static inline void cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

/** endpoint_activate() - look at this ring from now on, until it stays empty */
void endpoint_activate(struct ipc_session *session)
{
	if (list_linked(&session->active) || !session->is_open)
		return;
	word_hint(&session->response->doorbell, 0);
	list_append(&session->ipc->active, &session->active);
}

/* After messages: how long is it worth looking for the next? Long, if looking found these, or has not failed often. */
static void choose_awake(struct ipc_session *session)
{
	uint64_t most = session->ipc->awake_ns;

	if (!session->rung)
		session->misses = 0;
	else if (session->misses < MISSES_MAX)
		++session->misses;
	session->rung = false;
	if (session->misses < MISSES_MAX || ++session->skipped % RETRY_EVERY == 0)
		session->awake_ns = most;
	else
		session->awake_ns = 0;
}

/* Lets a ring rest until the client rings. Dekker with the client that is publishing. */
static void rest(struct ipc_session *session)
{
	word_publish(&session->response->doorbell, 1);
	word_fence();
	if (word_observe(session->in.tail) != session->in.at)
		word_hint(&session->response->doorbell, 0);
	else
		list_unlink(&session->active);
}

/*
 * Copies the next message out of n published slots and frees these. False: its frame is wrong. The first slot is read
 * once: the length that was checked is the one that is used.
 */
static bool take_message(struct ipc_session *session, uint32_t n, struct lorad_message *ret_head)
{
	const uint8_t *slots = (const uint8_t *)session->request + LORAD_SLOTS_OFFSET;
	struct ring_reader *in = &session->in;
	uint8_t *to = session->ipc->message;
	struct lorad_message head;
	uint32_t needed;

	ring_copy_out(to, slots, in->n_slots, in->at, LORAD_SLOT_BYTES);
	memcpy(&head, to, sizeof(head));
	if (head.bytes < sizeof(head) || head.bytes > (uint64_t)n * LORAD_SLOT_BYTES)
		return false;
	needed = ring_slots(head.bytes);
	if (needed > 1)
		ring_copy_out(to + LORAD_SLOT_BYTES, slots, in->n_slots, in->at + 1, head.bytes - LORAD_SLOT_BYTES);
	ring_release(in, needed);
	*ret_head = head;
	return true;
}

static void refuse(struct ipc_session *session, uint64_t id, int code, uint32_t retry_ms, const struct diag *diag)
{
	++session->ipc->stats.refused;
	(void)ipc_send_error(session, id, code, retry_ms, diag->text);
}

/* A request that the scheduler shall judge and, if it likes it, own. */
static void take_request(struct ipc_session *session, const struct lorad_message *head)
{
	const struct ipc_options *options = &session->ipc->options;
	struct diag diag = { "the request could not be taken" };
	struct ipc_request *request = NULL;
	int r;

	r = request_parse(&request, session->ipc->message, head->bytes, &diag);
	if (r == 0) {
		request->session = ipc_session_ref(session);
		request->uid = session->peer.uid;
		request->arrived_ns = session->last_ns;
		r = options->ops->submit(options->userdata, request, &diag);
	}
	if (r == 0)
		return;
	refuse(session, head->id, r > 0 ? r : EIO, request ? request->retry_ms : 0, &diag);
	ipc_request_free(request);
}

static void take_bare(struct ipc_session *session, const struct lorad_message *head)
{
	const struct ipc_options *options = &session->ipc->options;
	const struct ipc_done pong = { .finish = LC_FINISH_STOP };
	struct diag diag;
	int r = request_check_bare(session->ipc->message, head->bytes, &diag);

	if (r)
		refuse(session, head->id, r, 0, &diag);
	else if (head->type == LORAD_PING)
		(void)ipc_send_done(session, head->id, &pong);
	else
		options->ops->list(options->userdata, session, head->id);
}

static void handle_message(struct ipc_session *session, const struct lorad_message *head)
{
	const struct ipc_options *options = &session->ipc->options;
	struct diag diag;

	++session->ipc->stats.requests;
	switch (head->type) {
	case LORAD_GENERATE:
	case LORAD_SCORE:
		take_request(session, head);
		break;
	case LORAD_LIST:
	case LORAD_PING:
		take_bare(session, head);
		break;
	case LORAD_CANCEL:
		send_readmit(session);
		options->ops->cancel(options->userdata, session, head->id);
		break;
	default:
		refuse(session, head->id,
		       diag_set(&diag, EOPNOTSUPP, "a request of type %u, which this daemon does not know", head->type),
		       0, &diag);
	}
}

/*
 * Handles a bounded number of messages. Returns how many, or -1: the session is closed. Blocked: there are more, but they
 * have to wait until answers have gone out.
 */
static int handle_messages(struct ipc_session *session, uint64_t now_ns, bool *ret_blocked)
{
	struct lorad_message head;
	uint32_t left, before;
	int n;

	if (ring_peek(&session->in, &left) != RING_OK) {
		ipc_violation(session, "an impossible index in its request ring");
		return -1;
	}
	for (n = 0; left && n < MESSAGES_PER_LOOK; ++n) {
		if (!send_admit(session)) {
			*ret_blocked = true;
			break;
		}
		before = session->in.at;
		if (!take_message(session, left, &head)) {
			ipc_violation(session, "a message whose length cannot be");
			return -1;
		}
		left -= session->in.at - before;
		session->last_ns = now_ns;
		handle_message(session, &head);
	}
	return n;
}

/* One session's turn. */
static void look_at(struct ipc_session *session, uint64_t now_ns)
{
	bool blocked = false;
	int n = handle_messages(session, now_ns, &blocked);

	if (n < 0)
		return;
	if (n > 0) {
		ipc_flush(session);
		choose_awake(session);
	}
	if (blocked)
		list_unlink(&session->active); /* send.c resumes it; until then the client need not ring for requests */
	else if (n == 0 && now_ns - session->last_ns >= session->awake_ns)
		rest(session);
}

/**
 * endpoint_look() - the loop's idle hook: look at the active rings
 * @userdata: the ipc
 *
 * Return: how long the loop may sleep: not at all while a ring is active, else without limit.
 */
uint64_t endpoint_look(void *userdata)
{
	struct ipc *ipc = userdata;
	uint64_t began = clock_ns(), now = began;
	struct ipc_session *session;

	while (!list_empty(&ipc->active) && now - began < LOOK_NS) {
		list_for_each(session, &ipc->active, active)
			look_at(session, now);
		cpu_relax();
		now = clock_ns();
	}
	return list_empty(&ipc->active) ? UINT64_MAX : 0;
}
