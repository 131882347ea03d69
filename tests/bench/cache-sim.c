/* SPDX-License-Identifier: MIT */
/*
 * What the cache's eviction order is worth: requests for adapters played through several policies
 *
 * usage: cache-sim [--all] [--runs] [--requests N] [--seed S]
 *
 * 4 laws of popularity x 4 scenes (cache-sim-trace.c) x 2,000 and 10,000 adapters x a cache of 1, 10 and 50 % of their bytes,
 * N requests each (default 100,000), the first tenth not counted. Printed: of each policy the misses, the bytes read
 * and the seconds of reloading, once as on an idle daemon and once as on a busy one (cache-sim.h), relative to LRU: geometric
 * means over all runs, and over those of one scene or size. --all: every run's own ratios and seconds instead. --runs: memory is
 * taken from the daemon's pool, where an adapter needs its bytes in one piece; what that costs is the difference.
 */
#include "tests/bench/cache-sim.h"

#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define POLICIES_MAX 16u
#define NOWHERE ((uintptr_t)1 << 46) /* the pool's memory, which nobody touches */

enum figure { MISSES, BYTES, IDLE, BUSY, _FIGURE_N };

struct run {
	enum sim_law law;
	enum sim_scene scene;
	uint32_t n_adapters, n_requests;
	double part;           /* cache, of all adapters' bytes */
	bool runs;             /* memory in one piece, from a pool */
};

/* Of what runs have in common: sums of logarithms of figures relative to LRU. */
struct group {
	char name[32];
	double log_sum[POLICIES_MAX][_FIGURE_N];
	unsigned n;
};

static struct group groups[16];
static unsigned n_groups;

static void count_miss(double figure[_FIGURE_N], uint64_t bytes)
{
	double seconds = (double)bytes / READ_B_S;

	figure[MISSES] += 1;
	figure[BYTES] += (double)bytes;
	figure[IDLE] += IDLE_S + seconds;
	figure[BUSY] += BUSY_S + seconds;
}

/* Memory for one more, without evicting anyone. */
static bool take_room(struct sim *sim, struct sim_item *item)
{
	if (sim->used + item->bytes > sim->room)
		return false;
	return !sim->pool || pool_alloc(sim->pool, POOL_ADAPTERS, item->bytes, &item->run) == POOL_OK;
}

static void give_room(struct sim *sim, struct sim_item *item)
{
	item->resident = false;
	sim->used -= item->bytes;
	--sim->n_resident;
	if (sim->pool)
		pool_release(sim->pool, POOL_ADAPTERS, item->run);
}

static void request(const struct sim_policy *policy, struct sim *sim, struct sim_item *item)
{
	if (item->resident) {
		policy->hit(sim, item);
		return;
	}
	while (!take_room(sim, item))
		give_room(sim, policy->evict(sim));
	sim->used += item->bytes;
	++sim->n_resident;
	item->resident = true;
	policy->admit(sim, item);
}

/* Plays a trace; totals: the same figures, had every request missed. */
static void play(const struct sim_policy *policy, const struct run *run, const uint64_t *bytes, const uint32_t *trace,
		 double figure[_FIGURE_N], double total[_FIGURE_N])
{
	struct sim sim = { .n = run->n_adapters };

	sim.items = calloc(sim.n, sizeof(*sim.items));
	sim.heap = calloc(sim.n, sizeof(*sim.heap));
	for (uint32_t i = 0; i < sim.n; ++i)
		sim.room += (sim.items[i].bytes = bytes[i]);
	sim.room = (uint64_t)((double)sim.room * run->part);
	if (run->runs && pool_new(&sim.pool, (void *)NOWHERE, sim.room))
		exit(1);
	policy_init(&sim.policy);
	list_init(&sim.queue[SIM_SMALL]);
	list_init(&sim.queue[SIM_MAIN]);
	list_init(&sim.ghosts);
	for (uint32_t t = 0; t < run->n_requests; ++t) {
		struct sim_item *item = &sim.items[trace[t]];

		if (t >= run->n_requests / 10) {
			count_miss(total, item->bytes);
			if (!item->resident)
				count_miss(figure, item->bytes);
		}
		request(policy, &sim, item);
	}
	for (uint32_t i = 0; i < sim.n && sim.pool; ++i)
		if (sim.items[i].resident)
			give_room(&sim, &sim.items[i]);
	pool_free(sim.pool);
	free(sim.items);
	free(sim.heap);
}

static struct group *group_of(const char *name)
{
	unsigned g = 0;

	while (g < n_groups && strcmp(groups[g].name, name) != 0)
		++g;
	if (g == n_groups)
		(void)snprintf(groups[n_groups++].name, sizeof(groups[g].name), "%s", name);
	return &groups[g];
}

static void add_to_group(const char *name, double figures[][_FIGURE_N])
{
	struct group *group = group_of(name);

	for (unsigned p = 0; p < sim_n_policies; ++p)
		for (unsigned f = 0; f < _FIGURE_N; ++f)
			group->log_sum[p][f] += log(figures[p][f] / figures[0][f]);
	++group->n;
}

static void add_to_groups(const struct run *run, double figures[][_FIGURE_N])
{
	char name[32];

	add_to_group("all", figures);
	add_to_group(sim_law_names[run->law], figures);
	add_to_group(sim_scene_names[run->scene], figures);
	(void)snprintf(name, sizeof(name), "%u adapters", run->n_adapters);
	add_to_group(name, figures);
	(void)snprintf(name, sizeof(name), "cache %.0f %%", run->part * 100);
	add_to_group(name, figures);
}

static void print_run(const struct run *run, double figures[][_FIGURE_N], const double total[_FIGURE_N])
{
	for (unsigned p = 0; p < sim_n_policies; ++p)
		printf("| %s | %s | %u | %.0f %% | %s | %.4f | %.4f | %.0f | %.0f |\n", sim_law_names[run->law],
		       sim_scene_names[run->scene], run->n_adapters, run->part * 100, sim_policies[p].name,
		       figures[p][MISSES] / total[MISSES], figures[p][BYTES] / total[BYTES], figures[p][IDLE],
		       figures[p][BUSY]);
}

static void play_all(const struct run *run, const uint64_t *bytes, const uint32_t *trace, bool print)
{
	double figures[POLICIES_MAX][_FIGURE_N] = { 0 }, total[_FIGURE_N];

	for (unsigned p = 0; p < sim_n_policies; ++p) {
		memset(total, 0, sizeof(total));
		play(&sim_policies[p], run, bytes, trace, figures[p], total);
	}
	if (print)
		print_run(run, figures, total);
	add_to_groups(run, figures);
}

static void run_all(uint32_t n_requests, bool runs, bool print)
{
	static const uint32_t n_adapters[] = { 2000, 10000 };
	static const double parts[] = { 0.01, 0.1, 0.5 };
	struct run run = { .n_requests = n_requests, .runs = runs };

	(void)group_of("all"); /* the order of the tables' rows */
	for (unsigned i = 0; i < _SIM_LAW_N; ++i)
		(void)group_of(sim_law_names[i]);
	for (unsigned i = 0; i < _SIM_SCENE_N; ++i)
		(void)group_of(sim_scene_names[i]);
	for (unsigned n = 0; n < 2; ++n) {
		uint64_t *bytes = calloc(n_adapters[n], sizeof(*bytes));

		run.n_adapters = n_adapters[n];
		for (uint32_t i = 0; i < run.n_adapters; ++i)
			bytes[i] = sim_adapter_bytes();
		for (run.law = 0; run.law < _SIM_LAW_N; ++run.law) {
			for (run.scene = 0; run.scene < _SIM_SCENE_N; ++run.scene) {
				uint32_t *trace = sim_trace(run.law, run.scene, run.n_adapters, n_requests);

				for (unsigned c = 0; c < 3; ++c) {
					run.part = parts[c];
					play_all(&run, bytes, trace, print);
				}
				free(trace);
			}
		}
		free(bytes);
	}
}

static void print_groups(void)
{
	static const char *const names[_FIGURE_N] = { "misses", "bytes read", "seconds, idle", "seconds, busy" };

	for (unsigned f = 0; f < _FIGURE_N; ++f) {
		printf("\n| %s |", names[f]);
		for (unsigned p = 0; p < sim_n_policies; ++p)
			printf(" %s |", sim_policies[p].name);
		printf("\n|---|");
		for (unsigned p = 0; p < sim_n_policies; ++p)
			printf("--:|");
		for (unsigned g = 0; g < n_groups; ++g) {
			printf("\n| %s |", groups[g].name);
			for (unsigned p = 0; p < sim_n_policies; ++p)
				printf(" %.3f |", exp(groups[g].log_sum[p][f] / groups[g].n));
		}
		printf("\n");
	}
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "all", no_argument, NULL, 'a' },
		{ "runs", no_argument, NULL, 'r' },
		{ "requests", required_argument, NULL, 'n' },
		{ "seed", required_argument, NULL, 's' },
		{ 0 },
	};
	uint32_t n_requests = 100000;
	uint64_t seed = 1;
	bool all = false, runs = false;
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (option == 'a')
			all = true;
		else if (option == 'r')
			runs = true;
		else if (option == 'n')
			n_requests = (uint32_t)strtoul(optarg, NULL, 10);
		else if (option == 's')
			seed = strtoull(optarg, NULL, 10);
		else
			return 2;
	}
	if (n_requests < 100)
		return 2;
	sim_seed(seed);
	if (all)
		printf("| law | scene | adapters | cache | policy | misses | bytes | seconds, idle | busy |\n"
		       "|---|---|--:|--:|---|--:|--:|--:|--:|\n");
	run_all(n_requests, runs, all);
	if (!all)
		print_groups();
	return 0;
}
