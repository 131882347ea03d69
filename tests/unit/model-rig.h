/* SPDX-License-Identifier: MIT */
/* A model ready to compute, for tests: backend, team, pool, KV cache and step in one. See model-rig.c. */
#ifndef LORAD_TESTS_MODEL_RIG_H
#define LORAD_TESTS_MODEL_RIG_H

#include "daemon/base/cleanup.h"
#include "daemon/model/kv.h"
#include "daemon/model/model.h"
#include "daemon/model/step.h"
#include "daemon/os/mem.h"
#include "daemon/os/team.h"

#define RIG_ROWS 512
#define RIG_SEQS 32

struct rig {
	const struct kern_backend *backend;
	struct kern_device *device;
	struct team *team;
	struct model *model;
	struct mem_region region;
	struct pool *pool;
	struct kv *kv;
	struct step *step;
};

/* An adapter read from a PEFT folder, as the step wants it. */
struct rig_lora {
	struct step_lora lora;
	void *payload;
};

struct rig *rig_new(const char *path, enum model_precision precision, const struct kern_backend *backend, unsigned n_threads);
/* With keys and values of that type; _KERN_DTYPE_N: what suits the precision. */
struct rig *rig_new_kv(const char *path, enum model_precision precision, enum kern_dtype kv_type,
		       const struct kern_backend *backend, unsigned n_threads);
struct rig *rig_free(struct rig *rig);
DEFINE_CLEANUP(struct rig *, rig_free)

/* Log-probability of each token given those before it (the first: 0), prefilled in pieces of `chunk` tokens. */
void rig_score(struct rig *rig, const uint32_t *tokens, uint32_t n, const struct step_adapter *adapters, uint32_t n_adapters,
	       uint32_t chunk, float *ret);

/* The greedy choice after a prompt and after each of the tokens that follow it, forced or (NULL) as chosen. */
void rig_greedy(struct rig *rig, const uint32_t *prompt, uint32_t n_prompt, const struct step_adapter *adapters,
		uint32_t n_adapters, const uint32_t *forced, uint32_t n_new, struct kern_result *ret);

struct step_seq rig_seq(const uint32_t *tokens, uint32_t n, uint32_t position, struct kv_seq *kv, struct kern_result *result);

/* model-peft.c */
void rig_lora_open(struct rig_lora *ret, const struct image_geometry *geometry, const char *folder, bool packed);
void rig_lora_close(struct rig_lora *lora);

#endif
