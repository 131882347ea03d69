/* SPDX-License-Identifier: MIT */
/*
 * A tiny random model
 *
 * Two layers, four heads over two KV heads, a vocabulary of 128: everything the step has to handle, in a folder of half a
 * megabyte that a test makes for itself. Numbers come from a xorshift generator, so that runs are repeatable.
 */
#include "tests/unit/model-tiny.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/base/cleanup.h"
#include "daemon/format/safetensors.h"
#include "daemon/model/model.h"

static const struct image_geometry geometry = {
	.n_layers = 2,
	.hidden = 64,
	.intermediate = 96,
	.n_heads = 4,
	.n_kv_heads = 2,
	.head_dim = 16,
	.vocab = 128,
};

static const char *const files[] = {
	"config.json", "tokenizer.json", "model.safetensors", "model-0.safetensors", "model-1.safetensors",
	"model.safetensors.index.json", "generation_config.json",
};

static float uniform(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return (float)((int64_t)(*state >> 40) - (1 << 23)) / (float)(1 << 23);
}

static void add(struct tiny *t, uint64_t *state, const char *name, uint32_t rows, uint32_t cols)
{
	struct tiny_tensor *tensor = &t->tensors[t->n_tensors++];
	size_t n = (size_t)(rows ? rows : 1) * cols;

	ck_assert_uint_le(t->n_tensors, TINY_TENSORS_MAX);
	*tensor = (struct tiny_tensor){ .rows = rows, .cols = cols, .data = malloc(n * sizeof(float)) };
	(void)snprintf(tensor->name, sizeof(tensor->name), "%s", name);
	for (size_t i = 0; i < n; ++i)
		tensor->data[i] = rows ? 2 * uniform(state) / sqrtf((float)cols) : 1 + uniform(state) / 4;
}

static void add_layer(struct tiny *t, uint64_t *state, uint32_t layer)
{
	static const char *const names[_KERN_MODULE_N] = {
		"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
		"mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj",
	};

	for (uint32_t i = 0; i < _KERN_MODULE_N; ++i) {
		char name[64];
		uint32_t in, out;

		model_module_shape(&t->geometry, kern_module(layer, i), &in, &out);
		(void)snprintf(name, sizeof(name), "model.layers.%u.%s.weight", layer, names[i]);
		add(t, state, name, out, in);
	}
}

void tiny_init(struct tiny *t, bool tied)
{
	uint64_t state = 88172645463325252ull;

	*t = (struct tiny){ .geometry = geometry, .tied = tied };
	for (uint32_t l = 0; l < geometry.n_layers; ++l)
		add_layer(t, &state, l);
	add(t, &state, "lm_head.weight", geometry.vocab, geometry.hidden);
	add(t, &state, "model.embed_tokens.weight", geometry.vocab, geometry.hidden);
	add(t, &state, "model.norm.weight", 0, geometry.hidden);
	for (uint32_t l = 0; l < geometry.n_layers; ++l) {
		char name[64];

		(void)snprintf(name, sizeof(name), "model.layers.%u.input_layernorm.weight", l);
		add(t, &state, name, 0, geometry.hidden);
		(void)snprintf(name, sizeof(name), "model.layers.%u.post_attention_layernorm.weight", l);
		add(t, &state, name, 0, geometry.hidden);
	}
	(void)snprintf(t->folder, sizeof(t->folder), "/tmp/lorad-tiny-XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(t->folder));
}

void tiny_deinit(struct tiny *t)
{
	char path[128];

	for (size_t i = 0; i < sizeof(files) / sizeof(*files); ++i) {
		(void)snprintf(path, sizeof(path), "%s/%s", t->folder, files[i]);
		(void)unlink(path);
	}
	(void)rmdir(t->folder);
	for (uint32_t i = 0; i < t->n_tensors; ++i)
		free(t->tensors[i].data);
}

struct tiny_tensor *tiny_find(struct tiny *t, const char *name)
{
	for (uint32_t i = 0; i < t->n_tensors; ++i)
		if (!strcmp(t->tensors[i].name, name))
			return &t->tensors[i];
	ck_abort_msg("no tensor %s", name);
}

/* ---- the folder ---- */

static FILE *create(const struct tiny *t, const char *name)
{
	char path[128];
	FILE *file;

	(void)snprintf(path, sizeof(path), "%s/%s", t->folder, name);
	file = fopen(path, "we");
	ck_assert_ptr_nonnull(file);
	return file;
}

void tiny_write_text(const struct tiny *t, const char *name, const char *text)
{
	_cleanup_(fclosep) FILE *file = create(t, name);

	ck_assert_int_ge(fputs(text, file), 0);
}

/* The tensors whose number is `shard` modulo n_shards; a tied head is not stored. */
static void write_tensors(const struct tiny *t, const char *name, uint32_t shard, uint32_t n_shards)
{
	struct safetensors_tensor st[TINY_TENSORS_MAX] = { 0 };
	const float *data[TINY_TENSORS_MAX];
	_cleanup_(fclosep) FILE *file = create(t, name);
	_cleanup_free_ char *header = NULL;
	size_t n = 0, header_bytes = 0;

	for (uint32_t i = shard; i < t->n_tensors; i += n_shards) {
		const struct tiny_tensor *from = &t->tensors[i];

		if (t->tied && !strcmp(from->name, "lm_head.weight"))
			continue;
		data[n] = from->data;
		st[n] = (struct safetensors_tensor){
			.name = from->name, .dtype_name = "F32", .dtype = KERN_F32, .n_dims = from->rows ? 2 : 1,
			.shape = { from->rows ? from->rows : from->cols, from->rows ? from->cols : 1 },
			.bytes = (uint64_t)(from->rows ? from->rows : 1) * from->cols * sizeof(float),
		};
		++n;
	}
	ck_assert_int_eq(safetensors_write_header(st, n, &header, &header_bytes), 0);
	ck_assert_uint_eq(fwrite(header, 1, header_bytes, file), header_bytes);
	for (size_t i = 0; i < n; ++i)
		ck_assert_uint_eq(fwrite(data[i], 1, st[i].bytes, file), st[i].bytes);
}

static void write_index(const struct tiny *t, uint32_t n_shards)
{
	_cleanup_(fclosep) FILE *file = create(t, "model.safetensors.index.json");
	const char *comma = "";

	(void)fputs("{\"metadata\":{},\"weight_map\":{", file);
	for (uint32_t i = 0; i < t->n_tensors; ++i) {
		if (t->tied && !strcmp(t->tensors[i].name, "lm_head.weight"))
			continue;
		(void)fprintf(file, "%s\"%s\":\"model-%u.safetensors\"", comma, t->tensors[i].name, i % n_shards);
		comma = ",";
	}
	(void)fputs("}}", file);
}

void tiny_write(struct tiny *t, uint32_t n_shards)
{
	const struct image_geometry *g = &t->geometry;
	char text[1024];

	ck_assert_uint_le(n_shards, 2);
	(void)snprintf(text, sizeof(text),
		       "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_size\":%u,"
		       "\"intermediate_size\":%u,\"num_hidden_layers\":%u,\"num_attention_heads\":%u,"
		       "\"num_key_value_heads\":%u,\"head_dim\":%u,\"vocab_size\":%u,\"max_position_embeddings\":512,"
		       "\"rms_norm_eps\":1e-5,\"rope_theta\":10000.0,\"tie_word_embeddings\":%s,\"hidden_act\":\"silu\","
		       "\"bos_token_id\":1,\"eos_token_id\":2}",
		       g->hidden, g->intermediate, g->n_layers, g->n_heads, g->n_kv_heads, g->head_dim, g->vocab,
		       t->tied ? "true" : "false");
	tiny_write_text(t, "config.json", text);
	tiny_write_text(t, "tokenizer.json",
			"{\"version\":\"1.0\",\"added_tokens\":[],\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"ByteLevel\","
			"\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":true},\"post_processor\":null,"
			"\"decoder\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true},"
			"\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}}");
	if (n_shards == 1) {
		write_tensors(t, "model.safetensors", 0, 1);
		return;
	}
	for (uint32_t i = 0; i < n_shards; ++i)
		write_tensors(t, i ? "model-1.safetensors" : "model-0.safetensors", i, n_shards);
	write_index(t, n_shards);
}

/* ---- adapters ---- */

void tiny_lora_init(struct tiny_lora *lora, const struct tiny *t, uint32_t seed, uint32_t max_rank)
{
	uint32_t head = t->geometry.n_layers * _KERN_MODULE_N;
	uint64_t state = 0x9e3779b97f4a7c15ull * (seed + 1), bytes = 0;

	*lora = (struct tiny_lora){ 0 };
	for (uint32_t module = 0; module <= head; ++module) {
		struct image_module *m = &lora->modules[lora->n_modules];

		if ((seed + module) % 3 == 2)
			continue;
		*m = (struct image_module){ .module = module, .dtype = KERN_F32, .scale = 0.25f + 0.125f * (float)(module % 4) };
		m->rank = (uint16_t)(1 + (seed * 7 + module * 5) % max_rank);
		model_module_shape(&t->geometry, module, &m->in, &m->out);
		m->a_offset = bytes;
		m->b_offset = m->a_offset + m->rank * kern_lora_stride(KERN_F32, m->in);
		bytes = m->b_offset + m->rank * kern_lora_stride(KERN_F32, m->out);
		++lora->n_modules;
	}
	lora->payload = aligned_alloc(64, bytes);
	for (uint64_t i = 0; i < bytes / sizeof(float); ++i)
		((float *)(void *)lora->payload)[i] = uniform(&state) / 3;
	ck_assert_int_eq(step_lora_init(&lora->lora, &t->geometry, lora->modules, lora->n_modules, lora->payload), 0);
}

void tiny_lora_deinit(struct tiny_lora *lora)
{
	step_lora_deinit(&lora->lora);
	free(lora->payload);
}

static const float *row_of(const struct tiny_lora *lora, uint64_t offset, uint32_t width, uint32_t row)
{
	return (const float *)(const void *)(lora->payload + offset + row * kern_lora_stride(KERN_F32, width));
}

void tiny_merge(struct tiny *t, const struct tiny_lora *lora, float scale)
{
	for (uint32_t i = 0; i < lora->n_modules; ++i) {
		const struct image_module *m = &lora->modules[i];
		struct tiny_tensor *w = &t->tensors[m->module];

		for (uint32_t r = 0; r < m->rank; ++r)
			for (uint32_t o = 0; o < m->out; ++o)
				for (uint32_t j = 0; j < m->in; ++j)
					w->data[(size_t)o * m->in + j] += scale * m->scale * row_of(lora, m->b_offset, m->out, r)[o] *
									  row_of(lora, m->a_offset, m->in, r)[j];
	}
}
