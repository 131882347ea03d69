/* SPDX-License-Identifier: MIT */
/*
 * safetensors
 *
 * A file is 8 bytes with the length of a JSON header (little-endian), the header, and the numbers of all tensors. The
 * header names each tensor's dtype, shape and place, relative to the header's end. Only the header is looked at here:
 * the model maps its files, the importer reads a stranger's file descriptor and never maps it, and both come with the
 * header's bytes and the file's size.
 *
 * A view that was made is sound: every tensor lies inside the file, its bytes are what dtype and shape say, the tensors
 * follow each other without gap or overlap and fill the file to its end (the format demands that, so nothing can hide
 * between them), and no name appears twice.
 *
 * Names are borrowed from the parsed header, which the view keeps.
 */
#include "daemon/format/safetensors.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/format/json.h"

#define INDEX_MAX (64u << 20)
#define HEADER_ALIGN 8

/* All dtypes of the format with whole bytes; what lorad computes with has an enum kern_dtype. */
static const struct dtype {
	const char *name;
	uint32_t bytes;
	enum kern_dtype dtype;
} dtypes[] = {
	{ "F32", 4, KERN_F32 },          { "F16", 2, KERN_F16 },          { "BF16", 2, KERN_BF16 },
	{ "F64", 8, _KERN_DTYPE_N },     { "I64", 8, _KERN_DTYPE_N },     { "U64", 8, _KERN_DTYPE_N },
	{ "I32", 4, _KERN_DTYPE_N },     { "U32", 4, _KERN_DTYPE_N },     { "I16", 2, _KERN_DTYPE_N },
	{ "U16", 2, _KERN_DTYPE_N },     { "I8", 1, _KERN_DTYPE_N },      { "U8", 1, _KERN_DTYPE_N },
	{ "BOOL", 1, _KERN_DTYPE_N },    { "F8_E4M3", 1, _KERN_DTYPE_N }, { "F8_E5M2", 1, _KERN_DTYPE_N },
	{ "F8_E8M0", 1, _KERN_DTYPE_N },
};

static const struct dtype *dtype_by_name(const char *name)
{
	size_t i;

	for (i = 0; name && i < sizeof(dtypes) / sizeof(*dtypes); ++i)
		if (!strcmp(dtypes[i].name, name))
			return &dtypes[i];
	return NULL;
}

/**
 * safetensors_header_bytes() - how long the JSON header is
 * @prefix:     the file's first 8 bytes
 * @file_bytes: the file's size
 * @ret:        length of the header
 * @diag:       the reason of a refusal
 */
int safetensors_header_bytes(const uint8_t prefix[SAFETENSORS_PREFIX_BYTES], uint64_t file_bytes, uint64_t *ret,
			     struct diag *diag)
{
	uint64_t n;

	memcpy(&n, prefix, sizeof(n));
	n = le64toh(n);
	if (file_bytes < SAFETENSORS_PREFIX_BYTES || n > file_bytes - SAFETENSORS_PREFIX_BYTES)
		return diag_set(diag, FORMAT_E_INVALID,
				"no safetensors file, or cut short: a header of %" PRIu64 " bytes in a file of %" PRIu64,
				n, file_bytes);
	if (n > SAFETENSORS_HEADER_MAX)
		return diag_set(diag, FORMAT_E_INVALID, "header of %" PRIu64 " bytes, at most %u are read", n,
				SAFETENSORS_HEADER_MAX);
	*ret = n;
	return FORMAT_OK;
}

static int read_u64(const json_t *value, uint64_t *ret)
{
	if (!json_is_integer(value) || json_integer_value(value) < 0)
		return FORMAT_E_INVALID;
	*ret = (uint64_t)json_integer_value(value);
	return FORMAT_OK;
}

/* dtype and shape; *ret_bytes: what they make. */
static int read_shape(struct safetensors_tensor *t, const json_t *entry, uint64_t *ret_bytes, struct diag *diag)
{
	const json_t *shape = json_object_get(entry, "shape");
	const struct dtype *dtype;
	uint64_t bytes;
	uint32_t i;

	t->dtype_name = json_string_value(json_object_get(entry, "dtype"));
	dtype = dtype_by_name(t->dtype_name);
	if (!dtype)
		return diag_set(diag, FORMAT_E_INVALID, "tensor '%s': dtype %s is unknown", t->name,
				t->dtype_name ? t->dtype_name : "(none)");
	t->dtype = dtype->dtype;
	if (!json_is_array(shape) || json_array_size(shape) > SAFETENSORS_DIMS_MAX)
		return diag_set(diag, FORMAT_E_INVALID, "tensor '%s': shape is no array of at most %d numbers", t->name,
				SAFETENSORS_DIMS_MAX);
	t->n_dims = (uint32_t)json_array_size(shape);
	bytes = dtype->bytes;
	for (i = 0; i < SAFETENSORS_DIMS_MAX; ++i) {
		t->shape[i] = 1;
		if (i < t->n_dims && (read_u64(json_array_get(shape, i), &t->shape[i]) ||
				      __builtin_mul_overflow(bytes, t->shape[i], &bytes)))
			return diag_set(diag, FORMAT_E_INVALID, "tensor '%s': shape is wrong or too large", t->name);
	}
	*ret_bytes = bytes;
	return FORMAT_OK;
}

static int read_tensor(const struct safetensors *st, struct safetensors_tensor *t, const json_t *entry, struct diag *diag)
{
	const json_t *offsets = json_object_get(entry, "data_offsets");
	uint64_t room = st->file_bytes - st->data_offset;
	uint64_t begin, end, bytes = 0;
	int r;

	if (!json_is_object(entry))
		return diag_set(diag, FORMAT_E_INVALID, "tensor '%s': not an object", t->name);
	r = read_shape(t, entry, &bytes, diag);
	if (r)
		return r;
	if (json_array_size(offsets) != 2 || read_u64(json_array_get(offsets, 0), &begin) ||
	    read_u64(json_array_get(offsets, 1), &end) || begin > end)
		return diag_set(diag, FORMAT_E_INVALID, "tensor '%s': data_offsets are wrong", t->name);
	if (end > room)
		return diag_set(diag, FORMAT_E_INVALID,
				"tensor '%s': ends at byte %" PRIu64 " of %" PRIu64 ": the file is cut short", t->name,
				end, room);
	if (end - begin != bytes)
		return diag_set(diag, FORMAT_E_INVALID,
				"tensor '%s': %" PRIu64 " bytes, but its dtype and shape make %" PRIu64, t->name,
				end - begin, bytes);
	t->offset = st->data_offset + begin;
	t->bytes = bytes;
	return FORMAT_OK;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct safetensors_tensor *)a)->name, ((const struct safetensors_tensor *)b)->name);
}

/* Empty tensors first, so that they sit before the one that starts at the same byte. */
static int by_offset(const void *a, const void *b)
{
	const struct safetensors_tensor *x = a, *y = b;

	if (x->offset != y->offset)
		return x->offset < y->offset ? -1 : 1;
	return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

/* In order of offset, each tensor starts where the one before ended, from the header's end to the file's. */
static int check_places(struct safetensors *st, struct diag *diag)
{
	uint64_t at = st->data_offset;
	size_t i;

	if (st->n_tensors)
		qsort(st->tensors, st->n_tensors, sizeof(*st->tensors), by_offset);
	for (i = 0; i < st->n_tensors; ++i) {
		const struct safetensors_tensor *t = &st->tensors[i];

		if (t->offset != at)
			return diag_set(diag, FORMAT_E_INVALID, "tensor '%s': %s the tensor before it", t->name,
					t->offset < at ? "overlaps" : "leaves a gap after");
		at += t->bytes;
	}
	if (at != st->file_bytes)
		return diag_set(diag, FORMAT_E_INVALID, "%" PRIu64 " bytes after the last tensor belong to none",
				st->file_bytes - at);
	return FORMAT_OK;
}

/**
 * safetensors_parse() - view of a file's tensors
 * @ret:          the view
 * @header:       the JSON header, without the 8 bytes before it
 * @header_bytes: its length
 * @file_bytes:   the file's size
 * @diag:         the reason of a refusal
 *
 * Return: 0, -ENOMEM, or FORMAT_E_INVALID.
 */
int safetensors_parse(struct safetensors **ret, const char *header, size_t header_bytes, uint64_t file_bytes,
		      struct diag *diag)
{
	_cleanup_(safetensors_freep) struct safetensors *st = calloc(1, sizeof(*st));
	json_t *root = NULL;
	const char *key;
	json_t *entry;
	void *it;
	int r;

	if (!st)
		return error_origin(-ENOMEM);
	if (file_bytes < SAFETENSORS_PREFIX_BYTES || header_bytes > file_bytes - SAFETENSORS_PREFIX_BYTES)
		return diag_set(diag, FORMAT_E_INVALID, "the file is shorter than its header");
	r = json_parse(&root, header, header_bytes, SAFETENSORS_HEADER_MAX, JSON_PLAIN, "safetensors header", diag);
	if (r)
		return error_trace(r);
	st->json = root;
	st->data_offset = SAFETENSORS_PREFIX_BYTES + header_bytes;
	st->file_bytes = file_bytes;
	st->tensors = calloc(json_object_size(root) + 1, sizeof(*st->tensors));
	if (!st->tensors)
		return error_origin(-ENOMEM);
	for (it = json_object_iter(root); it; it = json_object_iter_next(root, it)) {
		key = json_object_iter_key(it);
		entry = json_object_iter_value(it);
		if (!strcmp(key, "__metadata__"))
			continue;
		st->tensors[st->n_tensors].name = key;
		r = read_tensor(st, &st->tensors[st->n_tensors++], entry, diag);
		if (r)
			return r;
	}
	r = check_places(st, diag);
	if (r)
		return r;
	if (st->n_tensors)
		qsort(st->tensors, st->n_tensors, sizeof(*st->tensors), by_name);
	*ret = TAKE_PTR(st);
	return FORMAT_OK;
}

struct safetensors *safetensors_free(struct safetensors *st)
{
	if (!st)
		return NULL;
	json_decref(st->json);
	free(st->tensors);
	free(st);
	return NULL;
}

/** safetensors_find() - a tensor by name, or NULL */
const struct safetensors_tensor *safetensors_find(const struct safetensors *st, const char *name)
{
	struct safetensors_tensor key = { .name = name };

	if (!st->n_tensors)
		return NULL;
	return bsearch(&key, st->tensors, st->n_tensors, sizeof(*st->tensors), by_name);
}

/* {"dtype": ..., "shape": [...], "data_offsets": [begin, end]}; NULL: no memory. */
static json_t *describe(const struct safetensors_tensor *t, uint64_t begin)
{
	_cleanup_(json_decrefp) json_t *shape = json_array();
	uint32_t i;

	for (i = 0; i < t->n_dims; ++i)
		if (json_array_append_new(shape, json_integer((json_int_t)t->shape[i])) < 0)
			return NULL;
	return json_pack("{s:s, s:O, s:[I, I]}", "dtype", t->dtype_name, "shape", shape, "data_offsets",
			 (json_int_t)begin, (json_int_t)(begin + t->bytes));
}

/**
 * safetensors_write_header() - the start of a file with these tensors
 * @tensors:    name, dtype_name, n_dims, shape and bytes are used; they are to follow the header in this order
 * @n_tensors:  how many
 * @ret:        prefix and header, padded so that the data starts on 8 bytes; malloc'd
 * @ret_bytes:  their length
 *
 * The metadata says {"format": "pt"}, which PEFT asks for.
 */
int safetensors_write_header(const struct safetensors_tensor *tensors, size_t n_tensors, char **ret, size_t *ret_bytes)
{
	_cleanup_(json_decrefp) json_t *root = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
	_cleanup_free_ char *out = NULL;
	uint64_t at = 0, prefix;
	size_t i, n, padded;

	for (i = 0; i < n_tensors; ++i) {
		if (json_object_set_new(root, tensors[i].name, describe(&tensors[i], at)) < 0)
			return error_origin(-ENOMEM);
		at += tensors[i].bytes;
	}
	n = json_dumpb(root, NULL, 0, JSON_COMPACT);
	padded = (n + HEADER_ALIGN - 1) / HEADER_ALIGN * HEADER_ALIGN;
	out = malloc(SAFETENSORS_PREFIX_BYTES + padded);
	if (!n || !out)
		return error_origin(-ENOMEM);
	prefix = htole64(padded);
	memcpy(out, &prefix, sizeof(prefix));
	memset(out + SAFETENSORS_PREFIX_BYTES, ' ', padded);
	json_dumpb(root, out + SAFETENSORS_PREFIX_BYTES, n, JSON_COMPACT);
	*ret = TAKE_PTR(out);
	*ret_bytes = SAFETENSORS_PREFIX_BYTES + padded;
	return FORMAT_OK;
}

/* A name in the folder itself: no way out of it, nothing hidden. */
static bool plain_file_name(const char *name)
{
	return name && *name && *name != '.' && !strchr(name, '/');
}

static int by_string(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int by_tensor(const void *a, const void *b)
{
	return strcmp(((const struct safetensors_index_entry *)a)->tensor,
		      ((const struct safetensors_index_entry *)b)->tensor);
}

/* files: every value of the map, sorted, each once. */
static int collect_files(struct safetensors_index *index, json_t *map, struct diag *diag)
{
	size_t n = 0, i;
	void *it;

	for (it = json_object_iter(map); it; it = json_object_iter_next(map, it)) {
		const char *file = json_string_value(json_object_iter_value(it));

		if (!plain_file_name(file))
			return diag_set(diag, FORMAT_E_INVALID, "weight_map: tensor '%s' lies in '%s', no plain file name",
					json_object_iter_key(it), file ? file : "(no string)");
		index->files[n++] = file;
	}
	qsort(index->files, n, sizeof(*index->files), by_string);
	for (i = 0; i < n; ++i)
		if (!i || strcmp(index->files[i], index->files[index->n_files - 1]) != 0)
			index->files[index->n_files++] = index->files[i];
	return FORMAT_OK;
}

/**
 * safetensors_index_parse() - which tensor lies in which file
 * @ret:        the index
 * @text:       model.safetensors.index.json
 * @bytes:      its length
 * @diag:       the reason of a refusal
 */
int safetensors_index_parse(struct safetensors_index **ret, const char *text, size_t bytes, struct diag *diag)
{
	_cleanup_(safetensors_index_freep) struct safetensors_index *index = calloc(1, sizeof(*index));
	json_t *root = NULL, *map;
	void *it;
	int r;

	if (!index)
		return error_origin(-ENOMEM);
	r = json_parse(&root, text, bytes, INDEX_MAX, JSON_PLAIN, "model.safetensors.index.json", diag);
	if (r)
		return error_trace(r);
	index->json = root;
	map = json_object_get(root, "weight_map");
	if (!json_object_size(map))
		return diag_set(diag, FORMAT_E_INVALID, "weight_map: missing or empty");
	index->entries = calloc(json_object_size(map), sizeof(*index->entries));
	index->files = calloc(json_object_size(map), sizeof(*index->files));
	if (!index->entries || !index->files)
		return error_origin(-ENOMEM);
	r = collect_files(index, map, diag);
	if (r)
		return r;
	for (it = json_object_iter(map); it; it = json_object_iter_next(map, it)) {
		struct safetensors_index_entry *entry = &index->entries[index->n_entries++];
		const char *file = json_string_value(json_object_iter_value(it));
		const char **found = bsearch(&file, index->files, index->n_files, sizeof(file), by_string);

		assert(found);
		entry->tensor = json_object_iter_key(it);
		entry->file = (uint32_t)(found - index->files);
	}
	qsort(index->entries, index->n_entries, sizeof(*index->entries), by_tensor);
	*ret = TAKE_PTR(index);
	return FORMAT_OK;
}

struct safetensors_index *safetensors_index_free(struct safetensors_index *index)
{
	if (!index)
		return NULL;
	json_decref(index->json);
	free(index->entries);
	free(index->files);
	free(index);
	return NULL;
}
