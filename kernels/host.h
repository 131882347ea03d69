/* SPDX-License-Identifier: MIT */
/* What all CPU backends share: memory (host.c), the split of work into parts, the place of a stored row (quant.c). */
#ifndef LORAD_KERNELS_HOST_H
#define LORAD_KERNELS_HOST_H

#include "kernels/kernels.h"

int host_open(struct kern_device **ret, unsigned number, struct kern_failure *why);
struct kern_device *host_close(struct kern_device *device);
int host_alloc(struct kern_device *device, void *host, size_t bytes, void **ret);
void host_free(struct kern_device *device, void *p, size_t bytes);
int host_memory(struct kern_device *device, size_t *ret_free, size_t *ret_total);
int host_reserve(struct kern_device *device, const struct kern_limits *limits);
int host_register(struct kern_device *device, void *p, size_t bytes);
void host_unregister(struct kern_device *device, void *p);
int host_copy(struct kern_device *device, void *to, const void *from, size_t bytes);
int host_fence(struct kern_device *device);
void host_failure(struct kern_device *device, struct kern_failure *ret);

/* The part of struct kern_device_ops that is the same for all of them: nothing is copied, recorded or can fail. */
#define HOST_MEMORY_OPS                                                                                                \
	.open = host_open, .close = host_close, .memory = host_memory, .reserve = host_reserve, .alloc = host_alloc,    \
	.free = host_free, .register_host = host_register, .unregister_host = host_unregister, .copy_async = host_copy, \
	.fence = host_fence, .failure = host_failure

/* host-ops.c: ops that move memory and compute next to nothing; no instruction set is faster than another. */
kern_op host_row_scale, host_kv_copy;

/* 0, or -EINVAL for a matrix no backend can hold: no rows or columns, broken blocks, heads that do not divide it. */
int host_check_matrix(const struct kern_matrix *m, enum kern_precision precision);

uint32_t host_stored_row(const struct kern_matrix *m, uint32_t i);

/* A bit of kern_weight.layout: tile registers multiply it. Without the bit the same data is multiplied by vectors. */
#define HOST_LAYOUT_AMX 0x80

/* Items [*first, *end) of n are this part's; the borders between parts are multiples of grain. */
static inline void host_part(uint32_t n, uint32_t grain, unsigned part, unsigned n_parts, uint32_t *first, uint32_t *end)
{
	uint64_t grains = ((uint64_t)n + grain - 1) / grain;

	*first = (uint32_t)(grains * part / n_parts * grain);
	*end = part + 1 == n_parts ? n : (uint32_t)(grains * (part + 1) / n_parts * grain);
}

#endif
