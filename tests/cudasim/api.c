/* SPDX-License-Identifier: MIT */
/* The simulator as provider of kernels/cuda/api.h. */
#include <stdio.h>

#include "runtime.h"

#define ENTRY(name) .name = cudasim_##name,
static const struct cuda_api table = { CUDASIM_RUNTIME(ENTRY) };

const struct cuda_api *cuda_api(struct kern_failure *why)
{
	int error = cudasim_enter("cuda_api", CUDASIM_ANYTIME);

	(void)cudasim_leave(0);
	if (!error)
		return &table;
	why->code = error;
	(void)snprintf(why->text, sizeof(why->text), "cuBLAS of CUDA 13 cannot be opened");
	return NULL;
}
