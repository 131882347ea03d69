/* SPDX-License-Identifier: MIT */
/*
 * The compute interface: one backend is two const tables, what a device can do with memory (struct kern_device_ops) and
 * what it can compute (struct kern_ops). Everything above speaks only to these tables.
 *
 * Model
 * - Every pointer in an argument block is a device address. On a CPU these are plain pointers.
 * - An op is a pure function of (arguments, part i of n): the caller runs all parts, in any order and on any threads,
 *   and starts the next op once all have returned. Parts write disjoint outputs. Ops neither allocate, lock, log nor
 *   fail: what could fail was checked before the step began.
 * - A backend that is `queued` does its own splitting: an op is called once, as part 0 of 1, from one thread, and only
 *   puts its work behind that of the ops before it. The argument block may go as soon as the call returns. What goes
 *   wrong on the device meanwhile is kept and told by fence().
 * - Rows are the tokens of a step, of many requests at once. The result of a row depends on that row's own inputs
 *   only, never on its neighbours. Where the backend is `exact_rows`, that holds bit for bit: whatever the number of rows
 *   that share the step, their order, or the number of parts. Elsewhere the order of a sum may follow their number.
 * - All activations are f32, row-major, rows next to each other: x is [rows][width].
 * - Argument blocks themselves are host memory, and so is struct kern_extent: how large a step is, for backends that must
 *   size a launch without reading the device's memory. CPU backends do not look at it.
 * - Shapes in comments: n rows, d hidden size, h heads, k KV heads, e head size, v vocabulary, r rank.
 */
#ifndef LORAD_KERNELS_H
#define LORAD_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum kern_dtype { /* how the numbers of a stored matrix are encoded; Q*: ggml's blocks (kernels/quant.h) */
	KERN_F32,
	KERN_F16,
	KERN_BF16,
	KERN_Q8_0,
	KERN_Q4_0,
	KERN_Q4_1,
	KERN_Q5_0,
	KERN_Q5_1,
	KERN_Q4_K,
	KERN_Q5_K,
	KERN_Q6_K,
	_KERN_DTYPE_N,
	KERN_I8 = 64, /* no stored matrix's: integers with scales apart, see struct kern_kv_layout and kern_lora */
};

/*
 * What products of activations and weights are made in; sums are f32 (int8: i32 per block of 32). A GPU keeps quantised
 * weights quantised under INT8 too, but decodes them to bf16 as it multiplies: it is as exact as BF16 there. For Q5_0, Q5_1
 * and the K types a GPU's weight_plan() has -ENOTSUP in any precision.
 */
enum kern_precision {
	KERN_PRECISION_F32,  /* exact path: weights decoded to f32 */
	KERN_PRECISION_BF16, /* weights and activations rounded to bf16 */
	KERN_PRECISION_INT8, /* quantised weights as they are x int8 activations; other weights as BF16 */
	_KERN_PRECISION_N,
};

enum kern_isa { KERN_ISA_SCALAR, KERN_ISA_AVX2, KERN_ISA_AVX512, KERN_ISA_VNNI, KERN_ISA_BF16, _KERN_ISA_N };

/* A matrix as its file stores it: rows = outputs, columns = inputs (Hugging Face's orientation). */
struct kern_matrix {
	enum kern_dtype dtype;
	uint32_t rows, cols;
	uint32_t permuted_head; /* 0, or e: llama.cpp's converter interleaved the halves of each head's e rows; undo it */
	const void *data;       /* rows * kern_row_bytes(dtype, cols) bytes, any alignment */
};

/* A matrix as the backend wants it. Filled by weight_plan(), contents by weight_pack(). */
struct kern_weight {
	uint32_t rows, cols;
	uint8_t layout;   /* the backend's own name for what lies at data */
	uint8_t activation; /* the backend's own name for the encoding its inputs need, see activate */
	uint32_t grain;   /* rows that are packed as one: weight_pack() starts at multiples of it */
	size_t grain_bytes; /* what they take */
	size_t bytes;     /* device bytes to allocate for data; 0: used in place, data = the matrix's own bytes */
	void *data;
	void *handle;     /* the backend's own (a library's primitive), released by weight_release() */
};

/* ---- what a step is about: one block in device memory, written by the host before the step ---- */

struct kern_seq { /* one request's share of the step */
	uint32_t first_row, n_rows;
	uint32_t first_position; /* position of its first row; keys 0..position are seen by a row */
	uint32_t block_index;    /* its first entry in kern_step.kv_block */
};

/*
 * One low-rank pair: y += scale * (x A^T) B, A [rank][in], B [rank][out] (B is stored transposed, see image.h). In I8 the
 * numbers of both are integers, and what becomes of x and row j of A is multiplied with scales[j].
 */
struct kern_lora {
	const void *a, *b;     /* rows at strides of kern_lora_stride(); NULL: this module is not adapted */
	float scale;
	uint16_t rank;
	uint8_t dtype;         /* enum kern_dtype: F32, F16, BF16, or I8 where the backend takes it (lora_i8) */
	uint8_t unused;
	const float *scales;   /* [rank], I8 only */
};

/* Rows [first_row, first_row + n_rows) get one adapter, at scale. A sum of adapters is several segments on the same rows. */
struct kern_segment {
	uint32_t first_row, n_rows;
	const struct kern_lora *modules; /* by module number, see kern_module() */
	float scale;                     /* the request's own factor */
	uint32_t scratch_row;            /* where its x A^T goes: scratch row scratch_row + (row - first_row) */
};

/* A piece of at most KERN_TILE rows of one sequence or segment: what one thread block of a GPU takes on. */
struct kern_tile {
	uint32_t of;        /* number of the sequence or segment */
	uint32_t first_row; /* within it */
};

#define KERN_TILE 64

struct kern_sampling {
	float temperature; /* 0: greedy */
	float top_p, min_p, repetition_penalty;
	uint32_t top_k;    /* 0: off */
	uint32_t n_top;    /* how many of the most probable tokens to report, <= KERN_TOP_MAX */
	uint64_t seed;
	uint32_t draw;     /* number of this draw in its request: Philox is keyed by (seed, draw) */
	int32_t target;    /* >= 0: do not draw, report this token's log-probability (score) */
	uint32_t n_seen;   /* distinct tokens seen so far, for the repetition penalty */
	const uint32_t *seen;
};

#define KERN_TOP_MAX 64

struct kern_result {
	uint32_t token;
	float logprob;  /* natural logarithm, of the plain logits */
	uint32_t top_token[KERN_TOP_MAX];
	float top_logprob[KERN_TOP_MAX];
};

struct kern_step {
	uint32_t n_rows, n_seqs, n_segments, n_outputs;
	uint32_t n_seq_tiles, n_segment_tiles;
	const uint32_t *token;            /* [n_rows] */
	const uint32_t *position;         /* [n_rows] */
	const uint32_t *row_seq;          /* [n_rows] number of the sequence a row belongs to */
	const struct kern_seq *seq;       /* [n_seqs], by first_row, covering all rows */
	void *const *kv_block;            /* block addresses of all sequences, in order of position */
	const struct kern_segment *segment; /* [n_segments], by first_row; those that share rows are neighbours of equal rows */
	const struct kern_tile *seq_tile; /* [n_seq_tiles] of the sequences with more than one row */
	const struct kern_tile *segment_tile; /* [n_segment_tiles] of all segments */
	const uint32_t *output_row;       /* [n_outputs] the rows whose logits are wanted */
	const struct kern_sampling *sampling; /* [n_outputs] */
	struct kern_result *result;       /* [n_outputs], written by sample */
};

/*
 * A step's size as the host knows it. Each number is the step's own or larger: a recorded step is launched as large as the
 * largest that shall fit into the recording, and its kernels ask struct kern_step what is really there.
 */
struct kern_extent {
	uint32_t n_rows, n_seqs, n_seq_tiles, n_segment_tiles, n_outputs;
	uint32_t n_single;       /* sequences of one row: decodes */
	uint32_t n_positions;    /* most keys that a row of the step sees */
	uint32_t n_scratch_rows; /* rows of all segments together */
	uint32_t max_rank;       /* of the adapters in the step */
};

/*
 * Where keys and values lie inside one KV block: [layer], then keys [KV head][e][token of block], then values
 * [KV head][token of block][e]. Only kv_write and attention look inside, and a backend may keep keys as it likes: the CPU's
 * are transposed so that products run along vectors, the GPU's lie as values do.
 *
 * I8: number = scale * code, codes -127..127. A key of a KV head has a scale for each KERN_KV_GROUP of its elements, since
 * a few of them are much larger than the rest and stay so from token to token; a value has one. Scales are f32.
 */
#define KERN_KV_GROUP 32

struct kern_kv_layout {
	enum kern_dtype dtype; /* F32, BF16 or I8 */
	uint32_t block_tokens;
	uint32_t n_kv_heads, head_dim;
	size_t layer_bytes;    /* from one layer to the next: keys, then values */
};

/* ---- argument blocks, one per op ---- */

struct kern_embed { /* x[i] = table[token[i]] */
	const struct kern_weight *table; /* v x d */
	const struct kern_step *step;
	float *x;                        /* [n][d] */
	const struct kern_extent *extent;
};

struct kern_rms_norm { /* y[i] = x[row[i]] / rms(x[row[i]]) * gain */
	const float *x, *gain; /* [.][d], [d] */
	const uint32_t *row;   /* [n], or NULL: row i is i */
	uint32_t n, d;
	float eps;
	float *y;              /* [n][d] */
};

struct kern_activate { /* encode activations as the weights that follow want them (f32 layouts: nothing to do) */
	const float *x;        /* [n][cols] */
	uint32_t n, cols;
	uint8_t activation;    /* kern_weight.activation */
	void *to;              /* n * activation_bytes(activation, cols) bytes, 64-byte aligned */
};

struct kern_matmul { /* y = x W^T, or y += x W^T */
	const struct kern_weight *w;
	const float *x;        /* [n][cols] */
	const void *activated; /* the same rows after activate */
	uint32_t n;
	bool accumulate;
	float *y;              /* [n][rows] */
};

struct kern_lora_shrink { /* scratch[s.scratch_row + i] = x[i] A^T, for all segments */
	const struct kern_step *step;
	uint32_t module;
	const float *x;        /* [n][in] */
	uint32_t in;
	uint32_t scratch_width; /* >= the largest rank of the step */
	float *scratch;        /* [scratch rows][scratch_width] */
	const void *activated; /* the same rows after activate, or NULL */
	uint8_t activation;    /* of `activated` */
	size_t scratch_floats; /* room at scratch: partial sums may stand behind one another there */
	const struct kern_extent *extent;
};

struct kern_lora_expand { /* y[i] += segment scale * module scale * scratch[..] B, segments in order */
	const struct kern_step *step;
	uint32_t module;
	const float *scratch;
	uint32_t scratch_width;
	uint32_t out;
	float *y;              /* [n][out] */
	uint8_t activation;    /* as for the shrink before it */
	size_t scratch_floats;
	const struct kern_extent *extent;
};

struct kern_rope { /* rotate pairs (i, i + e/2) of every head by position * inv_freq[i] (Hugging Face's order) */
	const struct kern_step *step;
	const float *inv_freq; /* [e/2] */
	uint32_t n_heads, head_dim;
	float *x;              /* [n][heads][e] */
	const struct kern_extent *extent;
};

struct kern_kv_write { /* store the step's keys and values at their positions */
	const struct kern_step *step;
	const struct kern_kv_layout *kv;
	uint32_t layer;
	const float *k, *v;    /* [n][k][e] */
	const struct kern_extent *extent;
};

struct kern_attention { /* causal attention of each row over its sequence's blocks, softmax(q k / sqrt(e)) v */
	const struct kern_step *step;
	const struct kern_kv_layout *kv;
	uint32_t layer, n_heads;
	const float *q;        /* [n][h][e] */
	float *y;              /* [n][h][e] */
	const struct kern_extent *extent;
	void *sections;        /* of attention_bytes(), zeroed at first; NULL: parts share no sequence */
	size_t section_bytes;
};

struct kern_swiglu { /* y = silu(gate) * up */
	const float *gate, *up; /* [n][width] */
	uint32_t n, width;
	float *y;              /* [n][width] */
};

struct kern_row_scale { /* y[i] *= the vector of the row's segment: kinds of adapters that are a vector (IA3, DoRA's magnitude) */
	const struct kern_step *step;
	const float *const *vector; /* [n_segments], each [width]; NULL: rows of that segment stay */
	uint32_t width;
	float *y;              /* [n][width] */
	const struct kern_extent *extent;
};

struct kern_kv_copy { /* whole blocks: to keep what a preempted request computed, or to share a prefix and then part from it */
	void *const *from, *const *to; /* [n] block addresses */
	uint32_t n;
	size_t block_bytes;    /* a multiple of 16 */
};

struct kern_sample { /* one draw or score per output row */
	const struct kern_step *step;
	uint32_t first, n;     /* outputs [first, first + n) of the step */
	uint32_t vocab;
	float *logits;         /* [n][v]; overwritten */
};

struct kern_device;

typedef void kern_op(struct kern_device *device, const void *args, unsigned part, unsigned n_parts);

struct kern_ops { /* each takes the argument block of its name */
	kern_op *embed, *rms_norm, *activate, *matmul, *lora_shrink, *lora_expand, *row_scale, *rope, *kv_write, *kv_copy,
		*attention, *swiglu, *sample;
};

/* ---- memory ---- */

/* Why a device cannot be had or goes on no more. */
struct kern_failure {
	int code;       /* the device library's own number, 0: none */
	char text[192]; /* one line, no full stop */
};

/* The largest step there will be and what it is a step of: work space is taken for it once. */
struct kern_limits {
	uint32_t rows, seqs, outputs, context;
	uint32_t n_heads, head_dim, vocab;
};

/* Bytes on their way to the device beside the steps. The caller's until done() was called: once, on any thread. */
struct kern_upload {
	void *to;
	const void *from; /* in a registered region, or slower */
	size_t bytes;
	void (*done)(struct kern_upload *upload);
	unsigned slot;    /* the backend's own */
};

struct kern_device_ops {
	int (*open)(struct kern_device **ret, unsigned number, struct kern_failure *why);
	struct kern_device *(*close)(struct kern_device *device);
	int (*memory)(struct kern_device *device, size_t *ret_free, size_t *ret_total); /* -ENOTSUP: the host's own */
	int (*reserve)(struct kern_device *device, const struct kern_limits *limits);

	/* Device memory. Where the device shares memory with the host, host (if not NULL) itself becomes it: no copy. */
	int (*alloc)(struct kern_device *device, void *host, size_t bytes, void **ret);
	void (*free)(struct kern_device *device, void *p, size_t bytes);
	/* Host memory as a source and target of fast copies. Positive: refused, copies from it take a detour. */
	int (*register_host)(struct kern_device *device, void *p, size_t bytes);
	void (*unregister_host)(struct kern_device *device, void *p);
	int (*copy_async)(struct kern_device *device, void *to, const void *from, size_t bytes); /* in line with the ops */
	int (*fence)(struct kern_device *device); /* wait for all copies and ops so far; -EIO: the device failed, see failure */
	/* In pieces, on a way of its own: the steps do not wait for it. join: ops from now on see what was uploaded. */
	int (*upload)(struct kern_device *device, struct kern_upload *upload);
	int (*join)(struct kern_device *device, struct kern_upload *upload);
	void (*failure)(struct kern_device *device, struct kern_failure *ret);

	/*
	 * Recording. replay: 1, and the step recorded under this key runs again on what device memory holds now; 0: there is
	 * none. record: ops from now on are recorded, until play() ends the recording and runs it; positive: not this time, they
	 * run as usual. play, positive: the recording came to nothing, and nothing of it ran. NULL where there is no such thing.
	 */
	int (*replay)(struct kern_device *device, uint64_t key);
	int (*record)(struct kern_device *device, uint64_t key);
	int (*play)(struct kern_device *device);

	/*
	 * plan: choose layout and size for a matrix. pack: packed rows [first, first + n) to host memory `to`, from where they
	 * go to data + first / grain * grain_bytes; first is a multiple of grain. Both once, at load; pack from any thread.
	 */
	int (*weight_plan)(struct kern_device *device, const struct kern_matrix *m, enum kern_precision precision,
			   struct kern_weight *ret);
	void (*weight_pack)(const struct kern_weight *w, const struct kern_matrix *m, uint32_t first, uint32_t n, void *to);
	void (*weight_release)(struct kern_weight *w); /* the handle, not data */
	size_t (*activation_bytes)(uint8_t activation, uint32_t cols); /* of one row; 0: plain f32 is used */
	/* Memory with which parts can share sequences of up to so many positions. NULL: the backend has no use for it. */
	size_t (*attention_bytes)(const struct kern_kv_layout *kv, uint32_t n_heads, uint32_t context);
};

struct kern_backend {
	const char *name;
	bool queued;     /* ops only start work: see the head of this file */
	bool exact_rows; /* a row's bits do not depend on the rows beside it */
	bool lora_i8;    /* takes adapters in I8 */
	const struct kern_device_ops *device;
	const struct kern_ops *ops;
};

extern const struct kern_backend kern_ref; /* the scalar truth, see ref.c */

/* The CPU backend of an instruction set. kern_cpu_best(): the most this machine has. NULL: the machine lacks it. */
const struct kern_backend *kern_cpu(enum kern_isa isa);
enum kern_isa kern_cpu_best(void);
extern const char *const kern_isa_names[_KERN_ISA_N];

/* Modules of a layer an adapter may change, in the order of struct kern_lora tables; the output head comes last. */
enum kern_module { KERN_Q, KERN_K, KERN_V, KERN_O, KERN_GATE, KERN_UP, KERN_DOWN, _KERN_MODULE_N };

static inline uint32_t kern_module(uint32_t layer, enum kern_module module)
{
	return layer * _KERN_MODULE_N + (uint32_t)module;
}

size_t kern_row_bytes(enum kern_dtype dtype, uint32_t cols);  /* 0: cols is no multiple of the block */
const char *kern_dtype_name(enum kern_dtype dtype);           /* of a stored matrix, as ggml spells it */
size_t kern_dtype_bytes(enum kern_dtype dtype);               /* of one F32, F16, BF16 or I8 number, else 0 */

static inline uint32_t kern_kv_groups(uint32_t head_dim)
{
	return (head_dim + KERN_KV_GROUP - 1) / KERN_KV_GROUP;
}

/* Bytes of one number of a key or value, and of a key and a value of one KV head with their scales. */
static inline size_t kern_kv_number(enum kern_dtype dtype)
{
	return dtype == KERN_F32 ? 4 : dtype == KERN_I8 ? 1 : 2;
}

static inline size_t kern_kv_bytes(enum kern_dtype dtype, uint32_t head_dim)
{
	size_t scales = dtype == KERN_I8 ? kern_kv_groups(head_dim) + 1 : 0;

	return 2 * kern_kv_number(dtype) * head_dim + scales * sizeof(float);
}

/* Rows of A and B are 64-byte aligned: bytes from one to the next. */
static inline size_t kern_lora_stride(enum kern_dtype dtype, uint32_t width)
{
	return (kern_dtype_bytes(dtype) * width + 63) / 64 * 64;
}

#ifdef __cplusplus
}
#endif

#endif
