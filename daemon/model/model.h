/* SPDX-License-Identifier: MIT */
/* The resident base model: configuration, prepared weights, tokenizer. See model.c. */
#ifndef LORAD_MODEL_MODEL_H
#define LORAD_MODEL_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/base/cleanup.h"
#include "daemon/base/error.h"
#include "daemon/format/image.h"
#include "daemon/model/tokenizer.h"
#include "kernels/kernels.h"

struct model;
struct team;

enum model_result { MODEL_OK, MODEL_E_INVALID };
enum model_precision { MODEL_AUTO, MODEL_F32, MODEL_BF16, MODEL_INT8 };

#define MODEL_STOPS_MAX 16

struct model_config {
	struct image_geometry geometry;
	uint32_t context;                 /* most tokens of one request */
	float norm_eps;
	float *inv_freq;                  /* [head_dim / 2], rope scaling applied */
	bool tied;                        /* output head = embedding */
	uint32_t stop[MODEL_STOPS_MAX];   /* every end-of-sequence id */
	uint32_t n_stops;
	enum chat_template chat;
	char name[128];
};

struct model_options {
	const char *path;                 /* a GGUF file or a Hugging Face folder */
	enum model_precision precision;
	uint32_t context;                 /* 0: the model's own */
	const struct kern_backend *backend;
	struct kern_device *device;
	struct team *team;
	void (*progress)(void *userdata, double fraction); /* of loading; or NULL */
	void *userdata;
};

struct model_layer {
	float *attn_norm, *ffn_norm;      /* [d] */
	struct kern_weight w[_KERN_MODULE_N];
};

struct model_weights {
	struct kern_weight embed;         /* v x d */
	struct kern_weight head;          /* v x d; the same as embed if tied */
	float *norm;                      /* [d] */
	struct model_layer *layer;        /* [n_layers] */
};

int model_open(struct model **ret, const struct model_options *options, struct diag *diag);
struct model *model_free(struct model *model);
const struct model_config *model_config(const struct model *model);
const struct model_weights *model_weights(const struct model *model);
const struct tokenizer *model_tokenizer(const struct model *model);
enum kern_precision model_precision(const struct model *model); /* what auto came to */
uint64_t model_weight_bytes(const struct model *model);         /* device bytes the weights take */

/* Input and output width of a module number (kern_module(), or the output head); 0 if there is no such module. */
void model_module_shape(const struct image_geometry *geometry, uint32_t module, uint32_t *ret_in, uint32_t *ret_out);

DEFINE_CLEANUP(struct model *, model_free)

#endif
