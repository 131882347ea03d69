/* SPDX-License-Identifier: MIT */
/* A PEFT adapter's configuration and tensors -> a checked list of LoRA modules. See peft.c. */
#ifndef LORAD_FORMAT_PEFT_H
#define LORAD_FORMAT_PEFT_H

#include <stdint.h>

#include "daemon/base/cleanup.h"
#include "daemon/format/format.h"
#include "daemon/format/image.h"
#include "daemon/format/safetensors.h"

#define PEFT_CONFIG_MAX (1u << 20)
#define PEFT_RANK_MAX 4096u
#define PEFT_NAME_MAX 128

struct peft_module {
	uint32_t module;                  /* kern_module(layer, m); n_layers * 7: the output head */
	uint32_t rank;
	enum kern_dtype dtype;            /* of both tensors */
	float scale;
	const struct safetensors_tensor *a, *b; /* [rank][in], [out][rank]; the caller's */
};

struct peft_lora {
	struct peft_module *modules;      /* by module number */
	uint32_t n_modules, max_rank;
};

/* config: adapter_config.json. tensors must outlive the result. */
int peft_parse(struct peft_lora **ret, const char *config, size_t config_bytes, const struct safetensors *tensors,
	       const struct image_geometry *geometry, struct diag *diag);
struct peft_lora *peft_free(struct peft_lora *lora);
DEFINE_CLEANUP(struct peft_lora *, peft_free)

/* The name PEFT gives a module's tensor; which: 'A' or 'B'. */
void peft_tensor_name(const struct image_geometry *geometry, uint32_t module, char which, char name[PEFT_NAME_MAX]);

#endif
