/* SPDX-License-Identifier: MIT */
/* Numbers from people: the whole string or nothing. See number.c. */
#ifndef LORAD_TOOLS_NUMBER_H
#define LORAD_TOOLS_NUMBER_H

#include <stdint.h>

enum number_result {
	NUMBER_OK,
	NUMBER_E_SYNTAX, /* not a number */
	NUMBER_E_RANGE,  /* a number, but one that the type does not hold */
};

int number_int(const char *text, int64_t *ret);
int number_uint(const char *text, uint64_t *ret);
int number_real(const char *text, double *ret);

#endif
