/* SPDX-License-Identifier: MIT */
/*
 * Number formats: how stored numbers look in bytes, and how activations look when they meet quantised weights.
 *
 * The Q types are ggml's (the GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; block
 * layouts as in ggml's documentation of quantisation types). In the older ones 32 consecutive numbers of a row share an
 * f16 scale d:
 *
 *   type   bytes  layout                               number j
 *   Q8_0   34     f16 d, i8 q[32]                      d * q[j]
 *   Q4_0   18     f16 d, u8 q[16]                      d * (nibble(j) - 8)
 *   Q4_1   20     f16 d, f16 m, u8 q[16]               d * nibble(j) + m
 *   Q5_0   22     f16 d, u32 high, u8 q[16]            d * (nibble(j) + 16 * bit j of high - 16)
 *   Q5_1   24     f16 d, f16 m, u32 high, u8 q[16]     d * (nibble(j) + 16 * bit j of high) + m
 *
 * nibble(j) is the low half of q[j] for j < 16, else the high half of q[j - 16].
 *
 * The K types have blocks of 256: the scales of groups of 32 numbers (Q6_K: 16) are small integers, and the f16 d says how
 * large these are. Number j of group g (Q6_K: of the 32 numbers 32 g ...):
 *
 *   Q4_K   144    f16 d, f16 m, u8 s[12], u8 q[128]             d * scale(g) * nibble(g, j) - m * minimum(g)
 *   Q5_K   176    f16 d, f16 m, u8 s[12], u8 high[32], u8 q[128]  the same with 16 * bit g of high[j] added to the nibble
 *   Q6_K   210    u8 q[128], u8 high[64], i8 s[16], f16 d       d * s[2 g + j / 16] * (six(g, j) - 32)
 *
 * nibble(g, j) is in q[32 * (g / 2) + j], the low half if g is even. scale(g) and minimum(g) are of 6 bits: for g < 4 the
 * low 6 of s[g] and of s[4 + g]; for g >= 4 the low, and the high, half of s[4 + g] are their low 4 bits, the top 2 of
 * s[g - 4], and of s[g], their high ones. six(g, j), with h = g / 4 and k = g % 4: its low 4 bits are a half of
 * q[64 h + 32 * (k % 2) + j], the low half if k < 2, its high ones the bits 2 k, 2 k + 1 of high[32 h + j].
 *
 * All values are little endian, and a block may start at any byte, hence the packed structs of bytes. Whatever the type,
 * 32 consecutive numbers are unsigned codes with an f32 scale and minimum for each half of them: struct quant_group. Scale
 * and scale times code are exact there, so a number is rounded once, where its minimum is added, as ggml has it.
 *
 * int8 activations (struct quant_q8) are ours: 32 numbers of a row share the f32 scale max|x| / 127; the sum of the
 * codes stands beside them because a weight's minimum multiplies it: sum((d c + m) q s) = s (d sum(c q) + m sum(q)).
 * With unsigned codes the minimum is -8 d in Q4_0, -16 d in Q5_0, -128 d in Q8_0 and -32 d in Q6_K: for these the sum, of
 * each half, stands there as an integer too.
 *
 * An encoding's error is uniform in +-scale / 2. Where one number of a block is large its 31 neighbours lose what they
 * had, and models rely on such outliers. So a number beyond QUANT_OUTLIER times the row's root mean square is not encoded:
 * its code is 0, and it is multiplied as f32 with its weight as f32. Rows tend to have them in the same columns. Mean and
 * largest difference of a token's log-probability from f32, SmolLM2 Q4_1, tests/unit/test-model-golden on AVX-512, over
 * the base and ten adapters: beyond 3.8 (one number in 128) 0.028, 0.49; beyond 3.4 one token was 0.65 off where 0.6 is
 * the bound; beyond 3.0 0.024, 0.31, but 0.64 for the base in Q5_K_M's mix of types; beyond 2.7 0.023, 0.33, and
 * 0.49 there. With such blocks encoded a second time, what the first encoding left of them, it was 0.025, 0.43 for one block
 * in five. With neither it was 1.02.
 */
#ifndef LORAD_KERNELS_QUANT_H
#define LORAD_KERNELS_QUANT_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels/kernels.h"

#define QUANT_BLOCK 32

struct quant_q8_0 {
	uint8_t d[2];
	int8_t q[32];
};

struct quant_q4_0 {
	uint8_t d[2];
	uint8_t q[16];
};

struct quant_q4_1 {
	uint8_t d[2];
	uint8_t m[2];
	uint8_t q[16];
};

struct quant_q5_0 {
	uint8_t d[2];
	uint8_t high[4];
	uint8_t q[16];
};

struct quant_q5_1 {
	uint8_t d[2];
	uint8_t m[2];
	uint8_t high[4];
	uint8_t q[16];
};

struct quant_q4_k {
	uint8_t d[2];
	uint8_t m[2];
	uint8_t s[12];
	uint8_t q[128];
};

struct quant_q5_k {
	uint8_t d[2];
	uint8_t m[2];
	uint8_t s[12];
	uint8_t high[32];
	uint8_t q[128];
};

struct quant_q6_k {
	uint8_t q[128];
	uint8_t high[64];
	int8_t s[16];
	uint8_t d[2];
};

_Static_assert(sizeof(struct quant_q8_0) == 34 && sizeof(struct quant_q4_0) == 18 && sizeof(struct quant_q4_1) == 20 &&
		       sizeof(struct quant_q5_0) == 22 && sizeof(struct quant_q5_1) == 24 && sizeof(struct quant_q4_k) == 144 &&
		       sizeof(struct quant_q5_k) == 176 && sizeof(struct quant_q6_k) == 210,
	       "ggml's block sizes");

/*
 * 32 weights: number j is d[j / 16] * code[j] + m[j / 16]. The halves differ in Q6_K only. What the file has for d and m
 * is there as well, for who stores it in another order: f16 scale and minimum, and in K types the integers these multiply.
 */
struct quant_group {
	uint8_t code[QUANT_BLOCK];
	float d[2], m[2];
	uint16_t f16_d, f16_m; /* m: 0 if the type has none */
	int8_t scale[2];
	uint8_t minimum;
};

/* 32 activations as int8: number j is scale * q[j]. */
struct quant_q8 {
	float scale, sum;         /* sum = scale * (q[0] + ... + q[31]) */
	int32_t minus[2];         /* minus the sum of each half of q */
	int8_t q[QUANT_BLOCK];
};

_Static_assert(sizeof(struct quant_q8) == 48, "no padding: activation_bytes counts on it");

static inline uint32_t quant_bits(float x)
{
	uint32_t bits;

	memcpy(&bits, &x, sizeof bits);
	return bits;
}

static inline float quant_float(uint32_t bits)
{
	float x;

	memcpy(&x, &bits, sizeof x);
	return x;
}

static inline uint16_t quant_load16(const void *p)
{
	uint16_t v;

	memcpy(&v, p, sizeof v);
	return v;
}

static inline float quant_from_bf16(uint16_t h)
{
	return quant_float((uint32_t)h << 16);
}

/* Nearest, ties to even; a NaN stays one. */
static inline uint16_t quant_to_bf16(float x)
{
	uint32_t bits = quant_bits(x);

	if ((bits & 0x7fffffff) > 0x7f800000)
		return (uint16_t)((bits >> 16) | 0x40);
	return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static inline float quant_round_bf16(float x)
{
	return quant_from_bf16(quant_to_bf16(x));
}

/* Exact. The exponent is moved by a multiplication, which also normalises f16's denormals. */
static inline float quant_from_f16(uint16_t h)
{
	uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = (uint32_t)(h & 0x7fff) << 13;

	if (rest >= 0x0f800000) /* infinity or NaN */
		return quant_float(sign | 0x7f800000 | rest);
	return quant_float(sign | quant_bits(quant_float(rest) * 0x1p112f));
}

static inline bool quant_is_blocks(enum kern_dtype dtype)
{
	return dtype >= KERN_Q8_0 && dtype < _KERN_DTYPE_N;
}

/* Numbers as int8 codes: their scale, by the largest of them, and a number's code. */
static inline float quant_scale_i8(float most, float *ret_inverse)
{
	*ret_inverse = most > 1e-30f ? 127 / most : 0; /* no denormals: their inverse is infinite */
	return most / 127;
}

static inline int8_t quant_code_i8(float x, float inverse)
{
	return (int8_t)lrintf(x * inverse);
}

/* low, high: sums of the halves of q. */
static inline void quant_set_sums(struct quant_q8 *ret, float scale, int low, int high)
{
	ret->scale = scale;
	ret->sum = ret->scale * (float)(low + high);
	ret->minus[0] = -low;
	ret->minus[1] = -high;
}

/* Encodes 32 numbers. Every backend does just this, so that all see the same activations. */
static inline void quant_encode_q8(const float *x, struct quant_q8 *ret)
{
	float inverse, scale, most = 0;
	int sum[2] = { 0 };

	for (unsigned j = 0; j < QUANT_BLOCK; j++)
		most = fmaxf(most, fabsf(x[j]));
	scale = quant_scale_i8(most, &inverse);
	for (unsigned j = 0; j < QUANT_BLOCK; j++) {
		ret->q[j] = quant_code_i8(x[j], inverse);
		sum[j / 16] += ret->q[j];
	}
	quant_set_sums(ret, scale, sum[0], sum[1]);
}

#define QUANT_OUTLIER 2.7f

/* Of a row: numbers whose magnitude is beyond this are not encoded. */
static inline float quant_border(float sum_of_squares, uint32_t cols)
{
	return QUANT_OUTLIER * sqrtf(sum_of_squares / (float)cols);
}

/* Numbers [32 group, 32 group + 32) of a row in blocks. */
void quant_group(enum kern_dtype dtype, const void *row, uint32_t group, struct quant_group *ret);

/* The 32 numbers of a group, rounded once each. */
static inline void quant_group_decode(const struct quant_group *g, float *ret)
{
	for (unsigned j = 0; j < QUANT_BLOCK; j++)
		ret[j] = g->d[j / 16] * (float)g->code[j] + g->m[j / 16];
}

/* Numbers [first, first + n) of a row as f32, exactly; blocks: first and n are multiples of 32. I8: the integers. */
void quant_decode(enum kern_dtype dtype, const void *row, uint32_t first, uint32_t n, float *ret);

#endif
