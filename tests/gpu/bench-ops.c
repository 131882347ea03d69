/* SPDX-License-Identifier: MIT */
/*
 * Each op's speed on the GPU beside what the GPU can do, measured in the same run: tests/gpu/run
 *
 *   bench-ops [--tiny]    tiny: small shapes, once each, for the simulator; its times mean nothing
 *
 * Shapes are those of the layers of Llama-3.1-8B and SmolLM2-135M. Weights, adapters, keys and logits rotate through four
 * times the L2 cache, so that they come from device memory, as in a model; activations stay in the cache, as there.
 * A figure is one call's share of a recording of many (graph.c), which is replayed; the fastest of some replays.
 * GB/s counts every operand once; its peak is a copy on the device, read and written. What only reads can exceed it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/cuda.h"
#include "kernels/cuda/device.h"
#include "kernels/quant.h"

#define RECORDED 64        /* calls in a recording, or all of a rotation if there are more */
#define RECORDED_MAX 2048
#define PATTERN ((size_t)4 << 20)
#define MEMORY_MAX 64      /* pieces of device memory of a section */

struct bench {
	const struct kern_backend *on;
	struct kern_device *device;
	bool tiny;
	size_t rotate;     /* bytes that do not fit into the cache */
	double copy, gemm; /* peaks: B/s, FLOP/s; 0: not measured yet */
	uint64_t key;      /* of the latest recording */
	struct { void *p; size_t bytes; } memory[MEMORY_MAX];
	unsigned n_memory;
};

typedef void call(struct bench *b, void *args, unsigned i); /* i: turn of the rotation */

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static _Noreturn void die(struct bench *b, const char *what)
{
	struct kern_failure why = { 0 };

	b->on->device->failure(b->device, &why);
	fflush(stdout);
	fprintf(stderr, "bench-ops: %s: %s\n", what, why.text);
	exit(1);
}

static void must(struct bench *b, int r, const char *what)
{
	if (r < 0)
		die(b, what);
}

static void fence(struct bench *b)
{
	must(b, b->on->device->fence(b->device), "fence");
}

/* ---- memory ---- */

static void *take(struct bench *b, size_t bytes)
{
	void *p;

	if (b->n_memory == MEMORY_MAX || b->on->device->alloc(b->device, NULL, bytes, &p) < 0)
		die(b, "no memory");
	b->memory[b->n_memory].p = p;
	b->memory[b->n_memory++].bytes = bytes;
	return p;
}

static void release(struct bench *b)
{
	fence(b);
	while (b->n_memory > 0) {
		b->n_memory--;
		b->on->device->free(b->device, b->memory[b->n_memory].p, b->memory[b->n_memory].bytes);
	}
}

static void send(struct bench *b, void *to, const void *from, size_t bytes)
{
	must(b, b->on->device->copy_async(b->device, to, from, bytes), "copy");
}

static void *take_copy(struct bench *b, const void *from, size_t bytes)
{
	void *p = take(b, bytes);

	send(b, p, from, bytes);
	return p;
}

/* Device memory that holds a pattern again and again. */
static uint8_t *take_filled(struct bench *b, size_t bytes, const void *pattern, size_t n)
{
	uint8_t *p = take(b, bytes);

	n = n < bytes ? n : bytes;
	send(b, p, pattern, n);
	for (size_t more; n < bytes; n += more) {
		more = n < bytes - n ? n : bytes - n;
		send(b, p + n, p, more);
	}
	fence(b);
	return p;
}

static uint32_t next_random(void)
{
	static uint64_t state = 1;

	state = state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(state >> 33);
}

/* Numbers in (-1, 1): zeros would be multiplied with less power than a model's. */
static uint8_t *take_numbers(struct bench *b, size_t n, bool bf16)
{
	size_t room = PATTERN / sizeof(float);
	float *x = malloc(PATTERN);
	uint16_t *half = malloc(PATTERN / 2);

	if (!x || !half)
		die(b, "no memory");
	for (size_t i = 0; i < room; i++) {
		x[i] = (float)next_random() / (1u << 30) - 1;
		half[i] = quant_to_bf16(x[i]);
	}
	uint8_t *p = bf16 ? take_filled(b, 2 * n, half, PATTERN / 2) : take_filled(b, 4 * n, x, PATTERN);
	free(x);
	free(half);
	return p;
}

static float *take_floats(struct bench *b, size_t n)
{
	return (float *)(void *)take_numbers(b, n, false);
}

/* How often something of a size lies in memory, for a rotation. */
static unsigned turns(const struct bench *b, size_t bytes)
{
	size_t n = b->rotate / bytes + 1;

	return n < RECORDED_MAX ? (unsigned)n : RECORDED_MAX;
}

/* ---- time ---- */

static void run_calls(struct bench *b, call *f, void *args, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		f(b, args, i);
}

static bool record(struct bench *b, call *f, void *args, unsigned n)
{
	b->key++;
	for (unsigned pass = 0; pass < 2; pass++) { /* the first one loads kernels */
		int r = b->on->device->record(b->device, b->key);
		must(b, r, "record");
		run_calls(b, f, args, n);
		must(b, b->on->device->play(b->device), "play");
		fence(b);
		if (pass == 1 && r > 0)
			return false;
	}
	return true;
}

static double time_rounds(struct bench *b, call *f, void *args, unsigned n, bool recorded, unsigned rounds)
{
	double t = now();

	for (unsigned i = 0; i < rounds; i++) {
		if (!recorded)
			run_calls(b, f, args, n);
		else if (b->on->device->replay(b->device, b->key) != 1)
			die(b, "replay");
	}
	fence(b);
	return (now() - t) / rounds;
}

/* Seconds of a call. n: turns of its rotation. */
static double time_calls(struct bench *b, call *f, void *args, unsigned n, bool eager)
{
	n = b->tiny ? 2 : n < RECORDED ? (RECORDED + n - 1) / n * n : n;
	if (eager)
		run_calls(b, f, args, n);
	bool recorded = !eager && record(b, f, args, n);
	double best = time_rounds(b, f, args, n, recorded, 1);
	unsigned rounds = best < 1e-5 ? 1000 : (unsigned)(1e-2 / best) + 1;
	for (unsigned i = 0; i < (b->tiny ? 0 : 4); i++) {
		double t = time_rounds(b, f, args, n, recorded, rounds);
		best = t < best ? t : best;
	}
	return best / n;
}

static void print(const struct bench *b, const char *what, double seconds, double bytes, double flops)
{
	printf("%-44s %10.2f us %8.1f GB/s", what, seconds * 1e6, bytes / seconds / 1e9);
	printf(b->copy > 0 ? " %4.0f %%" : "       ", 100 * bytes / seconds / b->copy);
	printf(" %9.3f TFLOP/s", flops / seconds / 1e12);
	printf(b->gemm > 0 ? " %4.0f %%\n" : "\n", 100 * flops / seconds / b->gemm);
	fflush(stdout);
}

/* ---- products ---- */

struct matmul {
	struct kern_weight w, turn; /* turn: w, with data of the turn */
	unsigned n_turns;
	struct kern_matmul args;
};

static void call_matmul(struct bench *b, void *args, unsigned i)
{
	struct matmul *m = args;

	m->turn = m->w;
	m->turn.data = (uint8_t *)m->w.data + i % m->n_turns * m->w.bytes;
	m->args.w = &m->turn;
	b->on->ops->matmul(b->device, &m->args, 0, 1);
}

/* Some rows are packed and stand for all. */
static void take_weights(struct bench *b, struct matmul *m, enum kern_dtype dtype, uint32_t rows, uint32_t cols)
{
	uint32_t some = rows < 256 ? rows : 256;
	size_t bytes = rows * kern_row_bytes(dtype, cols);
	uint8_t *data = malloc(bytes);
	struct kern_matrix matrix = { dtype, rows, cols, 0, data };

	if (!data)
		die(b, "no memory");
	for (size_t i = 0; i < some * kern_row_bytes(dtype, cols) / 2; i++)
		((uint16_t *)(void *)data)[i] = (uint16_t)(0x2c00 | (next_random() & 0x83ff)); /* small as f16 and bf16 */
	must(b, b->on->device->weight_plan(b->device, &matrix, KERN_PRECISION_INT8, &m->w), "weight_plan");
	some = some / m->w.grain * m->w.grain;
	size_t packed = some ? some / m->w.grain * m->w.grain_bytes : m->w.bytes;
	uint8_t *room = malloc(packed);
	if (!room)
		die(b, "no memory");
	b->on->device->weight_pack(&m->w, &matrix, 0, some ? some : rows, room);
	m->n_turns = turns(b, m->w.bytes);
	m->w.data = take_filled(b, m->n_turns * m->w.bytes, room, packed);
	free(room);
	free(data);
}

static void bench_matmul(struct bench *b, enum kern_dtype dtype, uint32_t cols, uint32_t rows)
{
	static const char *const names[] = { [KERN_BF16] = "bf16", [KERN_Q8_0] = "Q8_0", [KERN_Q4_0] = "Q4_0",
					     [KERN_Q4_1] = "Q4_1" };
	static const uint32_t ns[] = { 1, 8, 16, 64, 512 };
	struct matmul m;
	char what[64];

	take_weights(b, &m, dtype, rows, cols);
	m.args = (struct kern_matmul){ .activated = take_numbers(b, (size_t)512 * (cols + 8), true),
				       .y = take(b, (size_t)512 * rows * 4) };
	for (unsigned i = 0; i < sizeof ns / sizeof *ns; i++) {
		m.args.n = b->tiny && ns[i] == 512 ? 70 : ns[i];
		snprintf(what, sizeof what, "matmul %s %u -> %u, %u rows", names[dtype], cols, rows, m.args.n);
		print(b, what, time_calls(b, call_matmul, &m, m.n_turns, false),
		      (double)rows * (double)kern_row_bytes(dtype, cols) + (double)m.args.n * (2.0 * cols + 4.0 * rows),
		      2.0 * m.args.n * rows * cols);
	}
	release(b);
}

static void call_activate(struct bench *b, void *args, unsigned i)
{
	(void)i;
	b->on->ops->activate(b->device, args, 0, 1);
}

/* ---- peaks ---- */

static void measure_gemm(struct bench *b, uint32_t n)
{
	struct matmul m;
	char what[64];

	take_weights(b, &m, KERN_BF16, n, n);
	m.args = (struct kern_matmul){ .n = n, .activated = take_numbers(b, (size_t)n * n, true),
				       .y = take(b, (size_t)n * n * 4) };
	double seconds = time_calls(b, call_matmul, &m, 1, false), flops = 2.0 * n * n * n;
	b->gemm = b->gemm < flops / seconds ? flops / seconds : b->gemm;
	snprintf(what, sizeof what, "peak: bf16 product %u^3", n);
	print(b, what, seconds, 2.0 * n * n * 4, flops);
	release(b);
}

static void call_copy(struct bench *b, void *args, unsigned i)
{
	uint8_t *const *halves = args;

	send(b, halves[i % 2], halves[(i + 1) % 2], b->rotate);
}

static void measure_copy(struct bench *b)
{
	uint8_t *halves[2] = { take_numbers(b, b->rotate / 2, true), take_numbers(b, b->rotate / 2, true) };
	double bytes = 2.0 * (double)b->rotate, seconds = time_calls(b, call_copy, halves, 2, true);

	b->copy = bytes / seconds;
	print(b, "peak: copy on the device", seconds, bytes, 0);
	release(b);
}

/* ---- steps ---- */

/* A step's arrays, made on the host: pointers are of the device. */
struct parts {
	struct kern_step step;
	struct kern_extent extent;
	const struct kern_step *on_device;
};

struct sequences { /* n of `rows` rows each; the last row has position `last` */
	uint32_t n, rows, last;
	uint8_t *kv;        /* their blocks, one behind the other */
	size_t block_bytes;
	uint32_t block_tokens;
};

static void *allocate(struct bench *b, size_t n, size_t bytes)
{
	void *p = calloc(n, bytes);

	return p ? p : (die(b, "no memory"), NULL);
}

static void make_step(struct bench *b, const struct sequences *s, const struct kern_sampling *like, struct parts *ret)
{
	uint32_t all = s->n * s->rows, tiles = (s->rows + KERN_TILE - 1) / KERN_TILE;
	uint32_t blocks = s->block_tokens ? s->last / s->block_tokens + 1 : 0;
	uint32_t *token = allocate(b, all, 4), *position = allocate(b, all, 4), *row_seq = allocate(b, all, 4);
	struct kern_seq *seq = allocate(b, s->n, sizeof *seq);
	struct kern_tile *tile = allocate(b, (size_t)s->n * tiles, sizeof *tile);
	struct kern_sampling *sampling = allocate(b, s->n, sizeof *sampling);
	void **block = allocate(b, (size_t)s->n * blocks + 1, sizeof *block);

	for (uint32_t i = 0; i < s->n; i++) {
		seq[i] = (struct kern_seq){ i * s->rows, s->rows, s->last + 1 - s->rows, i * blocks };
		sampling[i] = *like;
		sampling[i].draw = i;
		for (uint32_t j = 0; j < tiles; j++)
			tile[i * tiles + j] = (struct kern_tile){ i, j * KERN_TILE };
	}
	for (uint32_t i = 0; i < all; i++) {
		token[i] = next_random();
		row_seq[i] = i / s->rows;
		position[i] = s->last + 1 - s->rows + i % s->rows;
	}
	for (uint32_t i = 0; i < s->n * blocks; i++)
		block[i] = s->kv + i * s->block_bytes;
	ret->step = (struct kern_step){
		.n_rows = all, .n_seqs = s->n, .n_outputs = s->n, .n_seq_tiles = s->rows > 1 ? s->n * tiles : 0,
		.token = take_copy(b, token, all * 4), .position = take_copy(b, position, all * 4),
		.row_seq = take_copy(b, row_seq, all * 4), .seq = take_copy(b, seq, s->n * sizeof *seq),
		.seq_tile = take_copy(b, tile, (size_t)s->n * tiles * sizeof *tile),
		.kv_block = take_copy(b, block, ((size_t)s->n * blocks + 1) * sizeof *block),
		.sampling = take_copy(b, sampling, s->n * sizeof *sampling),
		.result = take(b, s->n * sizeof *ret->step.result),
	};
	ret->extent = (struct kern_extent){ .n_rows = all, .n_seqs = s->n, .n_outputs = s->n,
					    .n_seq_tiles = ret->step.n_seq_tiles, .n_positions = s->last + 1,
					    .n_single = s->rows == 1 ? s->n : 0 };
	ret->on_device = take_copy(b, &ret->step, sizeof ret->step);
	free(token), free(position), free(row_seq), free(seq), free(tile), free(sampling), free(block);
}

/* ---- adapters ---- */

struct lora {
	struct parts parts;
	const struct kern_step **turn; /* [n_turns], each with adapters of its own */
	unsigned n_turns;
	struct kern_lora_shrink shrink;
	struct kern_lora_expand expand;
};

static void call_shrink(struct bench *b, void *args, unsigned i)
{
	struct lora *l = args;

	l->shrink.step = l->turn[i % l->n_turns];
	b->on->ops->lora_shrink(b->device, &l->shrink, 0, 1);
}

static void call_expand(struct bench *b, void *args, unsigned i)
{
	struct lora *l = args;

	l->expand.step = l->turn[i % l->n_turns];
	b->on->ops->lora_expand(b->device, &l->expand, 0, 1);
}

/* n segments of an adapter each, once a turn. */
static void take_segments(struct bench *b, struct lora *l, const struct sequences *s, size_t a_bytes, size_t b_bytes,
			  uint16_t rank)
{
	uint32_t n = l->n_turns * s->n;
	struct kern_lora *module = allocate(b, n, sizeof *module);
	struct kern_segment *segment = allocate(b, n, sizeof *segment);
	struct kern_step *step = allocate(b, l->n_turns, sizeof *step);
	uint8_t *data = take_numbers(b, n * (a_bytes + b_bytes) / 2, true);

	for (uint32_t i = 0; i < n; i++, data += a_bytes + b_bytes)
		module[i] = (struct kern_lora){ data, data + a_bytes, 1, rank, KERN_BF16, 0, NULL };
	const struct kern_lora *modules = take_copy(b, module, n * sizeof *module);
	for (uint32_t i = 0; i < n; i++)
		segment[i] = (struct kern_segment){ i % s->n * s->rows, s->rows, modules + i, 1, i % s->n * s->rows };
	const struct kern_segment *segments = take_copy(b, segment, n * sizeof *segment);
	l->parts.step.n_segments = s->n;
	l->parts.step.n_segment_tiles = s->n * ((s->rows + KERN_TILE - 1) / KERN_TILE);
	l->parts.step.segment_tile = l->parts.step.seq_tile;
	for (unsigned i = 0; i < l->n_turns; i++) {
		step[i] = l->parts.step;
		step[i].segment = segments + i * s->n;
	}
	const struct kern_step *steps = take_copy(b, step, l->n_turns * sizeof *step);
	for (unsigned i = 0; i < l->n_turns; i++)
		l->turn[i] = steps + i;
	free(module), free(segment), free(step);
}

static void bench_lora(struct bench *b, uint32_t n, uint32_t rows, uint16_t rank, uint32_t in, uint32_t out)
{
	size_t a_bytes = rank * kern_lora_stride(KERN_BF16, in), b_bytes = rank * kern_lora_stride(KERN_BF16, out);
	size_t floats = (size_t)8 * n * rows * rank;
	const struct sequences s = { .n = n, .rows = rows, .last = rows - 1 };
	struct lora l = { .n_turns = turns(b, n * (a_bytes + b_bytes)) };
	char what[64];

	make_step(b, &s, &(struct kern_sampling){ 0 }, &l.parts);
	l.turn = allocate(b, l.n_turns, sizeof *l.turn);
	take_segments(b, &l, &s, a_bytes, b_bytes, rank);
	l.parts.extent.n_segment_tiles = l.parts.step.n_segment_tiles;
	l.parts.extent.n_scratch_rows = n * rows;
	l.parts.extent.max_rank = rank;
	float *scratch = take_floats(b, floats);
	l.shrink = (struct kern_lora_shrink){ .in = in, .scratch_width = rank, .scratch = scratch,
					      .activated = take_numbers(b, (size_t)n * rows * (in + 8), true),
					      .activation = CUDA_BF16, .scratch_floats = floats, .extent = &l.parts.extent };
	l.expand = (struct kern_lora_expand){ .scratch = scratch, .scratch_width = rank, .out = out,
					      .y = take_floats(b, (size_t)n * rows * out), .activation = CUDA_BF16,
					      .scratch_floats = floats, .extent = &l.parts.extent };
	snprintf(what, sizeof what, "lora_shrink %u x %u rows, rank %u, %u", n, rows, rank, in);
	print(b, what, time_calls(b, call_shrink, &l, l.n_turns, false),
	      (double)n * ((double)a_bytes + rows * (2.0 * in + 4.0 * rank)), 2.0 * n * rows * rank * in);
	snprintf(what, sizeof what, "lora_expand %u x %u rows, rank %u, %u", n, rows, rank, out);
	print(b, what, time_calls(b, call_expand, &l, l.n_turns, false),
	      (double)n * ((double)b_bytes + rows * (8.0 * out + 4.0 * rank)), 2.0 * n * rows * rank * out);
	free(l.turn);
	release(b);
}

/* ---- attention ---- */

struct heads {
	uint32_t n, kv, e, block_tokens;
};

struct attention {
	unsigned n_layers;
	struct kern_attention args;
	struct kern_kv_write write;
};

static void call_attention(struct bench *b, void *args, unsigned i)
{
	struct attention *a = args;

	a->args.layer = i % a->n_layers;
	b->on->ops->attention(b->device, &a->args, 0, 1);
}

static void call_kv_write(struct bench *b, void *args, unsigned i)
{
	struct attention *a = args;

	a->write.layer = i % a->n_layers;
	b->on->ops->kv_write(b->device, &a->write, 0, 1);
}

/* n requests of `rows` rows each, whose last row sees `positions` keys. */
static void bench_attention(struct bench *b, const struct heads *h, uint32_t n, uint32_t rows, uint32_t positions)
{
	size_t layer = (size_t)4 * h->kv * h->block_tokens * h->e, width = (size_t)n * rows * h->n * h->e;
	uint32_t blocks = n * ((positions + h->block_tokens - 1) / h->block_tokens);
	struct attention a = { .n_layers = turns(b, blocks * layer) };
	const struct kern_kv_layout kv = { KERN_BF16, h->block_tokens, h->kv, h->e, layer };
	const struct sequences s = { n, rows, positions - 1, take_numbers(b, a.n_layers * blocks * layer / 2, true),
				     a.n_layers * layer, h->block_tokens };
	double keys = (double)rows * positions - (double)rows * (rows - 1) / 2;
	struct parts parts;
	char what[64];

	make_step(b, &s, &(struct kern_sampling){ 0 }, &parts);
	a.args = (struct kern_attention){ .step = parts.on_device, .kv = &kv, .n_heads = h->n, .q = take_floats(b, width),
					  .y = take(b, width * 4), .extent = &parts.extent };
	snprintf(what, sizeof what, "attention %u:%u x %u, %u x %u rows at %u", h->n, h->kv, h->e, n, rows, positions);
	print(b, what, time_calls(b, call_attention, &a, a.n_layers, false),
	      (double)n * ((double)positions * h->kv * h->e * 4 + 8.0 * rows * h->n * h->e), 4.0 * n * keys * h->n * h->e);
	a.write = (struct kern_kv_write){ .step = parts.on_device, .kv = &kv, .k = a.args.q, .v = a.args.q,
					  .extent = &parts.extent };
	snprintf(what, sizeof what, "kv_write %u x %u, %u rows", h->kv, h->e, n * rows);
	print(b, what, time_calls(b, call_kv_write, &a, a.n_layers, false), 12.0 * n * rows * h->kv * h->e, 0);
	release(b);
}

/* ---- the rest ---- */

static void call_rms_norm(struct bench *b, void *args, unsigned i)
{
	(void)i;
	b->on->ops->rms_norm(b->device, args, 0, 1);
}

static void call_swiglu(struct bench *b, void *args, unsigned i)
{
	(void)i;
	b->on->ops->swiglu(b->device, args, 0, 1);
}

static void call_rope(struct bench *b, void *args, unsigned i)
{
	(void)i;
	b->on->ops->rope(b->device, args, 0, 1);
}

static void bench_rows(struct bench *b, uint32_t n, uint32_t d, uint32_t ffn, const struct heads *h)
{
	const struct sequences s = { .n = n, .rows = 1, .last = 500 };
	float *x = take_floats(b, (size_t)n * ffn), *up = take_floats(b, (size_t)n * ffn), *y = take(b, (size_t)n * ffn * 4);
	struct parts parts;
	char what[64];

	make_step(b, &s, &(struct kern_sampling){ 0 }, &parts);
	struct kern_rms_norm norm = { x, up, NULL, n, d, 1e-5f, y };
	struct kern_activate activate = { x, n, d, CUDA_BF16, y };
	struct kern_swiglu swiglu = { x, up, n, ffn, y };
	struct kern_rope rope = { parts.on_device, up, h->n, h->e, x, &parts.extent };
	snprintf(what, sizeof what, "rms_norm %u, %u rows", d, n);
	print(b, what, time_calls(b, call_rms_norm, &norm, 1, false), 8.0 * n * d, 4.0 * n * d);
	snprintf(what, sizeof what, "activate %u, %u rows", d, n);
	print(b, what, time_calls(b, call_activate, &activate, 1, false), 6.0 * n * d, 0);
	snprintf(what, sizeof what, "rope %u x %u, %u rows", h->n, h->e, n);
	print(b, what, time_calls(b, call_rope, &rope, 1, false), 8.0 * n * h->n * h->e, 3.0 * n * h->n * h->e);
	snprintf(what, sizeof what, "swiglu %u, %u rows", ffn, n);
	print(b, what, time_calls(b, call_swiglu, &swiglu, 1, false), 12.0 * n * ffn, 20.0 * n * ffn);
	release(b);
}

struct sample {
	struct kern_sample args;
	float *logits;
	unsigned n_turns;
};

static void call_sample(struct bench *b, void *args, unsigned i)
{
	struct sample *s = args;

	s->args.logits = s->logits + (size_t)(i % s->n_turns) * s->args.n * s->args.vocab;
	b->on->ops->sample(b->device, &s->args, 0, 1);
}

static void bench_sample(struct bench *b, const char *name, const struct kern_sampling *like, uint32_t n, uint32_t vocab)
{
	const struct sequences s = { .n = n, .rows = 1 };
	size_t numbers = (size_t)n * vocab;
	struct parts parts;
	char what[64];

	make_step(b, &s, like, &parts);
	struct sample a = { { parts.on_device, 0, n, vocab, NULL }, NULL, turns(b, numbers * 4) };
	a.logits = take_floats(b, a.n_turns * numbers);
	snprintf(what, sizeof what, "sample %s of %u, %u rows", name, vocab, n);
	print(b, what, time_calls(b, call_sample, &a, a.n_turns, false), 4.0 * (double)numbers, 0);
	release(b);
}

/* ---- launches and uploads ---- */

static void call_kv_copy(struct bench *b, void *args, unsigned i)
{
	(void)i;
	b->on->ops->kv_copy(b->device, args, 0, 1);
}

static void call_kv_copy_and_fence(struct bench *b, void *args, unsigned i)
{
	call_kv_copy(b, args, i);
	fence(b);
}

/* One block of 16 bytes: nothing but the launch. */
static void bench_launches(struct bench *b)
{
	uint8_t *memory = take_numbers(b, 16, true);
	void *const from = memory, *const to = memory + 16;
	struct kern_kv_copy args = { take_copy(b, &from, sizeof from), take_copy(b, &to, sizeof to), 1, 16 };

	print(b, "launch, one by one", time_calls(b, call_kv_copy, &args, 256, true), 32, 0);
	print(b, "launch, recorded", time_calls(b, call_kv_copy, &args, 256, false), 32, 0);
	print(b, "launch and fence", time_calls(b, call_kv_copy_and_fence, &args, 64, true), 32, 0);
	release(b);
}

static void note_done(struct kern_upload *upload)
{
	(void)upload; /* join() and fence() tell */
}

static void call_upload(struct bench *b, void *args, unsigned i)
{
	(void)i;
	must(b, b->on->device->upload(b->device, args), "upload");
	must(b, b->on->device->join(b->device, args), "join");
}

/* What is peculiar to an adapter that is paged in: host memory, registered or not, to the device. */
static void bench_uploads(struct bench *b)
{
	size_t bytes = b->tiny ? (size_t)3 << 20 : (size_t)64 << 20;
	void *host = NULL;

	if (posix_memalign(&host, 4096, bytes) != 0)
		die(b, "no memory");
	memset(host, 1, bytes);
	struct kern_upload upload = { .to = take(b, bytes), .from = host, .bytes = bytes, .done = note_done };
	print(b, "upload, not registered", time_calls(b, call_upload, &upload, 4, true), (double)bytes, 0);
	if (b->on->device->register_host(b->device, host, bytes) == 0)
		print(b, "upload, registered", time_calls(b, call_upload, &upload, 4, true), (double)bytes, 0);
	b->on->device->unregister_host(b->device, host);
	release(b);
	free(host);
}

/* ---- all ---- */

struct model {
	const char *name;
	uint32_t d, ffn, vocab, contexts[3], products[4][2]; /* products: in, out; 0: no more */
	struct heads heads;
};

static void bench_model(struct bench *b, const struct model *m)
{
	static const enum kern_dtype dtypes[] = { KERN_BF16, KERN_Q8_0, KERN_Q4_0, KERN_Q4_1 };
	static const struct kern_sampling greedy = { .top_p = 1, .repetition_penalty = 1, .target = -1 };
	static const struct kern_sampling top_p = { .temperature = 0.8f, .top_p = 0.9f, .repetition_penalty = 1,
						    .target = -1, .seed = 5 };
	uint32_t many = b->tiny ? 70 : 512;

	printf("\n%s\n", m->name);
	for (unsigned i = 0; i < 4 && m->products[i][0]; i++)
		for (unsigned t = 0; t < 4; t++)
			bench_matmul(b, dtypes[t], m->products[i][0], m->products[i][1]);
	for (unsigned i = 0; i < 4 && m->products[i][0]; i++) {
		bench_lora(b, b->tiny ? 4 : 64, 1, 16, m->products[i][0], m->products[i][1]);
		bench_lora(b, 1, many, 16, m->products[i][0], m->products[i][1]);
	}
	for (unsigned i = 0; i < 3; i++) {
		bench_attention(b, &m->heads, 1, 1, m->contexts[i]);
		bench_attention(b, &m->heads, b->tiny ? 3 : 32768 / m->contexts[i] > 8 ? 64 : 8, 1, m->contexts[i]);
	}
	bench_attention(b, &m->heads, 1, many, many);
	bench_rows(b, 1, m->d, m->ffn, &m->heads);
	bench_rows(b, b->tiny ? 3 : 64, m->d, m->ffn, &m->heads);
	bench_rows(b, many, m->d, m->ffn, &m->heads);
	bench_sample(b, "greedy", &greedy, b->tiny ? 2 : 64, m->vocab);
	bench_sample(b, "top-p", &top_p, b->tiny ? 2 : 64, m->vocab);
}

static void bench_all(struct bench *b)
{
	static const struct model tiny = { "tiny", 64, 96, 501, { 16, 130, 300 }, { { 64, 96 } }, { 4, 2, 32, 16 } };
	static const struct model models[] = {
		{ "Llama-3.1-8B", 4096, 14336, 128256, { 512, 4096, 32768 },
		  { { 4096, 4096 }, { 4096, 1024 }, { 4096, 14336 }, { 14336, 4096 } }, { 32, 8, 128, 16 } },
		{ "SmolLM2-135M", 576, 1536, 49152, { 512, 4096, 32768 },
		  { { 576, 576 }, { 576, 1536 }, { 1536, 576 } }, { 9, 3, 64, 48 } },
	};

	measure_gemm(b, b->tiny ? 64 : 4096);
	if (!b->tiny)
		measure_gemm(b, 8192);
	measure_copy(b);
	bench_launches(b);
	bench_uploads(b);
	if (b->tiny)
		bench_model(b, &tiny);
	for (unsigned i = 0; i < 2 && !b->tiny; i++)
		bench_model(b, &models[i]);
}

int main(int argc, char **argv)
{
	struct bench b = { .on = kern_cuda(), .tiny = argc == 2 && strcmp(argv[1], "--tiny") == 0 };
	const struct kern_limits limits = { .rows = 512, .seqs = 64, .outputs = 64, .context = b.tiny ? 512 : 32768,
					    .n_heads = b.tiny ? 4 : 32, .head_dim = b.tiny ? 32 : 128, .vocab = 128256 };
	struct kern_failure why = { 0 };
	size_t n_free = 0, total;
	int l2 = 0;

	if (argc > 2 || (argc == 2 && !b.tiny) || b.on->device->open(&b.device, 0, &why) < 0) {
		fprintf(stderr, "bench-ops: %s\n", why.code ? why.text : "usage: bench-ops [--tiny]");
		return 1;
	}
	must(&b, b.on->device->reserve(b.device, &limits), "reserve");
	must(&b, b.on->device->memory(b.device, &n_free, &total), "memory");
	(void)b.device->api->DeviceGetAttribute(&l2, cudaDevAttrL2CacheSize, b.device->number);
	b.rotate = b.tiny ? (size_t)1 << 18 : l2 > 0 ? (size_t)4 * (size_t)l2 : (size_t)256 << 20;
	b.rotate = b.rotate < n_free / 8 ? b.rotate : n_free / 8;
	printf("memory %zu MiB, %zu free; L2 %d MiB; rotating through %zu MiB\n", total >> 20, n_free >> 20, l2 >> 20,
	       b.rotate >> 20);
	bench_all(&b);
	b.on->device->close(b.device);
	return 0;
}
