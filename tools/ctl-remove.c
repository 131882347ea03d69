/* SPDX-License-Identifier: MIT */
/* loractl remove: take a name away; requests in flight finish on their version. */
#include "tools/ctl.h"

static int run(struct ctl *ctl, void *state, char **args, size_t n_args)
{
	(void)state;
	(void)n_args;
	return ctl_call_on_name(ctl, "Remove", args[0], "removed", /* loading= */ NULL);
}

const struct ctl_verb ctl_remove = {
	.name = "remove",
	.arguments = "NAME",
	.summary = "take a name away; requests in flight finish on their version",
	.least_args = 1,
	.most_args = 1,
	.run = run,
};
