/* SPDX-License-Identifier: MIT */
/*
 * Responses: reading the ring, and sleeping until there is something in it.
 *
 * lc_wait() spins for at most 50 us (not on one CPU), then sleeps on the response ring's tail by futex, at most 100 ms at
 * a time, because a daemon that dies wakes nobody; the socket tells. Spinning that finds nothing is given up after a few
 * times and only tried now and then: tokens come milliseconds apart, and where the kernel put both processes on one CPU a
 * spin only keeps the daemon from answering. lc_poll_begin() asks for a byte on the socket instead. Either announces
 * itself in `waiting` with a fresh ticket, fences, and looks once more before it sleeps.
 *
 * Each message is copied out and its slots released before its event function runs, so the function may take its time
 * and may submit and cancel.
 */
#include "libclient/client.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "libclient/wire.h"

#define SLEEP_NS 100000000u  /* between looks at the socket */
#define CHECK_NS 10000000u   /* the same for a program that dispatches in a loop */
#define MISSES_MAX 3         /* spins in a row that found nothing, before spinning is given up */
#define RETRY_EVERY 32       /* ... but for one wait in so many */

static inline void cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

/* Reads the wake-up bytes off the socket, or learns that the daemon hung up. */
static void drain_socket(lc_connection *c)
{
	uint8_t bytes[16];
	ssize_t n;

	do
		n = wire_recv(c->socket, bytes, sizeof(bytes), NULL, 0, NULL, MSG_DONTWAIT);
	while (n > 0);
	if (n != -EAGAIN)
		c->gone = true;
	c->checked_ns = lc_now_ns();
}

/* Announces that we are about to sleep; true if there is no need to. */
static bool announce_wait(lc_connection *c, uint32_t how)
{
	c->ticket += LORAD_WAIT_MASK + 1;
	word_publish(&c->request->waiting, c->ticket | how);
	word_fence();
	return word_observe(c->in.tail) != c->in.at;
}

static void end_wait(lc_connection *c)
{
	word_hint(&c->request->waiting, LORAD_WAIT_NONE);
}

/* Copies the next of n published slots' messages to c->incoming and frees its slots. */
static int take_message(lc_connection *c, uint32_t n, uint32_t *ret_slots, size_t *ret_bytes)
{
	const uint8_t *slots = (const uint8_t *)c->response + LORAD_SLOTS_OFFSET;
	struct lorad_message head;
	uint32_t needed;

	ring_copy_out(c->incoming, slots, c->in.n_slots, c->in.at, LORAD_SLOT_BYTES);
	memcpy(&head, c->incoming, sizeof(head));
	needed = ring_slots(head.bytes);
	if (head.bytes < sizeof(head) || head.bytes > LORAD_RESPONSE_BYTES_MAX || needed > n)
		return -EPROTO;
	if (needed > 1)
		ring_copy_out(c->incoming + LORAD_SLOT_BYTES, slots, c->in.n_slots, c->in.at + 1,
			      head.bytes - LORAD_SLOT_BYTES);
	ring_release(&c->in, needed);
	*ret_slots = needed;
	*ret_bytes = head.bytes;
	return 0;
}

/* Decodes the message in hand and calls the event function, unless nobody waits for it any more. */
static int deliver(lc_connection *c, size_t bytes)
{
	struct lc_event event;
	struct lc_open *open;
	int r;

	r = lc_decode(c, bytes, &event);
	if (r)
		return r < 0 ? r : 0;
	open = &c->open[event.id % c->n_open];
	if (event.id == 0 || open->id != event.id)
		return 0;
	event.userdata = open->userdata;
	if (event.type == LC_EVENT_DONE || event.type == LC_EVENT_ERROR)
		lc_open_end(c, open);
	c->event(c, &event);
	return 1;
}

static int dispatch_ring(lc_connection *c)
{
	uint32_t left, taken = 0;
	size_t bytes = 0;
	int n = 0, r = 0;

	if (ring_peek(&c->in, &left) != RING_OK)
		return -EPROTO;
	if (left == 0)
		return 0;
	for (; left && r >= 0; left -= taken) {
		r = take_message(c, left, &taken, &bytes);
		if (r == 0)
			r = deliver(c, bytes);
		n += r > 0;
	}
	word_fence(); /* between releasing slots and asking whether the daemon waits for them */
	if (word_glance(&c->response->starved))
		lc_ring_doorbell(c);
	return r < 0 ? r : n;
}

/**
 * lc_dispatch() - call the event function for each event that is there; never sleeps
 * @connection: the connection; not from inside its event function
 *
 * Return: the number of events handled; -ECONNRESET: the daemon is gone and all it sent has been handled; -EPROTO: it
 * broke the protocol.
 */
int lc_dispatch(lc_connection *connection)
{
	int n;

	if (connection->dispatching)
		return lc_fail(connection, -EBUSY, "lc_dispatch() was called from inside an event function");
	if (connection->polled) {
		connection->polled = false;
		end_wait(connection);
		drain_socket(connection);
	}
	connection->dispatching = true;
	n = dispatch_ring(connection);
	connection->dispatching = false;
	if (n < 0)
		return lc_fail(connection, n, "the daemon sent something senseless");
	if (n == 0 && !connection->gone && lc_now_ns() - connection->checked_ns > CHECK_NS)
		drain_socket(connection);
	if (n == 0 && connection->gone && word_observe(connection->in.tail) == connection->in.at)
		return lc_fail(connection, -ECONNRESET, "the daemon is gone");
	return n;
}

/**
 * lc_poll_begin() - make lc_fd() readable at the next event
 * @connection: the connection
 *
 * Arms once: call it before each poll(), and lc_dispatch() after.
 *
 * Return: 0; 1: there are events already, dispatch instead of sleeping.
 */
int lc_poll_begin(lc_connection *connection)
{
	connection->polled = true;
	if (!announce_wait(connection, LORAD_WAIT_POLL))
		return connection->gone;
	connection->polled = false;
	end_wait(connection);
	return 1;
}

/* Does experience say that a spin may find something? */
static bool worth_spinning(lc_connection *c)
{
	if (c->spin_ns == 0)
		return false;
	return c->misses < MISSES_MAX || ++c->skipped % RETRY_EVERY == 0;
}

/* Looks at the ring for a while before sleeping. True if something came. */
static bool spin(lc_connection *c, uint64_t until_ns)
{
	c->misses += c->misses < MISSES_MAX;
	do {
		for (int i = 0; i < 64; ++i) {
			if (word_observe(c->in.tail) != c->in.at) {
				c->misses = 0;
				return true;
			}
			cpu_relax();
		}
	} while (lc_now_ns() < until_ns);
	return false;
}

/* Sleeps until the tail moves, the time is over or a signal arrives. False: a signal did. */
static bool sleep_on_tail(lc_connection *c, uint64_t ns)
{
	const struct timespec limit = { (time_t)(ns / 1000000000u), (long)(ns % 1000000000u) };
	long r = 0;

	if (!announce_wait(c, LORAD_WAIT_FUTEX))
		r = syscall(SYS_futex, c->in.tail, FUTEX_WAIT, c->in.at, &limit, NULL, 0);
	end_wait(c);
	return !(r < 0 && errno == EINTR);
}

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/**
 * lc_wait() - sleep until there are events and dispatch them
 * @connection: the connection; not from inside its event function
 * @timeout_ms: at most this long; -1: no limit; 0: as lc_dispatch()
 *
 * Return: the number of events handled; 0: the time is over or a signal was handled; else as lc_dispatch().
 */
int lc_wait(lc_connection *connection, int timeout_ms)
{
	uint64_t now, until;
	int n = lc_dispatch(connection);

	if (n || timeout_ms == 0)
		return n;
	now = lc_now_ns();
	until = timeout_ms < 0 ? UINT64_MAX : now + (uint64_t)timeout_ms * 1000000u;
	if (worth_spinning(connection) && spin(connection, min_u64(until, now + connection->spin_ns)))
		return lc_dispatch(connection);
	for (now = lc_now_ns(); now < until; now = lc_now_ns()) {
		bool woken = sleep_on_tail(connection, min_u64(until - now, SLEEP_NS));

		n = lc_dispatch(connection);
		if (n || !woken)
			return n;
	}
	return 0;
}
