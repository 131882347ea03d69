/* SPDX-License-Identifier: MIT */
/*
 * systemd
 *
 * A thin layer over sd_notify(3) and sd_listen_fds_with_names(3), so that nobody else writes their strings. Messages are
 * best effort: a daemon does not end because its manager could not be told.
 */
#include "daemon/os/notify.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-daemon.h>

#include "daemon/base/clock.h"
#include "daemon/base/error.h"

void notify_ready(const char *status)
{
	(void)sd_notifyf(0, "READY=1\nSTATUS=%s", status);
}

void notify_loading(const char *status, uint64_t extend_ns)
{
	(void)sd_notifyf(0, "STATUS=%s\nEXTEND_TIMEOUT_USEC=%" PRIu64, status, extend_ns / NS_PER_US);
}

/* The time stamp is what lets systemd 253 and later tell this reload from an earlier one. */
void notify_reloading(void)
{
	(void)sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%" PRIu64, clock_ns() / NS_PER_US);
}

void notify_stopping(uint64_t extend_ns)
{
	(void)sd_notifyf(0, "STOPPING=1\nEXTEND_TIMEOUT_USEC=%" PRIu64, extend_ns / NS_PER_US);
}

void notify_watchdog(void)
{
	(void)sd_notify(0, "WATCHDOG=1");
}

uint64_t notify_watchdog_ns(void)
{
	uint64_t usec = 0;

	return sd_watchdog_enabled(0, &usec) > 0 ? usec * NS_PER_US : 0;
}

/**
 * notify_take_socket() - a socket passed by systemd
 * @name:       its FileDescriptorName=
 *
 * systemd passes sockets in blocking mode unless the unit says NonBlocking=, and a listener's last accept() would then wait
 * for the next client; so the mode is set here.
 *
 * Return: the descriptor, the caller's from now on, close-on-exec and nonblocking; negative if there is none.
 */
int notify_take_socket(const char *name)
{
	char **names = NULL;
	int n, fd = -1;

	n = sd_listen_fds_with_names(0, &names);
	for (int i = 0; i < n; ++i) {
		if (fd < 0 && strcmp(names[i], name) == 0)
			fd = SD_LISTEN_FDS_START + i;
		free(names[i]);
	}
	free(names);
	if (fd >= 0 && fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0)
		return error_origin(-errno);
	return fd;
}
