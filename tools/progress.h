/* SPDX-License-Identifier: MIT */
/* One line on a terminal that says how far something is. See progress.c. */
#ifndef LORAD_TOOLS_PROGRESS_H
#define LORAD_TOOLS_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct progress {
	bool on;          /* stderr is a terminal and nobody wants JSON */
	bool shown;
	uint64_t next_ns; /* not drawn again before */
};

void progress_init(struct progress *progress, bool wanted);
void progress_draw(struct progress *progress, double fraction, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
void progress_clear(struct progress *progress);

#endif
