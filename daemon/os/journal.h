/* SPDX-License-Identifier: MIT */
/* Events in the journal that an administrator can look up and act on by their message id: see journal.c. */
#ifndef LORAD_OS_JOURNAL_H
#define LORAD_OS_JOURNAL_H

/* The device can compute no more. name: cuda:0; code: CUDA's number of the error; text: what failed of what. */
void journal_device_lost(const char *name, int code, const char *text);

#endif
