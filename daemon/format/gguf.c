/* SPDX-License-Identifier: MIT */
/*
 * GGUF, versions 2 and 3 (the file format of ggml; its specification is docs/gguf.md there)
 *
 *   "GGUF" u32 version, u64 n_tensors, u64 n_kv
 *   n_kv times:      string key, u32 type, value
 *   n_tensors times: string name, u32 n_dims, u64 dims[n_dims], u32 type, u64 offset
 *   padding to general.alignment (default 32), then the tensors' data, each at its offset from there
 *
 * All little-endian; a string is u64 length and bytes. An array value is u32 element type, u64 count, elements.
 *
 * The file is walked once with a cursor that knows what is left, so that no length from the file can lead outside: every
 * read asks the cursor first, sizes are compared with what is left and never added up. A view that was made is sound:
 * all values lie inside the file, keys and tensor names are unique, tensors are aligned, whole, and do not overlap. The
 * view holds an index only; names of tensors are copied (they want a terminator), everything else stays in the file.
 */
#include "daemon/format/gguf.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define KEYS_MAX (1u << 16)
#define TENSORS_MAX (1u << 18)
#define NAME_MAX_BYTES 256u
#define VALUE_BYTES_MIN 14u  /* a key of one letter, type, one byte of value */
#define TENSOR_BYTES_MIN 33u /* a name of one letter, one dimension, type, offset */
#define ALIGNMENT_DEFAULT 32u
#define ALIGNMENT_MAX (1u << 20)

struct value {
	struct format_text key;
	enum gguf_type type;
	const uint8_t *at; /* a string's length, an array's element type, else the number */
};

struct gguf {
	uint32_t version;
	uint64_t alignment;
	struct value *values;         /* by key */
	size_t n_values;
	struct gguf_tensor *tensors;  /* in the file's order */
	const struct gguf_tensor **by_name;
	size_t n_tensors;
	char *names;                  /* of all tensors, each terminated */
};

struct cursor {
	const uint8_t *at;
	size_t left;
};

/* Bytes of a metadata value; 0 for those with a length of their own. */
static const uint8_t type_bytes[_GGUF_TYPE_N] = {
	[GGUF_U8] = 1,  [GGUF_I8] = 1,  [GGUF_U16] = 2,  [GGUF_I16] = 2, [GGUF_U32] = 4, [GGUF_I32] = 4,
	[GGUF_F32] = 4, [GGUF_BOOL] = 1, [GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F64] = 8,
};

/* ggml's tensor types by number. Those without a kern_dtype are known by name only, to be refused by it. */
static const struct tensor_type {
	const char *name;
	enum kern_dtype dtype;
	uint16_t block, bytes; /* numbers of a block and the bytes they take */
} tensor_types[] = {
	[0] = { "F32", KERN_F32, 1, 4 },      [1] = { "F16", KERN_F16, 1, 2 },
	[2] = { "Q4_0", KERN_Q4_0, 32, 18 },  [3] = { "Q4_1", KERN_Q4_1, 32, 20 },
	[6] = { "Q5_0", KERN_Q5_0, 32, 22 },  [7] = { "Q5_1", KERN_Q5_1, 32, 24 },
	[8] = { "Q8_0", KERN_Q8_0, 32, 34 },  [9] = { .name = "Q8_1" },
	[10] = { .name = "Q2_K" },            [11] = { .name = "Q3_K" },
	[12] = { "Q4_K", KERN_Q4_K, 256, 144 }, [13] = { "Q5_K", KERN_Q5_K, 256, 176 },
	[14] = { "Q6_K", KERN_Q6_K, 256, 210 }, [15] = { .name = "Q8_K" },
	[16] = { .name = "IQ2_XXS" },         [17] = { .name = "IQ2_XS" },
	[18] = { .name = "IQ3_XXS" },         [19] = { .name = "IQ1_S" },
	[20] = { .name = "IQ4_NL" },          [21] = { .name = "IQ3_S" },
	[22] = { .name = "IQ2_S" },           [23] = { .name = "IQ4_XS" },
	[24] = { .name = "I8" },              [25] = { .name = "I16" },
	[26] = { .name = "I32" },             [27] = { .name = "I64" },
	[28] = { .name = "F64" },             [29] = { .name = "IQ1_M" },
	[30] = { "BF16", KERN_BF16, 1, 2 },   [34] = { .name = "TQ1_0" },
	[35] = { .name = "TQ2_0" },           [39] = { .name = "MXFP4" },
};

/* ---- the cursor ---- */

static bool take(struct cursor *c, void *to, size_t bytes)
{
	if (bytes > c->left)
		return false;
	if (to)
		memcpy(to, c->at, bytes);
	c->at += bytes;
	c->left -= bytes;
	return true;
}

static bool take_u32(struct cursor *c, uint32_t *ret)
{
	if (!take(c, ret, sizeof(*ret)))
		return false;
	*ret = le32toh(*ret);
	return true;
}

static bool take_u64(struct cursor *c, uint64_t *ret)
{
	if (!take(c, ret, sizeof(*ret)))
		return false;
	*ret = le64toh(*ret);
	return true;
}

static bool take_text(struct cursor *c, struct format_text *ret)
{
	uint64_t n;

	if (!take_u64(c, &n) || n > c->left)
		return false;
	ret->bytes = (const char *)c->at;
	ret->n = (size_t)n;
	return take(c, NULL, (size_t)n);
}

/* ---- metadata ---- */

static bool skip_array(struct cursor *c)
{
	struct format_text text;
	uint32_t type;
	uint64_t n;

	if (!take_u32(c, &type) || !take_u64(c, &n) || type >= _GGUF_TYPE_N || type == GGUF_ARRAY)
		return false;
	if (type != GGUF_STRING) {
		if (n > c->left / type_bytes[type])
			return false;
		return take(c, NULL, (size_t)n * type_bytes[type]);
	}
	while (n--)
		if (!take_text(c, &text))
			return false;
	return true;
}

static bool skip_value(struct cursor *c, enum gguf_type type)
{
	struct format_text text;

	if (type == GGUF_ARRAY)
		return skip_array(c);
	if (type == GGUF_STRING)
		return take_text(c, &text);
	return take(c, NULL, type_bytes[type]);
}

/* A key or name: shown in messages and compared as a string, so without NUL and of bounded length. */
static bool plausible_name(const struct format_text *text)
{
	return text->n && text->n <= NAME_MAX_BYTES && !memchr(text->bytes, '\0', text->n);
}

static int compare_text(const struct format_text *a, const struct format_text *b)
{
	size_t n = a->n < b->n ? a->n : b->n;
	int r = n ? memcmp(a->bytes, b->bytes, n) : 0;

	return r ? r : a->n < b->n ? -1 : a->n > b->n;
}

static int by_key(const void *a, const void *b)
{
	return compare_text(&((const struct value *)a)->key, &((const struct value *)b)->key);
}

static int parse_metadata(struct gguf *gguf, struct cursor *c, uint64_t n, struct diag *diag)
{
	uint32_t type;
	uint64_t i;

	gguf->values = calloc((size_t)n + 1, sizeof(*gguf->values));
	if (!gguf->values)
		return error_origin(-ENOMEM);
	for (i = 0; i < n; ++i) {
		struct value *v = &gguf->values[i];

		if (!take_text(c, &v->key))
			return diag_set(diag, FORMAT_E_INVALID, "file is cut short in metadata key %" PRIu64, i);
		if (!plausible_name(&v->key))
			return diag_set(diag, FORMAT_E_INVALID, "metadata key %" PRIu64 " is no name", i);
		if (!take_u32(c, &type) || type >= _GGUF_TYPE_N)
			return diag_set(diag, FORMAT_E_INVALID, "%.*s: unknown type of value", (int)v->key.n,
					v->key.bytes);
		v->type = (enum gguf_type)type;
		v->at = c->at;
		if (!skip_value(c, v->type))
			return diag_set(diag, FORMAT_E_INVALID, "%.*s: value is damaged or the file cut short",
					(int)v->key.n, v->key.bytes);
	}
	gguf->n_values = (size_t)n;
	if (n)
		qsort(gguf->values, gguf->n_values, sizeof(*gguf->values), by_key);
	for (i = 1; i < n; ++i)
		if (!by_key(&gguf->values[i - 1], &gguf->values[i]))
			return diag_set(diag, FORMAT_E_INVALID, "%.*s: key appears twice", (int)gguf->values[i].key.n,
					gguf->values[i].key.bytes);
	return FORMAT_OK;
}

/* ---- tensors ---- */

static const struct tensor_type *tensor_type(uint32_t number)
{
	if (number >= sizeof(tensor_types) / sizeof(*tensor_types) || !tensor_types[number].name)
		return NULL;
	return &tensor_types[number];
}

static int parse_dims(struct gguf_tensor *t, struct cursor *c, struct diag *diag)
{
	uint32_t i;

	if (!take_u32(c, &t->n_dims) || !t->n_dims || t->n_dims > GGUF_DIMS_MAX)
		return diag_set(diag, FORMAT_E_INVALID, "tensor '%s': number of dimensions is wrong", t->name);
	for (i = 0; i < GGUF_DIMS_MAX; ++i) {
		t->dims[i] = 1;
		if (i < t->n_dims && (!take_u64(c, &t->dims[i]) || !t->dims[i]))
			return diag_set(diag, FORMAT_E_INVALID, "tensor '%s': dimension %u is wrong", t->name, i);
	}
	return FORMAT_OK;
}

/* dtype and size, whole blocks per row. */
static int size_tensor(struct gguf_tensor *t, uint32_t number, struct diag *diag)
{
	const struct tensor_type *type = tensor_type(number);
	uint64_t bytes;
	uint32_t i;

	if (!type)
		return diag_set(diag, FORMAT_E_INVALID, "tensor '%s': type number %u is unknown", t->name, number);
	if (!type->block)
		return diag_set(diag, FORMAT_E_INVALID,
				"tensor '%s': type %s is not supported (F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, "
				"Q5_K, Q6_K are)",
				t->name, type->name);
	if (t->dims[0] % type->block)
		return diag_set(diag, FORMAT_E_INVALID, "tensor '%s': rows of %" PRIu64 " are no whole %s blocks",
				t->name, t->dims[0], type->name);
	bytes = t->dims[0] / type->block;
	if (__builtin_mul_overflow(bytes, (uint64_t)type->bytes, &bytes))
		return diag_set(diag, FORMAT_E_INVALID, "tensor '%s': too large", t->name);
	for (i = 1; i < GGUF_DIMS_MAX; ++i)
		if (__builtin_mul_overflow(bytes, t->dims[i], &bytes))
			return diag_set(diag, FORMAT_E_INVALID, "tensor '%s': too large", t->name);
	t->dtype = type->dtype;
	t->bytes = bytes;
	return FORMAT_OK;
}

static int by_tensor_name(const void *a, const void *b)
{
	return strcmp((*(const struct gguf_tensor *const *)a)->name, (*(const struct gguf_tensor *const *)b)->name);
}

static int by_tensor_offset(const void *a, const void *b)
{
	const struct gguf_tensor *x = *(const struct gguf_tensor *const *)a, *y = *(const struct gguf_tensor *const *)b;

	return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* The descriptions; offsets are still relative to the data. Bounded by what the cursor has left, name by name. */
static int parse_tensors(struct gguf *gguf, struct cursor *c, size_t n, struct diag *diag)
{
	struct format_text name;
	uint32_t type;
	size_t i;
	char *to;
	int r;

	gguf->tensors = calloc(n + 1, sizeof(*gguf->tensors));
	gguf->by_name = calloc(n + 1, sizeof(*gguf->by_name));
	to = gguf->names = malloc(n * (NAME_MAX_BYTES + 1) + 1);
	if (!gguf->tensors || !gguf->by_name || !gguf->names)
		return error_origin(-ENOMEM);
	for (i = 0; i < n; ++i) {
		struct gguf_tensor *t = &gguf->tensors[i];

		if (!take_text(c, &name) || !plausible_name(&name))
			return diag_set(diag, FORMAT_E_INVALID, "name of tensor %zu is damaged or the file cut short", i);
		t->name = to;
		memcpy(to, name.bytes, name.n);
		to[name.n] = '\0';
		to += name.n + 1;
		r = parse_dims(t, c, diag);
		if (r)
			return r;
		if (!take_u32(c, &type) || !take_u64(c, &t->offset))
			return diag_set(diag, FORMAT_E_INVALID, "tensor '%s': the file is cut short", t->name);
		r = size_tensor(t, type, diag);
		if (r)
			return r;
		gguf->by_name[i] = t;
	}
	gguf->n_tensors = n;
	return FORMAT_OK;
}

/* Offsets become places in the file: aligned, inside, not overlapping. Leaves by_name sorted by offset. */
static int place_tensors(struct gguf *gguf, const uint8_t *file, size_t bytes, size_t data, struct diag *diag)
{
	const struct gguf_tensor *before = NULL;
	size_t i;

	for (i = 0; i < gguf->n_tensors; ++i) {
		struct gguf_tensor *t = &gguf->tensors[i];

		if (t->offset % gguf->alignment)
			return diag_set(diag, FORMAT_E_INVALID, "tensor '%s': offset %" PRIu64 " is not aligned to %" PRIu64,
					t->name, t->offset, gguf->alignment);
		if (t->offset > bytes - data || t->bytes > bytes - data - t->offset)
			return diag_set(diag, FORMAT_E_INVALID,
					"tensor '%s': lies beyond the end of the file, which is cut short or damaged",
					t->name);
		t->offset += data;
		t->data = file + t->offset;
	}
	if (gguf->n_tensors)
		qsort(gguf->by_name, gguf->n_tensors, sizeof(*gguf->by_name), by_tensor_offset);
	for (i = 0; i < gguf->n_tensors; before = gguf->by_name[i++])
		if (before && gguf->by_name[i]->offset - before->offset < before->bytes)
			return diag_set(diag, FORMAT_E_INVALID, "tensor '%s': overlaps tensor '%s'",
					gguf->by_name[i]->name, before->name);
	return FORMAT_OK;
}

static int index_names(struct gguf *gguf, struct diag *diag)
{
	size_t i;

	if (gguf->n_tensors)
		qsort(gguf->by_name, gguf->n_tensors, sizeof(*gguf->by_name), by_tensor_name);
	for (i = 1; i < gguf->n_tensors; ++i)
		if (!strcmp(gguf->by_name[i - 1]->name, gguf->by_name[i]->name))
			return diag_set(diag, FORMAT_E_INVALID, "tensor '%s': appears twice", gguf->by_name[i]->name);
	return FORMAT_OK;
}

static int read_alignment(struct gguf *gguf, struct diag *diag)
{
	uint32_t alignment = ALIGNMENT_DEFAULT;
	int r;

	r = gguf_get_u32(gguf, "general.alignment", &alignment, diag);
	if (r == FORMAT_E_INVALID)
		return r;
	if (!alignment || alignment > ALIGNMENT_MAX || (alignment & (alignment - 1)))
		return diag_set(diag, FORMAT_E_INVALID, "general.alignment: %u is no power of two up to %u", alignment,
				ALIGNMENT_MAX);
	gguf->alignment = alignment;
	return FORMAT_OK;
}

static int parse_head(struct gguf *gguf, struct cursor *c, uint64_t *ret_tensors, uint64_t *ret_values, struct diag *diag)
{
	char magic[4];

	if (!take(c, magic, sizeof(magic)) || memcmp(magic, "GGUF", 4) != 0)
		return diag_set(diag, FORMAT_E_INVALID, "not a GGUF file");
	if (!take_u32(c, &gguf->version) || !take_u64(c, ret_tensors) || !take_u64(c, ret_values))
		return diag_set(diag, FORMAT_E_INVALID, "file is cut short in its head");
	if (gguf->version != 2 && gguf->version != 3)
		return diag_set(diag, FORMAT_E_INVALID, "GGUF version %u%s is not supported (2 and 3 are)", gguf->version,
				gguf->version > UINT16_MAX ? " (big-endian?)" : "");
	if (*ret_tensors > TENSORS_MAX || *ret_values > KEYS_MAX)
		return diag_set(diag, FORMAT_E_INVALID, "%" PRIu64 " tensors and %" PRIu64 " keys, at most %u and %u are read",
				*ret_tensors, *ret_values, TENSORS_MAX, KEYS_MAX);
	if (*ret_tensors > c->left / TENSOR_BYTES_MIN || *ret_values > c->left / VALUE_BYTES_MIN)
		return diag_set(diag, FORMAT_E_INVALID, "file is cut short: no room for %" PRIu64 " tensors and %" PRIu64 " keys",
				*ret_tensors, *ret_values);
	return FORMAT_OK;
}

/**
 * gguf_parse() - view of a GGUF file
 * @ret:        the view
 * @file:       the whole file
 * @bytes:      its length
 * @diag:       the reason of a refusal
 *
 * Return: 0, -ENOMEM, or FORMAT_E_INVALID.
 */
int gguf_parse(struct gguf **ret, const void *file, size_t bytes, struct diag *diag)
{
	_cleanup_(gguf_freep) struct gguf *gguf = calloc(1, sizeof(*gguf));
	struct cursor c = { .at = file, .left = bytes };
	uint64_t n_tensors = 0, n_values = 0;
	size_t used, padding;
	int r;

	if (!gguf)
		return error_origin(-ENOMEM);
	r = parse_head(gguf, &c, &n_tensors, &n_values, diag);
	if (r)
		return r;
	r = parse_metadata(gguf, &c, n_values, diag);
	if (r)
		return error_trace(r);
	r = read_alignment(gguf, diag);
	if (r)
		return r;
	r = parse_tensors(gguf, &c, (size_t)n_tensors, diag);
	if (r)
		return error_trace(r);
	used = bytes - c.left;
	padding = (gguf->alignment - used % gguf->alignment) % gguf->alignment;
	if (padding > c.left) {
		if (n_tensors)
			return diag_set(diag, FORMAT_E_INVALID, "file is cut short before the tensors");
		padding = c.left;
	}
	r = place_tensors(gguf, file, bytes, used + padding, diag);
	if (r)
		return r;
	r = index_names(gguf, diag);
	if (r)
		return r;
	*ret = TAKE_PTR(gguf);
	return FORMAT_OK;
}

struct gguf *gguf_free(struct gguf *gguf)
{
	if (!gguf)
		return NULL;
	free(gguf->values);
	free(gguf->tensors);
	free(gguf->by_name);
	free(gguf->names);
	free(gguf);
	return NULL;
}

uint32_t gguf_version(const struct gguf *gguf)
{
	return gguf->version;
}

size_t gguf_tensors(const struct gguf *gguf, const struct gguf_tensor **ret)
{
	*ret = gguf->tensors;
	return gguf->n_tensors;
}

/** gguf_tensor() - a tensor by name, or NULL */
const struct gguf_tensor *gguf_tensor(const struct gguf *gguf, const char *name)
{
	const struct gguf_tensor key = { .name = name }, *p = &key;
	const struct gguf_tensor **found;

	if (!gguf->n_tensors)
		return NULL;
	found = bsearch(&p, gguf->by_name, gguf->n_tensors, sizeof(p), by_tensor_name);
	return found ? *found : NULL;
}

/* ---- values by key ---- */

static const struct value *find(const struct gguf *gguf, const char *key)
{
	struct value wanted = { .key = { key, strlen(key) } };

	if (!gguf->n_values)
		return NULL;
	return bsearch(&wanted, gguf->values, gguf->n_values, sizeof(wanted), by_key);
}

/* Any integer as its bits, sign-extended; false: not an integer, or negative. */
static bool read_unsigned(const struct value *v, uint64_t *ret)
{
	uint64_t bits = 0;
	bool is_signed = v->type == GGUF_I8 || v->type == GGUF_I16 || v->type == GGUF_I32 || v->type == GGUF_I64;
	bool is_unsigned = v->type == GGUF_U8 || v->type == GGUF_U16 || v->type == GGUF_U32 || v->type == GGUF_U64;
	unsigned n = type_bytes[v->type];

	if (!is_signed && !is_unsigned)
		return false;
	memcpy(&bits, v->at, n);
	bits = le64toh(bits);
	if (is_signed && (bits >> (8 * n - 1)) & 1)
		return false;
	*ret = bits;
	return true;
}

/**
 * gguf_get_u32() - a whole number
 * @gguf:       the view
 * @key:        full name of the key
 * @ret:        the value; any integer type of the file will do if it fits
 * @diag:       the reason of a refusal
 *
 * Return: FORMAT_OK, FORMAT_E_MISSING, FORMAT_E_INVALID (another type, negative, too large).
 */
int gguf_get_u32(const struct gguf *gguf, const char *key, uint32_t *ret, struct diag *diag)
{
	const struct value *v = find(gguf, key);
	uint64_t number;

	if (!v)
		return FORMAT_E_MISSING;
	if (!read_unsigned(v, &number) || number > UINT32_MAX)
		return diag_set(diag, FORMAT_E_INVALID, "%s: not a whole number of 32 bits", key);
	*ret = (uint32_t)number;
	return FORMAT_OK;
}

/** gguf_get_double() - a finite F32 or F64; results as gguf_get_u32() */
int gguf_get_double(const struct gguf *gguf, const char *key, double *ret, struct diag *diag)
{
	const struct value *v = find(gguf, key);
	double d = NAN;
	float f;

	if (!v)
		return FORMAT_E_MISSING;
	if (v->type == GGUF_F32) {
		memcpy(&f, v->at, sizeof(f));
		d = f;
	} else if (v->type == GGUF_F64) {
		memcpy(&d, v->at, sizeof(d));
	}
	if (!isfinite(d))
		return diag_set(diag, FORMAT_E_INVALID, "%s: not a finite number", key);
	*ret = d;
	return FORMAT_OK;
}

/** gguf_get_bool() - a boolean; results as gguf_get_u32() */
int gguf_get_bool(const struct gguf *gguf, const char *key, bool *ret, struct diag *diag)
{
	const struct value *v = find(gguf, key);

	if (!v)
		return FORMAT_E_MISSING;
	if (v->type != GGUF_BOOL || *v->at > 1)
		return diag_set(diag, FORMAT_E_INVALID, "%s: neither true nor false", key);
	*ret = *v->at;
	return FORMAT_OK;
}

/** gguf_get_string() - a string inside the file; results as gguf_get_u32() */
int gguf_get_string(const struct gguf *gguf, const char *key, struct format_text *ret, struct diag *diag)
{
	const struct value *v = find(gguf, key);
	uint64_t n;

	if (!v)
		return FORMAT_E_MISSING;
	if (v->type != GGUF_STRING)
		return diag_set(diag, FORMAT_E_INVALID, "%s: not a string", key);
	memcpy(&n, v->at, sizeof(n));
	ret->bytes = (const char *)v->at + sizeof(n);
	ret->n = (size_t)le64toh(n);
	return FORMAT_OK;
}

/** gguf_get_array() - an array with elements of @type; results as gguf_get_u32() */
int gguf_get_array(const struct gguf *gguf, const char *key, enum gguf_type type, struct gguf_array *ret,
		   struct diag *diag)
{
	const struct value *v = find(gguf, key);
	uint32_t element;
	uint64_t n;

	if (!v)
		return FORMAT_E_MISSING;
	if (v->type != GGUF_ARRAY)
		return diag_set(diag, FORMAT_E_INVALID, "%s: not an array", key);
	memcpy(&element, v->at, sizeof(element));
	memcpy(&n, v->at + sizeof(element), sizeof(n));
	if (le32toh(element) != (uint32_t)type)
		return diag_set(diag, FORMAT_E_INVALID, "%s: array with elements of type %u, not %u", key,
				le32toh(element), type);
	ret->type = type;
	ret->n = ret->left = le64toh(n);
	ret->at = v->at + sizeof(element) + sizeof(n);
	return FORMAT_OK;
}

/** gguf_array_next_string() - take the next element; false at the end. Bounds were checked by gguf_parse(). */
bool gguf_array_next_string(struct gguf_array *array, struct format_text *ret)
{
	uint64_t n;

	assert(array->type == GGUF_STRING);
	if (!array->left)
		return false;
	memcpy(&n, array->at, sizeof(n));
	n = le64toh(n);
	ret->bytes = (const char *)array->at + sizeof(n);
	ret->n = (size_t)n;
	array->at += sizeof(n) + n;
	--array->left;
	return true;
}

/** gguf_array_next_u32() - take the next element's 32 bits; false at the end */
bool gguf_array_next_u32(struct gguf_array *array, uint32_t *ret)
{
	assert(type_bytes[array->type] == sizeof(*ret));
	if (!array->left)
		return false;
	memcpy(ret, array->at, sizeof(*ret));
	*ret = le32toh(*ret);
	array->at += sizeof(*ret);
	--array->left;
	return true;
}
