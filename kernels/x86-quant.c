/* SPDX-License-Identifier: MIT */
/*
 * Quantised weights times int8 activations.
 *
 * What a type without minimums subtracts from every code is subtracted as so many times the sum of the activations,
 * exactly, where the integer sum starts. Q6_K has a scale for each half of a block, hence two integer sums.
 *
 * A register tile is up to ROWS activation rows x VECTORS vectors of outputs. Each of its sums goes over the blocks in
 * order, then over the second encodings that its row has (quant.h), and takes no part in another's, so that the tile's
 * shape never shows in the result. Rows differ in which blocks they have twice: tiles of second encodings are made of
 * whichever rows have that block.
 *
 * Rows are taken in strips past all panels, so that their encodings stay near (in the second cache: of many rows some have
 * the same block twice), while a panel (a few KB) is read once a strip. A strip's sums wait in memory for the second
 * encodings.
 */
#include "kernels/x86.h"

#define VECTORS 2
#define ROWS (VEC_REGISTERS == 32 ? 6 : 4)
#define STRIP ((size_t)128 << 10)

#define STRIP_ROWS 64u /* at most: the bits of a word */
#define RANGE 512u     /* blocks of which a strip knows the rows that have them twice */

struct tile {
	const uint8_t *panel[VECTORS];   /* halves of one panel with VL 8 */
	const struct quant_q8 *x[ROWS];  /* rows: x86_int8_bytes() */
};

struct strip {
	const struct kern_matmul *a;
	uint32_t row, n_rows, blocks;
	size_t x_bytes;                           /* from row to row */
	uint32_t range;                           /* blocks from here on are those of rows[] */
	uint64_t rows[RANGE];                     /* bit i: row i has the block twice */
	uint64_t any[RANGE / 64];                 /* blocks that some row has twice */
	float sum[STRIP_ROWS][VECTORS * VL];      /* of the outputs at hand */
};

INLINE const struct quant_q8 *encoded(const struct tile *t, unsigned i, uint32_t e)
{
	return t->x[i] + e;
}

/* Bytes from a panel's numbers of so many bytes to those of vector v's first output. */
INLINE size_t lane(unsigned v, unsigned bytes)
{
	return VL < PANEL ? (size_t)v * VL * bytes : 0;
}

/* Columns 4 k .. 4 k + 3 of a block's codes at w. */
INLINE vi four_columns(const uint8_t *w, enum x86_layout layout, int k)
{
	const unsigned bits = x86_code_bits(layout);

	if (bits == 8)
		return v_iload(w + 64 * k);
	vi low = v_iload(w + 64 * (k % 4)), code = k < 4 ? v_low_nibbles(low) : v_high_nibbles(low);
	if (bits == 5)
		code = v_ior(code, v_iand(v_shift16(v_iload(w + X86_LOW_BYTES), 4 - k), v_iset8(0x10)));
	if (bits == 6)
		code = v_ior(code, v_iand(v_shift16(v_iload(w + X86_LOW_BYTES + 64 * (k / 4)), 4 - 2 * (k % 4)), v_iset8(0x30)));
	return code;
}

/* The sum of four unsigned codes of each lane times four signed activations, over a block or half of one. */
#ifdef __AVX512VNNI__

struct dot {
	vi sum;
};

INLINE void dot_begin(struct dot *d, vi start)
{
	d->sum = start;
}

INLINE void dot_add(struct dot *d, vi codes, vi x, enum x86_layout layout, int k)
{
	(void)layout, (void)k;
	d->sum = _mm512_dpbusd_epi32(d->sum, codes, x);
}

INLINE vf dot_end(const struct dot *d, vi start)
{
	(void)start;
	return v_from_int(d->sum);
}

#else

/*
 * Pairs of products go into 16 bits, of which those of 8, 4 or 2 columns' fours fit (8 * 2 * 15 * 127 = 30,480; 4 * 2 * 31
 * * 127 = 31,496; 2 * 2 * 63 * 127 = 32,004), then into 32. Bytes would saturate at once, so they are multiplied as two
 * nibbles.
 */
struct dot {
	vi sum, low, high;
};

INLINE int fit(enum x86_layout layout)
{
	return x86_code_bits(layout) == 5 ? 4 : x86_code_bits(layout) == 6 ? 2 : 8;
}

/*
 * The compiler may change the order in which integers are added, and then holds all products of a block to add them as a
 * tree: 27 spilled registers a block and 1.7 times the time. Between additions it cannot look through this.
 */
INLINE void add_now(vi *sum, vi products)
{
	*sum = v_add16(*sum, products);
	__asm__("" : "+" X86_VECTOR(*sum));
}

INLINE void dot_begin(struct dot *d, vi start)
{
	(void)start;
	d->sum = d->low = d->high = v_izero();
}

INLINE void dot_add(struct dot *d, vi codes, vi x, enum x86_layout layout, int k)
{
	const bool bytes = x86_code_bits(layout) == 8;

	add_now(&d->low, v_maddubs(bytes ? v_low_nibbles(codes) : codes, x));
	if (bytes)
		add_now(&d->high, v_maddubs(v_high_nibbles(codes), x));
	if ((k + 1) % fit(layout))
		return;
	d->sum = v_iadd(d->sum, v_madd16(d->low, v_iset16(1)));
	if (bytes)
		d->sum = v_iadd(d->sum, v_madd16(d->high, v_iset16(16)));
	d->low = d->high = v_izero();
}

INLINE vf dot_end(const struct dot *d, vi start)
{
	return v_from_int(v_iadd(d->sum, start));
}

#endif

INLINE int32_t four(const struct quant_q8 *x, unsigned i)
{
	int32_t v;

	memcpy(&v, x->q + 4 * i, 4);
	return v;
}

/* What a block's integers count, for vector v: the scale in the whole (Q6_K: the factor of both halves' scales), the minimum. */
INLINE vf scale_of(const struct tile *t, unsigned v, uint32_t b, enum x86_layout layout)
{
	const uint8_t *scales = t->panel[v] + x86_block_at(layout, b) + x86_code_bytes(layout);
	const uint8_t *factors = t->panel[v] + x86_factors_at(layout, b) + lane(v, 2);

	if (!x86_is_k(layout))
		return v_load_f16(scales + lane(v, 2));
	return layout == X86_Q6_K ? v_load_f16(factors) : v_mul(v_load_f16(factors), v_load_u8(scales + lane(v, 1)));
}

INLINE vf minimum_of(const struct tile *t, unsigned v, uint32_t b, enum x86_layout layout)
{
	const uint8_t *minimums = t->panel[v] + x86_block_at(layout, b) + x86_block_bytes(layout);
	const uint8_t *factors = t->panel[v] + x86_factors_at(layout, b) + 2 * PANEL + lane(v, 2);

	if (!x86_is_k(layout))
		return v_load_f16(minimums - 2 * PANEL + lane(v, 2));
	return v_sub(v_zero(), v_mul(v_load_f16(factors), v_load_u8(minimums - PANEL + lane(v, 1))));
}

enum span { WHOLE, LOWER, UPPER }; /* of a block's columns */

/* The codes of block b times encoded block e of the rows, less what means 0 in the codes. */
INLINE void dots(const struct tile *t, uint32_t b, uint32_t e, enum span span, enum x86_layout layout, unsigned rows,
		 unsigned vectors, vf (*ret)[VECTORS])
{
	const int first = span == UPPER ? 4 : 0, end = span == LOWER ? 4 : 8;
	struct dot dot[ROWS][VECTORS];
	vi start[ROWS];

	UNROLL for (unsigned i = 0; i < rows; i++) {
		const int32_t *minus = encoded(t, i, e)->minus;
		int32_t sum = (span == UPPER ? 0 : minus[0]) + (span == LOWER ? 0 : minus[1]);
		start[i] = x86_has_minimum(layout) ? v_izero() : v_ishift(v_iset(sum), x86_zero_shift(layout));
		UNROLL for (unsigned v = 0; v < vectors; v++)
			dot_begin(&dot[i][v], start[i]);
	}
	UNROLL for (int k = first; k < end; k++) {
		vi codes[VECTORS];
		UNROLL for (unsigned v = 0; v < vectors; v++)
			codes[v] = four_columns(t->panel[v] + x86_block_at(layout, b) + lane(v, 4), layout, k);
		UNROLL for (unsigned i = 0; i < rows; i++) {
			vi x = v_iset(four(encoded(t, i, e), (unsigned)k));
			UNROLL for (unsigned v = 0; v < vectors; v++)
				dot_add(&dot[i][v], codes[v], x, layout, k);
		}
	}
	UNROLL for (unsigned i = 0; i < rows; i++)
		UNROLL for (unsigned v = 0; v < vectors; v++)
			ret[i][v] = dot_end(&dot[i][v], start[i]);
}

/* Encoded block e of the rows times block b of the panels: sum[i][v] += scale x (codes . activations) + minimum x sum of activations. */
INLINE void block(const struct tile *t, uint32_t b, uint32_t e, enum x86_layout layout, unsigned rows, unsigned vectors,
		  vf (*sum)[VECTORS])
{
	vf product[ROWS][VECTORS], upper[ROWS][VECTORS];

	dots(t, b, e, layout == X86_Q6_K ? LOWER : WHOLE, layout, rows, vectors, product);
	if (layout == X86_Q6_K)
		dots(t, b, e, UPPER, layout, rows, vectors, upper);
	UNROLL for (unsigned v = 0; v < vectors; v++) {
		const uint8_t *halves = t->panel[v] + x86_block_at(layout, b) + x86_code_bytes(layout) + lane(v, 1);
		vf d = scale_of(t, v, b, layout), m = x86_has_minimum(layout) ? minimum_of(t, v, b, layout) : v_zero();
		UNROLL for (unsigned i = 0; i < rows; i++) {
			const struct quant_q8 *x = encoded(t, i, e);
			vf p = product[i][v];
			if (layout == X86_Q6_K)
				p = v_fma(upper[i][v], v_load_i8(halves + PANEL), v_mul(p, v_load_i8(halves)));
			sum[i][v] = v_fma(v_mul(p, v_set(x->scale)), d, sum[i][v]);
			if (x86_has_minimum(layout))
				sum[i][v] = v_fma(m, v_set(x->sum), sum[i][v]);
		}
	}
}

static const struct quant_q8 *row_of(const struct strip *s, uint32_t i)
{
	return (const void *)((const uint8_t *)s->a->activated + (s->row + i) * s->x_bytes);
}

INLINE void set_panels(struct tile *t, const struct kern_matmul *a, uint32_t out, enum x86_layout layout, unsigned vectors)
{
	UNROLL for (unsigned v = 0; v < vectors; v++)
		t->panel[v] = (const uint8_t *)a->w->data + (out + v * VL) / PANEL * x86_panel_bytes(layout, a->w->cols);
}

/* The sums of rows [i, i + rows) of the strip over all first encodings. */
INLINE void run_tile(struct strip *s, uint32_t first, uint32_t out, enum x86_layout layout, unsigned rows, unsigned vectors)
{
	vf sum[ROWS][VECTORS];
	struct tile t;

	set_panels(&t, s->a, out, layout, vectors);
	UNROLL for (unsigned i = 0; i < rows; i++) {
		t.x[i] = row_of(s, first + i);
		UNROLL for (unsigned v = 0; v < vectors; v++)
			sum[i][v] = v_zero();
	}
	for (uint32_t b = 0; b < s->blocks; b++)
		block(&t, b, b, layout, rows, vectors, sum);
	UNROLL for (unsigned i = 0; i < rows; i++)
		UNROLL for (unsigned v = 0; v < vectors; v++)
			v_store(&s->sum[first + i][v * VL], sum[i][v]);
}

INLINE void run_tiles(struct strip *s, uint32_t out, enum x86_layout layout, unsigned vectors)
{
	uint32_t i = 0;

	for (; i + ROWS <= s->n_rows; i += ROWS)
		run_tile(s, i, out, layout, ROWS, vectors);
	for (; ROWS > 4 && i + 4 <= s->n_rows; i += 4)
		run_tile(s, i, out, layout, ROWS > 4 ? 4 : 1, vectors);
	for (; ROWS > 2 && i + 2 <= s->n_rows; i += 2)
		run_tile(s, i, out, layout, ROWS > 2 ? 2 : 1, vectors);
	for (; i < s->n_rows; i++)
		run_tile(s, i, out, layout, 1, vectors);
}

/* Block b of the lowest rows in *left, which are taken out of it. */
INLINE void run_lowest(struct strip *s, struct tile *t, uint32_t b, uint64_t *left, enum x86_layout layout, unsigned rows,
		      unsigned vectors)
{
	vf sum[ROWS][VECTORS];
	float *at[ROWS];

	UNROLL for (unsigned i = 0; i < rows; i++, *left &= *left - 1) {
		uint32_t row = (uint32_t)__builtin_ctzll(*left);
		t->x[i] = row_of(s, row);
		at[i] = s->sum[row];
		UNROLL for (unsigned v = 0; v < vectors; v++)
			sum[i][v] = v_load(at[i] + v * VL);
	}
	block(t, b, s->blocks + b, layout, rows, vectors, sum);
	UNROLL for (unsigned i = 0; i < rows; i++)
		UNROLL for (unsigned v = 0; v < vectors; v++)
			v_store(at[i] + v * VL, sum[i][v]);
}

INLINE void run_twice(struct strip *s, struct tile *t, uint32_t b, uint64_t rows, enum x86_layout layout, unsigned vectors)
{
	unsigned n = (unsigned)__builtin_popcountll(rows);

	for (; n >= ROWS; n -= ROWS)
		run_lowest(s, t, b, &rows, layout, ROWS, vectors);
	for (; ROWS > 2 && n >= 2; n -= 2)
		run_lowest(s, t, b, &rows, layout, ROWS > 2 ? 2 : 1, vectors);
	for (; n; n--)
		run_lowest(s, t, b, &rows, layout, 1, vectors);
}

/* Which rows have blocks [range, range + RANGE) twice. */
static void see_range(struct strip *s, uint32_t range)
{
	if (range == s->range)
		return;
	s->range = range;
	memset(s->any, 0, sizeof s->any);
	memset(s->rows, 0, sizeof s->rows);
	for (uint32_t i = 0; i < s->n_rows; i++) {
		const uint64_t *twice = x86_int8_twice(row_of(s, i), s->blocks);
		for (uint32_t b = 0; b < RANGE && range + b < s->blocks; b += 64) {
			s->any[b / 64] |= twice[(range + b) / 64];
			for (uint64_t left = twice[(range + b) / 64]; left; left &= left - 1)
				s->rows[b + (uint32_t)__builtin_ctzll(left)] |= (uint64_t)1 << i;
		}
	}
}

/* The second encodings, block by block. */
INLINE void run_rest(struct strip *s, uint32_t out, enum x86_layout layout, unsigned vectors)
{
	struct tile t;

	set_panels(&t, s->a, out, layout, vectors);
	for (uint32_t first = 0; first < s->blocks; first += 64) {
		see_range(s, first / RANGE * RANGE);
		for (uint64_t any = s->any[first % RANGE / 64]; any; any &= any - 1) {
			uint32_t b = first + (uint32_t)__builtin_ctzll(any);
			run_twice(s, &t, b, s->rows[b % RANGE], layout, vectors);
		}
	}
}

INLINE void run_outputs(struct strip *s, uint32_t out, enum x86_layout layout, unsigned vectors)
{
	run_tiles(s, out, layout, vectors);
	run_rest(s, out, layout, vectors);
	for (uint32_t i = 0; i < s->n_rows; i++)
		UNROLL for (unsigned v = 0; v < vectors; v++)
			x86_store(s->a, s->row + i, out + v * VL, v_load(&s->sum[i][v * VL]));
}

INLINE void run_panels(const struct kern_matmul *a, uint32_t first, uint32_t end, enum x86_layout layout)
{
	struct strip s; /* not cleared: it is large */
	uint32_t n;

	s.a = a;
	s.blocks = a->w->cols / QUANT_BLOCK;
	s.x_bytes = x86_int8_bytes(s.blocks);
	n = x86_strip(STRIP, s.x_bytes, ROWS);
	n = n < STRIP_ROWS ? n : STRIP_ROWS / ROWS * ROWS;
	for (s.row = 0; s.row < a->n; s.row += n) {
		uint32_t out = first * PANEL;
		s.n_rows = a->n - s.row < n ? a->n - s.row : n;
		s.range = UINT32_MAX;
		for (; out + VECTORS * VL <= end * PANEL; out += VECTORS * VL)
			run_outputs(&s, out, layout, VECTORS);
		for (; VECTORS * VL > PANEL && out < end * PANEL; out += VL)
			run_outputs(&s, out, layout, 1);
	}
}

#define RUN(layout)                                \
	case layout:                               \
		run_panels(a, first, end, layout); \
		break;

void X86(matmul_quant)(const struct kern_matmul *a, uint32_t first, uint32_t end)
{
	switch (x86_layout_of(a->w)) {
		RUN(X86_Q8_0)
		RUN(X86_Q4_0)
		RUN(X86_Q4_1)
		RUN(X86_Q5_0)
		RUN(X86_Q5_1)
		RUN(X86_Q4_K)
		RUN(X86_Q5_K)
		RUN(X86_Q6_K)
	case X86_F32:
	case X86_BF16:
		break;
	}
}
