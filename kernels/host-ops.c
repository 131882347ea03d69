/* SPDX-License-Identifier: MIT */
/* Ops of the CPU backends that move memory and compute next to nothing. */
#include <string.h>

#include "kernels/host.h"

void host_row_scale(struct kern_device *device, const void *args, unsigned part, unsigned n_parts)
{
	const struct kern_row_scale *a = args;
	uint32_t first, end;

	(void)device;
	host_part(a->width, 16, part, n_parts, &first, &end);
	for (uint32_t s = 0; s < a->step->n_segments; s++) {
		const struct kern_segment *segment = &a->step->segment[s];
		const float *vector = a->vector[s];
		for (uint32_t i = 0; vector && i < segment->n_rows; i++)
			for (uint32_t j = first; j < end; j++)
				a->y[(size_t)(segment->first_row + i) * a->width + j] *= vector[j];
	}
}

void host_kv_copy(struct kern_device *device, const void *args, unsigned part, unsigned n_parts)
{
	const struct kern_kv_copy *a = args;
	uint32_t i, end;

	(void)device;
	for (host_part(a->n, 1, part, n_parts, &i, &end); i < end; i++)
		memcpy(a->to[i], a->from[i], a->block_bytes);
}
