/* SPDX-License-Identifier: MIT */
/* loractl show: all that is known of one adapter. */
#include "tools/ctl.h"

static int run(struct ctl *ctl, void *state, char **args, size_t n_args)
{
	_cleanup_(json_decrefp) json_t *adapter = NULL;
	int r;

	(void)state;
	(void)n_args;
	r = ctl_check_name(ctl, args[0]);
	if (!r)
		r = ctl_call(ctl, "Show", json_pack("{s:s}", "name", args[0]), &adapter);
	if (r)
		return r;
	if (ctl->json)
		ctl_print_json(adapter);
	else
		ctl_print_fields(adapter, "");
	return TOOL_OK;
}

const struct ctl_verb ctl_show = {
	.name = "show",
	.arguments = "NAME",
	.summary = "all that is known of one adapter",
	.least_args = 1,
	.most_args = 1,
	.run = run,
};
