/* SPDX-License-Identifier: MIT */
/*
 * Prefix reuse
 *
 * The keys and values of a token depend on the tokens before it and on the adapters in force, on nothing else. So blocks
 * are kept in trees: a root for each key (the caller's bytes for all that is not tokens: whose they are, the ordered list of
 * adapters and scales), below it a block for the first tokens, below that one for the next. A path from the root spells a
 * text. Tokens are compared, not their hashes: no collision can answer from another text, and a root's key is compared whole.
 *
 *   prefix_match      at the start: references to the longest path that is computed. One token is always left to compute,
 *                     because its logits are wanted.
 *   prefix_announce   the request's further whole blocks go into the tree as not computed. Who needs one of these waits for
 *                     it (KV_E_PENDING) instead of computing it, too.
 *   prefix_computed   after each step: what has become whole can be used by others. If somebody else was faster, his block
 *                     is taken and one's own given back.
 *   prefix_keep_tail  at the end: the last block, filled in part.
 *
 * Copy on write: where texts part within a block, the block's beginning is of use, its rest is not. The match then names a
 * source, which the step copies into the request's own block before it goes on behind the common part. Tails are only
 * ever copied from. Whoever shares a block never writes to it: a request writes behind its computed tokens only.
 *
 * A block is in the tree as long as its parent is. Only blocks that nothing follows are evicted.
 */
#include "daemon/model/prefix.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/error.h"
#include "daemon/model/kv-internal.h"

#define COPY_LEAST 4u     /* tokens in common that are worth a copy */
#define HASH_START UINT64_C(0xcbf29ce484222325) /* FNV-1a's */
#define HASH_PRIME UINT64_C(0x100000001b3)
#define SIBLINGS_MAX 64u  /* blocks looked at for a common beginning, the newest first */

struct kv_root {
	struct list link;
	struct list children;
	unsigned refs;            /* of sequences, and of blocks */
	size_t bytes;
	uint8_t key[];
};

/* ---- roots; with the lock ---- */

static uint32_t mix(uint64_t hash)
{
	return (uint32_t)(hash ^ hash >> 32);
}

static struct list *roots_of(struct kv *kv, const uint8_t *key, size_t bytes)
{
	uint64_t hash = HASH_START;

	for (size_t i = 0; i < bytes; ++i)
		hash = (hash ^ key[i]) * HASH_PRIME;
	return &kv->roots[mix(hash) % KV_BUCKETS];
}

static struct kv_root *find_root(struct kv *kv, const void *key, size_t bytes)
{
	struct kv_root *root;

	list_for_each(root, roots_of(kv, key, bytes), link)
		if (root->bytes == bytes && memcmp(root->key, key, bytes) == 0)
			return root;
	return NULL;
}

static struct kv_root *add_root(struct kv *kv, const void *key, size_t bytes)
{
	struct kv_root *root = calloc(1, sizeof(*root) + bytes);

	if (!root)
		return NULL;
	root->bytes = bytes;
	memcpy(root->key, key, bytes);
	list_init(&root->children);
	list_append(roots_of(kv, key, bytes), &root->link);
	kv->n_roots++;
	return root;
}

void prefix_close(struct kv *kv, struct kv_root *root)
{
	assert(root->refs);
	if (--root->refs)
		return;
	kv->n_roots--;
	assert(list_empty(&root->children));
	list_unlink(&root->link);
	free(root);
}

/* ---- the tree; with the lock ---- */

static uint32_t hash_of(const struct kv_root *root, const struct kv_block *parent, const uint32_t *token, uint32_t n)
{
	uint64_t hash = HASH_START ^ (uintptr_t)(parent ? (const void *)parent : (const void *)root);

	for (uint32_t i = 0; i < n; ++i)
		hash = (hash ^ token[i]) * HASH_PRIME;
	return mix(hash);
}

static struct list *bucket_of(struct kv *kv, uint32_t hash)
{
	return &kv->buckets[(hash ^ hash >> 16) % KV_BUCKETS];
}

static struct list *children_of(struct kv_root *root, struct kv_block *parent)
{
	return parent ? &parent->children : &root->children;
}

/* The whole block of these tokens behind @parent, computed or not, or NULL. */
static struct kv_block *find(struct kv *kv, const struct kv_root *root, const struct kv_block *parent, const uint32_t *token)
{
	uint32_t n = kv->layout.block_tokens, hash = hash_of(root, parent, token, n);
	struct kv_block *block;

	list_for_each(block, bucket_of(kv, hash), bucket)
		if (block->hash == hash && block->root == root && block->parent == parent &&
		    memcmp(block->token, token, n * sizeof(*token)) == 0)
			return block;
	return NULL;
}

static struct kv_block *last_shared(const struct kv_seq *seq)
{
	return seq->n_shared ? seq->owned[seq->n_shared - 1] : NULL;
}

/* The sequence's block i, behind its shared ones: the tokens are token[0..n_tokens). */
static void insert(struct kv *kv, struct kv_seq *seq, uint32_t i, const uint32_t *token, uint32_t n_tokens, bool computed)
{
	struct kv_block *parent = last_shared(seq), *block = seq->owned[i];

	assert(i == seq->n_shared && i < seq->n_blocks);
	assert(!block->root && block->refs == 1 && n_tokens && n_tokens <= kv->layout.block_tokens);
	assert(!parent || (parent->root == seq->root && parent->n_tokens == kv->layout.block_tokens));
	if (parent)
		list_unlink(&parent->lru);
	block->root = seq->root;
	block->parent = parent;
	block->computed = computed;
	block->n_tokens = n_tokens;
	memcpy(block->token, token, n_tokens * sizeof(*token));
	seq->root->refs++;
	list_prepend(children_of(seq->root, parent), &block->siblings);
	if (n_tokens < kv->layout.block_tokens)
		return;
	block->hash = hash_of(seq->root, parent, token, n_tokens);
	list_append(bucket_of(kv, block->hash), &block->bucket);
}

/* Where its time says: a parent is never older than what followed it, but others may be younger. */
static void make_evictable(struct kv *kv, struct kv_block *block)
{
	struct list *at = kv->lru.next;

	while (at != &kv->lru && container_of(at, struct kv_block, lru)->used_ns < block->used_ns)
		at = at->next;
	list_insert_before(at, &block->lru);
}

void prefix_remove(struct kv *kv, struct kv_block *block)
{
	struct kv_block *parent = block->parent;

	list_unlink(&block->siblings);
	list_unlink(&block->bucket);
	prefix_close(kv, block->root);
	block->root = NULL;
	if (parent && !parent->refs && list_empty(&parent->children))
		make_evictable(kv, parent);
}

static uint32_t common(const uint32_t *a, const uint32_t *b, uint32_t n)
{
	uint32_t i = 0;

	while (i < n && a[i] == b[i])
		++i;
	return i;
}

/* The computed block behind @parent with the longest beginning in common with token[0..n). Return: its length. */
static uint32_t find_beginning(struct kv_root *root, struct kv_block *parent, const uint32_t *token, uint32_t n,
			       struct kv_block **ret)
{
	struct kv_block *block;
	uint32_t best = 0, seen = 0;

	list_for_each(block, children_of(root, parent), siblings) {
		uint32_t length;

		if (seen++ == SIBLINGS_MAX)
			break;
		if (!block->computed)
			continue;
		length = common(block->token, token, block->n_tokens < n ? block->n_tokens : n);
		if (length <= best)
			continue;
		best = length;
		*ret = block;
	}
	return best;
}

/* ---- the interface ---- */

/**
 * prefix_open() - let a sequence share blocks
 * @seq:        an empty sequence
 * @key:        all that decides keys and values beside the tokens; copied
 * @bytes:      its length
 *
 * Return: 0 or -ENOMEM.
 */
int prefix_open(struct kv *kv, struct kv_seq *seq, const void *key, size_t bytes)
{
	struct kv_root *root;

	assert(!seq->root && !seq->n_blocks);
	(void)pthread_mutex_lock(&kv->lock);
	root = find_root(kv, key, bytes);
	if (!root)
		root = add_root(kv, key, bytes);
	if (root)
		root->refs++;
	seq->root = root;
	(void)pthread_mutex_unlock(&kv->lock);
	return root ? 0 : error_origin(-ENOMEM);
}

/* The path of computed blocks for the first n_tokens, into owned[]. Return: KV_OK, or KV_E_PENDING. */
static int walk(struct kv *kv, struct kv_seq *seq, const uint32_t *token, uint32_t n_tokens)
{
	uint32_t each = kv->layout.block_tokens;
	struct kv_block *parent = NULL, *block;
	uint32_t n = 0;

	for (; (n + 1) * each <= n_tokens; parent = block) {
		block = find(kv, seq->root, parent, token + n * each);
		if (!block)
			break;
		if (!block->computed)
			return KV_E_PENDING;
		seq->owned[n] = block;
		seq->block[n++] = block->address;
	}
	seq->n_blocks = seq->n_shared = seq->n_done = n;
	return KV_OK;
}

static void take_path(struct kv *kv, struct kv_seq *seq, const uint32_t *token, uint32_t n_tokens, uint32_t *ret)
{
	uint32_t each = kv->layout.block_tokens, n = seq->n_blocks, length;
	struct kv_block *source = NULL;

	for (uint32_t i = 0; i < n; ++i)
		kv_take(kv, seq->owned[i]);
	*ret = n * each;
	length = find_beginning(seq->root, n ? seq->owned[n - 1] : NULL, token + *ret, n_tokens - *ret, &source);
	if (length < COPY_LEAST)
		return;
	kv_take(kv, source);
	seq->source = source;
	*ret += length;
}

/**
 * prefix_match() - begin with what was computed before
 * @seq:        an empty, opened sequence
 * @token:      the request's tokens
 * @n_tokens:   how many, at least 1
 * @ret:        leading tokens that are covered, always fewer than n_tokens; if prefix_source() is not NULL, the last of
 *              them only once it was copied into the block they end in
 *
 * Return: KV_OK; KV_E_PENDING: somebody is computing the next block, and nothing was taken; negative errno.
 */
int prefix_match(struct kv *kv, struct kv_seq *seq, const uint32_t *token, uint32_t n_tokens, uint32_t *ret)
{
	int r = kv_make_room(seq, n_tokens / kv->layout.block_tokens + 1);

	*ret = 0;
	assert(n_tokens && !seq->n_blocks && !seq->source);
	if (r || !seq->root)
		return error_trace(r);
	(void)pthread_mutex_lock(&kv->lock);
	r = walk(kv, seq, token, n_tokens - 1);
	if (r == KV_OK)
		take_path(kv, seq, token, n_tokens - 1, ret);
	(void)pthread_mutex_unlock(&kv->lock);
	return r;
}

/** prefix_source() - the block to copy from, or NULL */
const void *prefix_source(const struct kv_seq *seq)
{
	return seq->source ? seq->source->address : NULL;
}

/** prefix_copied() - the copy was made */
void prefix_copied(struct kv *kv, struct kv_seq *seq)
{
	if (!seq->source)
		return;
	(void)pthread_mutex_lock(&kv->lock);
	kv_release(kv, seq->source);
	seq->source = NULL;
	kv->stats.copied++;
	(void)pthread_mutex_unlock(&kv->lock);
}

/**
 * prefix_announce() - tell what will be computed
 * @seq:        a sequence that has room for n_tokens
 * @token:      its tokens
 * @n_tokens:   how many are known
 */
void prefix_announce(struct kv *kv, struct kv_seq *seq, const uint32_t *token, uint32_t n_tokens)
{
	uint32_t each = kv->layout.block_tokens;

	if (!seq->root)
		return;
	(void)pthread_mutex_lock(&kv->lock);
	for (uint32_t i = seq->n_shared; (i + 1) * each <= n_tokens; ++i) {
		if (find(kv, seq->root, last_shared(seq), token + i * each))
			break;
		insert(kv, seq, i, token + i * each, each, /* computed= */ false);
		seq->n_shared++;
	}
	(void)pthread_mutex_unlock(&kv->lock);
}

/* A whole computed block of one's own goes into the tree, or makes way for the one that is there. False: not now. */
static bool share(struct kv *kv, struct kv_seq *seq, const uint32_t *token)
{
	uint32_t i = seq->n_shared;
	struct kv_block *other = find(kv, seq->root, last_shared(seq), token);

	if (!other) {
		insert(kv, seq, i, token, kv->layout.block_tokens, /* computed= */ true);
	} else if (other->computed) {
		kv_take(kv, other);
		kv_release(kv, seq->owned[i]);
		seq->owned[i] = other;
		seq->block[i] = other->address;
	} else {
		return false;
	}
	seq->n_shared++;
	return true;
}

/**
 * prefix_computed() - let others use what is there
 * @seq:        the sequence
 * @token:      its tokens
 * @n_computed: how many of them have their keys and values in place
 *
 * May exchange blocks of the sequence for equal ones.
 */
void prefix_computed(struct kv *kv, struct kv_seq *seq, const uint32_t *token, uint32_t n_computed)
{
	uint32_t each = kv->layout.block_tokens;

	if (!seq->root || (seq->n_done + 1) * each > n_computed)
		return;
	(void)pthread_mutex_lock(&kv->lock);
	for (; (seq->n_done + 1) * each <= n_computed; seq->n_done++) {
		if (seq->n_done < seq->n_shared)
			seq->owned[seq->n_done]->computed = true;
		else if (!share(kv, seq, token + seq->n_done * each))
			break;
	}
	(void)pthread_mutex_unlock(&kv->lock);
}

/**
 * prefix_keep_tail() - keep the last block, which is filled in part, for those who go on from there
 *
 * To be called before kv_drop().
 */
void prefix_keep_tail(struct kv *kv, struct kv_seq *seq, const uint32_t *token, uint32_t n_computed)
{
	uint32_t i = seq->n_done, first = i * kv->layout.block_tokens, n;
	struct kv_block *other;

	if (!seq->root || i != seq->n_shared || i >= seq->n_blocks || n_computed < first + COPY_LEAST)
		return;
	n = n_computed - first;
	(void)pthread_mutex_lock(&kv->lock);
	if (n < kv->layout.block_tokens && find_beginning(seq->root, last_shared(seq), token + first, n, &other) < n)
		insert(kv, seq, i, token + first, n, /* computed= */ true);
	(void)pthread_mutex_unlock(&kv->lock);
}
