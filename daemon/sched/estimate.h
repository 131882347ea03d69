/* SPDX-License-Identifier: MIT */
/* When will a prompt be through? From how fast prompts went through lately: see estimate.c. */
#ifndef LORAD_SCHED_ESTIMATE_H
#define LORAD_SCHED_ESTIMATE_H

#include <stdbool.h>
#include <stdint.h>

struct estimate {
	double tokens, seconds; /* of prompts, while there were some to do; older ones weigh less */
};

void estimate_note(struct estimate *estimate, uint64_t tokens, uint64_t took_ns);
bool estimate_ns(const struct estimate *estimate, uint64_t tokens, uint64_t *ret_ns);

#endif
