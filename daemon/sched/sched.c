/* SPDX-License-Identifier: MIT */
/*
 * Scheduler
 *
 * The seam between the loop's thread and the engine thread. On the loop's side it implements struct ipc_ops: a request is
 * admitted (admit.c) and put into the inbox; a cancel or a closed session follows the same way, so that order is kept.
 * On the engine's side a thread takes the inbox, runs a turn of the engine (runner.c) and sleeps when there is nothing
 * to do. Nothing else is shared but the statistics, which the engine publishes after each turn.
 */
#include "daemon/sched/sched.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/cleanup.h"
#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/sched/admit.h"
#include "daemon/sched/engine.h"
#include "daemon/sched/inbox.h"
#include "daemon/sched/listing.h"

#define LONG_WAIT_NS (1 * NS_PER_S)
#define USERS_NS (100 * NS_PER_MS) /* how old the figures of users may be */

struct sched {
	struct admit admit;
	struct charges charges;
	struct inbox inbox;
	struct engine engine;        /* the engine thread's, once that runs */
	pthread_t thread;
	bool has_thread;

	_Atomic bool draining;       /* admit nobody, end by deadline_ns */
	_Atomic uint64_t deadline_ns;
	_Atomic bool idle;
	_Atomic uint64_t turns;

	pthread_mutex_t lock;        /* of what follows */
	pthread_cond_t stopped_cond;
	bool stopped;                /* the engine ended everything and left */
	struct sched_stats stats;
	struct sched_user *users;    /* as of users_ns, the busiest first */
	size_t n_users;
	uint64_t users_ns;
};

/* ---- engine thread ---- */

static void take_message(struct sched *sched, const struct inbox_message *message)
{
	switch (message->kind) {
	case INBOX_REQUEST:
		engine_add(&sched->engine, message->request);
		break;
	case INBOX_CANCEL:
		engine_cancel(&sched->engine, message->session, message->id, clock_ns());
		break;
	case INBOX_CLOSE:
		engine_close(&sched->engine, message->session);
		break;
	}
	if (message->session)
		ipc_session_unref(message->session);
}

static void take_inbox(struct sched *sched, uint64_t wait_ns)
{
	struct inbox_message *message;
	struct list messages;

	list_init(&messages);
	inbox_take(&sched->inbox, wait_ns, &messages);
	list_for_each(message, &messages, link) {
		list_unlink(&message->link);
		take_message(sched, message);
		free(message);
	}
}

/* Users are many, and looked at by people: now and then is enough, and before a rest. */
static void publish_users(struct sched *sched, bool rests)
{
	uint64_t now_ns = clock_ns();
	struct sched_user *users;

	if (!rests && now_ns - sched->users_ns < USERS_NS)
		return;
	sched->users_ns = now_ns;
	users = reallocarray(sched->users, sched->engine.fair.n_users + 1, sizeof(*users));
	if (!users)
		return; /* the old figures stay */
	sched->users = users;
	sched->n_users = fair_read(&sched->engine.fair, users);
}

static void publish_stats(struct sched *sched, bool rests)
{
	pthread_mutex_lock(&sched->lock);
	sched->stats = sched->engine.stats;
	publish_users(sched, rests);
	pthread_mutex_unlock(&sched->lock);
}

static bool must_stop(struct sched *sched)
{
	if (!atomic_load(&sched->draining))
		return false;
	return engine_empty(&sched->engine) || clock_ns() >= atomic_load(&sched->deadline_ns);
}

/* How long nothing may happen: to look for clients that stopped reading for good, or for deadlines that pass. */
static uint64_t idle_ns(const struct engine *engine)
{
	return engine_empty(engine) ? LONG_WAIT_NS : ENGINE_EXPIRE_NS;
}

static void *engine_thread(void *userdata)
{
	struct sched *sched = userdata;
	uint64_t wait_ns = 0;

	while (!must_stop(sched)) {
		atomic_store(&sched->idle, wait_ns > 0);
		take_inbox(sched, wait_ns);
		atomic_store(&sched->idle, false);
		wait_ns = engine_turn(&sched->engine, clock_ns()) == ENGINE_BUSY ? 0 : idle_ns(&sched->engine);
		atomic_fetch_add(&sched->turns, 1);
		publish_stats(sched, wait_ns > 0);
	}
	take_inbox(sched, 0);
	engine_fail_all(&sched->engine, ECANCELED, "the daemon is shutting down");
	publish_stats(sched, true);
	atomic_store(&sched->idle, true);

	pthread_mutex_lock(&sched->lock);
	sched->stopped = true;
	pthread_cond_broadcast(&sched->stopped_cond);
	pthread_mutex_unlock(&sched->lock);
	return NULL;
}

/* Signals belong to the loop's thread. */
static int start_thread(struct sched *sched)
{
	sigset_t all, before;
	int r;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	r = pthread_create(&sched->thread, NULL, engine_thread, sched);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (r)
		return error_origin(-r);
	sched->has_thread = true;
	(void)pthread_setname_np(sched->thread, "lorad-engine");
	return 0;
}

/* ---- life ---- */

/**
 * sched_new() - a scheduler with its engine thread
 * @ret:        the scheduler
 * @options:    what it works with; all of it must outlive the scheduler
 */
int sched_new(struct sched **ret, const struct sched_options *options)
{
	_cleanup_(sched_freep) struct sched *sched = calloc(1, sizeof(*sched));
	int r;

	if (!sched)
		return error_origin(-ENOMEM);
	pthread_mutex_init(&sched->lock, NULL);
	pthread_cond_init(&sched->stopped_cond, NULL);
	(void)charges_init(&sched->charges);
	r = inbox_init(&sched->inbox);
	if (r < 0)
		return error_trace(r);
	sched->admit = (struct admit){
		.model = options->model,
		.store = options->store,
		.cache = options->cache,
		.kv = options->kv,
		.charges = &sched->charges,
	};
	r = engine_init(&sched->engine, options);
	if (r < 0)
		return error_trace(r);
	r = start_thread(sched);
	if (r < 0)
		return error_trace(r);
	*ret = TAKE_PTR(sched);
	return 0;
}

/**
 * sched_free() - stop at once, failing what is in flight
 */
struct sched *sched_free(struct sched *sched)
{
	if (!sched)
		return NULL;
	if (sched->has_thread) {
		atomic_store(&sched->deadline_ns, 0);
		atomic_store(&sched->draining, true);
		inbox_wake(&sched->inbox);
		pthread_join(sched->thread, NULL);
		take_inbox(sched, 0);
		engine_fail_all(&sched->engine, ECANCELED, "the daemon is shutting down");
	}
	engine_deinit(&sched->engine);
	inbox_deinit(&sched->inbox);
	charges_deinit(&sched->charges);
	pthread_cond_destroy(&sched->stopped_cond);
	pthread_mutex_destroy(&sched->lock);
	free(sched->users);
	free(sched);
	return NULL;
}

/**
 * sched_drain() - end: admit nobody, finish what can be finished in time, fail the rest with a reason
 * @sched:        the scheduler
 * @deadline_ns:  until when (monotonic)
 *
 * Returns when everything has its last message; no step runs afterwards.
 */
void sched_drain(struct sched *sched, uint64_t deadline_ns)
{
	atomic_store(&sched->deadline_ns, deadline_ns);
	atomic_store(&sched->draining, true);
	inbox_wake(&sched->inbox);
	pthread_mutex_lock(&sched->lock);
	while (!sched->stopped)
		pthread_cond_wait(&sched->stopped_cond, &sched->lock);
	pthread_mutex_unlock(&sched->lock);
}

void sched_wake(void *userdata)
{
	struct sched *sched = userdata;

	inbox_wake(&sched->inbox);
}

/**
 * sched_progress() - a number that moves while the engine does its work or has none
 */
uint64_t sched_progress(const struct sched *sched)
{
	return atomic_load(&sched->idle) ? clock_ns() : atomic_load(&sched->turns);
}

void sched_read_stats(struct sched *sched, struct sched_stats *ret)
{
	pthread_mutex_lock(&sched->lock);
	*ret = sched->stats;
	pthread_mutex_unlock(&sched->lock);
}

/**
 * sched_read_users() - what each user was served
 * @ret:        the users, the one that was served most first; the caller's to free
 * @ret_n:      how many
 *
 * Return: 0 or -ENOMEM.
 */
int sched_read_users(struct sched *sched, struct sched_user **ret, size_t *ret_n)
{
	struct sched_user *users;
	size_t n;

	pthread_mutex_lock(&sched->lock);
	n = sched->n_users;
	users = malloc((n + 1) * sizeof(*users));
	if (users && n)
		memcpy(users, sched->users, n * sizeof(*users));
	pthread_mutex_unlock(&sched->lock);
	if (!users)
		return error_origin(-ENOMEM);
	*ret = users;
	*ret_n = n;
	return 0;
}

/* ---- ipc's side, on the loop's thread ---- */

static int submit(void *userdata, struct ipc_request *ipc, struct diag *diag)
{
	struct sched *sched = userdata;
	struct request *request;
	int r;

	if (atomic_load(&sched->draining))
		return diag_set(diag, ECANCELED, "the daemon is shutting down");
	r = admit_request(&sched->admit, ipc, &request, diag);
	if (r)
		return r;
	r = inbox_put(&sched->inbox, &(struct inbox_message){ .kind = INBOX_REQUEST, .request = request });
	if (r < 0) {
		request->ipc = NULL; /* still the caller's */
		request_free(request);
		return diag_set(diag, ENOMEM, "the daemon ran out of memory");
	}
	return 0;
}

static void tell(struct sched *sched, enum inbox_kind kind, struct ipc_session *session, uint64_t id)
{
	struct inbox_message message = { .kind = kind, .session = ipc_session_ref(session), .id = id };

	if (inbox_put(&sched->inbox, &message) < 0)
		ipc_session_unref(session);
}

static void cancel(void *userdata, struct ipc_session *session, uint64_t id)
{
	tell(userdata, INBOX_CANCEL, session, id);
}

static void closed(void *userdata, struct ipc_session *session)
{
	tell(userdata, INBOX_CLOSE, session, 0);
}

static void list(void *userdata, struct ipc_session *session, uint64_t id)
{
	struct sched *sched = userdata;
	struct listing *listing;

	if (listing_new(&listing, sched->admit.store, sched->admit.cache) < 0) {
		(void)ipc_send_error(session, id, EIO, 0, "the list could not be read; the daemon's log has the reason");
	} else {
		listing_send(listing, session, id);
		listing_free(listing);
	}
	ipc_flush(session);
}

static void room(void *userdata, struct ipc_session *session)
{
	(void)session;
	sched_wake(userdata);
}

const struct ipc_ops sched_ipc_ops = {
	.submit = submit,
	.cancel = cancel,
	.list = list,
	.closed = closed,
	.room = room,
};
