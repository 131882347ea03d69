/* SPDX-License-Identifier: MIT */
/* Regular expressions of pre-splits, in PCRE2's language. See split-regex.c. */
#ifndef LORAD_FORMAT_SPLIT_REGEX_H
#define LORAD_FORMAT_SPLIT_REGEX_H

#include "daemon/format/format.h"

extern const char split_regex_gpt2[];   /* GPT-2's words */
extern const char split_regex_digit[];  /* one digit */
extern const char split_regex_digits[]; /* a run of digits */

int split_regex_translate(const char *pattern, char **ret, struct diag *diag); /* *ret: malloc'd */
int split_regex_literal(const char *text, char **ret);

#endif
