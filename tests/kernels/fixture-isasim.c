/* SPDX-License-Identifier: MIT */
/* The tests of the kernels on simulated instruction sets (tests/isasim), which take a processor with AVX2. See fixture.h. */
#include "tests/kernels/fixture.h"

extern const struct kern_backend kern_sim_avx512, kern_sim_bf16; /* x86-table.c */

const struct kern_backend *fixture_backend(unsigned i)
{
	static const struct kern_backend *const simulated[] = { &kern_sim_avx512, &kern_sim_bf16 };

	return i < sizeof simulated / sizeof *simulated && kern_cpu(KERN_ISA_AVX2) ? simulated[i] : NULL;
}
