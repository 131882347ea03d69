/* SPDX-License-Identifier: MIT */
/*
 * Is there a GPU, and which? For tests/gpu/run: prints one line, exit status 77 where there is none.
 *
 *   probe          architecture (90), name, multiprocessors, memory and L2 in MiB, CUDA versions of driver and runtime
 *   probe --wrong  writes behind an allocation: does compute-sanitizer see it?
 */
#include <cstdio>

#include <cuda_runtime.h>

static __global__ void write_word(int *p, int at)
{
	p[at] = 1;
}

int main(int argc, char **)
{
	int n = 0, driver = 0, runtime = 0, *p = nullptr;
	cudaDeviceProp device;

	cudaError_t error = cudaGetDeviceCount(&n);
	if (error != cudaSuccess || n == 0) {
		printf("%s\n", error != cudaSuccess ? cudaGetErrorString(error) : "no device");
		return 77;
	}
	(void)cudaDriverGetVersion(&driver);
	(void)cudaRuntimeGetVersion(&runtime);
	error = cudaGetDeviceProperties(&device, 0);
	if (error == cudaSuccess)
		error = cudaMalloc(&p, 256);
	if (error == cudaSuccess) {
		write_word<<<1, 1>>>(p, argc > 1 ? 64 : 0);
		error = cudaDeviceSynchronize();
	}
	if (error != cudaSuccess) {
		printf("%s\n", cudaGetErrorString(error));
		return 1;
	}
	printf("%d %s, %d multiprocessors, %zu MiB, L2 %d MiB, CUDA %d.%d, driver for %d.%d\n", 10 * device.major + device.minor,
	       device.name, device.multiProcessorCount, device.totalGlobalMem >> 20, device.l2CacheSize >> 20,
	       runtime / 1000, runtime % 1000 / 10, driver / 1000, driver % 1000 / 10);
	return 0;
}
