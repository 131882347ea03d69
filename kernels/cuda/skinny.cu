/* SPDX-License-Identifier: MIT */
/*
 * Products of packed weights with few rows, y^T = W x^T: bound by the bytes of W, which are read once, 16 bytes a lane
 *
 * A block computes TILES tiles of 16 outputs for 8 * GROUPS rows of x. Its warps share the columns: warp w takes chunks
 * w, w + WARPS, .. (128 columns each). Chunks travel through a ring of STAGES slots a warp in shared memory, which no
 * other warp touches, so that a warp waits for nothing but its own copies. A slot is free again once its codes are in
 * registers; the copy that fills it is under way while these are decoded and multiplied.
 *
 * A fragments of the mma are weights, decoded in registers (quant.h), B fragments are x, read as they lie: 16 bytes a
 * lane are two k-steps, in the order of columns that weight.c describes. The sums of the warps meet in shared memory
 * and are added in the order of the warps. So the order of each sum follows from cols alone: a row's bits do not depend
 * on n.
 */
#include "kernels/cuda/launch.h"

#include "kernels/cuda/quant.h"

namespace
{

const unsigned WARPS = 8, THREADS = WARPS * DEV_WARP, SHARED = 48 << 10;

struct skinny {
	const unsigned char *tiles;
	const uint16_t *x; /* bf16 [n][cols] */
	float *y;          /* [n][rows] */
	size_t tile_bytes;
	uint32_t rows, cols, n;
	bool accumulate;
	struct quant_magic magic;
};

template <enum cuda_layout L, unsigned TILES> struct ring {
	static constexpr unsigned SLOT = TILES * CUDA_CHUNK_BYTES(L);
	static constexpr unsigned FIT = SHARED / (WARPS * SLOT), STAGES = FIT < 4 ? FIT : 4;
};

/* What a lane has of a chunk of a tile: rows lane / 4 and lane / 4 + 8, block lane % 4. */
template <enum cuda_layout L> struct fragment {
	uint32_t code[2][4 * QUANT_WORDS(L)];
	struct quant_scale scale[2];
};

template <enum cuda_layout L>
DEV_INLINE void load_fragment(const unsigned char *chunk, unsigned lane, struct fragment<L> *ret)
{
	for (unsigned half = 0; half < 2; half++) {
		for (unsigned i = 0; i < QUANT_WORDS(L); i++) {
			struct dev_u32x4 v = dev_load16(quant_codes_at<L>(chunk, half, lane, 2 * i));
			for (unsigned k = 0; k < 4; k++)
				ret->code[half][4 * i + k] = v.x[k];
		}
		ret->scale[half] = quant_scale_at<L>(chunk, half, lane);
	}
}

/* x: the lane's block of columns; row: where rows lane / 4 + 8i of x begin; columns 8j..8j+7 of that block. */
template <unsigned GROUPS>
DEV_INLINE void load_x(const uint16_t *x, const uint32_t row[GROUPS], unsigned j, struct dev_u32x4 ret[GROUPS])
{
	for (unsigned i = 0; i < GROUPS; i++)
		ret[i] = dev_load16(x + row[i] + 8 * j);
}

/* 8 columns of each block, two k-steps: sum += W x^T, for all tiles and groups. */
template <enum cuda_layout L, unsigned GROUPS, unsigned TILES>
DEV_INLINE void multiply(const struct fragment<L> w[TILES], const struct quant_magic *magic, unsigned j,
			 const struct dev_u32x4 x[GROUPS], float sum[TILES][GROUPS][4])
{
	for (unsigned t = 0; t < TILES; t++) {
		uint32_t low[4], high[4]; /* of rows lane / 4 and lane / 4 + 8 */
		quant_decode8<L>(w[t].code[0] + QUANT_WORDS(L) * j, &w[t].scale[0], magic, low);
		quant_decode8<L>(w[t].code[1] + QUANT_WORDS(L) * j, &w[t].scale[1], magic, high);
		for (unsigned step = 0; step < 2; step++) {
			uint32_t f[4] = { low[2 * step], high[2 * step], low[2 * step + 1], high[2 * step + 1] };
			for (unsigned i = 0; i < GROUPS; i++)
				dev_mma_bf16(sum[t][i], f, x[i].x + 2 * step);
		}
	}
}

/*
 * Adds the warps' sums and writes them. Items (a tile and a group: 16 outputs of 8 rows) meet in shared memory 8 at a
 * time, each added up by one warp.
 */
template <unsigned GROUPS, unsigned TILES>
DEV_INLINE void finish(const struct skinny *a, uint32_t first_tile, const float sum[TILES][GROUPS][4])
{
	constexpr unsigned ITEMS = TILES * GROUPS, BATCH = ITEMS < WARPS ? ITEMS : WARPS;
	unsigned lane = threadIdx.x % DEV_WARP, warp = threadIdx.x / DEV_WARP;
	unsigned char *room = dev_shared(); /* [BATCH][WARPS][lane] of 16 bytes */

	for (unsigned first = 0; first < ITEMS; first += BATCH) {
		DEV_BARRIER(); /* the ring, or the batch before, is done with */
		for (unsigned i = 0; i < BATCH; i++) {
			const float *s = sum[(first + i) / GROUPS][(first + i) % GROUPS];
			dev_store16(room + ((i * WARPS + warp) * DEV_WARP + lane) * 16,
				    { { dev_bits(s[0]), dev_bits(s[1]), dev_bits(s[2]), dev_bits(s[3]) } });
		}
		DEV_BARRIER();
		if (!DEV_GUARD(warp < BATCH))
			continue;
		float total[4] = { 0, 0, 0, 0 };
		for (unsigned k = 0; k < WARPS; k++) {
			struct dev_u32x4 v = dev_load16(room + ((warp * WARPS + k) * DEV_WARP + lane) * 16);
			for (unsigned i = 0; i < 4; i++)
				total[i] += dev_float(v.x[i]);
		}
		uint32_t o = (first_tile + (first + warp) / GROUPS) * CUDA_TILE_ROWS + lane / 4;
		uint32_t row = (first + warp) % GROUPS * 8 + lane % 4 * 2;
		for (unsigned i = 0; i < 4; i++) {
			if (!DEV_GUARD(o + i / 2 * 8 < a->rows))
				continue;
			if (!DEV_GUARD(row + i % 2 < a->n))
				continue;
			float *y = a->y + (size_t)(row + i % 2) * a->rows + o + i / 2 * 8;
			*y = a->accumulate ? *y + total[i] : total[i];
		}
	}
}

template <enum cuda_layout L, unsigned GROUPS, unsigned TILES>
DEV_KERNEL(THREADS)
multiply_skinny(struct skinny a)
{
	DEV_BOUNDS(THREADS);
	constexpr unsigned SLOT = ring<L, TILES>::SLOT, STAGES = ring<L, TILES>::STAGES;
	constexpr unsigned EARLY = GROUPS <= 2 ? 4 : 1; /* loads of x that do not wait for the weights */
	unsigned lane = threadIdx.x % DEV_WARP, warp = threadIdx.x / DEV_WARP;
	uint32_t first_tile = blockIdx.x * TILES, last_tile = (a.rows - 1) / CUDA_TILE_ROWS;
	uint32_t n_chunks = CUDA_CHUNKS(a.cols);
	unsigned char *slots = dev_shared() + warp * STAGES * SLOT;
	float sum[TILES][GROUPS][4] = {};

	auto copy = [&](uint32_t chunk, unsigned slot) {
		for (unsigned t = 0; t < TILES && DEV_GUARD(chunk < n_chunks); t++) {
			/* where there is no other tile, the last one once more */
			uint32_t tile = DEV_GUARD(first_tile + t < last_tile) ? first_tile + t : last_tile;
			quant_copy_chunk<L>(slots + slot * SLOT + t * CUDA_CHUNK_BYTES(L),
					    a.tiles + tile * a.tile_bytes + (size_t)chunk * CUDA_CHUNK_BYTES(L), lane);
		}
		dev_copy_commit();
	};
	for (unsigned i = 0; i < STAGES; i++)
		copy(warp + i * WARPS, i);
	/*
	 * Nothing outside of x is read: instead of a row beyond n the last one, whose products nobody writes; instead
	 * of columns beyond cols, where weights are zero, the first ones.
	 */
	uint32_t row[GROUPS];
	for (unsigned i = 0; i < GROUPS; i++)
		row[i] = (DEV_GUARD(lane / 4 + 8 * i < a.n) ? lane / 4 + 8 * i : a.n - 1) * a.cols;
	unsigned slot = 0;
	for (uint32_t chunk = warp; chunk < n_chunks; chunk += WARPS) {
		uint32_t col = chunk * CUDA_CHUNK_COLS + lane % 4 * 32; /* cols: a multiple of 32 */
		const uint16_t *x_block = a.x + (DEV_GUARD(col < a.cols) ? col : 0);
		struct dev_u32x4 x[EARLY][GROUPS];
		struct fragment<L> w[TILES];

		for (unsigned j = 0; j < EARLY; j++)
			load_x<GROUPS>(x_block, row, j, x[j]);
		DEV_COPY_WAIT(STAGES - 1);
		DEV_WARP_BARRIER();
		for (unsigned t = 0; t < TILES; t++)
			load_fragment<L>(slots + slot * SLOT + t * CUDA_CHUNK_BYTES(L), lane, &w[t]);
		DEV_WARP_BARRIER();
		copy(chunk + STAGES * WARPS, slot);
		slot = slot + 1 == STAGES ? 0 : slot + 1;
#pragma unroll
		for (unsigned j = 0; j < 4; j++) {
			if (j >= EARLY)
				load_x<GROUPS>(x_block, row, j, x[0]);
			multiply<L, GROUPS, TILES>(w, &a.magic, j, x[j < EARLY ? j : 0], sum);
		}
	}
	finish<GROUPS, TILES>(&a, first_tile, sum);
}

template <enum cuda_layout L, unsigned GROUPS, unsigned TILES>
void launch(struct kern_device *device, const struct skinny *a)
{
	uint32_t tiles = (a->rows + CUDA_TILE_ROWS - 1) / CUDA_TILE_ROWS;
	const size_t sums = (TILES * GROUPS < WARPS ? TILES * GROUPS : WARPS) * WARPS * DEV_WARP * 16;
	const size_t slots = (size_t)WARPS * ring<L, TILES>::STAGES * ring<L, TILES>::SLOT;

	CUDA_LAUNCH(device, (multiply_skinny<L, GROUPS, TILES>), dim3((tiles + TILES - 1) / TILES), THREADS,
		    sums > slots ? sums : slots, *a);
}

template <enum cuda_layout L> void choose_groups(struct kern_device *device, const struct skinny *a)
{
	if (a->n <= 8)
		launch<L, 1, 1>(device, a);
	else if (a->n <= 16)
		launch<L, 2, 2>(device, a); /* from here on x costs as much as the weights: two tiles share it */
	else if (a->n <= 32)
		launch<L, 4, 2>(device, a);
	else
		launch<L, 8, 2>(device, a);
}

} /* namespace */

/**
 * cuda_skinny() - cuda_matmul() for packed weights and at most CUDA_SKINNY_ROWS rows
 */
extern "C" void cuda_skinny(struct kern_device *device, const struct kern_matmul *args)
{
	const struct kern_weight *w = args->w;
	const struct skinny a = {
		.tiles = (const unsigned char *)w->data,
		.x = (const uint16_t *)args->activated,
		.y = args->y,
		.tile_bytes = w->grain_bytes,
		.rows = w->rows,
		.cols = w->cols,
		.n = args->n,
		.accumulate = args->accumulate,
		.magic = QUANT_MAGIC,
	};

	if (w->layout == CUDA_W_Q8_0)
		choose_groups<CUDA_W_Q8_0>(device, &a);
	else if (w->layout == CUDA_W_Q4_0)
		choose_groups<CUDA_W_Q4_0>(device, &a);
	else
		choose_groups<CUDA_W_Q4_1>(device, &a);
}
