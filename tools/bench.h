/* SPDX-License-Identifier: MIT */
/* The parts of lorabench: adapters, plan, trace, load, figures. See lorabench.c and bench-*.c. */
#ifndef LORAD_TOOLS_BENCH_H
#define LORAD_TOOLS_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/base/cleanup.h"
#include "tools/tool.h"

enum bench_tier { BENCH_DEVICE, BENCH_HOST, BENCH_STORE, _BENCH_TIER_N };

struct bench_random {
	uint64_t state;
};

struct bench_random bench_random_stream(uint64_t seed, uint64_t stream);
uint64_t bench_random_next(struct bench_random *random);
double bench_random_unit(struct bench_random *random); /* in [0, 1) */
double bench_random_gamma(struct bench_random *random, double shape);

struct bench_adapter {
	char *name;
	enum bench_tier tier; /* where it is, as far as is known here */
};

struct bench_adapters {
	struct bench_adapter *list;
	size_t n, room;
	double *sums; /* Zipf: sum of the weights up to each; or NULL */
	double power; /* exponent of the power law; or 0. Without either: round robin */
};

int bench_adapters_load(struct bench_adapters *adapters, const char *socket, const char *which, struct diag *diag);
int bench_adapters_zipf(struct bench_adapters *adapters, double exponent, struct diag *diag);
void bench_adapters_power(struct bench_adapters *adapters, double exponent);
struct bench_adapter *bench_adapters_choose(struct bench_adapters *adapters, uint64_t request,
					    struct bench_random *random);
void bench_adapters_deinit(struct bench_adapters *adapters);

#define BENCH_TOKENS_MAX (1u << 24)

/* One request of a plan. */
struct bench_ask {
	uint64_t number;               /* from 0 */
	uint64_t at_ns;                /* its arrival, from the start of the run */
	struct bench_adapter *adapter; /* NULL: the bare base */
	uint32_t prompt_tokens, gen_tokens;
};

struct bench_trace {
	struct bench_ask *asks;
	size_t n, room;
};

int bench_trace_load(struct bench_trace *trace, const char *path, const struct bench_adapters *adapters,
		     struct diag *diag);
void bench_trace_deinit(struct bench_trace *trace);

struct bench_plan {
	/* set by the caller, before bench_plan_begin() */
	struct bench_adapters *adapters;
	const struct bench_trace *trace; /* or NULL: requests are drawn */
	uint64_t seed;
	uint64_t n_requests;             /* 0: without end, or the trace's */
	uint32_t prompt_tokens, gen_tokens;
	uint32_t shared_prefix;          /* tokens that all prompts begin with */
	double rate, cv;                 /* arrivals a second and how their pauses vary; 0: a client asks when answered */
	/* the plan's own */
	struct bench_random arrivals, choices;
	uint64_t n_drawn;
	double at_s;
};

void bench_plan_begin(struct bench_plan *plan);
uint64_t bench_plan_size(const struct bench_plan *plan);
bool bench_plan_next(struct bench_plan *plan, struct bench_ask *ret);
void bench_plan_prompt(const struct bench_plan *plan, const struct bench_ask *ask, uint32_t first, uint32_t n_ids,
		       uint32_t *tokens);
int bench_plan_check(const struct bench_plan *plan, uint32_t context, uint32_t *ret_longest, struct diag *diag);

/* Times in milliseconds, all of them: percentiles are exact. */
struct bench_samples {
	float *ms;
	size_t n, room;
};

int bench_samples_add(struct bench_samples *samples, double ms);
double bench_samples_percentile(struct bench_samples *samples, double percent); /* NaN: there are none */
void bench_samples_deinit(struct bench_samples *samples);

struct bench_load {
	const char *socket;
	struct bench_plan *plan;
	int64_t n_clients;
	double seconds;     /* 0: to the plan's end */
	int64_t target_ms;  /* of the first token; 0: none */
	bool tell_target;   /* to the daemon, which may then drop requests */
	void (*progress)(void *userdata, double fraction, uint64_t requests, double tokens_s);
	void *userdata;
};

struct bench_result {
	uint64_t requests, tokens, errors, hits[_BENCH_TIER_N];
	uint64_t offered;   /* that arrived; with a target without those for which it was still open at the end */
	uint64_t aborted;   /* turned away or given up because of the load: no errors */
	uint64_t in_target; /* with the first token in time, and no bad end */
	uint64_t prefix_hit_tokens;
	double seconds;
	struct bench_samples ttft, itl;
	char first_error[sizeof(((struct diag *)0)->text)];
};

int bench_load_run(struct bench_load *load, struct bench_result *result, struct diag *diag);
void bench_result_deinit(struct bench_result *result);

#endif
