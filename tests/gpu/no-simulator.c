/* SPDX-License-Identifier: MIT */
/* What tests/unit/cuda-rig.c asks of the simulator, where the GPU is a real one: nothing happens. */
#include <stdlib.h>

#include "tests/cudasim/engine.h"
#include "tests/cudasim/runtime.h"

void cudasim_reset(void)
{
}

void cudasim_seed(uint64_t seed)
{
	(void)seed;
}

void cudasim_fail(const char *spec) /* tests that need it are left out */
{
	(void)spec;
	abort();
}

const char *cudasim_leaks(void)
{
	return NULL;
}

cudaError_t cudasim_DeviceGetAttribute(int *ret, enum cudaDeviceAttr attribute, int number)
{
	return cudaDeviceGetAttribute(ret, attribute, number);
}
