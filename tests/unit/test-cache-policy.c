/* SPDX-License-Identifier: MIT */
/* Eviction order: what counts, that nothing is lost, and that the buckets agree with the plain formula. */
#include "daemon/cache/policy.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/run-suite.h"

#define MIB ((size_t)1 << 20)
#define ITEMS 500u

static struct policy policy;
static struct policy_item item[ITEMS];

static void setup(void)
{
	policy_init(&policy);
	memset(item, 0, sizeof(item));
}

static void put(unsigned i, size_t bytes, unsigned requests)
{
	policy_item_init(&item[i], bytes);
	while (requests--)
		policy_touch(&policy, &item[i], 10);
	policy_add(&policy, &item[i]);
}

static unsigned first(void)
{
	struct policy_item *i = policy_first(&policy);

	ck_assert_ptr_nonnull(i);
	return (unsigned)(i - item);
}

START_TEST(recency_orders_equals)
{
	ck_assert_ptr_null(policy_first(&policy));
	for (unsigned i = 0; i < 3; ++i)
		put(i, MIB, 1);
	ck_assert_uint_eq(first(), 0);
	policy_remove(&item[0]);
	policy_add(&policy, &item[0]); /* was held meanwhile */
	ck_assert_uint_eq(first(), 1);
	policy_touch(&policy, &item[1], 10);
	ck_assert_uint_eq(first(), 2);
	for (unsigned i = 0; i < 3; ++i)
		policy_remove(&item[i]);
	ck_assert_ptr_null(policy_first(&policy));
}
END_TEST

START_TEST(frequency_counts_and_fades)
{
	put(0, MIB, 4);
	put(1, MIB, 1);
	ck_assert_uint_eq(first(), 1);
	/* 88 requests are a half-life at 10 resident copies: after five of them four requests are less than one */
	put(2, MIB, 1);
	policy_remove(&item[2]);
	for (unsigned i = 0; i < 5 * 88; ++i)
		policy_touch(&policy, &item[2], 10);
	policy_touch(&policy, &item[1], 10);
	ck_assert_uint_eq(first(), 0);
}
END_TEST

/* What was popular long ago and is asked for once more counts as once. */
START_TEST(old_requests_fade)
{
	put(0, MIB, 64);
	put(1, MIB, 1);
	policy_remove(&item[1]);
	for (unsigned i = 0; i < 20 * 88; ++i)
		policy_touch(&policy, &item[1], 10);
	policy_touch(&policy, &item[0], 10);
	put(2, MIB, 3);
	ck_assert_uint_eq(first(), 0);
	ck_assert_double_lt(item[0].weight, 1.01);
}
END_TEST

/* Wherever the window has got to, with nobody having asked for the first meanwhile. */
START_TEST(the_window_may_be_anywhere)
{
	for (unsigned n = 2000; n < 2000 + 2 * POLICY_BUCKETS; ++n) {
		setup();
		put(0, MIB, 1);
		policy_remove(&item[0]);
		policy_item_init(&item[1], MIB);
		for (unsigned i = 0; i < n; ++i)
			policy_touch(&policy, &item[1], 0);
		policy_add(&policy, &item[1]);
		put(2, MIB, 1);
		ck_assert_uint_eq(first(), 2);
	}
}
END_TEST

START_TEST(the_larger_goes_first)
{
	put(0, 2 * MIB, 1);
	put(1, 300 * MIB, 1);
	put(2, 20 * MIB, 1);
	ck_assert_uint_eq(first(), 1);
	policy_remove(&item[1]);
	ck_assert_uint_eq(first(), 2);
	/* but not by size alone: a reload costs what it reads */
	policy_touch(&policy, &item[2], 10);
	policy_touch(&policy, &item[2], 10);
	policy_touch(&policy, &item[2], 10);
	policy_touch(&policy, &item[2], 10);
	policy_touch(&policy, &item[2], 10);
	ck_assert_uint_eq(first(), 0);
}
END_TEST

/* A weight stays when the memory goes: what comes back is worth more than what is new. */
START_TEST(weights_outlive_memory)
{
	put(0, MIB, 3);
	policy_remove(&item[0]);
	policy_touch(&policy, &item[0], 10);
	policy_add(&policy, &item[0]);
	put(1, MIB, 1);
	ck_assert_uint_eq(first(), 1);
}
END_TEST

static double key_of(const struct policy_item *i)
{
	return log2(i->weight) + i->at + i->worth;
}

/* The first one's key is the least but for a bucket's width; all that were added are passed, each once. */
static void check_order(const bool *in, unsigned n_in)
{
	bool seen[ITEMS] = { 0 };
	double least = INFINITY, floor_key = (double)policy.base / 4;
	unsigned n = 0;

	for (unsigned i = 0; i < ITEMS; ++i)
		if (in[i] && key_of(&item[i]) < least)
			least = key_of(&item[i]);
	for (struct policy_item *i = policy_first(&policy); i; i = policy_next(&policy, i), ++n) {
		unsigned k = (unsigned)(i - item);

		ck_assert(in[k] && !seen[k]);
		seen[k] = true;
		if (n == 0)
			ck_assert(key_of(i) < least + 0.25 || key_of(i) < floor_key + 0.25);
	}
	ck_assert_uint_eq(n, n_in);
}

START_TEST(buckets_agree_with_the_formula)
{
	bool in[ITEMS] = { 0 };
	unsigned n = 0;

	srand(7);
	for (unsigned i = 0; i < ITEMS; ++i)
		policy_item_init(&item[i], (size_t)(1 + rand() % 4000) * 65536);
	for (unsigned round = 0; round < 60000; ++round) {
		unsigned i = (unsigned)((double)ITEMS * pow((double)rand() / RAND_MAX, 3)) % ITEMS;

		policy_touch(&policy, &item[i], round < 30000 ? n : 0); /* the second half ages fast */
		if (!in[i]) {
			policy_add(&policy, &item[i]);
			in[i] = true;
			++n;
		}
		if (n > 300) {
			struct policy_item *victim = policy_first(&policy);

			policy_remove(victim);
			in[victim - item] = false;
			--n;
		}
		if (round % 50 == 0)
			check_order(in, n);
	}
	ck_assert_double_gt(policy.clock, 64); /* the window moved by more than its width */
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("cache-policy");
	TCase *tc = tcase_create("cache-policy");

	tcase_add_checked_fixture(tc, setup, NULL);
	tcase_set_timeout(tc, 60);
	tcase_add_test(tc, recency_orders_equals);
	tcase_add_test(tc, frequency_counts_and_fades);
	tcase_add_test(tc, old_requests_fade);
	tcase_add_test(tc, the_window_may_be_anywhere);
	tcase_add_test(tc, the_larger_goes_first);
	tcase_add_test(tc, weights_outlive_memory);
	tcase_add_test(tc, buckets_agree_with_the_formula);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
