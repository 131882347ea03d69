/* SPDX-License-Identifier: MIT */
/*
 * libloraclient: talk to lorad through shared-memory rings.
 *
 * In order: lc_connect(), lc_request_new(), set what the request needs, lc_submit(); then poll lc_fd() and call
 * lc_dispatch(), or simply lc_wait(), either of which calls your event function for each answer; lc_disconnect().
 *
 * Threads: a connection and its requests belong to one thread at a time. Different connections are independent.
 * An event function may submit and cancel; it must not dispatch, wait or disconnect.
 * Errors: 0 or a negative errno; lc_error_text() has the daemon's or the library's words for the last one.
 * Ownership: objects from *_new and lc_connect are the caller's until the matching *_free or lc_disconnect. Strings and
 * arrays passed in are copied. Pointers inside an event live until the event function returns.
 */
#ifndef LORACLIENT_H
#define LORACLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lc_connection lc_connection;
typedef struct lc_request lc_request;

enum lc_event_type {
	LC_EVENT_TOKEN,   /* one generated token */
	LC_EVENT_SCORES,  /* a run of scored prompt tokens */
	LC_EVENT_ADAPTER, /* one entry of lc_list_adapters() */
	LC_EVENT_DONE,    /* the last event of a request: it ended as asked (generate, score, list, ping) */
	LC_EVENT_ERROR    /* the last event of a request: refused or failed, see code and text */
};

enum lc_finish { LC_FINISH_STOP, LC_FINISH_LENGTH, LC_FINISH_CANCELLED, LC_FINISH_ERROR };

struct lc_top {
	uint32_t token;
	float logprob;
};

struct lc_used_adapter { /* the version a request was answered with */
	const char *name;
	const char *digest; /* 64 hex digits */
	double scale;
};

struct lc_event {
	enum lc_event_type type;
	uint64_t id;        /* the request's, as lc_submit() gave it */
	void *userdata;     /* the request's */
	/* TOKEN */
	uint32_t token;
	const char *text;   /* bytes of whole characters that this token completed, valid UTF-8, NUL-terminated; may be "" */
	size_t text_bytes;
	float logprob;      /* if asked for */
	const struct lc_top *top;
	uint32_t n_top;     /* entries of top (per token for SCORES) */
	/* SCORES */
	uint32_t first, n_scores;     /* positions first .. first + n_scores - 1 of the prompt */
	const uint32_t *tokens;
	const float *logprobs;        /* NaN for position 0, which nothing precedes */
	/* DONE of generate and score */
	enum lc_finish finish;
	uint32_t prompt_tokens, generated_tokens;
	const struct lc_used_adapter *adapters;
	uint32_t n_adapters;
	double queue_ms, page_in_ms, prefill_ms, decode_ms;
	/* ADAPTER */
	const char *name, *digest, *kind, *state;
	uint64_t bytes;
	/* ERROR */
	int code;           /* see below */
	const char *error;  /* one line */
	uint32_t retry_ms;  /* ETIME, EAGAIN: a new attempt makes sense after this time; 0: no hint */
	/* DONE of generate and score */
	uint32_t cached_tokens; /* prompt tokens that did not have to be computed: a shared prefix had them */
};

/*
 * The code of an ERROR is a positive errno. The request itself: EINVAL refused, ENOENT no such adapter, EDQUOT too much in
 * flight, EIO failed, ECANCELED shutdown. The load:
 *	EAGAIN     the user's queue is full
 *	ETIME      dropped early: its first token would have missed its target
 *	ETIMEDOUT  its deadline passed
 */

typedef void (*lc_event_fn)(lc_connection *connection, const struct lc_event *event);

/* path NULL: $XDG_RUNTIME_DIR/lorad/lorad.sock if it exists, else /run/lorad/lorad.sock. On failure *connection is NULL
 * and error (if not NULL, error_bytes long) says why. */
int lc_connect(lc_connection **connection, const char *path, lc_event_fn event, char *error, size_t error_bytes);
void lc_disconnect(lc_connection *connection);
const char *lc_error_text(const lc_connection *connection);

struct lc_model { /* the base model, as the daemon said when the connection was made */
	uint32_t context;              /* most tokens of one request, prompt and answer together */
	uint32_t vocab;                /* token ids are 0 .. vocab - 1 */
	uint32_t plain_first, n_plain; /* the longest run of ids that holds no special token */
};

void lc_read_model(const lc_connection *connection, struct lc_model *ret);

enum lc_kind { LC_GENERATE, LC_SCORE };

int lc_request_new(lc_request **request, enum lc_kind kind);
void lc_request_free(lc_request *request); /* may be freed or submitted again right after lc_submit() */
int lc_request_set_text(lc_request *request, const char *text, size_t bytes);
int lc_request_set_tokens(lc_request *request, const uint32_t *tokens, size_t n);
void lc_request_set_chat(lc_request *request, bool chat);
int lc_request_add_adapter(lc_request *request, const char *name, double scale); /* up to 8: their weighted sum */
void lc_request_set_max_tokens(lc_request *request, uint32_t n);                  /* default 128 */
void lc_request_set_ignore_eos(lc_request *request, bool ignore);
void lc_request_set_temperature(lc_request *request, double temperature);         /* default 0: greedy */
void lc_request_set_top_p(lc_request *request, double top_p);
void lc_request_set_top_k(lc_request *request, int64_t top_k);
void lc_request_set_min_p(lc_request *request, double min_p);
void lc_request_set_repetition_penalty(lc_request *request, double penalty);
void lc_request_set_seed(lc_request *request, uint64_t seed);
int lc_request_add_stop(lc_request *request, const char *text);
void lc_request_set_logprobs(lc_request *request, int64_t n);                     /* -1: off; 0..64: also the n best */
void lc_request_set_first_token_ms(lc_request *request, int64_t ms); /* target, from arrival; 0: none */
void lc_request_set_deadline_ms(lc_request *request, int64_t ms);    /* of the whole answer, from arrival; 0: none */
void lc_request_set_userdata(lc_request *request, void *userdata);

/* -EAGAIN: the request ring is full, dispatch and try again; -EMSGSIZE: it never fits. */
int lc_submit(lc_connection *connection, const lc_request *request, uint64_t *id);
int lc_cancel(lc_connection *connection, uint64_t id);
int lc_list_adapters(lc_connection *connection, void *userdata, uint64_t *id);
int lc_ping(lc_connection *connection, void *userdata, uint64_t *id);

/* A pollable fd (POLLIN): arm with lc_poll_begin() before poll(), then lc_dispatch(). */
int lc_fd(const lc_connection *connection);
int lc_poll_begin(lc_connection *connection); /* 1: events are there already, do not sleep */
int lc_dispatch(lc_connection *connection);   /* number of events handled; -ECONNRESET: the daemon is gone */
/* Dispatch at least one event, sleeping up to timeout_ms (-1: no limit). 0 on timeout, or when a signal was handled. */
int lc_wait(lc_connection *connection, int timeout_ms);

#ifdef __cplusplus
}
#endif
#endif
