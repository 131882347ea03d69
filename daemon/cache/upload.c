/* SPDX-License-Identifier: MIT */
/*
 * From the host tier to the device
 *
 * A copy travels as it lies: the payload, and behind it the module table with the matrices' device addresses. Uploads run
 * beside the steps. One ends on a thread of the device's library, which only puts it on a list; it becomes usable at the
 * next turn of the scheduler: the device is told to let later ops see it (join), and only then can it be held. So no
 * step ever waits for an upload.
 *
 * A device that failed ends no upload any more. The daemon then ends, and cache_wait_uploads() does not wait.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>
#include <time.h>

#include "daemon/base/clock.h"
#include "daemon/base/error.h"
#include "daemon/cache/cache-internal.h"

#define LOOK_NS 1000000 /* between two looks while waiting */

/**
 * cache_make_usable() - read the module table of a payload
 * @host:       the payload in host memory; the matrices are taken to lie in the device copy
 *
 * Return: 0; STORE_E_CORRUPT with the reason in @diag; -errno.
 */
int cache_make_usable(struct cache_adapter *adapter, const void *host, struct diag *diag)
{
	struct cache *cache = adapter->cache;
	const struct image_module *modules;
	int r;

	r = image_modules(host, &adapter->work->load.header, cache_encoding(adapter), &modules, diag);
	if (r)
		return r < 0 ? error_trace(r) : STORE_E_CORRUPT;
	return error_trace(step_lora_init(&adapter->lora, &cache->options.geometry, modules,
					  adapter->work->load.header.n_modules, cache_address(adapter, CACHE_TIER_DEVICE)));
}

/* On a thread of the device's library, which must not be called from here. */
static void upload_done(struct kern_upload *upload)
{
	struct cache_adapter *adapter = container_of(upload, struct cache_work, upload)->adapter;
	struct cache *cache = adapter->cache;

	pthread_mutex_lock(&cache->lock);
	list_append(&cache->uploaded, &adapter->uploaded);
	pthread_mutex_unlock(&cache->lock);
	if (cache->options.changed)
		cache->options.changed(cache->options.userdata);
}

/**
 * cache_upload() - start an upload
 * @adapter:    its host copy is whole and its device copy filling: so nobody else touches them
 *
 * Return: 0; -EAGAIN: the device has no place for one more; other -errno.
 */
int cache_upload(struct cache_adapter *adapter)
{
	const struct cache_options *options = &adapter->cache->options;
	uint8_t *host = cache_address(adapter, CACHE_TIER_HOST), *device = cache_address(adapter, CACHE_TIER_DEVICE);
	size_t at = cache_image_bytes(adapter);
	int r;

	r = cache_make_usable(adapter, host, NULL);
	if (r)
		return r < 0 ? error_trace(r) : error_origin(-EBADMSG);
	step_lora_place(&adapter->lora, host + at, device + at);
	adapter->work->began_ns = clock_ns();
	adapter->work->upload = (struct kern_upload){
		.to = device,
		.from = host,
		.bytes = at + adapter->cache->table_bytes,
		.done = upload_done,
	};
	r = options->memory->upload(options->device, &adapter->work->upload);
	return r == -EAGAIN ? r : error_trace(r);
}

static void finish_upload(struct cache *cache, struct cache_adapter *adapter)
{
	uint64_t now = clock_ns(), took = now - adapter->work->began_ns;

	adapter->work->load_ns += took;
	adapter->used_ns = now;
	cache_note_whole(adapter, CACHE_TIER_DEVICE);
	hist_add(&cache->stats.upload, took);
	++cache->stats.uploads;
	--cache->stats.loading;
	cache_settle(adapter);
}

static struct cache_adapter *take_uploaded(struct cache *cache)
{
	struct cache_adapter *adapter;

	pthread_mutex_lock(&cache->lock);
	adapter = list_first(&cache->uploaded, struct cache_adapter, uploaded);
	if (adapter)
		list_unlink(&adapter->uploaded);
	pthread_mutex_unlock(&cache->lock);
	return adapter;
}

/**
 * cache_poll() - make usable what has arrived
 *
 * On the thread that runs steps, between two of them: a join stands in line with the ops and must not get into a recording.
 * Called without the lock, which upload_done() takes.
 */
void cache_poll(struct cache *cache)
{
	struct cache_adapter *adapter;

	if (!cache->options.host_pool)
		return; /* nothing is ever uploaded */
	while ((adapter = take_uploaded(cache))) {
		/* still marked as uploading: nobody else touches it. A device that failed tells so at the step's fence. */
		(void)cache->options.memory->join(cache->options.device, &adapter->work->upload);
		pthread_mutex_lock(&cache->lock);
		finish_upload(cache, adapter);
		pthread_mutex_unlock(&cache->lock);
	}
}

static bool any_uploading(struct cache *cache)
{
	struct cache_adapter *adapter;
	bool any = false;

	pthread_mutex_lock(&cache->lock);
	for (size_t i = 0; i < CACHE_BUCKETS; ++i)
		list_for_each(adapter, &cache->buckets[i], bucket)
			any |= cache_is_uploading(adapter);
	pthread_mutex_unlock(&cache->lock);
	return any;
}

/** cache_wait_uploads() - until none is under way, or the device has failed */
void cache_wait_uploads(struct cache *cache)
{
	const struct timespec pause = { .tv_nsec = LOOK_NS };
	struct kern_failure failure = { 0 };

	for (cache_poll(cache); any_uploading(cache) && !failure.code; cache_poll(cache)) {
		(void)cache->options.memory->fence(cache->options.device);
		cache->options.memory->failure(cache->options.device, &failure);
		(void)clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
	}
}
