/* SPDX-License-Identifier: MIT */
/*
 * Weights of the x86 backends: repacked once, at load, into the order in which the kernels read them (x86-panel.h and
 * x86-float.c describe the panels), and the ops that meet weights first: embed, activate, matmul.
 *
 * A weight has ceil(rows / 16) panels; what the last one has too much is zero. The layout follows from dtype and
 * precision alone: in int8 what the file has in blocks stays what it is, everything else becomes f32 or bf16.
 */
#include "kernels/x86.h"

#include <assert.h>

static uint32_t panels_of(const struct kern_weight *w)
{
	return (w->rows + PANEL - 1) / PANEL;
}

static enum x86_layout choose_layout(enum kern_dtype dtype, enum kern_precision precision)
{
	static const enum x86_layout of_blocks[_KERN_DTYPE_N] = {
		[KERN_Q8_0] = X86_Q8_0, [KERN_Q4_0] = X86_Q4_0, [KERN_Q4_1] = X86_Q4_1, [KERN_Q5_0] = X86_Q5_0,
		[KERN_Q5_1] = X86_Q5_1, [KERN_Q4_K] = X86_Q4_K, [KERN_Q5_K] = X86_Q5_K, [KERN_Q6_K] = X86_Q6_K,
	};

	if (precision == KERN_PRECISION_F32)
		return X86_F32;
	return precision == KERN_PRECISION_INT8 && quant_is_blocks(dtype) ? of_blocks[dtype] : X86_BF16;
}

int X86(weight_plan)(struct kern_device *device, const struct kern_matrix *m, enum kern_precision precision,
		     struct kern_weight *ret)
{
	int r = host_check_matrix(m, precision);

	(void)device;
	if (r < 0)
		return r;
	enum x86_layout layout = choose_layout(m->dtype, precision);
	*ret = (struct kern_weight){
		.rows = m->rows,
		.cols = m->cols,
		.layout = (uint8_t)layout,
		.activation = layout == X86_F32 ? X86_PLAIN : layout == X86_BF16 ? X86_HALF : X86_INT8,
	};
	if (layout == X86_BF16 && m->cols % 32 == 0 && X86(amx_allowed)())
		ret->layout |= HOST_LAYOUT_AMX;
	ret->grain = PANEL;
	ret->grain_bytes = x86_panel_bytes(layout, m->cols);
	ret->bytes = panels_of(ret) * ret->grain_bytes;
	return 0;
}

void X86(weight_release)(struct kern_weight *w)
{
	w->handle = NULL;
}

size_t X86(activation_bytes)(uint8_t activation, uint32_t cols)
{
	return activation == X86_INT8 ? x86_int8_bytes(cols / QUANT_BLOCK) : activation == X86_HALF ? x86_half_bytes(cols) : 0;
}

static void put16(uint8_t *to, uint16_t v)
{
	memcpy(to, &v, sizeof v);
}

/* Block b of output row o into a panel whose codes are still zero. */
static void pack_group(enum x86_layout layout, const struct quant_group *g, uint32_t b, unsigned o, uint8_t *panel)
{
	uint8_t *codes = panel + x86_block_at(layout, b) + 4 * o, *factors = panel + x86_factors_at(layout, b) + 2 * o;
	uint8_t *scales = panel + x86_block_at(layout, b) + x86_code_bytes(layout);
	unsigned bits = x86_code_bits(layout);

	for (unsigned j = 0; j < QUANT_BLOCK; j++) {
		unsigned i = j / 4 % 4, half = j / 16;
		if (bits == 8) {
			codes[64 * (j / 4) + j % 4] = g->code[j];
			continue;
		}
		codes[64 * i + j % 4] |= (uint8_t)((g->code[j] & 15) << 4 * half);
		if (bits == 5)
			codes[X86_LOW_BYTES + j % 4] |= (uint8_t)(g->code[j] >> 4 << j / 4);
		else if (bits == 6)
			codes[X86_LOW_BYTES + 64 * half + j % 4] |= (uint8_t)(g->code[j] >> 4 << 2 * i);
	}
	if (x86_is_k(layout)) {
		scales[o] = (uint8_t)g->scale[0];
		scales[PANEL + o] = layout == X86_Q6_K ? (uint8_t)g->scale[1] : g->minimum;
	}
	uint8_t *f16 = x86_is_k(layout) ? factors : scales + 2 * o;
	put16(f16, g->f16_d);
	if (x86_has_minimum(layout))
		put16(f16 + 2 * PANEL, g->f16_m);
}

/* What pack_group() was given, as far as it takes to decode the numbers. */
static void unpack_group(enum x86_layout layout, const uint8_t *panel, uint32_t b, unsigned o, struct quant_group *ret)
{
	const uint8_t *codes = panel + x86_block_at(layout, b) + 4 * o, *factors = panel + x86_factors_at(layout, b) + 2 * o;
	const uint8_t *scales = panel + x86_block_at(layout, b) + x86_code_bytes(layout);
	const uint8_t *f16 = x86_is_k(layout) ? factors : scales + 2 * o;
	float d = quant_from_f16(quant_load16(f16));
	unsigned bits = x86_code_bits(layout);

	for (unsigned half = 0; half < 2; half++) {
		ret->d[half] = layout == X86_Q6_K  ? d * (float)(int8_t)scales[PANEL * half + o]
			       : x86_is_k(layout) ? d * (float)scales[o]
						  : d;
		ret->m[half] = (float)-(1 << x86_zero_shift(layout)) * ret->d[half];
		if (x86_has_minimum(layout)) {
			float m = quant_from_f16(quant_load16(f16 + 2 * PANEL));
			ret->m[half] = x86_is_k(layout) ? -m * (float)scales[PANEL + o] : m;
		}
	}
	for (unsigned j = 0; j < QUANT_BLOCK; j++) {
		unsigned i = j / 4 % 4, half = j / 16;
		unsigned high = bits == 5   ? codes[X86_LOW_BYTES + j % 4] >> j / 4 & 1
				: bits == 6 ? codes[X86_LOW_BYTES + 64 * half + j % 4] >> 2 * i & 3
					    : 0;
		ret->code[j] = bits == 8 ? codes[64 * (j / 4) + j % 4]
					 : (uint8_t)((codes[64 * i + j % 4] >> 4 * half & 15) | high << 4);
	}
}

static void pack_numbers(enum x86_layout layout, const float *x, uint32_t first, uint32_t n, unsigned o, uint8_t *to)
{
	for (uint32_t k = first; k < first + n; k++, x++) {
		if (layout == X86_F32) {
			((float *)to)[(size_t)k * PANEL + o] = *x;
			continue;
		}
		((uint16_t *)to)[((size_t)k / 2 * PANEL + o) * 2 + k % 2] = quant_to_bf16(*x);
	}
}

static void pack_row(enum x86_layout layout, const struct kern_matrix *m, uint32_t row, uint8_t *panel)
{
	const uint8_t *from = (const uint8_t *)m->data + host_stored_row(m, row) * kern_row_bytes(m->dtype, m->cols);
	struct quant_group g;
	float x[QUANT_BLOCK];

	if (layout != X86_F32 && layout != X86_BF16) {
		for (uint32_t b = 0; b < m->cols / QUANT_BLOCK; b++) {
			quant_group(m->dtype, from, b, &g);
			pack_group(layout, &g, b, row % PANEL, panel);
		}
		return;
	}
	for (uint32_t k = 0; k < m->cols; k += QUANT_BLOCK) {
		uint32_t n = m->cols - k < QUANT_BLOCK ? m->cols - k : QUANT_BLOCK;
		quant_decode(m->dtype, from, k, n, x);
		pack_numbers(layout, x, k, n, row % PANEL, panel);
	}
}

void X86(weight_pack)(const struct kern_weight *w, const struct kern_matrix *m, uint32_t first, uint32_t n, void *to)
{
	enum x86_layout layout = x86_layout_of(w);
	uint8_t *panel = to;

	for (uint32_t row = first; row < first + n; row++) {
		if (row % PANEL == 0)
			memset(panel, 0, w->grain_bytes);
		pack_row(layout, m, row, panel);
		if (row % PANEL == PANEL - 1)
			panel += w->grain_bytes;
	}
}

void X86(matmul)(struct kern_device *device, const void *args, unsigned part, unsigned n_parts)
{
	const struct kern_matmul *a = args;
	bool is_float = a->w->activation == X86_PLAIN || a->w->activation == X86_HALF;
	x86_panels *run = !is_float			   ? X86(matmul_quant)
			  : a->w->layout & HOST_LAYOUT_AMX ? X86(amx_bf16)
							   : X86(matmul_float);
	uint32_t first, end;

	(void)device;
	host_part(panels_of(a->w), X86_PANELS, part, n_parts, &first, &end);
	if (first < end && a->n)
		run(a, first, end);
}

static void embed_row(const struct kern_weight *w, uint32_t row, float *x)
{
	enum x86_layout layout = x86_layout_of(w);
	const uint8_t *panel = (const uint8_t *)w->data + row / PANEL * x86_panel_bytes(layout, w->cols);
	unsigned o = row % PANEL;
	struct quant_group g;

	if (layout != X86_F32 && layout != X86_BF16) {
		for (uint32_t b = 0; b < w->cols / QUANT_BLOCK; b++, x += QUANT_BLOCK) {
			unpack_group(layout, panel, b, o, &g);
			quant_group_decode(&g, x);
		}
		return;
	}
	for (uint32_t k = 0; k < w->cols; k++)
		x[k] = layout == X86_F32 ? ((const float *)panel)[(size_t)k * PANEL + o]
					 : quant_from_bf16(((const uint16_t *)panel)[((size_t)k / 2 * PANEL + o) * 2 + k % 2]);
}

void X86(embed)(struct kern_device *device, const void *args, unsigned part, unsigned n_parts)
{
	const struct kern_embed *a = args;
	uint32_t i, end;

	(void)device;
	for (host_part(a->step->n_rows, 1, part, n_parts, &i, &end); i < end; i++)
		embed_row(a->table, a->step->token[i], a->x + (size_t)i * a->table->cols);
}

#define BLOCK_VECTORS (QUANT_BLOCK / VL)

/* quant_encode_q8() with vectors: the same bits. */
INLINE void encode_q8(const vf v[BLOCK_VECTORS], struct quant_q8 *ret)
{
	vf most = v_zero();
	float inverse, scale;
	int sum[2] = { 0 };

	UNROLL for (unsigned i = 0; i < BLOCK_VECTORS; i++)
		most = v_max(most, v_abs(v[i]));
	scale = quant_scale_i8(v_most(most), &inverse);
	UNROLL for (unsigned i = 0; i < BLOCK_VECTORS; i++)
		sum[i * VL / 16] += v_store_int8(ret->q + i * VL, v_round(v_mul(v[i], v_set(inverse))));
	quant_set_sums(ret, scale, sum[0], sum[1]);
}

INLINE float sum_of_squares(const float *x, uint32_t n)
{
	vf squares = v_zero();

	for (uint32_t k = 0; k < n; k += VL) {
		vf v = v_load(x + k);
		squares = v_fma(v, v, squares);
	}
	return v_sum(squares);
}

static void encode_int8(const float *x, uint32_t cols, struct quant_q8 *to)
{
	vf border = v_set(quant_border(sum_of_squares(x, cols), cols)), v[BLOCK_VECTORS];
	uint32_t blocks = cols / QUANT_BLOCK, *outliers = x86_int8_outliers(to, blocks);
	float *numbers = x86_int8_numbers(to, blocks);

	for (uint32_t b = 0; b < blocks; b++, x += QUANT_BLOCK) {
		outliers[b] = 0;
		UNROLL for (unsigned k = 0; k < BLOCK_VECTORS; k++) {
			v[k] = v_load(x + k * VL);
			outliers[b] |= v_beyond(v[k], border) << k * VL;
		}
		if (outliers[b]) {
			UNROLL for (unsigned k = 0; k < BLOCK_VECTORS; k++) {
				v_store(numbers + (size_t)b * QUANT_BLOCK + k * VL, v[k]);
				v[k] = v_without(v[k], outliers[b] >> k * VL);
			}
		}
		encode_q8(v, to + b);
	}
}

static void encode_half(const float *x, uint32_t cols, void *to)
{
	uint32_t even = (cols + 1) / 2 * 2;

	for (uint32_t k = 0; k < even; k++) {
		uint16_t h = k < cols ? quant_to_bf16(x[k]) : 0;
		if (X86_HALF_BYTES == 2)
			((uint16_t *)to)[k] = h;
		else
			((float *)to)[k] = quant_from_bf16(h);
	}
}

void X86(activate)(struct kern_device *device, const void *args, unsigned part, unsigned n_parts)
{
	const struct kern_activate *a = args;
	uint32_t i, end;

	(void)device;
	if (a->activation == X86_INT8) {
		assert(a->cols % QUANT_BLOCK == 0);
		for (host_part(a->n, 1, part, n_parts, &i, &end); i < end; i++)
			encode_int8(a->x + (size_t)i * a->cols, a->cols,
				    (void *)((uint8_t *)a->to + i * x86_int8_bytes(a->cols / QUANT_BLOCK)));
	} else if (a->activation == X86_HALF) {
		for (host_part(a->n, 1, part, n_parts, &i, &end); i < end; i++)
			encode_half(a->x + (size_t)i * a->cols, a->cols, (uint8_t *)a->to + i * x86_half_bytes(a->cols));
	}
}
