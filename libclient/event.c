/* SPDX-License-Identifier: MIT */
/*
 * One response message -> one struct lc_event that points into it.
 *
 * The message lies in the connection's own buffer, aligned to 8 bytes, so numbers and texts are used where they are; only
 * digests need room of their own, for their hex form. A known item of a wrong size, a text without its NUL, an unknown
 * item that is critical, or a message that lacks what its type promises is -EPROTO: the connection makes no sense then.
 */
#include "libclient/client.h"

#include <errno.h>

#include "libclient/message.h"

static void hex_digest(char *to, const uint8_t *digest)
{
	static const char digits[] = "0123456789abcdef";

	for (int i = 0; i < 32; ++i) {
		to[2 * i] = digits[digest[i] >> 4];
		to[2 * i + 1] = digits[digest[i] & 15];
	}
	to[64] = 0;
}

static int set_text(const struct message_item *item, const char **ret, size_t *ret_bytes)
{
	if (item->bytes == 0 || item->payload[item->bytes - 1] != 0)
		return -EPROTO;
	*ret = (const char *)item->payload;
	if (ret_bytes)
		*ret_bytes = item->bytes - 1;
	return 0;
}

/* An array in place: whole entries, at most max of them. */
static int count_entries(const struct message_item *item, size_t entry_bytes, size_t max, uint32_t *ret_n)
{
	if (item->bytes % entry_bytes || item->bytes / entry_bytes > max)
		return -EPROTO;
	*ret_n = (uint32_t)(item->bytes / entry_bytes);
	return 0;
}

static int decode_token(const struct message_item *item, struct lc_event *event)
{
	struct lorad_token token;

	if (item->bytes != sizeof(token))
		return -EPROTO;
	memcpy(&token, item->payload, sizeof(token));
	event->token = token.token;
	event->logprob = token.logprob;
	return 0;
}

static int decode_done(const struct message_item *item, struct lc_event *event)
{
	struct lorad_done done;

	if (item->bytes != sizeof(done))
		return -EPROTO;
	memcpy(&done, item->payload, sizeof(done));
	if (done.finish > LC_FINISH_ERROR)
		return -EPROTO;
	event->finish = (enum lc_finish)done.finish;
	event->prompt_tokens = done.prompt_tokens;
	event->generated_tokens = done.generated_tokens;
	event->cached_tokens = done.cached_tokens;
	event->queue_ms = done.queue_ms;
	event->page_in_ms = done.page_in_ms;
	event->prefill_ms = done.prefill_ms;
	event->decode_ms = done.decode_ms;
	return 0;
}

static int decode_used(lc_connection *c, const struct message_item *item, struct lc_event *event)
{
	struct lc_used_adapter *used = &c->used[event->n_adapters];
	struct lorad_used fixed;

	if (event->n_adapters == LORAD_ADAPTERS_MAX || item->bytes <= sizeof(fixed) || item->payload[item->bytes - 1])
		return -EPROTO;
	memcpy(&fixed, item->payload, sizeof(fixed));
	hex_digest(c->digests[event->n_adapters], fixed.digest);
	used->name = (const char *)item->payload + sizeof(fixed);
	used->digest = c->digests[event->n_adapters];
	used->scale = fixed.scale;
	event->adapters = c->used;
	++event->n_adapters;
	return 0;
}

static int decode_listed(lc_connection *c, const struct message_item *item, struct lc_event *event)
{
	struct lorad_listed listed;

	if (item->bytes != sizeof(listed))
		return -EPROTO;
	memcpy(&listed, item->payload, sizeof(listed));
	hex_digest(c->digests[0], listed.digest);
	event->digest = c->digests[0];
	event->bytes = listed.bytes;
	return 0;
}

static int decode_u64(const struct message_item *item, uint64_t max, uint64_t *ret)
{
	if (item->bytes != sizeof(*ret))
		return -EPROTO;
	memcpy(ret, item->payload, sizeof(*ret));
	return *ret <= max ? 0 : -EPROTO;
}

static int decode_item(lc_connection *c, const struct message_item *item, struct lc_event *event)
{
	uint64_t number = 0;
	int r;

	switch (item->type) {
	case LORAD_ITEM_TOKEN:
		return decode_token(item, event);
	case LORAD_ITEM_PIECE:
		return set_text(item, &event->text, &event->text_bytes);
	case LORAD_ITEM_TOP:
		event->top = (const struct lc_top *)(const void *)item->payload;
		return count_entries(item, sizeof(struct lorad_top), LORAD_TOP_MAX * LORAD_SCORES_MAX, &event->n_top);
	case LORAD_ITEM_FIRST:
		r = decode_u64(item, UINT32_MAX, &number);
		event->first = (uint32_t)number;
		return r;
	case LORAD_ITEM_SCORED:
		event->tokens = (const uint32_t *)(const void *)item->payload;
		return count_entries(item, sizeof(uint32_t), LORAD_SCORES_MAX, &event->n_scores);
	case LORAD_ITEM_SCORES:
		event->logprobs = (const float *)(const void *)item->payload;
		return item->bytes == event->n_scores * sizeof(float) ? 0 : -EPROTO;
	case LORAD_ITEM_DONE:
		return decode_done(item, event);
	case LORAD_ITEM_USED:
		return decode_used(c, item, event);
	case LORAD_ITEM_LISTED:
		return decode_listed(c, item, event);
	case LORAD_ITEM_NAME:
		return set_text(item, &event->name, NULL);
	case LORAD_ITEM_KIND:
		return set_text(item, &event->kind, NULL);
	case LORAD_ITEM_STATE:
		return set_text(item, &event->state, NULL);
	case LORAD_ITEM_CODE:
		r = decode_u64(item, INT32_MAX, &number);
		event->code = (int)number;
		return r;
	case LORAD_ITEM_REASON:
		return set_text(item, &event->error, NULL);
	case LORAD_ITEM_RETRY_MS:
		r = decode_u64(item, UINT32_MAX, &number);
		event->retry_ms = (uint32_t)number;
		return r;
	default:
		return item->flags & LORAD_CRITICAL ? -EPROTO : 0;
	}
}

/* Does the event have what its type promises to the event function? */
static int complete_event(struct lc_event *event)
{
	switch (event->type) {
	case LC_EVENT_TOKEN:
		return event->text ? 0 : -EPROTO;
	case LC_EVENT_SCORES:
		if (!event->tokens || !event->logprobs || event->n_scores == 0 || event->n_top % event->n_scores)
			return -EPROTO;
		event->n_top /= event->n_scores;
		return 0;
	case LC_EVENT_ADAPTER:
		return event->name && event->digest && event->kind && event->state ? 0 : -EPROTO;
	case LC_EVENT_DONE:
		return 0;
	case LC_EVENT_ERROR:
		return event->error ? 0 : -EPROTO;
	}
	return -EPROTO;
}

static bool event_type(uint16_t message_type, enum lc_event_type *ret)
{
	switch (message_type) {
	case LORAD_TOKEN:
		*ret = LC_EVENT_TOKEN;
		return true;
	case LORAD_SCORES:
		*ret = LC_EVENT_SCORES;
		return true;
	case LORAD_ADAPTER:
		*ret = LC_EVENT_ADAPTER;
		return true;
	case LORAD_DONE:
		*ret = LC_EVENT_DONE;
		return true;
	case LORAD_ERROR:
		*ret = LC_EVENT_ERROR;
		return true;
	default:
		return false;
	}
}

/*
 * Decodes the message in c->incoming. 0: an event, whose id is not looked up yet; 1: a message of a kind that this
 * library does not know, to be skipped; -EPROTO.
 */
int lc_decode(lc_connection *c, size_t bytes, struct lc_event *event)
{
	struct lorad_message head;
	struct message_reader items;
	struct message_item item;
	enum message_step step;

	memcpy(&head, c->incoming, sizeof(head));
	memset(event, 0, sizeof(*event));
	event->id = head.id;
	if (!event_type(head.type, &event->type))
		return 1;
	message_open(&items, c->incoming, bytes);
	while ((step = message_next(&items, &item)) == MESSAGE_ITEM)
		if (decode_item(c, &item, event) < 0)
			return -EPROTO;
	return step == MESSAGE_END ? complete_event(event) : -EPROTO;
}
