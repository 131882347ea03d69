/* SPDX-License-Identifier: MIT */
/*
 * Quantised weights times int8 activations.
 *
 * What a type without minimums subtracts from every code is subtracted as so many times the sum of the activations,
 * exactly, where the integer sum starts. Q6_K has a scale for each half of a block, hence two integer sums.
 *
 * A register tile is up to ROWS activation rows x VECTORS vectors of outputs. Each of its sums goes over the blocks in
 * order, then over its row's outliers (quant.h) in order, and takes no part in another's, so that the tile's shape never
 * shows in the result. Outliers are mostly in the same columns of all rows: a column of weights is decoded once for
 * whichever rows have one there.
 *
 * Rows are taken in strips past all panels, so that their codes stay near (in the second cache: the more rows, the more
 * of them share a column), while a panel (a few KB) is read once a strip. A strip's sums wait in memory for the outliers.
 */
#include "kernels/x86.h"

#define VECTORS 2
#define ROWS (VEC_REGISTERS == 32 ? 6 : 4)
#define STRIP ((size_t)128 << 10)

#define STRIP_ROWS 64u /* at most */
#define AHEAD_ROWS (VL < PANEL ? 32u : STRIP_ROWS) /* AVX2 computes long enough on more, and lost up to a fifth by asking */
/* What a strip knows of its outliers at a time: blocks, columns of these with some, outliers; columns as f32. */
#define BLOCKS 512u
#define COLUMNS 1024u
#define OUTLIERS 4096u
#define DECODED 128u

struct tile {
	const uint8_t *panel[VECTORS];   /* halves of one panel with VL 8 */
	const struct quant_q8 *x[ROWS];  /* rows: x86_int8_bytes() */
};

struct strip {
	const struct kern_matmul *a;
	uint32_t row, n_rows, blocks;
	size_t x_bytes;                           /* from row to row */
	uint32_t from, end;                       /* blocks whose outliers are known */
	uint32_t n_columns;
	struct column {
		uint32_t block, at;
	} column[COLUMNS];
	struct outlier {
		float x;
		uint32_t column;
	} outlier[OUTLIERS];                      /* row i's in order, [first[i], first[i + 1]) */
	uint32_t first[STRIP_ROWS + 1];
	float w[DECODED][VECTORS * VL];           /* columns of the outputs at hand */
	float sum[STRIP_ROWS][VECTORS * VL];      /* of the outputs at hand */
};

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

/* The codes of block b times those of the rows, less what means 0 in the weights' codes. */
INLINE void dots(const struct tile *t, uint32_t b, enum span span, enum x86_layout layout, unsigned rows,
		 unsigned vectors, vf (*ret)[VECTORS])
{
	const int first = span == UPPER ? 4 : 0, end = span == LOWER ? 4 : 8;
	struct dot dot[ROWS][VECTORS];
	vi start[ROWS];

	UNROLL for (unsigned i = 0; i < rows; i++) {
		const int32_t *minus = (t->x[i] + b)->minus;
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
			vi x = v_iset(four(t->x[i] + b, (unsigned)k));
			UNROLL for (unsigned v = 0; v < vectors; v++)
				dot_add(&dot[i][v], codes[v], x, layout, k);
		}
	}
	UNROLL for (unsigned i = 0; i < rows; i++)
		UNROLL for (unsigned v = 0; v < vectors; v++)
			ret[i][v] = dot_end(&dot[i][v], start[i]);
}

/* Block b of the rows times that of the panels: sum[i][v] += scale x (codes . activations) + minimum x sum of activations. */
INLINE void block(const struct tile *t, uint32_t b, enum x86_layout layout, unsigned rows, unsigned vectors,
		  vf (*sum)[VECTORS])
{
	vf product[ROWS][VECTORS], upper[ROWS][VECTORS];

	dots(t, b, layout == X86_Q6_K ? LOWER : WHOLE, layout, rows, vectors, product);
	if (layout == X86_Q6_K)
		dots(t, b, UPPER, layout, rows, vectors, upper);
	UNROLL for (unsigned v = 0; v < vectors; v++) {
		const uint8_t *halves = t->panel[v] + x86_block_at(layout, b) + x86_code_bytes(layout) + lane(v, 1);
		vf d = scale_of(t, v, b, layout), m = x86_has_minimum(layout) ? minimum_of(t, v, b, layout) : v_zero();
		UNROLL for (unsigned i = 0; i < rows; i++) {
			const struct quant_q8 *x = t->x[i] + b;
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

/*
 * Few rows take no longer to compute than weights take to come from memory, so one has to go on beside the other: while
 * the tiles of a strip walk over the blocks, each asks for its share of the lines of the next outputs' blocks.
 */
struct ahead {
	const uint8_t *panel;
	size_t panel_bytes, from, to; /* lines of a block */
};

INLINE struct ahead share_ahead(const struct strip *s, uint32_t first, uint32_t out, enum x86_layout layout, unsigned rows,
				unsigned vectors)
{
	size_t panel_bytes = x86_panel_bytes(layout, s->a->w->cols), lines = (x86_block_bytes(layout) + 63) / 64;
	uint32_t next = out + vectors * VL;

	if (next + vectors * VL > s->a->w->rows || s->n_rows > AHEAD_ROWS)
		lines = 0;
	return (struct ahead){ (const uint8_t *)s->a->w->data + next / PANEL * panel_bytes, panel_bytes,
			       lines * first / s->n_rows, lines * (first + rows) / s->n_rows };
}

INLINE void ask_ahead(const struct ahead *h, uint32_t b, enum x86_layout layout, unsigned vectors)
{
	const uint8_t *block = h->panel + x86_block_at(layout, b);

	UNROLL for (unsigned p = 0; p < vectors * VL / PANEL; p++)
		for (size_t i = h->from; i < h->to; i++)
			__builtin_prefetch(block + p * h->panel_bytes + 64 * i, 0, 2);
}

/* The sums of rows [i, i + rows) of the strip over all blocks. */
INLINE void run_tile(struct strip *s, uint32_t first, uint32_t out, enum x86_layout layout, unsigned rows, unsigned vectors)
{
	struct ahead ahead = share_ahead(s, first, out, layout, rows, vectors);
	vf sum[ROWS][VECTORS];
	struct tile t;

	set_panels(&t, s->a, out, layout, vectors);
	UNROLL for (unsigned i = 0; i < rows; i++) {
		t.x[i] = row_of(s, first + i);
		UNROLL for (unsigned v = 0; v < vectors; v++)
			sum[i][v] = v_zero();
	}
	for (uint32_t b = 0; b < s->blocks; b++) {
		ask_ahead(&ahead, b, layout, vectors);
		block(&t, b, layout, rows, vectors, sum);
	}
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

/* The outliers of blocks from `from` on, of as many as there is room for. */
static void see_outliers(struct strip *s, uint32_t from)
{
	uint32_t any[BLOCKS], first[BLOCKS], n = 0; /* of a block: columns with outliers, the number of the first of these */

	if (from == s->from)
		return;
	s->from = from;
	s->n_columns = 0;
	memset(s->first, 0, sizeof s->first);
	for (s->end = from; s->end < s->blocks && s->end - from < BLOCKS && s->n_columns + QUANT_BLOCK <= COLUMNS &&
			    n + QUANT_BLOCK * s->n_rows <= OUTLIERS;
	     s->end++) {
		uint32_t *columns = &any[s->end - from];
		*columns = 0;
		for (uint32_t i = 0; i < s->n_rows; i++) {
			uint32_t here = x86_int8_outliers(row_of(s, i), s->blocks)[s->end];
			*columns |= here;
			s->first[i + 1] += (uint32_t)__builtin_popcount(here);
			n += (uint32_t)__builtin_popcount(here);
		}
		first[s->end - from] = s->n_columns;
		for (uint32_t left = *columns; left; left &= left - 1)
			s->column[s->n_columns++] = (struct column){ s->end, (uint32_t)__builtin_ctz(left) };
	}
	for (uint32_t i = 0; i < s->n_rows; i++) {
		const uint32_t *outliers = x86_int8_outliers(row_of(s, i), s->blocks);
		struct outlier *to = s->outlier + s->first[i];
		s->first[i + 1] += s->first[i];
		for (uint32_t b = from; b < s->end; b++)
			for (uint32_t left = outliers[b]; left; left &= left - 1) {
				uint32_t at = (uint32_t)__builtin_ctz(left), before = any[b - from] & ((1u << at) - 1);
				*to++ = (struct outlier){ x86_int8_numbers(row_of(s, i), s->blocks)[b * QUANT_BLOCK + at],
							  first[b - from] + (uint32_t)__builtin_popcount(before) };
			}
	}
}

/* A column of vector v's weights as f32, in the block of scale d and minimum m. */
INLINE vf decode_column(const struct tile *t, unsigned v, const struct column *c, vf d, vf m, enum x86_layout layout)
{
	const uint8_t *block = t->panel[v] + x86_block_at(layout, c->block);
	vi four = four_columns(block + lane(v, 4), layout, (int)c->at / 4), code = v_byte(four, (int)c->at % 4);

	if (x86_has_minimum(layout))
		return v_fma(d, v_from_int(code), m);
	if (layout == X86_Q6_K)
		d = v_mul(d, v_load_i8(block + x86_code_bytes(layout) + c->at / 16 * PANEL + lane(v, 1)));
	return v_mul(d, v_from_int(v_iadd(code, v_iset(-(1 << x86_zero_shift(layout))))));
}

/* Columns [first, end) of those with outliers. */
INLINE void decode_columns(struct strip *s, const struct tile *t, uint32_t first, uint32_t end, enum x86_layout layout,
			   unsigned vectors)
{
	UNROLL for (unsigned v = 0; v < vectors; v++) {
		uint32_t block = UINT32_MAX;
		vf d = v_zero(), m = v_zero();
		for (uint32_t c = first; c < end; c++) {
			if (s->column[c].block != block) {
				block = s->column[c].block;
				d = scale_of(t, v, block, layout);
				m = x86_has_minimum(layout) ? minimum_of(t, v, block, layout) : v_zero();
			}
			v_store(&s->w[c - first][v * VL], decode_column(t, v, &s->column[c], d, m, layout));
		}
	}
}

/* Row i's outliers from *next on, as far as their columns [first, end) are decoded. */
INLINE void add_outliers(struct strip *s, uint32_t i, uint32_t first, uint32_t end, uint32_t *next, unsigned vectors)
{
	const struct outlier *o = s->outlier + *next, *past = s->outlier + s->first[i + 1];
	vf sum[VECTORS];

	UNROLL for (unsigned v = 0; v < vectors; v++)
		sum[v] = v_load(&s->sum[i][v * VL]);
	for (; o < past && o->column < end; o++)
		UNROLL for (unsigned v = 0; v < vectors; v++)
			sum[v] = v_fma(v_set(o->x), v_load(&s->w[o->column - first][v * VL]), sum[v]);
	UNROLL for (unsigned v = 0; v < vectors; v++)
		v_store(&s->sum[i][v * VL], sum[v]);
	*next = (uint32_t)(o - s->outlier);
}

INLINE void run_outliers(struct strip *s, uint32_t out, enum x86_layout layout, unsigned vectors)
{
	uint32_t next[STRIP_ROWS];
	struct tile t;

	set_panels(&t, s->a, out, layout, vectors);
	for (uint32_t from = 0; from < s->blocks; from = s->end) {
		see_outliers(s, from);
		memcpy(next, s->first, s->n_rows * sizeof *next);
		for (uint32_t first = 0; first < s->n_columns; first += DECODED) {
			uint32_t end = s->n_columns - first < DECODED ? s->n_columns : first + DECODED;
			decode_columns(s, &t, first, end, layout, vectors);
			for (uint32_t i = 0; i < s->n_rows; i++)
				add_outliers(s, i, first, end, &next[i], vectors);
		}
	}
}

INLINE void run_outputs(struct strip *s, uint32_t out, enum x86_layout layout, unsigned vectors)
{
	run_tiles(s, out, layout, vectors);
	run_outliers(s, out, layout, vectors);
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
	n = x86_strip(STRIP, s.blocks * sizeof(struct quant_q8), ROWS);
	n = n < STRIP_ROWS ? n : STRIP_ROWS / ROWS * ROWS;
	for (s.row = 0; s.row < a->n; s.row += n) {
		uint32_t out = first * PANEL;
		s.n_rows = a->n - s.row < n ? a->n - s.row : n;
		s.from = UINT32_MAX;
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
