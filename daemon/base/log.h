/* SPDX-License-Identifier: MIT */
/* Log lines on stderr; see log.c. */
#ifndef LORAD_BASE_LOG_H
#define LORAD_BASE_LOG_H

#include <stdbool.h>
#include <stdint.h>

enum log_level { LOG_LEVEL_ERROR = 3, LOG_LEVEL_WARNING = 4, LOG_LEVEL_NOTICE = 5, LOG_LEVEL_INFO = 6 }; /* syslog's */

void log_line(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...) log_line(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_line(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_notice(...) log_line(LOG_LEVEL_NOTICE, __VA_ARGS__)
#define log_info(...) log_line(LOG_LEVEL_INFO, __VA_ARGS__)

/* A budget of lines per window, embedded in whoever logs what a client caused. */
struct log_limit {
	uint64_t window_ns;   /* length of a window */
	uint32_t burst;       /* lines allowed in one */
	uint32_t used, dropped;
	uint64_t began_ns;
};

#define LOG_LIMIT_CLIENT { .window_ns = UINT64_C(10000000000), .burst = 5 }

bool log_limit_pass(struct log_limit *limit, uint64_t now_ns);

#endif
