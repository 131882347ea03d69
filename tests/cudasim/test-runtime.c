/* SPDX-License-Identifier: MIT */
/*
 * The host side of the simulator: that each of its rules is kept and can be seen broken. Kernels are plain functions
 * here (below), so that this needs nothing of the device side.
 */
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine.h"
#include "runtime.h"

#define SEEDS 64

static const struct cuda_api *api;
static unsigned n_failed;
static char broken[256]; /* the rule that was broken last */

#define CHECK(ok) ((ok) ? (void)0 : (void)(++n_failed, fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #ok)))
#define OK(call) CHECK((call) == 0)
#define BREAKS(call, text)                                                                                             \
	(broken[0] = '\0', CHECK((call) != 0), CHECK(strstr(broken, text)), (void)cudasim_GetLastError())

/* ---- kernels of the tests: add this to n numbers ---- */

struct kernel {
	void (*run)(int *x, unsigned n, int add);
};

static void add(int *x, unsigned n, int to_add)
{
	for (unsigned i = 0; i < n; ++i)
		x[i] += to_add;
}

static const struct kernel kernel = { add };
static size_t live_bytes; /* that kernels may use */
void (*cudasim_on_violation)(const char *line);

unsigned cudasim_args(const void *handle)
{
	return handle ? 3 : 0;
}

size_t cudasim_arg_bytes(const void *handle, unsigned i)
{
	return handle && i == 0 ? sizeof(int *) : sizeof(int);
}

int cudasim_check_launch(const void *handle, const unsigned grid[3], const unsigned block[3], size_t shared_bytes)
{
	return !handle || grid[0] == 0 || block[0] > 1024 ? cudaErrorInvalidConfiguration
	       : shared_bytes > CUDASIM_SHARED_DEFAULT	  ? cudaErrorInvalidValue
							  : 0;
}

int cudasim_run(const void *handle, const unsigned grid[3], const unsigned block[3], size_t shared_bytes, void **args)
{
	((const struct kernel *)handle)->run(*(int **)args[0], *(unsigned *)args[1], *(int *)args[2]);
	return cudasim_check_launch(handle, grid, block, shared_bytes);
}

int cudasim_allow_shared(const void *handle, size_t bytes)
{
	return handle && bytes <= CUDASIM_SHARED_MAX ? 0 : cudaErrorInvalidValue;
}

void cudasim_seed(uint64_t seed)
{
	(void)seed;
}

void cudasim_memory(const void *base, size_t bytes, bool live)
{
	live_bytes += base && live ? bytes : -bytes;
}

/* ---- of the tests ---- */

static void note_broken(const char *line)
{
	(void)snprintf(broken, sizeof(broken), "%s", line);
}

static void begin(const char *name, const char *value)
{
	static const char *const names[] = { "CUDASIM_SEED",   "CUDASIM_FAIL",	  "CUDASIM_MEMORY",
					     "CUDASIM_DRIVER", "CUDASIM_DEVICES", "CUDASIM_OFF_WAIT" };

	for (size_t i = 0; i < sizeof(names) / sizeof(*names); ++i)
		(void)unsetenv(names[i]);
	if (name)
		(void)setenv(name, value, 1);
	cudasim_reset();
}

static void begin_seed(unsigned seed)
{
	char text[16];

	(void)snprintf(text, sizeof(text), "%u", seed);
	begin("CUDASIM_SEED", text);
}

static cudaStream_t new_stream(void)
{
	cudaStream_t ret = NULL;

	OK(api->StreamCreateWithFlags(&ret, cudaStreamNonBlocking));
	return ret;
}

static cudaEvent_t new_event(void)
{
	cudaEvent_t ret = NULL;

	OK(api->EventCreateWithFlags(&ret, cudaEventDisableTiming));
	return ret;
}

static void *device(size_t bytes)
{
	void *ret = NULL;

	OK(api->Malloc(&ret, bytes));
	return ret;
}

static void *pinned(size_t bytes)
{
	void *ret = NULL;

	OK(api->HostAlloc(&ret, bytes, 0));
	return ret;
}

static int launch(cudaStream_t stream, int *x, unsigned n, int to_add)
{
	cudaLaunchConfig_t config = { .gridDim = { 1, 1, 1 }, .blockDim = { 32, 1, 1 }, .stream = stream };
	void *args[] = { &x, &n, &to_add };

	return api->LaunchKernelExC(&config, &kernel, args);
}

static int up(cudaStream_t stream, void *to, const void *from, size_t bytes)
{
	return api->MemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream);
}

static int down(cudaStream_t stream, void *to, const void *from, size_t bytes)
{
	return api->MemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream);
}

/* The signal that this ends a process with, 0: none. */
static int dies_of(void (*fn)(void))
{
	pid_t child = fork();
	int status = 0;

	if (child == 0) {
		cudasim_on_violation = NULL;
		(void)fclose(stderr);
		fn();
		exit(0);
	}
	CHECK(child > 0 && waitpid(child, &status, 0) == child);
	return WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status);
}

/* ---- memory ---- */

static unsigned char *touched;

static void touch_device(void)
{
	touched[0] = 1;
}

#ifdef __SANITIZE_ADDRESS__
static void overrun(void)
{
	int *x;

	begin(NULL, NULL);
	x = device(4);
	(void)device(4);
	OK(launch(new_stream(), x, 2, 1));
	OK(api->Free(x));
	_exit(0);
}
#endif

static void leak(void)
{
	begin(NULL, NULL);
	(void)device(1);
}

static void leave_nothing(void)
{
	begin(NULL, NULL);
	OK(api->Free(device(1)));
}

static void break_rule(void)
{
	(void)api->Free(&n_failed);
}

static void test_memory(void)
{
	static const size_t sizes[] = { 1, 100, 256, 4096, 5000, (8 << 20) + 3 };
	unsigned char *p[6], *host;
	size_t n_free, total, before;
	cudaStream_t stream;
	void *more;

	begin("CUDASIM_MEMORY", "16M");
	stream = new_stream();
	host = pinned(9 << 20);
	OK(api->MemGetInfo(&before, &total));
	CHECK(before == 16 << 20 && total == before);
	for (unsigned round = 0; round < 3; ++round) { /* used memory comes back as if it were fresh */
		for (unsigned i = 0; i < 6; ++i) {
			p[i] = device(sizes[i]);
			CHECK((uintptr_t)p[i] % 256 == 0);
			OK(down(stream, host, p[i], sizes[i]));
			OK(api->StreamSynchronize(stream));
			for (size_t at = 0; at < sizes[i]; ++at)
				if (host[at] != 0xff) {
					CHECK(!"fresh memory is 0xff");
					break;
				}
			OK(api->MemsetAsync(p[i], 0, sizes[i], stream));
		}
		CHECK(live_bytes == (9 << 20) + 1 + 100 + 256 + 4096 + 5000 + (8 << 20) + 3);
		BREAKS(api->MemsetAsync(p[1], 0, 101, stream), "not within one");
		BREAKS(api->MemsetAsync(p[1] - 1, 0, 2, stream), "not within one");
		BREAKS(api->MemsetAsync(p[1], 0, (size_t)(p[2] - p[1]) + 1, stream), "not within one");
		CHECK(api->Malloc(&more, 9 << 20) == cudaErrorMemoryAllocation);
		OK(api->MemGetInfo(&n_free, &total));
		CHECK(api->Malloc(&more, n_free) == cudaErrorMemoryAllocation);
		for (unsigned i = 0; i < 6; ++i)
			OK(api->Free(p[(i + round) % 6]));
		BREAKS(api->Free(p[0]), "none of its own");
	}
	OK(api->MemGetInfo(&n_free, &total));
	CHECK(n_free == before);
	BREAKS(api->Free(host), "none of its own");
	BREAKS(api->FreeHost(host + 1), "none of its own");
	OK(api->Free(NULL));
	CHECK(api->Malloc(&more, (size_t)-1) == cudaErrorMemoryAllocation);

	touched = device(64);
	CHECK(dies_of(touch_device) != 0); /* SIGSEGV, or the sanitizer's exit */
#ifdef __SANITIZE_ADDRESS__
	CHECK(dies_of(overrun) != 0);
#endif
	CHECK(dies_of(leak) == SIGABRT);
	CHECK(dies_of(leave_nothing) == 0);
	CHECK(dies_of(break_rule) == SIGABRT);
	CHECK(strstr(cudasim_leaks(), "1 Malloc, 1 HostAlloc, 0 HostRegister, 1 streams"));
}

static void test_host_memory(void)
{
	unsigned char *plain = aligned_alloc(4096, 3 * 4096), *target, *host;
	cudaStream_t stream;

	begin(NULL, NULL);
	stream = new_stream();
	target = device(8192);
	host = pinned(8192);
	memset(plain, 7, 3 * 4096);
	BREAKS(up(stream, target, plain, 1), "nor registered");
	BREAKS(down(stream, plain, target, 1), "nor registered");
	OK(api->HostRegister(plain, 4096 + 8, 0));
	OK(up(stream, target, plain, 4096 + 8));
	BREAKS(up(stream, target, plain, 4096 + 9), "nor registered");
	BREAKS(down(stream, target, plain, 8), "direction");
	BREAKS(up(stream, target, target + 64, 64), "direction");
	BREAKS(api->MemcpyAsync(target, target + 8, 16, cudaMemcpyDeviceToDevice, stream), "overlap");
	CHECK(api->HostRegister(plain + 4096 + 16, 8, 0) == cudaErrorHostMemoryAlreadyRegistered);
	OK(api->HostRegister(plain + 8192, 4096, 0));
	BREAKS(up(stream, target, plain, 8192), "nor registered");
	OK(api->StreamSynchronize(stream));
	for (unsigned i = 0; i < 32; ++i)
		OK(down(stream, host, target, 8192)); /* too many to be done by chance */
	OK(up(stream, target, plain, 8));
	BREAKS(api->HostUnregister(plain), "queued");
	BREAKS(api->FreeHost(host), "queued");
	OK(api->StreamSynchronize(stream));
	OK(api->HostUnregister(plain));
	BREAKS(api->HostUnregister(plain), "none of its own");
	BREAKS(up(stream, target, plain, 1), "nor registered");
	OK(api->HostUnregister(plain + 8192));
	OK(api->FreeHost(host));
	CHECK(api->HostRegister(plain, 0, 0) == cudaErrorInvalidValue);
	free(plain);
}

/* ---- order ---- */

/* Data travels host -> device on one stream, is changed on another, and travels back on a third. */
static int travel(unsigned seed, bool wait_first, bool wait_second, bool overwrite)
{
	cudaStream_t copy, compute, back;
	cudaEvent_t copied, computed;
	int *host, *result, *x, ret;

	if (seed > 0)
		begin_seed(seed);
	copy = new_stream();
	compute = new_stream();
	back = new_stream();
	copied = new_event();
	computed = new_event();
	host = pinned(4);
	result = pinned(4);
	x = device(4);
	*host = 20;
	*result = 0;
	OK(api->StreamWaitEvent(copy, copied, 0)); /* never recorded: nothing to wait for */
	OK(up(copy, x, host, 4));
	OK(api->EventRecord(copied, copy));
	if (overwrite)
		*host = 0;
	if (wait_first)
		OK(api->StreamWaitEvent(compute, copied, 0));
	OK(launch(compute, x, 1, 22));
	OK(api->EventRecord(computed, compute));
	if (wait_second)
		OK(api->StreamWaitEvent(back, computed, 0));
	OK(api->EventDestroy(copied)); /* whoever waits goes on waiting */
	OK(down(back, result, x, 4));
	OK(api->StreamSynchronize(back));
	ret = *result;
	OK(api->EventSynchronize(computed));
	OK(api->Free(x));
	OK(api->FreeHost(host));
	OK(api->FreeHost(result));
	OK(api->StreamDestroy(copy));
	OK(api->StreamDestroy(compute));
	OK(api->StreamDestroy(back));
	OK(api->EventDestroy(computed));
	CHECK(!cudasim_leaks());
	return ret;
}

static void test_order(void)
{
	unsigned wrong[5] = { 0 };

	for (unsigned seed = 1; seed <= SEEDS; ++seed) {
		char off[2] = { (char)('1' + seed % 3), '\0' };
		int first;

		CHECK((first = travel(seed, true, true, false)) == 42);
		wrong[0] += travel(seed, false, true, false) != 42;
		wrong[1] += travel(seed, true, false, false) != 42;
		wrong[2] += travel(seed, true, true, true) != 42;
		CHECK(travel(seed, true, true, false) == first); /* the same seed, the same course */
		begin("CUDASIM_OFF_WAIT", off);
		for (unsigned i = 0; i < 4; ++i)
			if (seed % 3 == 0) /* that wait is of an event that was never recorded */
				CHECK(travel(0, true, true, false) == 42);
			else
				wrong[2 + seed % 3] += travel(0, true, true, false) != 42;
		CHECK(cudasim_wait_sites() == 3);
	}
	for (unsigned i = 0; i < 5; ++i)
		CHECK(wrong[i] >= SEEDS / 16);
}

/* A wait is for the record that was there when it was called. */
static void test_wait_captures(void)
{
	unsigned early = 0;

	for (unsigned seed = 1; seed <= SEEDS; ++seed) {
		cudaStream_t a, b;
		cudaEvent_t event;
		int *x, *result;

		begin_seed(seed);
		a = new_stream();
		b = new_stream();
		event = new_event();
		x = device(4);
		result = pinned(4);
		OK(api->MemsetAsync(x, 0, 4, a));
		OK(api->EventRecord(event, a));
		OK(api->StreamWaitEvent(b, event, 0));
		OK(launch(a, x, 1, 5));
		OK(api->EventRecord(event, a));
		OK(down(b, result, x, 4));
		OK(api->StreamSynchronize(b));
		CHECK(*result == 0 || *result == 5);
		early += *result == 0;
		OK(api->EventSynchronize(event));
	}
	CHECK(early > 0);
}

static atomic_int reached;

static void note_reached(void *value)
{
	int expected = *(int *)value - 1;

	CHECK(atomic_compare_exchange_strong(&reached, &expected, *(int *)value));
}

static void take_lock(void *mutex)
{
	OK(pthread_mutex_lock(mutex));
	OK(pthread_mutex_unlock(mutex));
}

static void call_api(void *value)
{
	broken[0] = '\0';
	(void)api->GetLastError();
	*(bool *)value = strstr(broken, "in a host function");
}

static void test_host_functions(void)
{
	static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
	static int order[] = { 1, 2, 3 };
	cudaStream_t a, b;
	cudaEvent_t event;
	bool seen = false;

	begin(NULL, NULL);
	a = new_stream();
	b = new_stream();
	event = new_event();
	OK(api->LaunchHostFunc(a, note_reached, &order[0]));
	OK(api->LaunchHostFunc(a, note_reached, &order[1]));
	OK(api->EventRecord(event, a));
	OK(api->StreamWaitEvent(b, event, 0));
	OK(api->LaunchHostFunc(b, note_reached, &order[2]));
	while (atomic_load(&reached) < 3) /* without calls */
		(void)usleep(100);
	OK(api->LaunchHostFunc(b, call_api, &seen));
	OK(api->StreamSynchronize(b));
	CHECK(seen);
	OK(pthread_mutex_lock(&mutex)); /* calls that do not wait go on while a host function waits for us */
	OK(api->LaunchHostFunc(a, take_lock, &mutex));
	for (unsigned i = 0; i < 64; ++i)
		OK(launch(a, NULL, 0, 0));
	OK(api->StreamSynchronize(b));
	OK(pthread_mutex_unlock(&mutex));
	OK(api->StreamSynchronize(a));
}

/* ---- recordings ---- */

static void *malloc_elsewhere(void *ret)
{
	OK(api->Malloc(ret, 4));
	return NULL;
}

static void *end_elsewhere(void *stream)
{
	cudaGraph_t graph;

	CHECK(api->StreamEndCapture(stream, &graph) == cudaErrorStreamCaptureWrongThread);
	return NULL;
}

static void in_thread(void *(*fn)(void *), void *arg)
{
	pthread_t thread;

	OK(pthread_create(&thread, NULL, fn, arg));
	OK(pthread_join(thread, NULL));
}

static void test_recording(void)
{
	cudaStream_t stream;
	cudaGraph_t graph;
	cudaGraphExec_t exec;
	int *x, *host, *elsewhere;

	begin(NULL, NULL);
	stream = new_stream();
	x = device(8);
	host = pinned(8);
	host[0] = 1;
	host[1] = 2;
	OK(api->StreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
	CHECK(api->StreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaErrorIllegalState);
	OK(up(stream, x, host, 8));
	for (int i = 1; i <= 10; ++i) /* i is kept by value */
		OK(launch(stream, x, 2, i));
	OK(down(stream, host, x, 8));
	in_thread(malloc_elsewhere, &elsewhere);
	in_thread(end_elsewhere, stream);
	OK(api->StreamEndCapture(stream, &graph));
	OK(api->StreamSynchronize(stream));
	CHECK(host[0] == 1 && host[1] == 2); /* it was recorded, not run */
	OK(api->GraphInstantiate(&exec, graph, 0));
	OK(api->GraphDestroy(graph));
	for (int i = 1; i <= 3; ++i) {
		host[1] = i; /* what memory holds now */
		OK(api->GraphLaunch(exec, stream));
		OK(api->StreamSynchronize(stream));
		CHECK(host[0] == 1 + 55 * i && host[1] == i + 55);
	}
	OK(api->GraphLaunch(exec, stream));
	OK(api->GraphExecDestroy(exec)); /* what runs goes on */
	OK(api->StreamSynchronize(stream));
	CHECK(host[0] == 1 + 55 * 4);
	BREAKS(api->GraphLaunch(exec, stream), "graph to launch");
}

static void test_recording_forbids(void)
{
	cudaStream_t stream, other;
	cudaEvent_t event;
	cudaGraph_t graph = NULL;
	void *p, *host;

	begin(NULL, NULL);
	stream = new_stream();
	other = new_stream();
	event = new_event();
	p = device(4);
	host = pinned(4);
	OK(api->EventRecord(event, other));
#define SPOILS(call, error)                                                                                            \
	do {                                                                                                           \
		OK(api->StreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));                                 \
		CHECK((call) == (error));                                                                              \
		CHECK(api->MemsetAsync(p, 0, 4, stream) == cudaErrorStreamCaptureInvalidated);                         \
		CHECK(api->StreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated && !graph);           \
		OK(api->MemsetAsync(p, 0, 4, stream));                                                                 \
	} while (0)
	SPOILS(api->Malloc(&p, 4), cudaErrorStreamCaptureUnsupported);
	SPOILS(api->Free(p), cudaErrorStreamCaptureUnsupported);
	SPOILS(api->HostAlloc(&host, 4, 0), cudaErrorStreamCaptureUnsupported);
	SPOILS(api->FreeHost(host), cudaErrorStreamCaptureUnsupported);
	SPOILS(api->HostRegister(&graph, 4, 0), cudaErrorStreamCaptureUnsupported);
	SPOILS(api->StreamSynchronize(stream), cudaErrorStreamCaptureUnsupported);
	SPOILS(api->StreamSynchronize(other), cudaErrorStreamCaptureUnsupported);
	SPOILS(api->StreamDestroy(stream), cudaErrorStreamCaptureUnsupported);
	SPOILS(api->EventSynchronize(event), cudaErrorStreamCaptureUnsupported);
	SPOILS(api->EventRecord(event, stream), cudaErrorStreamCaptureUnsupported);
	SPOILS(api->StreamWaitEvent(stream, event, 0), cudaErrorStreamCaptureIsolation);
	CHECK(api->StreamEndCapture(stream, &graph) == cudaErrorIllegalState);
}

/* ---- errors ---- */

static void never(void *unused)
{
	(void)unused;
	CHECK(!"a host function is called after the device failed");
}

static void test_faults(void)
{
	cudaStream_t stream;
	void *p, *q;
	int n, *host;

	begin("CUDASIM_FAIL", "Malloc:2,HostRegister:1,LaunchKernelExC:2:209");
	stream = new_stream();
	OK(api->Malloc(&p, 4));
	CHECK(api->Malloc(&q, 4) == cudaErrorMemoryAllocation);
	CHECK(api->GetLastError() == cudaErrorMemoryAllocation && api->GetLastError() == 0);
	OK(api->Malloc(&q, 4));
	CHECK(api->HostRegister(&n, 4, 0) == cudaErrorNotSupported);
	OK(launch(stream, p, 1, 1));
	CHECK(launch(stream, p, 1, 1) == cudaErrorNoKernelImageForDevice);
	OK(launch(stream, p, 1, 1)); /* that was of the call only */
	OK(api->StreamSynchronize(stream));

	host = pinned(4);
	*host = 1;
	cudasim_fail("async:3:214");
	OK(api->MemsetAsync(p, 0, 4, stream));
	OK(api->MemsetAsync(p, 0, 4, stream));
	OK(api->StreamSynchronize(stream));
	(void)api->MemsetAsync(p, 0, 4, stream);
	(void)down(stream, host, p, 4); /* is not done any more */
	(void)api->LaunchHostFunc(stream, never, NULL);
	CHECK(api->StreamSynchronize(stream) == cudaErrorECCUncorrectable);
	for (unsigned i = 0; i < 64; ++i)
		CHECK(api->Malloc(&q, 4) == cudaErrorECCUncorrectable && api->Free(p) == cudaErrorECCUncorrectable);
	CHECK(api->GetLastError() == cudaErrorECCUncorrectable && api->GetLastError() == cudaErrorECCUncorrectable);
	CHECK(*host == 1);
	CHECK(strcmp(api->GetErrorName(cudaErrorECCUncorrectable), "cudaErrorECCUncorrectable") == 0);
	CHECK(strcmp(api->GetErrorString(cudaErrorLaunchFailure), "unspecified launch failure") == 0);

	begin("CUDASIM_FAIL", "LaunchKernelExC:1:700,BlasCreate:1"); /* one that ends the device */
	stream = new_stream();
	CHECK(api->BlasCreate((cublasHandle_t *)&p) == CUBLAS_STATUS_ALLOC_FAILED);
	CHECK(launch(stream, NULL, 0, 1) == cudaErrorIllegalAddress);
	CHECK(api->StreamSynchronize(stream) == cudaErrorIllegalAddress);
	begin(NULL, NULL);
	BREAKS((cudasim_fail("Mallok:1"), 1), "no fault");
	BREAKS((cudasim_fail("Malloc"), 1), "no fault");
	BREAKS((cudasim_fail("Malloc:1x"), 1), "no fault");
}

static void test_devices(void)
{
	struct kern_failure why = { 0 };
	cudaStream_t stream;
	int n;

	begin("CUDASIM_DRIVER", "12000");
	CHECK(api->GetDeviceCount(&n) == cudaErrorInsufficientDriver && n == 0);
	OK(api->DriverGetVersion(&n));
	CHECK(n == 12000);
	CHECK(api->StreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaErrorInsufficientDriver);
	begin("CUDASIM_DEVICES", "0");
	CHECK(api->GetDeviceCount(&n) == cudaErrorNoDevice && n == 0);
	CHECK(api->SetDevice(0) == cudaErrorNoDevice);
	begin("CUDASIM_DEVICES", "2");
	OK(api->GetDeviceCount(&n));
	CHECK(n == 2);
	CHECK(api->SetDevice(2) == cudaErrorInvalidDevice);
	OK(api->SetDevice(1));
	OK(api->DeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, 1));
	stream = new_stream();
	OK(launch(stream, NULL, 0, 0));
	OK(api->SetDevice(0));
	CHECK(launch(stream, NULL, 0, 0) == cudaErrorInvalidResourceHandle);
	begin("CUDASIM_FAIL", "cuda_api:1");
	CHECK(!cuda_api(&why) && why.code && why.text[0]);
	CHECK(cuda_api(&why) == api);
}

static void test_launch(void)
{
	cudaLaunchConfig_t config = { .gridDim = { 1, 1, 1 }, .blockDim = { 32, 1, 1 } };
	int *x, *result, zero = 0;
	void *args[] = { &x, &zero, &zero };

	begin(NULL, NULL);
	BREAKS(launch(NULL, NULL, 0, 0), "legacy default stream");
	BREAKS(api->StreamCreateWithFlags(&config.stream, cudaStreamDefault), "legacy default stream");
	config.stream = new_stream();
	x = device(4);
	config.blockDim.x = 1025;
	CHECK(api->LaunchKernelExC(&config, &kernel, args) == cudaErrorInvalidConfiguration);
	config.blockDim.x = 32;
	config.dynamicSmemBytes = CUDASIM_SHARED_DEFAULT + 1;
	CHECK(api->LaunchKernelExC(&config, &kernel, args) == cudaErrorInvalidValue);
	OK(api->FuncSetAttribute(&kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)CUDASIM_SHARED_MAX));
	CHECK(api->FuncSetAttribute(&kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 1 << 20) ==
	      cudaErrorInvalidValue);
	config.dynamicSmemBytes = 0;
	config.numAttrs = 1;
	BREAKS(api->LaunchKernelExC(&config, &kernel, args), "attributes");
	result = pinned(4); /* kernels may use it, too */
	*result = 40;
	OK(launch(config.stream, result, 1, 2));
	OK(api->StreamSynchronize(config.stream));
	CHECK(*result == 42);
	OK(api->StreamDestroy(config.stream));
	BREAKS(api->StreamSynchronize(config.stream), "no stream");
}

/* ---- cuBLAS ---- */

static uint16_t bf16(float x)
{
	uint32_t bits;

	memcpy(&bits, &x, sizeof(bits));
	return (uint16_t)(bits >> 16);
}

static float number(unsigned i)
{
	return (float)(i * 7 % 13) - 6;
}

struct product {
	cublasHandle_t handle;
	cudaStream_t stream;
	void *a, *b, *host;
	float *c;
};

/* C (3 x 5) = 2 op(A) op(B) + beta C over 4, small integers: exact. C was 1, or NaN where it is not read. */
static void check_product(struct product *p, cublasOperation_t op_a, cublasOperation_t op_b, cudaDataType type,
			  float beta)
{
	float alpha = 2, *c = p->host;

	for (unsigned i = 0; i < 64; ++i)
		if (type == CUDA_R_16BF)
			((uint16_t *)p->host)[i] = bf16(number(i));
		else
			((float *)p->host)[i] = number(i);
	OK(up(p->stream, p->a, p->host, 256));
	OK(up(p->stream, p->b, p->host, 256));
	OK(api->StreamSynchronize(p->stream));
	for (unsigned i = 0; i < 64; ++i)
		c[i] = beta == 0 ? NAN : 1;
	OK(up(p->stream, p->c, c, 256));
	OK(api->BlasGemmEx(p->handle, op_a, op_b, 3, 5, 4, &alpha, p->a, type, 8, p->b, type, 8, &beta, p->c,
			   CUDA_R_32F, 8, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
	OK(down(p->stream, c, p->c, 256));
	OK(api->StreamSynchronize(p->stream));
	for (unsigned col = 0; col < 5; ++col)
		for (unsigned row = 0; row < 8; ++row) {
			float sum = 0;

			for (unsigned k = 0; k < 4; ++k)
				sum += number(op_a == CUBLAS_OP_N ? k * 8 + row : row * 8 + k) *
				       number(op_b == CUBLAS_OP_N ? col * 8 + k : k * 8 + col);
			if (row < 3)
				CHECK(c[col * 8 + row] == 2 * sum + beta);
			else
				CHECK(beta == 0 ? isnan(c[col * 8 + row]) : c[col * 8 + row] == 1);
		}
}

static void test_blas(void)
{
	static const cublasOperation_t op[] = { CUBLAS_OP_N, CUBLAS_OP_T };
	static const float one = 1;
	struct product p;
	cudaGraph_t graph;
	void *space;

	begin(NULL, NULL);
	p.stream = new_stream();
	p.a = device(256);
	p.b = device(256);
	p.c = device(256);
	p.host = pinned(256);
	space = device(4096);
	OK(api->BlasCreate(&p.handle));
#define GEMM(m, n, k, a, lda, compute)                                                                                 \
	api->BlasGemmEx(p.handle, CUBLAS_OP_T, CUBLAS_OP_N, m, n, k, &one, a, CUDA_R_16BF, lda, p.b, CUDA_R_16BF, 8,   \
			&one, p.c, CUDA_R_32F, 8, compute, CUBLAS_GEMM_DEFAULT)
	BREAKS(GEMM(1, 1, 1, p.a, 8, CUBLAS_COMPUTE_32F), "legacy default stream");
	OK(api->BlasSetStream(p.handle, p.stream));
	OK(api->BlasSetMathMode(p.handle, CUBLAS_PEDANTIC_MATH));
	CHECK(api->BlasSetMathMode(p.handle, CUBLAS_TF32_TENSOR_OP_MATH) == CUBLAS_STATUS_NOT_SUPPORTED);
	for (unsigned i = 0; i < 4; ++i)
		for (int beta = 0; beta <= 1; ++beta) {
			check_product(&p, op[i % 2], op[i / 2], CUDA_R_16BF, (float)beta);
			check_product(&p, op[i % 2], op[i / 2], CUDA_R_32F, (float)beta);
		}
	CHECK(GEMM(3, 5, 9, p.a, 8, CUBLAS_COMPUTE_32F) == CUBLAS_STATUS_INVALID_VALUE);
	CHECK(GEMM(-1, 5, 4, p.a, 8, CUBLAS_COMPUTE_32F) == CUBLAS_STATUS_INVALID_VALUE);
	CHECK(GEMM(3, 5, 4, p.a, 12, CUBLAS_COMPUTE_32F) == CUBLAS_STATUS_NOT_SUPPORTED);
	CHECK(GEMM(3, 5, 4, (char *)p.a + 2, 8, CUBLAS_COMPUTE_32F) == CUBLAS_STATUS_NOT_SUPPORTED);
	CHECK(GEMM(3, 5, 4, p.a, 8, CUBLAS_COMPUTE_16F) == CUBLAS_STATUS_NOT_SUPPORTED);
	BREAKS(GEMM(8, 8, 8, p.a, 24, CUBLAS_COMPUTE_32F), "not within one");
	OK(GEMM(0, 5, 4, p.a, 8, CUBLAS_COMPUTE_32F));

	OK(api->StreamBeginCapture(p.stream, cudaStreamCaptureModeThreadLocal));
	BREAKS(GEMM(1, 1, 1, p.a, 8, CUBLAS_COMPUTE_32F), "no workspace");
	OK(api->BlasSetWorkspace(p.handle, space, 4096));
	OK(GEMM(1, 1, 1, p.a, 8, CUBLAS_COMPUTE_32F));
	CHECK(api->BlasSetWorkspace(p.handle, space, 4097) == CUBLAS_STATUS_INVALID_VALUE);
	OK(api->BlasSetStream(p.handle, p.stream)); /* forgets it */
	BREAKS(GEMM(1, 1, 1, p.a, 8, CUBLAS_COMPUTE_32F), "no workspace");
	OK(api->StreamEndCapture(p.stream, &graph));
	CHECK(strcmp(api->BlasGetStatusString(CUBLAS_STATUS_NOT_SUPPORTED), "CUBLAS_STATUS_NOT_SUPPORTED") == 0);
	OK(api->BlasDestroy(p.handle));
	BREAKS(api->BlasDestroy(p.handle), "cuBLAS handle");
}

/* ---- threads ---- */

static void *work(void *unused)
{
	cudaStream_t stream = new_stream();
	int *host = pinned(4), *x = device(4);

	(void)unused;
	for (int i = 0; i < 200; ++i) {
		*host = i;
		OK(up(stream, x, host, 4));
		OK(launch(stream, x, 1, 1));
		OK(down(stream, host, x, 4));
		OK(api->StreamSynchronize(stream));
		CHECK(*host == i + 1);
	}
	OK(api->StreamDestroy(stream));
	OK(api->FreeHost(host));
	OK(api->Free(x));
	return NULL;
}

static void test_threads(void)
{
	pthread_t thread[4];

	begin(NULL, NULL);
	for (unsigned i = 0; i < 4; ++i)
		OK(pthread_create(&thread[i], NULL, work, NULL));
	for (unsigned i = 0; i < 4; ++i)
		OK(pthread_join(thread[i], NULL));
	CHECK(!cudasim_leaks());
}

int main(void)
{
	struct kern_failure why;

	api = cuda_api(&why);
	cudasim_on_violation = note_broken;
	test_memory();
	test_host_memory();
	test_order();
	test_wait_captures();
	test_host_functions();
	test_recording();
	test_recording_forbids();
	test_faults();
	test_devices();
	test_launch();
	test_blas();
	test_threads();
	cudasim_reset();
	return n_failed > 0;
}
