/* SPDX-License-Identifier: MIT */
/* The event loop: epoll, timers, posts from other threads. See loop.c. */
#ifndef LORAD_OS_LOOP_H
#define LORAD_OS_LOOP_H

#include <stdint.h>

struct loop;

/* A watched file descriptor; embedded in its owner. The fd itself stays the owner's. */
struct loop_source {
	int fd;
	void (*fn)(struct loop_source *source, uint32_t events); /* EPOLL* bits */
	struct loop *loop; /* NULL: not watched */
};

#define LOOP_SOURCE_NULL { .fd = -1 }

struct loop_timer {
	int fd; /* a timerfd */
	void (*fn)(struct loop_timer *timer);
	struct loop_source source;
};

#define LOOP_TIMER_NULL { .fd = -1, .source = LOOP_SOURCE_NULL }

int loop_new(struct loop **ret);
struct loop *loop_free(struct loop *loop);
int loop_run(struct loop *loop);               /* until loop_stop() */
void loop_stop(struct loop *loop);              /* from any thread */

int loop_add(struct loop *loop, struct loop_source *source, int fd, uint32_t events,
	     void (*fn)(struct loop_source *source, uint32_t events));
int loop_modify(struct loop_source *source, uint32_t events);
void loop_remove(struct loop_source *source);  /* safe inside its own fn; a source that was never added is left alone */

int loop_timer_init(struct loop *loop, struct loop_timer *timer, void (*fn)(struct loop_timer *timer));
void loop_timer_deinit(struct loop_timer *timer);
int loop_timer_set(struct loop_timer *timer, uint64_t after_ns, uint64_t every_ns); /* 0, 0: off */

/* Called once per turn, after the events: returns how many ns the loop may sleep at most (0: poll again at once). */
void loop_set_idle(struct loop *loop, uint64_t (*fn)(void *userdata), void *userdata);

/* From any thread: run fn(userdata) on the loop's thread. Never fails once the loop exists but for memory. */
int loop_post(struct loop *loop, void (*fn)(void *userdata), void *userdata);

#endif
