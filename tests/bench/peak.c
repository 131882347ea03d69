/* SPDX-License-Identifier: MIT */
/*
 * Peaks by experiment: independent chains of one instruction on registers, and a walk over memory that only reads.
 * Written in assembly, so that it measures the machine and not the compiler. An instruction set without instructions for
 * bf16 or int8 products is measured with what it uses in their place: f32 multiply-adds, vpmaddubsw + vpmaddwd + vpaddd.
 */
#include "tests/bench/peak.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/host.h"

#define ROUNDS 2000000
#define CHAINS 12

struct job {
	void (*run)(void);
	const uint8_t *memory;
	size_t bytes;
	unsigned *n_parts; /* how many times the team ran it: its choice */
};

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

#ifdef __x86_64__

#define TWELVE(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define XMM(n) "xmm" #n,
#define LOOP(name, X)                                                                                                    \
	static void name(void)                                                                                           \
	{                                                                                                                \
		__asm__ volatile("vpxor %%xmm14, %%xmm14, %%xmm14\n\tvpxor %%xmm15, %%xmm15, %%xmm15" ::: "xmm14",         \
				 "xmm15");                                                                               \
		for (int i = 0; i < ROUNDS; i++)                                                                         \
			__asm__ volatile(TWELVE(X)::: TWELVE(XMM) "xmm12", "xmm13", "xmm14", "xmm15");                   \
		__asm__ volatile("vzeroupper");                                                                          \
	}

#define FMA_256(n) "vfmadd231ps %%ymm14, %%ymm15, %%ymm" #n "\n\t"
#define FMA_512(n) "vfmadd231ps %%zmm14, %%zmm15, %%zmm" #n "\n\t"
#define BF16_512(n) "vdpbf16ps %%zmm14, %%zmm15, %%zmm" #n "\n\t"
#define INT8_512(n) "vpdpbusd %%zmm14, %%zmm15, %%zmm" #n "\n\t"
#define MADD_256(n)                                                                                                      \
	"vpmaddubsw %%ymm14, %%ymm15, %%ymm12\n\tvpmaddwd %%ymm12, %%ymm14, %%ymm13\n\tvpaddd %%ymm13, %%ymm" #n ", %%ymm" #n \
	"\n\t"
#define MADD_512(n)                                                                                                      \
	"vpmaddubsw %%zmm14, %%zmm15, %%zmm12\n\tvpmaddwd %%zmm12, %%zmm14, %%zmm13\n\tvpaddd %%zmm13, %%zmm" #n ", %%zmm" #n \
	"\n\t"

/* Four tiles of sums, 16 x 16 x 32 multiply-adds each time. The caller has asked for tiles already (weight_plan does). */
static void bf16_tiles(void)
{
	static const uint8_t config[64] __attribute__((aligned(64))) = {
		[0] = 1, [16] = 64, [18] = 64, [20] = 64, [22] = 64, [24] = 64, [26] = 64, /* bytes of a row */
		[48] = 16, [49] = 16, [50] = 16, [51] = 16, [52] = 16, [53] = 16,          /* rows */
	};

	__asm__ volatile("ldtilecfg %0" ::"m"(config));
	for (int i = 0; i < ROUNDS / 16; i++)
		__asm__ volatile("tdpbf16ps %tmm4, %tmm5, %tmm0\n\ttdpbf16ps %tmm4, %tmm5, %tmm1\n\t"
				 "tdpbf16ps %tmm4, %tmm5, %tmm2\n\ttdpbf16ps %tmm4, %tmm5, %tmm3");
	__asm__ volatile("tilerelease");
}

/* Whether the kernels multiply bf16 weights with tiles here. */
static bool has_tiles(enum kern_isa isa)
{
	const struct kern_matrix m = { KERN_BF16, 32, 32, 0, NULL };
	struct kern_weight w;

	return kern_cpu(isa)->device->weight_plan(NULL, &m, KERN_PRECISION_BF16, &w) == 0 && (w.layout & HOST_LAYOUT_AMX);
}

LOOP(fma_256, FMA_256)
LOOP(fma_512, FMA_512)
LOOP(bf16_512, BF16_512)
LOOP(int8_512, INT8_512)
LOOP(madd_256, MADD_256)
LOOP(madd_512, MADD_512)

#else

static void nothing(void)
{
}

#endif

static void run_part(const void *args, unsigned part, unsigned n_parts)
{
	const struct job *job = args;
	uint64_t x = 0;

	if (job->run) {
		if (part == 0)
			*job->n_parts = n_parts;
		job->run();
		return;
	}
	const uint64_t *p = (const void *)(job->memory + job->bytes / n_parts / 4096 * 4096 * part);
	for (size_t i = 0; i < job->bytes / n_parts / 8; i += 8)
		x ^= p[i] ^ p[i + 1] ^ p[i + 2] ^ p[i + 3] ^ p[i + 4] ^ p[i + 5] ^ p[i + 6] ^ p[i + 7];
	__asm__ volatile("" ::"r"(x));
}

static double best_time(struct team *team, const struct job *job)
{
	double best = 1e9;

	for (int r = 0; r < 7; r++) {
		double t = now();
		team_run(team, run_part, job);
		t = now() - t;
		best = t < best ? t : best;
	}
	return best;
}

/* GOP/s of all threads together, where each instruction of a chain does so many operations. */
static double rate(struct team *team, void (*run)(void), double operations)
{
	unsigned n_parts;
	struct job job = { .run = run, .n_parts = &n_parts };
	double best = best_time(team, &job);

	return n_parts * (double)ROUNDS * CHAINS * operations / best / 1e9;
}

void peak_measure(struct peak *ret, struct team *team, enum kern_isa isa, size_t bytes)
{
	struct kern_device *device;
	struct job job = { .bytes = bytes };
	void *memory;

	if (kern_ref.device->open(&device, 0, NULL) < 0 || kern_ref.device->alloc(device, NULL, bytes, &memory) < 0)
		exit(1);
	memset(memory, 1, bytes);
	job.memory = memory;
	ret->read = (double)bytes / best_time(team, &job) / 1e9;
	kern_ref.device->close(device);
#ifdef __x86_64__
	bool wide = isa >= KERN_ISA_AVX512;
	ret->fma = rate(team, wide ? fma_512 : fma_256, wide ? 32 : 16);
	ret->bf16 = isa != KERN_ISA_SCALAR && has_tiles(isa)
			    ? rate(team, bf16_tiles, 16 * 16 * 64 * 4.0 / CHAINS / 16)
		    : isa >= KERN_ISA_BF16 ? rate(team, bf16_512, 64) : ret->fma;
	ret->int8 = isa >= KERN_ISA_VNNI ? rate(team, int8_512, 128) : rate(team, wide ? madd_512 : madd_256, wide ? 128 : 64);
#else
	(void)isa;
	ret->fma = ret->bf16 = ret->int8 = rate(team, nothing, 0);
#endif
}
