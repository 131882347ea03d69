/* SPDX-License-Identifier: MIT */
/*
 * Progress
 *
 * A line on stderr, drawn over itself ten times a second at most and taken away before anything else is printed. Where
 * stderr is no terminal there is none at all, so that logs hold results only.
 */
#include "tools/progress.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "daemon/base/clock.h"

#define BAR_CELLS 30
#define DRAW_EVERY_NS (100 * NS_PER_MS)

void progress_init(struct progress *progress, bool wanted)
{
	*progress = (struct progress){ .on = wanted && isatty(STDERR_FILENO) };
}

/**
 * progress_draw() - say how far it is
 * @progress:  the line
 * @fraction:  0 to 1; negative draws no bar
 * @format:    words behind the bar
 */
void progress_draw(struct progress *progress, double fraction, const char *format, ...)
{
	uint64_t now = progress->on ? clock_ns() : 0;
	char words[80];
	va_list args;

	if (!progress->on || now < progress->next_ns)
		return;
	progress->next_ns = now + DRAW_EVERY_NS;
	progress->shown = true;
	va_start(args, format);
	(void)vsnprintf(words, sizeof(words), format, args);
	va_end(args);
	(void)fputs("\r\033[K", stderr);
	if (fraction >= 0) {
		int filled = (int)((fraction < 1 ? fraction : 1) * BAR_CELLS);

		(void)fputc('[', stderr);
		for (int i = 0; i < BAR_CELLS; ++i)
			(void)fputc(i < filled ? '#' : ' ', stderr);
		(void)fprintf(stderr, "] %3d %% ", (int)((fraction < 1 ? fraction : 1) * 100));
	}
	(void)fputs(words, stderr);
	(void)fflush(stderr);
}

void progress_clear(struct progress *progress)
{
	if (progress->shown)
		(void)fputs("\r\033[K", stderr);
	progress->shown = false;
	progress->next_ns = 0;
}
