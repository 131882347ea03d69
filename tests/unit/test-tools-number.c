/* SPDX-License-Identifier: MIT */
/* Numbers from people: what is a number, what is none, and what is one that does not fit. */
#include <check.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "tools/number.h"
#include "tests/lib/run-suite.h"

START_TEST(test_int)
{
	static const struct {
		const char *text;
		int result;
		int64_t value;
	} cases[] = {
		{ "0", NUMBER_OK, 0 },
		{ "-0", NUMBER_OK, 0 },
		{ "+7", NUMBER_OK, 7 },
		{ "010", NUMBER_OK, 10 },
		{ "9223372036854775807", NUMBER_OK, INT64_MAX },
		{ "-9223372036854775808", NUMBER_OK, INT64_MIN },
		{ "9223372036854775808", NUMBER_E_RANGE, 0 },
		{ "-9223372036854775809", NUMBER_E_RANGE, 0 },
		{ "99999999999999999999999999", NUMBER_E_RANGE, 0 },
		{ "", NUMBER_E_SYNTAX, 0 },
		{ "-", NUMBER_E_SYNTAX, 0 },
		{ "--1", NUMBER_E_SYNTAX, 0 },
		{ " 1", NUMBER_E_SYNTAX, 0 },
		{ "1 ", NUMBER_E_SYNTAX, 0 },
		{ "1.0", NUMBER_E_SYNTAX, 0 },
		{ "0x10", NUMBER_E_SYNTAX, 0 },
		{ "1e3", NUMBER_E_SYNTAX, 0 },
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); ++i) {
		int64_t value = 0;

		ck_assert_msg(number_int(cases[i].text, &value) == cases[i].result, "'%s'", cases[i].text);
		ck_assert_int_eq(value, cases[i].value);
	}
}
END_TEST

START_TEST(test_uint)
{
	uint64_t value = 5;

	ck_assert_int_eq(number_uint("18446744073709551615", &value), NUMBER_OK);
	ck_assert_uint_eq(value, UINT64_MAX);
	ck_assert_int_eq(number_uint("18446744073709551616", &value), NUMBER_E_RANGE);
	ck_assert_int_eq(number_uint("-1", &value), NUMBER_E_RANGE);
	ck_assert_int_eq(number_uint("-x", &value), NUMBER_E_SYNTAX);
	ck_assert_int_eq(number_uint("", &value), NUMBER_E_SYNTAX);
	ck_assert_uint_eq(value, UINT64_MAX);
	ck_assert_int_eq(number_uint("-0", &value), NUMBER_OK);
	ck_assert_uint_eq(value, 0);
}
END_TEST

START_TEST(test_real)
{
	static const struct {
		const char *text;
		int result;
		double value;
	} cases[] = {
		{ "0.5", NUMBER_OK, 0.5 },
		{ "-2", NUMBER_OK, -2 },
		{ "1e-3", NUMBER_OK, 1e-3 },
		{ ".5", NUMBER_OK, 0.5 },
		{ "inf", NUMBER_E_RANGE, 0 },
		{ "-Infinity", NUMBER_E_RANGE, 0 },
		{ "nan", NUMBER_E_RANGE, 0 },
		{ "1e999", NUMBER_E_RANGE, 0 },
		{ "0x1p3", NUMBER_E_SYNTAX, 0 },
		{ "1,5", NUMBER_E_SYNTAX, 0 },
		{ "1e", NUMBER_E_SYNTAX, 0 },
		{ "", NUMBER_E_SYNTAX, 0 },
		{ "-", NUMBER_E_SYNTAX, 0 },
		{ " 1", NUMBER_E_SYNTAX, 0 },
		{ "nanx", NUMBER_E_SYNTAX, 0 },
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); ++i) {
		double value = 0;

		ck_assert_msg(number_real(cases[i].text, &value) == cases[i].result, "'%s'", cases[i].text);
		ck_assert_double_eq(value, cases[i].value);
	}
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("tools/number");
	TCase *tcase = tcase_create("number");

	tcase_add_test(tcase, test_int);
	tcase_add_test(tcase, test_uint);
	tcase_add_test(tcase, test_real);
	suite_add_tcase(suite, tcase);
	return run_suite(suite);
}
