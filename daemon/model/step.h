/* SPDX-License-Identifier: MIT */
/* One forward step of a mixed batch: prefill chunks and decodes of unlike adapters together. See step.c. */
#ifndef LORAD_MODEL_STEP_H
#define LORAD_MODEL_STEP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/base/cleanup.h"
#include "daemon/model/kv.h"
#include "daemon/model/model.h"

#define STEP_ADAPTERS_MAX 8 /* of one request's weighted sum */
#define STEP_RANK_MAX 4096  /* of an adapter's module */

struct step;

/* A resident adapter as the step sees it: one kern_lora per module number (n_layers * 7 + 1). See lora.c. */
struct step_lora {
	struct kern_lora *modules;          /* host; matrices at device addresses */
	const struct kern_lora *on_device;  /* the same table where the ops read it; on a CPU the same memory */
	uint32_t n_modules;
	uint32_t max_rank;
};

struct step_adapter {
	const struct step_lora *lora;
	float scale;
};

enum step_output {
	STEP_OUTPUT_NONE,  /* a prefill chunk that is not the last */
	STEP_OUTPUT_LAST,  /* draw the token that follows the last row */
	STEP_OUTPUT_ALL,   /* score: a result for every row, target = the next token; the last one's is given apart */
};

/* One request's share of a step. Filled by the scheduler; results are written into it. */
struct step_seq {
	const uint32_t *token;    /* [n_tokens] */
	uint32_t n_tokens;
	uint32_t position;        /* of token[0] */
	struct kv_seq *kv;        /* reserved for position + n_tokens */
	const void *copy_from;    /* a block that is copied into the one that holds `position` before anything else; or NULL */
	const struct step_adapter *adapter; /* ordered list: requests with equal lists share segments */
	uint32_t n_adapters;
	enum step_output output;
	struct kern_sampling sampling; /* for LAST; for ALL: n_top and the last row's target (-1: no result for it) */
	struct kern_result *result; /* room for one (LAST) or n_tokens (ALL); the caller's */
};

struct step_limits {
	uint32_t rows, seqs;      /* most of one step */
};

/* What the last step was, for metrics: adapters > 1 is the proof that unlike adapters share steps. */
struct step_stats {
	uint32_t rows, seqs, adapters, outputs;
};

struct step_options {             /* all outlive the step */
	const struct model *model;
	const struct kern_backend *backend;
	struct kern_device *device;
	struct team *team;        /* not used by a queued backend */
	const struct kern_kv_layout *kv;
	struct step_limits limits;
	bool records;             /* steps of decodes are recorded and replayed, where the backend can */
};

int step_new(struct step **ret, const struct step_options *options);
struct step *step_free(struct step *step);
int step_run(struct step *step, struct step_seq *seqs, uint32_t n_seqs);
const struct step_stats *step_last(const struct step *step);
void step_failure(const struct step *step, struct kern_failure *ret); /* of the device; code 0: it goes on */

/* lora.c: a checked payload in device memory -> modules. The payload must stay where it is while in use. */
int step_lora_init(struct step_lora *lora, const struct image_geometry *geometry, const struct image_module *modules,
		   uint32_t n_modules, const void *payload);
void step_lora_place(struct step_lora *lora, void *host, const void *device); /* copy the table; it will be read at device */
size_t step_lora_table_bytes(const struct image_geometry *geometry);
void step_lora_deinit(struct step_lora *lora);

DEFINE_CLEANUP(struct step *, step_free)

#endif
