/* SPDX-License-Identifier: MIT */
/*
 * How quantised weights lie in a panel.
 *
 * A panel is 16 output rows; a block of a panel is 32 columns of them, all of it in the order in which products read it:
 *
 *   4 to 6 bits  u8 [4][16][4]   for i < 4, row o: columns 4 i .. 4 i + 3 in the low nibbles, 16 + 4 i .. in the high ones
 *   5 bits       u8 [16][4]      byte j of row o: bit i is the fifth of column 4 i + j, bit 4 + i that of 16 + 4 i + j
 *   6 bits       u8 [2][16][4]   of the columns below 16, then of those above: bits 2 i and 2 i + 1 of byte j are the
 *                                fifth and sixth of column 4 i + j
 *   8 bits       u8 [8][16][4]   for i < 8: the codes of columns 4 i ..
 *   then         f16 scale [16], and in Q4_1 and Q5_1 f16 minimum [16]
 *   or           Q4_K, Q5_K: u8 scale [16], u8 minimum [16]; Q6_K: i8 scale [2][16], of the columns below and above 16
 *
 * Behind each eighth block of a K type stand the f16 that these integers multiply: scale [16], and in Q4_K and Q5_K
 * minimum [16]. Codes are unsigned (quant.h), and it is the same bytes as in the file, so that memory holds no more.
 *
 * One load gives 16 lanes (output rows) x 4 columns of codes, the form in which vpdpbusd multiplies them with four signed
 * activations that are the same in every lane.
 */
#ifndef LORAD_KERNELS_X86_PANEL_H
#define LORAD_KERNELS_X86_PANEL_H

#include <stdint.h>

#include "kernels/quant.h"

#define PANEL 16 /* output rows that lie interleaved: one vector of AVX-512, two of AVX2 */
#define X86_LOW_BYTES 256u

enum x86_layout { X86_F32, X86_BF16, X86_Q8_0, X86_Q4_0, X86_Q4_1, X86_Q5_0, X86_Q5_1, X86_Q4_K, X86_Q5_K, X86_Q6_K };

/* Of the quantised layouts; constants wherever the layout is one. */
static inline unsigned x86_code_bits(enum x86_layout layout)
{
	switch (layout) {
	case X86_Q4_0:
	case X86_Q4_1:
	case X86_Q4_K:
		return 4;
	case X86_Q5_0:
	case X86_Q5_1:
	case X86_Q5_K:
		return 5;
	case X86_Q6_K:
		return 6;
	case X86_F32:
	case X86_BF16:
	case X86_Q8_0:
		break;
	}
	return 8;
}

static inline bool x86_is_k(enum x86_layout layout)
{
	return layout >= X86_Q4_K;
}

static inline bool x86_has_minimum(enum x86_layout layout)
{
	return layout == X86_Q4_1 || layout == X86_Q5_1 || layout == X86_Q4_K || layout == X86_Q5_K;
}

/* The code that means 0, as a power of 2, where there is no minimum. */
static inline int x86_zero_shift(enum x86_layout layout)
{
	return (int)x86_code_bits(layout) - 1;
}

static inline size_t x86_code_bytes(enum x86_layout layout)
{
	return QUANT_BLOCK * PANEL / 8 * x86_code_bits(layout);
}

static inline size_t x86_block_bytes(enum x86_layout layout)
{
	return x86_code_bytes(layout) + (x86_is_k(layout) ? 2 : x86_has_minimum(layout) ? 4 : 2) * PANEL;
}

/* What stands behind eight blocks. */
static inline size_t x86_factor_bytes(enum x86_layout layout)
{
	return !x86_is_k(layout) ? 0 : x86_has_minimum(layout) ? 4 * PANEL : 2 * PANEL;
}

/* Where block b begins, and the factors of its integers. */
static inline size_t x86_block_at(enum x86_layout layout, uint32_t b)
{
	return b * x86_block_bytes(layout) + b / 8 * x86_factor_bytes(layout);
}

static inline size_t x86_factors_at(enum x86_layout layout, uint32_t b)
{
	return x86_block_at(layout, b / 8 * 8) + 8 * x86_block_bytes(layout);
}

static inline size_t x86_panel_bytes(enum x86_layout layout, uint32_t cols)
{
	return layout == X86_F32    ? (size_t)cols * PANEL * 4
	       : layout == X86_BF16 ? (size_t)(cols + 1) / 2 * PANEL * 4
				    : x86_block_at(layout, cols / QUANT_BLOCK);
}

#endif
