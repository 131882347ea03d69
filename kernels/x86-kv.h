/* SPDX-License-Identifier: MIT */
/*
 * How the x86 backends keep keys and values in a block: of each layer and KV head one span after the other, a span being
 * 16 positions, scales first, then keys, then values. What a head reads of a block is then one run of memory, and a key
 * touches half as many cache lines as in a row of all the block's positions.
 *
 *   type        scales                               keys           values
 *   f32, bf16   -                                    [e][16]        [16][e]
 *   int8        f32 [groups][16] of keys, then [16]  [e/2][16][2]   [8][e][2]
 *
 * bf16: 16 numbers next to each other are stored in the order of KV_SLOT, so that a vector of 8 words of 32 bits holds
 * numbers 0..7 in its low halves and 8..15 in its high ones, and both become f32 by one instruction.
 * int8: pairs (of elements e in keys, of positions in values) lie together: a product sums pairs of 16-bit numbers.
 *
 * Head sizes and blocks that are no multiple of 16 take ref's way, layout and all.
 */
#ifndef LORAD_KERNELS_X86_KV_H
#define LORAD_KERNELS_X86_KV_H

#include "kernels/x86.h"

#define KV_SPAN 16
#define KV_HEAD_DIM_MAX 256
#define KV_SLOT(i) (VL == KV_SPAN ? (i) : (i) % VL * 2 + (i) / VL)

struct x86_span {
	float *key_scale, *value_scale; /* int8 only */
	void *keys, *values;
};

static inline bool x86_kv_own(const struct kern_kv_layout *kv)
{
	return kv->head_dim % KV_SPAN == 0 && kv->block_tokens % KV_SPAN == 0 && kv->head_dim <= KV_HEAD_DIM_MAX;
}

/* The span that holds a position of a sequence. */
static inline struct x86_span x86_span(const struct kern_step *step, const struct kern_seq *seq,
				       const struct kern_kv_layout *kv, uint32_t layer, uint32_t kv_head, uint32_t position)
{
	uint32_t span = position % kv->block_tokens / KV_SPAN, spans = kv->block_tokens / KV_SPAN;
	size_t groups = kv->dtype == KERN_I8 ? kern_kv_groups(kv->head_dim) : 0;
	size_t bytes = KV_SPAN * kern_kv_bytes(kv->dtype, kv->head_dim), half = KV_SPAN * kv->head_dim;
	uint8_t *p = (uint8_t *)step->kv_block[seq->block_index + position / kv->block_tokens] + layer * kv->layer_bytes +
		     ((size_t)kv_head * spans + span) * bytes;
	float *value_scale = (float *)p + groups * KV_SPAN;
	uint8_t *keys = groups ? (uint8_t *)(value_scale + KV_SPAN) : p;

	return (struct x86_span){ (float *)p, value_scale, keys, keys + half * kern_kv_number(kv->dtype) };
}

#endif
