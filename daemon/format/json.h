/* SPDX-License-Identifier: MIT */
/* JSON from strangers: bounded, depth-limited, without duplicate keys. See json.c. */
#ifndef LORAD_FORMAT_JSON_H
#define LORAD_FORMAT_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "daemon/base/cleanup.h" /* jansson brings json_decrefp() for _cleanup_() itself */
#include "daemon/format/format.h"

#define JSON_DEPTH_MAX 32u

enum json_flags {
	JSON_PLAIN = 0,
	JSON_HUGE_INTEGERS = 1, /* integers beyond 64 bits are met: all numbers are read as doubles */
};

/* what: the file's name, for the diag. The root must be an object. *ret is a new reference. */
int json_parse(json_t **ret, const char *text, size_t bytes, size_t bytes_max, enum json_flags flags, const char *what,
	       struct diag *diag);

/* Typed members: FORMAT_OK, FORMAT_E_MISSING (absent or null), FORMAT_E_INVALID (other type or out of range). */
int json_get_u32(const json_t *object, const char *key, uint32_t *ret, struct diag *diag);
int json_get_double(const json_t *object, const char *key, double *ret, struct diag *diag); /* finite */
int json_get_bool(const json_t *object, const char *key, bool *ret, struct diag *diag);
int json_get_string(const json_t *object, const char *key, const char **ret, struct diag *diag);
int json_get_object(const json_t *object, const char *key, const json_t **ret, struct diag *diag);

/* Every member is one of known (a list ended by NULL) or off; where: a prefix for the diag. */
int json_check_keys(const char *where, json_t *object, const char *const *known, struct diag *diag);

bool json_truthy(const json_t *value); /* as Python sees it: not null, false, 0, "", [] or {} */

#endif
