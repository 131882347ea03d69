/* SPDX-License-Identifier: MIT */
/*
 * The host side of the CUDA backend on the simulator: memory, copies, uploads, recorded steps, and every way in which a
 * call to CUDA can fail.
 *
 * The simulator lets streams get on in an order that follows from a seed and runs a copy as late as CUDA might, so what is
 * checked for many seeds here is that somebody waited for it. The linker sends calls of cuda_api() to __wrap_cuda_api().
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/cuda.h"
#include "kernels/cuda/device.h"
#include "tests/cudasim/engine.h"
#include "tests/cudasim/runtime.h"
#include "tests/lib/run-suite.h"

#define SEEDS 24
#define BYTES ((size_t)3 * CUDA_PIECE_BYTES + 4097) /* several pieces, the last one odd */

static const struct kern_device_ops *on;
static struct kern_device *device;

/* ---- a GPU of any age ---- */

static int capability; /* 0: the simulator's own */

static cudaError_t get_attribute(int *ret, enum cudaDeviceAttr attribute, int number)
{
	if (capability && (attribute == cudaDevAttrComputeCapabilityMajor || attribute == cudaDevAttrComputeCapabilityMinor)) {
		*ret = attribute == cudaDevAttrComputeCapabilityMajor ? capability / 10 : capability % 10;
		return cudaSuccess;
	}
	return cudasim_DeviceGetAttribute(ret, attribute, number);
}

const struct cuda_api *__real_cuda_api(struct kern_failure *why);
const struct cuda_api *__wrap_cuda_api(struct kern_failure *why);

const struct cuda_api *__wrap_cuda_api(struct kern_failure *why)
{
	static struct cuda_api table;
	const struct cuda_api *real = __real_cuda_api(why);

	if (!real)
		return NULL;
	table = *real;
	table.DeviceGetAttribute = get_attribute;
	return &table;
}

/* ---- the machine ---- */

static void boot(const char *devices, const char *driver)
{
	setenv("CUDASIM_MEMORY", "256M", 1);
	setenv("CUDASIM_DEVICES", devices, 1);
	setenv("CUDASIM_DRIVER", driver, 1);
	setenv("CUDASIM_SEED", "1", 1);
	cudasim_reset();
	capability = 0;
	on = kern_cuda()->device;
}

static void start(void)
{
	struct kern_failure why = { 0 };

	boot("1", "13000");
	ck_assert_msg(on->open(&device, 0, &why) == 0, "%s", why.text);
}

static void stop(void)
{
	device = on->close(device);
	ck_assert_ptr_null(device);
	ck_assert_msg(!cudasim_leaks(), "%s", cudasim_leaks());
}

static void fill(void *p, size_t bytes, uint32_t seed)
{
	uint32_t x = seed * 2654435761u + 1;

	for (size_t i = 0; i < bytes; i++) {
		x = x * 1664525 + 1013904223;
		((uint8_t *)p)[i] = (uint8_t)(x >> 24);
	}
}

static bool is_filled(const void *p, size_t bytes, uint32_t seed)
{
	uint32_t x = seed * 2654435761u + 1;

	for (size_t i = 0; i < bytes; i++) {
		x = x * 1664525 + 1013904223;
		if (((const uint8_t *)p)[i] != (uint8_t)(x >> 24))
			return false;
	}
	return true;
}

static void *host_memory(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	ck_assert_ptr_ne(p, MAP_FAILED);
	return p;
}

static void *device_memory(size_t bytes)
{
	void *p;

	ck_assert_int_eq(on->alloc(device, NULL, bytes, &p), 0);
	return p;
}

/* ---- open ---- */

static void assert_no_device(unsigned number, int code, const char *words)
{
	struct kern_failure why = { 0 };

	ck_assert_int_eq(on->open(&device, number, &why), -ENODEV);
	ck_assert_int_eq(why.code, code);
	ck_assert_str_eq(why.text, words);
	ck_assert_int_eq(on->open(&device, number, NULL), -ENODEV);
	ck_assert_ptr_null(device);
	ck_assert_ptr_null(cudasim_leaks());
}

START_TEST(what_cannot_be_had_is_named)
{
	boot("1", "0");
	assert_no_device(0, 35, "no NVIDIA driver is loaded (one for CUDA 13.0 or newer is needed)");
	boot("1", "12040");
	assert_no_device(0, 35, "the NVIDIA driver is too old: it is for CUDA 12.4, 13.0 is needed");
	boot("0", "13000");
	assert_no_device(0, 100, "there is a driver, but no CUDA device");
	boot("2", "13000");
	assert_no_device(2, 101, "there is no CUDA device 2, only 0 to 1");
	assert_no_device(UINT32_MAX, 101, "there is no CUDA device 4294967295, only 0 to 1");
	capability = 75;
	assert_no_device(1, 209, "CUDA device 1 is of compute capability 7.5, 8.0 or higher is needed");
	capability = 80;
	ck_assert_int_eq(on->open(&device, 1, NULL), 0);
	stop();
	setenv("CUDASIM_MEMORY", "24M", 1); /* less than cuBLAS gets */
	cudasim_reset();
	struct kern_failure why = { 0 };
	ck_assert_int_eq(on->open(&device, 1, &why), -ENOMEM);
	ck_assert_str_eq(why.text, "cudaMalloc for cuBLAS: cudaErrorMemoryAllocation: out of memory");
	ck_assert_ptr_null(cudasim_leaks());
}
END_TEST

/* ---- memory ---- */

START_TEST(memory_is_counted)
{
	struct kern_limits limits = { .rows = 8, .seqs = 4, .outputs = 4, .context = 4096, .n_heads = 9, .head_dim = 64, .vocab = 999 };
	size_t before, now, total;
	void *p[40];

	start();
	ck_assert_int_eq(on->memory(device, &before, &total), 0);
	ck_assert_uint_eq(total, (size_t)256 << 20);
	for (size_t i = 0; i < 40; i++) {
		p[i] = device_memory(i * 1000);
		ck_assert_uint_eq((uintptr_t)p[i] % 256, 0);
	}
	ck_assert_int_eq(on->memory(device, &now, &total), 0);
	ck_assert_uint_le(now, before - 39 * 20 * 1000);
	for (size_t i = 0; i < 40; i++)
		on->free(device, p[i * 7 % 40], i * 7 % 40 * 1000);
	on->free(device, NULL, 0);
	ck_assert_int_eq(on->memory(device, &now, &total), 0);
	ck_assert_uint_eq(now, before);

	ck_assert_int_eq(on->alloc(device, NULL, (size_t)1 << 30, &p[0]), -ENOMEM);
	ck_assert_int_eq(on->alloc(device, NULL, SIZE_MAX, &p[0]), -ENOMEM);
	ck_assert_int_eq(on->fence(device), 0);

	ck_assert_int_eq(on->reserve(device, &limits), 0);
	ck_assert_uint_eq(device->split_positions, 128);
	ck_assert_int_eq(on->memory(device, &before, &total), 0);
	limits.context = 8193;
	ck_assert_int_eq(on->reserve(device, &limits), 0);
	ck_assert_uint_eq(device->split_positions, 192);
	limits.context = 4096;
	ck_assert_int_eq(on->reserve(device, &limits), 0); /* in place of what was there */
	ck_assert_int_eq(on->memory(device, &now, &total), 0);
	ck_assert_uint_eq(now, before);
	limits.context = 131072;
	limits.seqs = 100000;
	ck_assert_int_eq(on->reserve(device, &limits), -ENOMEM);
	ck_assert_int_eq(on->fence(device), 0);
	(void)device_memory(1000); /* close() frees what is left */
	stop();
}
END_TEST

/* Freed places are used again, so addresses come in any order. */
START_TEST(every_piece_is_known)
{
	uint8_t *p[32], host[500], back[500];

	start();
	for (unsigned i = 0; i < 32; i++)
		p[i] = device_memory(500);
	for (unsigned i = 0; i < 32; i++)
		if (i % 3 != 1)
			on->free(device, p[i], 500);
	for (unsigned i = 32; i-- > 0;)
		if (i % 3 != 1)
			p[i] = device_memory(400 + i % 3 * 50);
	for (unsigned i = 0; i < 32; i++) {
		fill(host, 500, i);
		ck_assert_int_eq(on->copy_async(device, p[i], host, 400), 0);
	}
	for (unsigned i = 0; i < 32; i++) {
		ck_assert_int_eq(on->copy_async(device, back, p[i], 400), 0);
		ck_assert(is_filled(back, 400, i));
	}
	stop();
}
END_TEST

/* ---- copies in line ---- */

START_TEST(registered_copies_arrive)
{
	start();
	uint8_t *host = host_memory(2 * BYTES), *there = device_memory(BYTES), *beside = device_memory(BYTES);
	ck_assert_int_eq(on->register_host(device, host, 2 * BYTES), 0);
	for (uint32_t seed = 1; seed <= SEEDS; seed++) {
		cudasim_seed(seed);
		size_t offset = seed * 13, bytes = BYTES - offset;
		fill(host, bytes, seed);
		ck_assert_int_eq(on->copy_async(device, there + offset, host, bytes), 0);
		ck_assert_int_eq(on->copy_async(device, beside, there + offset, bytes), 0);
		ck_assert_int_eq(on->copy_async(device, host + BYTES, beside, bytes), 0);
		ck_assert_int_eq(on->copy_async(device, there, host, 0), 0);
		ck_assert_int_eq(on->fence(device), 0);
		ck_assert(is_filled(host + BYTES, bytes, seed));
	}
	ck_assert_int_eq(on->copy_async(device, host, host + 1000, 100), -EINVAL);
	ck_assert_int_eq(on->copy_async(device, there + BYTES, host, 1000), -EINVAL); /* beyond what was allocated */
	ck_assert_int_eq(on->fence(device), 0);
	on->unregister_host(device, host);
	on->unregister_host(device, host);
	munmap(host, 2 * BYTES);
	stop();
}
END_TEST

/* The caller's memory may go at once, and has what was asked for at once, with no fence. */
START_TEST(pageable_copies_take_the_detour)
{
	start();
	uint8_t *host = malloc(BYTES), *back = malloc(BYTES), *there = device_memory(BYTES);
	for (uint32_t seed = 1; seed <= SEEDS; seed++) {
		cudasim_seed(seed);
		fill(host, BYTES, seed);
		ck_assert_int_eq(on->copy_async(device, there, host, BYTES), 0);
		memset(host, 0, BYTES);
		ck_assert_int_eq(on->copy_async(device, back, there, BYTES), 0);
		ck_assert(is_filled(back, BYTES, seed));
	}
	on->unregister_host(device, host); /* never registered */
	free(host);
	free(back);
	stop();
}
END_TEST

START_TEST(a_refused_registration_means_a_detour)
{
	start();
	uint8_t *host = host_memory(BYTES), *back = host_memory(BYTES), *there = device_memory(BYTES);
	cudasim_fail("HostRegister:1");
	ck_assert_int_eq(on->register_host(device, host, BYTES), 1);
	ck_assert_int_eq(on->register_host(device, back, 8192), 0); /* only its beginning: what crosses the end is not */
	for (uint32_t seed = 1; seed <= SEEDS; seed++) {
		cudasim_seed(seed);
		fill(host, BYTES, seed);
		ck_assert_int_eq(on->copy_async(device, there, host, BYTES), 0);
		fill(host, BYTES, 0);
		ck_assert_int_eq(on->copy_async(device, back + 4096, there, BYTES - 4096), 0);
		ck_assert_int_eq(on->fence(device), 0);
		fill(host, BYTES, seed);
		ck_assert_int_eq(memcmp(back + 4096, host, BYTES - 4096), 0);
	}
	on->unregister_host(device, host);
	on->unregister_host(device, back);
	munmap(host, BYTES);
	munmap(back, BYTES);
	stop();
}
END_TEST

/* ---- uploads ---- */

struct test_upload {
	struct kern_upload upload;
	uint8_t *host, *there, *back;
	atomic_uint done;
};

static void note_done(struct kern_upload *upload)
{
	struct test_upload *u = (struct test_upload *)((char *)upload - offsetof(struct test_upload, upload));

	atomic_fetch_add(&u->done, 1);
}

static struct test_upload uploads[CUDA_UPLOADS + 1];

/* Host memory of every second one is registered. */
static void make_uploads(void)
{
	for (size_t i = 0; i < CUDA_UPLOADS + 1; i++) {
		struct test_upload *u = &uploads[i];
		*u = (struct test_upload){ .host = host_memory(BYTES), .there = device_memory(BYTES), .back = host_memory(BYTES) };
		u->upload = (struct kern_upload){ .to = u->there, .from = u->host, .bytes = BYTES - i, .done = note_done };
		if (i % 2 == 0)
			ck_assert_int_eq(on->register_host(device, u->host, BYTES), 0);
		ck_assert_int_eq(on->register_host(device, u->back, BYTES), 0);
	}
}

static void forget_uploads(void)
{
	for (size_t i = 0; i < CUDA_UPLOADS + 1; i++) {
		struct test_upload *u = &uploads[i];
		on->unregister_host(device, u->host);
		on->unregister_host(device, u->back);
		munmap(u->host, BYTES);
		munmap(u->back, BYTES);
	}
}

static void await_done(struct test_upload *u)
{
	while (!atomic_load(&u->done))
		ck_assert_int_eq(on->fence(device), 0);
}

/* The copy back stands on the compute stream: it must not overtake the upload. */
static void join_and_read(struct test_upload *u)
{
	memset(u->back, 0, BYTES);
	ck_assert_int_eq(on->join(device, &u->upload), 0);
	ck_assert_int_eq(on->copy_async(device, u->back, u->there, u->upload.bytes), 0);
}

START_TEST(what_was_joined_is_there)
{
	start();
	make_uploads();
	for (uint32_t seed = 1; seed <= SEEDS; seed++) {
		cudasim_seed(seed);
		unsigned n = 1 + seed % CUDA_UPLOADS;
		for (unsigned i = 0; i < n; i++) {
			fill(uploads[i].host, BYTES, seed * 100 + i);
			atomic_store(&uploads[i].done, 0);
			ck_assert_int_eq(on->upload(device, &uploads[i].upload), 0);
		}
		for (unsigned i = 0; i < n; i++) { /* with and without waiting for done() */
			if (seed % 2)
				await_done(&uploads[i]);
			join_and_read(&uploads[i]);
		}
		ck_assert_int_eq(on->fence(device), 0);
		for (unsigned i = 0; i < n; i++) {
			ck_assert(is_filled(uploads[i].back, uploads[i].upload.bytes, seed * 100 + i));
			await_done(&uploads[i]);
			ck_assert_uint_eq(atomic_load(&uploads[i].done), 1);
		}
	}
	forget_uploads();
	stop();
}
END_TEST

START_TEST(slots_run_out_and_come_back)
{
	start();
	make_uploads();
	for (unsigned i = 0; i < CUDA_UPLOADS; i++)
		ck_assert_int_eq(on->upload(device, &uploads[i].upload), 0);
	struct test_upload *last = &uploads[CUDA_UPLOADS];
	ck_assert_int_eq(on->upload(device, &last->upload), -EAGAIN);
	await_done(&uploads[3]);
	ck_assert_int_eq(on->upload(device, &last->upload), -EAGAIN); /* done is not joined */
	ck_assert_int_eq(on->join(device, &uploads[3].upload), 0);
	fill(last->host, BYTES, 5);
	ck_assert_int_eq(on->upload(device, &last->upload), 0);
	ck_assert_uint_eq(last->upload.slot, uploads[3].upload.slot);
	join_and_read(last);
	ck_assert_int_eq(on->fence(device), 0);
	ck_assert(is_filled(last->back, last->upload.bytes, 5));
	for (unsigned i = 0; i < CUDA_UPLOADS + 1; i++)
		await_done(&uploads[i]);
	forget_uploads();
	stop();
}
END_TEST

/* Several threads upload while another one copies in line, through the same bounce buffers. */
static void *upload_thread(void *userdata)
{
	struct test_upload *u = userdata;

	return (void *)(intptr_t)on->upload(device, &u->upload);
}

START_TEST(uploads_come_from_any_thread)
{
	start();
	make_uploads();
	uint8_t *small = malloc(5000), *back = malloc(5000), *there = device_memory(5000);
	for (uint32_t seed = 1; seed <= SEEDS; seed++) {
		pthread_t thread[4];
		cudasim_seed(seed);
		for (unsigned i = 0; i < 4; i++) {
			fill(uploads[i].host, BYTES, seed * 10 + i);
			atomic_store(&uploads[i].done, 0);
			ck_assert_int_eq(pthread_create(&thread[i], NULL, upload_thread, &uploads[i]), 0);
		}
		for (uint32_t i = 0; i < 20; i++) {
			fill(small, 5000, seed + i);
			ck_assert_int_eq(on->copy_async(device, there, small, 5000), 0);
			fill(small, 5000, 0);
			ck_assert_int_eq(on->copy_async(device, back, there, 5000), 0);
			ck_assert(is_filled(back, 5000, seed + i));
		}
		for (unsigned i = 0; i < 4; i++) {
			void *result;
			ck_assert_int_eq(pthread_join(thread[i], &result), 0);
			ck_assert_int_eq((int)(intptr_t)result, 0);
			join_and_read(&uploads[i]);
		}
		ck_assert_int_eq(on->fence(device), 0);
		for (unsigned i = 0; i < 4; i++) {
			ck_assert(is_filled(uploads[i].back, uploads[i].upload.bytes, seed * 10 + i));
			await_done(&uploads[i]);
		}
	}
	free(small);
	free(back);
	forget_uploads();
	stop();
}
END_TEST

/* ---- recorded steps ---- */

#define BLOCK ((size_t)4096)

/* A step of one op: a block is copied from where one device pointer says to where another one says. */
struct copier {
	uint8_t *memory; /* four blocks */
	void **table;    /* from, to: on the device */
	void *host_table[2];
	uint8_t *host;   /* one block */
};

static void make_copier(struct copier *c)
{
	c->memory = device_memory(4 * BLOCK);
	c->table = device_memory(sizeof c->host_table);
	c->host = malloc(BLOCK);
	ck_assert_ptr_nonnull(c->host);
}

static int aim(struct copier *c, unsigned from, unsigned to, uint32_t seed)
{
	c->host_table[0] = c->memory + from * BLOCK;
	c->host_table[1] = c->memory + to * BLOCK;
	fill(c->host, BLOCK, seed);
	int r = on->copy_async(device, c->table, c->host_table, sizeof c->host_table);
	return r < 0 ? r : on->copy_async(device, c->memory + from * BLOCK, c->host, BLOCK);
}

static void step(struct copier *c)
{
	struct kern_kv_copy args = { .from = c->table, .to = c->table + 1, .n = 1, .block_bytes = BLOCK };

	kern_cuda()->ops->kv_copy(device, &args, 0, 1);
}

static int arrived(struct copier *c, unsigned to, uint32_t seed)
{
	int r = on->copy_async(device, c->host, c->memory + to * BLOCK, BLOCK);

	if (r < 0)
		return r;
	r = on->fence(device);
	if (r == 0)
		ck_assert(is_filled(c->host, BLOCK, seed));
	return r;
}

/* As the model does it. Return: 0: it ran, and how; or -EIO. */
enum how { EAGER, RECORDED, REPLAYED, TWICE };

static int run_step(struct copier *c, uint64_t key, enum how *ret)
{
	int r = on->replay(device, key);

	*ret = REPLAYED;
	if (r != 0)
		return r < 0 ? r : 0;
	r = on->record(device, key);
	if (r < 0)
		return r;
	*ret = r > 0 ? EAGER : RECORDED;
	step(c);
	r = on->play(device);
	if (r <= 0)
		return r;
	*ret = TWICE;
	step(c);
	return 0;
}

static void assert_step(struct copier *c, uint64_t key, enum how expected, uint32_t seed)
{
	unsigned from = seed % 4, to = (from + 1 + seed / 4 % 3) % 4;
	enum how how;

	ck_assert_int_eq(aim(c, from, to, seed), 0);
	ck_assert_int_eq(run_step(c, key, &how), 0);
	ck_assert_int_eq(how, expected);
	ck_assert_int_eq(arrived(c, to, seed), 0);
}

START_TEST(recordings_run_on_what_memory_holds_now)
{
	struct copier c;

	start();
	make_copier(&c);
	assert_step(&c, 7, EAGER, 1);
	assert_step(&c, 7, RECORDED, 2);
	for (uint32_t seed = 3; seed < 3 + SEEDS; seed++) {
		cudasim_seed(seed);
		assert_step(&c, 7, REPLAYED, seed);
	}
	assert_step(&c, 0, EAGER, 4); /* any number is a key */
	assert_step(&c, 0, RECORDED, 5);
	for (uint64_t key = 100; key < 100 + CUDA_GRAPHS - 1; key++) {
		assert_step(&c, key, EAGER, (uint32_t)key);
		assert_step(&c, key, RECORDED, (uint32_t)key + 1);
		assert_step(&c, 0, REPLAYED, 6);
	}
	assert_step(&c, 7, EAGER, 7); /* the one that was not used for longest made room */
	assert_step(&c, 0, REPLAYED, 8);
	free(c.host);
	stop();
}
END_TEST

START_TEST(a_failed_recording_is_the_last)
{
	static const char *const ways[] = { "StreamBeginCapture:1", "GraphInstantiate:1", "GraphLaunch:1:2",
					    "LaunchKernelExC:1:900" };
	struct copier c;

	for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
		start();
		make_copier(&c);
		assert_step(&c, 1, EAGER, 1);
		assert_step(&c, 1, RECORDED, 2);
		assert_step(&c, 2, EAGER, 3);
		cudasim_fail(ways[i]);
		assert_step(&c, 2, i == 0 ? EAGER : TWICE, 4);
		assert_step(&c, 2, EAGER, 5);
		assert_step(&c, 1, EAGER, 6);
		free(c.host);
		stop();
	}
}
END_TEST

START_TEST(a_replay_without_memory_runs_eagerly)
{
	struct copier c;

	start();
	make_copier(&c);
	assert_step(&c, 1, EAGER, 1);
	assert_step(&c, 1, RECORDED, 2);
	cudasim_fail("GraphLaunch:1:2");
	assert_step(&c, 1, EAGER, 3);
	free(c.host);
	stop();
}
END_TEST

/* ---- what can go wrong ---- */

/* All of it once. Return: 0: all went well and the data was right; or the first error, with the reason. */
static int everything(struct kern_failure *why)
{
	struct kern_limits limits = { .rows = 8, .seqs = 4, .outputs = 4, .context = 4096, .n_heads = 9, .head_dim = 64, .vocab = 999 };
	static struct test_upload u[2];
	struct copier c = { 0 };
	void *p = NULL;
	size_t n_free, n_total;
	enum how how;

	int r = on->open(&device, 0, why);
	if (r < 0)
		return r;
	uint8_t *host = host_memory(4 * BLOCK);
	if (r == 0)
		r = on->reserve(device, &limits);
	if (r == 0)
		r = on->memory(device, &n_free, &n_total);
	if (r == 0)
		r = on->alloc(device, NULL, 4 * BLOCK, &p);
	c.memory = p;
	if (r == 0)
		r = on->alloc(device, NULL, sizeof c.host_table, &p);
	c.table = p;
	c.host = host + 2 * BLOCK;
	if (r == 0)
		r = on->register_host(device, host, BLOCK) < 0 ? -EIO : 0; /* the rest stays pageable */
	for (unsigned i = 0; i < 2 && r == 0; i++) {
		fill(host + i * BLOCK, BLOCK, 10 + i);
		u[i].upload = (struct kern_upload){ .to = c.memory + i * BLOCK, .from = host + i * BLOCK, .bytes = BLOCK,
						    .done = note_done };
		atomic_store(&u[i].done, 0);
		r = on->upload(device, &u[i].upload);
	}
	for (unsigned i = 0; i < 2 && r == 0; i++) {
		while (r == 0 && !atomic_load(&u[i].done))
			r = on->fence(device);
		r = r < 0 ? r : on->join(device, &u[i].upload);
		r = r < 0 ? r : arrived(&c, i, 10 + i);
	}
	for (uint32_t i = 0; i < 4 && r == 0; i++) {
		r = aim(&c, i, (i + 1) % 4, i);
		r = r < 0 ? r : run_step(&c, 9, &how);
		r = r < 0 ? r : arrived(&c, (i + 1) % 4, i);
	}
	if (r == 0)
		r = on->copy_async(device, host, c.memory, BLOCK);
	if (r == 0)
		r = on->fence(device);
	if (r == 0)
		ck_assert(is_filled(host, BLOCK, 3));
	if (r == 0)
		on->free(device, c.memory, 4 * BLOCK);
	on->unregister_host(device, host);
	on->failure(device, why);
	device = on->close(device);
	munmap(host, 4 * BLOCK);
	return r;
}

/* What a call means to us: an error is told; it is put up with; it only gives something back. */
static const struct {
	const char *name;
	enum { TOLD, BORNE, GIVES_BACK } kind;
	const char *words; /* in the reason */
} calls[] = {
	{ "cuda_api", TOLD, "" },
	{ "DriverGetVersion", TOLD, "cudaDriverGetVersion: " },
	{ "GetDeviceCount", TOLD, "there is a driver, but no CUDA device" },
	{ "DeviceGetAttribute", TOLD, "cudaDeviceGetAttribute: " },
	{ "SetDevice", TOLD, "cudaSetDevice: " },
	{ "MemGetInfo", TOLD, "cudaMemGetInfo: " },
	{ "Malloc", TOLD, "" },
	{ "HostAlloc", TOLD, "cudaHostAlloc: " },
	{ "HostRegister", BORNE, "" },
	{ "MemcpyAsync", TOLD, "cudaMemcpyAsync: " },
	{ "StreamCreateWithFlags", TOLD, "cudaStreamCreate: " },
	{ "StreamSynchronize", TOLD, "cudaStreamSynchronize: " },
	{ "StreamWaitEvent", TOLD, "cudaStreamWaitEvent: " },
	{ "EventCreateWithFlags", TOLD, "cudaEventCreate: " },
	{ "EventRecord", TOLD, "cudaEventRecord: " },
	{ "EventSynchronize", TOLD, "cudaEventSynchronize: " },
	{ "LaunchHostFunc", TOLD, "cudaLaunchHostFunc: " },
	{ "LaunchKernelExC", BORNE, "" }, /* while recording */
	{ "StreamBeginCapture", BORNE, "" },
	{ "StreamEndCapture", GIVES_BACK, "" }, /* the stream goes on recording and cannot be destroyed */
	{ "GraphInstantiate", BORNE, "" },
	{ "GraphLaunch", TOLD, "cudaGraphLaunch: " },
	{ "BlasCreate", TOLD, "cublasCreate: " },
	{ "BlasSetStream", TOLD, "cublasSetStream: " },
	{ "BlasSetWorkspace", TOLD, "cublasSetWorkspace: " },
	{ "BlasSetMathMode", TOLD, "cublasSetMathMode: " },
	{ "Free", GIVES_BACK, "" },
	{ "FreeHost", GIVES_BACK, "" },
	{ "HostUnregister", GIVES_BACK, "" },
	{ "StreamDestroy", GIVES_BACK, "" },
	{ "EventDestroy", GIVES_BACK, "" },
	{ "GraphExecDestroy", GIVES_BACK, "" },
	{ "GraphDestroy", GIVES_BACK, "" },
	{ "BlasDestroy", GIVES_BACK, "" },
};

START_TEST(every_call_may_fail)
{
	size_t which = (size_t)_i;
	unsigned n_failed = 0, n_clean = 0;

	for (unsigned n = 1; n_clean < 3 && n < 200; n++) {
		struct kern_failure why = { 0 };
		char spec[64];
		boot("1", "13000");
		snprintf(spec, sizeof spec, "%s:%u", calls[which].name, n);
		cudasim_fail(spec);
		int r = everything(&why);
		cudasim_fail("");
		n_clean = r == 0 ? n_clean + 1 : 0;
		n_failed += r < 0;
		if (calls[which].kind == TOLD && r < 0) {
			ck_assert_msg(n_failed == n, "%s: an earlier error was kept from us", spec);
			ck_assert_msg(r == -EIO || r == -ENOMEM || r == -ENODEV, "%s: %d", spec, r);
			ck_assert_msg(!strncmp(why.text, calls[which].words, strlen(calls[which].words)), "%s: %s", spec, why.text);
			ck_assert_msg(r == -ENOMEM || why.code != 0, "%s: %s", spec, why.text);
		}
		if (calls[which].kind != GIVES_BACK)
			ck_assert_msg(!cudasim_leaks(), "%s: %s", spec, cudasim_leaks());
	}
	ck_assert_uint_ge(n_clean, 3);
	ck_assert(calls[which].kind != TOLD || n_failed > 0);
	cudasim_reset();
}
END_TEST

/* A kernel or copy fails on the device: every later call says so, the first reason stays. */
START_TEST(what_fails_on_the_device_ends_it)
{
	static const struct {
		int code;
		const char *name;
	} errors[] = {
		{ 214, "cudaErrorECCUncorrectable" }, { 700, "cudaErrorIllegalAddress" }, { 719, "cudaErrorLaunchFailure" },
		{ 999, "cudaErrorUnknown" },
	};
	unsigned n_clean = 0;

	for (unsigned n = 1; n_clean < 3 && n < 200; n++) {
		struct kern_failure why = { 0 };
		char spec[64];
		boot("1", "13000");
		snprintf(spec, sizeof spec, "async:%u:%d", n, errors[n % 4].code);
		cudasim_fail(spec);
		int r = everything(&why);
		cudasim_fail("");
		n_clean = r == 0 ? n_clean + 1 : 0;
		ck_assert_msg(r == 0 || r == -EIO, "%s: %d", spec, r);
		ck_assert_msg(r == 0 || why.code == errors[n % 4].code, "%s: %d %s", spec, why.code, why.text);
		ck_assert_msg(r == 0 || strstr(why.text, errors[n % 4].name), "%s: %s", spec, why.text);
		ck_assert_msg(r < 0 || !cudasim_leaks(), "%s: %s", spec, cudasim_leaks()); /* a dead device takes nothing back */
	}
	ck_assert_uint_ge(n_clean, 3);
}
END_TEST

/* Whether CUDA itself refuses everything from then on, or only this one call failed. */
START_TEST(nothing_goes_on_after_the_end)
{
	static const struct {
		const char *fault, *words;
		int code;
	} ends[] = {
		{ "async:1:700", "cudaStreamSynchronize: cudaErrorIllegalAddress: an illegal memory access was encountered", 700 },
		{ "StreamSynchronize:1:1", "cudaStreamSynchronize: cudaErrorInvalidValue: invalid argument", 1 },
	};
	struct kern_failure why, still;
	size_t n_free, n_total;
	enum how how;
	struct copier c;
	void *p;

	start();
	make_uploads();
	make_copier(&c);
	on->failure(device, &why);
	ck_assert_int_eq(why.code, 0);
	ck_assert_int_eq(aim(&c, 0, 1, 1), 0);
	ck_assert_int_eq(on->upload(device, &uploads[1].upload), 0);
	ck_assert_int_eq(on->record(device, 1), 1); /* the first time it is not recorded */
	ck_assert_int_eq(on->play(device), 0);
	step(&c);
	cudasim_fail(ends[_i].fault);
	ck_assert_int_eq(on->fence(device), -EIO);
	on->failure(device, &why);
	ck_assert_int_eq(why.code, ends[_i].code);
	ck_assert_str_eq(why.text, ends[_i].words);

	ck_assert_int_eq(on->fence(device), -EIO);
	cudasim_fail("StreamSynchronize:1:719");
	ck_assert_int_eq(on->fence(device), -EIO);
	cudasim_fail("");
	step(&c);
	ck_assert_int_eq(aim(&c, 0, 1, 1), -EIO);
	ck_assert_int_eq(run_step(&c, 1, &how), -EIO);
	ck_assert_int_eq(on->record(device, 1), -EIO);
	ck_assert_int_eq(on->play(device), -EIO);
	ck_assert_int_eq(on->upload(device, &uploads[0].upload), -EIO);
	ck_assert_int_eq(on->join(device, &uploads[1].upload), -EIO);
	ck_assert_int_eq(on->alloc(device, NULL, 100, &p), -EIO);
	ck_assert_int_eq(on->memory(device, &n_free, &n_total), -EIO);
	ck_assert_int_eq(on->register_host(device, c.host, BLOCK), -EIO);
	on->failure(device, &still);
	ck_assert_mem_eq(&why, &still, sizeof why);
	ck_assert_uint_eq(atomic_load(&uploads[0].done), 0);
	device = on->close(device);
	free(c.host);
	cudasim_reset();
}
END_TEST

/* cuBLAS only says that it failed; the reason is the device's, if it has one. */
START_TEST(errors_of_cublas_have_a_reason)
{
	struct kern_failure why;
	struct copier c;

	start();
	ck_assert_int_eq(cuda_note_blas(device, CUBLAS_STATUS_SUCCESS, "cublasGemmEx"), 0);
	ck_assert_int_eq(cuda_note_blas(device, CUBLAS_STATUS_NOT_SUPPORTED, "cublasGemmEx"), -EIO);
	on->failure(device, &why);
	ck_assert_int_eq(why.code, CUDA_BLAS_CODE + CUBLAS_STATUS_NOT_SUPPORTED);
	ck_assert_ptr_nonnull(strstr(why.text, "cublasGemmEx: "));
	ck_assert_int_eq(on->fence(device), -EIO);
	stop();

	start();
	make_copier(&c);
	ck_assert_int_eq(aim(&c, 0, 1, 1), 0);
	cudasim_fail("async:1:214");
	step(&c);
	ck_assert_int_eq(cuda_note_blas(device, CUBLAS_STATUS_EXECUTION_FAILED, "cublasGemmEx"), -EIO);
	on->failure(device, &why);
	ck_assert_int_eq(why.code, 214);
	device = on->close(device);
	free(c.host);
	cudasim_reset();
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("kernels/cuda/device");
	TCase *tcase = tcase_create("device");

	tcase_set_timeout(tcase, 120);
	tcase_add_test(tcase, what_cannot_be_had_is_named);
	tcase_add_test(tcase, memory_is_counted);
	tcase_add_test(tcase, every_piece_is_known);
	tcase_add_test(tcase, registered_copies_arrive);
	tcase_add_test(tcase, pageable_copies_take_the_detour);
	tcase_add_test(tcase, a_refused_registration_means_a_detour);
	tcase_add_test(tcase, what_was_joined_is_there);
	tcase_add_test(tcase, slots_run_out_and_come_back);
	tcase_add_test(tcase, uploads_come_from_any_thread);
	tcase_add_test(tcase, recordings_run_on_what_memory_holds_now);
	tcase_add_test(tcase, a_failed_recording_is_the_last);
	tcase_add_test(tcase, a_replay_without_memory_runs_eagerly);
	tcase_add_loop_test(tcase, every_call_may_fail, 0, (int)(sizeof calls / sizeof *calls));
	tcase_add_test(tcase, what_fails_on_the_device_ends_it);
	tcase_add_loop_test(tcase, nothing_goes_on_after_the_end, 0, 2);
	tcase_add_test(tcase, errors_of_cublas_have_a_reason);
	suite_add_tcase(suite, tcase);
	return run_suite(suite);
}
