/* SPDX-License-Identifier: MIT */
/* lorad.conf: `key = value` lines; and the numbers that options have. See conf.c. */
#ifndef LORAD_FORMAT_CONF_H
#define LORAD_FORMAT_CONF_H

#include <stdint.h>

#include "daemon/base/cleanup.h"
#include "daemon/format/format.h"

#define CONF_BYTES_MAX 65536u

struct conf_entry {
	const char *key, *value;   /* terminated; the value is never empty */
	unsigned line;             /* from 1 */
};

struct conf {
	struct conf_entry *entries; /* in the file's order, each key once */
	size_t n_entries;
	char *text;
};

/* known: the keys there are, ended by NULL; any other is refused with its line. */
int conf_parse(struct conf **ret, const char *text, size_t bytes, const char *const *known, struct diag *diag);
struct conf *conf_free(struct conf *conf);
DEFINE_CLEANUP(struct conf *, conf_free)
const char *conf_get(const struct conf *conf, const char *key); /* NULL: not given */

/* The whole text must be the number. what: the option's name, for the diag. FORMAT_OK or FORMAT_E_INVALID. */
int conf_u64(const char *what, const char *text, uint64_t most, uint64_t *ret, struct diag *diag);
int conf_bytes(const char *what, const char *text, uint64_t *ret, struct diag *diag); /* 4096, 64K, 512M, 2G: 1024s */
int conf_double(const char *what, const char *text, double *ret, struct diag *diag);  /* finite */

#endif
