/* SPDX-License-Identifier: MIT */
/*
 * Low-rank adapters: y += scale (x A^T) B, for segments of rows that each have an adapter of their own.
 *
 * What costs is reading A and B, which no two segments share. So shrink walks a few rank rows of A at a time past all
 * rows of the segment, expand a few columns of B past all rows: each is read from memory once per step, and again only
 * from the cache when a segment has many rows. Ranks are not padded. Sums run in one order whatever the tile: shrink
 * over the columns in VL lanes, expand over the rank. I8's integers become floats as they are read, and shrink's sums
 * are multiplied with the scales.
 *
 * While a tile's first rows are computed, the numbers of the next tile are asked for, at a segment's end those of the next
 * segment: pieces of a KB or less in many places are what memory is slowest at.
 */
#include "kernels/x86.h"

#define TILE 4                                  /* rows, and rank rows, of a shrink tile */
#define RANKS (VEC_REGISTERS == 32 ? TILE : 2)
#define WIDE 4                                  /* vectors of an expand tile */
#define TALL (VEC_REGISTERS == 32 ? 4 : 2)      /* and its rows */

INLINE vf load(enum kern_dtype dtype, const uint8_t *row, size_t j)
{
	return dtype == KERN_F32   ? v_load((const float *)(const void *)row + j)
	       : dtype == KERN_F16 ? v_load_f16(row + 2 * j)
	       : dtype == KERN_I8  ? v_load_i8(row + j)
				   : v_load_bf16(row + 2 * j);
}

/* The last n < VL numbers of a row, then zeros: what lies behind a row's end is not ours to multiply with. */
INLINE vf load_end(enum kern_dtype dtype, const uint8_t *row, uint32_t j, uint32_t n)
{
	float x[VL] = { 0 };

	quant_decode(dtype, row, j, n, x);
	return v_load(x);
}

INLINE size_t number_bytes(enum kern_dtype dtype)
{
	return dtype == KERN_F32 ? 4 : dtype == KERN_I8 ? 1 : 2;
}

/* Vectors of numbers that a cache line holds. */
INLINE unsigned line_vectors(enum kern_dtype dtype)
{
	return (unsigned)(64 / (VL * number_bytes(dtype)));
}

/* f(..., dtype) with the type as a constant: each has loops of its own. */
#define BY_DTYPE(f, dtype, ...)                        \
	do {                                           \
		if ((dtype) == KERN_F32)               \
			f(__VA_ARGS__, KERN_F32);      \
		else if ((dtype) == KERN_F16)          \
			f(__VA_ARGS__, KERN_F16);      \
		else if ((dtype) == KERN_I8)           \
			f(__VA_ARGS__, KERN_I8);       \
		else                                   \
			f(__VA_ARGS__, KERN_BF16);     \
	} while (0)

struct shrink {
	const uint8_t *a;     /* first rank row of the tile */
	size_t stride;
	const float *x;       /* first row */
	uint32_t in;
	float *to;            /* scratch number of the first row and rank row */
	uint32_t to_width;
	const float *scales;  /* of the adapter, I8 only */
	uint32_t first;       /* number of the tile's first rank row in it */
	const uint8_t *ahead; /* rank rows that are next; NULL: they have been asked for */
	size_t ahead_stride;
};

INLINE void shrink_tile(const struct shrink *s, enum kern_dtype dtype, unsigned rows, unsigned ranks)
{
	vf sum[TILE][RANKS], a[RANKS];
	uint32_t k = 0;

	UNROLL for (unsigned i = 0; i < rows; i++)
		UNROLL for (unsigned r = 0; r < ranks; r++)
			sum[i][r] = v_zero();
	for (; k + VL <= s->in; k += VL) {
		UNROLL for (unsigned r = 0; r < ranks; r++) {
			a[r] = load(dtype, s->a + r * s->stride, k);
			if (s->ahead && k / VL % line_vectors(dtype) == 0)
				__builtin_prefetch(s->ahead + r * s->ahead_stride + k * number_bytes(dtype));
		}
		UNROLL for (unsigned i = 0; i < rows; i++) {
			vf x = v_load(s->x + (size_t)i * s->in + k);
			UNROLL for (unsigned r = 0; r < ranks; r++)
				sum[i][r] = v_fma(x, a[r], sum[i][r]);
		}
	}
	if (k < s->in) {
		UNROLL for (unsigned r = 0; r < ranks; r++)
			a[r] = load_end(dtype, s->a + r * s->stride, k, s->in - k);
		UNROLL for (unsigned i = 0; i < rows; i++) {
			vf x = v_load_n(s->x + (size_t)i * s->in + k, s->in - k);
			UNROLL for (unsigned r = 0; r < ranks; r++)
				sum[i][r] = v_fma(x, a[r], sum[i][r]);
		}
	}
	UNROLL for (unsigned i = 0; i < rows; i++)
		UNROLL for (unsigned r = 0; r < ranks; r++)
			s->to[(size_t)i * s->to_width + r] =
				dtype == KERN_I8 ? s->scales[s->first + r] * v_sum(sum[i][r]) : v_sum(sum[i][r]);
}

INLINE void shrink_rows(struct shrink s, uint32_t n_rows, enum kern_dtype dtype, unsigned ranks)
{
	for (; n_rows >= TILE; n_rows -= TILE, s.x += TILE * s.in, s.to += TILE * s.to_width, s.ahead = NULL)
		shrink_tile(&s, dtype, TILE, ranks);
	for (; n_rows; n_rows--, s.x += s.in, s.to += s.to_width, s.ahead = NULL)
		shrink_tile(&s, dtype, 1, ranks);
}

INLINE void shrink_segment(struct shrink s, uint32_t n_rows, uint32_t n_ranks, enum kern_dtype dtype)
{
	const uint8_t *next_segment = s.ahead;
	size_t next_stride = s.ahead_stride;

	for (unsigned ranks; n_ranks; n_ranks -= ranks, s.a += ranks * s.stride, s.to += ranks, s.first += ranks) {
		ranks = n_ranks >= RANKS ? RANKS : 1;
		bool last = n_ranks == ranks;
		s.ahead = last ? next_segment : s.a + ranks * s.stride;
		s.ahead_stride = last ? next_stride : s.stride;
		if (ranks == RANKS)
			shrink_rows(s, n_rows, dtype, RANKS);
		else
			shrink_rows(s, n_rows, dtype, 1);
	}
}

/* The adapter of segment i, or NULL if there is no such segment. */
static const struct kern_lora *lora_of(const struct kern_step *step, uint32_t i, uint32_t module)
{
	return i < step->n_segments ? &step->segment[i].modules[module] : NULL;
}

void X86(lora_shrink)(struct kern_device *device, const void *args, unsigned part, unsigned n_parts)
{
	const struct kern_lora_shrink *a = args;

	(void)device;
	for (uint32_t i = 0; i < a->step->n_segments; i++) {
		const struct kern_segment *segment = &a->step->segment[i];
		const struct kern_lora *lora = &segment->modules[a->module];
		uint32_t first, end;
		if (!lora->a)
			continue;
		host_part(lora->rank, 1, (part + i) % n_parts, n_parts, &first, &end); /* + i: spreads what is left over */
		struct shrink s = {
			.stride = kern_lora_stride((enum kern_dtype)lora->dtype, a->in),
			.x = a->x + (size_t)segment->first_row * a->in,
			.in = a->in,
			.to = a->scratch + (size_t)segment->scratch_row * a->scratch_width + first,
			.to_width = a->scratch_width,
			.scales = lora->scales,
			.first = first,
		};
		s.a = (const uint8_t *)lora->a + first * s.stride;
		const struct kern_lora *next = lora_of(a->step, i + 1, a->module);
		if (next && next->a) { /* most often of the same rank, and then this part's share of it */
			s.ahead_stride = kern_lora_stride((enum kern_dtype)next->dtype, a->in);
			s.ahead = (const uint8_t *)next->a + next->rank * ((part + i + 1) % n_parts) / n_parts * s.ahead_stride;
		}
		BY_DTYPE(shrink_segment, lora->dtype, s, segment->n_rows, end - first);
	}
}

struct expand {
	const uint8_t *b;
	size_t stride;
	const float *z;       /* x A^T of the first row */
	uint32_t z_width, rank, out;
	float scale, *y;      /* of the first row */
	const uint8_t *ahead; /* rank rows of the next columns; NULL: they have been asked for */
	size_t ahead_stride;
};

/* Outputs from column o on; the last of the vectors has `last` numbers. */
INLINE void expand_tile(const struct expand *e, uint32_t o, enum kern_dtype dtype, unsigned rows, unsigned vectors,
			unsigned last)
{
	vf sum[TALL][WIDE], scale = v_set(e->scale);

	UNROLL for (unsigned i = 0; i < rows; i++)
		UNROLL for (unsigned v = 0; v < vectors; v++)
			sum[i][v] = v_zero();
	for (uint32_t j = 0; j < e->rank; j++) {
		vf b[WIDE];
		UNROLL for (unsigned v = 0; v < vectors; v++)
			b[v] = load(dtype, e->b + j * e->stride, o + v * VL); /* rows are padded: reads no other */
		if (e->ahead)
			UNROLL for (unsigned v = 0; v < vectors; v += line_vectors(dtype))
				__builtin_prefetch(e->ahead + j * e->ahead_stride + v * VL * number_bytes(dtype));
		UNROLL for (unsigned i = 0; i < rows; i++)
			UNROLL for (unsigned v = 0; v < vectors; v++)
				sum[i][v] = v_fma(v_set(e->z[(size_t)i * e->z_width + j]), b[v], sum[i][v]);
	}
	UNROLL for (unsigned i = 0; i < rows; i++)
		UNROLL for (unsigned v = 0; v < vectors; v++) {
			float *y = e->y + (size_t)i * e->out + o + v * VL;
			vf change = v_mul(scale, sum[i][v]);
			if (v + 1 < vectors || last == VL)
				v_store(y, v_add(v_load(y), change));
			else
				v_store_n(y, last, v_add(v_load_n(y, last), change));
		}
}

INLINE void expand_rows(struct expand e, uint32_t n_rows, uint32_t o, enum kern_dtype dtype, unsigned vectors, unsigned last)
{
	for (; n_rows >= TALL; n_rows -= TALL, e.z += TALL * e.z_width, e.y += TALL * e.out, e.ahead = NULL)
		expand_tile(&e, o, dtype, TALL, vectors, last);
	for (; n_rows; n_rows--, e.z += e.z_width, e.y += e.out, e.ahead = NULL)
		expand_tile(&e, o, dtype, 1, vectors, last);
}

/* Columns [o, end). */
INLINE void expand_segment(struct expand e, uint32_t n_rows, uint32_t o, uint32_t end, enum kern_dtype dtype)
{
	const uint8_t *next_segment = e.ahead;
	size_t next_stride = e.ahead_stride;

	for (unsigned width; o < end; o += width) {
		width = end - o >= WIDE * VL ? WIDE * VL : VL;
		bool last = end - o <= width;
		e.ahead = last ? next_segment : e.b + (o + width) * number_bytes(dtype);
		e.ahead_stride = last ? next_stride : e.stride;
		if (width == WIDE * VL)
			expand_rows(e, n_rows, o, dtype, WIDE, VL);
		else
			expand_rows(e, n_rows, o, dtype, 1, end - o < VL ? end - o : VL);
	}
}

void X86(lora_expand)(struct kern_device *device, const void *args, unsigned part, unsigned n_parts)
{
	const struct kern_lora_expand *a = args;
	uint32_t first, end;

	(void)device;
	host_part(a->out, PANEL, part, n_parts, &first, &end);
	for (uint32_t i = 0; first < end && i < a->step->n_segments; i++) {
		const struct kern_segment *segment = &a->step->segment[i];
		const struct kern_lora *lora = &segment->modules[a->module];
		if (!lora->b)
			continue;
		struct expand e = {
			.b = lora->b,
			.stride = kern_lora_stride((enum kern_dtype)lora->dtype, a->out),
			.z = a->scratch + (size_t)segment->scratch_row * a->scratch_width,
			.z_width = a->scratch_width,
			.rank = lora->rank,
			.out = a->out,
			.scale = segment->scale * lora->scale,
			.y = a->y + (size_t)segment->first_row * a->out,
		};
		const struct kern_lora *next = lora_of(a->step, i + 1, a->module);
		if (next && next->b) {
			e.ahead_stride = kern_lora_stride((enum kern_dtype)next->dtype, a->out);
			e.ahead = (const uint8_t *)next->b + first * number_bytes((enum kern_dtype)next->dtype);
		}
		BY_DTYPE(expand_segment, lora->dtype, e, segment->n_rows, first, end);
	}
}
