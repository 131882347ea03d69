/* SPDX-License-Identifier: MIT */
/* loractl generate, score, list and lorabench over the real ipc, against tests/lib/fake-lorad. */
#include <check.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/tools-run.h"
#include "tests/lib/run-suite.h"

static char folder[64], socket_path[96];
static struct tools_running fake;

static struct tools_running start_program(const char *program, const char *out_path, ...)
{
	struct tools_running running;
	va_list list;

	va_start(list, out_path);
	running = tools_start(program, out_path, list);
	va_end(list);
	return running;
}

static void start(void)
{
	char ready[6] = "";

	(void)snprintf(folder, sizeof(folder), "/tmp/test-tools-talk-XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(folder));
	(void)snprintf(socket_path, sizeof(socket_path), "%s/s", folder);
	fake = start_program("tests/lib/fake-lorad", NULL, socket_path, (char *)NULL);
	ck_assert_int_eq(read(fake.out, ready, sizeof(ready)), 6);
}

static void stop(void)
{
	kill(fake.child, SIGKILL);
	(void)tools_finish(&fake);
	(void)unlink(socket_path);
	(void)rmdir(folder);
}

#define loractl(...) tools_run("tools/loractl", NULL, "--socket", socket_path, __VA_ARGS__, (char *)NULL)
#define loractl_start(...) start_program("tools/loractl", NULL, "--socket", socket_path, __VA_ARGS__, (char *)NULL)
#define lorabench(...) tools_run("tools/lorabench", NULL, "--socket", socket_path, "--json", "--clients", "3",             \
				 "--prompt-tokens", "10", "--gen-tokens", "5", __VA_ARGS__, (char *)NULL)
#define lorabench_trace(...) tools_run("tools/lorabench", NULL, "--socket", socket_path, "--json", "--clients", "2",       \
				       __VA_ARGS__, (char *)NULL)

static json_t *parse(struct tools_output output)
{
	json_t *value = json_loads(output.out, JSON_REJECT_DUPLICATES, NULL);

	ck_assert_msg(value, "%d '%s' '%s'", output.status, output.out, output.err);
	return value;
}

START_TEST(test_generate)
{
	json_t *answer = parse(loractl("generate", "--tokens", "7,8", "-n", "3", "--adapter", "a1:0.5", "--adapter", "a4", "--json",
				       "--logprobs", "2"));
	const char *text, *finish, *name, *digest;
	json_int_t prompt_tokens, first, third, best;
	double scale, page_in, logprob;

	ck_assert_int_eq(json_unpack(answer, "{s:s, s:[I,i,I!], s:s, s:I, s:[{s:s, s:s, s:F}, {}!], s:{s:F}, s:[F,F,F!],"
					     " s:[[{s:I},{}!],[],[]!]}",
				     "text", &text, "tokens", &first, &(int){ 0 }, &third, "finish_reason", &finish,
				     "prompt_tokens", &prompt_tokens, "adapters", "name", &name, "digest", &digest, "scale",
				     &scale, "timings", "page_in_ms", &page_in, "logprobs", &logprob, &(double){ 0 },
				     &(double){ 0 }, "top", "token", &best), 0);
	ck_assert_str_eq(text, "<7><8><9>");
	ck_assert_int_eq(first, 7);
	ck_assert_int_eq(third, 9);
	ck_assert_str_eq(finish, "length");
	ck_assert_int_eq(prompt_tokens, 2);
	ck_assert_str_eq(name, "a1");
	ck_assert_uint_eq(strlen(digest), 64);
	ck_assert_double_eq(scale, 0.5);
	ck_assert_double_eq(page_in, 3.5);
	ck_assert_double_eq(logprob, -0.25);
	ck_assert_int_eq(best, 7);
	json_decref(answer);
	ck_assert_str_eq(loractl("generate", "--prompt", "abc", "-n", "2").out, "<0><1>\n");
	answer = parse(loractl("generate", "--prompt", "abc", "-n", "1", "--json"));
	ck_assert_ptr_null(json_object_get(answer, "logprobs"));
	ck_assert_uint_eq(json_array_size(json_object_get(answer, "adapters")), 0);
	ck_assert_int_eq(json_integer_value(json_object_get(answer, "cached_tokens")), 0);
	json_decref(answer);
	answer = parse(loractl("generate", "--prompt", "abc", "-n", "1", "--json", "--first-token-ms", "1000", "--deadline-ms",
			       "20000"));
	ck_assert_int_eq(json_integer_value(json_object_get(answer, "cached_tokens")), 21000);
	json_decref(answer);
}
END_TEST

START_TEST(test_refusals)
{
	tools_expect_refused(loractl("generate", "--prompt", "x", "--adapter", "missing"), "missing: no such adapter");
	tools_expect_refused(loractl("score", "--tokens", "1", "--adapter", "missing"), "missing: no such adapter");
	tools_expect_refused(loractl("generate", "--prompt", "x", "--adapter", "broken", "--json"), "broken: checksum");
	tools_expect_refused(loractl("generate", "--prompt", "x", "--adapter", "busy"), " is full; try again in 350 ms\n");
	tools_expect_refused(loractl("generate", "--tokens", "1,,2"), "''");
	tools_expect_refused(loractl("generate", "--prompt", "x", "--deadline-ms", "-1"), "--deadline-ms -1: must be from 0");
	tools_expect_refused(loractl("score", "--prompt", "x", "--first-token-ms", "604800001"), "a week");
	tools_expect_refused(loractl("generate", "--prompt", ""), "empty");
	tools_expect_refused(loractl("generate", "--prompt", "x", "-n", "-5"), "-n -5");
	tools_expect_refused(loractl("generate", "--prompt", "x", "--adapter", "a1:nan"), "a1:nan");
	ck_assert_int_eq(loractl("generate", "--prompt", "x", "--tokens", "1").status, 2);
	ck_assert_int_eq(loractl("generate", "--chat", "--tokens", "1").status, 2);
}
END_TEST

START_TEST(test_score_and_list)
{
	json_t *answer = parse(loractl("score", "--tokens", "5,6,7", "--json", "--deadline-ms", "5000"));
	double second;
	int cached;
	size_t i;
	json_t *entry;

	ck_assert_int_eq(json_unpack(answer, "{s:[i,i,i!], s:[n,F,F!], s:i!}", "tokens", &(int){ 0 }, &(int){ 0 }, &(int){ 0 },
				     "logprobs", &second, &(double){ 0 }, "cached_tokens", &cached), 0);
	ck_assert_int_eq(cached, 5000);
	ck_assert_double_eq(second, -0.5);
	json_decref(answer);
	ck_assert_str_eq(loractl("score", "--tokens", "5,6").out, "5\t-\n6\t-0.500000\n");
	answer = parse(loractl("list", "--json"));
	ck_assert_uint_eq(json_array_size(answer), 5);
	json_array_foreach(answer, i, entry)
		ck_assert_int_eq(json_unpack(entry, "{s:s, s:s, s:s, s:i, s:s!}", "name", &(char *){ 0 }, "digest",
					     &(char *){ 0 }, "kind", &(char *){ 0 }, "bytes", &(int){ 0 }, "state",
					     &(char *){ 0 }), 0);
	json_decref(answer);
	ck_assert_ptr_nonnull(strstr(loractl("list").out, "\na0 "));
}
END_TEST

/*
 * Waits until the program takes signals through a descriptor, once it is connected: it blocks SIGHUP and others then.
 * Sanitizers block all signals for moments while the program starts; SIGUSR1 tells these apart. The shell of libtool's
 * script blocks SIGTERM while it forks.
 */
static void wait_until_ready(pid_t child)
{
	char path[64], line[128];
	unsigned long long blocked = 0;

	(void)snprintf(path, sizeof(path), "/proc/%d/status", (int)child);
	while (!(blocked & 1ull << (SIGHUP - 1)) || (blocked & 1ull << (SIGUSR1 - 1))) {
		FILE *file = fopen(path, "r");

		ck_assert_ptr_nonnull(file);
		while (fgets(line, sizeof(line), file))
			(void)sscanf(line, "SigBlk: %llx", &blocked);
		(void)fclose(file);
		usleep(1000);
	}
}

/* Ctrl-C ends the request, not the program at once: what there is comes out whole, and the reason says so. */
START_TEST(test_cancel)
{
	struct tools_running plain = loractl_start("generate", "--prompt", "x", "-n", "1000000");
	struct tools_running json = loractl_start("generate", "--prompt", "x", "-n", "1000000", "--json");
	struct tools_output output;
	char first[4] = "";
	json_t *answer;

	ck_assert_int_eq(read(plain.out, first, 3), 3);
	ck_assert_str_eq(first, "<0>");
	kill(plain.child, SIGINT);
	wait_until_ready(json.child);
	kill(json.child, SIGTERM);
	output = tools_finish(&plain);
	ck_assert_int_eq(output.status, 1);
	ck_assert_str_eq(output.err, "loractl: cancelled\n");
	ck_assert_int_eq(output.out[strlen(output.out) - 1], '\n');
	output = tools_finish(&json);
	ck_assert_int_eq(output.status, 1);
	answer = parse(output);
	ck_assert_str_eq(json_string_value(json_object_get(answer, "finish_reason")), "cancelled");
	json_decref(answer);
}
END_TEST

START_TEST(test_daemon_dies)
{
	struct tools_running running = loractl_start("generate", "--prompt", "x", "-n", "1000000", "--json");

	wait_until_ready(running.child); /* it is connected then */
	kill(fake.child, SIGKILL);
	tools_expect_refused(tools_finish(&running), "gone");
}
END_TEST

START_TEST(test_slow_and_full_stdout)
{
	struct tools_running running = loractl_start("generate", "--prompt", "x", "-n", "1000");
	struct tools_output output;

	usleep(200000); /* nobody reads meanwhile */
	output = tools_finish(&running);
	ck_assert_int_eq(output.status, 0);
	ck_assert_ptr_nonnull(strstr(output.out, "<998><999>\n"));
	output = tools_run("tools/loractl", "/dev/full", "--socket", socket_path, "generate", "--prompt", "x", (char *)NULL);
	tools_expect_refused(output, "standard output: No space left");
}
END_TEST

static void expect_hits(json_t *figures, json_int_t device, json_int_t store)
{
	json_t *hits = json_object_get(figures, "hits");

	ck_assert_int_eq(json_integer_value(json_object_get(hits, "device")), device);
	ck_assert_int_eq(json_integer_value(json_object_get(hits, "store")), store);
	ck_assert_int_eq(json_integer_value(json_object_get(hits, "host")), 0);
}

START_TEST(test_bench)
{
	json_t *figures = parse(lorabench("--adapters", "5", "--requests", "20"));

	ck_assert_int_eq(json_integer_value(json_object_get(figures, "requests")), 20);
	ck_assert_int_eq(json_integer_value(json_object_get(figures, "tokens")), 100);
	ck_assert_int_eq(json_integer_value(json_object_get(figures, "errors")), 0);
	ck_assert_double_gt(json_real_value(json_object_get(figures, "itl_p50_ms")), 0.5);
	ck_assert_double_gt(json_real_value(json_object_get(figures, "req_s")), 0);
	expect_hits(figures, 18, 2);
	json_decref(figures);
	figures = parse(lorabench("--adapters", "a[12]", "--requests", "7", "--zipf", "1.5", "--rate", "500", "--seed", "3"));
	expect_hits(figures, 7, 0);
	ck_assert_str_eq(json_string_value(json_object_get(figures, "seed")), "3");
	json_decref(figures);
	figures = parse(lorabench("--adapters", "0", "--duration", "0.3"));
	ck_assert_int_gt(json_integer_value(json_object_get(figures, "requests")), 3);
	ck_assert_double_lt(json_real_value(json_object_get(figures, "seconds")), 3);
	expect_hits(figures, 0, 0);
	json_decref(figures);
}
END_TEST

static json_int_t figure(json_t *figures, const char *key)
{
	json_t *value = json_object_get(figures, key);

	ck_assert_msg(json_is_integer(value), "%s is missing or no integer", key);
	return json_integer_value(value);
}

START_TEST(test_bench_counts_targets)
{
	json_t *figures = parse(lorabench("--adapters", "1", "--requests", "10"));

	ck_assert_int_eq(figure(figures, "offered"), 10);
	ck_assert(json_is_null(json_object_get(figures, "in_target")));
	ck_assert(json_is_null(json_object_get(figures, "attainment")));
	json_decref(figures);
	figures = parse(lorabench("--adapters", "1", "--requests", "10", "--deadline-ms", "60000"));
	ck_assert_int_eq(figure(figures, "in_target"), 10);
	ck_assert_double_eq(json_real_value(json_object_get(figures, "attainment")), 1);
	ck_assert_double_gt(json_real_value(json_object_get(figures, "in_target_s")), 0);
	ck_assert_int_eq(figure(figures, "prefix_hit_tokens"), 600000); /* the daemon was told */
	json_decref(figures);
	figures = parse(lorabench("--adapters", "1", "--requests", "10", "--target-ms", "60000"));
	ck_assert_int_eq(figure(figures, "in_target"), 10);
	ck_assert_int_eq(figure(figures, "prefix_hit_tokens"), 0); /* it was not */
	json_decref(figures);
	/* 3 clients are turned away and wait 20 ms each time: no errors, but no answers either */
	figures = parse(lorabench("--adapters", "1", "--requests", "10", "--deadline-ms", "1"));
	ck_assert_int_eq(figure(figures, "aborted"), 10);
	ck_assert_int_eq(figure(figures, "errors") + figure(figures, "in_target") + figure(figures, "requests"), 0);
	ck_assert_double_gt(json_real_value(json_object_get(figures, "seconds")), 0.05);
	json_decref(figures);
}
END_TEST

START_TEST(test_bench_open_loop)
{
	char trace[128];
	json_t *figures;
	FILE *file;

	/* one token each 2 ms and request: what arrives in the last moments is open at the end, all others are in time */
	figures = parse(lorabench("--adapters", "5", "--rate", "200", "--cv", "0", "--power", "0.3", "--target-ms", "5000",
				  "--duration", "0.5"));
	ck_assert_int_ge(figure(figures, "offered"), 95);
	ck_assert_int_le(figure(figures, "offered"), 100);
	ck_assert_int_eq(figure(figures, "in_target"), figure(figures, "offered"));
	json_decref(figures);
	(void)snprintf(trace, sizeof(trace), "%s.trace", socket_path);
	file = fopen(trace, "w");
	ck_assert_ptr_nonnull(file);
	(void)fputs("0 0 5 3\n0.01 a1 6 4\n0.2 - 7 5\n", file);
	(void)fclose(file);
	figures = parse(lorabench_trace("--adapters", "2", "--trace", trace));
	unlink(trace);
	ck_assert_int_eq(figure(figures, "requests"), 3);
	ck_assert_int_eq(figure(figures, "tokens"), 12);
	ck_assert_double_gt(json_real_value(json_object_get(figures, "seconds")), 0.2);
	json_decref(figures);
}
END_TEST

/* 1,024 requests may be in flight, for 200 ms each: those beyond cannot be sent when they arrive, which their times show. */
START_TEST(test_bench_times_from_arrival)
{
	json_t *figures = parse(tools_run("tools/lorabench", NULL, "--socket", socket_path, "--json", "--adapters", "0",
					  "--clients", "1", "--prompt-tokens", "4", "--gen-tokens", "100", "--rate", "20000",
					  "--requests", "1500", (char *)NULL));

	ck_assert_int_eq(figure(figures, "requests"), 1500);
	ck_assert_double_gt(json_real_value(json_object_get(figures, "ttft_p99_ms")), 100);
	json_decref(figures);
}
END_TEST

START_TEST(test_bench_refuses)
{
	tools_expect_refused(lorabench("--adapters", "6", "--requests", "1"), "there are 5");
	tools_expect_refused(lorabench("--adapters", "b*", "--requests", "1"), "no adapter matches");
	tools_expect_refused(lorabench("--adapters", "1", "--requests", "0"), "--requests 0");
	tools_expect_refused(lorabench("--adapters", "1", "--requests", "1", "--gen-tokens", "9000"), "context");
	ck_assert_int_eq(lorabench("--adapters", "1").status, 2);
	ck_assert_int_eq(lorabench("--adapters", "1", "--requests", "1", "--duration", "1").status, 2);
	ck_assert_int_eq(lorabench("--requests", "1").status, 2);
	tools_expect_refused(lorabench("--adapters", "1", "--requests", "1", "--shared-prefix", "65"), "--shared-prefix 65");
	ck_assert_int_eq(lorabench("--adapters", "1", "--requests", "1", "--cv", "2").status, 2);
	ck_assert_int_eq(lorabench("--adapters", "1", "--requests", "1", "--zipf", "1", "--power", "1").status, 2);
	ck_assert_int_eq(lorabench("--adapters", "1", "--requests", "1", "--target-ms", "1", "--deadline-ms", "1").status, 2);
	ck_assert_int_eq(lorabench("--adapters", "1", "--trace", "x").status, 2);
	tools_expect_refused(lorabench_trace("--adapters", "1", "--trace", "/nowhere/x"), "/nowhere/x: No such file");
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("tools/talk");
	TCase *tcase = tcase_create("talk");

	tcase_add_checked_fixture(tcase, start, stop);
	tcase_set_timeout(tcase, 60);
	tcase_add_test(tcase, test_generate);
	tcase_add_test(tcase, test_refusals);
	tcase_add_test(tcase, test_score_and_list);
	tcase_add_test(tcase, test_cancel);
	tcase_add_test(tcase, test_daemon_dies);
	tcase_add_test(tcase, test_slow_and_full_stdout);
	tcase_add_test(tcase, test_bench);
	tcase_add_test(tcase, test_bench_counts_targets);
	tcase_add_test(tcase, test_bench_open_loop);
	tcase_add_test(tcase, test_bench_times_from_arrival);
	tcase_add_test(tcase, test_bench_refuses);
	suite_add_tcase(suite, tcase);
	return run_suite(suite);
}
