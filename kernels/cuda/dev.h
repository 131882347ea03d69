/* SPDX-License-Identifier: MIT */
/*
 * What kernels may use of the GPU: CUDA's own names for threads and blocks, and the wrappers below. Nothing else that C++
 * does not know stands in a .cu file, so that the same file also compiles as C++ for the simulator (tests/cudasim/), which
 * keeps CUDA's rules strictly.
 *
 * Rules for kernels
 * - Shared memory is dynamic only: dev_shared(). Its size is an argument of the launch, at most 48 KiB.
 * - DEV_BOUNDS(n), the first statement of every kernel: it is launched with at most n threads, as __launch_bounds__ says.
 * - A warp-wide wrapper (shuffle, vote, ldmatrix, mma) is called by all 32 lanes, from the same place.
 * - DEV_BARRIER() is called by all threads of the block: none may have returned before.
 * - What one thread wrote to shared memory, another reads only after a barrier (within a warp: DEV_WARP_BARRIER()).
 * - Copies by dev_copy_async() are there after dev_copy_wait() and, for other threads' copies, a barrier behind it.
 * - No other parallel feature: no clusters, cooperative groups, TMA, wgmma, managed memory, device-side launches.
 */
#ifndef LORAD_KERNELS_CUDA_DEV_H
#define LORAD_KERNELS_CUDA_DEV_H

#include <stdint.h>
#include <string.h>

struct dev_u32x4 {
	uint32_t x[4];
};

struct dev_u32x2 {
	uint32_t x[2];
};

#ifdef __CUDACC__

#define DEV_INLINE static __device__ __forceinline__
#define DEV_KERNEL(...) __global__ void __launch_bounds__(__VA_ARGS__) /* threads[, blocks an SM shall hold] */
#define DEV_BOUNDS(threads)
#define DEV_BARRIER() __syncthreads()
#define DEV_WARP_BARRIER() __syncwarp()
#define DEV_GUARD(condition) (condition) /* a check of bounds: the simulator can leave it out, to see that a test notices */

extern __shared__ __align__(128) unsigned char dev_shared_bytes[];

template <auto Kernel> static inline const void *dev_kernel_handle()
{
	return (const void *)Kernel;
}

/* The block's shared memory, 128-byte aligned. */
DEV_INLINE unsigned char *dev_shared()
{
	return dev_shared_bytes;
}

/* T: float, int32_t or uint32_t, here and below */
template <typename T> DEV_INLINE T dev_shuffle(T value, unsigned lane)
{
	return __shfl_sync(0xffffffffu, value, (int)lane);
}

template <typename T> DEV_INLINE T dev_shuffle_xor(T value, unsigned mask)
{
	return __shfl_xor_sync(0xffffffffu, value, (int)mask);
}

/* Bit i: lane i's answer. */
DEV_INLINE uint32_t dev_vote(bool yes)
{
	return __ballot_sync(0xffffffffu, yes);
}

/* Shared or global memory; returns what was there before. */
template <typename T> DEV_INLINE T dev_atomic_add(T *p, T value)
{
	return atomicAdd(p, value);
}

/* 16 aligned bytes of global or shared memory at once. */
DEV_INLINE struct dev_u32x4 dev_load16(const void *p)
{
	const uint4 v = *(const uint4 *)p;

	return { { v.x, v.y, v.z, v.w } };
}

DEV_INLINE void dev_store16(void *p, struct dev_u32x4 v)
{
	*(uint4 *)p = make_uint4(v.x[0], v.x[1], v.x[2], v.x[3]);
}

DEV_INLINE struct dev_u32x2 dev_load8(const void *p)
{
	const uint2 v = *(const uint2 *)p;

	return { { v.x, v.y } };
}

/* cp.async: 16 bytes, both sides 16-byte aligned. Not valid: zeros are written and `from` is not read. */
DEV_INLINE void dev_copy_async(void *to_shared, const void *from_global, bool valid)
{
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"((uint32_t)__cvta_generic_to_shared(to_shared)),
		     "l"(__cvta_generic_to_global(from_global)), "r"(valid ? 16 : 0)
		     : "memory");
}

/* This thread's copies since the last commit become one group. */
DEV_INLINE void dev_copy_commit()
{
	asm volatile("cp.async.commit_group;\n" ::: "memory");
}

/* Wait until at most N of this thread's newest groups are under way. */
#define DEV_COPY_WAIT(n) asm volatile("cp.async.wait_group %0;\n" ::"n"(n) : "memory")

/*
 * d += a b on the tensor cores: m16n8k16, bf16 inputs, f32 sums. Lane l, g = l / 4, t = l % 4 (PTX ISA, mma.m16n8k16):
 *   a[0]: row g, columns 2t, 2t+1    a[1]: row g+8, same    a[2]: row g, columns 2t+8, 2t+9    a[3]: row g+8, same
 *   b[0]: rows 2t, 2t+1 of column g  b[1]: rows 2t+8, 2t+9
 *   d[0], d[1]: row g, columns 2t, 2t+1                     d[2], d[3]: row g+8
 * The lower column (row of b) is the lower half of the word.
 */
DEV_INLINE void dev_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
		     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
		     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/*
 * Four 8x8 matrices of 16-bit numbers from shared memory: lanes 8i..8i+7 give the addresses of the rows (16 bytes each,
 * aligned) of matrix i; ret[i], lane l: row l / 4, columns 2(l % 4) and the next. Trans: of the transposed matrix.
 */
DEV_INLINE void dev_ldmatrix(uint32_t ret[4], const void *row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
		     : "=r"(ret[0]), "=r"(ret[1]), "=r"(ret[2]), "=r"(ret[3])
		     : "r"((uint32_t)__cvta_generic_to_shared(row))
		     : "memory");
}

DEV_INLINE void dev_ldmatrix_trans(uint32_t ret[4], const void *row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
		     : "=r"(ret[0]), "=r"(ret[1]), "=r"(ret[2]), "=r"(ret[3])
		     : "r"((uint32_t)__cvta_generic_to_shared(row))
		     : "memory");
}

/* Two numbers rounded to bf16, nearest, ties to even; lo in the lower half. */
DEV_INLINE uint32_t dev_to_bf16x2(float lo, float hi)
{
	uint32_t ret;

	asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(ret) : "f"(hi), "f"(lo));
	return ret;
}

DEV_INLINE float dev_from_f16(uint16_t half)
{
	float ret;

	asm("cvt.f32.f16 %0, %1;\n" : "=f"(ret) : "h"(half));
	return ret;
}

#else
#include <cudasim/dev.h>
#endif

/* ---- of these and plain C++ ---- */

#define DEV_WARP 32u

DEV_INLINE float dev_float(uint32_t bits)
{
	float x;

	memcpy(&x, &bits, sizeof(x));
	return x;
}

DEV_INLINE uint32_t dev_bits(float x)
{
	uint32_t bits;

	memcpy(&bits, &x, sizeof(bits));
	return bits;
}

DEV_INLINE float dev_from_bf16(uint16_t half)
{
	return dev_float((uint32_t)half << 16);
}

DEV_INLINE uint16_t dev_to_bf16(float x)
{
	return (uint16_t)dev_to_bf16x2(x, 0);
}

/* Of all lanes, in every lane. */
DEV_INLINE float dev_warp_sum(float x)
{
	for (unsigned mask = DEV_WARP / 2; mask > 0; mask /= 2)
		x += dev_shuffle_xor(x, mask);
	return x;
}

DEV_INLINE float dev_warp_max(float x)
{
	for (unsigned mask = DEV_WARP / 2; mask > 0; mask /= 2)
		x = fmaxf(x, dev_shuffle_xor(x, mask));
	return x;
}

/*
 * Of all threads of the block, in every thread; room: as many floats of shared memory as the block has warps, which may
 * be used again behind the next barrier.
 */
DEV_INLINE float dev_block_sum(float x, float *room)
{
	unsigned warp = threadIdx.x / DEV_WARP, n_warps = blockDim.x / DEV_WARP;
	float sum = 0;

	x = dev_warp_sum(x);
	if (threadIdx.x % DEV_WARP == 0)
		room[warp] = x;
	DEV_BARRIER();
	for (unsigned i = 0; i < n_warps; ++i)
		sum += room[i];
	return sum;
}

#endif
