/* SPDX-License-Identifier: MIT */
/*
 * Mailbox
 *
 * loop_post() with a memory: work that other threads finish for the loop is kept in a list until the loop runs it, so
 * that at the end of the process, when the loop no longer turns, mailbox_deliver() still finds all of it and nothing
 * leaks. One post is under way for any number of letters.
 */
#include "daemon/mailbox.h"

#include <assert.h>

#include "daemon/base/error.h"
#include "daemon/os/loop.h"

int mailbox_init(struct mailbox *mailbox, struct loop *loop)
{
	list_init(&mailbox->letters);
	mailbox->loop = loop;
	mailbox->posted = false;
	return error_origin(-pthread_mutex_init(&mailbox->lock, NULL));
}

void mailbox_deinit(struct mailbox *mailbox)
{
	assert(list_empty(&mailbox->letters));
	pthread_mutex_destroy(&mailbox->lock);
}

static void on_post(void *userdata)
{
	mailbox_deliver(userdata);
}

void mailbox_send(struct mailbox *mailbox, struct letter *letter)
{
	bool post;

	pthread_mutex_lock(&mailbox->lock);
	if (!list_linked(&letter->link))
		list_append(&mailbox->letters, &letter->link);
	post = !mailbox->posted;
	mailbox->posted = true;
	pthread_mutex_unlock(&mailbox->lock);
	if (post)
		(void)error_trace(loop_post(mailbox->loop, on_post, mailbox));
}

static struct letter *take(struct mailbox *mailbox)
{
	struct letter *letter;

	pthread_mutex_lock(&mailbox->lock);
	mailbox->posted = false;
	letter = list_first(&mailbox->letters, struct letter, link);
	if (letter)
		list_unlink(&letter->link);
	pthread_mutex_unlock(&mailbox->lock);
	return letter;
}

/**
 * mailbox_deliver() - call the function of every letter
 */
void mailbox_deliver(struct mailbox *mailbox)
{
	struct letter *letter;

	while ((letter = take(mailbox)))
		letter->fn(letter);
}
