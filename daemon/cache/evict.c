/* SPDX-License-Identifier: MIT */
/*
 * Memory of adapters: taking, evicting, giving back
 *
 * Adapters share the pool with the KV cache and may take host_bytes of it at most. What nobody holds and nobody pinned is
 * on one list, least recently used first; whoever needs room takes victims from its front until there is enough. An
 * adapter that was just paged in goes to the back, so that whoever waits for it comes to hold it before its turn.
 */
#include <assert.h>

#include "daemon/cache/cache-internal.h"

size_t cache_charge(const struct cache_adapter *adapter)
{
	return (adapter->record.payload_bytes + POOL_PAGE - 1) / POOL_PAGE * POOL_PAGE;
}

/* Gives a version's memory back; nobody may use it any more. */
void cache_drop(struct cache_adapter *adapter)
{
	struct cache *cache = adapter->cache;

	assert(adapter->residency != ABSENT && adapter->holds == 0);
	if (adapter->residency == RESIDENT) {
		list_unlink(&adapter->lru);
		step_lora_deinit(&adapter->lora);
		--cache->stats.resident;
		cache->stats.resident_bytes -= cache_charge(adapter);
	}
	pool_release(cache->options.pool, POOL_ADAPTERS, adapter->run);
	cache->used_bytes -= cache_charge(adapter);
	adapter->residency = ABSENT;
}

/* Puts a version where its state says: evictable ones on the LRU list, ones without any use into the grave. */
void cache_settle(struct cache_adapter *adapter)
{
	bool evictable = adapter->residency == RESIDENT && adapter->holds == 0 && !adapter->pinned;

	if (!evictable)
		list_unlink(&adapter->lru);
	else if (!list_linked(&adapter->lru))
		list_append(&adapter->cache->lru, &adapter->lru);
	if (adapter->residency == ABSENT && adapter->refs == 0 && !adapter->pinned) {
		assert(adapter->holds == 0);
		list_unlink(&adapter->bucket);
		free(adapter);
	}
}

/* Evicts the least recently used one. Return: the bytes that gave, 0: there is none. */
static size_t evict_one(struct cache *cache)
{
	struct cache_adapter *victim = list_first(&cache->lru, struct cache_adapter, lru);
	size_t bytes;

	if (!victim)
		return 0;
	bytes = cache_charge(victim);
	cache_drop(victim);
	++cache->stats.evictions;
	cache_settle(victim);
	return bytes;
}

/* Memory for a version, others evicted for it where needed: all it takes, down to none left. */
int cache_alloc(struct cache_adapter *adapter)
{
	struct cache *cache = adapter->cache;
	size_t bytes = cache_charge(adapter);

	assert(adapter->residency == ABSENT && bytes <= cache->options.host_bytes);
	while (cache->used_bytes > cache->options.host_bytes - bytes)
		if (!evict_one(cache))
			return POOL_E_FULL;
	while (pool_alloc(cache->options.pool, POOL_ADAPTERS, bytes, &adapter->run) != POOL_OK)
		if (!evict_one(cache))
			return POOL_E_FULL;
	cache->used_bytes += bytes;
	return POOL_OK;
}

/**
 * cache_shrink() - evict unused adapters so that KV blocks can have their memory
 * @bytes:      how much is wanted; evicts that much and not more than one adapter beyond
 *
 * Return: false when nothing could be evicted.
 */
bool cache_shrink(struct cache *cache, size_t bytes)
{
	size_t freed = 0, n;

	pthread_mutex_lock(&cache->lock);
	while (freed < bytes && (n = evict_one(cache)) > 0)
		freed += n;
	pthread_mutex_unlock(&cache->lock);
	return freed > 0;
}
