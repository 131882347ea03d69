/* SPDX-License-Identifier: MIT */
/* Every part runs once a run, results are visible, sleeping and spinning threads both wake. And: huge regions. */
#include <check.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "daemon/os/mem.h"
#include "daemon/os/team.h"
#include "tests/lib/run-suite.h"

enum { PARTS_MAX = 64 };

struct count {
	unsigned n_parts_seen[PARTS_MAX];
	unsigned times[PARTS_MAX]; /* written by its part only */
	unsigned *rising;   /* what the caller wrote before the run */
	unsigned expected;
};

static void count_parts(const void *args, unsigned part, unsigned n_parts)
{
	struct count *c = *(struct count *const *)args;

	ck_assert_uint_lt(part, n_parts);
	ck_assert_uint_le(n_parts, PARTS_MAX);
	ck_assert_uint_eq(*c->rising, c->expected);
	c->n_parts_seen[part] = n_parts;
	++c->times[part];
}

static double seconds(clockid_t clock)
{
	struct timespec t;

	(void)clock_gettime(clock, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

START_TEST(every_part_runs_once)
{
	unsigned n = (unsigned)_i;
	_cleanup_(team_freep) struct team *team = NULL;
	unsigned rising = 0;
	struct count count = { .rising = &rising }, *c = &count;

	ck_assert_int_eq(team_new(&team, n), 0);
	ck_assert_uint_eq(team_size(team), n);
	for (unsigned run = 1; run <= 2000; ++run) {
		rising = count.expected = run;
		team_run(team, count_parts, &c);
		for (unsigned i = 0; i < count.n_parts_seen[0]; ++i) {
			ck_assert_uint_eq(count.times[i], run);
			ck_assert_uint_eq(count.n_parts_seen[i], count.n_parts_seen[0]);
		}
		if (run % 100 == 0)
			team_rest(team);
		if (run % 500 == 0)
			usleep(2000); /* long enough for all to be asleep */
	}
}
END_TEST

START_TEST(resting_uses_no_time)
{
	_cleanup_(team_freep) struct team *team = NULL;
	unsigned rising = 0;
	struct count count = { .rising = &rising }, *c = &count;
	double before;

	ck_assert_int_eq(team_new(&team, 4), 0);
	team_run(team, count_parts, &c);
	team_rest(team);
	usleep(20000);
	before = seconds(CLOCK_PROCESS_CPUTIME_ID);
	usleep(200000);
	ck_assert(seconds(CLOCK_PROCESS_CPUTIME_ID) - before < 0.05);
}
END_TEST

static void nothing(const void *args, unsigned part, unsigned n_parts)
{
	(void)args, (void)part, (void)n_parts;
}

/* Not a test of speed: prints what a run costs beyond its work, for the record. */
START_TEST(cost_of_a_run)
{
	enum { RUNS = 20000 };
	_cleanup_(team_freep) struct team *team = NULL;
	unsigned n = (unsigned)sysconf(_SC_NPROCESSORS_ONLN);
	double start;

	ck_assert_int_eq(team_new(&team, n), 0);
	start = seconds(CLOCK_MONOTONIC);
	for (unsigned i = 0; i < RUNS; ++i)
		team_run(team, nothing, NULL);
	printf("team of %u: %.2f us a run\n", n, (seconds(CLOCK_MONOTONIC) - start) / RUNS * 1e6);
	ck_assert_uint_eq(team_size(team), n);
}
END_TEST

START_TEST(region_is_aligned_and_zero)
{
	struct mem_region region = MEM_REGION_NULL;
	size_t bytes = (5u << 20) + 1;
	uint8_t *p;

	ck_assert_int_eq(mem_region_init(&region, "test", bytes), 0);
	ck_assert_uint_eq((uintptr_t)region.base % MEM_HUGE_PAGE, 0);
	ck_assert_uint_eq(region.bytes, 6u << 20);
	p = region.base;
	ck_assert_uint_eq(p[0] | p[bytes] | p[region.bytes - 1], 0);
	memset(region.base, 0x5a, region.bytes);
	ck_assert_uint_eq(p[region.bytes - 1], 0x5a);
	ck_assert_int_eq(region.fd < 0, region.kind == MEM_ANON_HUGE);
	printf("region: %s; %.1f GiB available\n", mem_kind_name(region.kind), (double)mem_available() / (1u << 30));
	ck_assert_uint_gt(mem_available(), 0);
	mem_region_deinit(&region);
	ck_assert_ptr_null(region.base);
	mem_region_deinit(&region); /* once more: nothing to do */
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("os-team");
	TCase *tc = tcase_create("team");

	tcase_set_timeout(tc, 60);
	tcase_add_loop_test(tc, every_part_runs_once, 1, 6);
	tcase_add_test(tc, resting_uses_no_time);
	tcase_add_test(tc, cost_of_a_run);
	tcase_add_test(tc, region_is_aligned_and_zero);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
