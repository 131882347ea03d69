/* SPDX-License-Identifier: MIT */
/*
 * Whose turn it is
 *
 * A user is a uid, as the kernel says it. Virtual Token Counter (Sheng et al., Fairness in Serving Large Language Models,
 * OSDI 2024): each user has a counter of what it was served, a prompt's tokens when it starts and two for each token it is
 * given, divided by its weight. The user with the smallest counter goes next. A user whose queue was empty is lifted to the
 * smallest counter of those who wait (or, if nobody does, of who left last): being away earns no credit. So the model never
 * idles while somebody waits, and what two users who always wait are served differs by 2 max(wp L, wq M) at most: L tokens
 * of the longest prompt, M tokens that run at once.
 *
 * What is computed again after a preemption is not charged again, and a preempted request brings no lift.
 *
 * Within a user the oldest goes first. If more arrives than starts and all that wait have targets for their first token,
 * the newest goes first: the oldest would miss theirs anyway, and whoever came late would miss it because of them. Without
 * targets nothing would ever drop the old ones, so there the order stays.
 *
 * By option it is first come, first served, whoever asks: what the rest is measured against.
 *
 * A walk passes waiting requests in the order in which they would start if each could: users by their counters, each
 * request passed adding its cost. The request that the walk gave last may leave its queue during it, no other.
 */
#include "daemon/sched/fair.h"

#include <assert.h>
#include <stdlib.h>

#include "daemon/sched/request.h"

void fair_init(struct fair *fair, const struct sched_fairness *options)
{
	*fair = (struct fair){ .options = *options };
	list_init(&fair->users);
}

static void forget(struct fair *fair, struct fair_user *user)
{
	assert(list_empty(&user->queue) && !user->stats.running);
	list_unlink(&user->link);
	fair->n_users--;
	free(user);
}

void fair_deinit(struct fair *fair)
{
	struct fair_user *user;

	list_for_each(user, &fair->users, link)
		forget(fair, user);
}

static double weight_of(const struct fair *fair, uid_t uid)
{
	for (uint32_t i = 0; i < fair->options.n_weights; ++i)
		if (fair->options.weight[i].uid == uid)
			return fair->options.weight[i].weight;
	return 1.0;
}

/* The one whose debt is the smallest: forgetting it is what a lift does anyway, most of the time. */
static void forget_one(struct fair *fair)
{
	struct fair_user *user, *least = NULL;

	list_for_each(user, &fair->users, link)
		if (list_empty(&user->queue) && !user->stats.running && (!least || user->counter < least->counter))
			least = user;
	if (least)
		forget(fair, least);
}

/** fair_user() - the user of a uid, NULL: no memory; stays while it has requests */
struct fair_user *fair_user(struct fair *fair, uid_t uid)
{
	struct fair_user *user;

	list_for_each(user, &fair->users, link)
		if (user->stats.uid == uid)
			return user;
	if (fair->n_users >= FAIR_USERS_MAX)
		forget_one(fair);
	user = calloc(1, sizeof(*user));
	if (!user)
		return NULL;
	list_init(&user->queue);
	user->stats.uid = uid;
	user->stats.weight = weight_of(fair, uid);
	list_append(&fair->users, &user->link);
	fair->n_users++;
	return user;
}

/* ---- queues ---- */

static bool has_target(const struct request *request)
{
	return request->ipc->first_token_ms > 0;
}

/** fair_queue() - a request waits: one that just arrived, or one that was preempted */
void fair_queue(struct fair *fair, struct request *request)
{
	struct fair_user *user = request->user;

	request_insert(&user->queue, request, offsetof(struct request, user_link));
	user->stats.waiting++;
	user->n_targets += has_target(request);
	fair->n_targets += has_target(request);
}

static void lift(struct fair *fair, struct fair_user *user)
{
	double least = fair->left;
	const struct fair_user *other;
	bool any = false;

	list_for_each(other, &fair->users, link) {
		if (list_empty(&other->queue))
			continue;
		least = !any || other->counter < least ? other->counter : least;
		any = true;
	}
	if (user->counter < least)
		user->counter = least;
}

/** fair_arrive() - a new request, before it is queued */
void fair_arrive(struct fair *fair, struct request *request)
{
	struct fair_user *user = request->user;

	if (list_empty(&user->queue))
		lift(fair, user);
	user->stats.requests++;
	rate_add(&user->arrivals, 1, request->ipc->arrived_ns);
}

/** fair_leave() - it starts, or is given up */
void fair_leave(struct fair *fair, struct request *request)
{
	struct fair_user *user = request->user;

	assert(list_linked(&request->user_link));
	list_unlink(&request->user_link);
	user->stats.waiting--;
	user->n_targets -= has_target(request);
	fair->n_targets -= has_target(request);
	if (list_empty(&user->queue))
		fair->left = user->counter;
}

/* ---- what it costs ---- */

static double price(const struct request *request)
{
	return request->started_ns ? 0 : FAIR_PROMPT * request->n_prompt / request->user->stats.weight;
}

/** fair_start() - charge a prompt; before the request is marked as started, and only then */
void fair_start(struct request *request, uint64_t now_ns)
{
	struct fair_user *user = request->user;

	user->counter += price(request);
	user->stats.service += FAIR_PROMPT * request->n_prompt;
	user->stats.prompt_tokens += request->n_prompt;
	rate_add(&user->starts, 1, now_ns);
}

/** fair_generated() - charge one token of an answer */
void fair_generated(struct request *request)
{
	struct fair_user *user = request->user;

	user->counter += FAIR_GENERATED / user->stats.weight;
	user->stats.service += FAIR_GENERATED;
	user->stats.generated_tokens++;
}

static int compare_service(const void *a, const void *b)
{
	const struct sched_user *x = a, *y = b;

	return (x->service < y->service) - (x->service > y->service);
}

/** fair_read() - all users, served most first; ret: room for n_users. Return: how many */
uint32_t fair_read(const struct fair *fair, struct sched_user *ret)
{
	const struct fair_user *user;
	uint32_t n = 0;

	list_for_each(user, &fair->users, link)
		ret[n++] = user->stats;
	qsort(ret, n, sizeof(*ret), compare_service);
	return n;
}

/* ---- the walk ---- */

static bool is_overloaded(const struct fair_user *user, uint64_t now_ns)
{
	return user->n_targets && user->n_targets == user->stats.waiting &&
	       rate_sum(&user->arrivals, now_ns) > FAIR_OVERLOAD * rate_sum(&user->starts, now_ns);
}

/** fair_begin_walk() - from the request that should start first */
void fair_begin_walk(struct fair *fair, uint64_t now_ns)
{
	struct fair_user *user;

	list_for_each(user, &fair->users, link) {
		user->newest_first = !fair->options.first_come && is_overloaded(user, now_ns);
		user->cursor = user->newest_first ? user->queue.prev : user->queue.next;
		user->ahead = user->counter;
	}
}

static struct request *at_cursor(const struct fair_user *user)
{
	return container_of(user->cursor, struct request, user_link);
}

static bool goes_before(const struct fair *fair, const struct fair_user *a, const struct fair_user *b)
{
	if (fair->options.first_come)
		return at_cursor(a)->ipc->arrived_ns < at_cursor(b)->ipc->arrived_ns;
	return a->ahead < b->ahead;
}

/** fair_next() - the next request of the walk, NULL: that was all */
struct request *fair_next(struct fair *fair)
{
	struct fair_user *user, *next = NULL;
	struct request *request;

	list_for_each(user, &fair->users, link)
		if (user->cursor != &user->queue && (!next || goes_before(fair, user, next)))
			next = user;
	if (!next)
		return NULL;
	request = at_cursor(next);
	next->cursor = next->newest_first ? next->cursor->prev : next->cursor->next;
	next->ahead += price(request);
	return request;
}
