/* SPDX-License-Identifier: MIT */
/*
 * Compute threads
 *
 * A team runs one function in n parts at a time: team_run() starts part 1..n-1 on the team's threads, runs part 0 itself
 * and returns once all are done. A forward step is some five hundred such runs, a few to a few hundred microseconds each,
 * one right after the other, while waking a sleeping thread costs 30-50 us. So between two runs of a step the threads
 * spin, but only for SPIN_NS, and team_rest() at the end of a step sends them to sleep at once: an idle daemon uses no
 * processor time. If there are fewer processors than threads nobody spins, since that would only keep the one who is
 * waited for from running.
 *
 * Two words carry all of it, each on a cache line of its own:
 *   run      counts the runs; a thread that sees it change takes its part. Threads that gave up spinning sleep on it and
 *            are counted in `asleep`, so that a run nobody slept through costs no system call.
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

struct worker {
	struct team *team;
	pthread_t thread;
	unsigned part;
};

struct team {
	alignas(64) _Atomic uint32_t run;
	alignas(64) _Atomic uint32_t missing;
	alignas(64) _Atomic uint32_t asleep;
	_Atomic bool caller_asleep, rest, quit;

	/* Written by the caller while no part runs, published by `run`. */
	alignas(64) team_fn *fn;
	const void *args;

	unsigned n; /* parts: threads and the caller */
	bool spins;
	unsigned n_started;
	struct worker worker[];
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

static uint32_t wait_for_run(struct team *team, uint32_t seen)
{
	if (!spin(team, &team->run, seen, false)) {
		atomic_fetch_add(&team->asleep, 1);
		while (atomic_load(&team->run) == seen)
			futex_wait(&team->run, seen);
		atomic_fetch_sub(&team->asleep, 1);
	}
	return atomic_load(&team->run);
}

static void *work(void *userdata)
{
	struct worker *w = userdata;
	struct team *team = w->team;
	uint32_t seen = 0;

	(void)pthread_setname_np(pthread_self(), "lorad-compute");
	for (;;) {
		seen = wait_for_run(team, seen);
		if (atomic_load(&team->quit))
			return NULL;
		team->fn(team->args, w->part, team->n);
		if (atomic_fetch_sub(&team->missing, 1) == 1 && atomic_load(&team->caller_asleep))
			futex_wake(&team->missing, 1);
	}
}

static void start_run(struct team *team)
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

static unsigned usable_processors(void)
{
	cpu_set_t set;

	return sched_getaffinity(0, sizeof(set), &set) ? 1 : (unsigned)CPU_COUNT(&set);
}

/**
 * team_new() - start compute threads
 * @ret:        the new team
 * @n_threads:  parts of a run, the caller's own included; at least 1
 *
 * The threads take no signals. All runs must come from one thread at a time.
 */
int team_new(struct team **ret, unsigned n_threads)
{
	_cleanup_(team_freep) struct team *team = NULL;
	size_t bytes = sizeof(*team) + n_threads * sizeof(struct worker);
	sigset_t all, old;
	int r = 0;

	assert(n_threads >= 1);
	team = aligned_alloc(64, (bytes + 63) / 64 * 64);
	if (!team)
		return error_origin(-ENOMEM);
	*team = (struct team){ .n = n_threads, .spins = n_threads > 1 && usable_processors() >= n_threads };

	(void)sigfillset(&all);
	(void)pthread_sigmask(SIG_SETMASK, &all, &old);
	for (unsigned i = 0; i + 1 < n_threads && r == 0; ++i) {
		team->worker[i] = (struct worker){ .team = team, .part = i + 1 };
		r = pthread_create(&team->worker[i].thread, NULL, work, &team->worker[i]);
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
	atomic_store(&team->quit, true);
	start_run(team);
	for (unsigned i = 0; i < team->n_started; ++i)
		(void)pthread_join(team->worker[i].thread, NULL);
	free(team);
	return NULL;
}

unsigned team_size(const struct team *team)
{
	return team->n;
}

/**
 * team_run() - run fn(args, part, n) for every part 0..n-1 and wait for all
 *
 * What the parts wrote is visible to the caller on return, and what the caller wrote before to the parts.
 */
void team_run(struct team *team, team_fn *fn, const void *args)
{
	assert(atomic_load_explicit(&team->missing, memory_order_relaxed) == 0);
	if (team->n > 1) {
		team->fn = fn;
		team->args = args;
		atomic_store_explicit(&team->missing, team->n - 1, memory_order_relaxed);
		start_run(team);
	}
	fn(args, 0, team->n);
	if (team->n > 1)
		wait_for_parts(team);
}

/* The step is over: threads that spin for the next run go to sleep now. */
void team_rest(struct team *team)
{
	atomic_store_explicit(&team->rest, true, memory_order_relaxed);
}
