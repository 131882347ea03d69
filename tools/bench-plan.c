/* SPDX-License-Identifier: MIT */
/*
 * What is asked, and when
 *
 * A plan is a sequence of requests: time of arrival, adapter, lengths, and the seed of the prompt. It is read from a trace
 * or drawn; in both cases it depends on the seed and its settings alone, never on how fast anything was answered.
 *
 * Pauses have a gamma distribution of mean 1 / rate and coefficient of variation cv: 1 is a Poisson process, more is burst
 * after burst, 0 a steady beat.
 */
#include <math.h>
#include <stdlib.h>

#include "daemon/base/clock.h"
#include "tools/bench.h"

enum { STREAM_ARRIVALS, STREAM_CHOICES, STREAM_PREFIX, STREAM_PROMPTS };

/** bench_plan_begin() - to the plan's first request, once its settings are made */
void bench_plan_begin(struct bench_plan *plan)
{
	plan->arrivals = bench_random_stream(plan->seed, STREAM_ARRIVALS);
	plan->choices = bench_random_stream(plan->seed, STREAM_CHOICES);
	plan->n_drawn = 0;
	plan->at_s = 0;
}

static double draw_pause(struct bench_plan *plan)
{
	double shape = 1 / (plan->cv * plan->cv);

	if (plan->cv <= 0)
		return 1;
	if (shape == 1)
		return -log1p(-bench_random_unit(&plan->arrivals));
	return bench_random_gamma(&plan->arrivals, shape) / shape;
}

static void draw(struct bench_plan *plan, struct bench_ask *ret)
{
	*ret = (struct bench_ask){
		.at_ns = (uint64_t)(plan->at_s * (double)NS_PER_S),
		.adapter = bench_adapters_choose(plan->adapters, plan->n_drawn, &plan->choices),
		.prompt_tokens = plan->prompt_tokens,
		.gen_tokens = plan->gen_tokens,
	};
	if (plan->rate > 0)
		plan->at_s += draw_pause(plan) / plan->rate;
}

/** bench_plan_size() - how many requests it has; UINT64_MAX: without end */
uint64_t bench_plan_size(const struct bench_plan *plan)
{
	uint64_t n = plan->n_requests ? plan->n_requests : UINT64_MAX;

	return plan->trace && plan->trace->n < n ? plan->trace->n : n;
}

/** bench_plan_next() - the next request; false: there is none */
bool bench_plan_next(struct bench_plan *plan, struct bench_ask *ret)
{
	if (plan->n_drawn == bench_plan_size(plan))
		return false;
	if (plan->trace)
		*ret = plan->trace->asks[plan->n_drawn];
	else
		draw(plan, ret);
	ret->number = plan->n_drawn++;
	return true;
}

/** bench_plan_prompt() - the tokens of a request: `shared` that all have in common, then its own; ids from `first` on */
void bench_plan_prompt(const struct bench_plan *plan, const struct bench_ask *ask, uint32_t first, uint32_t n_ids,
		       uint32_t *tokens)
{
	struct bench_random shared = bench_random_stream(plan->seed, STREAM_PREFIX);
	struct bench_random own = bench_random_stream(plan->seed, STREAM_PROMPTS + ask->number);

	for (uint32_t i = 0; i < ask->prompt_tokens; ++i)
		tokens[i] = first + (uint32_t)(bench_random_next(i < plan->shared_prefix ? &shared : &own) % n_ids);
}

/** bench_plan_check() - do all requests fit a context? *ret_longest: tokens of the longest prompt */
int bench_plan_check(const struct bench_plan *plan, uint32_t context, uint32_t *ret_longest, struct diag *diag)
{
	*ret_longest = plan->trace ? 0 : plan->prompt_tokens;
	if (!plan->trace && (plan->prompt_tokens > context || plan->gen_tokens > context - plan->prompt_tokens))
		return diag_set(diag, TOOL_FAILED,
				"--prompt-tokens %u and --gen-tokens %u are beyond the context of %u tokens",
				plan->prompt_tokens, plan->gen_tokens, context);
	for (size_t i = 0; plan->trace && i < plan->trace->n; ++i) {
		const struct bench_ask *ask = &plan->trace->asks[i];

		if (ask->prompt_tokens > context || ask->gen_tokens > context - ask->prompt_tokens)
			return diag_set(diag, TOOL_FAILED, "request %zu of the trace, of %u + %u tokens, is beyond the context of %u",
					i + 1, ask->prompt_tokens, ask->gen_tokens, context);
		if (ask->prompt_tokens > *ret_longest)
			*ret_longest = ask->prompt_tokens;
	}
	return TOOL_OK;
}
