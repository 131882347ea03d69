/* SPDX-License-Identifier: MIT */
/* Paged KV cache: blocks of a few tokens for all layers, taken from the pool. See kv.c. */
#ifndef LORAD_MODEL_KV_H
#define LORAD_MODEL_KV_H

#include <stddef.h>
#include <stdint.h>

#include "daemon/base/cleanup.h"
#include "daemon/model/pool.h"
#include "kernels/kernels.h"

struct kv;

enum kv_result { KV_OK, KV_E_FULL };

/* The blocks of one request, in order of position. */
struct kv_seq {
	struct pool_run *run;
	void **block;             /* device addresses, same order */
	uint32_t n_blocks, room;  /* in use, allocated in the arrays */
};

#define KV_SEQ_NULL { 0 }

struct kv_shape {
	uint32_t n_layers, n_kv_heads, head_dim;
	enum kern_dtype dtype;
};

int kv_new(struct kv **ret, struct pool *pool, const struct kv_shape *shape);
struct kv *kv_free(struct kv *kv);
const struct kern_kv_layout *kv_layout(const struct kv *kv);
size_t kv_block_bytes(const struct kv *kv);
int kv_reserve(struct kv *kv, struct kv_seq *seq, uint32_t n_tokens); /* room for positions 0..n_tokens-1, or KV_E_FULL */
void kv_drop(struct kv *kv, struct kv_seq *seq);
uint64_t kv_max_tokens(const struct kv *kv);                          /* of one request alone in an empty pool */

DEFINE_CLEANUP(struct kv *, kv_free)

#endif
