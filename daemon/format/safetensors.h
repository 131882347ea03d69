/* SPDX-License-Identifier: MIT */
/* The header of a safetensors file -> a checked table of tensors; never touches the data. See safetensors.c. */
#ifndef LORAD_FORMAT_SAFETENSORS_H
#define LORAD_FORMAT_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/base/cleanup.h"
#include "daemon/format/format.h"
#include "kernels/kernels.h"

#define SAFETENSORS_PREFIX_BYTES 8
#define SAFETENSORS_HEADER_MAX 100000000u
#define SAFETENSORS_DIMS_MAX 8

struct safetensors_tensor {
	const char *name;
	const char *dtype_name;    /* as the file spells it: F32, F16, BF16, U8 ... */
	enum kern_dtype dtype;     /* KERN_F32, KERN_F16, KERN_BF16, or _KERN_DTYPE_N: something else, see dtype_name */
	uint32_t n_dims;
	uint64_t shape[SAFETENSORS_DIMS_MAX]; /* outermost first; 1 beyond n_dims */
	uint64_t offset, bytes;    /* in the file */
};

struct safetensors {
	struct safetensors_tensor *tensors; /* by name */
	size_t n_tensors;
	uint64_t data_offset;      /* in the file: 8 + length of the header */
	uint64_t file_bytes;
	void *json;                /* keeps the names */
};

/* The length of the JSON header that follows the file's first 8 bytes. */
int safetensors_header_bytes(const uint8_t prefix[SAFETENSORS_PREFIX_BYTES], uint64_t file_bytes, uint64_t *ret,
			     struct diag *diag);
int safetensors_parse(struct safetensors **ret, const char *header, size_t header_bytes, uint64_t file_bytes,
		      struct diag *diag);
struct safetensors *safetensors_free(struct safetensors *st);
DEFINE_CLEANUP(struct safetensors *, safetensors_free)
const struct safetensors_tensor *safetensors_find(const struct safetensors *st, const char *name);

/* For writing: prefix and header of a file with these tensors one after the other (offsets are ignored). *ret: malloc'd. */
int safetensors_write_header(const struct safetensors_tensor *tensors, size_t n_tensors, char **ret, size_t *ret_bytes);

/* model.safetensors.index.json: which tensor lies in which file of the folder. */
struct safetensors_index_entry {
	const char *tensor;
	uint32_t file;             /* index into files */
};

struct safetensors_index {
	struct safetensors_index_entry *entries; /* by tensor name */
	size_t n_entries;
	const char **files;        /* plain file names, each once, sorted */
	uint32_t n_files;
	void *json;
};

int safetensors_index_parse(struct safetensors_index **ret, const char *text, size_t bytes, struct diag *diag);
struct safetensors_index *safetensors_index_free(struct safetensors_index *index);
DEFINE_CLEANUP(struct safetensors_index *, safetensors_index_free)

#endif
