/* SPDX-License-Identifier: MIT */
/*
 * Attention over paged keys and values; x86-kv.h has their layout.
 *
 * Work is cut into tiles: some rows of one request x the query heads that share a KV head, up to QUERIES queries, so that
 * keys and values are read once for all of these. A tile walks the positions in stretches of 64, of 16-position spans:
 * scores (a vector is positions, sums run over e), softmax, outputs (a vector is elements, sums run over positions).
 * Softmax is online: a running maximum per query, and what was summed before it grew is scaled down. It costs about as
 * much per query and stretch as 10 positions' products do, hence stretches and not spans.
 *
 * Queries are computed up to ABREAST at a time, side by side in registers; where they are few, more spans or more elements
 * are (UNITS), so that sums enough are under way to hide a multiply-add's latency.
 *
 * int8: queries become 16-bit integers (a scale per query), and so do the weights of a stretch times the values' scales;
 * sums of a group of elements or of a stretch are exact i32: at most 256 * 127 * 32767. So products take the same
 * instructions per number as floats do half as many numbers, and what 16 bits round is far below what int8 does.
 *
 * Positions are in sections of 512. Each is summed on its own, and x86-attention-parts.c merges them in order: so several
 * parts can share a long context of few heads, and it makes no difference whether they do.
 *
 * A query's sums depend on its position alone: stretches begin at multiples of 64, sums run in order of position, and
 * queries are computed side by side, never together. Positions behind a row's own are not multiplied by 0 but left out,
 * for what stands there may be no number (int8 codes are).
 */
#include "kernels/x86-attention.h"

#include <float.h>

#define VECTORS (KV_SPAN / VL) /* of a span's scores, of 16 elements of an output */
#define ABREAST (VEC_REGISTERS == 32 ? 12u : 6u)
#define FEW 6u /* up to here each number of queries has code of its own; a few more are halved */
#define HALVED (ABREAST > FEW ? ABREAST : 2 * FEW)
#define UNITS(n) ((n) * 4 * VECTORS <= VEC_REGISTERS / 2 ? 4 : (n) * 2 * VECTORS <= (VEC_REGISTERS == 32 ? 24 : 8) ? 2 : 1)
#define INT16_MOST 32767.0f

/* Calls f(ARGS, n, UNITS(n)) for queries [q, end), n at a time. */
#define BY_QUERIES(f, q, end, ...)                                                              \
	for (unsigned q_ = (q), left_; (left_ = (end) - q_) > 0;) {                             \
		unsigned n_ = left_ >= HALVED ? ABREAST : left_ > FEW ? (left_ + 1) / 2 : left_; \
		switch (n_) {                                                                   \
		case 1: f(__VA_ARGS__, q_, 1, UNITS(1)); break;                                 \
		case 2: f(__VA_ARGS__, q_, 2, UNITS(2)); break;                                 \
		case 3: f(__VA_ARGS__, q_, 3, UNITS(3)); break;                                 \
		case 4: f(__VA_ARGS__, q_, 4, UNITS(4)); break;                                 \
		case 5: f(__VA_ARGS__, q_, 5, UNITS(5)); break;                                 \
		case 6: f(__VA_ARGS__, q_, 6, UNITS(6)); break;                                 \
		default: f(__VA_ARGS__, q_, ABREAST, UNITS(ABREAST)); break;                    \
		}                                                                               \
		q_ += n_;                                                                       \
	}

/*
 * Asks for what stands at the same place one stretch ahead. Few queries take less time over a stretch than memory does;
 * many are read several times over and need no help.
 */
INLINE void ask_ahead(const void *p, unsigned n)
{
	if (n < FEW)
		__builtin_prefetch(p);
}

/* 16 numbers of a span. */
INLINE void load16(enum kern_dtype dtype, const void *p, size_t at, vf ret[VECTORS])
{
	if (dtype == KERN_F32) {
		UNROLL for (unsigned v = 0; v < VECTORS; v++)
			ret[v] = v_load((const float *)p + at + v * VL);
	} else if (VECTORS == 1) {
		ret[0] = v_load_bf16((const uint16_t *)p + at);
	} else {
		vi both = v_iload((const uint16_t *)p + at);
		ret[0] = v_low_bf16(both);
		ret[VECTORS - 1] = v_high_bf16(both);
	}
}

/* ---- scores ---- */

INLINE void score_spans(struct x86_tile *t, uint32_t span, enum kern_dtype dtype, unsigned q, unsigned n, unsigned spans)
{
	vf sum[ABREAST][SPANS][VECTORS], k[VECTORS];

	UNROLL for (unsigned i = 0; i < n; i++)
		UNROLL for (unsigned s = 0; s < spans; s++)
			UNROLL for (unsigned v = 0; v < VECTORS; v++)
				sum[i][s][v] = v_zero();
	for (size_t j = 0; j < t->e; j++)
		UNROLL for (unsigned s = 0; s < spans; s++) {
			size_t at = j * KV_SPAN;
			load16(dtype, t->span[span + s].keys, at, k);
			ask_ahead((const uint8_t *)t->ahead[span + s].keys + at * kern_kv_number(dtype), n);
			UNROLL for (unsigned i = 0; i < n; i++)
				UNROLL for (unsigned v = 0; v < VECTORS; v++)
					sum[i][s][v] = v_fma(v_set(t->q[j][q + i]), k[v], sum[i][s][v]);
		}
	UNROLL for (unsigned i = 0; i < n; i++)
		UNROLL for (unsigned s = 0; s < spans; s++)
			UNROLL for (unsigned v = 0; v < VECTORS; v++)
				v_store(t->p[q + i] + (span + s) * KV_SPAN + v * VL, sum[i][s][v]);
}

INLINE vi pair_at(const int16_t *p)
{
	int32_t both;

	memcpy(&both, p, sizeof both);
	return v_iset(both);
}

/* Scores of one group of elements, added to what those before it came to. */
INLINE void score_group(struct x86_tile *t, uint32_t span, uint32_t group, unsigned q, unsigned n)
{
	uint32_t j = group * KERN_KV_GROUP, end = t->e - j < KERN_KV_GROUP ? t->e : j + KERN_KV_GROUP;
	const int8_t *keys = (const int8_t *)t->span[span].keys + (size_t)j * KV_SPAN;
	const int8_t *ahead = (const int8_t *)t->ahead[span].keys + (size_t)j * KV_SPAN;
	int16_t (*query)[QUERIES][2] = &t->q16[j / 2];
	vi sum[ABREAST][VECTORS];

	UNROLL for (unsigned i = 0; i < n; i++)
		UNROLL for (unsigned v = 0; v < VECTORS; v++)
			sum[i][v] = v_izero();
	for (; j < end; j += 2, query++, keys += 2 * KV_SPAN, ahead += 2 * KV_SPAN) {
		ask_ahead(ahead, n);
		UNROLL for (unsigned v = 0; v < VECTORS; v++) {
			vi k = v_widen8(keys + v * VL * 2);
			UNROLL for (unsigned i = 0; i < n; i++)
				sum[i][v] = v_dot16(sum[i][v], pair_at((*query)[q + i]), k);
		}
	}
	UNROLL for (unsigned i = 0; i < n; i++)
		UNROLL for (unsigned v = 0; v < VECTORS; v++) {
			float *p = t->p[q + i] + span * KV_SPAN + v * VL;
			vf scale = v_mul(v_load(t->span[span].key_scale + group * KV_SPAN + v * VL), v_set(t->q_scale[q + i]));
			v_store(p, v_fma(v_from_int(sum[i][v]), scale, group ? v_load(p) : v_zero()));
		}
}

/* Queries [q, q + n) times the keys of n_spans spans. */
INLINE void score(struct x86_tile *t, uint32_t n_spans, enum kern_dtype dtype, unsigned q, unsigned n, unsigned units)
{
	uint32_t s = 0;

	if (dtype == KERN_I8) {
		for (; s < n_spans; s++)
			for (uint32_t group = 0; group * KERN_KV_GROUP < t->e; group++)
				score_group(t, s, group, q, n);
		return;
	}
	for (; s + units <= n_spans; s += units)
		score_spans(t, s, dtype, q, n, units);
	for (; s < n_spans; s++)
		score_spans(t, s, dtype, q, n, 1);
}

/* ---- softmax ---- */

/* Scores to weights; only the first n_seen count. */
static void soften(struct x86_tile *t, unsigned q, uint32_t n_seen)
{
	uint32_t past = (n_seen + VL - 1) / VL * VL;
	vf most = v_set(t->most[q]), sum = v_load(t->sum[q]);
	float *p = t->p[q];

	for (uint32_t j = n_seen; j < past; j++)
		p[j] = -FLT_MAX;
	for (uint32_t j = 0; j < past; j += VL)
		most = v_max(most, v_load(p + j));
	float now = v_most(most);
	t->down[q] = 1;
	if (now > t->most[q]) {
		vf down = v_power2(v_set(t->most[q] - now));
		v_store_n(&t->down[q], 1, down);
		sum = v_mul(sum, down);
		t->most[q] = now;
	}
	for (uint32_t j = 0; j < past; j += VL)
		v_store(p + j, v_power2(v_sub(v_load(p + j), v_set(now))));
	for (uint32_t j = n_seen; j < past; j++)
		p[j] = 0;
	for (uint32_t j = 0; j < past; j += VL)
		sum = v_add(sum, v_load(p + j));
	v_store(t->sum[q], sum);
}

/* A vector's numbers times their scale as 16-bit integers; returns the scale that they got. */
static float to_int16(const float *x, uint32_t n, float most, int16_t *ret)
{
	float inverse = most > 1e-30f ? INT16_MOST / most : 0;

	for (uint32_t j = 0; j < n; j += VL)
		v_store_int16(ret + j, v_mul(v_load(x + j), v_set(inverse)));
	return most / INT16_MOST;
}

/* Weights times the scales of the values; those not seen are 0. */
static void scale_weights(struct x86_tile *t, unsigned q, uint32_t n_seen)
{
	float w[STRETCH];
	vf most = v_zero();

	for (uint32_t j = 0; j < n_seen; j += VL)
		v_store(w + j, v_mul(v_load(t->p[q] + j), v_load(t->span[j / KV_SPAN].value_scale + j % KV_SPAN)));
	for (uint32_t j = n_seen; j < STRETCH; j++)
		w[j] = 0;
	for (uint32_t j = 0; j < n_seen; j += VL)
		most = v_max(most, v_load(w + j));
	t->p_scale[q] = to_int16(w, STRETCH, v_most(most), t->p16[q]);
}

/* ---- outputs ---- */

/* Adds weighted values of positions [from, to) to elements [j, j + units * 16) of queries [q, q + n). */
INLINE void mix_units(struct x86_tile *t, uint32_t from, uint32_t to, enum kern_dtype dtype, uint32_t j, unsigned q, unsigned n,
		      unsigned units)
{
	vf y[ABREAST][SPANS][VECTORS], value[VECTORS];

	UNROLL for (unsigned i = 0; i < n; i++)
		UNROLL for (unsigned u = 0; u < units; u++)
			UNROLL for (unsigned v = 0; v < VECTORS; v++) {
				y[i][u][v] = v_load(t->y + (q + i) * t->e + j + u * KV_SPAN + v * VL);
				if (!from)
					y[i][u][v] = v_mul(y[i][u][v], v_set(t->down[q + i]));
			}
	while (from < to) {
		const uint8_t *values = t->span[from / KV_SPAN].values, *ahead = t->ahead[from / KV_SPAN].values;
		uint32_t end = (from / KV_SPAN + 1) * KV_SPAN < to ? (from / KV_SPAN + 1) * KV_SPAN : to;
		size_t at = (size_t)(from % KV_SPAN) * t->e + j;
		for (; from < end; from++, at += t->e)
			UNROLL for (unsigned u = 0; u < units; u++) {
				load16(dtype, values, at + u * KV_SPAN, value);
				ask_ahead(ahead + (at + u * KV_SPAN) * kern_kv_number(dtype), n);
				UNROLL for (unsigned i = 0; i < n; i++)
					UNROLL for (unsigned v = 0; v < VECTORS; v++)
						y[i][u][v] = v_fma(v_set(t->p[q + i][from]), value[v], y[i][u][v]);
			}
	}
	UNROLL for (unsigned i = 0; i < n; i++)
		UNROLL for (unsigned u = 0; u < units; u++)
			UNROLL for (unsigned v = 0; v < VECTORS; v++)
				v_store(t->y + (q + i) * t->e + j + u * KV_SPAN + v * VL, y[i][u][v]);
}

/* The same for 16 elements and a whole stretch, of which somebody sees n_seen positions. */
INLINE void mix_codes(struct x86_tile *t, uint32_t n_seen, uint32_t j, unsigned q, unsigned n)
{
	vi sum[ABREAST][VECTORS];

	UNROLL for (unsigned i = 0; i < n; i++)
		UNROLL for (unsigned v = 0; v < VECTORS; v++)
			sum[i][v] = v_izero();
	for (uint32_t at = 0; at < n_seen; at += KV_SPAN) {
		const int8_t *values = (const int8_t *)t->span[at / KV_SPAN].values + 2 * j;
		const int8_t *ahead = (const int8_t *)t->ahead[at / KV_SPAN].values + 2 * j;
		uint32_t end = n_seen - at < KV_SPAN ? n_seen : at + KV_SPAN;
		for (uint32_t p = at; p < end; p += 2, values += 2 * t->e, ahead += 2 * t->e) {
			ask_ahead(ahead, n);
			UNROLL for (unsigned v = 0; v < VECTORS; v++) {
				vi value = v_widen8(values + v * VL * 2);
				UNROLL for (unsigned i = 0; i < n; i++)
					sum[i][v] = v_dot16(sum[i][v], pair_at(t->p16[q + i] + p), value);
			}
		}
	}
	UNROLL for (unsigned i = 0; i < n; i++)
		UNROLL for (unsigned v = 0; v < VECTORS; v++) {
			float *y = t->y + (q + i) * t->e + j + v * VL;
			vf before = v_mul(v_load(y), v_set(t->down[q + i]));
			v_store(y, v_fma(v_from_int(sum[i][v]), v_set(t->p_scale[q + i]), before));
		}
}

INLINE void mix(struct x86_tile *t, uint32_t from, uint32_t to, enum kern_dtype dtype, unsigned q, unsigned n, unsigned units)
{
	uint32_t j = 0;

	if (dtype == KERN_I8) {
		for (; j < t->e; j += KV_SPAN)
			mix_codes(t, to, j, q, n);
		return;
	}
	for (; j + units * KV_SPAN <= t->e; j += units * KV_SPAN)
		mix_units(t, from, to, dtype, j, q, n, units);
	for (; j < t->e; j += KV_SPAN)
		mix_units(t, from, to, dtype, j, q, n, 1);
}

/* ---- tiles ---- */

/* How many of the stretch's positions a row of the tile sees, 0 if it comes before them. */
INLINE uint32_t seen(const struct x86_tile *t, uint32_t at, uint32_t row)
{
	uint32_t position = t->seq->first_position + t->row + row;

	return position < at ? 0 : position - at < STRETCH ? position - at + 1 : STRETCH;
}

INLINE void see_stretch(struct x86_tile *t, uint32_t at, enum kern_dtype dtype)
{
	uint32_t most = seen(t, at, t->n_rows - 1), kv_head = t->head / (t->a->n_heads / t->a->kv->n_kv_heads), row = 0;

	for (uint32_t s = 0; s * KV_SPAN < most; s++) {
		uint32_t position = at + s * KV_SPAN;
		bool more = seen(t, position + STRETCH, t->n_rows - 1);
		t->span[s] = x86_span(t->a->step, t->seq, t->a->kv, t->a->layer, kv_head, position);
		t->ahead[s] = x86_span(t->a->step, t->seq, t->a->kv, t->a->layer, kv_head, position + more * STRETCH);
	}
	while (!seen(t, at, row))
		row++;
	uint32_t q = row * t->n_heads, least = seen(t, at, row);
	BY_QUERIES(score, q, t->n, t, (most + KV_SPAN - 1) / KV_SPAN, dtype)
	for (uint32_t i = q; i < t->n; i++) {
		uint32_t n_seen = seen(t, at, i / t->n_heads);
		soften(t, i, n_seen);
		if (dtype == KERN_I8)
			scale_weights(t, i, n_seen);
	}
	BY_QUERIES(mix, q, t->n, t, 0, dtype == KERN_I8 ? most : least, dtype)
	for (; dtype != KERN_I8 && row < t->n_rows; row++)
		if (seen(t, at, row) > least)
			BY_QUERIES(mix, row * t->n_heads, (row + 1) * t->n_heads, t, least, seen(t, at, row), dtype)
}

#define WALK(name, dtype)                                                                          \
	static void name(struct x86_tile *t, uint32_t at, uint32_t end)                                \
	{                                                                                          \
		for (; at < end && seen(t, at, t->n_rows - 1); at += STRETCH)                      \
			see_stretch(t, at, dtype);                                                 \
	}
WALK(walk_f32, KERN_F32)
WALK(walk_bf16, KERN_BF16)
WALK(walk_int8, KERN_I8)

/* A query times what makes a score of it, in powers of 2. */
static void take_query(struct x86_tile *t, unsigned q, const float *from)
{
	float scale = 0x1.715476p0f / sqrtf((float)t->e), x[KV_HEAD_DIM_MAX];
	int16_t code[KV_HEAD_DIM_MAX];
	vf most = v_zero();

	for (uint32_t j = 0; j < t->e; j++)
		t->q[j][q] = x[j] = from[j] * scale;
	if (t->a->kv->dtype == KERN_I8) {
		for (uint32_t j = 0; j < t->e; j += VL)
			most = v_max(most, v_abs(v_load(x + j)));
		t->q_scale[q] = to_int16(x, t->e, v_most(most), code);
		for (uint32_t j = 0; j < t->e; j++)
			t->q16[j / 2][q][j % 2] = code[j];
	}
}

void X86(attention_take)(struct x86_tile *t)
{
	t->n = t->n_rows * t->n_heads;
	for (unsigned q = 0; q < t->n; q++)
		take_query(t, q, t->a->q + x86_first_number(t, q));
}

void X86(attention_section)(struct x86_tile *t, uint32_t section, float *ret)
{
	enum kern_dtype dtype = t->a->kv->dtype;

	memset(t->sum, 0, sizeof t->sum);
	memset(t->y, 0, t->n * t->e * sizeof *t->y);
	for (unsigned q = 0; q < t->n; q++)
		t->most[q] = -FLT_MAX;
	(dtype == KERN_F32 ? walk_f32 : dtype == KERN_BF16 ? walk_bf16 : walk_int8)(t, section * SECTION, (section + 1) * SECTION);
	for (unsigned q = 0; q < t->n; q++, ret += SUMS(t->e, 1)) {
		ret[0] = t->most[q];
		ret[1] = v_sum(v_load(t->sum[q]));
		memcpy(ret + 2, t->y + q * t->e, t->e * sizeof *t->y);
	}
}
