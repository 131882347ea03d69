/* SPDX-License-Identifier: MIT */
/* The tests of the kernels on all backends of the CPU; memory is the host's. See fixture.h. */
#include "tests/kernels/fixture.h"

#include <check.h>
#include <stdlib.h>

void fixture_set_up(void)
{
}

void fixture_tear_down(void)
{
}

const struct kern_backend *fixture_backend(unsigned i)
{
	for (unsigned isa = KERN_ISA_SCALAR + 1; isa < _KERN_ISA_N; isa++)
		if (kern_cpu((enum kern_isa)isa) && i-- == 0)
			return kern_cpu((enum kern_isa)isa);
	return i == 0 ? &kern_ref : NULL;
}

struct kern_device *fixture_device(const struct kern_backend *b)
{
	(void)b;
	return NULL;
}

void *fixture_allocate(size_t bytes)
{
	void *p = NULL;

	ck_assert_int_eq(posix_memalign(&p, 64, bytes), 0);
	return p;
}

void fixture_free(const void *p)
{
	free((void *)(uintptr_t)p);
}
