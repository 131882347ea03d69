/* SPDX-License-Identifier: MIT */
/* The ops table test, by family: each adds its tests. */
#ifndef LORAD_TESTS_KERNELS_OPS_H
#define LORAD_TESTS_KERNELS_OPS_H

#include <check.h>

void matmul_tests(TCase *tc);    /* test-ops-matmul.c: matmul, activate, embed, weights */
void row_tests(TCase *tc);       /* test-ops-rows.c: rms_norm, swiglu, rope */
void adapter_tests(TCase *tc);   /* test-ops-lora.c: lora_shrink, lora_expand, row_scale */
void attention_tests(TCase *tc); /* test-ops-attention.c: attention, kv_write, kv_copy */

#endif
