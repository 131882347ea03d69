/* SPDX-License-Identifier: MIT */
/* A build without nvcc, or --with-cuda=no. */
#include "kernels/cuda.h"

const struct kern_backend *kern_cuda(void)
{
	return NULL;
}
