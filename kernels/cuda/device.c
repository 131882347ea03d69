/* SPDX-License-Identifier: MIT */
/*
 * A CUDA device: from the question whether there is one to its end
 *
 * Two streams, neither of which waits for the default stream: compute takes the ops and the copies of the steps, copy
 * the uploads (upload.c). All work space is taken before the first step; cuBLAS gets a piece of it, so that it
 * allocates nothing either and its kernels can be recorded (graph.c).
 *
 * A thread's CUDA calls go to the device that this thread chose last, so every function of the table chooses first
 * (cuda_enter(), cheap when it changes nothing). The ops do not: the thread that runs them has copied the step's block
 * to the device just before.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/cuda/device.h"

#define DRIVER_NEEDED (CUDART_VERSION / 1000 * 1000) /* any driver of the major version the runtime was built for */
#define CAPABILITY_NEEDED 80                         /* bf16 products on tensor cores, cp.async */

/** cuda_enter() - calls of this thread go to this device; -EIO: it failed, now or before */
int cuda_enter(struct kern_device *device)
{
	if (cuda_failed(device))
		return -EIO;
	return cuda_keep(device, device->api->SetDevice(device->number), "cudaSetDevice");
}

/* ---- open ---- */

/* Which driver is there, and is it new enough? The runtime's own words for both are the same. */
static int check_driver(const struct cuda_api *api, struct kern_failure *why)
{
	int version = 0;
	cudaError_t error = api->DriverGetVersion(&version);

	if (error != cudaSuccess) {
		cuda_describe(api, error, "cudaDriverGetVersion", why);
		return -ENODEV;
	}
	if (version >= DRIVER_NEEDED)
		return 0;
	why->code = (int)cudaErrorInsufficientDriver;
	if (version == 0)
		snprintf(why->text, sizeof why->text,
			 "no NVIDIA driver is loaded (one for CUDA %d.%d or newer is needed)", DRIVER_NEEDED / 1000,
			 DRIVER_NEEDED % 1000 / 10);
	else
		snprintf(why->text, sizeof why->text,
			 "the NVIDIA driver is too old: it is for CUDA %d.%d, %d.%d is needed", version / 1000,
			 version % 1000 / 10, DRIVER_NEEDED / 1000, DRIVER_NEEDED % 1000 / 10);
	return -ENODEV;
}

static int check_number(const struct cuda_api *api, unsigned number, struct kern_failure *why)
{
	int n = 0;
	cudaError_t error = api->GetDeviceCount(&n);

	if (error != cudaSuccess && error != cudaErrorNoDevice) {
		cuda_describe(api, error, "cudaGetDeviceCount", why);
		(void)api->GetLastError();
		return -ENODEV;
	}
	if (n > 0 && number < (unsigned)n)
		return 0;
	(void)api->GetLastError();
	why->code = (int)(n > 0 ? cudaErrorInvalidDevice : cudaErrorNoDevice);
	if (n > 0)
		snprintf(why->text, sizeof why->text, "there is no CUDA device %u, only 0 to %d", number, n - 1);
	else
		snprintf(why->text, sizeof why->text, "there is a driver, but no CUDA device");
	return -ENODEV;
}

static int check_capability(const struct cuda_api *api, unsigned number, struct kern_failure *why)
{
	int major = 0, minor = 0;
	cudaError_t error = api->DeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, (int)number);

	if (error == cudaSuccess)
		error = api->DeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, (int)number);
	if (error != cudaSuccess) {
		cuda_describe(api, error, "cudaDeviceGetAttribute", why);
		(void)api->GetLastError();
		return -ENODEV;
	}
	if (10 * major + minor >= CAPABILITY_NEEDED)
		return 0;
	why->code = (int)cudaErrorNoKernelImageForDevice;
	snprintf(why->text, sizeof why->text,
		 "CUDA device %u is of compute capability %d.%d, %d.%d or higher is needed", number, major, minor,
		 CAPABILITY_NEEDED / 10, CAPABILITY_NEEDED % 10);
	return -ENODEV;
}

static int make_event(struct kern_device *device, cudaEvent_t *ret)
{
	return cuda_keep(device, device->api->EventCreateWithFlags(ret, cudaEventDisableTiming), "cudaEventCreate");
}

static int make_streams(struct kern_device *device)
{
	const struct cuda_api *api = device->api;
	int r = cuda_keep(device, api->StreamCreateWithFlags(&device->compute, cudaStreamNonBlocking),
			  "cudaStreamCreate");

	if (r == 0)
		r = cuda_keep(device, api->StreamCreateWithFlags(&device->copy, cudaStreamNonBlocking),
			      "cudaStreamCreate");
	for (unsigned i = 0; i < CUDA_UPLOADS && r == 0; i++)
		r = make_event(device, &device->uploaded[i]);
	for (unsigned i = 0; i < 2 && r == 0; i++) {
		r = make_event(device, &device->bounced[i]);
		if (r == 0)
			r = cuda_keep(device,
				      api->HostAlloc(&device->bounce[i], CUDA_PIECE_BYTES, cudaHostAllocPortable),
				      "cudaHostAlloc");
	}
	return r;
}

/* The workspace comes last: setting the stream would take it away. Default mathematics keep f32 products in f32. */
static int make_blas(struct kern_device *device)
{
	const struct cuda_api *api = device->api;
	int r = cuda_note_blas(device, api->BlasCreate(&device->blas), "cublasCreate");

	if (r == 0)
		r = cuda_alloc(device, NULL, CUDA_BLAS_BYTES, &device->blas_space);
	if (r == -ENOMEM) /* at start, this is the device's end */
		r = cuda_keep(device, cudaErrorMemoryAllocation, "cudaMalloc for cuBLAS");
	if (r == 0)
		r = cuda_note_blas(device, api->BlasSetMathMode(device->blas, CUBLAS_DEFAULT_MATH),
				   "cublasSetMathMode");
	if (r == 0)
		r = cuda_note_blas(device, api->BlasSetStream(device->blas, device->compute), "cublasSetStream");
	if (r == 0)
		r = cuda_note_blas(device, api->BlasSetWorkspace(device->blas, device->blas_space, CUDA_BLAS_BYTES),
				   "cublasSetWorkspace");
	return r;
}

/**
 * cuda_open() - takes a GPU
 * @number: in the order of CUDA_VISIBLE_DEVICES
 * @why: set on failure: no driver or device, one that is too old, or the call that failed; may be NULL
 *
 * Return: 0, -ENODEV: this device cannot be had, or -ENOMEM: there is not even memory to begin with.
 */
int cuda_open(struct kern_device **ret, unsigned number, struct kern_failure *why)
{
	struct kern_failure unwanted;

	why = why ? why : &unwanted;
	const struct cuda_api *api = cuda_api(why);
	if (!api)
		return -ENODEV;
	int r = check_driver(api, why);
	r = r < 0 ? r : check_number(api, number, why);
	r = r < 0 ? r : check_capability(api, number, why);
	if (r < 0)
		return r;
	struct kern_device *device = calloc(1, sizeof *device);
	if (!device) {
		*why = (struct kern_failure){ .code = (int)cudaErrorMemoryAllocation, .text = "out of memory" };
		return -ENOMEM;
	}
	device->api = api;
	device->number = (int)number;
	pthread_mutex_init(&device->lock, NULL);
	pthread_mutex_init(&device->bounce_lock, NULL);
	r = cuda_enter(device);
	r = r < 0 ? r : make_streams(device);
	r = r < 0 ? r : make_blas(device);
	if (r == 0) {
		*ret = device;
		return 0;
	}
	if (r == -ENOMEM) /* of the host */
		*why = (struct kern_failure){ .code = (int)cudaErrorMemoryAllocation, .text = "out of memory" };
	else
		cuda_failure(device, why);
	cuda_close(device);
	return why->code == (int)cudaErrorMemoryAllocation || why->code == CUDA_BLAS_CODE + CUBLAS_STATUS_ALLOC_FAILED ?
		       -ENOMEM : -ENODEV;
}

/* ---- close ---- */

/**
 * cuda_close() - waits for what is under way and gives everything back
 *
 * A device that failed answers every call with its error, which is nobody's concern any more. Return: NULL.
 */
struct kern_device *cuda_close(struct kern_device *device)
{
	if (!device)
		return NULL;
	const struct cuda_api *api = device->api;
	(void)api->SetDevice(device->number);
	if (device->copy)
		(void)api->StreamSynchronize(device->copy);
	if (device->compute)
		(void)api->StreamSynchronize(device->compute);
	cuda_release_graphs(device);
	if (device->blas)
		(void)api->BlasDestroy(device->blas);
	for (unsigned i = 0; i < CUDA_UPLOADS; i++)
		if (device->uploaded[i])
			(void)api->EventDestroy(device->uploaded[i]);
	for (unsigned i = 0; i < 2; i++) {
		if (device->bounced[i])
			(void)api->EventDestroy(device->bounced[i]);
		if (device->bounce[i])
			(void)api->FreeHost(device->bounce[i]);
	}
	cuda_release_memory(device);
	if (device->copy)
		(void)api->StreamDestroy(device->copy);
	if (device->compute)
		(void)api->StreamDestroy(device->compute);
	(void)api->GetLastError();
	pthread_mutex_destroy(&device->bounce_lock);
	pthread_mutex_destroy(&device->lock);
	free(device);
	return NULL;
}

/* ---- what a step needs ---- */

/** cuda_memory() - free and all device memory in bytes, of all processes. Return: 0, or -EIO: the device failed. */
int cuda_memory(struct kern_device *device, size_t *ret_free, size_t *ret_total)
{
	size_t n_free, n_total;

	int r = cuda_enter(device);
	if (r == 0)
		r = cuda_keep(device, device->api->MemGetInfo(&n_free, &n_total), "cudaMemGetInfo");
	if (r < 0)
		return r;
	*ret_free = n_free;
	*ret_total = n_total;
	return 0;
}

/**
 * cuda_reserve() - takes the work space of steps up to a size, in place of what was taken before
 *
 * Return: 0, -ENOMEM, or -EIO: the device failed.
 */
int cuda_reserve(struct kern_device *device, const struct kern_limits *limits)
{
	size_t floats = cuda_attention_partial_floats(limits, CUDA_SPLIT_MIN);
	void *partial = NULL;

	if (!device->panel) {
		int r = cuda_alloc(device, NULL, CUDA_PANEL_BYTES, &device->panel);
		if (r < 0)
			return r;
	}
	cuda_free(device, device->partial, device->partial_floats * sizeof(float));
	device->partial = NULL;
	device->partial_floats = 0;
	int r = cuda_alloc(device, NULL, floats * sizeof(float), &partial);
	if (r < 0)
		return r;
	device->partial = partial;
	device->partial_floats = floats;
	device->split_positions = CUDA_SPLIT_MIN;
	return 0;
}

/**
 * cuda_fence() - waits for all ops and copies of the compute stream so far; uploads go on
 *
 * Return: 0: all of it is done, or -EIO: the device failed, then or earlier, and results are void.
 */
int cuda_fence(struct kern_device *device)
{
	assert(device->recording == CUDA_EAGER);
	cudaError_t chosen = device->api->SetDevice(device->number);
	/* On a failed device too: what still runs may write to memory that the caller is about to free. */
	(void)cuda_keep(device, device->api->StreamSynchronize(device->compute), "cudaStreamSynchronize");
	(void)cuda_keep(device, chosen, "cudaSetDevice");
	return cuda_failed(device) ? -EIO : 0;
}
