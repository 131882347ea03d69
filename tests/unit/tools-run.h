/* SPDX-License-Identifier: MIT */
/* Runs a program of the build tree and keeps what it says. See tools-run.c. */
#ifndef LORAD_TESTS_TOOLS_RUN_H
#define LORAD_TESTS_TOOLS_RUN_H

#include <stdarg.h>
#include <sys/types.h>

struct tools_output {
	int status; /* 128 + signal if one ended it */
	char out[16384], err[2048];
};

struct tools_running {
	pid_t child;
	int out, err;
};

/* The arguments end with NULL. Its stdout is the file `out_path` unless that is NULL. */
struct tools_output tools_run(const char *program, const char *out_path, ...);
struct tools_running tools_start(const char *program, const char *out_path, va_list args);
struct tools_output tools_finish(struct tools_running *running);

/* The contract's failure: status 1, nothing on stdout, one line that has these words. */
void tools_expect_refused(struct tools_output output, const char *words);

#endif
