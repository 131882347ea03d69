/* SPDX-License-Identifier: MIT */
/*
 * A request's bytes -> a checked struct ipc_request, or a reason why not.
 *
 * The bytes are a private copy already, and their frame (the head's length) is sound. Here each item is checked: its
 * size, how often it may come, and its encoding: texts are UTF-8, names have the contract's form. What a value means, and
 * whether it makes sense, is the scheduler's to judge. Nothing is kept of a request that is refused.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/cleanup.h"
#include "daemon/ipc/session.h"
#include "libclient/message.h"

static_assert(IPC_ADAPTERS_MAX == LORAD_ADAPTERS_MAX && IPC_NAME_MAX == LORAD_NAME_MAX &&
		      IPC_STOPS_MAX == LORAD_STOPS_MAX && IPC_SCORES_MAX == LORAD_SCORES_MAX,
	      "the limits of the ABI");
static_assert(sizeof(struct ipc_top) == sizeof(struct lorad_top), "copied as a whole");

DEFINE_CLEANUP(struct ipc_request *, ipc_request_free)

/** ipc_request_free() - end a request and its reference to the session; takes NULL */
struct ipc_request *ipc_request_free(struct ipc_request *request)
{
	if (!request)
		return NULL;
	for (uint32_t i = 0; i < request->n_stops; ++i)
		free(request->stop[i]);
	free(request->text);
	free(request->tokens);
	ipc_session_unref(request->session);
	free(request);
	return NULL;
}

static void set_defaults(struct ipc_request *request)
{
	request->max_tokens = 128;
	request->top_p = 1;
	request->repetition_penalty = 1;
	request->logprobs = -1;
}

/* Length of the UTF-8 character at p, of which n bytes are left; 0: it is none. */
static size_t utf8_character(const uint8_t *p, size_t n)
{
	static const uint32_t smallest[] = { 0, 0, 0x80, 0x800, 0x10000 };
	size_t length = p[0] < 0x80 ? 1 : p[0] < 0xc2 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : p[0] < 0xf5 ? 4 : 0;
	uint32_t c = p[0] & (0x7f >> length);

	if (length <= 1)
		return length;
	if (length > n)
		return 0;
	for (size_t i = 1; i < length; ++i) {
		if ((p[i] & 0xc0) != 0x80)
			return 0;
		c = c << 6 | (p[i] & 0x3f);
	}
	return c < smallest[length] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000) ? 0 : length;
}

static int check_utf8(const struct message_item *item, const char *what, struct diag *diag)
{
	size_t at = 0, length;

	for (; at < item->bytes; at += length) {
		length = utf8_character(item->payload + at, item->bytes - at);
		if (length == 0)
			return diag_set(diag, EINVAL, "the %s is not UTF-8 at byte %zu", what, at);
	}
	return 0;
}

static int copy_text(const struct message_item *item, char **ret)
{
	char *copy = malloc((size_t)item->bytes + 1);

	if (!copy)
		return error_origin(-ENOMEM);
	memcpy(copy, item->payload, item->bytes);
	copy[item->bytes] = 0;
	*ret = copy;
	return 0;
}

static int take_text(struct ipc_request *request, const struct message_item *item, struct diag *diag)
{
	int r = check_utf8(item, "text", diag);

	if (r)
		return r;
	request->has_text = true;
	request->text_bytes = item->bytes;
	return copy_text(item, &request->text);
}

static int take_tokens(struct ipc_request *request, const struct message_item *item, struct diag *diag)
{
	if (item->bytes % sizeof(uint32_t))
		return diag_set(diag, EINVAL, "the tokens are %u bytes, not a multiple of 4", item->bytes);
	request->tokens = malloc(item->bytes ? item->bytes : 1);
	if (!request->tokens)
		return error_origin(-ENOMEM);
	memcpy(request->tokens, item->payload, item->bytes);
	request->n_tokens = item->bytes / sizeof(uint32_t);
	return 0;
}

static bool is_alnum(uint8_t c)
{
	return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

/* [A-Za-z0-9][A-Za-z0-9._-]{0,127} */
static bool is_name(const uint8_t *name, size_t n)
{
	if (n == 0 || n > IPC_NAME_MAX || !is_alnum(name[0]))
		return false;
	for (size_t i = 1; i < n; ++i)
		if (!is_alnum(name[i]) && name[i] != '.' && name[i] != '_' && name[i] != '-')
			return false;
	return true;
}

static int take_adapter(struct ipc_request *request, const struct message_item *item, struct diag *diag)
{
	struct ipc_adapter *adapter = &request->adapters[request->n_adapters];
	struct lorad_use use;
	const uint8_t *name;
	size_t n;

	if (request->n_adapters == IPC_ADAPTERS_MAX)
		return diag_set(diag, EINVAL, "more than %d adapters", IPC_ADAPTERS_MAX);
	if (item->bytes < sizeof(use))
		return diag_set(diag, EINVAL, "an adapter of %u bytes", item->bytes);
	memcpy(&use, item->payload, sizeof(use));
	name = item->payload + sizeof(use);
	n = item->bytes - sizeof(use);
	if (!is_name(name, n))
		return diag_set(diag, EINVAL, "adapter name \"%.*s\": a name is a letter or digit, then up to 127 of A-Z a-z 0-9 . _ -",
				n < 140 ? (int)n : 140, (const char *)name);
	memcpy(adapter->name, name, n);
	adapter->name[n] = 0;
	adapter->scale = (float)use.scale;
	++request->n_adapters;
	return 0;
}

static int take_stop(struct ipc_request *request, const struct message_item *item, struct diag *diag)
{
	int r;

	if (request->n_stops == IPC_STOPS_MAX)
		return diag_set(diag, EINVAL, "more than %d stop texts", IPC_STOPS_MAX);
	if (item->bytes == 0 || item->bytes > LORAD_STOP_BYTES_MAX)
		return diag_set(diag, EINVAL, "a stop text of %u bytes; 1 to %d are possible", item->bytes, LORAD_STOP_BYTES_MAX);
	if (memchr(item->payload, 0, item->bytes))
		return diag_set(diag, EINVAL, "a stop text with a NUL in it");
	r = check_utf8(item, "stop text", diag);
	if (r)
		return r;
	r = copy_text(item, &request->stop[request->n_stops]);
	if (r == 0)
		++request->n_stops;
	return r;
}

/* Items that are one number of 8 bytes and go as they are into a field of 8 bytes. */
static void *number_field(struct ipc_request *request, uint16_t type)
{
	switch (type) {
	case LORAD_ITEM_MAX_TOKENS:
		return &request->max_tokens;
	case LORAD_ITEM_TOP_K:
		return &request->top_k;
	case LORAD_ITEM_LOGPROBS:
		return &request->logprobs;
	case LORAD_ITEM_FIRST_TOKEN_MS:
		return &request->first_token_ms;
	case LORAD_ITEM_DEADLINE_MS:
		return &request->deadline_ms;
	case LORAD_ITEM_SEED:
		return &request->seed;
	case LORAD_ITEM_TEMPERATURE:
		return &request->temperature;
	case LORAD_ITEM_TOP_P:
		return &request->top_p;
	case LORAD_ITEM_MIN_P:
		return &request->min_p;
	case LORAD_ITEM_REPETITION_PENALTY:
		return &request->repetition_penalty;
	default:
		return NULL;
	}
}

static int refuse_unknown(const struct message_item *item, struct diag *diag)
{
	if (!(item->flags & LORAD_CRITICAL))
		return 0;
	return diag_set(diag, EOPNOTSUPP, "the request needs item %u, which this daemon does not know", item->type);
}

static int take_item(struct ipc_request *request, const struct message_item *item, struct diag *diag)
{
	void *number = number_field(request, item->type);

	if (number) {
		if (item->bytes != sizeof(uint64_t))
			return diag_set(diag, EINVAL, "item %u has %u bytes, not 8", item->type, item->bytes);
		memcpy(number, item->payload, sizeof(uint64_t));
		return 0;
	}
	switch (item->type) {
	case LORAD_ITEM_TEXT:
		return take_text(request, item, diag);
	case LORAD_ITEM_TOKENS:
		return take_tokens(request, item, diag);
	case LORAD_ITEM_USE:
		return take_adapter(request, item, diag);
	case LORAD_ITEM_STOP:
		return take_stop(request, item, diag);
	case LORAD_ITEM_CHAT:
		request->chat = true;
		return 0;
	case LORAD_ITEM_IGNORE_EOS:
		request->ignore_eos = true;
		return 0;
	default:
		return refuse_unknown(item, diag);
	}
}

/* Most items may come once; *seen has a bit for each type that did. */
static int check_repeated(const struct message_item *item, uint32_t *seen, struct diag *diag)
{
	uint32_t bit = item->type < 32 ? UINT32_C(1) << item->type : 0;

	if (item->type == LORAD_ITEM_USE || item->type == LORAD_ITEM_STOP)
		return 0;
	if (*seen & bit)
		return diag_set(diag, EINVAL, "item %u comes twice", item->type);
	*seen |= bit;
	return 0;
}

static int take_items(struct ipc_request *request, const void *message, size_t bytes, struct diag *diag)
{
	struct message_reader items;
	struct message_item item;
	enum message_step step;
	uint32_t seen = 0;
	int r;

	message_open(&items, message, bytes);
	while ((step = message_next(&items, &item)) == MESSAGE_ITEM) {
		r = check_repeated(&item, &seen, diag);
		if (r == 0)
			r = take_item(request, &item, diag);
		if (r)
			return r;
	}
	return step == MESSAGE_END ? 0 : diag_set(diag, EINVAL, "an item that is longer than its message");
}

/**
 * request_parse() - check a GENERATE or SCORE message
 * @ret:     the request, without session, uid and time
 * @message: private copy, aligned to 8 bytes
 * @bytes:   as its head says
 * @diag:    why not
 *
 * Return: 0; a positive errno: refused; -ENOMEM.
 */
int request_parse(struct ipc_request **ret, const void *message, size_t bytes, struct diag *diag)
{
	_cleanup_(ipc_request_freep) struct ipc_request *request = calloc(1, sizeof(*request));
	struct lorad_message head;
	int r;

	if (!request)
		return error_origin(-ENOMEM);
	assert(bytes >= sizeof(head));
	memcpy(&head, message, sizeof(head));
	request->id = head.id;
	request->kind = head.type == LORAD_SCORE ? IPC_SCORE : IPC_GENERATE;
	set_defaults(request);
	r = take_items(request, message, bytes, diag);
	if (r)
		return r < 0 ? error_trace(r) : r;
	if (request->has_text && request->tokens)
		return diag_set(diag, EINVAL, "the request has both text and tokens");
	if (!request->has_text && !request->tokens)
		return diag_set(diag, EINVAL, "the request has neither text nor tokens");
	*ret = TAKE_PTR(request);
	return 0;
}

/** request_check_bare() - a message that needs no items may have optional ones. 0 or a positive errno. */
int request_check_bare(const void *message, size_t bytes, struct diag *diag)
{
	struct message_reader items;
	struct message_item item;
	enum message_step step;
	int r;

	message_open(&items, message, bytes);
	while ((step = message_next(&items, &item)) == MESSAGE_ITEM) {
		r = refuse_unknown(&item, diag);
		if (r)
			return r;
	}
	return step == MESSAGE_END ? 0 : diag_set(diag, EINVAL, "an item that is longer than its message");
}
