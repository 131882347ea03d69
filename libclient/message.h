/* SPDX-License-Identifier: MIT */
/*
 * Messages in private memory: building one, and walking through the items of one that was copied out of a ring. Header
 * only; private to lorad and libloraclient. The layout is in lorad-abi.h.
 *
 * Buffers are aligned to 8 bytes, and so is each payload. Sizes are checked by subtraction from what is left.
 */
#ifndef LORAD_MESSAGE_H
#define LORAD_MESSAGE_H

#include <stdbool.h>
#include <string.h>

#include "libclient/lorad-abi.h"

struct message_writer {
	uint8_t *buffer;
	size_t room, bytes; /* bytes > room: it did not fit, and nothing beyond room was written */
};

struct message_reader {
	const uint8_t *at;
	size_t left;
};

struct message_item {
	uint16_t type, flags;
	uint32_t bytes;
	const uint8_t *payload;
};

static inline size_t message_padded(size_t bytes)
{
	return (bytes + 7) & ~(size_t)7;
}

static inline void message_begin(struct message_writer *w, void *buffer, size_t room)
{
	w->buffer = (uint8_t *)buffer;
	w->room = room;
	w->bytes = sizeof(struct lorad_message);
}

/* Adds an item and returns where its payload goes, or NULL if the buffer is too small. The padding is zeroed. */
static inline uint8_t *message_add(struct message_writer *w, uint16_t type, uint16_t flags, uint32_t bytes)
{
	struct lorad_item item = { bytes, type, flags };
	size_t whole = sizeof(item) + message_padded(bytes);
	uint8_t *at = w->buffer + w->bytes;

	if (w->bytes > w->room || whole > w->room - w->bytes) {
		w->bytes = w->room + 1;
		return NULL;
	}
	memset(at + whole - 8, 0, 8);
	memcpy(at, &item, sizeof(item));
	w->bytes += whole;
	return at + sizeof(item);
}

static inline void message_put(struct message_writer *w, uint16_t type, uint16_t flags, const void *payload, size_t bytes)
{
	uint8_t *to = bytes <= w->room ? message_add(w, type, flags, (uint32_t)bytes) : NULL;

	if (to && bytes)
		memcpy(to, payload, bytes);
	else if (!to)
		w->bytes = w->room + 1;
}

/* An item of a fixed part and a tail of bytes. */
static inline void message_put_pair(struct message_writer *w, uint16_t type, uint16_t flags, const void *fixed,
				    size_t fixed_bytes, const char *tail, size_t tail_bytes)
{
	uint8_t *to = message_add(w, type, flags, (uint32_t)(fixed_bytes + tail_bytes));

	if (!to)
		return;
	memcpy(to, fixed, fixed_bytes);
	if (tail_bytes)
		memcpy(to + fixed_bytes, tail, tail_bytes);
}

/* Writes the head. False: the message did not fit. */
static inline bool message_end(struct message_writer *w, uint16_t type, uint64_t id)
{
	struct lorad_message head = { (uint32_t)w->bytes, type, 0, id };

	if (w->bytes > w->room)
		return false;
	memcpy(w->buffer, &head, sizeof(head));
	return true;
}

/* The items of a message whose head was found sound: bytes counts the head too and is in the buffer as a whole. */
static inline void message_open(struct message_reader *r, const void *message, size_t bytes)
{
	r->at = (const uint8_t *)message + sizeof(struct lorad_message);
	r->left = bytes - sizeof(struct lorad_message);
}

enum message_step { MESSAGE_END, MESSAGE_ITEM, MESSAGE_MALFORMED };

static inline enum message_step message_next(struct message_reader *r, struct message_item *ret)
{
	struct lorad_item item;

	if (r->left == 0)
		return MESSAGE_END;
	if (r->left < sizeof(item))
		return MESSAGE_MALFORMED;
	memcpy(&item, r->at, sizeof(item));
	if (item.bytes > r->left - sizeof(item) || message_padded(item.bytes) > r->left - sizeof(item))
		return MESSAGE_MALFORMED;
	ret->type = item.type;
	ret->flags = item.flags;
	ret->bytes = item.bytes;
	ret->payload = r->at + sizeof(item);
	r->at += sizeof(item) + message_padded(item.bytes);
	r->left -= sizeof(item) + message_padded(item.bytes);
	return MESSAGE_ITEM;
}

#endif
