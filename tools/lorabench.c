/* SPDX-License-Identifier: MIT */
/*
 * lorabench: how fast is this daemon?
 *
 * Requests of random ordinary token ids, answered greedily with exactly G tokens each, from C clients at once and over as
 * many adapters as wanted. The load is bench-load.c, the choice of adapters bench-adapters.c; here are the options and
 * the report. One run is one set of figures; compare runs on one machine with one seed.
 */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <sys/random.h>
#include <sys/resource.h>

#include "config.h"
#include "tools/bench.h"
#include "tools/options.h"
#include "tools/progress.h"

#define CLIENTS_MAX 4096
#define FDS_PER_CLIENT 8

struct settings {
	const char *socket, *adapters;
	int64_t clients, prompt_tokens, gen_tokens, requests;
	double rate, zipf, seconds;
	uint64_t seed;
	bool json, help, version, has_seed;
	struct progress progress;
};

static int set_seed(void *target, const char *value, struct diag *diag);

static const struct option options[] = {
	{ "socket", 0, "PATH", "the daemon's client socket", OPTION_TEXT, offsetof(struct settings, socket) },
	{ "adapters", 0, "GLOB|N", "names that match, or the first N; 0: the bare base", OPTION_TEXT,
	  offsetof(struct settings, adapters) },
	{ "clients", 0, "C", "connections that ask at once", OPTION_INT, offsetof(struct settings, clients),
	  "from 1 to 4096", 1, CLIENTS_MAX },
	{ "rate", 0, "R", "R requests a second at random times, instead of one after the other", OPTION_REAL,
	  offsetof(struct settings, rate), "above 0, and at most 1000000", 0, 1e6, .above_least = true },
	{ "zipf", 0, "A", "choose the k-th adapter in proportion to 1/k^A", OPTION_REAL, offsetof(struct settings, zipf),
	  "from 0 to 100", 0, 100 },
	{ "prompt-tokens", 0, "P", "tokens of each prompt", OPTION_INT, offsetof(struct settings, prompt_tokens),
	  "from 1 to 16777216", 1, 1 << 24 },
	{ "gen-tokens", 0, "G", "tokens of each answer", OPTION_INT, offsetof(struct settings, gen_tokens),
	  "from 1 to 16777216", 1, 1 << 24 },
	{ "requests", 0, "N", "end after N requests", OPTION_INT, offsetof(struct settings, requests), "1 or more", 1,
	  INFINITY },
	{ "duration", 0, "S", "end after S seconds", OPTION_REAL, offsetof(struct settings, seconds),
	  "above 0, and at most 1000000", 0, 1e6, .above_least = true },
	{ "seed", 0, "S", "of prompts, arrivals and choices (a fresh one each run)", OPTION_CALL, .set = set_seed },
	{ "json", 0, NULL, "print the figures as JSON", OPTION_FLAG, offsetof(struct settings, json) },
	{ "help", 'h', NULL, "print this help", OPTION_FLAG, offsetof(struct settings, help) },
	{ "version", 0, NULL, "print the version", OPTION_FLAG, offsetof(struct settings, version) },
	OPTIONS_END,
};

static int set_seed(void *target, const char *value, struct diag *diag)
{
	struct settings *settings = target;

	settings->has_seed = true;
	return options_uint("--seed", value, &settings->seed, diag);
}

static int check(const struct settings *settings, struct diag *diag)
{
	static const char missing[] = "%s is missing (see lorabench --help)";

	if (!settings->adapters)
		return diag_set(diag, TOOL_USAGE, missing, "--adapters");
	if (!settings->clients)
		return diag_set(diag, TOOL_USAGE, missing, "--clients");
	if (!settings->prompt_tokens)
		return diag_set(diag, TOOL_USAGE, missing, "--prompt-tokens");
	if (!settings->gen_tokens)
		return diag_set(diag, TOOL_USAGE, missing, "--gen-tokens");
	if (!settings->requests == !(settings->seconds > 0))
		return diag_set(diag, TOOL_USAGE, "give exactly one of --requests and --duration");
	return TOOL_OK;
}

static void show_progress(void *userdata, double fraction, uint64_t requests, double tokens_s)
{
	struct settings *settings = userdata;

	progress_draw(&settings->progress, fraction, "%llu requests, %.1f tokens/s", (unsigned long long)requests,
		      tokens_s);
}

/* Each client holds a few descriptors: the usual soft limit of 1,024 is soon reached. */
static void raise_descriptor_limit(int64_t clients)
{
	rlim_t wanted = (rlim_t)clients * FDS_PER_CLIENT + 64;
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur >= wanted)
		return;
	limit.rlim_cur = wanted < limit.rlim_max ? wanted : limit.rlim_max;
	(void)setrlimit(RLIMIT_NOFILE, &limit);
}

static json_t *number(double value)
{
	return isfinite(value) ? json_real(value) : json_null();
}

static void add_percentiles(json_t *figures, const char *name, struct bench_samples *samples)
{
	static const int percents[] = { 50, 95, 99 };

	for (size_t i = 0; i < sizeof(percents) / sizeof(percents[0]); ++i) {
		char key[32];

		(void)snprintf(key, sizeof(key), "%s_p%d_ms", name, percents[i]);
		json_object_set_new(figures, key, number(bench_samples_percentile(samples, percents[i])));
	}
}

static json_t *make_figures(const struct settings *settings, struct bench_result *result)
{
	json_t *figures = json_pack("{s:o, s:o}", "req_s", number((double)result->requests / result->seconds), "out_tok_s",
				    number((double)result->tokens / result->seconds));

	add_percentiles(figures, "ttft", &result->ttft);
	add_percentiles(figures, "itl", &result->itl);
	json_object_set_new(figures, "errors", json_integer((json_int_t)result->errors));
	json_object_set_new(figures, "hits",
			    json_pack("{s:I, s:I, s:I}", "device", (json_int_t)result->hits[BENCH_DEVICE], "host",
				      (json_int_t)result->hits[BENCH_HOST], "store",
				      (json_int_t)result->hits[BENCH_STORE]));
	json_object_set_new(figures, "requests", json_integer((json_int_t)result->requests));
	json_object_set_new(figures, "tokens", json_integer((json_int_t)result->tokens));
	json_object_set_new(figures, "seconds", number(result->seconds));
	json_object_set_new(figures, "clients", json_integer(settings->clients));
	json_object_set_new(figures, "seed", json_sprintf("%llu", (unsigned long long)settings->seed));
	return figures;
}

static void print_figures(json_t *figures, bool json)
{
	const char *key;
	json_t *value;

	if (json) {
		(void)json_dumpf(figures, stdout, JSON_REAL_PRECISION(9));
		(void)putchar('\n');
		return;
	}
	json_object_foreach(figures, key, value) {
		(void)printf("%-14s", key);
		if (json_is_real(value))
			(void)printf("%.3f", json_real_value(value));
		else
			(void)json_dumpf(value, stdout, JSON_ENCODE_ANY);
		(void)putchar('\n');
	}
}

static int measure(struct settings *settings, struct bench_adapters *adapters, const char *socket, struct diag *diag)
{
	struct bench_result result = { .requests = 0 };
	struct bench_load load = {
		.socket = socket,
		.adapters = adapters,
		.n_clients = settings->clients,
		.prompt_tokens = settings->prompt_tokens,
		.gen_tokens = settings->gen_tokens,
		.n_requests = settings->requests,
		.seconds = settings->seconds,
		.rate = settings->rate,
		.random = { settings->seed },
		.progress = show_progress,
		.userdata = settings,
	};
	json_t *figures;
	int r;

	r = bench_load_run(&load, &result, diag);
	progress_clear(&settings->progress);
	if (!r) {
		figures = make_figures(settings, &result);
		print_figures(figures, settings->json);
		json_decref(figures);
	}
	if (!r && result.errors)
		r = diag_set(diag, TOOL_FAILED, "%llu requests failed, the first: %s", (unsigned long long)result.errors,
			     result.first_error);
	bench_result_deinit(&result);
	return r;
}

static int run(struct settings *settings, char **args, size_t n_args, struct diag *diag)
{
	_cleanup_(bench_adapters_deinit) struct bench_adapters adapters = { .n = 0 };
	const struct option_set set = { options, settings };
	char socket[TOOL_PATH_MAX];
	size_t used;
	int r;

	r = options_parse(&(struct options){ &set, 1, .stop_at_word = false }, args, &n_args, &used, diag);
	if (r)
		return r;
	if (settings->help) {
		(void)printf("usage: lorabench --adapters GLOB|N --clients C --prompt-tokens P --gen-tokens G\n"
			     "                 (--requests N | --duration S) [OPTION]...\n\n"
			     "Measure a lorad under load.\n\nOptions:\n");
		options_help(options, stdout);
		return TOOL_OK;
	}
	if (settings->version) {
		(void)printf("lorabench %s\n", PACKAGE_VERSION);
		return TOOL_OK;
	}
	if (n_args)
		return diag_set(diag, TOOL_USAGE, "no arguments are known but options: %s", args[0]);
	r = check(settings, diag);
	if (!r)
		r = tool_socket_path(settings->socket, getenv("XDG_RUNTIME_DIR"), socket, diag);
	if (!r && !settings->has_seed && getrandom(&settings->seed, sizeof(settings->seed), 0) < 0)
		r = diag_set(diag, TOOL_FAILED, "no random seed: give one with --seed");
	if (!r)
		r = bench_adapters_load(&adapters, socket, settings->adapters, diag);
	if (!r && settings->zipf >= 0)
		r = bench_adapters_zipf(&adapters, settings->zipf, diag);
	if (r)
		return r;
	raise_descriptor_limit(settings->clients);
	return measure(settings, &adapters, socket, diag);
}

int main(int argc, char **argv)
{
	struct settings settings = { .zipf = -1 };
	struct diag diag = { .text = "" };
	int r;

	progress_init(&settings.progress, true);
	r = run(&settings, argv + 1, argc > 0 ? (size_t)argc - 1 : 0, &diag);
	if (!r)
		r = tool_flush(&diag);
	if (r)
		(void)fprintf(stderr, "lorabench: %s\n", diag.text);
	return r;
}
