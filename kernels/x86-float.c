/* SPDX-License-Identifier: MIT */
/*
 * f32 and bf16 weights times activations.
 *
 * A panel is 16 output rows, column by column: f32 [cols][16], or bf16 [cols / 2][16][2] (pairs of columns, zero padded).
 * Each output sums its products one column after the other, in f32 with fused multiply-adds; vdpbf16ps does the two of
 * a pair at a time. A register tile is up to ROWS rows x VECTORS vectors of outputs; its shape never shows in a result.
 * Rows are taken in strips, and the weights of the next outputs asked for, as in x86-quant.c; here a strip's first tile asks.
 */
#include "kernels/x86.h"

#define VECTORS 2
#define STRIP ((size_t)32 << 10)
#define ROWS (VEC_REGISTERS == 32 ? 12 : 5)
#define AHEAD_ROWS 32u /* more take longer to compute than weights to come */

/* Pair k of a row's activations, the same in every lane. */
#ifdef __AVX512BF16__

INLINE vf pair_product(vi w, const void *x, uint32_t k, vf sum)
{
	int32_t pair;

	memcpy(&pair, (const uint8_t *)x + 4 * (size_t)k, 4);
	return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)v_iset(pair));
}

#else

INLINE vf pair_product(vi w, const void *x, uint32_t k, vf sum)
{
	const float *pair = (const float *)x + 2 * (size_t)k;

	return v_fma(v_high_bf16(w), v_set(pair[1]), v_fma(v_low_bf16(w), v_set(pair[0]), sum));
}

#endif

/* Rows [row, row + rows) of the outputs from output `out` on; ahead: panels to ask for, or NULL. */
INLINE void run_tile(const struct kern_matmul *a, uint32_t row, uint32_t out, enum x86_layout layout, unsigned rows,
		     unsigned vectors, const uint8_t *ahead)
{
	uint32_t steps = layout == X86_F32 ? a->w->cols : (a->w->cols + 1) / 2;
	size_t x_bytes = layout == X86_F32 ? (size_t)a->w->cols * 4 : x86_half_bytes(a->w->cols);
	const uint8_t *x = (const uint8_t *)(layout == X86_F32 ? a->x : a->activated) + row * x_bytes;
	const uint8_t *panel[VECTORS];
	vf sum[ROWS][VECTORS];

	UNROLL for (unsigned v = 0; v < vectors; v++) {
		uint32_t o = out + v * VL;
		panel[v] = (const uint8_t *)a->w->data + o / PANEL * x86_panel_bytes(layout, a->w->cols) + o % PANEL * 4;
	}
	UNROLL for (unsigned i = 0; i < rows; i++)
		UNROLL for (unsigned v = 0; v < vectors; v++)
			sum[i][v] = v_zero();
	for (uint32_t k = 0; k < steps; k++) {
		vi w[VECTORS];
		UNROLL for (unsigned v = 0; v < vectors; v++)
			w[v] = v_iload(panel[v] + (size_t)k * PANEL * 4);
		if (ahead)
			UNROLL for (unsigned p = 0; p < vectors * VL / PANEL; p++)
				__builtin_prefetch(ahead + p * x86_panel_bytes(layout, a->w->cols) + (size_t)k * PANEL * 4, 0, 2);
		UNROLL for (unsigned i = 0; i < rows; i++)
			UNROLL for (unsigned v = 0; v < vectors; v++)
				sum[i][v] = layout == X86_F32 ? v_fma(v_as_float(w[v]),
								      v_set(((const float *)(x + i * x_bytes))[k]), sum[i][v])
							      : pair_product(w[v], x + i * x_bytes, k, sum[i][v]);
	}
	UNROLL for (unsigned i = 0; i < rows; i++)
		UNROLL for (unsigned v = 0; v < vectors; v++)
			x86_store(a, row + i, out + v * VL, sum[i][v]);
}

INLINE void run_rows(const struct kern_matmul *a, uint32_t row, uint32_t end, uint32_t out, enum x86_layout layout,
		     unsigned vectors)
{
	uint32_t next = out + vectors * VL;
	const uint8_t *ahead = (const uint8_t *)a->w->data + next / PANEL * x86_panel_bytes(layout, a->w->cols);

	if (next + vectors * VL > a->w->rows || a->n > AHEAD_ROWS)
		ahead = NULL;
	for (; row + ROWS <= end; row += ROWS, ahead = NULL)
		run_tile(a, row, out, layout, ROWS, vectors, ahead);
	for (; row + 4 <= end; row += 4, ahead = NULL)
		run_tile(a, row, out, layout, 4, vectors, ahead);
	for (; row + 2 <= end; row += 2, ahead = NULL)
		run_tile(a, row, out, layout, 2, vectors, ahead);
	for (; row < end; row++, ahead = NULL)
		run_tile(a, row, out, layout, 1, vectors, ahead);
}

INLINE void run_panels(const struct kern_matmul *a, uint32_t first, uint32_t end, enum x86_layout layout)
{
	size_t x_bytes = layout == X86_F32 ? (size_t)a->w->cols * 4 : x86_half_bytes(a->w->cols);
	uint32_t strip = x86_strip(STRIP, x_bytes, ROWS);

	for (uint32_t row = 0; row < a->n; row += strip) {
		uint32_t row_end = a->n - row < strip ? a->n : row + strip, out = first * PANEL;
		for (; out + VECTORS * VL <= end * PANEL; out += VECTORS * VL)
			run_rows(a, row, row_end, out, layout, VECTORS);
		for (; out < end * PANEL; out += VL)
			run_rows(a, row, row_end, out, layout, 1);
	}
}

void X86(matmul_float)(const struct kern_matmul *a, uint32_t first, uint32_t end)
{
	if (x86_layout_of(a->w) == X86_F32)
		run_panels(a, first, end, X86_F32);
	else
		run_panels(a, first, end, X86_BF16);
}
