/* SPDX-License-Identifier: MIT */
/* Which copy goes next: decayed frequency, weighed by what a reload costs per byte of memory. See policy.c. */
#ifndef LORAD_CACHE_POLICY_H
#define LORAD_CACHE_POLICY_H

#include <stddef.h>
#include <stdint.h>

#include "daemon/base/list.h"

#define POLICY_BUCKETS 256

/* One copy. Its weight outlives its memory: what comes back soon was popular before. */
struct policy_item {
	struct list link;  /* linked: may be evicted */
	double weight;     /* of its requests, decayed until `at` */
	double at;         /* on the policy's clock */
	double worth;      /* log2 of a reload's cost per byte */
	int64_t number;    /* of its bucket, if linked; the first one, if that has left the window */
};

struct policy {
	struct list bucket[POLICY_BUCKETS];
	int64_t base, low; /* numbers of buckets: the first there is; and none below this one has an item */
	double clock;      /* half-lives */
};

void policy_init(struct policy *policy);
void policy_item_init(struct policy_item *item, size_t bytes);
void policy_touch(struct policy *policy, struct policy_item *item, uint64_t n_resident); /* a request, hit or miss */
void policy_add(struct policy *policy, struct policy_item *item);
void policy_remove(struct policy_item *item);
struct policy_item *policy_first(struct policy *policy);                       /* who goes next; NULL: none */
struct policy_item *policy_next(struct policy *policy, struct policy_item *item); /* who goes if that one must not */

#endif
