/* SPDX-License-Identifier: MIT */
/*
 * Added tokens: found in the text before all else
 *
 * A trie over their texts. From each place of the text the longest token that starts there counts, the leftmost place
 * first, so a walk looks at a few bytes per place, however many tokens there are.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "daemon/model/tokenizer-private.h"

/* The link that holds (or will hold) the child for this byte. */
static uint32_t *find_link(struct trie *trie, uint32_t *first, uint8_t byte)
{
	while (*first && trie->nodes[*first].byte != byte)
		first = &trie->nodes[*first].sibling;
	return first;
}

static void insert(struct trie *trie, const struct vocab_added *added, int32_t index)
{
	uint32_t *link = &trie->root[(uint8_t)added->text[0]], i;

	for (i = 0; i < added->n; ++i) {
		if (i)
			link = find_link(trie, &trie->nodes[*link].child, (uint8_t)added->text[i]);
		if (!*link) {
			trie->nodes[trie->n_nodes] = (struct trie_node){ .byte = (uint8_t)added->text[i], .added = -1 };
			*link = trie->n_nodes++;
		}
	}
	trie->nodes[*link].added = index;
}

/**
 * trie_init() - the added tokens of one kind
 * @trie:       the trie
 * @vocab:      its added tokens, whose texts are not empty
 * @normalized: take those with this mark
 */
int trie_init(struct trie *trie, const struct vocab *vocab, bool normalized)
{
	size_t bytes = 1;
	uint32_t i;

	for (i = 0; i < vocab->n_added; ++i)
		bytes += vocab->added[i].n;
	*trie = (struct trie){ .n_nodes = 1 };
	trie->nodes = calloc(bytes, sizeof(*trie->nodes));
	if (!trie->nodes)
		return error_origin(-ENOMEM);
	for (i = 0; i < vocab->n_added; ++i)
		if (vocab->added[i].normalized == normalized)
			insert(trie, &vocab->added[i], (int32_t)i);
	assert(trie->n_nodes <= bytes);
	return 0;
}

void trie_deinit(struct trie *trie)
{
	free(trie->nodes);
	*trie = (struct trie){ 0 };
}

/* The longest token that starts at text[0], or -1. */
static int32_t longest(const struct trie *trie, const char *text, size_t bytes, size_t *ret_length)
{
	uint32_t node = trie->root[(uint8_t)text[0]];
	int32_t best = -1;
	size_t i;

	for (i = 1; node; ++i) {
		if (trie->nodes[node].added >= 0) {
			best = trie->nodes[node].added;
			*ret_length = i;
		}
		if (i == bytes)
			break;
		node = trie->nodes[node].child;
		while (node && trie->nodes[node].byte != (uint8_t)text[i])
			node = trie->nodes[node].sibling;
	}
	return best;
}

/** trie_find() - the leftmost token at or after @from, and of those that start there the longest */
void trie_find(const struct trie *trie, const char *text, size_t bytes, size_t from, struct added_match *ret)
{
	size_t length = 0;

	*ret = (struct added_match){ .begin = bytes, .end = bytes, .added = -1 };
	for (; from < bytes; ++from) {
		if (!trie->root[(uint8_t)text[from]])
			continue;
		ret->added = longest(trie, text + from, bytes - from, &length);
		if (ret->added < 0)
			continue;
		ret->begin = from;
		ret->end = from + length;
		return;
	}
}
