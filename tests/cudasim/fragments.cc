/* SPDX-License-Identifier: MIT */
/*
 * Which numbers of a warp's registers the simulated mma multiplies and where the sums go, and what ldmatrix loads into
 * which register. No layout is assumed: for every number of A and every number of B the two are set to 1 and all others
 * to zero; a line names where a sum came out. tests/cudasim/check-fragments compares the lines with CuTe's.
 */
#include <stdio.h>
#include <string.h>

#include "kernels/cuda/dev.h"
#include "tests/cudasim/engine.h"

#define N_A 256u /* numbers of a warp: 8 a lane */
#define N_B 128u
#define N_D 128u

static float sums[N_D];
static uint16_t loaded[2][DEV_WARP][8];

static void set(uint32_t *words, unsigned number, bool is_one)
{
	words[number / 2] = is_one ? 0x3f80u << (number % 2 * 16) : 0;
}

/* The a-th number of A times the b-th of B, counted lane by lane. */
static DEV_KERNEL(DEV_WARP) multiply(unsigned a, unsigned b)
{
	DEV_BOUNDS(DEV_WARP);
	const unsigned lane = threadIdx.x;
	uint32_t words_a[4] = {}, words_b[2] = {};
	float d[4] = {};

	set(words_a, a % 8, lane == a / 8);
	set(words_b, b % 4, lane == b / 4);
	dev_mma_bf16(d, words_a, words_b);
	memcpy(sums + 4 * lane, d, sizeof(d));
}

/* Row i of 32 is 8 numbers from 8i on, its address is lane i's. */
static DEV_KERNEL(DEV_WARP) load(void)
{
	DEV_BOUNDS(DEV_WARP);
	uint16_t *row = (uint16_t *)(void *)dev_shared() + 8 * threadIdx.x;
	uint32_t words[2][4];

	for (unsigned i = 0; i < 8; ++i)
		row[i] = (uint16_t)(8 * threadIdx.x + i);
	DEV_WARP_BARRIER();
	dev_ldmatrix(words[0], row);
	dev_ldmatrix_trans(words[1], row);
	for (unsigned i = 0; i < 2; ++i)
		memcpy(loaded[i][threadIdx.x], words[i], sizeof(words[i]));
}

static int run(const void *kernel, size_t shared, void **args)
{
	const unsigned grid[3] = { 1, 1, 1 }, block[3] = { DEV_WARP, 1, 1 };

	return cudasim_run(kernel, grid, block, shared, args);
}

int main(void)
{
	for (unsigned a = 0; a < N_A; ++a)
		for (unsigned b = 0; b < N_B; ++b) {
			void *args[] = { &a, &b };

			if (run(dev_kernel_handle<multiply>(), 0, args) != 0)
				return 1;
			for (unsigned d = 0; d < N_D; ++d)
				if (sums[d] != 0)
					printf("mma %u %u %u\n", a, b, d);
		}
	if (run(dev_kernel_handle<load>(), N_A * sizeof(uint16_t), NULL) != 0)
		return 1;
	for (unsigned i = 0; i < 2 * N_A; ++i)
		printf("%s %u %u %u\n", i < N_A ? "ldmatrix" : "ldmatrix.trans", i / 8 % DEV_WARP, i % 8,
		       loaded[i / N_A][i / 8 % DEV_WARP][i % 8]);
	return 0;
}
