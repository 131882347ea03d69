/* SPDX-License-Identifier: MIT */
/* Vectors of 8 floats: AVX2, FMA, F16C. See x86.h for what the names mean. */
#ifndef LORAD_KERNELS_VEC_AVX2_H
#define LORAD_KERNELS_VEC_AVX2_H

#include <immintrin.h>
#include <stdint.h>

#define VL 8
#define VEC_REGISTERS 16

typedef __m256 vf;
typedef __m256i vi;

static inline __m256i v_mask(unsigned n)
{
	return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

static inline vf v_zero(void) { return _mm256_setzero_ps(); }
static inline vf v_set(float x) { return _mm256_set1_ps(x); }
static inline vf v_load(const float *p) { return _mm256_loadu_ps(p); }
static inline void v_store(float *p, vf a) { _mm256_storeu_ps(p, a); }
static inline vf v_load_n(const float *p, unsigned n) { return _mm256_maskload_ps(p, v_mask(n)); }
static inline void v_store_n(float *p, unsigned n, vf a) { _mm256_maskstore_ps(p, v_mask(n), a); }
static inline vf v_load_f16(const void *p) { return _mm256_cvtph_ps(_mm_loadu_si128(p)); }
static inline vf v_load_bf16(const void *p)
{
	return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), 16));
}
static inline vf v_load_u8(const void *p) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p))); }
static inline vf v_load_i8(const void *p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p))); }
static inline vf v_add(vf a, vf b) { return _mm256_add_ps(a, b); }
static inline vf v_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
static inline vf v_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
static inline vf v_div(vf a, vf b) { return _mm256_div_ps(a, b); }
static inline vf v_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline vf v_max(vf a, vf b) { return _mm256_max_ps(a, b); }
static inline vf v_min(vf a, vf b) { return _mm256_min_ps(a, b); }
static inline vf v_abs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
static inline float v_sum(vf a)
{
	__m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));

	s = _mm_add_ps(s, _mm_movehl_ps(s, s));
	return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
static inline float v_most(vf a)
{
	__m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));

	s = _mm_max_ps(s, _mm_movehl_ps(s, s));
	return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
/* A bit per lane: its magnitude is beyond the border; and a with 0 in those lanes. */
static inline uint32_t v_beyond(vf a, vf border) { return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(v_abs(a), border, _CMP_GT_OQ)); }
static inline vf v_without(vf a, uint32_t lanes)
{
	const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
	__m256i set = _mm256_and_si256(_mm256_set1_epi32((int)lanes), bit);

	return _mm256_and_ps(a, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, _mm256_setzero_si256())));
}
static inline vf v_round(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline vf v_pow2(vf n)
{
	return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}

static inline vf v_as_float(vi a) { return _mm256_castsi256_ps(a); }
static inline vi v_izero(void) { return _mm256_setzero_si256(); }
static inline vi v_iload(const void *p) { return _mm256_loadu_si256(p); }
static inline vi v_iset(int32_t x) { return _mm256_set1_epi32(x); }
static inline vi v_low_nibbles(vi a) { return _mm256_and_si256(a, _mm256_set1_epi8(15)); }
static inline vi v_high_nibbles(vi a) { return _mm256_and_si256(_mm256_srli_epi16(a, 4), _mm256_set1_epi8(15)); }
static inline vi v_iand(vi a, vi b) { return _mm256_and_si256(a, b); }
static inline vi v_ior(vi a, vi b) { return _mm256_or_si256(a, b); }
static inline vi v_iset8(int8_t x) { return _mm256_set1_epi8(x); }
static inline vi v_shift16(vi a, int n) /* in every 16 bits: left, or right if n < 0 */
{
	return n > 0 ? _mm256_sll_epi16(a, _mm_cvtsi32_si128(n)) : _mm256_srl_epi16(a, _mm_cvtsi32_si128(-n));
}
static inline vi v_iadd(vi a, vi b) { return _mm256_add_epi32(a, b); }
static inline vi v_ishift(vi a, int n) { return _mm256_sll_epi32(a, _mm_cvtsi32_si128(n)); }
static inline vi v_byte(vi a, int n) /* byte n of every 32 bits */
{
	return _mm256_and_si256(_mm256_srl_epi32(a, _mm_cvtsi32_si128(8 * n)), _mm256_set1_epi32(255));
}
static inline vf v_from_int(vi a) { return _mm256_cvtepi32_ps(a); }
static inline vi v_add16(vi a, vi b) { return _mm256_add_epi16(a, b); }
static inline vi v_maddubs(vi u, vi s) { return _mm256_maddubs_epi16(u, s); }
static inline vi v_madd16(vi a, vi b) { return _mm256_madd_epi16(a, b); }
static inline vi v_widen8(const void *p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128(p)); } /* 2 VL codes to 16 bits */
static inline vi v_dot16(vi sum, vi a, vi b) { return v_iadd(sum, v_madd16(a, b)); }
static inline vi v_iset16(int16_t x) { return _mm256_set1_epi16(x); }
static inline vf v_low_bf16(vi a) { return _mm256_castsi256_ps(_mm256_slli_epi32(a, 16)); }
static inline vf v_high_bf16(vi a)
{
	return _mm256_castsi256_ps(_mm256_and_si256(a, _mm256_set1_epi32((int)0xffff0000)));
}

static inline void v_store_int16(int16_t *p, vf a)
{
	vi i = _mm256_cvtps_epi32(a);

	_mm_storeu_si128((void *)p, _mm_packs_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1)));
}

/* Rounds to int8 and returns the sum of all. */
static inline int v_store_int8(int8_t *p, vf a)
{
	vi i = _mm256_cvtps_epi32(a);
	__m128i lo = _mm256_castsi256_si128(i), hi = _mm256_extracti128_si256(i, 1), s = _mm_add_epi32(lo, hi);
	__m128i words = _mm_packs_epi32(lo, hi);

	_mm_storel_epi64((void *)p, _mm_packs_epi16(words, words));
	s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
	return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

#endif
