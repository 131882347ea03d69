/* SPDX-License-Identifier: MIT */
/*
 * y = x W^T, or y += x W^T: which product goes where
 *
 *   f32, bf16 weights        cuBLAS, as they lie
 *   packed, few rows         skinny.cu decodes as it multiplies: such products cost their weights' bytes
 *   packed, more rows        decoded to bf16, a panel of weight rows at a time, then cuBLAS: many rows use the panel
 *
 * cuBLAS is column-major: there y [n][rows] is a matrix of rows x n, W [rows][cols] is cols x rows and is transposed.
 */
#include "kernels/cuda/device.h"
#include "kernels/cuda/quant.h"

/* m rows of weights, at w, give outputs [first, first + m). */
static void multiply(struct kern_device *device, const struct kern_matmul *a, const void *w, uint32_t first, uint32_t m)
{
	bool plain = a->w->activation == CUDA_PLAIN;
	cudaDataType type = plain ? CUDA_R_32F : CUDA_R_16BF;
	int stride = (int)CUDA_DENSE_COLS(a->w->cols);
	int cols = plain ? (int)a->w->cols : stride; /* padding is zero times zero */
	const float alpha = 1, beta = a->accumulate ? 1 : 0;

	if (cuda_failed(device))
		return;
	(void)cuda_note_blas(device,
			     device->api->BlasGemmEx(device->blas, CUBLAS_OP_T, CUBLAS_OP_N, (int)m, (int)a->n, cols,
						     &alpha, w, type, stride, plain ? (const void *)a->x : a->activated,
						     type, cols, &beta, a->y + first, CUDA_R_32F, (int)a->w->rows,
						     CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
			     "cublasGemmEx");
}

static void multiply_panels(struct kern_device *device, const struct kern_matmul *a)
{
	uint32_t rows = (uint32_t)(CUDA_PANEL_BYTES / cuda_activation_bytes(CUDA_BF16, a->w->cols));

	rows -= rows % CUDA_TILE_ROWS;
	for (uint32_t first = 0, m; first < a->w->rows; first += m) {
		m = rows < a->w->rows - first ? rows : a->w->rows - first;
		cuda_decode_panel(device, a->w, first, m, device->panel);
		multiply(device, a, device->panel, first, m);
	}
}

void cuda_matmul(struct kern_device *device, const void *args, unsigned part, unsigned n_parts)
{
	const struct kern_matmul *a = args;

	(void)part, (void)n_parts;
	if (a->n == 0)
		return;
	if (!CUDA_IS_PACKED(a->w->layout))
		multiply(device, a, a->w->data, 0, a->w->rows);
	else if (a->n <= CUDA_SKINNY_ROWS)
		cuda_skinny(device, a);
	else
		multiply_panels(device, a);
}
