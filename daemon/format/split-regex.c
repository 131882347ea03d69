/* SPDX-License-Identifier: MIT */
/*
 * Regular expressions of pre-splits
 *
 * tokenizer.json carries patterns in Oniguruma's language; lorad matches with PCRE2 (UTF, UCP). Most of what such
 * patterns use means the same in both. What does not is translated, or refused, so that no text is ever split in a place
 * where the model's own tokenizer would not:
 *
 *   \s \S     PCRE2 counts U+180E as white space and Unicode does not: spelled out as the property White_Space
 *   .         spelled out as [^\n]
 *   \p{Han}   means script extensions in PCRE2: \p{sc:Han}; general categories mean the same
 *   X{2,3}+   possessive in PCRE2, repeated in Oniguruma: refused
 *   \w \b \h ^ $ [[...]] && (?x) ...   other meanings or other spellings: refused
 */
#include "daemon/format/split-regex.h"

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/cleanup.h"

#define WHITE "\\x09-\\x0d\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define PATTERN_MAX 4096u
#define GROWTH_MAX (sizeof("[^" WHITE "]")) /* bytes that one byte of a pattern may become */

/* English clitics, then words, numbers and other signs with one space before, then white space up to its last sign. */
const char split_regex_gpt2[] = "'(?:[sdmt]|ll|ve|re)"
				"| ?\\p{L}+"
				"| ?\\p{N}+"
				"| ?[^" WHITE "\\p{L}\\p{N}]+"
				"|[" WHITE "]+(?![^" WHITE "])"
				"|[" WHITE "]+";
const char split_regex_digit[] = "\\p{N}";
const char split_regex_digits[] = "\\p{N}+";

struct translation {
	const char *at;  /* what is left of the pattern */
	char *out;
	bool in_class;
};

static void emit(struct translation *t, const char *text, size_t n)
{
	memcpy(t->out, text, n);
	t->out += n;
}

static void copy(struct translation *t, size_t n)
{
	emit(t, t->at, n);
	t->at += n;
}

/* \p{L}, \p{Lu}: a general category. Anything else made of letters: a script. */
static bool property(struct translation *t)
{
	const char *name = t->at + 3, *end = name;

	if (t->at[2] != '{')
		return false;
	while (isalpha((unsigned char)*end) || *end == '_')
		++end;
	if (end == name || *end != '}')
		return false;
	if (end - name <= 2 && strchr("LMNPSZC", *name) && (end - name == 1 || islower((unsigned char)name[1]))) {
		copy(t, (size_t)(end + 1 - t->at));
		return true;
	}
	copy(t, 3);
	emit(t, "sc:", 3);
	copy(t, (size_t)(end + 1 - t->at));
	return true;
}

static bool escape(struct translation *t)
{
	char c = t->at[1];

	if (c == 'p' || c == 'P')
		return property(t);
	if (c == 's' && t->in_class) {
		emit(t, WHITE, strlen(WHITE));
	} else if (c == 's') {
		emit(t, "[" WHITE "]", strlen(WHITE) + 2);
	} else if (c == 'S' && !t->in_class) {
		emit(t, "[^" WHITE "]", strlen(WHITE) + 3);
	} else if (c && (strchr("rntfdD", c) || ispunct((unsigned char)c))) {
		copy(t, 2);
		return true;
	} else {
		return false;
	}
	t->at += 2;
	return true;
}

/* Inside [...]: no nesting, no intersection, no ] as its first sign. */
static bool class_sign(struct translation *t)
{
	if (*t->at == '[' || (*t->at == '&' && t->at[1] == '&'))
		return false;
	if (*t->at == ']')
		t->in_class = false;
	copy(t, 1);
	return true;
}

static bool group(struct translation *t)
{
	static const char *const heads[] = { "(?:", "(?=", "(?!", "(?<=", "(?<!", "(?i:", "(?>" };
	size_t i;

	if (t->at[1] != '?' && t->at[1] != '*') {
		copy(t, 1);
		return true;
	}
	for (i = 0; i < sizeof(heads) / sizeof(*heads); ++i) {
		if (!strncmp(t->at, heads[i], strlen(heads[i]))) {
			copy(t, strlen(heads[i]));
			return true;
		}
	}
	return false;
}

/* {2} {2,} {2,3}, not followed by +. */
static bool interval(struct translation *t)
{
	const char *p = t->at + 1;

	if (!isdigit((unsigned char)*p))
		return false;
	while (isdigit((unsigned char)*p))
		++p;
	if (*p == ',')
		++p;
	while (isdigit((unsigned char)*p))
		++p;
	if (*p != '}' || p[1] == '+')
		return false;
	copy(t, (size_t)(p + 1 - t->at));
	return true;
}

static bool sign(struct translation *t)
{
	switch (*t->at) {
	case '\\':
		return escape(t);
	case '[':
		if (t->in_class)
			return false;
		t->in_class = true;
		copy(t, t->at[1] == '^' ? 2 : 1);
		return *t->at != ']';
	case '(':
		return t->in_class ? class_sign(t) : group(t);
	case '{':
		return t->in_class ? class_sign(t) : interval(t);
	case '^':
	case '$':
		return t->in_class && class_sign(t);
	case '.':
		if (t->in_class)
			return class_sign(t);
		emit(t, "[^\\n]", 5);
		++t->at;
		return true;
	default:
		if (t->in_class)
			return class_sign(t);
		copy(t, 1);
		return true;
	}
}

/**
 * split_regex_translate() - Oniguruma's language to PCRE2's
 * @pattern:    as in tokenizer.json, terminated
 * @ret:        the same for PCRE2, malloc'd
 * @diag:       the sign that could not be honoured
 *
 * Whether the result is well-formed is for PCRE2 to say.
 *
 * Return: 0, -ENOMEM or FORMAT_E_INVALID.
 */
int split_regex_translate(const char *pattern, char **ret, struct diag *diag)
{
	size_t bytes = strlen(pattern);
	_cleanup_free_ char *out = NULL;
	struct translation t;

	if (bytes > PATTERN_MAX)
		return diag_set(diag, FORMAT_E_INVALID, "pattern of %zu bytes, at most %u are read", bytes, PATTERN_MAX);
	out = malloc(bytes * GROWTH_MAX + 1);
	if (!out)
		return error_origin(-ENOMEM);
	t = (struct translation){ .at = pattern, .out = out };
	while (*t.at)
		if (!sign(&t))
			return diag_set(diag, FORMAT_E_INVALID, "pattern '%.100s': not supported at '%.12s'", pattern, t.at);
	if (t.in_class)
		return diag_set(diag, FORMAT_E_INVALID, "pattern '%.100s': [ without ]", pattern);
	*t.out = '\0';
	*ret = TAKE_PTR(out);
	return FORMAT_OK;
}

/** split_regex_literal() - a pattern that matches just this text */
int split_regex_literal(const char *text, char **ret)
{
	char *out = malloc(2 * strlen(text) + 1), *to = out;

	if (!out)
		return error_origin(-ENOMEM);
	for (; *text; ++text) {
		if (ispunct((unsigned char)*text))
			*to++ = '\\';
		*to++ = *text;
	}
	*to = '\0';
	*ret = out;
	return FORMAT_OK;
}
