/* SPDX-License-Identifier: MIT */
/* The tokenizer's parts, in the order a text passes them: added tokens, pre-split, merges. Private to tokenizer-*.c. */
#ifndef LORAD_MODEL_TOKENIZER_PRIVATE_H
#define LORAD_MODEL_TOKENIZER_PRIVATE_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "daemon/format/vocab.h"
#include "daemon/model/tokenizer.h"

/* ---- added tokens: tokenizer-added.c ---- */

struct trie_node {
	uint32_t child, sibling; /* 0: none */
	int32_t added;           /* index of the added token that ends here, or -1 */
	uint8_t byte;
};

struct trie {
	struct trie_node *nodes; /* node 0 is no node */
	uint32_t n_nodes;
	uint32_t root[256];      /* by first byte */
};

struct added_match {
	size_t begin, end;       /* of the text */
	int32_t added;           /* index, or -1: there is no match up to the end */
};

int trie_init(struct trie *trie, const struct vocab *vocab, bool normalized);
void trie_deinit(struct trie *trie);
void trie_find(const struct trie *trie, const char *text, size_t bytes, size_t from, struct added_match *ret);

/* ---- merges: tokenizer-merge.c ---- */

struct merge_slot {
	uint32_t left, right, rank, result; /* rank: UINT32_MAX where the slot is free */
};

struct merge_table {
	struct merge_slot *slot;
	uint32_t mask;
};

struct token_list {
	uint32_t *token;
	size_t n, room;
};

struct merge_symbol {
	uint32_t token, next, previous; /* UINT32_MAX: none */
};

struct merge_scratch { /* reused from piece to piece */
	struct merge_symbol *symbol;
	uint64_t *heap;         /* rank << 32 | symbol, the least first */
	size_t room, n_heap;
};

int merge_table_init(struct merge_table *table, const struct vocab *vocab);
void merge_table_deinit(struct merge_table *table);
int token_list_push(struct token_list *list, uint32_t token);
int merge_piece(const struct merge_table *table, const struct vocab *vocab, struct merge_scratch *scratch,
		const char *piece, size_t bytes, struct token_list *out);
void merge_scratch_deinit(struct merge_scratch *scratch);

/* ---- characters: detokenizer.c ---- */

int utf8_step(const uint8_t *p, size_t n);

#endif
