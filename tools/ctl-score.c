/* SPDX-License-Identifier: MIT */
/* loractl score: the log-probability of each token of a text, given those before it. */
#include <stdio.h>

#include "tools/ask.h"
#include "tools/ctl.h"
#include "tools/talk.h"

struct score {
	json_t *tokens, *logprobs;
	uint32_t cached_tokens;
};

static int on_event(struct talk *talk, const struct lc_event *event)
{
	struct score *score = talk->userdata;
	int r = 0;

	if (event->type == LC_EVENT_DONE && event->finish != LC_FINISH_STOP && event->finish != LC_FINISH_LENGTH)
		return diag_set(talk->diag, TOOL_FAILED, "cancelled");
	if (event->type == LC_EVENT_DONE)
		score->cached_tokens = event->cached_tokens;
	if (event->type != LC_EVENT_SCORES)
		return TOOL_OK;
	for (uint32_t i = 0; i < event->n_scores; ++i) {
		r |= json_array_append_new(score->tokens, json_integer(event->tokens[i]));
		r |= json_array_append_new(score->logprobs, ask_number(event->logprobs[i]));
	}
	return r ? tool_no_memory(talk->diag) : TOOL_OK;
}

static int ask_daemon(struct ctl *ctl, const struct ask *ask, struct score *score)
{
	_cleanup_(ask_request_freep) lc_request *request = NULL;
	struct talk talk = { .socket = ctl->socket, .event = on_event, .userdata = score, .diag = ctl->diag };
	int r;

	r = ask_make_request(ask, LC_SCORE, &request, ctl->diag);
	if (r)
		return r;
	lc_request_set_userdata(request, &talk);
	talk.request = request;
	return talk_run(&talk);
}

static void print_lines(const json_t *tokens, const json_t *logprobs)
{
	json_t *token;
	size_t i;

	json_array_foreach(tokens, i, token) {
		const json_t *logprob = json_array_get(logprobs, i);

		if (json_is_null(logprob))
			(void)printf("%lld\t-\n", (long long)json_integer_value(token));
		else
			(void)printf("%lld\t%.6f\n", (long long)json_integer_value(token), json_real_value(logprob));
	}
}

static int run(struct ctl *ctl, void *state, char **args, size_t n_args)
{
	_cleanup_(json_decrefp) json_t *result = NULL;
	struct score score = { .tokens = json_array(), .logprobs = json_array() };
	int r;

	(void)args;
	(void)n_args;
	result = json_pack("{s:o, s:o}", "tokens", score.tokens, "logprobs", score.logprobs);
	if (!result)
		return tool_no_memory(ctl->diag);
	r = ask_daemon(ctl, state, &score);
	if (r)
		return r;
	json_object_set_new(result, "cached_tokens", json_integer(score.cached_tokens));
	if (ctl->json)
		ctl_print_json(result);
	else
		print_lines(score.tokens, score.logprobs);
	return TOOL_OK;
}

static const struct option options[] = { ASK_OPTIONS, OPTIONS_END };

const struct ctl_verb ctl_score = {
	.name = "score",
	.arguments = "",
	.summary = "the log-probability of each token of a text",
	.options = options,
	.state_bytes = sizeof(struct ask),
	.run = run,
};
