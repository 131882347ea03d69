/* SPDX-License-Identifier: MIT */
/* What the machine can do, for a team of threads: see peak.c. */
#ifndef LORAD_TESTS_BENCH_PEAK_H
#define LORAD_TESTS_BENCH_PEAK_H

#include <stddef.h>

#include "daemon/os/team.h"
#include "kernels/kernels.h"

struct peak {
	double read;            /* GB/s, over `bytes` of memory */
	double fma, bf16, int8; /* GFLOP/s or GOP/s with an instruction set's own instructions; a multiply-add is two */
};

void peak_measure(struct peak *ret, struct team *team, enum kern_isa isa, size_t bytes);

#endif
