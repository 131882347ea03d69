/* SPDX-License-Identifier: MIT */
/* Inside libloraclient: see client.c. */
#ifndef LORACLIENT_CLIENT_H
#define LORACLIENT_CLIENT_H

#include "libclient/loraclient.h"
#include "libclient/ring.h"

#define LC_PRIVATE __attribute__((visibility("hidden")))

/* A request that was submitted and not yet answered to its end. */
struct lc_open {
	uint64_t id; /* 0: free */
	uint64_t uses;
	void *userdata;
	uint32_t next_free;
};

struct lc_connection {
	int socket, doorbell;
	lc_event_fn event;
	struct lc_model model;
	struct lorad_request_memory *request;         /* ours to write */
	const struct lorad_response_memory *response; /* read-only */
	size_t request_bytes, response_bytes;
	struct ring_writer out;
	struct ring_reader in;
	struct lc_open *open;
	uint32_t n_open, first_free;
	uint8_t *outgoing;   /* a request being encoded; grows */
	size_t outgoing_room;
	uint8_t *incoming;   /* one response, LORAD_RESPONSE_BYTES_MAX */
	struct lc_used_adapter used[LORAD_ADAPTERS_MAX]; /* of the event in hand, as are the digests */
	char digests[LORAD_ADAPTERS_MAX][65];
	uint32_t ticket;
	uint64_t checked_ns; /* when the socket was last looked at */
	uint64_t spin_ns;    /* 0: never; else how long a spin is */
	uint32_t misses, skipped; /* spins in a row that found nothing; spins left out since */
	bool polled, dispatching, gone;
	char error[320];
};

struct lc_request {
	enum lc_kind kind;
	void *userdata;
	char *text;
	size_t text_bytes;
	uint32_t *tokens;
	size_t n_tokens;
	bool has_text, has_tokens, chat, ignore_eos;
	char *adapters[LORAD_ADAPTERS_MAX];
	double scales[LORAD_ADAPTERS_MAX];
	uint32_t n_adapters;
	char *stops[LORAD_STOPS_MAX];
	uint32_t n_stops;
	uint32_t set; /* 1 << (item type): which of numbers are set */
	union lc_number {
		int64_t i;
		uint64_t u;
		double f;
	} numbers[LORAD_ITEM_DEADLINE_MS + 1]; /* by item type */
};

LC_PRIVATE int lc_fail(lc_connection *connection, int error, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
LC_PRIVATE uint64_t lc_now_ns(void);
LC_PRIVATE void lc_open_init(lc_connection *connection);
LC_PRIVATE void lc_open_end(lc_connection *connection, struct lc_open *open);
LC_PRIVATE void lc_ring_doorbell(lc_connection *connection);
LC_PRIVATE int lc_decode(lc_connection *connection, size_t bytes, struct lc_event *event);

#endif
