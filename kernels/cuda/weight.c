/* SPDX-License-Identifier: MIT */
/*
 * Weights of the CUDA backend: packed once, on the host, into the order in which the kernels read them
 *
 * Dense (CUDA_W_F32, CUDA_W_BF16): rows of cols rounded up to 8 numbers, row-major, the padding zero. Grain 1.
 *
 * Packed (CUDA_W_Q8_0, Q4_0, Q4_1): tiles of 16 rows (the grain), each a run of chunks of 128 columns, 4 blocks
 * of 32. A chunk stands by itself, so that a warp takes it as one contiguous piece of memory:
 *
 *   codes     2048 bytes (Q8_0) or 1024
 *   scales    128 bytes: f16 [row % 8][block][row / 8]
 *   minimums  128 bytes, Q4_1 only: f16, as the scales
 *
 * A lane l of a warp has the rows l / 4 and l / 4 + 8 of the block l % 4: these are the rows of its fragments of an
 * mma, and all its numbers of a row share one scale. The columns of a product may be summed in any order as long as
 * both sides have the same: k-step s = 0..7 of a chunk takes columns 4s..4s+3 of each block, which lane l % 4 of the
 * inputs' fragments reads as consecutive numbers too. The codes are loaded 16 bytes a lane, [load][lane]:
 *
 *   Q4   load h: row l / 4 + 8h, whole block. Word j: columns 8j..8j+7. Column 8j + 2i is bits 4i..4i+3,
 *        column 8j + 2i + 1 is bits 4i+16..4i+19
 *   Q8   load 2h + q: row l / 4 + 8h, columns 16q..16q+15 of the block, one byte each, 128 added
 *
 * What is beyond the last row or column is zero: codes, scales and minimums.
 */
#include <errno.h>
#include <string.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/quant.h"
#include "kernels/host.h"
#include "kernels/quant.h"

static enum cuda_layout choose_layout(enum kern_dtype dtype, enum kern_precision precision)
{
	if (precision == KERN_PRECISION_F32)
		return CUDA_W_F32;
	if (precision == KERN_PRECISION_BF16 || !quant_is_blocks(dtype))
		return CUDA_W_BF16;
	return dtype == KERN_Q8_0 ? CUDA_W_Q8_0 : dtype == KERN_Q4_0 ? CUDA_W_Q4_0 : CUDA_W_Q4_1;
}

int cuda_weight_plan(struct kern_device *device, const struct kern_matrix *m, enum kern_precision precision,
		     struct kern_weight *ret)
{
	int r = host_check_matrix(m, precision);

	(void)device;
	if (r < 0)
		return r;
	if (m->dtype > KERN_Q4_1)
		return -ENOTSUP; /* no kernel here decodes these */
	enum cuda_layout layout = choose_layout(m->dtype, precision);
	bool packed = CUDA_IS_PACKED(layout);
	/* a tile is decoded within a panel */
	if (packed && CUDA_TILE_ROWS * cuda_activation_bytes(CUDA_BF16, m->cols) > CUDA_PANEL_BYTES)
		return -EINVAL;
	*ret = (struct kern_weight){
		.rows = m->rows,
		.cols = m->cols,
		.layout = (uint8_t)layout,
		.activation = layout == CUDA_W_F32 ? CUDA_PLAIN : CUDA_BF16,
		.grain = packed ? CUDA_TILE_ROWS : 1,
		.grain_bytes = packed ? CUDA_CHUNKS((size_t)m->cols) * CUDA_CHUNK_BYTES(layout)
				      : CUDA_DENSE_COLS((size_t)m->cols) * (layout == CUDA_W_F32 ? 4 : 2),
	};
	ret->bytes = ((size_t)m->rows + ret->grain - 1) / ret->grain * ret->grain_bytes;
	return 0;
}

void cuda_weight_release(struct kern_weight *w)
{
	w->handle = NULL;
}

size_t cuda_activation_bytes(uint8_t activation, uint32_t cols)
{
	return activation == CUDA_BF16 ? CUDA_DENSE_COLS((size_t)cols) * 2 : 0;
}

static void pack_dense(const struct kern_matrix *m, const uint8_t *from, enum cuda_layout layout, uint8_t *to)
{
	float x[QUANT_BLOCK];

	for (uint32_t k = 0; k < m->cols; k += QUANT_BLOCK) {
		uint32_t n = m->cols - k < QUANT_BLOCK ? m->cols - k : QUANT_BLOCK;
		quant_decode(m->dtype, from, k, n, x);
		if (layout == CUDA_W_F32) {
			memcpy((float *)to + k, x, n * sizeof *x);
			continue;
		}
		for (uint32_t j = 0; j < n; j++)
			((uint16_t *)to)[k + j] = quant_to_bf16(x[j]);
	}
}

/* 4 or 8 columns as one word of a lane. */
static uint32_t pack_word(const uint8_t *code, unsigned columns)
{
	uint32_t word = 0;

	for (unsigned c = 0; c < columns; c++)
		word |= (uint32_t)code[c] << (columns == 4 ? 8 * c : 4 * (c / 2) + 16 * (c % 2));
	return word;
}

/* Block b of row r of a tile. */
static void pack_block(enum cuda_layout layout, const struct kern_matrix *m, const uint8_t *block, unsigned r,
		       uint32_t b, uint8_t *tile)
{
	unsigned lane = r % 8 * 4 + b % 4, loads = layout == CUDA_W_Q8_0 ? 2 : 1, columns = 8 / loads;
	uint8_t *chunk = tile + b / 4 * (size_t)CUDA_CHUNK_BYTES(layout);
	uint8_t *scale = chunk + CUDA_CHUNK_CODES(layout) + 4 * lane + 2 * (r / 8);
	struct quant_group g;

	quant_group(m->dtype, block, 0, &g);
	for (unsigned i = 0; i < QUANT_BLOCK / columns; i++) {
		uint32_t word = pack_word(g.code + i * columns, columns);
		memcpy(chunk + ((r / 8 * loads + i / 4) * 32 + lane) * 16 + i % 4 * 4, &word, sizeof word);
	}
	memcpy(scale, block, 2);
	if (layout == CUDA_W_Q4_1)
		memcpy(scale + CUDA_CHUNK_SCALES, block + 2, 2);
}

void cuda_weight_pack(const struct kern_weight *w, const struct kern_matrix *m, uint32_t first, uint32_t n, void *to)
{
	enum cuda_layout layout = (enum cuda_layout)w->layout;
	size_t row_bytes = kern_row_bytes(m->dtype, m->cols);
	uint32_t blocks = m->cols / QUANT_BLOCK;

	memset(to, 0, ((size_t)n + w->grain - 1) / w->grain * w->grain_bytes);
	for (uint32_t i = 0; i < n; i++) {
		const uint8_t *from = (const uint8_t *)m->data + host_stored_row(m, first + i) * row_bytes;
		uint8_t *grain = (uint8_t *)to + i / w->grain * w->grain_bytes;
		if (!CUDA_IS_PACKED(layout))
			pack_dense(m, from, layout, grain);
		for (uint32_t b = 0; CUDA_IS_PACKED(layout) && b < blocks; b++)
			pack_block(layout, m, from + b * (row_bytes / blocks), i % w->grain, b, grain);
	}
}
