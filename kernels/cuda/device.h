/* SPDX-License-Identifier: MIT */
/*
 * One GPU as the files of this folder see it: streams, memory, work space, the error that ended it
 *
 * Threads: one thread at a time speaks to a device (the main thread while it loads, then the engine), except for
 * upload() and failure(), which any thread may call at any time. What those share is said at each field.
 */
#ifndef LORAD_KERNELS_CUDA_DEVICE_H
#define LORAD_KERNELS_CUDA_DEVICE_H

#include <pthread.h>
#include <stdbool.h>

#include "kernels/cuda/api.h"
#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CUDA_PANEL_BYTES ((size_t)64 << 20)   /* weights decoded for cuBLAS: a panel of rows at a time */
#define CUDA_BLAS_BYTES ((size_t)32 << 20)    /* cuBLAS's own; given, so that it allocates nothing inside a step */
#define CUDA_UPLOADS 8                        /* adapters on their way at once */
#define CUDA_PIECE_BYTES ((size_t)1 << 20)    /* of an upload: a step's own copies wait for one piece at most */
#define CUDA_GRAPHS 32                        /* recorded steps that are kept */
#define CUDA_SPLIT_MAX 64                     /* parts of one long context in decode attention */
#define CUDA_SPLIT_MIN 128                    /* positions of such a part */

/* kern_failure.code where only cuBLAS knows what went wrong: its status on top of this, beyond all of CUDA's codes. */
#define CUDA_BLAS_CODE 10000

/* How the inputs of a product are encoded (kern_weight.activation). */
enum cuda_activation {
	CUDA_PLAIN, /* f32, as they are */
	CUDA_BF16,  /* [n][cols rounded up to 8] bf16, the last columns zero */
};

/* kern_weight.layout; weight.c has the packed ones */
enum cuda_layout { CUDA_W_F32, CUDA_W_BF16, CUDA_W_Q8_0, CUDA_W_Q4_0, CUDA_W_Q4_1 };

/* Pieces of address space, sorted, apart from each other (memory.c). */
struct cuda_range {
	uintptr_t first;
	size_t bytes;
};

struct cuda_ranges {
	struct cuda_range *range;
	size_t n, room;
};

struct cuda_graph {
	uint64_t key, used;      /* used: when last, for eviction; 0: empty */
	cudaGraphExec_t exec;    /* NULL: the key was seen once, nothing is recorded yet */
};

enum cuda_recording { CUDA_EAGER, CUDA_RECORDING, CUDA_RECORDING_BROKEN };

struct kern_device {
	const struct cuda_api *api;
	int number;
	cudaStream_t compute, copy;
	cublasHandle_t blas;
	struct kern_failure failed; /* the first error: nothing goes on after it. Under lock, but see cuda_failed() */

	/* work space, by reserve() */
	void *blas_space;
	void *panel;             /* CUDA_PANEL_BYTES */
	float *partial;          /* decode attention: see attention-decode.cu */
	size_t partial_floats;
	uint32_t split_positions; /* CUDA_SPLIT_MIN, once partial is there */

	pthread_mutex_t lock;    /* of failed and the two below */
	struct cuda_ranges memory;     /* what alloc() gave out */
	struct cuda_ranges registered; /* host memory that copies may use directly */

	/* uploads */
	cudaEvent_t uploaded[CUDA_UPLOADS];
	uint32_t uploads_taken;  /* bits; atomic */
	pthread_mutex_t bounce_lock; /* of the three below */
	void *bounce[2];         /* pinned, CUDA_PIECE_BYTES each: for memory that could not be registered */
	cudaEvent_t bounced[2];  /* the buffer's last copy is through */
	unsigned bounce_next;

	struct cuda_graph graph[CUDA_GRAPHS];
	uint64_t graph_clock, recording_key;
	enum cuda_recording recording;
	bool no_recording;       /* a recording went wrong once: all steps run eagerly */
};

/* ---- for the ops ---- */

/*
 * Remembers the first error of a device; while a step is being recorded, that the recording is no good. Return: 0, or
 * -EIO. what: the call, for the words.
 */
int cuda_note(struct kern_device *device, cudaError_t error, const char *what);
int cuda_note_blas(struct kern_device *device, cublasStatus_t status, const char *what);

/* An upload on another thread may be what failed. */
static inline bool cuda_failed(const struct kern_device *device)
{
	return __atomic_load_n(&device->failed.code, __ATOMIC_RELAXED) != 0;
}

/* ---- device.c, error.c, memory.c, upload.c, graph.c: struct kern_device_ops ---- */

int cuda_open(struct kern_device **ret, unsigned number, struct kern_failure *why);
struct kern_device *cuda_close(struct kern_device *device);
int cuda_memory(struct kern_device *device, size_t *ret_free, size_t *ret_total);
int cuda_reserve(struct kern_device *device, const struct kern_limits *limits);
int cuda_fence(struct kern_device *device);

void cuda_failure(struct kern_device *device, struct kern_failure *ret);

int cuda_alloc(struct kern_device *device, void *host, size_t bytes, void **ret);
void cuda_free(struct kern_device *device, void *p, size_t bytes);
int cuda_register_host(struct kern_device *device, void *p, size_t bytes);
void cuda_unregister_host(struct kern_device *device, void *p);

int cuda_copy_async(struct kern_device *device, void *to, const void *from, size_t bytes);
int cuda_upload(struct kern_device *device, struct kern_upload *upload);
int cuda_join(struct kern_device *device, struct kern_upload *upload);

int cuda_replay(struct kern_device *device, uint64_t key);
int cuda_record(struct kern_device *device, uint64_t key);
int cuda_play(struct kern_device *device);

/* ---- between them ---- */

int cuda_keep(struct kern_device *device, cudaError_t error, const char *what); /* cuda_note(), outside recordings */
void cuda_describe(const struct cuda_api *api, cudaError_t error, const char *what, struct kern_failure *ret);
int cuda_enter(struct kern_device *device);     /* this thread's calls go to this device; -EIO: it failed */
void cuda_release_memory(struct kern_device *device);
void cuda_release_graphs(struct kern_device *device);
bool cuda_is_device(struct kern_device *device, const void *p, size_t bytes);
bool cuda_is_registered(struct kern_device *device, const void *p, size_t bytes);

/* ---- the ops, a family a file ---- */

kern_op cuda_embed, cuda_rms_norm, cuda_activate, cuda_matmul, cuda_lora_shrink, cuda_lora_expand, cuda_row_scale,
	cuda_rope, cuda_kv_write, cuda_kv_copy, cuda_attention, cuda_swiglu, cuda_sample;

/* attention is two: decodes (one row a sequence) and prefills (attention-decode.cu, attention-prefill.cu). */
void cuda_attention_decode(struct kern_device *device, const struct kern_attention *args);
void cuda_attention_prefill(struct kern_device *device, const struct kern_attention *args);
size_t cuda_attention_partial_floats(const struct kern_limits *limits, uint32_t split_positions);

/* Products with packed weights: few rows, bound by the weights' bytes; decoding for cuBLAS (quant.cu). */
#define CUDA_SKINNY_ROWS 64
void cuda_skinny(struct kern_device *device, const struct kern_matmul *args);
void cuda_decode_panel(struct kern_device *device, const struct kern_weight *w, uint32_t first, uint32_t n, void *to);

/* weight.c */
int cuda_weight_plan(struct kern_device *device, const struct kern_matrix *m, enum kern_precision precision,
		     struct kern_weight *ret);
void cuda_weight_pack(const struct kern_weight *w, const struct kern_matrix *m, uint32_t first, uint32_t n, void *to);
void cuda_weight_release(struct kern_weight *w);
size_t cuda_activation_bytes(uint8_t activation, uint32_t cols);

#ifdef __cplusplus
}
#endif

#endif
