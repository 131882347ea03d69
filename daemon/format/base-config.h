/* SPDX-License-Identifier: MIT */
/* What a base model is: shape, norms, rope, end-of-sequence ids; from config.json or GGUF metadata. See base-config.c. */
#ifndef LORAD_FORMAT_BASE_CONFIG_H
#define LORAD_FORMAT_BASE_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/format/format.h"
#include "daemon/format/gguf.h"
#include "daemon/format/image.h"

#define BASE_STOPS_MAX 16
#define BASE_HEAD_DIM_MAX 1024u

enum base_rope {
	BASE_ROPE_DEFAULT,
	BASE_ROPE_LINEAR,  /* all frequencies divided by factor */
	BASE_ROPE_LLAMA3,  /* low frequencies divided, with a smooth passage */
	BASE_ROPE_FACTORS, /* a GGUF file's own divisor per frequency */
};

struct base_config {
	struct image_geometry geometry;
	uint32_t context;          /* positions the model was made for */
	double norm_eps;
	bool tied;                 /* output head = embedding */
	double rope_theta;
	enum base_rope rope;
	double rope_factor, rope_low, rope_high; /* LINEAR: factor; LLAMA3: all, with the original context */
	uint32_t rope_context;
	const void *rope_factors;  /* FACTORS: [head_dim / 2] f32, unaligned, in the GGUF file's bytes */
	uint32_t stop[BASE_STOPS_MAX]; /* every end-of-sequence id, each once */
	uint32_t n_stops;
	char name[128];            /* "" where the source has none */
};

/* A Hugging Face folder: config.json, then generation_config.json where there is one (adds end-of-sequence ids). */
int base_config_from_json(struct base_config *ret, const char *text, size_t bytes, struct diag *diag);
int base_config_add_generation(struct base_config *config, const char *text, size_t bytes, struct diag *diag);

int base_config_from_gguf(struct base_config *ret, const struct gguf *gguf, struct diag *diag);

/* inv_freq[i], i < head_dim / 2: radians by which pair i turns per position. */
void base_config_inv_freq(const struct base_config *config, float *inv_freq);

/* For the two readers: checks what both must fulfil; adds a stop id. */
int base_config_check(const struct base_config *config, struct diag *diag);
int base_config_add_stop(struct base_config *config, uint32_t id, struct diag *diag);

#endif
