/* SPDX-License-Identifier: MIT */
/*
 * lorad
 *
 * Reads options and environment, runs the server, and turns results into exit statuses: 0 ended as told, 1 failed, 2 not
 * how lorad is called, 3 the device failed while serving and a new process may do better. The only file of the daemon that looks at the environment.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config.h"
#include "daemon/base/log.h"
#include "daemon/options.h"
#include "daemon/server.h"

#define EXIT_USAGE 2
#define EXIT_DEVICE_LOST 3

static const char *from_environment(const char *name)
{
	const char *value = getenv(name);

	return value && *value ? value : NULL;
}

static int complain(const struct diag *diag, const char *fallback, int status)
{
	log_error("lorad: %s", *diag->text ? diag->text : fallback);
	return status;
}

static int serve(const struct options *options)
{
	_cleanup_(server_freep) struct server *server = NULL;
	struct diag diag = { 0 };

	if (server_new(&server, options, &diag))
		return complain(&diag, "could not start, see above", EXIT_FAILURE);
	switch (server_run(server)) {
	case SERVER_OK:
		return EXIT_SUCCESS;
	case SERVER_E_LOST:
		return EXIT_DEVICE_LOST;
	default:
		return complain(&diag, "ended by a failure, see above", EXIT_FAILURE);
	}
}

static int run(int argc, char **argv, struct options *options)
{
	const struct options_environment environment = {
		.root = geteuid() == 0,
		.runtime_dir = from_environment("XDG_RUNTIME_DIR"),
		.state_home = from_environment("XDG_STATE_HOME"),
		.home = from_environment("HOME"),
		.config = SYSCONFDIR "/lorad/lorad.conf",
	};
	struct diag diag = { 0 };

	switch (options_read(options, argc, argv, &environment, &diag)) {
	case OPTIONS_OK:
		return serve(options);
	case OPTIONS_E_HELP:
		options_print_help(stdout);
		return EXIT_SUCCESS;
	case OPTIONS_E_VERSION:
		(void)puts(PACKAGE_STRING);
		return EXIT_SUCCESS;
	case OPTIONS_E_USAGE:
		return complain(&diag, "usage", EXIT_USAGE);
	default:
		return complain(&diag, "the options could not be read", EXIT_FAILURE);
	}
}

int main(int argc, char **argv)
{
	struct options options = OPTIONS_NULL;
	int status = run(argc, argv, &options);

	options_deinit(&options);
	return status;
}
