/* SPDX-License-Identifier: MIT */
/* loractl pin: keep an adapter in memory until it is unpinned. */
#include "tools/ctl.h"

static int run(struct ctl *ctl, void *state, char **args, size_t n_args)
{
	(void)state;
	(void)n_args;
	return ctl_call_on_name(ctl, "Pin", args[0], "pinned", /* loading= */ NULL);
}

const struct ctl_verb ctl_pin = {
	.name = "pin",
	.arguments = "NAME",
	.summary = "keep an adapter in memory until it is unpinned",
	.least_args = 1,
	.most_args = 1,
	.run = run,
};
