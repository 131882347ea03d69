/* SPDX-License-Identifier: MIT */
/*
 * Attention over paged keys and values: kv_write, attention, kv_copy. See test-ops.c.
 *
 * How keys lie in a block is the backend's own, so what kv_write wrote shows in what attention makes of it.
 */
#include <stdio.h>
#include <string.h>

#include "tests/kernels/fixture.h"
#include "tests/kernels/ops.h"

#define MAX_SEQS 7
#define LAYERS 2

struct shape {
	uint32_t heads, kv_heads, e, block_tokens;
};

struct pasts {
	struct { uint32_t past, rows; } of[MAX_SEQS];
	uint32_t n;
};

/* About the ends of spans of 16, of blocks and of stretches of 64. */
static const struct pasts borders = {
	{ { 62, 3 }, { 63, 1 }, { 64, 1 }, { 47, 2 }, { 48, 17 }, { 127, 2 }, { 9, 120 } }, 7
};

static const enum kern_dtype dtypes[] = { KERN_F32, KERN_BF16, KERN_I8 };

static const struct pasts few = { { { 0, 1 }, { 15, 1 }, { 16, 9 }, { 0, 37 }, { 70, 3 } }, 5 };
/* Several tiles of rows; contexts that end with a split of a GPU, behind it, and after several. */
static const struct pasts many = {
	{ { 127, 1 }, { 128, 1 }, { 0, 65 }, { 0, 130 }, { 299, 1 }, { 800, 1 }, { 100, 70 } }, 7
};

/* About the ends of a CPU's sections of 512, and beyond one; so few that parts share them. */
static const struct pasts sections = { { { 511, 1 }, { 512, 1 }, { 1023, 1 }, { 1700, 1 } }, 4 };
#define CONTEXT 2048

struct paged { /* sequences that have a past; their blocks lie anywhere */
	const struct pasts *pasts;
	struct kern_kv_layout kv;
	struct kern_seq seq[MAX_SEQS], past[MAX_SEQS]; /* past: what is written in an earlier step */
	uint32_t n_past;
	void **block;       /* [n_blocks] */
	size_t block_bytes;
	uint32_t n_blocks, n_heads, n_rows, n_past_rows;
	float *k, *v, *past_k, *past_v; /* [rows][KV heads][e] */
	float *q, *expected;            /* [rows][heads][e] */
};

static void fill(struct paged *t)
{
	size_t width = t->kv.n_kv_heads * t->kv.head_dim;

	t->k = fixture_floats(t->n_rows * width, 2);
	t->v = fixture_floats(t->n_rows * width, 1);
	t->past_k = fixture_floats(t->n_past_rows * width, 2);
	t->past_v = fixture_floats(t->n_past_rows * width, 1);
	t->q = fixture_floats((size_t)t->n_rows * t->n_heads * t->kv.head_dim, 3);
	t->expected = fixture_bytes((size_t)t->n_rows * t->n_heads * t->kv.head_dim * 4);
}

static void page(struct paged *t, enum kern_dtype dtype, const struct shape *shape, const struct pasts *pasts)
{
	size_t layer = (size_t)shape->kv_heads * shape->block_tokens * kern_kv_bytes(dtype, shape->e);

	*t = (struct paged){ .pasts = pasts, .n_heads = shape->heads };
	t->kv = (struct kern_kv_layout){ dtype, shape->block_tokens, shape->kv_heads, shape->e, layer };
	t->block_bytes = LAYERS * layer;
	for (unsigned i = 0; i < pasts->n; i++) {
		uint32_t past = pasts->of[i].past, rows = pasts->of[i].rows;
		t->seq[i] = (struct kern_seq){ t->n_rows, rows, past, t->n_blocks };
		if (past > 0)
			t->past[t->n_past++] = (struct kern_seq){ t->n_past_rows, past, 0, t->n_blocks };
		t->n_rows += rows;
		t->n_past_rows += past;
		t->n_blocks += (past + rows + shape->block_tokens - 1) / shape->block_tokens;
	}
	t->block = fixture_bytes(t->n_blocks * sizeof *t->block);
	for (uint32_t i = 0; i < t->n_blocks; i++)
		t->block[i] = fixture_bytes(t->block_bytes);
	fill(t);
}

static void paged_free(struct paged *t)
{
	for (uint32_t i = 0; i < t->n_blocks; i++)
		fixture_free(t->block[i]);
	fixture_free(t->block), fixture_free(t->q), fixture_free(t->expected);
	fixture_free(t->k), fixture_free(t->v), fixture_free(t->past_k), fixture_free(t->past_v);
}

/* Keys and values of some sequences' rows. */
static void store(const struct kern_backend *b, const struct paged *t, const struct kern_step *step, const float *k,
		  const float *v, unsigned way)
{
	struct fixture_step s = fixture_step(step, way);
	struct kern_kv_write write = { s.step, &t->kv, LAYERS - 1, k, v, &s.extent };

	fixture_run(b, b->ops->kv_write, &write, way);
	fixture_free_step(&s);
}

/* Writes all positions of every sequence; blocks start out as NaNs. */
static void store_all(const struct kern_backend *b, const struct paged *t, unsigned way)
{
	struct kern_step past = { .n_rows = t->n_past_rows, .n_seqs = t->n_past, .seq = t->past, .kv_block = t->block };
	struct kern_step now = { .n_rows = t->n_rows, .n_seqs = t->pasts->n, .seq = t->seq, .kv_block = t->block };

	for (uint32_t i = 0; i < t->n_blocks; i++)
		memset(t->block[i], 0xff, t->block_bytes);
	store(b, t, &past, t->past_k, t->past_v, way);
	store(b, t, &now, t->k, t->v, way);
}

static void attend(const struct kern_backend *b, const struct paged *t, const struct kern_seq *seq, uint32_t n_seqs,
		   unsigned way, float *y)
{
	struct fixture_step s = fixture_step(
		&(struct kern_step){ .n_rows = t->n_rows, .n_seqs = n_seqs, .seq = seq, .kv_block = t->block }, way);
	struct kern_attention a = { s.step, &t->kv, LAYERS - 1, t->n_heads, t->q, y, &s.extent };
	const uint32_t *left;

	if (b->device->attention_bytes) {
		a.section_bytes = b->device->attention_bytes(&t->kv, t->n_heads, CONTEXT);
		a.sections = fixture_bytes(a.section_bytes);
		memset(a.sections, 0, a.section_bytes);
	}
	fixture_run(b, b->ops->attention, &a, way);
	left = a.sections;
	ck_assert_msg(!left || (!left[0] && !left[1]), "%s leaves counts behind for the next layer", b->name);
	fixture_free(a.sections);
	fixture_free_step(&s);
}

/* A GPU's prefill rounds probabilities to bf16, int8 keys and values meet 16-bit integers; all else is f32 throughout. */
static void check_close(const struct kern_backend *b, const struct paged *t, const float *y)
{
	size_t width = t->n_heads * t->kv.head_dim;
	char name[100];

	for (unsigned i = 0; i < t->pasts->n; i++) {
		const struct kern_seq *seq = &t->seq[i];
		bool rounds = b->queued && t->kv.dtype == KERN_BF16 && seq->n_rows > 1;
		bool int16 = t->kv.dtype == KERN_I8 && b != &kern_ref;
		float tolerance = rounds ? 1e-2f : int16 ? 3e-4f : b->queued ? 1e-5f : 3e-6f;
		snprintf(name, sizeof name, "attention %s, heads of %u, %u rows at %u", b->name, t->kv.head_dim,
			 seq->n_rows, seq->first_position);
		fixture_close(y + seq->first_row * width, t->expected + seq->first_row * width, seq->n_rows * width,
			      tolerance, name);
	}
}

/*
 * Sequences alone and in pieces, last one first: the bits of the batch. Pieces are single rows; not on a GPU, which has
 * another kernel for these.
 */
static void check_alone(const struct kern_backend *b, const struct paged *t, const float *batch)
{
	size_t n = (size_t)t->n_rows * t->n_heads * t->kv.head_dim;
	float *y = fixture_bytes(n * 4);

	for (unsigned i = t->pasts->n; i-- > 0;) {
		struct kern_seq one = t->seq[i], all = t->seq[i];
		uint32_t piece = b->exact_rows || all.n_rows == 1 ? 1 : all.n_rows / 2 > 2 ? all.n_rows / 2 : 2;
		for (uint32_t row = 0; row < all.n_rows; row += one.n_rows) {
			one.first_row = all.first_row + row;
			one.first_position = all.first_position + row;
			one.n_rows = all.n_rows - row < 2 * piece ? all.n_rows - row : piece;
			attend(b, t, &one, 1, row % 2, y);
		}
	}
	fixture_equal(y, batch, n * 4, "attention of rows alone");
	fixture_free(y);
}

static void check_attention(const struct kern_backend *b, const struct paged *t)
{
	size_t n = (size_t)t->n_rows * t->n_heads * t->kv.head_dim;
	float *y = fixture_bytes(n * 4), *first = fixture_bytes(n * 4);

	store_all(b, t, fixture_ways(b) - 1);
	attend(b, t, t->seq, t->pasts->n, 0, first);
	check_close(b, t, first);
	for (unsigned way = 1; way < fixture_ways(b); way++) {
		memset(y, 0xff, n * 4);
		attend(b, t, t->seq, t->pasts->n, way, y);
		fixture_equal(y, first, n * 4, "attention in other parts");
	}
	check_alone(b, t, first);
	fixture_free(y), fixture_free(first);
}

static void check_shape(enum kern_dtype dtype, const struct shape *shape, const struct pasts *pasts)
{
	const struct kern_backend *b;
	struct paged t;

	page(&t, dtype, shape, pasts);
	store_all(&kern_ref, &t, 0);
	attend(&kern_ref, &t, t.seq, pasts->n, 0, t.expected);
	for (unsigned k = 0; (b = fixture_backend(k)); k++)
		if ((b != &kern_ref || pasts == &few) && (!b->queued || dtype != KERN_I8)) /* the reference is slow */
			check_attention(b, &t);
	paged_free(&t);
}

START_TEST(attention)
{
	static const struct shape shapes[] = {
		{ 9, 3, 64, 16 }, { 9, 3, 64, 48 }, { 4, 4, 16, 32 }, { 8, 1, 80, 16 }, { 4, 1, 96, 64 },
		{ 2, 1, 256, 16 }, { 3, 1, 10, 16 }, { 2, 2, 64, 8 },
	};

	for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
		check_shape(dtypes[_i], &shapes[s], &few);
}
END_TEST

START_TEST(long_attention)
{
	static const struct shape shapes[] = { { 3, 1, 64, 16 }, { 2, 2, 128, 32 }, { 5, 1, 10, 16 } };

	for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
		check_shape(dtypes[_i], &shapes[s], &many);
		check_shape(dtypes[_i], &shapes[s], &sections);
	}
}
END_TEST

START_TEST(attention_at_borders)
{
	static const struct shape shapes[] = { { 8, 1, 64, 48 }, { 4, 1, 128, 64 }, { 2, 2, 96, 16 }, { 6, 2, 80, 48 } };

	for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
		check_shape(dtypes[_i], &shapes[s], &borders);
}
END_TEST

/* ---- whole blocks ---- */

#define BLOCKS 5

static void check_kv_copy(const struct kern_backend *b, size_t bytes, unsigned way)
{
	void **from = fixture_bytes(BLOCKS * sizeof *from), **to = fixture_bytes(BLOCKS * sizeof *to);
	struct kern_kv_copy args = { from, to, BLOCKS, bytes };

	for (unsigned i = 0; i < BLOCKS; i++) {
		from[i] = fixture_floats(bytes / 4, 1);
		to[i] = fixture_bytes(bytes);
	}
	fixture_run(b, b->ops->kv_copy, &args, way);
	for (unsigned i = 0; i < BLOCKS; i++) {
		fixture_equal(to[i], from[i], bytes, "kv_copy");
		fixture_free(from[i]);
		fixture_free(to[i]);
	}
	fixture_free(from), fixture_free(to);
}

START_TEST(kv_copy)
{
	static const size_t sizes[] = { 16, 4096, 4096 * 9 + 48 };
	const struct kern_backend *b;

	for (unsigned k = 0; (b = fixture_backend(k)); k++)
		for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
			for (unsigned way = 0; way < fixture_ways(b); way++)
				check_kv_copy(b, sizes[s], way);
}
END_TEST

void attention_tests(TCase *tc)
{
	tcase_add_loop_test(tc, attention, 0, 3);
	tcase_add_loop_test(tc, long_attention, 0, 3);
	tcase_add_loop_test(tc, attention_at_borders, 0, 3);
	tcase_add_test(tc, kv_copy);
}
