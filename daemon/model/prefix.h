/* SPDX-License-Identifier: MIT */
/* Prefix reuse: finding KV blocks that were computed before, and letting others find one's own. See prefix.c. */
#ifndef LORAD_MODEL_PREFIX_H
#define LORAD_MODEL_PREFIX_H

#include "daemon/model/kv.h"

int prefix_open(struct kv *kv, struct kv_seq *seq, const void *key, size_t bytes);
int prefix_match(struct kv *kv, struct kv_seq *seq, const uint32_t *token, uint32_t n_tokens, uint32_t *ret);
void prefix_copied(struct kv *kv, struct kv_seq *seq);
const void *prefix_source(const struct kv_seq *seq);
void prefix_announce(struct kv *kv, struct kv_seq *seq, const uint32_t *token, uint32_t n_tokens);
void prefix_computed(struct kv *kv, struct kv_seq *seq, const uint32_t *token, uint32_t n_computed);
void prefix_keep_tail(struct kv *kv, struct kv_seq *seq, const uint32_t *token, uint32_t n_computed);

#endif
