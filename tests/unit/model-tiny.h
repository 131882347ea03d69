/* SPDX-License-Identifier: MIT */
/* A tiny random Llama model, written as a Hugging Face folder; and random adapters for it. See model-tiny.c. */
#ifndef LORAD_TESTS_MODEL_TINY_H
#define LORAD_TESTS_MODEL_TINY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/model/step.h"

#define TINY_TENSORS_MAX 32

struct tiny_tensor {
	char name[64];
	uint32_t rows, cols; /* a vector: rows 0 */
	float *data;
};

struct tiny {
	struct image_geometry geometry;
	bool tied;
	struct tiny_tensor tensors[TINY_TENSORS_MAX]; /* modules by number, then embedding and norms */
	uint32_t n_tensors;
	char folder[64];
};

struct tiny_lora {
	struct step_lora lora;
	struct image_module modules[16];
	uint32_t n_modules;
	uint8_t *payload;
};

void tiny_init(struct tiny *tiny, bool tied); /* two layers, all tensors random, not yet written */
void tiny_deinit(struct tiny *tiny);          /* removes the folder, too */
void tiny_write(struct tiny *tiny, uint32_t n_shards);
void tiny_write_text(const struct tiny *tiny, const char *name, const char *text);
struct tiny_tensor *tiny_find(struct tiny *tiny, const char *name);

/* A random adapter: F32, the rank of each module between 1 and max_rank, some modules left out. */
void tiny_lora_init(struct tiny_lora *lora, const struct tiny *tiny, uint32_t seed, uint32_t max_rank);
void tiny_lora_deinit(struct tiny_lora *lora);
void tiny_merge(struct tiny *tiny, const struct tiny_lora *lora, float scale); /* W += scale * B A */

#endif
