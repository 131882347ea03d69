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

struct cache_adapter *cache_find(struct cache *cache, const struct store_digest *digest)
{
	struct list *bucket = bucket_of(cache, digest);
	struct cache_adapter *adapter;

	list_for_each(adapter, bucket, bucket)
		if (memcmp(&adapter->record.digest, digest, sizeof(*digest)) == 0)
			return adapter;
	return NULL;
}

static struct cache_adapter *add(struct cache *cache, const struct store_record *record)
{
	struct cache_adapter *adapter = calloc(1, sizeof(*adapter));

	if (!adapter)
		return NULL;
	adapter->cache = cache;
	adapter->record = *record;
	for (unsigned tier = 0; tier < _CACHE_TIER_N; ++tier)
		policy_item_init(&adapter->copy[tier].item, cache_charge(adapter));
	list_append(bucket_of(cache, &record->digest), &adapter->bucket);
	++cache->n_known;
	list_append(&cache->retired, &adapter->retired);
	++cache->n_retired;
	return adapter;
}

/* The version of a record, not retired: the caller gives it a use or settles it. NULL: no memory. */
static struct cache_adapter *find_or_add(struct cache *cache, const struct store_record *record)
{
	struct cache_adapter *adapter = cache_find(cache, &record->digest);

	if (adapter && adapter->work)
		return adapter;
	if (!adapter)
		adapter = add(cache, record);
	if (!adapter)
		return NULL;
	adapter->work = calloc(1, sizeof(*adapter->work));
	if (!adapter->work)
		return NULL; /* known and retired, which does no harm */
	list_unlink(&adapter->retired);
	--cache->n_retired;
	return adapter;
}

bool cache_fits(const struct cache *cache, const struct store_record *record)
{
	return memcmp(&record->geometry, &cache->options.geometry, sizeof(record->geometry)) == 0;
}

/* ---- page-ins ---- */

static void note_failure(struct cache_adapter *adapter, int result)
{
	struct cache_work *work = adapter->work;

	work->failure = work->load.diag;
	if (!work->failure.text[0])
		(void)diag_set(&work->failure, 0, "%s", result < 0 ? strerror(-result) : "it is damaged");
	work->to_tell = adapter->refs;
	++adapter->cache->stats.failures;
}

/* Is it what it says, and for this model? On the way to the host tier only looked at: upload.c reads it again. */
static int judge(struct cache_adapter *adapter)
{
	struct pager_load *load = &adapter->work->load;
	const struct image_module *modules;
	int r;

	if (adapter->cache->lowest == CACHE_TIER_DEVICE)
		return cache_make_usable(adapter, load->to, &load->diag);
	r = image_modules(load->to, &load->header, cache_encoding(adapter), &modules, &load->diag);
	return r > 0 ? STORE_E_CORRUPT : error_trace(r);
}

/* Memory on the device for what the host tier has; the caller starts the upload once the lock is free. */
static bool prepare_upload(struct cache_adapter *adapter, uint64_t since)
{
	if (adapter->copy[CACHE_TIER_DEVICE].state != COPY_ABSENT ||
	    cache_alloc(adapter, CACHE_TIER_DEVICE, since) != POOL_OK)
		return false;
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
	--cache->stats.loading;
	cache_drop(adapter, CACHE_TIER_DEVICE);
	if (r != -EAGAIN) {
		(void)diag_set(&adapter->work->load.diag, 0, "it cannot be copied to the device: %s", strerror(-r));
		note_failure(adapter, r);
	}
	cache_settle(adapter);
	pthread_mutex_unlock(&cache->lock);
	if (r != -EAGAIN) /* then an upload that ends will tell */
		changed(cache);
}

/* It is in the lowest tier. Return: and an upload has to be started. */
static bool note_read(struct cache_adapter *adapter)
{
	struct cache *cache = adapter->cache;
	struct cache_work *work = adapter->work;
	uint64_t now = clock_ns();

	++cache->stats.loads;
	++adapter->loads;
	work->began_ns = work->load.started_ns; /* not the wait for its turn */
	work->load_ns = now - work->began_ns;
	hist_add(&cache->stats.page_in, work->load_ns);
	adapter->used_ns = now;
	cache_note_whole(adapter, cache->lowest);
	return cache->lowest == CACHE_TIER_HOST && prepare_upload(adapter, cache->turn - 1);
}

/* On the pager's thread. While a version is read nobody else touches its load and its memory. */
static void load_done(struct pager_load *load, int result)
{
	struct cache_adapter *adapter = container_of(load, struct cache_work, load)->adapter;
	struct cache *cache = adapter->cache;
	bool upload = false;

	if (!result)
		result = judge(adapter);
	pthread_mutex_lock(&cache->lock);
	assert(cache_is_reading(adapter));
	--cache->stats.loading;
	cache->reading_bytes -= cache_charge(adapter);
	if (result) {
		note_failure(adapter, result);
		cache_drop(adapter, cache->lowest);
	} else {
		upload = note_read(adapter);
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
	struct pager_load *load = &adapter->work->load;

	++cache->stats.loading;
	cache->reading_bytes += cache_charge(adapter);
	adapter->work->adapter = adapter;
	*load = (struct pager_load){
		.digest = adapter->record.digest,
		.encoding = cache_encoding(adapter),
		.to = cache_address(adapter, cache->lowest),
		.room = cache_charge(adapter),
		.done = load_done,
	};
	pager_submit(cache->options.pager, load);
}

/* Why a version can never be used here, or CACHE_OK. */
static int refuse(const struct cache_adapter *adapter, struct diag *diag)
{
	const struct cache *cache = adapter->cache;
	size_t bytes = cache_charge(adapter);

	if (!cache_fits(cache, &adapter->record))
		return diag_set(diag, CACHE_E_UNFIT, "made for another base model");
	for (unsigned tier = cache->lowest; tier < _CACHE_TIER_N; ++tier)
		if (bytes > cache->tier[tier].limit || bytes > pool_size(cache->tier[tier].pool))
			return diag_set(diag, CACHE_E_TOO_LARGE, "its %zu bytes never fit into the adapters' memory", bytes);
	return CACHE_OK;
}

/* Lookahead leaves the disk to those who need it now: it adds to what is under way up to a bound. */
static bool is_enough_under_way(const struct cache_adapter *adapter)
{
	const struct cache *cache = adapter->cache;
	size_t most = cache->options.lookahead_bytes;

	return most && cache->reading_bytes && cache->reading_bytes + cache_charge(adapter) > most;
}

enum fault_kind {
	FAULT_HOLD,  /* a request needs it now */
	FAULT_WANT,  /* a request will */
	FAULT_ADMIN, /* nobody is known to */
};

/* Memory for the next step of its way, and that started. *ret_upload as fault()'s. */
static int advance(struct cache_adapter *adapter, enum fault_kind kind, bool *ret_upload, struct diag *diag)
{
	struct cache *cache = adapter->cache;
	uint64_t since = kind == FAULT_ADMIN ? cache->turn - 1 : cache->turn;

	if (adapter->copy[CACHE_TIER_HOST].state == COPY_WHOLE) {
		adapter->work->load_ns = 0;
		*ret_upload = prepare_upload(adapter, since);
		if (*ret_upload)
			return CACHE_E_PENDING;
	} else if (kind == FAULT_WANT && is_enough_under_way(adapter)) {
		return diag_set(diag, CACHE_E_LATER, "enough adapters are on their way");
	} else if (cache_alloc(adapter, cache->lowest, since) == POOL_OK) {
		start_load(adapter);
		return CACHE_E_PENDING;
	}
	return diag_set(diag, CACHE_E_NO_ROOM, "all adapters in memory are in use or pinned");
}

/*
 * Makes it usable or says why not yet; CACHE_OK takes no hold. With the lock. *ret_upload: the caller has to start one
 * after giving the lock back.
 */
static int fault(struct cache_adapter *adapter, enum fault_kind kind, bool *ret_upload, struct diag *diag)
{
	struct cache_work *work = adapter->work;
	int r;

	if (adapter->copy[CACHE_TIER_DEVICE].state == COPY_WHOLE)
		return CACHE_OK;
	if (cache_is_reading(adapter) || cache_is_uploading(adapter))
		return CACHE_E_PENDING;
	if (work->to_tell > 0) {
		work->to_tell -= kind == FAULT_HOLD;
		return diag_set(diag, CACHE_E_FAILED, "%s", work->failure.text);
	}
	r = refuse(adapter, diag);
	return r ? r : advance(adapter, kind, ret_upload, diag);
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
	cache->lowest = options->host_pool ? CACHE_TIER_HOST : CACHE_TIER_DEVICE;
	cache->table_bytes = options->host_pool ? step_lora_table_bytes(&options->geometry) : 0;
	cache->tier[CACHE_TIER_DEVICE] = (struct cache_tier_state){ .pool = options->pool, .limit = options->device_bytes };
	cache->tier[CACHE_TIER_HOST] = (struct cache_tier_state){
		.pool = options->host_pool,
		.limit = options->host_pool ? pool_size(options->host_pool) : 0,
	};
	cache->turn = 1;
	pthread_mutex_init(&cache->lock, NULL);
	list_init(&cache->uploaded);
	list_init(&cache->retired);
	for (unsigned tier = 0; tier < _CACHE_TIER_N; ++tier)
		policy_init(&cache->tier[tier].policy);
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
			assert(adapter->refs == 0 && !cache_is_reading(adapter));
			for (unsigned tier = 0; tier < _CACHE_TIER_N; ++tier)
				if (adapter->copy[tier].state != COPY_ABSENT) /* filling: on a device that failed */
					cache_drop(adapter, tier);
			list_unlink(&adapter->bucket);
			free(adapter->work);
			free(adapter);
		}
	}
	pthread_mutex_destroy(&cache->lock);
	free(cache);
	return NULL;
}

static void count_request(struct cache_adapter *adapter)
{
	struct cache_stats *stats = &adapter->cache->stats;

	++adapter->requests;
	cache_touch(adapter);
	for (unsigned tier = _CACHE_TIER_N; tier-- > 0;) {
		if (adapter->copy[tier].state == COPY_WHOLE) {
			++stats->tier[tier].hits;
			return;
		}
	}
	++stats->misses;
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
		count_request(adapter);
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
	if (adapter->work->to_tell > adapter->refs)
		adapter->work->to_tell = adapter->refs;
	cache_settle(adapter);
	pthread_mutex_unlock(&cache->lock);
	store_release(cache->options.store, &digest);
	return NULL;
}

/** cache_begin_turn() - what has arrived becomes usable, and the stamps of the turn before lose their force */
void cache_begin_turn(struct cache *cache)
{
	cache_poll(cache);
	pthread_mutex_lock(&cache->lock);
	++cache->turn;
	pthread_mutex_unlock(&cache->lock);
}

static int ask(struct cache *cache, struct cache_adapter *adapter, enum fault_kind kind, struct diag *diag)
{
	bool upload = false;
	int r;

	cache_poll(cache);
	pthread_mutex_lock(&cache->lock);
	assert(adapter->refs > 0);
	adapter->turn = cache->turn;
	r = fault(adapter, kind, &upload, diag);
	if (r == CACHE_OK && kind == FAULT_HOLD)
		++adapter->holds;
	cache_settle(adapter);
	pthread_mutex_unlock(&cache->lock);
	if (upload)
		start_upload(adapter);
	return r;
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
	return ask(cache, adapter, FAULT_HOLD, diag);
}

/**
 * cache_want() - have a version paged in for a request that cannot start yet
 * @adapter:    one the caller has a reference to
 *
 * A failure is not used up by this: cache_hold() will tell it as well.
 *
 * Return: CACHE_OK: it is resident, and stays so for this turn; CACHE_E_LATER: not started, enough is under way; the other
 * results of cache_hold().
 */
int cache_want(struct cache *cache, struct cache_adapter *adapter, struct diag *diag)
{
	return ask(cache, adapter, FAULT_WANT, diag);
}

void cache_unhold(struct cache *cache, struct cache_adapter *adapter)
{
	pthread_mutex_lock(&cache->lock);
	assert(adapter->holds > 0);
	--adapter->holds;
	adapter->used_ns = clock_ns();
	cache_settle(adapter);
	pthread_mutex_unlock(&cache->lock);
}

const struct step_lora *cache_lora(const struct cache_adapter *adapter)
{
	assert(adapter->copy[CACHE_TIER_DEVICE].state == COPY_WHOLE); /* steady while the caller holds it; the count is not */
	return &adapter->lora;
}

/** cache_load_ns() - how long its last page-in took; while held */
uint64_t cache_load_ns(const struct cache_adapter *adapter)
{
	return adapter->work->load_ns;
}

enum cache_state cache_state_of(const struct cache_adapter *adapter)
{
	if (!cache_fits(adapter->cache, &adapter->record))
		return CACHE_UNFIT;
	if (adapter->copy[CACHE_TIER_DEVICE].state == COPY_WHOLE)
		return CACHE_DEVICE;
	if (cache_is_reading(adapter) || cache_is_uploading(adapter))
		return CACHE_LOADING;
	return adapter->copy[CACHE_TIER_HOST].state == COPY_WHOLE ? CACHE_HOST : CACHE_STORE;
}

enum cache_state cache_state(struct cache *cache, const struct store_record *record)
{
	const struct cache_adapter *adapter;
	enum cache_state state;

	pthread_mutex_lock(&cache->lock);
	adapter = cache_find(cache, &record->digest);
	state = adapter			     ? cache_state_of(adapter) :
		cache_fits(cache, record) ? CACHE_STORE :
					     CACHE_UNFIT;
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
		cache_touch(adapter);
		r = fault(adapter, FAULT_ADMIN, &upload, diag);
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

static void unpin(struct cache *cache, const struct store_digest *digest, bool forget)
{
	struct cache_adapter *adapter;

	pthread_mutex_lock(&cache->lock);
	adapter = cache_find(cache, digest);
	if (adapter) {
		adapter->pinned = false;
		adapter->forgotten |= forget;
		cache_settle(adapter);
	}
	pthread_mutex_unlock(&cache->lock);
	if (adapter)
		changed(cache);
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
	int r;

	if (!pinned) {
		unpin(cache, digest, /* forget= */ false);
		return CACHE_OK;
	}
	r = fault_digest(cache, digest, /* pin= */ true, NULL);
	return r == CACHE_E_PENDING ? CACHE_OK : r;
}

/** cache_forget() - its name was removed: unpin it and let go of its memory as soon as nobody uses it */
void cache_forget(struct cache *cache, const struct store_digest *digest)
{
	unpin(cache, digest, /* forget= */ true);
}

bool cache_is_pinned(struct cache *cache, const struct store_digest *digest)
{
	const struct cache_adapter *adapter;
	bool pinned;

	pthread_mutex_lock(&cache->lock);
	adapter = cache_find(cache, digest);
	pinned = adapter && adapter->pinned;
	pthread_mutex_unlock(&cache->lock);
	return pinned;
}
