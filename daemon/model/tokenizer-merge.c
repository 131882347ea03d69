/* SPDX-License-Identifier: MIT */
/*
 * Byte-pair merges
 *
 * A piece starts as a list of its bytes' tokens. Again and again the neighbours whose merge is the best of all, and of
 * equal ones the leftmost, become one. A heap of candidates finds it: rank and place in one number, so that the order is
 * that of the numbers. Candidates are not taken out when one of their parts is merged elsewhere; they are recognised as
 * stale when they come up. A piece of n bytes costs O(n log n), a megabyte of one letter as well.
 *
 * Bytes without a token are left out and their neighbours meet, as in Hugging Face's BPE.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "daemon/model/tokenizer-private.h"

#define NONE UINT32_MAX

static uint32_t hash_pair(uint32_t left, uint32_t right)
{
	return (uint32_t)(((uint64_t)left << 32 | right) * 0x9e3779b97f4a7c15u >> 32);
}

/* The slot of a pair: its own, or the free one where it would go. */
static struct merge_slot *slot_of(const struct merge_table *table, uint32_t left, uint32_t right)
{
	uint32_t i = hash_pair(left, right) & table->mask;

	while (table->slot[i].rank != NONE && (table->slot[i].left != left || table->slot[i].right != right))
		i = (i + 1) & table->mask;
	return &table->slot[i];
}

int merge_table_init(struct merge_table *table, const struct vocab *vocab)
{
	uint32_t n = 16, i;

	while (n < 2 * vocab->n_merges)
		n *= 2;
	table->mask = n - 1;
	table->slot = malloc(n * sizeof(*table->slot));
	if (!table->slot)
		return error_origin(-ENOMEM);
	for (i = 0; i < n; ++i)
		table->slot[i].rank = NONE;
	for (i = 0; i < vocab->n_merges; ++i) {
		const struct vocab_merge *m = &vocab->merges[i];

		/* A pair that is listed twice counts with its last rank, as it does where such files are made. */
		*slot_of(table, m->left, m->right) = (struct merge_slot){ m->left, m->right, i, m->result };
	}
	return 0;
}

void merge_table_deinit(struct merge_table *table)
{
	free(table->slot);
	table->slot = NULL;
}

int token_list_push(struct token_list *list, uint32_t token)
{
	if (list->n == list->room) {
		size_t room = list->room ? 2 * list->room : 64;
		uint32_t *grown = reallocarray(list->token, room, sizeof(*grown));

		if (!grown)
			return error_origin(-ENOMEM);
		list->token = grown;
		list->room = room;
	}
	list->token[list->n++] = token;
	return 0;
}

/* ---- the heap ---- */

static void heap_push(struct merge_scratch *s, uint64_t candidate)
{
	size_t i = s->n_heap++;

	for (; i && candidate < s->heap[(i - 1) / 2]; i = (i - 1) / 2)
		s->heap[i] = s->heap[(i - 1) / 2];
	s->heap[i] = candidate;
}

static uint64_t heap_pop(struct merge_scratch *s)
{
	uint64_t least = s->heap[0], last = s->heap[--s->n_heap];
	size_t i = 0, child;

	while ((child = 2 * i + 1) < s->n_heap) {
		if (child + 1 < s->n_heap && s->heap[child + 1] < s->heap[child])
			++child;
		if (last <= s->heap[child])
			break;
		s->heap[i] = s->heap[child];
		i = child;
	}
	s->heap[i] = last;
	return least;
}

/* ---- one piece ---- */

/* Symbols for @bytes; at most one candidate for each pair at the start and two for each merge. */
static int scratch_reserve(struct merge_scratch *s, size_t bytes)
{
	size_t room = bytes < 256 ? 256 : bytes;

	if (room <= s->room)
		return 0;
	merge_scratch_deinit(s);
	s->symbol = malloc(room * sizeof(*s->symbol));
	s->heap = malloc(3 * room * sizeof(*s->heap));
	if (!s->symbol || !s->heap)
		return error_origin(-ENOMEM);
	s->room = room;
	return 0;
}

void merge_scratch_deinit(struct merge_scratch *scratch)
{
	free(scratch->symbol);
	free(scratch->heap);
	*scratch = (struct merge_scratch){ 0 };
}

static const struct merge_slot *merge_of(const struct merge_table *table, const struct merge_scratch *s, uint32_t at)
{
	const struct merge_symbol *left = &s->symbol[at];

	return left->next == NONE ? NULL : slot_of(table, left->token, s->symbol[left->next].token);
}

static void propose(const struct merge_table *table, struct merge_scratch *s, uint32_t at)
{
	const struct merge_slot *slot = at == NONE ? NULL : merge_of(table, s, at);

	if (slot && slot->rank != NONE)
		heap_push(s, (uint64_t)slot->rank << 32 | at);
}

/* The symbol at @at takes over the one after it. */
static void merge(const struct merge_table *table, struct merge_scratch *s, uint32_t at, uint32_t result)
{
	struct merge_symbol *left = &s->symbol[at], *right = &s->symbol[left->next];

	left->token = result;
	left->next = right->next;
	right->token = NONE; /* gone: candidates at its place are stale */
	right->next = NONE;
	if (left->next != NONE)
		s->symbol[left->next].previous = at;
	propose(table, s, left->previous);
	propose(table, s, at);
}

static uint32_t start_symbols(const struct vocab *vocab, struct merge_scratch *s, const char *piece, size_t bytes)
{
	uint32_t n = 0;
	size_t i;

	for (i = 0; i < bytes; ++i) {
		int32_t token = vocab->byte_token[(uint8_t)piece[i]];

		if (token < 0)
			continue;
		s->symbol[n] = (struct merge_symbol){ (uint32_t)token, n + 1, n ? n - 1 : NONE };
		++n;
	}
	if (n)
		s->symbol[n - 1].next = NONE;
	return n;
}

/**
 * merge_piece() - tokens of one piece of the pre-split
 * @table:      merges by pair
 * @vocab:      tokens of single bytes
 * @scratch:    memory, grown as needed
 * @piece:      bytes
 * @bytes:      how many, below 2^32
 * @out:        gets the tokens appended
 */
int merge_piece(const struct merge_table *table, const struct vocab *vocab, struct merge_scratch *scratch,
		const char *piece, size_t bytes, struct token_list *out)
{
	uint32_t n, i;
	int r;

	assert(bytes < UINT32_MAX);
	r = scratch_reserve(scratch, bytes);
	if (r)
		return error_trace(r);
	n = start_symbols(vocab, scratch, piece, bytes);
	scratch->n_heap = 0;
	for (i = 0; i + 1 < n; ++i)
		propose(table, scratch, i);
	while (scratch->n_heap) {
		uint64_t candidate = heap_pop(scratch);
		uint32_t at = (uint32_t)candidate;
		const struct merge_slot *slot = merge_of(table, scratch, at);

		if (slot && slot->rank == candidate >> 32)
			merge(table, scratch, at, slot->result);
	}
	for (i = 0; n && i != NONE; i = scratch->symbol[i].next) {
		r = token_list_push(out, scratch->symbol[i].token);
		if (r)
			return error_trace(r);
	}
	return 0;
}
