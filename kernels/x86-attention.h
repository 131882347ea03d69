/* SPDX-License-Identifier: MIT */
/* A tile of attention: what x86-attention.c computes of it and x86-attention-parts.c puts together. */
#ifndef LORAD_KERNELS_X86_ATTENTION_H
#define LORAD_KERNELS_X86_ATTENTION_H

#include "kernels/x86-kv.h"

#define STRETCH 64
#define SECTION 512
#define SPANS (STRETCH / KV_SPAN)
#define HEADS 8
#define QUERIES 24

/* Floats of what a section comes to: for each query the maximum, the sum of its weights, and y [e]. */
#define SUMS(e, queries) ((queries) * ((size_t)(e) + 2))

struct x86_tile {
	const struct kern_attention *a;
	const struct kern_seq *seq;
	uint32_t row, n_rows;                   /* rows of the request, counted from its first in this step */
	uint32_t head, n_heads;                 /* query heads of one KV head */
	uint32_t n, e;                          /* queries: query q is row q / n_heads, head q % n_heads; head size */
	struct x86_span span[SPANS];            /* of the stretch */
	struct x86_span ahead[SPANS];           /* of the next one, or the same */
	float most[QUERIES], down[QUERIES];     /* maximum, what y was scaled down by when it last grew */
	float q_scale[QUERIES], p_scale[QUERIES];
	float sum[QUERIES][VL];                 /* of weights, by lane */
	float p[QUERIES][STRETCH];              /* scores of a stretch as powers of 2, then weights */
	int16_t p16[QUERIES][STRETCH];
	float q[KV_HEAD_DIM_MAX][QUERIES];      /* one element of all queries next to each other */
	int16_t q16[KV_HEAD_DIM_MAX / 2][QUERIES][2];
	float y[QUERIES * KV_HEAD_DIM_MAX];     /* [n][e] */
	float total[SUMS(KV_HEAD_DIM_MAX, QUERIES)], section[SUMS(KV_HEAD_DIM_MAX, QUERIES)];
};

/* 2^x to 2 ulp for x <= 0; below -126 it stays there. */
INLINE vf v_power2(vf x)
{
	x = v_max(x, v_set(-126));
	vf n = v_round(x), r = v_sub(x, n);
	vf p = v_fma(v_set(0x1.430912p-13f), r, v_set(0x1.5d87fep-10f));

	p = v_fma(p, r, v_set(0x1.3b2ab6p-7f));
	p = v_fma(p, r, v_set(0x1.c6b08ep-5f));
	p = v_fma(p, r, v_set(0x1.ebfbep-3f));
	p = v_fma(p, r, v_set(0x1.62e43p-1f));
	p = v_fma(p, r, v_set(1));
	return v_mul(p, v_pow2(n));
}

/* Where query q's numbers begin in q and y. */
static inline size_t x86_first_number(const struct x86_tile *t, unsigned q)
{
	size_t row = (size_t)t->seq->first_row + t->row + q / t->n_heads;

	return (row * t->a->n_heads + t->head + q % t->n_heads) * t->e;
}

/* Queries of the tile's rows and heads: to be called before its sections. */
void X86(attention_take)(struct x86_tile *t);
/* What positions [512 section, 512 (section + 1)) come to, as far as the rows see them; ret: SUMS(e, n) */
void X86(attention_section)(struct x86_tile *t, uint32_t section, float *ret);

#endif
