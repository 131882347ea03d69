/* SPDX-License-Identifier: MIT */
/* The tests of the kernels on the CPU: memory is the host's, and no backend wants a device. See fixture.h. */
#include "tests/kernels/fixture.h"

#include <check.h>
#include <stdlib.h>

void fixture_set_up(void)
{
}

void fixture_tear_down(void)
{
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
