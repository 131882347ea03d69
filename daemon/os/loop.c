/* SPDX-License-Identifier: MIT */
/*
 * The event loop: one thread, one epoll instance.
 *
 * A turn is: wait for events, call the function of each, then the idle hook, which says how long the next wait may be. The
 * hook is where a module that is woken through memory rather than a descriptor looks at its memory, and where it may stay
 * awake for a while.
 *
 * A batch of events is fetched at once, so a function may remove, or free, a source whose event is still in the batch:
 * loop_remove() strikes it out there. Everything here belongs to the loop's thread, except loop_post() and loop_stop(),
 * which go through a mutex, an atomic flag and the loop's own eventfd.
 */
#include "daemon/os/loop.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "daemon/base/cleanup.h"
#include "daemon/base/clock.h"
#include "daemon/base/error.h"
#include "daemon/base/list.h"

#define BATCH 64

struct post {
	struct post *next;
	void (*fn)(void *userdata);
	void *userdata;
};

struct loop {
	int epoll, kick; /* kick: an eventfd, written when there is a post or the loop shall stop */
	struct loop_source kick_source;
	struct epoll_event batch[BATCH];
	int n_batch, at;
	uint64_t (*idle)(void *userdata);
	void *idle_userdata;
	atomic_bool stopped;
	pthread_mutex_t lock; /* guards the posts */
	struct post *posts, **posts_end;
};

DEFINE_CLEANUP(struct loop *, loop_free)

static void kick(struct loop *loop)
{
	const uint64_t one = 1;
	ssize_t n = write(loop->kick, &one, sizeof(one));

	(void)n; /* nonblocking and ours alone: it fails only if 2^64 kicks are pending, and then it is readable */
}

/* Runs what was posted until now; what these post in turn waits for the next turn. */
static void run_posts(struct loop *loop)
{
	struct post *post, *next;

	pthread_mutex_lock(&loop->lock);
	post = loop->posts;
	loop->posts = NULL;
	loop->posts_end = &loop->posts;
	pthread_mutex_unlock(&loop->lock);
	for (; post; post = next) {
		next = post->next;
		post->fn(post->userdata);
		free(post);
	}
}

static void on_kick(struct loop_source *source, uint32_t events)
{
	uint64_t n;
	ssize_t r = read(source->fd, &n, sizeof(n));

	(void)events;
	(void)r;
	run_posts(source->loop);
}

/**
 * loop_new() - make a loop
 * @ret: the loop; it belongs to the thread that runs it
 */
int loop_new(struct loop **ret)
{
	_cleanup_(loop_freep) struct loop *loop = calloc(1, sizeof(*loop));
	int r;

	if (!loop)
		return error_origin(-ENOMEM);
	pthread_mutex_init(&loop->lock, NULL);
	loop->posts_end = &loop->posts;
	loop->kick = -1;
	loop->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (loop->epoll < 0)
		return error_origin(-errno);
	loop->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (loop->kick < 0)
		return error_origin(-errno);
	r = loop_add(loop, &loop->kick_source, loop->kick, EPOLLIN, on_kick);
	if (r < 0)
		return error_trace(r);
	*ret = TAKE_PTR(loop);
	return 0;
}

/**
 * loop_free() - end a loop that does not run
 * @loop: or NULL. Its sources are the owners' to forget; posts that never ran are dropped.
 */
struct loop *loop_free(struct loop *loop)
{
	struct post *next;

	if (!loop)
		return NULL;
	for (struct post *post = loop->posts; post; post = next) {
		next = post->next;
		free(post);
	}
	if (loop->kick >= 0)
		close(loop->kick);
	if (loop->epoll >= 0)
		close(loop->epoll);
	pthread_mutex_destroy(&loop->lock);
	free(loop);
	return NULL;
}

static int wait_for_events(struct loop *loop, uint64_t ns)
{
	const struct timespec limit = { (time_t)(ns / NS_PER_S), (long)(ns % NS_PER_S) };
	int n = epoll_pwait2(loop->epoll, loop->batch, BATCH, ns == UINT64_MAX ? NULL : &limit, NULL);

	if (n < 0 && errno != EINTR)
		return error_origin(-errno);
	loop->n_batch = n < 0 ? 0 : n;
	return 0;
}

static void dispatch_batch(struct loop *loop)
{
	for (loop->at = 0; loop->at < loop->n_batch; ++loop->at) {
		struct loop_source *source = loop->batch[loop->at].data.ptr;

		if (source)
			source->fn(source, loop->batch[loop->at].events);
	}
	loop->n_batch = 0;
}

/**
 * loop_run() - call the sources' functions until loop_stop()
 * @loop: the loop; may be run again afterwards
 *
 * Return: 0 once stopped, or a negative errno.
 */
int loop_run(struct loop *loop)
{
	uint64_t ns = 0;
	int r;

	while (!atomic_load(&loop->stopped)) {
		r = wait_for_events(loop, ns);
		if (r < 0)
			return error_trace(r);
		dispatch_batch(loop);
		ns = loop->idle ? loop->idle(loop->idle_userdata) : UINT64_MAX;
	}
	atomic_store(&loop->stopped, false);
	return 0;
}

/** loop_stop() - make loop_run() return after the turn in hand; from any thread */
void loop_stop(struct loop *loop)
{
	atomic_store(&loop->stopped, true);
	kick(loop);
}

/**
 * loop_add() - watch a descriptor
 * @loop:   the loop
 * @source: in its owner, who removes it before closing the descriptor
 * @fd:     the descriptor; stays the owner's
 * @events: EPOLL* bits
 * @fn:     called with the bits that came true; may add and remove any source
 */
int loop_add(struct loop *loop, struct loop_source *source, int fd, uint32_t events,
	     void (*fn)(struct loop_source *source, uint32_t events))
{
	struct epoll_event event = { .events = events, .data.ptr = source };

	assert(fd >= 0 && fn);
	if (epoll_ctl(loop->epoll, EPOLL_CTL_ADD, fd, &event) < 0)
		return error_origin(-errno);
	source->fd = fd;
	source->fn = fn;
	source->loop = loop;
	return 0;
}

/** loop_modify() - watch for other events; 0: only errors and hang-up */
int loop_modify(struct loop_source *source, uint32_t events)
{
	struct epoll_event event = { .events = events, .data.ptr = source };

	assert(source->loop);
	if (epoll_ctl(source->loop->epoll, EPOLL_CTL_MOD, source->fd, &event) < 0)
		return error_origin(-errno);
	return 0;
}

/** loop_remove() - stop watching; its function is not called again, not even for an event that was fetched already */
void loop_remove(struct loop_source *source)
{
	struct loop *loop = source->loop;

	if (!loop)
		return;
	(void)epoll_ctl(loop->epoll, EPOLL_CTL_DEL, source->fd, NULL);
	for (int i = 0; i < loop->n_batch; ++i)
		if (loop->batch[i].data.ptr == source)
			loop->batch[i].data.ptr = NULL;
	source->loop = NULL;
}

static void on_timer(struct loop_source *source, uint32_t events)
{
	struct loop_timer *timer = container_of(source, struct loop_timer, source);
	uint64_t n;

	(void)events;
	if (read(timer->fd, &n, sizeof(n)) == sizeof(n)) /* else it was set anew since */
		timer->fn(timer);
}

/** loop_timer_init() - make a timer that is off; a failed one needs no loop_timer_deinit() */
int loop_timer_init(struct loop *loop, struct loop_timer *timer, void (*fn)(struct loop_timer *timer))
{
	_cleanup_close_ int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	int r;

	*timer = (struct loop_timer)LOOP_TIMER_NULL;
	if (fd < 0)
		return error_origin(-errno);
	r = loop_add(loop, &timer->source, fd, EPOLLIN, on_timer);
	if (r < 0)
		return error_trace(r);
	timer->fd = TAKE_FD(fd);
	timer->fn = fn;
	return 0;
}

/** loop_timer_deinit() - end a timer, also inside its own function or if it never began */
void loop_timer_deinit(struct loop_timer *timer)
{
	if (timer->fd < 0)
		return;
	loop_remove(&timer->source);
	close(timer->fd);
	*timer = (struct loop_timer)LOOP_TIMER_NULL;
}

/**
 * loop_timer_set() - let a timer go off
 * @timer:    the timer
 * @after_ns: from now; 0: after every_ns
 * @every_ns: and then again and again; 0: once. Both 0: off.
 */
int loop_timer_set(struct loop_timer *timer, uint64_t after_ns, uint64_t every_ns)
{
	uint64_t first = after_ns ? after_ns : every_ns;
	const struct itimerspec when = {
		.it_value = { (time_t)(first / NS_PER_S), (long)(first % NS_PER_S) },
		.it_interval = { (time_t)(every_ns / NS_PER_S), (long)(every_ns % NS_PER_S) },
	};

	if (timerfd_settime(timer->fd, 0, &when, NULL) < 0)
		return error_origin(-errno);
	return 0;
}

/** loop_set_idle() - the hook at the end of each turn: fn returns how many ns the loop may sleep, UINT64_MAX: no limit */
void loop_set_idle(struct loop *loop, uint64_t (*fn)(void *userdata), void *userdata)
{
	loop->idle = fn;
	loop->idle_userdata = userdata;
}

/** loop_post() - run fn(userdata) on the loop's thread, in the order of the posts; from any thread. -ENOMEM or 0. */
int loop_post(struct loop *loop, void (*fn)(void *userdata), void *userdata)
{
	struct post *post = malloc(sizeof(*post));
	bool first;

	if (!post)
		return error_origin(-ENOMEM);
	*post = (struct post){ NULL, fn, userdata };
	pthread_mutex_lock(&loop->lock);
	first = !loop->posts;
	*loop->posts_end = post;
	loop->posts_end = &post->next;
	pthread_mutex_unlock(&loop->lock);
	if (first)
		kick(loop);
	return 0;
}
