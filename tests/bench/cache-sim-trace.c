/* SPDX-License-Identifier: MIT */
/*
 * Made traces: the same for the same seed
 *
 * Laws: the k-th most popular of n adapters is asked for in proportion to 1/k^a (Zipf, a = 0.7, 0.9, 1.1), or so that the k
 * most popular take (k/n)^0.25 of all requests (a power law). Which one is popular has nothing to do with its size.
 * Scenes: steady; scan: in every second twentieth of the trace half the requests walk through all adapters, as a test
 * run or an export does; shift: ten times a fifth of the ranks are dealt anew, from the popular tenth; loop: half
 * of the requests walk round and round a fifth of all adapters.
 *
 * Sizes: ranks 8 to 256, on two of seven modules or on all, of a model of 7 billion weights: 2 to 320 MiB.
 */
#include "tests/bench/cache-sim.h"

#include <math.h>
#include <stdlib.h>

const char *const sim_law_names[_SIM_LAW_N] = { "Zipf 0.7", "Zipf 0.9", "Zipf 1.1", "power law" };
const char *const sim_scene_names[_SIM_SCENE_N] = { "steady", "scan", "shift", "loop" };

static uint64_t state;

void sim_seed(uint64_t seed)
{
	state = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
}

/* xorshift64: [0, 1) */
static double random_part(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (double)(state >> 11) / 9007199254740992.0;
}

static uint32_t random_below(uint32_t n)
{
	return (uint32_t)(random_part() * n);
}

uint64_t sim_adapter_bytes(void)
{
	static const uint32_t ranks[] = { 8, 16, 16, 16, 32, 32, 64, 128, 256 };
	uint64_t rank = ranks[random_below(sizeof(ranks) / sizeof(*ranks))];

	return rank * (random_part() < 0.4 ? 256u << 10 : 1280u << 10);
}

/* Sums of the weights of ranks 0..k. */
static double *make_sums(enum sim_law law, uint32_t n)
{
	static const double exponent[] = { 0.7, 0.9, 1.1 };
	double *sums = calloc(n, sizeof(*sums)), sum = 0;

	for (uint32_t k = 0; k < n; ++k) {
		sum = law == SIM_POWER ? pow((k + 1.0) / n, 0.25) : sum + pow(k + 1, -exponent[law]);
		sums[k] = sum;
	}
	return sums;
}

static uint32_t draw_rank(const double *sums, uint32_t n)
{
	double at = random_part() * sums[n - 1];
	uint32_t low = 0, high = n - 1;

	while (low < high) {
		uint32_t middle = (low + high) / 2;

		if (sums[middle] < at)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static void swap(uint32_t *a, uint32_t *b)
{
	uint32_t t = *a;

	*a = *b;
	*b = t;
}

static void shift(uint32_t *of_rank, uint32_t n)
{
	for (uint32_t i = 0; i < n / 5; ++i)
		swap(&of_rank[random_below(n / 10)], &of_rank[random_below(n)]);
}

/* Does request t come from the walk of the scene? */
static bool is_walk(enum sim_scene scene, uint32_t t, uint32_t n_requests)
{
	if (scene == SIM_SCAN)
		return t / (n_requests / 20) % 2 == 1 && random_part() < 0.5;
	return scene == SIM_LOOP && random_part() < 0.5;
}

uint32_t *sim_trace(enum sim_law law, enum sim_scene scene, uint32_t n, uint32_t n_requests)
{
	uint32_t *trace = calloc(n_requests, sizeof(*trace)), *of_rank = calloc(n, sizeof(*of_rank));
	uint32_t walked = 0, round = scene == SIM_LOOP ? n / 5 : n;
	double *sums = make_sums(law, n);

	for (uint32_t i = 0; i < n; ++i)
		of_rank[i] = i;
	for (uint32_t i = n - 1; i > 0; --i)
		swap(&of_rank[i], &of_rank[random_below(i + 1)]);
	for (uint32_t t = 0; t < n_requests; ++t) {
		if (scene == SIM_SHIFT && t % (n_requests / 10) == 0)
			shift(of_rank, n);
		trace[t] = is_walk(scene, t, n_requests) ? walked++ % round : of_rank[draw_rank(sums, n)];
	}
	free(of_rank);
	free(sums);
	return trace;
}
