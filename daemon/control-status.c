/* SPDX-License-Identifier: MIT */
/* Verbs about the daemon itself: Status, Metrics. */
#include <errno.h>
#include <string.h>

#include "config.h"
#include "daemon/base/clock.h"
#include "daemon/compute.h"
#include "daemon/control-call.h"
#include "daemon/metrics.h"
#include "daemon/model/model.h"
#include "daemon/options.h"

#define USERS_SHOWN 64u
#define ADAPTERS_SHOWN 32u

static const char *precision_name(enum kern_precision precision)
{
	switch (precision) {
	case KERN_PRECISION_F32:
		return "f32";
	case KERN_PRECISION_BF16:
		return "bf16";
	case KERN_PRECISION_INT8:
		return "int8";
	case _KERN_PRECISION_N:
		break;
	}
	return "unknown";
}

static const char *kv_type_name(enum kern_dtype dtype)
{
	return dtype == KERN_F32 ? "f32" : dtype == KERN_BF16 ? "bf16" : "int8";
}

static json_t *model_json(const struct parts *parts, const struct metrics *metrics)
{
	const struct model_config *config = model_config(parts->model);
	const struct image_geometry *geometry = &config->geometry;

	return json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I}", "name", config->name, "path",
			 parts->options->model, "precision", precision_name(model_precision(parts->model)), "kv_type",
			 kv_type_name(kv_layout(parts->compute->kv)->dtype), "adapter_type",
			 parts->compute->packed_adapters ? "int8" : "source", "layers",
			 (json_int_t)geometry->n_layers, "hidden", (json_int_t)geometry->hidden, "vocab",
			 (json_int_t)geometry->vocab, "context", (json_int_t)config->context, "weight_bytes",
			 (json_int_t)metrics->weight_bytes);
}

static json_t *requests_json(const struct sched_stats *stats)
{
	return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "running", (json_int_t)stats->running, "waiting",
			 (json_int_t)stats->waiting, "admitted", (json_int_t)stats->requests, "finished",
			 (json_int_t)stats->finished, "failed", (json_int_t)stats->failed, "cancelled",
			 (json_int_t)stats->cancelled, "preempted", (json_int_t)stats->preempted, "turned_away",
			 (json_int_t)stats->turned_away);
}

static json_t *steps_json(const struct metrics *metrics)
{
	return json_pack("{s:I, s:I, s:I, s:f, s:f, s:f, s:I, s:I, s:I, s:I}", "count", (json_int_t)metrics->sched.steps,
			 "rows", (json_int_t)metrics->sched.rows, "adapters", (json_int_t)metrics->sched.adapters_in_steps,
			 "seconds", (double)metrics->sched.step.sum_ns / (double)NS_PER_S, "rows_per_step",
			 metrics->rows_per_step, "adapters_per_step", metrics->adapters_per_step, "max_adapters",
			 (json_int_t)metrics->sched.max_adapters, "prompt_tokens",
			 (json_int_t)metrics->sched.prompt_tokens, "generated_tokens",
			 (json_int_t)metrics->sched.generated_tokens, "prefix_hit_tokens",
			 (json_int_t)metrics->sched.prefix_hit_tokens);
}

static json_t *pool_json(const struct metrics *metrics)
{
	return json_pack("{s:I, s:I, s:I}", "bytes", (json_int_t)metrics->pool_bytes, "kv",
			 (json_int_t)metrics->pool_kv_bytes, "adapters", (json_int_t)metrics->pool_adapter_bytes);
}

static json_int_t tier_evictions(const struct cache_tier_stats *tier)
{
	json_int_t n = 0;

	for (unsigned reason = 0; reason < _CACHE_REASON_N; ++reason)
		n += (json_int_t)tier->evictions[reason];
	return n;
}

static json_t *cache_json(const struct metrics *metrics)
{
	const struct cache_stats *stats = &metrics->cache;
	const struct cache_tier_stats *device = &stats->tier[CACHE_TIER_DEVICE], *host = &stats->tier[CACHE_TIER_HOST];

	return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f}", "limit_bytes",
			 (json_int_t)metrics->host_cache_bytes, "resident", (json_int_t)device->adapters,
			 "resident_bytes", (json_int_t)device->bytes, "host_bytes",
			 (json_int_t)host->bytes, "uploads", (json_int_t)stats->uploads, "loading", (json_int_t)stats->loading,
			 "hits_device", (json_int_t)device->hits, "hits_host", (json_int_t)host->hits,
			 "misses", (json_int_t)stats->misses, "evictions", (json_int_t)metrics->cache_evictions,
			 "evictions_device", tier_evictions(device), "evictions_host", tier_evictions(host), "failures",
			 (json_int_t)stats->failures, "loads", (json_int_t)stats->loads, "load_seconds",
			 (double)stats->page_in.sum_ns / (double)NS_PER_S);
}

/* {count, mean_ms, and bounds that half and 99 of 100 stay below} */
static json_t *times_json(const struct hist *hist)
{
	return json_pack("{s:I, s:f, s:f, s:f}", "count", (json_int_t)hist->n, "mean_ms",
			 hist->n ? clock_ms(hist->sum_ns) / (double)hist->n : 0.0, "p50_ms",
			 clock_ms(hist_quantile_ns(hist, 0.5)), "p99_ms", clock_ms(hist_quantile_ns(hist, 0.99)));
}

static json_t *tier_json(const struct cache_tier_stats *tier, uint64_t limit)
{
	return json_pack("{s:I, s:I, s:I, s:I, s:{s:I, s:I, s:I}}", "bytes", (json_int_t)tier->bytes, "limit_bytes",
			 (json_int_t)limit, "adapters", (json_int_t)tier->adapters, "hits", (json_int_t)tier->hits,
			 "evictions", "for_adapter", (json_int_t)tier->evictions[CACHE_FOR_ADAPTER], "for_kv",
			 (json_int_t)tier->evictions[CACHE_FOR_KV], "forgotten",
			 (json_int_t)tier->evictions[CACHE_FORGOTTEN]);
}

static json_t *tiers_json(const struct parts *parts, const struct metrics *metrics)
{
	const struct cache_stats *stats = &metrics->cache;
	bool two = parts->compute->host_pool;

	return json_pack("{s:o, s:o, s:o, s:o}", "device",
			 tier_json(&stats->tier[CACHE_TIER_DEVICE], parts->compute->adapter_bytes), "host",
			 two ? tier_json(&stats->tier[CACHE_TIER_HOST], metrics->host_cache_bytes) : json_null(), "page_in",
			 times_json(&stats->page_in), "upload", two ? times_json(&stats->upload) : json_null());
}

static json_t *kv_json(const struct parts *parts, const struct metrics *metrics)
{
	return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "block_tokens",
			 (json_int_t)kv_layout(parts->kv)->block_tokens, "used", (json_int_t)metrics->kv.used, "cached",
			 (json_int_t)metrics->kv.cached, "taken", (json_int_t)metrics->kv.taken, "evicted",
			 (json_int_t)metrics->kv.evicted, "copied",
			 (json_int_t)metrics->kv.copied, "prefix_asked_tokens",
			 (json_int_t)metrics->sched.prefix_asked_tokens, "prefix_hit_tokens",
			 (json_int_t)metrics->sched.prefix_hit_tokens);
}

static json_t *user_json(const struct sched_user *user)
{
	return json_pack("{s:I, s:f, s:f, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "uid", (json_int_t)user->uid, "weight",
			 user->weight, "service", user->service, "requests", (json_int_t)user->requests, "running",
			 (json_int_t)user->running, "waiting", (json_int_t)user->waiting, "prompt_tokens",
			 (json_int_t)user->prompt_tokens, "generated_tokens", (json_int_t)user->generated_tokens,
			 "refused", (json_int_t)user->refused, "aborted", (json_int_t)user->aborted);
}

static json_t *users_json(const struct metrics *metrics)
{
	json_t *list = json_array();

	for (size_t i = 0; i < metrics->n_users && i < USERS_SHOWN; ++i)
		json_array_append_new(list, user_json(&metrics->users[i]));
	return list;
}

/* The adapters used last, latest first. */
struct latest {
	struct cache_info info[ADAPTERS_SHOWN];
	size_t n;
};

static void add_latest(void *userdata, const struct cache_info *info)
{
	struct latest *latest = userdata;
	size_t at = latest->n;

	if (!info->last_use)
		return;
	while (at > 0 && latest->info[at - 1].last_use < info->last_use)
		--at;
	if (at == ADAPTERS_SHOWN)
		return;
	latest->n += latest->n < ADAPTERS_SHOWN;
	memmove(&latest->info[at + 1], &latest->info[at], (latest->n - 1 - at) * sizeof(*info));
	latest->info[at] = *info;
}

static json_t *adapters_json(const struct parts *parts)
{
	struct latest latest = { .n = 0 };
	json_t *list = json_array();

	cache_each(parts->cache, add_latest, &latest);
	for (size_t i = 0; i < latest.n; ++i) {
		const struct cache_info *info = &latest.info[i];
		char hex[65];

		store_digest_hex(&info->digest, hex);
		json_array_append_new(list, json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I}", "digest", hex, "state",
						      cache_state_names[info->state], "bytes", (json_int_t)info->bytes,
						      "requests", (json_int_t)info->requests, "tokens",
						      (json_int_t)info->tokens, "running", (json_int_t)info->holds,
						      "last_use", (json_int_t)info->last_use));
	}
	return list;
}

static json_t *pager_json(const struct parts *parts, const struct metrics *metrics)
{
	return json_pack("{s:s, s:I, s:I, s:I}", "method", pager_method_names[pager_method(parts->pager)], "loads",
			 (json_int_t)metrics->pager.loads, "failed", (json_int_t)metrics->pager.failed, "bytes",
			 (json_int_t)metrics->pager.bytes);
}

void control_status(struct control_call *call)
{
	const struct parts *parts = call->parts;
	_cleanup_(metrics_deinit) struct metrics metrics = { .users = NULL };

	metrics_read(parts, &metrics);
	control_reply(call, json_pack("{s:s, s:o, s:s, s:s, s:s, s:I, s:I, s:o, s:o, s:o, s:o, s:o, s:I, s:o, s:o, s:o, "
				      "s:o}", "version", PACKAGE_VERSION, "model", model_json(parts, &metrics), "device",
				      parts->compute->name, "isa", parts->compute->isa, "memory",
				      mem_kind_name(parts->compute->region.kind), "threads",
				      (json_int_t)parts->compute->threads,
				      "uptime_s", (json_int_t)metrics.uptime_s, "requests",
				      requests_json(&metrics.sched), "steps", steps_json(&metrics), "pool",
				      pool_json(&metrics), "cache", cache_json(&metrics), "pager",
				      pager_json(parts, &metrics), "clients", (json_int_t)metrics.ipc.clients, "tiers",
				      tiers_json(parts, &metrics), "kv", kv_json(parts, &metrics), "users", users_json(&metrics),
				      "adapters", adapters_json(parts)));
}

void control_metrics(struct control_call *call)
{
	_cleanup_free_ char *text = NULL;
	_cleanup_(metrics_deinit) struct metrics metrics = { .users = NULL };

	metrics_read(call->parts, &metrics);
	text = metrics_text(&metrics);
	if (!text)
		control_fail(call, ENOMEM, "the daemon ran out of memory");
	else
		control_reply(call, json_pack("{s:s}", "text", text));
}
