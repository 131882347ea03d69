/* SPDX-License-Identifier: MIT */
/*
 * The tests of the kernels on a GPU, a real or a simulated one. See fixture.h.
 *
 * Memory is the host's, pinned: the device reads and writes it under the same addresses, and nothing need be copied.
 */
#include "tests/kernels/fixture.h"

#include <check.h>

#include "kernels/cuda.h"
#include "kernels/cuda/api.h"

static struct kern_device *device;
static const struct cuda_api *api;

/* The context is short, so that decode attention cuts it into the shortest splits there are. */
void fixture_set_up(void)
{
	static const struct kern_limits limits = {
		.rows = 512, .seqs = 32, .outputs = 512, .context = 1024,
		.n_heads = 16, .head_dim = 256, .vocab = 1 << 17,
	};
	struct kern_failure why = { 0 };

	api = cuda_api(&why);
	if (!api || kern_cuda()->device->open(&device, 0, &why) < 0)
		ck_abort_msg("%s", why.text);
	ck_assert_int_eq(kern_cuda()->device->reserve(device, &limits), 0);
}

void fixture_tear_down(void)
{
	device = kern_cuda()->device->close(device);
}

const struct kern_backend *fixture_backend(unsigned i)
{
	return i == 0 ? kern_cuda() : NULL;
}

struct kern_device *fixture_device(const struct kern_backend *b)
{
	return b == kern_cuda() ? device : NULL;
}

void *fixture_allocate(size_t bytes)
{
	void *p = NULL;

	if (api->HostAlloc(&p, bytes, cudaHostAllocPortable) != cudaSuccess)
		ck_abort_msg("no pinned memory: %zu bytes", bytes);
	return p;
}

void fixture_free(const void *p)
{
	if (p && api->FreeHost((void *)(uintptr_t)p) != cudaSuccess)
		ck_abort_msg("this is no pinned memory: %p", p);
}
