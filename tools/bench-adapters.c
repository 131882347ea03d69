/* SPDX-License-Identifier: MIT */
/*
 * Which adapter a request uses
 *
 * The candidates are the first N names of the daemon's list in byte order, or those that match a pattern. Request i takes
 * candidate i mod N; with Zipf's law of exponent a, candidate k (from 1) with a probability in proportion to 1 / k^a; with
 * a power law of exponent a, candidate floor(N u^(1/a)) (from 0) for a uniform u, as in the workload of the S-LoRA paper
 * (Sheng and others 2023): 1 chooses evenly, less prefers the first candidates.
 */
#include <fnmatch.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tools/bench.h"
#include "tools/number.h"
#include "tools/talk.h"

static enum bench_tier tier_of(const char *state)
{
	return strcmp(state, "device") == 0 ? BENCH_DEVICE : strcmp(state, "host") == 0 ? BENCH_HOST : BENCH_STORE;
}

static int on_event(struct talk *talk, const struct lc_event *event)
{
	struct bench_adapters *adapters = talk->userdata;

	if (event->type != LC_EVENT_ADAPTER)
		return TOOL_OK;
	if (adapters->n == adapters->room) {
		size_t room = adapters->room * 2 + 64;
		struct bench_adapter *list = reallocarray(adapters->list, room, sizeof(*list));

		if (!list)
			return tool_no_memory(talk->diag);
		adapters->list = list;
		adapters->room = room;
	}
	adapters->list[adapters->n].name = strdup(event->name);
	if (!adapters->list[adapters->n].name)
		return tool_no_memory(talk->diag);
	adapters->list[adapters->n++].tier = tier_of(event->state);
	return TOOL_OK;
}

static int compare_names(const void *a, const void *b)
{
	const struct bench_adapter *x = a, *y = b;

	return strcmp(x->name, y->name);
}

/* Keeps the first n, or those that match. */
static void keep(struct bench_adapters *adapters, uint64_t n, const char *pattern)
{
	size_t kept = 0;

	for (size_t i = 0; i < adapters->n; ++i)
		if (pattern ? fnmatch(pattern, adapters->list[i].name, 0) == 0 : i < n)
			adapters->list[kept++] = adapters->list[i];
		else
			free(adapters->list[i].name);
	adapters->n = kept;
}

/**
 * bench_adapters_load() - find the candidates
 * @adapters:  filled; zeroed before
 * @socket:    of the daemon
 * @which:     a number (0: the bare base), or a pattern as of a shell
 * @diag:      why not: no such daemon, fewer adapters than asked for, none that match
 */
int bench_adapters_load(struct bench_adapters *adapters, const char *socket, const char *which, struct diag *diag)
{
	struct talk talk = { .socket = socket, .event = on_event, .userdata = adapters, .diag = diag };
	uint64_t n = 0;
	int r, parsed = number_uint(which, &n);

	if (parsed == NUMBER_OK && n == 0)
		return TOOL_OK;
	r = talk_run(&talk);
	if (r)
		return r;
	if (adapters->n)
		qsort(adapters->list, adapters->n, sizeof(*adapters->list), compare_names);
	if (parsed == NUMBER_E_RANGE || (parsed == NUMBER_OK && n > adapters->n))
		return diag_set(diag, TOOL_FAILED, "--adapters %s: there are %zu", which, adapters->n);
	keep(adapters, n, parsed == NUMBER_OK ? NULL : which);
	if (!adapters->n)
		return diag_set(diag, TOOL_FAILED, "--adapters %s: no adapter matches", which);
	return TOOL_OK;
}

/** bench_adapters_zipf() - choose by Zipf's law from now on */
int bench_adapters_zipf(struct bench_adapters *adapters, double exponent, struct diag *diag)
{
	double sum = 0;

	if (!adapters->n)
		return TOOL_OK;
	adapters->sums = calloc(adapters->n, sizeof(*adapters->sums));
	if (!adapters->sums)
		return tool_no_memory(diag);
	for (size_t k = 0; k < adapters->n; ++k)
		adapters->sums[k] = sum += pow((double)(k + 1), -exponent);
	return TOOL_OK;
}

/** bench_adapters_power() - choose by a power law from now on */
void bench_adapters_power(struct bench_adapters *adapters, double exponent)
{
	adapters->power = exponent;
}

static size_t choose_by_power(const struct bench_adapters *adapters, struct bench_random *random)
{
	size_t index = (size_t)((double)adapters->n * pow(bench_random_unit(random), 1 / adapters->power));

	return index < adapters->n ? index : adapters->n - 1; /* rounded up to N */
}

/** bench_adapters_choose() - the adapter of a request, NULL for the bare base */
struct bench_adapter *bench_adapters_choose(struct bench_adapters *adapters, uint64_t request,
					    struct bench_random *random)
{
	size_t low = 0, high = adapters->n;
	double at;

	if (!adapters->n)
		return NULL;
	if (adapters->power > 0)
		return &adapters->list[choose_by_power(adapters, random)];
	if (!adapters->sums)
		return &adapters->list[request % adapters->n];
	at = bench_random_unit(random) * adapters->sums[adapters->n - 1];
	while (low + 1 < high) { /* the first sum above `at` is in (low, high] - 1 */
		size_t middle = low + (high - low) / 2;

		if (adapters->sums[middle - 1] <= at)
			low = middle;
		else
			high = middle;
	}
	return &adapters->list[low];
}

void bench_adapters_deinit(struct bench_adapters *adapters)
{
	for (size_t i = 0; i < adapters->n; ++i)
		free(adapters->list[i].name);
	free(adapters->list);
	free(adapters->sums);
	*adapters = (struct bench_adapters){ .n = 0 };
}
