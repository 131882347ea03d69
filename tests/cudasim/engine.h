/* SPDX-License-Identifier: MIT */
/*
 * The device side of the simulator as its host side and the tests see it: run a kernel, now and to its end. Safe from
 * any thread; launches run one at a time.
 *
 * A kernel that breaks one of CUDA's rules is reported in one line (kernel, block, thread, place, rule) and the program
 * aborts; where a hook is set it gets the line instead, the launch is abandoned and cudasim_run() fails.
 */
#ifndef CUDASIM_ENGINE_H
#define CUDASIM_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CUDASIM_SHARED_DEFAULT ((size_t)48 << 10)
#define CUDASIM_SHARED_MAX ((size_t)227 << 10) /* opted in, as on sm_90 */

/* cudaError numbers that cudasim_run() returns */
#define CUDASIM_INVALID_VALUE 1 /* too much shared memory */
#define CUDASIM_INVALID_CONFIGURATION 9 /* grid or block out of limits */
#define CUDASIM_LAUNCH_FAILURE 719 /* abandoned, see above */

/* args: pointers to the values of the arguments. Return: 0, or one of the numbers above. */
int cudasim_run(const void *handle, const unsigned grid[3], const unsigned block[3], size_t shared_bytes, void **args);

/* What a launch would answer to this shape, without running it. */
int cudasim_check_launch(const void *handle, const unsigned grid[3], const unsigned block[3], size_t shared_bytes);

unsigned cudasim_args(const void *handle);
size_t cudasim_arg_bytes(const void *handle, unsigned i);

/* cudaFuncAttributeMaxDynamicSharedMemorySize. Return: 0, or CUDASIM_INVALID_VALUE. */
int cudasim_allow_shared(const void *handle, size_t bytes);

/* The order of lanes, warps and blocks follows from it. At first: $CUDASIM_SEED, or 1. */
void cudasim_seed(uint64_t seed);

/* Memory that kernels may use; each allocation once, and again with live = false before it is freed. */
void cudasim_memory(const void *base, size_t bytes, bool live);

/* Switches sites off: "file:line,file:line", where file may lack leading folders. At first: $CUDASIM_OFF. */
void cudasim_switch_off(const char *sites);

/* NULL at first: print and abort. */
extern void (*cudasim_on_violation)(const char *line);

#ifdef __cplusplus
}
#endif

#endif
