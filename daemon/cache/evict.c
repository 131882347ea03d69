/* SPDX-License-Identifier: MIT */
/*
 * Memory of adapters: taking, evicting, giving back
 *
 * Each tier is a pool of which adapters may take so much. On the device they share it with the KV cache. What has a copy in
 * a tier that nobody needs there is known to the tier's policy (policy.c), which says who goes next; whoever needs room takes
 * victims until there is enough. A device copy is needed while held or pinned, a host copy while it is uploaded from.
 *
 * To find a victim unused, claim it and give its memory back is one section under the lock: the copy is whole before and
 * absent after, nobody sees it in between. There is nothing to wait for: no step uses what is not held, and giving
 * memory back is a change of the pool's map (docs/RESIDENCY.md has what it costs).
 *
 * Stamps: a version that a request asked for in the turn `since` or later is passed over, as long as somebody references it.
 * The step loop asks in the order of age and evicts for its own turn's stamps only, so a request takes memory from younger
 * ones alone. Whoever comes between two turns (a page-in that goes on to the device, an administrator's prefetch) respects
 * the last turn's stamps as well: the turn now under way has not come by all of them yet.
 *
 * Where adapters and KV blocks compete for one pool the age decides: before an adapter is evicted for another, the KV cache
 * is asked for memory that was unused for longer (yield), and the other way round (cache_shrink).
 */
#include <assert.h>

#include "daemon/base/clock.h"
#include "daemon/cache/cache-internal.h"

size_t cache_charge(const struct cache_adapter *adapter)
{
	size_t bytes = cache_image_bytes(adapter) + adapter->cache->table_bytes;

	return (bytes + POOL_PAGE - 1) / POOL_PAGE * POOL_PAGE;
}

uint8_t *cache_address(const struct cache_adapter *adapter, enum cache_tier tier)
{
	assert(adapter->copy[tier].state != COPY_ABSENT);
	return pool_address(adapter->cache->tier[tier].pool, adapter->copy[tier].run);
}

/* What was being written is there. */
void cache_note_whole(struct cache_adapter *adapter, enum cache_tier tier)
{
	struct cache_tier_stats *stats = &adapter->cache->stats.tier[tier];

	assert(adapter->copy[tier].state == COPY_FILLING);
	adapter->copy[tier].state = COPY_WHOLE;
	++stats->adapters;
	stats->bytes += cache_charge(adapter);
}

/* Among the items of its tier's policy or not: may it be evicted? */
static void set_spare(struct cache_adapter *adapter, enum cache_tier tier, bool spare)
{
	struct cache_tier_state *state = &adapter->cache->tier[tier];
	struct policy_item *item = &adapter->copy[tier].item;

	if (list_linked(&item->link) == spare)
		return;
	if (spare) {
		policy_add(&state->policy, item);
		state->spare += cache_charge(adapter);
	} else {
		policy_remove(item);
		state->spare -= cache_charge(adapter);
	}
}

/* Gives a copy's memory back; nobody may use it any more. */
void cache_drop(struct cache_adapter *adapter, enum cache_tier tier)
{
	struct cache_copy *copy = &adapter->copy[tier];
	struct cache *cache = adapter->cache;

	assert(copy->state != COPY_ABSENT);
	set_spare(adapter, tier, false);
	if (tier == CACHE_TIER_DEVICE) {
		assert(adapter->holds == 0);
		step_lora_deinit(&adapter->lora);
	}
	if (copy->state == COPY_WHOLE) {
		--cache->stats.tier[tier].adapters;
		cache->stats.tier[tier].bytes -= cache_charge(adapter);
	}
	pool_release(cache->tier[tier].pool, POOL_ADAPTERS, copy->run);
	cache->tier[tier].used -= cache_charge(adapter);
	copy->state = COPY_ABSENT;
}

static void evict(struct cache_adapter *adapter, enum cache_tier tier, enum cache_reason reason)
{
	cache_drop(adapter, tier);
	++adapter->cache->stats.tier[tier].evictions[reason];
}

static bool is_evictable(const struct cache_adapter *adapter, enum cache_tier tier)
{
	if (adapter->copy[tier].state != COPY_WHOLE)
		return false;
	return tier == CACHE_TIER_HOST ? !cache_is_uploading(adapter) : adapter->holds == 0 && !adapter->pinned;
}

/* Without users and memory nothing but the counters is kept, and of so many versions only. */
static void retire(struct cache_adapter *adapter)
{
	struct cache *cache = adapter->cache;

	assert(adapter->holds == 0);
	free(adapter->work);
	adapter->work = NULL;
	list_append(&cache->retired, &adapter->retired);
	if (++cache->n_retired <= CACHE_RETIRED_MAX)
		return;
	adapter = list_first(&cache->retired, struct cache_adapter, retired);
	list_unlink(&adapter->retired);
	list_unlink(&adapter->bucket);
	free(adapter);
	--cache->n_retired;
	--cache->n_known;
}

/* Somebody asks for it, wherever it is. */
void cache_touch(struct cache_adapter *adapter)
{
	struct cache *cache = adapter->cache;

	adapter->used_ns = clock_ns();
	adapter->forgotten = false;
	for (unsigned tier = cache->lowest; tier < _CACHE_TIER_N; ++tier)
		policy_touch(&cache->tier[tier].policy, &adapter->copy[tier].item, cache->stats.tier[tier].adapters);
}

/* Puts a version where its state says: evictable copies among the policies' items, one without any use among the retired. */
void cache_settle(struct cache_adapter *adapter)
{
	bool has_memory = false;

	for (unsigned tier = 0; tier < _CACHE_TIER_N; ++tier) {
		struct cache_copy *copy = &adapter->copy[tier];

		if (adapter->forgotten && adapter->refs == 0 && is_evictable(adapter, tier))
			evict(adapter, tier, CACHE_FORGOTTEN);
		has_memory |= copy->state != COPY_ABSENT;
		set_spare(adapter, tier, is_evictable(adapter, tier));
	}
	if (!has_memory && adapter->refs == 0 && !adapter->pinned && !list_linked(&adapter->retired))
		retire(adapter);
}

static struct cache_adapter *of_item(struct policy_item *item, enum cache_tier tier)
{
	struct cache_copy *copy = container_of(item, struct cache_copy, item);

	return tier == CACHE_TIER_HOST ? container_of(copy, struct cache_adapter, copy[CACHE_TIER_HOST])
				       : container_of(copy, struct cache_adapter, copy[CACHE_TIER_DEVICE]);
}

/* Who goes next, but for those a request asked for in this turn or later. */
static struct cache_adapter *next_victim(struct cache *cache, enum cache_tier tier, uint64_t since)
{
	struct policy *policy = &cache->tier[tier].policy;

	for (struct policy_item *item = policy_first(policy); item; item = policy_next(policy, item)) {
		struct cache_adapter *adapter = of_item(item, tier);

		if (adapter->refs == 0 || adapter->turn < since)
			return adapter;
	}
	return NULL;
}

/* At least 1: to have been used just now is to have been idle, for who compares with 0. */
static uint64_t idle_ns(const struct cache_adapter *adapter, uint64_t now_ns)
{
	return now_ns > adapter->used_ns ? now_ns - adapter->used_ns : 1;
}

/* The KV cache gives of the pool what was idle for longer than the next victim; anything, if there is no victim. */
static bool ask_kv(struct cache *cache, const struct cache_adapter *victim, size_t bytes)
{
	if (!cache->options.yield)
		return false;
	return cache->options.yield(cache->options.userdata, bytes, victim ? idle_ns(victim, clock_ns()) : 0);
}

/**
 * cache_alloc() - memory for a version in a tier, others evicted for it where needed
 * @since:      versions asked for in this turn or later stay
 *
 * Return: POOL_OK, the copy is filling; POOL_E_FULL: and all was evicted that could be.
 */
int cache_alloc(struct cache_adapter *adapter, enum cache_tier tier, uint64_t since)
{
	struct cache_tier_state *state = &adapter->cache->tier[tier];
	struct cache_copy *copy = &adapter->copy[tier];
	size_t bytes = cache_charge(adapter);

	assert(copy->state == COPY_ABSENT && bytes <= state->limit);
	for (;;) {
		struct cache_adapter *victim;
		bool below = state->used <= state->limit - bytes;

		if (below && pool_alloc(state->pool, POOL_ADAPTERS, bytes, &copy->run) == POOL_OK)
			break;
		victim = next_victim(adapter->cache, tier, since);
		if (below && tier == CACHE_TIER_DEVICE && ask_kv(adapter->cache, victim, bytes))
			continue;
		if (!victim)
			return POOL_E_FULL;
		evict(victim, tier, CACHE_FOR_ADAPTER);
		cache_settle(victim);
	}
	state->used += bytes;
	copy->state = COPY_FILLING;
	return POOL_OK;
}

/**
 * cache_shrink() - evict unused adapters so that KV blocks can have their memory
 * @bytes:      how much is wanted; evicts that much and not more than one adapter beyond
 * @longer_ns:  only what was idle for longer; so never what a request asked for in this turn. 0: anything unused, that too
 *              in the end
 *
 * Return: false when nothing could be evicted.
 */
bool cache_shrink(struct cache *cache, size_t bytes, uint64_t longer_ns)
{
	uint64_t now = clock_ns();
	size_t freed = 0;

	pthread_mutex_lock(&cache->lock);
	while (freed < bytes) {
		struct cache_adapter *victim = next_victim(cache, CACHE_TIER_DEVICE, cache->turn);

		if (!victim && longer_ns == 0)
			victim = next_victim(cache, CACHE_TIER_DEVICE, CACHE_NO_TURN);
		if (!victim || (longer_ns > 0 && idle_ns(victim, now) <= longer_ns))
			break;
		freed += cache_charge(victim);
		evict(victim, CACHE_TIER_DEVICE, CACHE_FOR_KV);
		cache_settle(victim);
	}
	pthread_mutex_unlock(&cache->lock);
	return freed > 0;
}

/** cache_idle_ns() - how long the adapter that would be evicted next was not used; 0: there is none */
uint64_t cache_idle_ns(struct cache *cache, uint64_t now_ns)
{
	const struct cache_adapter *victim;
	uint64_t ns;

	pthread_mutex_lock(&cache->lock);
	victim = next_victim(cache, CACHE_TIER_DEVICE, cache->turn);
	ns = victim ? idle_ns(victim, now_ns) : 0;
	pthread_mutex_unlock(&cache->lock);
	return ns;
}

/** cache_spare_bytes() - what cache_shrink() could give in all */
size_t cache_spare_bytes(struct cache *cache)
{
	size_t bytes;

	pthread_mutex_lock(&cache->lock);
	bytes = cache->tier[CACHE_TIER_DEVICE].spare;
	pthread_mutex_unlock(&cache->lock);
	return bytes;
}
