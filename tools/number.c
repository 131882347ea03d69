/* SPDX-License-Identifier: MIT */
/*
 * Numbers from people
 *
 * strtol() and friends skip white space, stop at the first odd character and read "010" or "0x10" in other bases. Here a
 * number is decimal and the whole string. "Not a number" and "a number that does not fit" are kept apart so that a refusal
 * can say which it is.
 */
#include "tools/number.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* Decimal digits to the end of the string, at least one. */
static int parse_digits(const char *text, uint64_t *ret)
{
	uint64_t value = 0;
	bool wide = false;

	if (!*text || strspn(text, "0123456789") != strlen(text))
		return NUMBER_E_SYNTAX;
	for (; *text; ++text)
		wide |= __builtin_mul_overflow(value, (uint64_t)10, &value) |
			__builtin_add_overflow(value, (uint64_t)(*text - '0'), &value);
	if (wide)
		return NUMBER_E_RANGE;
	*ret = value;
	return NUMBER_OK;
}

/**
 * number_uint() - parse a decimal number from 0 to 2^64 - 1
 *
 * A negative number is well formed but out of range, so that `--seed -1` is a refused value and not a riddle.
 */
int number_uint(const char *text, uint64_t *ret)
{
	uint64_t value;
	int r;

	if (*text != '-')
		return parse_digits(text + (*text == '+'), ret);
	r = parse_digits(text + 1, &value);
	if (r || value)
		return r == NUMBER_E_SYNTAX ? r : NUMBER_E_RANGE;
	*ret = 0;
	return NUMBER_OK;
}

/** number_int() - parse a decimal number from -2^63 to 2^63 - 1 */
int number_int(const char *text, int64_t *ret)
{
	bool negative = *text == '-';
	uint64_t value;
	int r;

	r = parse_digits(text + (negative || *text == '+'), &value);
	if (r)
		return r;
	if (value > (uint64_t)INT64_MAX + negative)
		return NUMBER_E_RANGE;
	*ret = negative ? (int64_t)(0 - value) : (int64_t)value;
	return NUMBER_OK;
}

/**
 * number_real() - parse a finite number in decimal or scientific notation
 *
 * "inf" and "nan" are read, and refused as out of range: whoever writes them means a number, but none that can be used.
 */
int number_real(const char *text, double *ret)
{
	static const char *const not_finite[] = { "inf", "infinity", "nan" };
	const char *unsigned_text = text + (*text == '-' || *text == '+');
	double value;
	char *end;

	for (size_t i = 0; i < sizeof(not_finite) / sizeof(not_finite[0]); ++i)
		if (strcasecmp(unsigned_text, not_finite[i]) == 0)
			return NUMBER_E_RANGE;
	if (!*unsigned_text || strspn(unsigned_text, "0123456789.eE+-") != strlen(unsigned_text))
		return NUMBER_E_SYNTAX;
	value = strtod(text, &end);
	if (end == text || *end)
		return NUMBER_E_SYNTAX;
	if (!isfinite(value))
		return NUMBER_E_RANGE;
	*ret = value;
	return NUMBER_OK;
}
