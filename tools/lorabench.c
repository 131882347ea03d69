/* SPDX-License-Identifier: MIT */
/*
 * lorabench: how fast is this daemon?
 *
 * Requests of random ordinary token ids, answered greedily with exactly G tokens each, from C clients at once and over as
 * many adapters as wanted. What is asked and when is bench-plan.c, the load bench-load.c; here are the options and the
 * report. One run is one set of figures; compare runs on one machine with one seed.
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
#define WEEK_MS 604800000

struct settings {
	const char *socket, *adapters, *trace;
	int64_t clients, prompt_tokens, gen_tokens, shared_prefix, requests, deadline_ms, target_ms; /* 0: not given */
	double rate, cv, zipf, power, seconds; /* cv, zipf: below 0 if not given */
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
	{ "cv", 0, "C", "with --rate: how the pauses vary; 0 not at all, 1 as a Poisson process, more: in bursts (1)",
	  OPTION_REAL, offsetof(struct settings, cv), "from 0 to 100", 0, 100 },
	{ "zipf", 0, "A", "choose the k-th adapter in proportion to 1/k^A", OPTION_REAL, offsetof(struct settings, zipf),
	  "from 0 to 100", 0, 100 },
	{ "power", 0, "A", "choose adapter floor(N u^(1/A)) of 0 to N - 1, for a uniform u", OPTION_REAL,
	  offsetof(struct settings, power), "above 0, and at most 100", 0, 100, .above_least = true },
	{ "trace", 0, "FILE", "requests as a file says: lines of time, adapter, tokens of prompt and answer", OPTION_TEXT,
	  offsetof(struct settings, trace) },
	{ "prompt-tokens", 0, "P", "tokens of each prompt", OPTION_INT, offsetof(struct settings, prompt_tokens),
	  "from 1 to 16777216", 1, 1 << 24 },
	{ "gen-tokens", 0, "G", "tokens of each answer", OPTION_INT, offsetof(struct settings, gen_tokens),
	  "from 1 to 16777216", 1, 1 << 24 },
	{ "shared-prefix", 0, "P", "the first P tokens are the same in all prompts", OPTION_INT,
	  offsetof(struct settings, shared_prefix), "from 0 to 16777216", 0, BENCH_TOKENS_MAX },
	{ "deadline-ms", 0, "D", "first tokens are wanted within D ms; the daemon may drop what would be late", OPTION_INT,
	  offsetof(struct settings, deadline_ms), "from 1 to 604800000, a week", 1, WEEK_MS },
	{ "target-ms", 0, "D", "the same, but the daemon is not told", OPTION_INT, offsetof(struct settings, target_ms),
	  "from 1 to 604800000, a week", 1, WEEK_MS },
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

/* A trace says all of this. */
static int check_traced(const struct settings *settings, struct diag *diag)
{
	const struct {
		const char *option;
		bool given;
	} said[] = {
		{ "--rate", settings->rate > 0 },      { "--cv", settings->cv >= 0 },
		{ "--zipf", settings->zipf >= 0 },     { "--power", settings->power > 0 },
		{ "--prompt-tokens", settings->prompt_tokens }, { "--gen-tokens", settings->gen_tokens },
	};

	for (size_t i = 0; i < sizeof(said) / sizeof(said[0]); ++i)
		if (said[i].given)
			return diag_set(diag, TOOL_USAGE, "%s with --trace: the file says it", said[i].option);
	return TOOL_OK;
}

static int check_drawn(const struct settings *settings, struct diag *diag)
{
	if (settings->cv >= 0 && settings->rate <= 0)
		return diag_set(diag, TOOL_USAGE, "--cv without --rate: there are no pauses");
	if (settings->zipf >= 0 && settings->power > 0)
		return diag_set(diag, TOOL_USAGE, "give one of --zipf and --power");
	if (settings->shared_prefix > settings->prompt_tokens)
		return diag_set(diag, TOOL_FAILED, "--shared-prefix %lld: longer than the prompt",
				(long long)settings->shared_prefix);
	return TOOL_OK;
}

static int check(const struct settings *settings, struct diag *diag)
{
	static const char missing[] = "%s is missing (see lorabench --help)";

	if (!settings->adapters)
		return diag_set(diag, TOOL_USAGE, missing, "--adapters");
	if (!settings->clients)
		return diag_set(diag, TOOL_USAGE, missing, "--clients");
	if (settings->deadline_ms && settings->target_ms)
		return diag_set(diag, TOOL_USAGE, "give one of --deadline-ms and --target-ms");
	if (settings->trace)
		return check_traced(settings, diag);
	if (!settings->prompt_tokens)
		return diag_set(diag, TOOL_USAGE, missing, "--prompt-tokens");
	if (!settings->gen_tokens)
		return diag_set(diag, TOOL_USAGE, missing, "--gen-tokens");
	if (!settings->requests == !(settings->seconds > 0))
		return diag_set(diag, TOOL_USAGE, "give exactly one of --requests and --duration");
	return check_drawn(settings, diag);
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

static void add_percentile(json_t *figures, const char *key, struct bench_samples *samples, double percent)
{
	json_object_set_new(figures, key, number(bench_samples_percentile(samples, percent)));
}

static void add_percentiles(json_t *figures, struct bench_result *result)
{
	add_percentile(figures, "ttft_p50_ms", &result->ttft, 50);
	add_percentile(figures, "ttft_p95_ms", &result->ttft, 95);
	add_percentile(figures, "ttft_p99_ms", &result->ttft, 99);
	add_percentile(figures, "itl_p50_ms", &result->itl, 50);
	add_percentile(figures, "itl_p95_ms", &result->itl, 95);
	add_percentile(figures, "itl_p99_ms", &result->itl, 99);
	add_percentile(figures, "itl_p999_ms", &result->itl, 99.9);
}

/* How many of those that arrived had their first token in time; null without a target. */
static void add_attainment(json_t *figures, const struct settings *settings, const struct bench_result *result)
{
	bool wanted = settings->deadline_ms || settings->target_ms;
	double n = wanted ? (double)result->in_target : (double)NAN;

	json_object_set_new(figures, "offered", json_integer((json_int_t)result->offered));
	json_object_set_new(figures, "aborted", json_integer((json_int_t)result->aborted));
	json_object_set_new(figures, "in_target", wanted ? json_integer((json_int_t)result->in_target) : json_null());
	json_object_set_new(figures, "attainment", number(n / (double)result->offered));
	json_object_set_new(figures, "in_target_s", number(n / result->seconds));
}

static json_t *make_figures(const struct settings *settings, struct bench_result *result)
{
	json_t *figures = json_pack("{s:o, s:o}", "req_s", number((double)result->requests / result->seconds), "out_tok_s",
				    number((double)result->tokens / result->seconds));

	add_percentiles(figures, result);
	json_object_set_new(figures, "errors", json_integer((json_int_t)result->errors));
	json_object_set_new(figures, "hits",
			    json_pack("{s:I, s:I, s:I}", "device", (json_int_t)result->hits[BENCH_DEVICE], "host",
				      (json_int_t)result->hits[BENCH_HOST], "store",
				      (json_int_t)result->hits[BENCH_STORE]));
	json_object_set_new(figures, "prefix_hit_tokens", json_integer((json_int_t)result->prefix_hit_tokens));
	add_attainment(figures, settings, result);
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
		(void)printf("%-18s", key);
		if (json_is_real(value))
			(void)printf("%.3f", json_real_value(value));
		else
			(void)json_dumpf(value, stdout, JSON_ENCODE_ANY);
		(void)putchar('\n');
	}
}

static int measure(struct settings *settings, struct bench_plan *plan, const char *socket, struct diag *diag)
{
	struct bench_result result = { .requests = 0 };
	struct bench_load load = {
		.socket = socket,
		.plan = plan,
		.n_clients = settings->clients,
		.seconds = settings->seconds,
		.target_ms = settings->deadline_ms ? settings->deadline_ms : settings->target_ms,
		.tell_target = settings->deadline_ms > 0,
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

static int load_adapters(struct bench_adapters *adapters, const struct settings *settings, const char *socket,
			 struct diag *diag)
{
	int r = bench_adapters_load(adapters, socket, settings->adapters, diag);

	if (!r && settings->zipf >= 0)
		r = bench_adapters_zipf(adapters, settings->zipf, diag);
	if (!r && settings->power > 0)
		bench_adapters_power(adapters, settings->power);
	return r;
}

static int plan_and_measure(struct settings *settings, const char *socket, struct diag *diag)
{
	_cleanup_(bench_adapters_deinit) struct bench_adapters adapters = { .n = 0 };
	_cleanup_(bench_trace_deinit) struct bench_trace trace = { .n = 0 };
	struct bench_plan plan = {
		.adapters = &adapters,
		.trace = settings->trace ? &trace : NULL,
		.seed = settings->seed,
		.n_requests = (uint64_t)settings->requests,
		.prompt_tokens = (uint32_t)settings->prompt_tokens,
		.gen_tokens = (uint32_t)settings->gen_tokens,
		.shared_prefix = (uint32_t)settings->shared_prefix,
		.rate = settings->rate,
		.cv = settings->cv < 0 ? 1 : settings->cv,
	};
	int r;

	r = load_adapters(&adapters, settings, socket, diag);
	if (!r && settings->trace)
		r = bench_trace_load(&trace, settings->trace, &adapters, diag);
	if (r)
		return r;
	raise_descriptor_limit(settings->clients);
	return measure(settings, &plan, socket, diag);
}

static int run(struct settings *settings, char **args, size_t n_args, struct diag *diag)
{
	const struct option_set set = { options, settings };
	char socket[TOOL_PATH_MAX];
	size_t used;
	int r;

	r = options_parse(&(struct options){ &set, 1, .stop_at_word = false }, args, &n_args, &used, diag);
	if (r)
		return r;
	if (settings->help) {
		(void)printf("usage: lorabench --adapters GLOB|N --clients C --prompt-tokens P --gen-tokens G\n"
			     "                 (--requests N | --duration S) [OPTION]...\n"
			     "       lorabench --adapters GLOB|N --clients C --trace FILE [OPTION]...\n\n"
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
	return r ? r : plan_and_measure(settings, socket, diag);
}

int main(int argc, char **argv)
{
	struct settings settings = { .cv = -1, .zipf = -1 };
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
