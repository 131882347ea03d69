/* SPDX-License-Identifier: MIT */
/*
 * The importer
 *
 * One thread of low priority works imports off: read and convert (convert.c), put into the store, read back and check
 * every byte. No transaction of the store is open while a stranger's bytes are read. If what was written reads back wrong,
 * the name is given back to what it had before.
 *
 * As long as more are queued, what was converted is kept and put together with what follows, up to a number and a size: a
 * commit costs two waits for the disk, however much it writes. Nobody hears of an import before its commit. In one batch no
 * name comes twice, so that what a name led to before is known.
 *
 * A job belongs to its submitter, who gets it back, once, through done() on the importer's thread, with one of the
 * outcomes. A cancelled import ends before anything is written, or not at all: putting is not interrupted.
 */
#include "daemon/import/import.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/resource.h>

#include "daemon/import/convert.h"

#define NICE 10
#define BATCH_MOST 64u

const char *const import_outcome_names[_IMPORT_OUTCOME_N] = {
	[IMPORT_IMPORTED] = "imported", [IMPORT_REPLACED] = "replaced",   [IMPORT_UNCHANGED] = "unchanged",
	[IMPORT_REFUSED] = "refused",   [IMPORT_CANCELLED] = "cancelled", [IMPORT_FAILED] = "failed",
};

/* What the name led to before; held, so that it can get its name back. */
struct before {
	struct store *store;
	bool there;
	struct store_record record;
};

/* An import that is converted and not put yet. */
struct ready {
	struct import_job *job;
	struct converted converted;
	struct before before;
};

struct importer {
	struct store *store;
	struct image_geometry geometry;
	bool pack;
	pthread_t thread;
	bool started;
	pthread_mutex_t lock; /* the rest */
	pthread_cond_t more;
	struct list queue;    /* of jobs */
	struct import_job *running; /* being converted */
	bool stopping;

	struct ready ready[BATCH_MOST]; /* the importer's thread's own */
	size_t n_ready;
	uint64_t ready_bytes;
};

static void before_deinit(struct before *before)
{
	if (before->there)
		store_release(before->store, &before->record.digest);
}

static int before_init(struct before *before, struct store *store, const char *name)
{
	struct store_digest digest;
	int r;

	before->store = store;
	r = store_find(store, name, &digest, NULL);
	if (!r)
		r = store_hold(store, &digest, &before->record);
	before->there = !r;
	return r == STORE_E_NOT_FOUND ? 0 : error_trace(r);
}

/* The new version cannot be read: away with it. A version that is there gets a name without its bytes being needed. */
static void roll_back(struct importer *importer, const struct import_job *job, const struct before *before)
{
	struct store_record record = before->record;
	int r;

	record.config_bytes = 0;
	record.packed_bytes = 0;
	if (before->there)
		r = store_put(importer->store, job->name, /* replace= */ true, &record, "", NULL, NULL);
	else
		r = store_remove(importer->store, job->name);
	if (r)
		(void)error_trace(r);
}

static void set_failure(struct import_job *job, int r)
{
	job->outcome = IMPORT_FAILED;
	if (!job->diag.text[0])
		(void)diag_set(&job->diag, 0, "%s", r < 0 ? strerror(-r) : "the store is damaged");
}

static void finish(struct import_job *job)
{
	close_cleanup(&job->config_fd);
	close_cleanup(&job->weights_fd);
	job->config_fd = job->weights_fd = -1;
	job->done(job);
}

/* Judges what the store said, and what it reads back. */
static void check(struct importer *importer, struct ready *ready, int result)
{
	struct import_job *job = ready->job;
	int r;

	switch (result) {
	case 0:
		break;
	case STORE_E_SAME:
		job->outcome = IMPORT_UNCHANGED;
		return;
	case STORE_E_EXISTS:
		job->outcome = IMPORT_REFUSED;
		return;
	default:
		set_failure(job, result);
		return;
	}
	job->outcome = ready->before.there ? IMPORT_REPLACED : IMPORT_IMPORTED;
	r = store_verify(importer->store, &job->record.digest, NULL, &job->diag);
	if (r) {
		set_failure(job, r);
		(void)diag_prefix(&job->diag, 0, "what was written reads back wrong");
		roll_back(importer, job, &ready->before);
	}
}

/* Puts all that is converted, tells everybody. */
static void flush(struct importer *importer)
{
	struct store_item items[BATCH_MOST];
	size_t n = importer->n_ready;
	int r;

	for (size_t i = 0; i < n; ++i) {
		struct ready *ready = &importer->ready[i];

		items[i] = (struct store_item){ .name = ready->job->name, .replace = ready->job->replace,
						.record = &ready->job->record, .config = ready->converted.config,
						.payload = ready->converted.payload,
						.packed = ready->converted.packed, .diag = &ready->job->diag };
	}
	r = n ? store_put_many(importer->store, items, n) : 0;
	for (size_t i = 0; i < n; ++i) {
		struct ready *ready = &importer->ready[i];
		struct import_job *job = ready->job;

		check(importer, ready, r ? r : items[i].result);
		before_deinit(&ready->before);
		converted_deinit(&ready->converted);
		finish(job);
	}
	importer->n_ready = 0;
	importer->ready_bytes = 0;
}

static uint64_t bytes_of(const struct import_job *job)
{
	return job->record.payload_bytes + job->record.packed_bytes;
}

static bool fits(const struct importer *importer, const struct import_job *job)
{
	if (importer->n_ready == BATCH_MOST || importer->ready_bytes + bytes_of(job) > STORE_TOGETHER_BYTES)
		return false;
	for (size_t i = 0; i < importer->n_ready; ++i)
		if (strcmp(importer->ready[i].job->name, job->name) == 0)
			return false;
	return true;
}

/* Takes over what was converted. Content that the name has already is not put at all. */
static void make_ready(struct importer *importer, struct import_job *job, struct converted *converted)
{
	struct ready *ready;
	int r;

	if (!fits(importer, job))
		flush(importer);
	ready = &importer->ready[importer->n_ready];
	*ready = (struct ready){ .job = job };
	r = before_init(&ready->before, importer->store, job->name);
	if (r || (ready->before.there && memcmp(&ready->before.record.digest, &job->record.digest,
						sizeof(job->record.digest)) == 0)) {
		job->outcome = IMPORT_UNCHANGED;
		if (r)
			set_failure(job, r);
		before_deinit(&ready->before);
		converted_deinit(converted);
		finish(job);
		return;
	}
	ready->converted = *converted;
	importer->ready_bytes += bytes_of(job);
	++importer->n_ready;
}

static void report_progress(void *userdata, uint64_t bytes, uint64_t total)
{
	struct import_job *job = userdata;

	if (job->progress)
		job->progress(job, bytes, total);
}

static void run(struct importer *importer, struct import_job *job)
{
	const struct convert_source source = {
		.config_fd = job->config_fd,
		.weights_fd = job->weights_fd,
		.pack = importer->pack,
		.cancelled = &job->cancelled,
		.progress = report_progress,
		.userdata = job,
	};
	struct converted converted;
	int r;

	r = convert(&converted, &source, &importer->geometry, &job->diag);
	pthread_mutex_lock(&importer->lock);
	importer->running = NULL; /* the job may be its submitter's again below */
	pthread_mutex_unlock(&importer->lock);
	if (!r) {
		job->record = converted.record;
		if (!atomic_load(&job->cancelled)) {
			make_ready(importer, job, &converted);
			return;
		}
		converted_deinit(&converted);
		r = CONVERT_E_CANCELLED;
	}
	switch (r) {
	case CONVERT_E_REFUSED:
		job->outcome = IMPORT_REFUSED;
		break;
	case CONVERT_E_CANCELLED:
		job->outcome = IMPORT_CANCELLED;
		(void)diag_set(&job->diag, 0, "cancelled");
		break;
	default:
		set_failure(job, r);
	}
	finish(job);
}

/* The next job; NULL: there is none now and something is ready, or the importer is to end and the queue is empty. */
static struct import_job *next_job(struct importer *importer)
{
	struct import_job *job;

	pthread_mutex_lock(&importer->lock);
	while (list_empty(&importer->queue) && !importer->stopping && !importer->n_ready)
		pthread_cond_wait(&importer->more, &importer->lock);
	job = list_first(&importer->queue, struct import_job, link);
	if (job) {
		list_unlink(&job->link);
		importer->running = job;
		if (importer->stopping)
			atomic_store(&job->cancelled, true);
	}
	pthread_mutex_unlock(&importer->lock);
	return job;
}

static void *importer_main(void *userdata)
{
	struct importer *importer = userdata;
	struct import_job *job;

	(void)setpriority(PRIO_PROCESS, (id_t)gettid(), NICE); /* of this thread only */
	while ((job = next_job(importer)) || importer->n_ready) {
		if (job)
			run(importer, job);
		else
			flush(importer);
	}
	return NULL;
}

/**
 * importer_new() - start an importer
 * @store:      outlives it
 * @geometry:   of the running model
 * @pack:       make packed images, too
 */
int importer_new(struct importer **ret, struct store *store, const struct image_geometry *geometry, bool pack)
{
	_cleanup_(importer_freep) struct importer *importer = calloc(1, sizeof(*importer));
	int r;

	if (!importer)
		return error_origin(-ENOMEM);
	importer->store = store;
	importer->geometry = *geometry;
	importer->pack = pack;
	list_init(&importer->queue);
	pthread_mutex_init(&importer->lock, NULL);
	pthread_cond_init(&importer->more, NULL);
	r = pthread_create(&importer->thread, NULL, importer_main, importer);
	if (r)
		return error_origin(-r);
	importer->started = true;
	(void)pthread_setname_np(importer->thread, "lorad-import");
	*ret = TAKE_PTR(importer);
	return 0;
}

/** importer_free() - cancel all jobs, give them back, stop the thread */
struct importer *importer_free(struct importer *importer)
{
	if (!importer)
		return NULL;
	if (importer->started) {
		pthread_mutex_lock(&importer->lock);
		importer->stopping = true;
		if (importer->running)
			atomic_store(&importer->running->cancelled, true);
		pthread_cond_signal(&importer->more);
		pthread_mutex_unlock(&importer->lock);
		pthread_join(importer->thread, NULL);
	}
	assert(list_empty(&importer->queue));
	pthread_cond_destroy(&importer->more);
	pthread_mutex_destroy(&importer->lock);
	free(importer);
	return NULL;
}

/**
 * importer_submit() - queue an import
 * @job:        name (valid), replace, both descriptors and done are set; the importer's until done() was called
 */
void importer_submit(struct importer *importer, struct import_job *job)
{
	assert(store_name_valid(job->name) && job->done);
	job->diag.text[0] = '\0';
	job->link = (struct list){};
	pthread_mutex_lock(&importer->lock);
	list_append(&importer->queue, &job->link);
	pthread_cond_signal(&importer->more);
	pthread_mutex_unlock(&importer->lock);
}
