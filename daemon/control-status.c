/* SPDX-License-Identifier: MIT */
/* Verbs about the daemon itself: Status, Metrics. */
#include <errno.h>

#include "config.h"
#include "daemon/compute.h"
#include "daemon/control-call.h"
#include "daemon/metrics.h"
#include "daemon/model/model.h"
#include "daemon/options.h"

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

	return json_pack("{s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I}", "name", config->name, "path",
			 parts->options->model, "precision", precision_name(model_precision(parts->model)), "kv_type",
			 kv_type_name(kv_layout(parts->compute->kv)->dtype), "layers",
			 (json_int_t)geometry->n_layers, "hidden", (json_int_t)geometry->hidden, "vocab",
			 (json_int_t)geometry->vocab, "context", (json_int_t)config->context, "weight_bytes",
			 (json_int_t)metrics->weight_bytes);
}

static json_t *requests_json(const struct sched_stats *stats)
{
	return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "running", (json_int_t)stats->running, "waiting",
			 (json_int_t)stats->waiting, "admitted", (json_int_t)stats->requests, "finished",
			 (json_int_t)stats->finished, "failed", (json_int_t)stats->failed, "cancelled",
			 (json_int_t)stats->cancelled, "preempted", (json_int_t)stats->preempted);
}

static json_t *steps_json(const struct metrics *metrics)
{
	return json_pack("{s:I, s:f, s:f, s:I, s:I, s:I}", "count", (json_int_t)metrics->sched.steps, "rows_per_step",
			 metrics->rows_per_step, "adapters_per_step", metrics->adapters_per_step, "max_adapters",
			 (json_int_t)metrics->sched.max_adapters, "prompt_tokens",
			 (json_int_t)metrics->sched.prompt_tokens, "generated_tokens",
			 (json_int_t)metrics->sched.generated_tokens);
}

static json_t *pool_json(const struct metrics *metrics)
{
	return json_pack("{s:I, s:I, s:I}", "bytes", (json_int_t)metrics->pool_bytes, "kv",
			 (json_int_t)metrics->pool_kv_bytes, "adapters", (json_int_t)metrics->pool_adapter_bytes);
}

static json_t *cache_json(const struct metrics *metrics)
{
	const struct cache_stats *stats = &metrics->cache;
	const struct cache_tier_stats *device = &stats->tier[CACHE_TIER_DEVICE], *host = &stats->tier[CACHE_TIER_HOST];

	return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "limit_bytes",
			 (json_int_t)metrics->host_cache_bytes, "resident", (json_int_t)device->adapters,
			 "resident_bytes", (json_int_t)device->bytes, "host_bytes",
			 (json_int_t)host->bytes, "uploads", (json_int_t)stats->uploads, "loading", (json_int_t)stats->loading,
			 "hits_device", (json_int_t)device->hits, "hits_host", (json_int_t)host->hits,
			 "misses", (json_int_t)stats->misses, "evictions", (json_int_t)metrics->cache_evictions, "failures",
			 (json_int_t)stats->failures);
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
	struct metrics metrics;

	metrics_read(parts, &metrics);
	control_reply(call, json_pack("{s:s, s:o, s:s, s:s, s:s, s:I, s:I, s:o, s:o, s:o, s:o, s:o, s:I}", "version",
				      PACKAGE_VERSION, "model", model_json(parts, &metrics), "device",
				      parts->compute->name, "isa", parts->compute->isa, "memory",
				      mem_kind_name(parts->compute->region.kind), "threads",
				      (json_int_t)parts->compute->threads,
				      "uptime_s", (json_int_t)metrics.uptime_s, "requests",
				      requests_json(&metrics.sched), "steps", steps_json(&metrics), "pool",
				      pool_json(&metrics), "cache", cache_json(&metrics), "pager",
				      pager_json(parts, &metrics), "clients", (json_int_t)metrics.ipc.clients));
}

void control_metrics(struct control_call *call)
{
	_cleanup_free_ char *text = NULL;
	struct metrics metrics;

	metrics_read(call->parts, &metrics);
	text = metrics_text(&metrics);
	if (!text)
		control_fail(call, ENOMEM, "the daemon ran out of memory");
	else
		control_reply(call, json_pack("{s:s}", "text", text));
}
