/* SPDX-License-Identifier: MIT */
/*
 * Estimates
 *
 * Prompts leave the queue as fast as their tokens get through, whatever holds them up: arithmetic, answers that share the
 * steps, places that are taken, page-ins. So the one thing measured is prompt tokens a second while there were prompts to do,
 * those counted in that were in the prefix cache. A prompt is through when all tokens before it and its own are.
 */
#include "daemon/sched/estimate.h"

#include <math.h>

#include "daemon/base/clock.h"

#define TIME_S 4.0  /* in which a measurement loses all but 1/e of its weight */
#define LEAST_S 0.3 /* measured, before anything is said */

/** estimate_note() - @tokens of prompts were done in @took_ns, all of which had prompts to do */
void estimate_note(struct estimate *estimate, uint64_t tokens, uint64_t took_ns)
{
	double seconds = (double)took_ns / (double)NS_PER_S, keep = exp(-seconds / TIME_S);

	estimate->tokens = estimate->tokens * keep + (double)tokens;
	estimate->seconds = estimate->seconds * keep + seconds;
}

/** estimate_ns() - how long so many tokens will take; false: not known yet */
bool estimate_ns(const struct estimate *estimate, uint64_t tokens, uint64_t *ret_ns)
{
	double ns;

	if (estimate->seconds < LEAST_S || estimate->tokens < 1)
		return false;
	ns = (double)tokens * estimate->seconds / estimate->tokens * (double)NS_PER_S;
	*ret_ns = ns < (double)INT64_MAX ? (uint64_t)ns : INT64_MAX;
	return true;
}
