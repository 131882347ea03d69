/* SPDX-License-Identifier: MIT */
/*
 * Every way in which a call to CUDA can fail, and the device itself: an error is told with its reason and ends the
 * device, or it is put up with; nothing is lost, left behind or taken for success.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/cudasim/engine.h"
#include "tests/lib/run-suite.h"
#include "tests/unit/cuda-rig.h"

/* ---- recordings ---- */

START_TEST(a_failed_recording_is_the_last)
{
	static const char *const ways[] = { "StreamBeginCapture:1", "GraphInstantiate:1", "GraphLaunch:1:2",
					    "LaunchKernelExC:1:900" };
	struct rig_copier c;

	for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
		rig_start();
		rig_make_copier(&c);
		rig_assert_step(&c, 1, RIG_EAGER, 1);
		rig_assert_step(&c, 1, RIG_RECORDED, 2);
		rig_assert_step(&c, 2, RIG_EAGER, 3);
		cudasim_fail(ways[i]);
		rig_assert_step(&c, 2, i == 0 ? RIG_EAGER : RIG_TWICE, 4);
		rig_assert_step(&c, 2, RIG_EAGER, 5);
		rig_assert_step(&c, 1, RIG_EAGER, 6);
		free(c.host);
		rig_stop();
	}
}
END_TEST

START_TEST(a_replay_without_memory_runs_eagerly)
{
	struct rig_copier c;

	rig_start();
	rig_make_copier(&c);
	rig_assert_step(&c, 1, RIG_EAGER, 1);
	rig_assert_step(&c, 1, RIG_RECORDED, 2);
	cudasim_fail("GraphLaunch:1:2");
	rig_assert_step(&c, 1, RIG_EAGER, 3);
	free(c.host);
	rig_stop();
}
END_TEST

/* ---- everything ---- */

/* All of it once. Return: 0: all went well and the data was right; or the first error, with the reason. */
static int everything(struct kern_failure *why)
{
	struct kern_limits limits = {
		.rows = 8, .seqs = 4, .outputs = 4, .context = 4096, .n_heads = 9, .head_dim = 64, .vocab = 999
	};
	static struct rig_upload u[2];
	struct rig_copier c = { 0 };
	void *p = NULL;
	size_t n_free, n_total;
	enum rig_how how;

	int r = on->open(&device, 0, why);
	if (r < 0)
		return r;
	uint8_t *host = rig_host_memory(4 * RIG_BLOCK);
	if (r == 0)
		r = on->reserve(device, &limits);
	if (r == 0)
		r = on->memory(device, &n_free, &n_total);
	if (r == 0)
		r = on->alloc(device, NULL, 4 * RIG_BLOCK, &p);
	c.memory = p;
	if (r == 0)
		r = on->alloc(device, NULL, sizeof c.host_table, &p);
	c.table = p;
	c.host = host + 2 * RIG_BLOCK;
	if (r == 0)
		r = on->register_host(device, host, RIG_BLOCK) < 0 ? -EIO : 0; /* the rest stays pageable */
	for (unsigned i = 0; i < 2 && r == 0; i++) {
		rig_fill(host + i * RIG_BLOCK, RIG_BLOCK, 10 + i);
		u[i].upload = (struct kern_upload){
			.to = c.memory + i * RIG_BLOCK,
			.from = host + i * RIG_BLOCK,
			.bytes = RIG_BLOCK,
			.done = rig_note_done,
		};
		atomic_store(&u[i].done, 0);
		r = on->upload(device, &u[i].upload);
	}
	for (unsigned i = 0; i < 2 && r == 0; i++) {
		r = on->join(device, &u[i].upload);
		r = r < 0 ? r : rig_arrived(&c, i, 10 + i);
		for (unsigned ms = 0; r == 0 && !atomic_load(&u[i].done); ms++) /* by no call that could be the n-th */
			r = ms < 5000 ? usleep(1000) : on->fence(device);
	}
	for (uint32_t i = 0; i < 4 && r == 0; i++) {
		r = rig_aim(&c, i, (i + 1) % 4, i);
		r = r < 0 ? r : rig_run_step(&c, 9, &how);
		r = r < 0 ? r : rig_arrived(&c, (i + 1) % 4, i);
	}
	if (r == 0)
		r = on->copy_async(device, host, c.memory, RIG_BLOCK);
	if (r == 0)
		r = on->fence(device);
	if (r == 0)
		ck_assert(rig_is_filled(host, RIG_BLOCK, 3));
	if (r == 0)
		on->free(device, c.memory, 4 * RIG_BLOCK);
	on->unregister_host(device, host);
	on->failure(device, why);
	device = on->close(device);
	munmap(host, 4 * RIG_BLOCK);
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
		rig_boot("1", "13000");
		snprintf(spec, sizeof spec, "%s:%u", calls[which].name, n);
		cudasim_fail(spec);
		int r = everything(&why);
		cudasim_fail("");
		n_clean = r == 0 ? n_clean + 1 : 0;
		n_failed += r < 0;
		if (calls[which].kind == TOLD && r < 0) {
			ck_assert_msg(n_failed == n, "%s: an earlier error was kept from us", spec);
			ck_assert_msg(r == -EIO || r == -ENOMEM || r == -ENODEV, "%s: %d", spec, r);
			ck_assert_msg(!strncmp(why.text, calls[which].words, strlen(calls[which].words)), "%s: %s",
				      spec, why.text);
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
		{ 214, "cudaErrorECCUncorrectable" },
		{ 700, "cudaErrorIllegalAddress" },
		{ 719, "cudaErrorLaunchFailure" },
		{ 999, "cudaErrorUnknown" },
	};
	unsigned n_clean = 0;

	for (unsigned n = 1; n_clean < 3 && n < 200; n++) {
		struct kern_failure why = { 0 };
		char spec[64];
		rig_boot("1", "13000");
		snprintf(spec, sizeof spec, "async:%u:%d", n, errors[n % 4].code);
		cudasim_fail(spec);
		int r = everything(&why);
		cudasim_fail("");
		n_clean = r == 0 ? n_clean + 1 : 0;
		ck_assert_msg(r == 0 || r == -EIO, "%s: %d", spec, r);
		ck_assert_msg(r == 0 || why.code == errors[n % 4].code, "%s: %d %s", spec, why.code, why.text);
		ck_assert_msg(r == 0 || strstr(why.text, errors[n % 4].name), "%s: %s", spec, why.text);
		/* a dead device takes nothing back */
		ck_assert_msg(r < 0 || !cudasim_leaks(), "%s: %s", spec, cudasim_leaks());
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
		{ "async:1:700",
		  "cudaStreamSynchronize: cudaErrorIllegalAddress: an illegal memory access was encountered", 700 },
		{ "StreamSynchronize:1:1", "cudaStreamSynchronize: cudaErrorInvalidValue: invalid argument", 1 },
	};
	struct kern_failure why, still;
	size_t n_free, n_total;
	enum rig_how how;
	struct rig_copier c;
	void *p;

	rig_start();
	rig_make_uploads();
	rig_make_copier(&c);
	on->failure(device, &why);
	ck_assert_int_eq(why.code, 0);
	ck_assert_int_eq(rig_aim(&c, 0, 1, 1), 0);
	ck_assert_int_eq(on->upload(device, &rig_uploads[1].upload), 0);
	ck_assert_int_eq(on->record(device, 1), 1); /* the first time it is not recorded */
	ck_assert_int_eq(on->play(device), 0);
	rig_step(&c);
	cudasim_fail(ends[_i].fault);
	ck_assert_int_eq(on->fence(device), -EIO);
	on->failure(device, &why);
	ck_assert_int_eq(why.code, ends[_i].code);
	ck_assert_str_eq(why.text, ends[_i].words);

	ck_assert_int_eq(on->fence(device), -EIO);
	cudasim_fail("StreamSynchronize:1:719");
	ck_assert_int_eq(on->fence(device), -EIO);
	cudasim_fail("");
	rig_step(&c);
	ck_assert_int_eq(rig_aim(&c, 0, 1, 1), -EIO);
	ck_assert_int_eq(rig_run_step(&c, 1, &how), -EIO);
	ck_assert_int_eq(on->record(device, 1), -EIO);
	ck_assert_int_eq(on->play(device), -EIO);
	ck_assert_int_eq(on->upload(device, &rig_uploads[0].upload), -EIO);
	ck_assert_int_eq(on->join(device, &rig_uploads[1].upload), -EIO);
	ck_assert_int_eq(on->alloc(device, NULL, 100, &p), -EIO);
	ck_assert_int_eq(on->memory(device, &n_free, &n_total), -EIO);
	ck_assert_int_eq(on->register_host(device, c.host, RIG_BLOCK), -EIO);
	on->failure(device, &still);
	ck_assert_mem_eq(&why, &still, sizeof why);
	ck_assert_uint_eq(atomic_load(&rig_uploads[0].done), 0);
	device = on->close(device);
	free(c.host);
	cudasim_reset();
}
END_TEST

/* What was started of it has been waited for: nothing reads the caller's memory any more. */
START_TEST(an_upload_that_fails_half_way_is_over)
{
	rig_start();
	rig_make_uploads();
	cudasim_fail("MemcpyAsync:4");
	ck_assert_int_eq(on->upload(device, &rig_uploads[0].upload), -EIO);
	ck_assert_int_eq(mprotect(rig_uploads[0].host, RIG_BYTES, PROT_NONE), 0);
	ck_assert_int_eq(on->upload(device, &rig_uploads[2].upload), -EIO);
	ck_assert_int_eq(on->fence(device), -EIO);
	rig_stop();
	ck_assert_uint_eq(atomic_load(&rig_uploads[0].done), 0);
}
END_TEST

/* The ops after the failure were left out, so the recording must not run. */
START_TEST(a_failure_elsewhere_ends_a_recording)
{
	struct rig_copier c;

	rig_start();
	rig_make_copier(&c);
	rig_assert_step(&c, 1, RIG_EAGER, 1);
	ck_assert_int_eq(on->record(device, 1), 0);
	rig_step(&c);
	ck_assert_int_eq(cuda_keep(device, cudaErrorUnknown, "another thread's call"), -EIO);
	rig_step(&c);
	ck_assert_int_eq(on->play(device), -EIO);
	ck_assert_int_eq(on->fence(device), -EIO);
	free(c.host);
	rig_stop();
}
END_TEST

/* cuBLAS only says that it failed; the reason is the device's, if it has one. */
START_TEST(errors_of_cublas_have_a_reason)
{
	struct kern_failure why;
	struct rig_copier c;

	rig_start();
	ck_assert_int_eq(cuda_note_blas(device, CUBLAS_STATUS_SUCCESS, "cublasGemmEx"), 0);
	ck_assert_int_eq(cuda_note_blas(device, CUBLAS_STATUS_NOT_SUPPORTED, "cublasGemmEx"), -EIO);
	on->failure(device, &why);
	ck_assert_int_eq(why.code, CUDA_BLAS_CODE + CUBLAS_STATUS_NOT_SUPPORTED);
	ck_assert_ptr_nonnull(strstr(why.text, "cublasGemmEx: "));
	ck_assert_int_eq(on->fence(device), -EIO);
	rig_stop();

	rig_start();
	rig_make_copier(&c);
	ck_assert_int_eq(rig_aim(&c, 0, 1, 1), 0);
	cudasim_fail("async:1:214");
	rig_step(&c);
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
	Suite *suite = suite_create("kernels/cuda/failure");
	TCase *tcase = tcase_create("failure");

	tcase_set_timeout(tcase, 120);
	tcase_add_test(tcase, a_failed_recording_is_the_last);
	tcase_add_test(tcase, a_replay_without_memory_runs_eagerly);
	tcase_add_loop_test(tcase, every_call_may_fail, 0, (int)(sizeof calls / sizeof *calls));
	tcase_add_test(tcase, what_fails_on_the_device_ends_it);
	tcase_add_loop_test(tcase, nothing_goes_on_after_the_end, 0, 2);
	tcase_add_test(tcase, an_upload_that_fails_half_way_is_over);
	tcase_add_test(tcase, a_failure_elsewhere_ends_a_recording);
	tcase_add_test(tcase, errors_of_cublas_have_a_reason);
	suite_add_tcase(suite, tcase);
	return run_suite(suite);
}
