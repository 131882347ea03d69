/* SPDX-License-Identifier: MIT */
/*
 * RMSNorm, with the gather of rows before the last one. A team takes a row: a warp where rows are short, else a block.
 * The row is read twice, the second time from L1. The order of the sum follows d alone, so the bits of a row do, too.
 */
#include "kernels/cuda/launch.h"

#include <math.h>

#define THREADS 256
#define SHORT_ROW 1024 /* numbers that are few enough for a warp */

struct quad { /* four numbers, or one where rows are not aligned to four */
	float x[4];
};

template <unsigned WIDTH> DEV_INLINE struct quad load(const float *p)
{
	struct quad ret = {};

	if (WIDTH == 4) {
		struct dev_u32x4 v = dev_load16(p);
		for (unsigned i = 0; i < 4; i++)
			ret.x[i] = dev_float(v.x[i]);
	} else {
		ret.x[0] = *p;
	}
	return ret;
}

template <unsigned WIDTH> DEV_INLINE void store(float *p, const struct quad *q)
{
	if (WIDTH == 4)
		dev_store16(p, { { dev_bits(q->x[0]), dev_bits(q->x[1]), dev_bits(q->x[2]), dev_bits(q->x[3]) } });
	else
		*p = q->x[0];
}

template <unsigned TEAM, unsigned WIDTH> static DEV_KERNEL(THREADS) rms_norm(struct kern_rms_norm a)
{
	DEV_BOUNDS(THREADS);
	uint32_t i = blockIdx.x * (THREADS / TEAM) + threadIdx.x / TEAM, lane = threadIdx.x % TEAM;
	uint32_t d = DEV_GUARD(i < a.n) ? a.d : 0; /* teams without a row stay for the collectives */
	const float *x = a.x + (size_t)(d && a.row ? a.row[i] : i) * d; /* [d] */
	float *y = a.y + (size_t)i * d; /* [d] */
	float sum = 0;

	for (uint32_t j = lane * WIDTH; j < d; j += TEAM * WIDTH) {
		struct quad q = load<WIDTH>(x + j);
		for (unsigned k = 0; k < WIDTH; k++)
			sum += q.x[k] * q.x[k];
	}
	sum = TEAM == DEV_WARP ? dev_warp_sum(sum) : dev_block_sum(sum, (float *)dev_shared());
	float scale = 1 / sqrtf(sum / (float)a.d + a.eps);
	for (uint32_t j = lane * WIDTH; j < d; j += TEAM * WIDTH) {
		struct quad q = load<WIDTH>(x + j), gain = load<WIDTH>(a.gain + j);
		for (unsigned k = 0; k < WIDTH; k++)
			q.x[k] = q.x[k] * scale * gain.x[k];
		store<WIDTH>(y + j, &q);
	}
}

template <unsigned WIDTH> static void start(struct kern_device *device, const struct kern_rms_norm *a)
{
	const unsigned rows = THREADS / DEV_WARP;

	if (a->d <= SHORT_ROW)
		CUDA_LAUNCH(device, (rms_norm<DEV_WARP, WIDTH>), dim3((a->n + rows - 1) / rows), THREADS, 0, *a);
	else
		CUDA_LAUNCH(device, (rms_norm<THREADS, WIDTH>), dim3(a->n), THREADS, rows * sizeof(float), *a);
}

extern "C" void cuda_rms_norm(struct kern_device *device, const void *args, unsigned, unsigned)
{
	const struct kern_rms_norm *a = (const struct kern_rms_norm *)args;
	bool aligned = a->d % 4 == 0 && (((uintptr_t)a->x | (uintptr_t)a->gain | (uintptr_t)a->y) % 16) == 0;

	if (aligned)
		start<4>(device, a);
	else
		start<1>(device, a);
}
