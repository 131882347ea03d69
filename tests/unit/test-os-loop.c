/* SPDX-License-Identifier: MIT */
/* The event loop and local sockets: sources that vanish in their own batch, timers, posts, the idle hook, stale sockets. */
#include "daemon/os/loop.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "daemon/base/list.h"
#include "daemon/os/sock.h"
#include "libclient/wire.h"
#include "tests/lib/run-suite.h"

static struct loop *loop;

static void setup(void)
{
	ck_assert_int_eq(loop_new(&loop), 0);
}

static void teardown(void)
{
	loop = loop_free(loop);
}

struct twin {
	struct loop_source source;
	struct twin *other;
	int calls;
};

static void remove_twin(struct loop_source *source, uint32_t events)
{
	struct twin *twin = container_of(source, struct twin, source);

	ck_assert_uint_eq(events & EPOLLIN, EPOLLIN);
	++twin->calls;
	loop_remove(&twin->other->source);
	loop_remove(source);
	loop_remove(source); /* twice is no harm */
	loop_stop(loop);
}

START_TEST(removed_in_its_batch)
{
	struct twin a = { .other = NULL }, b = { .other = &a };
	int fds[2] = { eventfd(1, EFD_CLOEXEC), eventfd(1, EFD_CLOEXEC) };

	a.other = &b;
	ck_assert_int_eq(loop_add(loop, &a.source, fds[0], EPOLLIN, remove_twin), 0);
	ck_assert_int_eq(loop_add(loop, &b.source, fds[1], EPOLLIN, remove_twin), 0);
	ck_assert_int_eq(loop_run(loop), 0);
	ck_assert_int_eq(a.calls + b.calls, 1);
	close(fds[0]);
	close(fds[1]);
}
END_TEST

START_TEST(never_added_is_left_alone)
{
	struct loop_source source = LOOP_SOURCE_NULL;
	struct loop_timer timer = LOOP_TIMER_NULL;

	loop_remove(&source);
	loop_timer_deinit(&timer);
	ck_assert_int_eq(source.fd, -1);
}
END_TEST

struct ticker {
	struct loop_timer timer;
	int ticks;
};

static void tick(struct loop_timer *timer)
{
	struct ticker *ticker = container_of(timer, struct ticker, timer);

	if (++ticker->ticks < 3)
		return;
	loop_timer_deinit(timer); /* inside its own function */
	loop_stop(loop);
}

START_TEST(timer_repeats_and_ends)
{
	struct ticker ticker = { .ticks = 0 };
	uint64_t began = clock_ns();

	ck_assert_int_eq(loop_timer_init(loop, &ticker.timer, tick), 0);
	ck_assert_int_eq(loop_timer_set(&ticker.timer, 0, 5 * NS_PER_MS), 0);
	ck_assert_int_eq(loop_run(loop), 0);
	ck_assert_int_eq(ticker.ticks, 3);
	ck_assert_uint_ge(clock_ns() - began, 15 * NS_PER_MS);
	ck_assert_int_eq(ticker.timer.fd, -1);
}
END_TEST

static void stop_timer(struct loop_timer *timer)
{
	(void)timer;
	loop_stop(loop);
}

START_TEST(timer_off_does_not_fire)
{
	struct ticker never = { .ticks = 0 };
	struct loop_timer end;

	ck_assert_int_eq(loop_timer_init(loop, &never.timer, tick), 0);
	ck_assert_int_eq(loop_timer_init(loop, &end, stop_timer), 0);
	ck_assert_int_eq(loop_timer_set(&never.timer, 5 * NS_PER_MS, 0), 0);
	ck_assert_int_eq(loop_timer_set(&never.timer, 0, 0), 0);
	ck_assert_int_eq(loop_timer_set(&end, 20 * NS_PER_MS, 0), 0);
	ck_assert_int_eq(loop_run(loop), 0);
	ck_assert_int_eq(never.ticks, 0);
	loop_timer_deinit(&never.timer);
	loop_timer_deinit(&end);
}
END_TEST

#define POSTS 20000

struct posted {
	uint32_t next, total; /* next: what each of two threads has to come with */
};

static void count_post(void *userdata)
{
	struct posted *posted = userdata;

	if (++posted->total == 2 * POSTS)
		loop_stop(loop);
}

static void *post_many(void *userdata)
{
	for (int i = 0; i < POSTS; ++i)
		ck_assert_int_eq(loop_post(loop, count_post, userdata), 0);
	return NULL;
}

START_TEST(posts_from_threads_all_arrive)
{
	struct posted posted = { 0, 0 };
	pthread_t threads[2];

	for (int i = 0; i < 2; ++i)
		ck_assert_int_eq(pthread_create(&threads[i], NULL, post_many, &posted), 0);
	ck_assert_int_eq(loop_run(loop), 0);
	for (int i = 0; i < 2; ++i)
		pthread_join(threads[i], NULL);
	ck_assert_uint_eq(posted.total, 2 * POSTS);
}
END_TEST

static char order[8];

static void note(void *userdata)
{
	size_t n = strlen(order);

	order[n] = *(const char *)userdata;
	order[n + 1] = 0;
	if (order[n] == 'c')
		loop_stop(loop);
}

START_TEST(posts_keep_their_order)
{
	static char letters[] = "abc";

	for (int i = 0; i < 3; ++i)
		ck_assert_int_eq(loop_post(loop, note, &letters[i]), 0);
	ck_assert_int_eq(loop_run(loop), 0);
	ck_assert_str_eq(order, "abc");
}
END_TEST

START_TEST(dropped_posts_do_not_leak)
{
	static char letter[] = "x";

	ck_assert_int_eq(loop_post(loop, note, letter), 0);
}
END_TEST

static uint64_t idle_turns(void *userdata)
{
	if (++*(int *)userdata == 100)
		loop_stop(loop);
	return 0;
}

START_TEST(idle_hook_keeps_awake)
{
	int turns = 0;

	loop_set_idle(loop, idle_turns, &turns);
	ck_assert_int_eq(loop_run(loop), 0);
	ck_assert_int_eq(turns, 100);
}
END_TEST

START_TEST(stop_before_run_counts)
{
	loop_stop(loop);
	ck_assert_int_eq(loop_run(loop), 0);
}
END_TEST

/* --- sockets ------------------------------------------------------------------------------------------------------ */

static char folder[64], path[100];

static void make_folder(void)
{
	snprintf(folder, sizeof(folder), "/tmp/test-os-loop.XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(folder));
	snprintf(path, sizeof(path), "%s/a/lorad.sock", folder);
}

static void remove_folder(void)
{
	char name[160];

	unlink(path);
	snprintf(name, sizeof(name), "%s/a", folder);
	rmdir(name);
	rmdir(folder);
}

static int connect_to(const char *where)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	memcpy(address.sun_path, where, strlen(where) + 1);
	ck_assert_int_eq(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	return fd;
}

START_TEST(socket_stale_and_live)
{
	struct diag diag;
	struct stat found;
	int first, second = -1;
	mode_t old = umask(077);

	ck_assert_int_eq(sock_listen(&first, SOCK_SEQPACKET, path, 0660, &diag), SOCK_OK);
	umask(old);
	ck_assert_int_eq(stat(path, &found), 0);
	ck_assert_uint_eq(found.st_mode & 0777, 0660);
	ck_assert_int_eq(sock_listen(&second, SOCK_SEQPACKET, path, 0660, &diag), SOCK_E_REFUSED);
	ck_assert_ptr_nonnull(strstr(diag.text, path));
	ck_assert_int_eq(second, -1);
	close(first); /* as a daemon that died: the file is still there */
	ck_assert_int_eq(stat(path, &found), 0);
	ck_assert_int_eq(sock_listen(&second, SOCK_SEQPACKET, path, 0660, &diag), SOCK_OK);
	close(second);
}
END_TEST

START_TEST(socket_path_taken_by_a_file)
{
	struct diag diag;
	int fd;

	snprintf(path, sizeof(path), "%s/file", folder);
	fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	ck_assert_int_ge(fd, 0);
	close(fd);
	ck_assert_int_eq(sock_listen(&fd, SOCK_SEQPACKET, path, 0660, &diag), SOCK_E_REFUSED);
	ck_assert_int_eq(access(path, F_OK), 0);
}
END_TEST

START_TEST(socket_folder_far_away)
{
	char far[120];
	struct diag diag;
	int fd;

	snprintf(far, sizeof(far), "%s/x/y/lorad.sock", folder); /* more than one folder is missing */
	ck_assert_int_eq(sock_listen(&fd, SOCK_SEQPACKET, far, 0660, &diag), SOCK_E_REFUSED);
}
END_TEST

START_TEST(socket_path_too_long)
{
	char long_path[200];
	struct diag diag;
	int fd;

	memset(long_path, 'x', sizeof(long_path) - 1);
	long_path[sizeof(long_path) - 1] = 0;
	ck_assert_int_eq(sock_listen(&fd, SOCK_SEQPACKET, long_path, 0660, &diag), SOCK_E_REFUSED);
	ck_assert_int_eq(sock_listen(&fd, SOCK_SEQPACKET, "", 0660, &diag), SOCK_E_REFUSED);
}
END_TEST

START_TEST(accept_tells_who)
{
	struct ucred peer;
	struct diag diag;
	int listener, client, server;

	ck_assert_int_eq(sock_listen(&listener, SOCK_SEQPACKET, path, 0600, &diag), SOCK_OK);
	ck_assert_int_eq(sock_accept(listener, &server, &peer), SOCK_E_AGAIN);
	client = connect_to(path);
	ck_assert_int_eq(sock_accept(listener, &server, &peer), SOCK_OK);
	ck_assert_uint_eq(peer.uid, getuid());
	ck_assert_int_eq(peer.pid, getpid());
	close(client);
	close(server);
	close(listener);
}
END_TEST

/* --- records with descriptors ------------------------------------------------------------------------------------- */

START_TEST(wire_passes_descriptors)
{
	int pair[2], fds[3], got[3] = { -1, -1, -1 };
	char record[16];
	size_t n = 0;

	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	for (int i = 0; i < 3; ++i)
		fds[i] = eventfd((unsigned)i + 1, EFD_CLOEXEC);
	ck_assert_int_eq(wire_send(pair[0], "hello", 5, fds, 3, 0), 0);
	ck_assert_int_eq(wire_recv(pair[1], record, sizeof(record), got, 3, &n, 0), 5);
	ck_assert_uint_eq(n, 3);
	for (int i = 0; i < 3; ++i) {
		uint64_t value;

		ck_assert_int_eq(read(got[i], &value, sizeof(value)), 8);
		ck_assert_uint_eq(value, (uint64_t)i + 1);
		ck_assert_int_eq(fcntl(got[i], F_GETFD), FD_CLOEXEC);
		close(got[i]);
	}
	/* more than are wanted: refused, and none stays open */
	int before = dup(0);
	close(before);
	ck_assert_int_eq(wire_send(pair[0], "hello", 5, fds, 3, 0), 0);
	ck_assert_int_eq(wire_recv(pair[1], record, sizeof(record), got, 1, &n, 0), -EMSGSIZE);
	/* none wanted: dropped by the kernel */
	ck_assert_int_eq(wire_send(pair[0], "hello", 5, fds, 3, 0), 0);
	ck_assert_int_eq(wire_recv(pair[1], record, sizeof(record), NULL, 0, NULL, 0), 5);
	/* a record that is too long */
	ck_assert_int_eq(wire_send(pair[0], "0123456789abcdefg", 17, fds, 1, 0), 0);
	ck_assert_int_eq(wire_recv(pair[1], record, sizeof(record), got, 3, &n, 0), -EMSGSIZE);
	int after = dup(0);
	ck_assert_int_eq(after, before);
	close(after);
	for (int i = 0; i < 3; ++i)
		close(fds[i]);
	close(pair[0]);
	ck_assert_int_eq(wire_recv(pair[1], record, sizeof(record), NULL, 0, NULL, 0), 0);
	ck_assert_int_eq(wire_send(pair[1], "x", 1, NULL, 0, 0), -EPIPE);
	close(pair[1]);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("os-loop");
	TCase *loops = tcase_create("loop"), *socks = tcase_create("sock"), *wires = tcase_create("wire");

	tcase_add_checked_fixture(loops, setup, teardown);
	tcase_add_test(loops, removed_in_its_batch);
	tcase_add_test(loops, never_added_is_left_alone);
	tcase_add_test(loops, timer_repeats_and_ends);
	tcase_add_test(loops, timer_off_does_not_fire);
	tcase_add_test(loops, posts_from_threads_all_arrive);
	tcase_add_test(loops, posts_keep_their_order);
	tcase_add_test(loops, dropped_posts_do_not_leak);
	tcase_add_test(loops, idle_hook_keeps_awake);
	tcase_add_test(loops, stop_before_run_counts);
	tcase_set_timeout(loops, 30);
	suite_add_tcase(suite, loops);
	tcase_add_checked_fixture(socks, make_folder, remove_folder);
	tcase_add_test(socks, socket_stale_and_live);
	tcase_add_test(socks, socket_path_taken_by_a_file);
	tcase_add_test(socks, socket_folder_far_away);
	tcase_add_test(socks, socket_path_too_long);
	tcase_add_test(socks, accept_tells_who);
	suite_add_tcase(suite, socks);
	tcase_add_test(wires, wire_passes_descriptors);
	suite_add_tcase(suite, wires);
	return run_suite(suite);
}
