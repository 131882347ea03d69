/* SPDX-License-Identifier: MIT */
/*
 * What the cache tells of itself
 *
 * Counters of a version outlive its memory, for as many versions as CACHE_RETIRED_MAX says.
 */
#include <string.h>
#include <time.h>

#include "daemon/base/clock.h"
#include "daemon/cache/cache-internal.h"

#define EACH_BATCH 16u /* versions copied under one lock */

void cache_note_tokens(struct cache_adapter *adapter, uint64_t n)
{
	atomic_fetch_add_explicit(&adapter->tokens, n, memory_order_relaxed);
}

void cache_read_stats(struct cache *cache, struct cache_stats *ret)
{
	pthread_mutex_lock(&cache->lock);
	*ret = cache->stats;
	ret->known = cache->n_known;
	pthread_mutex_unlock(&cache->lock);
}

uint64_t cache_evictions(const struct cache_stats *stats)
{
	uint64_t n = 0;

	for (unsigned tier = 0; tier < _CACHE_TIER_N; ++tier)
		for (unsigned reason = 0; reason < _CACHE_REASON_N; ++reason)
			n += stats->tier[tier].evictions[reason];
	return n;
}

static void fill_info(const struct cache_adapter *adapter, struct cache_info *ret)
{
	*ret = (struct cache_info){
		.digest = adapter->record.digest,
		.state = cache_state_of(adapter),
		.bytes = cache_charge(adapter),
		.pinned = adapter->pinned,
		.references = adapter->refs,
		.holds = adapter->holds,
		.requests = adapter->requests,
		.tokens = atomic_load_explicit(&adapter->tokens, memory_order_relaxed),
		.loads = adapter->loads,
	};
	if (adapter->used_ns)
		ret->last_use = (uint64_t)time(NULL) - (clock_ns() - adapter->used_ns) / NS_PER_S;
}

/**
 * cache_read_info() - state and counters of one version
 *
 * Return: false if the cache knows nothing of it: it was not used for long, or never.
 */
bool cache_read_info(struct cache *cache, const struct store_digest *digest, struct cache_info *ret)
{
	const struct cache_adapter *adapter;

	pthread_mutex_lock(&cache->lock);
	adapter = cache_find(cache, digest);
	if (adapter)
		fill_info(adapter, ret);
	pthread_mutex_unlock(&cache->lock);
	return adapter;
}

/* Of a bucket, all from number `skip` on or as many as there is room for. */
static unsigned copy_infos(struct cache *cache, size_t bucket, unsigned skip, struct cache_info *infos)
{
	struct cache_adapter *adapter;
	unsigned i = 0, n = 0;

	pthread_mutex_lock(&cache->lock);
	list_for_each(adapter, &cache->buckets[bucket], bucket)
		if (i++ >= skip && n < EACH_BATCH)
			fill_info(adapter, &infos[n++]);
	pthread_mutex_unlock(&cache->lock);
	return n;
}

/**
 * cache_each() - state and counters of all versions the cache knows of, in no order
 * @fn:         called without the lock: may take its time, and call the cache
 *
 * Not one moment's picture: what comes or goes meanwhile may be missing.
 */
void cache_each(struct cache *cache, void (*fn)(void *userdata, const struct cache_info *info), void *userdata)
{
	struct cache_info infos[EACH_BATCH];
	unsigned n;

	for (size_t bucket = 0; bucket < CACHE_BUCKETS; ++bucket)
		for (unsigned skip = 0; (n = copy_infos(cache, bucket, skip, infos)) > 0; skip += n)
			for (unsigned i = 0; i < n; ++i)
				fn(userdata, &infos[i]);
}
