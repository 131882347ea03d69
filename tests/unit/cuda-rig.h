/* SPDX-License-Identifier: MIT */
/*
 * What the tests of the CUDA backend's host side share: a machine with a simulated GPU, memory with known bytes in it,
 * uploads, and steps of a single op that can be recorded.
 *
 * The linker sends calls of cuda_api() to __wrap_cuda_api() here (-Wl,--wrap=cuda_api).
 */
#ifndef LORAD_TESTS_UNIT_CUDA_RIG_H
#define LORAD_TESTS_UNIT_CUDA_RIG_H

#include <check.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/cuda/device.h"
#include "tests/cudasim/runtime.h"

#define RIG_BYTES ((size_t)3 * CUDA_PIECE_BYTES + 4097) /* several pieces, the last one odd */
#define RIG_BLOCK ((size_t)4096)

extern const struct kern_device_ops *on; /* the table under test */
extern struct kern_device *device;
extern int rig_capability; /* of the GPU, 75 say; 0: the simulator's own */

/* boot: a fresh machine. start: one with a GPU, which is opened; stop: closed, and nothing is left behind. */
void rig_boot(const char *devices, const char *driver);
void rig_start(void);
void rig_stop(void);

void rig_fill(void *p, size_t bytes, uint32_t seed);
bool rig_is_filled(const void *p, size_t bytes, uint32_t seed);
void *rig_host_memory(size_t bytes); /* mapped */
void *rig_device_memory(size_t bytes);

struct rig_upload {
	struct kern_upload upload;
	uint8_t *host, *there, *back; /* RIG_BYTES each */
	atomic_uint done;             /* how often it was called */
};

/* One more than there are slots. Host memory of every second one is registered, all of what is copied back. */
extern struct rig_upload rig_uploads[CUDA_UPLOADS + 1];
void rig_make_uploads(void);
void rig_forget_uploads(void);
void rig_await_done(struct rig_upload *u);
void rig_note_done(struct kern_upload *upload);

/* A step of one op: a block is copied from where one device pointer says to where another one says. */
struct rig_copier {
	uint8_t *memory; /* four blocks */
	void **table;    /* from, to: on the device */
	void *host_table[2];
	uint8_t *host;   /* one block */
};

void rig_make_copier(struct rig_copier *c);
int rig_aim(struct rig_copier *c, unsigned from, unsigned to, uint32_t seed); /* fills block `from` */
void rig_step(struct rig_copier *c);
int rig_arrived(struct rig_copier *c, unsigned to, uint32_t seed); /* after a fence */

/* Runs it as the model does. Return: 0: it ran, and how; or -EIO. */
enum rig_how { RIG_EAGER, RIG_RECORDED, RIG_REPLAYED, RIG_TWICE };
int rig_run_step(struct rig_copier *c, uint64_t key, enum rig_how *ret);
void rig_assert_step(struct rig_copier *c, uint64_t key, enum rig_how expected, uint32_t seed);

#endif
