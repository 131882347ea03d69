/* SPDX-License-Identifier: MIT */
/*
 * Worker
 *
 * Verifying and exporting read whole adapters from the disk, removing one waits for a write transaction and a sync: none
 * of it may hold up the loop that all clients hang on. A worker's one thread does these jobs in order, each of which
 * ends with a letter to the loop. There are two: one for what a caller waits for, one of low priority for what takes
 * minutes.
 */
#include "daemon/worker.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "daemon/base/error.h"

#define NICE_LOW 19

struct worker {
	struct mailbox *mailbox;
	enum worker_kind kind;
	pthread_t thread;
	bool has_thread;
	pthread_mutex_t lock; /* of what follows */
	pthread_cond_t news;
	struct list jobs;
	struct worker_job *running;
	bool quit;
};

static void on_letter(struct letter *letter)
{
	struct worker_job *job = container_of(letter, struct worker_job, letter);

	job->done(job);
}

/* The next job, or NULL at the end. After quit all jobs come out cancelled. */
static struct worker_job *next_job(struct worker *worker)
{
	struct worker_job *job;

	pthread_mutex_lock(&worker->lock);
	while (list_empty(&worker->jobs) && !worker->quit)
		pthread_cond_wait(&worker->news, &worker->lock);
	job = list_first(&worker->jobs, struct worker_job, link);
	if (job)
		list_unlink(&job->link);
	if (job && worker->quit)
		atomic_store(&job->cancelled, true);
	worker->running = job;
	pthread_mutex_unlock(&worker->lock);
	return job;
}

static void *worker_thread(void *userdata)
{
	struct worker *worker = userdata;
	struct worker_job *job;

	if (worker->kind == WORKER_SLOW)
		(void)setpriority(PRIO_PROCESS, (id_t)gettid(), NICE_LOW); /* of this thread only */
	while ((job = next_job(worker))) {
		if (!atomic_load(&job->cancelled))
			job->run(job);
		pthread_mutex_lock(&worker->lock);
		worker->running = NULL; /* once the letter is out, the job may be gone */
		pthread_mutex_unlock(&worker->lock);
		mailbox_send(worker->mailbox, &job->letter);
	}
	return NULL;
}

int worker_new(struct worker **ret, struct mailbox *mailbox, enum worker_kind kind)
{
	_cleanup_(worker_freep) struct worker *worker = calloc(1, sizeof(*worker));
	sigset_t all, before;
	int r;

	if (!worker)
		return error_origin(-ENOMEM);
	worker->mailbox = mailbox;
	worker->kind = kind;
	list_init(&worker->jobs);
	pthread_mutex_init(&worker->lock, NULL);
	pthread_cond_init(&worker->news, NULL);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	r = pthread_create(&worker->thread, NULL, worker_thread, worker);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (r)
		return error_origin(-r);
	worker->has_thread = true;
	(void)pthread_setname_np(worker->thread, kind == WORKER_SLOW ? "lorad-upkeep" : "lorad-worker");
	*ret = TAKE_PTR(worker);
	return 0;
}

struct worker *worker_free(struct worker *worker)
{
	if (!worker)
		return NULL;
	pthread_mutex_lock(&worker->lock);
	worker->quit = true;
	if (worker->running)
		atomic_store(&worker->running->cancelled, true);
	pthread_cond_signal(&worker->news);
	pthread_mutex_unlock(&worker->lock);
	if (worker->has_thread)
		pthread_join(worker->thread, NULL);
	pthread_cond_destroy(&worker->news);
	pthread_mutex_destroy(&worker->lock);
	free(worker);
	return NULL;
}

void worker_submit(struct worker *worker, struct worker_job *job)
{
	job->letter.fn = on_letter;
	pthread_mutex_lock(&worker->lock);
	list_append(&worker->jobs, &job->link);
	pthread_cond_signal(&worker->news);
	pthread_mutex_unlock(&worker->lock);
}
