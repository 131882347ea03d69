/* SPDX-License-Identifier: MIT */
/* Description: log lines whole and cut, their rate limit, and the histogram's buckets. */
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/base/hist.h"
#include "daemon/base/log.h"
#include "tests/lib/run-suite.h"

/* What log_line() writes to a descriptor of this kind. */
static void capture(int read_fd, int write_fd, const char *message, char *to, size_t room)
{
	int before = dup(STDERR_FILENO);
	ssize_t n;

	dup2(write_fd, STDERR_FILENO);
	log_warning("%s", message);
	dup2(before, STDERR_FILENO);
	close(before);
	n = read(read_fd, to, room - 1);
	ck_assert_int_gt(n, 0);
	to[n] = '\0';
}

START_TEST(levels_only_for_the_journal)
{
	char text[2048];
	int fds[2];

	ck_assert_int_eq(pipe(fds), 0);
	capture(fds[0], fds[1], "hello", text, sizeof(text));
	ck_assert_str_eq(text, "hello\n");
	close(fds[0]);
	close(fds[1]);
	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
	capture(fds[0], fds[1], "hello", text, sizeof(text));
	ck_assert_str_eq(text, "<4>hello\n");
	close(fds[0]);
	close(fds[1]);
}
END_TEST

START_TEST(long_lines_are_cut)
{
	char text[4096], message[3000];
	int fds[2];

	memset(message, 'x', sizeof(message) - 1);
	message[sizeof(message) - 1] = '\0';
	ck_assert_int_eq(pipe(fds), 0);
	capture(fds[0], fds[1], message, text, sizeof(text));
	ck_assert_uint_eq(strlen(text), 1024);
	ck_assert_int_eq(text[1023], '\n');
	close(fds[0]);
	close(fds[1]);
}
END_TEST

START_TEST(limit_opens_again)
{
	struct log_limit limit = { .window_ns = 100, .burst = 2 };

	ck_assert(log_limit_pass(&limit, 1000));
	ck_assert(log_limit_pass(&limit, 1001));
	ck_assert(!log_limit_pass(&limit, 1002));
	ck_assert_uint_eq(limit.dropped, 1);
	ck_assert(log_limit_pass(&limit, 1100));
	ck_assert_uint_eq(limit.dropped, 0);
}
END_TEST

START_TEST(histogram_bounds_hold_what_they_say)
{
	for (unsigned i = 0; i < HIST_BUCKETS - 1; ++i) {
		struct hist hist = { 0 };

		hist_add(&hist, hist_bound_ns(i));
		hist_add(&hist, hist_bound_ns(i) + 1);
		ck_assert_uint_eq(hist.bucket[i], 1);
		ck_assert_uint_eq(hist.bucket[i + 1], 1);
		ck_assert_uint_eq(hist.n, 2);
	}
}
END_TEST

START_TEST(histogram_tells_quantiles_as_bounds)
{
	struct hist hist = { 0 };

	ck_assert_uint_eq(hist_quantile_ns(&hist, 0.5), 0);
	for (unsigned i = 0; i < 98; ++i)
		hist_add(&hist, hist_bound_ns(3));
	hist_add(&hist, hist_bound_ns(7));
	hist_add(&hist, UINT64_MAX);
	ck_assert_uint_eq(hist_quantile_ns(&hist, 0.5), hist_bound_ns(3));
	ck_assert_uint_eq(hist_quantile_ns(&hist, 0.99), hist_bound_ns(7));
	ck_assert_uint_eq(hist_quantile_ns(&hist, 1), 2 * hist_bound_ns(HIST_BUCKETS - 2));
}
END_TEST

START_TEST(histogram_takes_any_duration)
{
	struct hist hist = { 0 };

	hist_add(&hist, 0);
	hist_add(&hist, UINT64_MAX);
	ck_assert_uint_eq(hist.bucket[0], 1);
	ck_assert_uint_eq(hist.bucket[HIST_BUCKETS - 1], 1);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("base-log");
	TCase *tc = tcase_create("log");

	tcase_add_test(tc, levels_only_for_the_journal);
	tcase_add_test(tc, long_lines_are_cut);
	tcase_add_test(tc, limit_opens_again);
	tcase_add_test(tc, histogram_bounds_hold_what_they_say);
	tcase_add_test(tc, histogram_tells_quantiles_as_bounds);
	tcase_add_test(tc, histogram_takes_any_duration);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
