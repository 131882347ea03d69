/* SPDX-License-Identifier: MIT */
/*
 * The simulated instructions against plain C, by Intel's manual: random numbers, and the ones at the ends. All that the
 * kernels use (kernels/vec-avx512.h and the products of the other x86 files) is here.
 */
#include <check.h>
#include <math.h>
#include <signal.h>

#include "tests/lib/run-suite.h"

#define ROUNDS 2000

union vector {
	__m512 f;
	__m512i i;
	float f32[16];
	int32_t i32[16];
	uint32_t u32[16];
	int16_t i16[32];
	uint16_t u16[32];
	int8_t i8[64];
	uint8_t u8[64];
};

static uint64_t state = 88172645463325252u;

static uint32_t draw(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (uint32_t)(state >> 32);
}

/* Bytes of any kind, one in four at an end. */
static union vector bytes(void)
{
	static const uint8_t ends[] = { 0, 0x7f, 0x80, 0xff };
	union vector v;

	for (unsigned i = 0; i < 64; i++)
		v.u8[i] = draw() % 4 ? (uint8_t)draw() : ends[draw() % 4];
	return v;
}

static union vector floats(float size)
{
	union vector v;

	for (unsigned i = 0; i < 16; i++)
		v.f32[i] = ((float)(draw() >> 8) / (1 << 23) - 1) * size;
	return v;
}

static void same(const void *a, const void *b, size_t n, const char *what)
{
	if (memcmp(a, b, n) != 0)
		ck_abort_msg("%s", what);
}

#define SAME(a, b, what) same(&(a), &(b), sizeof(a), what)

static int saturated16(int x)
{
	return x > INT16_MAX ? INT16_MAX : x < INT16_MIN ? INT16_MIN : x;
}

START_TEST(integer_products)
{
	for (unsigned n = 0; n < ROUNDS; n++) {
		union vector a = bytes(), b = bytes(), c = bytes(), r, e;
		r.i = _mm512_maddubs_epi16(a.i, b.i);
		for (unsigned i = 0; i < 32; i++)
			e.i16[i] = (int16_t)saturated16(a.u8[2 * i] * b.i8[2 * i] + a.u8[2 * i + 1] * b.i8[2 * i + 1]);
		SAME(r, e, "maddubs: pairs saturate");
		r.i = _mm512_madd_epi16(a.i, b.i);
		for (unsigned i = 0; i < 16; i++)
			e.u32[i] = (uint32_t)(a.i16[2 * i] * b.i16[2 * i]) + (uint32_t)(a.i16[2 * i + 1] * b.i16[2 * i + 1]);
		SAME(r, e, "madd");
		r.i = _mm512_dpwssd_epi32(c.i, a.i, b.i);
		for (unsigned i = 0; i < 16; i++)
			e.u32[i] += c.u32[i];
		SAME(r, e, "dpwssd: wraps");
		r.i = _mm512_dpbusd_epi32(c.i, a.i, b.i);
		e = c;
		for (unsigned i = 0; i < 64; i++)
			e.u32[i / 4] += (uint32_t)(a.u8[i] * b.i8[i]);
		SAME(r, e, "dpbusd: unsigned times signed, wraps");
	}
}
END_TEST

START_TEST(integers)
{
	for (unsigned n = 0; n < ROUNDS; n++) {
		union vector a = bytes(), b = bytes(), r, e;
		int shift = (int)(draw() % 34);
		r.i = _mm512_add_epi32(a.i, b.i);
		for (unsigned i = 0; i < 16; i++)
			e.u32[i] = a.u32[i] + b.u32[i];
		SAME(r, e, "add_epi32");
		r.i = _mm512_add_epi16(a.i, b.i);
		for (unsigned i = 0; i < 32; i++)
			e.u16[i] = (uint16_t)(a.u16[i] + b.u16[i]);
		SAME(r, e, "add_epi16");
		r.i = _mm512_and_si512(a.i, b.i);
		for (unsigned i = 0; i < 16; i++)
			e.u32[i] = a.u32[i] & b.u32[i];
		SAME(r, e, "and");
		r.i = _mm512_or_si512(a.i, b.i);
		for (unsigned i = 0; i < 16; i++)
			e.u32[i] = a.u32[i] | b.u32[i];
		SAME(r, e, "or");
		r.i = _mm512_sll_epi32(a.i, _mm_cvtsi32_si128(shift));
		for (unsigned i = 0; i < 16; i++)
			e.u32[i] = shift < 32 ? a.u32[i] << shift : 0;
		SAME(r, e, "sll");
		r.i = _mm512_sll_epi16(a.i, _mm_cvtsi32_si128(shift));
		for (unsigned i = 0; i < 32; i++)
			e.u16[i] = (uint16_t)(shift < 16 ? a.u16[i] << shift : 0);
		SAME(r, e, "sll_epi16");
		r.i = _mm512_srl_epi16(a.i, _mm_cvtsi32_si128(shift));
		for (unsigned i = 0; i < 32; i++)
			e.u16[i] = (uint16_t)(shift < 16 ? a.u16[i] >> shift : 0);
		SAME(r, e, "srl_epi16");
		r.i = _mm512_slli_epi32(a.i, 23);
		for (unsigned i = 0; i < 16; i++)
			e.u32[i] = a.u32[i] << 23;
		SAME(r, e, "slli");
		r.i = _mm512_srli_epi16(a.i, 4);
		for (unsigned i = 0; i < 32; i++)
			e.u16[i] = a.u16[i] >> 4;
		SAME(r, e, "srli_epi16");
		r.i = _mm512_set1_epi16(a.i16[3]);
		for (unsigned i = 0; i < 32; i++)
			e.i16[i] = a.i16[3];
		SAME(r, e, "set1_epi16");
		r.i = _mm512_set1_epi32(a.i32[3]);
		for (unsigned i = 0; i < 16; i++)
			e.i32[i] = a.i32[3];
		SAME(r, e, "set1_epi32");
		r.i = _mm512_set1_epi8(a.i8[3]);
		memset(&e, a.i8[3], sizeof e);
		SAME(r, e, "set1_epi8");
	}
}
END_TEST

START_TEST(conversions)
{
	for (unsigned n = 0; n < ROUNDS; n++) {
		union vector a = bytes(), x = floats(n % 2 ? 200 : 40000), r, e = { 0 };
		__m256i half = _mm256_loadu_si256((void *)&a), h;
		__m128i quarter;
		uint32_t sum = 0;
		r.i = _mm512_cvtepu16_epi32(half);
		for (unsigned i = 0; i < 16; i++)
			e.u32[i] = a.u16[i];
		SAME(r, e, "cvtepu16_epi32");
		r.i = _mm512_cvtepi8_epi16(half);
		for (unsigned i = 0; i < 32; i++)
			e.i16[i] = a.i8[i];
		SAME(r, e, "cvtepi8_epi16");
		r.i = _mm512_cvtepu8_epi32(_mm256_castsi256_si128(half));
		for (unsigned i = 0; i < 16; i++)
			e.u32[i] = a.u8[i];
		SAME(r, e, "cvtepu8_epi32");
		r.i = _mm512_cvtepi8_epi32(_mm256_castsi256_si128(half));
		for (unsigned i = 0; i < 16; i++)
			e.i32[i] = a.i8[i];
		SAME(r, e, "cvtepi8_epi32");
		r.f = _mm512_cvtepi32_ps(a.i);
		for (unsigned i = 0; i < 16; i++)
			e.f32[i] = (float)a.i32[i];
		SAME(r, e, "cvtepi32_ps");
		quarter = _mm512_cvtepi32_epi8(a.i);
		for (unsigned i = 0; i < 16; i++)
			e.i8[i] = a.i8[4 * i];
		same(&quarter, &e, 16, "cvtepi32_epi8: cuts off");
		r.i = n % 3 ? _mm512_cvtps_epi32(x.f) : a.i;
		h = _mm512_cvtsepi32_epi16(r.i);
		for (unsigned i = 0; i < 16; i++)
			e.i16[i] = (int16_t)saturated16(r.i32[i]);
		same(&h, &e, 32, "cvtsepi32_epi16: saturates");
		r.i = _mm512_cvtps_epi32(x.f);
		for (unsigned i = 0; i < 16; i++)
			e.i32[i] = (int32_t)lrintf(x.f32[i]);
		SAME(r, e, "cvtps_epi32");
		r.f = _mm512_roundscale_ps(x.f, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
		for (unsigned i = 0; i < 16; i++)
			e.f32[i] = rintf(x.f32[i]);
		SAME(r, e, "roundscale");
		for (unsigned i = 0; i < 16; i++)
			sum += a.u32[i];
		ck_assert_int_eq(_mm512_reduce_add_epi32(a.i), (int32_t)sum);
		for (unsigned i = 0; i < 16; i++) /* halves, without NaNs: kernels/quant.h has their own conversion */
			a.u16[i] = (uint16_t)((draw() & 1) << 15 | (15 + draw() % 4) << 10);
		r.f = _mm512_cvtph_ps(_mm256_loadu_si256((void *)&a));
		for (unsigned i = 0; i < 16; i++)
			e.f32[i] = ldexpf(a.u16[i] >> 15 ? -1 : 1, (a.u16[i] >> 10 & 31) - 15);
		SAME(r, e, "cvtph_ps");
	}
}
END_TEST

START_TEST(numbers)
{
	for (unsigned n = 0; n < ROUNDS; n++) {
		union vector a = floats(3), b = floats(3), c = floats(3), r, add, sub, mul, div, fma, most, least, size;
		float sum = 0, largest = -4;
		a.f32[n % 16] = -0.0f;
		c.f32[n % 16] = n % 2 ? NAN : 1; /* the second operand is the result then */
		for (unsigned i = 0; i < 16; i++) {
			add.f32[i] = a.f32[i] + b.f32[i], sub.f32[i] = a.f32[i] - b.f32[i];
			mul.f32[i] = a.f32[i] * b.f32[i], div.f32[i] = a.f32[i] / b.f32[i];
			fma.f32[i] = fmaf(a.f32[i], b.f32[i], add.f32[i]);
			most.f32[i] = c.f32[i] > b.f32[i] ? c.f32[i] : b.f32[i];
			least.f32[i] = c.f32[i] < b.f32[i] ? c.f32[i] : b.f32[i];
			size.f32[i] = fabsf(a.f32[i]);
			sum += a.f32[i];
			largest = fmaxf(largest, a.f32[i]);
		}
		r.f = _mm512_add_ps(a.f, b.f), SAME(r, add, "add_ps");
		r.f = _mm512_sub_ps(a.f, b.f), SAME(r, sub, "sub_ps");
		r.f = _mm512_mul_ps(a.f, b.f), SAME(r, mul, "mul_ps");
		r.f = _mm512_div_ps(a.f, b.f), SAME(r, div, "div_ps");
		r.f = _mm512_fmadd_ps(a.f, b.f, add.f), SAME(r, fma, "fmadd_ps: rounds once");
		r.f = _mm512_max_ps(c.f, b.f), SAME(r, most, "max_ps");
		r.f = _mm512_min_ps(c.f, b.f), SAME(r, least, "min_ps");
		r.f = _mm512_abs_ps(a.f), SAME(r, size, "abs_ps");
		ck_assert_float_eq(_mm512_reduce_max_ps(a.f), largest);
		ck_assert_float_eq_tol(_mm512_reduce_add_ps(a.f), sum, 1e-4f);
	}
}
END_TEST

START_TEST(memory)
{
	for (unsigned n = 0; n < 16; n++) { /* exactly n numbers, for AddressSanitizer */
		union vector a = floats(3), r, e = { 0 };
		float *p = malloc(n * sizeof *p + !n), all[16];
		_mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), a.f);
		same(p, &a, n * sizeof *p, "mask_storeu");
		memcpy(&e, &a, n * sizeof *p);
		r.f = _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
		SAME(r, e, "maskz_loadu");
		_mm512_storeu_ps(all, a.f);
		SAME(all, a, "storeu");
		r.f = _mm512_loadu_ps(all);
		SAME(r, a, "loadu_ps");
		r.i = _mm512_loadu_si512(all);
		SAME(r, a, "loadu_si512");
		free(p);
	}
}
END_TEST

/* ---- bf16 ---- */

static float flushed(float x)
{
	return fpclassify(x) == FP_SUBNORMAL ? copysignf(0, x) : x;
}

static float from_bf16(uint16_t h)
{
	uint32_t bits = (uint32_t)h << 16;
	float x;

	memcpy(&x, &bits, sizeof x);
	return flushed(x);
}

static float add_product(float sum, uint16_t a, uint16_t b)
{
	return flushed(fmaf(from_bf16(a), from_bf16(b), flushed(sum)));
}

/* Numbers, with denormals and products that become some. */
static void fill_bf16(uint16_t *p, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		unsigned exponent = draw() % 8 ? 120 + draw() % 12 : draw() % 2 ? 0 : 60 + draw() % 8;
		p[i] = (uint16_t)((draw() & 0x807f) | exponent << 7);
	}
}

START_TEST(bf16_products)
{
	for (unsigned n = 0; n < ROUNDS; n++) {
		union vector a, b, c = floats(n % 2 ? 1 : 1e-38f), r, e;
		fill_bf16(a.u16, 32);
		fill_bf16(b.u16, 32);
		r.f = _mm512_dpbf16_ps(c.f, (__m512bh)a.i, (__m512bh)b.i);
		for (unsigned i = 0; i < 16; i++)
			e.f32[i] = add_product(add_product(c.f32[i], a.u16[2 * i + 1], b.u16[2 * i + 1]), a.u16[2 * i], b.u16[2 * i]);
		SAME(r, e, "dpbf16");
	}
}
END_TEST

static void configure(unsigned rows, unsigned pairs, unsigned outputs)
{
	uint8_t config[64] = { 1 };

	ck_assert_int_eq(syscall(SYS_arch_prctl, 0x1023, 18), 0);
	config[16] = (uint8_t)(4 * outputs), config[18] = (uint8_t)(4 * pairs), config[20] = (uint8_t)(4 * outputs);
	config[48] = config[49] = (uint8_t)rows, config[50] = (uint8_t)pairs;
	_tile_loadconfig(config);
}

START_TEST(tile_products)
{
	for (unsigned n = 0; n < 200; n++) {
		unsigned rows = 1 + draw() % 16, pairs = 1 + draw() % 16, outputs = 1 + draw() % 16;
		uint16_t x[16][40], w[16][40];
		float y[16][20], before[16][20];
		fill_bf16(x[0], sizeof x / 2);
		fill_bf16(w[0], sizeof w / 2);
		for (unsigned i = 0; i < 16; i++)
			memcpy(y[i], &(union vector){ .f = floats(1).f }, 64);
		memcpy(before, y, sizeof y);
		configure(rows, pairs, outputs);
		_tile_loadd(0, y, sizeof y[0]);
		_tile_loadd(1, x, sizeof x[0]);
		_tile_loadd(2, w, sizeof w[0]);
		_tile_dpbf16ps(0, 1, 2);
		_tile_stored(0, y, sizeof y[0]);
		_tile_release();
		for (unsigned m = 0; m < rows; m++)
			for (unsigned o = 0; o < outputs; o++) {
				float even = 0, odd = 0;
				for (unsigned k = 0; k < pairs; k++) {
					even = add_product(even, x[m][2 * k], w[k][2 * o]);
					odd = add_product(odd, x[m][2 * k + 1], w[k][2 * o + 1]);
				}
				before[m][o] = flushed(before[m][o] + flushed(even + odd));
			}
		for (unsigned m = 0; m < 16; m++)
			same(y[m], before[m], 64, "tdpbf16ps");
	}
}
END_TEST

/* What a processor refuses ends the program. */
START_TEST(tile_faults)
{
	configure(4, 4, 4);
	if (_i == 0)
		_tile_dpbf16ps(0, 1, 1);
	else if (_i == 1)
		_tile_zero(3);
	else if (_i == 2)
		configure(4, 17, 4);
	_tile_release();
	_tile_zero(0);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("isasim");
	TCase *tc = tcase_create("isasim");

	if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c")) {
		puts("the simulation wants a processor with AVX2");
		return 77;
	}
	tcase_set_timeout(tc, 0);
	tcase_add_test(tc, integer_products);
	tcase_add_test(tc, integers);
	tcase_add_test(tc, conversions);
	tcase_add_test(tc, numbers);
	tcase_add_test(tc, memory);
	tcase_add_test(tc, bf16_products);
	tcase_add_test(tc, tile_products);
	tcase_add_loop_test_raise_signal(tc, tile_faults, SIGABRT, 0, 4);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
