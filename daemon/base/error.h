/* SPDX-License-Identifier: MIT */
/* Results of functions: see error.c for the rules. */
#ifndef LORAD_BASE_ERROR_H
#define LORAD_BASE_ERROR_H

#include <stdarg.h>
#include <stddef.h>

/* A reason in words, for the person who sent the thing that is refused. One line, names the offending thing. */
struct diag {
	char text[400];
};

int error_origin_at(int error, const char *function, const char *file, int line);
int error_trace_at(int error, const char *function, const char *file, int line);

/* error_origin(-EIO): this is where a fatal error starts. error_trace(r): it passes through here. Both return it. */
#define error_origin(error) error_origin_at((error), __func__, __FILE__, __LINE__)
#define error_trace(error) error_trace_at((error), __func__, __FILE__, __LINE__)

int diag_set(struct diag *diag, int result, const char *format, ...) __attribute__((format(printf, 3, 4)));
int diag_prefix(struct diag *diag, int result, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
