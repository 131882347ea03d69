/* SPDX-License-Identifier: MIT */
/* Stand-ins, at link time, for all that the scheduler works with: see sched-fakes.c. */
#ifndef SCHED_FAKES_H
#define SCHED_FAKES_H

#include "daemon/cache/cache.h"
#include "daemon/model/kv.h"
#include "daemon/ipc/ipc.h"
#include "daemon/sched/request.h"

#define FAKE_VOCAB 256        /* token i is the byte i; 0 ends an answer, 1 is special */
#define FAKE_CONTEXT 4096
#define FAKE_BLOCK 16         /* tokens of a KV block */
#define FAKE_SENT_MAX 4096

struct cache_adapter {
	uint8_t number;
	int result;               /* of cache_hold() */
	_Atomic unsigned refs;
	unsigned holds, asked;
};

struct ipc_session {
	_Atomic unsigned refs;    /* as in ipc, taken and dropped on several threads */
	unsigned flushes;
	unsigned room;            /* tokens and scores that may still be sent */
	bool gone;
	/* what was sent, by order */
	struct {
		uint64_t id;
		char kind;        /* t token, s score, d done, e error */
		uint32_t token;
		float logprob;
		char text[64];
		struct ipc_done done;
		int code;
		uint32_t retry_ms;
	} sent[FAKE_SENT_MAX];
	unsigned n_sent;
};

struct fakes {
	struct kv *kv;                    /* a real one, over memory where tokens stand for their keys */
	unsigned cache_blocks;            /* what cache_shrink() can still give of it */
	unsigned loading;
	int step_result;
	struct kern_failure failure;      /* what step_failure() tells */
	struct step_stats last;
	struct cache_adapter adapter[8];  /* "a0" to "a7" */
	int (*draw)(uint32_t hash);       /* the token of a draw; default: printable letters by hash */
	_Atomic unsigned requests;        /* alive */
};

extern struct fakes fakes;
void fakes_reset(void);
void fakes_end(void);                                           /* all memory must have been given back */
void fakes_memory(unsigned blocks, unsigned cache_blocks);      /* a new fakes.kv; while nobody has blocks */

/* A request as ipc makes it, of a prompt of plain tokens. */
struct ipc_request *fake_request(struct ipc_session *session, uint64_t id, const char *prompt, unsigned n);
void fake_adapter(struct ipc_request *request, unsigned number, float scale);
size_t fake_text(const struct ipc_session *session, uint64_t id, char *to);     /* texts of an id, joined */
unsigned fake_count(const struct ipc_session *session, uint64_t id, char kind);
const struct ipc_done *fake_done(const struct ipc_session *session, uint64_t id);

#endif
