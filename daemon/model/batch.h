/* SPDX-License-Identifier: MIT */
/* The descriptor of one step: requests -> rows, segments, outputs in one block; results back. See batch.c. */
#ifndef LORAD_MODEL_BATCH_H
#define LORAD_MODEL_BATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/model/step.h"
#include "kernels/kernels.h"

#define BATCH_HEAD_ROWS 64 /* output rows that go through the head at once: bounds the logits */
#define BATCH_NO_KEY 0u    /* a step that is not recorded */

struct batch {
	struct kern_device *device;
	const struct kern_device_ops *ops;
	const struct kern_kv_layout *kv;
	struct step_limits limits;
	size_t kv_block_bytes;
	uint32_t n_modules;          /* of an adapter's table: layers * 7 + 1 */
	uint32_t context;

	bool records;                /* steps of decodes are described so that they fit into a recording */

	uint8_t *host, *block;       /* the block as written, and where the device has it */
	size_t bytes, used;
	struct kern_result *host_result, *result;
	struct kern_extent *head_extent; /* host: one per head step */

	/* Of the step that was built last. */
	const struct kern_step *step;      /* device */
	const struct kern_step *head_step; /* device: one per BATCH_HEAD_ROWS outputs; its rows are outputs */
	const uint32_t *output_row;        /* device: [n_outputs] */
	struct kern_extent extent;         /* what its launches are sized by */
	struct kern_kv_copy copy;          /* blocks to copy before it; n 0: none */
	uint64_t key;                      /* of the recording it fits, or BATCH_NO_KEY */
	uint32_t n_rows, n_outputs, n_segments;
	struct step_stats stats;
	uint32_t *order;             /* [limits.seqs] requests as they lie in the step */
	uint8_t *adapted;            /* [n_modules] whether any segment changes this module */
};

int batch_init(struct batch *batch, const struct step_options *options);
void batch_deinit(struct batch *batch);
int batch_build(struct batch *batch, const struct step_seq *seqs, uint32_t n_seqs);
int batch_results(struct batch *batch, struct step_seq *seqs, uint32_t n_seqs);
size_t batch_scratch_floats(const struct step_limits *limits); /* most that low-rank products of one module take */

#endif
