/* SPDX-License-Identifier: MIT */
/*
 * Description: the round trip of a ping through the real ipc and libloraclient, between two processes, beside a bare futex
 * ping-pong and a SEQPACKET socket in the same run; and the system calls of each side while both are awake.
 *
 *	ring [ROUNDS [REPEATS]]
 *
 * "Awake": both sides spin for up to 50 us, as they do where there is more than one CPU, each on a CPU of its own.
 * "Asleep": both were started on one CPU, where they do not spin, and moved apart afterwards; each round trip is then two
 * wake-ups. Left to the kernel, the two may share a CPU, where spinning is in vain and soon given up. The timing window
 * of a round trip holds the encoding, both rings, the check of the request, and the event function.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "daemon/ipc/ipc.h"
#include "daemon/os/loop.h"
#include "daemon/os/sock.h"
#include "libclient/loraclient.h"
#include "libclient/ring.h"

#define SPIN_NS 50000
#define MARK (-77) /* getpgid(MARK): a traced child's counting begins and ends here */

static char path[80];
static cpu_set_t all_cpus;

/* The CPU of one of the two sides: the first for 0, the last for 1. */
static int cpu_of(int side)
{
	int found = 0;

	for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
		if (CPU_ISSET(cpu, &all_cpus)) {
			found = cpu;
			if (side == 0)
				break;
		}
	return found;
}

static void pin(int side)
{
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(cpu_of(side), &cpus);
	(void)sched_setaffinity(0, sizeof(cpus), &cpus);
}

enum how { AWAKE, ASLEEP, FREE }; /* FREE: as AWAKE, but the kernel chooses the CPUs */

/* While the library and ipc count their CPUs to decide whether to spin. */
static void count_as(enum how how)
{
	if (how == ASLEEP)
		pin(0);
	else
		(void)sched_setaffinity(0, sizeof(all_cpus), &all_cpus);
}

static void settle(enum how how, int side)
{
	if (how == FREE)
		(void)sched_setaffinity(0, sizeof(all_cpus), &all_cpus);
	else
		pin(side);
}

static void fail(const char *what)
{
	fprintf(stderr, "bench-ring: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* --- the daemon's side -------------------------------------------------------------------------------------------- */

static int refuse(void *userdata, struct ipc_request *request, struct diag *diag)
{
	(void)userdata;
	(void)request;
	return diag_set(diag, EINVAL, "only pings here");
}

static void ignore_id(void *userdata, struct ipc_session *session, uint64_t id)
{
	(void)userdata;
	(void)session;
	(void)id;
}

static void stop_loop(void *userdata, struct ipc_session *session)
{
	(void)session;
	loop_stop(userdata);
}

static const struct ipc_ops ops = { .submit = refuse, .cancel = ignore_id, .list = ignore_id, .closed = stop_loop };

/* Serves one client to its end. */
static void serve(int listen_fd, enum how how)
{
	struct ipc_options options = { .listen_fd = listen_fd, .context = 2048, .ops = &ops };
	struct loop *loop;
	struct ipc *ipc;

	if (loop_new(&loop) < 0)
		fail("loop");
	options.loop = loop;
	options.userdata = loop;
	count_as(how);
	if (ipc_new(&ipc, &options) < 0)
		fail("ipc");
	settle(how, 1);
	(void)loop_run(loop);
	ipc = ipc_free(ipc);
	loop = loop_free(loop);
}

/* --- figures ------------------------------------------------------------------------------------------------------ */

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

static void report(const char *what, uint64_t *ns, size_t n)
{
	qsort(ns, n, sizeof(*ns), compare);
	printf("%-36s p50 %8.2f us   p99 %8.2f us   p99.9 %9.2f us\n", what, (double)ns[n / 2] / 1e3,
	       (double)ns[n * 99 / 100] / 1e3, (double)ns[n * 999 / 1000] / 1e3);
}

/* --- ipc ---------------------------------------------------------------------------------------------------------- */

static void on_event(lc_connection *connection, const struct lc_event *event)
{
	(void)connection;
	*(bool *)event->userdata = event->type == LC_EVENT_DONE;
}

static void ping(lc_connection *connection)
{
	bool done = false;

	if (lc_ping(connection, &done, NULL) < 0)
		fail("ping");
	while (!done)
		if (lc_wait(connection, -1) < 0)
			fail("wait");
}

static lc_connection *connect_client(enum how how)
{
	lc_connection *connection;
	char error[200];

	count_as(how);
	if (lc_connect(&connection, path, on_event, error, sizeof(error)) < 0) {
		fprintf(stderr, "bench-ring: %s\n", error);
		exit(1);
	}
	settle(how, 0);
	return connection;
}

static int listen_here(void)
{
	struct diag diag;
	int fd = -1;

	snprintf(path, sizeof(path), "/tmp/bench-ring.%d", getpid());
	if (sock_listen(&fd, SOCK_SEQPACKET, path, 0600, &diag) != SOCK_OK)
		fail(diag.text);
	return fd;
}

static void bench_ipc(const char *what, enum how how, uint64_t *ns, size_t n)
{
	int fd = listen_here();
	pid_t pid = fork();
	lc_connection *connection;

	if (pid == 0) {
		serve(fd, how);
		_exit(0);
	}
	connection = connect_client(how);
	for (int i = 0; i < 5000; ++i)
		ping(connection);
	for (size_t i = 0; i < n; ++i) {
		uint64_t began = clock_ns();

		ping(connection);
		ns[i] = clock_ns() - began;
	}
	lc_disconnect(connection);
	(void)waitpid(pid, NULL, 0);
	close(fd);
	unlink(path);
	report(what, ns, n);
}

/* --- bare futex --------------------------------------------------------------------------------------------------- */

struct pair {
	lorad_word word[2][32], waiting[2][32];
};

static void await(struct pair *pair, int which, uint32_t old, bool asleep)
{
	uint64_t until = asleep ? 0 : clock_ns() + SPIN_NS;

	while (!asleep && clock_ns() < until)
		for (int i = 0; i < 64; ++i)
			if (word_observe(&pair->word[which][0]) != old)
				return;
	while (word_observe(&pair->word[which][0]) == old) {
		word_publish(&pair->waiting[which][0], 1);
		word_fence();
		if (word_observe(&pair->word[which][0]) == old)
			(void)syscall(SYS_futex, &pair->word[which][0], FUTEX_WAIT, old, NULL, NULL, 0);
		word_hint(&pair->waiting[which][0], 0);
	}
}

static void hand_over(struct pair *pair, int to, uint32_t value)
{
	word_publish(&pair->word[to][0], value);
	word_fence();
	if (word_glance(&pair->waiting[to][0]))
		(void)syscall(SYS_futex, &pair->word[to][0], FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void bench_futex(const char *what, bool asleep, uint64_t *ns, size_t n)
{
	struct pair *pair = mmap(NULL, sizeof(*pair), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t pid;

	if (pair == MAP_FAILED)
		fail("mmap");
	pid = fork();
	pin(pid == 0);
	for (uint32_t i = 0; i < n; ++i) {
		if (pid == 0) {
			await(pair, 1, i, asleep);
			hand_over(pair, 0, i + 1);
		} else {
			uint64_t began = clock_ns();

			hand_over(pair, 1, i + 1);
			await(pair, 0, i, asleep);
			ns[i] = clock_ns() - began;
		}
	}
	if (pid == 0)
		_exit(0);
	(void)waitpid(pid, NULL, 0);
	munmap(pair, sizeof(*pair));
	report(what, ns, n);
}

static void bench_socket(const char *what, uint64_t *ns, size_t n)
{
	char message[64] = { 0 };
	int fds[2];
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0)
		fail("socketpair");
	pid = fork();
	pin(pid == 0);
	if (pid == 0) {
		close(fds[0]);
		while (read(fds[1], message, sizeof(message)) > 0)
			if (write(fds[1], message, sizeof(message)) < 0)
				break;
		_exit(0);
	}
	close(fds[1]);
	for (size_t i = 0; i < n; ++i) {
		uint64_t began = clock_ns();

		if (write(fds[0], message, sizeof(message)) < 0 || read(fds[0], message, sizeof(message)) < 0)
			fail("socket");
		ns[i] = clock_ns() - began;
	}
	close(fds[0]);
	(void)waitpid(pid, NULL, 0);
	report(what, ns, n);
}

/* --- system calls ------------------------------------------------------------------------------------------------- */

static void mark(void)
{
	(void)getpgid(MARK);
}

/* Lets a stopped child run to its next system call; its number, or -1 once it is gone. */
static long next_call(pid_t pid, long *ret_argument)
{
	struct user_regs_struct regs;
	struct iovec vec = { &regs, sizeof(regs) };
	int status;

	if (ptrace(PTRACE_SYSCALL, pid, NULL, NULL) < 0 || waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status) ||
	    ptrace(PTRACE_GETREGSET, pid, (void *)1 /* NT_PRSTATUS */, &vec) < 0)
		return -1;
	*ret_argument = (long)(int)regs.rdi;
	return (long)regs.orig_rax;
}

/* Traces one side of n pings, the one that `child` is; counts its calls between the client's marks, or in all. */
static void count_calls(const char *what, bool trace_client, size_t n)
{
	int fd = listen_here(), status;
	long call, argument, calls = 0, marks = 0;
	pid_t pid = fork(), other;

	if (pid == 0) { /* the traced side */
		(void)ptrace(PTRACE_TRACEME, 0, NULL, NULL);
		raise(SIGSTOP);
		if (trace_client) {
			lc_connection *connection = connect_client(AWAKE);

			ping(connection);
			mark();
			for (size_t i = 0; i < n; ++i)
				ping(connection);
			mark();
			lc_disconnect(connection);
		} else {
			serve(fd, AWAKE);
		}
		_exit(0);
	}
	(void)waitpid(pid, &status, 0);
	other = fork();
	if (other == 0) {
		if (trace_client) {
			serve(fd, AWAKE);
		} else {
			lc_connection *connection = connect_client(AWAKE);

			for (size_t i = 0; i < n; ++i)
				ping(connection);
			lc_disconnect(connection);
		}
		_exit(0);
	}
	uint64_t began = clock_ns();
	while ((call = next_call(pid, &argument)) >= 0) {
		if (call == SYS_getpgid && argument == MARK)
			++marks;
		else if (!trace_client || (marks && marks < 3)) /* a call stops twice, at entry and exit */
			++calls;
	}
	double ms = (double)(clock_ns() - began) / 1e6;
	(void)waitpid(other, NULL, 0);
	close(fd);
	unlink(path);
	printf("%-36s %ld in %zu messages, %.1f ms: %.5f each%s\n", what, calls / 2, n, ms, (double)calls / 2 / (double)n,
	       trace_client ? "" : " (start and end included)");
}

int main(int argc, char **argv)
{
	size_t n = argc > 1 ? strtoul(argv[1], NULL, 10) : 100000;
	int repeats = argc > 2 ? (int)strtol(argv[2], NULL, 10) : 1;
	uint64_t *ns = n ? calloc(n, sizeof(*ns)) : NULL;

	if (!ns || sched_getaffinity(0, sizeof(all_cpus), &all_cpus) < 0)
		fail("start");
	setvbuf(stdout, NULL, _IONBF, 0);
	for (int i = 0; i < repeats; ++i) {
		bench_ipc("ipc ping, both awake", AWAKE, ns, n);
		bench_futex("bare futex, 50 us spin", false, ns, n);
		bench_ipc("ipc ping, both asleep", ASLEEP, ns, n / 4);
		bench_futex("bare futex, no spin", true, ns, n / 4);
		bench_socket("SEQPACKET socket, 64 bytes", ns, n / 4);
		bench_ipc("ipc ping, CPUs left to the kernel", FREE, ns, n / 4);
	}
	count_calls("system calls of the client, awake", true, n);
	count_calls("system calls of the daemon, awake", false, n);
	free(ns);
	return 0;
}
