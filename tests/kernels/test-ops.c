/* SPDX-License-Identifier: MIT */
/*
 * The ops table test: op x backend x shape x format against the scalar reference, and the promise that a row's bits
 * depend on that row alone. Every backend the machine has is tried, and the reference against itself for the promise.
 */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/host.h"
#include "kernels/quant.h"
#include "tests/kernels/fixture.h"
#include "tests/lib/run-suite.h"

#define BATCH 33

static const unsigned part_counts[] = { 1, 2, 3, 7 };
static const char *const dtype_names[] = { "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1" };
static const char *const precision_names[] = { "f32", "bf16", "int8", "int8x2" };

/* Backend i, the reference last. */
static const struct kern_backend *backend_or_ref(unsigned i)
{
	return fixture_backend(i) ? fixture_backend(i) : i == 0 || fixture_backend(i - 1) ? &kern_ref : NULL;
}

/* ---- matmul, with activate and embed ---- */

struct product {
	const struct kern_backend *b;
	const struct kern_weight *w;
	const float *x; /* [n][cols] */
	uint32_t n;
};

/* y = x W^T, on top of y if it is to accumulate */
static void multiply(const struct product *p, bool accumulate, unsigned n_parts, float *y)
{
	size_t row_bytes = p->b->device->activation_bytes(p->w->activation, p->w->cols);
	void *activated = fixture_bytes(p->n * row_bytes);
	struct kern_activate activate = { p->x, p->n, p->w->cols, p->w->activation, activated };
	struct kern_matmul matmul = { p->w, p->x, activated, p->n, accumulate, y };

	fixture_run(p->b->ops->activate, &activate, n_parts);
	fixture_run(p->b->ops->matmul, &matmul, n_parts);
	free(activated);
}

/* Rows alone, in twos, in reverse: the bits of the batch. */
static void check_rows_alone(const struct product *p, const float *batch, const char *name)
{
	uint32_t cols = p->w->cols, rows = p->w->rows;
	float *reversed = fixture_bytes((size_t)p->n * cols * 4), *y = fixture_bytes((size_t)p->n * rows * 4);

	for (uint32_t i = 0; i < p->n; i++) {
		struct product one = { p->b, p->w, p->x + (size_t)i * cols, p->n - i < 1 + i % 5 ? 1 : 1 + i % 5 };
		multiply(&one, false, part_counts[i % 4], y);
		fixture_equal(y, batch + (size_t)i * rows, (size_t)one.n * rows * 4, name);
		memcpy(reversed + (size_t)i * cols, p->x + (size_t)(p->n - 1 - i) * cols, (size_t)cols * 4);
	}
	struct product all = { p->b, p->w, reversed, p->n };
	multiply(&all, false, 3, y);
	for (uint32_t i = 0; i < p->n; i++)
		fixture_equal(y + (size_t)i * rows, batch + (size_t)(p->n - 1 - i) * rows, rows * 4, name);
	free(reversed);
	free(y);
}

static void check_embed(const struct product *p, const struct kern_weight *truth, const char *name)
{
	uint32_t token[] = { 0, p->w->rows - 1, p->w->rows / 2, 0, p->w->rows / 3 };
	struct kern_step step = { .n_rows = 5, .token = token };
	float *a = fixture_bytes((size_t)5 * p->w->cols * 4), *b = fixture_bytes((size_t)5 * p->w->cols * 4);
	struct kern_embed mine = { p->w, &step, a }, ref = { truth, &step, b };

	fixture_run(p->b->ops->embed, &mine, 2);
	fixture_run(kern_ref.ops->embed, &ref, 1);
	fixture_equal(a, b, (size_t)5 * p->w->cols * 4, name);
	free(a);
	free(b);
}

static void check_matmul(const struct kern_backend *b, const struct kern_matrix *m, enum kern_precision precision,
			 uint8_t without)
{
	struct kern_weight w = fixture_weight(b, m, precision, 3), truth = fixture_weight(&kern_ref, m, precision, 1);
	float *x = fixture_floats((size_t)BATCH * m->cols, 2), *base = fixture_floats((size_t)BATCH * m->rows, 1);
	size_t bytes = (size_t)BATCH * m->rows * 4;
	float *y = fixture_bytes(bytes), *first = fixture_bytes(bytes), *expected = fixture_bytes(bytes);
	struct product mine = { b, &w, x, BATCH }, ref = { &kern_ref, &truth, x, BATCH };
	char name[100];

	snprintf(name, sizeof name, "matmul %s %s in %s, %u x %u", b->name, dtype_names[m->dtype],
		 precision_names[precision], m->rows, m->cols);
	w.layout &= (uint8_t)~without;
	multiply(&ref, false, 1, expected);
	multiply(&mine, false, 1, first);
	fixture_close(first, expected, (size_t)BATCH * m->rows, 3e-6f, name);
	for (unsigned i = 1; i < 4; i++) {
		multiply(&mine, false, part_counts[i], y);
		fixture_equal(y, first, bytes, name);
	}
	check_rows_alone(&mine, first, name);
	memcpy(y, base, bytes);
	multiply(&mine, true, 2, y);
	for (size_t i = 0; i < (size_t)BATCH * m->rows; i++)
		if (y[i] != base[i] + first[i])
			ck_abort_msg("%s: accumulates wrongly at %zu", name, i);
	check_embed(&mine, &truth, name);
	free(x), free(base), free(y), free(first), free(expected);
	fixture_free_weight(&w);
	fixture_free_weight(&truth);
}

START_TEST(matmul)
{
	static const struct { uint32_t rows, cols, permuted_head; } shapes[] = {
		{ 1, 32, 0 },   { 7, 64, 0 },   { 16, 32, 0 },  { 33, 96, 0 }, { 64, 576, 0 }, { 192, 64, 64 },
		{ 50, 192, 0 }, { 50, 1536, 0 }, { 128, 64, 16 }, { 17, 33, 0 }, { 5, 1, 0 },    { 18, 575, 0 },
	};
	enum kern_dtype dtype = (enum kern_dtype)_i;
	const struct kern_backend *b;

	for (unsigned k = 0; (b = backend_or_ref(k)); k++)
		for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
			if (!kern_row_bytes(dtype, shapes[s].cols) || (b == &kern_ref && shapes[s].cols > 192))
				continue;
			struct kern_matrix m = fixture_matrix(dtype, shapes[s].rows, shapes[s].cols, shapes[s].permuted_head);
			for (unsigned p = 0; p < _KERN_PRECISION_N; p++)
				check_matmul(b, &m, (enum kern_precision)p, 0);
			if (b != &kern_ref) /* a machine with tiles would never show the way without */
				check_matmul(b, &m, KERN_PRECISION_BF16, HOST_LAYOUT_AMX);
			fixture_free_matrix(&m);
		}
}
END_TEST

/* The largest codes and activations there are: integer sums that overflow or saturate would show here. */
START_TEST(matmul_extremes)
{
	const struct kern_backend *b;

	for (unsigned k = 0; (b = backend_or_ref(k)); k++)
		for (unsigned dtype = KERN_Q8_0; dtype <= KERN_Q4_1; dtype++)
			for (unsigned byte = 0; byte < 4; byte++) {
				static const uint8_t bytes[] = { 0x00, 0x7f, 0x80, 0xff };
				struct kern_matrix m = fixture_matrix((enum kern_dtype)dtype, 20, 64, 0);
				size_t row_bytes = kern_row_bytes(m.dtype, 64), block = row_bytes / 2;
				size_t head = dtype == KERN_Q4_1 ? 4 : 2;
				uint8_t *p = (uint8_t *)(uintptr_t)m.data;
				for (size_t at = 0; at < 20 * row_bytes; at += block)
					memset(p + at + head, bytes[byte], block - head);
				struct kern_weight w = fixture_weight(b, &m, KERN_PRECISION_INT8, 1);
				struct kern_weight truth = fixture_weight(&kern_ref, &m, KERN_PRECISION_INT8, 1);
				float x[3 * 64], y[3 * 20], expected[3 * 20];
				for (unsigned i = 0; i < 3 * 64; i++)
					x[i] = i / 64 == 0 ? 1 : i / 64 == 1 ? -1 : (float)((int)(i % 2) * 2 - 1);
				struct product mine = { b, &w, x, 3 }, ref = { &kern_ref, &truth, x, 3 };
				multiply(&mine, false, 1, y);
				multiply(&ref, false, 1, expected);
				fixture_close(y, expected, 60, 3e-6f, b->name);
				fixture_free_weight(&w);
				fixture_free_weight(&truth);
				fixture_free_matrix(&m);
			}
}
END_TEST

/* ref itself against the formulas of the formats, by hand. */
START_TEST(formats)
{
	uint8_t q4_1[20] = { 0x00, 0x3c, 0x00, 0xc0 }, q4_0[18] = { 0x00, 0x38 }, q8_0[34] = { 0x00, 0x40 };
	const uint16_t halves[] = { 0x3c00, 0x0001, 0x7bff, 0x8000, 0xfc00 };
	float x[32], h[5];

	for (unsigned j = 0; j < 16; j++)
		q4_1[4 + j] = q4_0[2 + j] = (uint8_t)(j | (15 - j) << 4);
	for (unsigned j = 0; j < 32; j++)
		q8_0[2 + j] = (uint8_t)(int8_t)((int)j * 8 - 128);
	quant_decode(KERN_Q4_1, q4_1, 0, 32, x);
	for (unsigned j = 0; j < 32; j++)
		ck_assert_float_eq(x[j], (float)(j < 16 ? j : 31 - j) - 2);
	quant_decode(KERN_Q4_0, q4_0, 0, 32, x);
	for (unsigned j = 0; j < 32; j++)
		ck_assert_float_eq(x[j], ((float)(j < 16 ? j : 31 - j) - 8) / 2);
	quant_decode(KERN_Q8_0, q8_0, 0, 32, x);
	for (unsigned j = 0; j < 32; j++)
		ck_assert_float_eq(x[j], 2 * ((float)j * 8 - 128));
	quant_decode(KERN_F16, halves, 0, 5, h);
	ck_assert(h[0] == 1 && h[1] == 0x1p-24f && h[2] == 65504 && h[3] == 0 && signbit(h[3]) && isinf(h[4]) && h[4] < 0);
	ck_assert_uint_eq(quant_to_bf16(1.00390625f), 0x3f80); /* a tie goes to even */
	ck_assert_uint_eq(quant_to_bf16(1.01171875f), 0x3f82);
	ck_assert(isnan(quant_from_bf16(quant_to_bf16(NAN))));
	ck_assert_uint_eq(kern_row_bytes(KERN_Q4_1, 576), 360);
	ck_assert_uint_eq(kern_row_bytes(KERN_Q8_0, 33), 0);
}
END_TEST

/* llama.cpp's order of a head's rows: 0, e/2, 1, e/2 + 1, ... */
START_TEST(permuted_rows)
{
	float data[8] = { 0, 2, 1, 3, 10, 12, 11, 13 }, y[8], x = 1;
	static const float expected[8] = { 0, 1, 2, 3, 10, 11, 12, 13 };
	const struct kern_backend *b;

	for (unsigned k = 0; (b = backend_or_ref(k)); k++) {
		struct kern_matrix m = { KERN_F32, 8, 1, 4, data };
		struct kern_weight w = fixture_weight(b, &m, KERN_PRECISION_F32, 1);
		struct product p = { b, &w, &x, 1 };
		multiply(&p, false, 1, y);
		fixture_equal(y, expected, sizeof y, b->name);
		fixture_free_weight(&w);
	}
}
END_TEST

START_TEST(plan_refuses)
{
	const struct kern_backend *b;
	struct kern_weight w;
	float data[6] = { 0 };

	for (unsigned k = 0; (b = backend_or_ref(k)); k++) {
		struct kern_matrix broken = { KERN_Q4_0, 2, 33, 0, data }, odd = { KERN_F32, 6, 1, 3, data };
		struct kern_matrix heads = { KERN_F32, 6, 1, 4, data }, none = { KERN_F32, 0, 1, 0, data };
		ck_assert_int_lt(b->device->weight_plan(NULL, &broken, KERN_PRECISION_F32, &w), 0);
		ck_assert_int_lt(b->device->weight_plan(NULL, &odd, KERN_PRECISION_F32, &w), 0);
		ck_assert_int_lt(b->device->weight_plan(NULL, &heads, KERN_PRECISION_F32, &w), 0);
		ck_assert_int_lt(b->device->weight_plan(NULL, &none, KERN_PRECISION_F32, &w), 0);
	}
}
END_TEST

/* ---- rows: rms_norm, swiglu, rope ---- */

START_TEST(rms_norm)
{
	static const uint32_t widths[] = { 1, 7, 16, 33, 192, 576, 577, 1536 };
	const struct kern_backend *b;

	for (unsigned k = 0; (b = backend_or_ref(k)); k++)
		for (size_t s = 0; s < sizeof widths / sizeof *widths; s++) {
			uint32_t d = widths[s], row[3] = { 4, 0, 4 };
			float *x = fixture_floats((size_t)5 * d, 3), *gain = fixture_floats(d, 2);
			float *y = fixture_bytes((size_t)5 * d * 4), *expected = fixture_bytes((size_t)5 * d * 4);
			struct kern_rms_norm mine = { x, gain, NULL, 5, d, 1e-5f, y }, ref = mine;
			ref.y = expected;
			fixture_run(kern_ref.ops->rms_norm, &ref, 1);
			for (unsigned i = 0; i < 4; i++) {
				fixture_run(b->ops->rms_norm, &mine, part_counts[i]);
				fixture_close(y, expected, (size_t)5 * d, 2e-6f, "rms_norm");
			}
			float *some = fixture_bytes((size_t)3 * d * 4);
			struct kern_rms_norm chosen = { x, gain, row, 3, d, 1e-5f, some };
			fixture_run(b->ops->rms_norm, &chosen, 2);
			for (unsigned i = 0; i < 3; i++)
				fixture_equal(some + (size_t)i * d, y + (size_t)row[i] * d, d * 4, "rms_norm of chosen rows");
			free(x), free(gain), free(y), free(expected), free(some);
		}
}
END_TEST

START_TEST(swiglu)
{
	static const uint32_t widths[] = { 1, 15, 16, 37, 1536 };
	const struct kern_backend *b;

	for (unsigned k = 0; (b = backend_or_ref(k)); k++)
		for (size_t s = 0; s < sizeof widths / sizeof *widths; s++) {
			size_t n = (size_t)3 * widths[s];
			float *gate = fixture_floats(n, 20), *up = fixture_floats(n, 2);
			float *y = fixture_bytes(n * 4), *expected = fixture_bytes(n * 4);
			gate[0] = -200;
			gate[n - 1] = 200;
			struct kern_swiglu mine = { gate, up, 3, widths[s], y }, ref = { gate, up, 3, widths[s], expected };
			fixture_run(kern_ref.ops->swiglu, &ref, 1);
			for (unsigned i = 0; i < 4; i++) {
				fixture_run(b->ops->swiglu, &mine, part_counts[i]);
				for (size_t j = 0; j < n; j++)
					if (!(fabsf(y[j] - expected[j]) <= 1e-6f * fabsf(expected[j]) + 1e-30f))
						ck_abort_msg("swiglu %s: %g not %g", b->name, (double)y[j], (double)expected[j]);
			}
			struct kern_swiglu last = { gate + 2 * widths[s], up + 2 * widths[s], 1, widths[s], expected };
			fixture_run(b->ops->swiglu, &last, 2);
			fixture_equal(expected, y + 2 * widths[s], widths[s] * 4, "swiglu of a row alone");
			free(gate), free(up), free(y), free(expected);
		}
}
END_TEST

START_TEST(rope)
{
	static const uint32_t head_dims[] = { 2, 6, 64, 128, 640 };
	uint32_t position[] = { 0, 1, 77, 8191, 131071 };
	struct kern_step step = { .n_rows = 5, .position = position };
	const struct kern_backend *b;

	for (unsigned k = 0; (b = backend_or_ref(k)); k++)
		for (size_t s = 0; s < sizeof head_dims / sizeof *head_dims; s++) {
			uint32_t e = head_dims[s], n = 5 * 3 * e;
			float *x = fixture_floats(n, 2), *expected = fixture_bytes(n * 4), *y = fixture_bytes(n * 4);
			float *inv_freq = fixture_bytes(e / 2 * 4);
			for (uint32_t j = 0; j < e / 2; j++)
				inv_freq[j] = powf(10000, -2 * (float)j / (float)e);
			memcpy(expected, x, n * 4);
			struct kern_rope ref = { &step, inv_freq, 3, e, expected }, mine = { &step, inv_freq, 3, e, y };
			fixture_run(kern_ref.ops->rope, &ref, 1);
			for (unsigned i = 0; i < 4; i++) {
				memcpy(y, x, n * 4);
				fixture_run(b->ops->rope, &mine, part_counts[i]);
				fixture_close(y, expected, n, 1e-6f, "rope");
			}
			free(x), free(expected), free(y), free(inv_freq);
		}
}
END_TEST

/* ---- adapters ---- */

#define SEGMENTS 6

static const uint16_t ranks[SEGMENTS] = { 16, 1, 8, 256, 5, 0 };
static const uint32_t segment_rows[SEGMENTS] = { 1, 3, 9, 1, 4, 2 };

struct adapted {
	struct kern_lora lora[SEGMENTS];
	struct kern_segment segment[SEGMENTS];
	uint32_t n_rows, in, out;
};

/* A matrix of an adapter: rows at their strides, rubbish in between. */
static void *adapter_matrix(enum kern_dtype dtype, uint32_t rank, uint32_t width)
{
	size_t stride = kern_lora_stride(dtype, width);
	struct kern_matrix m = fixture_matrix(dtype, rank, width, 0);
	uint8_t *p = fixture_bytes(rank * stride);

	for (uint32_t i = 0; i < rank; i++)
		memcpy(p + i * stride, (const uint8_t *)m.data + i * kern_row_bytes(dtype, width), kern_row_bytes(dtype, width));
	fixture_free_matrix(&m);
	return p;
}

/* Segments of unlike rank; the last two share their first rows (a sum of adapters); one module is not adapted. */
static void adapt(struct adapted *t, enum kern_dtype dtype, uint32_t in, uint32_t out)
{
	uint32_t row = 0, scratch = 0;

	*t = (struct adapted){ .in = in, .out = out };
	for (unsigned i = 0; i < SEGMENTS; i++) {
		if (ranks[i])
			t->lora[i] = (struct kern_lora){ adapter_matrix(dtype, ranks[i], in), adapter_matrix(dtype, ranks[i], out),
							 0.5f + (float)i, ranks[i], (uint8_t)dtype, 0 };
		t->segment[i] = (struct kern_segment){ i == 4 ? 4 : row, segment_rows[i], &t->lora[i], 1.5f, scratch };
		scratch += segment_rows[i];
		row += i == 4 ? 0 : segment_rows[i];
	}
	t->n_rows = row;
}

static void adapted_free(struct adapted *t)
{
	for (unsigned i = 0; i < SEGMENTS; i++) {
		free((void *)(uintptr_t)t->lora[i].a);
		free((void *)(uintptr_t)t->lora[i].b);
	}
}

#define SCRATCH_ROWS 20
#define SCRATCH_WIDTH 257

static void apply_adapters(const struct kern_backend *b, const struct kern_segment *segment, uint32_t n_segments,
			   const struct adapted *t, const float *x, unsigned n_parts, float *y)
{
	float *scratch = fixture_bytes(sizeof(float) * SCRATCH_ROWS * SCRATCH_WIDTH);
	struct kern_step step = { .n_rows = t->n_rows, .n_segments = n_segments, .segment = segment };
	struct kern_lora_shrink shrink = { &step, 0, x, t->in, SCRATCH_WIDTH, scratch };
	struct kern_lora_expand expand = { &step, 0, scratch, SCRATCH_WIDTH, t->out, y };

	fixture_run(b->ops->lora_shrink, &shrink, n_parts);
	fixture_run(b->ops->lora_expand, &expand, n_parts);
	free(scratch);
}

static void check_lora(const struct kern_backend *b, enum kern_dtype dtype, uint32_t in, uint32_t out)
{
	struct adapted t;

	adapt(&t, dtype, in, out);
	size_t n = (size_t)t.n_rows * out;
	float *x = fixture_floats((size_t)t.n_rows * in, 1), *base = fixture_floats(n, 1);
	float *expected = fixture_bytes(n * 4), *first = fixture_bytes(n * 4), *y = fixture_bytes(n * 4);
	memcpy(expected, base, n * 4);
	apply_adapters(&kern_ref, t.segment, SEGMENTS, &t, x, 1, expected);
	memcpy(first, base, n * 4);
	apply_adapters(b, t.segment, SEGMENTS, &t, x, 1, first);
	fixture_close(first, expected, n, 4e-6f, b->name);
	for (unsigned i = 1; i < 4; i++) {
		memcpy(y, base, n * 4);
		apply_adapters(b, t.segment, SEGMENTS, &t, x, part_counts[i], y);
		fixture_equal(y, first, n * 4, "adapters in other parts");
	}
	/* every row in a segment of its own */
	struct kern_segment alone[SCRATCH_ROWS];
	uint32_t n_alone = 0;
	for (unsigned i = 0; i < SEGMENTS; i++)
		for (uint32_t j = 0; j < segment_rows[i]; j++)
			alone[n_alone++] = (struct kern_segment){ t.segment[i].first_row + j, 1, t.segment[i].modules,
								  t.segment[i].scale, SCRATCH_ROWS - 1 - n_alone };
	memcpy(y, base, n * 4);
	apply_adapters(b, alone, n_alone, &t, x, 2, y);
	fixture_equal(y, first, n * 4, "rows alone with their adapters");
	free(x), free(base), free(expected), free(first), free(y);
	adapted_free(&t);
}

START_TEST(lora)
{
	static const uint32_t shapes[][2] = { { 576, 576 }, { 576, 192 }, { 1536, 33 }, { 33, 7 }, { 1, 1 }, { 50, 1536 } };
	const struct kern_backend *b;

	for (unsigned k = 0; (b = backend_or_ref(k)); k++)
		for (unsigned dtype = KERN_F32; dtype <= KERN_BF16; dtype++)
			for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
				check_lora(b, (enum kern_dtype)dtype, shapes[s][0], shapes[s][1]);
}
END_TEST

/* ---- attention ---- */

#define SEQS 5
#define LAYERS 2

struct paged { /* sequences that have a past; their blocks lie anywhere */
	struct kern_kv_layout kv;
	struct kern_seq seq[SEQS];
	void *block[SEQS * 40];
	size_t block_bytes;
	uint32_t n_blocks, n_heads, n_rows;
	float *k[SEQS], *v[SEQS]; /* [positions][KV heads][e] */
};

static const struct { uint32_t past, rows; } pasts[SEQS] = { { 0, 1 }, { 15, 1 }, { 16, 9 }, { 0, 37 }, { 70, 3 } };

static void page(struct paged *t, enum kern_dtype dtype, uint32_t n_heads, uint32_t n_kv_heads, uint32_t e,
		 uint32_t block_tokens)
{
	size_t layer = 2 * (size_t)n_kv_heads * block_tokens * e * kern_dtype_bytes(dtype);

	*t = (struct paged){ .kv = { dtype, block_tokens, n_kv_heads, e, layer }, .n_heads = n_heads };
	t->block_bytes = LAYERS * layer;
	for (unsigned i = 0; i < SEQS; i++) {
		uint32_t positions = pasts[i].past + pasts[i].rows;
		t->seq[i] = (struct kern_seq){ t->n_rows, pasts[i].rows, pasts[i].past, t->n_blocks };
		for (uint32_t p = 0; p < positions; p += block_tokens)
			t->block[t->n_blocks++] = fixture_bytes(t->block_bytes);
		t->k[i] = fixture_floats((size_t)positions * n_kv_heads * e, 2);
		t->v[i] = fixture_floats((size_t)positions * n_kv_heads * e, 1);
		t->n_rows += pasts[i].rows;
	}
}

static void paged_free(struct paged *t)
{
	for (uint32_t i = 0; i < t->n_blocks; i++)
		free(t->block[i]);
	for (unsigned i = 0; i < SEQS; i++) {
		free(t->k[i]);
		free(t->v[i]);
	}
}

/* Writes all positions of every sequence, each as a step of its own; blocks start out as NaNs. */
static void write_past(const struct kern_backend *b, struct paged *t, unsigned n_parts)
{
	for (uint32_t i = 0; i < t->n_blocks; i++)
		memset(t->block[i], 0xff, t->block_bytes);
	for (unsigned i = 0; i < SEQS; i++) {
		struct kern_seq seq = { 0, pasts[i].past + pasts[i].rows, 0, t->seq[i].block_index };
		struct kern_step step = { .n_rows = seq.n_rows, .n_seqs = 1, .seq = &seq, .kv_block = t->block };
		struct kern_kv_write write = { &step, &t->kv, LAYERS - 1, t->k[i], t->v[i] };
		fixture_run(b->ops->kv_write, &write, n_parts);
	}
}

static void attend(const struct kern_backend *b, const struct paged *t, const struct kern_seq *seq, uint32_t n_seqs,
		   const float *q, unsigned n_parts, float *y)
{
	struct kern_step step = { .n_rows = t->n_rows, .n_seqs = n_seqs, .seq = seq, .kv_block = t->block };
	struct kern_attention a = { &step, &t->kv, LAYERS - 1, t->n_heads, q, y };

	fixture_run(b->ops->attention, &a, n_parts);
}

static void check_attention(const struct kern_backend *b, struct paged *t)
{
	size_t n = (size_t)t->n_rows * t->n_heads * t->kv.head_dim;
	float *q = fixture_floats(n, 3), *y = fixture_bytes(n * 4), *first = fixture_bytes(n * 4);
	float *expected = fixture_bytes(n * 4);

	write_past(&kern_ref, t, 1);
	attend(&kern_ref, t, t->seq, SEQS, q, 1, expected);
	write_past(b, t, 3);
	attend(b, t, t->seq, SEQS, q, 1, first);
	fixture_close(first, expected, n, 3e-6f, b->name);
	for (unsigned i = 1; i < 4; i++) {
		memset(y, 0xff, n * 4);
		attend(b, t, t->seq, SEQS, q, part_counts[i], y);
		fixture_equal(y, first, n * 4, "attention in other parts");
	}
	memset(y, 0xff, n * 4);
	for (unsigned i = SEQS; i-- > 0;)  /* a row at a time, last sequence first */
		for (uint32_t row = 0; row < t->seq[i].n_rows; row++) {
			struct kern_seq one = { t->seq[i].first_row + row, 1, t->seq[i].first_position + row,
						t->seq[i].block_index };
			attend(b, t, &one, 1, q, 1 + row % 2, y);
		}
	fixture_equal(y, first, n * 4, "attention of rows alone");
	free(q), free(y), free(first), free(expected);
}

START_TEST(attention)
{
	static const struct { uint32_t heads, kv_heads, e, block_tokens; } shapes[] = {
		{ 9, 3, 64, 16 }, { 9, 3, 64, 48 }, { 4, 4, 16, 32 }, { 8, 1, 80, 16 }, { 2, 1, 256, 16 }, { 3, 1, 10, 16 },
		{ 2, 2, 64, 8 },
	};
	const struct kern_backend *b;

	for (unsigned k = 0; (b = backend_or_ref(k)); k++)
		for (unsigned f32 = 0; f32 < 2; f32++)
			for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
				struct paged t;
				page(&t, f32 ? KERN_F32 : KERN_BF16, shapes[s].heads, shapes[s].kv_heads, shapes[s].e,
				     shapes[s].block_tokens);
				check_attention(b, &t);
				paged_free(&t);
			}
}
END_TEST

/* ---- memory ---- */

START_TEST(memory)
{
	struct kern_device *device;
	uint8_t *piece[70], own[64];
	void *p;

	ck_assert_int_eq(kern_ref.device->open(&device, 0, NULL), 0);
	for (unsigned i = 0; i < 70; i++) { /* more than one slab, and a piece larger than a slab */
		size_t bytes = i == 35 ? 40u << 20 : 1u << 20;
		ck_assert_int_eq(kern_ref.device->alloc(device, NULL, bytes, &p), 0);
		ck_assert_uint_eq((uintptr_t)p % 64, 0);
		piece[i] = p;
		ck_assert_uint_eq(piece[i][0] | piece[i][bytes - 1], 0);
		memset(piece[i], (int)i, bytes);
	}
	for (unsigned i = 0; i < 70; i++) {
		ck_assert_uint_eq(piece[i][12345], i);
		kern_ref.device->free(device, piece[i], i == 35 ? 40u << 20 : 1u << 20);
	}
	ck_assert_int_eq(kern_ref.device->alloc(device, own, sizeof own, &p), 0);
	ck_assert_ptr_eq(p, own);
	kern_ref.device->free(device, p, sizeof own);
	ck_assert_int_lt(kern_ref.device->alloc(device, NULL, SIZE_MAX, &p), 0);
	ck_assert_ptr_null(kern_ref.device->close(device));
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("ops");
	TCase *tc = tcase_create("ops");

	fixture_seed(7);
	tcase_set_timeout(tc, 0);
	tcase_add_loop_test(tc, matmul, 0, _KERN_DTYPE_N);
	tcase_add_test(tc, matmul_extremes);
	tcase_add_test(tc, formats);
	tcase_add_test(tc, permuted_rows);
	tcase_add_test(tc, plan_refuses);
	tcase_add_test(tc, rms_norm);
	tcase_add_test(tc, swiglu);
	tcase_add_test(tc, rope);
	tcase_add_test(tc, lora);
	tcase_add_test(tc, attention);
	tcase_add_test(tc, memory);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
