/* SPDX-License-Identifier: MIT */
/*
 * Journal events
 *
 * Most of what the daemon says are lines on stderr. A few events have a message id besides, so that
 * `journalctl MESSAGE_ID=...` finds them, `journalctl -x` explains them (systemd/lorad.catalog), and monitoring can count
 * them. They go to the journal's socket with structured fields; without a journal only the line is left.
 */
#include "daemon/os/journal.h"

#include <stddef.h>
#include <systemd/sd-journal.h>

#include "daemon/base/log.h"

struct lost {
	int code;         /* cudaError_t, driver_types.h; 0: any other */
	const char *id;
};

/* Made with `systemd-id128 new`; never change one. */
static const struct lost lost[] = {
	{ 214, "caabb33f81924eed9a935818d536e80f" }, /* cudaErrorECCUncorrectable: the memory is damaged */
	{ 700, "cff2d35bfa3c4caaa8add205efb160f9" }, /* cudaErrorIllegalAddress: a defect of lorad */
	{ 719, "f9e500c7d481475e9d587599d51f450a" }, /* cudaErrorLaunchFailure: a defect of lorad or the driver */
	{ 0, "2e5ba2b3fa704998ac950f71e2ca586d" },
};

void journal_device_lost(const char *name, int code, const char *text)
{
	size_t i = 0;

	while (lost[i].code && lost[i].code != code)
		++i;
	log_error("%s failed, lorad ends and must be started again: %s", name, text);
	(void)sd_journal_send("MESSAGE=%s failed: %s", name, text, "MESSAGE_ID=%s", lost[i].id, "PRIORITY=2", "LORAD_DEVICE=%s", name,
			      "LORAD_CUDA_ERROR=%d", code, NULL);
}
