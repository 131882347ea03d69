/* SPDX-License-Identifier: MIT */
/*
 * Memory of adapters: taking, evicting, giving back
 *
 * Each tier is a pool of which adapters may take so much. On the device they share it with the KV cache. What has a copy in
 * a tier that nobody needs there is on the tier's list, least recently used first; whoever needs room takes victims from
 * its front until there is enough. A copy that was just made goes to the back, so that whoever waits for it comes to hold
 * it before its turn. A device copy is needed while held or pinned, a host copy while it is uploaded from.
 */
#include <assert.h>

#include "daemon/cache/cache-internal.h"

size_t cache_charge(const struct cache_adapter *adapter)
{
	size_t bytes = adapter->record.payload_bytes, table = adapter->cache->table_bytes;

	if (table)
		bytes = (bytes + IMAGE_PAGE - 1) / IMAGE_PAGE * IMAGE_PAGE + table; /* the pager reads whole pages */
	return (bytes + POOL_PAGE - 1) / POOL_PAGE * POOL_PAGE;
}

uint8_t *cache_address(const struct cache_adapter *adapter, enum cache_tier tier)
{
	assert(adapter->copy[tier].taken);
	return pool_address(adapter->cache->tier[tier].pool, adapter->copy[tier].run);
}

/* Gives a copy's memory back; nobody may use it any more. */
void cache_drop(struct cache_adapter *adapter, enum cache_tier tier)
{
	struct cache_copy *copy = &adapter->copy[tier];
	struct cache *cache = adapter->cache;

	assert(copy->taken);
	list_unlink(&copy->lru);
	if (tier == TIER_DEVICE) {
		assert(adapter->holds == 0);
		step_lora_deinit(&adapter->lora);
		cache->stats.resident -= copy->present;
		cache->stats.resident_bytes -= copy->present ? cache_charge(adapter) : 0;
	} else {
		cache->stats.host_bytes -= copy->present ? cache_charge(adapter) : 0;
	}
	pool_release(cache->tier[tier].pool, POOL_ADAPTERS, copy->run);
	cache->tier[tier].used -= cache_charge(adapter);
	copy->taken = copy->present = false;
}

static bool is_evictable(const struct cache_adapter *adapter, enum cache_tier tier)
{
	if (!adapter->copy[tier].present)
		return false;
	return tier == TIER_HOST ? !adapter->uploading : adapter->holds == 0 && !adapter->pinned;
}

/* Puts a version where its state says: evictable copies on the LRU lists, one without any use into the grave. */
void cache_settle(struct cache_adapter *adapter)
{
	bool has_memory = false;

	for (unsigned tier = 0; tier < _TIER_N; ++tier) {
		struct cache_copy *copy = &adapter->copy[tier];

		has_memory |= copy->taken;
		if (!is_evictable(adapter, tier))
			list_unlink(&copy->lru);
		else if (!list_linked(&copy->lru))
			list_append(&adapter->cache->tier[tier].lru, &copy->lru);
	}
	if (!has_memory && adapter->refs == 0 && !adapter->pinned) {
		assert(adapter->holds == 0 && !adapter->reading && !adapter->uploading);
		list_unlink(&adapter->bucket);
		free(adapter);
	}
}

static struct cache_adapter *least_recent(struct cache *cache, enum cache_tier tier)
{
	struct list *list = &cache->tier[tier].lru;

	if (list_empty(list))
		return NULL;
	return tier == TIER_HOST ? container_of(list->next, struct cache_adapter, copy[TIER_HOST].lru)
				 : container_of(list->next, struct cache_adapter, copy[TIER_DEVICE].lru);
}

/* Evicts the least recently used copy. Return: the bytes that gave, 0: there is none. */
static size_t evict_one(struct cache *cache, enum cache_tier tier)
{
	struct cache_adapter *victim = least_recent(cache, tier);
	size_t bytes;

	if (!victim)
		return 0;
	bytes = cache_charge(victim);
	cache_drop(victim, tier);
	++cache->stats.evictions;
	cache_settle(victim);
	return bytes;
}

/* Memory for a version in a tier, others evicted for it where needed: all it takes, down to none left. */
int cache_alloc(struct cache_adapter *adapter, enum cache_tier tier)
{
	struct cache_tier_state *state = &adapter->cache->tier[tier];
	struct cache_copy *copy = &adapter->copy[tier];
	size_t bytes = cache_charge(adapter);

	assert(!copy->taken && bytes <= state->limit);
	while (state->used > state->limit - bytes)
		if (!evict_one(adapter->cache, tier))
			return POOL_E_FULL;
	while (pool_alloc(state->pool, POOL_ADAPTERS, bytes, &copy->run) != POOL_OK)
		if (!evict_one(adapter->cache, tier))
			return POOL_E_FULL;
	state->used += bytes;
	copy->taken = true;
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
	while (freed < bytes && (n = evict_one(cache, TIER_DEVICE)) > 0)
		freed += n;
	pthread_mutex_unlock(&cache->lock);
	return freed > 0;
}
