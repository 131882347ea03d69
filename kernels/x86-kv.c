/* SPDX-License-Identifier: MIT */
/*
 * Writing keys and values: x86-kv.h has their layout. A key's numbers go to places far from one another, so they are
 * converted first, as vectors, and then stored one by one.
 */
#include "kernels/x86-kv.h"

static void write_f32(const struct kern_kv_layout *kv, const struct x86_span *s, uint32_t token, const float *k,
			const float *v)
{
	for (uint32_t j = 0; j < kv->head_dim; j++) {
		((float *)s->keys)[(size_t)j * KV_SPAN + token] = k[j];
		((float *)s->values)[(size_t)token * kv->head_dim + j] = v[j];
	}
}

static void write_bf16(const struct kern_kv_layout *kv, const struct x86_span *s, uint32_t token, const float *k,
		       const float *v)
{
	uint16_t *key = (uint16_t *)s->keys + KV_SLOT(token), *value = (uint16_t *)s->values + (size_t)token * kv->head_dim;
	uint16_t half[KV_HEAD_DIM_MAX];

	for (uint32_t j = 0; j < kv->head_dim; j++)
		half[j] = quant_to_bf16(k[j]);
	for (uint32_t j = 0; j < kv->head_dim; j++)
		key[(size_t)j * KV_SPAN] = half[j];
	for (uint32_t j = 0; j < kv->head_dim; j++)
		half[j] = quant_to_bf16(v[j]);
	for (uint32_t j = 0; j < kv->head_dim; j += KV_SPAN)
		UNROLL for (uint32_t i = 0; i < KV_SPAN; i++)
			value[j + KV_SLOT(i)] = half[j + i];
}

/* Codes of n numbers; returns their scale. */
static float encode(const float *x, uint32_t n, int8_t *ret)
{
	vf most = v_zero();
	float inverse, scale;

	for (uint32_t j = 0; j < n; j += VL)
		most = v_max(v_abs(v_load(x + j)), most); /* in this order it passes over NaNs, as ref's does */
	scale = quant_scale_i8(v_most(most), &inverse);
	for (uint32_t j = 0; j < n; j += VL)
		(void)v_store_int8(ret + j, v_mul(v_load(x + j), v_set(inverse)));
	return scale;
}

static void write_int8(const struct kern_kv_layout *kv, const struct x86_span *s, uint32_t token, const float *k,
		       const float *v)
{
	int8_t *key = (int8_t *)s->keys + 2 * token;
	int8_t *value = (int8_t *)s->values + (size_t)token / 2 * 2 * kv->head_dim + token % 2;
	int8_t code[KV_HEAD_DIM_MAX];

	for (uint32_t first = 0, n; first < kv->head_dim; first += n) {
		n = kv->head_dim - first < KERN_KV_GROUP ? kv->head_dim - first : KERN_KV_GROUP;
		s->key_scale[first / KERN_KV_GROUP * KV_SPAN + token] = encode(k + first, n, code + first);
	}
	for (uint32_t j = 0; j < kv->head_dim; j += 2)
		memcpy(key + (size_t)j * KV_SPAN, code + j, 2);
	s->value_scale[token] = encode(v, kv->head_dim, code);
	for (uint32_t j = 0; j < kv->head_dim; j++)
		value[2 * j] = code[j];
}

static void write_row(const struct kern_kv_write *a, const struct kern_seq *seq, uint32_t row)
{
	const struct kern_kv_layout *kv = a->kv;
	uint32_t position = seq->first_position + row, token = position % KV_SPAN;
	size_t from = (size_t)(seq->first_row + row) * kv->n_kv_heads * kv->head_dim;

	for (uint32_t head = 0; head < kv->n_kv_heads; head++, from += kv->head_dim) {
		struct x86_span s = x86_span(a->step, seq, kv, a->layer, head, position);
		if (kv->dtype == KERN_F32)
			write_f32(kv, &s, token, a->k + from, a->v + from);
		else if (kv->dtype == KERN_BF16)
			write_bf16(kv, &s, token, a->k + from, a->v + from);
		else
			write_int8(kv, &s, token, a->k + from, a->v + from);
	}
}

void X86(kv_write)(struct kern_device *device, const void *args, unsigned part, unsigned n_parts)
{
	const struct kern_kv_write *a = args;
	uint32_t first, end;

	if (!x86_kv_own(a->kv)) {
		kern_ref.ops->kv_write(device, args, part, n_parts);
		return;
	}
	host_part(a->step->n_rows, 1, part, n_parts, &first, &end);
	for (const struct kern_seq *s = a->step->seq; s < a->step->seq + a->step->n_seqs; s++) {
		uint32_t i = first > s->first_row ? first - s->first_row : 0;
		for (; i < s->n_rows && s->first_row + i < end; i++)
			write_row(a, s, i);
	}
}
