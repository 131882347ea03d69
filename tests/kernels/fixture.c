/* SPDX-License-Identifier: MIT */
/* See fixture.h. A failed comparison names what was compared, where, and both numbers. */
#include "tests/kernels/fixture.h"

#include <check.h>
#include <math.h>
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
	void *p = fixture_allocate(bytes ? bytes : 1);

	memset(p, 0xff, bytes); /* as floats: NaN, so what should not be read shows */
	return p;
}

void *fixture_copy(const void *from, size_t bytes)
{
	void *p = fixture_bytes(bytes);

	return bytes ? memcpy(p, from, bytes) : p;
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

/* Where a block has its f16 scale; a minimum stands behind it in the types that have one. */
static size_t scale_at(enum kern_dtype dtype)
{
	return dtype == KERN_Q6_K ? 208 : 0;
}

static bool has_minimum(enum kern_dtype dtype)
{
	return dtype == KERN_Q4_1 || dtype == KERN_Q5_1 || dtype == KERN_Q4_K || dtype == KERN_Q5_K;
}

static size_t stored_bytes(enum kern_dtype dtype) /* of a block or a number */
{
	size_t bytes = kern_row_bytes(dtype, quant_is_blocks(dtype) ? QUANT_BLOCK : 1);

	return bytes ? bytes : kern_row_bytes(dtype, 256);
}

/* Bytes of any pattern are codes and small scales; f16 scales and single numbers must be numbers. */
struct kern_matrix fixture_matrix(enum kern_dtype dtype, uint32_t rows, uint32_t cols, uint32_t permuted_head)
{
	size_t row_bytes = kern_row_bytes(dtype, cols), bytes = rows * row_bytes;
	uint8_t *data = fixture_bytes(bytes + 1), *p = data + 1; /* a file's tensors start anywhere */
	size_t block = stored_bytes(dtype), scale = scale_at(dtype);

	for (size_t at = 0; at < bytes; at += block) {
		float x = (0.002f + (float)fixture_random(1000) * 1e-5f) / (dtype >= KERN_Q4_K ? 16 : 1);
		float number = x * (fixture_random(2) ? 10 : -10);
		uint16_t h = half_bits(x), low = half_bits(-8 * x), f16 = half_bits(number), bf16 = quant_to_bf16(number);
		for (size_t i = 0; i < block; i++)
			p[at + i] = (uint8_t)fixture_random(256);
		if (dtype == KERN_F32)
			memcpy(p + at, &number, 4);
		else if (dtype == KERN_F16 || dtype == KERN_BF16)
			memcpy(p + at, dtype == KERN_F16 ? &f16 : &bf16, 2);
		else
			memcpy(p + at + scale, &h, 2);
		if (has_minimum(dtype))
			memcpy(p + at + 2, &low, 2);
	}
	return (struct kern_matrix){ dtype, rows, cols, permuted_head, p };
}

void fixture_fill_codes(struct kern_matrix *m, uint8_t byte)
{
	size_t bytes = m->rows * kern_row_bytes(m->dtype, m->cols), block = stored_bytes(m->dtype), scale = scale_at(m->dtype);
	uint8_t *p = (uint8_t *)(uintptr_t)m->data;

	for (size_t at = 0; at < bytes; at++)
		if (at % block < scale || at % block >= scale + (has_minimum(m->dtype) ? 4 : 2))
			p[at] = byte;
}

void fixture_free_matrix(struct kern_matrix *m)
{
	fixture_free((const uint8_t *)m->data - 1);
	m->data = NULL;
}

struct kern_weight fixture_weight(const struct kern_backend *b, const struct kern_matrix *m, enum kern_precision precision,
				  unsigned n_parts)
{
	struct kern_weight w;

	ck_assert_int_eq(b->device->weight_plan(fixture_device(b), m, precision, &w), 0);
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
		fixture_free(w->data);
	w->data = NULL;
}

/* ---- ops ---- */

static const unsigned part_counts[] = { 1, 2, 3, 7 };

unsigned fixture_ways(const struct kern_backend *b)
{
	return b->queued ? 2 : sizeof part_counts / sizeof *part_counts;
}

void fixture_run(const struct kern_backend *b, kern_op *op, const void *args, unsigned way)
{
	struct kern_device *device = fixture_device(b);
	struct kern_failure why;

	if (!b->queued) {
		for (unsigned part = part_counts[way]; part-- > 0;)
			op(device, args, part, part_counts[way]);
		return;
	}
	op(device, args, 0, 1);
	if (b->device->fence(device) == 0)
		return;
	b->device->failure(device, &why);
	ck_abort_msg("%s: %s", b->name, why.text);
}

/* ---- steps ---- */

static uint32_t count_tiles(uint32_t n_rows)
{
	return (n_rows + KERN_TILE - 1) / KERN_TILE;
}

static struct kern_tile *add_tiles(struct kern_tile *tile, uint32_t of, uint32_t n_rows)
{
	for (uint32_t first = 0; first < n_rows; first += KERN_TILE)
		*tile++ = (struct kern_tile){ of, first };
	return tile;
}

/* What follows from the sequences: of each row its position and sequence, and the tiles. */
static void place_sequences(struct kern_step *s, struct kern_extent *e)
{
	uint32_t *position = fixture_bytes(s->n_rows * sizeof *position);
	uint32_t *row_seq = fixture_bytes(s->n_rows * sizeof *row_seq);

	s->n_seq_tiles = 0;
	for (uint32_t i = 0; i < s->n_seqs; i++) {
		const struct kern_seq *seq = &s->seq[i];
		for (uint32_t j = 0; j < seq->n_rows; j++) {
			position[seq->first_row + j] = seq->first_position + j;
			row_seq[seq->first_row + j] = i;
		}
		e->n_single += seq->n_rows == 1;
		s->n_seq_tiles += seq->n_rows == 1 ? 0 : count_tiles(seq->n_rows);
		if (e->n_positions < seq->first_position + seq->n_rows)
			e->n_positions = seq->first_position + seq->n_rows;
	}
	struct kern_tile *tile = fixture_bytes(s->n_seq_tiles * sizeof *tile);
	s->seq_tile = tile;
	for (uint32_t i = 0; i < s->n_seqs; i++)
		if (s->seq[i].n_rows > 1)
			tile = add_tiles(tile, i, s->seq[i].n_rows);
	s->position = position;
	s->row_seq = row_seq;
}

static void place_segments(struct kern_step *s, struct kern_extent *e)
{
	s->n_segment_tiles = 0;
	for (uint32_t i = 0; i < s->n_segments; i++) {
		s->n_segment_tiles += count_tiles(s->segment[i].n_rows);
		e->n_scratch_rows += s->segment[i].n_rows;
	}
	struct kern_tile *tile = fixture_bytes(s->n_segment_tiles * sizeof *tile);
	s->segment_tile = tile;
	for (uint32_t i = 0; i < s->n_segments; i++)
		tile = add_tiles(tile, i, s->segment[i].n_rows);
}

static void *copy_if(const void *from, size_t bytes)
{
	return from ? fixture_copy(from, bytes) : NULL;
}

struct fixture_step fixture_step(const struct kern_step *step, unsigned way)
{
	struct fixture_step ret = { .step = fixture_copy(step, sizeof *step) };
	struct kern_step *s = ret.step;
	struct kern_extent *e = &ret.extent;

	s->token = copy_if(step->token, s->n_rows * sizeof *s->token);
	s->position = s->n_seqs ? NULL : copy_if(step->position, s->n_rows * sizeof *s->position);
	s->seq = copy_if(step->seq, s->n_seqs * sizeof *s->seq);
	s->segment = copy_if(step->segment, s->n_segments * sizeof *s->segment);
	if (s->n_seqs)
		place_sequences(s, e);
	place_segments(s, e);
	e->n_rows = s->n_rows;
	e->n_seqs = s->n_seqs;
	e->n_outputs = s->n_outputs;
	e->n_seq_tiles = s->n_seq_tiles;
	e->n_segment_tiles = s->n_segment_tiles;
	if (way > 0) { /* room for others: a recorded step */
		e->n_rows += 3, e->n_seqs += 2, e->n_single++, e->n_outputs += 2;
		e->n_seq_tiles += 2, e->n_segment_tiles += 3, e->n_positions += 300, e->n_scratch_rows += 5;
	}
	return ret;
}

void fixture_free_step(struct fixture_step *s)
{
	const void *mine[] = { s->step->token,   s->step->position, s->step->row_seq,      s->step->seq,
			       s->step->segment, s->step->seq_tile, s->step->segment_tile, s->step };

	for (size_t i = 0; i < sizeof mine / sizeof *mine; i++)
		fixture_free(mine[i]);
}

enum kern_precision fixture_truth(const struct kern_backend *b, enum kern_precision precision)
{
	return b->queued && precision == KERN_PRECISION_INT8 ? KERN_PRECISION_BF16 : precision;
}

/* ---- comparisons ---- */

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
