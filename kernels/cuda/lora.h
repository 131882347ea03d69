/* SPDX-License-Identifier: MIT */
/*
 * What the kernels of adapters share: which rows a block works on, how a lane reads numbers of A and B, and how sums over
 * long rows are split.
 *
 * Rule for segments: those that touch a row lie next to each other and have the same first_row and n_rows (batch.c builds
 * them so). What adds to y lets the blocks of the first of them do the work of all, in order: no two blocks share a number
 * of y, and no sum depends on which block came first.
 *
 * Splits: a row of A is always cut into LORA_SPLITS pieces, and z = x A^T is the sum of theirs in order. Where there is
 * room each piece has a block and a plane of scratch of its own, [piece][scratch rows][scratch_width], and expand adds them
 * up; else one block adds up all pieces in the same order. Either way the bits are the same.
 *
 * Eight numbers of a lane: 16-bit numbers are 16 bytes in a row. F32 numbers are two loads of 16 bytes, each next to those
 * of the neighbouring lanes, so that a warp's load touches whole sectors. lora_column() says which columns these are.
 */
#ifndef LORAD_KERNELS_CUDA_LORA_H
#define LORAD_KERNELS_CUDA_LORA_H

#include "kernels/cuda/launch.h"

#define LORA_WARPS 4u
#define LORA_THREADS (LORA_WARPS * DEV_WARP)
#define LORA_SPLITS 8u
#define LORA_SPLIT_ROWS 4096u /* from more rows than these, blocks are many enough without splits */

/* ---- rows ---- */

struct lora_rows { /* rows [first, first + n) of n_segments segments that touch the same rows */
	const struct kern_segment *segment;
	uint32_t n_segments;
	uint32_t first, n; /* n: at most KERN_TILE; 0: nothing to do */
};

/* A tile of one segment. */
DEV_INLINE struct lora_rows lora_tile(const struct kern_step *step, uint32_t number)
{
	struct lora_rows ret = {};

	if (!DEV_GUARD(number < step->n_segment_tiles))
		return ret;
	ret.segment = step->segment + step->segment_tile[number].of;
	ret.n_segments = 1;
	ret.first = step->segment_tile[number].first_row;
	ret.n = ret.segment->n_rows - ret.first;
	ret.n = ret.n < KERN_TILE ? ret.n : KERN_TILE;
	return ret;
}

/* The same with all segments on these rows, for the first of them; for the others nothing. */
DEV_INLINE struct lora_rows lora_group(const struct kern_step *step, uint32_t number)
{
	struct lora_rows ret = lora_tile(step, number);
	const struct kern_segment *end = step->segment + step->n_segments;
	uint32_t row;

	if (ret.n == 0)
		return ret;
	row = ret.segment->first_row;
	if (DEV_GUARD(ret.segment > step->segment) && ret.segment[-1].first_row == row)
		ret.n = 0;
	while (DEV_GUARD(ret.segment + ret.n_segments < end) && ret.segment[ret.n_segments].first_row == row)
		++ret.n_segments;
	return ret;
}

/* ---- splits ---- */

/* How many planes of partial sums there are: the same for a shrink and the expand after it. */
static inline unsigned lora_planes(const struct kern_extent *extent, uint32_t scratch_width, size_t scratch_floats)
{
	size_t plane = (size_t)extent->n_scratch_rows * scratch_width;

	return extent->n_scratch_rows <= LORA_SPLIT_ROWS && LORA_SPLITS * plane <= scratch_floats ? LORA_SPLITS : 1;
}

/* ---- numbers ---- */

template <enum kern_dtype Dtype> struct lora_eight {
	uint32_t word[Dtype == KERN_F32 ? 8 : 4];
};

template <enum kern_dtype Dtype> DEV_INLINE size_t lora_stride(uint32_t width) /* kern_lora_stride() */
{
	return ((size_t)width * (Dtype == KERN_F32 ? 4 : 2) + 63) / 64 * 64;
}

/* Column of number c of a lane's eight, of `lanes` lanes that read a row together. */
template <enum kern_dtype Dtype> DEV_INLINE uint32_t lora_column(unsigned lane, unsigned lanes, unsigned c)
{
	return Dtype == KERN_F32 ? 4 * lane + c / 4 * (4 * lanes) + c % 4 : 8 * lane + c;
}

/* From column `from` on. A load that would start at `end` or behind gives zeros. */
template <enum kern_dtype Dtype>
DEV_INLINE struct lora_eight<Dtype> lora_load(const uint8_t *row, uint32_t from, unsigned lane, unsigned lanes,
					      uint32_t end)
{
	struct lora_eight<Dtype> ret = {};

	for (unsigned i = 0; i < (Dtype == KERN_F32 ? 2 : 1); ++i) {
		uint32_t column = from + lora_column<Dtype>(lane, lanes, 4 * i);

		if (DEV_GUARD(column < end)) {
			const struct dev_u32x4 v = dev_load16(row + (size_t)column * (Dtype == KERN_F32 ? 4 : 2));

			for (unsigned j = 0; j < 4; ++j)
				ret.word[4 * i + j] = v.x[j];
		}
	}
	return ret;
}

/* What a load took from behind a row's end is padding, with anything in it: zeros instead. */
template <enum kern_dtype Dtype>
DEV_INLINE void lora_trim(struct lora_eight<Dtype> *eight, uint32_t from, unsigned lane, unsigned lanes, uint32_t end)
{
	for (unsigned c = 0; c < 8; ++c) {
		if (DEV_GUARD(from + lora_column<Dtype>(lane, lanes, c) < end))
			continue;
		if (Dtype == KERN_F32)
			eight->word[c] = 0;
		else
			eight->word[c / 2] &= c % 2 ? 0x0000ffffu : 0xffff0000u;
	}
}

template <enum kern_dtype Dtype> DEV_INLINE float lora_number(const struct lora_eight<Dtype> &eight, unsigned c)
{
	uint32_t word = eight.word[Dtype == KERN_F32 ? c : c / 2];

	if (Dtype == KERN_F32)
		return dev_float(word);
	if (Dtype == KERN_F16)
		return dev_from_f16((uint16_t)(c % 2 ? word >> 16 : word));
	return dev_float(c % 2 ? word & 0xffff0000u : word << 16);
}

/* Numbers c and c + 1 (c even) as bf16. */
template <enum kern_dtype Dtype> DEV_INLINE uint32_t lora_pair(const struct lora_eight<Dtype> &eight, unsigned c)
{
	if (Dtype == KERN_BF16)
		return eight.word[c / 2];
	return dev_to_bf16x2(lora_number<Dtype>(eight, c), lora_number<Dtype>(eight, c + 1));
}

/* Number c of two rows as bf16. */
template <enum kern_dtype Dtype>
DEV_INLINE uint32_t lora_pair(const struct lora_eight<Dtype> &lower, const struct lora_eight<Dtype> &upper, unsigned c)
{
	if (Dtype != KERN_BF16)
		return dev_to_bf16x2(lora_number<Dtype>(lower, c), lora_number<Dtype>(upper, c));
	if (c % 2)
		return lower.word[c / 2] >> 16 | (upper.word[c / 2] & 0xffff0000u);
	return (lower.word[c / 2] & 0xffffu) | upper.word[c / 2] << 16;
}

/* ---- four numbers of a row of f32 ---- */

struct lora_four {
	float x[4];
};

/* n: how many of them there are (more than 4: all); wide: p is 16-byte aligned and n is no part of 4. */
DEV_INLINE struct lora_four lora_read(const float *p, uint32_t n, bool wide)
{
	struct lora_four ret = {};

	if (wide && DEV_GUARD(n > 0)) {
		const struct dev_u32x4 v = dev_load16(p);

		for (unsigned i = 0; i < 4; ++i)
			ret.x[i] = dev_float(v.x[i]);
	} else if (!wide) {
		for (unsigned i = 0; i < 4; ++i)
			ret.x[i] = DEV_GUARD(i < n) ? p[i] : 0;
	}
	return ret;
}

DEV_INLINE void lora_write(float *p, struct lora_four four, uint32_t n, bool wide)
{
	if (wide && DEV_GUARD(n > 0)) {
		dev_store16(p, { { dev_bits(four.x[0]), dev_bits(four.x[1]), dev_bits(four.x[2]), dev_bits(four.x[3]) } });
	} else if (!wide) {
		for (unsigned i = 0; i < 4; ++i)
			if (DEV_GUARD(i < n))
				p[i] = four.x[i];
	}
}

#endif
