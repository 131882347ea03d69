/* SPDX-License-Identifier: MIT */
/*
 * The binary interface between lorad and its clients. Private to the two: programs use loraclient.h.
 *
 * Handshake. The client connects to a SOCK_SEQPACKET socket and sends one struct lorad_hello. The daemon answers with one
 * struct lorad_welcome: status 0 and three file descriptors (request memory, response memory, doorbell eventfd), or a
 * positive errno and a line of text. After that the socket carries no data but the bytes that end a poll (below); its
 * hang-up is how either side learns that the other is gone. Later versions may append fields to both records.
 *
 * Memory. Each side writes only its own memory and maps the other's read-only: the client's words (and its requests) are
 * in the request memory, the daemon's words (and its responses) in the response memory, which is sealed against the
 * client. Words that different sides touch are 128 bytes apart: two cache lines, because cores prefetch pairs.
 *
 *	request memory                          response memory
 *	   0  tail of requests   (client)          0  tail of responses   (daemon; the client sleeps on it)
 *	 128  head of responses  (client)        128  head of requests    (daemon)
 *	 256  waiting            (client)        256  doorbell, starved   (daemon)
 *	4096  slots                             4096  slots
 *
 * Rings. Slots of 64 bytes, a power of two of them; indices count slots, run freely over 2^32 and begin at
 * LORAD_RING_START, so that every connection passes the wrap within its first 256 slots. A message takes whole slots, may
 * continue at the ring's start, and is published as a whole.
 *
 * Messages. A head, then typed, length-prefixed items, each padded to 8 bytes. An item that the reader does not know is
 * skipped, or, if its critical bit is set, makes it refuse the message: a later client can so demand what an older daemon
 * cannot do, and gets a clear answer. A wrong frame (a head whose length does not fit what was published) is a violation
 * and ends the connection; a wrong item only refuses its message.
 *
 * Sleeping. The client rings the eventfd after publishing if `doorbell` is set, and after releasing responses if
 * `starved` is. The daemon, after publishing, looks at `waiting`: 0, or ticket << 2 | how, where the ticket differs from
 * wait to wait so that each is ended once. Each pair is Dekker's: store own word, full fence, load the other's.
 */
#ifndef LORAD_ABI_H
#define LORAD_ABI_H

#include <assert.h>
#include <stdalign.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#include <atomic>
typedef std::atomic<uint32_t> lorad_word;
#else
#include <stdalign.h>
#include <stdatomic.h>
typedef _Atomic uint32_t lorad_word;
#endif

/* --- handshake ---------------------------------------------------------------------------------------------------- */

#define LORAD_MAGIC UINT32_C(0x4152304c) /* "L0RA" */
#define LORAD_VERSION 1
#define LORAD_FEATURES UINT64_C(0) /* none defined yet */

struct lorad_hello {
	uint32_t magic;
	uint16_t version_min, version_max; /* what the client speaks */
	uint64_t features;                 /* bits it could use */
};

enum { LORAD_FD_REQUEST, LORAD_FD_RESPONSE, LORAD_FD_DOORBELL, LORAD_N_FDS };

struct lorad_welcome {
	uint32_t magic;
	uint16_t version;      /* the one in use from here on */
	uint16_t in_flight;    /* requests that may be open at a time */
	int32_t status;        /* 0, or a positive errno */
	uint32_t reserved;
	uint64_t features;     /* those of the client's bits that are in use */
	uint32_t request_slots, response_slots;
	uint32_t context, vocab;       /* the base model's: see struct lc_model */
	uint32_t plain_first, n_plain;
	char text[208];        /* NUL-terminated; why not, if status is not 0 */
};

/* --- memory ------------------------------------------------------------------------------------------------------- */

#define LORAD_SLOT_BYTES 64
#define LORAD_SLOTS_OFFSET 4096
#define LORAD_RING_SLOTS_MAX (UINT32_C(1) << 22) /* 256 MiB */
#define LORAD_RING_START (UINT32_C(0) - 256)

struct lorad_request_memory {
	lorad_word tail;
	uint8_t apart1[124];
	lorad_word response_head;
	uint8_t apart2[124];
	lorad_word waiting;
	uint8_t apart3[LORAD_SLOTS_OFFSET - 260];
};

struct lorad_response_memory {
	lorad_word tail;
	uint8_t apart1[124];
	lorad_word request_head;
	uint8_t apart2[124];
	lorad_word doorbell; /* not 0: the daemon does not look at the ring by itself */
	lorad_word starved;  /* not 0: the daemon waits for room among the responses */
	uint8_t apart3[LORAD_SLOTS_OFFSET - 264];
};

enum { LORAD_WAIT_NONE, LORAD_WAIT_FUTEX, LORAD_WAIT_POLL, LORAD_WAIT_MASK = 3 };

/* --- messages ----------------------------------------------------------------------------------------------------- */

struct lorad_message {
	uint32_t bytes; /* head and items, without what fills up the last slot */
	uint16_t type;
	uint16_t reserved; /* 0 */
	uint64_t id;    /* the client's choice; its answers carry the same */
};

enum lorad_message_type {
	/* requests; each is answered by any number of messages and then one DONE or ERROR, but CANCEL by none */
	LORAD_GENERATE = 1,
	LORAD_SCORE = 2,
	LORAD_CANCEL = 3, /* of the open request of the same id */
	LORAD_LIST = 4,
	LORAD_PING = 5,
	/* responses */
	LORAD_TOKEN = 0x81,
	LORAD_SCORES = 0x82,
	LORAD_ADAPTER = 0x83,
	LORAD_DONE = 0x84,
	LORAD_ERROR = 0x85
};

struct lorad_item {
	uint32_t bytes; /* of the payload that follows, without its padding */
	uint16_t type;
	uint16_t flags;
};

#define LORAD_CRITICAL 1u

enum lorad_item_type {
	/* of requests */
	LORAD_ITEM_TEXT = 1,    /* UTF-8, no NUL at the end */
	LORAD_ITEM_TOKENS = 2,  /* u32[] */
	LORAD_ITEM_CHAT = 3,    /* no payload; as are all that are on by being there */
	LORAD_ITEM_IGNORE_EOS = 4,
	LORAD_ITEM_USE = 5,     /* struct lorad_use, then the adapter's name; up to 8 */
	LORAD_ITEM_STOP = 6,    /* UTF-8, 1 to LORAD_STOP_BYTES_MAX bytes, no NUL; up to 16 */
	LORAD_ITEM_MAX_TOKENS = 7,  /* i64 */
	LORAD_ITEM_TOP_K = 8,       /* i64 */
	LORAD_ITEM_LOGPROBS = 9,    /* i64 */
	LORAD_ITEM_SEED = 10,       /* u64 */
	LORAD_ITEM_TEMPERATURE = 11, /* f64 */
	LORAD_ITEM_TOP_P = 12,       /* f64 */
	LORAD_ITEM_MIN_P = 13,       /* f64 */
	LORAD_ITEM_REPETITION_PENALTY = 14, /* f64 */
	LORAD_ITEM_FIRST_TOKEN_MS = 15, /* i64: target for the first token, from arrival; never critical, as is the next */
	LORAD_ITEM_DEADLINE_MS = 16,    /* i64: by when the whole answer is wanted, from arrival */
	/* of responses; texts end in one NUL that is part of them */
	LORAD_ITEM_TOKEN = 0x81,     /* struct lorad_token */
	LORAD_ITEM_PIECE = 0x82,     /* text */
	LORAD_ITEM_TOP = 0x83,       /* struct lorad_top[]: the same number for each token of the message */
	LORAD_ITEM_FIRST = 0x84,     /* u64: position in the prompt of the first of the two below */
	LORAD_ITEM_SCORED = 0x85,    /* u32[]: the tokens, up to LORAD_SCORES_MAX */
	LORAD_ITEM_SCORES = 0x8e,    /* f32[]: as many */
	LORAD_ITEM_DONE = 0x86,      /* struct lorad_done */
	LORAD_ITEM_USED = 0x87,      /* struct lorad_used, then the name as text; any number */
	LORAD_ITEM_LISTED = 0x88,    /* struct lorad_listed */
	LORAD_ITEM_NAME = 0x89,      /* text */
	LORAD_ITEM_KIND = 0x8a,      /* text */
	LORAD_ITEM_STATE = 0x8b,     /* text */
	LORAD_ITEM_CODE = 0x8c,      /* u64: a positive errno */
	LORAD_ITEM_REASON = 0x8d,    /* text, one line */
	LORAD_ITEM_RETRY_MS = 0x8f   /* u64, fits 32 bits: when a new attempt makes sense, from now; absent: no hint */
};

#define LORAD_ADAPTERS_MAX 8
#define LORAD_NAME_MAX 128
#define LORAD_STOPS_MAX 16
#define LORAD_STOP_BYTES_MAX 4096
#define LORAD_TOP_MAX 64
#define LORAD_SCORES_MAX 64
#define LORAD_RESPONSE_BYTES_MAX 49152 /* no response is longer */

struct lorad_use {
	double scale;
};

struct lorad_token {
	uint32_t token;
	float logprob;
};

struct lorad_top {
	uint32_t token;
	float logprob;
};

struct lorad_done {
	uint32_t finish; /* enum lc_finish */
	uint32_t prompt_tokens, generated_tokens;
	uint32_t cached_tokens; /* 0 from a daemon that does not know it */
	double queue_ms, page_in_ms, prefill_ms, decode_ms;
};

struct lorad_used {
	uint8_t digest[32];
	double scale;
};

struct lorad_listed {
	uint8_t digest[32];
	uint64_t bytes;
};

/* --- what must never change within a version ---------------------------------------------------------------------- */

#define LORAD_AT(type, field, at) static_assert(offsetof(struct type, field) == (at), #type "." #field)
#define LORAD_SIZE(type, bytes) static_assert(sizeof(struct type) == (bytes), #type)

static_assert(sizeof(lorad_word) == 4 && alignof(lorad_word) == 4, "lorad_word");
static_assert(sizeof(float) == 4 && sizeof(double) == 8, "IEEE numbers");
LORAD_SIZE(lorad_hello, 16);
LORAD_AT(lorad_hello, version_min, 4);
LORAD_AT(lorad_hello, version_max, 6);
LORAD_AT(lorad_hello, features, 8);
LORAD_SIZE(lorad_welcome, 256);
LORAD_AT(lorad_welcome, version, 4);
LORAD_AT(lorad_welcome, in_flight, 6);
LORAD_AT(lorad_welcome, status, 8);
LORAD_AT(lorad_welcome, features, 16);
LORAD_AT(lorad_welcome, request_slots, 24);
LORAD_AT(lorad_welcome, response_slots, 28);
LORAD_AT(lorad_welcome, context, 32);
LORAD_AT(lorad_welcome, plain_first, 40);
LORAD_AT(lorad_welcome, text, 48);
LORAD_SIZE(lorad_request_memory, LORAD_SLOTS_OFFSET);
LORAD_AT(lorad_request_memory, tail, 0);
LORAD_AT(lorad_request_memory, response_head, 128);
LORAD_AT(lorad_request_memory, waiting, 256);
LORAD_SIZE(lorad_response_memory, LORAD_SLOTS_OFFSET);
LORAD_AT(lorad_response_memory, tail, 0);
LORAD_AT(lorad_response_memory, request_head, 128);
LORAD_AT(lorad_response_memory, doorbell, 256);
LORAD_AT(lorad_response_memory, starved, 260);
LORAD_SIZE(lorad_message, 16);
LORAD_AT(lorad_message, type, 4);
LORAD_AT(lorad_message, reserved, 6);
LORAD_AT(lorad_message, id, 8);
LORAD_SIZE(lorad_item, 8);
LORAD_AT(lorad_item, type, 4);
LORAD_AT(lorad_item, flags, 6);
LORAD_SIZE(lorad_use, 8);
LORAD_SIZE(lorad_token, 8);
LORAD_AT(lorad_token, logprob, 4);
LORAD_SIZE(lorad_top, 8);
LORAD_AT(lorad_top, logprob, 4);
LORAD_SIZE(lorad_done, 48);
LORAD_AT(lorad_done, prompt_tokens, 4);
LORAD_AT(lorad_done, generated_tokens, 8);
LORAD_AT(lorad_done, cached_tokens, 12);
LORAD_AT(lorad_done, queue_ms, 16);
LORAD_AT(lorad_done, page_in_ms, 24);
LORAD_AT(lorad_done, prefill_ms, 32);
LORAD_AT(lorad_done, decode_ms, 40);
LORAD_SIZE(lorad_used, 40);
LORAD_AT(lorad_used, scale, 32);
LORAD_SIZE(lorad_listed, 40);
LORAD_AT(lorad_listed, bytes, 32);

#endif
