/* SPDX-License-Identifier: MIT */
/*
 * The error that ends a device
 *
 * A CUDA context that met an illegal address, a failed launch or broken memory cannot be mended in place, and after
 * most other errors nobody knows what of a step has run. So the first error is kept with its words, everything that
 * comes after it is refused or does nothing, and the daemon starts anew. What can be refused without harm (memory,
 * registering, recording) never comes here: the caller takes it back with GetLastError(), or a later call would report
 * it.
 *
 * Errors of kernels arrive late, with whichever call comes next: the words name that call, not the culprit.
 */
#include <errno.h>
#include <stdio.h>

#include "kernels/cuda/device.h"

/** cuda_describe() - an error as one line: "cudaMalloc: cudaErrorMemoryAllocation: out of memory" */
void cuda_describe(const struct cuda_api *api, cudaError_t error, const char *what, struct kern_failure *ret)
{
	ret->code = (int)error;
	snprintf(ret->text, sizeof ret->text, "%s: %s: %s", what, api->GetErrorName(error), api->GetErrorString(error));
}

/* The first one stays. The code is written last, since cuda_failed() reads it without the lock. */
static int keep(struct kern_device *device, const struct kern_failure *failure)
{
	struct kern_failure *failed = &device->failed;

	pthread_mutex_lock(&device->lock);
	if (!failed->code) {
		snprintf(failed->text, sizeof failed->text, "%s", failure->text);
		__atomic_store_n(&failed->code, failure->code, __ATOMIC_RELAXED);
	}
	pthread_mutex_unlock(&device->lock);
	return -EIO;
}

/**
 * cuda_keep() - remembers an error, if it is one and the first
 * @what: the call that reported it, without its arguments
 *
 * From any thread. Return: 0, or -EIO.
 */
int cuda_keep(struct kern_device *device, cudaError_t error, const char *what)
{
	struct kern_failure failure;

	if (error == cudaSuccess)
		return 0;
	cuda_describe(device->api, error, what, &failure);
	return keep(device, &failure);
}

/**
 * cuda_note() - cuda_keep() for ops: nothing of a step that is being recorded runs, so no harm is done there
 *
 * An error that was not the recording's own fault shows again when the step runs eagerly after it. Return: 0, or -EIO.
 */
int cuda_note(struct kern_device *device, cudaError_t error, const char *what)
{
	if (error == cudaSuccess)
		return 0;
	if (device->recording == CUDA_EAGER)
		return cuda_keep(device, error, what);
	device->recording = CUDA_RECORDING_BROKEN;
	return -EIO;
}

/**
 * cuda_note_blas() - cuda_note() for cuBLAS, which says only that something failed: the stream is asked what it was
 */
int cuda_note_blas(struct kern_device *device, cublasStatus_t status, const char *what)
{
	const struct cuda_api *api = device->api;
	struct kern_failure failure = { .code = CUDA_BLAS_CODE + (int)status };

	if (status == CUBLAS_STATUS_SUCCESS)
		return 0;
	if (device->recording != CUDA_EAGER) {
		device->recording = CUDA_RECORDING_BROKEN;
		return -EIO;
	}
	cudaError_t error = api->StreamSynchronize(device->compute);
	if (error != cudaSuccess)
		return cuda_keep(device, error, what);
	snprintf(failure.text, sizeof failure.text, "%s: %s", what, api->BlasGetStatusString(status));
	return keep(device, &failure);
}

/** cuda_failure() - the error that ended the device, or code 0. From any thread. */
void cuda_failure(struct kern_device *device, struct kern_failure *ret)
{
	pthread_mutex_lock(&device->lock);
	*ret = device->failed;
	pthread_mutex_unlock(&device->lock);
}
