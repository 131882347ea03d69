/* SPDX-License-Identifier: MIT */
/*
 * Attention's tiles and who computes them; x86-attention.c does the computing.
 *
 * Work is cut into parts by cost, so that each gets about as much. A part takes heads of tiles of rows, all those of a KV head
 * together if there is enough to do for all parts, or, where single rows with long contexts are all there is, sections of
 * tiles. Of these the part that ends the last one merges all, in order: which part does what shows in no bit.
 */
#include "kernels/x86-attention.h"

#include <stdatomic.h>

static uint32_t count_sections(const struct x86_tile *t)
{
	return (t->seq->first_position + t->row + t->n_rows + SECTION - 1) / SECTION;
}

/* A later section to what all before it came to. A query may see nothing of it. */
static void merge(const struct x86_tile *t, float *total, const float *section)
{
	for (unsigned q = 0; q < t->n; q++, total += SUMS(t->e, 1), section += SUMS(t->e, 1)) {
		float most = fmaxf(total[0], section[0]);
		if (!(section[1] > 0))
			continue;
		vf down = v_power2(v_set(total[0] - most)), up = v_power2(v_set(section[0] - most));
		total[0] = most;
		v_store_n(total + 1, 1, v_fma(v_set(section[1]), up, v_mul(v_set(total[1]), down)));
		for (uint32_t j = 2; j < t->e + 2; j += VL)
			v_store(total + j, v_fma(v_load(section + j), up, v_mul(v_load(total + j), down)));
	}
}

static void finish(const struct x86_tile *t, const float *total)
{
	for (unsigned q = 0; q < t->n; q++, total += SUMS(t->e, 1)) {
		vf inverse = v_set(1 / total[1]);
		float *y = t->a->y + x86_first_number(t, q);
		for (uint32_t j = 0; j < t->e; j += VL)
			v_store(y + j, v_mul(v_load(total + 2 + j), inverse));
	}
}

static void run_tile(struct x86_tile *t)
{
	X86(attention_take)(t);
	X86(attention_section)(t, 0, t->total);
	for (uint32_t i = 1; i < count_sections(t); i++) {
		X86(attention_section)(t, i, t->section);
		merge(t, t->total, t->section);
	}
	finish(t, t->total);
}

/* ---- parts ---- */

struct cut { /* of the work into parts */
	uint32_t rows;  /* of a tile */
	uint32_t heads; /* that stay together: one, or all of a KV head if there is enough to do for all parts */
	bool sections;  /* of a tile may go to several parts */
	uint64_t total;
};

/* About how long a head of a tile takes for so many positions. */
static uint64_t cost(uint32_t n_rows, uint32_t positions)
{
	return (uint64_t)n_rows * (positions + KV_SPAN);
}

/* t->seq, row, n_rows */
static uint64_t section_cost(const struct x86_tile *t, uint32_t section)
{
	uint32_t end = t->seq->first_position + t->row + t->n_rows, left = end - section * SECTION;

	return t->n_heads * cost(t->n_rows, left < SECTION ? left : SECTION);
}

static uint32_t rows_of(const struct cut *c, const struct kern_seq *seq, uint32_t row)
{
	return seq->n_rows - row < c->rows ? seq->n_rows - row : c->rows;
}

/*
 * Where a part leaves a section that it has done: how many of a tile are done [SHARED_MAX], then SUMS(e, HEADS) each. Only
 * single rows are shared; there are many tiles of others.
 */
#define SHARED_MAX 256u

static float *shared_section(const struct x86_tile *t, uint64_t i)
{
	return (float *)((uint32_t *)t->a->sections + SHARED_MAX) + i * SUMS(t->e, HEADS);
}

static size_t shared_bytes(uint64_t n_sections, uint32_t e)
{
	return SHARED_MAX * sizeof(uint32_t) + n_sections * SUMS(e, HEADS) * sizeof(float);
}

static uint32_t tiles_of_row(const struct kern_kv_layout *kv, uint32_t n_heads)
{
	return kv->n_kv_heads * ((n_heads / kv->n_kv_heads + HEADS - 1) / HEADS);
}

/**
 * attention_bytes() - memory with which parts can share a long context: struct kern_attention, sections
 *
 * Enough for four sequences; where more have long contexts there are tiles enough for all parts.
 */
size_t X86(attention_bytes)(const struct kern_kv_layout *kv, uint32_t n_heads, uint32_t context)
{
	return shared_bytes(4 * (uint64_t)tiles_of_row(kv, n_heads) * (context / SECTION + 1), kv->head_dim);
}

static struct cut make_cut(const struct kern_attention *a, unsigned n_parts)
{
	uint32_t group = a->n_heads / a->kv->n_kv_heads, each = tiles_of_row(a->kv, a->n_heads);
	struct cut c = { .rows = QUERIES / (group < HEADS ? group : HEADS) };
	uint64_t tiles = 0, sections = 0, sections_total = 0;
	bool single = true;

	for (const struct kern_seq *s = a->step->seq; s < a->step->seq + a->step->n_seqs; s++) {
		single &= s->n_rows == 1;
		for (uint32_t row = 0; row < s->n_rows; row += c.rows, tiles += each) {
			uint32_t n = rows_of(&c, s, row), end = s->first_position + row + n;
			uint32_t last = (end - 1) / SECTION;
			c.total += a->n_heads * cost(n, end);
			sections += (uint64_t)each * (last + 1);
			sections_total += a->n_heads * (last * cost(n, SECTION) + cost(n, end - last * SECTION));
		}
	}
	c.heads = tiles * 2 < n_parts ? 1 : group;
	c.sections = single && tiles < 2 * n_parts && tiles <= SHARED_MAX && sections > tiles &&
		     shared_bytes(sections, a->kv->head_dim) <= a->section_bytes;
	c.total = c.sections ? sections_total : c.total;
	return c;
}

/* The first head of a tile of which a head begins at `at` and takes `each` that begins at or after `border`. */
static uint32_t first_head(uint64_t border, uint64_t at, uint64_t each, const struct cut *c, uint32_t n_heads)
{
	uint64_t bundle = each * c->heads, head = at >= border ? 0 : (border - at + bundle - 1) / bundle * c->heads;

	return head < n_heads ? (uint32_t)head : n_heads;
}

struct share { /* of a part */
	uint64_t from, to;  /* costs */
	uint64_t at;        /* cost of all before */
	uint32_t tile;      /* number of tiles and sections before, when they are shared */
	uint64_t section;
};

/* Those sections of a tile that are this part's, and all that is left to do once none is missing. */
static void share_tile(struct x86_tile *t, struct share *share)
{
	_Atomic uint32_t *done = (_Atomic uint32_t *)t->a->sections + share->tile++;
	uint32_t n = count_sections(t), mine = 0;

	for (uint32_t i = 0; i < n; i++) {
		if (share->at >= share->from && share->at < share->to) {
			if (!mine++)
				X86(attention_take)(t);
			X86(attention_section)(t, i, shared_section(t, share->section + i));
		}
		share->at += section_cost(t, i);
	}
	if (mine && atomic_fetch_add(done, mine) + mine == n) {
		for (uint32_t i = 1; i < n; i++)
			merge(t, shared_section(t, share->section), shared_section(t, share->section + i));
		finish(t, shared_section(t, share->section));
		atomic_store(done, 0); /* for the next layer */
	}
	share->section += n;
}

/* Heads of a tile that are this part's, a few of one KV head at a time. */
static void run_heads(struct x86_tile *t, uint32_t head, uint32_t end, struct share *share)
{
	uint32_t group = t->a->n_heads / t->a->kv->n_kv_heads;

	while (head < end) {
		uint32_t same = group - head % group, n = end - head < same ? end - head : same;
		t->head = head;
		t->n_heads = n < HEADS ? n : HEADS;
		if (share)
			share_tile(t, share);
		else
			run_tile(t);
		head += t->n_heads;
	}
}

/* Every part walks all tiles and takes, of each, the heads or the sections whose cost begins within its share of the whole. */
void X86(attention)(struct kern_device *device, const void *args, unsigned part, unsigned n_parts)
{
	const struct kern_attention *a = args;
	struct x86_tile t; /* not cleared: it is large */

	if (!x86_kv_own(a->kv)) {
		kern_ref.ops->attention(device, args, part, n_parts);
		return;
	}
	struct cut c = make_cut(a, n_parts);
	struct share share = { .from = c.total * part / n_parts, .to = c.total * (part + 1) / n_parts };
	t.a = a;
	t.e = a->kv->head_dim;
	for (t.seq = a->step->seq; t.seq < a->step->seq + a->step->n_seqs; t.seq++)
		for (t.row = 0; t.row < t.seq->n_rows; t.row += c.rows) {
			t.n_rows = rows_of(&c, t.seq, t.row);
			if (c.sections) {
				run_heads(&t, 0, a->n_heads, &share);
				continue;
			}
			uint64_t each = cost(t.n_rows, t.seq->first_position + t.row + t.n_rows);
			run_heads(&t, first_head(share.from, share.at, each, &c, a->n_heads),
				  first_head(share.to, share.at, each, &c, a->n_heads), NULL);
			share.at += each * a->n_heads;
		}
}
