/* SPDX-License-Identifier: MIT */
/* The tests of the kernels on all backends of the CPU; fixture-host.c has the memory. See fixture.h. */
#include "tests/kernels/fixture.h"

const struct kern_backend *fixture_backend(unsigned i)
{
	for (unsigned isa = KERN_ISA_SCALAR + 1; isa < _KERN_ISA_N; isa++)
		if (kern_cpu((enum kern_isa)isa) && i-- == 0)
			return kern_cpu((enum kern_isa)isa);
	return i == 0 ? &kern_ref : NULL;
}
