/* SPDX-License-Identifier: MIT */
/*
 * Log
 *
 * One line per event on stderr. When stderr is a socket, which is what the journal gives a service, each line carries
 * its level as the <N> prefix of sd-daemon(3); everywhere else the line is plain. That is decided by looking at the
 * descriptor, so there is no state to set up and every thread may log from the start.
 *
 * At run time lorad logs what changes for the administrator, never a line per request. Lines that a client can cause go
 * through a struct log_limit first: a hostile client gets a few lines per window, and the next window says how many were
 * left out.
 */
#include "daemon/base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LOG_LINE_MAX 1024

static bool stderr_is_journal(void)
{
	struct stat st;

	return fstat(STDERR_FILENO, &st) == 0 && S_ISSOCK(st.st_mode);
}

/**
 * log_line() - write one line
 * @level:      its weight
 * @format:     printf format, without a newline; lines above 1,000 bytes are cut
 *
 * The line leaves in one write(), so lines of different threads never mix.
 */
void log_line(enum log_level level, const char *format, ...)
{
	char line[LOG_LINE_MAX + 1];
	size_t used = 0;
	va_list args;
	int n;

	if (stderr_is_journal())
		used = (size_t)snprintf(line, sizeof(line), "<%d>", (int)level);
	va_start(args, format);
	n = vsnprintf(line + used, LOG_LINE_MAX - used, format, args);
	va_end(args);
	if (n < 0)
		return;
	used += strlen(line + used);
	line[used++] = '\n';
	if (write(STDERR_FILENO, line, used) < 0)
		return; /* nowhere left to say so */
}

/**
 * log_limit_pass() - may one more line of this kind be written?
 * @limit:      the budget
 * @now_ns:     monotonic time
 *
 * Opens a new window when the old one is over; lines dropped in the old one are reported then.
 */
bool log_limit_pass(struct log_limit *limit, uint64_t now_ns)
{
	if (!limit->began_ns || now_ns - limit->began_ns >= limit->window_ns) {
		if (limit->dropped)
			log_warning("%u similar lines were left out", (unsigned)limit->dropped);
		limit->began_ns = now_ns ? now_ns : 1;
		limit->used = limit->dropped = 0;
	}
	if (limit->used < limit->burst) {
		limit->used++;
		return true;
	}
	limit->dropped++;
	return false;
}
