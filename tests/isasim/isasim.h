/* SPDX-License-Identifier: MIT */
/*
 * AVX-512, VNNI, BF16 and AMX for machines without: included before everything else (-include) when the x86 kernels are
 * compiled for tests/kernels/test-ops-isasim. No timing; results are the processor's, but for the flags of exceptions.
 *
 * SIMDe has most instructions, as pairs of AVX2 vectors. Here stands what it lacks and what it has otherwise than Intel's
 * manual, under the names of the intrinsics. The compiler's own header is read first and its names are taken over, so that
 * a later #include of it changes nothing; only then do the macros say which instruction sets there are, for SIMDe would
 * use the real ones. AVX-512 F, BW, DQ and VL are always there, ISASIM_BF16 adds VNNI, BF16 and AMX.
 *
 * Masked loads and stores touch chosen lanes only, one by one, so that AddressSanitizer sees how far they go. A
 * misuse of tiles, on which a processor would fault, ends the program with a line that names it. test-isasim.c compares
 * every instruction that the kernels use with plain C.
 */
#ifndef LORAD_TESTS_ISASIM_H
#define LORAD_TESTS_ISASIM_H

#include <cpuid.h>
#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

#define X86_SIMULATED

typedef int32_t isasim_lanes __attribute__((vector_size(64)));

union isasim_halves {
	__m512 f;
	__m512i i;
	__m256 half_f[2];
	__m256i half_i[2];
};

static inline __m512i isasim_both(__m256i half)
{
	union isasim_halves ret = { .half_i = { half, half } };

	return ret.i;
}

/* SIMDe fills vectors by loops over their numbers, which takes minutes to compile under sanitizers. */
static inline __m512 isasim_set1_ps(float x)
{
	union isasim_halves ret = { .half_f = { _mm256_set1_ps(x), _mm256_set1_ps(x) } };

	return ret.f;
}

static inline __m512i isasim_set1_epi8(int8_t x) { return isasim_both(_mm256_set1_epi8(x)); }
static inline __m512i isasim_set1_epi16(int16_t x) { return isasim_both(_mm256_set1_epi16(x)); }
static inline __m512i isasim_set1_epi32(int32_t x) { return isasim_both(_mm256_set1_epi32(x)); }
static inline __m512 isasim_setzero_ps(void) { return (__m512){ 0 }; }
static inline __m512i isasim_setzero_si512(void) { return (__m512i){ 0 }; }

static inline __m512i isasim_cvtps_epi32(__m512 a)
{
	union isasim_halves x = { .f = a }, ret;

	ret.half_i[0] = _mm256_cvtps_epi32(x.half_f[0]);
	ret.half_i[1] = _mm256_cvtps_epi32(x.half_f[1]);
	return ret.i;
}

static inline __m512 isasim_cvtepi32_ps(__m512i a)
{
	union isasim_halves x = { .i = a }, ret;

	ret.half_f[0] = _mm256_cvtepi32_ps(x.half_i[0]);
	ret.half_f[1] = _mm256_cvtepi32_ps(x.half_i[1]);
	return ret.f;
}

static inline __m512i isasim_cvtepu16_epi32(__m256i a)
{
	union isasim_halves ret;

	ret.half_i[0] = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(a));
	ret.half_i[1] = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(a, 1));
	return ret.i;
}

static inline __m512i isasim_cvtepi8_epi16(__m256i a)
{
	union isasim_halves ret;

	ret.half_i[0] = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(a));
	ret.half_i[1] = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(a, 1));
	return ret.i;
}

static inline __m512i isasim_cvtepu8_epi32(__m128i a)
{
	union isasim_halves ret = { .half_i = { _mm256_cvtepu8_epi32(a), _mm256_cvtepu8_epi32(_mm_srli_si128(a, 8)) } };

	return ret.i;
}

static inline __m512i isasim_cvtepi8_epi32(__m128i a)
{
	union isasim_halves ret = { .half_i = { _mm256_cvtepi8_epi32(a), _mm256_cvtepi8_epi32(_mm_srli_si128(a, 8)) } };

	return ret.i;
}

static inline __m512 isasim_cvtph_ps(__m256i a)
{
	union isasim_halves ret;

	ret.half_f[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(a));
	ret.half_f[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1));
	return ret.f;
}

static inline __m128i isasim_cvtepi32_epi8(__m512i a) /* cuts off, does not saturate */
{
	isasim_lanes x = (isasim_lanes)a;
	int8_t ret[16];

	for (unsigned i = 0; i < 16; i++)
		ret[i] = (int8_t)x[i];
	return _mm_loadu_si128((const void *)ret);
}

static inline __m512 isasim_abs_ps(__m512 a) /* clears the sign, of zeros and NaNs too */
{
	return (__m512)((isasim_lanes)a & 0x7fffffff);
}

static inline __m512i isasim_madd_epi16(__m512i a, __m512i b)
{
	union isasim_halves x = { .i = a }, y = { .i = b }, ret;

	ret.half_i[0] = _mm256_madd_epi16(x.half_i[0], y.half_i[0]);
	ret.half_i[1] = _mm256_madd_epi16(x.half_i[1], y.half_i[1]);
	return ret.i;
}

static inline __m512 isasim_maskz_loadu_ps(__mmask16 mask, const void *p)
{
	__m512 ret = _mm512_setzero_ps();

	for (unsigned i = 0; i < 16; i++)
		if (mask >> i & 1)
			ret[i] = ((const float *)p)[i];
	return ret;
}

static inline void isasim_mask_storeu_ps(void *p, __mmask16 mask, __m512 a)
{
	for (unsigned i = 0; i < 16; i++)
		if (mask >> i & 1)
			((float *)p)[i] = a[i];
}

/* Sums of halves, of their halves, and so on: the order in which compilers do it. */
static inline float isasim_reduce_add_ps(__m512 a)
{
	for (unsigned n = 8; n; n /= 2)
		for (unsigned i = 0; i < n; i++)
			a[i] += a[i + n];
	return a[0];
}

static inline float isasim_reduce_max_ps(__m512 a)
{
	for (unsigned n = 8; n; n /= 2)
		for (unsigned i = 0; i < n; i++)
			a[i] = a[i] > a[i + n] ? a[i] : a[i + n];
	return a[0];
}

static inline int isasim_reduce_add_epi32(__m512i a)
{
	isasim_lanes x = (isasim_lanes)a;
	uint32_t sum = 0;

	for (unsigned i = 0; i < 16; i++)
		sum += (uint32_t)x[i];
	return (int)sum;
}

/* The four products of a lane are exact in 32 bits, and so is their sum: nothing saturates, the total wraps. */
static inline __m512i isasim_dpbusd_epi32(__m512i sum, __m512i u, __m512i s)
{
	union isasim_halves x = { .i = u }, y = { .i = s }, ret = { .i = sum };

	for (unsigned h = 0; h < 2; h++) {
		__m256i low = _mm256_set1_epi16(255), one = _mm256_set1_epi16(1);
		__m256i even = _mm256_mullo_epi16(_mm256_and_si256(x.half_i[h], low),
						  _mm256_srai_epi16(_mm256_slli_epi16(y.half_i[h], 8), 8));
		__m256i odd = _mm256_mullo_epi16(_mm256_srli_epi16(x.half_i[h], 8), _mm256_srai_epi16(y.half_i[h], 8));
		ret.half_i[h] = _mm256_add_epi32(ret.half_i[h], _mm256_madd_epi16(even, one));
		ret.half_i[h] = _mm256_add_epi32(ret.half_i[h], _mm256_madd_epi16(odd, one));
	}
	return ret.i;
}

static inline __m512i isasim_dpwssd_epi32(__m512i sum, __m512i a, __m512i b)
{
	return _mm512_add_epi32(sum, isasim_madd_epi16(a, b));
}

/* ---- bf16: as if denormals did not exist, whatever MXCSR says ---- */

static inline __m512 isasim_flush(__m512 a)
{
	isasim_lanes bits = (isasim_lanes)a;

	return (__m512)(bits & ((isasim_lanes)((bits & 0x7f800000) != 0) | INT32_MIN));
}

static inline __m512 isasim_bf16_even(__m512i a)
{
	return isasim_flush((__m512)_mm512_slli_epi32(a, 16));
}

static inline __m512 isasim_bf16_odd(__m512i a)
{
	return isasim_flush((__m512)((isasim_lanes)a & (int32_t)0xffff0000));
}

static inline __m512 isasim_fma_flushed(__m512 a, __m512 b, __m512 c)
{
	return isasim_flush(_mm512_fmadd_ps(a, b, isasim_flush(c)));
}

static inline __m512 isasim_dpbf16_ps(__m512 sum, __m512bh a, __m512bh b)
{
	sum = isasim_fma_flushed(isasim_bf16_odd((__m512i)a), isasim_bf16_odd((__m512i)b), sum);
	return isasim_fma_flushed(isasim_bf16_even((__m512i)a), isasim_bf16_even((__m512i)b), sum);
}

#undef _mm512_abs_ps
#undef _mm512_cvtepi8_epi16
#undef _mm512_cvtepi8_epi32
#undef _mm512_dpbf16_ps
#undef _mm512_dpbusd_epi32
#undef _mm512_dpwssd_epi32
#undef _mm512_madd_epi16
#undef _mm512_set1_epi16
#undef _mm512_set1_epi32
#undef _mm512_set1_epi8
#undef _mm512_set1_ps
#undef _mm512_setzero_ps
#undef _mm512_setzero_si512
#define _mm512_abs_ps isasim_abs_ps
#define _mm512_cvtepi32_epi8 isasim_cvtepi32_epi8
#define _mm512_cvtepi32_ps isasim_cvtepi32_ps
#define _mm512_cvtepi8_epi16 isasim_cvtepi8_epi16
#define _mm512_cvtepi8_epi32 isasim_cvtepi8_epi32
#define _mm512_cvtepu8_epi32 isasim_cvtepu8_epi32
#define _mm512_cvtepu16_epi32 isasim_cvtepu16_epi32
#define _mm512_cvtph_ps isasim_cvtph_ps
#define _mm512_cvtps_epi32 isasim_cvtps_epi32
#define _mm512_dpbf16_ps isasim_dpbf16_ps
#define _mm512_dpbusd_epi32 isasim_dpbusd_epi32
#define _mm512_dpwssd_epi32 isasim_dpwssd_epi32
#define _mm512_madd_epi16 isasim_madd_epi16
#define _mm512_mask_storeu_ps isasim_mask_storeu_ps
#define _mm512_maskz_loadu_ps isasim_maskz_loadu_ps
#define _mm512_reduce_add_epi32 isasim_reduce_add_epi32
#define _mm512_reduce_add_ps isasim_reduce_add_ps
#define _mm512_reduce_max_ps isasim_reduce_max_ps
#define _mm512_set1_epi16 isasim_set1_epi16
#define _mm512_set1_epi32 isasim_set1_epi32
#define _mm512_set1_epi8 isasim_set1_epi8
#define _mm512_set1_ps isasim_set1_ps
#define _mm512_setzero_ps isasim_setzero_ps
#define _mm512_setzero_si512 isasim_setzero_si512

#define __AVX512F__ 1
#define __AVX512BW__ 1
#define __AVX512DQ__ 1
#define __AVX512VL__ 1
#ifdef ISASIM_BF16
#define __AVX512VNNI__ 1
#define __AVX512BF16__ 1
#include "tests/isasim/tiles.h"
#endif

#endif
