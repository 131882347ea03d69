/* SPDX-License-Identifier: MIT */
/*
 * Does the simulator keep CUDA's rules? Each case is a small kernel that is right, or breaks one rule and must be
 * caught.
 *
 * A case runs in a child; what it prints on stderr is searched for the words that its build (plain, ASan, instrumented)
 * should say. NULL: the case must pass.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/cuda/dev.h"
#include "tests/cudasim/engine.h"

#define N 1024u

static unsigned n_failed;
static float *in, *out; /* [N] on the heap, so that ASan knows their ends */

#define EXPECT(condition) \
	do { \
		if (!(condition)) { \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
			exit(2); \
		} \
	} while (0)

template <auto Kernel> struct start;

template <typename... P, void (*Kernel)(P...)> struct start<Kernel> {
	static int at(unsigned blocks, unsigned threads, size_t shared, P... p)
	{
		const unsigned grid[3] = { blocks, 1, 1 }, block[3] = { threads, 1, 1 };
		void *args[] = { (void *)&p..., NULL };

		return cudasim_run(dev_kernel_handle<Kernel>(), grid, block, shared, args);
	}
};

/* ---- kernels that are right ---- */

static DEV_KERNEL(256) block_sum(const float *x, unsigned n, float *y)
{
	DEV_BOUNDS(256);
	float sum = 0;

	for (unsigned i = threadIdx.x; i < n; i += blockDim.x)
		sum += x[i];
	sum = dev_block_sum(sum, (float *)dev_shared());
	if (threadIdx.x == 0)
		y[blockIdx.x] = sum;
}

static DEV_KERNEL(64) where(float *y)
{
	DEV_BOUNDS(64);
	unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
	unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);

	y[block * blockDim.x * blockDim.y * blockDim.z + thread] += 1;
}

static DEV_KERNEL(32) lanes(float *y)
{
	DEV_BOUNDS(32);
	unsigned lane = threadIdx.x;

	y[lane] = (float)dev_shuffle(lane, lane * 5 + 1);
	y[32 + lane] = (float)dev_shuffle_xor((int32_t)lane, 3);
	y[64 + lane] = (float)dev_vote(lane % 3 == 0);
}

/* d = a b of bf16 numbers 0..; the fragments by ldmatrix. a: [16][16] at x, b: [16][8] behind it */
static DEV_KERNEL(32) matrices(const float *x, float *y)
{
	DEV_BOUNDS(32);
	uint16_t *a = (uint16_t *)dev_shared(), *b = a + 256;
	const unsigned lane = threadIdx.x;
	float d[4] = { 0, 0, 0, 0 };
	uint32_t fa[4], fb[4];

	for (unsigned i = lane; i < 256 + 128; i += 32)
		a[i] = dev_to_bf16(x[i]);
	DEV_WARP_BARRIER();
	dev_ldmatrix(fa, a + lane % 16 * 16 + lane / 16 * 8);
	dev_ldmatrix_trans(fb, b + lane % 16 * 8);
	dev_mma_bf16(d, fa, fb);
	for (unsigned i = 0; i < 4; ++i)
		y[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}

/* Two stages of asynchronous copies, read by other threads. */
static DEV_KERNEL(64) copies(const float *x, unsigned n, float *y)
{
	DEV_BOUNDS(64);
	float *stage = (float *)dev_shared();
	const unsigned n_tiles = n / 256;

	dev_copy_async(stage + threadIdx.x * 4, x + threadIdx.x * 4, true);
	dev_copy_commit();
	for (unsigned tile = 0; tile < n_tiles; ++tile) {
		const unsigned next = tile + 1;

		dev_copy_async(stage + next % 2 * 256 + threadIdx.x * 4, x + next * 256 + threadIdx.x * 4,
			       next < n_tiles);
		dev_copy_commit();
		DEV_COPY_WAIT(1);
		DEV_BARRIER();
		for (unsigned i = threadIdx.x; i < 256; i += 64)
			y[tile * 256 + i] = stage[tile % 2 * 256 + 255 - i];
		DEV_BARRIER();
	}
	DEV_COPY_WAIT(0);
}

static DEV_KERNEL(256) count_up(uint32_t *n, float *sum)
{
	DEV_BOUNDS(256);
	dev_atomic_add(n, 1u);
	dev_atomic_add(sum, 0.5f);
}

static void test_block_sum(void)
{
	for (unsigned seed = 0; seed < 8; ++seed) {
		cudasim_seed(seed);
		EXPECT(start<block_sum>::at(5, 256, 32, in, N, out) == 0);
		for (unsigned i = 0; i < 5; ++i)
			EXPECT(out[i] == N * (N - 1) / 2);
	}
}

static void test_where(void)
{
	const unsigned grid[3] = { 3, 5, 2 }, block[3] = { 4, 3, 2 };
	void *args[] = { &out };

	memset(out, 0, N * sizeof(*out));
	EXPECT(cudasim_run(dev_kernel_handle<where>(), grid, block, 0, args) == 0);
	for (unsigned i = 0; i < N; ++i)
		EXPECT(out[i] == (i < 720));
	EXPECT(cudasim_args(dev_kernel_handle<where>()) == 1 && cudasim_arg_bytes(dev_kernel_handle<where>(), 0) == 8);
}

static void test_lanes(void)
{
	EXPECT(start<lanes>::at(1, 32, 0, out) == 0);
	for (unsigned i = 0; i < 32; ++i) {
		EXPECT(out[i] == (i * 5 + 1) % 32);
		EXPECT(out[32 + i] == (i ^ 3));
		EXPECT(out[64 + i] == (float)0x49249249u);
	}
}

static void test_matrices(void)
{
	for (unsigned i = 0; i < 384; ++i)
		in[i] = (float)(i * 7 % 31) - 15;
	EXPECT(start<matrices>::at(1, 32, 768, in, out) == 0);
	for (unsigned i = 0; i < 128; ++i) {
		float sum = 0;

		for (unsigned k = 0; k < 16; ++k)
			sum += in[i / 8 * 16 + k] * in[256 + k * 8 + i % 8];
		EXPECT(out[i] == sum);
	}
}

static void test_copies(void)
{
	EXPECT(start<copies>::at(1, 64, 2048, in, N, out) == 0);
	for (unsigned i = 0; i < N; ++i)
		EXPECT(out[i] == (float)(i / 256 * 256 + 255 - i % 256));
}

static void test_atomics(void)
{
	out[0] = out[1] = 0;
	EXPECT(start<count_up>::at(7, 256, 0, (uint32_t *)out, out + 1) == 0);
	EXPECT(dev_bits(out[0]) == 1792 && out[1] == 896);
}

static void test_numbers(void)
{
	EXPECT(dev_to_bf16x2(1.0f, -2.0f) == 0xc0003f80u);
	EXPECT(dev_to_bf16(dev_float(0x3f808000)) == 0x3f80 && dev_to_bf16(dev_float(0x3f818000)) == 0x3f82);
	EXPECT(dev_to_bf16(dev_float(0x7f7fffff)) == 0x7f80 && dev_to_bf16(dev_float(0x7f800001)) == 0x7fff);
	EXPECT(dev_from_f16(0x3c00) == 1 && dev_from_f16(0xc000) == -2 && dev_from_f16(1) == 0x1p-24f);
	EXPECT(dev_from_f16(0x8400) == -0x1p-14f && dev_from_f16(0x7bff) == 65504 && isinf(dev_from_f16(0xfc00)));
	EXPECT(isnan(dev_from_f16(0x7e00)) && dev_bits(dev_from_f16(0x8000)) == 0x80000000u);
}

static DEV_KERNEL(128) first_lane(float *y)
{
	DEV_BOUNDS(128);
	if (dev_atomic_add((uint32_t *)y, 1u) == 0)
		y[1] = (float)(threadIdx.x + 128 * blockIdx.x);
}

/* Who comes first follows from the seed, and from nothing else. */
static void test_order(void)
{
	float first[32];
	unsigned n_other = 0;

	for (unsigned i = 0; i < 32; ++i) {
		cudasim_seed(i % 16);
		out[0] = 0;
		EXPECT(start<first_lane>::at(8, 128, 0, out) == 0);
		first[i] = out[1];
		EXPECT(i < 16 || first[i] == first[i - 16]);
		n_other += first[i] != first[0];
	}
	EXPECT(n_other >= 16);
}

/* ---- limits of a launch ---- */

static int shape(unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, size_t shared)
{
	const unsigned grid[3] = { gx, gy, gz }, block[3] = { bx, by, bz };

	return cudasim_check_launch(dev_kernel_handle<where>(), grid, block, shared);
}

static void test_limits(void)
{
	EXPECT(shape(0x7fffffff, 65535, 65535, 1024, 1, 1, 48 << 10) == 0);
	EXPECT(shape(0x80000000u, 1, 1, 1, 1, 1, 0) == CUDASIM_INVALID_CONFIGURATION);
	EXPECT(shape(1, 65536, 1, 1, 1, 1, 0) == CUDASIM_INVALID_CONFIGURATION);
	EXPECT(shape(1, 1, 65536, 1, 1, 1, 0) == CUDASIM_INVALID_CONFIGURATION);
	EXPECT(shape(1, 0, 1, 1, 1, 1, 0) == CUDASIM_INVALID_CONFIGURATION);
	EXPECT(shape(1, 1, 1, 1025, 1, 1, 0) == CUDASIM_INVALID_CONFIGURATION);
	EXPECT(shape(1, 1, 1, 33, 32, 1, 0) == CUDASIM_INVALID_CONFIGURATION);
	EXPECT(shape(1, 1, 1, 1, 1, 65, 0) == CUDASIM_INVALID_CONFIGURATION);
	EXPECT(shape(1, 1, 1, 0, 1, 1, 0) == CUDASIM_INVALID_CONFIGURATION);
	EXPECT(shape(1, 1, 1, 1, 1, 1, (48 << 10) + 1) == CUDASIM_INVALID_VALUE);
	EXPECT(cudasim_allow_shared(dev_kernel_handle<where>(), 64 << 10) == 0);
	EXPECT(shape(1, 1, 1, 1, 1, 1, 64 << 10) == 0 &&
	       shape(1, 1, 1, 1, 1, 1, (64 << 10) + 1) == CUDASIM_INVALID_VALUE);
	EXPECT(cudasim_allow_shared(dev_kernel_handle<where>(), 228 << 10) == CUDASIM_INVALID_VALUE);
	EXPECT(start<where>::at(1, 1025, 0, out) == CUDASIM_INVALID_CONFIGURATION);
}

static void test_too_many_threads(void)
{
	start<where>::at(1, 65, 0, out);
}

static DEV_KERNEL(32) boundless(float *y)
{
	y[threadIdx.x] = 0;
}

static void test_no_bounds(void)
{
	start<boundless>::at(1, 32, 0, out);
}

/* ---- collectives ---- */

enum {
	EXITED_LANE,
	OTHER_LINE,
	OTHER_KIND,
	LANES_AT_BARRIER,
	COLLECTIVE_BESIDE_BARRIER,
	EXITED_THREAD,
	EXIT_LATE,
	OTHER_BARRIER,
	MISSING_WARP,
};

static DEV_KERNEL(64) diverged(unsigned how, float *y)
{
	DEV_BOUNDS(64);
	const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
	float x = 0;

	switch (how) {
	case EXITED_LANE:
		if (lane == 7)
			return;
		x = dev_shuffle_xor(x, 1);
		break;
	case OTHER_LINE:
		if (lane < 16)
			x = dev_shuffle_xor(x, 1);
		else
			x = dev_shuffle_xor(x, 1);
		break;
	case OTHER_KIND:
		x = (float)(lane < 16 ? dev_vote(true) : dev_shuffle(lane, 0));
		break;
	case LANES_AT_BARRIER:
	case COLLECTIVE_BESIDE_BARRIER:
		if ((lane < 31) == (how == LANES_AT_BARRIER))
			DEV_BARRIER();
		else
			x = dev_shuffle_xor(x, 1);
		break;
	case EXITED_THREAD:
		if (threadIdx.x == 63)
			return;
		DEV_BARRIER();
		break;
	case EXIT_LATE: /* all meet once; then one goes while the others meet again */
		DEV_BARRIER();
		if (threadIdx.x != 5)
			DEV_BARRIER();
		break;
	case OTHER_BARRIER:
		if (warp == 0)
			DEV_BARRIER();
		else
			DEV_BARRIER();
		break;
	case MISSING_WARP:
		if (warp == 0)
			DEV_BARRIER();
		break;
	}
	y[threadIdx.x] = x;
}

template <unsigned How> static void test_diverged(void)
{
	start<diverged>::at(1, 64, 0, How, out);
}

static void test_half_a_warp(void)
{
	start<lanes>::at(1, 16, 0, out);
}

/* ---- memory ---- */

enum {
	SHARED_READ_FAR,
	SHARED_WRITE_FAR,
	SHARED_BEFORE,
	GLOBAL_FAR,
	HOST_MEMORY,
	SHARED_UNWRITTEN,
	MISALIGNED_VECTOR,
	MISALIGNED_WORD,
	MISALIGNED_ROWS,
	ROWS_ELSEWHERE,
	RACE_BLOCK,
	RACE_READ_FIRST,
	RACE_WARP,
	RACE_SHUFFLE,
	RACE_WARP_BARRIER,
	RACE_HALVES,
	RACE_GLOBAL,
	RACE_ATOMIC,
	RACE_ROWS,
	NO_RACE,
};

static float of_host[4];

static DEV_KERNEL(64) memory(unsigned how, const float *x, float *y)
{
	DEV_BOUNDS(64);
	float *shared = (float *)dev_shared(); /* [64] */
	const unsigned i = threadIdx.x, other = i ^ 1, far = i ^ 32;
	uint32_t rows[4];

	if (how >= RACE_BLOCK) {
		shared[i] = 0;
		DEV_BARRIER();
	}
	switch (how) {
	case SHARED_READ_FAR:
		y[i] = shared[i + 1 + (unsigned)x[63]];
		break;
	case SHARED_WRITE_FAR:
		shared[i + 1] = 0;
		break;
	case SHARED_BEFORE:
		shared[(int)i - 1] = 0;
		break;
	case GLOBAL_FAR:
		y[i] = x[N - 63 + i];
		break;
	case HOST_MEMORY:
		y[i] = of_host[i % 4];
		break;
	case SHARED_UNWRITTEN:
		if (i > 0)
			shared[i] = 1;
		DEV_BARRIER();
		y[i] = shared[other];
		break;
	case MISALIGNED_VECTOR:
		y[i] = dev_float(dev_load16(x + i).x[0]);
		break;
	case MISALIGNED_WORD:
		y[i] = *(const float *)((const char *)x + i);
		break;
	case MISALIGNED_ROWS:
	case ROWS_ELSEWHERE:
		dev_ldmatrix(rows, how == MISALIGNED_ROWS ? shared + i % 32 : x + i * 4);
		break;
	case RACE_BLOCK:
		shared[i] = 1;
		y[i] = shared[far];
		break;
	case RACE_READ_FIRST:
		shared[i] = 1;
		DEV_BARRIER();
		y[i] = shared[far];
		shared[i] = 2;
		break;
	case RACE_WARP:
		shared[i] = 1;
		y[i] = shared[other];
		break;
	case RACE_SHUFFLE:
		shared[i] = 1;
		y[i] = dev_warp_sum(0) + shared[other];
		break;
	case RACE_WARP_BARRIER: /* which orders nothing between warps */
		shared[i] = 1;
		DEV_WARP_BARRIER();
		y[i] = shared[far];
		break;
	case RACE_HALVES: /* a word of two threads is none */
		((uint16_t *)shared)[i] = 1;
		((uint8_t *)(shared + 32))[i] = 1;
		DEV_BARRIER();
		y[i] = (float)((uint16_t *)shared)[i + 1 - i / 63];
		break;
	case RACE_GLOBAL:
		y[blockIdx.x * 32 + i] = 1;
		break;
	case RACE_ATOMIC:
		if (i == 0)
			y[0] = 1;
		else
			dev_atomic_add(y, 1.0f);
		break;
	case RACE_ROWS: /* each lane wrote the row it points to, but ldmatrix reads it in others */
		if (i < 16)
			dev_store16(shared + i % 16 * 4, { { 1, 2, 3, 4 } });
		dev_ldmatrix(rows, shared + i % 16 * 4);
		break;
	case NO_RACE:
		shared[i] = 1;
		DEV_WARP_BARRIER();
		y[i] = shared[other];
		DEV_BARRIER();
		y[i] += shared[far];
		DEV_BARRIER();
		shared[far] = 3;
		DEV_BARRIER();
		y[far] += shared[i];
		break;
	}
}

template <unsigned How> static void test_memory(void)
{
	start<memory>::at(How == RACE_GLOBAL ? 2 : 1, How == RACE_ROWS ? 32 : 64, 256, How, in, out);
}

/* ---- asynchronous copies ---- */

enum {
	READ_EARLY,
	NEVER_WAITED,
	NEVER_COMMITTED,
	NO_BARRIER,
	OVERWRITES,
	SOURCE_CHANGES,
	COPY_ALIGNED,
	COPY_ELSEWHERE,
	COPY_ZEROS
};

static DEV_KERNEL(64) copying(unsigned how, float *x, float *y)
{
	DEV_BOUNDS(64);
	float *shared = (float *)dev_shared(); /* [256] */
	const unsigned i = threadIdx.x * 4, far = i ^ 128;

	shared[i] = 1;
	DEV_BARRIER();
	if (how == OVERWRITES) /* another thread may still read */
		y[i] = shared[far];
	dev_copy_async(how == COPY_ELSEWHERE ? y + i : shared + i, x + (how == COPY_ALIGNED ? i / 4 : i),
		       how != COPY_ZEROS);
	if (how == READ_EARLY)
		y[i + 1] = shared[i];
	if (how == SOURCE_CHANGES) {
		DEV_BARRIER();
		x[far] = 2;
	}
	if (how == NEVER_WAITED || how == NEVER_COMMITTED) {
		if (how == NEVER_WAITED)
			dev_copy_commit();
		else
			DEV_COPY_WAIT(0);
		return;
	}
	dev_copy_commit();
	DEV_COPY_WAIT(0);
	if (how != NO_BARRIER)
		DEV_BARRIER();
	y[i] = shared[far];
}

template <unsigned How> static void test_copying(void)
{
	start<copying>::at(1, 64, 1024, How, in, out);
	EXPECT(How != READ_EARLY || isnan(out[1])); /* that much the plain build shows */
	EXPECT(How != COPY_ZEROS || out[4] == 0);
}

/* ---- switching off ---- */

static void test_switched_off(void)
{
	char list[128] = "nothing:1,tests/cudasim/none.cc:7";

	cudasim_switch_off(list);
	EXPECT(start<copies>::at(1, 64, 2048, in, N, out) == 0);
	for (unsigned line = 1; line < 200; ++line) { /* one after the other; the waits of copies() are among them */
		snprintf(list, sizeof(list), "test-engine.cc:%u", line);
		cudasim_switch_off(list);
		start<copies>::at(1, 64, 2048, in, N, out);
	}
}

static DEV_KERNEL(64) guarded(unsigned n, float *y)
{
	DEV_BOUNDS(64);
	if (DEV_GUARD(threadIdx.x < n))
		y[threadIdx.x] = 1;
}

static void test_guard(void)
{
	unsigned n_lines = 0;
	char list[128];

	for (unsigned line = 1; line < 1000; ++line) { /* one of them has the guard */
		memset(out, 0, N * sizeof(*out));
		snprintf(list, sizeof(list), "cudasim/test-engine.cc:%u,none:1", line);
		cudasim_switch_off(list);
		EXPECT(start<guarded>::at(1, 64, 0, 7, out) == 0 && out[6] == 1);
		n_lines += out[7] == 1;
	}
	EXPECT(n_lines == 1);
}

/* ---- counters ---- */

/* x [1024]: 1 KiB by 16 bytes, in order: 32 sectors, 16 a warp; and every 16th float: 64 sectors, 16 again. */
__attribute__((unused)) static DEV_KERNEL(64) reads(const float *x, float *y)
{
	DEV_BOUNDS(64);
	struct dev_u32x4 v = dev_load16(x + threadIdx.x * 4);

	y[threadIdx.x] = dev_float(v.x[0]) + x[threadIdx.x * 16];
}

static void test_counters(void)
{
#ifdef __SANITIZE_THREAD__
	static const char expected[] =
		"{\"kernel\": \"reads\", \"grid\": [1, 1, 1], \"block\": [64, 1, 1], \"shared\": 16, "
		"\"bytes_read\": 1280, \"bytes_read_by_size\": {\"1\": 0, \"2\": 0, \"4\": 256, \"8\": 0, \"16\": "
		"1024}, "
		"\"bytes_written\": 256, ";
	static const char sums[] =
		"\"sectors_read\": 80, \"sectors_written\": 8, \"warp_accesses\": 6, \"warp_sectors\": 104, "
		"\"warp_sectors_ideal\": 48, \"mma\": 0, \"copy_bytes\": 0, ";
	char name[] = "/tmp/cudasim-XXXXXX", said[4096] = "";
	int fd = mkstemp(name);

	EXPECT(fd >= 0);
	setenv("CUDASIM_COUNT", name, 1);
	EXPECT(start<reads>::at(1, 64, 16, in, out) == 0);
	EXPECT(read(fd, said, sizeof(said) - 1) > 0);
	unlink(name);
	EXPECT(strncmp(said, expected, sizeof(expected) - 1) == 0);
	EXPECT(strstr(said, sums));
#endif
}

static unsigned n_heard;

static void hear(const char *)
{
	++n_heard;
}

/* After a launch that was abandoned the next one is fine. */
static void test_abandoned(void)
{
	cudasim_on_violation = hear;
	for (unsigned i = 1; i < 4; ++i) {
		EXPECT(start<copying>::at(1, 64, 1024, NEVER_WAITED, in, out) == CUDASIM_LAUNCH_FAILURE);
		EXPECT(start<diverged>::at(3, 64, 0, EXITED_THREAD, out) == CUDASIM_LAUNCH_FAILURE);
		EXPECT(n_heard == 2 * i);
		EXPECT(start<block_sum>::at(1, 256, 32, in, N, out) == 0 && out[0] == N * (N - 1) / 2);
	}
}

/* ---- */

static const char ASAN[] = "AddressSanitizer", UBSAN[] = "runtime error";

struct test {
	const char *name;
	void (*run)(void);
	const char *plain, *asan, *instrumented;
};

/* clang-format off */
#define PASSES(name, run) { name, run, NULL, NULL, NULL }
#define FAILS(name, run, words) { name, run, words, words, words }
#define RACES(name, how) { name, test_memory<how>, NULL, NULL, "race on" }
/* clang-format on */

static const struct test all[] = {
	PASSES("block sum", test_block_sum),
	PASSES("numbers of blocks and threads", test_where),
	PASSES("shuffles and vote", test_lanes),
	PASSES("ldmatrix and mma", test_matrices),
	PASSES("pipeline of copies", test_copies),
	PASSES("atomics", test_atomics),
	PASSES("bf16 and f16", test_numbers),
	PASSES("order follows from seed", test_order),
	PASSES("limits of a launch", test_limits),
	PASSES("abandoned launch", test_abandoned),
	PASSES("guard switched off", test_guard),
	PASSES("counters", test_counters),
	FAILS("launch bounds", test_too_many_threads, "65 threads, but the kernel is bound to 64"),
	FAILS("no launch bounds", test_no_bounds, "no DEV_BOUNDS()"),
	FAILS("half a warp", test_half_a_warp, "by a warp of 16 lanes"),
	FAILS("exited lane", test_diverged<EXITED_LANE>, "exit"),
	FAILS("other line", test_diverged<OTHER_LINE>, "lanes of the warp wait at"),
	FAILS("other collective", test_diverged<OTHER_KIND>, "lanes of the warp wait at"),
	FAILS("most lanes at a barrier", test_diverged<LANES_AT_BARRIER>, "of the warp wait at"),
	FAILS("one lane at a barrier", test_diverged<COLLECTIVE_BESIDE_BARRIER>, "of the warp wait at"),
	FAILS("exited thread", test_diverged<EXITED_THREAD>, "exit"),
	FAILS("thread exits late", test_diverged<EXIT_LATE>, "exit"),
	FAILS("other barrier", test_diverged<OTHER_BARRIER>, "threads wait at the barrier"),
	FAILS("warp misses barrier", test_diverged<MISSING_WARP>, "exit"),
	{ "shared memory read too far", test_memory<SHARED_READ_FAR>, NULL, ASAN, "shared memory" },
	{ "shared memory written too far", test_memory<SHARED_WRITE_FAR>, NULL, ASAN,
	  "at byte 256 of 256 bytes of shared memory" },
	{ "shared memory written before", test_memory<SHARED_BEFORE>, NULL, ASAN,
	  "at byte -4 of 256 bytes of shared memory" },
	{ "global memory read too far", test_memory<GLOBAL_FAR>, NULL, ASAN, "not memory of the device" },
	{ "memory of the host", test_memory<HOST_MEMORY>, NULL, NULL, "not memory of the device" },
	{ "shared memory never written", test_memory<SHARED_UNWRITTEN>, NULL, NULL, "that nobody wrote" },
	FAILS("misaligned vector", test_memory<MISALIGNED_VECTOR>, "not aligned to 16 bytes"),
	{ "misaligned word", test_memory<MISALIGNED_WORD>, NULL, UBSAN, "not aligned to 4 bytes" },
	FAILS("misaligned rows", test_memory<MISALIGNED_ROWS>, "not aligned to 16 bytes"),
	FAILS("ldmatrix of global memory", test_memory<ROWS_ELSEWHERE>, "not in shared memory"),
	RACES("race of two warps", RACE_BLOCK),
	RACES("race, read first", RACE_READ_FIRST),
	RACES("race within a warp", RACE_WARP),
	RACES("shuffle orders nothing", RACE_SHUFFLE),
	RACES("warp barrier between warps", RACE_WARP_BARRIER),
	PASSES("parts of a word", test_memory<RACE_HALVES>),
	RACES("race of two blocks", RACE_GLOBAL),
	RACES("race with an atomic", RACE_ATOMIC),
	RACES("ldmatrix reads for others", RACE_ROWS),
	PASSES("barriers order", test_memory<NO_RACE>),
	{ "read before copy's wait", test_copying<READ_EARLY>, NULL, ASAN, "copy is under way" },
	FAILS("copy never waited for", test_copying<NEVER_WAITED>, "still under way"),
	FAILS("copy never committed", test_copying<NEVER_COMMITTED>, "still under way"),
	{ "copy without barrier", test_copying<NO_BARRIER>, NULL, NULL, "race on" },
	{ "copy over what is read", test_copying<OVERWRITES>, NULL, NULL, "race on" },
	{ "copy's source changes", test_copying<SOURCE_CHANGES>, NULL, NULL, "race on" },
	FAILS("misaligned copy", test_copying<COPY_ALIGNED>, "not aligned to 16 bytes"),
	FAILS("copy to global memory", test_copying<COPY_ELSEWHERE>, "not in shared memory"),
	PASSES("copy of zeros", test_copying<COPY_ZEROS>),
	{ "switched off", test_switched_off, "still under way", ASAN, "copy is under way" },
};

/* Return: the child's exit status, or 128 + signal. */
static int run_in_child(const struct test *test, char *said, size_t room)
{
	int ends[2], status;
	size_t n = 0;
	ssize_t r;
	pid_t pid;

	if (pipe(ends) < 0 || (pid = fork()) < 0) {
		perror("pipe or fork");
		exit(2);
	}
	if (pid == 0) {
		dup2(ends[1], STDERR_FILENO);
		close(ends[0]);
		close(ends[1]);
		test->run();
		_exit(0);
	}
	close(ends[1]);
	while ((r = read(ends[0], said + n, room - 1 - n)) > 0)
		n += (size_t)r;
	said[n] = 0;
	close(ends[0]);
	waitpid(pid, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void run(const struct test *test)
{
	static char said[1 << 20];
	int status = run_in_child(test, said, sizeof(said));
#if defined(__SANITIZE_ADDRESS__)
	const char *words = test->asan;
#elif defined(__SANITIZE_THREAD__)
	const char *words = test->instrumented;
#else
	const char *words = test->plain;
#endif
	bool good = words ? status != 0 && strstr(said, words) : status == 0;

	n_failed += !good;
	printf("%s: %s\n", good ? "ok" : "FAILED", test->name);
	if (!good)
		printf("    status %d, expected %s; said: %.2000s\n", status, words ? words : "success", said);
}

int main(int argc, char **argv)
{
	in = (float *)aligned_alloc(64, N * sizeof(*in));
	out = (float *)aligned_alloc(64, N * sizeof(*out));
	if (!in || !out)
		return 2;
	for (unsigned i = 0; i < N; ++i)
		in[i] = (float)i;
	of_host[1] = 1;
	memset(out, 0, N * sizeof(*out));
	cudasim_memory(in, N * sizeof(*in), true);
	cudasim_memory(out, N * sizeof(*out), true);
	for (const struct test &test : all) {
		if (argc < 2 || strcmp(argv[1], test.name) == 0)
			run(&test);
	}
	free(in);
	free(out);
	return n_failed > 0;
}
