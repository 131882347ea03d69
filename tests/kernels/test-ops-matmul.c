/* SPDX-License-Identifier: MIT */
/* Products with weights of every format and precision, and what goes with them: activate, embed. See test-ops.c. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "kernels/host.h"
#include "kernels/quant.h"
#include "tests/kernels/fixture.h"
#include "tests/kernels/ops.h"

#define BATCH 33
#define MANY 70 /* more than a GPU multiplies with packed weights */

static const char *const precision_names[] = { "f32", "bf16", "int8" };

struct product {
	const struct kern_backend *b;
	const struct kern_weight *w;
	const float *x;  /* [n][cols] */
	uint32_t n;
	bool exact;      /* bits do not follow the number of rows */
	char name[100];
};

/* Inputs of which two rows in three have outliers, some few and some many. */
static float *inputs(uint32_t n, uint32_t cols)
{
	float *x = fixture_floats((size_t)n * cols, 2);

	for (uint32_t i = 0; i < n; i++)
		for (uint32_t j = i * 7 % 40; i % 3 && j < cols; j += i % 3 == 1 ? 250 : 40)
			x[(size_t)i * cols + j] *= 60;
	return x;
}

/* y = x W^T, on top of y if it is to accumulate */
static void multiply(const struct product *p, bool accumulate, unsigned way, float *y)
{
	size_t row_bytes = p->b->device->activation_bytes(p->w->activation, p->w->cols);
	void *activated = fixture_bytes(p->n * row_bytes);
	float *x = fixture_copy(p->x, (size_t)p->n * p->w->cols * sizeof *x); /* its first row is aligned */
	struct kern_activate activate = { x, p->n, p->w->cols, p->w->activation, activated };
	struct kern_matmul matmul = { p->w, x, activated, p->n, accumulate, y };

	fixture_run(p->b, p->b->ops->activate, &activate, way);
	fixture_run(p->b, p->b->ops->matmul, &matmul, way);
	fixture_free(activated);
	fixture_free(x);
}

/*
 * Against the reference's numbers: 1536 products added in another order differ so much, more of them as a walk at random
 * does. Tensor cores cut off what they add.
 */
static void check_close(const struct product *p, const float *y, const float *expected, size_t n)
{
	float longer = p->w->cols > 1536 ? sqrtf((float)p->w->cols / 1536) : 1;

	fixture_close(y, expected, n, (p->b->queued ? 2e-5f : 5e-6f) * longer, p->name);
}

/* Against numbers that the backend made in another way. */
static void check_same(const struct product *p, const float *y, const float *expected, size_t n)
{
	if (p->exact)
		fixture_equal(y, expected, n * sizeof *y, p->name);
	else
		check_close(p, y, expected, n);
}

/* Rows alone, in twos, in reverse: the bits of the batch. */
static void check_rows_alone(const struct product *p, const float *batch)
{
	uint32_t cols = p->w->cols, rows = p->w->rows;
	float *reversed = fixture_bytes((size_t)p->n * cols * 4), *y = fixture_bytes((size_t)p->n * rows * 4);
	struct product other = *p;

	for (uint32_t i = 0; i < p->n; i++) {
		other.x = p->x + (size_t)i * cols;
		other.n = p->n - i < 1 + i % 5 ? 1 : 1 + i % 5;
		multiply(&other, false, i % fixture_ways(p->b), y);
		check_same(p, y, batch + (size_t)i * rows, (size_t)other.n * rows);
		memcpy(reversed + (size_t)i * cols, p->x + (size_t)(p->n - 1 - i) * cols, (size_t)cols * 4);
	}
	other.x = reversed;
	other.n = p->n;
	multiply(&other, false, fixture_ways(p->b) - 1, y);
	for (uint32_t i = 0; i < p->n; i++)
		check_same(p, y + (size_t)i * rows, batch + (size_t)(p->n - 1 - i) * rows, rows);
	fixture_free(reversed);
	fixture_free(y);
}

/* The batch on top of numbers. */
static void check_accumulate(const struct product *p, const float *batch)
{
	size_t n = (size_t)p->n * p->w->rows;
	float *y = fixture_floats(n, 1), *expected = fixture_bytes(n * 4);

	for (size_t i = 0; i < n; i++)
		expected[i] = y[i] + batch[i];
	multiply(p, true, 1, y);
	check_same(p, y, expected, n);
	fixture_free(y);
	fixture_free(expected);
}

/* Many rows, the batch's rows first. */
static void check_many(const struct product *p, const struct kern_weight *truth, const float *batch)
{
	uint32_t cols = p->w->cols, rows = p->w->rows;
	float *x = inputs(MANY, cols);
	float *y = fixture_bytes((size_t)MANY * rows * 4), *expected = fixture_bytes((size_t)MANY * rows * 4);
	struct product mine = *p, ref = { &kern_ref, truth, x, MANY };

	memcpy(x, p->x, (size_t)p->n * cols * 4);
	mine.x = x;
	mine.n = MANY;
	mine.exact = p->b->exact_rows;
	multiply(&ref, false, 0, expected);
	multiply(&mine, false, 0, y);
	check_close(&mine, y, expected, (size_t)MANY * rows);
	check_same(&mine, y, batch, (size_t)p->n * rows);
	fixture_free(x), fixture_free(y), fixture_free(expected);
}

static void check_embed(const struct product *p, const struct kern_weight *truth)
{
	uint32_t token[] = { 0, p->w->rows - 1, p->w->rows / 2, 0, p->w->rows / 3 };
	size_t bytes = (size_t)5 * p->w->cols * 4;
	float *a = fixture_bytes(bytes), *b = fixture_bytes(bytes);
	struct fixture_step s = fixture_step(&(struct kern_step){ .n_rows = 5, .token = token }, 1);
	struct kern_embed mine = { p->w, s.step, a, &s.extent }, ref = { truth, s.step, b, &s.extent };

	fixture_run(p->b, p->b->ops->embed, &mine, 1);
	fixture_run(&kern_ref, kern_ref.ops->embed, &ref, 0);
	fixture_equal(a, b, bytes, p->name);
	fixture_free(a), fixture_free(b);
	fixture_free_step(&s);
}

/* A GPU refuses what it has no kernels for, and says so in its own way: the loader names the type. */
static bool is_refused(const struct kern_backend *b, enum kern_dtype dtype)
{
	const uint8_t data[256] = { 0 };
	const struct kern_matrix m = { dtype, 1, 256, 0, data };
	struct kern_weight w;
	bool expected = b->queued && dtype > KERN_Q4_1;

	ck_assert_int_eq(b->device->weight_plan(fixture_device(b), &m, KERN_PRECISION_INT8, &w), expected ? -ENOTSUP : 0);
	return expected;
}

static void check_matmul(const struct kern_backend *b, const struct kern_matrix *m, enum kern_precision precision,
			 uint8_t without)
{
	struct kern_weight w = fixture_weight(b, m, precision, 3);
	struct kern_weight truth = fixture_weight(&kern_ref, m, fixture_truth(b, precision), 1);
	size_t n = (size_t)BATCH * m->rows;
	float *x = inputs(BATCH, m->cols);
	float *y = fixture_bytes(n * 4), *first = fixture_bytes(n * 4), *expected = fixture_bytes(n * 4);
	struct product mine = { b, &w, x, BATCH }, ref = { &kern_ref, &truth, x, BATCH };

	/* packed weights: a kernel of our own */
	mine.exact = b->exact_rows || (precision == KERN_PRECISION_INT8 && quant_is_blocks(m->dtype));
	snprintf(mine.name, sizeof mine.name, "matmul %s %s in %s, %u x %u", b->name, kern_dtype_name(m->dtype),
		 precision_names[precision], m->rows, m->cols);
	w.layout &= (uint8_t)~without;
	multiply(&ref, false, 0, expected);
	multiply(&mine, false, 0, first);
	check_close(&mine, first, expected, n);
	for (unsigned way = 1; way < fixture_ways(b); way++) {
		multiply(&mine, false, way, y);
		check_same(&mine, y, first, n);
	}
	check_rows_alone(&mine, first);
	check_accumulate(&mine, first);
	check_many(&mine, &truth, first);
	check_embed(&mine, &truth);
	fixture_free(x), fixture_free(y), fixture_free(first), fixture_free(expected);
	fixture_free_weight(&w);
	fixture_free_weight(&truth);
}

START_TEST(matmul)
{
	static const struct { uint32_t rows, cols, permuted_head; } shapes[] = {
		{ 1, 32, 0 },   { 7, 64, 0 },    { 16, 32, 0 },   { 33, 96, 0 }, { 64, 576, 0 }, { 192, 64, 64 },
		{ 50, 192, 0 }, { 50, 1536, 0 }, { 128, 64, 16 }, { 17, 33, 0 }, { 5, 1, 0 },    { 18, 575, 0 },
		{ 32, 256, 16 }, { 33, 512, 0 },
		{ 3, 16416, 0 }, /* more blocks than what a strip knows of its outliers at a time */
	};
	enum kern_dtype dtype = (enum kern_dtype)_i;
	const struct kern_backend *b;

	for (unsigned k = 0; (b = fixture_backend(k)); k++)
		for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
			if (!kern_row_bytes(dtype, shapes[s].cols) || is_refused(b, dtype) ||
			    (b == &kern_ref && shapes[s].cols > 256))
				continue;
			struct kern_matrix m = fixture_matrix(dtype, shapes[s].rows, shapes[s].cols,
							      shapes[s].permuted_head);
			for (unsigned p = 0; p < _KERN_PRECISION_N; p++)
				check_matmul(b, &m, (enum kern_precision)p, 0);
			if (b != &kern_ref && !b->queued) /* a machine with tiles would never show the way without */
				check_matmul(b, &m, KERN_PRECISION_BF16, HOST_LAYOUT_AMX);
			fixture_free_matrix(&m);
		}
}
END_TEST

/* 20 rows of weights whose codes are all the same. */
static void check_extreme(const struct kern_backend *b, enum kern_dtype dtype, uint8_t byte)
{
	struct kern_matrix m = fixture_matrix(dtype, 20, 256, 0);
	float x[3 * 256];

	fixture_fill_codes(&m, byte);
	for (unsigned i = 0; i < 3 * 256; i++)
		x[i] = i / 256 == 0 ? 1 : i / 256 == 1 ? -1 : (float)((int)(i % 2) * 2 - 1);
	struct kern_weight w = fixture_weight(b, &m, KERN_PRECISION_INT8, 1);
	struct kern_weight truth = fixture_weight(&kern_ref, &m, fixture_truth(b, KERN_PRECISION_INT8), 1);
	struct product mine = { b, &w, x, 3, .name = "extremes" }, ref = { &kern_ref, &truth, x, 3 };
	float *y = fixture_bytes(sizeof *y * 3 * 20), *expected = fixture_bytes(sizeof *y * 3 * 20);
	multiply(&mine, false, 0, y);
	multiply(&ref, false, 0, expected);
	check_close(&mine, y, expected, 60);
	fixture_free(y), fixture_free(expected);
	fixture_free_weight(&w);
	fixture_free_weight(&truth);
	fixture_free_matrix(&m);
}

/* The largest codes and activations there are: integer sums that overflow or saturate would show here. */
START_TEST(matmul_extremes)
{
	static const uint8_t bytes[] = { 0x00, 0x7f, 0x80, 0xff };
	const struct kern_backend *b;

	for (unsigned k = 0; (b = fixture_backend(k)); k++)
		for (unsigned dtype = KERN_Q8_0; dtype < _KERN_DTYPE_N; dtype++)
			for (unsigned i = 0; i < 4 && !is_refused(b, (enum kern_dtype)dtype); i++)
				check_extreme(b, (enum kern_dtype)dtype, bytes[i]);
}
END_TEST

/* llama.cpp's order of a head's rows: 0, e/2, 1, e/2 + 1, ... */
START_TEST(permuted_rows)
{
	static const float data[8] = { 0, 2, 1, 3, 10, 12, 11, 13 }, expected[8] = { 0, 1, 2, 3, 10, 11, 12, 13 };
	const struct kern_backend *b;

	for (unsigned k = 0; (b = fixture_backend(k)); k++) {
		struct kern_matrix m = { KERN_F32, 8, 1, 4, data };
		struct kern_weight w = fixture_weight(b, &m, KERN_PRECISION_F32, 1);
		const float x = 1;
		struct product p = { b, &w, &x, 1 };
		float *y = fixture_bytes(sizeof expected);
		multiply(&p, false, 0, y);
		fixture_equal(y, expected, sizeof expected, b->name);
		fixture_free(y);
		fixture_free_weight(&w);
	}
}
END_TEST

/* Outputs [first, first + n) of MANY rows, against the reference with these rows of the matrix. */
static void check_outputs(const struct product *p, const struct kern_matrix *m, const float *y, uint32_t first,
			  uint32_t n)
{
	const uint8_t *data = (const uint8_t *)m->data + first * kern_row_bytes(m->dtype, m->cols);
	struct kern_matrix part = { m->dtype, n, m->cols, 0, data };
	struct kern_weight truth = fixture_weight(&kern_ref, &part, KERN_PRECISION_BF16, 1);
	struct product ref = { &kern_ref, &truth, p->x, MANY };
	float *expected = fixture_bytes((size_t)MANY * n * 4);

	multiply(&ref, false, 0, expected);
	for (uint32_t i = 0; i < MANY; i++)
		check_close(p, y + (size_t)i * m->rows + first, expected + (size_t)i * n, n);
	fixture_free(expected);
	fixture_free_weight(&truth);
}

/* More weights than a GPU decodes at once for many rows: 64 MiB of bf16, which end at row 8192 here. */
START_TEST(many_weights)
{
	const struct kern_backend *b;

	for (unsigned k = 0; (b = fixture_backend(k)); k++) {
		if (!b->queued)
			continue;
		struct kern_matrix m = fixture_matrix(KERN_Q4_0, 8200, 4096, 0);
		struct kern_weight w = fixture_weight(b, &m, KERN_PRECISION_INT8, 5);
		float *x = fixture_floats((size_t)MANY * m.cols, 2), *y = fixture_bytes((size_t)MANY * m.rows * 4);
		struct product p = { b, &w, x, MANY, .name = "matmul of many weights" };
		multiply(&p, false, 0, y);
		check_outputs(&p, &m, y, 0, 24);
		check_outputs(&p, &m, y, m.rows - 24, 24);
		fixture_free(x), fixture_free(y);
		fixture_free_weight(&w);
		fixture_free_matrix(&m);
	}
}
END_TEST

START_TEST(plan_refuses)
{
	float data[6] = { 0 };
	const struct kern_matrix wrong[] = {
		{ KERN_Q4_0, 2, 33, 0, data }, /* broken blocks */
		{ KERN_Q6_K, 2, 288, 0, data },
		{ KERN_F32, 6, 1, 3, data },   /* heads of odd size */
		{ KERN_F32, 6, 1, 4, data },   /* part of a head */
		{ KERN_F32, 0, 1, 0, data },
	};
	const struct kern_backend *b;
	struct kern_weight w;

	for (unsigned k = 0; (b = fixture_backend(k)); k++)
		for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
			for (enum kern_precision p = 0; p < _KERN_PRECISION_N; p++)
				if (b->device->weight_plan(fixture_device(b), &wrong[i], p, &w) >= 0)
					ck_abort_msg("%s takes matrix %zu", b->name, i);
}
END_TEST

void matmul_tests(TCase *tc)
{
	tcase_add_loop_test(tc, matmul, 0, _KERN_DTYPE_N);
	tcase_add_test(tc, matmul_extremes);
	tcase_add_test(tc, many_weights);
	tcase_add_test(tc, permuted_rows);
	tcase_add_test(tc, plan_refuses);
}
