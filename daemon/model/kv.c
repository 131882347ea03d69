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
 * A block is counted by its users. One that is in the tree of prefixes (prefix.c) and computed stays when the last of them
 * leaves, on a list by the time of that, until somebody needs its memory: kv_evict(). So the pool fills up with blocks that
 * may be of use again, and whoever takes from it decides who yields.
 *
 * A struct kv_seq belongs to one request; only the engine thread touches it. The blocks have one mutex.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "daemon/base/cleanup.h"
#include "daemon/base/clock.h"
#include "daemon/base/error.h"
#include "daemon/model/kv-internal.h"

#define TOKENS_STEP 16u
#define TOKENS_MAX 64u
#define WASTE_OK 32u /* at most one part in so many */

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
	(void)pthread_mutex_init(&kv->lock, NULL);
	for (unsigned i = 0; i < KV_BUCKETS; ++i) {
		list_init(&kv->buckets[i]);
		list_init(&kv->roots[i]);
	}
	list_init(&kv->lru);
	*ret = kv;
	return 0;
}

/** kv_free() - give back what was kept; no sequence has a block any more */
struct kv *kv_free(struct kv *kv)
{
	if (!kv)
		return NULL;
	while (kv_evict(kv, SIZE_MAX, 0))
		;
	assert(kv->stats.used == 0 && kv->stats.cached == 0 && kv->n_roots == 0);
	(void)pthread_mutex_destroy(&kv->lock);
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

/* ---- blocks; with the lock ---- */

static struct kv_block *block_new(struct kv *kv)
{
	size_t tokens = kv->layout.block_tokens * sizeof(uint32_t);
	struct kv_block *block = calloc(1, sizeof(*block) + tokens);

	if (!block)
		return NULL;
	if (pool_alloc(kv->pool, POOL_KV, kv->block_bytes, &block->run) != POOL_OK) {
		free(block);
		return NULL;
	}
	block->address = pool_address(kv->pool, block->run);
	block->refs = 1;
	list_init(&block->children);
	kv->stats.used++;
	kv->stats.taken++;
	return block;
}

static void block_free(struct kv *kv, struct kv_block *block)
{
	assert(!block->refs && list_empty(&block->children));
	if (block->root)
		prefix_remove(kv, block);
	pool_release(kv->pool, POOL_KV, block->run);
	free(block);
}

void kv_take(struct kv *kv, struct kv_block *block)
{
	if (block->refs++)
		return;
	list_unlink(&block->lru);
	kv->stats.used++;
	kv->stats.cached--;
}

void kv_release(struct kv *kv, struct kv_block *block)
{
	assert(block->refs);
	if (--block->refs)
		return;
	kv->stats.used--;
	if (!block->root || !block->computed) {
		block_free(kv, block);
		return;
	}
	kv->stats.cached++;
	block->used_ns = clock_ns();
	if (list_empty(&block->children))
		list_append(&kv->lru, &block->lru);
}

static struct kv_block *next_victim(const struct kv *kv)
{
	return list_first(&kv->lru, struct kv_block, lru);
}

/* 1 at least, so that 0 can mean none. */
static uint64_t idle_of(const struct kv_block *block, uint64_t now_ns)
{
	return now_ns > block->used_ns ? now_ns - block->used_ns : 1;
}

/**
 * kv_evict() - give up blocks that nobody uses
 * @bytes:      of the pool, how much is wanted; one block more than that at most
 * @idle_ns:    only blocks that were unused for longer; 0: any
 *
 * From any thread. Return: false when none was given up.
 */
bool kv_evict(struct kv *kv, size_t bytes, uint64_t idle_ns)
{
	size_t freed = 0, each = kv_block_bytes(kv);
	uint64_t now_ns = clock_ns();
	struct kv_block *block;

	(void)pthread_mutex_lock(&kv->lock);
	while (freed < bytes && (block = next_victim(kv)) && idle_of(block, now_ns) > idle_ns) {
		list_unlink(&block->lru);
		block_free(kv, block);
		kv->stats.cached--;
		kv->stats.evicted++;
		freed += each;
	}
	(void)pthread_mutex_unlock(&kv->lock);
	return freed > 0;
}

/** kv_idle_ns() - for how long the block that goes next was unused; 0: there is none */
uint64_t kv_idle_ns(struct kv *kv)
{
	const struct kv_block *block;
	uint64_t idle;

	(void)pthread_mutex_lock(&kv->lock);
	block = next_victim(kv);
	idle = block ? idle_of(block, clock_ns()) : 0;
	(void)pthread_mutex_unlock(&kv->lock);
	return idle;
}

void kv_read_stats(struct kv *kv, struct kv_stats *ret)
{
	(void)pthread_mutex_lock(&kv->lock);
	*ret = kv->stats;
	(void)pthread_mutex_unlock(&kv->lock);
}

/* ---- sequences ---- */

int kv_make_room(struct kv_seq *seq, uint32_t n)
{
	uint32_t room = seq->room ? seq->room : 8;
	struct kv_block **owned;
	void **block;

	if (n <= seq->room)
		return 0;
	while (room < n)
		room *= 2;
	owned = reallocarray(seq->owned, room, sizeof(*owned));
	if (!owned)
		return error_origin(-ENOMEM);
	seq->owned = owned;
	block = reallocarray(seq->block, room, sizeof(*block));
	if (!block)
		return error_origin(-ENOMEM);
	seq->block = block;
	seq->room = room;
	return 0;
}

static void release_down_to(struct kv *kv, struct kv_seq *seq, uint32_t n)
{
	while (seq->n_blocks > n)
		kv_release(kv, seq->owned[--seq->n_blocks]);
}

static int take_blocks(struct kv *kv, struct kv_seq *seq, uint32_t n)
{
	uint32_t before = seq->n_blocks;

	while (seq->n_blocks < n) {
		struct kv_block *block = block_new(kv);

		if (!block) {
			release_down_to(kv, seq, before);
			return KV_E_FULL;
		}
		seq->owned[seq->n_blocks] = block;
		seq->block[seq->n_blocks++] = block->address;
	}
	return KV_OK;
}

static uint32_t blocks_for(const struct kv *kv, uint32_t n_tokens)
{
	uint32_t block_tokens = kv->layout.block_tokens;

	return n_tokens / block_tokens + (n_tokens % block_tokens != 0);
}

/**
 * kv_missing_bytes() - what kv_reserve() would want of the pool beyond what is free and what kv_evict() can give; 0: nothing
 */
size_t kv_missing_bytes(struct kv *kv, const struct kv_seq *seq, uint32_t n_tokens)
{
	uint32_t n = blocks_for(kv, n_tokens);
	size_t want, have;

	(void)pthread_mutex_lock(&kv->lock);
	want = n > seq->n_blocks ? (n - seq->n_blocks) * kv_block_bytes(kv) : 0;
	have = pool_size(kv->pool) - pool_used(kv->pool, POOL_KV) - pool_used(kv->pool, POOL_ADAPTERS) +
	       kv->stats.cached * kv_block_bytes(kv);
	(void)pthread_mutex_unlock(&kv->lock);
	return want > have ? want - have : 0;
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
	uint32_t n = blocks_for(kv, n_tokens);
	int r;

	if (n <= seq->n_blocks) /* in all but one of a block's steps */
		return KV_OK;
	r = kv_make_room(seq, n);
	if (r)
		return error_trace(r);
	(void)pthread_mutex_lock(&kv->lock);
	r = take_blocks(kv, seq, n);
	(void)pthread_mutex_unlock(&kv->lock);
	return r;
}

/* Gives all blocks back, the last one first: what follows others is of less use. seq is KV_SEQ_NULL afterwards. */
void kv_drop(struct kv *kv, struct kv_seq *seq)
{
	(void)pthread_mutex_lock(&kv->lock);
	if (seq->source)
		kv_release(kv, seq->source);
	release_down_to(kv, seq, 0);
	if (seq->root)
		prefix_close(kv, seq->root);
	(void)pthread_mutex_unlock(&kv->lock);
	free(seq->owned);
	free(seq->block);
	*seq = (struct kv_seq)KV_SEQ_NULL;
}

/* Most tokens of one request alone in an empty pool. */
uint64_t kv_max_tokens(const struct kv *kv)
{
	return (uint64_t)(pool_size(kv->pool) / kv_block_bytes(kv)) * kv->layout.block_tokens;
}
