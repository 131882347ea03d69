/* SPDX-License-Identifier: MIT */
/* Command line options as tables: parsing and --help come from the same lines. See options.c. */
#ifndef LORAD_TOOLS_OPTIONS_H
#define LORAD_TOOLS_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "tools/tool.h"

enum option_type {
	OPTION_FLAG, /* bool */
	OPTION_TEXT, /* const char * into argv */
	OPTION_INT,  /* int64_t */
	OPTION_UINT, /* uint64_t */
	OPTION_REAL, /* double */
	OPTION_CALL, /* set() */
};

struct option {
	const char *name;        /* without dashes, or NULL */
	char letter;             /* or 0 */
	const char *value;       /* what --help calls the value; NULL for a flag */
	const char *help;
	enum option_type type;
	size_t offset;           /* of the member in the target that it sets */
	const char *range;       /* INT, REAL: the values allowed, in words; NULL: all */
	double least, most;      /* the same in numbers */
	bool above_least;        /* least itself is not allowed */
	bool may_be_empty;       /* "" is left to the program to judge */
	int (*set)(void *target, const char *value, struct diag *diag);
};

#define OPTIONS_END { .name = NULL }

/* A table (ended by OPTIONS_END) and the struct that its members lie in. */
struct option_set {
	const struct option *options;
	void *target;
};

struct options {
	const struct option_set *sets;
	size_t n_sets;
	bool stop_at_word;       /* the first argument that is no option ends the options: a verb */
};

int options_parse(const struct options *options, char **args, size_t *n_args, size_t *ret_used, struct diag *diag);
int options_uint(const char *spelled, const char *text, uint64_t *ret, struct diag *diag);
void options_help(const struct option *options, FILE *to);

#endif
