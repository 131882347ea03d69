/* SPDX-License-Identifier: MIT */
/*
 * Random numbers of lorabench
 *
 * One seed, many streams: arrivals, choices and each request's prompt have one of their own, so that a run asks the same
 * however its requests were interleaved. Nothing here depends on time or on a library's generator.
 */
#include <math.h>

#include "tools/bench.h"

/** bench_random_next() - SplitMix64 (Steele, Lea, Flood 2014): 64 random bits */
uint64_t bench_random_next(struct bench_random *random)
{
	uint64_t z = random->state += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

/** bench_random_stream() - the generator of a stream; hashed twice, because states differ by a multiple of one constant */
struct bench_random bench_random_stream(uint64_t seed, uint64_t stream)
{
	struct bench_random random = { seed };

	random.state = bench_random_next(&random) + stream;
	return (struct bench_random){ bench_random_next(&random) };
}

double bench_random_unit(struct bench_random *random)
{
	return (double)(bench_random_next(random) >> 11) * 0x1p-53;
}

/* Box and Muller's method, one of its two values. */
static double random_normal(struct bench_random *random)
{
	double radius = sqrt(-2 * log1p(-bench_random_unit(random)));

	return radius * cos(2 * acos(-1) * bench_random_unit(random));
}

/**
 * bench_random_gamma() - gamma distribution of mean and variance `shape`
 * @random: generator
 * @shape:  above 0
 *
 * Marsaglia and Tsang 2000: a cube of a shifted normal number, rejected in a few of a hundred cases. A shape below 1 is
 * the next higher one's value times a power of a uniform number.
 */
double bench_random_gamma(struct bench_random *random, double shape)
{
	double boost = shape < 1 ? pow(1 - bench_random_unit(random), 1 / shape) : 1;
	double d = (shape < 1 ? shape + 1 : shape) - 1.0 / 3, c = 1 / sqrt(9 * d), x, v, u;

	do {
		x = random_normal(random);
		v = (1 + c * x) * (1 + c * x) * (1 + c * x);
		u = 1 - bench_random_unit(random); /* above 0 */
	} while (v <= 0 || log(u) >= x * x / 2 + d - d * v + d * log(v));
	return d * v * boost;
}
