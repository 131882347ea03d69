/* SPDX-License-Identifier: MIT */
/*
 * Each op's achieved speed beside what the machine can do, measured in the same run: make tests/bench/ops
 *
 *   tests/bench/ops [ISA [THREADS [WORD]]]     WORD: only what has it in its name, say "Q4_1 576"
 *
 * Shapes are SmolLM2-135M's. Weights and adapters rotate through 96 MB, as a model's layers do, so that a step of few
 * rows reads memory; the reading peak is that of the same 96 MB. A figure is the fastest of many calls:
 * on a busy machine the others measure the neighbours.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "daemon/os/team.h"
#include "kernels/quant.h"
#include "tests/bench/peak.h"

#define ROTATE ((size_t)96 << 20)
#define REPEATS 7

struct bench {
	const struct kern_backend *b;
	struct kern_device *device;
	struct team *team;
	unsigned n_threads;
	const char *word; /* NULL: everything */
	struct peak peak;
};

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void *allocate(struct bench *b, size_t bytes)
{
	void *p;

	if (b->b->device->alloc(b->device, NULL, bytes, &p) < 0) {
		fputs("ops: out of memory\n", stderr);
		exit(1);
	}
	return p;
}

static float *floats(struct bench *b, size_t n)
{
	float *x = allocate(b, n * sizeof *x);

	for (size_t i = 0; i < n; i++)
		x[i] = (float)((i * 2654435761u >> 8) % 2000) / 1000 - 1;
	return x;
}

/* Whether a group of figures whose lines begin so is wanted. */
static bool wanted(const struct bench *b, const char *format, ...)
{
	char what[64];
	va_list args;

	va_start(args, format);
	vsnprintf(what, sizeof what, format, args);
	va_end(args);
	return !b->word || strstr(what, b->word);
}

static void print(const struct bench *b, const char *what, double seconds, double bytes, double operations, double peak)
{
	double gb = bytes / seconds / 1e9, gop = operations / seconds / 1e9;

	printf("%-34s %9.1f us  %6.1f GB/s %3.0f %%  %7.1f GOP/s %3.0f %%\n", what, seconds * 1e6, gb,
	       100 * gb / b->peak.read, gop, 100 * gop / peak);
}

/* ---- matmul ---- */

static struct kern_matrix random_matrix(enum kern_dtype dtype, uint32_t rows, uint32_t cols)
{
	size_t bytes = rows * kern_row_bytes(dtype, cols);
	uint8_t *data = calloc(1, bytes);

	if (!data)
		exit(1);
	for (size_t i = 0; i < bytes; i++)
		data[i] = quant_is_blocks(dtype) ? (uint8_t)(i * 37 % 59) : 0; /* small scales, any codes */
	return (struct kern_matrix){ dtype, rows, cols, 0, data };
}

struct call {
	kern_op *op;
	struct kern_device *device;
	const void *args;
};

static void run_part(const void *call, unsigned part, unsigned n_parts)
{
	const struct call *c = call;

	c->op(c->device, c->args, part, n_parts);
}

static void run_op(struct bench *b, kern_op *op, const void *args)
{
	struct call call = { op, b->device, args };

	team_run(b->team, run_part, &call);
}

static double time_matmul(struct bench *b, struct kern_weight *w, size_t n_weights, struct kern_matmul *a)
{
	struct kern_activate activate = { a->x, a->n, w->cols, w->activation, NULL };
	size_t at = 0, n = a->n <= 16 ? n_weights : 1 + 64 / a->n;
	double best = 1e9;

	activate.to = allocate(b, a->n * b->b->device->activation_bytes(w->activation, w->cols) + 64);
	a->activated = activate.to;
	for (size_t i = 0; i < REPEATS * n; i++, at++) {
		double t = now();
		a->w = &w[at % n_weights];
		if (b->b->device->activation_bytes(w->activation, w->cols))
			run_op(b, b->b->ops->activate, &activate);
		run_op(b, b->b->ops->matmul, a);
		t = now() - t;
		best = t < best ? t : best;
	}
	return best;
}

static void bench_matmul(struct bench *b, const char *name, enum kern_dtype dtype, enum kern_precision precision,
			 uint32_t cols, uint32_t rows, double peak)
{
	static const uint32_t ns[] = { 1, 4, 16, 64, 512 };
	struct kern_matrix m;
	struct kern_weight plan;
	float *x, *y;

	if (!wanted(b, "matmul %s %ux%u", name, cols, rows))
		return;
	m = random_matrix(dtype, rows, cols);
	x = floats(b, (size_t)512 * cols);
	y = floats(b, (size_t)512 * rows);
	if (b->b->device->weight_plan(b->device, &m, precision, &plan) < 0)
		exit(1);
	size_t bytes = plan.bytes ? plan.bytes : rows * kern_row_bytes(dtype, cols), n_weights = ROTATE / bytes;
	struct kern_weight *w = calloc(n_weights, sizeof *w);
	for (size_t i = 0; w && i < n_weights; i++) {
		w[i] = plan;
		w[i].data = plan.bytes ? allocate(b, plan.bytes) : (void *)(uintptr_t)m.data;
		if (plan.bytes)
			b->b->device->weight_pack(&w[i], &m, 0, m.rows, w[i].data);
	}
	for (size_t i = 0; w && i < sizeof ns / sizeof *ns; i++) {
		struct kern_matmul a = { .x = x, .n = ns[i], .y = y };
		char what[64];
		snprintf(what, sizeof what, "matmul %s %ux%u, %u rows", name, cols, rows, ns[i]);
		print(b, what, time_matmul(b, w, n_weights, &a), (double)bytes, 2.0 * ns[i] * rows * cols, peak);
	}
	free(w);
	free((void *)(uintptr_t)m.data);
}

/* ---- adapters: n segments of rows each, an adapter of their own ---- */

static void bench_lora(struct bench *b, enum kern_dtype dtype, uint32_t n_segments, uint32_t rows, uint16_t rank)
{
	enum { IN = 576, OUT = 1536 };
	size_t a_bytes = rank * kern_lora_stride(dtype, IN), b_bytes = rank * kern_lora_stride(dtype, OUT);
	uint32_t rounds = (uint32_t)(ROTATE / (a_bytes + b_bytes) / n_segments);
	struct kern_lora *lora = calloc((size_t)rounds * n_segments, sizeof *lora);
	struct kern_segment *segment = calloc((size_t)rounds * n_segments, sizeof *segment);
	float *x = floats(b, (size_t)n_segments * rows * IN), *y = floats(b, (size_t)n_segments * rows * OUT);
	float *scratch = floats(b, (size_t)n_segments * rows * rank), *scales = floats(b, rank);
	const char *type = dtype == KERN_I8 ? "int8" : "bf16";
	double best = 1e9;
	char what[64];

	for (uint32_t i = 0; lora && segment && i < rounds * n_segments; i++) {
		uint32_t row = i % n_segments * rows;
		lora[i] = (struct kern_lora){ allocate(b, a_bytes), allocate(b, b_bytes), 1, rank, (uint8_t)dtype, 0,
					      scales };
		memset((void *)(uintptr_t)lora[i].a, 0, a_bytes);
		memset((void *)(uintptr_t)lora[i].b, 0, b_bytes);
		segment[i] = (struct kern_segment){ row, rows, &lora[i], 1, row };
	}
	for (uint32_t i = 0; i < REPEATS * rounds; i++) {
		struct kern_step step = { .n_rows = n_segments * rows, .n_segments = n_segments,
					  .segment = segment + (size_t)(i % rounds) * n_segments };
		struct kern_lora_shrink shrink = { &step, 0, x, IN, rank, scratch };
		struct kern_lora_expand expand = { &step, 0, scratch, rank, OUT, y };
		double t = now();
		run_op(b, b->b->ops->lora_shrink, &shrink);
		run_op(b, b->b->ops->lora_expand, &expand);
		t = now() - t;
		best = t < best ? t : best;
	}
	snprintf(what, sizeof what, "lora %s, %u x %u rows, rank %u", type, n_segments, rows, rank);
	print(b, what, best, (double)n_segments * (double)(a_bytes + b_bytes),
	      2.0 * n_segments * rows * rank * (IN + OUT), b->peak.fma);
	free(lora);
	free(segment);
}

/* ---- attention: n requests of rows each behind a past ---- */

static void bench_attention(struct bench *b, enum kern_dtype dtype, uint32_t n_seqs, uint32_t rows, uint32_t past)
{
	enum { HEADS = 9, KV_HEADS = 3, E = 64, TOKENS = 48, LAYERS = 30 };
	size_t token = KV_HEADS * kern_kv_bytes(dtype, E), layer = TOKENS * token;
	struct kern_kv_layout kv = { dtype, TOKENS, KV_HEADS, E, layer };
	uint32_t blocks = (past + rows + TOKENS - 1) / TOKENS;
	struct kern_seq *seq = calloc(n_seqs, sizeof *seq);
	void **block = calloc((size_t)n_seqs * blocks, sizeof *block);
	float *q = floats(b, (size_t)n_seqs * rows * HEADS * E), *y = floats(b, (size_t)n_seqs * rows * HEADS * E);
	size_t bytes = b->b->device->attention_bytes ? b->b->device->attention_bytes(&kv, HEADS, past + rows) : 0;
	void *sections = bytes ? allocate(b, bytes) : NULL;
	double best = 1e9, keys = 0;
	char what[64];

	for (uint32_t i = 0; seq && block && i < n_seqs * blocks; i++) {
		block[i] = allocate(b, LAYERS * layer);
		memset(block[i], 0, LAYERS * layer);
		seq[i / blocks] = (struct kern_seq){ i / blocks * rows, rows, past, i / blocks * blocks };
	}
	for (uint32_t i = 0; i < rows; i++)
		keys += past + i + 1;
	struct kern_step step = { .n_rows = n_seqs * rows, .n_seqs = n_seqs, .seq = seq, .kv_block = block };
	for (unsigned r = 0; r < REPEATS; r++) {
		for (uint32_t l = 0; l < LAYERS; l++) {
			struct kern_attention a = { &step, &kv, l, HEADS, q, y, .sections = sections, .section_bytes = bytes };
			double t = now();
			run_op(b, b->b->ops->attention, &a);
			t = now() - t;
			best = t < best ? t : best;
		}
	}
	snprintf(what, sizeof what, "attention %s, %u x %u rows after %u", dtype == KERN_I8 ? "int8" : "bf16", n_seqs, rows, past);
	print(b, what, best, (double)n_seqs * (past + rows) * (double)token, 4.0 * n_seqs * keys * HEADS * E, b->peak.fma);
	free(seq);
	free(block);
}

/* ---- the rest ---- */

static double time_op(struct bench *b, kern_op *op, const void *args)
{
	double best = 1e9;

	for (unsigned r = 0; r < 10 * REPEATS; r++) {
		double t = now();
		run_op(b, op, args);
		t = now() - t;
		best = t < best ? t : best;
	}
	return best;
}

static void bench_rows(struct bench *b, uint32_t n)
{
	uint32_t *position = calloc(n, sizeof *position);
	float *x = floats(b, (size_t)n * 1536), *up = floats(b, (size_t)n * 1536), *y = floats(b, (size_t)n * 1536);
	struct kern_step step = { .n_rows = n, .position = position };
	struct kern_rms_norm norm = { x, up, NULL, n, 576, 1e-5f, y };
	struct kern_swiglu swiglu = { x, up, n, 1536, y };
	struct kern_rope rope = { &step, up, 9, 64, x };
	char what[64];

	for (uint32_t i = 0; position && i < n; i++)
		position[i] = i;
	snprintf(what, sizeof what, "rms_norm 576, %u rows", n);
	print(b, what, time_op(b, b->b->ops->rms_norm, &norm), 8.0 * n * 576, 4.0 * n * 576, b->peak.fma);
	snprintf(what, sizeof what, "swiglu 1536, %u rows", n);
	print(b, what, time_op(b, b->b->ops->swiglu, &swiglu), 12.0 * n * 1536, 20.0 * n * 1536, b->peak.fma);
	snprintf(what, sizeof what, "rope 9 x 64, %u rows", n);
	print(b, what, time_op(b, b->b->ops->rope, &rope), 8.0 * n * 576, 3.0 * n * 576, b->peak.fma);
	free(position);
}

static void bench_sample(struct bench *b, const char *name, const struct kern_sampling *s, uint32_t n)
{
	enum { VOCAB = 49152 };
	struct kern_sampling *sampling = calloc(n, sizeof *sampling);
	struct kern_result *result = calloc(n, sizeof *result);
	float *logits = floats(b, (size_t)n * VOCAB), *copy = floats(b, (size_t)n * VOCAB);
	struct kern_step step = { .n_outputs = n, .sampling = sampling, .result = result };
	struct kern_sample a = { &step, 0, n, VOCAB, logits };
	double best = 1e9;
	char what[64];

	for (uint32_t i = 0; sampling && result && i < n; i++)
		sampling[i] = *s;
	for (size_t i = 0; i < (size_t)n * VOCAB; i++)
		copy[i] = copy[i] * 8 + (i % 997 == 0 ? 12 : 0);
	for (unsigned r = 0; r < REPEATS; r++) {
		memcpy(logits, copy, (size_t)n * VOCAB * 4);
		double t = now();
		run_op(b, b->b->ops->sample, &a);
		t = now() - t;
		best = t < best ? t : best;
	}
	snprintf(what, sizeof what, "sample %s, %u rows", name, n);
	print(b, what, best, 4.0 * n * VOCAB, 20.0 * n * VOCAB, b->peak.fma);
	free(sampling);
	free(result);
}

static void bench_all(struct bench *b)
{
	static const struct kern_sampling greedy = { .top_p = 1, .repetition_penalty = 1, .target = -1 };
	static const struct kern_sampling all = { .temperature = 0.8f, .top_k = 50, .top_p = 0.9f, .min_p = 0.02f,
						  .repetition_penalty = 1, .target = -1 };

	bench_matmul(b, "Q4_1", KERN_Q4_1, KERN_PRECISION_INT8, 576, 1536, b->peak.int8);
	bench_matmul(b, "Q4_1", KERN_Q4_1, KERN_PRECISION_INT8, 1536, 576, b->peak.int8);
	for (enum kern_dtype type = KERN_Q8_0; type < _KERN_DTYPE_N; type++)
		if (type != KERN_Q4_1)
			bench_matmul(b, kern_dtype_name(type), type, KERN_PRECISION_INT8, 1536, 576, b->peak.int8);
	bench_matmul(b, "bf16", KERN_BF16, KERN_PRECISION_BF16, 576, 1536, b->peak.bf16);
	bench_matmul(b, "f32", KERN_F32, KERN_PRECISION_F32, 576, 1536, b->peak.fma);
	for (unsigned i = 0; wanted(b, "lora") && i < 2; i++) {
		enum kern_dtype dtype = i ? KERN_I8 : KERN_BF16;
		bench_lora(b, dtype, 1, 1, 16);
		bench_lora(b, dtype, 16, 1, 16);
		bench_lora(b, dtype, 16, 1, 64);
		bench_lora(b, dtype, 1, 512, 16);
	}
	for (unsigned i = 0; wanted(b, "attention") && i < 2; i++) {
		enum kern_dtype dtype = i ? KERN_I8 : KERN_BF16;
		bench_attention(b, dtype, 1, 1, 4095);
		bench_attention(b, dtype, 16, 1, 255);
		bench_attention(b, dtype, 1, 512, 0);
		bench_attention(b, dtype, 1, 512, 3584);
	}
	if (wanted(b, "rows")) {
		bench_rows(b, 1);
		bench_rows(b, 512);
	}
	if (wanted(b, "sample")) {
		bench_sample(b, "greedy", &greedy, 16);
		bench_sample(b, "t k p m", &all, 16);
	}
}

int main(int argc, char **argv)
{
	enum kern_isa isa = kern_cpu_best();
	struct bench b = { .n_threads = (unsigned)sysconf(_SC_NPROCESSORS_ONLN) };

	for (unsigned i = 0; argc > 1 && i < _KERN_ISA_N; i++)
		if (strcmp(argv[1], kern_isa_names[i]) == 0)
			isa = (enum kern_isa)i;
	if (argc > 2)
		b.n_threads = (unsigned)strtoul(argv[2], NULL, 10);
	b.word = argc > 3 ? argv[3] : NULL;
	b.b = kern_cpu(isa);
	if (!b.b || !b.n_threads || b.b->device->open(&b.device, 0, NULL) < 0 || team_new(&b.team, b.n_threads) < 0) {
		fputs("usage: ops [ISA [THREADS [WORD]]]\n", stderr);
		return 2;
	}
	peak_measure(&b.peak, b.team, isa, ROTATE);
	printf("%s, %u threads; peaks: read %.1f GB/s, f32 %.0f GFLOP/s, bf16 %.0f GFLOP/s, int8 %.0f GOP/s\n", b.b->name,
	       b.n_threads, b.peak.read, b.peak.fma, b.peak.bf16, b.peak.int8);
	bench_all(&b);
	team_free(b.team);
	b.b->device->close(b.device);
	return 0;
}
