/* SPDX-License-Identifier: MIT */
/* A writer of small GGUF files for tests. */
#ifndef TESTS_FORMAT_GGUF_H
#define TESTS_FORMAT_GGUF_H

#include <assert.h>
#include <stdint.h>
#include <string.h>

#include "daemon/format/gguf.h"

struct gguf_writer {
	uint8_t bytes[16384];
	size_t n;
	uint64_t n_tensors, n_values;
};

static inline void put_raw(struct gguf_writer *w, const void *p, size_t n)
{
	assert(n <= sizeof(w->bytes) - w->n);
	memcpy(w->bytes + w->n, p, n);
	w->n += n;
}

static inline void put_u32(struct gguf_writer *w, uint32_t v)
{
	put_raw(w, &v, sizeof(v));
}

static inline void put_u64(struct gguf_writer *w, uint64_t v)
{
	put_raw(w, &v, sizeof(v));
}

static inline void put_text(struct gguf_writer *w, const char *text)
{
	put_u64(w, strlen(text));
	put_raw(w, text, strlen(text));
}

static inline void put_head(struct gguf_writer *w, uint32_t version)
{
	*w = (struct gguf_writer){ 0 };
	put_raw(w, "GGUF", 4);
	put_u32(w, version);
	put_u64(w, 0); /* counts: patched by put_tensor() and put_key() */
	put_u64(w, 0);
}

static inline void put_key(struct gguf_writer *w, const char *key, uint32_t type)
{
	++w->n_values;
	memcpy(w->bytes + 16, &w->n_values, sizeof(w->n_values));
	put_text(w, key);
	put_u32(w, type);
}

static inline void put_key_u32(struct gguf_writer *w, const char *key, uint32_t v)
{
	put_key(w, key, GGUF_U32);
	put_u32(w, v);
}

static inline void put_key_f32(struct gguf_writer *w, const char *key, float v)
{
	put_key(w, key, GGUF_F32);
	put_raw(w, &v, sizeof(v));
}

static inline void put_key_text(struct gguf_writer *w, const char *key, const char *text)
{
	put_key(w, key, GGUF_STRING);
	put_text(w, text);
}

static inline void put_key_array(struct gguf_writer *w, const char *key, uint32_t type, uint64_t n)
{
	put_key(w, key, GGUF_ARRAY);
	put_u32(w, type);
	put_u64(w, n);
}

static inline void put_tensor(struct gguf_writer *w, const char *name, uint64_t cols, uint64_t rows, uint32_t type,
			      uint64_t offset)
{
	++w->n_tensors;
	memcpy(w->bytes + 8, &w->n_tensors, sizeof(w->n_tensors));
	put_text(w, name);
	put_u32(w, 2);
	put_u64(w, cols);
	put_u64(w, rows);
	put_u32(w, type);
	put_u64(w, offset);
}

/* Padding to 32, then this many bytes of data. */
static inline void put_data(struct gguf_writer *w, size_t bytes)
{
	w->n = (w->n + 31) / 32 * 32;
	assert(bytes <= sizeof(w->bytes) - w->n);
	memset(w->bytes + w->n, 0x3c, bytes);
	w->n += bytes;
}

#endif
