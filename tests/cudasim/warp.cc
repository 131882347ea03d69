/* SPDX-License-Identifier: MIT */
/*
 * What a warp does together (shuffles, votes, ldmatrix, mma), asynchronous copies and single vector accesses
 *
 * A collective is computed once, for all lanes, by the last lane that arrives; operands stay on the waiting lanes'
 * stacks. A copy is a note until its thread waits for its group: its target holds poison till then.
 */
#include <stdlib.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#include "tests/cudasim/inside.h"

#define CALLER __builtin_return_address(0)

static bool in_shared(const void *p, size_t bytes)
{
	const unsigned char *at = (const unsigned char *)p, *base = cudasim_view.shared;

	return at >= base && at + bytes <= base + cudasim_launch.shared_bytes;
}

/* ---- shuffles and votes ---- */

static void complete_shuffle(struct warp *w)
{
	uint32_t in[WARP];

	memcpy(in, w->value, sizeof(in));
	for (unsigned lane = 0; lane < WARP; ++lane)
		w->value[lane] = in[w->source[lane]];
}

uint32_t cudasim_shuffle(uint32_t value, unsigned lane, bool is_xor, const char *file, int line)
{
	struct thread *t = cudasim_now;

	t->warp->value[t->lane] = value;
	t->warp->source[t->lane] = (is_xor ? t->lane ^ lane : lane) % WARP;
	cudasim_meet(is_xor ? "shuffle_xor" : "shuffle", file, line, complete_shuffle);
	return t->warp->value[t->lane];
}

static void complete_vote(struct warp *w)
{
	uint32_t bits = 0;

	for (unsigned lane = 0; lane < WARP; ++lane)
		bits |= w->value[lane] << lane;
	for (unsigned lane = 0; lane < WARP; ++lane)
		w->value[lane] = bits;
}

uint32_t cudasim_vote(bool yes, const char *file, int line)
{
	struct thread *t = cudasim_now;

	t->warp->value[t->lane] = yes;
	cudasim_meet("vote", file, line, complete_vote);
	return t->warp->value[t->lane];
}

static void complete_warp_barrier(struct warp *w)
{
	CUDASIM_WATCH(barrier(w));
	(void)w;
}

void cudasim_warp_barrier(struct cudasim_site *site)
{
	if (!site->off)
		cudasim_meet("warp barrier", site->file, site->line, complete_warp_barrier);
}

/* ---- matrices ---- */

typedef float row8 __attribute__((vector_size(32)));

/* D [16][8] += A [16][16] B [16][8]; products of bf16 are exact in f32 */
static inline __attribute__((always_inline)) void multiply(row8 *d, const float (*a)[16], const row8 *b)
{
	for (unsigned i = 0; i < 16; ++i) {
		row8 sum = d[i];

		for (unsigned k = 0; k < 16; ++k)
			sum += a[i][k] * b[k];
		d[i] = sum;
	}
}

__attribute__((target("avx2"))) static void multiply_avx2(row8 *d, const float (*a)[16], const row8 *b)
{
	multiply(d, a, b);
}

static void multiply_plain(row8 *d, const float (*a)[16], const row8 *b)
{
	multiply(d, a, b);
}

static void unpack(uint32_t word, float *lo, float *hi)
{
	*lo = dev_float(word << 16);
	*hi = dev_float(word & 0xffff0000u);
}

static void complete_mma(struct warp *w)
{
	static const bool avx2 = __builtin_cpu_supports("avx2");
	alignas(32) float a[16][16], b[16][8], d[16][8], hi;

	for (unsigned lane = 0; lane < WARP; ++lane) {
		const unsigned g = lane / 4, t = lane % 4 * 2;
		const uint32_t *wa = w->a[lane], *wb = w->b[lane];
		const float *wd = w->d[lane];

		unpack(wa[0], &a[g][t], &a[g][t + 1]);
		unpack(wa[1], &a[g + 8][t], &a[g + 8][t + 1]);
		unpack(wa[2], &a[g][t + 8], &a[g][t + 9]);
		unpack(wa[3], &a[g + 8][t + 8], &a[g + 8][t + 9]);
		unpack(wb[0], &b[t][g], &hi);
		b[t + 1][g] = hi;
		unpack(wb[1], &b[t + 8][g], &hi);
		b[t + 9][g] = hi;
		memcpy(&d[g][t], wd, 8);
		memcpy(&d[g + 8][t], wd + 2, 8);
	}
	(avx2 ? multiply_avx2 : multiply_plain)((row8 *)d, a, (const row8 *)b);
	for (unsigned lane = 0; lane < WARP; ++lane) {
		const unsigned g = lane / 4, t = lane % 4 * 2;

		memcpy(w->d[lane], &d[g][t], 8);
		memcpy(w->d[lane] + 2, &d[g + 8][t], 8);
	}
	++cudasim_launch.n_mma;
}

void cudasim_mma(float *d, const uint32_t *a, const uint32_t *b, const char *file, int line)
{
	struct thread *t = cudasim_now;

	t->warp->d[t->lane] = d;
	t->warp->a[t->lane] = a;
	t->warp->b[t->lane] = b;
	cudasim_meet("mma", file, line, complete_mma);
}

static void load_matrices(struct warp *w, bool trans)
{
	for (unsigned matrix = 0; matrix < 4; ++matrix) {
		const unsigned char *const *row = w->row + 8 * matrix;

		for (unsigned lane = 0; lane < WARP; ++lane) {
			const unsigned major = lane / 4, minor = lane % 4 * 2;
			const unsigned char *lo = trans ? row[minor] + 2 * major : row[major] + 2 * minor;
			const unsigned char *hi = trans ? row[minor + 1] + 2 * major : lo + 2;
			uint16_t half[2];

			CUDASIM_WATCH(touch(lo, 2, TOUCH_READ, w->thread + lane, w->pc));
			CUDASIM_WATCH(touch(hi, 2, TOUCH_READ, w->thread + lane, w->pc));
			memcpy(&half[0], lo, 2);
			memcpy(&half[1], hi, 2);
			w->ret[lane][matrix] = half[0] | (uint32_t)half[1] << 16;
		}
	}
}

static void complete_ldmatrix(struct warp *w)
{
	load_matrices(w, false);
}

static void complete_ldmatrix_trans(struct warp *w)
{
	load_matrices(w, true);
}

void cudasim_ldmatrix(uint32_t *ret, const void *row, bool trans, const char *file, int line)
{
	struct thread *t = cudasim_now;

	if (!in_shared(row, 16))
		cudasim_violation("%s:%d: ldmatrix from %p, which is not in shared memory", file, line, row);
	if ((uintptr_t)row % 16)
		cudasim_violation("%s:%d: ldmatrix from %p, not aligned to 16 bytes", file, line, row);
	t->warp->row[t->lane] = (const unsigned char *)row;
	t->warp->ret[t->lane] = ret;
	t->warp->pc = CALLER;
	cudasim_meet(trans ? "ldmatrix_trans" : "ldmatrix", file, line,
		     trans ? complete_ldmatrix_trans : complete_ldmatrix);
}

/* ---- asynchronous copies ---- */

void cudasim_copy(void *to, const void *from, bool valid, const char *file, int line)
{
	struct thread *t = cudasim_now;
	struct copy *copy;

	if (!in_shared(to, 16))
		cudasim_violation("%s:%d: copy to %p, which is not in shared memory", file, line, to);
	if ((uintptr_t)to % 16 || (uintptr_t)from % 16)
		cudasim_violation("%s:%d: copy from %p to %p, not aligned to 16 bytes", file, line, from, to);
	if (valid && in_shared(from, 1))
		cudasim_violation("%s:%d: copy from %p, which is shared memory", file, line, from);
	if (valid)
		CUDASIM_WATCH(touch(from, 16, TOUCH_READ, t, CALLER));
	CUDASIM_WATCH(touch(to, 16, TOUCH_WRITE | TOUCH_COPY, t, CALLER));
	memset(to, 0xff, 16);
#ifdef __SANITIZE_ADDRESS__
	__asan_poison_memory_region(to, 16);
#endif
	if (t->n_copies == t->room) {
		t->room = t->room ? 2 * t->room : 16;
		t->copy = (struct copy *)realloc(t->copy, t->room * sizeof(*t->copy));
		if (!t->copy)
			abort();
	}
	copy = &t->copy[t->n_copies++];
	*copy = { (unsigned char *)to, (const unsigned char *)from, valid, file, line, t->n_groups };
	cudasim_launch.copy_bytes += 16;
}

void cudasim_copy_commit(void)
{
	++cudasim_now->n_groups;
}

void cudasim_copy_wait(struct cudasim_site *site, unsigned n_left)
{
	struct thread *t = cudasim_now;
	unsigned n = 0;

	if (site->off)
		return;
	for (; n < t->n_copies && t->copy[n].group + n_left < t->n_groups; ++n) {
		const struct copy *copy = &t->copy[n];

#ifdef __SANITIZE_ADDRESS__
		__asan_unpoison_memory_region(copy->to, 16);
#endif
		if (copy->valid)
			CUDASIM_WATCH(touch(copy->from, 16, TOUCH_READ | TOUCH_COPY, t, CALLER));
		CUDASIM_WATCH(touch(copy->to, 16, TOUCH_WRITE, t, CALLER));
		if (copy->valid)
			memcpy(copy->to, copy->from, 16);
		else
			memset(copy->to, 0, 16);
	}
	t->n_copies -= n;
	if (n > 0)
		memmove(t->copy, t->copy + n, t->n_copies * sizeof(*t->copy));
}

/* ---- single accesses ---- */

void cudasim_misaligned(const void *p, size_t bytes)
{
	if (cudasim_now)
		cudasim_violation("access to %p, not aligned to %zu bytes", p, bytes);
	abort();
}

void cudasim_load(void *to, const void *from, size_t bytes)
{
	if ((uintptr_t)from % bytes)
		cudasim_misaligned(from, bytes);
	if (cudasim_now)
		CUDASIM_WATCH(touch(from, bytes, TOUCH_READ, cudasim_now, CALLER));
	memcpy(to, from, bytes);
}

void cudasim_store(void *to, const void *from, size_t bytes)
{
	if ((uintptr_t)to % bytes)
		cudasim_misaligned(to, bytes);
	if (cudasim_now)
		CUDASIM_WATCH(touch(to, bytes, TOUCH_WRITE, cudasim_now, CALLER));
	memcpy(to, from, bytes);
}

template <typename T> static T atomic_add(T *p, T value, const void *pc)
{
	const T old = *p;

	if ((uintptr_t)p % sizeof(T))
		cudasim_misaligned(p, sizeof(T));
	CUDASIM_WATCH(touch(p, sizeof(T), TOUCH_READ | TOUCH_WRITE | TOUCH_ATOMIC, cudasim_now, pc));
	*p = old + value;
	return old;
}

float cudasim_atomic_add(float *p, float value)
{
	return atomic_add(p, value, CALLER);
}

int32_t cudasim_atomic_add(int32_t *p, int32_t value)
{
	return (int32_t)atomic_add((uint32_t *)p, (uint32_t)value, CALLER);
}

uint32_t cudasim_atomic_add(uint32_t *p, uint32_t value)
{
	return atomic_add(p, value, CALLER);
}
