/* SPDX-License-Identifier: MIT */
/*
 * Adapter images: layout, headers, building and taking apart (image.h has the picture)
 *
 * There is exactly one layout for a list of modules: the table, then A and B of each module in order of its number, rows
 * on 64 bytes, zeroes between, whole pages; in packed images the scales of a module are in front of its A. lay_out() is the only place that knows it: building uses its offsets, and
 * checking compares a stranger's offsets with them, so that a table that passes cannot point anywhere else.
 *
 * Numbers are copied as bits. What is NaN or infinite is refused on the way in, once, because a step that meets one
 * spoils every row it touches.
 */
#include "daemon/format/image.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"

#define MAGIC "LORADIMG"
#define ROW_ALIGN 64u
#define TRANSPOSE_BLOCK 32u

static_assert(offsetof(struct image_header, layout_version) == 8, "image header");
static_assert(offsetof(struct image_header, kind) == 12, "image header");
static_assert(offsetof(struct image_header, digest) == 16, "image header");
static_assert(offsetof(struct image_header, payload_bytes) == 48, "image header");
static_assert(offsetof(struct image_header, chunk) == 56, "image header");
static_assert(offsetof(struct image_header, n_chunks) == 60, "image header");
static_assert(offsetof(struct image_header, n_modules) == 64, "image header");
static_assert(offsetof(struct image_header, max_rank) == 68, "image header");
static_assert(offsetof(struct image_header, geometry) == 72, "image header");
static_assert(offsetof(struct image_header, header_crc) == 100, "image header");
static_assert(offsetof(struct image_header, chunk_crc) == 104, "image header");
static_assert(sizeof(struct image_header) <= IMAGE_HEADER_BYTES, "image header");
static_assert(sizeof(struct image_module) == 40 && offsetof(struct image_module, a_offset) == 24, "image module");
static_assert(IMAGE_CHUNK_PAYLOAD % IMAGE_PAGE == 0, "chunks hold whole pages");
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "images are little-endian, and used as they lie");

/* ---- headers ---- */

static uint32_t header_crc(const struct image_header *header)
{
	const size_t before = offsetof(struct image_header, header_crc), after = before + sizeof(header->header_crc);
	const uint32_t zero = 0;
	uint32_t crc;

	crc = crc32c(0, header, before);
	crc = crc32c(crc, &zero, sizeof(zero));
	return crc32c(crc, (const char *)header + after, sizeof(*header) - after);
}

/** image_header_seal() - put magic and checksum on a header that is otherwise complete */
void image_header_seal(struct image_header *header)
{
	memcpy(header->magic, MAGIC, sizeof(header->magic));
	header->header_crc = header_crc(header);
}

static uint64_t count_chunks(uint64_t payload_bytes)
{
	return payload_bytes / IMAGE_CHUNK_PAYLOAD + (payload_bytes % IMAGE_CHUNK_PAYLOAD != 0);
}

/**
 * image_header_check() - is this the start of a stored chunk?
 * @value:      the chunk's value, 8-byte aligned
 * @bytes:      of it: the header at least
 * @ret:        the header, in @value
 * @diag:       what is wrong
 *
 * A header that passes was sealed by us and fits together; whether it is the one that was asked for is the caller's to
 * see.
 *
 * Return: IMAGE_OK or IMAGE_E_INVALID.
 */
int image_header_check(const void *value, size_t bytes, const struct image_header **ret, struct diag *diag)
{
	const struct image_header *h = value;

	assert((uintptr_t)value % _Alignof(struct image_header) == 0);
	if (bytes < IMAGE_HEADER_BYTES || memcmp(h->magic, MAGIC, sizeof(h->magic)) != 0)
		return diag_set(diag, IMAGE_E_INVALID, "not an adapter image");
	if (h->layout_version != IMAGE_LAYOUT_VERSION)
		return diag_set(diag, IMAGE_E_INVALID, "image layout %u, this program reads %u", h->layout_version,
				IMAGE_LAYOUT_VERSION);
	if (h->header_crc != header_crc(h))
		return diag_set(diag, IMAGE_E_INVALID, "the image header's checksum is wrong");
	if (h->kind != IMAGE_KIND_LORA)
		return diag_set(diag, IMAGE_E_INVALID, "image of kind %u, which is unknown", h->kind);
	if (!h->payload_bytes || h->payload_bytes % IMAGE_PAGE || count_chunks(h->payload_bytes) != h->n_chunks ||
	    h->n_chunks > IMAGE_CHUNKS_MAX || h->chunk >= h->n_chunks)
		return diag_set(diag, IMAGE_E_INVALID, "image of %" PRIu64 " bytes cannot be chunk %u of %u",
				h->payload_bytes, h->chunk, h->n_chunks);
	*ret = h;
	return IMAGE_OK;
}

/** image_chunk_bytes() - payload of one chunk: all are full but the last */
size_t image_chunk_bytes(const struct image_header *header, uint32_t chunk)
{
	uint64_t before = (uint64_t)chunk * IMAGE_CHUNK_PAYLOAD;

	if (before >= header->payload_bytes)
		return 0;
	if (header->payload_bytes - before > IMAGE_CHUNK_PAYLOAD)
		return IMAGE_CHUNK_PAYLOAD;
	return (size_t)(header->payload_bytes - before);
}

/* ---- layout ---- */

/**
 * image_module_shape() - widths of a module
 * @geometry:   the model's shape
 * @module:     kern_module(layer, m), or n_layers * 7 for the output head
 * @ret_in:     width of its input
 * @ret_out:    width of its output
 *
 * Return: false if the model has no such module.
 */
bool image_module_shape(const struct image_geometry *geometry, uint32_t module, uint32_t *ret_in, uint32_t *ret_out)
{
	const struct image_geometry *g = geometry;
	const uint32_t q = g->n_heads * g->head_dim, kv = g->n_kv_heads * g->head_dim;
	const uint32_t in[_KERN_MODULE_N] = { g->hidden, g->hidden, g->hidden, q, g->hidden, g->hidden, g->intermediate };
	const uint32_t out[_KERN_MODULE_N] = { q, kv, kv, g->hidden, g->intermediate, g->intermediate, g->hidden };

	if (module / _KERN_MODULE_N < g->n_layers) {
		*ret_in = in[module % _KERN_MODULE_N];
		*ret_out = out[module % _KERN_MODULE_N];
		return true;
	}
	if (module != g->n_layers * _KERN_MODULE_N)
		return false;
	*ret_in = g->hidden;
	*ret_out = g->vocab;
	return true;
}

static uint64_t a_bytes(const struct image_module *m)
{
	return (uint64_t)m->rank * kern_lora_stride((enum kern_dtype)m->dtype, m->in);
}

static uint64_t b_bytes(const struct image_module *m)
{
	return (uint64_t)m->rank * kern_lora_stride((enum kern_dtype)m->dtype, m->out);
}

static uint64_t round_up(uint64_t n, uint64_t to)
{
	return (n + to - 1) / to * to;
}

uint64_t image_scales_bytes(const struct image_module *m)
{
	return m->dtype == KERN_I8 ? round_up(m->rank * sizeof(float), ROW_ALIGN) : 0;
}

/*
 * Where the matrices of module @m lie if the one before ended at @at; returns where the next begins. Cannot wrap: at
 * most 2^16 rows of 2^34 bytes each, and a table of 2^13 modules.
 */
static uint64_t lay_out(struct image_module *m, uint64_t at)
{
	m->a_offset = at + image_scales_bytes(m);
	m->b_offset = m->a_offset + a_bytes(m);
	return m->b_offset + b_bytes(m);
}

static uint64_t table_bytes(uint32_t n_modules)
{
	return round_up((uint64_t)n_modules * sizeof(struct image_module), ROW_ALIGN);
}

/* All that can be said of one entry by itself. */
static int check_module(const struct image_module *m, const struct image_geometry *geometry, enum image_encoding encoding,
			struct diag *diag)
{
	const bool source = m->dtype == KERN_F32 || m->dtype == KERN_F16 || m->dtype == KERN_BF16;
	uint32_t in, out;

	if (!image_module_shape(geometry, m->module, &in, &out))
		return diag_set(diag, IMAGE_E_INVALID, "module number %u: the model has no such module", m->module);
	if (m->in != in || m->out != out)
		return diag_set(diag, IMAGE_E_INVALID, "module number %u: %u x %u, the model's is %u x %u", m->module, m->out,
				m->in, out, in);
	if (!m->rank)
		return diag_set(diag, IMAGE_E_INVALID, "module number %u: rank 0", m->module);
	if (encoding == IMAGE_PACKED ? m->dtype != KERN_I8 : !source)
		return diag_set(diag, IMAGE_E_INVALID, "module number %u: dtype number %u", m->module, m->dtype);
	if (!isfinite(m->scale))
		return diag_set(diag, IMAGE_E_INVALID, "module number %u: scale is not finite", m->module);
	if (m->unused || m->zero)
		return diag_set(diag, IMAGE_E_INVALID, "module number %u: unused fields are in use", m->module);
	return IMAGE_OK;
}

/**
 * image_modules() - the module table of a payload
 * @payload:    the whole payload, 8-byte aligned
 * @header:     its header, checked
 * @encoding:   what it was asked for as
 * @ret:        the table, header->n_modules entries in @payload
 * @diag:       what is wrong
 *
 * Checked against the shape in the header: every module is the model's, in order, each once, and its matrices lie where
 * the layout puts them. The numbers themselves are covered by the chunks' checksums.
 *
 * Return: IMAGE_OK or IMAGE_E_INVALID.
 */
int image_modules(const void *payload, const struct image_header *header, enum image_encoding encoding,
		  const struct image_module **ret, struct diag *diag)
{
	const struct image_module *table = payload;
	uint64_t at = table_bytes(header->n_modules);
	uint32_t i, max_rank = 0;
	int r;

	assert((uintptr_t)payload % _Alignof(struct image_module) == 0);
	if (!header->n_modules || header->n_modules > header->geometry.n_layers * _KERN_MODULE_N + 1 ||
	    at > header->payload_bytes)
		return diag_set(diag, IMAGE_E_INVALID, "a table of %u modules cannot be", header->n_modules);
	for (i = 0; i < header->n_modules; ++i) {
		struct image_module expected = table[i];

		r = check_module(&table[i], &header->geometry, encoding, diag);
		if (r)
			return r;
		if (i && table[i].module <= table[i - 1].module)
			return diag_set(diag, IMAGE_E_INVALID, "module number %u: out of order", table[i].module);
		at = lay_out(&expected, at);
		if (table[i].a_offset != expected.a_offset || table[i].b_offset != expected.b_offset ||
		    at > header->payload_bytes)
			return diag_set(diag, IMAGE_E_INVALID, "module number %u: lies in the wrong place", table[i].module);
		if (table[i].rank > max_rank)
			max_rank = table[i].rank;
	}
	if (round_up(at, IMAGE_PAGE) != header->payload_bytes || max_rank != header->max_rank)
		return diag_set(diag, IMAGE_E_INVALID, "the header's size or rank is not the modules'");
	*ret = table;
	return IMAGE_OK;
}

/** image_scales() - what the numbers of a packed module are multiplied with, one per rank; NULL: nothing */
const float *image_scales(const void *payload, const struct image_module *m)
{
	const uint64_t bytes = image_scales_bytes(m);

	return bytes ? (const void *)((const char *)payload + m->a_offset - bytes) : NULL;
}

/* ---- building ---- */

static int by_module(const void *a, const void *b)
{
	const struct image_module *x = a, *y = b;

	return x->module < y->module ? -1 : x->module > y->module;
}

/**
 * image_plan() - lay an image out
 * @modules:            module, rank, dtype and scale of each are given; sorted and completed here
 * @n_modules:          how many, at least 1
 * @geometry:           the model's shape
 * @ret_payload_bytes:  size of the payload
 * @diag:               what is wrong
 *
 * Return: IMAGE_OK or IMAGE_E_INVALID.
 */
int image_plan(struct image_module *modules, uint32_t n_modules, const struct image_geometry *geometry,
	       uint64_t *ret_payload_bytes, struct diag *diag)
{
	uint64_t at = table_bytes(n_modules);
	uint32_t i;
	int r;

	if (!n_modules)
		return diag_set(diag, IMAGE_E_INVALID, "an image without modules");
	qsort(modules, n_modules, sizeof(*modules), by_module);
	for (i = 0; i < n_modules; ++i) {
		struct image_module *m = &modules[i];

		m->unused = 0;
		m->zero = 0;
		(void)image_module_shape(geometry, m->module, &m->in, &m->out);
		r = check_module(m, geometry, m->dtype == KERN_I8 ? IMAGE_PACKED : IMAGE_SOURCE, diag);
		if (r)
			return r;
		if (i && m->module == modules[i - 1].module)
			return diag_set(diag, IMAGE_E_INVALID, "module number %u: given twice", m->module);
		at = lay_out(m, at);
		if (at > (uint64_t)IMAGE_CHUNKS_MAX * IMAGE_CHUNK_PAYLOAD)
			return diag_set(diag, IMAGE_E_INVALID, "the adapter is larger than an image can be (%" PRIu64 " bytes)",
					(uint64_t)IMAGE_CHUNKS_MAX * IMAGE_CHUNK_PAYLOAD);
	}
	*ret_payload_bytes = round_up(at, IMAGE_PAGE);
	return IMAGE_OK;
}

/**
 * image_begin() - write the module table, zero the rest
 * @payload:       to be filled
 * @payload_bytes: from image_plan()
 * @modules:       from image_plan()
 * @n_modules:     how many
 */
void image_begin(void *payload, uint64_t payload_bytes, const struct image_module *modules, uint32_t n_modules)
{
	const size_t table = n_modules * sizeof(*modules);

	assert(table <= payload_bytes);
	memcpy(payload, modules, table);
	memset((char *)payload + table, 0, (size_t)payload_bytes - table);
}

/* The index of the first number that is NaN or infinite: its exponent is all ones; @n: there is none. */
static size_t find_not_finite(enum kern_dtype dtype, const void *numbers, size_t n)
{
	const uint16_t exponent = dtype == KERN_F16 ? 0x7c00 : 0x7f80;
	const char *p = numbers;
	uint32_t word;
	uint16_t half;
	size_t i;

	if (dtype == KERN_F32) {
		for (i = 0; i < n; ++i) {
			memcpy(&word, p + i * sizeof(word), sizeof(word));
			if ((word & 0x7f800000) == 0x7f800000)
				return i;
		}
		return n;
	}
	for (i = 0; i < n; ++i) {
		memcpy(&half, p + i * sizeof(half), sizeof(half));
		if ((half & exponent) == exponent)
			return i;
	}
	return n;
}

static int check_finite(const struct image_module *m, const void *numbers, size_t n, const char *name, struct diag *diag)
{
	size_t at = find_not_finite((enum kern_dtype)m->dtype, numbers, n);

	if (at == n)
		return IMAGE_OK;
	return diag_set(diag, IMAGE_E_INVALID, "tensor '%s': number %zu is NaN or infinite", name, at);
}

/* to[c][r] = from[r][c], rows of `to` at to_stride and of `from` at from_stride bytes; blocked so that lines are reused. */
static void transpose(char *to, size_t to_stride, const char *from, size_t from_stride, const uint32_t shape[2],
		      size_t number)
{
	const uint32_t rows = shape[0], cols = shape[1];
	uint32_t first, r, c;

	for (first = 0; first < rows; first += TRANSPOSE_BLOCK) {
		uint32_t end = rows - first < TRANSPOSE_BLOCK ? rows : first + TRANSPOSE_BLOCK;

		for (c = 0; c < cols; ++c)
			for (r = first; r < end; ++r) {
				char *t = to + c * to_stride + r * number;
				const char *f = from + r * from_stride + c * number;

				if (number == sizeof(uint16_t))
					memcpy(t, f, sizeof(uint16_t));
				else
					memcpy(t, f, sizeof(uint32_t));
			}
	}
}

/**
 * image_put_a() - fill in a module's A
 * @payload:    after image_begin()
 * @m:          the module, planned
 * @a:          [rank][in], rows next to each other, any alignment
 * @name:       the tensor's, for the diag
 * @diag:       what is wrong
 *
 * Return: IMAGE_OK or IMAGE_E_INVALID.
 */
int image_put_a(void *payload, const struct image_module *m, const void *a, const char *name, struct diag *diag)
{
	const size_t number = kern_dtype_bytes((enum kern_dtype)m->dtype);
	const size_t stride = kern_lora_stride((enum kern_dtype)m->dtype, m->in);
	uint32_t i;
	int r;

	r = check_finite(m, a, (size_t)m->rank * m->in, name, diag);
	if (r)
		return r;
	for (i = 0; i < m->rank; ++i)
		memcpy((char *)payload + m->a_offset + i * stride, (const char *)a + i * number * m->in, number * m->in);
	return IMAGE_OK;
}

/** image_put_b() - fill in a module's B, given as PEFT has it, [out][rank]; else as image_put_a() */
int image_put_b(void *payload, const struct image_module *m, const void *b, const char *name, struct diag *diag)
{
	const size_t number = kern_dtype_bytes((enum kern_dtype)m->dtype);
	const uint32_t shape[2] = { m->out, m->rank };
	int r;

	r = check_finite(m, b, (size_t)m->rank * m->out, name, diag);
	if (r)
		return r;
	transpose((char *)payload + m->b_offset, kern_lora_stride((enum kern_dtype)m->dtype, m->out), b, m->rank * number,
		  shape, number);
	return IMAGE_OK;
}

/** image_get_a() - A as it came, [rank][in] */
void image_get_a(const void *payload, const struct image_module *m, void *a)
{
	const size_t number = kern_dtype_bytes((enum kern_dtype)m->dtype);
	const size_t stride = kern_lora_stride((enum kern_dtype)m->dtype, m->in);
	uint32_t i;

	for (i = 0; i < m->rank; ++i)
		memcpy((char *)a + i * number * m->in, (const char *)payload + m->a_offset + i * stride, number * m->in);
}

/** image_get_b() - B as it came, [out][rank] */
void image_get_b(const void *payload, const struct image_module *m, void *b)
{
	const size_t number = kern_dtype_bytes((enum kern_dtype)m->dtype);
	const uint32_t shape[2] = { m->rank, m->out };

	transpose(b, m->rank * number, (const char *)payload + m->b_offset,
		  kern_lora_stride((enum kern_dtype)m->dtype, m->out), shape, number);
}
