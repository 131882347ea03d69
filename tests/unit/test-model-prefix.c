/* SPDX-License-Identifier: MIT */
/*
 * Description: blocks of keys and values that requests share: paths, waiting, copies, tails, eviction.
 *
 * A block's memory holds the tokens themselves instead of their keys and values, and so shows whether what a request is
 * given is what it asked for.
 */
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "daemon/model/prefix.h"
#include "tests/lib/run-suite.h"

#define BLOCK 16u   /* tokens: 4,096 bytes each in the shape below, one page of the pool a block */
#define BLOCKS 64u

static void *region;
static struct pool *pool;
static struct kv *kv;

static void setup(void)
{
	static const struct kv_shape shape = { .n_layers = 1, .n_kv_heads = 8, .head_dim = 64, .dtype = KERN_F32 };
	size_t bytes = (size_t)BLOCKS * POOL_PAGE;

	region = aligned_alloc(2u << 20, bytes < 2u << 20 ? 2u << 20 : bytes);
	ck_assert_ptr_nonnull(region);
	ck_assert_int_eq(pool_new(&pool, region, bytes), 0);
	ck_assert_int_eq(kv_new(&kv, pool, &shape), 0);
	ck_assert_uint_eq(kv_layout(kv)->block_tokens, BLOCK);
	ck_assert_uint_eq(kv_block_bytes(kv), POOL_PAGE);
}

static void teardown(void)
{
	kv_free(kv);
	ck_assert_uint_eq(pool_used(pool, POOL_KV), 0);
	pool_free(pool);
	free(region);
}

/* A request as the engine handles it. */
struct text {
	struct kv_seq kv;
	const char *key;
	uint32_t token[512], n, n_computed;
};

static void say(struct text *t, const char *key, const char *words)
{
	*t = (struct text){ .key = key, .n = (uint32_t)strlen(words) };
	for (uint32_t i = 0; i < t->n; ++i)
		t->token[i] = (uint8_t)words[i];
}

static uint32_t *place(const struct text *t, uint32_t position)
{
	return (uint32_t *)t->kv.block[position / BLOCK] + position % BLOCK;
}

/* All that is said to be computed is there. */
static void holds(const struct text *t)
{
	uint32_t i = 0;

	while (i < t->n_computed && *place(t, i) == t->token[i])
		++i;
	ck_assert_uint_eq(i, t->n_computed);
}

static int begin(struct text *t)
{
	int r;

	ck_assert_int_eq(prefix_open(kv, &t->kv, t->key, strlen(t->key)), 0);
	r = prefix_match(kv, &t->kv, t->token, t->n, &t->n_computed);
	if (r == KV_OK)
		r = kv_reserve(kv, &t->kv, t->n);
	if (r != KV_OK) {
		kv_drop(kv, &t->kv);
		t->n_computed = 0;
		return r;
	}
	ck_assert_uint_lt(t->n_computed, t->n);
	prefix_announce(kv, &t->kv, t->token, t->n);
	if (prefix_source(&t->kv)) {
		memcpy(t->kv.block[t->n_computed / BLOCK], prefix_source(&t->kv), BLOCK * sizeof(uint32_t));
		prefix_copied(kv, &t->kv);
	}
	holds(t);
	return KV_OK;
}

static void compute(struct text *t, uint32_t n)
{
	for (; n && t->n_computed < t->n; --n, t->n_computed++)
		*place(t, t->n_computed) = t->token[t->n_computed];
	prefix_computed(kv, &t->kv, t->token, t->n_computed);
	holds(t);
}

static void finish(struct text *t)
{
	prefix_keep_tail(kv, &t->kv, t->token, t->n_computed);
	kv_drop(kv, &t->kv);
}

static struct kv_stats stats(void)
{
	struct kv_stats s;

	kv_read_stats(kv, &s);
	ck_assert_uint_eq(pool_used(pool, POOL_KV), (s.used + s.cached) * POOL_PAGE);
	return s;
}

#define WORDS "It is a truth universally acknowledged, that a single man in possession of a good fortune" /* 89 */

START_TEST(a_second_request_finds_what_the_first_computed)
{
	static struct text a, b;

	say(&a, "k", WORDS);
	ck_assert_int_eq(begin(&a), KV_OK);
	ck_assert_uint_eq(a.n_computed, 0);
	compute(&a, 90);
	say(&b, "k", WORDS);
	ck_assert_int_eq(begin(&b), KV_OK);
	ck_assert_uint_eq(b.n_computed, 80); /* five blocks of one copy; the sixth is not whole */
	ck_assert_uint_eq(stats().used, 7);
	compute(&b, 90);
	finish(&a);
	holds(&b);
	finish(&b);
	ck_assert_uint_eq(stats().used, 0);
	ck_assert_uint_eq(stats().cached, 6); /* and the tail, once */
}
END_TEST

START_TEST(one_token_is_left_to_compute)
{
	static struct text a, b;

	say(&a, "k", "sixteen letters.sixteen letters.");
	ck_assert_int_eq(begin(&a), KV_OK);
	compute(&a, 32);
	say(&b, "k", "sixteen letters.sixteen letters.");
	ck_assert_int_eq(begin(&b), KV_OK);
	ck_assert_uint_eq(b.n_computed, 31); /* the second block copied but for its last token */
	ck_assert_uint_eq(stats().used, 3);
	compute(&b, 1);
	ck_assert_uint_eq(stats().used, 2);  /* and given up for the one that was there */
	finish(&a);
	finish(&b);
}
END_TEST

START_TEST(another_key_finds_nothing)
{
	static struct text a, b;

	say(&a, "k", WORDS);
	ck_assert_int_eq(begin(&a), KV_OK);
	compute(&a, 90);
	say(&b, "kk", WORDS);
	ck_assert_int_eq(begin(&b), KV_OK);
	ck_assert_uint_eq(b.n_computed, 0);
	finish(&b);
	finish(&a);
}
END_TEST

START_TEST(what_is_being_computed_is_waited_for)
{
	static struct text a, b;

	say(&a, "k", WORDS);
	say(&b, "k", WORDS);
	ck_assert_int_eq(begin(&a), KV_OK);
	ck_assert_int_eq(begin(&b), KV_E_PENDING);
	compute(&a, 79);
	ck_assert_int_eq(begin(&b), KV_E_PENDING);
	compute(&a, 1);
	ck_assert_int_eq(begin(&b), KV_OK);
	ck_assert_uint_eq(b.n_computed, 80);
	finish(&b);
	finish(&a);
}
END_TEST

/* Who was waited for gives up: what he had computed is of use, what he had not is not waited for. */
START_TEST(nobody_waits_for_one_who_left)
{
	static struct text a, b;

	say(&a, "k", WORDS);
	say(&b, "k", WORDS);
	ck_assert_int_eq(begin(&a), KV_OK);
	compute(&a, 40);
	ck_assert_int_eq(begin(&b), KV_E_PENDING);
	finish(&a);
	ck_assert_int_eq(begin(&b), KV_OK);
	ck_assert_uint_eq(b.n_computed, 32);
	compute(&b, 90);
	finish(&b);
}
END_TEST

START_TEST(texts_that_part_within_a_block_are_copied)
{
	static struct text a, b;

	say(&a, "k", WORDS);
	ck_assert_int_eq(begin(&a), KV_OK);
	compute(&a, 90);
	say(&b, "k", "It is a truth universally known");
	ck_assert_int_eq(begin(&b), KV_OK);
	ck_assert_uint_eq(b.n_computed, 26);
	ck_assert_uint_eq(stats().copied, 1);
	compute(&b, 90);
	holds(&a);
	finish(&a);
	finish(&b);
}
END_TEST

/* The answer's tokens are found by who asks on, the half block at its end, too. */
START_TEST(a_conversation_goes_on)
{
	static struct text a, b;

	say(&a, "k", "How are you? ");
	ck_assert_int_eq(begin(&a), KV_OK);
	for (const char *answer = "Well, thank you."; *answer; ++answer) {
		compute(&a, 90);
		a.token[a.n++] = (uint8_t)*answer;
		ck_assert_int_eq(kv_reserve(kv, &a.kv, a.n), KV_OK);
	}
	finish(&a); /* the last token was never computed */
	say(&b, "k", "How are you? Well, thank you. And you?");
	ck_assert_int_eq(begin(&b), KV_OK);
	ck_assert_uint_eq(b.n_computed, 28);
	finish(&b);
}
END_TEST

/* Two who could not know of one another end with one copy. */
START_TEST(equal_blocks_become_one)
{
	static struct text a, b;

	say(&a, "k", "x");
	say(&b, "k", "x");
	ck_assert_int_eq(begin(&a), KV_OK);
	ck_assert_int_eq(begin(&b), KV_OK);
	for (uint32_t i = 1; i <= 40; ++i) {
		compute(&a, 1);
		compute(&b, 1);
		a.token[a.n++] = b.token[b.n++] = i;
		ck_assert_int_eq(kv_reserve(kv, &a.kv, a.n), KV_OK);
		ck_assert_int_eq(kv_reserve(kv, &b.kv, b.n), KV_OK);
	}
	ck_assert_uint_eq(stats().used, 4); /* two in common, one each */
	finish(&a);
	holds(&b);
	finish(&b);
}
END_TEST

START_TEST(the_least_recently_used_leaf_goes_first)
{
	static struct text a, b;

	say(&a, "k", WORDS);
	ck_assert_int_eq(begin(&a), KV_OK);
	compute(&a, 90);
	finish(&a);
	say(&b, "other", WORDS);
	ck_assert_int_eq(begin(&b), KV_OK);
	compute(&b, 90);
	finish(&b);
	ck_assert_uint_eq(stats().cached, 12);
	ck_assert(!kv_evict(kv, 1, UINT64_MAX));  /* nothing is that old */
	ck_assert_uint_gt(kv_idle_ns(kv), 0);
	ck_assert(kv_evict(kv, 3 * POOL_PAGE, 0));
	ck_assert_uint_eq(stats().cached, 9);
	ck_assert_int_eq(begin(&b), KV_OK);       /* whole still */
	ck_assert_uint_eq(b.n_computed, 88);      /* its tail, too, but for the last token */
	kv_drop(kv, &b.kv);
	ck_assert_int_eq(begin(&a), KV_OK);       /* from the end backwards */
	ck_assert_uint_eq(a.n_computed, 48);
	ck_assert(kv_evict(kv, SIZE_MAX, 0));
	holds(&a);                                /* in use: stays */
	kv_drop(kv, &a.kv);
	ck_assert_uint_eq(kv_idle_ns(kv) > 0, stats().cached > 0);
}
END_TEST

START_TEST(a_full_pool_takes_nothing)
{
	static struct text a, b;
	struct pool_run rest;

	say(&a, "k", WORDS);
	ck_assert_int_eq(begin(&a), KV_OK);
	compute(&a, 90);
	ck_assert_int_eq(pool_alloc(pool, POOL_ADAPTERS, (BLOCKS - 6) * (size_t)POOL_PAGE, &rest), POOL_OK);
	say(&b, "k", WORDS);
	ck_assert_int_eq(begin(&b), KV_E_FULL);
	ck_assert_uint_eq(stats().used, 6);
	pool_release(pool, POOL_ADAPTERS, rest);
	ck_assert_int_eq(begin(&b), KV_OK);
	finish(&b);
	finish(&a);
}
END_TEST

/* Whatever happens in whatever order: what a request is given is what it asked for, and nothing is lost. */
START_TEST(anything_in_any_order)
{
	static struct text t[8];
	bool runs[8] = { false };
	uint32_t seed = (uint32_t)_i * 7919 + 1;

#define RANDOM(n) (((seed = seed * 1664525 + 1013904223) >> 8) % (n))
	for (unsigned turn = 0; turn < 10000; ++turn) {
		unsigned i = RANDOM(8);
		uint32_t extra = 0;

		if (!runs[i]) {
			t[i] = (struct text){ .key = RANDOM(2) ? "one" : "two", .n = 1 + RANDOM(100) };
			for (uint32_t k = 0, parts = RANDOM(100); k < t[i].n; ++k) /* few texts, parting anywhere */
				t[i].token[k] = k >= parts ? k + RANDOM(2) : k;
			runs[i] = begin(&t[i]) == KV_OK;
			continue;
		}
		compute(&t[i], 1 + RANDOM(30));
		if (t[i].n_computed == t[i].n && t[i].n < 200 && RANDOM(4)) {
			t[i].token[t[i].n++] = RANDOM(2);
			extra = kv_reserve(kv, &t[i].kv, t[i].n) == KV_OK ? 0 : 1;
		}
		if (extra || !RANDOM(20)) {
			finish(&t[i]);
			runs[i] = false;
		}
		if (!RANDOM(10))
			(void)kv_evict(kv, RANDOM(8) * POOL_PAGE, 0);
		if (turn % 64 == 0)
			(void)stats();
	}
	for (unsigned i = 0; i < 8; ++i)
		if (runs[i])
			finish(&t[i]);
	ck_assert_uint_eq(stats().used, 0);
	ck_assert_uint_gt(stats().copied, 100);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("model-prefix");
	TCase *tc = tcase_create("prefix");

	tcase_set_timeout(tc, 60);
	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, a_second_request_finds_what_the_first_computed);
	tcase_add_test(tc, one_token_is_left_to_compute);
	tcase_add_test(tc, another_key_finds_nothing);
	tcase_add_test(tc, what_is_being_computed_is_waited_for);
	tcase_add_test(tc, nobody_waits_for_one_who_left);
	tcase_add_test(tc, texts_that_part_within_a_block_are_copied);
	tcase_add_test(tc, a_conversation_goes_on);
	tcase_add_test(tc, equal_blocks_become_one);
	tcase_add_test(tc, the_least_recently_used_leaf_goes_first);
	tcase_add_test(tc, a_full_pool_takes_nothing);
	tcase_add_loop_test(tc, anything_in_any_order, 0, 8);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
