/* SPDX-License-Identifier: MIT */
/*
 * Rotary position embedding, in place. A block takes a row: the angles of a position are the same for all of its heads,
 * so their sines and cosines are computed once into shared memory, then every head is rotated by them.
 *
 * The angle is position * inv_freq rounded to f32, as models are trained with it; it may be as large as the longest
 * context. sinf() and cosf() of such numbers go through a table in local memory, so the reduction is done here.
 */
#include "kernels/cuda/launch.h"

#include <math.h>

#define THREADS 256

struct turn {
	float cos, sin;
};

/*
 * Within 1e-7 for angles from 0 to 2^17, 1.3e-7 to 2^20. angle = n pi/2 + r, pi/2 in three pieces: what the first
 * leaves is below 2 and a multiple of 2^-23, so exact, and the others round at 2^-24 of it. Then Cephes' polynomials on
 * [-pi/4, pi/4]. The multiply-adds are explicit: if the compiler chose them, the angle might not be rounded first.
 */
DEV_INLINE struct turn turn_by(float angle)
{
	float n = rintf(angle * 0x1.45f306p-1f);
	float r = fmaf(-n, -0x1.777a5cp-25f, fmaf(-n, 0x1.921fb6p0f, angle));
	r = fmaf(-n, -0x1.ee59dap-50f, r);
	float r2 = r * r;
	float s = fmaf(r * r2, fmaf(fmaf(-1.9515295891e-4f, r2, 8.3321608736e-3f), r2, -1.6666654611e-1f), r);
	float c = fmaf(fmaf(2.443315711809948e-5f, r2, -1.388731625493765e-3f), r2, 4.166664568298827e-2f);
	c = fmaf(r2 * r2, c, fmaf(-0.5f, r2, 1));
	uint32_t quarter = (uint32_t)n;
	float a = quarter & 1 ? s : c, b = quarter & 1 ? c : s;

	return { (quarter + 1) & 2 ? -a : a, quarter & 2 ? -b : b };
}

/* Numbers j and j + e/2 of a head, for WIDTH consecutive j. */
template <unsigned WIDTH> DEV_INLINE void rotate(float *low, float *high, const struct turn *turn)
{
	if (WIDTH == 1) {
		float lo = *low, hi = *high;
		*low = lo * turn->cos - hi * turn->sin;
		*high = hi * turn->cos + lo * turn->sin;
		return;
	}
	struct dev_u32x4 lo = dev_load16(low), hi = dev_load16(high), new_lo, new_hi;
	for (unsigned k = 0; k < 4; k++) {
		float l = dev_float(lo.x[k]), h = dev_float(hi.x[k]);
		new_lo.x[k] = dev_bits(l * turn[k].cos - h * turn[k].sin);
		new_hi.x[k] = dev_bits(h * turn[k].cos + l * turn[k].sin);
	}
	dev_store16(low, new_lo);
	dev_store16(high, new_hi);
}

template <unsigned WIDTH> static DEV_KERNEL(THREADS) rope(struct kern_rope a)
{
	DEV_BOUNDS(THREADS);
	struct turn *turn = (struct turn *)dev_shared(); /* [e/2] */
	uint32_t row = blockIdx.x, half = a.head_dim / 2;
	uint32_t work = DEV_GUARD(row < a.step->n_rows) ? a.n_heads * (half / WIDTH) : 0;
	float *x = a.x + (size_t)row * a.n_heads * a.head_dim; /* [heads][e] */

	if (work > 0) {
		float position = (float)a.step->position[row];
		for (uint32_t j = threadIdx.x; j < half; j += blockDim.x)
			turn[j] = turn_by(position * a.inv_freq[j]);
	}
	DEV_BARRIER();
	for (uint32_t i = threadIdx.x; i < work; i += blockDim.x) {
		uint32_t head = i / (half / WIDTH), j = i % (half / WIDTH) * WIDTH;
		float *low = x + (size_t)head * a.head_dim + j;
		rotate<WIDTH>(low, low + half, turn + j);
	}
}

extern "C" void cuda_rope(struct kern_device *device, const void *args, unsigned, unsigned)
{
	const struct kern_rope *a = (const struct kern_rope *)args;
	size_t shared = a->head_dim / 2 * sizeof(struct turn);
	dim3 grid(a->extent->n_rows);

	if (a->head_dim % 8 == 0 && (uintptr_t)a->x % 16 == 0)
		CUDA_LAUNCH(device, (rope<4>), grid, THREADS, shared, *a);
	else
		CUDA_LAUNCH(device, (rope<1>), grid, THREADS, shared, *a);
}
