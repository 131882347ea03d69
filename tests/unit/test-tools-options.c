/* SPDX-License-Identifier: MIT */
/* Options from a table: spellings, types, ranges, and which mistake ends in which exit status. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "tools/options.h"
#include "tests/lib/run-suite.h"

struct target {
	bool flag;
	const char *text;
	int64_t number;
	uint64_t natural;
	double real;
	unsigned n_calls;
};

static int count_call(void *target, const char *value, struct diag *diag)
{
	struct target *t = target;

	++t->n_calls;
	return strcmp(value, "bad") == 0 ? diag_set(diag, TOOL_FAILED, "bad call") : TOOL_OK;
}

static const struct option table[] = {
	{ "flag", 'f', NULL, "a flag", OPTION_FLAG, offsetof(struct target, flag) },
	{ "text", 't', "TEXT", "a text", OPTION_TEXT, offsetof(struct target, text) },
	{ "empty", 0, "TEXT", "may be empty", OPTION_TEXT, offsetof(struct target, text), .may_be_empty = true },
	{ NULL, 'n', "N", "a number", OPTION_INT, offsetof(struct target, number), "from 1 to 9", 1, 9 },
	{ "natural", 0, "N", "a natural number", OPTION_UINT, offsetof(struct target, natural) },
	{ "real", 0, "R", "above 0", OPTION_REAL, offsetof(struct target, real), "above 0 and at most 1", 0, 1,
	  .above_least = true },
	{ "call", 0, "X", "a call", OPTION_CALL, .set = count_call },
	OPTIONS_END,
};

static struct target target;
static struct diag diag;
static char *words[16];
static size_t n_words, n_used;

/* Parses one command line, its words separated by single spaces; "~" stands for an empty word. */
static int parse(const char *line, bool stop_at_word)
{
	static char copy[256];
	const struct option_set set = { table, &target };

	target = (struct target){ .number = 3 };
	diag.text[0] = 0;
	(void)snprintf(copy, sizeof(copy), "%s", line);
	n_words = 0;
	for (char *word = copy; word; ++n_words) {
		words[n_words] = word;
		word = strchr(word, ' ');
		if (word)
			*word++ = 0;
		if (strcmp(words[n_words], "~") == 0)
			words[n_words][0] = 0;
	}
	return options_parse(&(struct options){ &set, 1, stop_at_word }, words, &n_words, &n_used, &diag);
}

START_TEST(test_spellings)
{
	ck_assert_int_eq(parse("-f a --text=x b -n 4 --real 0.5 -- -c", false), TOOL_OK);
	ck_assert(target.flag);
	ck_assert_str_eq(target.text, "x");
	ck_assert_int_eq(target.number, 4);
	ck_assert_double_eq(target.real, 0.5);
	ck_assert_uint_eq(n_words, 3);
	ck_assert_str_eq(words[0], "a");
	ck_assert_str_eq(words[1], "b");
	ck_assert_str_eq(words[2], "-c");
	ck_assert_int_eq(parse("-n5 -tx=y -", false), TOOL_OK);
	ck_assert_int_eq(target.number, 5);
	ck_assert_str_eq(target.text, "x=y");
	ck_assert_str_eq(words[0], "-");
	ck_assert_int_eq(parse("--text --flag", false), TOOL_OK);
	ck_assert_str_eq(target.text, "--flag");
	ck_assert(!target.flag);
	ck_assert_int_eq(parse("--call a --call b", false), TOOL_OK);
	ck_assert_uint_eq(target.n_calls, 2);
}
END_TEST

START_TEST(test_stop_at_word)
{
	ck_assert_int_eq(parse("-f verb --unknown", true), TOOL_OK);
	ck_assert_uint_eq(n_used, 1);
	ck_assert_uint_eq(n_words, 0);
}
END_TEST

START_TEST(test_usage)
{
	static const char *const lines[] = {
		"--unknown", "-x", "--fla", "--flags", "--flag=1", "-fx", "--text", "-n", "--=x",
	};

	for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); ++i) {
		ck_assert_msg(parse(lines[i], false) == TOOL_USAGE, "%s", lines[i]);
		ck_assert_msg(diag.text[0], "%s", lines[i]);
	}
	ck_assert_int_eq(parse("--", false), TOOL_OK);
}
END_TEST

START_TEST(test_refused)
{
	static const char *const lines[] = {
		"-n 0", "-n 10", "-n -5", "-n 99999999999999999999", "--real 0", "--real 1.01", "--real nan", "--real -inf",
		"--natural -1", "--natural 18446744073709551616", "--call bad", "--text ~", "--text=", "-n x", "-n 1.5", "-n ~",
		"--real x", "--natural 1x", "-t ~", "--call ~",
	};

	for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); ++i) {
		ck_assert_msg(parse(lines[i], false) == TOOL_FAILED, "%s", lines[i]);
		ck_assert_msg(diag.text[0], "%s", lines[i]);
		ck_assert_int_eq(target.number, 3);
	}
	ck_assert_int_eq(parse("-n 0", false), TOOL_FAILED);
	ck_assert_str_eq(diag.text, "-n 0: must be from 1 to 9");
	ck_assert_int_eq(parse("--empty ~", false), TOOL_OK);
	ck_assert_str_eq(target.text, "");
}
END_TEST

START_TEST(test_help_names_every_option)
{
	char *text = NULL;
	size_t bytes;
	FILE *file = open_memstream(&text, &bytes);

	options_help(table, file);
	ck_assert_int_eq(fclose(file), 0);
	for (const struct option *option = table; option->help; ++option)
		ck_assert_ptr_nonnull(strstr(text, option->help));
	ck_assert_ptr_nonnull(strstr(text, "  -f, --flag "));
	ck_assert_ptr_nonnull(strstr(text, "  -n N "));
	ck_assert_ptr_nonnull(strstr(text, "      --natural N "));
	free(text);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("tools/options");
	TCase *tcase = tcase_create("options");

	tcase_add_test(tcase, test_spellings);
	tcase_add_test(tcase, test_stop_at_word);
	tcase_add_test(tcase, test_usage);
	tcase_add_test(tcase, test_refused);
	tcase_add_test(tcase, test_help_names_every_option);
	suite_add_tcase(suite, tcase);
	return run_suite(suite);
}
