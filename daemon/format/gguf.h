/* SPDX-License-Identifier: MIT */
/* A GGUF file in memory -> a checked view of its metadata and tensors. See gguf.c. */
#ifndef LORAD_FORMAT_GGUF_H
#define LORAD_FORMAT_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/base/cleanup.h"
#include "daemon/format/format.h"
#include "kernels/kernels.h"

#define GGUF_DIMS_MAX 4

struct gguf;

enum gguf_type { /* of metadata values, numbers as in the file */
	GGUF_U8, GGUF_I8, GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32, GGUF_F32, GGUF_BOOL, GGUF_STRING, GGUF_ARRAY,
	GGUF_U64, GGUF_I64, GGUF_F64, _GGUF_TYPE_N,
};

/* dims[0] is the length of a row (neighbours in memory), dims[1] the number of rows; the rest are 1. */
struct gguf_tensor {
	const char *name;          /* terminated; lives as the view */
	enum kern_dtype dtype;
	uint32_t n_dims;
	uint64_t dims[GGUF_DIMS_MAX];
	const void *data;          /* into the mapped file */
	uint64_t bytes;
	uint64_t offset;           /* of data in the file */
};

/* An array of the metadata. Strings are walked with gguf_array_next(). */
struct gguf_array {
	enum gguf_type type;       /* of an element */
	uint64_t n;
	const uint8_t *at;         /* the next element, unaligned */
	uint64_t left;             /* elements not yet taken */
};

/* The file's bytes stay the caller's and must outlive the view. */
int gguf_parse(struct gguf **ret, const void *file, size_t bytes, struct diag *diag);
struct gguf *gguf_free(struct gguf *gguf);
DEFINE_CLEANUP(struct gguf *, gguf_free)

uint32_t gguf_version(const struct gguf *gguf);
size_t gguf_tensors(const struct gguf *gguf, const struct gguf_tensor **ret); /* in the file's order */
const struct gguf_tensor *gguf_tensor(const struct gguf *gguf, const char *name); /* NULL: there is none */

/* Metadata by key: FORMAT_OK, FORMAT_E_MISSING, or FORMAT_E_INVALID where the type is another or the value too large. */
int gguf_get_u32(const struct gguf *gguf, const char *key, uint32_t *ret, struct diag *diag);   /* any integer type */
int gguf_get_double(const struct gguf *gguf, const char *key, double *ret, struct diag *diag);  /* F32, F64; finite */
int gguf_get_bool(const struct gguf *gguf, const char *key, bool *ret, struct diag *diag);
int gguf_get_string(const struct gguf *gguf, const char *key, struct format_text *ret, struct diag *diag);
int gguf_get_array(const struct gguf *gguf, const char *key, enum gguf_type type, struct gguf_array *ret,
		   struct diag *diag);

/* Takes the next element of an array of strings / of 32-bit integers or floats; false at the end. */
bool gguf_array_next_string(struct gguf_array *array, struct format_text *ret);
bool gguf_array_next_u32(struct gguf_array *array, uint32_t *ret); /* GGUF_U32, GGUF_I32 and GGUF_F32: the bits */

#endif
