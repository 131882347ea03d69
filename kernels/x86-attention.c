/* SPDX-License-Identifier: MIT */
/*
 * Attention over paged keys and values, and the op that writes them.
 *
 * Work is cut into tiles: up to ROWS rows of one request x up to HEADS query heads that share a KV head, so that keys
 * and values are read once for all of these. A tile walks the positions in spans of 16 (blocks hold whole spans). Keys
 * lie [e][token], so 16 scores are one vector that sums over e; values lie [token][e], so an output is vectors that sum
 * over tokens. Softmax is online: a running maximum per query, and what was summed before it grew is scaled down.
 *
 * The order of a query's sums depends on its position alone; queries are computed side by side, never together. Head
 * sizes and blocks that are no multiple of 16 take ref's way.
 */
#include "kernels/x86.h"

#include <float.h>

#define SPAN 16
#define VECTORS (SPAN / VL)                     /* of a span's scores */
#define ROWS 4
#define HEADS 4
#define QUERIES (ROWS * HEADS)
#define ABREAST (VEC_REGISTERS == 32 ? 4 : 2)   /* queries side by side in registers */
#define WIDE 4                                  /* vectors of an output at a time */
#define HEAD_DIM_MAX 256

struct tile {
	const struct kern_attention *a;
	const struct kern_seq *seq;
	uint32_t row, n_rows;                   /* rows of the request, counted from its first in this step */
	uint32_t head, n_heads;                 /* query heads of one KV head */
	uint32_t n;                             /* queries: query q is row q / n_heads, head q % n_heads */
	const float *q[QUERIES];
	float most[QUERIES];
	float p[QUERIES][SPAN];                 /* scores of a span, then weights */
	float sum[QUERIES][VL];                 /* of weights, by lane */
	float y[QUERIES][HEAD_DIM_MAX];
};

INLINE vf load_kv(enum kern_dtype dtype, const void *p, size_t at)
{
	return dtype == KERN_F32 ? v_load((const float *)p + at) : v_load_bf16((const uint16_t *)p + at);
}

/* Queries [q, q + n): 16 scores each. */
INLINE void score(struct tile *t, unsigned q, unsigned n, const void *keys, enum kern_dtype dtype)
{
	uint32_t e = t->a->kv->head_dim, tokens = t->a->kv->block_tokens;
	vf sum[ABREAST][VECTORS];

	UNROLL for (unsigned i = 0; i < n; i++)
		UNROLL for (unsigned v = 0; v < VECTORS; v++)
			sum[i][v] = v_zero();
	for (uint32_t j = 0; j < e; j++)
		UNROLL for (unsigned v = 0; v < VECTORS; v++) {
			vf k = load_kv(dtype, keys, (size_t)j * tokens + v * VL);
			UNROLL for (unsigned i = 0; i < n; i++)
				sum[i][v] = v_fma(v_set(t->q[q + i][j]), k, sum[i][v]);
		}
	UNROLL for (unsigned i = 0; i < n; i++)
		UNROLL for (unsigned v = 0; v < VECTORS; v++)
			v_store(t->p[q + i] + v * VL, sum[i][v]);
}

/* Scores to weights; only the first n_seen count. Scales down what query q has so far if its maximum grew. */
static void soften(struct tile *t, unsigned q, uint32_t n_seen, float scale)
{
	vf s[VECTORS], most = v_set(t->most[q]), sum = v_load(t->sum[q]);
	uint32_t e = t->a->kv->head_dim;

	for (uint32_t j = n_seen; j < SPAN; j++)
		t->p[q][j] = -FLT_MAX;
	for (unsigned v = 0; v < VECTORS; v++) {
		s[v] = v_mul(v_load(t->p[q] + v * VL), v_set(scale));
		most = v_max(most, s[v]);
	}
	float now = v_most(most);
	if (now > t->most[q]) {
		vf down = v_exp(v_set(t->most[q] - now));
		sum = v_mul(sum, down);
		for (uint32_t j = 0; j < e; j += VL)
			v_store(t->y[q] + j, v_mul(v_load(t->y[q] + j), down));
		t->most[q] = now;
	}
	for (unsigned v = 0; v < VECTORS; v++)
		v_store(t->p[q] + v * VL, v_exp(v_sub(s[v], v_set(now))));
	for (uint32_t j = n_seen; j < SPAN; j++)
		t->p[q][j] = 0;
	for (unsigned v = 0; v < VECTORS; v++)
		sum = v_add(sum, v_load(t->p[q] + v * VL));
	v_store(t->sum[q], sum);
}

/* Adds n_seen weighted values to outputs [j, j + vectors * VL) of queries [q, q + n). */
INLINE void mix(struct tile *t, unsigned q, unsigned n, uint32_t n_seen, const void *values, enum kern_dtype dtype,
		uint32_t j, unsigned vectors)
{
	vf y[ABREAST][WIDE];

	UNROLL for (unsigned i = 0; i < n; i++)
		UNROLL for (unsigned v = 0; v < vectors; v++)
			y[i][v] = v_load(t->y[q + i] + j + v * VL);
	for (uint32_t token = 0; token < n_seen; token++)
		UNROLL for (unsigned v = 0; v < vectors; v++) {
			vf value = load_kv(dtype, values, (size_t)token * t->a->kv->head_dim + j + v * VL);
			UNROLL for (unsigned i = 0; i < n; i++)
				y[i][v] = v_fma(v_set(t->p[q + i][token]), value, y[i][v]);
		}
	UNROLL for (unsigned i = 0; i < n; i++)
		UNROLL for (unsigned v = 0; v < vectors; v++)
			v_store(t->y[q + i] + j + v * VL, y[i][v]);
}

INLINE void mix_queries(struct tile *t, unsigned q, unsigned n, uint32_t n_seen, const void *values,
			enum kern_dtype dtype)
{
	uint32_t j = 0;

	for (; j + WIDE * VL <= t->a->kv->head_dim; j += WIDE * VL)
		mix(t, q, n, n_seen, values, dtype, j, WIDE);
	for (; j < t->a->kv->head_dim; j += VL)
		mix(t, q, n, n_seen, values, dtype, j, 1);
}

/* Queries [q, end) see the first n_seen positions of a span. */
INLINE void see_span(struct tile *t, unsigned q, unsigned end, uint32_t n_seen, const void *keys, const void *values,
		     enum kern_dtype dtype)
{
	float scale = 1 / sqrtf((float)t->a->kv->head_dim);
	unsigned i = q;

	for (; i + ABREAST <= end; i += ABREAST)
		score(t, i, ABREAST, keys, dtype);
	if (i + 3 == end && ABREAST > 3) { /* groups of three heads are common */
		score(t, i, 3 < ABREAST ? 3 : 1, keys, dtype);
		i = end;
	}
	for (; i < end; i++)
		score(t, i, 1, keys, dtype);
	for (i = q; i < end; i++)
		soften(t, i, n_seen, scale);
	for (i = q; i + ABREAST <= end; i += ABREAST)
		mix_queries(t, i, ABREAST, n_seen, values, dtype);
	if (i + 3 == end && ABREAST > 3) {
		mix_queries(t, i, 3 < ABREAST ? 3 : 1, n_seen, values, dtype);
		i = end;
	}
	for (; i < end; i++)
		mix_queries(t, i, 1, n_seen, values, dtype);
}

/* Where a KV head's keys and values of the span at `position` lie. */
static void locate(const struct tile *t, uint32_t position, const uint8_t **ret_keys, const uint8_t **ret_values)
{
	const struct kern_kv_layout *kv = t->a->kv;
	uint32_t token = position % kv->block_tokens, kv_head = t->head / (t->a->n_heads / kv->n_kv_heads);
	size_t number = kern_dtype_bytes(kv->dtype), head_bytes = (size_t)kv->block_tokens * kv->head_dim * number;
	const uint8_t *block = t->a->step->kv_block[t->seq->block_index + position / kv->block_tokens];

	*ret_keys = block + t->a->layer * kv->layer_bytes + kv_head * head_bytes + token * number;
	*ret_values = block + t->a->layer * kv->layer_bytes + (kv->n_kv_heads + kv_head) * head_bytes +
		      (size_t)token * kv->head_dim * number;
}

INLINE void walk(struct tile *t, enum kern_dtype dtype)
{
	uint32_t last = t->seq->first_position + t->row + t->n_rows - 1;
	const uint8_t *keys, *values;

	for (uint32_t at = 0; at <= last; at += SPAN) {
		uint32_t first = t->seq->first_position + t->row;
		locate(t, at, &keys, &values);
		if (first >= at + SPAN - 1) { /* all rows see all of it */
			see_span(t, 0, t->n, SPAN, keys, values, dtype);
			continue;
		}
		for (uint32_t i = 0; i < t->n_rows; i++) {
			uint32_t seen = first + i < at ? 0 : first + i - at + 1;
			if (seen)
				see_span(t, i * t->n_heads, (i + 1) * t->n_heads, seen < SPAN ? seen : SPAN, keys, values,
					 dtype);
		}
	}
}

static void run_tile(struct tile *t)
{
	const struct kern_attention *a = t->a;
	uint32_t e = a->kv->head_dim;

	t->n = t->n_rows * t->n_heads;
	for (unsigned q = 0; q < t->n; q++) {
		size_t row = t->seq->first_row + t->row + q / t->n_heads;
		t->q[q] = a->q + (row * a->n_heads + t->head + q % t->n_heads) * e;
		t->most[q] = -FLT_MAX;
		memset(t->sum[q], 0, sizeof t->sum[q]);
		memset(t->y[q], 0, e * sizeof(float));
	}
	if (a->kv->dtype == KERN_F32)
		walk(t, KERN_F32);
	else
		walk(t, KERN_BF16);
	for (unsigned q = 0; q < t->n; q++) {
		vf inverse = v_set(1 / v_sum(v_load(t->sum[q])));
		float *y = a->y + (t->q[q] - a->q);
		for (uint32_t j = 0; j < e; j += VL)
			v_store(y + j, v_mul(v_load(t->y[q] + j), inverse));
	}
}

/* Heads [head, end) of a tile of rows, a few of one KV head at a time. */
static void run_heads(struct tile *t, uint32_t head, uint32_t end)
{
	uint32_t group = t->a->n_heads / t->a->kv->n_kv_heads;

	while (head < end) {
		uint32_t same = group - head % group, n = end - head < same ? end - head : same;
		t->head = head;
		t->n_heads = n < HEADS ? n : HEADS;
		run_tile(t);
		head += t->n_heads;
	}
}

/* About how long a head of a tile takes. */
static uint64_t cost(const struct kern_seq *seq, uint32_t row, uint32_t n_rows)
{
	return (uint64_t)n_rows * (seq->first_position + row + n_rows + SPAN);
}

/* Every part walks all tiles and takes, of each, the heads whose cost begins within its share of the whole. */
void X86(attention)(struct kern_device *device, const void *args, unsigned part, unsigned n_parts)
{
	const struct kern_attention *a = args;
	const struct kern_seq *end = a->step->seq + a->step->n_seqs;
	uint64_t total = 0, at = 0;
	struct tile t = { .a = a };

	if (a->kv->head_dim % SPAN || a->kv->block_tokens % SPAN || a->kv->head_dim > HEAD_DIM_MAX) {
		kern_ref.ops->attention(device, args, part, n_parts);
		return;
	}
	for (t.seq = a->step->seq; t.seq < end; t.seq++)
		for (uint32_t row = 0; row < t.seq->n_rows; row += ROWS)
			total += a->n_heads * cost(t.seq, row, t.seq->n_rows - row < ROWS ? t.seq->n_rows - row : ROWS);
	uint64_t from = total * part / n_parts, to = total * (part + 1) / n_parts;
	for (t.seq = a->step->seq; t.seq < end; t.seq++)
		for (t.row = 0; t.row < t.seq->n_rows; t.row += ROWS) {
			t.n_rows = t.seq->n_rows - t.row < ROWS ? t.seq->n_rows - t.row : ROWS;
			uint64_t each = cost(t.seq, t.row, t.n_rows), whole = each * a->n_heads;
			uint32_t first = at >= from ? 0 : (uint32_t)((from - at + each - 1) / each);
			uint32_t past = at >= to ? 0 : (uint32_t)((to - at + each - 1) / each);
			run_heads(&t, first < a->n_heads ? first : a->n_heads, past < a->n_heads ? past : a->n_heads);
			at += whole;
		}
}

static void write_row(const struct kern_kv_write *a, const struct kern_seq *seq, uint32_t i)
{
	const struct kern_kv_layout *kv = a->kv;
	uint32_t e = kv->head_dim, position = seq->first_position + i, token = position % kv->block_tokens;
	size_t half = (size_t)kv->n_kv_heads * kv->block_tokens * e;
	uint8_t *to = (uint8_t *)a->step->kv_block[seq->block_index + position / kv->block_tokens] + a->layer * kv->layer_bytes;

	for (uint32_t head = 0; head < kv->n_kv_heads; head++) {
		const float *k = a->k + ((size_t)(seq->first_row + i) * kv->n_kv_heads + head) * e;
		const float *v = a->v + ((size_t)(seq->first_row + i) * kv->n_kv_heads + head) * e;
		size_t key = (size_t)head * kv->block_tokens * e + token;
		size_t value = half + ((size_t)head * kv->block_tokens + token) * e;
		for (uint32_t j = 0; kv->dtype == KERN_F32 && j < e; j++) {
			((float *)to)[key + (size_t)j * kv->block_tokens] = k[j];
			((float *)to)[value + j] = v[j];
		}
		for (uint32_t j = 0; kv->dtype == KERN_BF16 && j < e; j++) {
			((uint16_t *)to)[key + (size_t)j * kv->block_tokens] = quant_to_bf16(k[j]);
			((uint16_t *)to)[value + j] = quant_to_bf16(v[j]);
		}
	}
}

void X86(kv_write)(struct kern_device *device, const void *args, unsigned part, unsigned n_parts)
{
	const struct kern_kv_write *a = args;
	uint32_t first, end;

	(void)device;
	host_part(a->step->n_rows, 1, part, n_parts, &first, &end);
	for (const struct kern_seq *s = a->step->seq; s < a->step->seq + a->step->n_seqs; s++)
		for (uint32_t i = 0; i < s->n_rows; i++)
			if (s->first_row + i >= first && s->first_row + i < end)
				write_row(a, s, i);
}
