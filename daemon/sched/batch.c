/* SPDX-License-Identifier: MIT */
/*
 * Batch: two decisions as pure functions
 *
 * Filling a step. A running request has `todo` tokens that the model has not seen: its whole prompt at first, one new
 * token later, everything again after it was preempted. There is no separate phase for any of these; a request with one
 * token to do is a decode. Decodes go in first, one row each, because someone waits for every single one of them. What
 * is left of the row budget goes to prefills in order of arrival, cut wherever the budget ends: a row's result never
 * depends on the cut. A step that decodes takes fewer prefill rows, so that a long prompt does not stall the answers
 * that are already running: as many as make it take BATCH_PACE_NS, which the steps before tell. A prompt's last rows cost
 * more than its first ones, attention grows, so no fixed number would do.
 *
 * Yielding memory. When KV blocks run out, one request gives up its own and is computed again later: best one whose
 * client is not reading anyway, else the youngest, which has the least to lose and no claim on the older ones.
 */
#include "daemon/sched/batch.h"

#include <assert.h>

static uint32_t min_u32(uint32_t a, uint32_t b)
{
	return a < b ? a : b;
}

/**
 * batch_pace() - prefill rows for the next step that decodes
 * @mixed_rows: what this one might have taken
 * @most:       never more
 * @prefills:   what it took, at least 1
 * @took_ns:    how long it was
 *
 * A step that was too long makes the next one shorter at once; rows grow, at most twofold, only if a step used all of
 * them. What its decodes took is counted as if it grew with the prefills: rather too few than too many.
 */
uint32_t batch_pace(uint32_t mixed_rows, uint32_t most, uint32_t prefills, uint64_t took_ns)
{
	uint64_t fit = prefills * BATCH_PACE_NS / (took_ns ? took_ns : 1);

	if (took_ns <= BATCH_PACE_NS && prefills < mixed_rows)
		return mixed_rows;
	fit = fit < 2 * (uint64_t)mixed_rows ? fit : 2 * (uint64_t)mixed_rows;
	fit = fit > BATCH_PACE_LEAST ? fit : BATCH_PACE_LEAST;
	return fit < most ? (uint32_t)fit : most;
}

/**
 * batch_fill() - share out the rows of one step
 * @items:      running requests in order of arrival; @rows of each is set
 * @n:          how many, at most limits->rows of them ready
 * @limits:     the budget
 *
 * Return: the rows of the step.
 */
uint32_t batch_fill(struct batch_item *items, size_t n, const struct batch_limits *limits)
{
	uint32_t decodes = 0, prefills = 0, budget;

	for (size_t i = 0; i < n; ++i) {
		assert(items[i].todo);
		items[i].rows = items[i].ready && items[i].todo == 1 && decodes < limits->rows;
		decodes += items[i].rows;
	}
	budget = limits->rows - decodes;
	if (decodes)
		budget = min_u32(budget, limits->mixed_rows);
	for (size_t i = 0; i < n; ++i) {
		if (!items[i].ready || items[i].todo == 1)
			continue;
		items[i].rows = min_u32(items[i].todo, budget - prefills);
		prefills += items[i].rows;
	}
	return decodes + prefills;
}

static bool yields_before(const struct batch_victim *a, const struct batch_victim *b)
{
	if (a->ready != b->ready)
		return !a->ready;
	return a->arrived_ns > b->arrived_ns;
}

/**
 * batch_choose_victim() - who gives up its KV blocks
 * @requests:   running requests
 * @n:          how many
 *
 * Return: an index, or @n if nobody has anything to give.
 */
size_t batch_choose_victim(const struct batch_victim *requests, size_t n)
{
	size_t best = n;

	for (size_t i = 0; i < n; ++i)
		if (requests[i].holds && (best == n || yields_before(&requests[i], &requests[best])))
			best = i;
	return best;
}
