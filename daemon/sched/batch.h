/* SPDX-License-Identifier: MIT */
/* How a step's rows are shared out, and who yields when memory runs out: see batch.c. */
#ifndef LORAD_SCHED_BATCH_H
#define LORAD_SCHED_BATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/base/clock.h"

/* What the batch needs to know of a running request. */
struct batch_item {
	uint32_t todo;        /* tokens whose keys and values are not there yet, >= 1; 1: a decode */
	bool ready;           /* false: its client does not read, it sits this step out */
	uint32_t rows;        /* out: how many of its tokens run in this step */
};

struct batch_limits {
	uint32_t rows;        /* most rows of a step */
	uint32_t mixed_rows;  /* most prefill rows of a step that also decodes */
};

#define BATCH_PACE_NS (100 * NS_PER_MS) /* what a step that decodes may take, as far as prefill rows have a say */
#define BATCH_PACE_LEAST 16u            /* prefill rows that it takes however long it is */

uint32_t batch_pace(uint32_t mixed_rows, uint32_t most, uint32_t prefills, uint64_t took_ns);
uint32_t batch_fill(struct batch_item *items, size_t n, const struct batch_limits *limits);

struct batch_victim {
	uint64_t arrived_ns;
	bool ready, holds;    /* holds: has KV blocks to give */
};

size_t batch_choose_victim(const struct batch_victim *requests, size_t n); /* n: nobody */

#endif
