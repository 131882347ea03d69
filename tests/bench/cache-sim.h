/* SPDX-License-Identifier: MIT */
/* What the parts of the cache simulator share: see cache-sim.c. */
#ifndef LORAD_TESTS_BENCH_CACHE_SIM_H
#define LORAD_TESTS_BENCH_CACHE_SIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/cache/policy.h"
#include "daemon/model/pool.h"

#define IDLE_S 200e-6 /* what a reload takes besides reading, idle */
#define BUSY_S 10e-3  /* and when a step runs meanwhile, which has to end before anyone looks */
#define READ_B_S 1.7e9

/* One adapter. The policies' own fields mean what each of them says. */
struct sim_item {
	uint64_t bytes;
	bool resident;
	struct pool_run run;      /* if it is, and there is a pool */
	struct policy_item item;  /* lorad's */
	struct list link, ghost;
	unsigned frequency, queue;
	double priority;
	uint32_t at;              /* in the heap */
};

enum { SIM_SMALL, SIM_MAIN, _SIM_QUEUE_N };

struct sim {
	struct sim_item *items;
	uint32_t n;
	struct pool *pool;        /* NULL: memory is where it is needed */
	uint64_t room, used, n_resident;
	struct policy policy;
	struct list queue[_SIM_QUEUE_N], ghosts;
	uint64_t queue_bytes[_SIM_QUEUE_N], ghost_bytes;
	struct list *hand;
	struct sim_item **heap;
	uint32_t n_heap;
	double inflation;
};

struct sim_policy {
	const char *name;
	void (*hit)(struct sim *sim, struct sim_item *item);
	void (*admit)(struct sim *sim, struct sim_item *item);  /* after a miss, there is room */
	struct sim_item *(*evict)(struct sim *sim);             /* takes one off */
};

extern const struct sim_policy sim_policies[];
extern const unsigned sim_n_policies;

enum sim_law { SIM_ZIPF_07, SIM_ZIPF_09, SIM_ZIPF_11, SIM_POWER, _SIM_LAW_N };
enum sim_scene { SIM_STEADY, SIM_SCAN, SIM_SHIFT, SIM_LOOP, _SIM_SCENE_N };
extern const char *const sim_law_names[_SIM_LAW_N], *const sim_scene_names[_SIM_SCENE_N];

void sim_seed(uint64_t seed);
uint64_t sim_adapter_bytes(void); /* of one more adapter, at random */
uint32_t *sim_trace(enum sim_law law, enum sim_scene scene, uint32_t n_adapters, uint32_t n_requests); /* malloc'd */

#endif
