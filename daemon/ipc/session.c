/* SPDX-License-Identifier: MIT */
/*
 * A session: one client's connection.
 *
 * Life: accepted; said hello and was welcomed (open); gone. The module holds one reference until it is gone, requests in
 * flight hold others, so that an answer for a client that died has somewhere to be dropped. session_close() is the one
 * way out, on the loop's thread: it unmaps the memories under the lock, so that whoever sends next sees `gone` first.
 *
 * Memory: the daemon makes both, for the client only ever maps them. The request memory is sealed against resizing, so a
 * client cannot turn a read here into SIGBUS, and is mapped read-only here. The response memory is sealed against writing
 * once the daemon has its own mapping. Descriptors are closed after the welcome; nothing is touched in advance, except
 * the page of the words.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/base/cleanup.h"
#include "daemon/base/clock.h"
#include "daemon/ipc/session.h"
#include "libclient/wire.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

#define HELLO_BYTES_MAX 256 /* later versions may say more than we know */

static size_t memory_bytes(uint32_t n_slots)
{
	return LORAD_SLOTS_OFFSET + (size_t)n_slots * LORAD_SLOT_BYTES;
}

/** ipc_session_ref() - one more holder; from any thread */
struct ipc_session *ipc_session_ref(struct ipc_session *session)
{
	unsigned before = atomic_fetch_add_explicit(&session->refs, 1, memory_order_relaxed);

	assert(before > 0);
	(void)before;
	return session;
}

/** ipc_session_unref() - one holder less; from any thread. Returns NULL. */
struct ipc_session *ipc_session_unref(struct ipc_session *session)
{
	if (!session || atomic_fetch_sub_explicit(&session->refs, 1, memory_order_acq_rel) != 1)
		return NULL;
	assert(session->gone);
	pthread_mutex_destroy(&session->lock);
	free(session);
	return NULL;
}

/* --- memory ------------------------------------------------------------------------------------------------------- */

/* An anonymous file that can be sealed, of this size. Kernels before 6.3 do not know MFD_NOEXEC_SEAL. */
static int make_memfd(const char *name, size_t bytes, int *ret_fd)
{
	_cleanup_close_ int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);

	if (fd < 0 && errno == EINVAL)
		fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0)
		return error_origin(-errno);
	*ret_fd = TAKE_FD(fd);
	return 0;
}

/* The client's memory. Its words get their first values by write(), for this side never maps it writable. */
static int make_request(struct ipc_session *session, uint32_t n_slots, int *ret_fd)
{
	const uint32_t start = LORAD_RING_START;
	_cleanup_close_ int fd = -1;
	void *at;
	int r;

	r = make_memfd("lorad-request", memory_bytes(n_slots), &fd);
	if (r < 0)
		return error_trace(r);
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
		return error_origin(-errno);
	if (pwrite(fd, &start, 4, offsetof(struct lorad_request_memory, tail)) != 4 ||
	    pwrite(fd, &start, 4, offsetof(struct lorad_request_memory, response_head)) != 4)
		return error_origin(-errno);
	at = mmap(NULL, memory_bytes(n_slots), PROT_READ, MAP_SHARED, fd, 0);
	if (at == MAP_FAILED)
		return error_origin(-errno);
	session->request = at;
	session->in.n_slots = n_slots;
	*ret_fd = TAKE_FD(fd);
	return 0;
}

/* The daemon's memory: mapped first, then sealed, so that no other writable mapping can be made of it. */
static int make_response(struct ipc_session *session, uint32_t n_slots, int *ret_fd)
{
	_cleanup_close_ int fd = -1;
	void *at;
	int r;

	r = make_memfd("lorad-response", memory_bytes(n_slots), &fd);
	if (r < 0)
		return error_trace(r);
	at = mmap(NULL, memory_bytes(n_slots), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (at == MAP_FAILED)
		return error_origin(-errno);
	session->response = at;
	session->out.n_slots = n_slots;
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
		return error_origin(-errno);
	word_hint(&session->response->tail, LORAD_RING_START);
	word_hint(&session->response->request_head, LORAD_RING_START);
	word_publish(&session->response->doorbell, 1);
	*ret_fd = TAKE_FD(fd);
	return 0;
}

static void close_fds(int *fds)
{
	for (int i = 0; i < LORAD_N_FDS; ++i)
		if (fds[i] >= 0)
			close(fds[i]);
}

/**
 * memory_make() - make and map the two memories and the doorbell of a session
 * @session:       gets the mappings and the ring handles; on failure memory_unmap() is still due
 * @request_slots: size of the request ring
 * @ret_fds:       the descriptors for the client, by LORAD_FD_*; the caller's to close
 */
int memory_make(struct ipc_session *session, uint32_t request_slots, int *ret_fds)
{
	int fds[LORAD_N_FDS] = { -1, -1, -1 };
	int r;

	r = make_request(session, request_slots, &fds[LORAD_FD_REQUEST]);
	if (r == 0)
		r = make_response(session, IPC_RESPONSE_SLOTS, &fds[LORAD_FD_RESPONSE]);
	if (r == 0) {
		fds[LORAD_FD_DOORBELL] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		r = fds[LORAD_FD_DOORBELL] < 0 ? error_origin(-errno) : 0;
	}
	if (r < 0) {
		close_fds(fds);
		return error_trace(r);
	}
	session->in = (struct ring_reader){ &session->request->tail, &session->response->request_head, request_slots,
					    LORAD_RING_START, LORAD_RING_START };
	session->out = (struct ring_writer){ &session->response->tail, &session->request->response_head,
					     IPC_RESPONSE_SLOTS, LORAD_RING_START, LORAD_RING_START };
	memcpy(ret_fds, fds, sizeof(fds));
	return 0;
}

void memory_unmap(struct ipc_session *session)
{
	if (session->request)
		munmap((void *)(uintptr_t)session->request, memory_bytes(session->in.n_slots));
	if (session->response)
		munmap(session->response, memory_bytes(session->out.n_slots));
	session->request = NULL;
	session->response = NULL;
}

/* --- handshake ---------------------------------------------------------------------------------------------------- */

static void refuse_hello(struct ipc_session *session, int status, const char *text)
{
	struct lorad_welcome welcome = { .magic = LORAD_MAGIC, .version = LORAD_VERSION, .status = status };

	++session->ipc->stats.refused;
	(void)snprintf(welcome.text, sizeof(welcome.text), "%s", text);
	(void)wire_send(session->socket, &welcome, sizeof(welcome), NULL, 0, MSG_DONTWAIT);
	session_close(session);
}

static uint32_t count_sessions(const struct ipc *ipc, uid_t uid)
{
	const struct ipc_session *session;
	uint32_t n = 0;

	list_for_each(session, &ipc->sessions, link)
		n += session->is_open && session->peer.uid == uid;
	return n;
}

/* May this client come in? Else the answer's status and words. */
static int judge_hello(const struct ipc_session *session, const struct lorad_hello *hello, ssize_t bytes,
		       struct diag *diag)
{
	if (bytes < (ssize_t)sizeof(*hello) || hello->magic != LORAD_MAGIC)
		return diag_set(diag, EPROTO, "that was no hello of a lorad client");
	if (hello->version_min > LORAD_VERSION || hello->version_max < LORAD_VERSION)
		return diag_set(diag, EPROTONOSUPPORT, "the daemon speaks version %u of the protocol, this client %u to %u",
				LORAD_VERSION, hello->version_min, hello->version_max);
	if (count_sessions(session->ipc, session->peer.uid) >= IPC_PER_UID_MAX)
		return diag_set(diag, EUSERS, "user %u has %u connections, more are not allowed", session->peer.uid,
				IPC_PER_UID_MAX);
	return 0;
}

static void on_doorbell(struct loop_source *source, uint32_t events)
{
	struct ipc_session *session = container_of(source, struct ipc_session, doorbell_source);
	const struct ipc_options *options = &session->ipc->options;

	(void)events;
	if (send_room_again(session) && options->ops->room)
		options->ops->room(options->userdata, session);
	ipc_flush(session); /* what waited for room went out after the client's last look */
	session->rung = true;
	endpoint_activate(session);
}

static int send_welcome(struct ipc_session *session, const struct lorad_hello *hello, const int *fds)
{
	const struct ipc_options *options = &session->ipc->options;
	const struct lorad_welcome welcome = {
		.magic = LORAD_MAGIC,
		.version = LORAD_VERSION,
		.in_flight = IPC_IN_FLIGHT_MAX - 1, /* so that a cancel always gets through */
		.features = hello->features & LORAD_FEATURES,
		.request_slots = session->in.n_slots,
		.response_slots = session->out.n_slots,
		.context = options->context,
		.vocab = options->vocab,
		.plain_first = options->plain_first,
		.n_plain = options->n_plain,
	};

	return wire_send(session->socket, &welcome, sizeof(welcome), fds, LORAD_N_FDS, MSG_DONTWAIT);
}

/* Makes the memories, watches the doorbell, then tells the client: it may ring as soon as it has been told. */
static void open_session(struct ipc_session *session, const struct lorad_hello *hello)
{
	struct ipc *ipc = session->ipc;
	int fds[LORAD_N_FDS], r;

	r = memory_make(session, ipc->request_slots, fds);
	if (r < 0) {
		refuse_hello(session, -r, "the daemon has no memory or descriptors left for another client");
		return;
	}
	session->doorbell = fds[LORAD_FD_DOORBELL];
	r = loop_add(ipc->options.loop, &session->doorbell_source, session->doorbell, EPOLLIN | EPOLLET, on_doorbell);
	if (r == 0)
		r = send_welcome(session, hello, fds);
	close(fds[LORAD_FD_REQUEST]);
	close(fds[LORAD_FD_RESPONSE]);
	if (r < 0) {
		session_close(session);
		return;
	}
	session->is_open = true;
	--ipc->n_hello;
	++ipc->stats.clients;
}

static void take_hello(struct ipc_session *session)
{
	_Alignas(8) uint8_t record[HELLO_BYTES_MAX] = { 0 };
	struct lorad_hello hello;
	struct diag diag;
	ssize_t n;
	int r;

	n = wire_recv(session->socket, record, sizeof(record), NULL, 0, NULL, MSG_DONTWAIT);
	if (n == -EAGAIN)
		return;
	if (n == 0 || (n < 0 && n != -EMSGSIZE)) {
		session_close(session);
		return;
	}
	memcpy(&hello, record, sizeof(hello));
	r = judge_hello(session, &hello, n, &diag);
	if (r)
		refuse_hello(session, r, diag.text);
	else
		open_session(session, &hello);
}

static void on_socket(struct loop_source *source, uint32_t events)
{
	struct ipc_session *session = container_of(source, struct ipc_session, socket_source);

	if (!session->is_open && (events & EPOLLIN))
		take_hello(session);
	else if (events & (EPOLLHUP | EPOLLRDHUP | EPOLLERR))
		session_close(session);
	else if (events & EPOLLIN)
		ipc_violation(session, "a record on the socket after the hello");
}

/* --- life --------------------------------------------------------------------------------------------------------- */

/**
 * session_new() - begin a session for an accepted connection
 * @ipc:    holds it until it is gone
 * @socket: taken over, also on failure
 * @peer:   who connected
 */
int session_new(struct ipc *ipc, int socket, const struct ucred *peer)
{
	_cleanup_close_ int owned = socket;
	_cleanup_free_ struct ipc_session *session = calloc(1, sizeof(*session));
	int r;

	if (!session)
		return error_origin(-ENOMEM);
	r = loop_add(ipc->options.loop, &session->socket_source, socket, EPOLLIN | EPOLLRDHUP, on_socket);
	if (r < 0)
		return error_trace(r);
	atomic_init(&session->refs, 1);
	pthread_mutex_init(&session->lock, NULL);
	session->ipc = ipc;
	session->peer = *peer;
	session->socket = TAKE_FD(owned);
	session->doorbell = -1;
	session->last_ns = clock_ns();
	session->kept_end = &session->kept;
	list_append(&ipc->sessions, &session->link);
	++ipc->n_hello;
	(void)TAKE_PTR(session);
	return 0;
}

/**
 * session_close() - the client is gone, or shall be
 * @session: of the loop's thread; ipc_ops.closed() is called once if it was open, then the module's reference dropped
 */
void session_close(struct ipc_session *session)
{
	struct ipc *ipc = session->ipc;
	bool was_open = session->is_open;

	assert(ipc && !session->gone);
	loop_remove(&session->socket_source);
	loop_remove(&session->doorbell_source);
	list_unlink(&session->link);
	list_unlink(&session->active);
	pthread_mutex_lock(&session->lock);
	session->gone = true;
	session->ipc = NULL;
	session->is_open = false;
	send_drop_kept(session);
	memory_unmap(session);
	close(session->socket);
	if (session->doorbell >= 0)
		close(session->doorbell);
	session->socket = session->doorbell = -1;
	pthread_mutex_unlock(&session->lock);
	if (was_open) {
		--ipc->stats.clients;
		ipc->options.ops->closed(ipc->options.userdata, session);
	} else {
		--ipc->n_hello;
	}
	ipc_session_unref(session);
}
