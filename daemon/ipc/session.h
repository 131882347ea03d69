/* SPDX-License-Identifier: MIT */
/* Inside ipc: the module, its sessions, and what its files offer each other. */
#ifndef LORAD_IPC_SESSION_H
#define LORAD_IPC_SESSION_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>

#include "daemon/base/list.h"
#include "daemon/base/log.h"
#include "daemon/ipc/ipc.h"
#include "daemon/os/loop.h"
#include "libclient/ring.h"

#define IPC_SESSIONS_MAX 4096   /* connections in all */
#define IPC_PER_UID_MAX 1024    /* of one user */
#define IPC_IN_FLIGHT_MAX 1024  /* open requests of a session */
#define IPC_RESPONSE_SLOTS 4096 /* 256 KiB */
#define IPC_REQUEST_BYTES_MIN (256u << 10)

struct ipc {
	struct ipc_options options;
	struct loop_source listener;
	struct loop_source kick_source;
	struct loop_timer timer; /* runs every second while it has something to do */
	int kick;                /* an eventfd: a session wants the loop's attention; written by any thread */
	struct list sessions;    /* linked by link */
	struct list active;      /* those whose request rings are looked at; linked by active */
	uint32_t n_hello;        /* sessions that have not said hello */
	bool accept_paused;      /* no descriptors were left */
	uint32_t request_slots;
	uint64_t awake_ns;       /* how long at most a ring is looked at after a message */
	uint8_t *message;        /* the one copied out of a ring, as large as a request ring */
	struct ipc_stats stats;
	struct log_limit log_limit;
};

/* An answer that must not be lost and found no room in the ring. */
struct kept {
	struct kept *next;
	size_t bytes;
	_Alignas(8) uint8_t message[];
};

struct ipc_session {
	atomic_uint refs;
	struct ipc *ipc; /* NULL once gone */
	struct ucred peer;
	struct list link, active;
	struct loop_source socket_source, doorbell_source;
	int socket, doorbell;

	/* the loop's thread alone */
	bool is_open;           /* hello and welcome are exchanged */
	uint64_t last_ns;       /* of a message; until it is open: when it connected */
	uint64_t awake_ns;      /* how long to go on looking after that message */
	bool rung;              /* the client rang since the last message: looking did not find the next */
	uint32_t misses, skipped; /* looks for the next message in vain, in a row; and those left out since */
	struct ring_reader in;
	const struct lorad_request_memory *request; /* read-only here; the lock too for `waiting` */

	/* any thread, under the lock */
	pthread_mutex_t lock;
	bool gone;              /* nothing below, nor request, may be used */
	bool doomed;            /* the client broke the protocol: the loop shall close it */
	bool paused, resume;    /* the ring is not looked at for want of room for answers; ... and shall be again */
	bool starved;           /* somebody was told IPC_E_FULL */
	uint32_t in_flight;     /* requests taken and not ended */
	uint32_t woken;         /* the last value of `waiting` that was acted on */
	struct kept *kept, **kept_end; /* oldest first */
	struct lorad_response_memory *response;
	struct ring_writer out;
};

/* listener.c */
void ipc_violation(struct ipc_session *session, const char *reason);

/* session.c */
int session_new(struct ipc *ipc, int socket, const struct ucred *peer);
void session_close(struct ipc_session *session);
int memory_make(struct ipc_session *session, uint32_t request_slots, int *ret_fds);
void memory_unmap(struct ipc_session *session);

/* endpoint.c */
void endpoint_activate(struct ipc_session *session);
uint64_t endpoint_look(void *ipc);

/* send.c */
bool send_admit(struct ipc_session *session);
void send_readmit(struct ipc_session *session);
bool send_room_again(struct ipc_session *session);
void send_drop_kept(struct ipc_session *session);

/* request.c */
int request_parse(struct ipc_request **ret, const void *message, size_t bytes, struct diag *diag);
int request_check_bare(const void *message, size_t bytes, struct diag *diag);

#endif
