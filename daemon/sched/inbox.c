/* SPDX-License-Identifier: MIT */
/*
 * Inbox
 *
 * The one way from other threads to the engine: messages in order, under one lock that is held for list operations only.
 * The engine takes all of them at once, between two steps; with nothing to do it sleeps here.
 */
#include "daemon/sched/inbox.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "daemon/base/clock.h"
#include "daemon/base/error.h"

int inbox_init(struct inbox *inbox)
{
	pthread_condattr_t attr;
	int r;

	list_init(&inbox->messages);
	inbox->woken = false;
	r = pthread_mutex_init(&inbox->lock, NULL);
	if (r)
		return error_origin(-r);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	r = pthread_cond_init(&inbox->news, &attr);
	pthread_condattr_destroy(&attr);
	return error_origin(-r);
}

void inbox_deinit(struct inbox *inbox)
{
	assert(list_empty(&inbox->messages));
	pthread_cond_destroy(&inbox->news);
	pthread_mutex_destroy(&inbox->lock);
}

/**
 * inbox_put() - tell the engine something
 * @inbox:      the inbox
 * @message:    what; copied
 *
 * Return: 0, or -ENOMEM; then the message's objects are still the caller's.
 */
int inbox_put(struct inbox *inbox, const struct inbox_message *message)
{
	struct inbox_message *copy = malloc(sizeof(*copy));

	if (!copy)
		return error_origin(-ENOMEM);
	*copy = *message;
	copy->link = (struct list){ 0 };
	pthread_mutex_lock(&inbox->lock);
	list_append(&inbox->messages, &copy->link);
	pthread_cond_signal(&inbox->news);
	pthread_mutex_unlock(&inbox->lock);
	return 0;
}

void inbox_wake(struct inbox *inbox)
{
	pthread_mutex_lock(&inbox->lock);
	inbox->woken = true;
	pthread_cond_signal(&inbox->news);
	pthread_mutex_unlock(&inbox->lock);
}

static struct timespec deadline_after(uint64_t ns)
{
	uint64_t at = clock_ns() + ns;

	return (struct timespec){ .tv_sec = (time_t)(at / NS_PER_S), .tv_nsec = (long)(at % NS_PER_S) };
}

/**
 * inbox_take() - take all messages
 * @inbox:      the inbox
 * @wait_ns:    sleep so long at most if there is none
 * @ret:        an initialised list head; the messages are malloc'd and become the caller's
 */
void inbox_take(struct inbox *inbox, uint64_t wait_ns, struct list *ret)
{
	struct timespec until = deadline_after(wait_ns);
	struct inbox_message *message;

	pthread_mutex_lock(&inbox->lock);
	while (wait_ns && list_empty(&inbox->messages) && !inbox->woken)
		if (pthread_cond_timedwait(&inbox->news, &inbox->lock, &until) == ETIMEDOUT)
			break;
	inbox->woken = false;
	list_for_each(message, &inbox->messages, link) {
		list_unlink(&message->link);
		list_append(ret, &message->link);
	}
	pthread_mutex_unlock(&inbox->lock);
}
