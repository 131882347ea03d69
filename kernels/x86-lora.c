/* SPDX-License-Identifier: MIT */
/*
 * Low-rank adapters: y += scale (x A^T) B, for segments of rows that each have an adapter of their own.
 *
 * What costs is reading A and B, which no two segments share. So shrink walks a few rank rows of A at a time past all
 * rows of the segment, expand a few columns of B past all rows: each is read from memory once per step, and again only
 * from the cache when a segment has many rows. Ranks are not padded. Sums run in one order whatever the tile: shrink
 * over the columns in VL lanes, expand over the rank.
 */
#include "kernels/x86.h"

#define TILE 4                                  /* rows, and rank rows, of a shrink tile */
#define RANKS (VEC_REGISTERS == 32 ? TILE : 2)
#define WIDE 4                                  /* vectors of an expand tile */
#define TALL (VEC_REGISTERS == 32 ? 4 : 2)      /* and its rows */

INLINE vf load(enum kern_dtype dtype, const uint8_t *row, size_t j)
{
	return dtype == KERN_F32 ? v_load((const float *)(const void *)row + j)
	       : dtype == KERN_F16 ? v_load_f16(row + 2 * j)
				   : v_load_bf16(row + 2 * j);
}

/* The last n < VL numbers of a row, then zeros: what lies behind a row's end is not ours to multiply with. */
INLINE vf load_end(enum kern_dtype dtype, const uint8_t *row, uint32_t j, uint32_t n)
{
	float x[VL] = { 0 };

	quant_decode(dtype, row, j, n, x);
	return v_load(x);
}

struct shrink {
	const uint8_t *a;     /* first rank row of the tile */
	size_t stride;
	const float *x;       /* first row */
	uint32_t in;
	float *to;            /* scratch number of the first row and rank row */
	uint32_t to_width;
};

INLINE void shrink_tile(const struct shrink *s, enum kern_dtype dtype, unsigned rows, unsigned ranks)
{
	vf sum[TILE][RANKS], a[RANKS];
	uint32_t k = 0;

	UNROLL for (unsigned i = 0; i < rows; i++)
		UNROLL for (unsigned r = 0; r < ranks; r++)
			sum[i][r] = v_zero();
	for (; k + VL <= s->in; k += VL) {
		UNROLL for (unsigned r = 0; r < ranks; r++)
			a[r] = load(dtype, s->a + r * s->stride, k);
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
			s->to[(size_t)i * s->to_width + r] = v_sum(sum[i][r]);
}

INLINE void shrink_rows(struct shrink s, uint32_t n_rows, enum kern_dtype dtype, unsigned ranks)
{
	for (; n_rows >= TILE; n_rows -= TILE, s.x += TILE * s.in, s.to += TILE * s.to_width)
		shrink_tile(&s, dtype, TILE, ranks);
	for (; n_rows; n_rows--, s.x += s.in, s.to += s.to_width)
		shrink_tile(&s, dtype, 1, ranks);
}

INLINE void shrink_segment(struct shrink s, uint32_t n_rows, uint32_t n_ranks, enum kern_dtype dtype)
{
	for (; n_ranks >= RANKS; n_ranks -= RANKS, s.a += RANKS * s.stride, s.to += RANKS)
		shrink_rows(s, n_rows, dtype, RANKS);
	for (; n_ranks; n_ranks--, s.a += s.stride, s.to++)
		shrink_rows(s, n_rows, dtype, 1);
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
		};
		s.a = (const uint8_t *)lora->a + first * s.stride;
		if (lora->dtype == KERN_F32)
			shrink_segment(s, segment->n_rows, end - first, KERN_F32);
		else if (lora->dtype == KERN_F16)
			shrink_segment(s, segment->n_rows, end - first, KERN_F16);
		else
			shrink_segment(s, segment->n_rows, end - first, KERN_BF16);
	}
}

struct expand {
	const uint8_t *b;
	size_t stride;
	const float *z;       /* x A^T of the first row */
	uint32_t z_width, rank, out;
	float scale, *y;      /* of the first row */
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
	for (; n_rows >= TALL; n_rows -= TALL, e.z += TALL * e.z_width, e.y += TALL * e.out)
		expand_tile(&e, o, dtype, TALL, vectors, last);
	for (; n_rows; n_rows--, e.z += e.z_width, e.y += e.out)
		expand_tile(&e, o, dtype, 1, vectors, last);
}

INLINE void expand_segment(const struct expand *e, uint32_t n_rows, uint32_t o, uint32_t end, enum kern_dtype dtype)
{
	for (; o + WIDE * VL <= end; o += WIDE * VL)
		expand_rows(*e, n_rows, o, dtype, WIDE, VL);
	for (; o < end; o += VL)
		expand_rows(*e, n_rows, o, dtype, 1, end - o < VL ? end - o : VL);
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
		if (lora->dtype == KERN_F32)
			expand_segment(&e, segment->n_rows, first, end, KERN_F32);
		else if (lora->dtype == KERN_F16)
			expand_segment(&e, segment->n_rows, first, end, KERN_F16);
		else
			expand_segment(&e, segment->n_rows, first, end, KERN_BF16);
	}
}
