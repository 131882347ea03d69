/* SPDX-License-Identifier: MIT */
/* The frame of loractl top, from canned Status replies: figures, lists, what is not told, what must not be shown. */
#include <check.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tools/top-frame.h"
#include "tests/lib/run-suite.h"

static const char before_text[] =
	"{\"version\":\"1.2\",\"model\":{\"name\":\"Tiny\"},\"device\":\"cpu\",\"uptime_s\":3723,\"clients\":7,"
	"\"requests\":{\"running\":1,\"waiting\":0,\"finished\":100,\"failed\":1,\"cancelled\":0,"
	"\"turned_away\":4,\"preempted\":0},"
	"\"steps\":{\"count\":1000,\"rows\":8000,\"adapters\":3000,\"seconds\":50.0,\"prompt_tokens\":5000,"
	"\"generated_tokens\":3000,\"prefix_hit_tokens\":100},"
	"\"pool\":{\"bytes\":1073741824,\"kv\":0,\"adapters\":0},"
	"\"cache\":{\"hits_device\":10,\"hits_host\":5,\"misses\":2,\"evictions_device\":0,\"evictions_host\":0,\"loads\":2,"
	"\"load_seconds\":0.01,\"loading\":0,\"host_bytes\":0,\"resident\":2},"
	"\"users\":[{\"uid\":1000,\"running\":1,\"waiting\":0,\"prompt_tokens\":100,\"generated_tokens\":50,\"service\":10,"
	"\"weight\":1,\"refused\":0,\"aborted\":0}],"
	"\"adapters\":[{\"digest\":\"b1\",\"state\":\"device\",\"requests\":5,\"tokens\":100,\"running\":0},"
	"{\"digest\":\"c1\",\"state\":\"host\",\"requests\":900,\"tokens\":90000,\"running\":0}]}";

static const char now_text[] =
	"{\"version\":\"1.2\",\"model\":{\"name\":\"Tiny\"},\"device\":\"cpu\",\"uptime_s\":3725,\"clients\":7,"
	"\"requests\":{\"running\":16,\"waiting\":240,\"finished\":125,\"failed\":2,\"cancelled\":0,\"turned_away\":14,"
	"\"preempted\":0},"
	"\"steps\":{\"count\":1100,\"rows\":9600,\"adapters\":3550,\"seconds\":52.5,\"prompt_tokens\":30000,"
	"\"generated_tokens\":3321,\"prefix_hit_tokens\":600},"
	"\"pool\":{\"bytes\":1073741824,\"kv\":268435456,\"adapters\":536870912},\"kv\":{\"used\":10,\"cached\":20},"
	"\"cache\":{\"hits_device\":34,\"hits_host\":6,\"misses\":12,\"evictions_device\":4,\"evictions_host\":2,\"loads\":12,"
	"\"load_seconds\":0.06,\"loading\":3,\"host_bytes\":10485760,\"resident\":9},"
	"\"users\":[{\"uid\":1000,\"running\":9,\"waiting\":200,\"prompt_tokens\":20100,\"generated_tokens\":150,\"service\":4010,"
	"\"weight\":1,\"refused\":6,\"aborted\":2},"
	"{\"uid\":1001,\"running\":7,\"waiting\":40,\"prompt_tokens\":400,\"generated_tokens\":20,\"service\":100,\"weight\":2.5,"
	"\"refused\":0,\"aborted\":0}],"
	"\"adapters\":[{\"digest\":\"c1\",\"state\":\"host\",\"requests\":900,\"tokens\":90000,\"running\":0},"
	"{\"digest\":\"d1\",\"state\":\"loading\",\"requests\":1,\"tokens\":0,\"running\":1},"
	"{\"digest\":\"b1\",\"state\":\"device\",\"requests\":25,\"tokens\":1100,\"running\":9}]}";

static json_t *parse(const char *text)
{
	json_t *value = json_loads(text, 0, NULL);

	ck_assert_ptr_nonnull(value);
	return value;
}

/* What List told: "new" is too new for it. */
static const char list_text[] =
	"[{\"digest\":\"b1\",\"name\":\"busy\",\"state\":\"device\"},{\"digest\":\"c1\",\"name\":\"idle\",\"state\":\"store\"},"
	"{\"digest\":\"b1\",\"name\":\"busy-too\",\"state\":\"device\"}]";

static json_t *figures_of(const char *before, const char *now, double seconds)
{
	json_t *a = parse(before), *b = parse(now), *list = parse(list_text), *known = top_known(list);
	json_t *figures = top_figures(a, b, known, seconds);

	json_decref(a);
	json_decref(b);
	json_decref(list);
	json_decref(known);
	ck_assert_ptr_nonnull(figures);
	return figures;
}

static double value(const json_t *object, const char *key)
{
	json_t *number = json_object_get(object, key);

	ck_assert_msg(json_is_number(number), "%s is missing", key);
	return json_number_value(number);
}

START_TEST(figures_are_of_the_time_between)
{
	json_t *f = figures_of(before_text, now_text, 2);

	ck_assert_double_eq(value(f, "requests_s"), 12.5);
	ck_assert_double_eq(value(f, "turned_away_s"), 5);
	ck_assert_double_eq(value(f, "running"), 16);
	ck_assert_double_eq(value(f, "prompt_tokens_s"), 12500);
	ck_assert_double_eq(value(f, "prefix_hit_tokens_s"), 250);
	ck_assert_double_eq(value(f, "steps_s"), 50);
	ck_assert_double_eq(value(f, "step_ms"), 25);
	ck_assert_double_eq(value(f, "rows_per_step"), 16);
	ck_assert_double_eq(value(f, "adapters_per_step"), 5.5);
	ck_assert_double_eq(value(f, "hits_device_s"), 12);
	ck_assert_double_eq(value(f, "misses_s"), 5);
	ck_assert_double_eq(value(f, "evictions_host_s"), 1);
	ck_assert_double_eq_tol(value(f, "page_in_ms"), 5, 1e-9);
	ck_assert_double_eq(value(f, "pool_free_bytes"), 268435456);
	ck_assert_double_eq(value(f, "seconds"), 2);
	json_decref(f);
}
END_TEST

START_TEST(users_and_adapters)
{
	json_t *f = figures_of(before_text, now_text, 2), *users = json_object_get(f, "users"),
	       *adapters = json_object_get(f, "adapters");

	ck_assert_uint_eq(json_array_size(users), 2);
	ck_assert_double_eq(value(json_array_get(users, 0), "prompt_tokens_s"), 10000);
	ck_assert_double_eq(value(json_array_get(users, 0), "service_s"), 2000);
	ck_assert_double_eq(value(json_array_get(users, 0), "refused_s"), 3);
	ck_assert_double_eq(value(json_array_get(users, 1), "prompt_tokens_s"), 200); /* it was not there before */
	ck_assert_uint_eq(json_array_size(adapters), 2); /* the most used first, "idle" was not */
	ck_assert_str_eq(json_string_value(json_object_get(json_array_get(adapters, 0), "name")), "busy");
	ck_assert_double_eq(value(json_array_get(adapters, 0), "tokens_s"), 500);
	ck_assert_double_eq(value(json_array_get(adapters, 0), "requests_s"), 10);
	ck_assert_str_eq(json_string_value(json_object_get(json_array_get(adapters, 1), "digest")), "d1");
	ck_assert(json_is_null(json_object_get(json_array_get(adapters, 1), "name")));
	json_decref(f);
}
END_TEST

static char *render(const json_t *figures, unsigned columns, unsigned rows, bool terminal)
{
	char *text = top_render(figures, &(struct top_screen){ columns, rows, terminal });

	ck_assert_ptr_nonnull(text);
	return text;
}

START_TEST(the_whole_frame)
{
	json_t *f = figures_of(before_text, now_text, 2);
	char *text;

	text = render(f, 0, 0, false);
	ck_assert_str_eq(text,
		"lorad 1.2  up 1:02:05  clients 7  on cpu: Tiny\n"
		"requests  12.5/s  running 16  waiting 240  failed/s 0.50  turned away/s 5  preempted/s 0\n"
		"tokens/s  prompt 12.5k  from prefixes 250  generated 160\n"
		"steps     50/s of 25 ms  rows 16  adapters 5.5\n"
		"pool      [##++++============......] 1024.0 MiB: # KV 8 %, + kept 17 %, = adapters 50 %\n"
		"device    hits/s 12  evictions/s 2  resident 9\n"
		"host      hits/s 0.50  evictions/s 1  10.0 MiB\n"
		"store     misses/s 5  page-ins/s 5 of 5.0 ms  loading 3\n"
		"adapters  3: device 2, store 1\n"
		"\n"
		"       UID   RUN  WAIT  PROMPT/s     GEN/s  SERVICE/s  WEIGHT  REFUSED/s  ABORTED/s\n"
		"      1000     9   200     10.0k        50       2000       1          3          1\n"
		"      1001     7    40       200        10         50     2.5          0          0\n"
		"\n"
		"ADAPTER                                  STATE      RUN     REQ/s  TOKENS/s\n"
		"busy                                     device       9        10       500\n"
		"d1                                       loading      1      0.50         0\n");
	free(text);
	json_decref(f);
}
END_TEST

/* An older daemon: null in the figures, "-" on the screen, no lists. */
START_TEST(what_a_daemon_does_not_tell)
{
	json_t *f = figures_of("{}", "{\"requests\":{\"running\":2},\"users\":7,\"adapters\":[{\"tokens\":3},{\"name\":4}]}", 1);
	char *text;

	ck_assert(json_is_null(json_object_get(f, "requests_s")));
	ck_assert(json_is_null(json_object_get(f, "step_ms")));
	ck_assert(json_is_null(json_object_get(f, "model")));
	ck_assert_uint_eq(json_array_size(json_object_get(f, "users")), 0);
	ck_assert_uint_eq(json_array_size(json_object_get(f, "adapters")), 0);
	text = render(f, 0, 0, false);
	ck_assert_ptr_nonnull(strstr(text, "requests  -/s  running 2  waiting -"));
	ck_assert_ptr_null(strstr(text, "nan"));
	ck_assert_ptr_null(strstr(text, "pool"));
	ck_assert_ptr_null(strstr(text, "ADAPTER"));
	free(text);
	json_decref(f);
}
END_TEST

START_TEST(a_daemon_that_began_anew)
{
	json_t *f = figures_of(now_text, before_text, 2);

	ck_assert_double_eq(value(f, "requests_s"), 50); /* 100 since it is there, not -12.5 */
	ck_assert_double_eq(value(f, "step_ms"), 50);
	json_decref(f);
	f = figures_of(now_text, now_text, 2); /* nothing happened */
	ck_assert_double_eq(value(f, "requests_s"), 0);
	ck_assert(json_is_null(json_object_get(f, "step_ms")));
	ck_assert_uint_eq(json_array_size(json_object_get(f, "adapters")), 2); /* they still run */
	json_decref(f);
}
END_TEST

START_TEST(names_cannot_speak_to_the_terminal)
{
	json_t *now = parse("{\"device\":\"\\u001b]0;owned\\u0007\",\"model\":{\"name\":\"a\\nb\\u009bc\\u007f\"},"
			    "\"adapters\":[{\"digest\":\"x\",\"state\":\"\\r\\u001bc\",\"tokens\":5}]}");
	json_t *list = parse("[{\"digest\":\"x\",\"name\":\"\\u001b[2Jx\\u00e9\",\"state\":\"\\u001b[31m\"}]");
	json_t *known = top_known(list), *f = top_figures(NULL, now, known, 1);
	char *text;

	text = render(f, 0, 0, false);
	for (const char *c = text; *c; ++c)
		ck_assert_msg(*c == '\n' || (*c >= ' ' && *c <= '~'), "byte %d at %td", *c, c - text);
	ck_assert_ptr_nonnull(strstr(text, "?[2Jx??"));
	ck_assert_ptr_nonnull(strstr(text, "a?b??c?"));
	free(text);
	text = render(f, 80, 24, true); /* and on a screen none but the frame's own sequences */
	for (const char *c = text; (c = strchr(c, '\033')); ++c)
		ck_assert_msg(c[1] == '[' && strchr("HKJ", c[2]), "%.4s", c + 1);
	ck_assert_ptr_null(strchr(text, '\a'));
	free(text);
	json_decref(now);
	json_decref(list);
	json_decref(known);
	json_decref(f);
}
END_TEST

static void expect_fits(const char *text, unsigned columns, unsigned rows)
{
	unsigned n_rows = 1, n = 0;

	for (const char *c = text; *c; ++c) {
		if (*c == '\033')
			c += 2;
		else if (*c == '\n')
			++n_rows, n = 0;
		else if (*c != '\r')
			ck_assert_uint_lt(n++, columns - 1);
	}
	ck_assert_uint_le(n_rows, rows);
}

START_TEST(a_frame_fits_its_screen)
{
	static const unsigned sizes[][2] = { { 2, 1 }, { 10, 3 }, { 40, 9 }, { 40, 12 }, { 80, 14 }, { 200, 50 } };
	json_t *f = figures_of(before_text, now_text, 2);

	for (int i = 0; i < 300; ++i)
		json_array_append(json_object_get(f, "adapters"), json_array_get(json_object_get(f, "adapters"), 0));
	for (int i = 0; i < 300; ++i)
		json_array_append(json_object_get(f, "users"), json_array_get(json_object_get(f, "users"), 0));
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); ++i) {
		char *text = render(f, sizes[i][0], sizes[i][1], true);

		expect_fits(text, sizes[i][0], sizes[i][1]);
		ck_assert_int_eq(strncmp(text, "\033[H", 3), 0);
		ck_assert_ptr_eq(strstr(text, "\033[J"), text + strlen(text) - 3);
		ck_assert_int_eq(strstr(text, "ADAPTER") != NULL, sizes[i][1] >= 12); /* below there is room for the summary only */
		ck_assert_int_eq(strstr(text, "UID") != NULL, sizes[i][1] == 50);
		free(text);
	}
	json_decref(f);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("tools/top");
	TCase *tcase = tcase_create("frame");

	tcase_add_test(tcase, figures_are_of_the_time_between);
	tcase_add_test(tcase, users_and_adapters);
	tcase_add_test(tcase, the_whole_frame);
	tcase_add_test(tcase, what_a_daemon_does_not_tell);
	tcase_add_test(tcase, a_daemon_that_began_anew);
	tcase_add_test(tcase, names_cannot_speak_to_the_terminal);
	tcase_add_test(tcase, a_frame_fits_its_screen);
	suite_add_tcase(suite, tcase);
	return run_suite(suite);
}
