/* SPDX-License-Identifier: MIT */
/* The parts of lorabench: which adapters, the load, the figures. See lorabench.c, bench-adapters.c, bench-load.c. */
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

uint64_t bench_random_next(struct bench_random *random);
double bench_random_unit(struct bench_random *random); /* in [0, 1) */

struct bench_adapter {
	char *name;
	enum bench_tier tier; /* where it is, as far as is known here */
};

struct bench_adapters {
	struct bench_adapter *list;
	size_t n, room;
	double *sums; /* Zipf: sum of the weights up to each; NULL: round robin */
};

int bench_adapters_load(struct bench_adapters *adapters, const char *socket, const char *which, struct diag *diag);
int bench_adapters_zipf(struct bench_adapters *adapters, double exponent, struct diag *diag);
struct bench_adapter *bench_adapters_choose(struct bench_adapters *adapters, uint64_t request,
					    struct bench_random *random);
void bench_adapters_deinit(struct bench_adapters *adapters);

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
	struct bench_adapters *adapters;
	int64_t n_clients, prompt_tokens, gen_tokens;
	int64_t n_requests; /* 0: for `seconds` */
	double seconds;
	double rate;        /* arrivals a second; 0: each client asks again when it is answered */
	struct bench_random random;
	void (*progress)(void *userdata, double fraction, uint64_t requests, double tokens_s);
	void *userdata;
};

struct bench_result {
	uint64_t requests, tokens, errors, hits[_BENCH_TIER_N];
	double seconds;
	struct bench_samples ttft, itl;
	char first_error[sizeof(((struct diag *)0)->text)];
};

int bench_load_run(struct bench_load *load, struct bench_result *result, struct diag *diag);
void bench_result_deinit(struct bench_result *result);

#endif
