/* SPDX-License-Identifier: MIT */
/* Every figure the daemon publishes, declared once: see metrics.c. */
#ifndef LORAD_METRICS_H
#define LORAD_METRICS_H

#include "daemon/cache/cache.h"
#include "daemon/ipc/ipc.h"
#include "daemon/parts.h"
#include "daemon/sched/sched.h"
#include "daemon/store/pager.h"

/* All counters of all modules, read at one time. */
struct metrics {
	struct sched_stats sched;
	struct cache_stats cache;
	struct kv_stats kv;
	struct pager_stats pager;
	struct ipc_stats ipc;
	struct sched_user *users;  /* owned */
	size_t n_users;
	double adapters_per_step, rows_per_step;
	uint64_t pool_bytes, pool_kv_bytes, pool_adapter_bytes, pool_largest_free;
	uint64_t cache_evictions, weight_bytes, host_cache_bytes, uptime_s;
};

void metrics_deinit(struct metrics *metrics);
void metrics_read(const struct parts *parts, struct metrics *ret);
char *metrics_text(const struct metrics *metrics); /* Prometheus' text format; malloc'd, NULL: no memory */

#endif
