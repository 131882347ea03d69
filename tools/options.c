/* SPDX-License-Identifier: MIT */
/*
 * Options
 *
 * A table line says all there is to an option: its names, its type, where the value goes, what is allowed, its help. So
 * a program's --help cannot disagree with what it accepts. Accepted are `--name VALUE`, `--name=VALUE`, `-n VALUE`,
 * `-nVALUE`, and `--` before words that begin with a dash. Names are never abbreviated: a script must not change its
 * meaning when an option is added.
 *
 * A command line whose shape is wrong (an unknown option, a value that is missing) is TOOL_USAGE; a value that is
 * empty, malformed or not allowed is TOOL_FAILED, the same as when the daemon refuses it.
 */
#include "tools/options.h"

#include <assert.h>
#include <string.h>

#include "tools/number.h"

#define HELP_COLUMN 28

/* One option as it stands on the command line. */
struct given {
	const struct option *option;
	void *target;
	char spelled[64];  /* as in messages: --name or -n */
	const char *value; /* inside the same word, or NULL */
};

static bool options_end(const struct option *option)
{
	return !option->name && !option->letter;
}

static bool option_matches(const struct option *option, const char *word, size_t length)
{
	if (word[1] != '-')
		return option->letter == word[1];
	return option->name && strlen(option->name) == length - 2 && strncmp(option->name, word + 2, length - 2) == 0;
}

/* Finds the option that a word "-x..." or "--name[=...]" means. */
static int find_option(const struct options *options, const char *word, struct given *ret, struct diag *diag)
{
	size_t length = word[1] == '-' ? strcspn(word, "=") : 2;

	for (size_t i = 0; i < options->n_sets; ++i)
		for (const struct option *option = options->sets[i].options; !options_end(option); ++option) {
			if (!option_matches(option, word, length))
				continue;
			ret->option = option;
			ret->target = options->sets[i].target;
			ret->value = word[length] ? word + length + (word[1] == '-') : NULL;
			(void)snprintf(ret->spelled, sizeof(ret->spelled), "%.*s", (int)length, word);
			return TOOL_OK;
		}
	return diag_set(diag, TOOL_USAGE, "unknown option %.*s", (int)length, word);
}

static int check_number(const struct given *given, int parsed, double value, struct diag *diag)
{
	const struct option *option = given->option;

	if (parsed == NUMBER_E_SYNTAX)
		return diag_set(diag, TOOL_FAILED, "%s %s: not a number", given->spelled, given->value);
	if (parsed == NUMBER_E_RANGE && !option->range)
		return diag_set(diag, TOOL_FAILED, "%s %s: out of range", given->spelled, given->value);
	if (parsed == NUMBER_E_RANGE || (option->range && (value < option->least || value > option->most ||
							   (option->above_least && value <= option->least))))
		return diag_set(diag, TOOL_FAILED, "%s %s: must be %s", given->spelled, given->value, option->range);
	return TOOL_OK;
}

static int set_number(const struct given *given, void *member, struct diag *diag)
{
	uint64_t natural = 0;
	int64_t integer = 0;
	double real = 0;
	int r, parsed;

	if (given->option->type == OPTION_INT) {
		parsed = number_int(given->value, &integer);
		real = (double)integer;
	} else if (given->option->type == OPTION_UINT) {
		parsed = number_uint(given->value, &natural);
		real = (double)natural;
	} else {
		parsed = number_real(given->value, &real);
	}
	r = check_number(given, parsed, real, diag);
	if (r)
		return r;
	if (given->option->type == OPTION_INT)
		*(int64_t *)member = integer;
	else if (given->option->type == OPTION_UINT)
		*(uint64_t *)member = natural;
	else
		*(double *)member = real;
	return TOOL_OK;
}

/** options_uint() - the number of an option whose set() wants one; @spelled as in messages */
int options_uint(const char *spelled, const char *text, uint64_t *ret, struct diag *diag)
{
	uint64_t value = 0;
	int r = number_uint(text, &value);

	if (r == NUMBER_E_SYNTAX)
		return diag_set(diag, TOOL_FAILED, "%s %s: not a number", spelled, text);
	if (r)
		return diag_set(diag, TOOL_FAILED, "%s %s: must be from 0 to 18446744073709551615", spelled, text);
	*ret = value;
	return TOOL_OK;
}

static int set_value(const struct given *given, struct diag *diag)
{
	const struct option *option = given->option;
	void *member = (char *)given->target + option->offset;

	if (!*given->value && !option->may_be_empty)
		return diag_set(diag, TOOL_FAILED, "%s: its value is empty", given->spelled);
	switch (option->type) {
	case OPTION_TEXT:
		*(const char **)member = given->value;
		return TOOL_OK;
	case OPTION_CALL:
		return option->set(given->target, given->value, diag);
	case OPTION_INT:
	case OPTION_UINT:
	case OPTION_REAL:
		return set_number(given, member, diag);
	case OPTION_FLAG:
		break;
	}
	assert(false);
	return TOOL_USAGE;
}

/* Takes the option at args[*at] and its value, and moves *at past them. */
static int take_option(const struct options *options, char **args, size_t n_args, size_t *at, struct diag *diag)
{
	struct given given = { .value = NULL };
	int r;

	r = find_option(options, args[(*at)++], &given, diag);
	if (r)
		return r;
	if (given.option->type == OPTION_FLAG) {
		if (given.value)
			return diag_set(diag, TOOL_USAGE, "%s takes no value", given.spelled);
		*(bool *)((char *)given.target + given.option->offset) = true;
		return TOOL_OK;
	}
	if (!given.value && *at == n_args)
		return diag_set(diag, TOOL_USAGE, "%s needs a value: %s", given.spelled, given.option->value);
	if (!given.value)
		given.value = args[(*at)++];
	return set_value(&given, diag);
}

/**
 * options_parse() - set what the options on a command line say
 * @options:   the tables, the first match wins
 * @args:      the words; those that are no options are moved to the front, in order
 * @n_args:    in: how many words; out: how many of them are no options (0 with stop_at_word)
 * @ret_used:  how many words were read: all, or with stop_at_word those before the first that is no option
 * @diag:      why not
 *
 * Return: TOOL_OK, TOOL_USAGE, or TOOL_FAILED for a value that is refused.
 */
int options_parse(const struct options *options, char **args, size_t *n_args, size_t *ret_used, struct diag *diag)
{
	size_t n = *n_args, at = 0, kept = 0;
	bool only_words = false;
	int r;

	while (at < n) {
		char *word = args[at];

		if (!only_words && strcmp(word, "--") == 0) {
			only_words = true;
			++at;
		} else if (!only_words && word[0] == '-' && word[1]) {
			r = take_option(options, args, n, &at, diag);
			if (r)
				return r;
		} else if (options->stop_at_word) {
			break;
		} else {
			args[kept++] = args[at++];
		}
	}
	*n_args = kept;
	*ret_used = at;
	return TOOL_OK;
}

/** options_help() - print the lines of a table, as --help shows them */
void options_help(const struct option *options, FILE *to)
{
	for (const struct option *option = options; !options_end(option); ++option) {
		char left[64];
		int n;

		n = snprintf(left, sizeof(left), "  %c%c%s%s%s%s%s", option->letter ? '-' : ' ',
			     option->letter ? option->letter : ' ',
			     !option->letter ? "  " : option->name ? ", " : "",
			     option->name ? "--" : "", option->name ? option->name : "", option->value ? " " : "",
			     option->value ? option->value : "");
		if (n >= HELP_COLUMN)
			fprintf(to, "%s\n%*s %s\n", left, HELP_COLUMN, "", option->help);
		else
			fprintf(to, "%-*s %s\n", HELP_COLUMN, left, option->help);
	}
}
