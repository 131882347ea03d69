/* SPDX-License-Identifier: MIT */
/*
 * The adapter image: the device-ready form of one adapter, as it lies in the store and in memory. See image.c.
 *
 * An image is a payload of whole 4 KiB pages, cut into chunks for the store. Each stored chunk is one LMDB value: a header
 * of 4,080 bytes (so that the payload starts on a page of the file) and up to IMAGE_CHUNK_PAYLOAD bytes of payload. A load
 * reads the payloads of all chunks back to back into one contiguous run of memory.
 *
 * Payload: struct image_module [n_modules] (module table, offsets from the payload's start), then the matrices, layer by
 * layer. A of a module is [rank][in], B is stored transposed as [rank][out]: both are `rank` long rows, so that rank is
 * never padded, yet each row starts on 64 bytes (PEFT's [out][rank] rows of a rank-8 bf16 adapter would be 16 bytes).
 *
 * A packed image is a second one of the same version, made at import: the same modules, A and B in int8, and in front of each
 * A one f32 scale per rank. It is what a CPU loads, half the bytes of bf16; exports and f32 use the source's numbers.
 */
#ifndef LORAD_FORMAT_IMAGE_H
#define LORAD_FORMAT_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/base/error.h"

#define IMAGE_PAGE 4096u
#define IMAGE_HEADER_BYTES 4080u
#define IMAGE_VALUE_BYTES (4194304u - 16u)                           /* one chunk: exactly 1,024 pages of the store */
#define IMAGE_CHUNK_PAYLOAD (IMAGE_VALUE_BYTES - IMAGE_HEADER_BYTES) /* 1,023 pages */
#define IMAGE_LAYOUT_VERSION 1u
#define IMAGE_CHUNKS_MAX 960u
#define IMAGE_DIGEST_BYTES 32u

enum image_kind { IMAGE_KIND_LORA = 1 };

static inline const char *image_kind_name(uint32_t kind)
{
	return kind == IMAGE_KIND_LORA ? "lora" : "unknown";
}

/* What the numbers of an image are: the source's, bit for bit, or int8 made of them (image-pack.c). */
enum image_encoding { IMAGE_SOURCE, IMAGE_PACKED, _IMAGE_ENCODING_N };

enum image_result { IMAGE_OK, IMAGE_E_INVALID };

/* The base model's shape, recorded so that an image is never put on another one. */
struct image_geometry {
	uint32_t n_layers, hidden, intermediate, n_heads, n_kv_heads, head_dim, vocab;
};

struct image_module {
	uint32_t module;              /* kern_module(layer, m); n_layers * 7: the output head */
	uint16_t rank;
	uint8_t dtype, unused;        /* enum kern_dtype: F32, F16 or BF16; I8 in packed images */
	uint32_t in, out;
	float scale;                  /* alpha / rank or alpha / sqrt(rank), never folded into the numbers */
	uint32_t zero;
	uint64_t a_offset, b_offset;  /* bytes from the payload's start; rows at kern_lora_stride() */
};

/* The first bytes of every stored chunk; little-endian, fixed offsets (asserted in image.c). Rest of 4,080: zero. */
struct image_header {
	char magic[8];                /* "LORADIMG" */
	uint32_t layout_version, kind;
	uint8_t digest[IMAGE_DIGEST_BYTES];
	uint64_t payload_bytes;       /* of the whole image, a multiple of 4,096 */
	uint32_t chunk, n_chunks;     /* number of this one, and of all */
	uint32_t n_modules, max_rank;
	struct image_geometry geometry;
	uint32_t header_crc;          /* crc32c of this header with this field 0 */
	uint32_t chunk_crc[IMAGE_CHUNKS_MAX]; /* crc32c of every chunk's payload; in chunk 0 only, else 0 */
};

uint32_t crc32c(uint32_t crc, const void *data, size_t bytes);
uint32_t crc32c_table(uint32_t crc, const void *data, size_t bytes); /* without the processor's help */
void image_header_seal(struct image_header *header);
int image_header_check(const void *value, size_t bytes, const struct image_header **ret, struct diag *diag);
size_t image_chunk_bytes(const struct image_header *header, uint32_t chunk);

/* Checks the module table of a whole payload against the model's shape; *ret points into the payload. */
int image_modules(const void *payload, const struct image_header *header, enum image_encoding encoding,
		  const struct image_module **ret, struct diag *diag);

/* Of a packed module: f32 [rank], right before A; else NULL and 0. */
const float *image_scales(const void *payload, const struct image_module *m);
uint64_t image_scales_bytes(const struct image_module *m);

/* Input and output width of a module number; false: the model has no such module. */
bool image_module_shape(const struct image_geometry *geometry, uint32_t module, uint32_t *ret_in, uint32_t *ret_out);

/*
 * Building a payload. plan: given module, rank, dtype and scale of each, sorts the table by module number, lays the
 * matrices out and says how large the payload is. begin: writes the table into a payload and zeroes the rest. Then the
 * matrices as PEFT has them, A [rank][in] and B [out][rank], any alignment: NaN and Inf are refused, naming the tensor.
 */
int image_plan(struct image_module *modules, uint32_t n_modules, const struct image_geometry *geometry,
	       uint64_t *ret_payload_bytes, struct diag *diag);
void image_begin(void *payload, uint64_t payload_bytes, const struct image_module *modules, uint32_t n_modules);
int image_put_a(void *payload, const struct image_module *m, const void *a, const char *name, struct diag *diag);
int image_put_b(void *payload, const struct image_module *m, const void *b, const char *name, struct diag *diag);

/* A whole source payload -> its packed one, see image-pack.c. */
enum image_pack_result { IMAGE_PACK_OK, IMAGE_PACK_E_COARSE };

struct image_packed {
	uint8_t *payload;             /* page-aligned, free() it; NULL: too coarse */
	uint64_t bytes;               /* of it, whole pages */
	float error;                  /* of the worst module, relative, estimated */
};

int image_pack(const void *source, const struct image_module *modules, uint32_t n_modules,
	       const struct image_geometry *geometry, struct image_packed *ret);

/* The way back, bit for bit. */
void image_get_a(const void *payload, const struct image_module *m, void *a);
void image_get_b(const void *payload, const struct image_module *m, void *b);

#endif
