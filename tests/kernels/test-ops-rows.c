/* SPDX-License-Identifier: MIT */
/* Ops that take a row at a time: rms_norm, swiglu, rope. See test-ops.c. */
#include <math.h>
#include <string.h>

#include "tests/kernels/fixture.h"
#include "tests/kernels/ops.h"

static void check_rms_norm(const struct kern_backend *b, uint32_t d)
{
	static const uint32_t chosen_row[3] = { 4, 0, 4 };
	size_t n = (size_t)5 * d;
	float *x = fixture_floats(n, 3), *gain = fixture_floats(d, 2);
	float *y = fixture_bytes(n * 4), *expected = fixture_bytes(n * 4), *some = fixture_bytes((size_t)3 * d * 4);
	uint32_t *row = fixture_copy(chosen_row, sizeof chosen_row);
	struct kern_rms_norm mine = { x, gain, NULL, 5, d, 1e-5f, y }, ref = mine;

	ref.y = expected;
	fixture_run(&kern_ref, kern_ref.ops->rms_norm, &ref, 0);
	for (unsigned way = 0; way < fixture_ways(b); way++) {
		fixture_run(b, b->ops->rms_norm, &mine, way);
		fixture_close(y, expected, n, 2e-6f, "rms_norm");
	}
	struct kern_rms_norm chosen = { x, gain, row, 3, d, 1e-5f, some };
	fixture_run(b, b->ops->rms_norm, &chosen, 1);
	for (unsigned i = 0; i < 3; i++)
		fixture_equal(some + (size_t)i * d, y + (size_t)row[i] * d, d * 4, "rms_norm of chosen rows");
	fixture_free(x), fixture_free(gain), fixture_free(row);
	fixture_free(y), fixture_free(expected), fixture_free(some);
}

START_TEST(rms_norm)
{
	static const uint32_t widths[] = { 1, 7, 16, 33, 192, 576, 577, 1536, 4100 };
	const struct kern_backend *b;

	for (unsigned k = 0; (b = fixture_backend(k)); k++)
		for (size_t s = 0; s < sizeof widths / sizeof *widths; s++)
			check_rms_norm(b, widths[s]);
}
END_TEST

static void check_swiglu(const struct kern_backend *b, uint32_t width)
{
	size_t n = (size_t)3 * width;
	float *gate = fixture_floats(n, 20), *up = fixture_floats(n, 2);
	float *y = fixture_bytes(n * 4), *expected = fixture_bytes(n * 4);
	struct kern_swiglu mine = { gate, up, 3, width, y }, ref = { gate, up, 3, width, expected };

	gate[0] = -200;
	gate[n - 1] = 200;
	fixture_run(&kern_ref, kern_ref.ops->swiglu, &ref, 0);
	for (unsigned way = 0; way < fixture_ways(b); way++) {
		fixture_run(b, b->ops->swiglu, &mine, way);
		for (size_t j = 0; j < n; j++)
			if (!(fabsf(y[j] - expected[j]) <= 1e-6f * fabsf(expected[j]) + 1e-30f))
				ck_abort_msg("swiglu %s: %g not %g", b->name, (double)y[j], (double)expected[j]);
	}
	struct kern_swiglu last = { gate + 2 * width, up + 2 * width, 1, width, expected };
	fixture_run(b, b->ops->swiglu, &last, 1);
	fixture_equal(expected, y + 2 * width, width * 4, "swiglu of a row alone");
	fixture_free(gate), fixture_free(up), fixture_free(y), fixture_free(expected);
}

START_TEST(swiglu)
{
	static const uint32_t widths[] = { 1, 15, 16, 37, 1536 };
	const struct kern_backend *b;

	for (unsigned k = 0; (b = fixture_backend(k)); k++)
		for (size_t s = 0; s < sizeof widths / sizeof *widths; s++)
			check_swiglu(b, widths[s]);
}
END_TEST

static void check_rope(const struct kern_backend *b, uint32_t e)
{
	static const uint32_t position[] = { 0, 1, 77, 8191, 131071 };
	uint32_t n = 5 * 3 * e;
	float *x = fixture_floats(n, 2), *expected = fixture_copy(x, n * 4), *y = fixture_bytes(n * 4);
	float *inv_freq = fixture_bytes(e / 2 * 4);

	for (uint32_t j = 0; j < e / 2; j++)
		inv_freq[j] = powf(10000, -2 * (float)j / (float)e);
	for (unsigned way = 0; way < fixture_ways(b); way++) {
		struct fixture_step s = fixture_step(&(struct kern_step){ .n_rows = 5, .position = position }, way);
		struct kern_rope ref = { s.step, inv_freq, 3, e, expected };
		struct kern_rope mine = { s.step, inv_freq, 3, e, y, &s.extent };
		if (way == 0)
			fixture_run(&kern_ref, kern_ref.ops->rope, &ref, 0);
		memcpy(y, x, n * 4);
		fixture_run(b, b->ops->rope, &mine, way);
		fixture_close(y, expected, n, 1e-6f, "rope");
		fixture_free_step(&s);
	}
	fixture_free(x), fixture_free(expected), fixture_free(y), fixture_free(inv_freq);
}

START_TEST(rope)
{
	static const uint32_t head_dims[] = { 2, 6, 64, 128, 640 };
	const struct kern_backend *b;

	for (unsigned k = 0; (b = fixture_backend(k)); k++)
		for (size_t s = 0; s < sizeof head_dims / sizeof *head_dims; s++)
			check_rope(b, head_dims[s]);
}
END_TEST

void row_tests(TCase *tc)
{
	tcase_add_test(tc, rms_norm);
	tcase_add_test(tc, swiglu);
	tcase_add_test(tc, rope);
}
