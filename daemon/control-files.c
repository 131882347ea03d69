/* SPDX-License-Identifier: MIT */
/*
 * Verbs that wait for the disk: Verify, Export, Remove
 *
 * Each is a job of the worker's thread that carries its call. run() sees only its own copy of what it needs; done(), on
 * the loop's thread again, answers. A caller that hangs up cancels the job, which then ends where it can.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/control-call.h"
#include "daemon/import/export.h"
#include "daemon/sched/listing.h"
#include "daemon/worker.h"

struct target {
	char name[STORE_NAME_MAX + 1];
	struct store_digest digest;
	bool failed;
	struct diag diag;
};

struct files_job {
	struct worker_job job;
	struct control_call *call;
	const struct parts *parts;
	struct target *target;         /* verify: [n]; else one */
	size_t n;
	int result;
	struct diag diag;
	struct export_files files;

	struct letter progress;        /* verify: one more is checked */
	atomic_size_t n_checked;
};

static struct files_job *free_job(struct files_job *job)
{
	free(job->target);
	free(job);
	return NULL;
}

static void on_gone(struct control_call *call)
{
	struct files_job *job = call->work;

	atomic_store(&job->job.cancelled, true);
}

/* A job of n targets, belonging to the call from here on; NULL: the call was failed. */
static struct files_job *new_job(struct control_call *call, size_t n, void (*run)(struct worker_job *),
				 void (*done)(struct worker_job *))
{
	struct files_job *job = calloc(1, sizeof(*job));

	if (job)
		job->target = calloc(n ? n : 1, sizeof(*job->target));
	if (!job || !job->target) {
		free(job);
		control_fail(call, ENOMEM, "the daemon ran out of memory");
		return NULL;
	}
	job->call = call;
	job->parts = call->parts;
	job->n = n;
	job->job.run = run;
	job->job.done = done;
	call->work = job;
	call->gone = on_gone;
	return job;
}

static struct files_job *job_of(struct worker_job *job)
{
	return container_of(job, struct files_job, job);
}

/* Starts a job for the one adapter that the call names. */
static void start_named(struct control_call *call, void (*run)(struct worker_job *), void (*done)(struct worker_job *))
{
	struct store_digest digest;
	const char *name = control_find(call, &digest, NULL);
	struct files_job *job = name ? new_job(call, 1, run, done) : NULL;

	if (!job)
		return;
	(void)strncpy(job->target->name, name, STORE_NAME_MAX);
	job->target->digest = digest;
	worker_submit(call->parts->worker, &job->job);
}

/* ---- remove ---- */

static void run_remove(struct worker_job *worker_job)
{
	struct files_job *job = job_of(worker_job);

	job->result = store_remove(job->parts->store, job->target->name);
}

/* A pin goes with the name: without one nobody could drop it. Its memory is free for others. */
static void done_remove(struct worker_job *worker_job)
{
	struct files_job *job = job_of(worker_job);

	if (!job->result)
		cache_forget(job->parts->cache, &job->target->digest);
	if (atomic_load(&worker_job->cancelled))
		control_fail(job->call, ECANCELED, "the daemon is shutting down");
	else if (!job->result)
		control_reply(job->call, json_pack("{s:s}", "name", job->target->name));
	else if (job->result == STORE_E_NOT_FOUND)
		control_fail(job->call, ENOENT, "adapter \"%s\": there is none of this name", job->target->name);
	else
		control_fail(job->call, EIO, "adapter \"%s\": could not be removed; the daemon's log has the reason",
			     job->target->name);
	free_job(job);
}

void control_remove(struct control_call *call)
{
	start_named(call, run_remove, done_remove);
}

/* ---- export ---- */

static void run_export(struct worker_job *worker_job)
{
	struct files_job *job = job_of(worker_job);

	job->result = export_version(job->parts->store, &job->target->digest, &job->files, &job->diag);
}

static void reply_export(struct files_job *job)
{
	const int fds[] = { job->files.config_fd, job->files.weights_fd };

	control_reply_files(job->call,
			    json_pack("{s:s, s:[s, s]}", "name", job->target->name, "files", "adapter_config.json",
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
			     job->target->name, why);
	free_job(job);
}

void control_export(struct control_call *call)
{
	start_named(call, run_export, done_export);
}

/* ---- verify ---- */

static void run_verify(struct worker_job *worker_job)
{
	struct files_job *job = job_of(worker_job);

	for (size_t i = 0; i < job->n && !atomic_load(&worker_job->cancelled); ++i) {
		struct target *target = &job->target[i];
		int r = store_verify(job->parts->store, &target->digest, &target->diag);

		target->failed = r != 0;
		if (r && !*target->diag.text)
			(void)diag_set(&target->diag, 0, "%s",
				       r == STORE_E_NOT_FOUND ? "was removed" : "could not be read");
		atomic_store(&job->n_checked, i + 1);
		mailbox_send(job->parts->mailbox, &job->progress);
	}
}

static void on_progress(struct letter *letter)
{
	struct files_job *job = container_of(letter, struct files_job, progress);
	size_t n = atomic_load(&job->n_checked);
	const struct target *last = &job->target[n - 1];

	control_progress(job->call, json_pack("{s:s, s:b, s:f}", "name", last->name, "ok", !last->failed, "fraction",
					      (double)n / (double)job->n));
}

/* The last progress letter is delivered before this one: letters keep their order. */
static void done_verify(struct worker_job *worker_job)
{
	struct files_job *job = job_of(worker_job);
	json_t *failed = json_array();

	for (size_t i = 0; i < job->n; ++i)
		if (job->target[i].failed)
			json_array_append_new(failed, json_pack("{s:s, s:s}", "name", job->target[i].name, "message",
								job->target[i].diag.text));
	control_reply(job->call, json_pack("{s:I, s:o}", "checked", (json_int_t)atomic_load(&job->n_checked), "failed",
					   failed));
	free_job(job);
}

static void start_verify(struct files_job *job)
{
	job->progress.fn = on_progress;
	worker_submit(job->parts->worker, &job->job);
}

static void verify_all(struct control_call *call)
{
	_cleanup_(listing_freep) struct listing *listing = NULL;
	struct files_job *job;

	if (listing_new(&listing, call->parts->store, call->parts->cache) < 0) {
		control_fail(call, EIO, "the list of adapters could not be read; the daemon's log has the reason");
		return;
	}
	job = new_job(call, listing->n, run_verify, done_verify);
	if (!job)
		return;
	for (size_t i = 0; i < listing->n; ++i) {
		memcpy(job->target[i].name, listing->entry[i].name, sizeof(job->target[i].name));
		job->target[i].digest = listing->entry[i].digest;
	}
	start_verify(job);
}

static int fill_target(struct store *store, const char *name, struct target *target)
{
	struct store_record record;

	if (!name || strlen(name) > STORE_NAME_MAX)
		return STORE_E_NOT_FOUND;
	(void)strncpy(target->name, name, STORE_NAME_MAX);
	return store_find(store, name, &target->digest, &record);
}

void control_verify(struct control_call *call)
{
	const json_t *names = json_object_get(call->parameters, "names");
	size_t n = json_array_size(names);
	struct files_job *job;

	if (!n) {
		verify_all(call);
		return;
	}
	job = new_job(call, n, run_verify, done_verify);
	if (!job)
		return;
	for (size_t i = 0; i < n; ++i) {
		const char *name = json_string_value(json_array_get(names, i));

		if (fill_target(call->parts->store, name, &job->target[i])) {
			free_job(job);
			control_fail(call, ENOENT, "adapter \"%s\": there is none of this name", name ? name : "");
			return;
		}
	}
	start_verify(job);
}
