/* SPDX-License-Identifier: MIT */
/*
 * Stand-in for cuBLAS: the one product that lorad calls, by the host's column-major CBLAS
 *
 * bf16 is unpacked to f32 first, which is exact, so that sums are the CBLAS's. Shapes that the real one would take, but
 * slowly (rows of bf16 that do not begin at 16 bytes), are refused: they are not what was meant.
 */
#include <cblas.h>
#include <stdlib.h>

#include "runtime.h"

struct cublasContext {
	struct cudasim_object object;
	cudaStream_t stream;
	struct cudasim_span workspace;
};

/* Column-major, [rows] of each column together, ld numbers from one column to the next. */
struct matrix {
	int rows, cols, ld;
};

struct gemm {
	struct cudasim_op op; /* span: a, b, c, workspace */
	struct matrix a, b, c;
	cublasOperation_t op_a, op_b;
	cudaDataType type;
	int k;
	float alpha, beta;
};

static size_t matrix_bytes(struct matrix x, cudaDataType type)
{
	size_t n = x.rows > 0 && x.cols > 0 ? (size_t)(x.cols - 1) * (size_t)x.ld + (size_t)x.rows : 0;

	return n * (type == CUDA_R_16BF ? 2 : 4);
}

/* Faults are numbers of cuBLAS; a device that failed or a recording that was spoiled is one thing here. */
static cublasStatus_t status(int error)
{
	return error <= (int)CUBLAS_STATUS_LICENSE_ERROR ? (cublasStatus_t)error : CUBLAS_STATUS_EXECUTION_FAILED;
}

static cublasStatus_t leave(cublasStatus_t ret)
{
	(void)cudasim_leave(0);
	return ret;
}

cublasStatus_t cudasim_BlasCreate(cublasHandle_t *ret)
{
	int error = cudasim_enter("BlasCreate", CUDASIM_NOT_RECORDED);

	if (!error)
		*ret = cudasim_object_new(CUDASIM_BLAS, sizeof(**ret));
	return leave(status(error));
}

cublasStatus_t cudasim_BlasDestroy(cublasHandle_t handle)
{
	int error = cudasim_enter("BlasDestroy", CUDASIM_NOT_RECORDED);

	if (!error && !cudasim_has(handle, CUDASIM_BLAS))
		error = CUBLAS_STATUS_NOT_INITIALIZED;
	if (!error)
		cudasim_object_drop(handle);
	return leave(status(error));
}

/* The workspace goes with the stream, as in the real one: set it again. */
cublasStatus_t cudasim_BlasSetStream(cublasHandle_t handle, cudaStream_t stream)
{
	int error = cudasim_enter("BlasSetStream", CUDASIM_USUAL);

	if (!error && (!cudasim_has(handle, CUDASIM_BLAS) || !cudasim_has(stream, CUDASIM_STREAM)))
		error = CUBLAS_STATUS_NOT_INITIALIZED;
	if (!error) {
		handle->stream = stream;
		handle->workspace = (struct cudasim_span){ NULL, 0 };
	}
	return leave(status(error));
}

cublasStatus_t cudasim_BlasSetWorkspace(cublasHandle_t handle, void *workspace, size_t bytes)
{
	int error = cudasim_enter("BlasSetWorkspace", CUDASIM_USUAL);

	if (!error && !cudasim_has(handle, CUDASIM_BLAS))
		error = CUBLAS_STATUS_NOT_INITIALIZED;
	if (!error && ((uintptr_t)workspace % 256 != 0 || cudasim_where(workspace, bytes) != CUDASIM_DEVICE))
		error = CUBLAS_STATUS_INVALID_VALUE;
	if (!error)
		handle->workspace = (struct cudasim_span){ workspace, bytes };
	return leave(status(error));
}

/* TF32 is not known here: f32 means f32. */
cublasStatus_t cudasim_BlasSetMathMode(cublasHandle_t handle, cublasMath_t mode)
{
	int error = cudasim_enter("BlasSetMathMode", CUDASIM_USUAL);

	if (!error && !cudasim_has(handle, CUDASIM_BLAS))
		error = CUBLAS_STATUS_NOT_INITIALIZED;
	if (!error && ((int)mode & ~(CUBLAS_PEDANTIC_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)) != 0)
		error = CUBLAS_STATUS_NOT_SUPPORTED;
	return leave(status(error));
}

/* bf16 to f32, close together; NULL: no memory */
static float *unpack(const void *from, struct matrix *x)
{
	float *ret = malloc((size_t)x->rows * (size_t)x->cols * sizeof(*ret) + 1);

	for (int col = 0; ret && col < x->cols; ++col)
		for (int row = 0; row < x->rows; ++row) {
			union {
				uint32_t bits;
				float x;
			} number = { (uint32_t)((const uint16_t *)from)[(size_t)col * (size_t)x->ld + (size_t)row]
				     << 16 };

			ret[(size_t)col * (size_t)x->rows + (size_t)row] = number.x;
		}
	x->ld = x->rows > 0 ? x->rows : 1;
	return ret;
}

static int run_gemm(const struct cudasim_op *op)
{
	struct gemm g = *(const struct gemm *)op;
	float *a = op->span[0].base, *b = op->span[1].base;

	if (g.type == CUDA_R_16BF) {
		a = unpack(a, &g.a);
		b = unpack(b, &g.b);
		if (!a || !b)
			abort();
	}
	cblas_sgemm(CblasColMajor, g.op_a == CUBLAS_OP_T ? CblasTrans : CblasNoTrans,
		    g.op_b == CUBLAS_OP_T ? CblasTrans : CblasNoTrans, g.c.rows, g.c.cols, g.k, g.alpha, a, g.a.ld, b,
		    g.b.ld, g.beta, op->span[2].base, g.c.ld);
	if (g.type == CUDA_R_16BF) {
		free(a);
		free(b);
	}
	return 0;
}

static bool is_aligned(const void *p, struct matrix x, cudaDataType type)
{
	return (uintptr_t)p % 16 == 0 && (type != CUDA_R_16BF || x.ld % 8 == 0);
}

static bool is_shape(struct matrix x)
{
	return x.rows >= 0 && x.cols >= 0 && x.ld >= (x.rows > 1 ? x.rows : 1);
}

static int check(const struct gemm *g, const void *a, const void *b, const void *c)
{
	if (!is_shape(g->a) || !is_shape(g->b) || !is_shape(g->c))
		return CUBLAS_STATUS_INVALID_VALUE;
	if (g->op_a > CUBLAS_OP_T || g->op_b > CUBLAS_OP_T || (g->type != CUDA_R_16BF && g->type != CUDA_R_32F))
		return CUBLAS_STATUS_NOT_SUPPORTED;
	if (!is_aligned(a, g->a, g->type) || !is_aligned(b, g->b, g->type) || !is_aligned(c, g->c, CUDA_R_32F))
		return CUBLAS_STATUS_NOT_SUPPORTED;
	return 0;
}

cublasStatus_t cudasim_BlasGemmEx(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n,
				  int k, const void *alpha, const void *a, cudaDataType type_a, int lda, const void *b,
				  cudaDataType type_b, int ldb, const void *beta, void *c, cudaDataType type_c, int ldc,
				  cublasComputeType_t compute, cublasGemmAlgo_t algorithm)
{
	int error = cudasim_enter("BlasGemmEx", CUDASIM_USUAL);
	struct gemm *g;

	if (!error && !cudasim_has(handle, CUDASIM_BLAS))
		error = CUBLAS_STATUS_NOT_INITIALIZED;
	if (!error && !cudasim_has(handle->stream, CUDASIM_STREAM))
		error = CUBLAS_STATUS_INVALID_VALUE;
	if (!error && (type_a != type_b || type_c != CUDA_R_32F || compute != CUBLAS_COMPUTE_32F ||
		       algorithm != CUBLAS_GEMM_DEFAULT))
		error = CUBLAS_STATUS_NOT_SUPPORTED;
	if (!error && cudasim_recording(handle->stream) && !handle->workspace.base)
		error = cudasim_broken("a product is recorded, but cuBLAS has no workspace of ours");
	if (error)
		return leave(status(error));

	g = cudasim_op_new(sizeof(*g), run_gemm);
	g->a = op_a == CUBLAS_OP_N ? (struct matrix){ m, k, lda } : (struct matrix){ k, m, lda };
	g->b = op_b == CUBLAS_OP_N ? (struct matrix){ k, n, ldb } : (struct matrix){ n, k, ldb };
	g->c = (struct matrix){ m, n, ldc };
	g->op_a = op_a;
	g->op_b = op_b;
	g->type = type_a;
	g->k = k;
	g->alpha = *(const float *)alpha;
	g->beta = *(const float *)beta;
	error = check(g, a, b, c);
	if (error || m == 0 || n == 0) {
		free(g);
		return leave(status(error));
	}
	g->op.span[0] = (struct cudasim_span){ (void *)(uintptr_t)a, matrix_bytes(g->a, type_a) };
	g->op.span[1] = (struct cudasim_span){ (void *)(uintptr_t)b, matrix_bytes(g->b, type_b) };
	g->op.span[2] = (struct cudasim_span){ c, matrix_bytes(g->c, type_c) };
	g->op.span[3] = handle->workspace;
	error = cudasim_submit(handle->stream, &g->op);
	return leave(error ? CUBLAS_STATUS_EXECUTION_FAILED : CUBLAS_STATUS_SUCCESS);
}

const char *cudasim_BlasGetStatusString(cublasStatus_t code)
{
	switch (code) {
#define STATUS(name)                                                                                                   \
	case CUBLAS_STATUS_##name:                                                                                     \
		return "CUBLAS_STATUS_" #name;
		STATUS(SUCCESS)
		STATUS(NOT_INITIALIZED)
		STATUS(ALLOC_FAILED)
		STATUS(INVALID_VALUE)
		STATUS(ARCH_MISMATCH)
		STATUS(MAPPING_ERROR)
		STATUS(EXECUTION_FAILED)
		STATUS(INTERNAL_ERROR)
		STATUS(NOT_SUPPORTED)
		STATUS(LICENSE_ERROR)
	}
#undef STATUS
	return "unknown status";
}
