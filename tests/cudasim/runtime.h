/* SPDX-License-Identifier: MIT */
/*
 * The host side of the simulator: stand-ins for the CUDA runtime (runtime.c, memory.c, faults.c) and cuBLAS (blas.c),
 * as the table of kernels/cuda/api.h (api.c). Tests use the table and the first part of this header.
 *
 * The environment, read at the first call and by cudasim_reset():
 *   CUDASIM_SEED      1      the order in which streams get on, and of all inside kernels
 *   CUDASIM_MEMORY    2G     of the device; K, M, G
 *   CUDASIM_DEVICES   1      how many there are
 *   CUDASIM_DRIVER    13000  its version; below 13000 is too old, 0 is none
 *   CUDASIM_FAIL             see cudasim_fail()
 *   CUDASIM_OFF_WAIT  0      the n-th place that calls StreamWaitEvent, as they are first reached, has no effect
 *   CUDASIM_GUARD     1      0: the host may touch device memory unpunished; saves time with large models
 *
 * A broken rule of CUDA is reported and the program aborts (cudasim_on_violation of engine.h: then the call fails).
 * What CUDA itself would report is returned as its error.
 */
#ifndef CUDASIM_RUNTIME_H
#define CUDASIM_RUNTIME_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/cuda/api.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * "Malloc:3" or "LaunchKernelExC:10:700", several with commas: the n-th call from now on of that function of the table
 * fails, with this error or the function's usual one. "async:5:214": the fifth op from now on that runs on the device
 * fails, and with it the device. "cuda_api:1": there is no table.
 */
void cudasim_fail(const char *spec);

/* As if the program had just started: what is queued, allocated or broken is gone, the environment is read again. */
void cudasim_reset(void);

/* What there is and should have been given back, in one line; NULL: nothing. At exit it is a broken rule. */
const char *cudasim_leaks(void);

/* How many places have called StreamWaitEvent. */
unsigned cudasim_wait_sites(void);

/* ---- between the files of the host side ---- */

/* clang-format off */
#define CUDASIM_RUNTIME(X) \
	X(GetDeviceCount) X(SetDevice) X(DeviceGetAttribute) X(DriverGetVersion) X(MemGetInfo) \
	X(Malloc) X(Free) X(HostAlloc) X(FreeHost) X(HostRegister) X(HostUnregister) X(MemcpyAsync) X(MemsetAsync) \
	X(StreamCreateWithFlags) X(StreamDestroy) X(StreamSynchronize) X(StreamWaitEvent) \
	X(EventCreateWithFlags) X(EventDestroy) X(EventRecord) X(EventSynchronize) X(LaunchHostFunc) \
	X(LaunchKernelExC) X(FuncSetAttribute) X(StreamBeginCapture) X(StreamEndCapture) \
	X(GraphInstantiate) X(GraphLaunch) X(GraphExecDestroy) X(GraphDestroy) \
	X(GetLastError) X(GetErrorName) X(GetErrorString) \
	X(BlasCreate) X(BlasDestroy) X(BlasSetStream) X(BlasSetWorkspace) X(BlasSetMathMode) X(BlasGemmEx) \
	X(BlasGetStatusString)
/* clang-format on */

#define CUDASIM_DECLARE(name) extern __typeof__(*((struct cuda_api *)0)->name) cudasim_##name;
CUDASIM_RUNTIME(CUDASIM_DECLARE)
#undef CUDASIM_DECLARE

enum cudasim_kind { CUDASIM_STREAM, CUDASIM_EVENT, CUDASIM_GRAPH, CUDASIM_EXEC, CUDASIM_BLAS, _CUDASIM_KIND_N };

/* What all objects with a handle begin with; see cudasim_object_new(). */
struct cudasim_object {
	struct cudasim_object *next;
	enum cudasim_kind kind;
};

/* Memory an op is going to use. */
struct cudasim_span {
	void *base;
	size_t bytes;
};

/* What a stream does, one after the other. Ops with arguments of their own begin with this. */
struct cudasim_op {
	struct cudasim_op *next;
	size_t bytes;				 /* of all, to copy it */
	int (*run)(const struct cudasim_op *op); /* on the device; NULL: none. Return: a cudaError */
	struct cudasim_mark *wait, *record;	 /* not before that one; done when this op is */
	cudaHostFn_t call;			 /* on the host */
	void *userdata;
	struct cudasim_span span[4];
};

/* Says what rule was broken. Return: an error to go on with where there is a hook. */
int cudasim_broken(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Which calls are allowed without a device, which not while this thread records */
enum cudasim_call { CUDASIM_ANYTIME, CUDASIM_USUAL, CUDASIM_NOT_RECORDED };

/*
 * Every function of the table begins and ends with these; the lock is held between them, also where enter() fails.
 * leave() returns its argument.
 */
int cudasim_enter(const char *name, enum cudasim_call call);
int cudasim_leave(int error);

/* Zeroed, in the list of all objects until dropped. has: false, and a broken rule, if the handle is no such object. */
void *cudasim_object_new(enum cudasim_kind kind, size_t bytes);
void cudasim_object_drop(void *object);
bool cudasim_has(const void *object, enum cudasim_kind kind);
bool cudasim_recording(cudaStream_t stream);

/* Zeroed. submit: takes it over, to the end of the stream or of what the stream records. */
void *cudasim_op_new(size_t bytes, int (*run)(const struct cudasim_op *op));
int cudasim_submit(cudaStream_t stream, struct cudasim_op *op);

/* faults.c */
unsigned long cudasim_number(const char *name, unsigned long fallback); /* of the environment */
void cudasim_add_faults(const char *spec);
void cudasim_clear_faults(void);
int cudasim_fault(const char *name); /* the error that was asked for at this call, 0: none */

/* memory.c. The window: device memory is there for the host only while it is open. */
enum cudasim_place { CUDASIM_NOWHERE, CUDASIM_DEVICE, CUDASIM_PINNED, CUDASIM_REGISTERED };
enum cudasim_place cudasim_where(const void *base, size_t bytes);
void cudasim_window(bool open);
void cudasim_memory_setup(size_t bytes, bool guard);
void cudasim_memory_reset(void);
unsigned cudasim_memory_count(enum cudasim_place place);
bool cudasim_in_use(const void *base, size_t bytes); /* by an op that is queued; runtime.c */
void cudasim_finish(void);			     /* runs all that is queued; runtime.c */

#ifdef __cplusplus
}
#endif

#endif
