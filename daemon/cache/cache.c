/* SPDX-License-Identifier: MIT */
/*
 * Adapter residency
 *
 * A version (one digest) has a copy on the device or not, and, where the device has memory of its own, a copy in the host
 * tier or not. Copies are made one way only, store -> host -> device, and evicted from each tier by itself: a version may
 * keep its device copy when the host's goes. On a CPU the memory an adapter is read to is the memory the ops read: there is
 * no host tier, and the first arrow ends on the device.
 *
 *            hold: memory found                page-in ok              memory found           upload ended
 *   ABSENT ----------------------> reading ----------------> host ----------------> uploading --------> device
 *      ^                              | page-in failed         | evicted                                  | evicted
 *      +------------------------------+------------------------+  (to host, where that copy is still there) v
 *
 * Two counts belong to a version:
 *
 *   references (get/put)   a request that will use it: keeps it readable in the store, whatever becomes of its names
 *   holds (hold/unhold)    a request that uses it now: keeps it on the device
 *
 * cache_hold() never blocks: it either holds, or starts what is missing (or joins what is under way) and says PENDING.
 * Callers ask again after changed(). They should ask in the order of their age: a fresh adapter is the last to be evicted,
 * and so the oldest one who waits always gets all it needs in the end.
 *
 * A page-in that fails is told to those who had a reference when it failed, once each; whoever comes later makes a new
 * attempt. A page-in nobody waits for any more is completed all the same and stays as evictable.
 *
 * Threads: hold and poll are for the thread that runs steps, since they speak to the device in line with these; all else
 * comes from any thread. A page-in ends on the pager's, an upload on one of the device's library (upload.c). One mutex,
 * never held across disk access or a call of the device: the store is asked before it is taken, uploads start after it
 * was given back.
 */
#include "daemon/cache/cache.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "daemon/base/clock.h"
#include "daemon/cache/cache-internal.h"

const char *const cache_state_names[_CACHE_STATE_N] = {
	[CACHE_STORE] = "store",   [CACHE_LOADING] = "loading", [CACHE_HOST] = "host",
	[CACHE_DEVICE] = "device", [CACHE_UNFIT] = "unfit",
};

/* ---- finding versions; with the lock ---- */

static struct list *bucket_of(struct cache *cache, const struct store_digest *digest)
{
	uint32_t hash;

	memcpy(&hash, digest, sizeof(hash)); /* a digest's bytes are random */
	return &cache->buckets[hash % CACHE_BUCKETS];
}

static struct cache_adapter *find(struct cache *cache, const struct store_digest *digest)
{
	struct list *bucket = bucket_of(cache, digest);
	struct cache_adapter *adapter;

	list_for_each(adapter, bucket, bucket)
		if (memcmp(&adapter->record.digest, digest, sizeof(*digest)) == 0)
			return adapter;
	return NULL;
}

static struct cache_adapter *find_or_add(struct cache *cache, const struct store_record *record)
{
	struct cache_adapter *adapter = find(cache, &record->digest);

	if (adapter)
		return adapter;
	adapter = calloc(1, sizeof(*adapter));
	if (!adapter)
		return NULL;
	adapter->cache = cache;
	adapter->record = *record;
	list_append(bucket_of(cache, &record->digest), &adapter->bucket);
	return adapter;
}

static bool fits(const struct cache *cache, const struct store_record *record)
{
	return memcmp(&record->geometry, &cache->options.geometry, sizeof(record->geometry)) == 0;
}

/* ---- page-ins ---- */

static void note_failure(struct cache_adapter *adapter, int result)
{
	adapter->failure = adapter->load.diag;
	if (!adapter->failure.text[0])
		(void)diag_set(&adapter->failure, 0, "%s", result < 0 ? strerror(-result) : "it is damaged");
	adapter->to_tell = adapter->refs;
}

void cache_note_load(struct cache_adapter *adapter)
{
	struct cache_stats *stats = &adapter->cache->stats;

	adapter->load_ns = clock_ns() - adapter->began_ns;
	stats->load_ns += adapter->load_ns;
	--stats->loading;
	++stats->resident;
	stats->resident_bytes += cache_charge(adapter);
}

/* Is it what it says, and for this model? On the way to the host tier only looked at: upload.c reads it again. */
static int judge(struct cache_adapter *adapter)
{
	struct pager_load *load = &adapter->load;
	const struct image_module *modules;
	int r;

	if (adapter->cache->lowest == TIER_DEVICE)
		return cache_make_usable(adapter, load->to, &load->diag);
	r = image_modules(load->to, &load->header, &modules, &load->diag);
	return r > 0 ? STORE_E_CORRUPT : error_trace(r);
}

/* Memory on the device for what the host tier has; the caller starts the upload once the lock is free. */
static bool prepare_upload(struct cache_adapter *adapter)
{
	if (adapter->copy[TIER_DEVICE].taken || cache_alloc(adapter, TIER_DEVICE) != POOL_OK)
		return false;
	adapter->uploading = true;
	++adapter->cache->stats.loading;
	return true;
}

static void changed(struct cache *cache)
{
	if (cache->options.changed)
		cache->options.changed(cache->options.userdata);
}

/* Without the lock. An upload that cannot be started now leaves the version in the host tier; it is asked for again. */
static void start_upload(struct cache_adapter *adapter)
{
	struct cache *cache = adapter->cache;
	int r = cache_upload(adapter);

	if (r == 0)
		return;
	pthread_mutex_lock(&cache->lock);
	adapter->uploading = false;
	--cache->stats.loading;
	cache_drop(adapter, TIER_DEVICE);
	if (r != -EAGAIN) {
		++cache->stats.failures;
		(void)diag_set(&adapter->load.diag, 0, "it cannot be copied to the device: %s", strerror(-r));
		note_failure(adapter, r);
	}
	cache_settle(adapter);
	pthread_mutex_unlock(&cache->lock);
	if (r != -EAGAIN) /* then an upload that ends will tell */
		changed(cache);
}

/* On the pager's thread. While a version is read nobody else touches its load and its memory. */
static void load_done(struct pager_load *load, int result)
{
	struct cache_adapter *adapter = container_of(load, struct cache_adapter, load);
	struct cache *cache = adapter->cache;
	bool upload = false;

	if (!result)
		result = judge(adapter);
	pthread_mutex_lock(&cache->lock);
	assert(adapter->reading);
	adapter->reading = false;
	if (result) {
		--cache->stats.loading;
		++cache->stats.failures;
		note_failure(adapter, result);
		cache_drop(adapter, cache->lowest);
	} else {
		++cache->stats.loads;
		adapter->began_ns = load->started_ns; /* not the wait for its turn */
		adapter->copy[cache->lowest].present = true;
		if (cache->lowest == TIER_DEVICE) {
			cache_note_load(adapter);
		} else {
			--cache->stats.loading;
			cache->stats.host_bytes += cache_charge(adapter);
			upload = prepare_upload(adapter);
		}
	}
	cache_settle(adapter);
	pthread_mutex_unlock(&cache->lock);
	if (upload)
		start_upload(adapter);
	changed(cache);
}

static void start_load(struct cache_adapter *adapter)
{
	struct cache *cache = adapter->cache;

	adapter->reading = true;
	++cache->stats.loading;
	adapter->load = (struct pager_load){
		.digest = adapter->record.digest,
		.to = cache_address(adapter, cache->lowest),
		.room = cache_charge(adapter),
		.done = load_done,
	};
	pager_submit(cache->options.pager, &adapter->load);
}

/* Why a version can never be used here, or CACHE_OK. */
static int refuse(const struct cache_adapter *adapter, struct diag *diag)
{
	const struct cache *cache = adapter->cache;
	size_t bytes = cache_charge(adapter);

	if (!fits(cache, &adapter->record))
		return diag_set(diag, CACHE_E_UNFIT, "made for another base model");
	for (unsigned tier = cache->lowest; tier < _TIER_N; ++tier)
		if (bytes > cache->tier[tier].limit || bytes > pool_size(cache->tier[tier].pool))
			return diag_set(diag, CACHE_E_TOO_LARGE, "its %zu bytes never fit into the adapters' memory", bytes);
	return CACHE_OK;
}

/*
 * Makes it usable or says why not yet; CACHE_OK takes no hold. With the lock. *ret_upload: the caller has to start one
 * after giving the lock back.
 */
static int fault(struct cache_adapter *adapter, bool *ret_upload, struct diag *diag)
{
	struct cache *cache = adapter->cache;
	int r;

	if (adapter->copy[TIER_DEVICE].present)
		return CACHE_OK;
	if (adapter->reading || adapter->uploading)
		return CACHE_E_PENDING;
	if (adapter->to_tell > 0) {
		--adapter->to_tell;
		return diag_set(diag, CACHE_E_FAILED, "%s", adapter->failure.text);
	}
	r = refuse(adapter, diag);
	if (r)
		return r;
	if (adapter->copy[TIER_HOST].present) {
		adapter->began_ns = clock_ns();
		*ret_upload = prepare_upload(adapter);
		if (*ret_upload)
			return CACHE_E_PENDING;
	} else if (cache_alloc(adapter, cache->lowest) == POOL_OK) {
		start_load(adapter);
		return CACHE_E_PENDING;
	}
	return diag_set(diag, CACHE_E_NO_ROOM, "all adapters in memory are in use or pinned");
}

/* ---- the interface ---- */

/**
 * cache_new() - an empty cache
 * @options:    all of it outlives the cache, but the pager, which is freed first
 */
int cache_new(struct cache **ret, const struct cache_options *options)
{
	struct cache *cache = calloc(1, sizeof(*cache));

	if (!cache)
		return error_origin(-ENOMEM);
	cache->options = *options;
	cache->lowest = options->host_pool ? TIER_HOST : TIER_DEVICE;
	cache->table_bytes = options->host_pool ? step_lora_table_bytes(&options->geometry) : 0;
	cache->tier[TIER_DEVICE] = (struct cache_tier_state){ .pool = options->pool, .limit = options->device_bytes };
	cache->tier[TIER_HOST] = (struct cache_tier_state){
		.pool = options->host_pool,
		.limit = options->host_pool ? pool_size(options->host_pool) : 0,
	};
	pthread_mutex_init(&cache->lock, NULL);
	list_init(&cache->uploaded);
	for (unsigned tier = 0; tier < _TIER_N; ++tier)
		list_init(&cache->tier[tier].lru);
	for (size_t i = 0; i < CACHE_BUCKETS; ++i)
		list_init(&cache->buckets[i]);
	*ret = cache;
	return 0;
}

/** cache_free() - give all memory back; the pager is gone, nobody has a reference */
struct cache *cache_free(struct cache *cache)
{
	struct cache_adapter *adapter;

	if (!cache)
		return NULL;
	if (cache->options.host_pool)
		cache_wait_uploads(cache);
	for (size_t i = 0; i < CACHE_BUCKETS; ++i) {
		while ((adapter = list_first(&cache->buckets[i], struct cache_adapter, bucket))) {
			assert(adapter->refs == 0 && !adapter->reading);
			adapter->pinned = adapter->uploading = false; /* still uploading: on a device that failed */
			for (unsigned tier = 0; tier < _TIER_N; ++tier)
				if (adapter->copy[tier].taken)
					cache_drop(adapter, tier);
			cache_settle(adapter);
		}
	}
	pthread_mutex_destroy(&cache->lock);
	free(cache);
	return NULL;
}

/**
 * cache_get() - a reference to a version
 * @ret:        the same pointer for the same digest, as long as anyone has a reference
 *
 * Return: CACHE_OK, CACHE_E_NOT_FOUND, CACHE_E_FAILED where its record is damaged; -errno.
 */
int cache_get(struct cache *cache, const struct store_digest *digest, struct cache_adapter **ret)
{
	struct cache_adapter *adapter;
	struct store_record record;
	int r;

	r = store_hold(cache->options.store, digest, &record);
	if (r)
		return r == STORE_E_NOT_FOUND ? CACHE_E_NOT_FOUND : r > 0 ? CACHE_E_FAILED : error_trace(r);
	pthread_mutex_lock(&cache->lock);
	adapter = find_or_add(cache, &record);
	if (adapter) {
		++adapter->refs;
		++*(adapter->copy[TIER_DEVICE].present ? &cache->stats.hits_device :
		    adapter->copy[TIER_HOST].present   ? &cache->stats.hits_host :
							 &cache->stats.misses);
	}
	pthread_mutex_unlock(&cache->lock);
	if (!adapter) {
		store_release(cache->options.store, digest);
		return error_origin(-ENOMEM);
	}
	*ret = adapter;
	return CACHE_OK;
}

struct cache_adapter *cache_put(struct cache *cache, struct cache_adapter *adapter)
{
	struct store_digest digest;

	if (!adapter)
		return NULL;
	digest = adapter->record.digest;
	pthread_mutex_lock(&cache->lock);
	assert(adapter->refs > 0);
	--adapter->refs;
	if (adapter->to_tell > adapter->refs)
		adapter->to_tell = adapter->refs;
	cache_settle(adapter);
	pthread_mutex_unlock(&cache->lock);
	store_release(cache->options.store, &digest);
	return NULL;
}

/**
 * cache_hold() - make a version resident and keep it there
 * @adapter:    one the caller has a reference to
 * @diag:       says why not, for all results but OK and PENDING
 *
 * Return: CACHE_OK: held, until cache_unhold(); CACHE_E_PENDING, _NO_ROOM: ask again; CACHE_E_FAILED, _UNFIT, _TOO_LARGE.
 */
int cache_hold(struct cache *cache, struct cache_adapter *adapter, struct diag *diag)
{
	bool upload = false;
	int r;

	cache_poll(cache);
	pthread_mutex_lock(&cache->lock);
	assert(adapter->refs > 0);
	r = fault(adapter, &upload, diag);
	if (r == CACHE_OK)
		++adapter->holds;
	cache_settle(adapter);
	pthread_mutex_unlock(&cache->lock);
	if (upload)
		start_upload(adapter);
	return r;
}

void cache_unhold(struct cache *cache, struct cache_adapter *adapter)
{
	pthread_mutex_lock(&cache->lock);
	assert(adapter->holds > 0);
	--adapter->holds;
	cache_settle(adapter);
	pthread_mutex_unlock(&cache->lock);
}

const struct step_lora *cache_lora(const struct cache_adapter *adapter)
{
	assert(adapter->copy[TIER_DEVICE].present); /* steady while the caller holds it; the count is not */
	return &adapter->lora;
}

/** cache_load_ns() - how long its last page-in took; while held */
uint64_t cache_load_ns(const struct cache_adapter *adapter)
{
	return adapter->load_ns;
}

enum cache_state cache_state(struct cache *cache, const struct store_record *record)
{
	enum cache_state state = CACHE_STORE;
	struct cache_adapter *adapter;

	if (!fits(cache, record))
		return CACHE_UNFIT;
	pthread_mutex_lock(&cache->lock);
	adapter = find(cache, &record->digest);
	if (adapter)
		state = adapter->copy[TIER_DEVICE].present	? CACHE_DEVICE :
			adapter->reading || adapter->uploading ? CACHE_LOADING :
			adapter->copy[TIER_HOST].present	? CACHE_HOST :
								  CACHE_STORE;
	pthread_mutex_unlock(&cache->lock);
	return state;
}

/* Starts a page-in that no reference asks for, and pins what is or will be resident if that is wanted. */
static int fault_digest(struct cache *cache, const struct store_digest *digest, bool pin, struct diag *diag)
{
	struct cache_adapter *adapter;
	struct store_record record;
	bool upload = false;
	int r;

	r = store_record(cache->options.store, digest, &record);
	if (r)
		return r == STORE_E_NOT_FOUND ? CACHE_E_NOT_FOUND : r > 0 ? CACHE_E_FAILED : error_trace(r);
	pthread_mutex_lock(&cache->lock);
	adapter = find_or_add(cache, &record);
	if (adapter) {
		r = fault(adapter, &upload, diag);
		adapter->pinned |= pin && (r == CACHE_OK || r == CACHE_E_PENDING);
		cache_settle(adapter);
	}
	pthread_mutex_unlock(&cache->lock);
	if (upload)
		start_upload(adapter);
	return adapter ? r : error_origin(-ENOMEM);
}

/**
 * cache_prefetch() - start a page-in that nobody waits for
 *
 * Return: CACHE_OK: resident; CACHE_E_PENDING: on its way; the other results of cache_hold(); -errno.
 */
int cache_prefetch(struct cache *cache, const struct store_digest *digest, struct diag *diag)
{
	return fault_digest(cache, digest, /* pin= */ false, diag);
}

static int unpin(struct cache *cache, const struct store_digest *digest)
{
	struct cache_adapter *adapter;

	pthread_mutex_lock(&cache->lock);
	adapter = find(cache, digest);
	if (adapter) {
		adapter->pinned = false;
		cache_settle(adapter);
	}
	pthread_mutex_unlock(&cache->lock);
	if (adapter)
		changed(cache);
	return CACHE_OK;
}

/**
 * cache_pin() - keep a version in memory, or stop doing so
 * @pinned:     true starts a page-in where it is needed
 *
 * A pin is no reference: unpin a version when its name is removed. Pins do not outlive the daemon.
 *
 * Return: CACHE_OK: done, though the page-in may be under way; the results of cache_hold() where it cannot be resident,
 * and then it is not pinned; -errno.
 */
int cache_pin(struct cache *cache, const struct store_digest *digest, bool pinned)
{
	int r = pinned ? fault_digest(cache, digest, /* pin= */ true, NULL) : unpin(cache, digest);

	return r == CACHE_E_PENDING ? CACHE_OK : r;
}

bool cache_is_pinned(struct cache *cache, const struct store_digest *digest)
{
	const struct cache_adapter *adapter;
	bool pinned;

	pthread_mutex_lock(&cache->lock);
	adapter = find(cache, digest);
	pinned = adapter && adapter->pinned;
	pthread_mutex_unlock(&cache->lock);
	return pinned;
}

void cache_read_stats(struct cache *cache, struct cache_stats *ret)
{
	pthread_mutex_lock(&cache->lock);
	*ret = cache->stats;
	pthread_mutex_unlock(&cache->lock);
}
