/* SPDX-License-Identifier: MIT */
/* What all CPU backends share: memory (host.c), the split of work into parts, the place of a stored row (quant.c). */
#ifndef LORAD_KERNELS_HOST_H
#define LORAD_KERNELS_HOST_H

#include "kernels/kernels.h"

int host_open(struct kern_device **ret, unsigned number);
struct kern_device *host_close(struct kern_device *device);
int host_alloc(struct kern_device *device, void *host, size_t bytes, void **ret);
void host_free(struct kern_device *device, void *p, size_t bytes);
int host_register(struct kern_device *device, void *p, size_t bytes);
int host_copy(struct kern_device *device, void *to, const void *from, size_t bytes);
int host_fence(struct kern_device *device);

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
