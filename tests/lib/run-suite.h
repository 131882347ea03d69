/* SPDX-License-Identifier: MIT */
/* How every unit test ends: run the suite, one line a failure, the exit status of the program. */
#ifndef LORAD_TESTS_RUN_SUITE_H
#define LORAD_TESTS_RUN_SUITE_H

#include <check.h>
#include <stdlib.h>

/* Takes over the suite. CK_VERBOSITY in the environment says how much is printed. */
static inline int run_suite(Suite *suite)
{
	SRunner *runner = srunner_create(suite);
	int failed;

	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

#endif
