/* SPDX-License-Identifier: MIT */
/*
 * The policies that were compared
 *
 *   LRU       what was used longest ago goes first
 *   SIEVE     a queue in order of admission; a hand passes it and spares once what was used (Zhang et al., NSDI 2024)
 *   S3-FIFO   a small queue of a tenth of the bytes, a main queue, and the names of what left the small one unused, which go
 *             straight to the main one when they come back (Yang et al., SOSP 2023)
 *   GDSF      priority = inflation + frequency * cost / size, the least goes first and its priority becomes the inflation
 *             (Cherkasova 1998); cost: reading, and BUSY_S
 *   GDSF/1    the same with every reload at the same cost: fewest misses, whatever their bytes
 *   LRFU      lorad's order without regard to size (daemon/cache/policy.c with all worth the same)
 *   lorad     daemon/cache/policy.c itself
 */
#include "tests/bench/cache-sim.h"

#include <assert.h>

/* ---- LRU ---- */

static void lru_hit(struct sim *sim, struct sim_item *item)
{
	list_unlink(&item->link);
	list_append(&sim->queue[SIM_MAIN], &item->link);
}

static void lru_admit(struct sim *sim, struct sim_item *item)
{
	list_append(&sim->queue[SIM_MAIN], &item->link);
}

static struct sim_item *lru_evict(struct sim *sim)
{
	struct sim_item *item = list_first(&sim->queue[SIM_MAIN], struct sim_item, link);

	list_unlink(&item->link);
	return item;
}

/* ---- SIEVE ---- */

static void sieve_hit(struct sim *sim, struct sim_item *item)
{
	(void)sim;
	item->frequency = 1;
}

static void sieve_admit(struct sim *sim, struct sim_item *item)
{
	item->frequency = 0;
	list_append(&sim->queue[SIM_MAIN], &item->link);
}

static struct sim_item *sieve_evict(struct sim *sim)
{
	struct list *queue = &sim->queue[SIM_MAIN], *at = sim->hand ? sim->hand : queue;

	for (;;) {
		struct sim_item *item;

		if (at == queue)
			at = queue->next;
		item = container_of(at, struct sim_item, link);
		at = at->next;
		if (item->frequency == 0) {
			sim->hand = at;
			list_unlink(&item->link);
			return item;
		}
		item->frequency = 0;
	}
}

/* ---- S3-FIFO ---- */

static void s3_hit(struct sim *sim, struct sim_item *item)
{
	(void)sim;
	item->frequency += item->frequency < 3;
}

static void s3_put(struct sim *sim, struct sim_item *item, unsigned queue)
{
	item->queue = queue;
	list_append(&sim->queue[queue], &item->link);
	sim->queue_bytes[queue] += item->bytes;
}

static struct sim_item *s3_take(struct sim *sim, unsigned queue)
{
	struct sim_item *item = list_first(&sim->queue[queue], struct sim_item, link);

	list_unlink(&item->link);
	sim->queue_bytes[queue] -= item->bytes;
	return item;
}

static void s3_drop_ghost(struct sim *sim, struct sim_item *item)
{
	list_unlink(&item->ghost);
	sim->ghost_bytes -= item->bytes;
}

static void s3_admit(struct sim *sim, struct sim_item *item)
{
	bool was_here = list_linked(&item->ghost);

	item->frequency = 0;
	if (was_here)
		s3_drop_ghost(sim, item);
	s3_put(sim, item, was_here ? SIM_MAIN : SIM_SMALL);
}

static struct sim_item *s3_evict(struct sim *sim)
{
	for (;;) {
		bool small = sim->queue_bytes[SIM_SMALL] > sim->room / 10 || list_empty(&sim->queue[SIM_MAIN]);
		struct sim_item *item = s3_take(sim, small ? SIM_SMALL : SIM_MAIN);

		if (item->frequency > 0) {
			item->frequency = small ? 0 : item->frequency - 1;
			s3_put(sim, item, SIM_MAIN);
			continue;
		}
		if (!small)
			return item;
		list_append(&sim->ghosts, &item->ghost);
		sim->ghost_bytes += item->bytes;
		while (sim->ghost_bytes > sim->room / 10 * 9)
			s3_drop_ghost(sim, list_first(&sim->ghosts, struct sim_item, ghost));
		return item;
	}
}

/* ---- GDSF: a heap, the least on top ---- */

static void heap_set(struct sim *sim, uint32_t at, struct sim_item *item)
{
	sim->heap[at] = item;
	item->at = at;
}

static void heap_fix(struct sim *sim, struct sim_item *item)
{
	uint32_t at = item->at;

	for (; at > 0 && sim->heap[(at - 1) / 2]->priority > item->priority; at = (at - 1) / 2)
		heap_set(sim, at, sim->heap[(at - 1) / 2]);
	for (uint32_t child; (child = 2 * at + 1) < sim->n_heap; at = child) {
		child += child + 1 < sim->n_heap && sim->heap[child + 1]->priority < sim->heap[child]->priority;
		if (sim->heap[child]->priority >= item->priority)
			break;
		heap_set(sim, at, sim->heap[child]);
	}
	heap_set(sim, at, item);
}

static void gdsf_set(struct sim *sim, struct sim_item *item, double cost)
{
	item->priority = sim->inflation + item->frequency * cost / (double)item->bytes;
	heap_fix(sim, item);
}

static double busy_cost(const struct sim_item *item)
{
	return BUSY_S + (double)item->bytes / READ_B_S;
}

static void gdsf_hit(struct sim *sim, struct sim_item *item)
{
	++item->frequency;
	gdsf_set(sim, item, busy_cost(item));
}

static void gdsf_1_hit(struct sim *sim, struct sim_item *item)
{
	++item->frequency;
	gdsf_set(sim, item, 1);
}

static void gdsf_admit(struct sim *sim, struct sim_item *item)
{
	item->frequency = 0;
	heap_set(sim, sim->n_heap++, item);
	gdsf_hit(sim, item);
}

static void gdsf_1_admit(struct sim *sim, struct sim_item *item)
{
	item->frequency = 0;
	heap_set(sim, sim->n_heap++, item);
	gdsf_1_hit(sim, item);
}

static struct sim_item *gdsf_evict(struct sim *sim)
{
	struct sim_item *item = sim->heap[0], *last = sim->heap[--sim->n_heap];

	sim->inflation = item->priority;
	if (sim->n_heap) {
		heap_set(sim, 0, last);
		heap_fix(sim, last);
	}
	return item;
}

/* ---- lorad's own ---- */

static void lorad_hit(struct sim *sim, struct sim_item *item)
{
	policy_touch(&sim->policy, &item->item, sim->n_resident);
}

static void lorad_admit(struct sim *sim, struct sim_item *item)
{
	if (item->item.weight == 0)
		policy_item_init(&item->item, item->bytes);
	policy_touch(&sim->policy, &item->item, sim->n_resident);
	policy_add(&sim->policy, &item->item);
}

static void lrfu_admit(struct sim *sim, struct sim_item *item)
{
	policy_touch(&sim->policy, &item->item, sim->n_resident);
	policy_add(&sim->policy, &item->item);
}

static struct sim_item *lorad_evict(struct sim *sim)
{
	struct policy_item *item = policy_first(&sim->policy);

	policy_remove(item);
	return container_of(item, struct sim_item, item);
}

const struct sim_policy sim_policies[] = {
	{ "LRU", lru_hit, lru_admit, lru_evict },
	{ "SIEVE", sieve_hit, sieve_admit, sieve_evict },
	{ "S3-FIFO", s3_hit, s3_admit, s3_evict },
	{ "GDSF/1", gdsf_1_hit, gdsf_1_admit, gdsf_evict },
	{ "GDSF", gdsf_hit, gdsf_admit, gdsf_evict },
	{ "LRFU", lorad_hit, lrfu_admit, lorad_evict },
	{ "lorad", lorad_hit, lorad_admit, lorad_evict },
};
const unsigned sim_n_policies = sizeof(sim_policies) / sizeof(*sim_policies);
