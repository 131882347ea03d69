/* SPDX-License-Identifier: MIT */
/*
 * Answers
 *
 * generate: each token leaves as one message with the text that it completed. Bytes go through three filters, each of
 * which may hold some back for the tokens to come: special tokens have no text; half a UTF-8 character waits for its
 * rest; text that may be the beginning of a stop string waits until it is one or is not. The token that ends the answer
 * flushes all three, so the texts of all messages together are the text of the answer.
 *
 * score: log-probabilities are kept until they are sent, in runs of IPC_SCORES_MAX.
 *
 * Nothing is lost on a client that reads slowly: a token that finds no room in the ring is kept, the request sits out
 * the next steps, and no second token can be made before the first has left. The last message of a request (done, error)
 * always has a place.
 */
#include "daemon/sched/answer.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/clock.h"
#include "libclient/loraclient.h"

static_assert((int)ANSWER_STOP == LC_FINISH_STOP && (int)ANSWER_LENGTH == LC_FINISH_LENGTH &&
		      (int)ANSWER_CANCELLED == LC_FINISH_CANCELLED && (int)ANSWER_ERROR == LC_FINISH_ERROR,
	      "finish reasons are the library's");
static_assert(sizeof(struct ipc_top) == 8, "top entries are packed");

static bool is_stop_id(const struct model_config *config, uint32_t token)
{
	for (uint32_t i = 0; i < config->n_stops; ++i)
		if (config->stop[i] == token)
			return true;
	return false;
}

/* Why the answer ends with this token, as far as the token itself says. */
static enum request_end end_of_token(const struct request *request, const struct model *model, uint32_t token)
{
	if (!request->ipc->ignore_eos && is_stop_id(model_config(model), token))
		return REQUEST_STOPPED;
	if (request->n_tokens == request->room)
		return REQUEST_FULL_LENGTH;
	return REQUEST_GOES_ON;
}

/* The text that a token completes. @ret lives until the request's next token; *ret_buffer owns it until then. */
static int text_of_token(struct request *request, const struct tokenizer *tokenizer, uint32_t token, char **ret_buffer,
			 struct stops_text *ret)
{
	bool ends = request->end != REQUEST_GOES_ON;
	const char *bytes = "";
	size_t n = 0;
	char *buffer;
	int r;

	if (request->end != REQUEST_STOPPED && !tokenizer_is_special(tokenizer, token))
		bytes = tokenizer_bytes(tokenizer, token, &n);
	buffer = malloc(3 * (n + sizeof(request->detokenizer.held)));
	if (!buffer)
		return error_origin(-ENOMEM);
	n = detokenizer_push(&request->detokenizer, bytes, n, ends, buffer);
	r = stops_push(&request->stops, buffer, n, ends, ret);
	if (r < 0) {
		free(buffer);
		return error_trace(r);
	}
	*ret_buffer = buffer;
	return 0;
}

static int keep_unsent(struct request *request, const struct ipc_token *token)
{
	struct request_unsent *unsent = calloc(1, sizeof(*unsent));

	if (!unsent)
		return error_origin(-ENOMEM);
	unsent->text = malloc(token->text_bytes + 1);
	if (!unsent->text) {
		free(unsent);
		return error_origin(-ENOMEM);
	}
	memcpy(unsent->text, token->text, token->text_bytes);
	unsent->text[token->text_bytes] = '\0';
	if (token->n_top)
		memcpy(unsent->top, token->top, token->n_top * sizeof(*token->top));
	unsent->token = *token;
	unsent->token.text = unsent->text;
	unsent->token.top = unsent->top;
	request->unsent = unsent;
	return 0;
}

static void copy_top(const struct kern_result *result, uint32_t n, struct ipc_top *to)
{
	for (uint32_t i = 0; i < n; ++i)
		to[i] = (struct ipc_top){ .token = result->top_token[i], .logprob = result->top_logprob[i] };
}

/**
 * answer_token() - take in the token that a step drew, and send it
 * @request:    the request; everything before was sent
 * @model:      for its text and the ids that end an answer
 * @result:     the draw
 *
 * Appends the token, sets request->end if the answer is over, and sends or keeps the message.
 *
 * Return: 0 or -ENOMEM.
 */
int answer_token(struct request *request, const struct model *model, const struct kern_result *result)
{
	struct ipc_top top[KERN_TOP_MAX];
	_cleanup_free_ char *buffer = NULL;
	struct stops_text text;
	struct ipc_token message;
	int r;

	assert(!request->unsent);
	request_append(request, result->token);
	request->end = end_of_token(request, model, result->token);
	r = text_of_token(request, model_tokenizer(model), result->token, &buffer, &text);
	if (r < 0)
		return error_trace(r);
	if (text.found)
		request->end = REQUEST_STOPPED;
	copy_top(result, request->sampling.n_top, top);
	message = (struct ipc_token){
		.token = result->token,
		.logprob = result->logprob,
		.text = text.text,
		.text_bytes = text.bytes,
		.top = top,
		.n_top = request->sampling.n_top,
	};
	if (ipc_send_token(request->ipc->session, request->ipc->id, &message) == IPC_E_FULL)
		return error_trace(keep_unsent(request, &message));
	return 0;
}

/**
 * answer_scores() - take in a chunk's results
 * @request:    the request; n_computed does not count the chunk yet
 * @results:    of the chunk's rows: row i tells of token n_computed + i + 1
 * @n:          rows
 *
 * After a preemption rows come again; what is known already is passed over.
 */
void answer_scores(struct request *request, const struct kern_result *results, uint32_t n)
{
	struct request_scores *scores = &request->scores;
	uint32_t n_top = request->sampling.n_top, first = request->n_computed + 1;

	for (uint32_t i = 0; i < n; ++i) {
		uint32_t at = first + i;

		if (at < scores->n_known)
			continue;
		assert(at == scores->n_known && at < request->n_prompt);
		scores->logprob[at] = results[i].logprob;
		if (n_top)
			copy_top(&results[i], n_top, &scores->top[(size_t)at * n_top]);
		scores->n_known++;
	}
	if (scores->n_known == request->n_prompt)
		request->end = REQUEST_SCORED;
}

static int send_scores(struct request *request)
{
	struct request_scores *scores = &request->scores;
	uint32_t n_top = request->sampling.n_top, n = scores->n_known - scores->n_sent;
	struct ipc_scores message = {
		.first = scores->n_sent,
		.n = n < IPC_SCORES_MAX ? n : IPC_SCORES_MAX,
		.tokens = request->token + scores->n_sent,
		.logprobs = scores->logprob + scores->n_sent,
		.top = n_top ? &scores->top[(size_t)scores->n_sent * n_top] : NULL,
		.n_top = n_top,
	};
	int r = ipc_send_scores(request->ipc->session, request->ipc->id, &message);

	if (r != IPC_E_FULL)
		scores->n_sent += message.n;
	return r;
}

static int send_kept_token(struct request *request)
{
	int r = ipc_send_token(request->ipc->session, request->ipc->id, &request->unsent->token);

	if (r != IPC_E_FULL) {
		free(request->unsent->text);
		free(request->unsent);
		request->unsent = NULL;
	}
	return r;
}

/**
 * answer_send_unsent() - send what is computed and has not left
 * @request:    the request
 *
 * Return: true if something left.
 */
bool answer_send_unsent(struct request *request)
{
	bool sent = false;

	while (request_has_unsent(request)) {
		if ((request->unsent ? send_kept_token(request) : send_scores(request)) == IPC_E_FULL)
			break;
		sent = true;
	}
	return sent;
}

static void fill_times(const struct request *request, uint64_t now_ns, struct ipc_done *done)
{
	uint64_t started = request->started_ns ? request->started_ns : now_ns;
	uint64_t first = request->first_ns ? request->first_ns : now_ns;
	uint64_t waited = started - request->ipc->arrived_ns;

	done->page_in_ms = clock_ms(request->page_in_ns);
	done->queue_ms = clock_ms(waited > request->page_in_ns ? waited - request->page_in_ns : 0);
	done->prefill_ms = clock_ms(first - started);
	done->decode_ms = clock_ms(now_ns - first);
}

/**
 * answer_done() - the last message of a request that ended well or was cancelled
 */
void answer_done(struct request *request, enum answer_finish finish, uint64_t now_ns)
{
	struct ipc_done done = {
		.finish = (uint32_t)finish,
		.prompt_tokens = request->n_prompt,
		.generated_tokens = request_n_generated(request),
		.cached_tokens = request->n_cached,
		.adapters = request->used,
		.n_adapters = request->n_adapters,
	};

	fill_times(request, now_ns, &done);
	(void)ipc_send_done(request->ipc->session, request->ipc->id, &done);
}

void answer_error(struct request *request, int code, uint32_t retry_ms, const char *text)
{
	(void)ipc_send_error(request->ipc->session, request->ipc->id, code, retry_ms, text);
}
