/* SPDX-License-Identifier: MIT */
/*
 * Quantised weights times int8 activations.
 *
 * A panel is 16 output rows; a block of a panel is 32 columns of them, and lies like this (see x86-weight.c):
 *
 *   4-bit   u8 [4][16][4]   for i < 4: row o's bytes 4 i .. 4 i + 3, just as ggml has them: the low nibbles are columns
 *                           4 i .., the high ones 16 + 4 i ..
 *   8-bit   u8 [8][16][4]   for i < 8: row o's codes of columns 4 i ..., plus 128
 *   scales  f16 [16]        and for Q4_1 f16 minimums [16]
 *
 * So one load gives 16 lanes (output rows) x 4 columns of unsigned codes, the form in which vpdpbusd multiplies them
 * with four signed activations that are the same in every lane. What Q4_0 and Q8_0 subtract from every code is
 * subtracted as 8 (128) times the sum of the activations, exactly, by starting the integer sum there.
 *
 * A register tile is up to ROWS activation rows x VECTORS vectors of outputs. Each of its sums goes over the blocks in
 * order, then over the second encodings that its rows have (quant.h), and takes no part in another's. A row without the
 * second encoding that its neighbour has finds zeros there, so that the tile's shape never shows in the result.
 *
 * Rows are taken STRIP bytes at a time past all panels, so that their encodings stay near, while a panel (a few KB) is read
 * once a strip.
 */
#include "kernels/x86.h"

#define VECTORS 2
#define ROWS (VEC_REGISTERS == 32 ? 6 : 4)
#define STRIP ((size_t)32 << 10)

struct tile {
	const uint8_t *panel[VECTORS]; /* the vector's first block; halves of one panel with VL 8 */
	const uint8_t *x;              /* first row: x86_int8_bytes() */
	size_t x_bytes;                /* from row to row */
};

INLINE const struct quant_q8 *encoded(const struct tile *t, unsigned i, uint32_t e)
{
	return (const struct quant_q8 *)(const void *)(t->x + i * t->x_bytes) + e;
}

/* Four unsigned codes of each lane times four signed activations, added up over a block. */
#ifdef __AVX512VNNI__

struct dot {
	vi sum;
};

INLINE void dot_begin(struct dot *d, int32_t start)
{
	d->sum = v_iset(start);
}

INLINE void dot_nibbles(struct dot *d, vi codes, vi x)
{
	d->sum = _mm512_dpbusd_epi32(d->sum, codes, x);
}

INLINE void dot_bytes(struct dot *d, vi codes, vi x)
{
	d->sum = _mm512_dpbusd_epi32(d->sum, codes, x);
}

INLINE vf dot_end(const struct dot *d, bool bytes, int32_t start)
{
	(void)bytes, (void)start;
	return v_from_int(d->sum);
}

#else

/*
 * Pairs of products go into 16 bits: codes of 4 bits leave room for a block's 8 pairs (8 * 2 * 15 * 127 = 30,480),
 * bytes would saturate, so they are multiplied as two nibbles.
 */
struct dot {
	vi low, high;
};

/*
 * The compiler may change the order in which integers are added, and then holds all products of a block to add them as a
 * tree: 27 spilled registers a block and 1.7 times the time. Between additions it cannot look through this.
 */
INLINE void add_now(vi *sum, vi products)
{
	*sum = v_add16(*sum, products);
	__asm__("" : "+x"(*sum));
}

INLINE void dot_begin(struct dot *d, int32_t start)
{
	(void)start;
	d->low = d->high = v_izero();
}

INLINE void dot_nibbles(struct dot *d, vi codes, vi x)
{
	add_now(&d->low, v_maddubs(codes, x));
}

INLINE void dot_bytes(struct dot *d, vi codes, vi x)
{
	add_now(&d->low, v_maddubs(v_low_nibbles(codes), x));
	add_now(&d->high, v_maddubs(v_high_nibbles(codes), x));
}

INLINE vf dot_end(const struct dot *d, bool bytes, int32_t start)
{
	vi sum = v_iadd(v_madd16(d->low, v_iset16(1)), v_iset(start));

	return v_from_int(bytes ? v_iadd(sum, v_madd16(d->high, v_iset16(16))) : sum);
}

#endif

INLINE int32_t four(const struct quant_q8 *x, unsigned i)
{
	int32_t v;

	memcpy(&v, x->q + 4 * i, 4);
	return v;
}

/* Encoded block e of the rows times block b of the panels: sum[i][v] += scale x (codes . activations) + minimum x sum of activations. */
INLINE void block(const struct tile *t, uint32_t b, uint32_t e, enum x86_layout layout, unsigned rows, unsigned vectors,
		  vf (*sum)[VECTORS])
{
	const bool bytes = layout == X86_Q8_0;
	const unsigned groups = bytes ? 8 : 4;
	struct dot dot[ROWS][VECTORS];
	const uint8_t *w[VECTORS];
	int32_t start[ROWS];

	UNROLL for (unsigned v = 0; v < vectors; v++)
		w[v] = t->panel[v] + b * x86_block_bytes(layout);
	UNROLL for (unsigned i = 0; i < rows; i++) {
		const struct quant_q8 *x = encoded(t, i, e);
		start[i] = layout == X86_Q4_1 ? 0 : layout == X86_Q4_0 ? x->minus8 : x->minus128;
		UNROLL for (unsigned v = 0; v < vectors; v++)
			dot_begin(&dot[i][v], start[i]);
	}
	UNROLL for (unsigned k = 0; k < groups; k++) {
		vi codes[VECTORS];
		UNROLL for (unsigned v = 0; v < vectors; v++)
			codes[v] = v_iload(w[v] + 64 * k);
		UNROLL for (unsigned i = 0; i < rows; i++) {
			const struct quant_q8 *x = encoded(t, i, e);
			UNROLL for (unsigned v = 0; v < vectors; v++) {
				if (bytes) {
					dot_bytes(&dot[i][v], codes[v], v_iset(four(x, k)));
					continue;
				}
				dot_nibbles(&dot[i][v], v_low_nibbles(codes[v]), v_iset(four(x, k)));
				dot_nibbles(&dot[i][v], v_high_nibbles(codes[v]), v_iset(four(x, k + 4)));
			}
		}
	}
	UNROLL for (unsigned v = 0; v < vectors; v++) {
		const uint8_t *scales = w[v] + 64 * groups - (VL < PANEL ? 16 * v : 0);
		vf d = v_load_f16(scales);
		UNROLL for (unsigned i = 0; i < rows; i++) {
			const struct quant_q8 *x = encoded(t, i, e);
			vf product = v_mul(dot_end(&dot[i][v], bytes, start[i]), v_set(x->scale));
			sum[i][v] = v_fma(product, d, sum[i][v]);
			if (layout == X86_Q4_1)
				sum[i][v] = v_fma(v_load_f16(scales + 32), v_set(x->sum), sum[i][v]);
		}
	}
}

/* The second encodings: blocks that any of the rows has one of. */
INLINE void run_rest(const struct tile *t, uint32_t blocks, enum x86_layout layout, unsigned rows, unsigned vectors,
		     vf (*sum)[VECTORS])
{
	for (uint32_t first = 0; first < blocks; first += 64) {
		uint64_t twice = 0;
		UNROLL for (unsigned i = 0; i < rows; i++)
			twice |= x86_int8_twice(encoded(t, i, 0), blocks)[first / 64];
		for (; twice; twice &= twice - 1) {
			uint32_t b = first + (uint32_t)__builtin_ctzll(twice);
			block(t, b, blocks + b, layout, rows, vectors, sum);
		}
	}
}

/* Rows [row, row + rows) of the outputs from output `out` on. */
INLINE void run_tile(const struct kern_matmul *a, uint32_t row, uint32_t out, enum x86_layout layout, unsigned rows,
		     unsigned vectors)
{
	uint32_t blocks = a->w->cols / QUANT_BLOCK;
	struct tile t = { .x_bytes = x86_int8_bytes(blocks) };
	vf sum[ROWS][VECTORS];

	t.x = (const uint8_t *)a->activated + row * t.x_bytes;
	UNROLL for (unsigned v = 0; v < vectors; v++) {
		uint32_t o = out + v * VL;
		t.panel[v] = (const uint8_t *)a->w->data + o / PANEL * x86_panel_bytes(layout, a->w->cols) + o % PANEL * 4;
	}
	UNROLL for (unsigned i = 0; i < rows; i++)
		UNROLL for (unsigned v = 0; v < vectors; v++)
			sum[i][v] = v_zero();
	for (uint32_t b = 0; b < blocks; b++)
		block(&t, b, b, layout, rows, vectors, sum);
	run_rest(&t, blocks, layout, rows, vectors, sum);
	UNROLL for (unsigned i = 0; i < rows; i++)
		UNROLL for (unsigned v = 0; v < vectors; v++)
			x86_store(a, row + i, out + v * VL, sum[i][v]);
}

INLINE void run_rows(const struct kern_matmul *a, uint32_t row, uint32_t end, uint32_t out, enum x86_layout layout,
		     unsigned vectors)
{
	for (; row + ROWS <= end; row += ROWS)
		run_tile(a, row, out, layout, ROWS, vectors);
	for (; ROWS > 4 && row + 4 <= end; row += 4)
		run_tile(a, row, out, layout, ROWS > 4 ? 4 : 1, vectors);
	for (; ROWS > 2 && row + 2 <= end; row += 2)
		run_tile(a, row, out, layout, ROWS > 2 ? 2 : 1, vectors);
	for (; row < end; row++)
		run_tile(a, row, out, layout, 1, vectors);
}

INLINE void run_panels(const struct kern_matmul *a, uint32_t first, uint32_t end, enum x86_layout layout)
{
	uint32_t strip = (uint32_t)(STRIP / x86_int8_bytes(a->w->cols / QUANT_BLOCK)) / ROWS * ROWS;

	strip = strip ? strip : ROWS;
	for (uint32_t row = 0; row < a->n; row += strip) {
		uint32_t row_end = a->n - row < strip ? a->n : row + strip, out = first * PANEL;
		for (; out + VECTORS * VL <= end * PANEL; out += VECTORS * VL)
			run_rows(a, row, row_end, out, layout, VECTORS);
		for (; out < end * PANEL; out += VL)
			run_rows(a, row, row_end, out, layout, 1);
	}
}

void X86(matmul_quant)(const struct kern_matmul *a, uint32_t first, uint32_t end)
{
	if (a->w->layout == X86_Q8_0)
		run_panels(a, first, end, X86_Q8_0);
	else if (a->w->layout == X86_Q4_0)
		run_panels(a, first, end, X86_Q4_0);
	else
		run_panels(a, first, end, X86_Q4_1);
}
