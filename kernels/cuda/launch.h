/* SPDX-License-Identifier: MIT */
/*
 * Starting a kernel: one typed macro over cudaLaunchKernelExC, since the simulator's compiler knows no <<<>>>.
 *
 *   CUDA_LAUNCH(device, (kernel<T, N>), dim3(x, y), threads, shared_bytes, args...);
 *
 * Arguments are converted to the kernel's parameter types, as in a call. A grid with a zero in it is nothing to do. What the
 * launch reports is kept in the device; nothing is started on a device that failed.
 */
#ifndef LORAD_KERNELS_CUDA_LAUNCH_H
#define LORAD_KERNELS_CUDA_LAUNCH_H

#include "kernels/cuda/dev.h"
#include "kernels/cuda/device.h"

template <auto Kernel> struct cuda_launch;

template <typename... P, void (*Kernel)(P...)> struct cuda_launch<Kernel> {
	static void start(struct kern_device *device, const char *name, dim3 grid, unsigned threads, size_t shared, P... args)
	{
		void *array[] = { (void *)&args... };
		cudaLaunchConfig_t config = {};

		if (cuda_failed(device) || grid.x == 0 || grid.y == 0 || grid.z == 0)
			return;
		config.gridDim = grid;
		config.blockDim = dim3(threads);
		config.dynamicSmemBytes = shared;
		config.stream = device->compute;
		(void)cuda_note(device, device->api->LaunchKernelExC(&config, dev_kernel_handle<Kernel>(), array), name);
	}
};

#define CUDA_UNPAREN(...) __VA_ARGS__
#define CUDA_NAME_(...) #__VA_ARGS__
#define CUDA_NAME(...) CUDA_NAME_(__VA_ARGS__)
#define CUDA_LAUNCH(device, kernel, ...) \
	cuda_launch<CUDA_UNPAREN kernel>::start(device, CUDA_NAME(CUDA_UNPAREN kernel), __VA_ARGS__)

#endif
