/* SPDX-License-Identifier: MIT */
/*
 * lorad.conf
 *
 * One `key = value` a line; a `#` at the start of a line, or after white space, starts a comment. Values are taken as they
 * stand, without quotes. A key is known, appears once and has a value: whatever else the file says is refused with its
 * line, because a setting that is silently ignored is worse than a daemon that does not start.
 *
 * The number readers serve the file and the command line alike. They take the whole text or nothing.
 */
#include "daemon/format/conf.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define LINES_MAX 4096u

/* Cuts white space at both ends, in place. */
static char *trim(char *text)
{
	size_t n;

	text += strspn(text, " \t\r");
	n = strlen(text);
	while (n && strchr(" \t\r", text[n - 1]))
		--n;
	text[n] = '\0';
	return text;
}

/* Cuts a comment off, in place. */
static void cut_comment(char *line)
{
	char *hash;

	for (hash = strchr(line, '#'); hash; hash = strchr(hash + 1, '#')) {
		if (hash == line || hash[-1] == ' ' || hash[-1] == '\t') {
			*hash = '\0';
			return;
		}
	}
}

static bool is_known(const char *const *known, const char *key)
{
	for (; *known; ++known)
		if (!strcmp(*known, key))
			return true;
	return false;
}

static int parse_line(struct conf *conf, char *line, unsigned number, const char *const *known, struct diag *diag)
{
	char *equals, *key, *value;

	cut_comment(line);
	line = trim(line);
	if (!*line)
		return FORMAT_OK;
	equals = strchr(line, '=');
	if (!equals)
		return diag_set(diag, FORMAT_E_INVALID, "line %u: '%.60s' is no 'key = value'", number, line);
	*equals = '\0';
	key = trim(line);
	value = trim(equals + 1);
	if (!is_known(known, key))
		return diag_set(diag, FORMAT_E_INVALID, "line %u: unknown key '%.60s'", number, key);
	if (!*value)
		return diag_set(diag, FORMAT_E_INVALID, "line %u: '%s' has no value", number, key);
	if (conf_get(conf, key))
		return diag_set(diag, FORMAT_E_INVALID, "line %u: '%s' was given before", number, key);
	conf->entries[conf->n_entries++] = (struct conf_entry){ key, value, number };
	return FORMAT_OK;
}

/**
 * conf_parse() - read a configuration file
 * @ret:        its entries
 * @text:       the file
 * @bytes:      its length
 * @known:      the keys there are, ended by NULL
 * @diag:       the line and what is wrong with it
 *
 * Return: 0, -ENOMEM or FORMAT_E_INVALID.
 */
int conf_parse(struct conf **ret, const char *text, size_t bytes, const char *const *known, struct diag *diag)
{
	_cleanup_(conf_freep) struct conf *conf = calloc(1, sizeof(*conf));
	unsigned number;
	char *line, *next;
	int r;

	if (!conf)
		return error_origin(-ENOMEM);
	if (bytes > CONF_BYTES_MAX)
		return diag_set(diag, FORMAT_E_INVALID, "%zu bytes, at most %u are read", bytes, CONF_BYTES_MAX);
	if (bytes && memchr(text, '\0', bytes))
		return diag_set(diag, FORMAT_E_INVALID, "not a text file: it has NUL bytes");
	conf->text = strndup(bytes ? text : "", bytes);
	conf->entries = calloc(LINES_MAX, sizeof(*conf->entries));
	if (!conf->text || !conf->entries)
		return error_origin(-ENOMEM);
	for (line = conf->text, number = 1; line; line = next, ++number) {
		next = strchr(line, '\n');
		if (next)
			*next++ = '\0';
		if (number > LINES_MAX)
			return diag_set(diag, FORMAT_E_INVALID, "more than %u lines", LINES_MAX);
		r = parse_line(conf, line, number, known, diag);
		if (r)
			return r;
	}
	*ret = TAKE_PTR(conf);
	return FORMAT_OK;
}

struct conf *conf_free(struct conf *conf)
{
	if (!conf)
		return NULL;
	free(conf->entries);
	free(conf->text);
	free(conf);
	return NULL;
}

/** conf_get() - a key's value, or NULL if it is not given */
const char *conf_get(const struct conf *conf, const char *key)
{
	size_t i;

	for (i = 0; i < conf->n_entries; ++i)
		if (!strcmp(conf->entries[i].key, key))
			return conf->entries[i].value;
	return NULL;
}

/* Leading digits; *end: what follows them. false: none, or too many. */
static bool take_digits(const char *text, uint64_t *ret, const char **end)
{
	uint64_t n = 0;

	if (!isdigit((unsigned char)*text))
		return false;
	for (; isdigit((unsigned char)*text); ++text)
		if (__builtin_mul_overflow(n, 10u, &n) || __builtin_add_overflow(n, (uint64_t)(*text - '0'), &n))
			return false;
	*ret = n;
	*end = text;
	return true;
}

/** conf_u64() - a whole number of 0..most; no sign, no white space */
int conf_u64(const char *what, const char *text, uint64_t most, uint64_t *ret, struct diag *diag)
{
	const char *end;
	uint64_t n;

	if (!take_digits(text, &n, &end) || *end || n > most)
		return diag_set(diag, FORMAT_E_INVALID, "%s: '%.60s' is no whole number of 0..%" PRIu64, what, text, most);
	*ret = n;
	return FORMAT_OK;
}

/** conf_bytes() - a size: a number, or one with K, M or G behind it (1024, not 1000) */
int conf_bytes(const char *what, const char *text, uint64_t *ret, struct diag *diag)
{
	static const char units[] = "KMG";
	const char *end, *unit;
	uint64_t n;

	if (!take_digits(text, &n, &end))
		goto refuse;
	if (*end) {
		unit = strchr(units, toupper((unsigned char)*end));
		if (!unit || end[1] || __builtin_mul_overflow(n, UINT64_C(1) << 10 * (unit - units + 1), &n))
			goto refuse;
	}
	*ret = n;
	return FORMAT_OK;
refuse:
	return diag_set(diag, FORMAT_E_INVALID, "%s: '%.60s' is no size (bytes, or a number with K, M or G)", what, text);
}

/** conf_double() - a finite decimal number: no white space, no hexadecimal, no inf or nan */
int conf_double(const char *what, const char *text, double *ret, struct diag *diag)
{
	char *end;
	double d;

	if (!*text || text[strspn(text, "+-.0123456789eE")])
		return diag_set(diag, FORMAT_E_INVALID, "%s: '%.60s' is no number", what, text);
	d = strtod(text, &end);
	if (*end || end == text || !isfinite(d))
		return diag_set(diag, FORMAT_E_INVALID, "%s: '%.60s' is no finite number", what, text);
	*ret = d;
	return FORMAT_OK;
}
