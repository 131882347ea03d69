/* SPDX-License-Identifier: MIT */
/* Sizes and decoding of the stored number formats; quant.h describes them. */
#include "kernels/quant.h"

#include <assert.h>
#include <stddef.h>

#include "kernels/host.h"

size_t kern_dtype_bytes(enum kern_dtype dtype)
{
	return dtype == KERN_F32 ? 4 : dtype == KERN_F16 || dtype == KERN_BF16 ? 2 : dtype == KERN_I8 ? 1 : 0;
}

/* By enum kern_dtype; numbers of a block and its bytes. */
static const struct format {
	const char *name;
	uint16_t numbers, bytes;
} formats[_KERN_DTYPE_N] = {
	[KERN_F32] = { "F32", 1, 4 },
	[KERN_F16] = { "F16", 1, 2 },
	[KERN_BF16] = { "BF16", 1, 2 },
	[KERN_Q8_0] = { "Q8_0", 32, sizeof(struct quant_q8_0) },
	[KERN_Q4_0] = { "Q4_0", 32, sizeof(struct quant_q4_0) },
	[KERN_Q4_1] = { "Q4_1", 32, sizeof(struct quant_q4_1) },
	[KERN_Q5_0] = { "Q5_0", 32, sizeof(struct quant_q5_0) },
	[KERN_Q5_1] = { "Q5_1", 32, sizeof(struct quant_q5_1) },
	[KERN_Q4_K] = { "Q4_K", 256, sizeof(struct quant_q4_k) },
	[KERN_Q5_K] = { "Q5_K", 256, sizeof(struct quant_q5_k) },
	[KERN_Q6_K] = { "Q6_K", 256, sizeof(struct quant_q6_k) },
};

/** kern_dtype_name() - a stored matrix's type as ggml spells it */
const char *kern_dtype_name(enum kern_dtype dtype)
{
	return formats[dtype].name;
}

/**
 * kern_row_bytes() - bytes of one stored row
 *
 * Return: 0 if the dtype is unknown or comes in blocks and cols is no multiple of theirs.
 */
size_t kern_row_bytes(enum kern_dtype dtype, uint32_t cols)
{
	if (dtype >= _KERN_DTYPE_N || cols % formats[dtype].numbers)
		return 0;
	return (size_t)(cols / formats[dtype].numbers) * formats[dtype].bytes;
}

static float load_f16(const uint8_t *p)
{
	return quant_from_f16(quant_load16(p));
}

static void set_scales(struct quant_group *g, float d, float m)
{
	g->d[0] = g->d[1] = d;
	g->m[0] = g->m[1] = m;
}

static void nibbles(const uint8_t *q, uint8_t *code)
{
	for (unsigned j = 0; j < 16; j++) {
		code[j] = q[j] & 15;
		code[j + 16] = q[j] >> 4;
	}
}

static void add_high(const uint8_t *high, uint8_t *code)
{
	for (unsigned j = 0; j < QUANT_BLOCK; j++)
		code[j] |= (uint8_t)((high[j / 8] >> j % 8 & 1) << 4);
}

/* The types of 32 numbers a block: below the codes lies zero, or the minimum that stands in the file behind d. */
static void group_of_32(enum kern_dtype dtype, const uint8_t *p, struct quant_group *ret)
{
	const bool has_minimum = dtype == KERN_Q4_1 || dtype == KERN_Q5_1;
	const float zero = dtype == KERN_Q8_0 ? 128 : dtype == KERN_Q4_0 ? 8 : 16;
	float d = load_f16(p);

	ret->f16_d = quant_load16(p);
	ret->f16_m = has_minimum ? quant_load16(p + 2) : 0;
	set_scales(ret, d, has_minimum ? load_f16(p + 2) : -zero * d);
	p += has_minimum ? 4 : 2;
	if (dtype == KERN_Q8_0) {
		for (unsigned j = 0; j < QUANT_BLOCK; j++)
			ret->code[j] = p[j] ^ 0x80;
		return;
	}
	if (dtype == KERN_Q4_0 || dtype == KERN_Q4_1) {
		nibbles(p, ret->code);
		return;
	}
	nibbles(p + 4, ret->code);
	add_high(p, ret->code);
}

/* Group g of a Q4_K block or a Q5_K block, whose heads are the same; high is NULL in the former. */
static void group_of_k(const uint8_t *head, const uint8_t *high, const uint8_t *q, unsigned g, struct quant_group *ret)
{
	const uint8_t *s = head + offsetof(struct quant_q4_k, s);
	unsigned scale = g < 4 ? s[g] & 63 : (s[g + 4] & 15) | s[g - 4] >> 6 << 4;
	unsigned minimum = g < 4 ? s[g + 4] & 63 : s[g + 4] >> 4 | s[g] >> 6 << 4;

	ret->f16_d = quant_load16(head);
	ret->f16_m = quant_load16(head + 2);
	ret->scale[0] = ret->scale[1] = (int8_t)scale;
	ret->minimum = (uint8_t)minimum;
	set_scales(ret, load_f16(head) * (float)scale, -load_f16(head + 2) * (float)minimum);
	for (unsigned j = 0; j < QUANT_BLOCK; j++) {
		ret->code[j] = q[g / 2 * QUANT_BLOCK + j] >> g % 2 * 4 & 15;
		if (high)
			ret->code[j] |= (uint8_t)((high[j] >> g & 1) << 4);
	}
}

static void group_of_q6_k(const struct quant_q6_k *b, unsigned g, struct quant_group *ret)
{
	const uint8_t *q = b->q + g / 4 * 64 + g % 2 * QUANT_BLOCK, *high = b->high + g / 4 * QUANT_BLOCK;
	unsigned k = g % 4;

	ret->f16_d = quant_load16(b->d);
	for (unsigned half = 0; half < 2; half++) {
		ret->scale[half] = b->s[2 * g + half];
		ret->d[half] = load_f16(b->d) * (float)b->s[2 * g + half];
		ret->m[half] = -32 * ret->d[half];
	}
	for (unsigned j = 0; j < QUANT_BLOCK; j++)
		ret->code[j] = (uint8_t)((q[j] >> k / 2 * 4 & 15) | (high[j] >> 2 * k & 3) << 4);
}

void quant_group(enum kern_dtype dtype, const void *row, uint32_t group, struct quant_group *ret)
{
	const uint32_t groups = formats[dtype].numbers / QUANT_BLOCK;
	const uint8_t *p = (const uint8_t *)row + (size_t)(group / groups) * formats[dtype].bytes;
	const struct quant_q5_k *five = (const void *)p;

	*ret = (struct quant_group){ 0 };
	if (dtype == KERN_Q4_K)
		group_of_k(p, NULL, p + offsetof(struct quant_q4_k, q), group % groups, ret);
	else if (dtype == KERN_Q5_K)
		group_of_k(p, five->high, five->q, group % groups, ret);
	else if (dtype == KERN_Q6_K)
		group_of_q6_k((const void *)p, group % groups, ret);
	else
		group_of_32(dtype, p, ret);
}

static void decode_groups(enum kern_dtype dtype, const void *row, uint32_t first, uint32_t n, float *ret)
{
	struct quant_group g;

	for (uint32_t group = first / QUANT_BLOCK; group < (first + n) / QUANT_BLOCK; group++, ret += QUANT_BLOCK) {
		quant_group(dtype, row, group, &g);
		quant_group_decode(&g, ret);
	}
}

void quant_decode(enum kern_dtype dtype, const void *row, uint32_t first, uint32_t n, float *ret)
{
	const uint8_t *p = row;

	if (quant_is_blocks(dtype)) {
		assert(first % QUANT_BLOCK == 0 && n % QUANT_BLOCK == 0);
		decode_groups(dtype, row, first, n, ret);
		return;
	}
	p += first * kern_dtype_bytes(dtype);
	if (dtype == KERN_F32) {
		memcpy(ret, p, n * sizeof *ret);
		return;
	}
	if (dtype == KERN_I8) {
		for (uint32_t j = 0; j < n; j++)
			ret[j] = (int8_t)p[j];
		return;
	}
	for (uint32_t j = 0; j < n; j++, p += 2)
		ret[j] = dtype == KERN_F16 ? quant_from_f16(quant_load16(p)) : quant_from_bf16(quant_load16(p));
}

/**
 * host_stored_row() - where output row i lies in the file
 *
 * llama.cpp's converter stores the rows of q and k of each head (e rows) as pairs: row 2 j + s holds what Hugging Face
 * has at row s * e / 2 + j, because its rope rotates neighbours where Hugging Face rotates halves.
 */
uint32_t host_stored_row(const struct kern_matrix *m, uint32_t i)
{
	uint32_t e = m->permuted_head;

	if (!e)
		return i;
	return i / e * e + i % e % (e / 2) * 2 + i % e / (e / 2);
}
