/* SPDX-License-Identifier: MIT */
/*
 * A connection's life: find the socket, shake hands, map the two memories, let go of them.
 *
 * The daemon makes everything that is shared and the client only maps it, the responses read-only. The daemon is trusted,
 * but sizes are checked all the same, so that a mistake on either side ends in an error and not in a wild pointer.
 */
#include "libclient/client.h"

#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>

#include "libclient/wire.h"

#define SYSTEM_SOCKET "/run/lorad/lorad.sock"
#define HANDSHAKE_S 10
#define SPIN_NS 50000

/* Puts an error into words for lc_error_text() and returns it. */
int lc_fail(lc_connection *connection, int error, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	(void)vsnprintf(connection->error, sizeof(connection->error), format, args);
	va_end(args);
	return error;
}

uint64_t lc_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Spinning helps only where the daemon can run at the same time. */
static uint64_t choose_spin(void)
{
	cpu_set_t cpus;

	if (sched_getaffinity(0, sizeof(cpus), &cpus) < 0)
		return 0;
	return CPU_COUNT(&cpus) > 1 ? SPIN_NS : 0;
}

/* The user's own daemon if there is one, else the system's. */
static void default_path(char *path, size_t bytes)
{
	const char *runtime = secure_getenv("XDG_RUNTIME_DIR");
	struct stat found;
	int n;

	if (runtime && *runtime) {
		n = snprintf(path, bytes, "%s/lorad/lorad.sock", runtime);
		if (n > 0 && (size_t)n < bytes && stat(path, &found) == 0)
			return;
	}
	(void)snprintf(path, bytes, "%s", SYSTEM_SOCKET);
}

static int open_socket(lc_connection *c, const char *path)
{
	const struct timeval limit = { .tv_sec = HANDSHAKE_S };
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	if (strlen(path) >= sizeof(address.sun_path))
		return lc_fail(c, -ENAMETOOLONG, "%s: longer than a socket's path may be", path);
	memcpy(address.sun_path, path, strlen(path) + 1);
	c->socket = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (c->socket < 0)
		return lc_fail(c, -errno, "socket: %s", strerror(errno));
	(void)setsockopt(c->socket, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)); /* for connect() too */
	(void)setsockopt(c->socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	if (connect(c->socket, (const struct sockaddr *)&address, sizeof(address)) < 0) {
		if (errno == ENOENT || errno == ECONNREFUSED)
			return lc_fail(c, -errno, "%s: no lorad is listening there (%s)", path, strerror(errno));
		return lc_fail(c, -errno, "%s: %s", path, strerror(errno));
	}
	return 0;
}

/* Is this the answer of a daemon that we understand? */
static int check_welcome(lc_connection *c, const struct lorad_welcome *w, ssize_t bytes, size_t n_fds, const char *path)
{
	if (bytes < (ssize_t)sizeof(*w) || w->magic != LORAD_MAGIC || memchr(w->text, 0, sizeof(w->text)) == NULL)
		return lc_fail(c, -EPROTO, "%s: what listens there is not lorad", path);
	if (w->status)
		return lc_fail(c, w->status > 0 ? -w->status : -EPROTO, "%s: %s", path, w->text);
	if (w->version != LORAD_VERSION)
		return lc_fail(c, -EPROTONOSUPPORT, "%s: the daemon speaks version %u of the protocol, this library %u", path,
			       w->version, LORAD_VERSION);
	if (n_fds != LORAD_N_FDS || w->in_flight == 0)
		return lc_fail(c, -EPROTO, "%s: an incomplete answer", path);
	return 0;
}

static int shake_hands(lc_connection *c, struct lorad_welcome *w, int *fds, const char *path)
{
	const struct lorad_hello hello = { LORAD_MAGIC, LORAD_VERSION, LORAD_VERSION, LORAD_FEATURES };
	size_t n_fds = 0;
	ssize_t n;
	int r;

	r = wire_send(c->socket, &hello, sizeof(hello), NULL, 0, 0);
	if (r < 0 && r != -EPIPE) /* a daemon that is full answers without reading */
		return lc_fail(c, r, "%s: %s", path, strerror(-r));
	n = wire_recv(c->socket, w, sizeof(*w), fds, LORAD_N_FDS, &n_fds, 0);
	if (n == -EAGAIN)
		return lc_fail(c, -ETIMEDOUT, "%s: lorad did not answer within %d s", path, HANDSHAKE_S);
	if (n == -EMSGSIZE)
		return lc_fail(c, -EMFILE, "%s: file descriptors were lost; is the limit on open files reached?", path);
	if (n <= 0)
		return lc_fail(c, n ? (int)n : -ECONNRESET, "%s: %s", path, n ? strerror((int)-n) : "lorad hung up");
	r = check_welcome(c, w, n, n_fds, path);
	if (r < 0)
		while (n_fds)
			close(fds[--n_fds]);
	return r;
}

/* Maps one memory whole; its size must be what the slots need. */
static int map_memory(lc_connection *c, int fd, uint32_t n_slots, int protection, void **ret, size_t *ret_bytes)
{
	size_t bytes = LORAD_SLOTS_OFFSET + (size_t)n_slots * LORAD_SLOT_BYTES;
	struct stat memory;
	void *at;

	if (n_slots == 0 || n_slots > LORAD_RING_SLOTS_MAX || (n_slots & (n_slots - 1)))
		return lc_fail(c, -EPROTO, "a ring of %u slots", n_slots);
	if (fstat(fd, &memory) < 0 || memory.st_size < 0 || (uint64_t)memory.st_size < bytes)
		return lc_fail(c, -EPROTO, "a ring that is smaller than it says");
	at = mmap(NULL, bytes, protection, MAP_SHARED, fd, 0);
	if (at == MAP_FAILED)
		return lc_fail(c, -errno, "mmap: %s", strerror(errno));
	*ret = at;
	*ret_bytes = bytes;
	return 0;
}

static int map_rings(lc_connection *c, const struct lorad_welcome *w, const int *fds)
{
	void *request, *response;
	int r;

	r = map_memory(c, fds[LORAD_FD_REQUEST], w->request_slots, PROT_READ | PROT_WRITE, &request, &c->request_bytes);
	if (r < 0)
		return r;
	c->request = (struct lorad_request_memory *)request;
	r = map_memory(c, fds[LORAD_FD_RESPONSE], w->response_slots, PROT_READ, &response, &c->response_bytes);
	if (r < 0)
		return r;
	c->response = (const struct lorad_response_memory *)response;
	c->out = (struct ring_writer){ &c->request->tail, &c->response->request_head, w->request_slots, LORAD_RING_START,
				       LORAD_RING_START };
	c->in = (struct ring_reader){ &c->response->tail, &c->request->response_head, w->response_slots,
				      LORAD_RING_START, LORAD_RING_START };
	return 0;
}

static int make_buffers(lc_connection *c, const struct lorad_welcome *w)
{
	c->n_open = w->in_flight;
	c->open = (struct lc_open *)calloc(c->n_open, sizeof(*c->open));
	c->incoming = (uint8_t *)malloc(LORAD_RESPONSE_BYTES_MAX);
	if (!c->open || !c->incoming)
		return lc_fail(c, -ENOMEM, "out of memory");
	lc_open_init(c);
	return 0;
}

static int establish(lc_connection *c, const char *path)
{
	char found[sizeof(((struct sockaddr_un *)0)->sun_path) + 64];
	struct lorad_welcome welcome;
	int fds[LORAD_N_FDS], r;

	if (!path) {
		default_path(found, sizeof(found));
		path = found;
	}
	r = open_socket(c, path);
	if (r == 0)
		r = shake_hands(c, &welcome, fds, path);
	if (r < 0)
		return r;
	c->doorbell = fds[LORAD_FD_DOORBELL];
	r = map_rings(c, &welcome, fds);
	close(fds[LORAD_FD_REQUEST]);
	close(fds[LORAD_FD_RESPONSE]);
	c->model = (struct lc_model){ welcome.context, welcome.vocab, welcome.plain_first, welcome.n_plain };
	return r < 0 ? r : make_buffers(c, &welcome);
}

/**
 * lc_connect() - connect to the daemon
 * @connection:  the new connection, NULL on failure
 * @path:        its socket, or NULL for the user's own daemon if there is one, else the system's
 * @event:       called from lc_dispatch() and lc_wait() for each event
 * @error:       where to put why it failed, or NULL
 * @error_bytes: size of error
 *
 * Return: 0, or a negative errno; -EPROTONOSUPPORT if daemon and library do not speak the same version.
 */
int lc_connect(lc_connection **connection, const char *path, lc_event_fn event, char *error, size_t error_bytes)
{
	lc_connection *c = (lc_connection *)calloc(1, sizeof(*c));
	int r;

	*connection = NULL;
	if (!c) {
		if (error && error_bytes)
			(void)snprintf(error, error_bytes, "out of memory");
		return -ENOMEM;
	}
	c->socket = c->doorbell = -1;
	c->event = event;
	c->spin_ns = choose_spin();
	r = establish(c, path);
	if (r == 0) {
		*connection = c;
		return 0;
	}
	if (error && error_bytes)
		(void)snprintf(error, error_bytes, "%s", c->error);
	lc_disconnect(c);
	return r;
}

/**
 * lc_disconnect() - end a connection; the daemon ends what is still open of it
 * @connection: or NULL. Not from inside an event function.
 */
void lc_disconnect(lc_connection *connection)
{
	if (!connection)
		return;
	if (connection->request)
		munmap(connection->request, connection->request_bytes);
	if (connection->response)
		munmap((void *)(uintptr_t)connection->response, connection->response_bytes);
	if (connection->socket >= 0)
		close(connection->socket);
	if (connection->doorbell >= 0)
		close(connection->doorbell);
	free(connection->open);
	free(connection->outgoing);
	free(connection->incoming);
	free(connection);
}

/** lc_error_text() - the words for the last error of this connection, "" if there was none */
const char *lc_error_text(const lc_connection *connection)
{
	return connection->error;
}

/** lc_read_model() - what the daemon said about its base model when the connection was made */
void lc_read_model(const lc_connection *connection, struct lc_model *ret)
{
	*ret = connection->model;
}

/** lc_fd() - readable when there is something to dispatch, if armed with lc_poll_begin(); or the daemon is gone */
int lc_fd(const lc_connection *connection)
{
	return connection->socket;
}
