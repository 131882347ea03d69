/* SPDX-License-Identifier: MIT */
/*
 * Rows of the embedding table, from every layout, as f32: the numbers that a product with the table would see, bit for
 * bit what the scalar reference decodes. A block takes one row of the step, a thread 4 columns at a time.
 */
#include "kernels/cuda/launch.h"

#include "kernels/cuda/quant.h"

namespace
{

const unsigned THREADS = 128;

/* Columns [col, col + 4) of a row of the table, as f32 bits; col: a multiple of 4, the table is padded beyond cols. */
template <enum cuda_layout L>
DEV_INLINE struct dev_u32x4 table_numbers(const unsigned char *grain, uint32_t row, uint32_t col)
{
	uint32_t low, high;

	if (L == CUDA_W_F32)
		return dev_load16((const float *)grain + col);
	if (L == CUDA_W_BF16) {
		struct dev_u32x2 v = dev_load8((const uint16_t *)grain + col);
		low = v.x[0];
		high = v.x[1];
	} else {
		unsigned r = row % CUDA_TILE_ROWS, piece = col % CUDA_CHUNK_COLS / 8;
		uint32_t v[4];
		quant_decode8_at<L>(grain + (size_t)(col / CUDA_CHUNK_COLS) * CUDA_CHUNK_BYTES(L), r / 8,
				    r % 8 * 4 + piece / 4, piece % 4, v);
		low = col % 8 ? v[2] : v[0];
		high = col % 8 ? v[3] : v[1];
	}
	return { { low << 16, low & 0xffff0000u, high << 16, high & 0xffff0000u } };
}

/* x[i] = table[token[i]] */
template <enum cuda_layout L>
DEV_KERNEL(THREADS)
embed(const unsigned char *table, size_t grain_bytes, uint32_t cols, const struct kern_step *step, float *x)
{
	DEV_BOUNDS(THREADS);
	if (!DEV_GUARD(blockIdx.x < step->n_rows))
		return;

	uint32_t row = step->token[blockIdx.x];
	const unsigned char *grain = table + row / (CUDA_IS_PACKED(L) ? CUDA_TILE_ROWS : 1) * grain_bytes;
	float *to = x + (size_t)blockIdx.x * cols;

	for (uint32_t col = threadIdx.x * 4; col < cols; col += THREADS * 4) {
		struct dev_u32x4 v = table_numbers<L>(grain, row, col);
		if (cols % 4 == 0) { /* so rows are aligned */
			dev_store16(to + col, v);
			continue;
		}
		for (unsigned i = 0; i < 4; i++)
			if (DEV_GUARD(col + i < cols))
				to[col + i] = dev_float(v.x[i]);
	}
}

template <enum cuda_layout L> void launch(struct kern_device *device, const struct kern_embed *a)
{
	CUDA_LAUNCH(device, (embed<L>), dim3(a->extent->n_rows), THREADS, 0, (const unsigned char *)a->table->data,
		    a->table->grain_bytes, a->table->cols, a->step, a->x);
}

} /* namespace */

extern "C" void cuda_embed(struct kern_device *device, const void *args, unsigned part, unsigned n_parts)
{
	const struct kern_embed *a = (const struct kern_embed *)args;

	(void)part, (void)n_parts;
	switch ((enum cuda_layout)a->table->layout) {
	case CUDA_W_F32:
		return launch<CUDA_W_F32>(device, a);
	case CUDA_W_BF16:
		return launch<CUDA_W_BF16>(device, a);
	case CUDA_W_Q8_0:
		return launch<CUDA_W_Q8_0>(device, a);
	case CUDA_W_Q4_0:
		return launch<CUDA_W_Q4_0>(device, a);
	case CUDA_W_Q4_1:
		return launch<CUDA_W_Q4_1>(device, a);
	}
}
