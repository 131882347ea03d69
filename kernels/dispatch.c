/* SPDX-License-Identifier: MIT */
/* Which backend a machine can run. */
#include "kernels/kernels.h"

const char *const kern_isa_names[_KERN_ISA_N] = { "scalar", "avx2", "avx512", "vnni", "bf16" };

const struct kern_backend *kern_cpu(enum kern_isa isa)
{
	return isa == KERN_ISA_SCALAR ? &kern_ref : NULL;
}

enum kern_isa kern_cpu_best(void)
{
	unsigned isa = _KERN_ISA_N - 1;

	while (!kern_cpu((enum kern_isa)isa))
		isa--;
	return (enum kern_isa)isa;
}
