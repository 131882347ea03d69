/* SPDX-License-Identifier: MIT */
/* loractl unpin: let a pinned adapter be evicted again. */
#include "tools/ctl.h"

static int run(struct ctl *ctl, void *state, char **args, size_t n_args)
{
	(void)state;
	(void)n_args;
	return ctl_call_on_name(ctl, "Unpin", args[0], "unpinned", /* loading= */ NULL);
}

const struct ctl_verb ctl_unpin = {
	.name = "unpin",
	.arguments = "NAME",
	.summary = "let a pinned adapter be evicted again",
	.least_args = 1,
	.most_args = 1,
	.run = run,
};
