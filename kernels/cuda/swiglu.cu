/* SPDX-License-Identifier: MIT */
/* SwiGLU: y = gate / (1 + e^-gate) * up, number by number; rows do not matter. y may be gate or up. */
#include "kernels/cuda/launch.h"

#include <math.h>

#define THREADS 256

DEV_INLINE float silu_times(float gate, float up)
{
	return gate / (1 + expf(-gate)) * up; /* gate very negative: over infinity, so 0 */
}

/* count: of the numbers, a multiple of WIDTH */
template <unsigned WIDTH> static DEV_KERNEL(THREADS) swiglu(const float *gate, const float *up, float *y, size_t count)
{
	DEV_BOUNDS(THREADS);
	size_t i = ((size_t)blockIdx.x * THREADS + threadIdx.x) * WIDTH;

	if (!DEV_GUARD(i < count))
		return;
	if (WIDTH == 1) {
		y[i] = silu_times(gate[i], up[i]);
		return;
	}
	struct dev_u32x4 g = dev_load16(gate + i), u = dev_load16(up + i);
	for (unsigned k = 0; k < 4; k++)
		g.x[k] = dev_bits(silu_times(dev_float(g.x[k]), dev_float(u.x[k])));
	dev_store16(y + i, g);
}

template <unsigned WIDTH> static void start(struct kern_device *device, const struct kern_swiglu *a)
{
	size_t count = (size_t)a->n * a->width, of_block = (size_t)THREADS * WIDTH;
	dim3 grid((unsigned)((count + of_block - 1) / of_block));

	CUDA_LAUNCH(device, (swiglu<WIDTH>), grid, THREADS, 0, a->gate, a->up, a->y, count);
}

extern "C" void cuda_swiglu(struct kern_device *device, const void *args, unsigned, unsigned)
{
	const struct kern_swiglu *a = (const struct kern_swiglu *)args;
	bool aligned = (((uintptr_t)a->gate | (uintptr_t)a->up | (uintptr_t)a->y) % 16) == 0;

	if (aligned && (size_t)a->n * a->width % 4 == 0)
		start<4>(device, a);
	else
		start<1>(device, a);
}
