/* SPDX-License-Identifier: MIT */
/* A base model on disk, whatever its container: configuration, named tensors, vocabulary. See source.c. */
#ifndef LORAD_MODEL_SOURCE_H
#define LORAD_MODEL_SOURCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/base/cleanup.h"
#include "daemon/base/error.h"
#include "daemon/format/base-config.h"
#include "kernels/kernels.h"

struct vocab;

enum source_result { SOURCE_OK, SOURCE_E_INVALID, SOURCE_E_MISSING };

enum source_kind { /* the tensors of a Llama model; those from SOURCE_ATTN_NORM on are there once per layer */
	SOURCE_EMBED,
	SOURCE_HEAD,
	SOURCE_NORM,
	SOURCE_ATTN_NORM,
	SOURCE_FFN_NORM,
	SOURCE_MODULE, /* SOURCE_MODULE + enum kern_module */
	_SOURCE_KIND_N = SOURCE_MODULE + _KERN_MODULE_N,
};

/* How a container spells tensor names: of a layer: prefix, number, suffix; else the suffix alone. */
struct source_names {
	const char *layer_prefix;
	const char *suffix[_SOURCE_KIND_N];
	const char *const *ignored; /* suffixes of tensors that carry nothing we need; NULL at the end */
};

struct source_tensor {
	const char *name;
	enum kern_dtype dtype;      /* _KERN_DTYPE_N: one we do not know */
	const char *dtype_name;     /* for the diag then */
	bool used;
	uint64_t rows, cols;        /* a vector: rows 1 */
	uint32_t n_dims;
	const void *data;
};

struct source_file {
	uint8_t *bytes;             /* mapped */
	size_t n;
	int fd;                     /* open while bytes is mapped: the same file, whatever its name comes to mean */
	char *name;                 /* without the folder, for words */
};

struct source {
	const struct source_names *names;
	uint32_t permuted_head;     /* of q and k: see struct kern_matrix */
	struct base_config config;
	struct vocab *vocab;        /* with the chat template; whoever takes it sets NULL */
	struct source_tensor *tensors; /* by name */
	size_t n_tensors;
	struct source_file *files;
	size_t n_files;
	void **parsed;              /* views of the files' headers; they keep the names */
	void (*free_parsed)(void *parsed);
};

int source_open(struct source **ret, const char *path, struct diag *diag);
struct source *source_free(struct source *source);
DEFINE_CLEANUP(struct source *, source_free)

/* The tensor of this kind and layer. m: rows and cols are what it must have, the rest is filled. */
int source_matrix(struct source *source, enum source_kind kind, uint32_t layer, struct kern_matrix *m, struct diag *diag);
const char *source_unused(const struct source *source); /* a tensor nobody asked for, or NULL */
void source_prefetch(const struct kern_matrix *m);      /* about to be read */
void source_drop(const struct kern_matrix *m);          /* will not be read again */
const char *source_name(const struct source *source, const void *data); /* of the tensor whose data that is */
/* Where a tensor's data lies on disk: number of the file, and the offset in it. */
size_t source_locate(const struct source *source, const void *data, uint64_t *ret_offset);

/* For the loaders. */
int source_open_gguf(struct source *source, const char *path, struct diag *diag);
int source_open_hf(struct source *source, const char *path, struct diag *diag);
int source_map(const char *path, struct source_file *ret, struct diag *diag);
int source_read_text(const char *folder, const char *name, size_t most, char **ret, size_t *ret_bytes, struct diag *diag);

#endif
