/* SPDX-License-Identifier: MIT */
/*
 * The table of CUDA functions, from NVIDIA's libraries
 *
 * cudart is linked statically: it opens the driver (libcuda.so.1) by itself when it is first used and reports where
 * there is none, so one binary starts everywhere. cuBLAS has no such form worth having (700 MB), so it is opened by
 * name, by the major version whose headers this was compiled with; within it the functions keep their meaning.
 *
 * The table is the one piece of state in this file: filled once and never given back. cuBLAS hands its kernels to the
 * CUDA runtime when it is loaded, and does not survive being unloaded while a context exists.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>

#include "kernels/cuda/api.h"

#define STRING_(x) #x
#define STRING(x) STRING_(x)
#define BLAS_NAME "libcublas.so." STRING(CUBLAS_VER_MAJOR)
#define BLAS_FOLDER "/usr/local/cuda/lib64/" /* where NVIDIA's installer puts it without telling the dynamic linker */

static struct cuda_api table = {
	.GetDeviceCount = cudaGetDeviceCount,
	.SetDevice = cudaSetDevice,
	.DeviceGetAttribute = cudaDeviceGetAttribute,
	.DriverGetVersion = cudaDriverGetVersion,
	.MemGetInfo = cudaMemGetInfo,
	.Malloc = cudaMalloc,
	.Free = cudaFree,
	.HostAlloc = cudaHostAlloc,
	.FreeHost = cudaFreeHost,
	.HostRegister = cudaHostRegister,
	.HostUnregister = cudaHostUnregister,
	.MemcpyAsync = cudaMemcpyAsync,
	.MemsetAsync = cudaMemsetAsync,
	.StreamCreateWithFlags = cudaStreamCreateWithFlags,
	.StreamDestroy = cudaStreamDestroy,
	.StreamSynchronize = cudaStreamSynchronize,
	.StreamWaitEvent = cudaStreamWaitEvent,
	.EventCreateWithFlags = cudaEventCreateWithFlags,
	.EventDestroy = cudaEventDestroy,
	.EventRecord = cudaEventRecord,
	.EventSynchronize = cudaEventSynchronize,
	.LaunchHostFunc = cudaLaunchHostFunc,
	.LaunchKernelExC = cudaLaunchKernelExC,
	.FuncSetAttribute = cudaFuncSetAttribute,
	.StreamBeginCapture = cudaStreamBeginCapture,
	.StreamEndCapture = cudaStreamEndCapture,
	.GraphInstantiate = cudaGraphInstantiate,
	.GraphLaunch = cudaGraphLaunch,
	.GraphExecDestroy = cudaGraphExecDestroy,
	.GraphDestroy = cudaGraphDestroy,
	.GetLastError = cudaGetLastError,
	.GetErrorName = cudaGetErrorName,
	.GetErrorString = cudaGetErrorString,
};

static struct kern_failure no_table; /* code 0: there is one */
static pthread_once_t filled = PTHREAD_ONCE_INIT;

static void *open_blas(void)
{
	void *library = dlopen(BLAS_NAME, RTLD_NOW | RTLD_LOCAL);

	if (library)
		return library;
	snprintf(no_table.text, sizeof no_table.text, "cuBLAS cannot be loaded: %s", dlerror());
	return dlopen(BLAS_FOLDER BLAS_NAME, RTLD_NOW | RTLD_LOCAL);
}

/* ISO C has no cast from void * to a function; POSIX promises that the bits are the same. */
static void find(void *library, const char *name, void *ret_function)
{
	void *function = dlsym(library, name);

	if (!function)
		snprintf(no_table.text, sizeof no_table.text, "%s has no function %s", BLAS_NAME, name);
	no_table.code = function ? no_table.code : (int)cudaErrorSharedObjectSymbolNotFound;
	*(void **)ret_function = function;
}

static void fill(void)
{
	int version = 0;

	if (cudaDriverGetVersion(&version) != cudaSuccess || version < CUDART_VERSION / 1000 * 1000)
		return;
	void *library = open_blas();
	if (!library) {
		no_table.code = (int)cudaErrorSharedObjectInitFailed;
		return;
	}
	find(library, "cublasCreate_v2", &table.BlasCreate);
	find(library, "cublasDestroy_v2", &table.BlasDestroy);
	find(library, "cublasSetStream_v2", &table.BlasSetStream);
	find(library, "cublasSetWorkspace_v2", &table.BlasSetWorkspace);
	find(library, "cublasSetMathMode", &table.BlasSetMathMode);
	find(library, "cublasGemmEx", &table.BlasGemmEx);
	find(library, "cublasGetStatusString", &table.BlasGetStatusString);
}

/**
 * cuda_api() - the table
 *
 * Without a driver that is new enough, cuBLAS is not even looked for (it takes a second to load): its entries are NULL.
 * Return: the table, or NULL and why: cuBLAS is missing, or is not what it should be.
 */
const struct cuda_api *cuda_api(struct kern_failure *why)
{
	pthread_once(&filled, fill);
	if (!no_table.code)
		return &table;
	*why = no_table;
	return NULL;
}
