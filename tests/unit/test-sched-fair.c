/* SPDX-License-Identifier: MIT */
/*
 * Description: whose turn it is: counters, lifts, weights, the proven bound; targets, deadlines, full queues.
 *
 * The engine on stand-ins (sched-fakes.c). Service is counted as fair.c says: a token of a prompt 1, of an answer 2.
 */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "daemon/sched/admit.h"
#include "daemon/sched/engine.h"
#include "libclient/loraclient.h"
#include "tests/unit/sched-fakes.h"
#include "tests/lib/run-suite.h"

#define PROMPT 24u
#define ANSWER 12u
#define SEQS 4u

static struct engine engine;
static struct charges charges;
static struct ipc_session *session;
static uint64_t now, next_id;

static void start(const struct sched_fairness *fairness)
{
	const struct sched_options options = {
		.kv = fakes.kv,
		.limits = { .rows = 32, .seqs = SEQS },
		.prefix = SCHED_PREFIX_OFF,
		.fairness = *fairness,
	};

	ck_assert_int_eq(engine_init(&engine, &options), 0);
}

static void setup(void)
{
	fakes_reset();
	session = calloc(1, sizeof(*session));
	session->room = UINT32_MAX;
	now = 1000000;
	next_id = 0;
	ck_assert_int_eq(charges_init(&charges), 0);
	start(&(struct sched_fairness){ 0 });
}

static void stop(void)
{
	engine_fail_all(&engine, EIO, "the end");
	engine_deinit(&engine);
}

static void teardown(void)
{
	stop();
	charges_deinit(&charges);
	ck_assert_uint_eq(session->refs, 0);
	ck_assert_uint_eq(fakes.requests, 0);
	fakes_end();
	free(session);
}

static void again(const struct sched_fairness *fairness)
{
	stop();
	session->n_sent = 0;
	start(fairness);
}

static struct ipc_request *ask(uint32_t uid, unsigned prompt, unsigned answer)
{
	char text[FAKE_CONTEXT];
	struct ipc_request *ipc;

	memset(text, 'x', prompt);
	text[prompt] = '\0';
	ipc = fake_request(session, next_id++, text, answer);
	ipc->uid = uid;
	ipc->arrived_ns = now + next_id; /* no two at once */
	return ipc;
}

static uint64_t add(struct ipc_request *ipc)
{
	const struct admit admit = { .kv = fakes.kv, .charges = &charges };
	struct request *request;
	struct diag diag = { 0 };
	uint64_t id = ipc->id;

	ck_assert_msg(admit_request(&admit, ipc, &request, &diag) == 0, "%s", diag.text);
	engine_add(&engine, request);
	return id;
}

static void turn(void)
{
	(void)engine_turn(&engine, now += NS_PER_MS);
	if (session->n_sent > FAKE_SENT_MAX / 2)
		session->n_sent = 0;
}

static struct sched_user of(uid_t uid)
{
	struct sched_user users[16];
	uint32_t n = fair_read(&engine.fair, users);

	for (uint32_t i = 0; i < n; ++i)
		if (users[i].uid == uid)
			return users[i];
	return (struct sched_user){ .uid = uid };
}

/* ---- the bound ---- */

/* User 1 floods from the beginning, user 2 joins and always has two waiting. Return: the largest difference of what they are
 * served from then on; *ret_served: of one of them. */
static double difference(double *ret_served)
{
	double base, most = 0;

	for (unsigned i = 0; i < 400; ++i)
		add(ask(1, PROMPT, ANSWER));
	for (unsigned i = 0; i < 20; ++i)
		turn();
	for (unsigned i = 0; i < 3; ++i)
		add(ask(2, PROMPT, ANSWER));
	base = of(1).service - of(2).service;
	for (unsigned i = 0; i < 1000; ++i) {
		turn();
		while (of(2).waiting < 2)
			add(ask(2, PROMPT, ANSWER));
		ck_assert_uint_gt(of(1).waiting, 0); /* both are backlogged all the time */
		most = fmax(most, fabs(of(1).service - of(2).service - base));
	}
	*ret_served = of(2).service;
	return most;
}

START_TEST(two_who_always_wait_are_served_alike)
{
	double l = PROMPT, m = SEQS * (PROMPT + ANSWER), bound = 2 * fmax(FAIR_PROMPT * l, FAIR_GENERATED * m), served;
	double fair = difference(&served);

	ck_assert_double_le(fair, bound);
	ck_assert_double_le(bound, 0.1 * served); /* the bound means something */
	again(&(struct sched_fairness){ .first_come = true });
	ck_assert_double_gt(difference(&served), bound);
}
END_TEST

START_TEST(weights_divide_the_service)
{
	const struct sched_fairness fairness = { .weight = { { 7, 3.0 }, { 8, 0.5 } }, .n_weights = 2 };

	again(&fairness);
	for (unsigned i = 0; i < 300; ++i)
		for (uint32_t uid = 7; uid <= 9; ++uid)
			add(ask(uid, PROMPT, ANSWER));
	for (unsigned i = 0; i < 700; ++i)
		turn();
	ck_assert_double_eq_tol(of(7).service / of(9).service, 3.0, 0.2);
	ck_assert_double_eq_tol(of(8).service / of(9).service, 0.5, 0.05);
}
END_TEST

/* Long answers count as much as long prompts of twice as many tokens, whoever has which. */
START_TEST(answers_are_charged_as_prompts_are)
{
	for (unsigned i = 0; i < 300; ++i) {
		add(ask(1, 4, 30));
		add(ask(2, 60, 2));
	}
	for (unsigned i = 0; i < 1000; ++i)
		turn();
	ck_assert_uint_gt(of(1).waiting, 0);
	ck_assert_uint_gt(of(2).waiting, 0);
	ck_assert_double_eq_tol(of(1).service / of(2).service, 1.0, 0.15);
}
END_TEST

/* Being away earns nothing: who comes back is at most as far behind as the others. */
START_TEST(a_user_who_was_away_is_lifted)
{
	add(ask(2, PROMPT, ANSWER));
	for (unsigned i = 0; i < 100; ++i)
		add(ask(1, PROMPT, ANSWER));
	for (unsigned i = 0; i < 200; ++i)
		turn();
	for (unsigned i = 0; i < 100; ++i)
		add(ask(2, PROMPT, ANSWER));
	turn();
	ck_assert_double_ge(fair_user(&engine.fair, 2)->counter, fair_user(&engine.fair, 1)->counter - PROMPT * SEQS);
	for (unsigned i = 0; i < 100; ++i)
		turn();
	ck_assert_uint_gt(of(1).running + of(1).waiting, 0);
	ck_assert_double_gt(of(2).service, 3 * (PROMPT + 2 * ANSWER));
}
END_TEST

START_TEST(alone_one_gets_everything)
{
	for (unsigned i = 0; i < 8; ++i)
		add(ask(1, PROMPT, 100));
	for (unsigned i = 0; i < 4 * SEQS; ++i) /* as many at a time as a step has rows for */
		turn();
	ck_assert_uint_eq(engine.n_running, SEQS);
}
END_TEST

START_TEST(what_is_computed_again_is_free)
{
	fakes_memory(4, 0);
	engine.options.kv = fakes.kv;
	for (unsigned i = 0; i < 4; ++i)
		add(ask(1, 14, 20)); /* three blocks each in the end */
	for (unsigned i = 0; i < 500 && !engine_empty(&engine); ++i)
		turn();
	ck_assert_uint_gt(engine.stats.preempted, 0);
	ck_assert_double_eq(of(1).service, 4 * (14 + 2 * 20));
	ck_assert_uint_eq(of(1).generated_tokens, 80);
}
END_TEST

/* ---- targets and deadlines ---- */

static int code_of(uint64_t id)
{
	for (unsigned i = 0; i < session->n_sent; ++i)
		if (session->sent[i].id == id && session->sent[i].kind == 'e')
			return session->sent[i].code;
	return 0;
}

START_TEST(a_target_out_of_reach_is_told_at_once)
{
	struct ipc_request *ipc[3];
	uint64_t id[3];

	engine.estimate = (struct estimate){ .tokens = 1000, .seconds = 10 }; /* 100 tokens a second */
	for (unsigned i = 0; i < SEQS; ++i)
		add(ask(1, PROMPT, 100));
	for (unsigned i = 0; i < 3; ++i) {
		ipc[i] = ask(1, 100, 10);
		ipc[i]->first_token_ms = i == 0 ? 2500 : i == 1 ? 2500 : 0;
		id[i] = add(ipc[i]);
	}
	turn();
	/* 96 tokens ahead, 100 of its own: 1.96 s. The next one has 100 more ahead: 2.96 s. */
	ck_assert_int_eq(code_of(id[0]), 0);
	ck_assert_int_eq(code_of(id[1]), ETIME);
	ck_assert_int_eq(code_of(id[2]), 0);
	ck_assert_uint_eq(engine.stats.turned_away, 1);
	ck_assert_uint_eq(of(1).aborted, 1);
}
END_TEST

/* Time in which everybody waited for an adapter is no measure of prompts. */
START_TEST(a_page_in_is_not_taken_for_slowness)
{
	const struct timespec pause = { .tv_nsec = 400 * 1000 * 1000 };
	struct ipc_request *ipc = ask(1, PROMPT, ANSWER);

	fakes.adapter[1].result = CACHE_E_PENDING;
	fake_adapter(ipc, 1, 1);
	add(ipc);
	turn();
	(void)nanosleep(&pause, NULL);
	turn();
	ck_assert_double_lt(engine.estimate.seconds, 0.3);
	fakes.adapter[1].result = CACHE_OK;
	turn();
	ck_assert_double_gt(engine.estimate.tokens, 0);
}
END_TEST

START_TEST(without_an_estimate_only_the_clock_ends_it)
{
	struct ipc_request *ipc;
	uint64_t id;

	for (unsigned i = 0; i < SEQS; ++i)
		add(ask(1, PROMPT, 1000));
	ipc = ask(1, 3000, 10);
	ipc->first_token_ms = 100;
	id = add(ipc);
	for (unsigned i = 0; i < 50; ++i)
		turn();
	ck_assert_int_eq(code_of(id), 0);
	for (unsigned i = 0; i < 100; ++i)
		turn();
	ck_assert_int_eq(code_of(id), ETIME);
}
END_TEST

START_TEST(deadlines_end_whoever_they_pass)
{
	struct ipc_request *ipc[2];
	uint64_t id[2];

	ipc[0] = ask(1, PROMPT, 1000);
	ipc[0]->deadline_ms = 200;
	id[0] = add(ipc[0]);
	for (unsigned i = 0; i < SEQS; ++i)
		add(ask(1, PROMPT, 1000));
	ipc[1] = ask(1, PROMPT, 1000);
	ipc[1]->deadline_ms = 100;
	id[1] = add(ipc[1]);
	for (unsigned i = 0; i < 130; ++i)
		turn();
	ck_assert_int_eq(code_of(id[1]), ETIMEDOUT); /* it waited */
	ck_assert_int_eq(code_of(id[0]), 0);
	for (unsigned i = 0; i < 100; ++i)
		turn();
	ck_assert_int_eq(code_of(id[0]), ETIMEDOUT); /* it ran */
	ck_assert_uint_eq(of(1).aborted, 2);
}
END_TEST

/* More comes than starts: the newest go first, if all have targets. Return: the smallest id of the second batch. */
static uint64_t first_to_start(int64_t target_ms)
{
	struct request *request;
	uint64_t least = UINT64_MAX;

	for (unsigned i = 0; i < SEQS; ++i)
		add(ask(1, PROMPT, ANSWER));
	turn();
	for (unsigned i = 0; i < 40; ++i) {
		struct ipc_request *ipc = ask(1, PROMPT, ANSWER);

		ipc->first_token_ms = target_ms;
		add(ipc);
	}
	while (engine.stats.finished < SEQS)
		turn();
	list_for_each(request, &engine.running, link)
		if (request->ipc->id < least)
			least = request->ipc->id;
	return least;
}

START_TEST(under_overload_the_newest_goes_first)
{
	ck_assert_uint_ge(first_to_start(10000), SEQS + 40 - SEQS);
	again(&(struct sched_fairness){ 0 });
	next_id = 0;
	ck_assert_uint_eq(first_to_start(0), SEQS);
}
END_TEST

START_TEST(a_full_queue_is_told_at_once)
{
	uint64_t id;

	again(&(struct sched_fairness){ .queue_limit = 3 });
	engine.estimate = (struct estimate){ .tokens = 1000, .seconds = 1 };
	for (unsigned i = 0; i < 3; ++i)
		add(ask(1, PROMPT, ANSWER));
	id = add(ask(1, PROMPT, ANSWER));
	ck_assert_int_eq(code_of(id), EAGAIN);
	ck_assert_uint_eq(of(1).refused, 1);
	id = add(ask(2, PROMPT, ANSWER)); /* the other user's queue is its own */
	ck_assert_int_eq(code_of(id), 0);
	turn();
	id = add(ask(1, PROMPT, ANSWER));
	ck_assert_int_eq(code_of(id), 0);
}
END_TEST

/* ---- few unlike adapters at a time ---- */

START_TEST(the_batch_keeps_to_few_adapters)
{
	again(&(struct sched_fairness){ .batch_adapters = 2 });
	for (unsigned i = 0; i < 24; ++i) {
		struct ipc_request *ipc = ask(1, 4, 8);

		fake_adapter(ipc, i % 6, 1);
		add(ipc);
	}
	for (unsigned i = 0; i < 5000 && !engine_empty(&engine); ++i)
		turn();
	ck_assert(engine_empty(&engine));
	ck_assert_uint_eq(engine.stats.max_adapters, 2);
	ck_assert_uint_eq(engine.stats.finished, 24);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("sched-fair");
	TCase *tc = tcase_create("fair");

	tcase_set_timeout(tc, 60);
	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, two_who_always_wait_are_served_alike);
	tcase_add_test(tc, weights_divide_the_service);
	tcase_add_test(tc, answers_are_charged_as_prompts_are);
	tcase_add_test(tc, a_user_who_was_away_is_lifted);
	tcase_add_test(tc, alone_one_gets_everything);
	tcase_add_test(tc, what_is_computed_again_is_free);
	tcase_add_test(tc, a_target_out_of_reach_is_told_at_once);
	tcase_add_test(tc, a_page_in_is_not_taken_for_slowness);
	tcase_add_test(tc, without_an_estimate_only_the_clock_ends_it);
	tcase_add_test(tc, deadlines_end_whoever_they_pass);
	tcase_add_test(tc, under_overload_the_newest_goes_first);
	tcase_add_test(tc, a_full_queue_is_told_at_once);
	tcase_add_test(tc, the_batch_keeps_to_few_adapters);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
