/* SPDX-License-Identifier: MIT */
/*
 * config.json and generation_config.json of a Hugging Face folder
 *
 * Llama only. Keys that would change the arithmetic in a way lorad does not compute are refused by name; keys that only
 * inform are not looked at. Defaults are those of transformers' LlamaConfig where a file may rightly leave a key out
 * (num_key_value_heads, head_dim, tie_word_embeddings, hidden_act); sizes, epsilon and rope theta must be there.
 *
 * Rope comes in two spellings: transformers 5 has one object rope_parameters with rope_theta in it, older files have
 * rope_theta at the top and an object rope_scaling, whose type key was once called "type".
 */
#include "daemon/format/base-config.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "daemon/format/json.h"

#define CONFIG_MAX (1u << 20)

static int require_u32(const json_t *object, const char *key, uint32_t *ret, struct diag *diag)
{
	int r = json_get_u32(object, key, ret, diag);

	return r == FORMAT_E_MISSING ? diag_set(diag, FORMAT_E_INVALID, "%s: missing", key) : r;
}

static int require_double(const json_t *object, const char *key, double *ret, struct diag *diag)
{
	int r = json_get_double(object, key, ret, diag);

	return r == FORMAT_E_MISSING ? diag_set(diag, FORMAT_E_INVALID, "%s: missing", key) : r;
}

/* A key that may be absent leaves *ret as it is: the default. */
static int optional_u32(const json_t *object, const char *key, uint32_t *ret, struct diag *diag)
{
	int r = json_get_u32(object, key, ret, diag);

	return r == FORMAT_E_MISSING ? FORMAT_OK : r;
}

static int check_architecture(const json_t *root, struct diag *diag)
{
	const json_t *architectures = json_object_get(root, "architectures");
	const char *type = NULL, *name;
	int r;

	r = json_get_string(root, "model_type", &type, diag);
	if (r == FORMAT_E_INVALID)
		return r;
	if (!type || strcmp(type, "llama") != 0)
		return diag_set(diag, FORMAT_E_INVALID, "model_type: '%s' is not supported (llama is)",
				type ? type : "(missing)");
	if (!json_truthy(architectures))
		return FORMAT_OK;
	name = json_string_value(json_array_get(architectures, 0));
	if (json_array_size(architectures) != 1 || !name || strcmp(name, "LlamaForCausalLM") != 0)
		return diag_set(diag, FORMAT_E_INVALID, "architectures: '%s' is not supported (LlamaForCausalLM is)",
				name ? name : "(no string)");
	return FORMAT_OK;
}

/* What the forward step does not compute must not be asked for. */
static int check_unsupported(const json_t *root, struct diag *diag)
{
	static const char *const must_be_false[] = {
		"attention_bias", "mlp_bias", "quantization_config", "rope_interleaved", "pruned_heads",
		"is_encoder_decoder", "add_cross_attention",
	};
	const char *act = "silu";
	size_t i;
	int r;

	for (i = 0; i < sizeof(must_be_false) / sizeof(*must_be_false); ++i)
		if (json_truthy(json_object_get(root, must_be_false[i])))
			return diag_set(diag, FORMAT_E_INVALID, "%s: is set, which is not supported", must_be_false[i]);
	r = json_get_string(root, "hidden_act", &act, diag);
	if (r == FORMAT_E_INVALID)
		return r;
	if (strcmp(act, "silu") != 0 && strcmp(act, "swish") != 0)
		return diag_set(diag, FORMAT_E_INVALID, "hidden_act: '%s' is not supported (silu is)", act);
	return FORMAT_OK;
}

static int read_shape(struct base_config *c, const json_t *root, struct diag *diag)
{
	struct image_geometry *g = &c->geometry;
	int r;

	if ((r = require_u32(root, "hidden_size", &g->hidden, diag)) ||
	    (r = require_u32(root, "intermediate_size", &g->intermediate, diag)) ||
	    (r = require_u32(root, "num_hidden_layers", &g->n_layers, diag)) ||
	    (r = require_u32(root, "num_attention_heads", &g->n_heads, diag)) ||
	    (r = require_u32(root, "vocab_size", &g->vocab, diag)) ||
	    (r = require_u32(root, "max_position_embeddings", &c->context, diag)) ||
	    (r = require_double(root, "rms_norm_eps", &c->norm_eps, diag)))
		return r;
	if (!g->n_heads)
		return diag_set(diag, FORMAT_E_INVALID, "num_attention_heads: is 0");
	g->n_kv_heads = g->n_heads;
	g->head_dim = g->hidden / g->n_heads;
	if ((r = optional_u32(root, "num_key_value_heads", &g->n_kv_heads, diag)) ||
	    (r = optional_u32(root, "head_dim", &g->head_dim, diag)))
		return r;
	r = json_get_bool(root, "tie_word_embeddings", &c->tied, diag);
	return r == FORMAT_E_INVALID ? r : FORMAT_OK;
}

/* rope_theta at the top, in rope_parameters, or in both if they agree. */
static int read_theta(struct base_config *c, const json_t *root, const json_t *parameters, struct diag *diag)
{
	double top = 0, inner = 0;
	int rt, ri = FORMAT_E_MISSING;

	rt = json_get_double(root, "rope_theta", &top, diag);
	if (rt == FORMAT_E_INVALID)
		return rt;
	if (parameters)
		ri = json_get_double(parameters, "rope_theta", &inner, diag);
	if (ri == FORMAT_E_INVALID)
		return diag_prefix(diag, ri, "rope_parameters");
	if (rt && ri)
		return diag_set(diag, FORMAT_E_INVALID, "rope_theta: missing, at the top and in rope_parameters");
	if (!rt && !ri && (top > inner || top < inner))
		return diag_set(diag, FORMAT_E_INVALID, "rope_theta: %g, but rope_parameters.rope_theta is %g", top, inner);
	c->rope_theta = rt ? inner : top;
	return FORMAT_OK;
}

static int read_rope_type(struct base_config *c, const json_t *rope, struct diag *diag)
{
	const char *type = NULL;
	double rotary = 1;
	int r;

	r = json_get_string(rope, "rope_type", &type, diag);
	if (r == FORMAT_E_MISSING)
		r = json_get_string(rope, "type", &type, diag);
	if (r == FORMAT_E_INVALID)
		return r;
	r = json_get_double(rope, "partial_rotary_factor", &rotary, diag);
	if (r == FORMAT_E_INVALID)
		return r;
	if (rotary < 1 || rotary > 1)
		return diag_set(diag, FORMAT_E_INVALID, "partial_rotary_factor: %g is not supported (1 is)", rotary);
	if (!type || !strcmp(type, "default"))
		return FORMAT_OK;
	if (!strcmp(type, "linear")) {
		c->rope = BASE_ROPE_LINEAR;
		return require_double(rope, "factor", &c->rope_factor, diag);
	}
	if (strcmp(type, "llama3") != 0)
		return diag_set(diag, FORMAT_E_INVALID, "rope_type: '%s' is not supported (default, linear, llama3 are)",
				type);
	c->rope = BASE_ROPE_LLAMA3;
	if ((r = require_double(rope, "factor", &c->rope_factor, diag)) ||
	    (r = require_double(rope, "low_freq_factor", &c->rope_low, diag)) ||
	    (r = require_double(rope, "high_freq_factor", &c->rope_high, diag)))
		return r;
	return require_u32(rope, "original_max_position_embeddings", &c->rope_context, diag);
}

static int read_rope(struct base_config *c, const json_t *root, struct diag *diag)
{
	const json_t *parameters = NULL, *scaling = NULL;
	const char *where = "rope_parameters";
	double rotary = 1;
	int r;

	if (json_get_object(root, "rope_parameters", &parameters, diag) == FORMAT_E_INVALID ||
	    json_get_object(root, "rope_scaling", &scaling, diag) == FORMAT_E_INVALID)
		return FORMAT_E_INVALID;
	if (json_get_double(root, "partial_rotary_factor", &rotary, diag) == FORMAT_E_INVALID)
		return FORMAT_E_INVALID;
	if (rotary < 1 || rotary > 1)
		return diag_set(diag, FORMAT_E_INVALID, "partial_rotary_factor: %g is not supported (1 is)", rotary);
	if (parameters && scaling && !json_equal(parameters, scaling))
		return diag_set(diag, FORMAT_E_INVALID, "rope_scaling: given beside rope_parameters, and they differ");
	r = read_theta(c, root, parameters, diag);
	if (r)
		return r;
	if (!parameters) {
		parameters = scaling;
		where = "rope_scaling";
	}
	if (!parameters)
		return FORMAT_OK;
	r = read_rope_type(c, parameters, diag);
	return r ? diag_prefix(diag, r, "%s", where) : FORMAT_OK;
}

/* An id, a list of ids, or nothing. */
static int read_stops(struct base_config *c, const json_t *root, struct diag *diag)
{
	const json_t *ids = json_object_get(root, "eos_token_id"), *id;
	size_t i, n = json_is_array(ids) ? json_array_size(ids) : 1;
	int r;

	if (!ids || json_is_null(ids))
		return FORMAT_OK;
	for (i = 0; i < n; ++i) {
		id = json_is_array(ids) ? json_array_get(ids, i) : ids;
		if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > INT32_MAX)
			return diag_set(diag, FORMAT_E_INVALID, "eos_token_id: neither a token id nor a list of them");
		r = base_config_add_stop(c, (uint32_t)json_integer_value(id), diag);
		if (r)
			return diag_prefix(diag, r, "eos_token_id");
	}
	return FORMAT_OK;
}

static int read_config(struct base_config *c, const json_t *root, struct diag *diag)
{
	const char *name = "";
	int r;

	if ((r = check_architecture(root, diag)) || (r = check_unsupported(root, diag)) ||
	    (r = read_shape(c, root, diag)) || (r = read_rope(c, root, diag)) || (r = read_stops(c, root, diag)))
		return r;
	if (json_get_string(root, "_name_or_path", &name, /* diag= */ NULL) == FORMAT_OK)
		(void)snprintf(c->name, sizeof(c->name), "%s", name);
	return base_config_check(c, diag);
}

/**
 * base_config_from_json() - read config.json
 * @ret:        the configuration, set on success only
 * @text:       the file
 * @bytes:      its length
 * @diag:       the reason of a refusal
 *
 * Return: 0, -ENOMEM, or FORMAT_E_INVALID.
 */
int base_config_from_json(struct base_config *ret, const char *text, size_t bytes, struct diag *diag)
{
	_cleanup_(json_decrefp) json_t *root = NULL;
	struct base_config c = { 0 };
	int r;

	r = json_parse(&root, text, bytes, CONFIG_MAX, JSON_PLAIN, "config.json", diag);
	if (r)
		return error_trace(r);
	r = read_config(&c, root, diag);
	if (r)
		return diag_prefix(diag, r, "config.json");
	*ret = c;
	return FORMAT_OK;
}

/**
 * base_config_add_generation() - read generation_config.json: more end-of-sequence ids
 * @config:     from base_config_from_json(); unchanged if this fails
 * @text:       the file
 * @bytes:      its length
 * @diag:       the reason of a refusal
 */
int base_config_add_generation(struct base_config *config, const char *text, size_t bytes, struct diag *diag)
{
	_cleanup_(json_decrefp) json_t *root = NULL;
	struct base_config c = *config;
	int r;

	r = json_parse(&root, text, bytes, CONFIG_MAX, JSON_PLAIN, "generation_config.json", diag);
	if (r)
		return error_trace(r);
	r = read_stops(&c, root, diag);
	if (!r)
		r = base_config_check(&c, diag);
	if (r)
		return diag_prefix(diag, r, "generation_config.json");
	*config = c;
	return FORMAT_OK;
}
