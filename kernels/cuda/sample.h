/* SPDX-License-Identifier: MIT */
/*
 * What sampling is made of: the order of tokens, weights that can be added in any order, the row as threads read it,
 * sums and minima over a block, what filters leave, pieces of the order. See sample.cu.
 */
#ifndef LORAD_KERNELS_CUDA_SAMPLE_H
#define LORAD_KERNELS_CUDA_SAMPLE_H

#include <math.h>

#include "kernels/cuda/dev.h"

#define PHILOX_INLINE DEV_INLINE
#include "kernels/philox.h"

#define SAMPLE_THREADS 512
#define SAMPLE_WARPS (SAMPLE_THREADS / DEV_WARP)
#define SAMPLE_BINS 2048

/* ---- the order: larger logit first, on ties the lower id ---- */

/* Orders like the floats do, with both zeros equal. */
DEV_INLINE uint32_t order_key(float x)
{
	uint32_t bits = dev_bits(x + 0.0f);

	return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

DEV_INLINE float order_value(uint32_t key)
{
	return dev_float(key & 0x80000000 ? key & 0x7fffffff : ~key);
}

/* A token's place in the order: the lower, the earlier. No two tokens share one. */
DEV_INLINE uint64_t place_of(float logit, uint32_t id)
{
	return (uint64_t)~order_key(logit) << 32 | id;
}

DEV_INLINE float place_logit(uint64_t place)
{
	return order_value(~(uint32_t)(place >> 32));
}

/* ---- weights ---- */

/*
 * A weight in [0, 1] in units of 2^-44, cut off. Sums of integers do not depend on their order, and those of up to 2^20
 * tokens fit.
 */
#define WEIGHT_ONE 0x1p44f

DEV_INLINE uint64_t to_weight(float x)
{
	uint32_t bits = dev_bits(x), below_one = 127 - (bits >> 23);
	uint64_t fraction = (bits & 0x7fffff) | 0x800000;

	return x > 0 ? fraction << 21 >> (below_one < 63 ? below_one : 63) : 0; /* NaN: 0 */
}

/* ---- the row ---- */

struct row {
	const float *logit; /* [n] */
	uint32_t n, skew;   /* skew: how many numbers before the first one the 16 bytes begin in which it lies */
	uint32_t n_quads;   /* such groups of 16 bytes that the row touches */
};

DEV_INLINE struct row row_at(const float *logit, uint32_t n)
{
	uint32_t skew = (uint32_t)((uintptr_t)logit / sizeof(float) % 4);

	return { logit, n, skew, (n + skew + 3) / 4 };
}

/*
 * The ids of a quad are first, first + 1, ..., modulo 2^32. Returns first. What is not in the row is NaN, which is never
 * the largest and never kept.
 */
DEV_INLINE uint32_t load_quad(const struct row *row, uint32_t quad, float x[4])
{
	uint32_t first = 4 * quad - row->skew;

	if (DEV_GUARD(first < row->n) &&
	    DEV_GUARD(row->n - first >= 4)) {
		struct dev_u32x4 v = dev_load16(row->logit + first);
		for (uint32_t i = 0; i < 4; i++)
			x[i] = dev_float(v.x[i]);
	} else {
		for (uint32_t i = 0; i < 4; i++)
			x[i] = DEV_GUARD(first + i < row->n) ? row->logit[first + i] : NAN;
	}
	return first;
}

/* Two quads, so that a thread has two loads under way: this and the one `step` on, NaN if that is `end` or beyond. */
struct quads {
	float x[8];
	uint32_t first[2]; /* ids: number i is first[i / 4] + i % 4 */
};

DEV_INLINE struct quads load_quads(const struct row *row, uint32_t quad, uint32_t step, uint32_t end)
{
	struct quads ret;

	ret.first[0] = load_quad(row, quad, ret.x);
	ret.first[1] = load_quad(row, DEV_GUARD(quad + step < end) ? quad + step : row->n_quads, ret.x + 4);
	return ret;
}

DEV_INLINE uint32_t id_of(const struct quads *quads, uint32_t i)
{
	return quads->first[i / 4] + i % 4;
}

/* ---- over all threads ---- */

DEV_INLINE uint64_t shuffle_xor64(uint64_t x, unsigned mask)
{
	uint32_t low = dev_shuffle_xor((uint32_t)x, mask), high = dev_shuffle_xor((uint32_t)(x >> 32), mask);

	return (uint64_t)high << 32 | low;
}

DEV_INLINE uint64_t warp_sum64(uint64_t x)
{
	for (unsigned mask = DEV_WARP / 2; mask > 0; mask /= 2)
		x += shuffle_xor64(x, mask);
	return x;
}

/* Leaves each warp's sum in of_warp [SAMPLE_WARPS], returns the block's. A barrier must follow before new ones. */
DEV_INLINE uint64_t block_sums(uint64_t x, uint64_t *of_warp)
{
	uint64_t sum = 0;

	x = warp_sum64(x);
	if (threadIdx.x % DEV_WARP == 0)
		of_warp[threadIdx.x / DEV_WARP] = x;
	DEV_BARRIER();
	for (uint32_t i = 0; i < SAMPLE_WARPS; i++)
		sum += of_warp[i];
	return sum;
}

DEV_INLINE uint64_t block_min(uint64_t x, uint64_t *of_warp)
{
	for (unsigned mask = DEV_WARP / 2; mask > 0; mask /= 2) {
		uint64_t other = shuffle_xor64(x, mask);
		x = other < x ? other : x;
	}
	if (threadIdx.x % DEV_WARP == 0)
		of_warp[threadIdx.x / DEV_WARP] = x;
	DEV_BARRIER();
	for (uint32_t i = 0; i < SAMPLE_WARPS; i++)
		x = of_warp[i] < x ? of_warp[i] : x;
	DEV_BARRIER(); /* of_warp may be used again */
	return x;
}

/* ---- which tokens are left ---- */

struct filter { /* which tokens are left, and what each weighs */
	float most, inverse_temperature, min_p;
	bool by_weight; /* else each weighs 1 */
	float cut_logit; /* the last token kept */
	uint32_t cut_id;
};

DEV_INLINE struct filter all_tokens(float most, float inverse_temperature)
{
	return { most, inverse_temperature, 0, true, -INFINITY, UINT32_MAX };
}

DEV_INLINE bool is_kept(const struct filter *f, float x, uint32_t id)
{
	return x > f->cut_logit || (x == f->cut_logit && id <= f->cut_id);
}

DEV_INLINE uint64_t weigh(const struct filter *f, float x, uint32_t id)
{
	float weight = 1;

	if (!is_kept(f, x, id))
		return 0;
	if (!f->by_weight)
		return 1;
	weight = expf((x - f->most) * f->inverse_temperature);
	return weight < f->min_p ? 0 : to_weight(weight);
}

/* ---- pieces of the order, in bins ---- */

/* Linear: logits from the floor of the largest down, 1 / scale a bin. Else: places [low, high], 2^shift a bin. */
struct span {
	uint64_t low, high;
	float lowest; /* no logit is below it */
	bool linear;
	float scale, top; /* top: the largest logit's in bins, a whole number */
	uint32_t shift;
};

/* The most likely 16 to 32 nats (at this temperature) and no more; bins no narrower than neighbouring floats. */
DEV_INLINE struct span likely_span(const struct filter *f)
{
	struct span ret = {};
	float scale = fminf(SAMPLE_BINS / 16 * f->inverse_temperature, 0x1p22f / fabsf(f->most));

	ret.linear = true;
	ret.scale = dev_float(dev_bits(scale) & 0x7f800000); /* a power of two: edges are exact */
	ret.top = floorf(f->most * ret.scale);
	ret.lowest = (ret.top - (SAMPLE_BINS - 1)) / ret.scale;
	return ret;
}

DEV_INLINE struct span span_of_places(uint64_t low, uint64_t high)
{
	struct span ret = {};

	ret.low = low;
	ret.high = high;
	ret.lowest = place_logit(high);
	while ((high - low) >> ret.shift >= SAMPLE_BINS)
		ret.shift++;
	return ret;
}

DEV_INLINE struct span span_of_bin(const struct span *span, uint32_t bin)
{
	if (span->linear) {
		float edge = span->top - (float)bin; /* [edge, edge + 1): from the float below its end down */
		uint64_t first = place_of((edge + 1) / span->scale, 0) + ((uint64_t)1 << 32);
		return span_of_places(first, place_of(edge / span->scale, UINT32_MAX));
	}
	uint64_t low = span->low + ((uint64_t)bin << span->shift), last = low + (((uint64_t)1 << span->shift) - 1);
	return span_of_places(low, last < span->high ? last : span->high);
}

/* SAMPLE_BINS: outside. */
DEV_INLINE uint32_t bin_of(const struct span *span, float x, uint32_t id)
{
	if (!(x >= span->lowest))
		return SAMPLE_BINS;
	if (span->linear)
		return (uint32_t)fminf(span->top - floorf(x * span->scale), SAMPLE_BINS);
	uint64_t place = place_of(x, id);
	return place < span->low || place > span->high ? SAMPLE_BINS : (uint32_t)((place - span->low) >> span->shift);
}

/* ---- the draw's random number ---- */

#endif
