/* SPDX-License-Identifier: MIT */
/*
 * LoRA adapters as PEFT writes them
 *
 * The tensors say which modules are adapted and with what rank; the configuration says with what scale. Each is checked
 * against the other: every tensor must be one the configuration asks for, every module it asks for must have both its
 * tensors, ranks must agree. PEFT itself fills in zeros or random numbers where a tensor is missing and only warns; here
 * the adapter is refused, because an answer that is silently another one is the worst outcome.
 *
 * Of the configuration's keys some say how the adapter is applied (read here), some say nothing about that (ignored:
 * they are listed), and all others are refused by name unless they are switched off. That catches the variants with other
 * arithmetic (use_dora, lora_bias, modules_to_save, ...) and whatever future versions invent.
 *
 * Some initialisations change the base model's weights when the adapter is created (PiSSA, OLoRA ...). Such an adapter
 * fits the changed base only; served on the plain one it would be wrong without a sign, so it is refused.
 */
#include "daemon/format/peft.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "daemon/format/json.h"
#include "daemon/format/peft-target.h"
#include "kernels/kernels.h"

#define PREFIX "base_model.model."
#define RANK_DEFAULT 8
#define ALPHA_DEFAULT 8

static const char *const module_names[_KERN_MODULE_N] = {
	[KERN_Q] = "self_attn.q_proj",  [KERN_K] = "self_attn.k_proj",   [KERN_V] = "self_attn.v_proj",
	[KERN_O] = "self_attn.o_proj",  [KERN_GATE] = "mlp.gate_proj",   [KERN_UP] = "mlp.up_proj",
	[KERN_DOWN] = "mlp.down_proj",
};

struct config {
	double r, alpha;
	bool rslora;
};

/* ---- names ---- */

/* The module's name inside transformers' model. */
static void module_name(const struct image_geometry *geometry, uint32_t module, char name[PEFT_NAME_MAX])
{
	if (module == geometry->n_layers * _KERN_MODULE_N)
		(void)snprintf(name, PEFT_NAME_MAX, "lm_head");
	else
		(void)snprintf(name, PEFT_NAME_MAX, "model.layers.%u.%s", module / _KERN_MODULE_N,
			       module_names[module % _KERN_MODULE_N]);
}

/** peft_tensor_name() - the name of a module's A or B in adapter_model.safetensors */
void peft_tensor_name(const struct image_geometry *geometry, uint32_t module, char which, char name[PEFT_NAME_MAX])
{
	char inner[PEFT_NAME_MAX];

	assert(which == 'A' || which == 'B');
	module_name(geometry, module, inner);
	(void)snprintf(name, PEFT_NAME_MAX, PREFIX "%.80s.lora_%c.weight", inner, which);
}

/* Finds which of the model's modules a tensor belongs to by spelling its name: it must be exactly what PEFT writes. */
static int parse_name(const struct image_geometry *geometry, const char *name, uint32_t *ret_module, char *ret_which,
		      struct diag *diag)
{
	const char *end = strstr(name, ".lora_");
	unsigned long layer = 0;
	uint32_t module = geometry->n_layers * _KERN_MODULE_N, m;
	char expected[PEFT_NAME_MAX], *after = NULL;

	if (!strncmp(name, PREFIX "model.layers.", strlen(PREFIX "model.layers.")))
		layer = strtoul(name + strlen(PREFIX "model.layers."), &after, 10);
	for (m = 0; after && *after == '.' && layer < geometry->n_layers && m < _KERN_MODULE_N; ++m) {
		size_t n = strlen(module_names[m]);

		if (!strncmp(after + 1, module_names[m], n) && after[1 + n] == '.')
			module = kern_module((uint32_t)layer, (enum kern_module)m);
	}
	if (end && (end[6] == 'A' || end[6] == 'B')) {
		peft_tensor_name(geometry, module, end[6], expected);
		if (!strcmp(name, expected)) {
			*ret_module = module;
			*ret_which = end[6];
			return FORMAT_OK;
		}
	}
	if (strstr(name, ".base_layer."))
		return diag_set(diag, FORMAT_E_INVALID,
				"tensor '%s': weights of the base (save the adapter with save_embedding_layers=False)", name);
	return diag_set(diag, FORMAT_E_INVALID, "tensor '%s': not the lora_A or lora_B of a linear module of this model", name);
}

/* ---- the configuration ---- */

static int check_init(const json_t *config, struct diag *diag)
{
	static const char *const harmless[] = { "gaussian", "eva", "orthogonal", "mica" };
	const json_t *init = json_object_get(config, "init_lora_weights");
	const char *name = json_string_value(init);
	size_t i;

	if (!init || json_is_null(init) || json_is_boolean(init))
		return FORMAT_OK;
	for (i = 0; name && i < sizeof(harmless) / sizeof(*harmless); ++i)
		if (!strcasecmp(name, harmless[i]))
			return FORMAT_OK;
	return diag_set(diag, FORMAT_E_INVALID,
			"init_lora_weights: '%s' changes the base model's weights; convert the adapter with PEFT's "
			"path_initial_model_for_weight_conversion", name ? name : "(not a name)");
}

static int check_keys(json_t *config, struct diag *diag)
{
	static const char *const known[] = {
		/* read here */
		"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules",
		"exclude_modules", "layers_to_transform", "layers_pattern", "bias", "init_lora_weights",
		/* about training, loading or the file itself: not about what the adapter computes */
		"lora_dropout", "task_type", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping",
		"peft_version", "megatron_config", "megatron_core", "runtime_config", "ensure_weight_tying", "loftq_config",
		"eva_config", "corda_config", "lora_ga_config", "velora_config", "qalora_group_size", NULL,
	};
	const char *type = json_string_value(json_object_get(config, "peft_type"));
	const json_t *bias = json_object_get(config, "bias");

	if (!type || strcmp(type, "LORA") != 0)
		return diag_set(diag, FORMAT_E_INVALID, "peft_type: '%s' is not supported (LORA is)", type ? type : "(missing)");
	if (bias && !json_is_null(bias) && (!json_is_string(bias) || strcmp(json_string_value(bias), "none") != 0))
		return diag_set(diag, FORMAT_E_INVALID, "bias: '%s' is not supported (none is)",
				json_is_string(bias) ? json_string_value(bias) : "(not a string)");
	return json_check_keys("", config, known, diag);
}

static int read_config(struct config *c, json_t *root, struct diag *diag)
{
	int r;

	*c = (struct config){ .r = RANK_DEFAULT, .alpha = ALPHA_DEFAULT };
	if ((r = check_keys(root, diag)) || (r = check_init(root, diag)))
		return r;
	if (json_get_double(root, "r", &c->r, diag) == FORMAT_E_INVALID ||
	    json_get_double(root, "lora_alpha", &c->alpha, diag) == FORMAT_E_INVALID ||
	    json_get_bool(root, "use_rslora", &c->rslora, diag) == FORMAT_E_INVALID)
		return FORMAT_E_INVALID;
	return FORMAT_OK;
}

/* ---- tensors ---- */

/* Sorts the tensors to their modules: slots[module].a, .b. */
static int collect(struct peft_module *slots, const struct safetensors *tensors, const struct image_geometry *geometry,
		   struct diag *diag)
{
	uint32_t module = 0;
	char which = 0;
	size_t i;
	int r;

	for (i = 0; i < tensors->n_tensors; ++i) {
		const struct safetensors_tensor *t = &tensors->tensors[i];

		r = parse_name(geometry, t->name, &module, &which, diag);
		if (r)
			return r;
		if (t->dtype == _KERN_DTYPE_N)
			return diag_set(diag, FORMAT_E_INVALID, "tensor '%s': dtype %s is not supported (F32, F16, BF16 are)",
					t->name, t->dtype_name);
		if (t->n_dims != 2)
			return diag_set(diag, FORMAT_E_INVALID, "tensor '%s': %u dimensions, not 2", t->name, t->n_dims);
		if (which == 'A')
			slots[module].a = t;
		else
			slots[module].b = t;
	}
	return FORMAT_OK;
}

/* Shapes and dtypes of a pair: A [rank][in], B [out][rank]. */
static int check_pair(struct peft_module *m, const struct image_geometry *geometry, struct diag *diag)
{
	uint32_t in, out;

	(void)image_module_shape(geometry, m->module, &in, &out);
	if (!m->a->shape[0] || m->a->shape[0] > PEFT_RANK_MAX || m->a->shape[1] != in)
		return diag_set(diag, FORMAT_E_INVALID, "tensor '%s': shape %llu x %llu, not rank x %u", m->a->name,
				(unsigned long long)m->a->shape[0], (unsigned long long)m->a->shape[1], in);
	m->rank = (uint32_t)m->a->shape[0];
	if (m->b->shape[0] != out || m->b->shape[1] != m->rank)
		return diag_set(diag, FORMAT_E_INVALID, "tensor '%s': shape %llu x %llu, not %u x %u", m->b->name,
				(unsigned long long)m->b->shape[0], (unsigned long long)m->b->shape[1], out, m->rank);
	if (m->a->dtype != m->b->dtype)
		return diag_set(diag, FORMAT_E_INVALID, "tensor '%s': dtype %s, but its partner is %s", m->a->name,
				m->a->dtype_name, m->b->dtype_name);
	m->dtype = m->a->dtype;
	return FORMAT_OK;
}

/* An expression that takes too long is its author's fault. */
static int match_failed(int error, const char *keys, struct diag *diag)
{
	if (error == -E2BIG)
		return diag_set(diag, FORMAT_E_INVALID, "%s: matching takes too long", keys);
	return error_trace(error);
}

/* The rank the configuration gives must be the tensor's; the scale is the configuration's, with that rank. */
static int read_scale(struct peft_module *m, const struct config *c, const struct peft_rules *rules, const char *name,
		      struct diag *diag)
{
	double rank = c->r, alpha = c->alpha, scale;
	int r;

	if ((r = peft_rules_rank(rules, name, &rank)) || (r = peft_rules_alpha(rules, name, &alpha)))
		return match_failed(r, "rank_pattern, alpha_pattern", diag);
	if (rank < m->rank || rank > m->rank)
		return diag_set(diag, FORMAT_E_INVALID, "tensor '%s': rank %u, but r or rank_pattern says %g", m->a->name,
				m->rank, rank);
	scale = c->rslora ? alpha / sqrt(m->rank) : alpha / m->rank;
	m->scale = (float)scale;
	if (!isfinite(m->scale))
		return diag_set(diag, FORMAT_E_INVALID, "lora_alpha, alpha_pattern: a scale of %g for '%s'", scale, name);
	return FORMAT_OK;
}

/* One module of the model: tensors and configuration agree on whether it is adapted. *ret: whether it is. */
static int check_module(struct peft_module *m, const struct config *c, const struct peft_rules *rules,
			const struct image_geometry *geometry, bool *ret, struct diag *diag)
{
	char name[PEFT_NAME_MAX], missing[PEFT_NAME_MAX];
	int wanted, r;

	module_name(geometry, m->module, name);
	wanted = peft_rules_target(rules, name);
	if (wanted < 0)
		return match_failed(wanted, "target_modules, exclude_modules", diag);
	*ret = wanted;
	if (!wanted && (m->a || m->b))
		return diag_set(diag, FORMAT_E_INVALID, "tensor '%s': target_modules does not name its module",
				m->a ? m->a->name : m->b->name);
	if (!wanted)
		return FORMAT_OK;
	if (!m->a || !m->b) {
		peft_tensor_name(geometry, m->module, m->a ? 'B' : 'A', missing);
		return diag_set(diag, FORMAT_E_INVALID, "tensor '%s': missing, but target_modules names its module", missing);
	}
	r = check_pair(m, geometry, diag);
	return r ? r : read_scale(m, c, rules, name, diag);
}

/* The embedding is no linear module; PEFT would adapt it in its own way. */
static int check_embedding(const struct peft_rules *rules, const json_t *config, struct diag *diag)
{
	const json_t *target = json_object_get(config, "target_modules");
	bool all_linear = json_is_string(target) && !strcasecmp(json_string_value(target), "all-linear");

	if (!all_linear && peft_rules_target(rules, "model.embed_tokens") == 1)
		return diag_set(diag, FORMAT_E_INVALID, "target_modules: names embed_tokens, which is not supported");
	return FORMAT_OK;
}

static int build(struct peft_lora *lora, json_t *root, const struct safetensors *tensors,
		 const struct image_geometry *geometry, struct diag *diag)
{
	const uint32_t n = geometry->n_layers * _KERN_MODULE_N + 1;
	_cleanup_(peft_rules_freep) struct peft_rules *rules = NULL;
	struct config config;
	uint32_t i;
	int r;

	if ((r = read_config(&config, root, diag)) || (r = peft_rules_new(&rules, root, diag)) ||
	    (r = check_embedding(rules, root, diag)))
		return error_trace(r);
	lora->modules = calloc(n, sizeof(*lora->modules));
	if (!lora->modules)
		return error_origin(-ENOMEM);
	r = collect(lora->modules, tensors, geometry, diag);
	for (i = 0; i < n && !r; ++i) {
		struct peft_module m = lora->modules[i];
		bool adapted = false;

		m.module = i;
		r = check_module(&m, &config, rules, geometry, &adapted, diag);
		if (r || !adapted)
			continue;
		if (m.rank > lora->max_rank)
			lora->max_rank = m.rank;
		lora->modules[lora->n_modules++] = m; /* never ahead of i */
	}
	if (!r && !lora->n_modules)
		return diag_set(diag, FORMAT_E_INVALID, "target_modules: names no linear module of this model");
	return r;
}

/**
 * peft_parse() - the LoRA modules of an adapter
 * @ret:          the modules, by number
 * @config:       adapter_config.json
 * @config_bytes: its length
 * @tensors:      of adapter_model.safetensors; must outlive the result
 * @geometry:     the model's shape
 * @diag:         the key or tensor that is refused
 *
 * Return: 0, -ENOMEM or FORMAT_E_INVALID.
 */
int peft_parse(struct peft_lora **ret, const char *config, size_t config_bytes, const struct safetensors *tensors,
	       const struct image_geometry *geometry, struct diag *diag)
{
	_cleanup_(peft_freep) struct peft_lora *lora = calloc(1, sizeof(*lora));
	_cleanup_(json_decrefp) json_t *root = NULL;
	int r;

	if (!lora)
		return error_origin(-ENOMEM);
	r = json_parse(&root, config, config_bytes, PEFT_CONFIG_MAX, JSON_PLAIN, "adapter_config.json", diag);
	if (r)
		return error_trace(r);
	r = build(lora, root, tensors, geometry, diag);
	if (r)
		return error_trace(r);
	*ret = TAKE_PTR(lora);
	return FORMAT_OK;
}

struct peft_lora *peft_free(struct peft_lora *lora)
{
	if (!lora)
		return NULL;
	free(lora->modules);
	free(lora);
	return NULL;
}
