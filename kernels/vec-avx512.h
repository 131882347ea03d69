/* SPDX-License-Identifier: MIT */
/* Vectors of 16 floats: AVX-512 F, BW, DQ, VL. See x86.h for what the names mean. */
#ifndef LORAD_KERNELS_VEC_AVX512_H
#define LORAD_KERNELS_VEC_AVX512_H

#include <immintrin.h>
#include <stdint.h>

#define VL 16
#define VEC_REGISTERS 32

typedef __m512 vf;
typedef __m512i vi;

static inline vf v_zero(void) { return _mm512_setzero_ps(); }
static inline vf v_set(float x) { return _mm512_set1_ps(x); }
static inline vf v_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void v_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
static inline vf v_load_n(const float *p, unsigned n) { return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p); }
static inline void v_store_n(float *p, unsigned n, vf a) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), a); }
static inline vf v_load_f16(const void *p) { return _mm512_cvtph_ps(_mm256_loadu_si256(p)); }
static inline vf v_load_bf16(const void *p)
{
	return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p)), 16));
}
static inline vf v_load_u8(const void *p) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p))); }
static inline vf v_load_i8(const void *p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p))); }
static inline vf v_add(vf a, vf b) { return _mm512_add_ps(a, b); }
static inline vf v_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
static inline vf v_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
static inline vf v_div(vf a, vf b) { return _mm512_div_ps(a, b); }
static inline vf v_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static inline vf v_max(vf a, vf b) { return _mm512_max_ps(a, b); }
static inline vf v_min(vf a, vf b) { return _mm512_min_ps(a, b); }
static inline vf v_abs(vf a) { return _mm512_abs_ps(a); }
static inline float v_sum(vf a) { return _mm512_reduce_add_ps(a); }
static inline float v_most(vf a) { return _mm512_reduce_max_ps(a); }
/* A bit per lane: its magnitude is beyond the border; and a with 0 in those lanes. */
static inline uint32_t v_beyond(vf a, vf border) { return _mm512_cmp_ps_mask(v_abs(a), border, _CMP_GT_OQ); }
static inline vf v_without(vf a, uint32_t lanes) { return _mm512_maskz_mov_ps((__mmask16)~lanes, a); }
static inline vf v_round(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline vf v_pow2(vf n)
{
	return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}

static inline vf v_as_float(vi a) { return _mm512_castsi512_ps(a); }
static inline vi v_izero(void) { return _mm512_setzero_si512(); }
static inline vi v_iload(const void *p) { return _mm512_loadu_si512(p); }
static inline vi v_iset(int32_t x) { return _mm512_set1_epi32(x); }
static inline vi v_low_nibbles(vi a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
static inline vi v_high_nibbles(vi a) { return _mm512_and_si512(_mm512_srli_epi16(a, 4), _mm512_set1_epi8(15)); }
static inline vi v_iand(vi a, vi b) { return _mm512_and_si512(a, b); }
static inline vi v_ior(vi a, vi b) { return _mm512_or_si512(a, b); }
static inline vi v_iset8(int8_t x) { return _mm512_set1_epi8(x); }
static inline vi v_shift16(vi a, int n) /* in every 16 bits: left, or right if n < 0 */
{
	return n > 0 ? _mm512_sll_epi16(a, _mm_cvtsi32_si128(n)) : _mm512_srl_epi16(a, _mm_cvtsi32_si128(-n));
}
static inline vi v_iadd(vi a, vi b) { return _mm512_add_epi32(a, b); }
static inline vi v_ishift(vi a, int n) { return _mm512_sll_epi32(a, _mm_cvtsi32_si128(n)); }
static inline vi v_byte(vi a, int n) /* byte n of every 32 bits */
{
	return _mm512_and_si512(_mm512_srl_epi32(a, _mm_cvtsi32_si128(8 * n)), _mm512_set1_epi32(255));
}
static inline vf v_from_int(vi a) { return _mm512_cvtepi32_ps(a); }
static inline vi v_add16(vi a, vi b) { return _mm512_add_epi16(a, b); }
static inline vi v_maddubs(vi u, vi s) { return _mm512_maddubs_epi16(u, s); }
static inline vi v_madd16(vi a, vi b) { return _mm512_madd_epi16(a, b); }
static inline vi v_widen8(const void *p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256(p)); } /* 2 VL codes to 16 bits */
static inline vi v_dot16(vi sum, vi a, vi b)
{
#ifdef __AVX512VNNI__
	return _mm512_dpwssd_epi32(sum, a, b);
#else
	return v_iadd(sum, v_madd16(a, b));
#endif
}
static inline vi v_iset16(int16_t x) { return _mm512_set1_epi16(x); }
static inline vf v_low_bf16(vi a) { return _mm512_castsi512_ps(_mm512_slli_epi32(a, 16)); }
static inline vf v_high_bf16(vi a)
{
	return _mm512_castsi512_ps(_mm512_and_si512(a, _mm512_set1_epi32((int)0xffff0000)));
}

static inline void v_store_int16(int16_t *p, vf a)
{
	_mm256_storeu_si256((void *)p, _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(a)));
}

/* Rounds to int8 and returns the sum of all. */
static inline int v_store_int8(int8_t *p, vf a)
{
	vi i = _mm512_cvtps_epi32(a);

	_mm_storeu_si128((void *)p, _mm512_cvtepi32_epi8(i));
	return _mm512_reduce_add_epi32(i);
}

#endif
