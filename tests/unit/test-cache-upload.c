/* SPDX-License-Identifier: MIT */
/*
 * The cache above a device with memory of its own: store -> host -> device, both tiers evicting, uploads that end late, are
 * refused, or never end.
 *
 * The device here has addresses that are no memory of the host's (a fixed distance from a shadow of it), copies on a thread
 * of its own, and knows joins: what was not joined counts as not there.
 */
#include "tests/unit/cache-util.h"

#include <errno.h>
#include <unistd.h>

#define DEVICE_BASE ((uintptr_t)1 << 46)
#define UPLOADS_MAX 2

static uint8_t *shadow;                /* what is in device memory */
static struct pool *host_pool;
static pthread_t thread;
static struct kern_upload *queue[UPLOADS_MAX];
static _Atomic unsigned n_started, n_joined, n_under_way;
static _Atomic bool ending, dead, held_back; /* dead: the device failed; held_back: uploads wait */
static _Atomic int refuse_next;

static const void *to_host(const void *device)
{
	ck_assert_uint_ge((uintptr_t)device, DEVICE_BASE);
	ck_assert_uint_lt((uintptr_t)device, DEVICE_BASE + REGION_BYTES);
	return shadow + ((uintptr_t)device - DEVICE_BASE);
}

static void *copies(void *unused)
{
	(void)unused;
	pthread_mutex_lock(&lock);
	while (!ending) {
		struct kern_upload *upload = held_back || dead ? NULL : queue[0];

		if (upload) {
			queue[0] = queue[1];
			queue[1] = NULL;
			memcpy((void *)(uintptr_t)to_host(upload->to), upload->from, upload->bytes);
			pthread_mutex_unlock(&lock);
			upload->done(upload);
		} else {
			pthread_mutex_unlock(&lock);
			usleep(200);
		}
		pthread_mutex_lock(&lock);
	}
	pthread_mutex_unlock(&lock);
	return NULL;
}

static int upload(struct kern_device *device, struct kern_upload *upload)
{
	int r = 0;

	(void)device;
	pthread_mutex_lock(&lock);
	if (refuse_next) {
		r = refuse_next;
		refuse_next = 0;
	} else if (n_under_way == UPLOADS_MAX) {
		r = -EAGAIN;
	} else {
		queue[queue[0] ? 1 : 0] = upload;
		++n_under_way;
		++n_started;
	}
	pthread_mutex_unlock(&lock);
	return r;
}

static int join(struct kern_device *device, struct kern_upload *upload)
{
	(void)device;
	(void)upload;
	pthread_mutex_lock(&lock);
	--n_under_way;
	++n_joined;
	pthread_mutex_unlock(&lock);
	return 0;
}

static int fence(struct kern_device *device)
{
	(void)device;
	return dead ? -EIO : 0;
}

static void failure(struct kern_device *device, struct kern_failure *ret)
{
	(void)device;
	*ret = (struct kern_failure){ .code = dead ? 700 : 0 };
}

static const struct kern_device_ops device_ops = { .upload = upload, .join = join, .fence = fence, .failure = failure };

/* Room for two on the device and three in the host tier. */
static void setup(void)
{
	struct cache_options options = { .device_bytes = 2 * CHARGE, .geometry = *test_geometry(), .changed = on_changed };
	struct pager_options pager_options = {};
	uint8_t *base;

	seen_by_host = to_host;
	ending = dead = held_back = false;
	n_started = n_joined = n_under_way = 0;
	folder = test_folder();
	store = test_open(folder);
	region = mmap(NULL, 2 * REGION_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ck_assert_ptr_ne(region, MAP_FAILED);
	base = (uint8_t *)(((uintptr_t)region + (2u << 20) - 1) & ~(uintptr_t)((2u << 20) - 1));
	shadow = malloc(REGION_BYTES);
	ck_assert_int_eq(pool_new(&host_pool, base, 3 * CHARGE), 0);
	ck_assert_int_eq(pool_new(&pool, (void *)DEVICE_BASE, REGION_BYTES), 0);
	pager_options.region = region;
	pager_options.region_bytes = 2 * REGION_BYTES;
	ck_assert_int_eq(pager_new(&pager, store, &pager_options), 0);
	options.store = store;
	options.pager = pager;
	options.pool = pool;
	options.host_pool = host_pool;
	options.memory = &device_ops;
	ck_assert_int_eq(cache_new(&cache, &options), 0);
	ck_assert_int_eq(pthread_create(&thread, NULL, copies, NULL), 0);
	for (uint64_t i = 1; i <= 5; ++i) {
		char name[8];

		(void)snprintf(name, sizeof(name), "n%d", (int)i);
		add(name, i, test_geometry());
	}
}

static void teardown(void)
{
	pager_free(pager);
	cache_free(cache);
	pthread_mutex_lock(&lock);
	ending = true;
	pthread_mutex_unlock(&lock);
	pthread_join(thread, NULL);
	ck_assert_uint_eq(pool_used(pool, POOL_ADAPTERS), 0);
	ck_assert_uint_eq(pool_used(host_pool, POOL_ADAPTERS), 0);
	ck_assert(dead || n_joined == n_started);
	pool_free(pool);
	pool_free(host_pool);
	free(shadow);
	munmap(region, 2 * REGION_BYTES);
	store_close(store);
	test_folder_free(folder);
}

/* The module table went to the device as well, with the device's addresses in it. */
static void assert_table(const struct cache_adapter *adapter)
{
	const struct step_lora *lora = cache_lora(adapter);
	const struct kern_lora *table = to_host(lora->on_device);

	ck_assert_int_eq(memcmp(table, lora->modules, lora->n_modules * sizeof(*table)), 0);
	ck_assert_uint_ge((uintptr_t)table[0].a, DEVICE_BASE);
}

START_TEST(goes_through_the_host_tier)
{
	struct cache_adapter *one = get(1);

	ck_assert_int_eq(hold(one, NULL), CACHE_OK);
	assert_content(one, 1);
	assert_table(one);
	ck_assert_int_eq(state_of(1), CACHE_DEVICE);
	ck_assert_uint_eq(n_joined, 1);
	ck_assert_uint_eq(stats().uploads, 1);
	ck_assert_uint_eq(stats().tier[CACHE_TIER_HOST].bytes, CHARGE);
	ck_assert_uint_eq(stats().tier[CACHE_TIER_DEVICE].bytes, CHARGE);
	ck_assert_uint_gt(cache_load_ns(one), 0);
	cache_unhold(cache, one);
	cache_put(cache, one);
}
END_TEST

/* Four by turns where two fit on the device and three in host memory: the right content every time. */
START_TEST(both_tiers_evict)
{
	for (unsigned round = 0; round < 20; ++round)
		ck_assert_int_eq(touch(1 + round * 7 % 5), CACHE_OK);
	ck_assert_uint_eq(stats().uploads, 20);
	ck_assert_uint_gt(evictions(), 30);
	ck_assert_uint_le(pool_used(pool, POOL_ADAPTERS), 2 * CHARGE);
	ck_assert_uint_le(pool_used(host_pool, POOL_ADAPTERS), 3 * CHARGE);
}
END_TEST

/* Off the device, but still in host memory: no read, a hit there, and the state says so. */
START_TEST(comes_back_from_the_host_tier)
{
	ck_assert_int_eq(touch(1), CACHE_OK);
	ck_assert_int_eq(touch(2), CACHE_OK);
	ck_assert_int_eq(touch(3), CACHE_OK);
	ck_assert_int_eq(state_of(1), CACHE_HOST);
	ck_assert_int_eq(touch(1), CACHE_OK);
	ck_assert_uint_eq(stats().loads, 3);
	ck_assert_uint_eq(stats().uploads, 4);
	ck_assert_uint_eq(stats().tier[CACHE_TIER_HOST].hits, 1);
}
END_TEST

/* While an upload is under way nobody can hold it, others are not held up, and its host copy stays. */
START_TEST(upload_under_way)
{
	struct cache_adapter *one, *two;

	ck_assert_int_eq(touch(2), CACHE_OK);
	held_back = true;
	one = get(1);
	while (state_of(1) != CACHE_LOADING || n_started < 2) {
		ck_assert_int_eq(cache_hold(cache, one, NULL), CACHE_E_PENDING);
		usleep(1000);
	}
	two = get(2);
	ck_assert_int_eq(cache_hold(cache, two, NULL), CACHE_OK);
	ck_assert_int_eq(cache_hold(cache, one, NULL), CACHE_E_PENDING);
	held_back = false;
	ck_assert_int_eq(hold(one, NULL), CACHE_OK);
	assert_content(one, 1);
	cache_unhold(cache, one);
	cache_unhold(cache, two);
	cache_put(cache, one);
	cache_put(cache, two);
}
END_TEST

/* Everything on the device is held: it waits in host memory until something is let go. */
START_TEST(no_room_on_the_device)
{
	struct cache_adapter *one = get(1), *two = get(2), *three = get(3);
	int r;

	ck_assert_int_eq(hold(one, NULL), CACHE_OK);
	ck_assert_int_eq(hold(two, NULL), CACHE_OK);
	while ((r = hold(three, NULL)) == CACHE_E_PENDING)
		;
	ck_assert_int_eq(r, CACHE_E_NO_ROOM);
	ck_assert_int_eq(state_of(3), CACHE_HOST);
	cache_unhold(cache, one);
	ck_assert_int_eq(hold(three, NULL), CACHE_OK);
	assert_content(three, 3);
	cache_unhold(cache, two);
	cache_unhold(cache, three);
	cache_put(cache, one);
	cache_put(cache, two);
	cache_put(cache, three);
}
END_TEST

START_TEST(upload_refused)
{
	struct cache_adapter *one = get(1);
	struct diag diag = { 0 };

	refuse_next = -EIO;
	ck_assert_int_eq(hold(one, &diag), CACHE_E_FAILED);
	ck_assert_msg(strstr(diag.text, "device"), "%s", diag.text);
	ck_assert_int_eq(hold(one, NULL), CACHE_OK); /* a new attempt, from host memory */
	ck_assert_uint_eq(stats().loads, 1);
	cache_unhold(cache, one);
	cache_put(cache, one);
}
END_TEST

/* The device dies with an upload under way: freeing the cache does not wait for it. */
START_TEST(device_that_died)
{
	struct cache_adapter *one = get(1);

	held_back = true;
	while (n_started < 1) {
		ck_assert_int_eq(cache_hold(cache, one, NULL), CACHE_E_PENDING);
		usleep(1000);
	}
	dead = true;
	cache_put(cache, one);
}
END_TEST

/* More on their way than the device takes at once: prefetched ones wait their turn in host memory. */
START_TEST(pins_and_prefetches)
{
	const struct store_digest first = test_digest(1), second = test_digest(2);

	ck_assert_int_eq(cache_pin(cache, &first, true), CACHE_OK);
	ck_assert_int_eq(cache_prefetch(cache, &second, NULL), CACHE_E_PENDING);
	while (touch(3) == CACHE_E_NO_ROOM) /* until the second has arrived and can be evicted */
		;
	ck_assert_int_eq(touch(4), CACHE_OK);
	ck_assert_int_eq(touch(1), CACHE_OK);
	ck_assert_int_eq(state_of(1), CACHE_DEVICE); /* pinned: never evicted from there */
	ck_assert_int_eq(cache_pin(cache, &first, false), CACHE_OK);
	ck_assert_int_eq(touch(3), CACHE_OK);
	ck_assert_int_eq(touch(4), CACHE_OK);
	ck_assert_int_ne(state_of(1), CACHE_DEVICE);
}
END_TEST

/* An administrator's hands on the cache, beside the thread that runs steps. */
static void *administer(void *userdata)
{
	uint64_t x = (uintptr_t)userdata;

	for (unsigned i = 0; i < 400; ++i) {
		struct store_digest digest;
		uint64_t random;

		test_fill(&random, sizeof(random), x * 1000 + i);
		digest = test_digest((random >> 8) % 5 + 1);
		if (random >> 20 & 1)
			(void)cache_prefetch(cache, &digest, NULL);
		else if (random >> 21 & 1)
			cache_forget(cache, &digest);
		else
			(void)cache_pin(cache, &digest, random >> 22 & 1);
		(void)state_of((random >> 24) % 5 + 1);
	}
	return NULL;
}

/* Reads, uploads and evictions of both tiers beside each other; the counters agree with the pools in the end. */
START_TEST(under_load)
{
	pthread_t threads[2];
	struct cache_stats s;

	for (uintptr_t i = 0; i < 2; ++i)
		ck_assert_int_eq(pthread_create(&threads[i], NULL, administer, (void *)i), 0);
	for (unsigned i = 0; i < 150; ++i) {
		int r = touch(1 + i * 7 % 5);

		ck_assert_msg(r == CACHE_OK || r == CACHE_E_NO_ROOM, "%d", r);
	}
	for (unsigned i = 0; i < 2; ++i)
		pthread_join(threads[i], NULL);
	do {
		cache_begin_turn(cache);
		s = stats();
	} while (s.loading > 0);
	ck_assert_uint_eq(s.tier[CACHE_TIER_DEVICE].bytes, pool_used(pool, POOL_ADAPTERS));
	ck_assert_uint_eq(s.tier[CACHE_TIER_HOST].bytes, pool_used(host_pool, POOL_ADAPTERS));
	ck_assert_uint_eq(s.uploads, s.upload.n);
	ck_assert_uint_eq(s.loads, s.page_in.n);
	ck_assert_uint_eq(s.loads + s.uploads, cache_evictions(&s) + s.tier[CACHE_TIER_DEVICE].adapters +
						       s.tier[CACHE_TIER_HOST].adapters);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("cache-upload");
	TCase *tc = tcase_create("cache-upload");

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 60);
	tcase_add_test(tc, goes_through_the_host_tier);
	tcase_add_test(tc, both_tiers_evict);
	tcase_add_test(tc, comes_back_from_the_host_tier);
	tcase_add_test(tc, upload_under_way);
	tcase_add_test(tc, no_room_on_the_device);
	tcase_add_test(tc, upload_refused);
	tcase_add_test(tc, device_that_died);
	tcase_add_test(tc, pins_and_prefetches);
	tcase_add_test(tc, under_load);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
