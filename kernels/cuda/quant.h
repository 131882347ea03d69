/* SPDX-License-Identifier: MIT */
/*
 * Packed weights: how large their pieces are, and how kernels decode them. The layout is described in weight.c.
 *
 * A code becomes the f32 number d * code + m, rounded once, as kernels/quant.h decodes it, and from there bf16. Codes
 * are made floats without a conversion: or'ed into the mantissa of 2^k they are the number 2^k + code. For Q8_0 and
 * Q4_0 the minimum is a multiple of d, and d * (2^k + code) - d * (2^k + 8) has the same exact value; the product is
 * not rounded in between (fmaf), and d * (2^k + 8) has at most 24 significant bits as long as k <= 15.
 */
#ifndef LORAD_KERNELS_CUDA_QUANT_H
#define LORAD_KERNELS_CUDA_QUANT_H

#include "kernels/cuda/device.h"

#define CUDA_TILE_ROWS 16u
#define CUDA_CHUNK_COLS 128u
#define CUDA_CHUNK_SCALES 128u /* bytes of a chunk's scales, and of its minimums */
#define CUDA_IS_PACKED(layout) ((layout) >= CUDA_W_Q8_0)
#define CUDA_CHUNK_CODES(layout) ((layout) == CUDA_W_Q8_0 ? 2048u : 1024u)
#define CUDA_CHUNK_BYTES(layout) (CUDA_CHUNK_CODES(layout) + CUDA_CHUNK_SCALES * ((layout) == CUDA_W_Q4_1 ? 2 : 1))
#define CUDA_CHUNKS(cols) (((cols) + CUDA_CHUNK_COLS - 1) / CUDA_CHUNK_COLS)
#define CUDA_DENSE_COLS(cols) (((cols) + 7) / 8 * 8) /* of a row of dense weights, of activations, of a panel */

#ifdef __cplusplus
#include "kernels/cuda/dev.h"

/* A block of one row. A code c at mantissa bit 8 + 4i makes 2^(15 - 4i) + c; the weight is d times that, plus m[i]. */
struct quant_scale {
	float d, m[3]; /* Q8_0 uses m[0]; Q4_1's m[0] is the minimum itself */
};

/*
 * The bits of 2^15, 2^11, 2^7. A kernel that has them of an argument keeps them in registers: where the compiler knows
 * them it makes two instructions of (word & mask) | magic, since one takes only one constant.
 */
struct quant_magic {
	uint32_t bits[3];
};

/* clang-format off */
#define QUANT_MAGIC { { 0x47000000u, 0x45000000u, 0x43000000u } }
/* clang-format on */

/* d, m: f16 bits */
template <enum cuda_layout L> DEV_INLINE struct quant_scale quant_scale_of(uint16_t d, uint16_t m)
{
	struct quant_scale s;

	s.d = dev_from_f16(d);
	for (unsigned i = 0; i < 3; i++)
		s.m[i] = L == CUDA_W_Q4_1 ? dev_from_f16(m)
					  : -s.d * ((float)(1u << (15 - 4 * i)) + (L == CUDA_W_Q8_0 ? 128.0f : 8.0f));
	return s;
}

/* The code whose bits `mask` leaves of a word, at mantissa bit 8 + 4i. */
template <enum cuda_layout L>
DEV_INLINE float quant_number(uint32_t word, uint32_t mask, unsigned i, const struct quant_scale *s,
			      const struct quant_magic *magic)
{
	float code = dev_float((word & mask) | magic->bits[i]);

	return L == CUDA_W_Q4_1 ? fmaf(s->d, code - dev_float(magic->bits[i]), s->m[0]) : fmaf(s->d, code, s->m[i]);
}

/* Words a lane has of 8 columns. */
#define QUANT_WORDS(layout) ((layout) == CUDA_W_Q8_0 ? 2u : 1u)

/* 8 consecutive columns as bf16, two a word, from QUANT_WORDS words of codes. */
template <enum cuda_layout L>
DEV_INLINE void quant_decode8(const uint32_t *word, const struct quant_scale *s, const struct quant_magic *magic,
			      uint32_t ret[4])
{
	for (unsigned i = 0; i < 4; i++) {
		float x[2];
		for (unsigned c = 0; c < 2; c++) {
			if (L == CUDA_W_Q8_0) {
				unsigned byte = i % 2 * 2 + c;
				uint32_t w = byte == 0 ? word[i / 2] << 8 : word[i / 2] >> (8 * byte - 8);
				x[c] = quant_number<L>(w, 0xff00u, 0, s, magic);
			} else { /* three nibbles of a word can be used where they are: of w << 12, w, w >> 12 */
				unsigned third = (i + 4 * c + 1) / 3, at = (i + 4 * c + 1) % 3;
				uint32_t w = third == 0 ? word[0] << 12 : third == 1 ? word[0] : word[0] >> 12;
				x[c] = quant_number<L>(w, 0xf00u << (4 * at), at, s, magic);
			}
		}
		ret[i] = dev_to_bf16x2(x[0], x[1]);
	}
}

/* Where lane `lane` has codes of row lane / 4 + 8 * half of a chunk: columns 8j..8j+7 of block lane % 4. */
template <enum cuda_layout L>
DEV_INLINE const void *quant_codes_at(const unsigned char *chunk, unsigned half, unsigned lane, unsigned j)
{
	if (L == CUDA_W_Q8_0)
		return chunk + ((half * 2 + j / 2) * DEV_WARP + lane) * 16 + j % 2 * 8;
	return chunk + (half * DEV_WARP + lane) * 16 + j * 4;
}

/* The scale of row lane / 4 + 8 * half, block lane % 4 of a chunk. */
template <enum cuda_layout L>
DEV_INLINE struct quant_scale quant_scale_at(const unsigned char *chunk, unsigned half, unsigned lane)
{
	const uint16_t *d = (const uint16_t *)(chunk + CUDA_CHUNK_CODES(L)) + lane * 2 + half;

	return quant_scale_of<L>(d[0], L == CUDA_W_Q4_1 ? d[CUDA_CHUNK_SCALES / 2] : (uint16_t)0);
}

/* quant_decode8() straight from memory. */
template <enum cuda_layout L>
DEV_INLINE void quant_decode8_at(const unsigned char *chunk, unsigned half, unsigned lane, unsigned j, uint32_t ret[4])
{
	const void *p = quant_codes_at<L>(chunk, half, lane, j);
	struct quant_scale s = quant_scale_at<L>(chunk, half, lane);
	const struct quant_magic magic = QUANT_MAGIC;
	struct dev_u32x2 word = { { 0, 0 } };

	if (L == CUDA_W_Q8_0)
		word = dev_load8(p);
	else
		word.x[0] = *(const uint32_t *)p;
	quant_decode8<L>(word.x, &s, &magic, ret);
}

/*
 * One warp's copy of a chunk into its own shared memory, 16 bytes a lane, as part of the next group. Afterwards:
 * commit, wait, DEV_WARP_BARRIER().
 */
template <enum cuda_layout L>
DEV_INLINE void quant_copy_chunk(unsigned char *to_shared, const unsigned char *chunk, unsigned lane)
{
	constexpr unsigned PIECES = CUDA_CHUNK_BYTES(L) / 16, LOADS = PIECES / DEV_WARP;

	for (unsigned i = 0; i < LOADS; i++)
		dev_copy_async(to_shared + (i * DEV_WARP + lane) * 16, chunk + (i * DEV_WARP + lane) * 16, true);
	if (DEV_GUARD(lane < PIECES % DEV_WARP))
		dev_copy_async(to_shared + (LOADS * DEV_WARP + lane) * 16, chunk + (LOADS * DEV_WARP + lane) * 16,
			       true);
}
#endif

#endif
