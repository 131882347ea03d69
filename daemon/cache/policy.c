/* SPDX-License-Identifier: MIT */
/*
 * Eviction order
 *
 * A copy is worth keeping in proportion to how often it will be asked for and to what a reload costs, and in inverse
 * proportion to the memory it takes. How often: the sum over its requests of 2^-age, ages in half-lives (LRFU: Lee et al.,
 * "LRFU: a spectrum of policies that subsumes the least recently used and least frequently used policies", 2001); a
 * half-life is as many requests as 8 times the copies that are resident. A reload costs its bytes, and 16 MiB more for
 * those who wait: the step that runs meanwhile has to end before anyone can use it. So the value of a copy is
 *
 *     weight * (bytes + 16 MiB) / bytes        (the second part as in GreedyDual-Size: Cao and Irani, 1997)
 *
 * Chosen by measurement, docs/RESIDENCY.md. All weights decay alike, so the order of two copies changes only when one of
 * them is asked for: log2(value) + the time of the last request is a key that stays. Items lie in buckets of a quarter
 * of a doubling by this key, in the order they came, and the lowest bucket goes first. The window of buckets moves with
 * the clock: 32 half-lives back (what is older keeps its order, but is not told apart by worth any more) and as many
 * ahead, more than any weight and worth come to. All operations are O(1), amortised: the window moves by half a bucket a
 * request at most, and each bucket is looked at once on its way.
 *
 * Pure: no locks, no I/O. What must not be evicted (in use, pinned) is not added, or passed over with policy_next().
 */
#include "daemon/cache/policy.h"

#include <assert.h>
#include <math.h>

#define PER_DOUBLING 4
#define HALF_LIFE 8.0              /* requests per resident copy */
#define RELOAD_BYTES (16.0 * 1048576) /* what a reload costs besides its own bytes, as bytes */

static struct list *bucket_of(struct policy *policy, int64_t number)
{
	return &policy->bucket[(uint64_t)number % POLICY_BUCKETS];
}

void policy_init(struct policy *policy)
{
	for (unsigned i = 0; i < POLICY_BUCKETS; ++i)
		list_init(&policy->bucket[i]);
	policy->base = policy->low = -POLICY_BUCKETS / 2;
	policy->clock = 0;
}

void policy_item_init(struct policy_item *item, size_t bytes)
{
	*item = (struct policy_item){ .worth = log2(1 + RELOAD_BYTES / (double)bytes) };
}

/* Puts the items of the oldest bucket before those of the next, which becomes the oldest. */
static void drop_bucket(struct policy *policy)
{
	struct list *from = bucket_of(policy, policy->base), *to = bucket_of(policy, ++policy->base);

	if (policy->low < policy->base)
		policy->low = policy->base;
	if (list_empty(from))
		return;
	from->prev->next = to->next;
	to->next->prev = from->prev;
	from->next->prev = to;
	to->next = from->next;
	list_init(from);
}

/**
 * policy_touch() - somebody asks for it, resident or not
 * @n_resident: copies in memory now
 */
void policy_touch(struct policy *policy, struct policy_item *item, uint64_t n_resident)
{
	bool linked = list_linked(&item->link);

	policy_remove(item);
	policy->clock += 1 / (HALF_LIFE * (double)(n_resident + 1));
	while (policy->base < (int64_t)floor(policy->clock * PER_DOUBLING) - POLICY_BUCKETS / 2)
		drop_bucket(policy);
	item->weight = item->weight * exp2(item->at - policy->clock) + 1;
	item->at = policy->clock;
	if (linked)
		policy_add(policy, item);
}

/** policy_add() - it may be evicted from now on; somebody asked for it once at least */
void policy_add(struct policy *policy, struct policy_item *item)
{
	double key = log2(item->weight) + item->at + item->worth;
	int64_t number = (int64_t)floor(key * PER_DOUBLING), last = policy->base + POLICY_BUCKETS - 1;

	assert(item->weight > 0);
	item->number = number < policy->base ? policy->base : number > last ? last : number;
	list_append(bucket_of(policy, item->number), &item->link);
	if (item->number < policy->low)
		policy->low = item->number;
}

/** policy_remove() - it must not be evicted any more, or was */
void policy_remove(struct policy_item *item)
{
	list_unlink(&item->link);
}

static struct policy_item *first_from(struct policy *policy, int64_t number, int64_t *ret_number)
{
	for (; number < policy->base + POLICY_BUCKETS; ++number) {
		if (!list_empty(bucket_of(policy, number))) {
			*ret_number = number;
			return container_of(bucket_of(policy, number)->next, struct policy_item, link);
		}
	}
	return NULL;
}

struct policy_item *policy_first(struct policy *policy)
{
	int64_t number = policy->base + POLICY_BUCKETS - 1;
	struct policy_item *item = first_from(policy, policy->low, &number);

	policy->low = number;
	return item;
}

struct policy_item *policy_next(struct policy *policy, struct policy_item *item)
{
	int64_t number = item->number < policy->base ? policy->base : item->number;

	if (item->link.next != bucket_of(policy, number))
		return container_of(item->link.next, struct policy_item, link);
	return first_from(policy, number + 1, &number);
}
