/* SPDX-License-Identifier: MIT */
/* What loractl and lorabench share: where the daemon is, and the last words of a program. */
#include "tools/tool.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define SYSTEM_SOCKET "/run/lorad/lorad.sock"

/**
 * tool_socket_path() - where the daemon's client socket is
 * @given:        --socket, or NULL
 * @runtime_dir:  $XDG_RUNTIME_DIR, or NULL
 * @ret:          the path
 * @diag:         why not
 *
 * Without --socket the user's own daemon is asked if it has a socket, else the system's.
 */
int tool_socket_path(const char *given, const char *runtime_dir, char ret[TOOL_PATH_MAX], struct diag *diag)
{
	int n;

	if (given)
		n = snprintf(ret, TOOL_PATH_MAX, "%s", given);
	else if (runtime_dir && runtime_dir[0] == '/')
		n = snprintf(ret, TOOL_PATH_MAX, "%s/lorad/lorad.sock", runtime_dir);
	else
		n = snprintf(ret, TOOL_PATH_MAX, "%s", SYSTEM_SOCKET);
	if (given && n >= TOOL_PATH_MAX)
		return diag_set(diag, TOOL_FAILED, "%s: longer than a socket's path can be (%d bytes)", given, TOOL_PATH_MAX - 1);
	if (!given && (n >= TOOL_PATH_MAX || access(ret, F_OK) < 0))
		(void)snprintf(ret, TOOL_PATH_MAX, "%s", SYSTEM_SOCKET);
	return TOOL_OK;
}

int tool_no_memory(struct diag *diag)
{
	return diag_set(diag, TOOL_FAILED, "out of memory");
}

/* A full disk or a closed pipe shows only when stdio hands its buffer over; a program must not end well then. */
int tool_flush(struct diag *diag)
{
	if (fflush(stdout) == EOF || ferror(stdout))
		return diag_set(diag, TOOL_FAILED, "standard output: %s", strerror(errno ? errno : EIO));
	return TOOL_OK;
}
