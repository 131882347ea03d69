/* SPDX-License-Identifier: MIT */
/* What `loractl top` shows: figures of what happened between two looks at a daemon, and their picture. See top-frame.c. */
#ifndef LORAD_TOOLS_TOP_FRAME_H
#define LORAD_TOOLS_TOP_FRAME_H

#include <jansson.h>
#include <stdbool.h>

struct top_screen {
	unsigned columns, rows; /* 0: as many as it takes */
	bool terminal;          /* with the sequences that draw over the last frame */
};

json_t *top_known(const json_t *list);
json_t *top_figures(const json_t *before, const json_t *now, const json_t *known, double seconds);
char *top_render(const json_t *figures, const struct top_screen *screen);

#endif
