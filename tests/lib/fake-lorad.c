/* SPDX-License-Identifier: MIT */
/*
 * fake-lorad SOCKET: the real ipc with a toy engine, for tests of programs that talk to lorad.
 *
 * Every 2 ms each request gets one token: first prompt token + position, with the text "<id>". Five adapters are listed,
 * a0 to a4, of which a3 and a4 are in the store and take a moment to page in once; "missing" does not exist; "broken"
 * fails after two tokens; "busy" is refused until in 350 ms. A target of 1 ms for the first token
 * is dropped early. Answers say as cached_tokens the sum of the targets that came with the request. Prints READY once it
 * listens.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/clock.h"
#include "daemon/base/list.h"
#include "daemon/ipc/ipc.h"
#include "daemon/os/loop.h"
#include "daemon/os/sock.h"
#include "libclient/loraclient.h"

#define N_ADAPTERS 5
#define STEP_NS (2 * NS_PER_MS)

struct job {
	struct list link;
	struct ipc_request *request;
	uint32_t sent;
	bool cancelled;
	double page_in_ms;
};

struct engine {
	struct loop_timer timer; /* first: step() finds the engine by it */
	struct list jobs;
	bool resident[N_ADAPTERS];
};

static int index_of(const char *name)
{
	return name[0] == 'a' && name[1] >= '0' && name[1] < '0' + N_ADAPTERS && !name[2] ? name[1] - '0' : -1;
}

static int take_request(void *userdata, struct ipc_request *request, struct diag *diag)
{
	struct engine *engine = userdata;
	struct job *job;
	double page_in_ms = 0;

	for (uint32_t i = 0; i < request->n_adapters; ++i) {
		int index = index_of(request->adapters[i].name);

		if (strcmp(request->adapters[i].name, "missing") == 0)
			return diag_set(diag, ENOENT, "missing: no such adapter");
		if (strcmp(request->adapters[i].name, "busy") == 0) {
			request->retry_ms = 350;
			return diag_set(diag, EAGAIN, "the queue of uid %u is full", (unsigned)request->uid);
		}
		if (index >= 0 && !engine->resident[index]) {
			engine->resident[index] = true;
			page_in_ms = 3.5;
		}
	}
	if (request->first_token_ms == 1) {
		request->retry_ms = 20;
		return diag_set(diag, ETIME, "the first token would miss its target");
	}
	job = calloc(1, sizeof(*job));
	if (!job)
		return diag_set(diag, ENOMEM, "out of memory");
	job->request = request;
	job->page_in_ms = page_in_ms;
	list_append(&engine->jobs, &job->link);
	return 0;
}

static void cancel_where(struct engine *engine, const struct ipc_session *session, bool all, uint64_t id)
{
	struct job *job;

	list_for_each(job, &engine->jobs, link)
		if (job->request->session == session && (all || job->request->id == id))
			job->cancelled = true;
}

static void cancel_one(void *userdata, struct ipc_session *session, uint64_t id)
{
	cancel_where(userdata, session, false, id);
}

static void cancel_all(void *userdata, struct ipc_session *session)
{
	cancel_where(userdata, session, true, 0);
}

static void list_adapters(void *userdata, struct ipc_session *session, uint64_t id)
{
	const struct engine *engine = userdata;
	const struct ipc_done done = { .finish = LC_FINISH_STOP };

	for (int i = N_ADAPTERS - 1; i >= 0; --i) { /* not sorted: programs must not rely on it */
		char name[] = { 'a', (char)('0' + i), 0 };
		struct ipc_listed listed = { .name = name, .kind = "lora", .state = engine->resident[i] ? "device" : "store",
					     .bytes = 4096 };

		memset(listed.digest, 0xa0 + i, sizeof(listed.digest));
		(void)ipc_send_adapter(session, id, &listed);
	}
	(void)ipc_send_done(session, id, &done);
	ipc_flush(session);
}

static const struct ipc_ops ops = {
	.submit = take_request,
	.cancel = cancel_one,
	.list = list_adapters,
	.closed = cancel_all,
};

static void end_job(struct job *job)
{
	const struct ipc_request *request = job->request;
	struct ipc_used_adapter used[IPC_ADAPTERS_MAX];
	struct ipc_done done = {
		.finish = job->cancelled ? LC_FINISH_CANCELLED : LC_FINISH_LENGTH,
		.prompt_tokens = (uint32_t)(request->has_text ? request->text_bytes : request->n_tokens),
		.generated_tokens = job->sent,
		.cached_tokens = (uint32_t)(request->first_token_ms + request->deadline_ms),
		.queue_ms = 1.5,
		.page_in_ms = job->page_in_ms,
		.adapters = used,
		.n_adapters = request->n_adapters,
	};

	for (uint32_t i = 0; i < request->n_adapters; ++i) {
		memcpy(used[i].name, request->adapters[i].name, sizeof(used[i].name));
		memset(used[i].digest, 0xa0 + index_of(used[i].name), sizeof(used[i].digest));
		used[i].scale = request->adapters[i].scale;
	}
	(void)ipc_send_done(request->session, request->id, &done);
}

static void send_score(const struct ipc_request *request)
{
	float logprobs[IPC_SCORES_MAX];
	struct ipc_scores scores = { .n = (uint32_t)request->n_tokens, .tokens = request->tokens, .logprobs = logprobs };

	for (uint32_t i = 0; i < scores.n && i < IPC_SCORES_MAX; ++i)
		logprobs[i] = i ? -0.5f * (float)i : (float)__builtin_nanf("");
	(void)ipc_send_scores(request->session, request->id, &scores);
}

static void send_token(struct job *job)
{
	const struct ipc_request *request = job->request;
	uint32_t id = (request->n_tokens ? request->tokens[0] : 0) + job->sent;
	const struct ipc_top top[] = { { id, -0.25f }, { id + 1, -1.5f } };
	struct ipc_token token = { .token = id, .logprob = -0.25f, .top = top };
	char text[16];

	token.n_top = request->logprobs < 0 ? 0 : request->logprobs < 2 ? (uint32_t)request->logprobs : 2;
	token.text_bytes = (size_t)snprintf(text, sizeof(text), "<%u>", id);
	token.text = text;
	job->sent += ipc_send_token(request->session, request->id, &token) == IPC_OK;
}

/* One step of a job. True: it is over. */
static bool step_job(struct job *job)
{
	const struct ipc_request *request = job->request;

	if (request->n_adapters && strcmp(request->adapters[0].name, "broken") == 0 && job->sent == 2) {
		(void)ipc_send_error(request->session, request->id, EIO, 0, "broken: checksum");
		return true;
	}
	if (request->kind == IPC_SCORE)
		send_score(request);
	if (request->kind == IPC_SCORE || job->cancelled || job->sent >= request->max_tokens) {
		end_job(job);
		return true;
	}
	send_token(job);
	return false;
}

static void step(struct loop_timer *timer)
{
	struct engine *engine = container_of(timer, struct engine, timer);
	struct job *job;

	list_for_each(job, &engine->jobs, link) {
		bool over = step_job(job);

		ipc_flush(job->request->session);
		if (!over)
			continue;
		list_unlink(&job->link);
		ipc_request_free(job->request);
		free(job);
	}
}

int main(int argc, char **argv)
{
	struct engine engine = { .timer = LOOP_TIMER_NULL, .resident = { true, true, true } };
	struct ipc_options options = { .context = 8192, .vocab = 1000, .plain_first = 5, .n_plain = 900, .ops = &ops,
				       .userdata = &engine };
	struct diag diag;

	if (argc != 2 || sock_listen(&options.listen_fd, SOCK_SEQPACKET, argv[1], 0600, &diag) || loop_new(&options.loop) < 0)
		return 1;
	list_init(&engine.jobs);
	if (ipc_new(&(struct ipc *){ NULL }, &options) < 0 || loop_timer_init(options.loop, &engine.timer, step) < 0 ||
	    loop_timer_set(&engine.timer, STEP_NS, STEP_NS) < 0)
		return 1;
	puts("READY");
	fflush(stdout);
	return loop_run(options.loop) < 0;
}
