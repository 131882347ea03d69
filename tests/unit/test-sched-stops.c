/* SPDX-License-Identifier: MIT */
/* Description: stop strings in streamed text, against a search in the whole text, for every way of cutting it. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/sched/stops.h"
#include "tests/lib/run-suite.h"

struct outcome {
	char text[256];
	size_t bytes;
	bool found;
};

static void push(struct stops *stops, const char *text, size_t bytes, bool end, struct outcome *outcome)
{
	struct stops_text out;

	ck_assert_int_eq(stops_push(stops, text, bytes, end, &out), 0);
	memcpy(outcome->text + outcome->bytes, out.text, out.bytes);
	outcome->bytes += out.bytes;
	outcome->text[outcome->bytes] = '\0';
	outcome->found = out.found;
}

/* Pushes text in pieces: bit i of cuts set: a cut behind byte i. */
static void run(const char *text, unsigned cuts, char *const *strings, size_t n, struct outcome *outcome)
{
	size_t length = strlen(text), from = 0;
	struct stops stops;

	*outcome = (struct outcome){ 0 };
	stops_init(&stops, strings, n);
	for (size_t i = 0; i < length && !outcome->found; ++i)
		if (i + 1 == length || cuts >> i & 1) {
			push(&stops, text + from, i + 1 - from, i + 1 == length, outcome);
			from = i + 1;
		}
	stops_deinit(&stops);
}

/* Where the whole text has its first stop string. */
static size_t first_stop(const char *text, char *const *strings, size_t n)
{
	size_t first = strlen(text);

	for (size_t i = 0; i < n; ++i) {
		const char *at = strstr(text, strings[i]);

		if (at && (size_t)(at - text) < first)
			first = (size_t)(at - text);
	}
	return first;
}

START_TEST(every_cut_gives_the_same_text)
{
	char ab[] = "ab", aab[] = "aab", bb[] = "bb", long_one[] = "ababc";
	char *const sets[][3] = { { ab, NULL }, { aab, NULL }, { bb, aab, NULL }, { long_one, NULL }, { aab, long_one, bb } };
	const size_t sizes[] = { 1, 1, 2, 1, 3 };
	const char *const texts[] = { "aaab", "abababc", "cabbaab", "aaaaaaa", "bababab", "abab", "b", "ababcab" };

	for (size_t s = 0; s < 5; ++s)
		for (size_t t = 0; t < sizeof(texts) / sizeof(*texts); ++t)
			for (unsigned cuts = 0; cuts < 1u << strlen(texts[t]); ++cuts) {
				size_t wanted = first_stop(texts[t], sets[s], sizes[s]);
				struct outcome outcome;

				run(texts[t], cuts, sets[s], sizes[s], &outcome);
				ck_assert_uint_eq(outcome.bytes, wanted);
				ck_assert_int_eq(memcmp(outcome.text, texts[t], wanted), 0);
				ck_assert_int_eq(outcome.found, wanted < strlen(texts[t]));
			}
}
END_TEST

START_TEST(holds_back_no_more_than_it_must)
{
	char stop[] = "###";
	char *const strings[] = { stop };
	struct outcome outcome = { 0 };
	struct stops stops;

	stops_init(&stops, strings, 1);
	push(&stops, "one #", 5, false, &outcome);
	ck_assert_str_eq(outcome.text, "one ");
	push(&stops, "#", 1, false, &outcome);
	ck_assert_str_eq(outcome.text, "one ");
	push(&stops, "two", 3, false, &outcome);
	ck_assert_str_eq(outcome.text, "one ##two");
	push(&stops, "##", 2, true, &outcome);
	ck_assert_str_eq(outcome.text, "one ##two##");
	ck_assert(!outcome.found);
	stops_deinit(&stops);
}
END_TEST

START_TEST(without_strings_text_passes)
{
	struct outcome outcome = { 0 };
	struct stops stops;

	stops_init(&stops, NULL, 0);
	push(&stops, "abc", 3, false, &outcome);
	ck_assert_str_eq(outcome.text, "abc");
	push(&stops, "", 0, true, &outcome);
	ck_assert_str_eq(outcome.text, "abc");
	stops_deinit(&stops);
}
END_TEST

START_TEST(text_with_nul_bytes)
{
	char stop[] = "ab";
	char *const strings[] = { stop };
	struct outcome outcome = { 0 };
	struct stops stops;

	stops_init(&stops, strings, 1);
	push(&stops, "x\0a", 3, false, &outcome);
	ck_assert_uint_eq(outcome.bytes, 2);
	push(&stops, "b", 1, false, &outcome);
	ck_assert(outcome.found);
	ck_assert_uint_eq(outcome.bytes, 2);
	stops_deinit(&stops);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("sched-stops");
	TCase *tc = tcase_create("stops");

	tcase_add_test(tc, every_cut_gives_the_same_text);
	tcase_add_test(tc, holds_back_no_more_than_it_must);
	tcase_add_test(tc, without_strings_text_passes);
	tcase_add_test(tc, text_with_nul_bytes);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
