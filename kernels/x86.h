/* SPDX-License-Identifier: MIT */
/*
 * The x86 backends: one body, compiled once per instruction set (kernels/local.mk gives each its flags and its suffix).
 *
 * vec-*.h define a vector vf of VL floats and a vector vi of VL integers, and plain operations on them. Multiply-adds
 * are fused where v_fma says so and nowhere else (-ffp-contract=off), therefore a row's bits do not depend on which
 * tile of rows it was computed in.
 *
 * Loops over the rows and vectors of a register tile have constant bounds once inlined, and must be unrolled for the
 * accumulators to become registers: UNROLL.
 */
#ifndef LORAD_KERNELS_X86_H
#define LORAD_KERNELS_X86_H

#include "kernels/host.h"
#include "kernels/quant.h"
#include "kernels/x86-panel.h"

#ifdef __AVX512F__
#include "kernels/vec-avx512.h"
#else
#include "kernels/vec-avx2.h"
#endif

#define X86_PASTE_(a, b) a##_##b
#define X86_PASTE(a, b) X86_PASTE_(a, b)
#define X86(name) X86_PASTE(name, X86_ISA)

/* Checks and simulated instructions (tests/isasim) take minutes to compile in unrolled loops; the arithmetic is the same. */
#if defined(__SANITIZE_ADDRESS__) || defined(X86_SIMULATED)
#define UNROLL
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#ifdef X86_SIMULATED /* asm's operand for a vector: where it is simulated no register is as wide */
#define X86_VECTOR "m"
#else
#define X86_VECTOR "x"
#endif
#define INLINE static inline __attribute__((always_inline))

#define X86_PANELS (2 * VL / PANEL) /* of a register tile, two vectors wide: parts of fewer would be slower */

enum x86_activation { X86_PLAIN, X86_INT8, X86_HALF };

static inline enum x86_layout x86_layout_of(const struct kern_weight *w)
{
	return (enum x86_layout)(w->layout & ~HOST_LAYOUT_AMX);
}

extern const struct kern_backend X86(kern); /* x86-table.c */

kern_op X86(embed), X86(rms_norm), X86(activate), X86(matmul), X86(lora_shrink), X86(lora_expand), X86(rope), X86(kv_write),
	X86(attention), X86(swiglu), X86(sample);

int X86(weight_plan)(struct kern_device *device, const struct kern_matrix *m, enum kern_precision precision,
		     struct kern_weight *ret);
void X86(weight_pack)(const struct kern_weight *w, const struct kern_matrix *m, uint32_t first, uint32_t n, void *to);
void X86(weight_release)(struct kern_weight *w);
size_t X86(activation_bytes)(uint8_t activation, uint32_t cols);
size_t X86(attention_bytes)(const struct kern_kv_layout *kv, uint32_t n_heads, uint32_t context);

/* Output panels [first, end) of a matmul. */
typedef void x86_panels(const struct kern_matmul *a, uint32_t first, uint32_t end);
x86_panels X86(matmul_quant), X86(matmul_float), X86(amx_bf16);
bool X86(amx_allowed)(void);

/* An activation row for bf16 weights: pairs of columns, as bf16 for vdpbf16ps, else as f32 that were rounded to bf16. */
#ifdef __AVX512BF16__
#define X86_HALF_BYTES 2
#else
#define X86_HALF_BYTES 4
#endif

static inline size_t x86_half_bytes(uint32_t cols)
{
	return ((size_t)cols + 1) / 2 * 2 * X86_HALF_BYTES;
}

/*
 * An activation row for quantised weights: struct quant_q8 [blocks], for each block a bit per column that says which are
 * outliers, uint32_t [blocks], and the row as f32 [32 * blocks], which holds something in blocks with outliers only.
 */
static inline size_t x86_int8_bytes(uint32_t blocks)
{
	return blocks * (sizeof(struct quant_q8) + sizeof(uint32_t) + QUANT_BLOCK * sizeof(float));
}

static inline uint32_t *x86_int8_outliers(const struct quant_q8 *row, uint32_t blocks)
{
	return (uint32_t *)(uintptr_t)(row + blocks);
}

static inline float *x86_int8_numbers(const struct quant_q8 *row, uint32_t blocks)
{
	return (float *)(uintptr_t)(x86_int8_outliers(row, blocks) + blocks);
}

/* How many rows of so many bytes stay in a cache of strip_bytes together: a multiple of a register tile's. */
static inline uint32_t x86_strip(size_t strip_bytes, size_t row_bytes, uint32_t tile_rows)
{
	uint32_t strip = (uint32_t)(strip_bytes / row_bytes) / tile_rows * tile_rows;

	return strip ? strip : tile_rows;
}

/* A vector of a row's outputs goes where it belongs, as far as the weight has such rows. */
INLINE void x86_store(const struct kern_matmul *a, uint32_t row, uint32_t out, vf sum)
{
	uint32_t room = out < a->w->rows ? a->w->rows - out : 0, n = room < VL ? room : VL;
	float *y = a->y + (size_t)row * a->w->rows + out;

	if (n == VL) {
		v_store(y, a->accumulate ? v_add(v_load(y), sum) : sum);
	} else if (n) {
		v_store_n(y, n, a->accumulate ? v_add(v_load_n(y, n), sum) : sum);
	}
}

/* e^x to 2 ulp for -87 <= x <= 88; beyond that it stays at the ends. */
static inline vf v_exp(vf x)
{
	x = v_min(v_max(x, v_set(-87)), v_set(88));
	vf n = v_round(v_mul(x, v_set(0x1.715476p0f)));
	vf r = v_fma(n, v_set(-0x1.7f7d1cp-20f), v_fma(n, v_set(-0x1.62e4p-1f), x));
	vf p = v_fma(v_set(1.0f / 720), r, v_set(1.0f / 120));

	p = v_fma(p, r, v_set(1.0f / 24));
	p = v_fma(p, r, v_set(1.0f / 6));
	p = v_fma(p, r, v_set(0.5f));
	p = v_fma(v_mul(p, r), r, v_add(r, v_set(1)));
	return v_mul(p, v_pow2(n));
}

#endif
