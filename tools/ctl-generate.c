/* SPDX-License-Identifier: MIT */
/*
 * loractl generate: let the model go on with a prompt
 *
 * Text is printed as it comes; with --json nothing is printed before the end, then one object. The checks here are those
 * of the daemon, so that a value which the library's types cannot carry (`-n -5`) is refused in the same way.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <sys/random.h>

#include "tools/ask.h"
#include "tools/ctl.h"
#include "tools/talk.h"

#define STOPS_MAX 16

struct generate {
	struct ask ask; /* first: ASK_OPTIONS */
	bool ignore_eos, has_seed;
	int64_t max_tokens, top_k, logprobs;
	double temperature, top_p, min_p, repetition_penalty;
	uint64_t seed;
	const char *stops[STOPS_MAX];
	size_t n_stops;
	/* the answer */
	bool json;
	json_t *tokens, *logprob_list, *top_list, *result;
	char *text;
	size_t text_bytes, text_room;
};

static const char *const finish_names[] = {
	[LC_FINISH_STOP] = "stop",
	[LC_FINISH_LENGTH] = "length",
	[LC_FINISH_CANCELLED] = "cancelled",
	[LC_FINISH_ERROR] = "error",
};

static int set_seed(void *state, const char *value, struct diag *diag)
{
	struct generate *generate = state;

	generate->has_seed = true;
	return options_uint("--seed", value, &generate->seed, diag);
}

static int set_stop(void *state, const char *value, struct diag *diag)
{
	struct generate *generate = state;

	if (generate->n_stops == STOPS_MAX)
		return diag_set(diag, TOOL_FAILED, "--stop %s: more than %d stop texts", value, STOPS_MAX);
	generate->stops[generate->n_stops++] = value;
	return TOOL_OK;
}

static int add_text(struct generate *generate, const struct lc_event *event)
{
	if (event->text_bytes > generate->text_room - generate->text_bytes) {
		size_t room = (generate->text_bytes + event->text_bytes) * 2;
		char *text = realloc(generate->text, room);

		if (!text)
			return -1;
		generate->text = text;
		generate->text_room = room;
	}
	memcpy(generate->text + generate->text_bytes, event->text, event->text_bytes);
	generate->text_bytes += event->text_bytes;
	return 0;
}

static json_t *pack_top(const struct lc_top *top, uint32_t n)
{
	json_t *list = json_array();

	for (uint32_t i = 0; i < n; ++i)
		json_array_append_new(list, json_pack("{s:I, s:o}", "token", (json_int_t)top[i].token, "logprob",
						      ask_number(top[i].logprob)));
	return list;
}

static int on_token(struct talk *talk, struct generate *generate, const struct lc_event *event)
{
	int r = 0;

	if (!generate->json)
		return talk_print(talk, event->text, event->text_bytes);
	if (event->text_bytes)
		r |= add_text(generate, event);
	r |= json_array_append_new(generate->tokens, json_integer(event->token));
	if (generate->logprobs >= 0) {
		r |= json_array_append_new(generate->logprob_list, ask_number(event->logprob));
		r |= json_array_append_new(generate->top_list, pack_top(event->top, event->n_top));
	}
	return r ? tool_no_memory(talk->diag) : TOOL_OK;
}

static json_t *pack_adapters(const struct lc_event *event)
{
	json_t *list = json_array();

	for (uint32_t i = 0; i < event->n_adapters; ++i)
		json_array_append_new(list, json_pack("{s:s, s:s, s:f}", "name", event->adapters[i].name, "digest",
						      event->adapters[i].digest, "scale", event->adapters[i].scale));
	return list;
}

static int on_done(struct talk *talk, struct generate *generate, const struct lc_event *event)
{
	if (event->finish == LC_FINISH_ERROR)
		return diag_set(talk->diag, TOOL_FAILED, "the daemon ended the request with an error");
	if (!generate->json)
		return talk_print(talk, "\n", 1);
	generate->result = json_pack(
		"{s:s%, s:O, s:s, s:I, s:I, s:o, s:{s:f, s:f, s:f, s:f}}", "text", generate->text ? generate->text : "",
		generate->text_bytes, "tokens", generate->tokens, "finish_reason", finish_names[event->finish],
		"prompt_tokens", (json_int_t)event->prompt_tokens, "cached_tokens", (json_int_t)event->cached_tokens,
		"adapters", pack_adapters(event), "timings", "queue_ms", event->queue_ms, "page_in_ms", event->page_in_ms,
		"prefill_ms", event->prefill_ms, "decode_ms", event->decode_ms);
	if (!generate->result)
		return diag_set(talk->diag, TOOL_FAILED, "the answer cannot be written as JSON");
	if (generate->logprobs < 0)
		return TOOL_OK;
	json_object_set(generate->result, "logprobs", generate->logprob_list);
	json_object_set(generate->result, "top", generate->top_list);
	return TOOL_OK;
}

static int on_event(struct talk *talk, const struct lc_event *event)
{
	if (event->type == LC_EVENT_TOKEN)
		return on_token(talk, talk->userdata, event);
	return event->type == LC_EVENT_DONE ? on_done(talk, talk->userdata, event) : TOOL_OK;
}

static int make_request(struct generate *generate, lc_request **ret, struct diag *diag)
{
	_cleanup_(ask_request_freep) lc_request *request = NULL;
	int r;

	r = ask_make_request(&generate->ask, LC_GENERATE, &request, diag);
	if (r)
		return r;
	if (!generate->has_seed && getrandom(&generate->seed, sizeof(generate->seed), 0) < 0)
		return diag_set(diag, TOOL_FAILED, "no random seed: give one with --seed");
	lc_request_set_max_tokens(request, (uint32_t)generate->max_tokens);
	lc_request_set_ignore_eos(request, generate->ignore_eos);
	lc_request_set_temperature(request, generate->temperature);
	lc_request_set_top_p(request, generate->top_p);
	lc_request_set_top_k(request, generate->top_k);
	lc_request_set_min_p(request, generate->min_p);
	lc_request_set_repetition_penalty(request, generate->repetition_penalty);
	lc_request_set_seed(request, generate->seed);
	lc_request_set_logprobs(request, generate->logprobs);
	for (size_t i = 0; i < generate->n_stops; ++i) {
		r = lc_request_add_stop(request, generate->stops[i]);
		if (r < 0)
			return diag_set(diag, TOOL_FAILED, "--stop %s: %s", generate->stops[i], strerror(-r));
	}
	*ret = TAKE_PTR(request);
	return TOOL_OK;
}

static int answer(struct ctl *ctl, struct generate *generate)
{
	_cleanup_(ask_request_freep) lc_request *request = NULL;
	struct talk talk = { .socket = ctl->socket, .event = on_event, .userdata = generate, .diag = ctl->diag };
	int r;

	r = make_request(generate, &request, ctl->diag);
	if (r)
		return r;
	lc_request_set_userdata(request, &talk);
	talk.request = request;
	r = talk_run(&talk);
	if (r)
		return r;
	if (generate->result)
		ctl_print_json(generate->result);
	return talk.interrupts ? diag_set(ctl->diag, TOOL_FAILED, "cancelled") : TOOL_OK;
}

static int run(struct ctl *ctl, void *state, char **args, size_t n_args)
{
	struct generate *generate = state;
	int r;

	(void)args;
	(void)n_args;
	generate->json = ctl->json;
	generate->tokens = json_array();
	generate->logprob_list = json_array();
	generate->top_list = json_array();
	r = answer(ctl, generate);
	json_decref(generate->tokens);
	json_decref(generate->logprob_list);
	json_decref(generate->top_list);
	json_decref(generate->result);
	free(generate->text);
	return r;
}

static const struct option options[] = {
	ASK_OPTIONS,
	{ "chat", 0, NULL, "put the prompt into the model's chat template", OPTION_FLAG, offsetof(struct ask, chat) },
	{ NULL, 'n', "N", "at most N tokens (128)", OPTION_INT, offsetof(struct generate, max_tokens),
	  "from 1 to 4294967295", 1, UINT32_MAX },
	{ "ignore-eos", 0, NULL, "go on after the model's end of sequence", OPTION_FLAG,
	  offsetof(struct generate, ignore_eos) },
	{ "temperature", 0, "T", "0 takes the best token, more varies (0)", OPTION_REAL,
	  offsetof(struct generate, temperature), "0 or more, and finite", 0, INFINITY },
	{ "top-p", 0, "P", "sample from the best tokens that sum to P (1)", OPTION_REAL, offsetof(struct generate, top_p),
	  "above 0 and at most 1", 0, 1, .above_least = true },
	{ "top-k", 0, "K", "sample from the K best tokens; 0: from all (0)", OPTION_INT, offsetof(struct generate, top_k),
	  "0 or more", 0, INFINITY },
	{ "min-p", 0, "P", "sample from tokens of at least P times the best one's probability (0)", OPTION_REAL,
	  offsetof(struct generate, min_p), "from 0 to 1", 0, 1 },
	{ "repetition-penalty", 0, "R", "make tokens that were there less likely; 1: no (1)", OPTION_REAL,
	  offsetof(struct generate, repetition_penalty), "above 0, and finite", 0, INFINITY, .above_least = true },
	{ "seed", 0, "S", "of the random numbers (a fresh one each time)", OPTION_CALL, .set = set_seed },
	{ "stop", 0, "TEXT", "end before this text; up to 16 times", OPTION_CALL, .set = set_stop },
	{ "logprobs", 0, "K", "with --json: each token's log-probability and the K best ones'", OPTION_INT,
	  offsetof(struct generate, logprobs), "from 0 to 64", 0, 64 },
	OPTIONS_END,
};

static const struct generate defaults = {
	.max_tokens = 128,
	.top_p = 1,
	.repetition_penalty = 1,
	.logprobs = -1,
};

const struct ctl_verb ctl_generate = {
	.name = "generate",
	.arguments = "",
	.summary = "let the model go on with a prompt",
	.options = options,
	.state_bytes = sizeof(struct generate),
	.defaults = &defaults,
	.run = run,
};
