/* SPDX-License-Identifier: MIT */
/*
 * Compute threads
 *
 * A team runs one function in n parts at a time: the team's threads and the caller of team_run() take parts until none
 * is left, and team_run() returns once all are done. A forward step is some five hundred such runs, a few to a few
 * hundred microseconds each, one right after the other, while waking a sleeping thread costs 30-50 us. So between two
 * runs of a step the threads spin, but only for SPIN_NS, and team_rest() at the end of a step sends them to sleep at
 * once: an idle daemon uses no processor time. If there are fewer processors than threads nobody spins, since that would
 * only keep the one who is waited for from running.
 *
 * Parts are taken, not assigned, and there are PARTS_PER_THREAD times as many as threads: a thread that is still waking
 * up, or whose processor is busy with another program, costs what it does not do and no more. The caller waits only for
 * parts that somebody has begun.
 *
 * Three words carry all of it, each on a cache line of its own:
 *   ticket   number of the run, and below it the next part to take; taking one is a compare-and-swap, so that a thread
 *            that comes late can never take a part of a run that is over.
 *   run      the number again, for those who wait for the next one. Threads that gave up spinning sleep on it and are
 *            counted in `asleep`, so that a run nobody slept through costs no system call.
 *   missing  parts not yet done; the caller waits for 0. The last part wakes it if `caller_asleep` is set.
 * Either side first says that it will sleep, then looks again; the other side first changes the word, then looks whether
 * someone sleeps (all seq_cst). So one of the two always sees the other, and the kernel compares the word once more.
 */
#include "daemon/os/team.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "daemon/base/cleanup.h"
#include "daemon/base/clock.h"
#include "daemon/base/error.h"

#define SPIN_NS (50 * NS_PER_US)
#define SPIN_ROUND 32u /* looks between two looks at the clock */
#define PARTS_PER_THREAD 2u

struct team {
	alignas(64) _Atomic uint64_t ticket;
	alignas(64) _Atomic uint32_t run;
	alignas(64) _Atomic uint32_t missing;
	alignas(64) _Atomic uint32_t asleep;
	_Atomic bool caller_asleep, rest, quit;

	/* Written by the caller while no part runs, published by `ticket`. */
	alignas(64) team_fn *fn;
	const void *args;

	unsigned n, n_parts; /* threads with the caller; parts of a run */
	bool spins;
	unsigned n_started;
	pthread_t thread[];
};

static void futex_wait(_Atomic uint32_t *word, uint32_t value)
{
	(void)syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, int n)
{
	(void)syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

static void relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#endif
}

/* Looks at word until it is (wanted) / is no longer (!wanted) value; false if that took too long or the team rests. */
static bool spin(const struct team *team, const _Atomic uint32_t *word, uint32_t value, bool wanted)
{
	uint64_t end;

	if (!team->spins)
		return (atomic_load(word) == value) == wanted;
	end = clock_ns() + SPIN_NS;
	do {
		for (unsigned i = 0; i < SPIN_ROUND; ++i) {
			if ((atomic_load_explicit(word, memory_order_acquire) == value) == wanted)
				return true;
			relax();
		}
	} while (!atomic_load_explicit(&team->rest, memory_order_relaxed) && clock_ns() < end);
	return false;
}

static void wait_for_run(struct team *team, uint32_t seen)
{
	if (spin(team, &team->run, seen, false))
		return;
	atomic_fetch_add(&team->asleep, 1);
	while (atomic_load(&team->run) == seen)
		futex_wait(&team->run, seen);
	atomic_fetch_sub(&team->asleep, 1);
}

static bool take_part(struct team *team, unsigned *ret)
{
	uint64_t ticket = atomic_load_explicit(&team->ticket, memory_order_acquire);

	do {
		*ret = (uint32_t)ticket;
		if (*ret >= team->n_parts)
			return false;
	} while (!atomic_compare_exchange_weak(&team->ticket, &ticket, ticket + 1));
	return true;
}

/* Runs parts until none is left to take. Of the run that a part was taken from, fn and args stay until it is done. */
static void run_parts(struct team *team)
{
	unsigned part;

	while (take_part(team, &part)) {
		team->fn(team->args, part, team->n_parts);
		if (atomic_fetch_sub(&team->missing, 1) == 1 && atomic_load(&team->caller_asleep))
			futex_wake(&team->missing, 1);
	}
}

static void *work(void *userdata)
{
	struct team *team = userdata;

	(void)pthread_setname_np(pthread_self(), "lorad-compute");
	while (!atomic_load(&team->quit)) {
		uint32_t seen = atomic_load(&team->run);

		run_parts(team);
		if (!atomic_load(&team->quit))
			wait_for_run(team, seen);
	}
	return NULL;
}

static void announce(struct team *team)
{
	atomic_store_explicit(&team->rest, false, memory_order_relaxed);
	atomic_fetch_add(&team->run, 1);
	if (atomic_load(&team->asleep) > 0)
		futex_wake(&team->run, INT_MAX);
}

static void wait_for_parts(struct team *team)
{
	uint32_t missing;

	if (spin(team, &team->missing, 0, true))
		return;
	atomic_store(&team->caller_asleep, true);
	while ((missing = atomic_load(&team->missing)))
		futex_wait(&team->missing, missing);
	atomic_store(&team->caller_asleep, false);
}

/** team_processors() - how many processors this process may use; 1 if that cannot be told */
unsigned team_processors(void)
{
	cpu_set_t set;

	return sched_getaffinity(0, sizeof(set), &set) ? 1 : (unsigned)CPU_COUNT(&set);
}

/**
 * team_new() - start compute threads
 * @ret:        the new team
 * @n_threads:  the caller's own included; at least 1
 *
 * The threads take no signals. All runs must come from one thread at a time.
 */
int team_new(struct team **ret, unsigned n_threads)
{
	_cleanup_(team_freep) struct team *team = NULL;
	size_t bytes = sizeof(*team) + n_threads * sizeof(pthread_t);
	sigset_t all, old;
	int r = 0;

	assert(n_threads >= 1);
	team = aligned_alloc(64, (bytes + 63) / 64 * 64);
	if (!team)
		return error_origin(-ENOMEM);
	*team = (struct team){ .n = n_threads, .n_parts = n_threads > 1 ? n_threads * PARTS_PER_THREAD : 1 };
	team->spins = n_threads > 1 && team_processors() >= n_threads;
	team->ticket = team->n_parts; /* nothing to take yet */

	(void)sigfillset(&all);
	(void)pthread_sigmask(SIG_SETMASK, &all, &old);
	for (unsigned i = 0; i + 1 < n_threads && r == 0; ++i) {
		r = pthread_create(&team->thread[i], NULL, work, team);
		team->n_started += r == 0;
	}
	(void)pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r)
		return error_origin(-r);

	*ret = TAKE_PTR(team);
	return 0;
}

struct team *team_free(struct team *team)
{
	if (!team)
		return NULL;
	assert(atomic_load(&team->missing) == 0);
	atomic_store(&team->quit, true);
	announce(team);
	for (unsigned i = 0; i < team->n_started; ++i)
		(void)pthread_join(team->thread[i], NULL);
	free(team);
	return NULL;
}

/* Threads, the caller included. */
unsigned team_size(const struct team *team)
{
	return team->n;
}

/**
 * team_run() - run fn(args, part, n_parts) for every part and wait for all
 *
 * What the parts wrote is visible to the caller on return, and what the caller wrote before to the parts. How many parts
 * there are is the team's choice; fn must not care, nor which thread runs which.
 */
void team_run(struct team *team, team_fn *fn, const void *args)
{
	uint64_t number;

	if (team->n == 1) {
		fn(args, 0, 1);
		return;
	}
	assert(atomic_load_explicit(&team->missing, memory_order_relaxed) == 0);
	number = (atomic_load_explicit(&team->ticket, memory_order_relaxed) >> 32) + 1;
	team->fn = fn;
	team->args = args;
	atomic_store_explicit(&team->missing, team->n_parts, memory_order_relaxed);
	atomic_store_explicit(&team->ticket, number << 32, memory_order_release);
	announce(team);
	run_parts(team);
	wait_for_parts(team);
}

/* The step is over: threads that spin for the next run go to sleep now. */
void team_rest(struct team *team)
{
	atomic_store_explicit(&team->rest, true, memory_order_relaxed);
}
