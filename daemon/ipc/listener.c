/* SPDX-License-Identifier: MIT */
/*
 * Clients
 *
 * The listener accepts; a session (session.c) shakes hands and owns the two memories; the endpoint (endpoint.c) reads its
 * request ring on the loop's thread; send.c writes its response ring from any thread. request.c turns bytes into a
 * checked struct ipc_request and knows nothing of the rest.
 *
 * What a hostile client can do is spoil its own connection: it cannot make the daemon wait, read twice, or write where it
 * says. Limits: connections in all and per user, time to say hello, open requests per session, messages per look at a
 * ring, bytes of answers kept for a client that does not read.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "daemon/base/cleanup.h"
#include "daemon/base/clock.h"
#include "daemon/ipc/session.h"
#include "daemon/os/sock.h"
#include "daemon/os/team.h"

#define ACCEPTS_PER_TURN 64
#define HELLO_NS (5 * NS_PER_S)
#define AWAKE_NS (50 * NS_PER_US)

DEFINE_CLEANUP(struct ipc *, ipc_free)

/** ipc_violation() - disconnect a client that broke the rings' protocol, and say so, a few times in ten seconds */
void ipc_violation(struct ipc_session *session, const char *reason)
{
	struct ipc *ipc = session->ipc;

	++ipc->stats.violations;
	if (log_limit_pass(&ipc->log_limit, clock_ns()))
		log_notice("client of uid %u, pid %d: %s; disconnected", session->peer.uid, session->peer.pid, reason);
	session_close(session);
}

/* The seconds' timer is needed while somebody has yet to say hello or accepting waits for descriptors. */
static void set_timer(struct ipc *ipc)
{
	bool needed = ipc->n_hello || ipc->accept_paused;

	(void)loop_timer_set(&ipc->timer, 0, needed ? NS_PER_S : 0);
}

static int accept_one(struct ipc *ipc)
{
	_cleanup_close_ int fd = -1;
	struct ucred peer;
	int r;

	r = sock_accept(ipc->options.listen_fd, &fd, &peer);
	if (r)
		return r < 0 ? error_trace(r) : r;
	++ipc->stats.connections;
	if (ipc->stats.clients + ipc->n_hello >= IPC_SESSIONS_MAX)
		return SOCK_OK; /* closed again: so many are here that not even a refusal is kept for it */
	r = session_new(ipc, TAKE_FD(fd), &peer);
	return r < 0 ? error_trace(r) : SOCK_OK;
}

static void on_connect(struct loop_source *source, uint32_t events)
{
	struct ipc *ipc = container_of(source, struct ipc, listener);
	int r = SOCK_OK;

	(void)events;
	for (int i = 0; i < ACCEPTS_PER_TURN && r == SOCK_OK; ++i)
		r = accept_one(ipc);
	if (r == SOCK_E_LIMIT || r < 0) { /* the backlog keeps whoever is waiting; do not spin on it meanwhile */
		ipc->accept_paused = true;
		(void)loop_modify(&ipc->listener, 0);
		if (log_limit_pass(&ipc->log_limit, clock_ns()))
			log_warning("no descriptors or memory left for more clients; trying again every second");
	}
	set_timer(ipc);
}

static void on_second(struct loop_timer *timer)
{
	struct ipc *ipc = container_of(timer, struct ipc, timer);
	uint64_t now = clock_ns();
	struct ipc_session *session;

	list_for_each(session, &ipc->sessions, link)
		if (!session->is_open && now - session->last_ns > HELLO_NS)
			session_close(session);
	if (ipc->accept_paused) {
		ipc->accept_paused = false;
		(void)loop_modify(&ipc->listener, EPOLLIN);
	}
	set_timer(ipc);
}

/* Some session's sender wants something that only this thread may do. */
static void on_kick(struct loop_source *source, uint32_t events)
{
	struct ipc *ipc = container_of(source, struct ipc, kick_source);
	struct ipc_session *session;
	uint64_t n;

	(void)events;
	(void)!read(ipc->kick, &n, sizeof(n));
	list_for_each(session, &ipc->sessions, link) {
		pthread_mutex_lock(&session->lock);
		bool doomed = session->doomed, resume = session->resume;
		session->resume = false;
		pthread_mutex_unlock(&session->lock);
		if (doomed)
			ipc_violation(session, "an impossible index in its response ring");
		else if (resume)
			endpoint_activate(session);
	}
}

/* A ring that holds a prompt of `context` tokens, or eight bytes of text for each, and what goes with it. */
static uint32_t choose_slots(uint32_t context)
{
	uint64_t bytes = IPC_REQUEST_BYTES_MIN;

	while (bytes < 8 * (uint64_t)context + 8192 && bytes / LORAD_SLOT_BYTES < LORAD_RING_SLOTS_MAX)
		bytes *= 2;
	return (uint32_t)(bytes / LORAD_SLOT_BYTES);
}

/* Looking at memory for a while before sleeping helps only where a client can run at the same time. */
static uint64_t choose_awake(void)
{
	return team_processors() > 1 ? AWAKE_NS : 0;
}

static int start_watching(struct ipc *ipc)
{
	struct loop *loop = ipc->options.loop;
	int r;

	ipc->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (ipc->kick < 0)
		return error_origin(-errno);
	r = loop_add(loop, &ipc->kick_source, ipc->kick, EPOLLIN, on_kick);
	if (r == 0)
		r = loop_timer_init(loop, &ipc->timer, on_second);
	if (r == 0)
		r = loop_add(loop, &ipc->listener, ipc->options.listen_fd, EPOLLIN, on_connect);
	if (r < 0)
		return error_trace(r);
	loop_set_idle(loop, endpoint_look, ipc);
	return 0;
}

/**
 * ipc_new() - serve the clients of a listening socket
 * @ret:     the module; it takes the loop's idle hook
 * @options: copied
 */
int ipc_new(struct ipc **ret, const struct ipc_options *options)
{
	_cleanup_(ipc_freep) struct ipc *ipc = calloc(1, sizeof(*ipc));
	int r;

	assert(options->loop && options->ops && options->ops->submit && options->ops->cancel && options->ops->list &&
	       options->ops->closed);
	if (!ipc)
		return error_origin(-ENOMEM);
	ipc->options = *options;
	ipc->kick = -1;
	ipc->timer = (struct loop_timer)LOOP_TIMER_NULL;
	list_init(&ipc->sessions);
	list_init(&ipc->active);
	ipc->log_limit = (struct log_limit)LOG_LIMIT_CLIENT;
	ipc->request_slots = choose_slots(options->context);
	ipc->awake_ns = choose_awake();
	ipc->message = malloc((size_t)ipc->request_slots * LORAD_SLOT_BYTES);
	if (!ipc->message)
		return error_origin(-ENOMEM);
	r = start_watching(ipc);
	if (r < 0)
		return error_trace(r);
	*ret = TAKE_PTR(ipc);
	return 0;
}

/**
 * ipc_free() - disconnect everyone
 * @ipc: or NULL. Sessions that others hold references to live on, gone. ipc_ops.closed() is called for each, so what the
 *       ops lead to is freed after this.
 */
struct ipc *ipc_free(struct ipc *ipc)
{
	struct ipc_session *session;

	if (!ipc)
		return NULL;
	list_for_each(session, &ipc->sessions, link)
		session_close(session);
	if (ipc->listener.loop)
		loop_set_idle(ipc->options.loop, NULL, NULL);
	loop_remove(&ipc->listener);
	loop_remove(&ipc->kick_source);
	loop_timer_deinit(&ipc->timer);
	if (ipc->kick >= 0)
		close(ipc->kick);
	free(ipc->message);
	free(ipc);
	return NULL;
}

/** ipc_read_stats() - counters since the start, and clients now; on the loop's thread */
void ipc_read_stats(const struct ipc *ipc, struct ipc_stats *ret)
{
	*ret = ipc->stats;
}
