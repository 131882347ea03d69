/* SPDX-License-Identifier: MIT */
/*
 * Requests: a value object that is filled, then encoded into the request ring, any number of times.
 *
 * Only what was set is sent, so that the daemon's defaults hold and its judgement of values is the only one. Each open
 * request has an entry in a table whose size the daemon fixed; an id is (use of the entry) * size + index, so an answer
 * finds its entry without a search and an old id never means a new request.
 */
#include "libclient/client.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "libclient/message.h"

#define NO_ENTRY UINT32_MAX

/** lc_request_new() - a request with nothing set; the caller's until lc_request_free() */
int lc_request_new(lc_request **request, enum lc_kind kind)
{
	*request = NULL;
	if (kind != LC_GENERATE && kind != LC_SCORE)
		return -EINVAL;
	*request = (lc_request *)calloc(1, sizeof(**request));
	if (!*request)
		return -ENOMEM;
	(*request)->kind = kind;
	return 0;
}

void lc_request_free(lc_request *request)
{
	if (!request)
		return;
	for (uint32_t i = 0; i < request->n_adapters; ++i)
		free(request->adapters[i]);
	for (uint32_t i = 0; i < request->n_stops; ++i)
		free(request->stops[i]);
	free(request->text);
	free(request->tokens);
	free(request);
}

/* The prompt is text or tokens: setting one replaces what was there. */
static void drop_prompt(lc_request *request)
{
	free(request->text);
	free(request->tokens);
	request->text = NULL;
	request->tokens = NULL;
	request->has_text = request->has_tokens = false;
}

/** lc_request_set_text() - the prompt as UTF-8; it replaces an earlier text or tokens */
int lc_request_set_text(lc_request *request, const char *text, size_t bytes)
{
	char *copy = (char *)malloc(bytes + 1);

	if (!copy)
		return -ENOMEM;
	if (bytes)
		memcpy(copy, text, bytes);
	copy[bytes] = 0;
	drop_prompt(request);
	request->text = copy;
	request->text_bytes = bytes;
	request->has_text = true;
	return 0;
}

/** lc_request_set_tokens() - the prompt as token ids; they replace an earlier text or tokens */
int lc_request_set_tokens(lc_request *request, const uint32_t *tokens, size_t n)
{
	uint32_t *copy;

	if (n > SIZE_MAX / sizeof(*copy))
		return -EMSGSIZE;
	copy = (uint32_t *)malloc(n ? n * sizeof(*copy) : 1);
	if (!copy)
		return -ENOMEM;
	if (n)
		memcpy(copy, tokens, n * sizeof(*copy));
	drop_prompt(request);
	request->tokens = copy;
	request->n_tokens = n;
	request->has_tokens = true;
	return 0;
}

void lc_request_set_chat(lc_request *request, bool chat)
{
	request->chat = chat;
}

/** lc_request_add_adapter() - one more adapter of a weighted sum; -E2BIG beyond 8 */
int lc_request_add_adapter(lc_request *request, const char *name, double scale)
{
	char *copy;

	if (request->n_adapters == LORAD_ADAPTERS_MAX)
		return -E2BIG;
	copy = strdup(name);
	if (!copy)
		return -ENOMEM;
	request->adapters[request->n_adapters] = copy;
	request->scales[request->n_adapters++] = scale;
	return 0;
}

/** lc_request_add_stop() - end the answer before this text; -E2BIG beyond 16 */
int lc_request_add_stop(lc_request *request, const char *text)
{
	char *copy;

	if (request->n_stops == LORAD_STOPS_MAX)
		return -E2BIG;
	copy = strdup(text);
	if (!copy)
		return -ENOMEM;
	request->stops[request->n_stops++] = copy;
	return 0;
}

static void set_number(lc_request *request, enum lorad_item_type item, union lc_number number)
{
	request->numbers[item] = number;
	request->set |= UINT32_C(1) << item;
}

void lc_request_set_max_tokens(lc_request *request, uint32_t n)
{
	set_number(request, LORAD_ITEM_MAX_TOKENS, (union lc_number){ .i = n });
}

void lc_request_set_ignore_eos(lc_request *request, bool ignore)
{
	request->ignore_eos = ignore;
}

void lc_request_set_temperature(lc_request *request, double temperature)
{
	set_number(request, LORAD_ITEM_TEMPERATURE, (union lc_number){ .f = temperature });
}

void lc_request_set_top_p(lc_request *request, double top_p)
{
	set_number(request, LORAD_ITEM_TOP_P, (union lc_number){ .f = top_p });
}

void lc_request_set_top_k(lc_request *request, int64_t top_k)
{
	set_number(request, LORAD_ITEM_TOP_K, (union lc_number){ .i = top_k });
}

void lc_request_set_min_p(lc_request *request, double min_p)
{
	set_number(request, LORAD_ITEM_MIN_P, (union lc_number){ .f = min_p });
}

void lc_request_set_repetition_penalty(lc_request *request, double penalty)
{
	set_number(request, LORAD_ITEM_REPETITION_PENALTY, (union lc_number){ .f = penalty });
}

void lc_request_set_seed(lc_request *request, uint64_t seed)
{
	set_number(request, LORAD_ITEM_SEED, (union lc_number){ .u = seed });
}

void lc_request_set_logprobs(lc_request *request, int64_t n)
{
	set_number(request, LORAD_ITEM_LOGPROBS, (union lc_number){ .i = n });
}

/** lc_request_set_first_token_ms() - when the first token is wanted, from arrival; a daemon may drop what would miss it */
void lc_request_set_first_token_ms(lc_request *request, int64_t ms)
{
	set_number(request, LORAD_ITEM_FIRST_TOKEN_MS, (union lc_number){ .i = ms });
}

/** lc_request_set_deadline_ms() - when the whole answer is wanted, from arrival; what is late is given up */
void lc_request_set_deadline_ms(lc_request *request, int64_t ms)
{
	set_number(request, LORAD_ITEM_DEADLINE_MS, (union lc_number){ .i = ms });
}

void lc_request_set_userdata(lc_request *request, void *userdata)
{
	request->userdata = userdata;
}

/* --- the table of open requests ----------------------------------------------------------------------------------- */

void lc_open_init(lc_connection *c)
{
	for (uint32_t i = 0; i < c->n_open; ++i)
		c->open[i].next_free = i + 1 < c->n_open ? i + 1 : NO_ENTRY;
	c->first_free = 0;
}

static struct lc_open *open_begin(lc_connection *c, void *userdata)
{
	struct lc_open *open;

	if (c->first_free == NO_ENTRY)
		return NULL;
	open = &c->open[c->first_free];
	open->id = ++open->uses * c->n_open + c->first_free;
	open->userdata = userdata;
	c->first_free = open->next_free;
	return open;
}

void lc_open_end(lc_connection *c, struct lc_open *open)
{
	open->id = 0;
	open->next_free = c->first_free;
	c->first_free = (uint32_t)(open - c->open);
}

/* --- sending ------------------------------------------------------------------------------------------------------ */

/* Wakes a daemon that does not look at this ring by itself. */
void lc_ring_doorbell(lc_connection *c)
{
	const uint64_t one = 1;
	ssize_t n = write(c->doorbell, &one, sizeof(one));

	(void)n; /* it is full of rings, or the daemon is gone: the socket will tell */
}

/* What the encoded request takes at most. */
static size_t size_bound(const lc_request *request)
{
	size_t bytes = 1024 + request->text_bytes + request->n_tokens * sizeof(uint32_t);

	for (uint32_t i = 0; i < request->n_adapters; ++i)
		bytes += 32 + strlen(request->adapters[i]);
	for (uint32_t i = 0; i < request->n_stops; ++i)
		bytes += 16 + strlen(request->stops[i]);
	return bytes;
}

/* A daemon that does not know of targets serves the request without. */
static uint16_t number_flags(uint16_t item)
{
	return item == LORAD_ITEM_FIRST_TOKEN_MS || item == LORAD_ITEM_DEADLINE_MS ? 0 : LORAD_CRITICAL;
}

static void encode_request(struct message_writer *w, const lc_request *request)
{
	for (uint32_t i = 0; i < request->n_adapters; ++i)
		message_put_pair(w, LORAD_ITEM_USE, LORAD_CRITICAL, &(struct lorad_use){ request->scales[i] },
				 sizeof(struct lorad_use), request->adapters[i], strlen(request->adapters[i]));
	for (uint16_t item = 0; item <= LORAD_ITEM_DEADLINE_MS; ++item)
		if (request->set & UINT32_C(1) << item)
			message_put(w, item, number_flags(item), &request->numbers[item], sizeof(union lc_number));
	for (uint32_t i = 0; i < request->n_stops; ++i)
		message_put(w, LORAD_ITEM_STOP, LORAD_CRITICAL, request->stops[i], strlen(request->stops[i]));
	if (request->chat)
		message_put(w, LORAD_ITEM_CHAT, LORAD_CRITICAL, NULL, 0);
	if (request->ignore_eos)
		message_put(w, LORAD_ITEM_IGNORE_EOS, LORAD_CRITICAL, NULL, 0);
	if (request->has_text)
		message_put(w, LORAD_ITEM_TEXT, LORAD_CRITICAL, request->text, request->text_bytes);
	if (request->has_tokens)
		message_put(w, LORAD_ITEM_TOKENS, LORAD_CRITICAL, request->tokens, request->n_tokens * sizeof(uint32_t));
}

static int grow_outgoing(lc_connection *c, size_t bytes)
{
	uint8_t *bigger;

	if (bytes <= c->outgoing_room)
		return 0;
	bigger = (uint8_t *)realloc(c->outgoing, bytes);
	if (!bigger)
		return lc_fail(c, -ENOMEM, "out of memory");
	c->outgoing = bigger;
	c->outgoing_room = bytes;
	return 0;
}

/* Puts one encoded message into the request ring. Dekker with the daemon that is about to stop looking. */
static int send_message(lc_connection *c, const void *message, size_t bytes)
{
	uint32_t n = ring_slots(bytes);

	if (n > c->out.n_slots)
		return lc_fail(c, -EMSGSIZE, "a request of %zu bytes; the ring holds %zu", bytes,
			       (size_t)c->out.n_slots * LORAD_SLOT_BYTES);
	switch (ring_reserve(&c->out, n)) {
	case RING_OK:
		break;
	case RING_E_FULL:
		return lc_fail(c, -EAGAIN, "the request ring is full");
	case RING_E_VIOLATION:
		return lc_fail(c, -EPROTO, "the daemon broke the ring's protocol");
	}
	ring_copy_in((uint8_t *)c->request + LORAD_SLOTS_OFFSET, c->out.n_slots, c->out.at, message, bytes);
	ring_publish(&c->out, n);
	word_fence();
	if (word_glance(&c->response->doorbell))
		lc_ring_doorbell(c);
	return 0;
}

/* Opens a table entry and sends the message that c->outgoing holds from its first item on. */
static int submit_outgoing(lc_connection *c, struct message_writer *w, uint16_t type, void *userdata, uint64_t *id)
{
	struct lc_open *open;
	int r;

	if (c->gone)
		return lc_fail(c, -ECONNRESET, "the daemon is gone");
	open = open_begin(c, userdata);
	if (!open)
		return lc_fail(c, -EAGAIN, "%u requests are open, more are not possible", c->n_open);
	if (message_end(w, type, open->id))
		r = send_message(c, w->buffer, w->bytes);
	else
		r = lc_fail(c, -EMSGSIZE, "the request is too long");
	if (r < 0)
		lc_open_end(c, open);
	else if (id)
		*id = open->id;
	return r;
}

/**
 * lc_submit() - send a request
 * @connection: where to
 * @request:    stays the caller's and may be changed, freed or submitted again at once
 * @id:         for lc_cancel() and to tell events apart, or NULL
 *
 * Return: 0; -EAGAIN: the request ring is full or too many requests are open, dispatch and try again; -EMSGSIZE: it never
 * fits; -EINVAL: it has neither text nor tokens; -ECONNRESET: the daemon is gone.
 */
int lc_submit(lc_connection *connection, const lc_request *request, uint64_t *id)
{
	struct message_writer w;
	size_t bytes;
	int r;

	if (!request->has_text && !request->has_tokens)
		return lc_fail(connection, -EINVAL, "a request without text and tokens");
	bytes = size_bound(request);
	if (bytes / LORAD_SLOT_BYTES > LORAD_RING_SLOTS_MAX)
		return lc_fail(connection, -EMSGSIZE, "a request of %zu bytes", bytes);
	r = grow_outgoing(connection, bytes);
	if (r < 0)
		return r;
	message_begin(&w, connection->outgoing, connection->outgoing_room);
	encode_request(&w, request);
	return submit_outgoing(connection, &w, request->kind == LC_SCORE ? LORAD_SCORE : LORAD_GENERATE,
			       request->userdata, id);
}

static int submit_bare(lc_connection *c, uint16_t type, void *userdata, uint64_t *id)
{
	_Alignas(8) uint8_t head[sizeof(struct lorad_message)];
	struct message_writer w;

	message_begin(&w, head, sizeof(head));
	return submit_outgoing(c, &w, type, userdata, id);
}

/** lc_list_adapters() - ask for all adapters: one ADAPTER event each, then DONE. Returns as lc_submit(). */
int lc_list_adapters(lc_connection *connection, void *userdata, uint64_t *id)
{
	return submit_bare(connection, LORAD_LIST, userdata, id);
}

/** lc_ping() - a request that lorad answers with DONE at once. Returns as lc_submit(). */
int lc_ping(lc_connection *connection, void *userdata, uint64_t *id)
{
	return submit_bare(connection, LORAD_PING, userdata, id);
}

/**
 * lc_cancel() - end an open request early
 * @connection: that it was submitted to
 * @id:         as lc_submit() gave it
 *
 * The request still gets its last event: DONE with LC_FINISH_CANCELLED, or whatever was faster.
 *
 * Return: 0; -ENOENT: no such request is open; -EAGAIN: the request ring is full.
 */
int lc_cancel(lc_connection *connection, uint64_t id)
{
	const struct lorad_message head = { sizeof(head), LORAD_CANCEL, 0, id };

	if (id == 0 || connection->open[id % connection->n_open].id != id)
		return lc_fail(connection, -ENOENT, "request %llu is not open", (unsigned long long)id);
	return send_message(connection, &head, sizeof(head));
}
