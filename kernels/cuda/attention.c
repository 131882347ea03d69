/* SPDX-License-Identifier: MIT */
/* The op attention: decodes and prefills of a step are kernels of their own; a step without one kind starts none for
 * it. */
#include "kernels/cuda/device.h"

void cuda_attention(struct kern_device *device, const void *args, unsigned part, unsigned n_parts)
{
	const struct kern_attention *a = args;

	(void)part;
	(void)n_parts;
	if (a->extent->n_single > 0)
		cuda_attention_decode(device, a);
	if (a->extent->n_seq_tiles > 0)
		cuda_attention_prefill(device, a);
}
