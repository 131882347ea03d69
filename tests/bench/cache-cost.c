/* SPDX-License-Identifier: MIT */
/*
 * What calls of the cache cost with 10,000 versions known
 *
 * usage: cache-cost [ROUNDS]
 *
 * The real cache, policy and pool above a store and a pager that answer at once, so that only the cache's own time is seen:
 * 10,000 versions of 64 KiB to 64 MiB were used, 256 are held by running requests, the others fill a pool of 64 GiB or are
 * only known. Printed: nanoseconds of each call, the least of ROUNDS (default 9) rounds, and memory per version.
 */
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "daemon/base/clock.h"
#include "daemon/cache/cache.h"

#define KNOWN 10000u
#define RUNNING 256u
#define WAITING 512u
#define POOL_BYTES ((size_t)64 << 30)

enum call { GET_PUT, HOLD_UNHOLD, WANT, TURN, MISS, SHRINK, INFO, STATS, EACH, _CALL_N };
static const char *const call_names[_CALL_N] = {
	[GET_PUT] = "cache_get + cache_put",
	[HOLD_UNHOLD] = "cache_hold + cache_unhold, resident",
	[WANT] = "cache_want, resident",
	[TURN] = "a turn: cache_begin_turn, 512 times cache_want",
	[MISS] = "cache_hold of an absent one, evictions and the page-in's end included",
	[SHRINK] = "cache_shrink by 64 MiB",
	[INFO] = "cache_read_info",
	[STATS] = "cache_read_stats",
	[EACH] = "cache_each over all",
};

static const struct image_geometry geometry = {
	.n_layers = 2, .hidden = 64, .intermediate = 128, .n_heads = 4, .n_kv_heads = 2, .head_dim = 16, .vocab = 256,
};
static struct image_module module = { .module = 0, .rank = 8, .dtype = KERN_F32, .scale = 1 };
static uint8_t *image;
static uint64_t image_bytes;
static struct pager_load *queue;
static struct cache *cache;
static struct cache_adapter *adapters[KNOWN];

/* ---- a store and a pager without a disk ---- */

static struct store_digest digest_of(uint32_t i)
{
	struct store_digest digest = { { 0 } };
	uint64_t x = (i + 1) * UINT64_C(0x9e3779b97f4a7c15);

	for (unsigned k = 0; k < sizeof(digest); k += sizeof(x)) {
		x ^= x >> 29;
		x *= UINT64_C(0xbf58476d1ce4e5b9);
		memcpy(digest.bytes + k, &x, sizeof(x));
	}
	memcpy(digest.bytes + sizeof(digest) - sizeof(i), &i, sizeof(i));
	return digest;
}

int store_record(struct store *store, const struct store_digest *digest, struct store_record *ret)
{
	uint32_t i;

	(void)store;
	memcpy(&i, digest->bytes + sizeof(*digest) - sizeof(i), sizeof(i));
	*ret = (struct store_record){ .digest = *digest, .n_modules = 1, .max_rank = 8, .geometry = geometry };
	ret->payload_bytes = (uint64_t)POOL_PAGE << i % 11;
	return 0;
}

int store_hold(struct store *store, const struct store_digest *digest, struct store_record *ret)
{
	return store_record(store, digest, ret);
}

void store_release(struct store *store, const struct store_digest *digest)
{
	(void)store;
	(void)digest;
}

void pager_submit(struct pager *pager, struct pager_load *load)
{
	(void)pager;
	load->next = queue;
	queue = load;
}

static void run_pager(void)
{
	while (queue) {
		struct pager_load *load = queue;

		queue = load->next;
		memcpy(load->to, image, image_bytes);
		load->header = (struct image_header){
			.n_modules = 1, .max_rank = 8, .geometry = geometry, .payload_bytes = image_bytes };
		load->started_ns = clock_ns();
		load->done(load, 0);
	}
}

/* ---- calls ---- */

static struct cache_adapter *get(uint32_t i)
{
	const struct store_digest digest = digest_of(i);
	struct cache_adapter *adapter = NULL;

	if (cache_get(cache, &digest, &adapter) != CACHE_OK)
		abort();
	return adapter;
}

/* Until it is held; anything else than success ends the benchmark. */
static void hold(struct cache_adapter *adapter)
{
	int r;

	while ((r = cache_hold(cache, adapter, NULL)) == CACHE_E_PENDING)
		run_pager();
	if (r != CACHE_OK) {
		(void)fprintf(stderr, "cache-cost: cache_hold: %d\n", r);
		exit(1);
	}
}

static void use(uint32_t i)
{
	struct cache_adapter *adapter = get(i);

	cache_begin_turn(cache);
	hold(adapter);
	cache_unhold(cache, adapter);
	cache_put(cache, adapter);
}

static void nothing(void *userdata, const struct cache_info *info)
{
	(void)userdata;
	(void)info;
}

/* The first absent version from *at on. */
static uint32_t find_absent(uint32_t *at)
{
	for (;; *at = (*at + 1) % KNOWN) {
		const struct store_digest digest = digest_of(*at);
		struct cache_info info;

		if (!cache_read_info(cache, &digest, &info) || info.state == CACHE_STORE)
			return *at;
	}
}

static uint64_t measure_miss(uint32_t *at)
{
	struct cache_adapter *adapter = get(find_absent(at));
	uint64_t began, took;

	cache_begin_turn(cache);
	began = clock_ns();
	hold(adapter);
	took = clock_ns() - began;
	cache_unhold(cache, adapter);
	cache_put(cache, adapter);
	return took;
}

static uint64_t measure_shrink(void)
{
	uint64_t began = clock_ns();

	if (!cache_shrink(cache, (size_t)64 << 20, 0))
		abort();
	return clock_ns() - began;
}

static double measure(enum call call)
{
	enum { TIMES = 2000 };
	static uint32_t at = 1;
	uint64_t began, sum = 0;

	if (call == MISS || call == SHRINK) {
		unsigned n = call == MISS ? 100 : 10; /* so that as much is read as is evicted */

		for (unsigned i = 0; i < n; ++i)
			sum += call == MISS ? measure_miss(&at) : measure_shrink();
		return (double)sum / n;
	}
	began = clock_ns();
	for (unsigned i = 0; i < TIMES; ++i) {
		const struct store_digest digest = digest_of(i * 7 % KNOWN);
		struct cache_adapter *adapter = adapters[i % RUNNING];
		struct cache_stats stats;
		struct cache_info info;

		if (call == GET_PUT) {
			cache_put(cache, get(i * 7 % KNOWN));
		} else if (call == HOLD_UNHOLD) {
			hold(adapter);
			cache_unhold(cache, adapter);
		} else if (call == WANT) {
			(void)cache_want(cache, adapter, NULL);
		} else if (call == TURN) {
			cache_begin_turn(cache);
			for (unsigned k = 0; k < WAITING; ++k)
				(void)cache_want(cache, adapters[k % RUNNING], NULL);
		} else if (call == INFO) {
			(void)cache_read_info(cache, &digest, &info);
		} else if (call == STATS) {
			cache_read_stats(cache, &stats);
		} else {
			cache_each(cache, nothing, NULL);
			return (double)(clock_ns() - began);
		}
	}
	return (double)(clock_ns() - began) / TIMES;
}

int main(int argc, char **argv)
{
	unsigned rounds = argc > 1 ? (unsigned)atoi(argv[1]) : 9;
	double least[_CALL_N];
	struct cache_options options = { .geometry = geometry, .device_bytes = POOL_BYTES };
	struct cache_stats stats;
	size_t before;
	void *region;

	if (rounds < 1)
		return 2;
	region = mmap((void *)((uintptr_t)1 << 44), POOL_BYTES, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (region == MAP_FAILED || image_plan(&module, 1, &geometry, &image_bytes, NULL) ||
	    pool_new(&options.pool, region, POOL_BYTES) || cache_new(&cache, &options))
		return 1;
	image = calloc(1, image_bytes);
	image_begin(image, image_bytes, &module, 1);
	for (uint32_t i = 0; i < RUNNING; ++i) {
		adapters[i] = get(i);
		hold(adapters[i]);
	}
	before = mallinfo2().uordblks;
	for (uint32_t i = RUNNING; i < KNOWN; ++i)
		use(i);
	cache_read_stats(cache, &stats);
	printf("%llu known, %llu resident, %.0f bytes of heap per version\n", (unsigned long long)stats.known,
	       (unsigned long long)stats.tier[CACHE_TIER_DEVICE].adapters,
	       (double)(mallinfo2().uordblks - before) / (KNOWN - RUNNING));
	for (unsigned round = 0; round < rounds; ++round) {
		for (unsigned call = 0; call < _CALL_N; ++call) {
			double ns = measure((enum call)call);

			least[call] = round == 0 || ns < least[call] ? ns : least[call];
		}
	}
	for (unsigned call = 0; call < _CALL_N; ++call)
		printf("| %s | %.0f |\n", call_names[call], least[call]);
	return 0;
}
