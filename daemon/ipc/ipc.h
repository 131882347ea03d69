/* SPDX-License-Identifier: MIT */
/*
 * Clients: listener, sessions, rings. Requests go up through struct ipc_ops, answers come down through ipc_send_*().
 *
 * Threads: the ops are called on the loop's thread. ipc_send_*() may be called from any thread; a session's
 * response ring has one lock. A session lives as long as someone holds a reference: after its client is gone sends are
 * dropped.
 */
#ifndef LORAD_IPC_IPC_H
#define LORAD_IPC_IPC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "daemon/base/error.h"

struct loop;
struct ipc;
struct ipc_session;

#define IPC_ADAPTERS_MAX 8
#define IPC_NAME_MAX 128
#define IPC_STOPS_MAX 16

enum ipc_kind { IPC_GENERATE, IPC_SCORE };

struct ipc_adapter {
	char name[IPC_NAME_MAX + 1];
	float scale;
};

/* A request as a client sent it: copied out of the ring once, sizes and encodings checked, values not yet judged. */
struct ipc_request {
	struct ipc_session *session; /* a reference */
	uint64_t id;                 /* the client's */
	uid_t uid;
	uint64_t arrived_ns;
	enum ipc_kind kind;
	char *text;                  /* text or tokens, never both; NUL-terminated */
	size_t text_bytes;
	bool has_text, chat, ignore_eos;
	uint32_t *tokens;
	size_t n_tokens;
	struct ipc_adapter adapters[IPC_ADAPTERS_MAX];
	uint32_t n_adapters;
	int64_t max_tokens, top_k;
	int64_t first_token_ms, deadline_ms; /* from arrived_ns: target of the first token, end of the answer; 0: none */
	double temperature, top_p, min_p, repetition_penalty;
	uint64_t seed;
	int64_t logprobs;            /* -1: not asked for */
	char *stop[IPC_STOPS_MAX];
	uint32_t n_stops;
	uint32_t retry_ms;           /* set by ops.submit where it refuses: the client's hint, 0: none */
};

struct ipc_request *ipc_request_free(struct ipc_request *request);

struct ipc_ops {
	/* Takes over the request when it returns 0. Else (a positive errno, the words in diag) ipc answers with that error. */
	int (*submit)(void *userdata, struct ipc_request *request, struct diag *diag);
	void (*cancel)(void *userdata, struct ipc_session *session, uint64_t id);
	void (*list)(void *userdata, struct ipc_session *session, uint64_t id); /* answer with ipc_send_adapter, _done */
	void (*closed)(void *userdata, struct ipc_session *session); /* the client is gone: end its requests */
	void (*room)(void *userdata, struct ipc_session *session);   /* it reads again after IPC_E_FULL; may be NULL */
};

struct ipc_options {
	struct loop *loop;
	int listen_fd;           /* a listening SEQPACKET socket, nonblocking; the caller's */
	uint32_t context;        /* sizes the request ring: a prompt of this many tokens must fit */
	uint32_t vocab;          /* this and the next two are told to clients, see struct lc_model */
	uint32_t plain_first, n_plain;
	const struct ipc_ops *ops;
	void *userdata;
};

struct ipc_stats {
	uint64_t clients, connections, requests, refused, violations;
};

int ipc_new(struct ipc **ret, const struct ipc_options *options);
struct ipc *ipc_free(struct ipc *ipc);          /* disconnects everyone */
void ipc_read_stats(const struct ipc *ipc, struct ipc_stats *ret);

struct ipc_session *ipc_session_ref(struct ipc_session *session);
struct ipc_session *ipc_session_unref(struct ipc_session *session);

struct ipc_top {
	uint32_t token;
	float logprob;
};

struct ipc_token {
	uint32_t token;
	float logprob;
	const char *text;
	size_t text_bytes;
	const struct ipc_top *top;
	uint32_t n_top;
};

struct ipc_scores {
	uint32_t first, n;        /* n <= IPC_SCORES_MAX */
	const uint32_t *tokens;
	const float *logprobs;
	const struct ipc_top *top; /* [n][n_top] */
	uint32_t n_top;
};

#define IPC_SCORES_MAX 64

struct ipc_used_adapter {
	char name[IPC_NAME_MAX + 1];
	uint8_t digest[32];
	float scale;
};

struct ipc_done {
	uint32_t finish;          /* enum lc_finish */
	uint32_t prompt_tokens, generated_tokens;
	uint32_t cached_tokens;   /* of the prompt: a shared prefix had them */
	double queue_ms, page_in_ms, prefill_ms, decode_ms;
	const struct ipc_used_adapter *adapters;
	uint32_t n_adapters;
};

struct ipc_listed {
	const char *name, *kind, *state;
	uint8_t digest[32];
	uint64_t bytes;
};

enum ipc_result { IPC_OK, IPC_E_FULL, IPC_E_GONE };

/* IPC_E_FULL: the client does not read; nothing was sent, ipc_ops.room() tells when to go on. ipc_send_adapter, _done and
 * _error are never refused: they wait in the session until the client reads. Each id is ended by one of the latter two. */
int ipc_send_token(struct ipc_session *session, uint64_t id, const struct ipc_token *token);
int ipc_send_scores(struct ipc_session *session, uint64_t id, const struct ipc_scores *scores);
int ipc_send_adapter(struct ipc_session *session, uint64_t id, const struct ipc_listed *adapter);
int ipc_send_done(struct ipc_session *session, uint64_t id, const struct ipc_done *done);
int ipc_send_error(struct ipc_session *session, uint64_t id, int code, uint32_t retry_ms, const char *text);
void ipc_flush(struct ipc_session *session); /* wake the client for what was sent since; once per step, not per token */

#endif
