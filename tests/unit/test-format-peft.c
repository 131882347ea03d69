/* SPDX-License-Identifier: MIT */
/* PEFT adapters: which modules with what rank and scale, and what is refused, by which name. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/format/peft.h"
#include "kernels/kernels.h"
#include "tests/unit/format-mutate.h"
#include "tests/lib/run-suite.h"

#define TENSORS_MAX 64

static const struct image_geometry geometry = { 3, 64, 96, 4, 2, 16, 50 };
static struct diag diag;

/* A table of tensors without a file, as safetensors_parse() would make it. */
struct table {
	struct safetensors st;
	struct safetensors_tensor tensors[TENSORS_MAX];
	char names[TENSORS_MAX][PEFT_NAME_MAX];
};

static void put(struct table *t, uint32_t module, char which, uint32_t rank)
{
	struct safetensors_tensor *tensor = &t->tensors[t->st.n_tensors];
	uint32_t in, out;

	ck_assert(image_module_shape(&geometry, module, &in, &out));
	peft_tensor_name(&geometry, module, which, t->names[t->st.n_tensors]);
	*tensor = (struct safetensors_tensor){ .name = t->names[t->st.n_tensors], .dtype_name = "F32", .dtype = KERN_F32,
					       .n_dims = 2, .shape = { which == 'A' ? rank : out, which == 'A' ? in : rank } };
	t->st.tensors = t->tensors;
	++t->st.n_tensors;
}

static void put_pair(struct table *t, uint32_t layer, enum kern_module m, uint32_t rank)
{
	put(t, kern_module(layer, m), 'A', rank);
	put(t, kern_module(layer, m), 'B', rank);
}

static int parse(struct peft_lora **ret, const struct table *t, const char *keys)
{
	char config[2048];

	diag.text[0] = '\0';
	(void)snprintf(config, sizeof(config), "{\"peft_type\":\"LORA\",\"r\":8,\"lora_alpha\":16%s%s}", *keys ? "," : "", keys);
	return peft_parse(ret, config, strlen(config), &t->st, &geometry, &diag);
}

/* q and v of all layers, rank 8: PEFT's default for Llama. */
static void put_qv(struct table *t)
{
	*t = (struct table){ 0 };
	for (uint32_t layer = 0; layer < geometry.n_layers; ++layer) {
		put_pair(t, layer, KERN_Q, 8);
		put_pair(t, layer, KERN_V, 8);
	}
}

START_TEST(names)
{
	char name[PEFT_NAME_MAX];

	peft_tensor_name(&geometry, kern_module(2, KERN_DOWN), 'B', name);
	ck_assert_str_eq(name, "base_model.model.model.layers.2.mlp.down_proj.lora_B.weight");
	peft_tensor_name(&geometry, 21, 'A', name);
	ck_assert_str_eq(name, "base_model.model.lm_head.lora_A.weight");
}
END_TEST

START_TEST(default_targets)
{
	struct peft_lora *lora = NULL;
	struct table t;

	put_qv(&t);
	ck_assert_msg(parse(&lora, &t, "") == 0, "%s", diag.text);
	ck_assert_uint_eq(lora->n_modules, 6);
	ck_assert_uint_eq(lora->max_rank, 8);
	ck_assert_uint_eq(lora->modules[3].module, kern_module(1, KERN_V));
	ck_assert_float_eq(lora->modules[3].scale, 2);
	ck_assert_ptr_eq(lora->modules[0].a, &t.tensors[0]);
	ck_assert_ptr_eq(lora->modules[0].b, &t.tensors[1]);
	peft_free(lora);
}
END_TEST

/* Which of the three layers' seven modules, and the head, PEFT would adapt: bit 7 * layer + module. */
static const struct {
	const char *keys;
	uint32_t modules;
} targets[] = {
	{ "\"target_modules\":[\"q_proj\"]", 0x004081 },
	{ "\"target_modules\":[\"self_attn.q_proj\",\"model.layers.1.mlp.up_proj\"]", 0x005081 },
	{ "\"target_modules\":\"all-linear\"", 0x1fffff },
	{ "\"target_modules\":\"All-Linear\",\"exclude_modules\":[\"q_proj\"]", 0x1fbf7e },
	{ "\"target_modules\":[\"q_proj\",\"lm_head\"]", 0x204081 },
	{ "\"target_modules\":\".*\\\\.(q|k)_proj\"", 0x00c183 },
	{ "\"target_modules\":\"model[.]layers.[12].mlp[^]x]*\"", 0x1c3800 },
	{ "\"target_modules\":\".*_proj\",\"exclude_modules\":\".*mlp.*\"", 0x03c78f },
	{ "\"target_modules\":[\"q_proj\"],\"layers_to_transform\":1", 0x000080 },
	{ "\"target_modules\":[\"q_proj\"],\"layers_to_transform\":[0,2],\"layers_pattern\":\"layers\"", 0x004001 },
	{ "\"target_modules\":[\"q_proj\"],\"layers_to_transform\":[0,2],\"layers_pattern\":[\"h\",\"layers\"]", 0x004001 },
	{ "\"target_modules\":[\"q_proj\",\"model.layers.1.mlp.up_proj\",\"lm_head\"],\"layers_to_transform\":[0]", 0x201001 },
	{ "\"target_modules\":[\"q_proj\"],\"layers_to_transform\":[]", 0x004081 },
};

START_TEST(target_rules)
{
	struct peft_lora *lora = NULL;
	struct table t = { 0 };
	uint32_t got = 0;

	for (uint32_t m = 0; m < 22; ++m)
		if (targets[_i].modules >> m & 1) {
			put(&t, m, 'A', 8);
			put(&t, m, 'B', 8);
		}
	ck_assert_msg(parse(&lora, &t, targets[_i].keys) == 0, "%s", diag.text);
	for (uint32_t i = 0; i < lora->n_modules; ++i)
		got |= 1u << lora->modules[i].module;
	ck_assert_uint_eq(got, targets[_i].modules);
	peft_free(lora);
	--t.st.n_tensors; /* the last B */
	ck_assert_int_eq(parse(&lora, &t, targets[_i].keys), FORMAT_E_INVALID);
	ck_assert_ptr_nonnull(strstr(diag.text, "lora_B.weight': missing"));
}
END_TEST

/* The first key that matches counts, in the file's order; rsLoRA takes the module's own rank. */
START_TEST(patterns)
{
	struct peft_lora *lora = NULL;
	struct table t = { 0 };

	put_pair(&t, 0, KERN_Q, 4);
	put_pair(&t, 1, KERN_Q, 16);
	put_pair(&t, 2, KERN_Q, 8);
	ck_assert_msg(parse(&lora, &t, "\"target_modules\":[\"q_proj\"],\"use_rslora\":true,\"rank_pattern\":{\"layers.0.self_attn."
				       "q_proj\":4,\"1.self_attn.q_proj\":16},\"alpha_pattern\":{\"layers\\\\.[01]\\\\..*\":6,"
				       "\"q_proj\":7.5}") == 0, "%s", diag.text);
	ck_assert_float_eq(lora->modules[0].scale, 3);
	ck_assert_float_eq(lora->modules[1].scale, 1.5f);
	ck_assert_float_eq(lora->modules[2].scale, (float)(7.5 / sqrt(8)));
	peft_free(lora);
	/* "0.self_attn.q_proj" must follow a dot; "0" alone must end the name */
	ck_assert_int_eq(parse(&lora, &t, "\"target_modules\":[\"q_proj\"],\"rank_pattern\":{\"proj\":4}"), FORMAT_E_INVALID);
	ck_assert_ptr_nonnull(strstr(diag.text, "rank 4, but r or rank_pattern says 8"));
}
END_TEST

static const struct {
	const char *keys, *words;
} refused[] = {
	{ "\"use_dora\":true", "use_dora: not supported" },
	{ "\"fan_in_fan_out\":true", "fan_in_fan_out: not supported" },
	{ "\"lora_bias\":true", "lora_bias: not supported" },
	{ "\"bias\":\"all\"", "bias: 'all'" },
	{ "\"modules_to_save\":[\"lm_head\"]", "modules_to_save: not supported" },
	{ "\"trainable_token_indices\":[1]", "trainable_token_indices: not supported" },
	{ "\"target_parameters\":[\"x\"]", "target_parameters: not supported" },
	{ "\"layer_replication\":[[0,2]]", "layer_replication: not supported" },
	{ "\"alora_invocation_tokens\":[5]", "alora_invocation_tokens: not supported" },
	{ "\"some_future_key\":\"on\"", "some_future_key: not supported" },
	{ "\"init_lora_weights\":\"pissa_niter_4\"", "init_lora_weights: 'pissa_niter_4'" },
	{ "\"init_lora_weights\":\"olora\"", "init_lora_weights: 'olora'" },
	{ "\"init_lora_weights\":\"loftq\"", "init_lora_weights: 'loftq'" },
	{ "\"target_modules\":[\"q_proj\"]", "layers.0.self_attn.v_proj.lora_A.weight': target_modules does not name" },
	{ "\"target_modules\":[\"q_proj\",\"v_proj\",\"k_proj\"]", "layers.0.self_attn.k_proj.lora_A.weight': missing" },
	{ "\"target_modules\":[\"q_proj\",\"v_proj\",\"embed_tokens\"]", "names embed_tokens" },
	{ "\"target_modules\":\"(?x).*\"", "target_modules: '(?x).*': not supported at" },
	{ "\"target_modules\":\"[[:alpha:]]*\"", "not supported at '[:alpha:]" },
	{ "\"target_modules\":\"(a)\\\\1\"", "not supported at '\\1'" },
	{ "\"target_modules\":\"(\"", "target_modules: '(':" },
	{ "\"target_modules\":7", "target_modules: neither" },
	{ "\"target_modules\":\"all-linear\",\"layers_to_transform\":[1]", "layers_to_transform: given" },
	{ "\"layers_pattern\":\"layers\"", "layers_pattern: given without" },
	{ "\"rank_pattern\":{\"q_proj\":\"x\"}", "rank_pattern: 'q_proj' is no number" },
	{ "\"alpha_pattern\":{\"q_proj\":1e300}", "a scale of" },
	{ "\"use_rslora\":\"yes\"", "use_rslora: neither" },
	{ "\"exclude_modules\":\"(([a-z]*[._a-z0-9]*)*)*[A-Z]\"", "exclude_modules: matching takes too long" },
};

START_TEST(refused_by_name)
{
	struct peft_lora *lora = NULL;
	struct table t;

	put_qv(&t);
	ck_assert_int_eq(parse(&lora, &t, refused[_i].keys), FORMAT_E_INVALID);
	ck_assert_msg(strstr(diag.text, refused[_i].words) != NULL, "'%s' does not say '%s'", diag.text, refused[_i].words);
}
END_TEST

/* Keys that are there but off, and those that say nothing about what the adapter computes. */
START_TEST(harmless_keys)
{
	struct peft_lora *lora = NULL;
	struct table t;

	put_qv(&t);
	ck_assert_msg(parse(&lora, &t, "\"use_dora\":false,\"modules_to_save\":null,\"future\":{},\"bias\":\"none\",\"megatron_core\":"
				       "\"megatron.core\",\"qalora_group_size\":16,\"init_lora_weights\":\"gaussian\",\"lora_dropout\":0.1,"
				       "\"fan_in_fan_out\":false,\"task_type\":\"CAUSAL_LM\"") == 0, "%s", diag.text);
	peft_free(lora);
}
END_TEST

static void refused_table(const struct table *t, const char *words)
{
	struct peft_lora *lora = NULL;

	ck_assert_int_eq(parse(&lora, t, ""), FORMAT_E_INVALID);
	ck_assert_msg(strstr(diag.text, words) != NULL, "'%s' does not say '%s'", diag.text, words);
}

START_TEST(tensors_refused)
{
	static const char *const strangers[] = {
		"base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", "base_model.model.lm_head.weight",
		"base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight", "model.layers.0.self_attn.q_proj.lora_A.weight",
		"base_model.model.model.layers.00.self_attn.q_proj.lora_A.weight",
		"base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
		"base_model.model.model.layers.0.mlp.q_proj.lora_A.weight", "", "base_model.model.model.layers.0.",
	};
	struct table t;

	for (size_t i = 0; i < sizeof(strangers) / sizeof(*strangers); ++i) {
		put_qv(&t);
		t.tensors[0].name = strangers[i];
		refused_table(&t, "not the lora_A or lora_B");
	}
	put_qv(&t);
	t.tensors[0].name = "base_model.model.lm_head.base_layer.weight";
	refused_table(&t, "save_embedding_layers=False");
	put_qv(&t);
	t.tensors[2].shape[1] = 63;
	refused_table(&t, "v_proj.lora_A.weight': shape 8 x 63, not rank x 64");
	put_qv(&t);
	t.tensors[3].shape[1] = 7;
	refused_table(&t, "v_proj.lora_B.weight': shape 32 x 7, not 32 x 8");
	put_qv(&t);
	t.tensors[3].dtype = KERN_F16;
	refused_table(&t, "v_proj.lora_A.weight': dtype F32, but");
	put_qv(&t);
	t.tensors[3].dtype = _KERN_DTYPE_N;
	t.tensors[3].dtype_name = "I8";
	refused_table(&t, "dtype I8 is not supported");
	put_qv(&t);
	t.tensors[0].shape[0] = t.tensors[1].shape[1] = 4;
	refused_table(&t, "q_proj.lora_A.weight': rank 4, but r or rank_pattern says 8");
	t = (struct table){ 0 };
	refused_table(&t, "missing");
}
END_TEST

static bool read_config(const void *bytes, size_t n, void *userdata)
{
	const struct table *t = userdata;
	struct peft_lora *lora = NULL;
	int r = peft_parse(&lora, bytes, n, &t->st, &geometry, &diag);

	peft_free(lora);
	return r == 0;
}

START_TEST(damage_anywhere)
{
	static const char good[] = "{\"peft_type\":\"LORA\",\"r\":8,\"lora_alpha\":16,\"target_modules\":\".*\\\\.(q|v)_proj\","
				   "\"rank_pattern\":{\"[qk]_proj\":8},\"alpha_pattern\":{\"layers\\\\.\\\\d+\\\\.x\":2}}";
	struct table t;

	put_qv(&t);
	ck_assert_msg(mutate_try(read_config, good, strlen(good), &t), "%s", diag.text);
	ck_assert_uint_eq(mutate_truncate(read_config, good, strlen(good), &t), 0);
	ck_assert_uint_lt(mutate_flip(read_config, good, strlen(good), 10000, &t), 10000);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("format-peft");
	TCase *tests = tcase_create("peft");

	tcase_set_timeout(tests, 60);
	tcase_add_test(tests, names);
	tcase_add_test(tests, default_targets);
	tcase_add_loop_test(tests, target_rules, 0, sizeof(targets) / sizeof(*targets));
	tcase_add_test(tests, patterns);
	tcase_add_loop_test(tests, refused_by_name, 0, sizeof(refused) / sizeof(*refused));
	tcase_add_test(tests, harmless_keys);
	tcase_add_test(tests, tensors_refused);
	tcase_add_test(tests, damage_anywhere);
	suite_add_tcase(suite, tests);
	return run_suite(suite);
}
