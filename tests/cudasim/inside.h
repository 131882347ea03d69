/* SPDX-License-Identifier: MIT */
/* What the files of the engine share: the running launch, its warps and threads, the instrumented build's watch. */
#ifndef CUDASIM_INSIDE_H
#define CUDASIM_INSIDE_H

#include "kernels/cuda/dev.h"
#include "tests/cudasim/engine.h"

#define WARP 32u
#define BLOCK_MAX 1024u

struct copy { /* a dev_copy_async() that has not landed */
	unsigned char *to;
	const unsigned char *from;
	bool valid;
	const char *file;
	int line;
	uint64_t group;
};

struct thread {
	struct cudasim_uint3 index;
	unsigned number, lane;
	struct warp *warp;
	void *sp; /* NULL: not started */
	unsigned char *stack; /* lowest byte */
	struct copy *copy; /* in order of issue */
	unsigned n_copies, room;
	uint64_t n_groups; /* committed */
};

/*
 * A phase of a warp: from a collective (or block barrier) to the next. Each lane runs once in it, in the phase's order,
 * until it waits or exits, and hands over to the next lane itself.
 */
struct warp {
	struct thread *thread; /* lane 0 */
	unsigned number, n; /* lanes */
	const uint8_t *order;
	unsigned next; /* in order */
	unsigned n_exited, n_at_barrier, n_arrived;
	const char *what, *file; /* the collective that the arrived lanes wait in */
	int line;
	uint32_t value[WARP], source[WARP]; /* shuffle and vote: in; value also out */
	const uint32_t *a[WARP], *b[WARP]; /* mma */
	float *d[WARP];
	const unsigned char *row[WARP]; /* ldmatrix */
	uint32_t *ret[WARP];
	const void *pc;
};

struct launch {
	const struct cudasim_kernel *kernel;
	char name[160];
	unsigned n_threads, n_warps;
	size_t shared_bytes;
	bool bounded, broken;
	uint64_t n_mma, copy_bytes;
};

extern struct launch cudasim_launch;
extern struct thread *cudasim_now; /* NULL: no kernel is running */
extern unsigned char cudasim_param[];
#define CUDASIM_PARAM_BYTES 8192

#ifdef __SANITIZE_ADDRESS__
#define CUDASIM_STACK_BYTES ((size_t)256 << 10)
#else
#define CUDASIM_STACK_BYTES ((size_t)64 << 10)
#endif

/* One line about the running thread; abandons the launch (or aborts). */
[[noreturn]] void cudasim_violation(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Waits until all lanes of the warp are here; the last one to come runs complete(). */
void cudasim_meet(const char *what, const char *file, int line, void (*complete)(struct warp *w));

/* The instrumented build's checks (tsan.cc); not linked, not there. */
enum {
	TOUCH_READ = 1,
	TOUCH_WRITE = 2,
	TOUCH_ATOMIC = 4,
	TOUCH_COPY = 8, /* by a copy: a write that is issued, a read as it lands (the issue was one too) */
};

struct cudasim_watch {
	void (*launch)(bool begin);
	void (*block)(bool begin);
	void (*barrier)(const struct warp *w); /* NULL: of the block */
	void (*touch)(const void *p, size_t bytes, unsigned how, const struct thread *t, const void *pc);
	void (*memory)(const void *base, size_t bytes, bool live);
};

extern const struct cudasim_watch cudasim_watch __attribute__((weak));

#define CUDASIM_WATCH(call) \
	do { \
		if (&cudasim_watch) \
			cudasim_watch.call; \
	} while (0)

#endif
