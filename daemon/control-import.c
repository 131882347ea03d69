/* SPDX-License-Identifier: MIT */
/*
 * The verb Import
 *
 * The files come as open descriptors in the order of "files", so the daemon reads with the caller's rights and never sees
 * a path. They go to the importer's thread with the call; what comes back is one outcome.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/clock.h"
#include "daemon/cache/cache.h"
#include "daemon/control-call.h"
#include "daemon/import/import.h"
#include "daemon/mailbox.h"

#define REPORT_EVERY_NS (50 * NS_PER_MS)

static const char *const file_names[] = { "adapter_config.json", "adapter_model.safetensors" };

struct import_call {
	struct import_job job;
	struct control_call *call;
	struct mailbox *mailbox;
	struct letter done, progress;
	_Atomic double fraction;
	uint64_t next_ns;             /* the importer's: no report before */
	struct store_digest before;   /* what the name pointed to, if has_before */
	bool has_before;
};

/* ---- on the importer's thread ---- */

static void on_import_progress(struct import_job *job, uint64_t bytes, uint64_t total)
{
	struct import_call *import = container_of(job, struct import_call, job);
	uint64_t now = clock_ns();

	if (now < import->next_ns)
		return;
	import->next_ns = now + REPORT_EVERY_NS;
	atomic_store(&import->fraction, total ? (double)bytes / (double)total : 0.0);
	mailbox_send(import->mailbox, &import->progress);
}

static void on_import_done(struct import_job *job)
{
	struct import_call *import = container_of(job, struct import_call, job);

	mailbox_send(import->mailbox, &import->done);
}

/* ---- on the loop's thread ---- */

static void on_gone(struct control_call *call)
{
	struct import_call *import = call->work;

	atomic_store(&import->job.cancelled, true);
}

static void deliver_progress(struct letter *letter)
{
	struct import_call *import = container_of(letter, struct import_call, progress);

	control_progress(import->call, json_pack("{s:f, s:s}", "fraction", atomic_load(&import->fraction), "stage",
						 "import"));
}

/*
 * What the name had before leaves memory as if it had been removed; under another name of its own it is read again when it is
 * asked for. A pin belongs to the name: it moves on to the content that replaced the pinned one.
 */
static void forget_before(const struct import_call *import)
{
	struct cache *cache = import->call->parts->cache;
	bool pinned;

	if (!import->has_before)
		return;
	pinned = cache_is_pinned(cache, &import->before);
	cache_forget(cache, &import->before);
	if (pinned)
		(void)cache_pin(cache, &import->job.record.digest, true);
}

static void reply(struct control_call *call, const struct import_job *job)
{
	char hex[65];

	store_digest_hex(&job->record.digest, hex);
	control_reply(call, json_pack("{s:s, s:s, s:s, s:s, s:I}", "result", import_outcome_names[job->outcome], "name",
				      job->name, "digest", hex, "kind", image_kind_name(job->record.kind), "bytes",
				      (json_int_t)job->record.payload_bytes));
}

static void deliver_done(struct letter *letter)
{
	struct import_call *import = container_of(letter, struct import_call, done);
	const struct import_job *job = &import->job;
	const char *why = *job->diag.text ? job->diag.text : "failed; the daemon's log has the reason";

	switch (job->outcome) {
	case IMPORT_REPLACED:
		forget_before(import);
		reply(import->call, job);
		break;
	case IMPORT_IMPORTED:
	case IMPORT_UNCHANGED:
		reply(import->call, job);
		break;
	case IMPORT_REFUSED:
		control_fail(import->call, EINVAL, "%s", why);
		break;
	case IMPORT_CANCELLED:
		control_fail(import->call, ECANCELED, "the import was cancelled");
		break;
	case IMPORT_FAILED:
	case _IMPORT_OUTCOME_N:
		control_fail(import->call, EIO, "%s", why);
		break;
	}
	free(import);
}

/* Are these the files an import needs, and did they come along? */
static bool has_files(const struct control_call *call)
{
	const json_t *files = json_object_get(call->parameters, "files");
	const size_t n = sizeof(file_names) / sizeof(*file_names);

	if (json_array_size(files) != n || call->n_fds != n)
		return false;
	for (size_t i = 0; i < n; ++i) {
		const char *name = json_string_value(json_array_get(files, i));

		if (!name || strcmp(name, file_names[i]) != 0)
			return false;
	}
	return true;
}

void control_import(struct control_call *call)
{
	const char *name = control_text(call, "name");
	struct store_record record;
	struct import_call *import;

	if (!name)
		return;
	if (!store_name_valid(name)) {
		control_fail(call, EINVAL, "name \"%s\": a name is a letter or digit, then up to 127 of A-Z a-z 0-9 . _ -",
			     name);
		return;
	}
	if (!has_files(call)) {
		control_fail(call, EINVAL, "files: must be %s and %s, with their descriptors", file_names[0],
			     file_names[1]);
		return;
	}
	import = calloc(1, sizeof(*import));
	if (!import) {
		control_fail(call, ENOMEM, "the daemon ran out of memory");
		return;
	}
	import->call = call;
	import->mailbox = call->parts->mailbox;
	import->done.fn = deliver_done;
	import->progress.fn = deliver_progress;
	(void)strncpy(import->job.name, name, STORE_NAME_MAX);
	import->job.replace = json_is_true(json_object_get(call->parameters, "replace"));
	import->job.config_fd = TAKE_FD(call->fd[0]);
	import->job.weights_fd = TAKE_FD(call->fd[1]);
	import->has_before = store_find(call->parts->store, name, &import->before, &record) == 0;
	import->job.progress = on_import_progress;
	import->job.done = on_import_done;
	call->work = import;
	call->gone = on_gone;
	importer_submit(call->parts->importer, &import->job);
}
