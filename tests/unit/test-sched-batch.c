/* SPDX-License-Identifier: MIT */
/* Description: how a step's rows are shared out, who yields memory, and what clients are charged with. */
#include <check.h>
#include <stdlib.h>

#include "daemon/sched/batch.h"
#include "daemon/sched/charge.h"
#include "tests/lib/run-suite.h"

static const struct batch_limits limits = { .rows = 16, .mixed_rows = 4 };

START_TEST(decodes_come_first)
{
	struct batch_item items[] = { { .todo = 100, .ready = true }, { .todo = 1, .ready = true },
				      { .todo = 3, .ready = true }, { .todo = 1, .ready = true } };

	ck_assert_uint_eq(batch_fill(items, 4, &limits), 6);
	ck_assert_uint_eq(items[1].rows, 1);
	ck_assert_uint_eq(items[3].rows, 1);
	ck_assert_uint_eq(items[0].rows, 4);
	ck_assert_uint_eq(items[2].rows, 0);
}
END_TEST

START_TEST(prefills_alone_take_the_whole_step)
{
	struct batch_item items[] = { { .todo = 10, .ready = true }, { .todo = 10, .ready = true },
				      { .todo = 10, .ready = true } };

	ck_assert_uint_eq(batch_fill(items, 3, &limits), 16);
	ck_assert_uint_eq(items[0].rows, 10);
	ck_assert_uint_eq(items[1].rows, 6);
	ck_assert_uint_eq(items[2].rows, 0);
}
END_TEST

START_TEST(long_steps_take_fewer_prefill_rows)
{
	const uint64_t ms = NS_PER_MS;

	ck_assert_uint_eq(batch_pace(32, 128, 32, 50 * ms), 64);     /* twice as many would fit */
	ck_assert_uint_eq(batch_pace(32, 128, 32, 1 * ms), 64);      /* no more than twofold */
	ck_assert_uint_eq(batch_pace(100, 128, 100, 1 * ms), 128);
	ck_assert_uint_eq(batch_pace(32, 128, 32, 0), 64);
	ck_assert_uint_eq(batch_pace(64, 128, 20, 10 * ms), 64);     /* there were no more to take: that says nothing */
	ck_assert_uint_eq(batch_pace(64, 128, 64, 400 * ms), BATCH_PACE_LEAST);
	ck_assert_uint_eq(batch_pace(128, 128, 64, 200 * ms), 32);
	ck_assert_uint_eq(batch_pace(64, 8, 8, 400 * ms), 8);        /* a small budget stays below the least */
}
END_TEST

/* Steps that take 20 ms for their decodes and 2 for each prefill row come to rest at the pace. */
START_TEST(pace_settles)
{
	uint32_t rows = 32;

	for (unsigned i = 0; i < 10; ++i)
		rows = batch_pace(rows, 128, rows, (20 + 2 * rows) * NS_PER_MS);
	ck_assert_uint_ge(20 + 2 * rows, 95);
	ck_assert_uint_le(20 + 2 * rows, 100);
}
END_TEST

START_TEST(who_is_not_ready_sits_out)
{
	struct batch_item items[] = { { .todo = 1 }, { .todo = 9 }, { .todo = 5, .ready = true } };

	ck_assert_uint_eq(batch_fill(items, 3, &limits), 5);
	ck_assert_uint_eq(items[0].rows + items[1].rows, 0);
	ck_assert_uint_eq(batch_fill(items, 2, &limits), 0);
}
END_TEST

START_TEST(decodes_leave_no_row_over)
{
	struct batch_item items[20];

	for (int i = 0; i < 20; ++i)
		items[i] = (struct batch_item){ .todo = i < 16 ? 1 : 7, .ready = true };
	ck_assert_uint_eq(batch_fill(items, 20, &limits), 16);
	ck_assert_uint_eq(items[16].rows, 0);
}
END_TEST

START_TEST(the_youngest_yields)
{
	struct batch_victim requests[] = { { 10, true, true }, { 30, true, false }, { 20, true, true } };

	ck_assert_uint_eq(batch_choose_victim(requests, 3), 2);
	requests[0].ready = false; /* its client does not read: it has more time than anyone */
	ck_assert_uint_eq(batch_choose_victim(requests, 3), 0);
	requests[0].holds = requests[2].holds = false;
	ck_assert_uint_eq(batch_choose_victim(requests, 3), 3);
}
END_TEST

START_TEST(charges_are_bounded_by_client)
{
	struct charge charge[CHARGE_REQUESTS_MAX], other, last;
	struct charges charges;
	struct diag diag = { 0 };
	int a, b;

	ck_assert_int_eq(charges_init(&charges), 0);
	for (unsigned i = 0; i < CHARGE_REQUESTS_MAX; ++i)
		ck_assert_int_eq(charge_take(&charges, &a, 10, &charge[i], NULL), CHARGE_OK);
	ck_assert_int_eq(charge_take(&charges, &a, 10, &last, &diag), CHARGE_E_QUOTA);
	ck_assert(*diag.text);
	ck_assert_int_eq(charge_take(&charges, &b, 10, &other, NULL), CHARGE_OK);
	charge_drop(&charges, &charge[7]);
	ck_assert_int_eq(charge_take(&charges, &a, CHARGE_TOKENS_MAX, &last, NULL), CHARGE_E_QUOTA);
	ck_assert_int_eq(charge_take(&charges, &a, 10, &charge[7], NULL), CHARGE_OK);
	for (unsigned i = 0; i < CHARGE_REQUESTS_MAX; ++i)
		charge_drop(&charges, &charge[i]);
	charge_drop(&charges, &other);
	charge_drop(&charges, &other); /* dropped already: nothing happens */
	ck_assert_int_eq(charge_take(&charges, &a, CHARGE_TOKENS_MAX, &last, NULL), CHARGE_OK);
	charge_drop(&charges, &last);
	charges_deinit(&charges);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("sched-batch");
	TCase *tc = tcase_create("batch");

	tcase_add_test(tc, decodes_come_first);
	tcase_add_test(tc, prefills_alone_take_the_whole_step);
	tcase_add_test(tc, long_steps_take_fewer_prefill_rows);
	tcase_add_test(tc, pace_settles);
	tcase_add_test(tc, who_is_not_ready_sits_out);
	tcase_add_test(tc, decodes_leave_no_row_over);
	tcase_add_test(tc, the_youngest_yields);
	tcase_add_test(tc, charges_are_bounded_by_client);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
