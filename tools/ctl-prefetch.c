/* SPDX-License-Identifier: MIT */
/* loractl prefetch: read an adapter into memory before it is asked for. */
#include "tools/ctl.h"

static int run(struct ctl *ctl, void *state, char **args, size_t n_args)
{
	(void)state;
	(void)n_args;
	return ctl_call_on_name(ctl, "Prefetch", args[0], "resident", "loading");
}

const struct ctl_verb ctl_prefetch = {
	.name = "prefetch",
	.arguments = "NAME",
	.summary = "read an adapter into memory before it is asked for",
	.least_args = 1,
	.most_args = 1,
	.run = run,
};
