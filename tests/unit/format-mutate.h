/* SPDX-License-Identifier: MIT */
/*
 * Damage for parsers: every truncation of a valid input, and random bit flips. What is parsed lies at the very end of a
 * heap block of just its size, so that AddressSanitizer sees a read of one byte too many.
 */
#ifndef TESTS_FORMAT_MUTATE_H
#define TESTS_FORMAT_MUTATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef bool mutate_fn(const void *bytes, size_t n, void *userdata); /* parses; true: accepted */

static inline bool mutate_try(mutate_fn *parse, const void *bytes, size_t n, void *userdata)
{
	void *copy = malloc(n ? n : 1); /* malloc's alignment is what mapped files have */
	bool accepted;

	memcpy(copy, bytes, n);
	accepted = parse(copy, n, userdata);
	free(copy);
	return accepted;
}

/* Returns how many truncations were accepted. */
static inline unsigned mutate_truncate(mutate_fn *parse, const void *bytes, size_t n, void *userdata)
{
	unsigned accepted = 0;
	size_t i;

	for (i = 0; i < n; ++i)
		accepted += mutate_try(parse, bytes, i, userdata);
	return accepted;
}

/* One to four flipped bits, `rounds` times; returns how many were accepted. The same sequence every time. */
static inline unsigned mutate_flip(mutate_fn *parse, const void *bytes, size_t n, unsigned rounds, void *userdata)
{
	uint8_t *copy = malloc(n);
	uint64_t random = 88172645463325252u; /* xorshift64 */
	unsigned accepted = 0, i, k;

	for (i = 0; i < rounds; ++i) {
		memcpy(copy, bytes, n);
		for (k = 0; k <= i % 4; ++k) {
			random ^= random << 13;
			random ^= random >> 7;
			random ^= random << 17;
			copy[random % n] ^= (uint8_t)(1u << (random >> 61));
		}
		accepted += mutate_try(parse, copy, n, userdata);
	}
	free(copy);
	return accepted;
}

#endif
