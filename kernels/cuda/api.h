/* SPDX-License-Identifier: MIT */
/*
 * Every function of the CUDA runtime and of cuBLAS that lorad calls, as one table
 *
 * Two providers fill it, chosen when a program is linked: api-runtime.c (cudart, linked statically; cuBLAS, opened at
 * run time, so that one binary starts on machines without a driver) and the simulator of the tests (tests/cudasim/).
 * Nothing else in the backend may call CUDA: what is not in the table, the tests do not see. At most 45 functions.
 */
#ifndef LORAD_KERNELS_CUDA_API_H
#define LORAD_KERNELS_CUDA_API_H

#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <stddef.h>

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

struct cuda_api {
	/* devices */
	cudaError_t (*GetDeviceCount)(int *ret);
	cudaError_t (*SetDevice)(int device);
	cudaError_t (*DeviceGetAttribute)(int *ret, enum cudaDeviceAttr attribute, int device);
	cudaError_t (*DriverGetVersion)(int *ret);
	cudaError_t (*MemGetInfo)(size_t *ret_free, size_t *ret_total);
	/* memory */
	cudaError_t (*Malloc)(void **ret, size_t bytes);
	cudaError_t (*Free)(void *p);
	cudaError_t (*HostAlloc)(void **ret, size_t bytes, unsigned flags);
	cudaError_t (*FreeHost)(void *p);
	cudaError_t (*HostRegister)(void *p, size_t bytes, unsigned flags);
	cudaError_t (*HostUnregister)(void *p);
	cudaError_t (*MemcpyAsync)(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
				   cudaStream_t stream);
	cudaError_t (*MemsetAsync)(void *to, int value, size_t bytes, cudaStream_t stream);
	/* streams and events */
	cudaError_t (*StreamCreateWithFlags)(cudaStream_t *ret, unsigned flags);
	cudaError_t (*StreamDestroy)(cudaStream_t stream);
	cudaError_t (*StreamSynchronize)(cudaStream_t stream);
	cudaError_t (*StreamWaitEvent)(cudaStream_t stream, cudaEvent_t event, unsigned flags);
	cudaError_t (*EventCreateWithFlags)(cudaEvent_t *ret, unsigned flags);
	cudaError_t (*EventDestroy)(cudaEvent_t event);
	cudaError_t (*EventRecord)(cudaEvent_t event, cudaStream_t stream);
	cudaError_t (*EventSynchronize)(cudaEvent_t event);
	cudaError_t (*LaunchHostFunc)(cudaStream_t stream, cudaHostFn_t fn, void *userdata);
	/* kernels */
	cudaError_t (*LaunchKernelExC)(const cudaLaunchConfig_t *config, const void *kernel, void **args);
	cudaError_t (*FuncSetAttribute)(const void *kernel, enum cudaFuncAttribute attribute, int value);
	/* recorded steps */
	cudaError_t (*StreamBeginCapture)(cudaStream_t stream, enum cudaStreamCaptureMode mode);
	cudaError_t (*StreamEndCapture)(cudaStream_t stream, cudaGraph_t *ret);
	cudaError_t (*GraphInstantiate)(cudaGraphExec_t *ret, cudaGraph_t graph, unsigned long long flags);
	cudaError_t (*GraphLaunch)(cudaGraphExec_t exec, cudaStream_t stream);
	cudaError_t (*GraphExecDestroy)(cudaGraphExec_t exec);
	cudaError_t (*GraphDestroy)(cudaGraph_t graph);
	/* errors */
	cudaError_t (*GetLastError)(void);
	const char *(*GetErrorName)(cudaError_t error);
	const char *(*GetErrorString)(cudaError_t error);
	/* cuBLAS */
	cublasStatus_t (*BlasCreate)(cublasHandle_t *ret);
	cublasStatus_t (*BlasDestroy)(cublasHandle_t handle);
	cublasStatus_t (*BlasSetStream)(cublasHandle_t handle, cudaStream_t stream);
	cublasStatus_t (*BlasSetWorkspace)(cublasHandle_t handle, void *workspace, size_t bytes);
	cublasStatus_t (*BlasSetMathMode)(cublasHandle_t handle, cublasMath_t mode);
	cublasStatus_t (*BlasGemmEx)(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m,
				     int n, int k, const void *alpha, const void *a, cudaDataType type_a, int lda,
				     const void *b, cudaDataType type_b, int ldb, const void *beta, void *c,
				     cudaDataType type_c, int ldc, cublasComputeType_t compute,
				     cublasGemmAlgo_t algorithm);
	const char *(*BlasGetStatusString)(cublasStatus_t status);
};

/*
 * The provider's table; NULL with the reason where there is none (no cuBLAS, say). Not the place where a missing GPU
 * shows: that is DriverGetVersion and GetDeviceCount. Where the driver is missing or too old, the cuBLAS entries may be
 * NULL.
 */
const struct cuda_api *cuda_api(struct kern_failure *why);

#ifdef __cplusplus
}
#endif

#endif
