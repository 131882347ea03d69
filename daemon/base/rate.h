/* SPDX-License-Identifier: MIT */
/*
 * How often something happens lately: events a second, each weighing less the longer ago it was (by e in RATE_TIME_NS).
 * Not locked: its owner sees to that.
 */
#ifndef LORAD_BASE_RATE_H
#define LORAD_BASE_RATE_H

#include <math.h>

#include "daemon/base/clock.h"

#define RATE_TIME_NS (4 * NS_PER_S)

struct rate {
	double sum;       /* of the events' weights at last_ns */
	uint64_t last_ns;
};

static inline double rate_sum(const struct rate *rate, uint64_t now_ns)
{
	double ago = now_ns > rate->last_ns ? (double)(now_ns - rate->last_ns) : 0;

	return rate->sum * exp(-ago / (double)RATE_TIME_NS);
}

static inline void rate_add(struct rate *rate, double n, uint64_t now_ns)
{
	rate->sum = rate_sum(rate, now_ns) + n;
	rate->last_ns = now_ns > rate->last_ns ? now_ns : rate->last_ns;
}

#endif
