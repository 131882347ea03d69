/* SPDX-License-Identifier: MIT */
/* What the CPU backends share: number formats by hand, which the reference decodes with, and memory. */
#include <check.h>
#include <math.h>
#include <string.h>

#include "kernels/kernels.h"
#include "kernels/quant.h"
#include "tests/kernels/blocks.h"
#include "tests/lib/run-suite.h"

/* Against the formulas of the formats, by hand. */
START_TEST(formats)
{
	uint8_t q4_1[20] = { 0x00, 0x3c, 0x00, 0xc0 }, q4_0[18] = { 0x00, 0x38 }, q8_0[34] = { 0x00, 0x40 };
	const uint16_t halves[] = { 0x3c00, 0x0001, 0x7bff, 0x8000, 0xfc00 };
	float x[32], h[5];

	for (unsigned j = 0; j < 16; j++)
		q4_1[4 + j] = q4_0[2 + j] = (uint8_t)(j | (15 - j) << 4);
	for (unsigned j = 0; j < 32; j++)
		q8_0[2 + j] = (uint8_t)(int8_t)((int)j * 8 - 128);
	quant_decode(KERN_Q4_1, q4_1, 0, 32, x);
	for (unsigned j = 0; j < 32; j++)
		ck_assert_float_eq(x[j], (float)(j < 16 ? j : 31 - j) - 2);
	quant_decode(KERN_Q4_0, q4_0, 0, 32, x);
	for (unsigned j = 0; j < 32; j++)
		ck_assert_float_eq(x[j], ((float)(j < 16 ? j : 31 - j) - 8) / 2);
	quant_decode(KERN_Q8_0, q8_0, 0, 32, x);
	for (unsigned j = 0; j < 32; j++)
		ck_assert_float_eq(x[j], 2 * ((float)j * 8 - 128));
	quant_decode(KERN_F16, halves, 0, 5, h);
	ck_assert(h[0] == 1 && h[1] == 0x1p-24f && h[2] == 65504 && h[3] == 0 && signbit(h[3]) && isinf(h[4]) && h[4] < 0);
	ck_assert_uint_eq(quant_to_bf16(1.00390625f), 0x3f80); /* a tie goes to even */
	ck_assert_uint_eq(quant_to_bf16(1.01171875f), 0x3f82);
	ck_assert(isnan(quant_from_bf16(quant_to_bf16(NAN))));
	ck_assert_uint_eq(kern_row_bytes(KERN_Q4_1, 576), 360);
	ck_assert_uint_eq(kern_row_bytes(KERN_Q8_0, 33), 0);
}
END_TEST

/* Bit for bit but for the sign of a zero; from the start, and from every group of 32 on. */
START_TEST(golden_blocks)
{
	static const struct { enum kern_dtype dtype; const uint8_t *blocks; size_t bytes; const uint32_t *numbers; } golden[] = {
		{ KERN_Q5_0, blocks_q5_0, sizeof blocks_q5_0, numbers_q5_0 },
		{ KERN_Q5_1, blocks_q5_1, sizeof blocks_q5_1, numbers_q5_1 },
		{ KERN_Q4_K, blocks_q4_k, sizeof blocks_q4_k, numbers_q4_k },
		{ KERN_Q5_K, blocks_q5_k, sizeof blocks_q5_k, numbers_q5_k },
		{ KERN_Q6_K, blocks_q6_k, sizeof blocks_q6_k, numbers_q6_k },
	};
	float x[512];

	for (size_t i = 0; i < sizeof golden / sizeof *golden; i++) {
		ck_assert_uint_eq(kern_row_bytes(golden[i].dtype, 512), golden[i].bytes);
		for (uint32_t first = 0; first < 512; first += 32) {
			quant_decode(golden[i].dtype, golden[i].blocks, first, 512 - first, x + first);
			for (uint32_t j = first; j < 512; j++)
				if (x[j] != quant_float(golden[i].numbers[j]))
					ck_abort_msg("%s: number %u is %a, not %a", kern_dtype_name(golden[i].dtype), j, (double)x[j],
						     (double)quant_float(golden[i].numbers[j]));
		}
	}
}
END_TEST

START_TEST(memory)
{
	struct kern_device *device;
	uint8_t *piece[70], own[64];
	void *p;

	ck_assert_int_eq(kern_ref.device->open(&device, 0, NULL), 0);
	for (unsigned i = 0; i < 70; i++) { /* more than one slab, and a piece larger than a slab */
		size_t bytes = i == 35 ? 40u << 20 : 1u << 20;
		ck_assert_int_eq(kern_ref.device->alloc(device, NULL, bytes, &p), 0);
		ck_assert_uint_eq((uintptr_t)p % 64, 0);
		piece[i] = p;
		ck_assert_uint_eq(piece[i][0] | piece[i][bytes - 1], 0);
		memset(piece[i], (int)i, bytes);
	}
	for (unsigned i = 0; i < 70; i++) {
		ck_assert_uint_eq(piece[i][12345], i);
		kern_ref.device->free(device, piece[i], i == 35 ? 40u << 20 : 1u << 20);
	}
	ck_assert_int_eq(kern_ref.device->alloc(device, own, sizeof own, &p), 0);
	ck_assert_ptr_eq(p, own);
	kern_ref.device->free(device, p, sizeof own);
	ck_assert_int_lt(kern_ref.device->alloc(device, NULL, SIZE_MAX, &p), 0);
	ck_assert_ptr_null(kern_ref.device->close(device));
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("host");
	TCase *tc = tcase_create("host");

	tcase_add_test(tc, formats);
	tcase_add_test(tc, golden_blocks);
	tcase_add_test(tc, memory);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
