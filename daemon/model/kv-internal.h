/* SPDX-License-Identifier: MIT */
/* What kv.c and prefix.c share. Nobody else includes this. */
#ifndef LORAD_MODEL_KV_INTERNAL_H
#define LORAD_MODEL_KV_INTERNAL_H

#include <pthread.h>

#include "daemon/base/list.h"
#include "daemon/model/kv.h"

#define KV_BUCKETS 4096u

struct kv_block {
	struct pool_run run;
	void *address;
	unsigned refs;            /* sequences that use it, or copy from it */

	/* In the tree; root NULL: not, it belongs to one sequence. */
	struct kv_root *root;
	struct kv_block *parent;  /* the tokens before it; NULL: none, these are the first */
	struct list siblings;     /* in the parent's children, or the root's */
	struct list children;
	struct list bucket;
	struct list lru;          /* linked: computed, unused, and nothing follows it */
	uint64_t used_ns;         /* when its last user left */
	bool computed;            /* false: its one user is at it */
	uint32_t hash;
	uint32_t n_tokens;        /* fewer than a block holds: a tail, which can only be copied from */
	uint32_t token[];
};

struct kv {
	struct pool *pool;
	struct kern_kv_layout layout;
	size_t block_bytes;
	pthread_mutex_t lock;     /* of all below and of all blocks: others evict from other threads */
	struct list buckets[KV_BUCKETS]; /* whole blocks of the tree, by hash */
	struct list roots[KV_BUCKETS]; /* by hash of their keys */
	uint32_t n_roots;
	struct list lru;          /* least recently used first */
	struct kv_stats stats;
};

/* kv.c, with the lock */
void kv_take(struct kv *kv, struct kv_block *block);          /* one more reference */
void kv_release(struct kv *kv, struct kv_block *block);       /* one fewer: keeps it, or gives its memory back */
int kv_make_room(struct kv_seq *seq, uint32_t n);             /* in the sequence's arrays; needs no lock */

/* prefix.c, with the lock */
void prefix_remove(struct kv *kv, struct kv_block *block);    /* out of the tree; its parent may become evictable */
void prefix_close(struct kv *kv, struct kv_root *root);       /* the sequence's reference to it */

#endif
