/* SPDX-License-Identifier: MIT */
/*
 * As much of the Check library as the tests of the kernels use, for machines without it (tests/gpu/run)
 *
 * A test runs in a process of its own, so that a GPU that failed is the matter of one test; CK_FORK=no: all in one. It
 * ends at its first failure. Each test and failure is a line on stdout. CK_SKIP names tests to leave out, with blanks
 * between; CK_RUN_CASE the only test case to run.
 */
#ifndef LORAD_TESTS_GPU_CHECK_H
#define LORAD_TESTS_GPU_CHECK_H

#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum print_output { CK_ENV };

typedef struct TTest {
	const char *name;
	void (*run)(int i);
} TTest;

typedef struct TCase {
	const char *name;
	struct TCase *next;
	void (*set_up)(void), (*tear_down)(void);
	struct { const TTest *test; int first, end; } tests[64];
	unsigned n;
} TCase;

typedef struct Suite {
	const char *name;
	TCase *first;
	int failed;
	unsigned passed, skipped;
} Suite;

typedef Suite SRunner;

/* Of a program, whichever files it is of. */
extern jmp_buf check_failed;
jmp_buf check_failed __attribute__((weak));

#define START_TEST(name_)                                            \
	static void name_##_test(int _i);                            \
	static const TTest name_##_ttest = { #name_, name_##_test }; \
	static const TTest *const name_ = &name_##_ttest;            \
	static void name_##_test(int _i __attribute__((unused)))
#define END_TEST

#define ck_abort_msg(...)                                \
	do {                                             \
		printf("  %s:%d: ", __FILE__, __LINE__); \
		printf(__VA_ARGS__);                     \
		putchar('\n');                           \
		longjmp(check_failed, 1);                \
	} while (0)
#define ck_assert_msg(yes, ...)                    \
	do {                                       \
		if (!(yes))                        \
			ck_abort_msg(__VA_ARGS__); \
	} while (0)
#define ck_assert(yes) ck_assert_msg(yes, "%s", #yes)
#define CHECK_COMPARE(type, format, a, op, b)                                                               \
	do {                                                                                                \
		type check_a = (type)(a);                                                                   \
		type check_b = (type)(b);                                                                   \
		ck_assert_msg(check_a op check_b, "%s %s %s: " format " and " format, #a, #op, #b, check_a, \
			      check_b);                                                                     \
	} while (0)
#define ck_assert_int_eq(a, b) CHECK_COMPARE(intmax_t, "%jd", a, ==, b)
#define ck_assert_int_lt(a, b) CHECK_COMPARE(intmax_t, "%jd", a, <, b)
#define ck_assert_uint_eq(a, b) CHECK_COMPARE(uintmax_t, "%ju", a, ==, b)
#define ck_assert_uint_le(a, b) CHECK_COMPARE(uintmax_t, "%ju", a, <=, b)
#define ck_assert_ptr_eq(a, b) CHECK_COMPARE(const void *, "%p", a, ==, b)
#define ck_assert_ptr_ne(a, b) CHECK_COMPARE(const void *, "%p", a, !=, b)
#define ck_assert_ptr_null(a) ck_assert_ptr_eq(a, NULL)
#define ck_assert_ptr_nonnull(a) ck_assert_ptr_ne(a, NULL)
#define ck_assert_str_eq(a, b) ck_assert_msg(strcmp(a, b) == 0, "%s is \"%s\", not \"%s\"", #a, a, b)
#define ck_assert_float_eq_tol(a, b, tolerance) \
	ck_assert_msg(fabsf((a) - (b)) <= (tolerance), "%s is %g, not %g", #a, (double)(a), (double)(b))

static inline void *check_allocate(size_t bytes)
{
	void *p = calloc(1, bytes);

	if (!p)
		abort();
	return p;
}

static inline Suite *suite_create(const char *name)
{
	Suite *suite = check_allocate(sizeof *suite);

	suite->name = name;
	return suite;
}

static inline TCase *tcase_create(const char *name)
{
	TCase *tc = check_allocate(sizeof *tc);

	tc->name = name;
	return tc;
}

static inline void tcase_set_timeout(TCase *tc, double seconds) /* who starts the program sees to that */
{
	(void)tc, (void)seconds;
}

static inline void tcase_add_checked_fixture(TCase *tc, void (*set_up)(void), void (*tear_down)(void))
{
	tc->set_up = set_up;
	tc->tear_down = tear_down;
}

static inline void tcase_add_loop_test(TCase *tc, const TTest *test, int first, int end)
{
	if (tc->n == sizeof tc->tests / sizeof *tc->tests)
		abort();
	tc->tests[tc->n].test = test;
	tc->tests[tc->n].first = first;
	tc->tests[tc->n++].end = end;
}

static inline void tcase_add_test(TCase *tc, const TTest *test)
{
	tcase_add_loop_test(tc, test, 0, 1);
}

static inline void suite_add_tcase(Suite *suite, TCase *tc)
{
	TCase **at = &suite->first;

	while (*at)
		at = &(*at)->next;
	*at = tc;
}

static inline SRunner *srunner_create(Suite *suite)
{
	return suite;
}

/* In this process. Return: did it pass? */
static inline int check_run(const TCase *tc, const TTest *test, int i)
{
	if (setjmp(check_failed))
		return 0;
	if (tc->set_up)
		tc->set_up();
	test->run(i);
	if (tc->tear_down)
		tc->tear_down();
	return 1;
}

static inline int check_run_apart(const TCase *tc, const TTest *test, int i)
{
	int status = 0;
	pid_t child = fork();

	if (child == 0) {
		int passed = check_run(tc, test, i);
		fflush(NULL);
		_exit(passed ? 0 : 1);
	}
	if (child < 0 || waitpid(child, &status, 0) != child)
		abort();
	if (WIFSIGNALED(status))
		printf("  ended by signal %d\n", WTERMSIG(status));
	return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static inline int check_is_listed(const char *list, const char *name)
{
	size_t length = strlen(name);

	for (const char *at = list; at && (at = strstr(at, name)); at += length)
		if ((at == list || at[-1] == ' ') && (at[length] == ' ' || at[length] == 0))
			return 1;
	return 0;
}

static inline void check_run_test(Suite *suite, const TCase *tc, const TTest *test, int i)
{
	const char *forks = getenv("CK_FORK");
	struct timespec t[2];
	int passed;

	if (check_is_listed(getenv("CK_SKIP"), test->name)) {
		suite->skipped++;
		return;
	}
	fflush(NULL);
	clock_gettime(CLOCK_MONOTONIC, &t[0]);
	passed = forks && strcmp(forks, "no") == 0 ? check_run(tc, test, i) : check_run_apart(tc, test, i);
	clock_gettime(CLOCK_MONOTONIC, &t[1]);
	suite->passed += (unsigned)passed;
	suite->failed += !passed;
	printf("%s %s/%s[%d] %.1f s\n", passed ? "ok  " : "FAIL", tc->name, test->name, i,
	       (double)(t[1].tv_sec - t[0].tv_sec) + (double)(t[1].tv_nsec - t[0].tv_nsec) * 1e-9);
	fflush(stdout);
}

static inline void srunner_run_all(SRunner *suite, enum print_output how)
{
	const char *only = getenv("CK_RUN_CASE");

	(void)how;
	for (const TCase *tc = suite->first; tc; tc = tc->next)
		for (unsigned j = 0; j < tc->n && (!only || !strcmp(only, tc->name)); j++)
			for (int i = tc->tests[j].first; i < tc->tests[j].end; i++)
				check_run_test(suite, tc, tc->tests[j].test, i);
	printf("%s: %u passed, %d failed, %u left out\n", suite->name, suite->passed, suite->failed, suite->skipped);
}

static inline int srunner_ntests_failed(SRunner *suite)
{
	return suite->failed;
}

static inline void srunner_free(SRunner *suite)
{
	for (TCase *tc = suite->first, *next; tc; tc = next) {
		next = tc->next;
		free(tc);
	}
	free(suite);
}

#endif
