/* SPDX-License-Identifier: MIT */
/* A latency histogram of fixed size: see hist.c. Not locked: its owner sees to that. */
#ifndef LORAD_BASE_HIST_H
#define LORAD_BASE_HIST_H

#include <stdint.h>

#define HIST_BUCKETS 22

struct hist {
	uint64_t bucket[HIST_BUCKETS]; /* the last one is open-ended */
	uint64_t n, sum_ns;
};

void hist_add(struct hist *hist, uint64_t ns);
uint64_t hist_quantile_ns(const struct hist *hist, double q); /* a bound that q of all stay below; 0: nothing was added */
uint64_t hist_bound_ns(unsigned bucket); /* upper bound of a bucket; UINT64_MAX for the last */

#endif
