/* SPDX-License-Identifier: MIT */
/*
 * Adapters: lora_shrink and lora_expand over segments of unlike rank and size, row_scale. See test-ops.c.
 *
 * A GPU multiplies in f32 or, where the base does so, in bf16. The truth of the latter is the reference on inputs and
 * matrices that were rounded before.
 */
#include <string.h>

#include "kernels/quant.h"
#include "tests/kernels/fixture.h"
#include "tests/kernels/ops.h"

#define SEGMENTS 7
#define MODULES 2 /* of a table; the second is used, the first holds rubbish */
#define MAX_RANK 257
#define SCRATCH_WIDTH 260

/* By first row. Number 3 lies on the rows of number 2: a sum of adapters. Number 5's module is not adapted. */
static const struct { uint32_t first_row, n_rows; uint16_t rank; } plan[SEGMENTS] = {
	{ 0, 1, 16 }, { 1, 3, 1 }, { 4, 9, 8 }, { 4, 9, 24 }, { 13, 1, MAX_RANK }, { 14, 2, 0 }, { 16, 70, 5 },
};

static const enum kern_dtype dtypes[] = { KERN_F32, KERN_F16, KERN_BF16, KERN_I8 }; /* the last where lora_i8 says so */

static unsigned count_dtypes(const struct kern_backend *b)
{
	return sizeof dtypes / sizeof *dtypes - !b->lora_i8;
}

struct adapted {
	struct kern_segment segment[SEGMENTS];
	struct kern_lora *table; /* [SEGMENTS][MODULES] */
	uint32_t n_rows, in, out;
};

struct shape {
	uint32_t in, out;
	bool few; /* without the last segment, whose many rows take long */
};

/* A matrix of an adapter: rows at their strides, rubbish in between. */
static void *adapter_matrix(enum kern_dtype dtype, uint32_t rank, uint32_t width)
{
	size_t stride = kern_lora_stride(dtype, width), row_bytes = kern_dtype_bytes(dtype) * width;
	uint8_t *p = fixture_bytes(rank * stride);

	if (dtype == KERN_I8) {
		for (size_t i = 0; i < rank * row_bytes; i++)
			p[i / row_bytes * stride + i % row_bytes] = (uint8_t)fixture_random(256);
		return p;
	}
	struct kern_matrix m = fixture_matrix(dtype, rank, width, 0);
	for (uint32_t i = 0; i < rank; i++)
		memcpy(p + i * stride, (const uint8_t *)m.data + i * row_bytes, row_bytes);
	fixture_free_matrix(&m);
	return p;
}

/* I8's scales are so small that products of integers become as large as those of the other types. */
static struct kern_lora random_lora(enum kern_dtype dtype, uint16_t rank, float scale, const struct shape *shape)
{
	return (struct kern_lora){
		.a = adapter_matrix(dtype, rank, shape->in),
		.b = adapter_matrix(dtype, rank, shape->out),
		.scale = scale,
		.rank = rank,
		.dtype = (uint8_t)dtype,
		.scales = dtype == KERN_I8 ? fixture_floats(rank, 2e-6f) : NULL,
	};
}

/* The last segment of a sum is of another type than the others: the one behind theirs. */
static void adapt(struct adapted *t, const struct kern_backend *b, unsigned type, const struct shape *shape)
{
	uint32_t scratch = 0;

	*t = (struct adapted){ .in = shape->in, .out = shape->out };
	t->table = fixture_bytes(sizeof *t->table * SEGMENTS * MODULES);
	for (unsigned i = 0; i < SEGMENTS; i++) {
		struct kern_lora *lora = &t->table[i * MODULES + 1];
		enum kern_dtype own = dtypes[(type + (i == 3)) % count_dtypes(b)];
		uint32_t n_rows = shape->few && i == SEGMENTS - 1 ? 1 : plan[i].n_rows;
		*lora = (struct kern_lora){ 0 };
		if (plan[i].rank)
			*lora = random_lora(own, plan[i].rank, 0.5f + (float)i, shape);
		t->segment[i] = (struct kern_segment){ plan[i].first_row, n_rows, lora - 1, 1.5f, scratch };
		scratch += n_rows;
		t->n_rows = plan[i].first_row + n_rows;
	}
}

static void adapted_free(struct adapted *t)
{
	for (unsigned i = 0; i < SEGMENTS; i++) {
		fixture_free(t->table[i * MODULES + 1].a);
		fixture_free(t->table[i * MODULES + 1].b);
		fixture_free(t->table[i * MODULES + 1].scales);
	}
	fixture_free(t->table);
}

/* ---- the truth ---- */

static const void *rounded_matrix(const struct kern_lora *lora, const void *from, uint32_t width)
{
	enum kern_dtype dtype = (enum kern_dtype)lora->dtype;
	size_t stride = kern_lora_stride(dtype, width), to_stride = kern_lora_stride(KERN_BF16, width);
	uint8_t *to = fixture_bytes(lora->rank * to_stride);

	for (uint32_t i = 0; i < lora->rank; i++)
		for (uint32_t j = 0; j < width; j++) {
			float x;
			quant_decode(dtype, (const uint8_t *)from + i * stride, j, 1, &x);
			((uint16_t *)(to + i * to_stride))[j] = quant_to_bf16(x);
		}
	return to;
}

/* The same adapters, rounded to bf16. */
static void round_adapters(const struct adapted *t, struct adapted *ret)
{
	*ret = *t;
	ret->table = fixture_copy(t->table, sizeof *t->table * SEGMENTS * MODULES);
	for (unsigned i = 0; i < SEGMENTS; i++) {
		struct kern_lora *lora = &ret->table[i * MODULES + 1];
		ret->segment[i].modules = lora - 1;
		if (!lora->a)
			continue;
		lora->a = rounded_matrix(lora, lora->a, t->in);
		lora->b = rounded_matrix(lora, lora->b, t->out);
		lora->dtype = KERN_BF16;
	}
}

/* ---- what is compared ---- */

struct input {
	const float *x;
	const void *activated; /* NULL: x is used */
	uint8_t activation;
};

/* How a backend wants the inputs of bf16 products. */
static uint8_t bf16_activation(const struct kern_backend *b)
{
	static const float number = 1;
	struct kern_matrix m = { KERN_F32, 1, 1, 0, &number };
	struct kern_weight w;

	ck_assert_int_eq(b->device->weight_plan(fixture_device(b), &m, KERN_PRECISION_BF16, &w), 0);
	return w.activation;
}

static struct input make_input(const struct kern_backend *b, const struct adapted *t, const float *x, bool bf16)
{
	struct input ret = { .x = x };

	if (!bf16)
		return ret;
	ret.activation = bf16_activation(b);
	void *activated = fixture_bytes(t->n_rows * b->device->activation_bytes(ret.activation, t->in));
	struct kern_activate activate = { x, t->n_rows, t->in, ret.activation, activated };
	fixture_run(b, b->ops->activate, &activate, 0);
	ret.x = NULL;
	ret.activated = activated;
	return ret;
}

/* Scratch has room for more than one sum of each number in the plain way only. */
static void apply_adapters(const struct kern_backend *b, const struct kern_segment *segment, uint32_t n_segments,
			   const struct adapted *t, const struct input *input, unsigned way, float *y)
{
	struct fixture_step s = fixture_step(
		&(struct kern_step){ .n_rows = t->n_rows, .n_segments = n_segments, .segment = segment }, way);
	size_t floats = (size_t)(way == 0 ? 8 : 1) * s.extent.n_scratch_rows * SCRATCH_WIDTH;
	float *scratch = fixture_bytes(floats * sizeof *scratch);

	s.extent.max_rank = way == 0 ? MAX_RANK : SCRATCH_WIDTH;
	struct kern_lora_shrink shrink = { s.step, 1, input->x, t->in, SCRATCH_WIDTH, scratch, input->activated,
					   input->activation, floats, &s.extent };
	struct kern_lora_expand expand = { s.step, 1, scratch, SCRATCH_WIDTH, t->out, y, input->activation, floats,
					   &s.extent };
	fixture_run(b, b->ops->lora_shrink, &shrink, way);
	fixture_run(b, b->ops->lora_expand, &expand, way);
	fixture_free(scratch);
	fixture_free_step(&s);
}

static void apply_truth(const struct adapted *t, const float *x, bool bf16, float *y)
{
	struct input plain = { .x = x };
	struct adapted rounded;

	if (!bf16) {
		apply_adapters(&kern_ref, t->segment, SEGMENTS, t, &plain, 0, y);
		return;
	}
	round_adapters(t, &rounded);
	float *rounded_x = fixture_copy(x, (size_t)t->n_rows * t->in * sizeof *x);
	for (size_t i = 0; i < (size_t)t->n_rows * t->in; i++)
		rounded_x[i] = quant_round_bf16(x[i]);
	plain.x = rounded_x;
	apply_adapters(&kern_ref, rounded.segment, SEGMENTS, &rounded, &plain, 0, y);
	fixture_free(rounded_x);
	adapted_free(&rounded);
}

/* Every row in segments of its own, those of one row next to each other. Returns how many. */
static uint32_t part_rows(const struct adapted *t, struct kern_segment *ret)
{
	uint32_t n = 0, scratch = 0;

	for (unsigned i = 0; i < SEGMENTS; i++)
		scratch += t->segment[i].n_rows;
	for (uint32_t row = 0; row < t->n_rows; row++)
		for (unsigned i = 0; i < SEGMENTS; i++)
			if (row - t->segment[i].first_row < t->segment[i].n_rows)
				ret[n++] = (struct kern_segment){ row, 1, t->segment[i].modules, t->segment[i].scale,
								  --scratch };
	return n;
}

static void check_lora(const struct kern_backend *b, const struct adapted *t, bool bf16)
{
	size_t n = (size_t)t->n_rows * t->out;
	float *x = fixture_floats((size_t)t->n_rows * t->in, 1), *base = fixture_floats(n, 1);
	float *expected = fixture_copy(base, n * 4), *first = fixture_copy(base, n * 4), *y = fixture_bytes(n * 4);
	struct input input = make_input(b, t, x, bf16);
	struct kern_segment *alone = fixture_bytes(2 * t->n_rows * sizeof *alone);
	uint32_t n_alone = part_rows(t, alone);

	apply_truth(t, x, bf16, expected);
	apply_adapters(b, t->segment, SEGMENTS, t, &input, 0, first);
	/* bf16: x A^T is as good as two bf16 numbers */
	fixture_close(first, expected, n, bf16 ? 2e-5f : 4e-6f, bf16 ? "adapters in bf16" : b->name);
	for (unsigned way = 1; way < fixture_ways(b); way++) {
		memcpy(y, base, n * 4);
		apply_adapters(b, t->segment, SEGMENTS, t, &input, way, y);
		fixture_equal(y, first, n * 4, "adapters in other parts");
	}
	memcpy(y, base, n * 4);
	apply_adapters(b, alone, n_alone, t, &input, 1, y);
	fixture_equal(y, first, n * 4, "rows alone with their adapters");
	fixture_free(x), fixture_free(base), fixture_free(expected), fixture_free(first), fixture_free(y);
	fixture_free(alone), fixture_free(input.activated);
}

START_TEST(lora)
{
	static const struct shape shapes[] = {
		{ 576, 192, false }, { 576, 576, true }, { 1536, 33, true }, { 33, 7, false },
		{ 1, 1, false },     { 50, 1536, true },
	};
	const struct kern_backend *b;

	for (unsigned k = 0; (b = fixture_backend(k)); k++)
		for (size_t s = 0; (unsigned)_i < count_dtypes(b) && s < sizeof shapes / sizeof *shapes; s++) {
			struct adapted t;
			adapt(&t, b, (unsigned)_i, &shapes[s]);
			check_lora(b, &t, false);
			if (b->queued)
				check_lora(b, &t, true);
			adapted_free(&t);
		}
}
END_TEST

/* ---- vectors ---- */

static void scale_rows(const struct kern_backend *b, const struct kern_segment *segment, const float *const *vector,
		       uint32_t width, unsigned way, float *y)
{
	struct fixture_step s = fixture_step(
		&(struct kern_step){ .n_rows = 86, .n_segments = SEGMENTS, .segment = segment }, way);
	struct kern_row_scale args = { s.step, vector, width, y, &s.extent };

	fixture_run(b, b->ops->row_scale, &args, way);
	fixture_free_step(&s);
}

/* Products of two numbers: no backend rounds them in another way. */
static void check_row_scale(const struct kern_backend *b, uint32_t width)
{
	size_t n = (size_t)86 * width;
	float *x = fixture_floats(n, 2), *expected = fixture_copy(x, n * 4), *y = fixture_bytes(n * 4);
	float *numbers = fixture_floats((size_t)SEGMENTS * width + 1, 2);
	const float **vector = fixture_bytes(SEGMENTS * sizeof *vector);
	struct kern_segment segment[SEGMENTS];

	for (unsigned i = 0; i < SEGMENTS; i++) {
		segment[i] = (struct kern_segment){ .first_row = plan[i].first_row, .n_rows = plan[i].n_rows };
		vector[i] = i == 1 ? NULL : numbers + (i == 2) + (size_t)i * width; /* one of them is not aligned */
	}
	scale_rows(&kern_ref, segment, vector, width, 0, expected);
	for (unsigned way = 0; way < fixture_ways(b); way++) {
		memcpy(y, x, n * 4);
		scale_rows(b, segment, vector, width, way, y);
		fixture_equal(y, expected, n * 4, "row_scale");
	}
	fixture_free(x), fixture_free(expected), fixture_free(y), fixture_free(numbers), fixture_free(vector);
}

START_TEST(row_scale)
{
	static const uint32_t widths[] = { 1, 33, 576, 1000 };
	const struct kern_backend *b;

	for (unsigned k = 0; (b = fixture_backend(k)); k++)
		for (size_t s = 0; s < sizeof widths / sizeof *widths; s++)
			check_row_scale(b, widths[s]);
}
END_TEST

void adapter_tests(TCase *tc)
{
	tcase_add_loop_test(tc, lora, 0, sizeof dtypes / sizeof *dtypes);
	tcase_add_test(tc, row_scale);
}
