/* SPDX-License-Identifier: MIT */
/*
 * The simulator's half of kernels/cuda/dev.h: the same wrappers as C++ over the engine (../../engine.cc). A kernel
 * thread is a fiber. threadIdx and the rest stand in one struct that the engine fills at each switch, so reading them
 * costs a load.
 *
 * A place that can be switched off (barriers, waits, guards) is a static struct cudasim_site of its own; collectives
 * know their place as the file and line of the call of their wrapper.
 */
#ifndef CUDASIM_DEV_H
#define CUDASIM_DEV_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <utility>

struct cudasim_uint3 {
	unsigned x, y, z;
};

struct cudasim_view { /* what a running thread sees of itself */
	struct cudasim_uint3 thread, block, block_size, grid_size;
	unsigned char *shared;
};

struct cudasim_site {
	const char *kind, *file;
	int line;
	unsigned generation; /* of the list of sites that are off, when `off` was looked up */
	bool off, met;
};

struct cudasim_kernel { /* what a launch's handle points to */
	const char *name; /* __PRETTY_FUNCTION__ of a template over the kernel */
	void (*call)(void **args);
	unsigned n_args;
	const size_t *arg_bytes;
	size_t max_shared; /* opted in; 0: the default of 48 KiB */
};

extern struct cudasim_view cudasim_view;

/* Shuffles are by value of 32 bits; the others take pointers to the lane's own operands. */
uint32_t cudasim_shuffle(uint32_t value, unsigned lane, bool is_xor, const char *file, int line);
uint32_t cudasim_vote(bool yes, const char *file, int line);
void cudasim_mma(float *d, const uint32_t *a, const uint32_t *b, const char *file, int line);
void cudasim_ldmatrix(uint32_t *ret, const void *row, bool trans, const char *file, int line);
void cudasim_barrier(struct cudasim_site *site);
void cudasim_warp_barrier(struct cudasim_site *site);
void cudasim_copy(void *to, const void *from, bool valid, const char *file, int line);
void cudasim_copy_commit(void);
void cudasim_copy_wait(struct cudasim_site *site, unsigned n_left);
void cudasim_bounds(unsigned threads);
bool cudasim_guard_is_off(struct cudasim_site *site);
float cudasim_atomic_add(float *p, float value);
int32_t cudasim_atomic_add(int32_t *p, int32_t value);
uint32_t cudasim_atomic_add(uint32_t *p, uint32_t value);
/* Vector accesses: one access of so many bytes, aligned to as many. */
void cudasim_load(void *to, const void *from, size_t bytes);
void cudasim_store(void *to, const void *from, size_t bytes);
void cudasim_misaligned(const void *p, size_t bytes);

/* References, not macros: cudaLaunchConfig_t has members of the same names. */
__attribute__((unused)) static const struct cudasim_uint3 &threadIdx = cudasim_view.thread;
__attribute__((unused)) static const struct cudasim_uint3 &blockIdx = cudasim_view.block;
__attribute__((unused)) static const struct cudasim_uint3 &blockDim = cudasim_view.block_size;
__attribute__((unused)) static const struct cudasim_uint3 &gridDim = cudasim_view.grid_size;

#define DEV_INLINE static inline __attribute__((always_inline))
#define DEV_KERNEL(...) void
#define DEV_BOUNDS(threads) cudasim_bounds(threads)

/* A lambda, so that each expansion (and each instance of a template) has its own site. */
#define CUDASIM_SITE(kind) \
	([](const char *file, int line) -> struct cudasim_site * { \
		static struct cudasim_site site = { kind, nullptr, 0, 0, false, false }; \
		return cudasim_site_at(&site, file, line); \
	}(__FILE__, __LINE__))
#define DEV_BARRIER() cudasim_barrier(CUDASIM_SITE("barrier"))
#define DEV_WARP_BARRIER() cudasim_warp_barrier(CUDASIM_SITE("warp-barrier"))
#define DEV_COPY_WAIT(n) cudasim_copy_wait(CUDASIM_SITE("copy-wait"), n)
/* A bounds check that the mutation run can take away: if (DEV_GUARD(i < n)) */
#define DEV_GUARD(condition) (cudasim_guard_is_off(CUDASIM_SITE("guard")) || (condition))

struct cudasim_site *cudasim_site_at(struct cudasim_site *site, const char *file, int line);

/* ---- kernels as handles ---- */

template <auto Kernel> constexpr const char *cudasim_name()
{
	return __PRETTY_FUNCTION__;
}

template <auto Kernel> struct cudasim_handle;

template <typename... P, void (*Kernel)(P...)> struct cudasim_handle<Kernel> {
	template <size_t... I> static void call_with(void **args, std::index_sequence<I...>)
	{
		(void)args;
		Kernel(*(P *)args[I]...);
	}

	static void call(void **args)
	{
		call_with(args, std::index_sequence_for<P...>());
	}

	static const void *get()
	{
		static const size_t bytes[] = { sizeof(P)..., 0 };
		static struct cudasim_kernel kernel = { cudasim_name<Kernel>(), call, sizeof...(P), bytes, 0 };

		return &kernel;
	}
};

template <auto Kernel> static inline const void *dev_kernel_handle()
{
	return cudasim_handle<Kernel>::get();
}

/* ---- the wrappers ---- */

DEV_INLINE unsigned char *dev_shared()
{
	return cudasim_view.shared;
}

template <typename T>
DEV_INLINE T dev_shuffle(T value, unsigned lane, const char *file = __builtin_FILE(), int line = __builtin_LINE())
{
	static_assert(sizeof(T) == 4, "shuffles are of 32 bits");
	uint32_t bits;

	memcpy(&bits, &value, 4);
	bits = cudasim_shuffle(bits, lane, false, file, line);
	memcpy(&value, &bits, 4);
	return value;
}

template <typename T>
DEV_INLINE T dev_shuffle_xor(T value, unsigned mask, const char *file = __builtin_FILE(), int line = __builtin_LINE())
{
	static_assert(sizeof(T) == 4, "shuffles are of 32 bits");
	uint32_t bits;

	memcpy(&bits, &value, 4);
	bits = cudasim_shuffle(bits, mask, true, file, line);
	memcpy(&value, &bits, 4);
	return value;
}

DEV_INLINE uint32_t dev_vote(bool yes, const char *file = __builtin_FILE(), int line = __builtin_LINE())
{
	return cudasim_vote(yes, file, line);
}

template <typename T> DEV_INLINE T dev_atomic_add(T *p, T value)
{
	return cudasim_atomic_add(p, value);
}

#ifdef __SANITIZE_THREAD__ /* one access as on the GPU, not as g++ would split it */
#define CUDASIM_LOAD(to, from, bytes) cudasim_load(to, from, bytes)
#define CUDASIM_STORE(to, from, bytes) cudasim_store(to, from, bytes)
#else
#define CUDASIM_LOAD(to, from, bytes) \
	(((uintptr_t)(from) % (bytes) ? cudasim_misaligned(from, bytes) : (void)0), (void)memcpy(to, from, bytes))
#define CUDASIM_STORE(to, from, bytes) \
	(((uintptr_t)(to) % (bytes) ? cudasim_misaligned(to, bytes) : (void)0), (void)memcpy(to, from, bytes))
#endif

DEV_INLINE struct dev_u32x4 dev_load16(const void *p)
{
	struct dev_u32x4 v;

	CUDASIM_LOAD(&v, p, 16);
	return v;
}

DEV_INLINE void dev_store16(void *p, struct dev_u32x4 v)
{
	CUDASIM_STORE(p, &v, 16);
}

DEV_INLINE struct dev_u32x2 dev_load8(const void *p)
{
	struct dev_u32x2 v;

	CUDASIM_LOAD(&v, p, 8);
	return v;
}

DEV_INLINE void dev_copy_async(void *to_shared, const void *from_global, bool valid,
			       const char *file = __builtin_FILE(), int line = __builtin_LINE())
{
	cudasim_copy(to_shared, from_global, valid, file, line);
}

DEV_INLINE void dev_copy_commit()
{
	cudasim_copy_commit();
}

DEV_INLINE void dev_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2], const char *file = __builtin_FILE(),
			     int line = __builtin_LINE())
{
	cudasim_mma(d, a, b, file, line);
}

DEV_INLINE void dev_ldmatrix(uint32_t ret[4], const void *row, const char *file = __builtin_FILE(),
			     int line = __builtin_LINE())
{
	cudasim_ldmatrix(ret, row, false, file, line);
}

DEV_INLINE void dev_ldmatrix_trans(uint32_t ret[4], const void *row, const char *file = __builtin_FILE(),
				   int line = __builtin_LINE())
{
	cudasim_ldmatrix(ret, row, true, file, line);
}

DEV_INLINE uint32_t cudasim_to_bf16(float x)
{
	uint32_t bits;

	memcpy(&bits, &x, 4);
	if ((bits & 0x7fffffffu) > 0x7f800000u)
		return 0x7fffu; /* as cvt.rn.bf16x2: the one NaN */
	return (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}

DEV_INLINE uint32_t dev_to_bf16x2(float lo, float hi)
{
	return cudasim_to_bf16(lo) | cudasim_to_bf16(hi) << 16;
}

DEV_INLINE float dev_from_f16(uint16_t half)
{
	const uint32_t sign = (uint32_t)(half & 0x8000u) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
	uint32_t bits;
	float x;

	if (exponent == 0) {
		x = (float)fraction * 0x1p-24f;
		memcpy(&bits, &x, 4);
	} else {
		bits = (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13;
	}
	bits |= sign;
	memcpy(&x, &bits, 4);
	return x;
}

/* ---- functions that CUDA has and C++ lacks ---- */

DEV_INLINE float rsqrtf(float x)
{
	return 1.0f / sqrtf(x);
}

#define CUDASIM_MIN_MAX(type, a, b) \
	DEV_INLINE type min(a x, b y) \
	{ \
		return (type)x < (type)y ? (type)x : (type)y; \
	} \
	DEV_INLINE type max(a x, b y) \
	{ \
		return (type)x > (type)y ? (type)x : (type)y; \
	}
CUDASIM_MIN_MAX(int, int, int)
CUDASIM_MIN_MAX(unsigned, unsigned, unsigned)
CUDASIM_MIN_MAX(unsigned, int, unsigned)
CUDASIM_MIN_MAX(unsigned, unsigned, int)
CUDASIM_MIN_MAX(long, long, long)
CUDASIM_MIN_MAX(unsigned long, unsigned long, unsigned long)
CUDASIM_MIN_MAX(unsigned long, long, unsigned long)
CUDASIM_MIN_MAX(unsigned long, unsigned long, long)
CUDASIM_MIN_MAX(long long, long long, long long)
CUDASIM_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)

DEV_INLINE float min(float x, float y)
{
	return fminf(x, y);
}

DEV_INLINE float max(float x, float y)
{
	return fmaxf(x, y);
}

#endif
