/* SPDX-License-Identifier: MIT */
/* loractl status: what the daemon is, holds and does. */
#include "tools/ctl.h"

static int run(struct ctl *ctl, void *state, char **args, size_t n_args)
{
	_cleanup_(json_decrefp) json_t *status = NULL;
	int r;

	(void)state;
	(void)args;
	(void)n_args;
	r = ctl_call(ctl, "Status", json_object(), &status);
	if (r)
		return r;
	if (ctl->json)
		ctl_print_json(status);
	else
		ctl_print_fields(status, "");
	return TOOL_OK;
}

const struct ctl_verb ctl_status = {
	.name = "status",
	.arguments = "",
	.summary = "what the daemon is, holds and does",
	.run = run,
};
