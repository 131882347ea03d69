/* SPDX-License-Identifier: MIT */
/*
 * The host side of the CUDA backend on the simulator, while all goes well: memory, copies, uploads, recorded steps; and
 * machines without a GPU that would do.
 *
 * The simulator lets streams get on in an order that follows from a seed and runs a copy as late as CUDA might, so what
 * is checked for many seeds here is that somebody waited for it.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/cuda.h"
#include "tests/cudasim/engine.h"
#include "tests/lib/run-suite.h"
#include "tests/unit/cuda-rig.h"

#define SEEDS 24

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
	rig_boot("1", "0");
	assert_no_device(0, 35, "no NVIDIA driver is loaded (one for CUDA 13.0 or newer is needed)");
	rig_boot("1", "12040");
	assert_no_device(0, 35, "the NVIDIA driver is too old: it is for CUDA 12.4, 13.0 is needed");
	rig_boot("0", "13000");
	assert_no_device(0, 100, "there is a driver, but no CUDA device");
	rig_boot("2", "13000");
	assert_no_device(2, 101, "there is no CUDA device 2, only 0 to 1");
	assert_no_device(UINT32_MAX, 101, "there is no CUDA device 4294967295, only 0 to 1");
	rig_capability = 75;
	assert_no_device(1, 209, "CUDA device 1 is of compute capability 7.5, 8.0 or higher is needed");
	rig_capability = 80;
	ck_assert_int_eq(on->open(&device, 1, NULL), 0);
	rig_stop();
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
	struct kern_limits limits = {
		.rows = 8, .seqs = 4, .outputs = 4, .context = 4096, .n_heads = 9, .head_dim = 64, .vocab = 999
	};
	size_t before, now, total;
	void *p[40];

	rig_start();
	ck_assert_int_eq(on->memory(device, &before, &total), 0);
	ck_assert_uint_eq(total, (size_t)256 << 20);
	for (size_t i = 0; i < 40; i++) {
		p[i] = rig_device_memory(i * 1000);
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
	limits.context = 4096;
	ck_assert_int_eq(on->reserve(device, &limits), 0); /* in place of what was there */
	ck_assert_int_eq(on->memory(device, &now, &total), 0);
	ck_assert_uint_eq(now, before);
	limits.context = 131072;
	limits.seqs = 100000;
	ck_assert_int_eq(on->reserve(device, &limits), -ENOMEM);
	ck_assert_int_eq(on->fence(device), 0);
	(void)rig_device_memory(1000); /* close() frees what is left */
	rig_stop();
}
END_TEST

/* Freed places are used again, so addresses come in any order. */
START_TEST(every_piece_is_known)
{
	uint8_t *p[32], host[500], back[500];

	rig_start();
	for (unsigned i = 0; i < 32; i++)
		p[i] = rig_device_memory(500);
	for (unsigned i = 0; i < 32; i++)
		if (i % 3 != 1)
			on->free(device, p[i], 500);
	for (unsigned i = 32; i-- > 0;)
		if (i % 3 != 1)
			p[i] = rig_device_memory(400 + i % 3 * 50);
	for (unsigned i = 0; i < 32; i++) {
		rig_fill(host, 500, i);
		ck_assert_int_eq(on->copy_async(device, p[i], host, 400), 0);
	}
	for (unsigned i = 0; i < 32; i++) {
		ck_assert_int_eq(on->copy_async(device, back, p[i], 400), 0);
		ck_assert(rig_is_filled(back, 400, i));
	}
	rig_stop();
}
END_TEST

/* ---- copies in line ---- */

START_TEST(registered_copies_arrive)
{
	rig_start();
	uint8_t *host = rig_host_memory(2 * RIG_BYTES), *there = rig_device_memory(RIG_BYTES),
		*beside = rig_device_memory(RIG_BYTES);
	ck_assert_int_eq(on->register_host(device, host, 2 * RIG_BYTES), 0);
	for (uint32_t seed = 1; seed <= SEEDS; seed++) {
		cudasim_seed(seed);
		size_t offset = seed * 13, bytes = RIG_BYTES - offset;
		rig_fill(host, bytes, seed);
		ck_assert_int_eq(on->copy_async(device, there + offset, host, bytes), 0);
		ck_assert_int_eq(on->copy_async(device, beside, there + offset, bytes), 0);
		ck_assert_int_eq(on->copy_async(device, host + RIG_BYTES, beside, bytes), 0);
		ck_assert_int_eq(on->copy_async(device, there, host, 0), 0);
		ck_assert_int_eq(on->fence(device), 0);
		ck_assert(rig_is_filled(host + RIG_BYTES, bytes, seed));
	}
	ck_assert_int_eq(on->copy_async(device, host, host + 1000, 100), -EINVAL);
	ck_assert_int_eq(on->copy_async(device, there + RIG_BYTES, host, 1000), -EINVAL); /* not allocated */
	ck_assert_int_eq(on->fence(device), 0);
	on->unregister_host(device, host);
	on->unregister_host(device, host);
	munmap(host, 2 * RIG_BYTES);
	rig_stop();
}
END_TEST

/* The caller's memory may go at once, and has what was asked for at once, with no fence. */
START_TEST(pageable_copies_take_the_detour)
{
	rig_start();
	uint8_t *host = malloc(RIG_BYTES), *back = malloc(RIG_BYTES), *there = rig_device_memory(RIG_BYTES);
	for (uint32_t seed = 1; seed <= SEEDS; seed++) {
		cudasim_seed(seed);
		rig_fill(host, RIG_BYTES, seed);
		ck_assert_int_eq(on->copy_async(device, there, host, RIG_BYTES), 0);
		memset(host, 0, RIG_BYTES);
		ck_assert_int_eq(on->copy_async(device, back, there, RIG_BYTES), 0);
		ck_assert(rig_is_filled(back, RIG_BYTES, seed));
	}
	on->unregister_host(device, host); /* never registered */
	free(host);
	free(back);
	rig_stop();
}
END_TEST

START_TEST(a_refused_registration_means_a_detour)
{
	rig_start();
	uint8_t *host = rig_host_memory(RIG_BYTES), *back = rig_host_memory(RIG_BYTES),
		*there = rig_device_memory(RIG_BYTES);
	cudasim_fail("HostRegister:1");
	ck_assert_int_eq(on->register_host(device, host, RIG_BYTES), 1);
	ck_assert_int_eq(on->register_host(device, back, 8192), 0); /* its beginning: what crosses its end is not */
	for (uint32_t seed = 1; seed <= SEEDS; seed++) {
		cudasim_seed(seed);
		rig_fill(host, RIG_BYTES, seed);
		ck_assert_int_eq(on->copy_async(device, there, host, RIG_BYTES), 0);
		rig_fill(host, RIG_BYTES, 0);
		ck_assert_int_eq(on->copy_async(device, back + 4096, there, RIG_BYTES - 4096), 0);
		ck_assert_int_eq(on->fence(device), 0);
		rig_fill(host, RIG_BYTES, seed);
		ck_assert_int_eq(memcmp(back + 4096, host, RIG_BYTES - 4096), 0);
	}
	on->unregister_host(device, host);
	on->unregister_host(device, back);
	munmap(host, RIG_BYTES);
	munmap(back, RIG_BYTES);
	rig_stop();
}
END_TEST

/* ---- uploads ---- */

/* The copy back stands on the compute stream: it must not overtake the upload. */
static void join_and_read(struct rig_upload *u)
{
	memset(u->back, 0, RIG_BYTES);
	ck_assert_int_eq(on->join(device, &u->upload), 0);
	ck_assert_int_eq(on->copy_async(device, u->back, u->there, u->upload.bytes), 0);
}

START_TEST(what_was_joined_is_there)
{
	rig_start();
	rig_make_uploads();
	for (uint32_t seed = 1; seed <= SEEDS; seed++) {
		cudasim_seed(seed);
		unsigned n = 1 + seed % CUDA_UPLOADS;
		for (unsigned i = 0; i < n; i++) {
			rig_fill(rig_uploads[i].host, RIG_BYTES, seed * 100 + i);
			atomic_store(&rig_uploads[i].done, 0);
			ck_assert_int_eq(on->upload(device, &rig_uploads[i].upload), 0);
		}
		for (unsigned i = 0; i < n; i++) { /* with and without waiting for done() */
			if (seed % 2)
				rig_await_done(&rig_uploads[i]);
			join_and_read(&rig_uploads[i]);
		}
		ck_assert_int_eq(on->fence(device), 0);
		for (unsigned i = 0; i < n; i++) {
			ck_assert(rig_is_filled(rig_uploads[i].back, rig_uploads[i].upload.bytes, seed * 100 + i));
			rig_await_done(&rig_uploads[i]);
			ck_assert_uint_eq(atomic_load(&rig_uploads[i].done), 1);
		}
	}
	rig_forget_uploads();
	rig_stop();
}
END_TEST

START_TEST(slots_run_out_and_come_back)
{
	rig_start();
	rig_make_uploads();
	for (unsigned i = 0; i < CUDA_UPLOADS; i++)
		ck_assert_int_eq(on->upload(device, &rig_uploads[i].upload), 0);
	struct rig_upload *last = &rig_uploads[CUDA_UPLOADS];
	ck_assert_int_eq(on->upload(device, &last->upload), -EAGAIN);
	rig_await_done(&rig_uploads[3]);
	ck_assert_int_eq(on->upload(device, &last->upload), -EAGAIN); /* done is not joined */
	ck_assert_int_eq(on->join(device, &rig_uploads[3].upload), 0);
	rig_fill(last->host, RIG_BYTES, 5);
	ck_assert_int_eq(on->upload(device, &last->upload), 0);
	ck_assert_uint_eq(last->upload.slot, rig_uploads[3].upload.slot);
	join_and_read(last);
	ck_assert_int_eq(on->fence(device), 0);
	ck_assert(rig_is_filled(last->back, last->upload.bytes, 5));
	for (unsigned i = 0; i < CUDA_UPLOADS + 1; i++)
		rig_await_done(&rig_uploads[i]);
	rig_forget_uploads();
	rig_stop();
}
END_TEST

/* Several threads upload while another one copies in line, through the same bounce buffers. */
static void *upload_thread(void *userdata)
{
	struct rig_upload *u = userdata;

	return (void *)(intptr_t)on->upload(device, &u->upload);
}

START_TEST(uploads_come_from_any_thread)
{
	rig_start();
	rig_make_uploads();
	uint8_t *small = malloc(5000), *back = malloc(5000), *there = rig_device_memory(5000);
	for (uint32_t seed = 1; seed <= SEEDS; seed++) {
		pthread_t thread[4];
		cudasim_seed(seed);
		for (unsigned i = 0; i < 4; i++) {
			rig_fill(rig_uploads[i].host, RIG_BYTES, seed * 10 + i);
			atomic_store(&rig_uploads[i].done, 0);
			ck_assert_int_eq(pthread_create(&thread[i], NULL, upload_thread, &rig_uploads[i]), 0);
		}
		for (uint32_t i = 0; i < 20; i++) {
			rig_fill(small, 5000, seed + i);
			ck_assert_int_eq(on->copy_async(device, there, small, 5000), 0);
			rig_fill(small, 5000, 0);
			ck_assert_int_eq(on->copy_async(device, back, there, 5000), 0);
			ck_assert(rig_is_filled(back, 5000, seed + i));
		}
		for (unsigned i = 0; i < 4; i++) {
			void *result;
			ck_assert_int_eq(pthread_join(thread[i], &result), 0);
			ck_assert_int_eq((int)(intptr_t)result, 0);
			join_and_read(&rig_uploads[i]);
		}
		ck_assert_int_eq(on->fence(device), 0);
		for (unsigned i = 0; i < 4; i++) {
			ck_assert(rig_is_filled(rig_uploads[i].back, rig_uploads[i].upload.bytes, seed * 10 + i));
			rig_await_done(&rig_uploads[i]);
		}
	}
	free(small);
	free(back);
	rig_forget_uploads();
	rig_stop();
}
END_TEST

/* ---- recorded steps ---- */

START_TEST(recordings_run_on_what_memory_holds_now)
{
	struct rig_copier c;

	rig_start();
	rig_make_copier(&c);
	rig_assert_step(&c, 7, RIG_EAGER, 1);
	rig_assert_step(&c, 7, RIG_RECORDED, 2);
	for (uint32_t seed = 3; seed < 3 + SEEDS; seed++) {
		cudasim_seed(seed);
		rig_assert_step(&c, 7, RIG_REPLAYED, seed);
	}
	rig_assert_step(&c, 0, RIG_EAGER, 4); /* any number is a key */
	rig_assert_step(&c, 0, RIG_RECORDED, 5);
	for (uint64_t key = 100; key < 100 + CUDA_GRAPHS - 1; key++) {
		rig_assert_step(&c, key, RIG_EAGER, (uint32_t)key);
		rig_assert_step(&c, key, RIG_RECORDED, (uint32_t)key + 1);
		rig_assert_step(&c, 0, RIG_REPLAYED, 6);
	}
	rig_assert_step(&c, 7, RIG_EAGER, 7); /* the one that was not used for longest made room */
	rig_assert_step(&c, 0, RIG_REPLAYED, 8);
	free(c.host);
	rig_stop();
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
	suite_add_tcase(suite, tcase);
	return run_suite(suite);
}
