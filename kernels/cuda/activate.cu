/* SPDX-License-Identifier: MIT */
/* Activations as products with bf16 weights want them: f32 [n][cols] to bf16 [n][cols rounded up to 8], zero padded. */
#include "kernels/cuda/launch.h"

#include "kernels/cuda/quant.h"

namespace
{

const unsigned THREADS = 256;

/* A thread takes 4 columns: it reads 16 bytes and writes 8. */
DEV_KERNEL(THREADS) to_bf16(const float *x, uint32_t n, uint32_t cols, uint16_t *to)
{
	DEV_BOUNDS(THREADS);
	uint32_t pieces = CUDA_DENSE_COLS(cols) / 4;
	size_t piece = (size_t)blockIdx.x * THREADS + threadIdx.x;
	size_t row = piece / pieces;
	uint32_t col = (uint32_t)(piece % pieces) * 4;
	const float *from = x + row * cols + col;
	struct dev_u32x4 v = { { 0, 0, 0, 0 } };

	if (!DEV_GUARD(row < n))
		return;
	if (cols % 4 == 0 && DEV_GUARD(col < cols)) { /* so rows are aligned */
		v = dev_load16(from);
	} else {
		for (unsigned i = 0; i < 4; i++)
			if (DEV_GUARD(col + i < cols))
				v.x[i] = dev_bits(from[i]);
	}
	uint64_t low = dev_to_bf16x2(dev_float(v.x[0]), dev_float(v.x[1]));
	uint64_t high = dev_to_bf16x2(dev_float(v.x[2]), dev_float(v.x[3]));
	((uint64_t *)to)[piece] = low | high << 32;
}

} /* namespace */

extern "C" void cuda_activate(struct kern_device *device, const void *args, unsigned part, unsigned n_parts)
{
	const struct kern_activate *a = (const struct kern_activate *)args;
	size_t pieces = (size_t)a->n * (CUDA_DENSE_COLS(a->cols) / 4);

	(void)part, (void)n_parts;
	if (a->activation != CUDA_BF16)
		return;
	CUDA_LAUNCH(device, (to_bf16), dim3((unsigned)((pieces + THREADS - 1) / THREADS)), THREADS, 0, a->x, a->n,
		    a->cols, (uint16_t *)a->to);
}
