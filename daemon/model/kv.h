/* SPDX-License-Identifier: MIT */
/* Paged KV cache: blocks of a few tokens for all layers, taken from the pool. See kv.c; for shared blocks prefix.c. */
#ifndef LORAD_MODEL_KV_H
#define LORAD_MODEL_KV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/base/cleanup.h"
#include "daemon/model/pool.h"
#include "kernels/kernels.h"

struct kv;
struct kv_block;
struct kv_root;

enum kv_result { KV_OK, KV_E_FULL, KV_E_PENDING /* prefix_match() only */ };

/* The blocks of one request, in order of position. */
struct kv_seq {
	struct kv_block **owned;  /* a reference to each */
	void **block;             /* device addresses, same order */
	uint32_t n_blocks, room;  /* in use, allocated in the arrays */

	/* prefix.c */
	struct kv_root *root;     /* NULL: shares nothing */
	uint32_t n_shared, n_done; /* leading blocks others can find; and those of them that are computed */
	struct kv_block *source;  /* a reference; its first tokens are to be copied into the block after the shared ones */
};

#define KV_SEQ_NULL { 0 }

struct kv_shape {
	uint32_t n_layers, n_kv_heads, head_dim;
	enum kern_dtype dtype;
};

struct kv_stats {
	uint64_t used, cached;    /* blocks: of running requests, each counted once; kept for requests to come */
	uint64_t taken;           /* from the pool, in all: what was not found has to be filled */
	uint64_t evicted;         /* of the cached ones, in all */
	uint64_t copied;          /* because only their beginning was wanted */
};

int kv_new(struct kv **ret, struct pool *pool, const struct kv_shape *shape);
struct kv *kv_free(struct kv *kv);
const struct kern_kv_layout *kv_layout(const struct kv *kv);
size_t kv_block_bytes(const struct kv *kv);
int kv_reserve(struct kv *kv, struct kv_seq *seq, uint32_t n_tokens); /* room for positions 0..n_tokens-1, or KV_E_FULL */
size_t kv_missing_bytes(struct kv *kv, const struct kv_seq *seq, uint32_t n_tokens); /* that others would have to yield for it */
void kv_drop(struct kv *kv, struct kv_seq *seq);
uint64_t kv_max_tokens(const struct kv *kv);                          /* of one request alone in an empty pool */

/* Blocks that nobody uses, kept for their content. */
bool kv_evict(struct kv *kv, size_t bytes, uint64_t idle_ns);  /* those unused for longer; false: there was none */
uint64_t kv_idle_ns(struct kv *kv);                            /* of the one that goes next; 0: there is none */
void kv_read_stats(struct kv *kv, struct kv_stats *ret);

DEFINE_CLEANUP(struct kv *, kv_free)

#endif
