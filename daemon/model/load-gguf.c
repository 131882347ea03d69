/* SPDX-License-Identifier: MIT */
/*
 * A GGUF file as a source. Names and shapes are llama.cpp's for architecture `llama`
 * (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): dims[0] is the row length. Its converter permutes the
 * rows of q and k within each head, which pack undoes (struct kern_matrix.permuted_head).
 */
#include <errno.h>
#include <stdlib.h>

#include "daemon/format/gguf.h"
#include "daemon/format/vocab.h"
#include "daemon/model/source.h"

static const char *const ignored[] = {
	"rope_freqs.weight", /* read by base_config_from_gguf() */
	NULL,
};

static const struct source_names names = {
	.layer_prefix = "blk.",
	.suffix = {
		[SOURCE_EMBED] = "token_embd.weight",
		[SOURCE_HEAD] = "output.weight",
		[SOURCE_NORM] = "output_norm.weight",
		[SOURCE_ATTN_NORM] = ".attn_norm.weight",
		[SOURCE_FFN_NORM] = ".ffn_norm.weight",
		[SOURCE_MODULE + KERN_Q] = ".attn_q.weight",
		[SOURCE_MODULE + KERN_K] = ".attn_k.weight",
		[SOURCE_MODULE + KERN_V] = ".attn_v.weight",
		[SOURCE_MODULE + KERN_O] = ".attn_output.weight",
		[SOURCE_MODULE + KERN_GATE] = ".ffn_gate.weight",
		[SOURCE_MODULE + KERN_UP] = ".ffn_up.weight",
		[SOURCE_MODULE + KERN_DOWN] = ".ffn_down.weight",
	},
	.ignored = ignored,
};

static void free_view(void *view)
{
	gguf_free(view);
}

static int list_tensors(struct source *source, const struct gguf *gguf)
{
	const struct gguf_tensor *from = NULL;
	size_t n = gguf_tensors(gguf, &from);

	source->tensors = calloc(n ? n : 1, sizeof(*source->tensors));
	if (!source->tensors)
		return error_origin(-ENOMEM);
	source->n_tensors = n;
	for (size_t i = 0; i < n; ++i)
		source->tensors[i] = (struct source_tensor){
			.name = from[i].name,
			.dtype = from[i].dtype,
			.rows = from[i].dims[1],
			.cols = from[i].dims[0],
			.n_dims = from[i].n_dims,
			.data = from[i].data,
		};
	return 0;
}

static int read_file(struct source *source, struct diag *diag)
{
	struct gguf *gguf = NULL;
	int r;

	r = gguf_parse(&gguf, source->files[0].bytes, source->files[0].n, diag);
	source->parsed[0] = gguf;
	if (!r)
		r = base_config_from_gguf(&source->config, gguf, diag);
	if (!r)
		r = vocab_from_gguf(&source->vocab, gguf, diag);
	if (r)
		return r < 0 ? error_trace(r) : SOURCE_E_INVALID;
	source->permuted_head = source->config.geometry.head_dim;
	return error_trace(list_tensors(source, gguf));
}

int source_open_gguf(struct source *source, const char *path, struct diag *diag)
{
	int r;

	source->names = &names;
	source->files = calloc(1, sizeof(*source->files));
	source->parsed = calloc(1, sizeof(*source->parsed));
	source->free_parsed = free_view;
	source->n_files = 1;
	if (!source->files || !source->parsed) {
		source->n_files = 0;
		return error_origin(-ENOMEM);
	}
	r = source_map(path, &source->files[0], diag);
	if (r)
		return r < 0 ? error_trace(r) : SOURCE_E_INVALID;
	r = read_file(source, diag);
	return r > 0 ? diag_prefix(diag, r, "%s", path) : error_trace(r);
}
