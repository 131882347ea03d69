/* SPDX-License-Identifier: MIT */
/*
 * Description: one connection of the control socket over a socket pair, the mailbox and the worker, each with a real loop.
 *
 * The owner here answers a message with the same text, or keeps the call open, so that framing, order, descriptors, slow
 * peers and hanging up are seen without any verb.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/control-peer.h"
#include "daemon/mailbox.h"
#include "daemon/worker.h"
#include "libclient/wire.h"
#include "tests/lib/run-suite.h"

static struct loop *loop;
static struct control_peer *peer;
static int other;                 /* the client's end */
static char got[64][64];
static unsigned n_got, n_hung_up, fds_got;
static bool keep;                 /* keep calls open */
static int open_call;             /* stands for a call */

static void on_message(struct control_peer *p, const char *text, size_t bytes)
{
	ck_assert_uint_eq(strlen(text), bytes);
	(void)snprintf(got[n_got++], 64, "%s", text);
	fds_got += (unsigned)p->n_fds;
	while (p->n_fds)
		close(p->fds[--p->n_fds]);
	if (keep)
		p->call = (struct control_call *)(void *)&open_call;
	else
		ck_assert_int_eq(control_peer_send(p, strdup(text), NULL, 0), 0);
}

static void on_hung_up(struct control_peer *p)
{
	n_hung_up++;
	peer = control_peer_free(p);
	loop_stop(loop);
}

static const struct control_peer_ops ops = { .message = on_message, .hung_up = on_hung_up };

static void setup(void)
{
	int fds[2];

	n_got = n_hung_up = fds_got = 0;
	keep = false;
	ck_assert_int_eq(loop_new(&loop), 0);
	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
	other = fds[1];
	ck_assert_int_eq(control_peer_new(&peer, loop, fds[0], 1000, &ops, NULL), 0);
}

static void teardown(void)
{
	control_peer_free(peer);
	close(other);
	loop_free(loop);
}

static void stop(struct loop_timer *timer)
{
	(void)timer;
	loop_stop(loop);
}

static void run_loop(unsigned ms)
{
	struct loop_timer timer = LOOP_TIMER_NULL;

	ck_assert_int_eq(loop_timer_init(loop, &timer, stop), 0);
	ck_assert_int_eq(loop_timer_set(&timer, ms * UINT64_C(1000000), 0), 0);
	ck_assert_int_eq(loop_run(loop), 0);
	loop_timer_deinit(&timer);
}

static void say(const char *bytes, size_t n)
{
	ck_assert_int_eq(write(other, bytes, n), (ssize_t)n);
}

START_TEST(messages_in_any_pieces)
{
	char answer[64];

	say("one\0two\0th", 10);
	run_loop(30);
	say("ree\0", 4);
	run_loop(30);
	ck_assert_uint_eq(n_got, 3);
	ck_assert_str_eq(got[1], "two");
	ck_assert_str_eq(got[2], "three");
	ck_assert_int_eq(read(other, answer, sizeof(answer)), 14);
	ck_assert_int_eq(memcmp(answer, "one\0two\0three\0", 14), 0);
}
END_TEST

START_TEST(one_call_at_a_time)
{
	keep = true;
	say("one\0two\0", 8);
	run_loop(30);
	ck_assert_uint_eq(n_got, 1);
	keep = false;
	peer->call = NULL;
	control_peer_go_on(peer);
	ck_assert_uint_eq(n_got, 2);
}
END_TEST

START_TEST(descriptors_come_with_their_message)
{
	int fds[2] = { dup(0), dup(0) };

	ck_assert_int_eq(wire_send(other, "files", 6, fds, 2, 0), 0);
	run_loop(30);
	ck_assert_uint_eq(fds_got, 2);
	close(fds[0]);
	close(fds[1]);
}
END_TEST

START_TEST(too_many_descriptors_end_it)
{
	int fds[CONTROL_FDS_MAX + 1];

	for (int i = 0; i <= CONTROL_FDS_MAX; ++i)
		fds[i] = dup(0);
	ck_assert_int_eq(wire_send(other, "files", 6, fds, CONTROL_FDS_MAX, 0), 0);
	ck_assert_int_eq(wire_send(other, "more", 4, fds, CONTROL_FDS_MAX + 1, 0), 0);
	run_loop(100);
	ck_assert_uint_eq(n_hung_up, 1);
	for (int i = 0; i <= CONTROL_FDS_MAX; ++i)
		close(fds[i]);
}
END_TEST

START_TEST(endless_message_ends_it)
{
	static char text[65536];

	memset(text, 'x', sizeof(text));
	for (int i = 0; i < 200 && !n_hung_up; ++i) {
		(void)!write(other, text, sizeof(text));
		run_loop(5);
	}
	ck_assert_uint_eq(n_hung_up, 1);
	ck_assert_uint_eq(n_got, 0);
}
END_TEST

/* A peer that does not read has its answer waiting here, and gets it whole, with its descriptor, when it does. */
START_TEST(slow_peer_gets_all)
{
	const size_t bytes = 1 << 20;
	char *text = malloc(bytes + 1), *read_back = malloc(bytes + 1);
	int fd = dup(0), fds[4];
	size_t n = 0, n_fds;

	memset(text, 'y', bytes);
	text[bytes] = '\0';
	ck_assert_int_eq(control_peer_send(peer, text, &fd, 1), 0);
	ck_assert(control_peer_is_slow(peer));
	run_loop(10);
	n = (size_t)wire_recv(other, read_back, 1000, fds, 4, &n_fds, 0);
	ck_assert_uint_eq(n, 1000);
	ck_assert_uint_eq(n_fds, 1);
	close(fds[0]);
	for (int i = 0; i < 1000 && n < bytes + 1; ++i) {
		ssize_t r = read(other, read_back + n, bytes + 1 - n);

		n += r > 0 ? (size_t)r : 0;
		run_loop(1);
	}
	ck_assert_uint_eq(n, bytes + 1);
	ck_assert_int_eq(read_back[bytes], 0);
	ck_assert(!control_peer_is_slow(peer));
	free(read_back);
}
END_TEST

START_TEST(hanging_up_is_seen_during_a_call)
{
	keep = true;
	say("one", 4);
	run_loop(20);
	ck_assert_uint_eq(n_got, 1);
	shutdown(other, SHUT_RDWR);
	run_loop(100);
	ck_assert_uint_eq(n_hung_up, 1);
}
END_TEST

/* ---- mailbox and worker ---- */

struct counted {
	struct worker_job job;
	unsigned ran, done;
};

static void run_counted(struct worker_job *job)
{
	container_of(job, struct counted, job)->ran++;
}

static void done_counted(struct worker_job *job)
{
	container_of(job, struct counted, job)->done++;
}

START_TEST(jobs_run_there_and_end_here)
{
	struct counted counted[50] = { 0 };
	struct mailbox mailbox;
	struct worker *worker;

	ck_assert_int_eq(mailbox_init(&mailbox, loop), 0);
	ck_assert_int_eq(worker_new(&worker, &mailbox, WORKER_QUICK), 0);
	for (int i = 0; i < 50; ++i) {
		counted[i].job.run = run_counted;
		counted[i].job.done = done_counted;
		worker_submit(worker, &counted[i].job);
	}
	run_loop(50);
	worker_free(worker);
	mailbox_deliver(&mailbox);
	for (int i = 0; i < 50; ++i)
		ck_assert_uint_eq(counted[i].done, 1);
	ck_assert_uint_eq(counted[0].ran, 1);
	run_loop(5);
	mailbox_deinit(&mailbox);
}
END_TEST

/* At the end of the process nothing runs any more, but everything is told so. */
START_TEST(freeing_the_worker_ends_every_job)
{
	struct counted counted[100] = { 0 };
	unsigned done = 0, told = 0;
	struct mailbox mailbox;
	struct worker *worker;

	ck_assert_int_eq(mailbox_init(&mailbox, loop), 0);
	ck_assert_int_eq(worker_new(&worker, &mailbox, WORKER_SLOW), 0);
	for (int i = 0; i < 100; ++i) {
		counted[i].job.run = run_counted;
		counted[i].job.done = done_counted;
		worker_submit(worker, &counted[i].job);
	}
	worker_free(worker);
	mailbox_deliver(&mailbox);
	for (int i = 0; i < 100; ++i) {
		done += counted[i].done;
		told += counted[i].ran || counted[i].job.cancelled;
	}
	ck_assert_uint_eq(done, 100);
	ck_assert_uint_eq(told, 100);
	run_loop(5);
	mailbox_deinit(&mailbox);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("daemon-control");
	TCase *tc = tcase_create("control");

	tcase_set_timeout(tc, 30);
	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, messages_in_any_pieces);
	tcase_add_test(tc, one_call_at_a_time);
	tcase_add_test(tc, descriptors_come_with_their_message);
	tcase_add_test(tc, too_many_descriptors_end_it);
	tcase_add_test(tc, endless_message_ends_it);
	tcase_add_test(tc, slow_peer_gets_all);
	tcase_add_test(tc, hanging_up_is_seen_during_a_call);
	tcase_add_test(tc, jobs_run_there_and_end_here);
	tcase_add_test(tc, freeing_the_worker_ends_every_job);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
