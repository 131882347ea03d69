/* SPDX-License-Identifier: MIT */
/*
 * The base model's configuration in a GGUF file's metadata (keys llama.*)
 *
 * Llama 3.1's rope scaling has no keys there: its converter writes the divisor of every frequency as a tensor,
 * rope_freqs.weight. An untied output head shows as a tensor output.weight. The vocabulary's size is the number of rows
 * of the embedding; converters may pad it beyond the tokens that have a text.
 */
#include "daemon/format/base-config.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static int require_u32(const struct gguf *gguf, const char *key, uint32_t *ret, struct diag *diag)
{
	int r = gguf_get_u32(gguf, key, ret, diag);

	return r == FORMAT_E_MISSING ? diag_set(diag, FORMAT_E_INVALID, "%s: missing", key) : r;
}

static int require_double(const struct gguf *gguf, const char *key, double *ret, struct diag *diag)
{
	int r = gguf_get_double(gguf, key, ret, diag);

	return r == FORMAT_E_MISSING ? diag_set(diag, FORMAT_E_INVALID, "%s: missing", key) : r;
}

/* A key that may be absent leaves *ret as it is: the default. */
static int optional_u32(const struct gguf *gguf, const char *key, uint32_t *ret, struct diag *diag)
{
	int r = gguf_get_u32(gguf, key, ret, diag);

	return r == FORMAT_E_MISSING ? FORMAT_OK : r;
}

static bool text_is(const struct format_text *text, const char *string)
{
	return text->n == strlen(string) && !memcmp(text->bytes, string, text->n);
}

static int check_architecture(const struct gguf *gguf, struct diag *diag)
{
	struct format_text architecture = { "(missing)", 9 };
	uint32_t experts = 0;
	int r;

	r = gguf_get_string(gguf, "general.architecture", &architecture, diag);
	if (r == FORMAT_E_INVALID)
		return r;
	if (!text_is(&architecture, "llama"))
		return diag_set(diag, FORMAT_E_INVALID, "general.architecture: '%.*s' is not supported (llama is)",
				architecture.n > 64 ? 64 : (int)architecture.n, architecture.bytes);
	r = optional_u32(gguf, "llama.expert_count", &experts, diag);
	if (r)
		return r;
	if (experts)
		return diag_set(diag, FORMAT_E_INVALID, "llama.expert_count: mixtures of experts are not supported");
	return FORMAT_OK;
}

/* A bias would be left out silently by whoever looks its tensors up by name. */
static int check_no_biases(const struct gguf *gguf, struct diag *diag)
{
	const struct gguf_tensor *tensors;
	size_t n = gguf_tensors(gguf, &tensors), i;

	for (i = 0; i < n; ++i) {
		size_t length = strlen(tensors[i].name);

		if (length > 5 && !strcmp(tensors[i].name + length - 5, ".bias"))
			return diag_set(diag, FORMAT_E_INVALID, "tensor '%s': biases are not supported", tensors[i].name);
	}
	return FORMAT_OK;
}

static int read_head_dim(struct image_geometry *g, const struct gguf *gguf, struct diag *diag)
{
	uint32_t value, rope;
	int r;

	g->head_dim = g->n_heads ? g->hidden / g->n_heads : 0;
	r = optional_u32(gguf, "llama.attention.key_length", &g->head_dim, diag);
	if (r)
		return r;
	value = rope = g->head_dim;
	if ((r = optional_u32(gguf, "llama.attention.value_length", &value, diag)) ||
	    (r = optional_u32(gguf, "llama.rope.dimension_count", &rope, diag)))
		return r;
	if (value != g->head_dim)
		return diag_set(diag, FORMAT_E_INVALID, "llama.attention.value_length: %u differs from the keys' %u", value,
				g->head_dim);
	if (rope != g->head_dim)
		return diag_set(diag, FORMAT_E_INVALID, "llama.rope.dimension_count: %u of %u is not supported (all are)",
				rope, g->head_dim);
	return FORMAT_OK;
}

static int read_vocab(struct image_geometry *g, const struct gguf *gguf, struct diag *diag)
{
	const struct gguf_tensor *embedding = gguf_tensor(gguf, "token_embd.weight");
	uint32_t claimed;
	int r;

	if (!embedding || embedding->n_dims != 2 || embedding->dims[1] > UINT32_MAX)
		return diag_set(diag, FORMAT_E_INVALID, "tensor 'token_embd.weight': missing, or no matrix");
	g->vocab = claimed = (uint32_t)embedding->dims[1];
	r = optional_u32(gguf, "llama.vocab_size", &claimed, diag);
	if (r)
		return r;
	if (claimed != g->vocab)
		return diag_set(diag, FORMAT_E_INVALID, "llama.vocab_size: %u, but token_embd.weight has %u rows", claimed,
				g->vocab);
	return FORMAT_OK;
}

static int read_rope_factors(struct base_config *c, const struct gguf_tensor *t, struct diag *diag)
{
	uint32_t i;
	float f;

	if (c->rope != BASE_ROPE_DEFAULT)
		return diag_set(diag, FORMAT_E_INVALID, "tensor '%s': given beside llama.rope.scaling.type", t->name);
	if (t->dtype != KERN_F32 || t->bytes != (uint64_t)c->geometry.head_dim / 2 * sizeof(float))
		return diag_set(diag, FORMAT_E_INVALID, "tensor '%s': not %u numbers of F32", t->name,
				c->geometry.head_dim / 2);
	for (i = 0; i < c->geometry.head_dim / 2; ++i) {
		memcpy(&f, (const char *)t->data + i * sizeof(f), sizeof(f));
		if (!(f > 0) || !isfinite(f))
			return diag_set(diag, FORMAT_E_INVALID, "tensor '%s': divisor %u is not positive", t->name, i);
	}
	c->rope = BASE_ROPE_FACTORS;
	c->rope_factors = t->data;
	return FORMAT_OK;
}

static int read_rope(struct base_config *c, const struct gguf *gguf, struct diag *diag)
{
	const struct gguf_tensor *factors = gguf_tensor(gguf, "rope_freqs.weight");
	struct format_text type = { "none", 4 };
	int r;

	r = require_double(gguf, "llama.rope.freq_base", &c->rope_theta, diag);
	if (r)
		return r;
	r = gguf_get_string(gguf, "llama.rope.scaling.type", &type, diag);
	if (r == FORMAT_E_INVALID)
		return r;
	if (text_is(&type, "linear")) {
		c->rope = BASE_ROPE_LINEAR;
		r = require_double(gguf, "llama.rope.scaling.factor", &c->rope_factor, diag);
		if (r)
			return r;
	} else if (!text_is(&type, "none")) {
		return diag_set(diag, FORMAT_E_INVALID, "llama.rope.scaling.type: '%.*s' is not supported (none, linear are)",
				type.n > 64 ? 64 : (int)type.n, type.bytes);
	}
	r = gguf_get_double(gguf, "llama.rope.scale_linear", &c->rope_factor, diag); /* its old spelling */
	if (r == FORMAT_OK && c->rope == BASE_ROPE_DEFAULT)
		c->rope = BASE_ROPE_LINEAR;
	if (r == FORMAT_E_INVALID)
		return r;
	return factors ? read_rope_factors(c, factors, diag) : FORMAT_OK;
}

static int read_stops(struct base_config *c, const struct gguf *gguf, struct diag *diag)
{
	static const char *const keys[] = { "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id" };
	uint32_t id;
	size_t i;
	int r;

	for (i = 0; i < sizeof(keys) / sizeof(*keys); ++i) {
		r = gguf_get_u32(gguf, keys[i], &id, diag);
		if (r == FORMAT_OK)
			r = base_config_add_stop(c, id, diag);
		if (r == FORMAT_E_INVALID)
			return r;
	}
	return FORMAT_OK;
}

/**
 * base_config_from_gguf() - the configuration of a GGUF file
 * @ret:        the configuration, set on success only; rope_factors points into the file
 * @gguf:       the view
 * @diag:       the reason of a refusal
 */
int base_config_from_gguf(struct base_config *ret, const struct gguf *gguf, struct diag *diag)
{
	struct base_config c = { 0 };
	struct image_geometry *g = &c.geometry;
	struct format_text name;
	int r;

	if ((r = check_architecture(gguf, diag)) || (r = check_no_biases(gguf, diag)) ||
	    (r = require_u32(gguf, "llama.block_count", &g->n_layers, diag)) ||
	    (r = require_u32(gguf, "llama.context_length", &c.context, diag)) ||
	    (r = require_u32(gguf, "llama.embedding_length", &g->hidden, diag)) ||
	    (r = require_u32(gguf, "llama.feed_forward_length", &g->intermediate, diag)) ||
	    (r = require_u32(gguf, "llama.attention.head_count", &g->n_heads, diag)) ||
	    (r = require_double(gguf, "llama.attention.layer_norm_rms_epsilon", &c.norm_eps, diag)))
		return r;
	g->n_kv_heads = g->n_heads;
	r = optional_u32(gguf, "llama.attention.head_count_kv", &g->n_kv_heads, diag);
	if (r)
		return r;
	if ((r = read_head_dim(g, gguf, diag)) || (r = read_vocab(g, gguf, diag)) || (r = read_rope(&c, gguf, diag)) ||
	    (r = read_stops(&c, gguf, diag)))
		return r;
	c.tied = !gguf_tensor(gguf, "output.weight");
	if (gguf_get_string(gguf, "general.name", &name, /* diag= */ NULL) == FORMAT_OK)
		(void)snprintf(c.name, sizeof(c.name), "%.*s", name.n > 100 ? 100 : (int)name.n, name.bytes);
	r = base_config_check(&c, diag);
	if (r)
		return r;
	*ret = c;
	return FORMAT_OK;
}
