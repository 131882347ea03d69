/* SPDX-License-Identifier: MIT */
/*
 * JSON from strangers
 *
 * The parser is jansson's; this file puts bounds around it and words on what it refuses. Before a byte is parsed the
 * text is scanned once for its depth, because a parser that recurses must not be given a million brackets. Duplicate
 * keys are refused: two readers of one file could otherwise disagree on what it says. Python writes NaN and Infinity
 * into JSON where it feels like it; they are no JSON and refused.
 *
 * The typed getters tell "not there" (FORMAT_E_MISSING; null counts as absent, as it does in Hugging Face's files) from
 * "there, but wrong" (FORMAT_E_INVALID with the key's name).
 */
#include "daemon/format/json.h"

#include <errno.h>
#include <math.h>
#include <string.h>

/* The deepest nesting of the text; strings are skipped, so brackets inside them do not count. */
static unsigned nesting(const char *text, size_t bytes)
{
	unsigned depth = 0, deepest = 0;
	bool in_string = false;
	size_t i;

	for (i = 0; i < bytes; ++i) {
		char c = text[i];

		if (in_string) {
			if (c == '\\')
				++i;
			else if (c == '"')
				in_string = false;
		} else if (c == '"') {
			in_string = true;
		} else if (c == '{' || c == '[') {
			if (++depth > deepest)
				deepest = depth;
		} else if ((c == '}' || c == ']') && depth) {
			--depth;
		}
	}
	return deepest;
}

/**
 * json_parse() - read a JSON object
 * @ret:        its root, a new reference
 * @text:       the text, need not be terminated
 * @bytes:      its length
 * @bytes_max:  refuse more than this
 * @flags:      see enum json_flags
 * @what:       the file's name, for the diag
 * @diag:       the reason of a refusal
 *
 * Objects keep the order of the text when iterated. Strings are valid UTF-8 without NUL.
 *
 * Return: 0, -ENOMEM, or FORMAT_E_INVALID.
 */
int json_parse(json_t **ret, const char *text, size_t bytes, size_t bytes_max, enum json_flags flags, const char *what,
	       struct diag *diag)
{
	_cleanup_(json_decrefp) json_t *root = NULL;
	size_t jansson_flags = JSON_REJECT_DUPLICATES;
	json_error_t error;

	if (bytes > bytes_max)
		return diag_set(diag, FORMAT_E_INVALID, "%s: %zu bytes of JSON, at most %zu are read", what, bytes,
				bytes_max);
	if (nesting(text, bytes) > JSON_DEPTH_MAX)
		return diag_set(diag, FORMAT_E_INVALID, "%s: nested deeper than %u levels", what, JSON_DEPTH_MAX);
	if (flags & JSON_HUGE_INTEGERS)
		jansson_flags |= JSON_DECODE_INT_AS_REAL;
	root = json_loadb(text, bytes, jansson_flags, &error);
	if (!root && json_error_code(&error) == json_error_out_of_memory)
		return error_origin(-ENOMEM);
	if (!root)
		return diag_set(diag, FORMAT_E_INVALID, "%s: line %d: %s", what, error.line, error.text);
	if (!json_is_object(root))
		return diag_set(diag, FORMAT_E_INVALID, "%s: not a JSON object", what);
	*ret = TAKE_PTR(root);
	return FORMAT_OK;
}

/* NULL for null as well: an explicit null says "not given". */
static const json_t *member(const json_t *object, const char *key)
{
	const json_t *value = json_object_get(object, key);

	return json_is_null(value) ? NULL : value;
}

/**
 * json_get_u32() - a whole number of 0 .. 2^32 - 1
 * @object:     the object
 * @key:        its member
 * @ret:        the value
 * @diag:       the reason of a refusal
 *
 * A real without a fraction counts as whole (see JSON_HUGE_INTEGERS).
 *
 * Return: FORMAT_OK, FORMAT_E_MISSING or FORMAT_E_INVALID.
 */
int json_get_u32(const json_t *object, const char *key, uint32_t *ret, struct diag *diag)
{
	const json_t *value = member(object, key);
	double number;

	if (!value)
		return FORMAT_E_MISSING;
	number = json_number_value(value);
	if (!json_is_number(value) || !(number >= 0) || number > UINT32_MAX || number != floor(number))
		return diag_set(diag, FORMAT_E_INVALID, "%s: not a whole number of 32 bits", key);
	*ret = (uint32_t)number;
	return FORMAT_OK;
}

/** json_get_double() - a finite number; results as json_get_u32() */
int json_get_double(const json_t *object, const char *key, double *ret, struct diag *diag)
{
	const json_t *value = member(object, key);

	if (!value)
		return FORMAT_E_MISSING;
	if (!json_is_number(value) || !isfinite(json_number_value(value)))
		return diag_set(diag, FORMAT_E_INVALID, "%s: not a number", key);
	*ret = json_number_value(value);
	return FORMAT_OK;
}

/** json_get_bool() - true or false; results as json_get_u32() */
int json_get_bool(const json_t *object, const char *key, bool *ret, struct diag *diag)
{
	const json_t *value = member(object, key);

	if (!value)
		return FORMAT_E_MISSING;
	if (!json_is_boolean(value))
		return diag_set(diag, FORMAT_E_INVALID, "%s: neither true nor false", key);
	*ret = json_is_true(value);
	return FORMAT_OK;
}

/** json_get_string() - a string, which lives as the object does; results as json_get_u32() */
int json_get_string(const json_t *object, const char *key, const char **ret, struct diag *diag)
{
	const json_t *value = member(object, key);

	if (!value)
		return FORMAT_E_MISSING;
	if (!json_is_string(value))
		return diag_set(diag, FORMAT_E_INVALID, "%s: not a string", key);
	*ret = json_string_value(value);
	return FORMAT_OK;
}

/** json_get_object() - an object, borrowed; results as json_get_u32() */
int json_get_object(const json_t *object, const char *key, const json_t **ret, struct diag *diag)
{
	const json_t *value = member(object, key);

	if (!value)
		return FORMAT_E_MISSING;
	if (!json_is_object(value))
		return diag_set(diag, FORMAT_E_INVALID, "%s: not an object", key);
	*ret = value;
	return FORMAT_OK;
}

/**
 * json_check_keys() - refuse what is not known
 * @where:      name of the object, or "": put before the key
 * @object:     the object
 * @known:      keys that the caller looks at himself, ended by NULL
 * @diag:       the key
 *
 * A key that is not known passes only if it is switched off: what it means when it is on, nobody here can tell.
 */
int json_check_keys(const char *where, json_t *object, const char *const *known, struct diag *diag)
{
	void *it;

	for (it = json_object_iter(object); it; it = json_object_iter_next(object, it)) {
		const char *const *k = known;

		while (*k && strcmp(*k, json_object_iter_key(it)) != 0)
			++k;
		if (!*k && json_truthy(json_object_iter_value(it)))
			return diag_set(diag, FORMAT_E_INVALID, "%s%s%s: not supported", where, *where ? "." : "",
					json_object_iter_key(it));
	}
	return FORMAT_OK;
}

/** json_truthy() - whether Python's bool() of the value is true: "was this option switched on?" */
bool json_truthy(const json_t *value)
{
	switch (value ? json_typeof(value) : JSON_NULL) {
	case JSON_OBJECT:
		return json_object_size(value) > 0;
	case JSON_ARRAY:
		return json_array_size(value) > 0;
	case JSON_STRING:
		return json_string_length(value) > 0;
	case JSON_INTEGER:
	case JSON_REAL:
		return json_number_value(value) != 0;
	case JSON_TRUE:
		return true;
	case JSON_FALSE:
	case JSON_NULL:
		return false;
	}
	return false;
}
