/* SPDX-License-Identifier: MIT */
/*
 * A Hugging Face folder as a source: config.json, generation_config.json (may be missing), tokenizer.json, the chat
 * template, and the weights in model.safetensors or in the shards that model.safetensors.index.json lists. Names are
 * those of transformers' LlamaForCausalLM; matrices lie as [out][in].
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/format/safetensors.h"
#include "daemon/format/vocab.h"
#include "daemon/model/source.h"

#define CONFIG_MAX ((size_t)1 << 20)
#define TOKENIZER_MAX ((size_t)256 << 20)
#define INDEX_MAX ((size_t)64 << 20)

static const char *const ignored[] = {
	".rotary_emb.inv_freq", /* written by old versions of transformers; follows from rope_theta */
	NULL,
};

static const struct source_names names = {
	.layer_prefix = "model.layers.",
	.suffix = {
		[SOURCE_EMBED] = "model.embed_tokens.weight",
		[SOURCE_HEAD] = "lm_head.weight",
		[SOURCE_NORM] = "model.norm.weight",
		[SOURCE_ATTN_NORM] = ".input_layernorm.weight",
		[SOURCE_FFN_NORM] = ".post_attention_layernorm.weight",
		[SOURCE_MODULE + KERN_Q] = ".self_attn.q_proj.weight",
		[SOURCE_MODULE + KERN_K] = ".self_attn.k_proj.weight",
		[SOURCE_MODULE + KERN_V] = ".self_attn.v_proj.weight",
		[SOURCE_MODULE + KERN_O] = ".self_attn.o_proj.weight",
		[SOURCE_MODULE + KERN_GATE] = ".mlp.gate_proj.weight",
		[SOURCE_MODULE + KERN_UP] = ".mlp.up_proj.weight",
		[SOURCE_MODULE + KERN_DOWN] = ".mlp.down_proj.weight",
	},
	.ignored = ignored,
};

static void free_view(void *view)
{
	safetensors_free(view);
}

/* ---- weights ---- */

static int list_tensors(struct source *source, const struct safetensors *st, const struct source_file *file)
{
	struct source_tensor *tensors;
	size_t n = source->n_tensors + st->n_tensors;

	tensors = realloc(source->tensors, (n ? n : 1) * sizeof(*tensors));
	if (!tensors)
		return error_origin(-ENOMEM);
	source->tensors = tensors;
	for (size_t i = 0; i < st->n_tensors; ++i) {
		const struct safetensors_tensor *from = &st->tensors[i];
		bool vector = from->n_dims == 1;

		tensors[source->n_tensors++] = (struct source_tensor){
			.name = from->name,
			.dtype = from->dtype,
			.dtype_name = from->dtype_name,
			.rows = vector ? 1 : from->shape[0],
			.cols = vector ? from->shape[0] : from->shape[1],
			.n_dims = from->n_dims,
			.data = file->bytes + from->offset,
		};
	}
	return 0;
}

static int read_shard(struct source *source, size_t i, const char *folder, const char *name, struct diag *diag)
{
	struct source_file *file = &source->files[i];
	struct safetensors *st = NULL;
	char path[PATH_MAX];
	uint64_t n = 0;
	int r;

	if ((size_t)snprintf(path, sizeof(path), "%s/%s", folder, name) >= sizeof(path))
		return diag_set(diag, SOURCE_E_INVALID, "%s/%s: path too long", folder, name);
	r = source_map(path, file, diag);
	if (r)
		return r < 0 ? error_trace(r) : r;
	if (file->n < SAFETENSORS_PREFIX_BYTES)
		return diag_set(diag, SOURCE_E_INVALID, "%s: too short for a safetensors file", path);
	r = safetensors_header_bytes(file->bytes, file->n, &n, diag);
	if (!r)
		r = safetensors_parse(&st, (const char *)file->bytes + SAFETENSORS_PREFIX_BYTES, n, file->n, diag);
	if (r)
		return r < 0 ? error_trace(r) : diag_prefix(diag, SOURCE_E_INVALID, "%s", path);
	source->parsed[i] = st;
	return error_trace(list_tensors(source, st, file));
}

static int read_shards(struct source *source, const char *folder, const char *const *files, uint32_t n,
		       struct diag *diag)
{
	int r = 0;

	source->files = calloc(n, sizeof(*source->files));
	source->parsed = calloc(n, sizeof(*source->parsed));
	if (!source->files || !source->parsed)
		return error_origin(-ENOMEM);
	source->n_files = n;
	for (uint32_t i = 0; i < n && !r; ++i)
		r = read_shard(source, i, folder, files[i], diag);
	return r;
}

static int read_weights(struct source *source, const char *folder, struct diag *diag)
{
	static const char index_name[] = "model.safetensors.index.json";
	static const char *const single[] = { "model.safetensors" };
	_cleanup_(safetensors_index_freep) struct safetensors_index *index = NULL;
	_cleanup_free_ char *text = NULL;
	size_t n = 0;
	int r;

	r = source_read_text(folder, index_name, INDEX_MAX, &text, &n, diag);
	if (r == SOURCE_E_MISSING)
		return read_shards(source, folder, single, 1, diag);
	if (r)
		return r;
	r = safetensors_index_parse(&index, text, n, diag);
	if (r)
		return r < 0 ? error_trace(r) : diag_prefix(diag, SOURCE_E_INVALID, "%s/%s", folder, index_name);
	if (index->n_files == 0)
		return diag_set(diag, SOURCE_E_INVALID, "%s/%s: lists no files", folder, index_name);
	return read_shards(source, folder, index->files, index->n_files, diag);
}

/* ---- configuration ---- */

static int read_config(struct source *source, const char *folder, struct diag *diag)
{
	_cleanup_free_ char *text = NULL, *generation = NULL;
	size_t n = 0;
	int r;

	r = source_read_text(folder, "config.json", CONFIG_MAX, &text, &n, diag);
	if (r)
		return r;
	r = base_config_from_json(&source->config, text, n, diag);
	if (r)
		return r < 0 ? error_trace(r) : diag_prefix(diag, SOURCE_E_INVALID, "%s/config.json", folder);

	r = source_read_text(folder, "generation_config.json", CONFIG_MAX, &generation, &n, diag);
	if (r == SOURCE_E_MISSING)
		return SOURCE_OK;
	if (r)
		return r;
	r = base_config_add_generation(&source->config, generation, n, diag);
	return r > 0 ? diag_prefix(diag, SOURCE_E_INVALID, "%s/generation_config.json", folder) : error_trace(r);
}

/* An optional file of the folder that adds something to the vocabulary. */
static int read_extra(struct source *source, const char *folder, const char *name,
		      int (*add)(struct vocab *vocab, const char *text, size_t bytes, struct diag *diag), struct diag *diag)
{
	_cleanup_free_ char *text = NULL;
	size_t n = 0;
	int r;

	r = source_read_text(folder, name, CONFIG_MAX, &text, &n, diag);
	if (r)
		return r == SOURCE_E_MISSING ? SOURCE_OK : r;
	r = add(source->vocab, text, n, diag);
	return r > 0 ? diag_prefix(diag, SOURCE_E_INVALID, "%s/%s", folder, name) : error_trace(r);
}

static int set_chat_template(struct vocab *vocab, const char *text, size_t bytes, struct diag *diag)
{
	(void)diag; /* any text will do */
	return error_trace(vocab_set_chat_template(vocab, text, bytes));
}

static int read_vocab(struct source *source, const char *folder, struct diag *diag)
{
	_cleanup_free_ char *text = NULL;
	size_t n = 0;
	int r;

	r = source_read_text(folder, "tokenizer.json", TOKENIZER_MAX, &text, &n, diag);
	if (r)
		return r;
	r = vocab_from_json(&source->vocab, text, n, diag);
	if (r)
		return r < 0 ? error_trace(r) : diag_prefix(diag, SOURCE_E_INVALID, "%s/tokenizer.json", folder);
	r = read_extra(source, folder, "tokenizer_config.json", vocab_add_tokenizer_config, diag);
	if (!r)
		r = read_extra(source, folder, "chat_template.jinja", set_chat_template, diag);
	return r;
}

int source_open_hf(struct source *source, const char *path, struct diag *diag)
{
	int r;

	source->names = &names;
	source->free_parsed = free_view;
	r = read_config(source, path, diag);
	if (!r)
		r = read_vocab(source, path, diag);
	if (!r)
		r = read_weights(source, path, diag);
	return r;
}
