/* SPDX-License-Identifier: MIT */
/*
 * Adapters that are a vector: rows of a segment times its vector, number by number.
 *
 * A block takes a tile of rows and PANEL columns, a thread four of these in all rows; all segments on the rows in order, see
 * lora.h.
 */
#include "kernels/cuda/launch.h"

#include "kernels/cuda/lora.h"

namespace
{

#define PANEL (4 * LORA_THREADS)
#define ROWS 4u /* that are under way at once */

/* grid: tiles, panels */
DEV_KERNEL(LORA_THREADS)
row_scale(const struct kern_step *step, const float *const *vector, float *y, uint32_t width)
{
	DEV_BOUNDS(LORA_THREADS);
	const struct lora_rows rows = lora_group(step, blockIdx.x);
	const uint32_t column = blockIdx.y * PANEL + threadIdx.x * 4;

	if (!DEV_GUARD(rows.n > 0))
		return;
	if (!DEV_GUARD(column < width))
		return;
	const uint32_t n = width - column;

	y += (size_t)(rows.segment->first_row + rows.first) * width + column;
	for (uint32_t s = 0; s < rows.n_segments; ++s) {
		const float *gain = vector[rows.segment + s - step->segment];

		if (!DEV_GUARD(gain != NULL))
			continue;
		const bool wide = (uintptr_t)gain % 16 == 0 && DEV_GUARD(n >= 4);
		const struct lora_four by = lora_read(gain + column, n, wide);

		for (uint32_t row = 0; row < rows.n; row += ROWS) {
			struct lora_four four[ROWS];

			for (unsigned i = 0; i < ROWS; ++i)
				four[i] = lora_read(y + (row + i) * (size_t)width, DEV_GUARD(row + i < rows.n) ? n : 0,
						    width % 4 == 0);
			for (unsigned i = 0; i < ROWS; ++i) {
				for (unsigned j = 0; j < 4; ++j)
					four[i].x[j] *= by.x[j];
				lora_write(y + (row + i) * (size_t)width, four[i], DEV_GUARD(row + i < rows.n) ? n : 0,
					   width % 4 == 0);
			}
		}
	}
}

} /* namespace */

extern "C" void cuda_row_scale(struct kern_device *device, const void *args, unsigned part, unsigned n_parts)
{
	const struct kern_row_scale *a = (const struct kern_row_scale *)args;
	const dim3 grid(a->extent->n_segment_tiles, (a->width + PANEL - 1) / PANEL);

	(void)part, (void)n_parts;
	CUDA_LAUNCH(device, (row_scale), grid, LORA_THREADS, 0, a->step, a->vector, a->y, a->width);
}
