/* SPDX-License-Identifier: MIT */
/* What the tests of the kernels share: random data, weights in every format, steps of many sequences. See fixture.c. */
#ifndef LORAD_TESTS_KERNELS_FIXTURE_H
#define LORAD_TESTS_KERNELS_FIXTURE_H

#include "kernels/kernels.h"

/* Exactly so many bytes, 64-byte aligned, so that AddressSanitizer sees the first byte too far. Never NULL. */
void *fixture_bytes(size_t bytes);
float *fixture_floats(size_t n, float size);            /* uniform in [-size, size], never the same twice in a row */
uint32_t fixture_random(uint32_t below);
void fixture_seed(uint64_t seed);

/* A stored matrix of random numbers about as large as a model's. */
struct kern_matrix fixture_matrix(enum kern_dtype dtype, uint32_t rows, uint32_t cols, uint32_t permuted_head);
void fixture_free_matrix(struct kern_matrix *m);

/* Plans and packs a weight, in n_parts parts. */
struct kern_weight fixture_weight(const struct kern_backend *b, const struct kern_matrix *m, enum kern_precision precision,
				  unsigned n_parts);
void fixture_free_weight(struct kern_weight *w);

/* Runs all parts of an op, last one first: their order must not matter. */
void fixture_run(kern_op *op, const void *args, unsigned n_parts);

/* Every backend this machine has but the reference; NULL after the last. */
const struct kern_backend *fixture_backend(unsigned i);

/* max |a - b| <= tolerance * max(1, max |b|) */
void fixture_close(const float *a, const float *b, size_t n, float tolerance, const char *what);
void fixture_equal(const void *a, const void *b, size_t bytes, const char *what); /* bit for bit */

#endif
