/* SPDX-License-Identifier: MIT */
/*
 * Admission
 *
 * ipc has checked sizes and encodings; here every value is judged, on the loop's thread and before anything is queued,
 * so that a request either runs as it was asked for or is refused with words that name the value at fault. Then the
 * prompt becomes tokens, and adapter names become digests: from here on a request keeps the versions it started with,
 * whatever happens to the names.
 *
 * All results are 0 or a positive errno for the client: EINVAL a value, ENOENT no such adapter, EDQUOT too much in
 * flight, EIO something broke here (the log has it).
 */
#include "daemon/sched/admit.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SCALE_MAX 64.0f
#define WEEK_MS INT64_C(604800000)

/* Something broke here: the log has the trace, the client gets this. */
static int broken(struct diag *diag)
{
	return diag_set(diag, EIO, "the daemon could not take the request; its log has the reason");
}

static int judge_sampling(const struct ipc_request *ipc, struct diag *diag)
{
	if (!isfinite(ipc->temperature) || ipc->temperature < 0)
		return diag_set(diag, EINVAL, "temperature %g: must be a number >= 0", ipc->temperature);
	if (!isfinite(ipc->top_p) || ipc->top_p <= 0 || ipc->top_p > 1)
		return diag_set(diag, EINVAL, "top-p %g: must be above 0 and at most 1", ipc->top_p);
	if (ipc->top_k < 0)
		return diag_set(diag, EINVAL, "top-k %lld: must be >= 0", (long long)ipc->top_k);
	if (!isfinite(ipc->min_p) || ipc->min_p < 0 || ipc->min_p > 1)
		return diag_set(diag, EINVAL, "min-p %g: must be from 0 to 1", ipc->min_p);
	if (!isfinite(ipc->repetition_penalty) || ipc->repetition_penalty <= 0)
		return diag_set(diag, EINVAL, "repetition-penalty %g: must be a number > 0", ipc->repetition_penalty);
	return 0;
}

static int judge_time(const char *name, int64_t ms, struct diag *diag)
{
	if (ms < 0 || ms > WEEK_MS)
		return diag_set(diag, EINVAL, "%s %lld: must be from 0 to %lld, a week", name, (long long)ms,
				(long long)WEEK_MS);
	return 0;
}

static int judge_stops(const struct ipc_request *ipc, struct diag *diag)
{
	for (uint32_t i = 0; i < ipc->n_stops; ++i)
		if (!*ipc->stop[i])
			return diag_set(diag, EINVAL, "stop: a stop string must not be empty");
	return 0;
}

static int judge_adapters(const struct ipc_request *ipc, struct diag *diag)
{
	for (uint32_t i = 0; i < ipc->n_adapters; ++i) {
		const struct ipc_adapter *adapter = &ipc->adapters[i];

		if (!store_name_valid(adapter->name))
			return diag_set(diag, EINVAL, "adapter \"%s\": not a name of an adapter", adapter->name);
		if (!isfinite(adapter->scale) || fabsf(adapter->scale) > SCALE_MAX)
			return diag_set(diag, EINVAL, "adapter \"%s\": scale %g: must be from -%g to %g", adapter->name,
					(double)adapter->scale, (double)SCALE_MAX, (double)SCALE_MAX);
	}
	return 0;
}

/**
 * admit_judge() - judge the values that need no model
 * @ipc:        what the client sent
 * @diag:       names the value at fault
 *
 * Return: 0 or a positive errno.
 */
int admit_judge(const struct ipc_request *ipc, struct diag *diag)
{
	int r;

	if (ipc->has_text ? !ipc->text_bytes : !ipc->n_tokens)
		return diag_set(diag, EINVAL, "the prompt is empty");
	if (ipc->chat && !ipc->has_text)
		return diag_set(diag, EINVAL, "chat: goes with a text, not with tokens");
	if (ipc->kind == IPC_GENERATE && ipc->max_tokens < 1)
		return diag_set(diag, EINVAL, "n %lld: must be >= 1", (long long)ipc->max_tokens);
	if (ipc->logprobs < -1 || ipc->logprobs > KERN_TOP_MAX)
		return diag_set(diag, EINVAL, "logprobs %lld: must be from 0 to %d", (long long)ipc->logprobs,
				KERN_TOP_MAX);
	r = judge_sampling(ipc, diag);
	if (!r)
		r = judge_time("first-token-ms", ipc->first_token_ms, diag);
	if (!r)
		r = judge_time("deadline-ms", ipc->deadline_ms, diag);
	if (!r)
		r = judge_stops(ipc, diag);
	if (!r)
		r = judge_adapters(ipc, diag);
	return r;
}

/* ---- prompt ---- */

static int encode_chat(const struct model *model, const struct ipc_request *ipc, uint32_t **ret, size_t *ret_n,
		       struct diag *diag)
{
	enum chat_template chat = model_config(model)->chat;
	_cleanup_free_ char *text = NULL;
	size_t bytes;
	int r;

	if (chat == CHAT_NONE)
		return diag_set(diag, EINVAL, "chat: the model has no chat template");
	if (chat == CHAT_UNKNOWN)
		return diag_set(diag, EINVAL, "chat: the model's chat template is not one that lorad knows");
	r = chat_render(chat, ipc->text, ipc->text_bytes, &text, &bytes);
	if (r)
		return broken(diag);
	r = tokenizer_encode(model_tokenizer(model), text, bytes, ret, ret_n);
	return r ? broken(diag) : 0;
}

static int copy_tokens(const struct model *model, const struct ipc_request *ipc, uint32_t **ret, size_t *ret_n,
		       struct diag *diag)
{
	uint32_t vocab = model_config(model)->geometry.vocab;
	uint32_t *tokens;

	for (size_t i = 0; i < ipc->n_tokens; ++i)
		if (ipc->tokens[i] >= vocab)
			return diag_set(diag, EINVAL, "tokens: id %u is outside the vocabulary of %u",
					(unsigned)ipc->tokens[i], (unsigned)vocab);
	tokens = malloc(ipc->n_tokens * sizeof(*tokens));
	if (!tokens)
		return broken(diag);
	memcpy(tokens, ipc->tokens, ipc->n_tokens * sizeof(*tokens));
	*ret = tokens;
	*ret_n = ipc->n_tokens;
	return 0;
}

static int encode_prompt(const struct model *model, const struct ipc_request *ipc, uint32_t **ret, size_t *ret_n,
			 struct diag *diag)
{
	int r;

	if (!ipc->has_text)
		return copy_tokens(model, ipc, ret, ret_n, diag);
	if (ipc->chat)
		return encode_chat(model, ipc, ret, ret_n, diag);
	r = tokenizer_encode(model_tokenizer(model), ipc->text, ipc->text_bytes, ret, ret_n);
	return r ? broken(diag) : 0;
}

/* Does it fit the context, and the pool? *ret_room: the tokens it may come to. */
static int judge_length(const struct admit *admit, const struct ipc_request *ipc, size_t n_prompt, uint32_t *ret_room,
			struct diag *diag)
{
	uint64_t context = model_config(admit->model)->context, most = kv_max_tokens(admit->kv);
	uint64_t n = ipc->kind == IPC_GENERATE ? (uint64_t)ipc->max_tokens : 0;

	if (!n_prompt)
		return diag_set(diag, EINVAL, "the prompt is empty");
	if (n_prompt > context)
		return diag_set(diag, EINVAL, "the prompt of %zu tokens is beyond the context of %llu", n_prompt,
				(unsigned long long)context);
	if (n > context - n_prompt)
		return diag_set(diag, EINVAL, "n %llu: with the prompt of %zu tokens beyond the context of %llu",
				(unsigned long long)n, n_prompt, (unsigned long long)context);
	if (n_prompt + n > most)
		return diag_set(diag, EINVAL, "prompt and n come to %llu tokens; the daemon's memory holds %llu",
				(unsigned long long)(n_prompt + n), (unsigned long long)most);
	*ret_room = (uint32_t)(n_prompt + n);
	return 0;
}

/* ---- parts of the request ---- */

static int resolve_adapter(const struct admit *admit, struct request *request, const struct ipc_adapter *wanted,
			   struct diag *diag)
{
	struct ipc_used_adapter *used = &request->used[request->n_adapters];
	struct store_digest digest;
	struct store_record record;
	int r;

	r = store_find(admit->store, wanted->name, &digest, &record);
	if (r == STORE_E_NOT_FOUND)
		return diag_set(diag, ENOENT, "adapter \"%s\": there is none of this name", wanted->name);
	if (r)
		return broken(diag);
	if (cache_state(admit->cache, &record) == CACHE_UNFIT)
		return diag_set(diag, EINVAL, "adapter \"%s\": made for another base model", wanted->name);
	r = cache_get(admit->cache, &digest, &request->adapter[request->n_adapters]);
	if (r == CACHE_E_NOT_FOUND)
		return diag_set(diag, ENOENT, "adapter \"%s\": there is none of this name", wanted->name);
	if (r)
		return broken(diag);
	memcpy(used->name, wanted->name, sizeof(used->name));
	memcpy(used->digest, digest.bytes, sizeof(used->digest));
	used->scale = wanted->scale;
	request->n_adapters++;
	return 0;
}

static void set_sampling(struct request *request, const struct ipc_request *ipc, uint32_t vocab)
{
	request->sampling = (struct kern_sampling){
		.temperature = (float)ipc->temperature,
		.top_p = (float)ipc->top_p,
		.min_p = (float)ipc->min_p,
		.repetition_penalty = (float)ipc->repetition_penalty,
		.top_k = ipc->top_k >= vocab ? 0 : (uint32_t)ipc->top_k,
		.n_top = ipc->logprobs > 0 ? (uint32_t)ipc->logprobs : 0,
		.seed = ipc->seed,
		.target = -1,
	};
}

static int make_scores(struct request_scores *scores, size_t n, uint32_t n_top)
{
	scores->logprob = malloc(n * sizeof(*scores->logprob));
	scores->top = n_top ? calloc(n * n_top, sizeof(*scores->top)) : NULL;
	if (!scores->logprob || (n_top && !scores->top))
		return error_origin(-ENOMEM);
	scores->logprob[0] = NAN;
	scores->n_known = 1;
	return 0;
}

/* Arrays for everything the request may come to, so that no step has to allocate. */
static int make_room(struct request *request, uint32_t room, uint32_t vocab)
{
	const struct ipc_request *ipc = request->ipc;

	request->token = malloc(room * sizeof(*request->token));
	if (!request->token)
		return error_origin(-ENOMEM);
	request->room = room;
	if (ipc->kind == IPC_SCORE)
		return error_trace(make_scores(&request->scores, room, request->sampling.n_top));
	stops_init(&request->stops, ipc->stop, ipc->n_stops);
	if (ipc->repetition_penalty == 1.0)
		return 0;
	request->seen = malloc(room * sizeof(*request->seen));
	request->seen_bits = calloc((vocab + 7) / 8, 1);
	return request->seen && request->seen_bits ? 0 : error_origin(-ENOMEM);
}

static int fill_request(const struct admit *admit, struct request *request, uint32_t *tokens, size_t n_tokens,
			struct diag *diag)
{
	const struct ipc_request *ipc = request->ipc;
	uint32_t vocab = model_config(admit->model)->geometry.vocab, room = 0;
	int r;

	r = judge_length(admit, ipc, n_tokens, &room, diag);
	if (r)
		return r;
	r = charge_take(admit->charges, ipc->session, room, &request->charge, diag);
	if (r)
		return r == CHARGE_E_QUOTA ? EDQUOT : broken(diag);
	for (uint32_t i = 0; i < ipc->n_adapters; ++i) {
		r = resolve_adapter(admit, request, &ipc->adapters[i], diag);
		if (r)
			return r;
	}
	set_sampling(request, ipc, vocab);
	if (make_room(request, room, vocab) < 0)
		return broken(diag);
	for (size_t i = 0; i < n_tokens; ++i)
		request_append(request, tokens[i]);
	request->n_prompt = request->n_tokens;
	return 0;
}

/**
 * admit_request() - judge a client's request and make it ready for the engine
 * @admit:      what it is judged against
 * @ipc:        what the client sent; owned by the request on success, else still the caller's
 * @ret:        the request
 * @diag:       why it is refused
 *
 * Return: 0 or a positive errno.
 */
int admit_request(const struct admit *admit, struct ipc_request *ipc, struct request **ret, struct diag *diag)
{
	_cleanup_free_ uint32_t *tokens = NULL;
	struct request *request;
	size_t n_tokens;
	int r;

	r = admit_judge(ipc, diag);
	if (!r)
		r = encode_prompt(admit->model, ipc, &tokens, &n_tokens, diag);
	if (r)
		return r;
	request = calloc(1, sizeof(*request));
	if (!request)
		return broken(diag);
	request->ipc = ipc;
	request->cache = admit->cache;
	request->charges = admit->charges;
	r = fill_request(admit, request, tokens, n_tokens, diag);
	if (r) {
		request->ipc = NULL;
		request_free(request);
		return r;
	}
	*ret = request;
	return 0;
}
