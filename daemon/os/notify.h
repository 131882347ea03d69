/* SPDX-License-Identifier: MIT */
/* What systemd is told and asked: see notify.c. Without systemd all of it does nothing. */
#ifndef LORAD_OS_NOTIFY_H
#define LORAD_OS_NOTIFY_H

#include <stdint.h>

void notify_ready(const char *status);
void notify_loading(const char *status, uint64_t extend_ns); /* still starting: allow so much more time */
void notify_reloading(void);                                 /* until the next notify_ready() */
void notify_stopping(uint64_t extend_ns);
void notify_watchdog(void);
uint64_t notify_watchdog_ns(void);                           /* how often it wants to hear from us; 0: not at all */

/* Sockets that systemd listens on for us, by FileDescriptorName=. -1: there is none of this name. */
int notify_take_socket(const char *name);

#endif
