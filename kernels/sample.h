/* SPDX-License-Identifier: MIT */
/* The op sample, compiled once per instruction set from the one sample.c: the same bits from each. */
#ifndef LORAD_KERNELS_SAMPLE_H
#define LORAD_KERNELS_SAMPLE_H

#include "kernels/kernels.h"

kern_op sample_scalar, sample_avx2, sample_avx512;

#endif
