/* SPDX-License-Identifier: MIT */
/*
 * Paged KV cache
 *
 * The keys and values of a request lie in blocks of a few tokens, each block for all layers: [layer], then keys as [KV head]
 * [head_dim][token of block], values as [KV head][token of block][head_dim] (struct kern_kv_layout says why). A block is one
 * run of the pool, so a request grows by one allocation every `block_tokens` tokens and never moves.
 *
 * Tokens of a block: a run is whole pages of 64 KiB, so what a block does not fill is lost, and on average half of the
 * last block of each request is. The block is the smallest multiple of 16 tokens, up to 64, that loses at most 1/32 of
 * its run; if there is none, the one that loses least. (SmolLM2-135M: bf16 48 tokens, 0.7 %; f32 32, 2.2 %; int8 64, 5.3 %.)
 *
 * A struct kv_seq belongs to one request; only the engine thread touches it.
 */
#include "daemon/model/kv.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "daemon/base/cleanup.h"
#include "daemon/base/error.h"

#define TOKENS_STEP 16u
#define TOKENS_MAX 64u
#define WASTE_OK 32u /* at most one part in so many */

struct kv {
	struct pool *pool;
	struct kern_kv_layout layout;
	size_t block_bytes;
};

static size_t rounded_to_pages(size_t bytes)
{
	return (bytes + POOL_PAGE - 1) / POOL_PAGE * POOL_PAGE;
}

/* Tokens of a block, see the head of this file. token_bytes: keys and values of one token, all layers. */
static uint32_t choose_block_tokens(size_t token_bytes)
{
	uint32_t best = TOKENS_STEP;
	double least = 1.0;

	for (uint32_t t = TOKENS_STEP; t <= TOKENS_MAX; t += TOKENS_STEP) {
		size_t bytes = t * token_bytes, run = rounded_to_pages(bytes);
		double waste = (double)(run - bytes) / (double)run;

		if (waste * WASTE_OK <= 1.0)
			return t;
		if (waste < least) {
			least = waste;
			best = t;
		}
	}
	return best;
}

/**
 * kv_new() - KV cache of a model's shape
 * @ret:        the new cache
 * @pool:       where blocks come from; must outlive it
 * @shape:      the model's; dtype F32, BF16 or I8
 */
int kv_new(struct kv **ret, struct pool *pool, const struct kv_shape *shape)
{
	struct kv *kv;
	size_t token_bytes;

	assert(shape->dtype == KERN_F32 || shape->dtype == KERN_BF16 || shape->dtype == KERN_I8);
	assert(shape->n_layers > 0 && shape->n_kv_heads > 0 && shape->head_dim > 0);
	kv = calloc(1, sizeof(*kv));
	if (!kv)
		return error_origin(-ENOMEM);
	token_bytes = shape->n_kv_heads * kern_kv_bytes(shape->dtype, shape->head_dim);
	kv->pool = pool;
	kv->layout = (struct kern_kv_layout){
		.dtype = shape->dtype,
		.block_tokens = choose_block_tokens(token_bytes * shape->n_layers),
		.n_kv_heads = shape->n_kv_heads,
		.head_dim = shape->head_dim,
	};
	kv->layout.layer_bytes = token_bytes * kv->layout.block_tokens;
	kv->block_bytes = kv->layout.layer_bytes * shape->n_layers;
	*ret = kv;
	return 0;
}

struct kv *kv_free(struct kv *kv)
{
	free(kv);
	return NULL;
}

const struct kern_kv_layout *kv_layout(const struct kv *kv)
{
	return &kv->layout;
}

/* Bytes of a block's run: what a block takes from the pool. */
size_t kv_block_bytes(const struct kv *kv)
{
	return rounded_to_pages(kv->block_bytes);
}

static int make_room(struct kv_seq *seq, uint32_t n)
{
	uint32_t room = seq->room ? seq->room : 8;
	struct pool_run *run;
	void **block;

	if (n <= seq->room)
		return 0;
	while (room < n)
		room *= 2;
	run = realloc(seq->run, room * sizeof(*run));
	if (!run)
		return error_origin(-ENOMEM);
	seq->run = run;
	block = realloc(seq->block, room * sizeof(*block));
	if (!block)
		return error_origin(-ENOMEM);
	seq->block = block;
	seq->room = room;
	return 0;
}

static void release_down_to(struct kv *kv, struct kv_seq *seq, uint32_t n)
{
	while (seq->n_blocks > n)
		pool_release(kv->pool, POOL_KV, seq->run[--seq->n_blocks]);
}

/**
 * kv_reserve() - make room for the first n_tokens positions of a request
 * @seq:        the request's blocks; KV_SEQ_NULL at first
 *
 * Takes all blocks that are missing or none: a request that has to wait holds nothing it cannot use.
 *
 * Return: KV_OK, KV_E_FULL if the pool has too little, negative errno.
 */
int kv_reserve(struct kv *kv, struct kv_seq *seq, uint32_t n_tokens)
{
	uint32_t block_tokens = kv->layout.block_tokens;
	uint32_t n = n_tokens / block_tokens + (n_tokens % block_tokens != 0);
	uint32_t before = seq->n_blocks;
	struct pool_run run;
	int r;

	r = make_room(seq, n);
	if (r)
		return error_trace(r);
	while (seq->n_blocks < n) {
		r = pool_alloc(kv->pool, POOL_KV, kv->block_bytes, &run);
		if (r) {
			release_down_to(kv, seq, before);
			return KV_E_FULL;
		}
		seq->run[seq->n_blocks] = run;
		seq->block[seq->n_blocks++] = pool_address(kv->pool, run);
	}
	return KV_OK;
}

/* Gives all blocks back; seq is KV_SEQ_NULL afterwards. */
void kv_drop(struct kv *kv, struct kv_seq *seq)
{
	release_down_to(kv, seq, 0);
	free(seq->run);
	free(seq->block);
	*seq = (struct kv_seq)KV_SEQ_NULL;
}

/* Most tokens of one request alone in an empty pool. */
uint64_t kv_max_tokens(const struct kv *kv)
{
	return (uint64_t)(pool_size(kv->pool) / kv_block_bytes(kv)) * kv->layout.block_tokens;
}
