/* SPDX-License-Identifier: MIT */
/* Sizes and decoding of the stored number formats; quant.h describes them. */
#include "kernels/quant.h"

#include <assert.h>

#include "kernels/host.h"

size_t kern_dtype_bytes(enum kern_dtype dtype)
{
	return dtype == KERN_F32 ? 4 : dtype == KERN_F16 || dtype == KERN_BF16 ? 2 : 0;
}

static size_t block_bytes(enum kern_dtype dtype)
{
	return dtype == KERN_Q8_0   ? sizeof(struct quant_q8_0)
	       : dtype == KERN_Q4_0 ? sizeof(struct quant_q4_0)
	       : dtype == KERN_Q4_1 ? sizeof(struct quant_q4_1)
				    : 0;
}

/**
 * kern_row_bytes() - bytes of one stored row
 *
 * Return: 0 if the dtype is unknown or comes in blocks of 32 and cols is no multiple of that.
 */
size_t kern_row_bytes(enum kern_dtype dtype, uint32_t cols)
{
	if (!quant_is_blocks(dtype))
		return kern_dtype_bytes(dtype) * cols;
	return cols % QUANT_BLOCK ? 0 : cols / QUANT_BLOCK * block_bytes(dtype);
}

static void decode_blocks(enum kern_dtype dtype, const uint8_t *block, uint32_t n, float *ret)
{
	uint8_t code[QUANT_BLOCK];
	float d, m;

	for (; n; n -= QUANT_BLOCK, block += block_bytes(dtype)) {
		quant_codes(dtype, block, code, &d, &m);
		for (unsigned j = 0; j < QUANT_BLOCK; j++)
			*ret++ = d * (float)code[j] + m;
	}
}

void quant_decode(enum kern_dtype dtype, const void *row, uint32_t first, uint32_t n, float *ret)
{
	const uint8_t *p = row;

	if (quant_is_blocks(dtype)) {
		assert(first % QUANT_BLOCK == 0 && n % QUANT_BLOCK == 0);
		decode_blocks(dtype, p + first / QUANT_BLOCK * block_bytes(dtype), n, ret);
		return;
	}
	p += first * kern_dtype_bytes(dtype);
	if (dtype == KERN_F32) {
		memcpy(ret, p, n * sizeof *ret);
		return;
	}
	for (uint32_t j = 0; j < n; j++, p += 2)
		ret[j] = dtype == KERN_F16 ? quant_from_f16(quant_load16(p)) : quant_from_bf16(quant_load16(p));
}

/**
 * host_stored_row() - where output row i lies in the file
 *
 * llama.cpp's converter stores the rows of q and k of each head (e rows) as pairs: row 2 j + s holds what Hugging Face
 * has at row s * e / 2 + j, because its rope rotates neighbours where Hugging Face rotates halves.
 */
uint32_t host_stored_row(const struct kern_matrix *m, uint32_t i)
{
	uint32_t e = m->permuted_head;

	if (!e)
		return i;
	return i / e * e + i % e % (e / 2) * 2 + i % e / (e / 2);
}
