/* SPDX-License-Identifier: MIT */
/* Finds stop strings in streamed text: see stops.c. */
#ifndef LORAD_SCHED_STOPS_H
#define LORAD_SCHED_STOPS_H

#include <stdbool.h>
#include <stddef.h>

struct stops {
	char *const *string; /* the caller's, [n]; none empty */
	size_t n;
	char *held;          /* what left at the last push, then what may be the beginning of a stop string */
	size_t n_held, n_gone, room;
};

/* Text that may go out. Lives until the next push. */
struct stops_text {
	const char *text;
	size_t bytes;
	bool found;          /* a stop string follows this text: the answer ends here */
};

void stops_init(struct stops *stops, char *const *string, size_t n);
void stops_deinit(struct stops *stops);
int stops_push(struct stops *stops, const char *text, size_t bytes, bool end, struct stops_text *ret);

#endif
