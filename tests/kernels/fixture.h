/* SPDX-License-Identifier: MIT */
/*
 * What the tests of the kernels share: the backends under test, memory that they can use, random data, weights in every
 * format, steps of many sequences. See fixture.c.
 *
 * The tests are linked several times: with fixture-cpu.c, with fixture-isasim.c (both on fixture-host.c), and with
 * fixture-cuda.c. All that an op reads or writes through a pointer has to be memory from here, which both the test and the
 * backend can use.
 */
#ifndef LORAD_TESTS_KERNELS_FIXTURE_H
#define LORAD_TESTS_KERNELS_FIXTURE_H

#include "kernels/kernels.h"

/* ---- fixture-cpu.c, fixture-isasim.c or fixture-cuda.c ---- */

void fixture_set_up(void); /* before and after each test, in its process */
void fixture_tear_down(void);

/* Every backend to be tested here; NULL after the last. A CPU's are all it has, the reference (by itself) last. */
const struct kern_backend *fixture_backend(unsigned i);
struct kern_device *fixture_device(const struct kern_backend *b); /* NULL: it needs none */

void *fixture_allocate(size_t bytes); /* exactly so many, 64-byte aligned */
void fixture_free(const void *p);

/* ---- memory and data ---- */

/* Exactly so many bytes, so that AddressSanitizer sees the first byte too far. Never NULL. */
void *fixture_bytes(size_t bytes);
void *fixture_copy(const void *from, size_t bytes);
float *fixture_floats(size_t n, float size);            /* uniform in [-size, size], never the same twice in a row */
uint32_t fixture_random(uint32_t below);
void fixture_seed(uint64_t seed);

/* A stored matrix of random numbers about as large as a model's. */
struct kern_matrix fixture_matrix(enum kern_dtype dtype, uint32_t rows, uint32_t cols, uint32_t permuted_head);
void fixture_fill_codes(struct kern_matrix *m, uint8_t byte); /* all of its bytes but the f16 scales and minimums */
void fixture_free_matrix(struct kern_matrix *m);

/* Plans and packs a weight, in n_parts parts. */
struct kern_weight fixture_weight(const struct kern_backend *b, const struct kern_matrix *m, enum kern_precision precision,
				  unsigned n_parts);
void fixture_free_weight(struct kern_weight *w);

/* ---- ops ---- */

/*
 * Ways to run an op, numbered from 0: the first is the plain one, the others are the same in other parts, or, where the
 * backend does its own splitting, as in a recorded step, whose extent is larger than the step.
 */
unsigned fixture_ways(const struct kern_backend *b);

/* Runs all parts of an op, last one first: their order must not matter. Of a queued backend: until it is done. */
void fixture_run(const struct kern_backend *b, kern_op *op, const void *args, unsigned way);

struct fixture_step {
	struct kern_step *step;
	struct kern_extent extent;
};

/*
 * A step as a backend wants it: copies of token, position, seq and segment (what is NULL stays so), and all that
 * follows from them. What else it points to is the caller's. Positions follow from the sequences, if there are any;
 * max_rank of the extent is left to the caller.
 */
struct fixture_step fixture_step(const struct kern_step *step, unsigned way);
void fixture_free_step(struct fixture_step *s);

/* The precision in which the reference makes the same products. */
enum kern_precision fixture_truth(const struct kern_backend *b, enum kern_precision precision);

/* ---- comparisons ---- */

/* max |a - b| <= tolerance * max(1, max |b|) */
void fixture_close(const float *a, const float *b, size_t n, float tolerance, const char *what);
void fixture_equal(const void *a, const void *b, size_t bytes, const char *what); /* bit for bit */

#endif
