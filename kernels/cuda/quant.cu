/* SPDX-License-Identifier: MIT */
/*
 * Packed weights decoded to rows of bf16, for products of many rows: cuBLAS knows no other format
 *
 * A warp takes one chunk of one tile: 16 rows x 128 columns. It is copied to shared memory as it lies, 16 bytes a lane,
 * and decoded from there in the order in which rows are written: 16 lanes fill 256 consecutive bytes of a row.
 */
#include "kernels/cuda/launch.h"

#include "kernels/cuda/quant.h"

namespace
{

const unsigned WARPS = 8, THREADS = WARPS * DEV_WARP;

template <enum cuda_layout L>
DEV_KERNEL(THREADS)
decode_panel(const unsigned char *tiles, size_t tile_bytes, uint32_t n, uint32_t cols, uint16_t *to)
{
	DEV_BOUNDS(THREADS);
	unsigned lane = threadIdx.x % DEV_WARP, warp = threadIdx.x / DEV_WARP;
	unsigned char *chunk = dev_shared() + warp * CUDA_CHUNK_BYTES(L);
	uint32_t number = blockIdx.y * WARPS + warp, first_row = blockIdx.x * CUDA_TILE_ROWS;
	uint32_t col = number * CUDA_CHUNK_COLS + lane % 16 * 8; /* cols: a multiple of 32 */

	if (DEV_GUARD(number < CUDA_CHUNKS(cols)))
		quant_copy_chunk<L>(chunk, tiles + blockIdx.x * tile_bytes + (size_t)number * CUDA_CHUNK_BYTES(L),
				    lane);
	dev_copy_commit();
	DEV_COPY_WAIT(0);
	DEV_WARP_BARRIER();
	for (unsigned r = lane / 16; r < CUDA_TILE_ROWS; r += 2) {
		struct dev_u32x4 x;
		if (!DEV_GUARD(first_row + r < n))
			continue;
		if (!DEV_GUARD(col < cols))
			continue;
		quant_decode8_at<L>(chunk, r / 8, r % 8 * 4 + lane % 16 / 4, lane % 4, x.x);
		dev_store16(to + (size_t)(first_row + r) * CUDA_DENSE_COLS(cols) + col, x);
	}
}

template <enum cuda_layout L>
void launch(struct kern_device *device, const struct kern_weight *w, uint32_t first, uint32_t n, void *to)
{
	const unsigned char *tiles = (const unsigned char *)w->data + first / w->grain * w->grain_bytes;
	dim3 grid((n + CUDA_TILE_ROWS - 1) / CUDA_TILE_ROWS, (CUDA_CHUNKS(w->cols) + WARPS - 1) / WARPS);

	CUDA_LAUNCH(device, (decode_panel<L>), grid, THREADS, WARPS * CUDA_CHUNK_BYTES(L), tiles, w->grain_bytes, n,
		    w->cols, (uint16_t *)to);
}

} /* namespace */

/**
 * cuda_decode_panel() - rows [first, first + n) of a packed weight as bf16 [n][cols]
 * @first: a multiple of the grain
 */
extern "C" void cuda_decode_panel(struct kern_device *device, const struct kern_weight *w, uint32_t first, uint32_t n,
				  void *to)
{
	if (w->layout == CUDA_W_Q8_0)
		launch<CUDA_W_Q8_0>(device, w, first, n, to);
	else if (w->layout == CUDA_W_Q4_0)
		launch<CUDA_W_Q4_0>(device, w, first, n, to);
	else
		launch<CUDA_W_Q4_1>(device, w, first, n, to);
}
