/* SPDX-License-Identifier: MIT */
/*
 * The resident base model
 *
 * Opening goes: source (files mapped, configuration and tensor table checked) -> tokenizer -> precision -> plan (every
 * weight asks the backend for a layout, so that the memory is known) -> does it fit, into the device's memory or the
 * host's -> load. On a CPU that is: pack each weight to where it stays, in parallel; pages of the file are dropped behind
 * us. On a device with memory of its own the weights go through staging buffers, see upload.c. What the backend uses in
 * place keeps the files mapped, otherwise they are unmapped at the end and only what is packed stays.
 *
 * Precision `auto` goes by the type that most numbers of the layers' matrices are stored in: quantised -> int8, F16 and
 * BF16 -> bf16, F32 -> f32. So a file is computed about as exactly as it is stored, and one odd tensor does not decide.
 *
 * A model is immutable once open; any thread may read it.
 */
#include "daemon/model/model.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/format/vocab.h"
#include "daemon/model/source.h"
#include "daemon/model/upload.h"
#include "daemon/os/mem.h"
#include "daemon/os/team.h"
#include "kernels/quant.h"

struct model {
	struct model_config config;
	struct model_weights weights;
	struct tokenizer *tokenizer;
	enum kern_precision precision;
	uint64_t weight_bytes;
	const struct kern_device_ops *ops;
	struct kern_device *device;
	struct source *source; /* kept while weights are used in place */
};

struct loads {
	struct weight_load *load;
	uint32_t n;
	size_t to_pack, in_place; /* bytes */
};

/* ---- shapes ---- */

/**
 * model_module_shape() - widths of a module
 * @module:     kern_module(layer, m), or n_layers * 7: the output head
 *
 * Both are 0 if the model has no such module.
 */
void model_module_shape(const struct image_geometry *g, uint32_t module, uint32_t *ret_in, uint32_t *ret_out)
{
	uint32_t q = g->n_heads * g->head_dim, kv = g->n_kv_heads * g->head_dim;
	const uint32_t shapes[_KERN_MODULE_N][2] = {
		[KERN_Q] = { g->hidden, q },
		[KERN_K] = { g->hidden, kv },
		[KERN_V] = { g->hidden, kv },
		[KERN_O] = { q, g->hidden },
		[KERN_GATE] = { g->hidden, g->intermediate },
		[KERN_UP] = { g->hidden, g->intermediate },
		[KERN_DOWN] = { g->intermediate, g->hidden },
	};
	uint32_t head = g->n_layers * _KERN_MODULE_N;

	*ret_in = module > head ? 0 : module == head ? g->hidden : shapes[module % _KERN_MODULE_N][0];
	*ret_out = module > head ? 0 : module == head ? g->vocab : shapes[module % _KERN_MODULE_N][1];
}

/* ---- configuration ---- */

static int take_config(struct model *model, const struct model_options *options, struct diag *diag)
{
	const struct base_config *from = &model->source->config;
	struct model_config *config = &model->config;

	if (options->context > from->context)
		return diag_set(diag, MODEL_E_INVALID, "%s: a context of %u was asked for, the model is made for %u",
				options->path, options->context, from->context);
	*config = (struct model_config){
		.geometry = from->geometry,
		.context = options->context ? options->context : from->context,
		.norm_eps = (float)from->norm_eps,
		.tied = from->tied,
		.n_stops = from->n_stops,
		.chat = chat_recognise(model->source->vocab->chat_template),
	};
	_Static_assert(sizeof(config->stop) == sizeof(from->stop), "one limit for stop ids");
	memcpy(config->stop, from->stop, sizeof(config->stop));
	(void)snprintf(config->name, sizeof(config->name), "%s", from->name[0] ? from->name : basename(options->path));
	config->inv_freq = calloc(from->geometry.head_dim / 2, sizeof(float));
	if (!config->inv_freq)
		return error_origin(-ENOMEM);
	base_config_inv_freq(from, config->inv_freq);
	return MODEL_OK;
}

static int take_tokenizer(struct model *model, const struct model_options *options, struct diag *diag)
{
	uint32_t n = model->source->vocab->n_tokens;
	int r;

	if (n > model->config.geometry.vocab)
		return diag_set(diag, MODEL_E_INVALID, "%s: the tokenizer has %u tokens, the model %u", options->path, n,
				model->config.geometry.vocab);
	r = tokenizer_new(&model->tokenizer, model->source->vocab, diag);
	if (r)
		return r < 0 ? error_trace(r) : diag_prefix(diag, MODEL_E_INVALID, "%s", options->path);
	model->source->vocab = NULL; /* taken over */
	return MODEL_OK;
}

/* ---- plan ---- */

static int add_load(struct model *model, struct loads *loads, struct kern_weight *w, enum source_kind kind, uint32_t layer,
		    struct diag *diag)
{
	uint32_t module = kind < SOURCE_MODULE ? model->config.geometry.n_layers * _KERN_MODULE_N :
						 kern_module(layer, kind - SOURCE_MODULE);
	struct weight_load *load = &loads->load[loads->n];

	model_module_shape(&model->config.geometry, module, &load->m.cols, &load->m.rows);
	if (source_matrix(model->source, kind, layer, &load->m, diag))
		return MODEL_E_INVALID;
	load->w = w;
	load->kind = kind;
	++loads->n;
	return MODEL_OK;
}

/* Every matrix of the model, in the order in which a step reads them. */
static int list_loads(struct model *model, struct loads *loads, struct diag *diag)
{
	uint32_t n_layers = model->config.geometry.n_layers;
	int r;

	loads->load = calloc(n_layers * _KERN_MODULE_N + 2, sizeof(*loads->load));
	model->weights.layer = calloc(n_layers, sizeof(*model->weights.layer));
	if (!loads->load || !model->weights.layer)
		return error_origin(-ENOMEM);
	r = add_load(model, loads, &model->weights.embed, SOURCE_EMBED, 0, diag);
	for (uint32_t l = 0; l < n_layers; ++l)
		for (uint32_t i = 0; i < _KERN_MODULE_N && !r; ++i)
			r = add_load(model, loads, &model->weights.layer[l].w[i], SOURCE_MODULE + i, l, diag);
	if (!r && !model->config.tied)
		r = add_load(model, loads, &model->weights.head, SOURCE_HEAD, 0, diag);
	return r;
}

static enum kern_precision choose_precision(enum model_precision wanted, const struct loads *loads)
{
	uint64_t numbers[_KERN_PRECISION_N] = { 0 };
	enum kern_precision most = KERN_PRECISION_INT8;

	if (wanted != MODEL_AUTO)
		return wanted == MODEL_F32  ? KERN_PRECISION_F32 :
		       wanted == MODEL_BF16 ? KERN_PRECISION_BF16 :
					      KERN_PRECISION_INT8;
	for (uint32_t i = 0; i < loads->n; ++i) {
		const struct kern_matrix *m = &loads->load[i].m;
		enum kern_precision p = m->dtype == KERN_F32			       ? KERN_PRECISION_F32 :
					m->dtype == KERN_F16 || m->dtype == KERN_BF16 ? KERN_PRECISION_BF16 :
											KERN_PRECISION_INT8;

		if (i > 0 || loads->n == 1) /* the embedding does not vote */
			numbers[p] += (uint64_t)m->rows * m->cols;
	}
	for (unsigned p = 0; p < _KERN_PRECISION_N; ++p)
		most = numbers[p] > numbers[most] ? p : most;
	return most;
}

static double gib(uint64_t bytes)
{
	return (double)bytes / (1u << 30);
}

/* The weights against the memory that is free now, the device's or the host's. */
static int check_memory(struct model *model, struct diag *diag)
{
	size_t room = 0, total = 0;
	int r;

	r = model->ops->memory(model->device, &room, &total);
	if (r == -ENOTSUP)
		room = mem_available();
	else if (r < 0)
		return upload_failed(model->ops, model->device, r, diag);
	if (model->weight_bytes > room && r == -ENOTSUP)
		return diag_set(diag, MODEL_E_INVALID, "the weights need %.1f GiB of memory, %.1f GiB are available",
				gib(model->weight_bytes), gib(room));
	if (model->weight_bytes > room)
		return diag_set(diag, MODEL_E_INVALID, "the weights need %.1f GiB of device memory, %.1f GiB are free",
				gib(model->weight_bytes), gib(room));
	return MODEL_OK;
}

static int plan(struct model *model, struct loads *loads, struct diag *diag)
{
	for (uint32_t i = 0; i < loads->n; ++i) {
		struct weight_load *load = &loads->load[i];
		int r = model->ops->weight_plan(model->device, &load->m, model->precision, load->w);

		if (r == -ENOTSUP)
			return diag_set(diag, MODEL_E_INVALID, "tensor %s: type %s is not supported on this device",
					source_name(model->source, load->m.data), kern_dtype_name(load->m.dtype));
		if (r)
			return error_origin(r);
		loads->to_pack += load->w->bytes;
		if (load->w->bytes == 0)
			loads->in_place += load->m.rows * kern_row_bytes(load->m.dtype, load->m.cols);
	}
	model->weight_bytes = loads->to_pack + loads->in_place;
	return check_memory(model, diag);
}

/* ---- load ---- */

static int load_weight(struct model *model, const struct weight_load *load, struct team *team)
{
	int r;

	if (load->w->bytes == 0) {
		load->w->data = (void *)(uintptr_t)load->m.data;
		return 0;
	}
	r = model->ops->alloc(model->device, NULL, load->w->bytes, &load->w->data);
	if (r)
		return error_origin(r);
	source_prefetch(&load->m);
	upload_pack(model->ops, team, load->w, &load->m, 0, load->w->rows, load->w->data);
	source_drop(&load->m);
	return 0;
}

/* Where device memory is the host's: weight by weight to where it stays. */
static int load_in_host(struct model *model, const struct loads *loads, const struct model_options *options)
{
	double total = (double)(loads->to_pack + loads->in_place), done = 0;

	for (uint32_t i = 0; i < loads->n; ++i) {
		const struct weight_load *load = &loads->load[i];
		int r = load_weight(model, load, options->team);

		if (r)
			return error_trace(r);
		done += (double)(load->w->bytes ? load->w->bytes :
						  load->m.rows * kern_row_bytes(load->m.dtype, load->m.cols));
		if (options->progress)
			options->progress(options->userdata, done / total);
	}
	return 0;
}

static int load_weights(struct model *model, const struct loads *loads, const struct model_options *options,
			struct diag *diag)
{
	const struct upload_options upload = {
		.ops = model->ops,
		.device = model->device,
		.team = options->team,
		.source = model->source,
		.progress = options->progress,
		.userdata = options->userdata,
	};
	int r;

	if (model->ops->upload)
		r = upload_weights(&upload, loads->load, loads->n, diag);
	else
		r = load_in_host(model, loads, options);
	team_rest(options->team);
	if (!r && model->config.tied)
		model->weights.head = model->weights.embed;
	return error_trace(r);
}

/* A norm's gains, as f32 in device memory. */
static int load_norm(struct model *model, enum source_kind kind, uint32_t layer, float **ret, struct diag *diag)
{
	uint32_t d = model->config.geometry.hidden;
	_cleanup_free_ float *gain = NULL;
	struct kern_matrix m = { .rows = 1, .cols = d };
	void *p;
	int r;

	if (source_matrix(model->source, kind, layer, &m, diag))
		return MODEL_E_INVALID;
	gain = malloc(d * sizeof(*gain));
	if (!gain)
		return error_origin(-ENOMEM);
	quant_decode(m.dtype, m.data, 0, d, gain);
	r = model->ops->alloc(model->device, NULL, d * sizeof(*gain), &p);
	if (!r) {
		*ret = p;
		r = model->ops->copy_async(model->device, p, gain, d * sizeof(*gain));
	}
	if (!r)
		r = model->ops->fence(model->device);
	return r ? upload_failed(model->ops, model->device, r, diag) : 0;
}

static int load_norms(struct model *model, struct diag *diag)
{
	struct model_weights *w = &model->weights;
	int r;

	r = load_norm(model, SOURCE_NORM, 0, &w->norm, diag);
	for (uint32_t l = 0; l < model->config.geometry.n_layers && !r; ++l) {
		r = load_norm(model, SOURCE_ATTN_NORM, l, &w->layer[l].attn_norm, diag);
		if (!r)
			r = load_norm(model, SOURCE_FFN_NORM, l, &w->layer[l].ffn_norm, diag);
	}
	return r;
}

static int take_weights(struct model *model, const struct model_options *options, struct diag *diag)
{
	_cleanup_free_ struct weight_load *list = NULL;
	struct loads loads = { 0 };
	const char *unused;
	int r;

	r = list_loads(model, &loads, diag);
	list = loads.load;
	if (r)
		return r;
	model->precision = choose_precision(options->precision, &loads);
	r = plan(model, &loads, diag);
	if (!r)
		r = load_norms(model, diag);
	if (r)
		return r;
	unused = source_unused(model->source);
	if (unused)
		return diag_set(diag, MODEL_E_INVALID, "tensor %s: not part of a Llama model as lorad computes it", unused);
	r = load_weights(model, &loads, options, diag);
	if (r)
		return r;
	if (loads.in_place == 0)
		model->source = source_free(model->source);
	return MODEL_OK;
}

/**
 * model_open() - load a base model
 * @ret:        the new model
 * @options:    device and team must outlive it; progress is called from this thread
 *
 * Return: MODEL_OK; MODEL_E_INVALID with one line in @diag that names the file; negative errno.
 */
int model_open(struct model **ret, const struct model_options *options, struct diag *diag)
{
	_cleanup_(model_freep) struct model *model = calloc(1, sizeof(*model));
	int r;

	if (!model)
		return error_origin(-ENOMEM);
	model->ops = options->backend->device;
	model->device = options->device;
	r = source_open(&model->source, options->path, diag);
	if (r)
		return r < 0 ? error_trace(r) : MODEL_E_INVALID;
	r = take_config(model, options, diag);
	if (!r)
		r = take_tokenizer(model, options, diag);
	if (r)
		return error_trace(r);
	r = take_weights(model, options, diag);
	if (r)
		return r < 0 ? error_trace(r) : diag_prefix(diag, MODEL_E_INVALID, "%s", options->path);
	*ret = TAKE_PTR(model);
	return MODEL_OK;
}

static void free_weight(struct model *model, struct kern_weight *w)
{
	model->ops->weight_release(w);
	if (w->bytes > 0 && w->data)
		model->ops->free(model->device, w->data, w->bytes);
}

static void free_norm(struct model *model, float *norm)
{
	if (norm)
		model->ops->free(model->device, norm, model->config.geometry.hidden * sizeof(*norm));
}

struct model *model_free(struct model *model)
{
	if (!model)
		return NULL;
	for (uint32_t l = 0; model->weights.layer && l < model->config.geometry.n_layers; ++l) {
		for (uint32_t i = 0; i < _KERN_MODULE_N; ++i)
			free_weight(model, &model->weights.layer[l].w[i]);
		free_norm(model, model->weights.layer[l].attn_norm);
		free_norm(model, model->weights.layer[l].ffn_norm);
	}
	free_weight(model, &model->weights.embed);
	if (!model->config.tied)
		free_weight(model, &model->weights.head);
	free_norm(model, model->weights.norm);
	free(model->weights.layer);
	tokenizer_free(model->tokenizer);
	source_free(model->source);
	free(model->config.inv_freq);
	free(model);
	return NULL;
}

const struct model_config *model_config(const struct model *model)
{
	return &model->config;
}

const struct model_weights *model_weights(const struct model *model)
{
	return &model->weights;
}

const struct tokenizer *model_tokenizer(const struct model *model)
{
	return model->tokenizer;
}

enum kern_precision model_precision(const struct model *model)
{
	return model->precision;
}

uint64_t model_weight_bytes(const struct model *model)
{
	return model->weight_bytes;
}
