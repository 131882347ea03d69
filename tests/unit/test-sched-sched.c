/* SPDX-License-Identifier: MIT */
/* Description: the scheduler with its thread: submit, cancel, list, drain, from the loop's side (for TSan, too). */
#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "daemon/base/clock.h"
#include "daemon/sched/sched.h"
#include "libclient/loraclient.h"
#include "tests/unit/sched-fakes.h"
#include "tests/lib/run-suite.h"

static struct sched *sched;
static struct ipc_session *session;

static void setup(void)
{
	struct sched_options options = { .limits = { .rows = 16, .seqs = 8 } };

	fakes_reset();
	options.kv = fakes.kv;
	session = calloc(1, sizeof(*session));
	session->room = FAKE_SENT_MAX;
	ck_assert_int_eq(sched_new(&sched, &options), 0);
}

static void teardown(void)
{
	sched = sched_free(sched);
	ck_assert_uint_eq(session->refs, 0);
	ck_assert_uint_eq(fakes.requests, 0);
	fakes_end();
	free(session);
}

/* The session's record is the engine's while requests run, so it is read only after this. */
static void wait_for_ended(uint64_t n)
{
	const struct timespec pause = { .tv_nsec = 1000000 };
	struct sched_stats stats;

	for (int i = 0; i < 20000; ++i) {
		sched_read_stats(sched, &stats);
		if (stats.finished + stats.failed + stats.cancelled >= n)
			return;
		(void)nanosleep(&pause, NULL);
	}
	ck_abort_msg("only %u of %u ended", (unsigned)(stats.finished + stats.failed + stats.cancelled), (unsigned)n);
}

static int submit(struct ipc_request *ipc, struct diag *diag)
{
	return sched_ipc_ops.submit(sched, ipc, diag);
}

START_TEST(requests_are_answered)
{
	struct diag diag = { 0 };

	for (uint64_t id = 0; id < 30; ++id)
		ck_assert_int_eq(submit(fake_request(session, id, "prompt", 20), &diag), 0);
	wait_for_ended(30);
	sched_drain(sched, clock_ns());
	for (uint64_t id = 0; id < 30; ++id)
		ck_assert_uint_eq(fake_count(session, id, 't'), 20);
}
END_TEST

START_TEST(refused_requests_stay_the_callers)
{
	struct ipc_request *ipc = fake_request(session, 1, "prompt", 0);
	struct diag diag = { 0 };

	ck_assert_int_eq(submit(ipc, &diag), EINVAL);
	ipc_request_free(ipc);
}
END_TEST

START_TEST(cancelled_and_closed)
{
	struct diag diag = { 0 };

	ck_assert_int_eq(submit(fake_request(session, 1, "prompt", 4000), &diag), 0);
	ck_assert_int_eq(submit(fake_request(session, 2, "prompt", 4000), &diag), 0);
	sched_ipc_ops.cancel(sched, session, 1);
	sched_ipc_ops.closed(sched, session);
	wait_for_ended(2);
	sched_drain(sched, clock_ns());
	ck_assert_uint_eq(fake_count(session, 1, 'd'), 1);
	ck_assert_uint_eq(fake_count(session, 2, 'd'), 0);
}
END_TEST

START_TEST(a_woken_engine_sees_the_adapter)
{
	struct ipc_request *ipc = fake_request(session, 1, "prompt", 5);
	struct diag diag = { 0 };

	fake_adapter(ipc, 1, 1);
	ck_assert_int_eq(submit(ipc, &diag), 0);
	sched_wake(sched);
	wait_for_ended(1);
}
END_TEST

START_TEST(idle_is_progress)
{
	uint64_t before = sched_progress(sched);
	const struct timespec pause = { .tv_nsec = 20000000 };

	(void)nanosleep(&pause, NULL);
	ck_assert_uint_ne(sched_progress(sched), before);
}
END_TEST

START_TEST(drain_finishes_then_fails)
{
	struct ipc_request *late;
	struct diag diag = { 0 };

	session->room = 3; /* this one cannot finish */
	ck_assert_int_eq(submit(fake_request(session, 1, "prompt", 10), &diag), 0);
	sched_drain(sched, clock_ns() + 50 * NS_PER_MS);
	ck_assert_uint_eq(fake_count(session, 1, 'e'), 1);
	ck_assert_int_eq(session->sent[session->n_sent - 1].code, ECANCELED);
	late = fake_request(session, 2, "prompt", 10);
	ck_assert_int_eq(submit(late, &diag), ECANCELED);
	ipc_request_free(late);
}
END_TEST

START_TEST(freed_with_work_in_flight)
{
	struct diag diag = { 0 };

	session->room = 3;
	for (uint64_t id = 0; id < 20; ++id)
		ck_assert_int_eq(submit(fake_request(session, id, "prompt", 100), &diag), 0);
}
END_TEST

START_TEST(list_is_one_answer)
{
	sched_ipc_ops.list(sched, session, 7);
	ck_assert_uint_eq(fake_count(session, 7, 'a'), 1);
	ck_assert_uint_eq(fake_count(session, 7, 'd'), 1);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("sched-sched");
	TCase *tc = tcase_create("sched");

	tcase_set_timeout(tc, 60);
	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, requests_are_answered);
	tcase_add_test(tc, refused_requests_stay_the_callers);
	tcase_add_test(tc, cancelled_and_closed);
	tcase_add_test(tc, a_woken_engine_sees_the_adapter);
	tcase_add_test(tc, idle_is_progress);
	tcase_add_test(tc, drain_finishes_then_fails);
	tcase_add_test(tc, freed_with_work_in_flight);
	tcase_add_test(tc, list_is_one_answer);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
