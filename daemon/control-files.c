/* SPDX-License-Identifier: MIT */
/*
 * Verbs that wait for the disk: Export, Remove
 *
 * Each is a job of the worker's thread that carries its call. run() sees only its own copy of what it needs; done(), on
 * the loop's thread again, answers. A caller that hangs up cancels the job, which then ends where it can.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/cache/cache.h"
#include "daemon/control-call.h"
#include "daemon/import/export.h"
#include "daemon/worker.h"

struct files_job {
	struct worker_job job;
	struct control_call *call;
	const struct parts *parts;
	char name[STORE_NAME_MAX + 1];
	struct store_digest digest;
	int result;
	struct diag diag;
	struct export_files files;
};

static void on_gone(struct control_call *call)
{
	struct files_job *job = call->work;

	atomic_store(&job->job.cancelled, true);
}

static struct files_job *job_of(struct worker_job *job)
{
	return container_of(job, struct files_job, job);
}

/* Starts a job for the adapter that the call names; it belongs to the call. */
static void start(struct control_call *call, void (*run)(struct worker_job *), void (*done)(struct worker_job *))
{
	struct store_digest digest;
	const char *name = control_find(call, &digest, NULL);
	struct files_job *job = name ? calloc(1, sizeof(*job)) : NULL;

	if (!name)
		return;
	if (!job) {
		control_fail(call, ENOMEM, "the daemon ran out of memory");
		return;
	}
	job->call = call;
	job->parts = call->parts;
	(void)strncpy(job->name, name, STORE_NAME_MAX);
	job->digest = digest;
	job->job.run = run;
	job->job.done = done;
	call->work = job;
	call->gone = on_gone;
	worker_submit(call->parts->worker, &job->job);
}

/* ---- remove ---- */

static void run_remove(struct worker_job *worker_job)
{
	struct files_job *job = job_of(worker_job);

	job->result = store_remove(job->parts->store, job->name);
}

/* A pin goes with the name: without one nobody could drop it. Its memory is free for others. */
static void done_remove(struct worker_job *worker_job)
{
	struct files_job *job = job_of(worker_job);

	if (!job->result)
		cache_forget(job->parts->cache, &job->digest);
	if (atomic_load(&worker_job->cancelled))
		control_fail(job->call, ECANCELED, "the daemon is shutting down");
	else if (!job->result)
		control_reply(job->call, json_pack("{s:s}", "name", job->name));
	else if (job->result == STORE_E_NOT_FOUND)
		control_fail(job->call, ENOENT, "adapter \"%s\": there is none of this name", job->name);
	else
		control_fail(job->call, EIO, "adapter \"%s\": could not be removed; the daemon's log has the reason",
			     job->name);
	free(job);
}

void control_remove(struct control_call *call)
{
	start(call, run_remove, done_remove);
}

/* ---- export ---- */

static void run_export(struct worker_job *worker_job)
{
	struct files_job *job = job_of(worker_job);

	job->result = export_version(job->parts->store, &job->digest, &job->files, &job->diag);
}

static void reply_export(struct files_job *job)
{
	const int fds[] = { job->files.config_fd, job->files.weights_fd };

	control_reply_files(job->call,
			    json_pack("{s:s, s:[s, s]}", "name", job->name, "files", "adapter_config.json",
				      "adapter_model.safetensors"),
			    fds, 2);
}

static void done_export(struct worker_job *worker_job)
{
	struct files_job *job = job_of(worker_job);
	const char *why = *job->diag.text ? job->diag.text : "could not be exported; the daemon's log has the reason";

	if (!job->result && job->files.weights_fd > 0)
		reply_export(job);
	else if (atomic_load(&worker_job->cancelled))
		control_fail(job->call, ECANCELED, "the daemon is shutting down");
	else
		control_fail(job->call, job->result == STORE_E_NOT_FOUND ? ENOENT : EIO, "adapter \"%s\": %s",
			     job->name, why);
	free(job);
}

void control_export(struct control_call *call)
{
	start(call, run_export, done_export);
}
