/* SPDX-License-Identifier: MIT */
/*
 * Runs ops of the CUDA backend in the instrumented simulator, one a line of standard input: its name, then numbers, see
 * `ops` below. Every operand has device memory of its own. After each op a line goes to $CUDASIM_COUNT, behind those of
 * the op's launches, that names these ranges: {"regions": {"0x...": "weight", ...}}. check-counts compares.
 */
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda.h"
#include "kernels/cuda/device.h"

#define NUMBERS_MAX 8
#define REGIONS_MAX 16
#define BLOCK_TOKENS 16u

static const struct kern_backend *backend;
static struct kern_device *device;

static struct region {
	const char *name;
	void *p;
	size_t bytes;
} regions[REGIONS_MAX];
static unsigned n_regions;

static void die(const char *what)
{
	struct kern_failure why = { 0 };

	if (device)
		backend->device->failure(device, &why);
	fprintf(stderr, "count-ops: %s: %s\n", what, why.text);
	exit(1);
}

/* ---- memory ---- */

static void *take(const char *name, size_t bytes)
{
	struct region *r = &regions[n_regions++];

	if (n_regions == REGIONS_MAX || backend->device->alloc(device, NULL, bytes, &r->p))
		die("no memory");
	r->name = name;
	r->bytes = bytes;
	return r->p;
}

static void send(void *to, const void *from, size_t bytes)
{
	if (backend->device->copy_async(device, to, from, bytes) || backend->device->fence(device))
		die("copy");
}

static void *take_copy(const char *name, const void *from, size_t bytes)
{
	void *p = take(name, bytes);

	send(p, from, bytes);
	return p;
}

/* Small numbers, no two neighbours alike. */
static float *take_floats(const char *name, size_t n)
{
	float *host = malloc(n * sizeof(*host)), *p;

	for (size_t i = 0; host && i < n; ++i)
		host[i] = (float)(i * 2654435761u % 1024) / 512 - 1;
	p = take_copy(name, host, n * sizeof(*host));
	free(host);
	return p;
}

/* What was counted belongs to these ranges. */
static void end_of_op(const char *line)
{
	FILE *to = fopen(getenv("CUDASIM_COUNT"), "a");

	if (!to)
		die("cannot write to $CUDASIM_COUNT");
	fprintf(to, "{\"op\": \"%s\", \"regions\": {", line);
	for (unsigned i = 0; i < n_regions; ++i)
		fprintf(to, "%s\"0x%lx\": \"%s\"", i ? ", " : "", (unsigned long)(uintptr_t)regions[i].p,
			regions[i].name);
	fprintf(to, "}}\n");
	fclose(to);
	while (n_regions > 0) {
		--n_regions;
		backend->device->free(device, regions[n_regions].p, regions[n_regions].bytes);
	}
}

/* ---- steps ---- */

/* n sequences of so many rows each, whose last row has position last; one segment a sequence. */
static void make_step(uint32_t n, uint32_t rows, uint32_t last, void *kv, size_t block_bytes, struct kern_step *ret,
		      struct kern_extent *ret_extent)
{
	uint32_t blocks = last / BLOCK_TOKENS + 1, tiles = (rows + KERN_TILE - 1) / KERN_TILE, all = n * rows;
	uint32_t *position = calloc(all, 4), *row_seq = calloc(all, 4), *token = calloc(all, 4);
	struct kern_seq *seq = calloc(n, sizeof(*seq));
	struct kern_segment *segment = calloc(n, sizeof(*segment));
	struct kern_tile *tile = calloc((size_t)n * tiles, sizeof(*tile));
	struct kern_sampling *sampling = calloc(n, sizeof(*sampling));
	void **block = calloc((size_t)n * blocks, sizeof(*block));

	for (uint32_t i = 0; i < n; ++i) {
		seq[i] = (struct kern_seq){ i * rows, rows, last + 1 - rows, i * blocks };
		segment[i] = (struct kern_segment){
			.first_row = i * rows, .n_rows = rows, .scale = 1, .scratch_row = i * rows
		};
		sampling[i] = (struct kern_sampling){ .top_p = 1, .repetition_penalty = 1, .target = -1 };
		for (uint32_t j = 0; j < rows; ++j) {
			row_seq[i * rows + j] = i;
			position[i * rows + j] = last + 1 - rows + j;
			token[i * rows + j] = (i * rows + j) * 17; /* no two in a tile */
		}
		for (uint32_t j = 0; j < tiles; ++j)
			tile[i * tiles + j] = (struct kern_tile){ i, j * KERN_TILE };
		for (uint32_t j = 0; j < blocks; ++j)
			block[i * blocks + j] = (uint8_t *)kv + (i * blocks + j) * block_bytes;
	}
	*ret = (struct kern_step){
		.n_rows = all,
		.n_seqs = n,
		.n_segments = n,
		.n_outputs = n,
		.n_seq_tiles = rows > 1 ? n * tiles : 0,
		.n_segment_tiles = n * tiles,
		.token = take_copy("step", token, all * 4),
		.position = take_copy("step", position, all * 4),
		.row_seq = take_copy("step", row_seq, all * 4),
		.seq = take_copy("step", seq, n * sizeof(*seq)),
		.kv_block = take_copy("step", block, (size_t)n * blocks * sizeof(*block)),
		.segment = take_copy("step", segment, n * sizeof(*segment)),
		.seq_tile = take_copy("step", tile, (size_t)n * tiles * sizeof(*tile)),
		.sampling = take_copy("step", sampling, n * sizeof(*sampling)),
		.result = take("result", n * sizeof(struct kern_result)),
	};
	ret->segment_tile = ret->seq_tile;
	*ret_extent = (struct kern_extent){
		.n_rows = all,
		.n_seqs = n,
		.n_seq_tiles = ret->n_seq_tiles,
		.n_segment_tiles = ret->n_segment_tiles,
		.n_outputs = n,
		.n_single = rows == 1 ? n : 0,
		.n_positions = last + 1,
		.n_scratch_rows = all,
	};
	free(position), free(row_seq), free(token), free(seq), free(segment), free(tile), free(sampling), free(block);
}

static const struct kern_step *on_device(const struct kern_step *step)
{
	return take_copy("step", step, sizeof(*step));
}

/* ---- the ops ---- */

/* The packed form of a matrix of any numbers. */
static struct kern_weight make_weight(uint32_t dtype, uint32_t rows, uint32_t cols, uint32_t precision)
{
	struct kern_matrix m = { .dtype = (enum kern_dtype)dtype, .rows = rows, .cols = cols };
	struct kern_weight w;

	if (backend->device->weight_plan(device, &m, (enum kern_precision)precision, &w))
		die("weight_plan");
	w.data = take("weight", w.bytes);
	return w;
}

static void embed(const uint32_t *a) /* dtype, precision, vocabulary, d, rows */
{
	struct kern_weight w = make_weight(a[0], a[2], a[3], a[1]);
	struct kern_step step;
	struct kern_extent extent;

	make_step(a[4], 1, 0, NULL, 0, &step, &extent);
	struct kern_embed args = { &w, on_device(&step), take("x", (size_t)a[4] * a[3] * 4), &extent };
	backend->ops->embed(device, &args, 0, 1);
}

static void rms_norm(const uint32_t *a) /* rows, d */
{
	size_t n = (size_t)a[0] * a[1];
	struct kern_rms_norm args = { take_floats("x", n), take_floats("gain", a[1]), NULL, a[0], a[1], 1e-5f,
				      take("y", n * 4) };

	backend->ops->rms_norm(device, &args, 0, 1);
}

static void activate(const uint32_t *a) /* rows, cols */
{
	struct kern_activate args = { take_floats("x", (size_t)a[0] * a[1]), a[0], a[1], CUDA_BF16,
				      take("y", a[0] * cuda_activation_bytes(CUDA_BF16, a[1])) };

	backend->ops->activate(device, &args, 0, 1);
}

static void matmul(const uint32_t *a) /* dtype, precision, rows, cols, n, accumulate */
{
	struct kern_weight w = make_weight(a[0], a[2], a[3], a[1]);
	struct kern_matmul args = { &w,	  NULL,	     take("x", a[4] * cuda_activation_bytes(w.activation, a[3])),
				    a[4], a[5] != 0, take_floats("y", (size_t)a[4] * a[2]) };

	backend->ops->matmul(device, &args, 0, 1);
}

static void lora(const uint32_t *a, bool expand) /* dtype, in, out, rank, segments, rows of each */
{
	size_t rows = (size_t)a[4] * a[5], a_bytes = a[3] * kern_lora_stride((enum kern_dtype)a[0], a[1]);
	size_t b_bytes = a[3] * kern_lora_stride((enum kern_dtype)a[0], a[2]), floats = 8 * rows * a[3];
	struct kern_lora *module = calloc(a[4], sizeof(*module));
	struct kern_step step;
	struct kern_extent extent;
	uint8_t *adapter = take("adapter", a[4] * (expand ? b_bytes : a_bytes));

	make_step(a[4], a[5], a[5] - 1, NULL, 0, &step, &extent);
	extent.max_rank = a[3];
	for (uint32_t i = 0; i < a[4]; ++i)
		module[i] = (struct kern_lora){ .a = adapter + i * a_bytes,
						.b = adapter + i * b_bytes,
						.scale = 1,
						.rank = (uint16_t)a[3],
						.dtype = (uint8_t)a[0] };
	struct kern_lora *modules = take_copy("step", module, a[4] * sizeof(*module));
	struct kern_segment *segment = calloc(a[4], sizeof(*segment));
	if (backend->device->copy_async(device, segment, step.segment, a[4] * sizeof(*segment)) ||
	    backend->device->fence(device))
		die("copy");
	for (uint32_t i = 0; i < a[4]; ++i)
		segment[i].modules = modules + i;
	send((void *)(uintptr_t)step.segment, segment, a[4] * sizeof(*segment));
	free(module), free(segment);

	if (expand) {
		struct kern_lora_expand args = { on_device(&step),
						 0,
						 take_floats("scratch", floats),
						 a[3],
						 a[2],
						 take_floats("y", rows * a[2]),
						 CUDA_BF16,
						 floats,
						 &extent };
		backend->ops->lora_expand(device, &args, 0, 1);
	} else {
		struct kern_lora_shrink args = { on_device(&step),
						 0,
						 NULL,
						 a[1],
						 a[3],
						 take("scratch", floats * 4),
						 take("x", rows * cuda_activation_bytes(CUDA_BF16, a[1])),
						 CUDA_BF16,
						 floats,
						 &extent };
		backend->ops->lora_shrink(device, &args, 0, 1);
	}
}

static void lora_shrink(const uint32_t *a)
{
	lora(a, false);
}

static void lora_expand(const uint32_t *a)
{
	lora(a, true);
}

static void rope(const uint32_t *a) /* rows, heads, e */
{
	struct kern_step step;
	struct kern_extent extent;

	make_step(a[0], 1, 9, NULL, 0, &step, &extent);
	struct kern_rope args = { on_device(&step),
				  take_floats("inv_freq", a[2] / 2),
				  a[1],
				  a[2],
				  take_floats("x", (size_t)a[0] * a[1] * a[2]),
				  &extent };
	backend->ops->rope(device, &args, 0, 1);
}

/* Keys and values of n sequences of so many positions, on the device. */
static uint8_t *make_kv(uint32_t dtype, uint32_t kv_heads, uint32_t e, uint32_t n, uint32_t positions,
			struct kern_kv_layout *ret)
{
	size_t number = kern_dtype_bytes((enum kern_dtype)dtype), layer = 2 * number * BLOCK_TOKENS * kv_heads * e;

	*ret = (struct kern_kv_layout){ (enum kern_dtype)dtype, BLOCK_TOKENS, kv_heads, e, layer };
	return take("kv", n * ((positions + BLOCK_TOKENS - 1) / BLOCK_TOKENS) * layer);
}

static void kv_write(const uint32_t *a) /* dtype, rows, KV heads, e */
{
	struct kern_step step;
	struct kern_extent extent;
	struct kern_kv_layout kv;
	size_t n = (size_t)a[1] * a[2] * a[3];
	uint8_t *data = make_kv(a[0], a[2], a[3], a[1], 16, &kv);

	make_step(a[1], 1, 15, data, kv.layer_bytes, &step, &extent);
	struct kern_kv_write args = { on_device(&step), &kv, 0, take_floats("k", n), take_floats("v", n), &extent };
	backend->ops->kv_write(device, &args, 0, 1);
}

static void attention(const uint32_t *a) /* dtype, heads, KV heads, e, sequences, rows of each, positions, context */
{
	const struct kern_limits limits = { .rows = a[4] * a[5],
					    .seqs = a[4],
					    .outputs = a[4],
					    .context = a[7],
					    .n_heads = a[1],
					    .head_dim = a[3],
					    .vocab = 1 };
	size_t n = (size_t)a[4] * a[5] * a[1] * a[3];
	struct kern_kv_layout kv;
	struct kern_step step;
	struct kern_extent extent;

	if (backend->device->reserve(device, &limits))
		die("reserve");
	uint8_t *data = make_kv(a[0], a[2], a[3], a[4], a[6], &kv);
	make_step(a[4], a[5], a[6] - 1, data, kv.layer_bytes, &step, &extent);
	struct kern_attention args = { on_device(&step), &kv, 0, a[1], take_floats("q", n), take("y", n * 4), &extent };
	backend->ops->attention(device, &args, 0, 1);
}

static void swiglu(const uint32_t *a) /* rows, width */
{
	size_t n = (size_t)a[0] * a[1];
	struct kern_swiglu args = { take_floats("gate", n), take_floats("up", n), a[0], a[1], take("y", n * 4) };

	backend->ops->swiglu(device, &args, 0, 1);
}

static void row_scale(const uint32_t *a) /* rows, width: a segment and a vector each */
{
	struct kern_step step;
	struct kern_extent extent;
	const float **vector = calloc(a[0], sizeof(*vector));

	make_step(a[0], 1, 0, NULL, 0, &step, &extent);
	float *vectors = take_floats("adapter", (size_t)a[0] * a[1]);
	for (uint32_t i = 0; i < a[0]; ++i)
		vector[i] = vectors + (size_t)i * a[1];
	struct kern_row_scale args = { on_device(&step), take_copy("step", vector, a[0] * sizeof(*vector)), a[1],
				       take_floats("y", (size_t)a[0] * a[1]), &extent };
	backend->ops->row_scale(device, &args, 0, 1);
	free(vector);
}

static void kv_copy(const uint32_t *a) /* blocks, bytes of each */
{
	void **from = calloc(a[0], sizeof(*from)), **to = calloc(a[0], sizeof(*to));
	uint8_t *source = take("kv", (size_t)a[0] * a[1]), *target = take("to", (size_t)a[0] * a[1]);

	for (uint32_t i = 0; i < a[0]; ++i) {
		from[i] = source + (size_t)i * a[1];
		to[i] = target + (size_t)i * a[1];
	}
	struct kern_kv_copy args = { take_copy("step", from, a[0] * sizeof(*from)),
				     take_copy("step", to, a[0] * sizeof(*to)), a[0], a[1] };
	backend->ops->kv_copy(device, &args, 0, 1);
	free(from), free(to);
}

static void sample(const uint32_t *a) /* outputs, vocabulary: greedy */
{
	struct kern_step step;
	struct kern_extent extent;

	make_step(a[0], 1, 0, NULL, 0, &step, &extent);
	struct kern_sample args = { on_device(&step), 0, a[0], a[1], take_floats("logits", (size_t)a[0] * a[1]) };
	backend->ops->sample(device, &args, 0, 1);
}

static const struct op {
	const char *name;
	unsigned n_numbers;
	void (*run)(const uint32_t *numbers);
} ops[] = {
	{ "embed", 5, embed },	       { "rms_norm", 2, rms_norm },	  { "activate", 2, activate },
	{ "matmul", 6, matmul },       { "lora_shrink", 6, lora_shrink }, { "lora_expand", 6, lora_expand },
	{ "rope", 3, rope },	       { "kv_write", 4, kv_write },	  { "kv_copy", 2, kv_copy },
	{ "attention", 8, attention }, { "swiglu", 2, swiglu },		  { "row_scale", 2, row_scale },
	{ "sample", 2, sample },
};

static void run_line(char *line)
{
	char name[32], *at;
	uint32_t numbers[NUMBERS_MAX];
	unsigned n = 0;
	int length;

	line[strcspn(line, "\n")] = 0;
	if (sscanf(line, "%31s%n", name, &length) != 1)
		return;
	for (char *end = at = line + length; n < NUMBERS_MAX; ++n, at = end) {
		numbers[n] = (uint32_t)strtoul(at, &end, 10);
		if (end == at)
			break;
	}
	for (size_t i = 0; i < sizeof(ops) / sizeof(*ops); ++i) {
		if (strcmp(ops[i].name, name) != 0 || ops[i].n_numbers != n)
			continue;
		ops[i].run(numbers);
		if (backend->device->fence(device))
			die(line);
		end_of_op(line);
		return;
	}
	die(line);
}

int main(void)
{
	struct kern_failure why = { 0 };
	const struct kern_limits least = {
		.rows = 1, .seqs = 1, .outputs = 1, .context = 1, .n_heads = 1, .head_dim = 1
	};
	char line[256];

	backend = kern_cuda();
	if (!getenv("CUDASIM_COUNT")) {
		fprintf(stderr, "count-ops: CUDASIM_COUNT names no file\n");
		return 1;
	}
	if (backend->device->open(&device, 0, &why)) {
		fprintf(stderr, "count-ops: %s\n", why.text);
		return 1;
	}
	if (backend->device->reserve(device, &least))
		die("reserve");
	while (fgets(line, sizeof(line), stdin))
		run_line(line);
	backend->device->close(device);
	return 0;
}
