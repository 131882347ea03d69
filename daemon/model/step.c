/* SPDX-License-Identifier: MIT */
/*
 * One forward step of a mixed batch
 *
 * forward() below is the model: a Llama transformer over all rows of the step, whichever requests they belong to. Only
 * three places know about requests: attention (each row sees its own sequence's keys), the low-rank products (each
 * segment of rows has its adapter) and sampling (each output row has its parameters). batch.c describes them.
 *
 * The work is cut into phases: calls of one phase do not depend on each other and run together, phases run one after
 * the other, with the team's barrier between them. A product of activations and weights is
 *
 *   phase 1   encode the input as the weights want it          (nothing to do for plain f32)
 *   phase 2   y = x W^T, for up to three W of the same input; beside it scratch = x A^T, which reads the same f32 x
 *   phase 3   y += scale * scratch B, after both               (only if an adapter of this step changes this module)
 *
 * Phases too small to be worth a barrier run on the calling thread alone; that changes no result, since an op's result
 * does not depend on the number of parts.
 *
 * The residual stream x stays in place: the products that end a block (o, down) add onto it. Logits are made for output
 * rows only, BATCH_HEAD_ROWS at a time, so that scoring a long text needs no more room than a batch of draws.
 *
 * On a queued backend there is no team: ops are put behind one another and the only wait is for the results. Steps of
 * decodes may be recorded there, see batch.c.
 *
 * All memory is taken in step_new(), for the largest step of the limits. Low-rank scratch is sized for the worst case,
 * but as memory that is never touched it costs address space only.
 */
#include "daemon/model/step.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/error.h"
#include "daemon/model/batch.h"
#include "daemon/os/team.h"

#define GROUP_MAX 3       /* products of the same input */
#define ALONE_MAX 16384u  /* numbers that one thread handles in about the time of a barrier */
#define BUFFERS_MAX 24

struct buffer { /* device memory, for step_free() */
	void *p;
	size_t bytes;
};

struct step {
	const struct model_config *config;
	const struct model_weights *weights;
	const struct kern_ops *ops;
	const struct kern_device_ops *memory;
	struct kern_device *device;
	struct team *team;                /* NULL: the backend is queued and does its own splitting */
	const struct kern_kv_layout *kv;
	struct batch batch;
	size_t scratch_floats;            /* at each scratch[] */

	/* [rows][width] of device memory each */
	float *x;                         /* residual stream, d */
	float *h;                         /* normalised input of a block, d */
	float *q, *k, *v, *attended;      /* heads * e, KV heads * e */
	float *gate, *up, *ffn;           /* intermediate */
	float *logits;                    /* [BATCH_HEAD_ROWS][vocab] */
	float *inv_freq;                  /* [e / 2] */
	void *sections;                   /* with which the parts of attention share long contexts, or NULL */
	size_t section_bytes;
	void *activated[GROUP_MAX];       /* encoded inputs */
	float *scratch[GROUP_MAX];        /* x A^T */

	struct buffer buffers[BUFFERS_MAX];
	unsigned n_buffers;
};

/* ---- phases ---- */

struct call {
	kern_op *op;
	const void *args;
};

struct phase {
	struct kern_device *device;
	const struct call *calls;
	unsigned n;
};

static void run_part(const void *args, unsigned part, unsigned n_parts)
{
	const struct phase *phase = args;

	for (unsigned i = 0; i < phase->n; ++i)
		phase->calls[i].op(phase->device, phase->calls[i].args, part, n_parts);
}

static void run_phase(struct step *s, const struct call *calls, unsigned n)
{
	struct phase phase = { s->device, calls, n };

	if (!s->team)
		run_part(&phase, 0, 1);
	else if (n > 0)
		team_run(s->team, run_part, &phase);
}

/* A phase of one op over this many numbers. */
static void run(struct step *s, kern_op *op, const void *args, size_t numbers)
{
	struct call call = { op, args };

	if (numbers <= ALONE_MAX)
		op(s->device, args, 0, 1);
	else
		run_phase(s, &call, 1);
}

/* ---- products ---- */

struct input { /* rows x [n][cols], n as in extent, that belong to the rows of a step */
	const struct kern_step *step;
	const struct kern_extent *extent;
	const float *x;
};

struct product { /* y = x W^T, or y += x W^T; module: for the adapters */
	const struct kern_weight *w;
	uint32_t module;
	float *y;
	bool accumulate;
};

/* Encodes x once for every encoding the weights ask for; ret[i]: where weight i finds it. */
static void activate(struct step *s, const struct input *in, const struct product *products, unsigned n_products,
		     const void *ret[GROUP_MAX])
{
	for (unsigned i = 0; i < n_products; ++i) {
		const struct kern_weight *w = products[i].w;
		struct kern_activate args = { in->x, in->extent->n_rows, w->cols, w->activation, s->activated[i] };
		unsigned same = 0;

		while (products[same].w->activation != w->activation)
			++same;
		ret[i] = s->activated[same];
		if (same == i && s->memory->activation_bytes(w->activation, w->cols) > 0)
			run(s, s->ops->activate, &args, (size_t)in->extent->n_rows * w->cols);
	}
}

/* All products of the same x, with what the adapters of its segments add. See the file's head. */
static void multiply(struct step *s, const struct input *in, const struct product *products, unsigned n_products)
{
	struct kern_matmul matmul[GROUP_MAX];
	struct kern_lora_shrink shrink[GROUP_MAX];
	struct kern_lora_expand expand[GROUP_MAX];
	struct call first[2 * GROUP_MAX], second[GROUP_MAX];
	const void *activated[GROUP_MAX];
	unsigned n_first = 0, n_second = 0;

	assert(n_products <= GROUP_MAX);
	activate(s, in, products, n_products, activated);
	for (unsigned i = 0; i < n_products; ++i) {
		const struct product *p = &products[i];

		matmul[i] = (struct kern_matmul){ p->w, in->x, activated[i], in->extent->n_rows, p->accumulate, p->y };
		first[n_first++] = (struct call){ s->ops->matmul, &matmul[i] };
		if (!s->batch.adapted[p->module])
			continue;
		shrink[i] = (struct kern_lora_shrink){
			.step = in->step,
			.module = p->module,
			.x = in->x,
			.in = p->w->cols,
			.scratch_width = in->extent->max_rank,
			.scratch = s->scratch[i],
			.activated = activated[i],
			.activation = p->w->activation,
			.scratch_floats = s->scratch_floats,
			.extent = in->extent,
		};
		expand[i] = (struct kern_lora_expand){
			.step = in->step,
			.module = p->module,
			.scratch = s->scratch[i],
			.scratch_width = in->extent->max_rank,
			.out = p->w->rows,
			.y = p->y,
			.activation = p->w->activation,
			.scratch_floats = s->scratch_floats,
			.extent = in->extent,
		};
		first[n_first++] = (struct call){ s->ops->lora_shrink, &shrink[i] };
		second[n_second++] = (struct call){ s->ops->lora_expand, &expand[i] };
	}
	run_phase(s, first, n_first);
	run_phase(s, second, n_second);
}

/* ---- the ops between products ---- */

static void embed(struct step *s)
{
	struct kern_embed args = { &s->weights->embed, s->batch.step, s->x, &s->batch.extent };

	run(s, s->ops->embed, &args, (size_t)s->batch.extent.n_rows * s->weights->embed.cols);
}

/* h[i] = the norm of x[row[i]]; row NULL: of x[i]. */
static void normalise(struct step *s, const float *gain, const uint32_t *row, uint32_t n)
{
	uint32_t d = s->config->geometry.hidden;
	struct kern_rms_norm args = { s->x, gain, row, n, d, s->config->norm_eps, s->h };

	run(s, s->ops->rms_norm, &args, (size_t)n * d);
}

static void rotate(struct step *s, float *x, uint32_t n_heads)
{
	struct kern_rope args = { s->batch.step, s->inv_freq, n_heads, s->kv->head_dim, x, &s->batch.extent };

	run(s, s->ops->rope, &args, (size_t)s->batch.extent.n_rows * n_heads * s->kv->head_dim);
}

static void remember(struct step *s, uint32_t layer)
{
	struct kern_kv_write args = { s->batch.step, s->kv, layer, s->k, s->v, &s->batch.extent };

	run(s, s->ops->kv_write, &args, (size_t)s->batch.extent.n_rows * s->kv->n_kv_heads * s->kv->head_dim);
}

static void attend(struct step *s, uint32_t layer)
{
	struct kern_attention args = {
		.step = s->batch.step,
		.kv = s->kv,
		.layer = layer,
		.n_heads = s->config->geometry.n_heads,
		.q = s->q,
		.y = s->attended,
		.extent = &s->batch.extent,
		.sections = s->sections,
		.section_bytes = s->section_bytes,
	};
	struct call call = { s->ops->attention, &args };

	run_phase(s, &call, 1);
}

static void gate_with_silu(struct step *s)
{
	uint32_t width = s->config->geometry.intermediate;
	struct kern_swiglu args = { s->gate, s->up, s->batch.extent.n_rows, width, s->ffn };

	run(s, s->ops->swiglu, &args, 4 * (size_t)s->batch.extent.n_rows * width); /* an exponential each */
}

static void sample(struct step *s, uint32_t first, uint32_t n)
{
	struct kern_sample args = { s->batch.step, first, n, s->config->geometry.vocab, s->logits };
	struct call call = { s->ops->sample, &args };

	run_phase(s, &call, 1);
}

/* ---- the transformer ---- */

static void attention_block(struct step *s, uint32_t l)
{
	const struct model_layer *layer = &s->weights->layer[l];
	const struct kern_weight *w = layer->w;
	const struct input normed = { s->batch.step, &s->batch.extent, s->h };
	const struct input attended = { s->batch.step, &s->batch.extent, s->attended };

	normalise(s, layer->attn_norm, NULL, s->batch.extent.n_rows);
	multiply(s, &normed,
		 (struct product[]){
			 { &w[KERN_Q], kern_module(l, KERN_Q), s->q, false },
			 { &w[KERN_K], kern_module(l, KERN_K), s->k, false },
			 { &w[KERN_V], kern_module(l, KERN_V), s->v, false },
		 },
		 3);
	rotate(s, s->q, s->config->geometry.n_heads);
	rotate(s, s->k, s->config->geometry.n_kv_heads);
	remember(s, l);
	attend(s, l);
	multiply(s, &attended,
		 (struct product[]){ { &w[KERN_O], kern_module(l, KERN_O), s->x, true } }, 1);
}

static void ffn_block(struct step *s, uint32_t l)
{
	const struct model_layer *layer = &s->weights->layer[l];
	const struct kern_weight *w = layer->w;
	const struct input normed = { s->batch.step, &s->batch.extent, s->h };
	const struct input gated = { s->batch.step, &s->batch.extent, s->ffn };

	normalise(s, layer->ffn_norm, NULL, s->batch.extent.n_rows);
	multiply(s, &normed,
		 (struct product[]){
			 { &w[KERN_GATE], kern_module(l, KERN_GATE), s->gate, false },
			 { &w[KERN_UP], kern_module(l, KERN_UP), s->up, false },
		 },
		 2);
	gate_with_silu(s);
	multiply(s, &gated,
		 (struct product[]){ { &w[KERN_DOWN], kern_module(l, KERN_DOWN), s->x, true } }, 1);
}

/* Group i of the outputs: norm, logits, one draw or score each. */
static void output_head(struct step *s, uint32_t i)
{
	uint32_t module = s->config->geometry.n_layers * _KERN_MODULE_N, first = i * BATCH_HEAD_ROWS;
	const struct input normed = { &s->batch.head_step[i], &s->batch.head_extent[i], s->h };
	uint32_t n = normed.extent->n_rows;

	normalise(s, s->weights->norm, s->batch.output_row + first, n);
	multiply(s, &normed, (struct product[]){ { &s->weights->head, module, s->logits, false } }, 1);
	sample(s, first, n);
}

static void copy_blocks(struct step *s)
{
	if (s->batch.copy.n)
		run(s, s->ops->kv_copy, &s->batch.copy, s->batch.copy.n * s->batch.copy.block_bytes / sizeof(float));
}

static void forward(struct step *s)
{
	embed(s);
	for (uint32_t l = 0; l < s->config->geometry.n_layers; ++l) {
		attention_block(s, l);
		ffn_block(s, l);
	}
	for (uint32_t i = 0; i * BATCH_HEAD_ROWS < s->batch.extent.n_outputs; ++i)
		output_head(s, i);
}

/* forward(), or the replay of a step recorded earlier. What cannot be recorded is computed all the same. */
static int forward_recorded(struct step *s)
{
	int r = s->memory->replay(s->device, s->batch.key);

	if (r)
		return r < 0 ? error_origin(r) : 0;
	r = s->memory->record(s->device, s->batch.key);
	if (r < 0)
		return error_origin(r);
	forward(s);
	if (r == 0)
		r = s->memory->play(s->device);
	else
		r = 0;
	if (r > 0) { /* nothing of it ran */
		s->batch.records = false;
		forward(s);
	}
	return r < 0 ? error_origin(r) : 0;
}

/**
 * step_run() - one forward step
 * @seqs:       the requests' shares; rows and number within the limits of step_new(), KV reserved for all positions
 * @n_seqs:     at least 1
 *
 * On return keys and values of all rows are in the KV blocks and every request's results are in its seq->result.
 *
 * Return: 0, or negative errno if the device failed.
 */
int step_run(struct step *s, struct step_seq *seqs, uint32_t n_seqs)
{
	int r = batch_build(&s->batch, seqs, n_seqs);

	if (r)
		return error_trace(r);
	copy_blocks(s);
	if (s->batch.key != BATCH_NO_KEY)
		r = forward_recorded(s);
	else
		forward(s);
	if (r)
		return error_trace(r);
	if (s->team)
		team_rest(s->team);
	return error_trace(batch_results(&s->batch, seqs, n_seqs));
}

const struct step_stats *step_last(const struct step *s)
{
	return &s->batch.stats;
}

void step_failure(const struct step *s, struct kern_failure *ret)
{
	s->memory->failure(s->device, ret);
}

/* ---- memory ---- */

static int take(struct step *s, size_t bytes, void *ret)
{
	void *p;
	int r;

	assert(s->n_buffers < BUFFERS_MAX);
	r = s->memory->alloc(s->device, NULL, bytes, &p);
	if (r)
		return error_origin(r);
	s->buffers[s->n_buffers++] = (struct buffer){ p, bytes };
	memcpy(ret, &p, sizeof(p));
	return 0;
}

/* The most bytes a row takes when it is encoded for any weight of the model. */
static size_t activated_row_bytes(const struct step *s)
{
	size_t most = 0;

	for (uint32_t l = 0; l <= s->config->geometry.n_layers; ++l) {
		bool is_head = l == s->config->geometry.n_layers;
		const struct kern_weight *w = is_head ? &s->weights->head : s->weights->layer[l].w;

		for (unsigned i = 0; i < (is_head ? 1 : _KERN_MODULE_N); ++i) {
			size_t bytes = s->memory->activation_bytes(w[i].activation, w[i].cols);

			most = bytes > most ? bytes : most;
		}
	}
	return most > 0 ? most : 1;
}

static int take_activations(struct step *s, uint32_t n_rows)
{
	const struct image_geometry *g = &s->config->geometry;
	const struct {
		float **p;
		size_t width;
	} wanted[] = {
		{ &s->x, g->hidden },
		{ &s->h, g->hidden },
		{ &s->q, (size_t)g->n_heads * g->head_dim },
		{ &s->k, (size_t)g->n_kv_heads * g->head_dim },
		{ &s->v, (size_t)g->n_kv_heads * g->head_dim },
		{ &s->attended, (size_t)g->n_heads * g->head_dim },
		{ &s->gate, g->intermediate },
		{ &s->up, g->intermediate },
		{ &s->ffn, g->intermediate },
	};
	int r;

	for (size_t i = 0; i < sizeof(wanted) / sizeof(*wanted); ++i) {
		r = take(s, n_rows * wanted[i].width * sizeof(float), wanted[i].p);
		if (r)
			return error_trace(r);
	}
	return error_trace(take(s, (size_t)BATCH_HEAD_ROWS * g->vocab * sizeof(float), &s->logits));
}

static int take_product_inputs(struct step *s, const struct step_limits *limits)
{
	int r;

	for (unsigned i = 0; i < GROUP_MAX; ++i) {
		r = take(s, limits->rows * activated_row_bytes(s), &s->activated[i]);
		if (!r)
			r = take(s, s->scratch_floats * sizeof(float), &s->scratch[i]);
		if (r)
			return error_trace(r);
	}
	return 0;
}

/* Work space of the backend's own, for the largest step there will be. */
static int reserve(struct step *s, const struct step_limits *limits)
{
	const struct image_geometry *g = &s->config->geometry;
	const struct kern_limits largest = {
		.rows = limits->rows,
		.seqs = limits->seqs,
		.outputs = BATCH_HEAD_ROWS,
		.context = s->config->context,
		.n_heads = g->n_heads,
		.head_dim = g->head_dim,
		.vocab = g->vocab,
	};

	return error_trace(s->memory->reserve(s->device, &largest));
}

static int take_sections(struct step *s)
{
	const struct image_geometry *g = &s->config->geometry;

	if (!s->memory->attention_bytes)
		return 0;
	s->section_bytes = s->memory->attention_bytes(s->kv, g->n_heads, s->config->context);
	return error_trace(take(s, s->section_bytes, &s->sections));
}

static int send_inv_freq(struct step *s)
{
	size_t bytes = s->kv->head_dim / 2 * sizeof(float);
	int r = take(s, bytes, &s->inv_freq);

	if (!r)
		r = s->memory->copy_async(s->device, s->inv_freq, s->config->inv_freq, bytes);
	if (!r)
		r = s->memory->fence(s->device);
	return error_trace(r);
}

/**
 * step_new() - memory and order of a model's forward step
 * @ret:        the new step
 * @options:    what it works with; limits, the most rows and requests of one step, decide what memory it takes
 */
int step_new(struct step **ret, const struct step_options *options)
{
	_cleanup_(step_freep) struct step *s = calloc(1, sizeof(*s));
	const struct step_limits *limits = &options->limits;
	int r;

	if (!s)
		return error_origin(-ENOMEM);
	s->config = model_config(options->model);
	s->weights = model_weights(options->model);
	s->ops = options->backend->ops;
	s->memory = options->backend->device;
	s->device = options->device;
	s->team = options->backend->queued ? NULL : options->team;
	s->kv = options->kv;
	s->scratch_floats = batch_scratch_floats(limits);
	r = batch_init(&s->batch, options);
	if (!r)
		r = reserve(s, limits);
	if (!r)
		r = take_activations(s, limits->rows);
	if (!r)
		r = take_product_inputs(s, limits);
	if (!r)
		r = take_sections(s);
	if (!r)
		r = send_inv_freq(s);
	if (r)
		return error_trace(r);
	*ret = TAKE_PTR(s);
	return 0;
}

struct step *step_free(struct step *s)
{
	if (!s)
		return NULL;
	for (unsigned i = 0; i < s->n_buffers; ++i)
		s->memory->free(s->device, s->buffers[i].p, s->buffers[i].bytes);
	if (s->batch.ops)
		batch_deinit(&s->batch);
	free(s);
	return NULL;
}
