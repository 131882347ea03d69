/* SPDX-License-Identifier: MIT */
/*
 * The real libloraclient against the real ipc and loop, with a toy engine behind them: submit, stream, cancel, list, poll,
 * a client that stops reading, clients that die, version skew, many connections.
 *
 * The engine thread echoes: a request of n tokens and max_tokens m is answered with m tokens that count up from the
 * request's first, in steps over all its requests, as the real one does.
 */
#include "libclient/loraclient.h"

#include <check.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "daemon/base/list.h"
#include "daemon/ipc/ipc.h"
#include "daemon/os/loop.h"
#include "daemon/os/sock.h"
#include "tests/lib/run-suite.h"

#define LISTED 3000

/* --- the toy engine ----------------------------------------------------------------------------------------------- */

struct job {
	struct list link;
	struct ipc_request *request;
	uint32_t sent;
	bool cancelled;
};

struct engine {
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct list jobs;
	bool stop;
	atomic_uint closed, rooms, full, freed;
};

static struct engine engine;
static struct loop *loop;
static struct ipc *ipc;
static pthread_t loop_thread;
static char folder[64], path[100];

static int take_request(void *userdata, struct ipc_request *request, struct diag *diag)
{
	struct job *job;

	(void)userdata;
	if (request->max_tokens < 1)
		return diag_set(diag, EINVAL, "max tokens is %lld", (long long)request->max_tokens);
	if (request->n_adapters && strcmp(request->adapters[0].name, "missing") == 0)
		return diag_set(diag, ENOENT, "no adapter is named \"%s\"", request->adapters[0].name);
	if (request->n_adapters && strcmp(request->adapters[0].name, "busy") == 0) {
		request->retry_ms = 350;
		return diag_set(diag, EAGAIN, "the queue is full");
	}
	job = calloc(1, sizeof(*job));
	job->request = request;
	pthread_mutex_lock(&engine.lock);
	list_append(&engine.jobs, &job->link);
	pthread_cond_signal(&engine.changed);
	pthread_mutex_unlock(&engine.lock);
	return 0;
}

static void for_session(const struct ipc_session *session, bool one, uint64_t id)
{
	struct job *job;

	pthread_mutex_lock(&engine.lock);
	list_for_each(job, &engine.jobs, link)
		if (job->request->session == session && (!one || job->request->id == id))
			job->cancelled = true;
	pthread_cond_signal(&engine.changed);
	pthread_mutex_unlock(&engine.lock);
}

static void cancel_request(void *userdata, struct ipc_session *session, uint64_t id)
{
	(void)userdata;
	for_session(session, true, id);
}

static void session_closed(void *userdata, struct ipc_session *session)
{
	(void)userdata;
	for_session(session, false, 0);
	atomic_fetch_add(&engine.closed, 1);
}

static void session_room(void *userdata, struct ipc_session *session)
{
	(void)userdata;
	(void)session;
	atomic_fetch_add(&engine.rooms, 1);
	pthread_mutex_lock(&engine.lock);
	pthread_cond_signal(&engine.changed);
	pthread_mutex_unlock(&engine.lock);
}

static void list_adapters(void *userdata, struct ipc_session *session, uint64_t id)
{
	const struct ipc_done done = { .finish = LC_FINISH_STOP };
	char name[32];

	(void)userdata;
	for (int i = 0; i < LISTED; ++i) {
		struct ipc_listed listed = { .name = name, .kind = "lora", .state = "store", .bytes = (uint64_t)i };

		snprintf(name, sizeof(name), "adapter-%d", i);
		memset(listed.digest, i & 0xff, sizeof(listed.digest));
		ck_assert_int_eq(ipc_send_adapter(session, id, &listed), IPC_OK);
	}
	(void)ipc_send_done(session, id, &done);
}

static const struct ipc_ops ops = {
	.submit = take_request,
	.cancel = cancel_request,
	.list = list_adapters,
	.closed = session_closed,
	.room = session_room,
};

static int send_next(struct job *job)
{
	const struct ipc_request *request = job->request;
	struct ipc_top top[LC_FINISH_ERROR + 2];
	struct ipc_token token = {
		.token = (request->n_tokens ? request->tokens[0] : 0) + job->sent,
		.logprob = -0.5f * (float)job->sent,
		.text = "\xc3\xa9t",
		.text_bytes = 3,
		.top = top,
		.n_top = request->logprobs > 0 ? 3 : 0,
	};

	for (uint32_t i = 0; i < 3; ++i)
		top[i] = (struct ipc_top){ token.token + i, -(float)i };
	return ipc_send_token(request->session, request->id, &token);
}

static void send_score(const struct ipc_request *request)
{
	float logprobs[IPC_SCORES_MAX];
	struct ipc_scores scores = { .n = (uint32_t)request->n_tokens, .tokens = request->tokens, .logprobs = logprobs };

	for (uint32_t i = 0; i < scores.n; ++i)
		logprobs[i] = -(float)i;
	(void)ipc_send_scores(request->session, request->id, &scores);
}

static void end_job(struct job *job)
{
	const struct ipc_request *request = job->request;
	struct ipc_used_adapter used[IPC_ADAPTERS_MAX];
	struct ipc_done done = {
		.finish = job->cancelled ? LC_FINISH_CANCELLED : LC_FINISH_LENGTH,
		.prompt_tokens = (uint32_t)request->n_tokens,
		.generated_tokens = job->sent,
		.cached_tokens = (uint32_t)(request->first_token_ms + request->deadline_ms), /* to be seen by the test */
		.queue_ms = 1.5,
		.decode_ms = 2.5,
		.adapters = used,
		.n_adapters = request->n_adapters,
	};

	for (uint32_t i = 0; i < request->n_adapters; ++i) {
		strcpy(used[i].name, request->adapters[i].name);
		memset(used[i].digest, 0xa0 + (int)i, sizeof(used[i].digest));
		used[i].scale = request->adapters[i].scale;
	}
	(void)ipc_send_done(request->session, request->id, &done);
	ipc_flush(request->session);
	list_unlink(&job->link);
	ipc_request_free(job->request);
	free(job);
	atomic_fetch_add(&engine.freed, 1);
}

/* One token for each job. True: something moved. */
static bool step(void)
{
	struct job *job;
	bool moved = false;

	list_for_each(job, &engine.jobs, link) {
		struct ipc_session *session = job->request->session;
		int r;

		if (job->request->kind == IPC_SCORE)
			send_score(job->request);
		if (job->cancelled || job->request->kind == IPC_SCORE || job->sent == job->request->max_tokens) {
			end_job(job);
			moved = true;
			continue;
		}
		r = send_next(job);
		if (r == IPC_E_FULL)
			atomic_fetch_add(&engine.full, 1);
		job->sent += r == IPC_OK;
		moved |= r == IPC_OK;
		ipc_flush(session);
	}
	return moved;
}

static void *run_engine(void *userdata)
{
	(void)userdata;
	pthread_mutex_lock(&engine.lock);
	while (!engine.stop)
		if (!step())
			pthread_cond_wait(&engine.changed, &engine.lock);
	pthread_mutex_unlock(&engine.lock);
	return NULL;
}

static void *run_loop(void *userdata)
{
	ck_assert_int_eq(loop_run(userdata), 0);
	return NULL;
}

static int listen_fd;

static void start_daemon(void)
{
	struct ipc_options options = { .context = 8192, .vocab = 1000, .plain_first = 5, .n_plain = 900, .ops = &ops };
	struct diag diag;

	snprintf(folder, sizeof(folder), "/tmp/test-ipc-client.XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(folder));
	snprintf(path, sizeof(path), "%s/lorad.sock", folder);
	ck_assert_int_eq(sock_listen(&listen_fd, SOCK_SEQPACKET, path, 0600, &diag), SOCK_OK);
	ck_assert_int_eq(loop_new(&loop), 0);
	options.loop = loop;
	options.listen_fd = listen_fd;
	ck_assert_int_eq(ipc_new(&ipc, &options), 0);
	memset(&engine, 0, sizeof(engine));
	list_init(&engine.jobs);
	pthread_mutex_init(&engine.lock, NULL);
	pthread_cond_init(&engine.changed, NULL);
	ck_assert_int_eq(pthread_create(&engine.thread, NULL, run_engine, NULL), 0);
	ck_assert_int_eq(pthread_create(&loop_thread, NULL, run_loop, loop), 0);
}

static void stop_daemon(void)
{
	struct job *job;

	loop_stop(loop);
	pthread_join(loop_thread, NULL);
	ipc = ipc_free(ipc);
	pthread_mutex_lock(&engine.lock);
	engine.stop = true;
	pthread_cond_signal(&engine.changed);
	pthread_mutex_unlock(&engine.lock);
	pthread_join(engine.thread, NULL);
	list_for_each(job, &engine.jobs, link)
		end_job(job);
	loop = loop_free(loop);
	close(listen_fd);
	unlink(path);
	rmdir(folder);
}

/* --- the client --------------------------------------------------------------------------------------------------- */

struct seen {
	uint32_t tokens, first, adapters, scores, events;
	bool done, failed, in_order;
	enum lc_finish finish;
	int code;
	uint32_t retry_ms, cached;
	char error[300];
	uint64_t last_id;
};

static void on_event(lc_connection *connection, const struct lc_event *event)
{
	struct seen *seen = event->userdata;

	(void)connection;
	++seen->events;
	ck_assert(!seen->done);
	switch (event->type) {
	case LC_EVENT_TOKEN:
		ck_assert_uint_eq(event->token, seen->first + seen->tokens);
		ck_assert_float_eq(event->logprob, -0.5f * (float)seen->tokens);
		ck_assert_str_eq(event->text, "\xc3\xa9t");
		ck_assert_uint_eq(event->text_bytes, 3);
		for (uint32_t i = 0; i < event->n_top; ++i)
			ck_assert_uint_eq(event->top[i].token, event->token + i);
		++seen->tokens;
		break;
	case LC_EVENT_SCORES:
		for (uint32_t i = 0; i < event->n_scores; ++i)
			ck_assert_float_eq(event->logprobs[i], -(float)i);
		seen->scores += event->n_scores;
		break;
	case LC_EVENT_ADAPTER:
		ck_assert_uint_eq(event->bytes, seen->adapters);
		ck_assert_uint_eq(strlen(event->digest), 64);
		ck_assert_str_eq(event->kind, "lora");
		ck_assert_str_eq(event->state, "store");
		++seen->adapters;
		break;
	case LC_EVENT_DONE:
		seen->done = true;
		seen->finish = event->finish;
		seen->cached = event->cached_tokens;
		for (uint32_t i = 0; i < event->n_adapters; ++i)
			ck_assert_int_eq(event->adapters[i].digest[0], 'a');
		seen->last_id = event->id;
		break;
	case LC_EVENT_ERROR:
		seen->done = seen->failed = true;
		seen->code = event->code;
		seen->retry_ms = event->retry_ms;
		snprintf(seen->error, sizeof(seen->error), "%s", event->error);
		break;
	}
}

static lc_connection *connect_client(void)
{
	lc_connection *connection;
	char error[256] = "";
	int r = lc_connect(&connection, path, on_event, error, sizeof(error));

	ck_assert_msg(r == 0, "%d %s", r, error);
	return connection;
}

static lc_request *make_request(struct seen *seen, uint32_t first, uint32_t n)
{
	lc_request *request;

	memset(seen, 0, sizeof(*seen));
	seen->first = first;
	ck_assert_int_eq(lc_request_new(&request, LC_GENERATE), 0);
	ck_assert_int_eq(lc_request_set_tokens(request, &first, 1), 0);
	lc_request_set_max_tokens(request, n);
	lc_request_set_userdata(request, seen);
	return request;
}

static uint64_t submit(lc_connection *connection, struct seen *seen, uint32_t first, uint32_t n)
{
	lc_request *request = make_request(seen, first, n);
	uint64_t id;

	ck_assert_int_eq(lc_submit(connection, request, &id), 0);
	lc_request_free(request);
	return id;
}

static void wait_for(lc_connection *connection, const struct seen *seen)
{
	while (!seen->done)
		ck_assert_int_ge(lc_wait(connection, 5000), 1);
}

START_TEST(streams)
{
	lc_connection *connection = connect_client();
	struct lc_model model;
	struct seen seen;

	lc_read_model(connection, &model);
	ck_assert_uint_eq(model.context, 8192);
	ck_assert_uint_eq(model.vocab, 1000);
	ck_assert_uint_eq(model.plain_first, 5);
	ck_assert_uint_eq(model.n_plain, 900);
	submit(connection, &seen, 7, 20000); /* several times round the ring */
	wait_for(connection, &seen);
	ck_assert_uint_eq(seen.tokens, 20000);
	ck_assert_int_eq(seen.finish, LC_FINISH_LENGTH);
	lc_disconnect(connection);
}
END_TEST

START_TEST(everything_in_a_request)
{
	lc_connection *connection = connect_client();
	lc_request *request;
	struct seen seen;

	request = make_request(&seen, 0, 5);
	ck_assert_int_eq(lc_request_set_text(request, "h\xc3\xa9", 3), 0);
	for (int i = 0; i < 8; ++i)
		ck_assert_int_eq(lc_request_add_adapter(request, "style.v1_2-x", 0.5), 0);
	ck_assert_int_eq(lc_request_add_adapter(request, "ninth", 0.5), -E2BIG);
	for (int i = 0; i < 16; ++i)
		ck_assert_int_eq(lc_request_add_stop(request, "end"), 0);
	ck_assert_int_eq(lc_request_add_stop(request, "end"), -E2BIG);
	lc_request_set_chat(request, true);
	lc_request_set_ignore_eos(request, true);
	lc_request_set_temperature(request, 0.5);
	lc_request_set_top_p(request, 0.9);
	lc_request_set_top_k(request, 40);
	lc_request_set_min_p(request, 0.1);
	lc_request_set_repetition_penalty(request, 1.1);
	lc_request_set_seed(request, UINT64_MAX);
	lc_request_set_logprobs(request, 3);
	lc_request_set_first_token_ms(request, 1000);
	lc_request_set_deadline_ms(request, 30000);
	for (int i = 0; i < 3; ++i) { /* the same object again and again */
		seen.done = false;
		seen.tokens = 0;
		ck_assert_int_eq(lc_submit(connection, request, NULL), 0);
		wait_for(connection, &seen);
		ck_assert_uint_eq(seen.tokens, 5);
		ck_assert_uint_eq(seen.cached, 31000);
	}
	lc_request_free(request);
	lc_disconnect(connection);
}
END_TEST

START_TEST(scores)
{
	lc_connection *connection = connect_client();
	uint32_t tokens[64] = { 1, 2, 3 };
	lc_request *request;
	struct seen seen = { .events = 0 };

	ck_assert_int_eq(lc_request_new(&request, LC_SCORE), 0);
	ck_assert_int_eq(lc_request_set_tokens(request, tokens, 64), 0);
	lc_request_set_userdata(request, &seen);
	ck_assert_int_eq(lc_submit(connection, request, NULL), 0);
	lc_request_free(request);
	wait_for(connection, &seen);
	ck_assert_uint_eq(seen.scores, 64);
	lc_disconnect(connection);
}
END_TEST

START_TEST(refusals_have_words)
{
	lc_connection *connection = connect_client();
	lc_request *request;
	struct seen seen;

	submit(connection, &seen, 1, 0);
	wait_for(connection, &seen);
	ck_assert_int_eq(seen.code, EINVAL);
	ck_assert_str_eq(seen.error, "max tokens is 0");

	request = make_request(&seen, 1, 1);
	ck_assert_int_eq(lc_request_add_adapter(request, "missing", 1), 0);
	ck_assert_int_eq(lc_submit(connection, request, NULL), 0);
	lc_request_free(request);
	wait_for(connection, &seen);
	ck_assert_int_eq(seen.code, ENOENT);
	ck_assert_uint_eq(seen.retry_ms, 0);

	request = make_request(&seen, 1, 1);
	ck_assert_int_eq(lc_request_add_adapter(request, "busy", 1), 0);
	ck_assert_int_eq(lc_submit(connection, request, NULL), 0);
	lc_request_free(request);
	wait_for(connection, &seen);
	ck_assert_int_eq(seen.code, EAGAIN);
	ck_assert_str_eq(seen.error, "the queue is full");
	ck_assert_uint_eq(seen.retry_ms, 350);

	request = make_request(&seen, 1, 1);
	ck_assert_int_eq(lc_request_add_adapter(request, "../etc", 1), 0);
	ck_assert_int_eq(lc_submit(connection, request, NULL), 0);
	lc_request_free(request);
	wait_for(connection, &seen);
	ck_assert_int_eq(seen.code, EINVAL);
	ck_assert_ptr_nonnull(strstr(seen.error, "../etc"));

	request = make_request(&seen, 1, 1);
	ck_assert_int_eq(lc_request_set_text(request, "ab\xff", 3), 0);
	ck_assert_int_eq(lc_submit(connection, request, NULL), 0);
	wait_for(connection, &seen);
	ck_assert_int_eq(seen.code, EINVAL);
	ck_assert_str_eq(seen.error, "the text is not UTF-8 at byte 2");
	lc_request_free(request);
	lc_disconnect(connection);
}
END_TEST

START_TEST(never_fits_and_empty)
{
	lc_connection *connection = connect_client();
	size_t bytes = 1 << 20;
	char *text = malloc(bytes);
	lc_request *request;
	struct seen seen;
	uint64_t id = 77;

	memset(text, 'x', bytes);
	request = make_request(&seen, 1, 2);
	ck_assert_int_eq(lc_request_set_text(request, text, bytes), 0);
	ck_assert_int_eq(lc_submit(connection, request, &id), -EMSGSIZE);
	ck_assert_str_ne(lc_error_text(connection), "");
	ck_assert_int_eq(lc_request_set_text(request, text, 8 * 8192), 0); /* eight bytes a token must */
	for (int i = 0; i < 20; ++i) {
		seen.done = false;
		seen.tokens = 0;
		seen.first = 0;
		ck_assert_int_eq(lc_submit(connection, request, &id), 0);
		wait_for(connection, &seen);
	}
	lc_request_free(request);
	ck_assert_int_eq(lc_request_new(&request, LC_GENERATE), 0);
	ck_assert_int_eq(lc_submit(connection, request, &id), -EINVAL);
	lc_request_free(request);
	free(text);
	lc_disconnect(connection);
}
END_TEST

START_TEST(cancels)
{
	lc_connection *connection = connect_client();
	struct seen seen, other;
	uint64_t id = submit(connection, &seen, 3, 2000000000);

	submit(connection, &other, 5, 2000000000);
	while (seen.tokens < 100)
		ck_assert_int_ge(lc_wait(connection, 5000), 1);
	ck_assert_int_eq(lc_cancel(connection, id), 0);
	wait_for(connection, &seen);
	ck_assert_int_eq(seen.finish, LC_FINISH_CANCELLED);
	ck_assert_uint_eq(seen.last_id, id);
	ck_assert(!other.done);
	ck_assert_int_eq(lc_cancel(connection, id), -ENOENT);
	ck_assert_int_eq(lc_cancel(connection, 0), -ENOENT);
	ck_assert_int_eq(lc_cancel(connection, UINT64_MAX), -ENOENT);
	lc_disconnect(connection);
}
END_TEST

START_TEST(many_at_once_and_the_limit)
{
	enum { MOST = 1023 };
	lc_connection *connection = connect_client();
	struct seen *seen = calloc(MOST, sizeof(*seen)), one_more;
	uint64_t *ids = calloc(MOST, sizeof(*ids));
	lc_request *request;

	for (uint32_t i = 0; i < MOST; ++i)
		ids[i] = submit(connection, &seen[i], i, 1000000000);
	request = make_request(&one_more, 1, 1);
	ck_assert_int_eq(lc_submit(connection, request, NULL), -EAGAIN);
	for (uint32_t i = 0; i < MOST; ++i) /* cancels pass although the table is full */
		while (lc_cancel(connection, ids[i]) == -EAGAIN)
			(void)lc_wait(connection, 100);
	for (uint32_t i = 0; i < MOST; ++i)
		wait_for(connection, &seen[i]);
	ck_assert_int_eq(lc_submit(connection, request, NULL), 0);
	wait_for(connection, &one_more);
	lc_request_free(request);
	free(ids);
	free(seen);
	lc_disconnect(connection);
}
END_TEST

START_TEST(lists_more_than_the_ring_holds)
{
	lc_connection *connection = connect_client();
	struct seen seen[3];

	memset(seen, 0, sizeof(seen));
	for (int i = 0; i < 3; ++i)
		ck_assert_int_eq(lc_list_adapters(connection, &seen[i], NULL), 0);
	usleep(100000); /* let it fill */
	for (int i = 0; i < 3; ++i) {
		wait_for(connection, &seen[i]);
		ck_assert_uint_eq(seen[i].adapters, LISTED);
	}
	lc_disconnect(connection);
}
END_TEST

START_TEST(pings)
{
	lc_connection *connection = connect_client();
	struct seen seen;

	for (int i = 0; i < 2000; ++i) {
		memset(&seen, 0, sizeof(seen));
		ck_assert_int_eq(lc_ping(connection, &seen, NULL), 0);
		wait_for(connection, &seen);
		if (i % 500 == 0)
			usleep(1000); /* let the daemon fall asleep */
	}
	lc_disconnect(connection);
}
END_TEST

/* Pings just when the daemon stops looking: one whose doorbell is lost would never be answered. */
START_TEST(pings_at_the_edge)
{
	lc_connection *connection = connect_client();
	uint32_t random = 1;
	struct seen seen;

	for (int i = 0; i < 100000; ++i) {
		uint64_t until = clock_ns();

		random = random * 1664525u + 1013904223u;
		until += random % 16 ? random % 2000 : 45000 + random % 10000;
		while (clock_ns() < until)
			continue;
		memset(&seen, 0, sizeof(seen));
		ck_assert_int_eq(lc_ping(connection, &seen, NULL), 0);
		wait_for(connection, &seen);
	}
	lc_disconnect(connection);
}
END_TEST

START_TEST(stops_reading_and_goes_on)
{
	lc_connection *connection = connect_client();
	struct seen seen, small;
	uint32_t rooms;

	submit(connection, &seen, 1, 50000);
	submit(connection, &small, 9, 10);
	for (int i = 0; i < 500 && atomic_load(&engine.full) == 0; ++i)
		usleep(10000);
	ck_assert_uint_gt(atomic_load(&engine.full), 0);
	usleep(50000);
	rooms = atomic_load(&engine.full);
	usleep(50000);
	ck_assert_uint_eq(atomic_load(&engine.full), rooms); /* paused, not polling */
	wait_for(connection, &seen);
	wait_for(connection, &small);
	ck_assert_uint_eq(seen.tokens, 50000);
	ck_assert_uint_gt(atomic_load(&engine.rooms), 0);
	lc_disconnect(connection);
}
END_TEST

START_TEST(ends_are_never_lost)
{
	enum { MANY = 900 };
	lc_connection *connection = connect_client();
	struct seen flood, *seen = calloc(MANY, sizeof(*seen));

	submit(connection, &flood, 1, 4100); /* fills the ring */
	for (int i = 0; i < 500 && atomic_load(&engine.full) == 0; ++i)
		usleep(10000);
	for (uint32_t i = 0; i < MANY; ++i) /* each refused with an error, while there is no room for any */
		submit(connection, &seen[i], 1, 0);
	usleep(50000);
	for (uint32_t i = 0; i < MANY; ++i)
		wait_for(connection, &seen[i]);
	wait_for(connection, &flood);
	free(seen);
	lc_disconnect(connection);
}
END_TEST

START_TEST(polls)
{
	lc_connection *connection = connect_client();
	struct pollfd pfd = { .fd = lc_fd(connection), .events = POLLIN };
	struct seen seen;
	uint32_t sleeps = 0;

	ck_assert_int_eq(lc_poll_begin(connection), 0);
	ck_assert_int_eq(poll(&pfd, 1, 20), 0); /* nothing, nothing readable */
	ck_assert_int_eq(lc_dispatch(connection), 0);
	for (int i = 0; i < 200; ++i) {
		submit(connection, &seen, 1, 50);
		while (!seen.done) {
			if (lc_poll_begin(connection) == 0) {
				ck_assert_int_eq(poll(&pfd, 1, 5000), 1);
				++sleeps;
			}
			ck_assert_int_ge(lc_dispatch(connection), 0);
		}
		if (i % 20 == 0)
			usleep(1000);
	}
	ck_assert_uint_gt(sleeps, 0);
	lc_disconnect(connection);
}
END_TEST

static void dispatch_again(lc_connection *connection, const struct lc_event *event)
{
	ck_assert_int_eq(lc_dispatch(connection), -EBUSY);
	on_event(connection, event);
}

START_TEST(no_dispatch_inside_an_event)
{
	lc_connection *connection;
	struct seen seen;

	ck_assert_int_eq(lc_connect(&connection, path, dispatch_again, NULL, 0), 0);
	submit(connection, &seen, 1, 3);
	wait_for(connection, &seen);
	lc_disconnect(connection);
}
END_TEST

static struct seen chain;

static void submit_next(lc_connection *connection, const struct lc_event *event)
{
	uint32_t *left = event->userdata;
	lc_request *request;

	if (event->type != LC_EVENT_DONE || --*left == 0)
		return;
	request = make_request(&chain, 1, 2);
	lc_request_set_userdata(request, left);
	ck_assert_int_eq(lc_submit(connection, request, NULL), 0);
	lc_request_free(request);
}

START_TEST(submits_inside_an_event)
{
	lc_connection *connection;
	uint32_t left = 100;

	ck_assert_int_eq(lc_connect(&connection, path, submit_next, NULL, 0), 0);
	ck_assert_int_eq(lc_ping(connection, &left, NULL), 0);
	while (left)
		ck_assert_int_ge(lc_wait(connection, 5000), 1);
	lc_disconnect(connection);
}
END_TEST

START_TEST(wait_times_out)
{
	lc_connection *connection = connect_client();
	uint64_t began = clock_ns();

	ck_assert_int_eq(lc_wait(connection, 0), 0);
	ck_assert_int_eq(lc_wait(connection, 250), 0);
	ck_assert_uint_ge(clock_ns() - began, 250 * NS_PER_MS);
	lc_disconnect(connection);
}
END_TEST

/* Forks a client that streams and is killed in the middle; the daemon's threads live on in this process. */
START_TEST(killed_clients_are_cleaned_up)
{
	enum { DEATHS = 20 };
	struct ipc_stats stats;

	for (uint32_t i = 0; i < DEATHS; ++i) {
		pid_t pid = fork();

		ck_assert_int_ge(pid, 0);
		if (pid == 0) {
			struct seen seen;
			lc_connection *connection;

			if (lc_connect(&connection, path, on_event, NULL, 0) < 0)
				_exit(1);
			submit(connection, &seen, 1, 1000000000);
			while (seen.tokens < 500 * (i % 3))
				(void)lc_wait(connection, 1000);
			raise(SIGKILL);
		}
		int status;
		ck_assert_int_eq(waitpid(pid, &status, 0), pid);
		ck_assert(WIFSIGNALED(status));
	}
	for (int i = 0; i < 500 && (atomic_load(&engine.freed) < DEATHS || atomic_load(&engine.closed) < DEATHS); ++i)
		usleep(10000);
	ck_assert_uint_le(atomic_load(&engine.freed), DEATHS);
	ck_assert_uint_eq(atomic_load(&engine.closed), DEATHS);
	ipc_read_stats(ipc, &stats);
	ck_assert_uint_eq(stats.clients, 0);
	ck_assert_uint_eq(stats.connections, DEATHS);
}
END_TEST

START_TEST(daemon_dies)
{
	lc_connection *connection = connect_client(), *polling = connect_client();
	struct pollfd pfd = { .fd = lc_fd(polling), .events = POLLIN };
	struct seen seen;
	int n;

	submit(connection, &seen, 1, 50);
	wait_for(connection, &seen);
	ck_assert_int_eq(lc_poll_begin(polling), 0);
	loop_stop(loop);
	pthread_join(loop_thread, NULL);
	ipc = ipc_free(ipc);
	ck_assert_int_eq(atomic_load(&engine.closed), 2);
	ck_assert_int_eq(poll(&pfd, 1, 1000), 1);
	ck_assert_int_eq(lc_dispatch(polling), -ECONNRESET);
	while ((n = lc_wait(connection, 5000)) > 0)
		continue;
	ck_assert_int_eq(n, -ECONNRESET);
	ck_assert_int_eq(lc_ping(connection, &seen, NULL), -ECONNRESET);
	lc_disconnect(connection);
	lc_disconnect(polling);
	ck_assert_int_eq(pthread_create(&loop_thread, NULL, run_loop, loop), 0); /* for the fixture's end */
}
END_TEST

START_TEST(a_thousand_connects)
{
	struct ipc_stats stats;
	struct seen seen;

	for (int i = 0; i < 1000; ++i) {
		lc_connection *connection = connect_client();

		if (i % 10 == 0) {
			submit(connection, &seen, 1, 3);
			wait_for(connection, &seen);
		}
		lc_disconnect(connection);
	}
	for (int i = 0; i < 500 && atomic_load(&engine.closed) < 1000; ++i)
		usleep(10000);
	ck_assert_uint_eq(atomic_load(&engine.closed), 1000);
	ipc_read_stats(ipc, &stats);
	ck_assert_uint_eq(stats.connections, 1000);
	ck_assert_uint_eq(stats.clients, 0);
}
END_TEST

START_TEST(hundreds_at_a_time)
{
	enum { CLIENTS = 300 };
	static lc_connection *connections[CLIENTS];
	static struct seen seen[CLIENTS];

	for (int i = 0; i < CLIENTS; ++i)
		connections[i] = connect_client();
	for (uint32_t i = 0; i < CLIENTS; ++i)
		submit(connections[i], &seen[i], i, 20);
	for (int i = 0; i < CLIENTS; ++i)
		wait_for(connections[i], &seen[i]);
	for (int i = 0; i < CLIENTS; ++i)
		lc_disconnect(connections[i]);
}
END_TEST

START_TEST(nobody_is_listening)
{
	lc_connection *connection;
	char error[256];

	ck_assert_int_eq(lc_connect(&connection, "/nowhere/lorad.sock", on_event, error, sizeof(error)), -ENOENT);
	ck_assert_ptr_null(connection);
	ck_assert_ptr_nonnull(strstr(error, "/nowhere/lorad.sock"));
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("ipc-client");
	TCase *tcase = tcase_create("client");

	tcase_add_checked_fixture(tcase, start_daemon, stop_daemon);
	tcase_add_test(tcase, streams);
	tcase_add_test(tcase, everything_in_a_request);
	tcase_add_test(tcase, scores);
	tcase_add_test(tcase, refusals_have_words);
	tcase_add_test(tcase, never_fits_and_empty);
	tcase_add_test(tcase, cancels);
	tcase_add_test(tcase, many_at_once_and_the_limit);
	tcase_add_test(tcase, lists_more_than_the_ring_holds);
	tcase_add_test(tcase, pings);
	tcase_add_test(tcase, pings_at_the_edge);
	tcase_add_test(tcase, stops_reading_and_goes_on);
	tcase_add_test(tcase, ends_are_never_lost);
	tcase_add_test(tcase, polls);
	tcase_add_test(tcase, no_dispatch_inside_an_event);
	tcase_add_test(tcase, submits_inside_an_event);
	tcase_add_test(tcase, wait_times_out);
	tcase_add_test(tcase, killed_clients_are_cleaned_up);
	tcase_add_test(tcase, daemon_dies);
	tcase_add_test(tcase, a_thousand_connects);
	tcase_add_test(tcase, hundreds_at_a_time);
	tcase_add_test(tcase, nobody_is_listening);
	tcase_set_timeout(tcase, 60);
	suite_add_tcase(suite, tcase);
	return run_suite(suite);
}
