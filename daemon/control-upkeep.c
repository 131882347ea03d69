/* SPDX-License-Identifier: MIT */
/*
 * Verbs that go through the whole store: Verify, Compact
 *
 * They run on a thread of low priority of their own, one after the other, so that neither the loop nor Remove, Export and
 * Import wait for them; Verify at a bounded rate, so that page-ins find the disk free. Compact holds up whoever wants to
 * write, so it goes as fast as the disk does. A caller that hangs up cancels its job, which ends before the next chunk.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/clock.h"
#include "daemon/control-call.h"
#include "daemon/sched/listing.h"
#include "daemon/worker.h"

#define RATE_DEFAULT UINT64_C(200000000) /* bytes a second */
#define SLEEP_MOST_NS (50 * NS_PER_MS)   /* between two looks at cancelled */
#define CREDIT_NS (50 * NS_PER_MS)       /* what was not used for longer is gone */

/* Holds bytes to a rate. */
struct pace {
	const struct worker_job *job;
	uint64_t rate, due_ns;
};

static bool pace_go_on(void *userdata, uint64_t bytes)
{
	struct pace *pace = userdata;
	uint64_t now = clock_ns(), left;

	if (pace->due_ns + CREDIT_NS < now)
		pace->due_ns = now - CREDIT_NS;
	while (pace->due_ns > now && !atomic_load(&pace->job->cancelled)) {
		left = pace->due_ns - now;
		if (left > SLEEP_MOST_NS)
			left = SLEEP_MOST_NS;
		(void)nanosleep(&(struct timespec){ .tv_nsec = (long)left }, NULL);
		now = clock_ns();
	}
	pace->due_ns += (uint64_t)((double)bytes / (double)pace->rate * (double)NS_PER_S);
	return !atomic_load(&pace->job->cancelled);
}

static void on_gone(struct control_call *call)
{
	struct worker_job *job = call->work;

	atomic_store(&job->cancelled, true);
}

/* ---- verify ---- */

struct target {
	char name[STORE_NAME_MAX + 1];
	struct store_digest digest;
	bool failed;
	struct diag diag;
};

struct verify_job {
	struct worker_job job;
	struct control_call *call;
	struct store *store;
	struct mailbox *mailbox;
	struct target *target;  /* [n] */
	size_t n;
	struct pace pace;
	struct letter progress; /* one more is checked */
	atomic_size_t n_checked;
};

static void free_job(struct verify_job *job)
{
	free(job->target);
	free(job);
}

static struct verify_job *job_of(struct worker_job *job)
{
	return container_of(job, struct verify_job, job);
}

static void run_verify(struct worker_job *worker_job)
{
	struct verify_job *job = job_of(worker_job);
	const struct store_watch watch = { .go_on = pace_go_on, .userdata = &job->pace };
	int r = 0;

	for (size_t i = 0; i < job->n && r != STORE_E_CANCELLED; ++i) {
		struct target *target = &job->target[i];

		r = store_verify(job->store, &target->digest, &watch, &target->diag);
		/* what was removed or replaced meanwhile is not damaged */
		target->failed = r != 0 && r != STORE_E_NOT_FOUND && r != STORE_E_CANCELLED;
		if (target->failed && !*target->diag.text)
			(void)diag_set(&target->diag, 0, "could not be read");
		atomic_store(&job->n_checked, i + 1);
		mailbox_send(job->mailbox, &job->progress);
	}
}

static void on_progress(struct letter *letter)
{
	struct verify_job *job = container_of(letter, struct verify_job, progress);
	size_t n = atomic_load(&job->n_checked);
	const struct target *last = &job->target[n - 1];

	control_progress(job->call, json_pack("{s:s, s:b, s:f}", "name", last->name, "ok", !last->failed, "fraction",
					      (double)n / (double)job->n));
}

/* The last progress letter is delivered before this one: letters keep their order. */
static void done_verify(struct worker_job *worker_job)
{
	struct verify_job *job = job_of(worker_job);
	json_t *failed = json_array();

	for (size_t i = 0; i < job->n; ++i)
		if (job->target[i].failed)
			json_array_append_new(failed, json_pack("{s:s, s:s}", "name", job->target[i].name, "message",
								job->target[i].diag.text));
	if (atomic_load(&worker_job->cancelled)) {
		json_decref(failed);
		control_fail(job->call, ECANCELED, "the daemon is shutting down");
	} else {
		control_reply(job->call, json_pack("{s:I, s:o}", "checked", (json_int_t)atomic_load(&job->n_checked),
						   "failed", failed));
	}
	free_job(job);
}

/* A job of n targets, belonging to the call from here on; NULL: the call was failed. */
static struct verify_job *new_job(struct control_call *call, size_t n, uint64_t rate)
{
	struct verify_job *job = calloc(1, sizeof(*job));

	if (job)
		job->target = calloc(n ? n : 1, sizeof(*job->target));
	if (!job || !job->target) {
		free(job);
		control_fail(call, ENOMEM, "the daemon ran out of memory");
		return NULL;
	}
	job->call = call;
	job->store = call->parts->store;
	job->mailbox = call->parts->mailbox;
	job->n = n;
	job->pace = (struct pace){ .job = &job->job, .rate = rate };
	job->progress.fn = on_progress;
	job->job.run = run_verify;
	job->job.done = done_verify;
	call->work = &job->job;
	call->gone = on_gone;
	return job;
}

static void verify_all(struct control_call *call, uint64_t rate)
{
	_cleanup_(listing_freep) struct listing *listing = NULL;
	struct verify_job *job;

	if (listing_new(&listing, call->parts->store, call->parts->cache) < 0) {
		control_fail(call, EIO, "the list of adapters could not be read; the daemon's log has the reason");
		return;
	}
	job = new_job(call, listing->n, rate);
	if (!job)
		return;
	for (size_t i = 0; i < listing->n; ++i) {
		memcpy(job->target[i].name, listing->entry[i].name, sizeof(job->target[i].name));
		job->target[i].digest = listing->entry[i].digest;
	}
	worker_submit(call->parts->upkeep, &job->job);
}

static int fill_target(struct store *store, const char *name, struct target *target)
{
	struct store_record record;

	if (!name || strlen(name) > STORE_NAME_MAX)
		return STORE_E_NOT_FOUND;
	(void)strncpy(target->name, name, STORE_NAME_MAX);
	return store_find(store, name, &target->digest, &record);
}

static void verify_named(struct control_call *call, const json_t *names, uint64_t rate)
{
	size_t n = json_array_size(names);
	struct verify_job *job = new_job(call, n, rate);

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
	worker_submit(call->parts->upkeep, &job->job);
}

void control_verify(struct control_call *call)
{
	const json_t *names = json_object_get(call->parameters, "names");
	const json_t *rate = json_object_get(call->parameters, "rate");
	json_int_t number = rate ? json_integer_value(rate) : (json_int_t)RATE_DEFAULT;

	if (number < 1)
		control_fail(call, EINVAL, "rate: must be a number of bytes a second, at least 1");
	else if (json_array_size(names))
		verify_named(call, names, (uint64_t)number);
	else
		verify_all(call, (uint64_t)number);
}

/* ---- compact ---- */

struct compact_job {
	struct worker_job job;
	struct control_call *call;
	struct store *store;
	struct mailbox *mailbox;
	struct store_space before, after;
	int result;
	struct diag diag;
	struct letter progress;
	_Atomic uint64_t copied; /* bytes, of those in use */
};

static bool compact_go_on(void *userdata, uint64_t bytes)
{
	struct compact_job *job = userdata;

	atomic_fetch_add(&job->copied, bytes);
	mailbox_send(job->mailbox, &job->progress);
	return !atomic_load(&job->job.cancelled);
}

static void run_compact(struct worker_job *worker_job)
{
	struct compact_job *job = container_of(worker_job, struct compact_job, job);
	const struct store_watch watch = { .go_on = compact_go_on, .userdata = job };

	job->result = store_compact(job->store, &watch, &job->before, &job->after, &job->diag);
}

/* `before` was set before the first byte was copied. */
static void report_copied(struct letter *letter)
{
	struct compact_job *job = container_of(letter, struct compact_job, progress);
	double used = (double)(job->before.file_bytes - job->before.free_bytes);

	control_progress(job->call, json_pack("{s:f}", "fraction", (double)atomic_load(&job->copied) / used));
}

static void done_compact(struct worker_job *worker_job)
{
	struct compact_job *job = container_of(worker_job, struct compact_job, job);

	if (atomic_load(&worker_job->cancelled))
		control_fail(job->call, ECANCELED, "the daemon is shutting down");
	else if (job->result)
		control_fail(job->call, job->result == STORE_E_FULL ? ENOSPC : EIO, "%s",
			     *job->diag.text ? job->diag.text : "failed; the daemon's log has the reason");
	else
		control_reply(job->call, json_pack("{s:I, s:I, s:I}", "bytes_before", (json_int_t)job->before.file_bytes,
						   "bytes", (json_int_t)job->after.file_bytes, "bytes_free",
						   (json_int_t)job->after.free_bytes));
	free(job);
}

void control_compact(struct control_call *call)
{
	struct compact_job *job = calloc(1, sizeof(*job));

	if (!job) {
		control_fail(call, ENOMEM, "the daemon ran out of memory");
		return;
	}
	job->call = call;
	job->store = call->parts->store;
	job->mailbox = call->parts->mailbox;
	job->progress.fn = report_copied;
	job->job.run = run_compact;
	job->job.done = done_compact;
	call->work = &job->job;
	call->gone = on_gone;
	worker_submit(call->parts->upkeep, &job->job);
}
