/* SPDX-License-Identifier: MIT */
/*
 * Histogram
 *
 * Durations from 32 us to 33 s in buckets that double: bucket i holds what took at most 32 us * 2^i, the last one all
 * that took longer. One bucket is a factor of two, which is what a latency graph needs; adding is a bit scan.
 */
#include "daemon/base/hist.h"

#define HIST_FIRST_NS UINT64_C(32000)

uint64_t hist_bound_ns(unsigned bucket)
{
	return bucket >= HIST_BUCKETS - 1 ? UINT64_MAX : HIST_FIRST_NS << bucket;
}

void hist_add(struct hist *hist, uint64_t ns)
{
	uint64_t units = ns ? (ns - 1) / HIST_FIRST_NS : 0;
	unsigned bucket = units ? 64 - (unsigned)__builtin_clzll(units) : 0;

	hist->bucket[bucket < HIST_BUCKETS ? bucket : HIST_BUCKETS - 1]++;
	hist->n++;
	hist->sum_ns += ns;
}

/* As the bucket's bound, so up to twice too much; the last bucket counts as if it, too, had one. */
uint64_t hist_quantile_ns(const struct hist *hist, double q)
{
	uint64_t sum = 0;

	for (unsigned i = 0; hist->n && i < HIST_BUCKETS; ++i) {
		sum += hist->bucket[i];
		if ((double)sum >= q * (double)hist->n)
			return HIST_FIRST_NS << i;
	}
	return 0;
}
