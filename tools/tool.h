/* SPDX-License-Identifier: MIT */
/*
 * What every program here returns: functions of tools/ return one of these, which is also the exit status. The reason
 * goes into a struct diag, and main prints it as the one line on stderr.
 */
#ifndef LORAD_TOOLS_TOOL_H
#define LORAD_TOOLS_TOOL_H

#include <stddef.h>

#include "daemon/base/error.h"

enum tool_result {
	TOOL_OK,
	TOOL_FAILED, /* refused or failed */
	TOOL_USAGE,  /* the command line makes no sense */
};

#define TOOL_PATH_MAX 108 /* of a socket: sizeof(sun_path) */

int tool_socket_path(const char *given, const char *runtime_dir, char ret[TOOL_PATH_MAX], struct diag *diag);
int tool_no_memory(struct diag *diag);
int tool_flush(struct diag *diag);

#endif
