/* SPDX-License-Identifier: MIT */
/* Monotonic time in nanoseconds. Functions that decide by time take `now` as an argument, so that tests can pass theirs. */
#ifndef LORAD_BASE_CLOCK_H
#define LORAD_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

#define NS_PER_US UINT64_C(1000)
#define NS_PER_MS UINT64_C(1000000)
#define NS_PER_S UINT64_C(1000000000)

static inline uint64_t clock_ns(void)
{
	struct timespec ts;

	(void)clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

static inline double clock_ms(uint64_t ns)
{
	return (double)ns / (double)NS_PER_MS;
}

#endif
