/* SPDX-License-Identifier: MIT */
/* Description: lorad's options: every one on the command line and in the file, which wins, defaults, refusals. */
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/options.h"
#include "tests/lib/run-suite.h"

#define WORDS_MAX 32

static struct options options;
static struct diag diag;
static char path[] = "/tmp/lorad-options-XXXXXX";
static const struct options_environment nowhere = { .root = true };

static void setup(void)
{
	options = (struct options)OPTIONS_NULL;
	diag = (struct diag){ 0 };
}

static void teardown(void)
{
	options_deinit(&options);
}

/* words: the command line behind "lorad", separated by blanks; ~ is an empty one. */
static int read_words(const char *words, const struct options_environment *environment)
{
	static char copy[512];
	char *argv[WORDS_MAX], program[] = "lorad", *save = NULL;
	int argc = 1;

	options_deinit(&options);
	options = (struct options)OPTIONS_NULL;
	argv[0] = program;
	(void)snprintf(copy, sizeof(copy), "%s", words);
	for (char *word = strtok_r(copy, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
		if (*word == '~')
			*word = '\0';
		argv[argc++] = word;
	}
	return options_read(&options, argc, argv, environment, &diag);
}

static void write_file(const char *text)
{
	FILE *file = fopen(path, "w");

	ck_assert_ptr_nonnull(file);
	(void)fputs(text, file);
	(void)fclose(file);
}

START_TEST(all_on_the_command_line)
{
	ck_assert_int_eq(read_words("--model m --store=s --socket k --device cpu --precision bf16 --threads 3 --isa avx2 "
				    "--device-memory 2G --host-cache=64M --context 100 --kv-type int8 "
				    "--adapter-type source",
				    &nowhere),
			 OPTIONS_OK);
	ck_assert_str_eq(options.model, "m");
	ck_assert_str_eq(options.store, "s");
	ck_assert_str_eq(options.socket, "k");
	ck_assert_int_eq(options.device, OPTIONS_DEVICE_CPU);
	ck_assert_int_eq(options.precision, MODEL_BF16);
	ck_assert_uint_eq(options.threads, 3);
	ck_assert_int_eq(options.isa, KERN_ISA_AVX2);
	ck_assert_uint_eq(options.device_memory, UINT64_C(2) << 30);
	ck_assert_uint_eq(options.host_cache, 64 << 20);
	ck_assert_uint_eq(options.context, 100);
	ck_assert_int_eq(options.kv_type, MODEL_INT8);
	ck_assert(options.source_adapters);
}
END_TEST

START_TEST(between_users)
{
	static const char *const wrong[] = {
		"--user-weights 5", "--user-weights no-such-user=1", "--user-weights 5=0", "--user-weights 5=1e9",
		"--user-weights 5=nan", "--user-weights 5=1,", "--schedule lifo", "--prefix-cache all", "--queue-limit -1",
		"--batch-adapters 257",
	};
	char words[80];

	ck_assert_int_eq(read_words("--model m", &nowhere), OPTIONS_OK);
	ck_assert(!options.fairness.first_come && !options.fairness.n_weights && !options.fairness.batch_adapters);
	ck_assert_uint_eq(options.fairness.queue_limit, OPTIONS_QUEUE_LIMIT);
	ck_assert_int_eq(options.prefix, SCHED_PREFIX_USER);
	ck_assert_int_eq(read_words("--model m --prefix-cache shared --schedule fcfs --user-weights root=2,1234=0.5 "
				    "--queue-limit 0 --batch-adapters 16",
				    &nowhere),
			 OPTIONS_OK);
	ck_assert_int_eq(options.prefix, SCHED_PREFIX_SHARED);
	ck_assert(options.fairness.first_come);
	ck_assert_uint_eq(options.fairness.n_weights, 2);
	ck_assert_uint_eq(options.fairness.weight[0].uid, 0);
	ck_assert_double_eq(options.fairness.weight[0].weight, 2);
	ck_assert_uint_eq(options.fairness.weight[1].uid, 1234);
	ck_assert_double_eq(options.fairness.weight[1].weight, 0.5);
	ck_assert_uint_eq(options.fairness.queue_limit, 0);
	ck_assert_uint_eq(options.fairness.batch_adapters, 16);
	for (unsigned i = 0; i < sizeof(wrong) / sizeof(*wrong); ++i) {
		(void)snprintf(words, sizeof(words), "--model m %s", wrong[i]);
		ck_assert_msg(read_words(words, &nowhere) == OPTIONS_E_INVALID, "%s", wrong[i]);
	}
}
END_TEST

START_TEST(devices)
{
	ck_assert_int_eq(read_words("--model m --device cuda:3", &nowhere), OPTIONS_OK);
	ck_assert(options.device == OPTIONS_DEVICE_CUDA && options.cuda_number == 3);
	ck_assert_int_eq(read_words("--model m --device auto", &nowhere), OPTIONS_OK);
	ck_assert_int_eq(options.device, OPTIONS_DEVICE_AUTO);
	ck_assert_int_eq(read_words("--model m --device cpu --cuda-graphs on", &nowhere), OPTIONS_OK);
	ck_assert(options.device == OPTIONS_DEVICE_CPU && options.cuda_graphs);
	ck_assert_int_eq(read_words("--model m --cuda-graphs yes", &nowhere), OPTIONS_E_INVALID);
	ck_assert_int_eq(read_words("--model m --device cuda:", &nowhere), OPTIONS_E_INVALID);
	ck_assert_int_eq(read_words("--model m --device cuda:x", &nowhere), OPTIONS_E_INVALID);
	ck_assert_int_eq(read_words("--model m --device cudax", &nowhere), OPTIONS_E_INVALID);
}
END_TEST

static const struct {
	const char *words, *named;
	int result;
} refused[] = {
	{ "--model m --nonsense", "nonsense", OPTIONS_E_USAGE },
	{ "--model m --nonsense=1", "nonsense", OPTIONS_E_USAGE },
	{ "--model m --mode x", "mode", OPTIONS_E_USAGE },
	{ "--model m surplus", "surplus", OPTIONS_E_USAGE },
	{ "--model m --", "--", OPTIONS_E_USAGE },
	{ "--model m -h", "-h", OPTIONS_E_USAGE },
	{ "--threads", "threads", OPTIONS_E_USAGE },
	{ "--model ~", "model", OPTIONS_E_INVALID },
	{ "--model=", "model", OPTIONS_E_INVALID },
	{ "--model m --store ~", "store", OPTIONS_E_INVALID },
	{ "--model m --threads 0", "threads", OPTIONS_E_INVALID },
	{ "--model m --threads -1", "-1", OPTIONS_E_INVALID },
	{ "--model m --threads 1x", "1x", OPTIONS_E_INVALID },
	{ "--model m --context 99999999999999999999", "context", OPTIONS_E_INVALID },
	{ "--model m --device-memory 1X", "1X", OPTIONS_E_INVALID },
	{ "--model m --device-memory 99999999999999G", "device-memory", OPTIONS_E_INVALID },
	{ "--model m --device-memory 0", "device-memory", OPTIONS_E_INVALID },
	{ "--model m --precision f64", "f64", OPTIONS_E_INVALID },
	{ "--model m --kv-type int4", "int4", OPTIONS_E_INVALID },
	{ "--model m --isa mmx", "mmx", OPTIONS_E_INVALID },
	{ "--model m --device tpu", "tpu", OPTIONS_E_INVALID },
	{ "--model m --config /nonexistent/x", "/nonexistent/x", OPTIONS_E_INVALID },
	{ "--threads 1", "model", OPTIONS_E_INVALID },
};

START_TEST(refusals_name_the_thing)
{
	for (size_t i = 0; i < sizeof(refused) / sizeof(*refused); ++i) {
		diag = (struct diag){ 0 };
		ck_assert_msg(read_words(refused[i].words, &nowhere) == refused[i].result, "%s: %s", refused[i].words,
			      diag.text);
		ck_assert_msg(strstr(diag.text, refused[i].named), "%s: \"%s\"", refused[i].words, diag.text);
	}
}
END_TEST

START_TEST(help_and_version_come_first)
{
	ck_assert_int_eq(read_words("--nonsense --help", &nowhere), OPTIONS_E_HELP);
	ck_assert_int_eq(read_words("--version", &nowhere), OPTIONS_E_VERSION);
}
END_TEST

START_TEST(file_has_the_same_options)
{
	char words[128];

	write_file("# all of them\nmodel = m\nstore = s\nsocket = k\ndevice = cpu\nprecision = f32\nthreads = 2\n"
		   "isa = scalar\ndevice_memory = 1M\nhost-cache = 4K\ncontext = 7\nkv_type = bf16\nadapter_type = auto\n");
	(void)snprintf(words, sizeof(words), "--config %s --context 9", path);
	ck_assert_int_eq(read_words(words, &nowhere), OPTIONS_OK);
	ck_assert_str_eq(options.model, "m");
	ck_assert_int_eq(options.precision, MODEL_F32);
	ck_assert_int_eq(options.isa, KERN_ISA_SCALAR);
	ck_assert_uint_eq(options.device_memory, 1 << 20);
	ck_assert_uint_eq(options.host_cache, 4096);
	ck_assert_uint_eq(options.context, 9);
	ck_assert_int_eq(options.kv_type, MODEL_BF16);
	ck_assert(!options.source_adapters);
}
END_TEST

START_TEST(file_is_judged)
{
	static const struct {
		const char *text, *named;
	} files[] = {
		{ "wings = 2\n", "wings" },
		{ "config = x\n", "config" },
		{ "\nthreads = many\n", ":2: threads" },
		{ "host_cache = 1M\nhost-cache = 1M\n", ":2: host-cache: is given twice" },
		{ "context =\n", "context" },
	};
	char words[128];

	(void)snprintf(words, sizeof(words), "--model m --config %s", path);
	for (size_t i = 0; i < sizeof(files) / sizeof(*files); ++i) {
		write_file(files[i].text);
		ck_assert_int_eq(read_words(words, &nowhere), OPTIONS_E_INVALID);
		ck_assert_msg(strstr(diag.text, files[i].named) && strstr(diag.text, path), "%s", diag.text);
	}
}
END_TEST

START_TEST(default_paths)
{
	const struct options_environment user = { .runtime_dir = "/run/user/1", .home = "/home/u" };
	const struct options_environment state = { .runtime_dir = "/run/user/1", .home = "/home/u", .state_home = "/st" };
	const struct options_environment service = { .home = "/" };
	const struct options_environment root = { .root = true, .runtime_dir = "/run/user/0", .home = "/root" };

	ck_assert_int_eq(read_words("--model m", &user), OPTIONS_OK);
	ck_assert_str_eq(options.socket, "/run/user/1/lorad/lorad.sock");
	ck_assert_str_eq(options.store, "/home/u/.local/state/lorad");
	ck_assert_int_eq(read_words("--model m", &state), OPTIONS_OK);
	ck_assert_str_eq(options.store, "/st/lorad");
	ck_assert_int_eq(read_words("--model m", &service), OPTIONS_OK);
	ck_assert_str_eq(options.socket, "/run/lorad/lorad.sock");
	ck_assert_str_eq(options.store, "/var/lib/lorad");
	ck_assert_int_eq(read_words("--model m", &root), OPTIONS_OK);
	ck_assert_str_eq(options.socket, "/run/lorad/lorad.sock");
}
END_TEST

START_TEST(a_missing_default_file_is_none)
{
	const struct options_environment missing = { .root = true, .config = "/nonexistent/lorad.conf" };
	const struct options_environment there = { .root = true, .config = path };

	ck_assert_int_eq(read_words("--model m", &missing), OPTIONS_OK);
	write_file("threads = 5\n");
	ck_assert_int_eq(read_words("--model m", &there), OPTIONS_OK);
	ck_assert_uint_eq(options.threads, 5);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("daemon-options");
	TCase *tc = tcase_create("options");
	int failed, fd = mkstemp(path);

	if (fd < 0)
		return EXIT_FAILURE;
	close(fd);
	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, all_on_the_command_line);
	tcase_add_test(tc, between_users);
	tcase_add_test(tc, devices);
	tcase_add_test(tc, refusals_name_the_thing);
	tcase_add_test(tc, help_and_version_come_first);
	tcase_add_test(tc, file_has_the_same_options);
	tcase_add_test(tc, file_is_judged);
	tcase_add_test(tc, default_paths);
	tcase_add_test(tc, a_missing_default_file_is_none);
	suite_add_tcase(suite, tc);
	failed = run_suite(suite);
	(void)unlink(path);
	return failed;
}
