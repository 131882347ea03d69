/* SPDX-License-Identifier: MIT */
/*
 * A client that speaks the protocol by hand and breaks it: seals, impossible indices, senseless frames, version skew,
 * storms. After each, a well-behaved client must still be served.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/un.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "daemon/ipc/ipc.h"
#include "daemon/os/loop.h"
#include "daemon/os/sock.h"
#include "libclient/loraclient.h"
#include "libclient/message.h"
#include "libclient/ring.h"
#include "libclient/wire.h"
#include "tests/lib/run-suite.h"

static struct loop *loop;
static struct ipc *ipc;
static pthread_t thread;
static int listen_fd;
static char folder[64], path[100];
static atomic_uint closed, submitted;

static int answer(void *userdata, struct ipc_request *request, struct diag *diag)
{
	const struct ipc_done done = { .finish = LC_FINISH_LENGTH };

	(void)userdata;
	(void)diag;
	(void)ipc_send_done(request->session, request->id, &done);
	atomic_fetch_add(&submitted, 1);
	ipc_request_free(request);
	return 0;
}

static void cancel(void *userdata, struct ipc_session *session, uint64_t id)
{
	(void)userdata;
	(void)session;
	(void)id;
}

static void list_nothing(void *userdata, struct ipc_session *session, uint64_t id)
{
	const struct ipc_done done = { .finish = LC_FINISH_STOP };

	(void)userdata;
	(void)ipc_send_done(session, id, &done);
}

static void count_closed(void *userdata, struct ipc_session *session)
{
	(void)userdata;
	(void)session;
	atomic_fetch_add(&closed, 1);
}

static const struct ipc_ops ops = {
	.submit = answer, .cancel = cancel, .list = list_nothing, .closed = count_closed,
};

static void *run(void *userdata)
{
	ck_assert_int_eq(loop_run(userdata), 0);
	return NULL;
}

static void start_daemon(void)
{
	struct ipc_options options = { .context = 100, .ops = &ops };
	struct diag diag;

	snprintf(folder, sizeof(folder), "/tmp/test-ipc-hostile.XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(folder));
	snprintf(path, sizeof(path), "%s/lorad.sock", folder);
	ck_assert_int_eq(sock_listen(&listen_fd, SOCK_SEQPACKET, path, 0600, &diag), SOCK_OK);
	ck_assert_int_eq(loop_new(&loop), 0);
	options.loop = loop;
	options.listen_fd = listen_fd;
	ck_assert_int_eq(ipc_new(&ipc, &options), 0);
	ck_assert_int_eq(pthread_create(&thread, NULL, run, loop), 0);
}

static void on_event(lc_connection *connection, const struct lc_event *event)
{
	(void)connection;
	*(bool *)event->userdata = event->type == LC_EVENT_DONE;
}

/* The proof that the daemon is well: an honest client is answered. */
static void check_honest(void)
{
	lc_connection *connection;
	bool done = false;

	ck_assert_int_eq(lc_connect(&connection, path, on_event, NULL, 0), 0);
	ck_assert_int_eq(lc_ping(connection, &done, NULL), 0);
	while (!done)
		ck_assert_int_eq(lc_wait(connection, 5000), 1);
	lc_disconnect(connection);
}

static void stop_daemon(void)
{
	check_honest();
	loop_stop(loop);
	pthread_join(thread, NULL);
	ipc = ipc_free(ipc);
	loop = loop_free(loop);
	close(listen_fd);
	unlink(path);
	rmdir(folder);
}

/* --- a client by hand --------------------------------------------------------------------------------------------- */

struct rogue {
	int socket, fds[LORAD_N_FDS];
	struct lorad_welcome welcome;
	struct lorad_request_memory *request;
	const struct lorad_response_memory *response;
	uint8_t *slots;
	uint32_t at;
};

static int connect_raw(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	memcpy(address.sun_path, path, strlen(path) + 1);
	ck_assert_int_eq(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	return fd;
}

static size_t response_bytes(const struct rogue *rogue)
{
	return LORAD_SLOTS_OFFSET + (size_t)rogue->welcome.response_slots * LORAD_SLOT_BYTES;
}

static void rogue_begin(struct rogue *rogue)
{
	const struct lorad_hello hello = { LORAD_MAGIC, LORAD_VERSION, LORAD_VERSION, UINT64_MAX };
	size_t n = 0, bytes;

	rogue->socket = connect_raw();
	ck_assert_int_eq(wire_send(rogue->socket, &hello, sizeof(hello), NULL, 0, 0), 0);
	ck_assert_int_eq(wire_recv(rogue->socket, &rogue->welcome, sizeof(rogue->welcome), rogue->fds, LORAD_N_FDS, &n, 0),
			 sizeof(rogue->welcome));
	ck_assert_uint_eq(n, LORAD_N_FDS);
	ck_assert_int_eq(rogue->welcome.status, 0);
	ck_assert_uint_eq(rogue->welcome.features, 0);
	bytes = LORAD_SLOTS_OFFSET + (size_t)rogue->welcome.request_slots * LORAD_SLOT_BYTES;
	rogue->request = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, rogue->fds[LORAD_FD_REQUEST], 0);
	ck_assert_ptr_ne(rogue->request, MAP_FAILED);
	rogue->response = mmap(NULL, response_bytes(rogue), PROT_READ, MAP_SHARED, rogue->fds[LORAD_FD_RESPONSE], 0);
	ck_assert_ptr_ne(rogue->response, MAP_FAILED);
	rogue->slots = (uint8_t *)rogue->request + LORAD_SLOTS_OFFSET;
	rogue->at = LORAD_RING_START;
}

static void rogue_end(struct rogue *rogue)
{
	munmap(rogue->request, LORAD_SLOTS_OFFSET + (size_t)rogue->welcome.request_slots * LORAD_SLOT_BYTES);
	munmap((void *)(uintptr_t)rogue->response, response_bytes(rogue));
	for (int i = 0; i < LORAD_N_FDS; ++i)
		close(rogue->fds[i]);
	close(rogue->socket);
}

static void ring(struct rogue *rogue)
{
	const uint64_t one = 1;

	ck_assert_int_eq(write(rogue->fds[LORAD_FD_DOORBELL], &one, sizeof(one)), sizeof(one));
}

/* Puts a head with this length at the next slots and publishes so many of them. */
static void send_frame(struct rogue *rogue, uint32_t bytes, uint16_t type, uint32_t n_slots)
{
	struct lorad_message head = { bytes, type, 0, 5 };

	ring_copy_in(rogue->slots, rogue->welcome.request_slots, rogue->at, &head, sizeof(head));
	rogue->at += n_slots;
	word_publish(&rogue->request->tail, rogue->at);
	ring(rogue);
}

/* The daemon hangs up on us. */
static void expect_hangup(struct rogue *rogue)
{
	struct pollfd pfd = { .fd = rogue->socket, .events = POLLIN };
	ssize_t n;
	char byte;

	ck_assert_int_eq(poll(&pfd, 1, 5000), 1);
	n = wire_recv(rogue->socket, &byte, 1, NULL, 0, NULL, 0);
	ck_assert(n == 0 || n == -ECONNRESET); /* the latter if it did not read what we said */
}

/* The next answer's type. */
static uint16_t expect_answer(struct rogue *rogue, uint32_t *at)
{
	const uint8_t *slots = (const uint8_t *)rogue->response + LORAD_SLOTS_OFFSET;
	struct lorad_message head;

	for (int i = 0; i < 5000 && word_observe(&rogue->response->tail) == *at; ++i)
		usleep(1000);
	ck_assert_uint_ne(word_observe(&rogue->response->tail), *at);
	ring_copy_out(&head, slots, rogue->welcome.response_slots, *at, sizeof(head));
	*at += ring_slots(head.bytes);
	return head.type;
}

static void expect_violation(struct rogue *rogue)
{
	struct ipc_stats stats;

	expect_hangup(rogue);
	for (int i = 0; i < 5000 && atomic_load(&closed) == 0; ++i)
		usleep(1000);
	ck_assert_uint_eq(atomic_load(&closed), 1);
	ck_assert_uint_eq(atomic_load(&submitted), 0);
	rogue_end(rogue);
	check_honest();
	loop_stop(loop);
	pthread_join(thread, NULL);
	ipc_read_stats(ipc, &stats);
	ck_assert_uint_eq(stats.violations, 1);
	ck_assert_int_eq(pthread_create(&thread, NULL, run, loop), 0);
}

START_TEST(memory_is_sealed)
{
	struct rogue rogue;
	int request, response;
	char name[64];

	rogue_begin(&rogue);
	request = rogue.fds[LORAD_FD_REQUEST];
	response = rogue.fds[LORAD_FD_RESPONSE];
	ck_assert_int_eq(ftruncate(request, 0), -1);
	ck_assert_int_eq(errno, EPERM);
	ck_assert_int_eq(ftruncate(request, 1 << 30), -1);
	ck_assert_int_eq(ftruncate(response, 0), -1);
	ck_assert_int_eq(fcntl(request, F_ADD_SEALS, F_SEAL_WRITE), -1);
	ck_assert_int_eq(write(response, "x", 1), -1);
	ck_assert_int_eq(errno, EPERM);
	ck_assert_ptr_eq(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, response, 0), MAP_FAILED);
	ck_assert_int_eq(mprotect((void *)(uintptr_t)rogue.response, 4096, PROT_READ | PROT_WRITE), -1);
	ck_assert_int_eq(fallocate(response, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), -1);
	snprintf(name, sizeof(name), "/proc/self/fd/%d", response);
	int again = open(name, O_RDWR | O_CLOEXEC);
	if (again >= 0) {
		ck_assert_ptr_eq(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, again, 0), MAP_FAILED);
		close(again);
	}
	/* punching the own memory is allowed, and harms its owner alone: the words are 0 then */
	ck_assert_int_eq(fallocate(request, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), 0);
	ring(&rogue);
	expect_violation(&rogue);
}
END_TEST

START_TEST(tail_out_of_range)
{
	struct rogue rogue;

	rogue_begin(&rogue);
	word_publish(&rogue.request->tail, LORAD_RING_START + rogue.welcome.request_slots + 1);
	ring(&rogue);
	expect_violation(&rogue);
}
END_TEST

START_TEST(tail_goes_back)
{
	struct rogue rogue;

	rogue_begin(&rogue);
	word_publish(&rogue.request->tail, LORAD_RING_START - 1);
	ring(&rogue);
	expect_violation(&rogue);
}
END_TEST

static const struct {
	uint32_t bytes, slots;
} frames[] = {
	{ 0, 1 }, { 15, 1 }, { 65, 1 }, { 129, 2 }, { UINT32_MAX, 1 }, { UINT32_MAX - 63, 4096 }, { 0x80000000, 4096 },
	{ 4096 * 64 + 1, 4096 },
};

START_TEST(senseless_frame)
{
	struct rogue rogue;

	rogue_begin(&rogue);
	send_frame(&rogue, frames[_i].bytes, LORAD_GENERATE, frames[_i].slots);
	expect_violation(&rogue);
}
END_TEST

START_TEST(head_of_responses_out_of_range)
{
	uint32_t at = LORAD_RING_START;
	struct rogue rogue;

	rogue_begin(&rogue);
	word_publish(&rogue.request->response_head, LORAD_RING_START + 5000);
	for (int i = 0; i < 4096; ++i) /* the daemon looks at the head only when the ring seems full */
		send_frame(&rogue, sizeof(struct lorad_message), LORAD_PING, 1);
	for (int i = 0; i < 1000; ++i)
		(void)expect_answer(&rogue, &at);
	for (int i = 0; i < 100; ++i) {
		send_frame(&rogue, sizeof(struct lorad_message), LORAD_PING, 1);
		usleep(1000);
	}
	expect_violation(&rogue);
}
END_TEST

START_TEST(malformed_requests_are_answered)
{
	uint32_t at = LORAD_RING_START;
	struct rogue rogue;

	rogue_begin(&rogue);
	send_frame(&rogue, sizeof(struct lorad_message), 77, 1); /* an unknown type */
	ck_assert_uint_eq(expect_answer(&rogue, &at), LORAD_ERROR);
	send_frame(&rogue, sizeof(struct lorad_message), LORAD_GENERATE, 1); /* no prompt */
	ck_assert_uint_eq(expect_answer(&rogue, &at), LORAD_ERROR);
	memset(rogue.slots, 0xff, LORAD_SLOTS_OFFSET);
	memset(rogue.slots + (size_t)(rogue.at & (rogue.welcome.request_slots - 1)) * 64, 0xff, 64);
	send_frame(&rogue, 40, LORAD_PING, 1); /* an item that is longer than its message */
	ck_assert_uint_eq(expect_answer(&rogue, &at), LORAD_ERROR);
	send_frame(&rogue, sizeof(struct lorad_message), LORAD_CANCEL, 1); /* of nothing */
	send_frame(&rogue, sizeof(struct lorad_message), LORAD_PING, 1);
	ck_assert_uint_eq(expect_answer(&rogue, &at), LORAD_DONE);
	ck_assert_uint_eq(atomic_load(&submitted), 0);
	rogue_end(&rogue);
}
END_TEST

START_TEST(data_after_hello)
{
	struct rogue rogue;

	rogue_begin(&rogue);
	ck_assert_int_eq(wire_send(rogue.socket, "again", 5, NULL, 0, 0), 0);
	expect_violation(&rogue);
}
END_TEST

static void expect_refusal(const void *hello, size_t bytes, int status, const char *words)
{
	struct lorad_welcome welcome;
	int fd = connect_raw(), fds[LORAD_N_FDS];
	size_t n = 9;

	ck_assert_int_eq(wire_send(fd, hello, bytes, NULL, 0, 0), 0);
	ck_assert_int_eq(wire_recv(fd, &welcome, sizeof(welcome), fds, LORAD_N_FDS, &n, 0), sizeof(welcome));
	ck_assert_uint_eq(n, 0);
	ck_assert_int_eq(welcome.status, status);
	ck_assert_msg(strstr(welcome.text, words) != NULL, "%s", welcome.text);
	ck_assert_int_eq(wire_recv(fd, &welcome, sizeof(welcome), NULL, 0, NULL, 0), 0);
	close(fd);
}

START_TEST(version_skew)
{
	struct lorad_hello later = { LORAD_MAGIC, LORAD_VERSION + 1, LORAD_VERSION + 3, 0 };
	struct lorad_hello wide = { LORAD_MAGIC, 0, LORAD_VERSION + 3, 0 };
	struct lorad_hello other = { 0x12345678, LORAD_VERSION, LORAD_VERSION, 0 };
	struct {
		struct lorad_hello hello;
		uint8_t more[64];
	} longer = { { LORAD_MAGIC, LORAD_VERSION, LORAD_VERSION, 0 }, { 0 } };
	struct lorad_welcome welcome;
	int fd;

	expect_refusal(&later, sizeof(later), EPROTONOSUPPORT, "speaks version 1 of the protocol, this client 2 to 4");
	expect_refusal(&other, sizeof(other), EPROTO, "hello");
	expect_refusal(&later, 5, EPROTO, "hello");
	fd = connect_raw();
	ck_assert_int_eq(wire_send(fd, &wide, sizeof(wide), NULL, 0, 0), 0);
	ck_assert_int_eq(wire_recv(fd, &welcome, sizeof(welcome), NULL, 0, NULL, 0), sizeof(welcome));
	ck_assert_int_eq(welcome.status, 0);
	ck_assert_uint_eq(welcome.version, LORAD_VERSION);
	close(fd);
	fd = connect_raw();
	ck_assert_int_eq(wire_send(fd, &longer, sizeof(longer), NULL, 0, 0), 0);
	ck_assert_int_eq(wire_recv(fd, &welcome, sizeof(welcome), NULL, 0, NULL, 0), sizeof(welcome));
	ck_assert_int_eq(welcome.status, 0);
	close(fd);
}
END_TEST

/* The library's side of a skew: a daemon of another version, played by this test. */
START_TEST(library_meets_another_version)
{
	static const struct lorad_welcome answers[] = {
		{ .magic = LORAD_MAGIC, .version = 9, .status = EPROTONOSUPPORT, .text = "the daemon speaks version 9" },
		{ .magic = LORAD_MAGIC, .version = 9 },
		{ .magic = 77, .version = LORAD_VERSION },
	};
	static const int errors[] = { -EPROTONOSUPPORT, -EPROTONOSUPPORT, -EPROTO };
	char other[110], error[256];
	struct diag diag;
	int fd;

	snprintf(other, sizeof(other), "%s/o", folder);
	ck_assert_int_eq(sock_listen(&fd, SOCK_SEQPACKET, other, 0600, &diag), SOCK_OK);
	for (size_t i = 0; i < 3; ++i) {
		lc_connection *connection;
		pid_t pid = fork();

		if (pid == 0) {
			struct pollfd pfd = { .fd = fd, .events = POLLIN };
			struct lorad_hello hello;
			struct ucred peer;
			int client;

			(void)poll(&pfd, 1, 5000);
			if (sock_accept(fd, &client, &peer) != SOCK_OK)
				_exit(1);
			pfd.fd = client;
			(void)poll(&pfd, 1, 5000);
			if (wire_recv(client, &hello, sizeof(hello), NULL, 0, NULL, 0) == sizeof(hello))
				(void)wire_send(client, &answers[i], sizeof(answers[i]), NULL, 0, 0);
			_exit(0);
		}
		ck_assert_int_eq(lc_connect(&connection, other, on_event, error, sizeof(error)), errors[i]);
		ck_assert_ptr_null(connection);
		ck_assert_ptr_nonnull(strstr(error, i < 2 ? "version" : "not lorad"));
	}
	close(fd);
	unlink(other);
}
END_TEST

START_TEST(doorbell_storm)
{
	struct rogue rogue;
	uint64_t value = UINT64_MAX - 1 - 100000, began = clock_ns();

	rogue_begin(&rogue);
	/* saturate it and make it blocking: the daemon never writes or reads it */
	ck_assert_int_eq(fcntl(rogue.fds[LORAD_FD_DOORBELL], F_SETFL, 0), 0);
	ck_assert_int_eq(write(rogue.fds[LORAD_FD_DOORBELL], &value, sizeof(value)), sizeof(value));
	for (int i = 0; i < 50000; ++i)
		ring(&rogue);
	check_honest();
	ck_assert_uint_lt(clock_ns() - began, 20 * NS_PER_S);
	rogue_end(&rogue);
}
END_TEST

START_TEST(waiting_word_of_noise)
{
	uint32_t at = LORAD_RING_START;
	struct rogue rogue;

	rogue_begin(&rogue);
	for (uint32_t i = 0; i < 2000; ++i) { /* among others "poll" again and again, without reading the bytes */
		word_publish(&rogue.request->waiting, i * 2654435761u);
		send_frame(&rogue, sizeof(struct lorad_message), LORAD_PING, 1);
		ck_assert_uint_eq(expect_answer(&rogue, &at), LORAD_DONE);
		word_publish(&rogue.request->response_head, at);
	}
	rogue_end(&rogue);
}
END_TEST

/* Requests without ever reading an answer: the daemon stops taking them, and keeps a bounded number of answers. */
START_TEST(never_reads)
{
	struct rogue rogue;
	uint32_t head;

	rogue_begin(&rogue);
	for (int stuck = 0; stuck < 200;) { /* until the ring has been full for a while */
		head = word_observe(&rogue.response->request_head);
		if (rogue.at - head < rogue.welcome.request_slots) {
			send_frame(&rogue, sizeof(struct lorad_message), 77, 1);
			stuck = 0;
		} else {
			usleep(1000);
			++stuck;
		}
	}
	head = word_observe(&rogue.response->request_head);
	ck_assert_uint_lt(head - LORAD_RING_START, 4096 + 64); /* one answer each, and the ring has 4,096 slots */
	rogue_end(&rogue);
}
END_TEST

START_TEST(silent_clients_are_dropped)
{
	int fds[10];

	for (int i = 0; i < 10; ++i)
		fds[i] = connect_raw();
	check_honest();
	for (int i = 0; i < 10; ++i) {
		struct pollfd pfd = { .fd = fds[i], .events = POLLIN };

		ck_assert_int_eq(poll(&pfd, 1, 9000), 1);
		close(fds[i]);
	}
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("ipc-hostile");
	TCase *tcase = tcase_create("hostile");

	tcase_add_checked_fixture(tcase, start_daemon, stop_daemon);
	tcase_add_test(tcase, memory_is_sealed);
	tcase_add_test(tcase, tail_out_of_range);
	tcase_add_test(tcase, tail_goes_back);
	tcase_add_loop_test(tcase, senseless_frame, 0, (int)(sizeof(frames) / sizeof(*frames)));
	tcase_add_test(tcase, head_of_responses_out_of_range);
	tcase_add_test(tcase, malformed_requests_are_answered);
	tcase_add_test(tcase, data_after_hello);
	tcase_add_test(tcase, version_skew);
	tcase_add_test(tcase, library_meets_another_version);
	tcase_add_test(tcase, doorbell_storm);
	tcase_add_test(tcase, waiting_word_of_noise);
	tcase_add_test(tcase, never_reads);
	tcase_add_test(tcase, silent_clients_are_dropped);
	tcase_set_timeout(tcase, 60);
	suite_add_tcase(suite, tcase);
	return run_suite(suite);
}
