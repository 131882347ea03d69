/* SPDX-License-Identifier: MIT */
/*
 * kern_ref: the scalar truth. Every op for every format and precision, as plain as C can say it; the other backends
 * are tested against this one, and `--isa scalar` runs on it.
 *
 * Weights stay as the file stores them and are decoded as they are used; only rows that llama.cpp permuted are copied
 * into Hugging Face's order. struct kern_weight.layout is dtype + 16 * precision.
 */
#include <assert.h>
#include <math.h>

#include "kernels/host.h"
#include "kernels/quant.h"

#define TILE_ROWS 16 /* rows that share one decoding of a weight */

kern_op sample_scalar; /* sample.c */

_Static_assert(_KERN_DTYPE_N <= 16, "struct kern_weight.layout has 16 types");

enum activation { ACTIVATION_F32, ACTIVATION_Q8 }; /* Q8: two struct quant_q8 a block, its values and its rest or zero */

static enum kern_dtype weight_dtype(const struct kern_weight *w)
{
	return (enum kern_dtype)(w->layout % 16);
}

static enum kern_precision weight_precision(const struct kern_weight *w)
{
	return (enum kern_precision)(w->layout / 16);
}

static int ref_weight_plan(struct kern_device *device, const struct kern_matrix *m, enum kern_precision precision,
			   struct kern_weight *ret)
{
	int r = host_check_matrix(m, precision);

	(void)device;
	if (r < 0)
		return r;
	if (precision == KERN_PRECISION_INT8 && !quant_is_blocks(m->dtype))
		precision = KERN_PRECISION_BF16;
	*ret = (struct kern_weight){
		.rows = m->rows,
		.cols = m->cols,
		.layout = (uint8_t)(m->dtype + 16 * (unsigned)precision),
		.activation = precision == KERN_PRECISION_INT8 ? ACTIVATION_Q8 : ACTIVATION_F32,
		.grain = 1,
		.grain_bytes = kern_row_bytes(m->dtype, m->cols),
		.bytes = m->permuted_head ? m->rows * kern_row_bytes(m->dtype, m->cols) : 0,
	};
	return 0;
}

static void ref_weight_pack(const struct kern_weight *w, const struct kern_matrix *m, uint32_t first, uint32_t n, void *to)
{
	size_t row_bytes = w->grain_bytes;

	for (uint32_t i = 0; i < n; i++)
		memcpy((uint8_t *)to + i * row_bytes, (const uint8_t *)m->data + host_stored_row(m, first + i) * row_bytes,
		       row_bytes);
}

static void ref_weight_release(struct kern_weight *w)
{
	w->handle = NULL;
}

struct block { /* of an activation row for quantised weights */
	struct quant_q8 codes;
	float outlier[QUANT_BLOCK]; /* 0 where there is none (quant.h) */
};

static size_t ref_activation_bytes(uint8_t activation, uint32_t cols)
{
	return activation == ACTIVATION_Q8 ? cols / QUANT_BLOCK * sizeof(struct block) : 0;
}

/* Columns [first, first + n) of a weight's row, in the precision its products are made in. */
static void decode(const struct kern_weight *w, uint32_t row, uint32_t first, uint32_t n, float *ret)
{
	enum kern_dtype dtype = weight_dtype(w);

	quant_decode(dtype, (const uint8_t *)w->data + row * kern_row_bytes(dtype, w->cols), first, n, ret);
	for (uint32_t j = 0; weight_precision(w) == KERN_PRECISION_BF16 && j < n; j++)
		ret[j] = quant_round_bf16(ret[j]);
}

static void ref_embed(struct kern_device *device, const void *args, unsigned part, unsigned n_parts)
{
	const struct kern_embed *a = args;
	uint32_t i, end;

	(void)device;
	for (host_part(a->step->n_rows, 1, part, n_parts, &i, &end); i < end; i++)
		decode(a->table, a->step->token[i], 0, a->table->cols, a->x + (size_t)i * a->table->cols);
}

static void ref_rms_norm(struct kern_device *device, const void *args, unsigned part, unsigned n_parts)
{
	const struct kern_rms_norm *a = args;
	uint32_t i, end;

	(void)device;
	for (host_part(a->n, 1, part, n_parts, &i, &end); i < end; i++) {
		const float *x = a->x + (size_t)(a->row ? a->row[i] : i) * a->d;
		float sum = 0;
		for (uint32_t j = 0; j < a->d; j++)
			sum += x[j] * x[j];
		float scale = 1 / sqrtf(sum / (float)a->d + a->eps);
		for (uint32_t j = 0; j < a->d; j++)
			a->y[(size_t)i * a->d + j] = x[j] * scale * a->gain[j];
	}
}

static void encode_row(const float *x, uint32_t cols, struct block *to)
{
	double squares = 0; /* near enough to any order of adding that no number falls on the other side of the border */
	float border, rest[QUANT_BLOCK];

	for (uint32_t k = 0; k < cols; k++)
		squares += (double)x[k] * x[k];
	border = quant_border((float)squares, cols);
	for (uint32_t k = 0; k < cols; k += QUANT_BLOCK, to++) {
		for (unsigned j = 0; j < QUANT_BLOCK; j++) {
			to->outlier[j] = fabsf(x[k + j]) > border ? x[k + j] : 0;
			rest[j] = fabsf(x[k + j]) > border ? 0 : x[k + j];
		}
		quant_encode_q8(rest, &to->codes);
	}
}

static void ref_activate(struct kern_device *device, const void *args, unsigned part, unsigned n_parts)
{
	const struct kern_activate *a = args;
	uint32_t i, end;

	(void)device;
	if (a->activation == ACTIVATION_F32)
		return;
	assert(a->cols % QUANT_BLOCK == 0);
	for (host_part(a->n, 1, part, n_parts, &i, &end); i < end; i++)
		encode_row(a->x + (size_t)i * a->cols, a->cols,
			   (struct block *)a->to + (size_t)i * (a->cols / QUANT_BLOCK));
}

/* 32 weights times 32 activations, both as integers, half by half. */
static float dot_codes(const struct quant_group *w, const struct quant_q8 *x)
{
	float ret = 0;

	for (unsigned half = 0; half < 2; half++) {
		int dot = 0, sum = 0;
		for (unsigned j = half * 16; j < half * 16 + 16; j++) {
			dot += w->code[j] * x->q[j];
			sum += x->q[j];
		}
		ret += w->d[half] * (x->scale * (float)dot) + w->m[half] * (x->scale * (float)sum);
	}
	return ret;
}

/* sum[i] = weight row o . x row i, for n <= TILE_ROWS rows from row first on. */
static void dot_int8(const struct kern_matmul *a, uint32_t o, uint32_t first, uint32_t n, float *sum)
{
	enum kern_dtype dtype = weight_dtype(a->w);
	uint32_t blocks = a->w->cols / QUANT_BLOCK;
	const uint8_t *w = (const uint8_t *)a->w->data + o * kern_row_bytes(dtype, a->w->cols);
	const struct block *x = (const struct block *)a->activated + (size_t)first * blocks;
	struct quant_group g;
	float numbers[QUANT_BLOCK];

	for (uint32_t b = 0; b < blocks; b++) {
		quant_group(dtype, w, b, &g);
		quant_group_decode(&g, numbers);
		for (uint32_t i = 0; i < n; i++) {
			const struct block *block = x + (size_t)i * blocks + b;
			sum[i] += dot_codes(&g, &block->codes);
			for (unsigned j = 0; j < QUANT_BLOCK; j++)
				sum[i] += numbers[j] * block->outlier[j];
		}
	}
}

static void dot_float(const struct kern_matmul *a, uint32_t o, uint32_t first, uint32_t n, float *sum)
{
	bool rounds = weight_precision(a->w) == KERN_PRECISION_BF16;
	uint32_t cols = a->w->cols;
	float w[QUANT_BLOCK];

	for (uint32_t at = 0; at < cols; at += QUANT_BLOCK) {
		uint32_t width = cols - at < QUANT_BLOCK ? cols - at : QUANT_BLOCK;
		decode(a->w, o, at, width, w);
		for (uint32_t i = 0; i < n; i++) {
			const float *x = a->x + (size_t)(first + i) * cols + at;
			float s = 0;
			for (uint32_t j = 0; j < width; j++)
				s += w[j] * (rounds ? quant_round_bf16(x[j]) : x[j]);
			sum[i] += s;
		}
	}
}

static void ref_matmul(struct kern_device *device, const void *args, unsigned part, unsigned n_parts)
{
	const struct kern_matmul *a = args;
	uint32_t o, end;

	(void)device;
	for (host_part(a->w->rows, 1, part, n_parts, &o, &end); o < end; o++)
		for (uint32_t first = 0; first < a->n; first += TILE_ROWS) {
			uint32_t n = a->n - first < TILE_ROWS ? a->n - first : TILE_ROWS;
			float sum[TILE_ROWS] = { 0 };
			if (a->w->activation != ACTIVATION_F32)
				dot_int8(a, o, first, n, sum);
			else
				dot_float(a, o, first, n, sum);
			for (uint32_t i = 0; i < n; i++) {
				float *y = a->y + (size_t)(first + i) * a->w->rows + o;
				*y = a->accumulate ? *y + sum[i] : sum[i];
			}
		}
}

static float lora_number(const struct kern_lora *lora, const void *matrix, uint32_t width, uint32_t row, uint32_t col)
{
	enum kern_dtype dtype = (enum kern_dtype)lora->dtype;
	float x;

	quant_decode(dtype, (const uint8_t *)matrix + row * kern_lora_stride(dtype, width), col, 1, &x);
	return x;
}

static void ref_lora_shrink(struct kern_device *device, const void *args, unsigned part, unsigned n_parts)
{
	const struct kern_lora_shrink *a = args;

	(void)device;
	for (const struct kern_segment *s = a->step->segment; s < a->step->segment + a->step->n_segments; s++) {
		const struct kern_lora *lora = &s->modules[a->module];
		uint32_t j, end;
		if (!lora->a)
			continue;
		for (host_part(lora->rank, 1, part, n_parts, &j, &end); j < end; j++)
			for (uint32_t i = 0; i < s->n_rows; i++) {
				const float scale = lora->dtype == KERN_I8 ? lora->scales[j] : 1;
				const float *x = a->x + (size_t)(s->first_row + i) * a->in;
				float sum = 0;
				for (uint32_t k = 0; k < a->in; k++)
					sum += x[k] * lora_number(lora, lora->a, a->in, j, k);
				a->scratch[(size_t)(s->scratch_row + i) * a->scratch_width + j] = scale * sum;
			}
	}
}

static void ref_lora_expand(struct kern_device *device, const void *args, unsigned part, unsigned n_parts)
{
	const struct kern_lora_expand *a = args;
	uint32_t first, end;

	(void)device;
	host_part(a->out, 1, part, n_parts, &first, &end);
	for (const struct kern_segment *s = a->step->segment; s < a->step->segment + a->step->n_segments; s++) {
		const struct kern_lora *lora = &s->modules[a->module];
		if (!lora->a)
			continue;
		for (uint32_t i = 0; i < s->n_rows; i++)
			for (uint32_t o = first; o < end; o++) {
				const float *z = a->scratch + (size_t)(s->scratch_row + i) * a->scratch_width;
				float sum = 0;
				for (uint32_t j = 0; j < lora->rank; j++)
					sum += z[j] * lora_number(lora, lora->b, a->out, j, o);
				a->y[(size_t)(s->first_row + i) * a->out + o] += s->scale * lora->scale * sum;
			}
	}
}

static void ref_rope(struct kern_device *device, const void *args, unsigned part, unsigned n_parts)
{
	const struct kern_rope *a = args;
	uint32_t half = a->head_dim / 2, i, end;

	(void)device;
	for (host_part(a->step->n_rows * a->n_heads, 1, part, n_parts, &i, &end); i < end; i++) {
		float *x = a->x + (size_t)i * a->head_dim;
		for (uint32_t j = 0; j < half; j++) {
			float angle = (float)a->step->position[i / a->n_heads] * a->inv_freq[j];
			float c = cosf(angle), s = sinf(angle), lo = x[j], hi = x[j + half];
			x[j] = lo * c - hi * s;
			x[j + half] = hi * c + lo * s;
		}
	}
}

/* Of a position's key or value, its number j: keys lie [e][token] in a block, values [token][e]. */
struct kv_place {
	const struct kern_kv_layout *kv;
	uint8_t *layer; /* in the block */
	bool value;
	uint32_t head, token;
};

static void *kv_at(const struct kv_place *at, uint32_t j)
{
	const struct kern_kv_layout *kv = at->kv;
	size_t of_head = at->value ? (size_t)at->token * kv->head_dim + j : (size_t)j * kv->block_tokens + at->token;
	size_t number = ((size_t)at->value * kv->n_kv_heads + at->head) * kv->block_tokens * kv->head_dim + of_head;

	return at->layer + number * kern_kv_number(kv->dtype);
}

/* The scale of its numbers [group * KERN_KV_GROUP, ...): behind all codes, [KV head][token][groups of the key, the value's]. */
static void *kv_scale(const struct kv_place *at, uint32_t group)
{
	const struct kern_kv_layout *kv = at->kv;
	size_t tokens = (size_t)kv->n_kv_heads * kv->block_tokens, groups = kern_kv_groups(kv->head_dim);
	size_t number = ((size_t)at->head * kv->block_tokens + at->token) * (groups + 1) + (at->value ? groups : group);

	return at->layer + 2 * tokens * kv->head_dim + number * sizeof(float);
}

static void kv_store_codes(const struct kv_place *at, const float *x)
{
	uint32_t e = at->kv->head_dim, group = at->value ? e : KERN_KV_GROUP;

	for (uint32_t first = 0; first < e; first += group) {
		uint32_t n = e - first < group ? e - first : group;
		float inverse, scale, most = 0;
		for (uint32_t j = first; j < first + n; j++)
			most = fmaxf(most, fabsf(x[j]));
		scale = quant_scale_i8(most, &inverse);
		memcpy(kv_scale(at, first / group), &scale, sizeof scale);
		for (uint32_t j = first; j < first + n; j++)
			*(int8_t *)kv_at(at, j) = quant_code_i8(x[j], inverse);
	}
}

static void kv_store(const struct kv_place *at, const float *x)
{
	if (at->kv->dtype == KERN_I8) {
		kv_store_codes(at, x);
		return;
	}
	for (uint32_t j = 0; j < at->kv->head_dim; j++) {
		uint16_t half = quant_to_bf16(x[j]);
		const void *number = at->kv->dtype == KERN_F32 ? (const void *)&x[j] : (const void *)&half;
		memcpy(kv_at(at, j), number, kern_kv_number(at->kv->dtype));
	}
}

static float kv_number(const struct kv_place *at, uint32_t j)
{
	float x;

	if (at->kv->dtype == KERN_I8) {
		memcpy(&x, kv_scale(at, j / KERN_KV_GROUP), sizeof x); /* of a value all groups' are the same */
		return x * (float)*(const int8_t *)kv_at(at, j);
	}
	quant_decode(at->kv->dtype, kv_at(at, j), 0, 1, &x);
	return x;
}

static struct kv_place kv_place(const struct kern_step *step, const struct kern_seq *seq, const struct kern_kv_layout *kv,
				uint32_t layer, uint32_t head, uint32_t position)
{
	uint8_t *block = step->kv_block[seq->block_index + position / kv->block_tokens];

	return (struct kv_place){ kv, block + layer * kv->layer_bytes, false, head, position % kv->block_tokens };
}

static void ref_kv_write(struct kern_device *device, const void *args, unsigned part, unsigned n_parts)
{
	const struct kern_kv_write *a = args;
	const struct kern_kv_layout *kv = a->kv;
	uint32_t head, end;

	(void)device;
	for (host_part(kv->n_kv_heads, 1, part, n_parts, &head, &end); head < end; head++)
		for (const struct kern_seq *s = a->step->seq; s < a->step->seq + a->step->n_seqs; s++)
			for (uint32_t i = 0; i < s->n_rows; i++) {
				struct kv_place at = kv_place(a->step, s, kv, a->layer, head, s->first_position + i);
				size_t from = ((size_t)(s->first_row + i) * kv->n_kv_heads + head) * kv->head_dim;
				kv_store(&at, a->k + from);
				at.value = true;
				kv_store(&at, a->v + from);
			}
}

struct attend { /* one query head of one row */
	const struct kern_attention *a;
	const struct kern_seq *seq;
	uint32_t kv_head;
	const float *q;
};

static float score(const struct attend *h, uint32_t position)
{
	struct kv_place at = kv_place(h->a->step, h->seq, h->a->kv, h->a->layer, h->kv_head, position);
	float sum = 0;

	for (uint32_t j = 0; j < h->a->kv->head_dim; j++)
		sum += h->q[j] * kv_number(&at, j);
	return sum / sqrtf((float)h->a->kv->head_dim);
}

static void attend(const struct attend *h, uint32_t last, float *y)
{
	uint32_t e = h->a->kv->head_dim;
	float most = score(h, 0), sum = 0;

	for (uint32_t p = 1; p <= last; p++)
		most = fmaxf(most, score(h, p));
	for (uint32_t j = 0; j < e; j++)
		y[j] = 0;
	for (uint32_t p = 0; p <= last; p++) {
		struct kv_place at = kv_place(h->a->step, h->seq, h->a->kv, h->a->layer, h->kv_head, p);
		float weight = expf(score(h, p) - most);
		sum += weight;
		at.value = true;
		for (uint32_t j = 0; j < e; j++)
			y[j] += weight * kv_number(&at, j);
	}
	for (uint32_t j = 0; j < e; j++)
		y[j] /= sum;
}

static void ref_attention(struct kern_device *device, const void *args, unsigned part, unsigned n_parts)
{
	const struct kern_attention *a = args;
	uint32_t group = a->n_heads / a->kv->n_kv_heads, head, end;

	(void)device;
	for (host_part(a->n_heads, 1, part, n_parts, &head, &end); head < end; head++)
		for (const struct kern_seq *s = a->step->seq; s < a->step->seq + a->step->n_seqs; s++)
			for (uint32_t i = 0; i < s->n_rows; i++) {
				size_t at = ((size_t)(s->first_row + i) * a->n_heads + head) * a->kv->head_dim;
				struct attend h = { a, s, head / group, a->q + at };
				attend(&h, s->first_position + i, a->y + at);
			}
}

static void ref_swiglu(struct kern_device *device, const void *args, unsigned part, unsigned n_parts)
{
	const struct kern_swiglu *a = args;
	uint32_t row, end;

	(void)device;
	for (host_part(a->n, 1, part, n_parts, &row, &end); row < end; row++)
		for (size_t j = (size_t)row * a->width; j < (size_t)(row + 1) * a->width; j++)
			a->y[j] = a->gate[j] / (1 + expf(-a->gate[j])) * a->up[j];
}

static const struct kern_device_ops ref_device = {
	HOST_MEMORY_OPS,
	.weight_plan = ref_weight_plan,
	.weight_pack = ref_weight_pack,
	.weight_release = ref_weight_release,
	.activation_bytes = ref_activation_bytes,
};

static const struct kern_ops ref_ops = {
	.embed = ref_embed,
	.rms_norm = ref_rms_norm,
	.activate = ref_activate,
	.matmul = ref_matmul,
	.lora_shrink = ref_lora_shrink,
	.lora_expand = ref_lora_expand,
	.row_scale = host_row_scale,
	.rope = ref_rope,
	.kv_write = ref_kv_write,
	.kv_copy = host_kv_copy,
	.attention = ref_attention,
	.swiglu = ref_swiglu,
	.sample = sample_scalar,
};

const struct kern_backend kern_ref = {
	.name = "scalar", .exact_rows = true, .lora_i8 = true, .device = &ref_device, .ops = &ref_ops,
};
