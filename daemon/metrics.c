/* SPDX-License-Identifier: MIT */
/*
 * Metrics
 *
 * One table: name, help, type and where in struct metrics the figure lies. The text for Prometheus is that table printed;
 * a module that counts something new adds the counter to its own statistics and one line here. Units are in the names:
 * bytes and seconds, nothing else.
 */
#include "daemon/metrics.h"

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include "daemon/base/clock.h"
#include "daemon/model/model.h"

enum metric_kind {
	COUNTER,         /* uint64_t, only grows */
	COUNTER_NS,      /* uint64_t nanoseconds, printed in seconds */
	GAUGE,           /* uint64_t */
	GAUGE_U32,       /* uint32_t */
	GAUGE_RATIO,     /* double */
	HISTOGRAM,       /* struct hist */
};

struct metric {
	const char *name, *help;
	enum metric_kind kind;
	size_t offset;
};

#define AT(member) offsetof(struct metrics, member)

static const struct metric table[] = {
	{ "requests_total", "Requests admitted.", COUNTER, AT(sched.requests) },
	{ "requests_finished_total", "Requests that ended by a stop or their length.", COUNTER, AT(sched.finished) },
	{ "requests_failed_total", "Requests that ended with an error after they were admitted.", COUNTER,
	  AT(sched.failed) },
	{ "requests_turned_away_total", "Requests that found a full queue, or whose target or deadline was out of reach.",
	  COUNTER, AT(sched.turned_away) },
	{ "requests_cancelled_total", "Requests cancelled or left by their client.", COUNTER, AT(sched.cancelled) },
	{ "requests_refused_total", "Requests refused at admission.", COUNTER, AT(ipc.refused) },
	{ "requests_running", "Requests that share the steps now.", GAUGE_U32, AT(sched.running) },
	{ "requests_waiting", "Requests that wait to start.", GAUGE_U32, AT(sched.waiting) },
	{ "preemptions_total", "Requests that gave up their KV blocks and were computed again.", COUNTER,
	  AT(sched.preempted) },
	{ "queue_seconds", "Time a request waited to start, page-ins not counted.", HISTOGRAM, AT(sched.queue) },
	{ "page_in_seconds", "Time a request waited for its adapters; 0 if they were in memory.", HISTOGRAM,
	  AT(sched.page_in) },
	{ "first_token_seconds", "Time from a request's arrival to its first result.", HISTOGRAM,
	  AT(sched.first_token) },
	{ "prompt_tokens_total", "Prompt tokens computed, again after a preemption.", COUNTER,
	  AT(sched.prompt_tokens) },
	{ "prefix_asked_tokens_total", "Prompt tokens of requests that may begin with cached ones.", COUNTER,
	  AT(sched.prefix_asked_tokens) },
	{ "prefix_hit_tokens_total", "Of these, tokens that were there.", COUNTER, AT(sched.prefix_hit_tokens) },
	{ "generated_tokens_total", "Tokens generated.", COUNTER, AT(sched.generated_tokens) },

	{ "steps_total", "Forward steps.", COUNTER, AT(sched.steps) },
	{ "step_seconds", "Duration of a forward step.", HISTOGRAM, AT(sched.step) },
	{ "rows_total", "Rows (tokens) of all steps.", COUNTER, AT(sched.rows) },
	{ "rows_per_step", "Mean rows of a step.", GAUGE_RATIO, AT(rows_per_step) },
	{ "max_rows", "Most rows in one step.", GAUGE, AT(sched.max_rows) },
	{ "adapters_in_steps_total", "Sum over steps of the distinct adapters in each.", COUNTER,
	  AT(sched.adapters_in_steps) },
	{ "adapters_per_step", "Mean distinct adapters of a step.", GAUGE_RATIO, AT(adapters_per_step) },
	{ "max_adapters", "Most distinct adapters in one step.", GAUGE, AT(sched.max_adapters) },

	{ "cache_hits_device_total", "Requested adapters found in device memory.", COUNTER,
	  AT(cache.tier[CACHE_TIER_DEVICE].hits) },
	{ "cache_hits_host_total", "Requested adapters found in host memory only.", COUNTER,
	  AT(cache.tier[CACHE_TIER_HOST].hits) },
	{ "cache_misses_total", "Requested adapters that were in the store only.", COUNTER, AT(cache.misses) },
	{ "cache_loads_total", "Page-ins that ended well.", COUNTER, AT(cache.loads) },
	{ "cache_uploads_total", "Adapters copied from host to device memory.", COUNTER, AT(cache.uploads) },
	{ "cache_failures_total", "Page-ins that failed.", COUNTER, AT(cache.failures) },
	{ "cache_evictions_total", "Adapters evicted.", COUNTER, AT(cache_evictions) },
	{ "cache_load_seconds_total", "Time of all page-ins.", COUNTER_NS, AT(cache.page_in.sum_ns) },
	{ "cache_load_seconds", "Time from a read's start until its adapter could be used.", HISTOGRAM, AT(cache.page_in) },
	{ "cache_upload_seconds", "Time of a copy from host to device memory.", HISTOGRAM, AT(cache.upload) },
	{ "cache_resident", "Adapters in memory.", GAUGE, AT(cache.tier[CACHE_TIER_DEVICE].adapters) },
	{ "cache_resident_bytes", "Their bytes.", GAUGE, AT(cache.tier[CACHE_TIER_DEVICE].bytes) },
	{ "cache_host_bytes", "Bytes of adapters in host memory, where a device has its own.", GAUGE,
	  AT(cache.tier[CACHE_TIER_HOST].bytes) },
	{ "cache_loading", "Adapters being paged in.", GAUGE, AT(cache.loading) },
	{ "cache_limit_bytes", "Most bytes that adapters may take.", GAUGE, AT(host_cache_bytes) },
	{ "pager_loads_total", "Images read.", COUNTER, AT(pager.loads) },
	{ "pager_failed_total", "Images that could not be read, or were damaged.", COUNTER, AT(pager.failed) },
	{ "pager_bytes_total", "Bytes read.", COUNTER, AT(pager.bytes) },
	{ "pager_busy_seconds_total", "Time with a read under way.", COUNTER_NS, AT(pager.busy_ns) },

	{ "pool_bytes", "Size of the pool of KV blocks and adapters.", GAUGE, AT(pool_bytes) },
	{ "pool_kv_bytes", "Pool bytes taken by KV blocks.", GAUGE, AT(pool_kv_bytes) },
	{ "pool_adapter_bytes", "Pool bytes taken by adapters.", GAUGE, AT(pool_adapter_bytes) },
	{ "pool_largest_free_bytes", "The longest free run: less than what is free tells of fragmentation.", GAUGE,
	  AT(pool_largest_free) },
	{ "kv_blocks_used", "KV blocks in use.", GAUGE, AT(kv.used) },
	{ "kv_blocks_cached", "KV blocks kept for requests that begin alike.", GAUGE, AT(kv.cached) },
	{ "kv_blocks_taken_total", "KV blocks taken from the pool: those that were not found in the prefix cache.", COUNTER,
	  AT(kv.taken) },
	{ "kv_blocks_evicted_total", "Kept KV blocks given up for room.", COUNTER, AT(kv.evicted) },
	{ "kv_blocks_copied_total", "KV blocks copied because requests part within them.", COUNTER, AT(kv.copied) },
	{ "model_weight_bytes", "Bytes of the base model's weights.", GAUGE, AT(weight_bytes) },

	{ "clients", "Connected clients.", GAUGE, AT(ipc.clients) },
	{ "connections_total", "Connections accepted.", COUNTER, AT(ipc.connections) },
	{ "violations_total", "Clients disconnected for breaking the protocol.", COUNTER, AT(ipc.violations) },
	{ "uptime_seconds", "Seconds since the daemon was ready.", GAUGE, AT(uptime_s) },
};

/* One line for each user. */
static const struct metric user_table[] = {
	{ "user_requests_total", "Requests of a user.", COUNTER, offsetof(struct sched_user, requests) },
	{ "user_prompt_tokens_total", "Prompt tokens of a user's requests that started.", COUNTER,
	  offsetof(struct sched_user, prompt_tokens) },
	{ "user_generated_tokens_total", "Tokens generated for a user.", COUNTER,
	  offsetof(struct sched_user, generated_tokens) },
	{ "user_refused_total", "Requests of a user that found its queue full.", COUNTER, offsetof(struct sched_user, refused) },
	{ "user_aborted_total", "Requests of a user whose target or deadline was out of reach.", COUNTER,
	  offsetof(struct sched_user, aborted) },
	{ "user_running", "Requests of a user that run now.", GAUGE_U32, offsetof(struct sched_user, running) },
	{ "user_waiting", "Requests of a user that wait now.", GAUGE_U32, offsetof(struct sched_user, waiting) },
};

static double ratio(uint64_t a, uint64_t b)
{
	return b ? (double)a / (double)b : 0.0;
}

/**
 * metrics_read() - read the counters of all modules
 *
 * End it with metrics_deinit().
 */
void metrics_read(const struct parts *parts, struct metrics *ret)
{
	*ret = (struct metrics){
		.pool_bytes = pool_size(parts->pool),
		.pool_kv_bytes = pool_used(parts->pool, POOL_KV),
		.pool_adapter_bytes = pool_used(parts->pool, POOL_ADAPTERS),
		.pool_largest_free = pool_largest_free(parts->pool),
		.weight_bytes = model_weight_bytes(parts->model),
		.host_cache_bytes = parts->host_cache,
		.uptime_s = (clock_ns() - parts->started_ns) / NS_PER_S,
	};
	sched_read_stats(parts->sched, &ret->sched);
	cache_read_stats(parts->cache, &ret->cache);
	ret->cache_evictions = cache_evictions(&ret->cache);
	pager_read_stats(parts->pager, &ret->pager);
	ipc_read_stats(parts->ipc, &ret->ipc);
	kv_read_stats(parts->kv, &ret->kv);
	(void)sched_read_users(parts->sched, &ret->users, &ret->n_users);
	ret->adapters_per_step = ratio(ret->sched.adapters_in_steps, ret->sched.steps);
	ret->rows_per_step = ratio(ret->sched.rows, ret->sched.steps);
}

void metrics_deinit(struct metrics *metrics)
{
	free(metrics->users);
	metrics->users = NULL;
}

static double seconds(uint64_t ns)
{
	return (double)ns / (double)NS_PER_S;
}

static void print_histogram(FILE *to, const char *name, const struct hist *hist)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < HIST_BUCKETS - 1; ++i) {
		sum += hist->bucket[i];
		(void)fprintf(to, "lorad_%s_bucket{le=\"%g\"} %" PRIu64 "\n", name, seconds(hist_bound_ns(i)), sum);
	}
	(void)fprintf(to, "lorad_%s_bucket{le=\"+Inf\"} %" PRIu64 "\n", name, hist->n);
	(void)fprintf(to, "lorad_%s_sum %.9g\nlorad_%s_count %" PRIu64 "\n", name, seconds(hist->sum_ns), name, hist->n);
}

static const char *type_name(enum metric_kind kind)
{
	return kind == HISTOGRAM ? "histogram" : kind == COUNTER || kind == COUNTER_NS ? "counter" : "gauge";
}

static void print_head(FILE *to, const struct metric *metric)
{
	(void)fprintf(to, "# HELP lorad_%s %s\n# TYPE lorad_%s %s\n", metric->name, metric->help, metric->name,
		      type_name(metric->kind));
}

static void print_users(FILE *to, const struct metric *metric, const struct metrics *metrics)
{
	print_head(to, metric);
	for (size_t i = 0; i < metrics->n_users; ++i) {
		const void *at = (const char *)&metrics->users[i] + metric->offset;

		(void)fprintf(to, "lorad_%s{uid=\"%u\"} %" PRIu64 "\n", metric->name, (unsigned)metrics->users[i].uid,
			      metric->kind == GAUGE_U32 ? *(const uint32_t *)at : *(const uint64_t *)at);
	}
}

/* Why adapters went, from where. */
static void print_evictions(FILE *to, const struct cache_stats *stats)
{
	static const char *const tiers[] = { [CACHE_TIER_HOST] = "host", [CACHE_TIER_DEVICE] = "device" };
	static const char *const reasons[] = {
		[CACHE_FOR_ADAPTER] = "adapter", [CACHE_FOR_KV] = "kv", [CACHE_FORGOTTEN] = "forgotten"
	};
	static const struct metric metric = {
		"cache_tier_evictions_total", "Adapters evicted from a tier, by reason.", COUNTER, 0
	};

	print_head(to, &metric);
	for (unsigned tier = 0; tier < _CACHE_TIER_N; ++tier)
		for (unsigned reason = 0; reason < _CACHE_REASON_N; ++reason)
			(void)fprintf(to, "lorad_%s{tier=\"%s\",reason=\"%s\"} %" PRIu64 "\n", metric.name, tiers[tier],
				      reasons[reason], stats->tier[tier].evictions[reason]);
}

static void print_metric(FILE *to, const struct metric *metric, const struct metrics *metrics)
{
	const void *at = (const char *)metrics + metric->offset;

	print_head(to, metric);
	switch (metric->kind) {
	case COUNTER:
	case GAUGE:
		(void)fprintf(to, "lorad_%s %" PRIu64 "\n", metric->name, *(const uint64_t *)at);
		break;
	case COUNTER_NS:
		(void)fprintf(to, "lorad_%s %.9g\n", metric->name, seconds(*(const uint64_t *)at));
		break;
	case GAUGE_U32:
		(void)fprintf(to, "lorad_%s %" PRIu32 "\n", metric->name, *(const uint32_t *)at);
		break;
	case GAUGE_RATIO:
		(void)fprintf(to, "lorad_%s %.9g\n", metric->name, *(const double *)at);
		break;
	case HISTOGRAM:
		print_histogram(to, metric->name, at);
		break;
	}
}

char *metrics_text(const struct metrics *metrics)
{
	char *text = NULL;
	size_t bytes;
	FILE *to = open_memstream(&text, &bytes);

	if (!to)
		return NULL;
	for (size_t i = 0; i < sizeof(table) / sizeof(*table); ++i)
		print_metric(to, &table[i], metrics);
	for (size_t i = 0; i < sizeof(user_table) / sizeof(*user_table); ++i)
		print_users(to, &user_table[i], metrics);
	print_evictions(to, &metrics->cache);
	if (fclose(to) != 0) {
		free(text);
		return NULL;
	}
	return text;
}
