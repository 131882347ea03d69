/* SPDX-License-Identifier: MIT */
/*
 * Results
 *
 * Every function that can fail returns an int of one of three kinds:
 *
 *   < 0   a negative errno: something is broken here (no memory, a failing disk, a bug). Nobody matches on its value;
 *         every caller passes it on unchanged with error_trace() until a level that owns the damage (a request, an
 *         import, the process) gives up. error_origin() marks the line where it came up. Both print to stderr, so that
 *         a fatal error leaves its call path in the journal; on success they cost a compare.
 *   = 0   done.
 *   > 0   a value of the module's own enum (STORE_E_NOT_FOUND, FORMAT_E_INVALID ...): a condition that is part of the
 *         interface. The direct caller must handle it; it is never passed on as it is.
 *
 * Where a stranger's input is refused (> 0) the reason is put in words into a struct diag by the function that found
 * it, because only that one can name the offending thing; callers may put a context in front with diag_prefix(). A
 * NULL diag is allowed and drops the words. Text from strangers is made printable here, once.
 */
#include "daemon/base/error.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

int error_origin_at(int error, const char *function, const char *file, int line)
{
	if (error < 0)
		fprintf(stderr, "ERROR %s: %s @ %s:%d\n", strerror(-error), function, file, line);
	return error;
}

int error_trace_at(int error, const char *function, const char *file, int line)
{
	if (error < 0)
		fprintf(stderr, "      ... %s @ %s:%d\n", function, file, line);
	return error;
}

/* One line without control characters, whatever names a stranger chose. Bytes >= 0x80 pass: names may be UTF-8. */
static void make_printable(char *text)
{
	for (; *text; ++text)
		if ((uint8_t)*text < 0x20 || *text == 0x7f)
			*text = '?';
}

/**
 * diag_set() - say why something is refused
 * @diag:       where to, or NULL
 * @result:     what to return, the module's positive enum value
 * @format:     printf format of the reason
 *
 * Return: @result, so that `return diag_set(diag, FORMAT_E_INVALID, "...")` reads as one thought.
 */
int diag_set(struct diag *diag, int result, const char *format, ...)
{
	va_list args;

	if (!diag)
		return result;
	va_start(args, format);
	(void)vsnprintf(diag->text, sizeof(diag->text), format, args);
	va_end(args);
	make_printable(diag->text);
	return result;
}

/**
 * diag_prefix() - put a context in front of the reason that a callee gave
 * @diag:       the reason, or NULL
 * @result:     what to return
 * @format:     printf format of the context; ": " is added
 */
int diag_prefix(struct diag *diag, int result, const char *format, ...)
{
	struct diag inner;
	va_list args;
	size_t used, room;
	int n;

	if (!diag)
		return result;
	inner = *diag;
	va_start(args, format);
	n = vsnprintf(diag->text, sizeof(diag->text), format, args);
	va_end(args);
	used = n < 0 ? 0 : (size_t)n < sizeof(diag->text) ? (size_t)n : sizeof(diag->text) - 1;
	room = sizeof(diag->text) - used;
	(void)snprintf(diag->text + used, room, ": %.*s", room > 3 ? (int)room - 3 : 0, inner.text);
	make_printable(diag->text);
	return result;
}
