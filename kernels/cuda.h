/* SPDX-License-Identifier: MIT */
/* The CUDA backend, or that there is none in this build (cuda-none.c). See cuda/table.c. */
#ifndef LORAD_KERNELS_CUDA_H
#define LORAD_KERNELS_CUDA_H

#include "kernels/kernels.h"

const struct kern_backend *kern_cuda(void); /* NULL: built without it */

#endif
