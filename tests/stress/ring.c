/* SPDX-License-Identifier: MIT */
/*
 * Description: the ring and its doorbells between two processes.
 *
 *	ring wrap [N]     N messages of 1 to 5 slots through 64 slots, indices from just below 2^32, contents checked
 *	ring litmus [N]   Dekker's pair as word_fence() orders it: of N rounds none may see neither side's store
 *	ring wake [N]     N round trips, each side asleep by futex without a time limit at times: a lost wake-up hangs
 *
 * Without arguments all three, briefly. Exit status 0: as it should be, 1: not, by SIGALRM after 120 s: it hangs.
 */
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "libclient/ring.h"

#define SLOTS 64u
#define START (UINT32_MAX - 1000)
#define LITMUS_BATCH 4096

struct shared {
	lorad_word tail, apart1[31], head, apart2[31];
	lorad_word turn[2][32], waiting[2][32]; /* wake: a word to sleep on and a flag for each side */
	uint8_t slots[SLOTS * LORAD_SLOT_BYTES];
};

static struct shared *map_shared(void)
{
	struct shared *at = mmap(NULL, sizeof(*at), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	return at == MAP_FAILED ? NULL : at;
}

static uint32_t mix(uint32_t x)
{
	x = (x ^ x >> 16) * 0x45d9f3bu;
	x = (x ^ x >> 16) * 0x45d9f3bu;
	return x ^ x >> 16;
}

/* Runs the two sides in two processes; 0 if both are content. */
static int run_pair(int (*side)(struct shared *shared, int which, uint32_t n), struct shared *shared, uint32_t n)
{
	pid_t pid = fork();
	int status = 1, own;

	if (pid < 0)
		return 1;
	if (pid == 0) {
		alarm(120);
		_exit(side(shared, 1, n));
	}
	own = side(shared, 0, n);
	if (waitpid(pid, &status, 0) != pid || status)
		return 1;
	return own;
}

/* --- wrap --------------------------------------------------------------------------------------------------------- */

static void fill_message(uint32_t *message, uint32_t sequence, uint32_t n_slots)
{
	for (uint32_t i = 0; i < n_slots * LORAD_SLOT_BYTES / 4; ++i)
		message[i] = mix(sequence + i);
	message[0] = n_slots;
	message[1] = sequence;
}

static int write_messages(struct shared *shared, uint32_t n)
{
	struct ring_writer w = { &shared->tail, &shared->head, SLOTS, START, START };
	uint32_t message[5 * LORAD_SLOT_BYTES / 4];

	for (uint32_t i = 0; i < n; ++i) {
		uint32_t n_slots = 1 + mix(i) % 5;
		enum ring_result r;

		while ((r = ring_reserve(&w, n_slots)) == RING_E_FULL)
			sched_yield();
		if (r == RING_E_VIOLATION)
			return 1;
		fill_message(message, i, n_slots);
		ring_copy_in(shared->slots, SLOTS, w.at, message, (size_t)n_slots * LORAD_SLOT_BYTES);
		ring_publish(&w, n_slots);
	}
	return 0;
}

static int read_messages(struct shared *shared, uint32_t n)
{
	struct ring_reader r = { &shared->tail, &shared->head, SLOTS, START, START };
	uint32_t message[5 * LORAD_SLOT_BYTES / 4], expected[5 * LORAD_SLOT_BYTES / 4], left = 0;

	for (uint32_t i = 0; i < n; ++i) {
		uint32_t n_slots = 1 + mix(i) % 5;

		while (left == 0) {
			if (ring_peek(&r, &left) != RING_OK)
				return 1;
			if (left == 0)
				sched_yield();
		}
		fill_message(expected, i, n_slots);
		ring_copy_out(message, shared->slots, SLOTS, r.at, (size_t)n_slots * LORAD_SLOT_BYTES);
		if (n_slots > left || memcmp(message, expected, (size_t)n_slots * LORAD_SLOT_BYTES)) {
			fprintf(stderr, "wrap: message %u is not what was sent\n", i);
			return 1;
		}
		ring_release(&r, n_slots);
		left -= n_slots;
	}
	return 0;
}

static int wrap_side(struct shared *shared, int which, uint32_t n)
{
	return which ? write_messages(shared, n) : read_messages(shared, n);
}

static int test_wrap(uint32_t n)
{
	struct shared *shared = map_shared();
	int r;

	if (!shared)
		return 1;
	word_hint(&shared->tail, START);
	word_hint(&shared->head, START);
	r = run_pair(wrap_side, shared, n);
	printf("wrap: %u messages, tail from %u to %u: %s\n", n, START, word_glance(&shared->tail), r ? "failed" : "ok");
	munmap(shared, sizeof(*shared));
	return r;
}

/* --- litmus ------------------------------------------------------------------------------------------------------- */

struct litmus {
	lorad_word round[2][32];           /* [side]: where it is; both begin a round together */
	lorad_word store[2][LITMUS_BATCH]; /* [side][round] */
	uint32_t saw[2][LITMUS_BATCH];
	pthread_barrier_t barrier;
	uint32_t batches;
	bool fenced;
	uint64_t neither;
};

static struct litmus litmus;

/* Both sides leave this at nearly the same moment; if the other has no CPU, it gets ours. */
static void meet(int which, uint32_t round)
{
	word_publish(&litmus.round[which][0], round);
	for (uint32_t i = 1; word_observe(&litmus.round[!which][0]) < round; ++i)
		if (i % 4096 == 0)
			sched_yield();
}

static void litmus_batch(int which)
{
	word_hint(&litmus.round[which][0], 0);
	pthread_barrier_wait(&litmus.barrier);
	for (uint32_t i = 0; i < LITMUS_BATCH; ++i) {
		meet(which, i + 1);
		word_publish(&litmus.store[which][i], 1);
		if (litmus.fenced)
			word_fence();
		litmus.saw[which][i] = word_glance(&litmus.store[!which][i]);
	}
	pthread_barrier_wait(&litmus.barrier);
}

static void *litmus_side(void *userdata)
{
	int which = userdata != NULL;

	for (uint32_t b = 0; b < litmus.batches; ++b) {
		litmus_batch(which);
		if (which)
			continue;
		for (uint32_t i = 0; i < LITMUS_BATCH; ++i) {
			litmus.neither += !litmus.saw[0][i] && !litmus.saw[1][i];
			word_hint(&litmus.store[0][i], 0);
			word_hint(&litmus.store[1][i], 0);
		}
	}
	return NULL;
}

static uint64_t run_litmus(uint32_t n, bool fenced)
{
	pthread_t other;

	litmus.batches = (n + LITMUS_BATCH - 1) / LITMUS_BATCH;
	litmus.fenced = fenced;
	litmus.neither = 0;
	pthread_barrier_init(&litmus.barrier, NULL, 2);
	if (pthread_create(&other, NULL, litmus_side, &litmus))
		return UINT64_MAX;
	litmus_side(NULL);
	pthread_join(other, NULL);
	pthread_barrier_destroy(&litmus.barrier);
	return litmus.neither;
}

static int test_litmus(uint32_t n)
{
	uint64_t with = run_litmus(n, true), without = run_litmus(n, false);

	printf("litmus: %u rounds, neither side seen: %llu; without the fence, to show that it is needed: %llu\n", n,
	       (unsigned long long)with, (unsigned long long)without);
	return with != 0;
}

/* --- wake --------------------------------------------------------------------------------------------------------- */

/* Until the own word is no longer `old`: a random short spin, then announce, fence, look again, sleep without limit. */
static void await(struct shared *shared, int which, uint32_t old)
{
	for (uint32_t i = mix(old + (uint32_t)which) % 2000; i; --i)
		if (word_observe(&shared->turn[which][0]) != old)
			return;
	while (word_observe(&shared->turn[which][0]) == old) {
		word_publish(&shared->waiting[which][0], 1);
		word_fence();
		if (word_observe(&shared->turn[which][0]) == old)
			(void)syscall(SYS_futex, &shared->turn[which][0], FUTEX_WAIT, old, NULL, NULL, 0);
		word_hint(&shared->waiting[which][0], 0);
	}
}

static void hand_over(struct shared *shared, int to, uint32_t value)
{
	word_publish(&shared->turn[to][0], value);
	word_fence();
	if (word_glance(&shared->waiting[to][0]))
		(void)syscall(SYS_futex, &shared->turn[to][0], FUTEX_WAKE, 1, NULL, NULL, 0);
}

static int wake_side(struct shared *shared, int which, uint32_t n)
{
	for (uint32_t i = 0; i < n; ++i) {
		if (which == 0)
			hand_over(shared, 1, i + 1);
		await(shared, which, i);
		if (word_glance(&shared->turn[which][0]) != i + 1)
			return 1;
		if (which == 1)
			hand_over(shared, 0, i + 1);
	}
	return 0;
}

static int test_wake(uint32_t n)
{
	struct shared *shared = map_shared();
	int r;

	if (!shared)
		return 1;
	r = run_pair(wake_side, shared, n);
	printf("wake: %u round trips, no wake-up lost: %s\n", n, r ? "failed" : "ok");
	munmap(shared, sizeof(*shared));
	return r;
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int (*run)(uint32_t n);
		uint32_t n;
	} tests[] = { { "wrap", test_wrap, 200000 }, { "litmus", test_litmus, 300000 }, { "wake", test_wake, 100000 } };
	int failed = 0;

	alarm(120);
	setvbuf(stdout, NULL, _IONBF, 0);
	for (size_t i = 0; i < sizeof(tests) / sizeof(*tests); ++i)
		if (argc < 2 || strcmp(argv[1], tests[i].name) == 0)
			failed |= tests[i].run(argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : tests[i].n);
	return failed;
}
