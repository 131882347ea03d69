/* SPDX-License-Identifier: MIT */
/*
 * Streams, events, launches, recording and errors of the simulated CUDA runtime
 *
 * What a stream shall do is queued and done later: at each call of the table one op of a random stream that can go on,
 * or none; and a call that waits runs such ops until what it waits for is done. Some streams sleep for a while at
 * random: their ops are run only where there are no others. So every order that CUDA allows comes up for some seed,
 * long delays among them, and a program that lacks a wait computes something wrong. All this follows from the seed.
 *
 * Host functions are called by a thread of our own, as CUDA does; their stream is busy meanwhile. A program that only
 * waits for one would wait for ever, so that thread also runs ops once there were no calls for a while.
 *
 * One mutex: held between cudasim_enter() and cudasim_leave(), not while a host function runs. An error on the device
 * is kept (failed) and returned by every call from then on; what was queued is dropped, host functions as well, as CUDA
 * does.
 */
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "engine.h"
#include "runtime.h"

#define PATIENCE_NS 5000000 /* without calls, until our own thread goes on */
#define SITES 64
#define ARGS 32 /* of a kernel */

struct queue {
	struct cudasim_op *first, *last;
};

/* One record of an event. */
struct cudasim_mark {
	unsigned references;
	bool done;
};

struct CUstream_st {
	struct cudasim_object object;
	int device;
	struct queue queue;
	bool busy, sleeps;
	bool recording, spoiled; /* spoiled: what was recorded is void */
	enum cudaStreamCaptureMode mode;
	pthread_t recorder;
	struct queue recorded;
};

struct CUevent_st {
	struct cudasim_object object;
	struct cudasim_mark *mark; /* the newest; NULL: never recorded */
};

struct CUgraph_st { /* and CUgraphExec_st */
	struct cudasim_object object;
	struct queue ops;
};

struct copy {
	struct cudasim_op op;
	size_t n;
};

struct set {
	struct cudasim_op op;
	int value;
};

struct launch {
	struct cudasim_op op;
	const void *kernel;
	unsigned grid[3], block[3];
	size_t shared;
	unsigned n_args;
	size_t at[]; /* [n_args] of each argument, from the start; behind it the arguments */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER; /* a host function returned, or one was queued */
static struct cudasim_object *objects;
static bool ready;
static pid_t pumping; /* the process that has our thread */
static int failed, n_devices, driver;
static unsigned long n_calls, n_functions; /* functions: host functions that are queued or run */
static uint64_t random_state;
static const void *wait_site[SITES];
static unsigned n_wait_sites, off_wait;
static _Thread_local int current_device, last_error;
static _Thread_local bool in_host_function; /* in our thread */

int cudasim_broken(const char *format, ...)
{
	char line[256];
	va_list args;

	va_start(args, format);
	(void)vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	if (cudasim_on_violation) {
		cudasim_on_violation(line);
		return cudaErrorInvalidValue;
	}
	(void)fprintf(stderr, "cudasim: %s\n", line);
	abort();
}

static void setup(void)
{
	const char *spec = getenv("CUDASIM_FAIL");

	if (ready)
		return;
	ready = true;
	random_state = cudasim_number("CUDASIM_SEED", 1) * 0x9e3779b97f4a7c15 + 1;
	cudasim_seed(cudasim_number("CUDASIM_SEED", 1));
	n_devices = (int)cudasim_number("CUDASIM_DEVICES", 1);
	driver = (int)cudasim_number("CUDASIM_DRIVER", CUDART_VERSION);
	off_wait = (unsigned)cudasim_number("CUDASIM_OFF_WAIT", 0);
	cudasim_memory_setup(cudasim_number("CUDASIM_MEMORY", 2UL << 30), cudasim_number("CUDASIM_GUARD", 1));
	if (spec)
		cudasim_add_faults(spec);
}

void cudasim_fail(const char *spec)
{
	(void)pthread_mutex_lock(&lock);
	setup();
	cudasim_add_faults(spec);
	(void)pthread_mutex_unlock(&lock);
}

static unsigned random_below(unsigned n)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (unsigned)((random_state >> 33) % n);
}

/* ---- objects ---- */

void *cudasim_object_new(enum cudasim_kind kind, size_t bytes)
{
	struct cudasim_object *object = calloc(1, bytes);

	if (!object)
		abort();
	*object = (struct cudasim_object){ objects, kind };
	objects = object;
	return object;
}

void cudasim_object_drop(void *object)
{
	struct cudasim_object **link = &objects;

	while (*link != object)
		link = &(*link)->next;
	*link = (*link)->next;
	free(object);
}

bool cudasim_has(const void *handle, enum cudasim_kind kind)
{
	static const char *const names[] = { "stream", "event", "graph", "graph to launch", "cuBLAS handle" };

	for (const struct cudasim_object *object = objects; object; object = object->next)
		if (object == handle && object->kind == kind)
			return true;
	(void)cudasim_broken("%p is no %s (or no more); the legacy default stream is not used", handle, names[kind]);
	return false;
}

/* The first stream from here on in the list. */
static struct CUstream_st *next_stream(struct cudasim_object *object)
{
	while (object && object->kind != CUDASIM_STREAM)
		object = object->next;
	return (struct CUstream_st *)object;
}

static void drop_mark(struct cudasim_mark *mark)
{
	if (mark && --mark->references == 0)
		free(mark);
}

static struct cudasim_mark *take_mark(struct cudasim_mark *mark)
{
	++mark->references;
	return mark;
}

/* ---- ops ---- */

void *cudasim_op_new(size_t bytes, int (*run)(const struct cudasim_op *op))
{
	struct cudasim_op *op = calloc(1, bytes);

	if (!op)
		abort();
	op->bytes = bytes;
	op->run = run;
	return op;
}

static void append(struct queue *queue, struct cudasim_op *op)
{
	op->next = NULL;
	if (queue->first)
		queue->last->next = op;
	else
		queue->first = op;
	queue->last = op;
}

static void free_op(struct cudasim_op *op)
{
	if (op->record)
		op->record->done = true;
	drop_mark(op->record);
	drop_mark(op->wait);
	free(op);
}

static void clear(struct queue *queue)
{
	struct cudasim_op *op;

	while ((op = queue->first)) {
		queue->first = op->next;
		free_op(op);
	}
}

static int spoil(struct CUstream_st *stream, int error)
{
	stream->spoiled = true;
	return error;
}

/* Memory of the device, or host memory that the device may reach, whole. */
static int check_spans(const struct cudasim_op *op)
{
	for (size_t i = 0; i < sizeof(op->span) / sizeof(*op->span); ++i)
		if (op->span[i].bytes > 0 && cudasim_where(op->span[i].base, op->span[i].bytes) == CUDASIM_NOWHERE)
			return cudasim_broken("%zu bytes at %p are not within one allocation, nor registered",
					      op->span[i].bytes, op->span[i].base);
	return 0;
}

int cudasim_submit(cudaStream_t stream, struct cudasim_op *op)
{
	int error = check_spans(op);

	if (!error && stream->spoiled)
		error = cudaErrorStreamCaptureInvalidated;
	if (error) {
		free_op(op);
		return error;
	}
	append(stream->recording ? &stream->recorded : &stream->queue, op);
	if (op->call && !stream->recording) {
		++n_functions;
		(void)pthread_cond_broadcast(&changed);
	}
	return 0;
}

bool cudasim_recording(cudaStream_t stream)
{
	return stream->recording;
}

bool cudasim_in_use(const void *base, size_t bytes)
{
	const char *first = base;

	for (cudaStream_t stream = next_stream(objects); stream; stream = next_stream(stream->object.next))
		for (const struct cudasim_op *op = stream->queue.first; op; op = op->next)
			for (size_t i = 0; i < sizeof(op->span) / sizeof(*op->span); ++i) {
				const char *used = op->span[i].base;

				if (used < first + bytes && first < used + op->span[i].bytes)
					return true;
			}
	return false;
}

/* The device is lost. Host functions are not called. */
static void fail(int error)
{
	failed = error;
	for (cudaStream_t stream = next_stream(objects); stream; stream = next_stream(stream->object.next))
		if (!stream->busy)
			clear(&stream->queue);
	n_functions = 0;
	(void)pthread_cond_broadcast(&changed);
}

static void run_first(struct CUstream_st *stream)
{
	struct cudasim_op *op = stream->queue.first;
	int error = 0;

	if (op->call) {
		stream->busy = true; /* the rest is our thread's */
		(void)pthread_cond_broadcast(&changed);
		return;
	}
	if (op->run) {
		error = cudasim_fault("async");
		cudasim_window(true);
		if (!error)
			error = op->run(op);
	}
	stream->queue.first = op->next;
	free_op(op);
	if (error)
		fail(error);
}

/* One op of a random stream that can go on. hurry: of a sleeping one too, if need be. Return: false: there is none. */
static bool step(bool hurry)
{
	struct CUstream_st *awake = NULL, *asleep = NULL;
	unsigned n_awake = 0, n_asleep = 0;

	for (cudaStream_t stream = next_stream(objects); stream; stream = next_stream(stream->object.next)) {
		const struct cudasim_op *op = stream->queue.first;

		if (random_below(8) == 0)
			stream->sleeps = !stream->sleeps;
		if (!op || stream->busy || (op->wait && !op->wait->done))
			continue;
		if (stream->sleeps && random_below(++n_asleep) == 0)
			asleep = stream;
		if (!stream->sleeps && random_below(++n_awake) == 0)
			awake = stream;
	}
	if (!awake && hurry)
		awake = asleep;
	if (awake)
		run_first(awake);
	return awake;
}

/* One whose host function our thread calls. */
static cudaStream_t busy_stream(void)
{
	cudaStream_t stream = next_stream(objects);

	while (stream && !stream->busy)
		stream = next_stream(stream->object.next);
	return stream;
}

/* Runs ops until this queue is empty or this mark done; both NULL: until there are no more. */
static void finish(const struct queue *queue, const struct cudasim_mark *mark)
{
	while (!failed && !(queue && !queue->first) && !(mark && mark->done))
		if (!step(true)) {
			if (!busy_stream())
				return;
			(void)pthread_cond_wait(&changed, &lock);
		}
}

void cudasim_finish(void)
{
	finish(NULL, NULL);
}

/* The lock is dropped meanwhile: the function may wait for locks of the program's. */
static void call_host(cudaStream_t stream)
{
	struct cudasim_op *op = stream->queue.first;

	if (!failed) {
		(void)pthread_mutex_unlock(&lock);
		op->call(op->userdata);
		(void)pthread_mutex_lock(&lock);
	}
	n_functions -= n_functions > 0;
	stream->busy = false;
	stream->queue.first = op->next;
	free_op(op);
	if (failed)
		clear(&stream->queue);
	(void)pthread_cond_broadcast(&changed);
}

/* Our thread: calls host functions, and goes on where nobody calls us because a host function is waited for. */
static void *pump(void *unused)
{
	unsigned long seen = 0;

	(void)unused;
	in_host_function = true;
	(void)pthread_mutex_lock(&lock);
	for (;;) {
		cudaStream_t stream = busy_stream();

		if (stream)
			call_host(stream);
		else if (n_functions == 0)
			(void)pthread_cond_wait(&changed, &lock);
		else if (seen != n_calls || !step(true)) {
			struct timespec until;

			seen = n_calls;
			(void)clock_gettime(CLOCK_REALTIME, &until);
			until.tv_nsec += PATIENCE_NS;
			until.tv_sec += until.tv_nsec / 1000000000;
			until.tv_nsec %= 1000000000;
			(void)pthread_cond_timedwait(&changed, &lock, &until);
		}
		cudasim_window(false);
	}
	return NULL;
}

static void start_pump(void)
{
	sigset_t all, before;
	pthread_t thread;

	if (pumping == getpid())
		return;
	pumping = getpid();
	(void)sigfillset(&all);
	(void)pthread_sigmask(SIG_SETMASK, &all, &before);
	if (pthread_create(&thread, NULL, pump, NULL) != 0)
		abort();
	(void)pthread_sigmask(SIG_SETMASK, &before, NULL);
	(void)pthread_detach(thread);
}

/* ---- every call ---- */

/* Whether a context that reported this goes on no more. */
static bool is_fatal(int error)
{
	return error == cudaErrorECCUncorrectable || error == cudaErrorNvlinkUncorrectable ||
	       error == cudaErrorIllegalAddress || error == cudaErrorLaunchTimeout ||
	       (error >= cudaErrorContextIsDestroyed && error <= cudaErrorAssert) ||
	       (error >= cudaErrorHardwareStackError && error <= cudaErrorLaunchFailure);
}

/* What may not be called while this thread records (thread-local recordings) or any does (global ones). */
static int spoil_recordings(void)
{
	int error = 0;

	for (cudaStream_t stream = next_stream(objects); stream; stream = next_stream(stream->object.next))
		if (stream->recording &&
		    (stream->mode == cudaStreamCaptureModeGlobal || (stream->mode == cudaStreamCaptureModeThreadLocal &&
								     pthread_equal(stream->recorder, pthread_self()))))
			error = spoil(stream, cudaErrorStreamCaptureUnsupported);
	return error;
}

int cudasim_enter(const char *name, enum cudasim_call call)
{
	int error;

	if (in_host_function)
		(void)cudasim_broken("%s called in a host function", name);
	(void)pthread_mutex_lock(&lock);
	setup();
	++n_calls;
	error = cudasim_fault(name);
	if (is_fatal(error))
		fail(error);
	if (error || call == CUDASIM_ANYTIME)
		return error;
	if (driver < CUDART_VERSION)
		return cudaErrorInsufficientDriver;
	if (n_devices == 0)
		return cudaErrorNoDevice;
	if (call == CUDASIM_NOT_RECORDED)
		error = spoil_recordings();
	if (!error && random_below(2) == 0)
		(void)step(false);
	return failed ? failed : error;
}

int cudasim_leave(int error)
{
	cudasim_window(false);
	(void)pthread_mutex_unlock(&lock);
	if (error)
		last_error = error;
	return error;
}

static int enter_stream(const char *name, enum cudasim_call call, cudaStream_t stream)
{
	int error = cudasim_enter(name, call);

	return error || cudasim_has(stream, CUDASIM_STREAM) ? error : cudaErrorInvalidResourceHandle;
}

/* ---- devices ---- */

cudaError_t cudasim_GetDeviceCount(int *ret)
{
	int error = cudasim_enter("GetDeviceCount", CUDASIM_ANYTIME);

	if (!error)
		error = driver < CUDART_VERSION ? cudaErrorInsufficientDriver : n_devices == 0 ? cudaErrorNoDevice : 0;
	*ret = error ? 0 : n_devices;
	return cudasim_leave(error);
}

cudaError_t cudasim_SetDevice(int device)
{
	int error = cudasim_enter("SetDevice", CUDASIM_USUAL);

	if (!error && (device < 0 || device >= n_devices))
		error = cudaErrorInvalidDevice;
	if (!error)
		current_device = device;
	return cudasim_leave(error);
}

cudaError_t cudasim_DriverGetVersion(int *ret)
{
	int error = cudasim_enter("DriverGetVersion", CUDASIM_ANYTIME);

	*ret = error ? 0 : driver;
	return cudasim_leave(error);
}

/* An H200 with few multiprocessors. */
cudaError_t cudasim_DeviceGetAttribute(int *ret, enum cudaDeviceAttr attribute, int device)
{
	static const int values[][2] = {
		{ cudaDevAttrMaxThreadsPerBlock, 1024 },
		{ cudaDevAttrMaxGridDimX, 0x7fffffff },
		{ cudaDevAttrMaxGridDimY, 65535 },
		{ cudaDevAttrMaxGridDimZ, 65535 },
		{ cudaDevAttrMaxSharedMemoryPerBlock, CUDASIM_SHARED_DEFAULT },
		{ cudaDevAttrWarpSize, 32 },
		{ cudaDevAttrMultiProcessorCount, 4 },
		{ cudaDevAttrIntegrated, 0 },
		{ cudaDevAttrEccEnabled, 1 },
		{ cudaDevAttrGlobalMemoryBusWidth, 6144 },
		{ cudaDevAttrL2CacheSize, 60 << 20 },
		{ cudaDevAttrMaxThreadsPerMultiProcessor, 2048 },
		{ cudaDevAttrAsyncEngineCount, 3 },
		{ cudaDevAttrUnifiedAddressing, 1 },
		{ cudaDevAttrComputeCapabilityMajor, 9 },
		{ cudaDevAttrComputeCapabilityMinor, 0 },
		{ cudaDevAttrMaxSharedMemoryPerMultiprocessor, 228 << 10 },
		{ cudaDevAttrCanUseHostPointerForRegisteredMem, 1 },
		{ cudaDevAttrMaxSharedMemoryPerBlockOptin, CUDASIM_SHARED_MAX },
		{ cudaDevAttrHostRegisterSupported, 1 },
		{ cudaDevAttrHostRegisterReadOnlySupported, 0 },
	};
	int error = cudasim_enter("DeviceGetAttribute", CUDASIM_USUAL);
	bool found = false;

	if (!error && (device < 0 || device >= n_devices))
		error = cudaErrorInvalidDevice;
	for (size_t i = 0; !error && i < sizeof(values) / sizeof(*values); ++i)
		if (values[i][0] == (int)attribute) {
			*ret = values[i][1];
			found = true;
		}
	return cudasim_leave(error ? error : found ? 0 : cudaErrorInvalidValue);
}

/* ---- copies ---- */

static int run_copy(const struct cudasim_op *op)
{
	memcpy(op->span[0].base, op->span[1].base, ((const struct copy *)op)->n);
	return 0;
}

static bool is_direction(enum cudaMemcpyKind kind, enum cudasim_place to, enum cudasim_place from)
{
	bool down = to != CUDASIM_DEVICE, up = from != CUDASIM_DEVICE; /* from, to the host */

	return kind == cudaMemcpyDefault || (down == (kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyHostToHost) &&
					     up == (kind == cudaMemcpyHostToDevice || kind == cudaMemcpyHostToHost));
}

cudaError_t cudasim_MemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream)
{
	int error = enter_stream("MemcpyAsync", CUDASIM_USUAL, stream);
	const char *a = to, *b = from;
	struct copy *copy;

	if (!error && bytes > 0 && a < b + bytes && b < a + bytes)
		error = cudasim_broken("copy of %zu bytes from %p to %p: they overlap", bytes, from, to);
	if (!error && bytes > 0) {
		copy = cudasim_op_new(sizeof(*copy), run_copy);
		copy->op.span[0] = (struct cudasim_span){ to, bytes };
		copy->op.span[1] = (struct cudasim_span){ (void *)(uintptr_t)from, bytes };
		copy->n = bytes;
		error = cudasim_submit(stream, &copy->op);
		if (!error && !is_direction(kind, cudasim_where(to, bytes), cudasim_where(from, bytes)))
			error = cudasim_broken("copy from %p to %p is of another direction than %d", from, to,
					       (int)kind);
	}
	return cudasim_leave(error);
}

static int run_set(const struct cudasim_op *op)
{
	memset(op->span[0].base, ((const struct set *)op)->value, op->span[0].bytes);
	return 0;
}

cudaError_t cudasim_MemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream)
{
	int error = enter_stream("MemsetAsync", CUDASIM_USUAL, stream);
	struct set *set;

	if (!error && bytes > 0) {
		set = cudasim_op_new(sizeof(*set), run_set);
		set->op.span[0] = (struct cudasim_span){ to, bytes };
		set->value = value;
		error = cudasim_submit(stream, &set->op);
	}
	return cudasim_leave(error);
}

/* ---- streams and events ---- */

cudaError_t cudasim_StreamCreateWithFlags(cudaStream_t *ret, unsigned flags)
{
	int error = cudasim_enter("StreamCreateWithFlags", CUDASIM_USUAL);

	if (!error && flags != cudaStreamNonBlocking)
		error = cudasim_broken("a stream that waits for the legacy default stream");
	if (!error) {
		*ret = cudasim_object_new(CUDASIM_STREAM, sizeof(**ret));
		(*ret)->device = current_device;
	}
	return cudasim_leave(error);
}

static int wait_for_stream(cudaStream_t stream)
{
	if (stream->recording)
		return spoil(stream, cudaErrorStreamCaptureUnsupported);
	finish(&stream->queue, NULL);
	return failed;
}

cudaError_t cudasim_StreamDestroy(cudaStream_t stream)
{
	int error = enter_stream("StreamDestroy", CUDASIM_USUAL, stream);

	if (!error)
		error = wait_for_stream(stream);
	if (!error)
		cudasim_object_drop(stream);
	return cudasim_leave(error);
}

cudaError_t cudasim_StreamSynchronize(cudaStream_t stream)
{
	int error = enter_stream("StreamSynchronize", CUDASIM_NOT_RECORDED, stream);

	if (!error)
		error = wait_for_stream(stream);
	return cudasim_leave(error);
}

/* Whether the waits of this place are switched off. */
static bool is_off(const void *site)
{
	unsigned i = 0;

	while (i < n_wait_sites && wait_site[i] != site)
		++i;
	if (i == SITES)
		abort();
	if (i == n_wait_sites)
		wait_site[n_wait_sites++] = site;
	return i + 1 == off_wait;
}

unsigned cudasim_wait_sites(void)
{
	return n_wait_sites;
}

cudaError_t cudasim_StreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
	const void *site = __builtin_return_address(0);
	int error = enter_stream("StreamWaitEvent", CUDASIM_USUAL, stream);

	if (!error && !cudasim_has(event, CUDASIM_EVENT))
		error = cudaErrorInvalidResourceHandle;
	if (!error && flags)
		error = cudaErrorInvalidValue;
	if (!error && stream->recording)
		error = spoil(stream, cudaErrorStreamCaptureIsolation);
	if (!error && !is_off(site) && event->mark) {
		struct cudasim_op *op = cudasim_op_new(sizeof(*op), NULL);

		op->wait = take_mark(event->mark);
		error = cudasim_submit(stream, op);
	}
	return cudasim_leave(error);
}

cudaError_t cudasim_EventCreateWithFlags(cudaEvent_t *ret, unsigned flags)
{
	int error = cudasim_enter("EventCreateWithFlags", CUDASIM_USUAL);

	if (!error && flags & ~(unsigned)(cudaEventBlockingSync | cudaEventDisableTiming))
		error = cudaErrorInvalidValue;
	if (!error)
		*ret = cudasim_object_new(CUDASIM_EVENT, sizeof(**ret));
	return cudasim_leave(error);
}

cudaError_t cudasim_EventDestroy(cudaEvent_t event)
{
	int error = cudasim_enter("EventDestroy", CUDASIM_USUAL);

	if (!error && !cudasim_has(event, CUDASIM_EVENT))
		error = cudaErrorInvalidResourceHandle;
	if (!error) {
		drop_mark(event->mark);
		cudasim_object_drop(event);
	}
	return cudasim_leave(error);
}

/* In a recording CUDA allows it; here it is refused, since nothing needs it. */
cudaError_t cudasim_EventRecord(cudaEvent_t event, cudaStream_t stream)
{
	int error = enter_stream("EventRecord", CUDASIM_USUAL, stream);

	if (!error && !cudasim_has(event, CUDASIM_EVENT))
		error = cudaErrorInvalidResourceHandle;
	if (!error && stream->recording)
		error = spoil(stream, cudaErrorStreamCaptureUnsupported);
	if (!error) {
		struct cudasim_op *op = cudasim_op_new(sizeof(*op), NULL);

		drop_mark(event->mark);
		event->mark = calloc(1, sizeof(*event->mark));
		if (!event->mark)
			abort();
		event->mark->references = 1;
		op->record = take_mark(event->mark);
		error = cudasim_submit(stream, op);
	}
	return cudasim_leave(error);
}

cudaError_t cudasim_EventSynchronize(cudaEvent_t event)
{
	int error = cudasim_enter("EventSynchronize", CUDASIM_NOT_RECORDED);

	if (!error && !cudasim_has(event, CUDASIM_EVENT))
		error = cudaErrorInvalidResourceHandle;
	if (!error && event->mark) {
		struct cudasim_mark *mark = take_mark(event->mark);

		finish(NULL, mark);
		drop_mark(mark);
		error = failed;
	}
	return cudasim_leave(error);
}

cudaError_t cudasim_LaunchHostFunc(cudaStream_t stream, cudaHostFn_t fn, void *userdata)
{
	int error = enter_stream("LaunchHostFunc", CUDASIM_USUAL, stream);

	if (!error && !fn)
		error = cudaErrorInvalidValue;
	if (!error) {
		struct cudasim_op *op = cudasim_op_new(sizeof(*op), NULL);

		start_pump();
		op->call = fn;
		op->userdata = userdata;
		error = cudasim_submit(stream, op);
	}
	return cudasim_leave(error);
}

/* ---- kernels ---- */

static int run_launch(const struct cudasim_op *op)
{
	const struct launch *launch = (const struct launch *)op;
	void *args[ARGS];

	for (unsigned i = 0; i < launch->n_args; ++i)
		args[i] = (void *)((uintptr_t)launch + launch->at[i]);
	return cudasim_run(launch->kernel, launch->grid, launch->block, launch->shared, args);
}

/* Arguments are kept by value: what they are now. */
static struct cudasim_op *new_launch(const cudaLaunchConfig_t *config, const void *kernel, void **args)
{
	unsigned n_args = cudasim_args(kernel);
	size_t first = sizeof(struct launch) + n_args * sizeof(size_t), bytes = first;
	struct launch *launch;

	if (n_args > ARGS)
		abort();
	for (unsigned i = 0; i < n_args; ++i)
		bytes = (bytes + 15) / 16 * 16 + cudasim_arg_bytes(kernel, i);
	launch = cudasim_op_new(bytes, run_launch);
	launch->kernel = kernel;
	memcpy(launch->grid, &config->gridDim, sizeof(launch->grid));
	memcpy(launch->block, &config->blockDim, sizeof(launch->block));
	launch->shared = config->dynamicSmemBytes;
	launch->n_args = n_args;
	for (unsigned i = 0; i < n_args; ++i) {
		launch->at[i] = first = (first + 15) / 16 * 16;
		memcpy((char *)launch + first, args[i], cudasim_arg_bytes(kernel, i));
		first += cudasim_arg_bytes(kernel, i);
	}
	return &launch->op;
}

cudaError_t cudasim_LaunchKernelExC(const cudaLaunchConfig_t *config, const void *kernel, void **args)
{
	int error = enter_stream("LaunchKernelExC", CUDASIM_USUAL, config->stream);
	unsigned grid[3], block[3];

	memcpy(grid, &config->gridDim, sizeof(grid));
	memcpy(block, &config->blockDim, sizeof(block));
	if (!error && config->stream->device != current_device)
		error = cudaErrorInvalidResourceHandle;
	if (!error && config->numAttrs > 0)
		error = cudasim_broken("launch with attributes");
	if (!error)
		error = cudasim_check_launch(kernel, grid, block, config->dynamicSmemBytes);
	if (!error)
		error = cudasim_submit(config->stream, new_launch(config, kernel, args));
	return cudasim_leave(error);
}

cudaError_t cudasim_FuncSetAttribute(const void *kernel, enum cudaFuncAttribute attribute, int value)
{
	int error = cudasim_enter("FuncSetAttribute", CUDASIM_USUAL);

	if (!error && attribute == cudaFuncAttributeMaxDynamicSharedMemorySize)
		error = value < 0 ? cudaErrorInvalidValue : cudasim_allow_shared(kernel, (size_t)value);
	else if (!error && attribute != cudaFuncAttributePreferredSharedMemoryCarveout)
		error = cudaErrorInvalidValue;
	return cudasim_leave(error);
}

/* ---- recordings ---- */

cudaError_t cudasim_StreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
	int error = enter_stream("StreamBeginCapture", CUDASIM_USUAL, stream);

	if (!error && stream->recording)
		error = cudaErrorIllegalState;
	if (!error) {
		stream->recording = true;
		stream->spoiled = false;
		stream->mode = mode;
		stream->recorder = pthread_self();
	}
	return cudasim_leave(error);
}

static struct CUgraph_st *new_graph(enum cudasim_kind kind)
{
	return cudasim_object_new(kind, sizeof(struct CUgraph_st));
}

cudaError_t cudasim_StreamEndCapture(cudaStream_t stream, cudaGraph_t *ret)
{
	int error = enter_stream("StreamEndCapture", CUDASIM_USUAL, stream);

	*ret = NULL;
	if (error && cudasim_has(stream, CUDASIM_STREAM) && stream->recording) { /* one that fails to end has ended, too */
		stream->recording = stream->spoiled = false;
		clear(&stream->recorded);
		stream->recorded.first = NULL;
	}
	if (!error && !stream->recording)
		error = cudaErrorIllegalState;
	if (!error && stream->mode != cudaStreamCaptureModeRelaxed && !pthread_equal(stream->recorder, pthread_self()))
		error = cudaErrorStreamCaptureWrongThread;
	if (!error) {
		stream->recording = false;
		if (stream->spoiled) {
			error = cudaErrorStreamCaptureInvalidated;
			clear(&stream->recorded);
		} else {
			*ret = new_graph(CUDASIM_GRAPH);
			(*ret)->ops = stream->recorded;
		}
		stream->recorded.first = NULL;
		stream->spoiled = false;
	}
	return cudasim_leave(error);
}

/* What was recorded has neither waits nor records: ops are plain bytes. */
static struct cudasim_op *copy_op(const struct cudasim_op *from)
{
	struct cudasim_op *op = cudasim_op_new(from->bytes, NULL);

	memcpy(op, from, from->bytes);
	return op;
}

cudaError_t cudasim_GraphInstantiate(cudaGraphExec_t *ret, cudaGraph_t graph, unsigned long long flags)
{
	int error = cudasim_enter("GraphInstantiate", CUDASIM_USUAL);
	struct CUgraph_st *exec;

	if (!error && !cudasim_has(graph, CUDASIM_GRAPH))
		error = cudaErrorInvalidValue;
	if (!error && flags)
		error = cudaErrorInvalidValue;
	if (!error) {
		exec = new_graph(CUDASIM_EXEC);
		for (const struct cudasim_op *op = graph->ops.first; op; op = op->next)
			append(&exec->ops, copy_op(op));
		*ret = (cudaGraphExec_t)exec;
	}
	return cudasim_leave(error);
}

cudaError_t cudasim_GraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
	int error = enter_stream("GraphLaunch", CUDASIM_USUAL, stream);

	if (!error && !cudasim_has(exec, CUDASIM_EXEC))
		error = cudaErrorInvalidResourceHandle;
	if (!error && stream->recording)
		error = spoil(stream, cudaErrorStreamCaptureUnsupported);
	if (!error)
		for (const struct cudasim_op *op = ((struct CUgraph_st *)exec)->ops.first; op && !error; op = op->next)
			error = cudasim_submit(stream, copy_op(op));
	return cudasim_leave(error);
}

static cudaError_t destroy_graph(void *handle, enum cudasim_kind kind, const char *name)
{
	int error = cudasim_enter(name, CUDASIM_USUAL);

	if (!error && !cudasim_has(handle, kind))
		error = cudaErrorInvalidResourceHandle;
	if (!error) {
		clear(&((struct CUgraph_st *)handle)->ops);
		cudasim_object_drop(handle);
	}
	return cudasim_leave(error);
}

cudaError_t cudasim_GraphExecDestroy(cudaGraphExec_t exec)
{
	return destroy_graph(exec, CUDASIM_EXEC, "GraphExecDestroy");
}

cudaError_t cudasim_GraphDestroy(cudaGraph_t graph)
{
	return destroy_graph(graph, CUDASIM_GRAPH, "GraphDestroy");
}

/* ---- errors, the end ---- */

cudaError_t cudasim_GetLastError(void)
{
	int error = cudasim_enter("GetLastError", CUDASIM_ANYTIME);

	if (!error)
		error = failed ? failed : last_error;
	(void)cudasim_leave(0);
	last_error = 0;
	return error;
}

#define ERROR_TEXT(name, number, text) { number, #name, text },
static const struct {
	int number;
	const char *name, *text;
} error_text[] = { CUDASIM_ERRORS(ERROR_TEXT) };

const char *cudasim_GetErrorName(cudaError_t error)
{
	for (size_t i = 0; i < sizeof(error_text) / sizeof(*error_text); ++i)
		if (error_text[i].number == (int)error)
			return error_text[i].name;
	return "unrecognized error code";
}

const char *cudasim_GetErrorString(cudaError_t error)
{
	for (size_t i = 0; i < sizeof(error_text) / sizeof(*error_text); ++i)
		if (error_text[i].number == (int)error)
			return error_text[i].text;
	return "unrecognized error code";
}

const char *cudasim_leaks(void)
{
	static char line[160];
	unsigned n[_CUDASIM_KIND_N] = { 0 };
	unsigned device = cudasim_memory_count(CUDASIM_DEVICE), pinned = cudasim_memory_count(CUDASIM_PINNED),
		 registered = cudasim_memory_count(CUDASIM_REGISTERED);

	for (const struct cudasim_object *object = objects; object; object = object->next)
		++n[object->kind];
	if (!objects && device + pinned + registered == 0)
		return NULL;
	(void)snprintf(line, sizeof(line),
		       "left behind: %u Malloc, %u HostAlloc, %u HostRegister, %u streams, %u events, %u + %u graphs, "
		       "%u cuBLAS",
		       device, pinned, registered, n[CUDASIM_STREAM], n[CUDASIM_EVENT], n[CUDASIM_GRAPH],
		       n[CUDASIM_EXEC], n[CUDASIM_BLAS]);
	return line;
}

/* A device that failed takes nothing back. */
__attribute__((destructor)) static void at_exit(void)
{
	const char *leaks = failed ? NULL : cudasim_leaks();

	if (leaks)
		(void)cudasim_broken("%s", leaks);
}

void cudasim_reset(void)
{
	(void)pthread_mutex_lock(&lock);
	while (busy_stream())
		(void)pthread_cond_wait(&changed, &lock);
	while (objects) {
		struct cudasim_object *object = objects;

		if (object->kind == CUDASIM_STREAM) {
			clear(&((struct CUstream_st *)object)->queue);
			clear(&((struct CUstream_st *)object)->recorded);
		} else if (object->kind == CUDASIM_EVENT)
			drop_mark(((struct CUevent_st *)object)->mark);
		else if (object->kind == CUDASIM_GRAPH || object->kind == CUDASIM_EXEC)
			clear(&((struct CUgraph_st *)object)->ops);
		cudasim_object_drop(object);
	}
	cudasim_memory_reset();
	cudasim_clear_faults();
	failed = last_error = current_device = 0;
	n_functions = 0;
	n_wait_sites = 0;
	ready = false;
	(void)pthread_mutex_unlock(&lock);
}
