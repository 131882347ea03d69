/* SPDX-License-Identifier: MIT */
/*
 * Philox4x32-10, a counter-based random generator: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as
 * 1, 2, 3", SC 2011. Nothing is kept between draws, so a request draws the same numbers on every backend, in every
 * batch and after a preemption.
 */
#ifndef LORAD_KERNELS_PHILOX_H
#define LORAD_KERNELS_PHILOX_H

#include <stdint.h>

#ifndef PHILOX_INLINE
#define PHILOX_INLINE static inline /* the CUDA backend has its own */
#endif

PHILOX_INLINE void philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t ret[4])
{
	uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3], k0 = key[0], k1 = key[1];

	for (int round = 0; round < 10; round++) {
		uint64_t p0 = (uint64_t)0xd2511f53 * c0, p1 = (uint64_t)0xcd9e8d57 * c2;
		c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
		c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
		c1 = (uint32_t)p1;
		c3 = (uint32_t)p0;
		k0 += 0x9e3779b9;
		k1 += 0xbb67ae85;
	}
	ret[0] = c0, ret[1] = c1, ret[2] = c2, ret[3] = c3;
}

/* Draw number `draw` of a request: uniform in [0, 1), 53 bits. */
PHILOX_INLINE double philox_uniform(uint64_t seed, uint32_t draw)
{
	const uint32_t counter[4] = { draw, 0, 0, 0 }, key[2] = { (uint32_t)seed, (uint32_t)(seed >> 32) };
	uint32_t r[4];

	philox4x32(counter, key, r);
	return (double)(((uint64_t)r[1] << 32 | r[0]) >> 11) * 0x1p-53;
}

#endif
