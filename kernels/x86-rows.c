/* SPDX-License-Identifier: MIT */
/* The small ops, row by row: rms_norm, rope, swiglu, kv_write. */
#include "kernels/x86.h"

static void norm_row(const float *x, const float *gain, uint32_t d, float eps, float *y)
{
	uint32_t whole = d / VL * VL;
	vf squares = v_zero();

	for (uint32_t j = 0; j < whole; j += VL) {
		vf v = v_load(x + j);
		squares = v_fma(v, v, squares);
	}
	vf rest = v_load_n(x + whole, d - whole);
	vf scale = v_set(1 / sqrtf(v_sum(v_fma(rest, rest, squares)) / (float)d + eps));
	for (uint32_t j = 0; j < whole; j += VL)
		v_store(y + j, v_mul(v_mul(v_load(x + j), scale), v_load(gain + j)));
	if (whole < d)
		v_store_n(y + whole, d - whole, v_mul(v_mul(rest, scale), v_load_n(gain + whole, d - whole)));
}

void X86(rms_norm)(struct kern_device *device, const void *args, unsigned part, unsigned n_parts)
{
	const struct kern_rms_norm *a = args;
	uint32_t i, end;

	(void)device;
	for (host_part(a->n, 1, part, n_parts, &i, &end); i < end; i++)
		norm_row(a->x + (size_t)(a->row ? a->row[i] : i) * a->d, a->gain, a->d, a->eps, a->y + (size_t)i * a->d);
}

/*
 * cos and sin of an angle of any size a position can reach. In f64: reduce by multiples of pi / 2 in two pieces, then
 * Taylor on [-pi/4, pi/4] (errors below 1e-9); elementwise, so the compiler makes vectors of it.
 */
INLINE void cos_sin(float angle, float *ret_cos, float *ret_sin)
{
	double x = (double)angle, turned = x * 0x1.45f306dc9c883p-1 + 0x1.8p52, n = turned - 0x1.8p52;
	double r = (x - n * 0x1.921fb544p0) - n * 0x1.0b4611a626331p-34, r2 = r * r;
	double s = r * (1 + r2 * (-1.0 / 6 + r2 * (1.0 / 120 + r2 * (-1.0 / 5040 + r2 * (1.0 / 362880)))));
	double c = 1 + r2 * (-0.5 + r2 * (1.0 / 24 + r2 * (-1.0 / 720 + r2 * (1.0 / 40320 - r2 * (1.0 / 3628800)))));
	uint64_t quarter;

	memcpy(&quarter, &turned, sizeof quarter);
	double a = quarter & 1 ? s : c, b = quarter & 1 ? c : s;
	*ret_cos = (float)((quarter + 1) & 2 ? -a : a);
	*ret_sin = (float)(quarter & 2 ? -b : b);
}

#define HALF_MAX 256 /* pairs of a head whose angles are computed at a time */

static void rotate(float *low, float *high, const float *c, const float *s, uint32_t n)
{
	for (uint32_t j = 0; j < n; j++) {
		float lo = low[j], hi = high[j];
		low[j] = lo * c[j] - hi * s[j];
		high[j] = hi * c[j] + lo * s[j];
	}
}

static void rope_row(const struct kern_rope *a, uint32_t row)
{
	float *x = a->x + (size_t)row * a->n_heads * a->head_dim, position = (float)a->step->position[row];
	float c[HALF_MAX], s[HALF_MAX];
	uint32_t half = a->head_dim / 2;

	for (uint32_t first = 0; first < half; first += HALF_MAX) {
		uint32_t n = half - first < HALF_MAX ? half - first : HALF_MAX;
		for (uint32_t j = 0; j < n; j++)
			cos_sin(position * a->inv_freq[first + j], &c[j], &s[j]);
		for (uint32_t h = 0; h < a->n_heads; h++) {
			float *low = x + (size_t)h * a->head_dim + first;
			rotate(low, low + half, c, s, n);
		}
	}
}

void X86(rope)(struct kern_device *device, const void *args, unsigned part, unsigned n_parts)
{
	const struct kern_rope *a = args;
	uint32_t i, end;

	(void)device;
	for (host_part(a->step->n_rows, 1, part, n_parts, &i, &end); i < end; i++)
		rope_row(a, i);
}

INLINE vf silu_times(vf gate, vf up)
{
	return v_mul(v_div(gate, v_add(v_set(1), v_exp(v_sub(v_zero(), gate)))), up);
}

void X86(swiglu)(struct kern_device *device, const void *args, unsigned part, unsigned n_parts)
{
	const struct kern_swiglu *a = args;
	size_t n = (size_t)a->n * a->width, grains = (n + VL - 1) / VL;
	size_t j = grains * part / n_parts * VL, end = grains * (part + 1) / n_parts * VL;

	(void)device;
	for (; j + VL <= end && j + VL <= n; j += VL)
		v_store(a->y + j, silu_times(v_load(a->gate + j), v_load(a->up + j)));
	if (j < end && j < n)
		v_store_n(a->y + j, (unsigned)(n - j), silu_times(v_load_n(a->gate + j, (unsigned)(n - j)), v_load_n(a->up + j, (unsigned)(n - j))));
}
