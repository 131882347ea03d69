/* SPDX-License-Identifier: MIT */
/* See fixture.h. A failed comparison names what was compared, where, and both numbers. */
#include "tests/kernels/fixture.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/quant.h"

static uint64_t state = 1;

void fixture_seed(uint64_t seed)
{
	state = seed * 0x9e3779b97f4a7c15u + 1;
}

uint32_t fixture_random(uint32_t below)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (uint32_t)(state >> 32) % below;
}

void *fixture_bytes(size_t bytes)
{
	void *p = NULL;

	ck_assert_int_eq(posix_memalign(&p, 64, bytes ? bytes : 1), 0);
	memset(p, 0xff, bytes); /* as floats: NaN, so what should not be read shows */
	return p;
}

float *fixture_floats(size_t n, float size)
{
	float *x = fixture_bytes(n * sizeof *x);

	for (size_t i = 0; i < n; i++)
		x[i] = ((float)fixture_random(1u << 24) / (1u << 23) - 1) * size;
	return x;
}

static uint16_t half_bits(float x) /* of a normal f16 number, cut off */
{
	uint32_t bits = quant_bits(x);

	return (uint16_t)((bits >> 16 & 0x8000) | (((bits & 0x7fffffff) - 0x38000000) >> 13));
}

/* Bytes of any pattern are codes; scales and single numbers must be numbers. */
struct kern_matrix fixture_matrix(enum kern_dtype dtype, uint32_t rows, uint32_t cols, uint32_t permuted_head)
{
	size_t row_bytes = kern_row_bytes(dtype, cols), bytes = rows * row_bytes;
	uint8_t *data = fixture_bytes(bytes + 1), *p = data + 1; /* a file's tensors start anywhere */
	size_t block = dtype == KERN_Q8_0 ? 34 : dtype == KERN_Q4_0 ? 18 : dtype == KERN_Q4_1 ? 20 : kern_dtype_bytes(dtype);

	for (size_t at = 0; at < bytes; at += block) {
		float x = 0.002f + (float)fixture_random(1000) * 1e-5f;
		float number = x * (fixture_random(2) ? 10 : -10);
		uint16_t h = half_bits(x), low = half_bits(-8 * x), f16 = half_bits(number), bf16 = quant_to_bf16(number);
		for (size_t i = 0; i < block; i++)
			p[at + i] = (uint8_t)fixture_random(256);
		if (dtype == KERN_F32)
			memcpy(p + at, &number, 4);
		else if (dtype == KERN_F16 || dtype == KERN_BF16)
			memcpy(p + at, dtype == KERN_F16 ? &f16 : &bf16, 2);
		else
			memcpy(p + at, &h, 2);
		if (dtype == KERN_Q4_1)
			memcpy(p + at + 2, &low, 2);
	}
	return (struct kern_matrix){ dtype, rows, cols, permuted_head, p };
}

void fixture_free_matrix(struct kern_matrix *m)
{
	free((void *)((uintptr_t)m->data - 1));
	m->data = NULL;
}

struct kern_weight fixture_weight(const struct kern_backend *b, const struct kern_matrix *m, enum kern_precision precision,
				  unsigned n_parts)
{
	struct kern_weight w;

	ck_assert_int_eq(b->device->weight_plan(NULL, m, precision, &w), 0);
	w.data = w.bytes ? fixture_bytes(w.bytes) : (void *)(uintptr_t)m->data;
	for (uint32_t first = 0, n; w.bytes && first < w.rows; first += n) { /* n_parts: in how many goes */
		n = (w.rows / n_parts + w.grain) / w.grain * w.grain;
		n = n < w.rows - first ? n : w.rows - first;
		b->device->weight_pack(&w, m, first, n, (uint8_t *)w.data + first / w.grain * w.grain_bytes);
	}
	return w;
}

void fixture_free_weight(struct kern_weight *w)
{
	if (w->bytes)
		free(w->data);
	w->data = NULL;
}

void fixture_run(kern_op *op, const void *args, unsigned n_parts)
{
	for (unsigned part = n_parts; part-- > 0;)
		op(NULL, args, part, n_parts);
}

const struct kern_backend *fixture_backend(unsigned i)
{
	for (unsigned isa = KERN_ISA_SCALAR + 1; isa < _KERN_ISA_N; isa++)
		if (kern_cpu((enum kern_isa)isa) && i-- == 0)
			return kern_cpu((enum kern_isa)isa);
	return NULL;
}

void fixture_close(const float *a, const float *b, size_t n, float tolerance, const char *what)
{
	float most = 1;

	for (size_t i = 0; i < n; i++)
		most = fmaxf(most, fabsf(b[i]));
	for (size_t i = 0; i < n; i++)
		if (!(fabsf(a[i] - b[i]) <= tolerance * most)) /* Check logs every assertion it is shown: show failures */
			ck_abort_msg("%s: number %zu is %g, not %g (largest %g)", what, i, (double)a[i], (double)b[i],
				     (double)most);
}

void fixture_equal(const void *a, const void *b, size_t bytes, const char *what)
{
	const uint8_t *p = a, *q = b;

	for (size_t i = 0; i < bytes; i++)
		if (p[i] != q[i])
			ck_abort_msg("%s: differs at byte %zu of %zu", what, i, bytes);
}
