/* SPDX-License-Identifier: MIT */
/*
 * A ring between two processes that need not trust each other: one writer, one reader, no locks. Header only; private to
 * lorad and libloraclient.
 *
 * The handles below hold indices and where the two shared words are; the slots are separate memory, reached with
 * ring_copy_in() and ring_copy_out(). Each side decides by its own private index and what it last saw of the peer's,
 * never by what its own shared word says, and the words only tell the peer. So a peer can spoil its own traffic and
 * nothing else: an index that moves backwards or beyond what is possible is a violation, after which the connection has
 * no meaning any more.
 *
 * Order. The writer's release of `tail` pairs with the reader's acquire of it: whoever sees the index sees the slots
 * before it. The reader's release of `head` pairs with the writer's acquire: a slot is written again only after its
 * reader is done with it. Nothing here sleeps; sleeping needs the full fence too (see lorad-abi.h).
 */
#ifndef LORAD_RING_H
#define LORAD_RING_H

#include <stdbool.h>
#include <string.h>

#include "libclient/lorad-abi.h"

#ifdef __cplusplus
using std::atomic_load_explicit;
using std::atomic_store_explicit;
using std::atomic_thread_fence;
using std::memory_order_acquire;
using std::memory_order_relaxed;
using std::memory_order_release;
using std::memory_order_seq_cst;
#endif

/* Everything the peer wrote before its word_publish() of this value is visible after. */
static inline uint32_t word_observe(const lorad_word *word)
{
	return atomic_load_explicit(word, memory_order_acquire);
}

/* Everything written before is visible to a peer that observes this value. */
static inline void word_publish(lorad_word *word, uint32_t value)
{
	atomic_store_explicit(word, value, memory_order_release);
}

/* A hint: the value alone, with no order to anything else. */
static inline uint32_t word_glance(const lorad_word *word)
{
	return atomic_load_explicit(word, memory_order_relaxed);
}

static inline void word_hint(lorad_word *word, uint32_t value)
{
	atomic_store_explicit(word, value, memory_order_relaxed);
}

/*
 * Between storing the own word and loading the peer's, where both sides do so and at least one must see the other
 * (Dekker): "I am about to sleep" against "there is work". No release or acquire orders a store before a later load.
 */
static inline void word_fence(void)
{
	atomic_thread_fence(memory_order_seq_cst);
}

enum ring_result { RING_OK, RING_E_FULL, RING_E_VIOLATION };

struct ring_writer {
	lorad_word *tail;       /* ours, shared: slots before it are published */
	const lorad_word *head; /* the reader's */
	uint32_t n_slots;       /* a power of two */
	uint32_t at;            /* where the next message begins */
	uint32_t seen;          /* of *head */
};

struct ring_reader {
	const lorad_word *tail; /* the writer's */
	lorad_word *head;       /* ours, shared: slots before it are free again */
	uint32_t n_slots;
	uint32_t at;            /* where the next message begins */
	uint32_t seen;          /* of *tail */
};

static inline uint32_t ring_slots(size_t bytes)
{
	return (uint32_t)((bytes + LORAD_SLOT_BYTES - 1) / LORAD_SLOT_BYTES);
}

/* Is there room for n slots at w->at? They are the caller's until ring_publish(). */
static inline enum ring_result ring_reserve(struct ring_writer *w, uint32_t n)
{
	uint32_t head;

	if (n <= w->n_slots - (w->at - w->seen))
		return RING_OK;
	head = word_observe(w->head);
	if ((uint32_t)(head - w->seen) > (uint32_t)(w->at - w->seen))
		return RING_E_VIOLATION;
	w->seen = head;
	return n <= w->n_slots - (w->at - head) ? RING_OK : RING_E_FULL;
}

static inline void ring_publish(struct ring_writer *w, uint32_t n)
{
	w->at += n;
	word_publish(w->tail, w->at);
}

/* How many slots are there to read at r->at? They stay until ring_release(). */
static inline enum ring_result ring_peek(struct ring_reader *r, uint32_t *ret_n)
{
	uint32_t tail = word_observe(r->tail), n = tail - r->at;

	if (n > r->n_slots || n < (uint32_t)(r->seen - r->at))
		return RING_E_VIOLATION;
	r->seen = tail;
	*ret_n = n;
	return RING_OK;
}

static inline void ring_release(struct ring_reader *r, uint32_t n)
{
	r->at += n;
	word_publish(r->head, r->at);
}

/* Bytes into the slots from index at on, over the ring's end if need be. */
static inline void ring_copy_in(void *slots, uint32_t n_slots, uint32_t at, const void *from, size_t bytes)
{
	size_t start = (size_t)(at & (n_slots - 1)) * LORAD_SLOT_BYTES;
	size_t first = (size_t)n_slots * LORAD_SLOT_BYTES - start;

	if (first > bytes)
		first = bytes;
	memcpy((uint8_t *)slots + start, from, first);
	memcpy(slots, (const uint8_t *)from + first, bytes - first);
}

/* Bytes out of the slots from index at on. The barrier keeps the compiler from going back to memory that the peer may
 * change meanwhile: what was copied is what is used. */
static inline void ring_copy_out(void *to, const void *slots, uint32_t n_slots, uint32_t at, size_t bytes)
{
	size_t start = (size_t)(at & (n_slots - 1)) * LORAD_SLOT_BYTES;
	size_t first = (size_t)n_slots * LORAD_SLOT_BYTES - start;

	if (first > bytes)
		first = bytes;
	memcpy(to, (const uint8_t *)slots + start, first);
	memcpy((uint8_t *)to + first, slots, bytes - first);
	__asm__ volatile("" ::: "memory");
}

#endif
