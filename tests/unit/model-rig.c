/* SPDX-License-Identifier: MIT */
/*
 * A model ready to compute
 *
 * What the daemon's wiring does in several places, here in one: used by the tests of the step and by the profile. Errors
 * end the test.
 */
#include "tests/unit/model-rig.h"

#include <check.h>
#include <stdlib.h>

#define POOL_BYTES ((size_t)512 << 20)

struct rig *rig_new(const char *path, enum model_precision precision, const struct kern_backend *backend, unsigned n_threads)
{
	return rig_new_kv(path, precision, _KERN_DTYPE_N, backend, n_threads);
}

struct rig *rig_new_kv(const char *path, enum model_precision precision, enum kern_dtype kv_type,
		       const struct kern_backend *backend, unsigned n_threads)
{
	struct rig *rig = calloc(1, sizeof(*rig));
	struct model_options options = { .path = path, .precision = precision, .backend = backend };
	struct step_limits limits = { .rows = RIG_ROWS, .seqs = RIG_SEQS };
	const struct image_geometry *g;
	struct kv_shape shape;
	struct diag diag = { "" };

	ck_assert_ptr_nonnull(rig);
	rig->backend = backend;
	rig->region = (struct mem_region)MEM_REGION_NULL;
	ck_assert_int_eq(backend->device->open(&rig->device, 0, NULL), 0);
	ck_assert_int_eq(team_new(&rig->team, n_threads), 0);
	options.device = rig->device;
	options.team = rig->team;
	ck_assert_msg(model_open(&rig->model, &options, &diag) == MODEL_OK, "%s", diag.text);
	g = &model_config(rig->model)->geometry;
	shape = (struct kv_shape){
		.n_layers = g->n_layers,
		.n_kv_heads = g->n_kv_heads,
		.head_dim = g->head_dim,
		.dtype = kv_type != _KERN_DTYPE_N				     ? kv_type :
			 model_precision(rig->model) == KERN_PRECISION_F32 ? KERN_F32 :
									     KERN_BF16,
	};
	ck_assert_int_eq(mem_region_init(&rig->region, "rig", POOL_BYTES), 0);
	ck_assert_int_eq(pool_new(&rig->pool, rig->region.base, rig->region.bytes), 0);
	ck_assert_int_eq(kv_new(&rig->kv, rig->pool, &shape), 0);
	ck_assert_int_eq(step_new(&rig->step, &(struct step_options){
						      .model = rig->model,
						      .backend = backend,
						      .device = rig->device,
						      .team = rig->team,
						      .kv = kv_layout(rig->kv),
						      .limits = limits,
					      }),
			 0);
	return rig;
}

struct rig *rig_free(struct rig *rig)
{
	if (!rig)
		return NULL;
	step_free(rig->step);
	kv_free(rig->kv);
	pool_free(rig->pool);
	mem_region_deinit(&rig->region);
	model_free(rig->model);
	team_free(rig->team);
	if (rig->device)
		rig->backend->device->close(rig->device);
	free(rig);
	return NULL;
}

struct step_seq rig_seq(const uint32_t *tokens, uint32_t n, uint32_t position, struct kv_seq *kv, struct kern_result *result)
{
	return (struct step_seq){
		.token = tokens,
		.n_tokens = n,
		.position = position,
		.kv = kv,
		.output = STEP_OUTPUT_LAST,
		.sampling = { .top_p = 1, .repetition_penalty = 1, .target = -1 },
		.result = result,
	};
}

void rig_score(struct rig *rig, const uint32_t *tokens, uint32_t n, const struct step_adapter *adapters, uint32_t n_adapters,
	       uint32_t chunk, float *ret)
{
	struct kern_result *result = calloc(n, sizeof(*result));
	struct kv_seq kv = KV_SEQ_NULL;

	ret[0] = 0;
	ck_assert_int_eq(kv_reserve(rig->kv, &kv, n), KV_OK);
	for (uint32_t at = 0, m; at < n; at += m) {
		struct step_seq seq;

		m = n - at < chunk ? n - at : chunk;
		seq = rig_seq(tokens + at, m, at, &kv, result);
		seq.output = STEP_OUTPUT_ALL;
		seq.adapter = adapters;
		seq.n_adapters = n_adapters;
		seq.sampling.target = at + m < n ? (int32_t)tokens[at + m] : -1;
		ck_assert_int_eq(step_run(rig->step, &seq, 1), 0);
		for (uint32_t i = 0; i < m && at + i + 1 < n; ++i) {
			ck_assert_uint_eq(result[i].token, tokens[at + i + 1]);
			ret[at + i + 1] = result[i].logprob;
		}
	}
	kv_drop(rig->kv, &kv);
	free(result);
}

void rig_greedy(struct rig *rig, const uint32_t *prompt, uint32_t n_prompt, const struct step_adapter *adapters,
		uint32_t n_adapters, const uint32_t *forced, uint32_t n_new, struct kern_result *ret)
{
	struct kv_seq kv = KV_SEQ_NULL;
	uint32_t position = 0;

	for (uint32_t i = 0; i < n_new; ++i) {
		const uint32_t *next = i == 0 ? prompt : forced ? &forced[i - 1] : &ret[i - 1].token;
		uint32_t n = i ? 1 : n_prompt;
		struct step_seq seq = rig_seq(next, n, position, &kv, &ret[i]);

		seq.adapter = adapters;
		seq.n_adapters = n_adapters;
		position += n;
		ck_assert_int_eq(kv_reserve(rig->kv, &kv, position), KV_OK);
		ck_assert_int_eq(step_run(rig->step, &seq, 1), 0);
	}
	kv_drop(rig->kv, &kv);
}
