/* SPDX-License-Identifier: MIT */
/* loractl metrics: counters and gauges in Prometheus' text format. */
#include <stdio.h>

#include "tools/ctl.h"

static int run(struct ctl *ctl, void *state, char **args, size_t n_args)
{
	_cleanup_(json_decrefp) json_t *metrics = NULL;
	int r;

	(void)state;
	(void)args;
	(void)n_args;
	r = ctl_call(ctl, "Metrics", json_object(), &metrics);
	if (r)
		return r;
	if (ctl->json)
		ctl_print_json(metrics);
	else
		(void)fputs(ctl_text(metrics, "text"), stdout);
	return TOOL_OK;
}

const struct ctl_verb ctl_metrics = {
	.name = "metrics",
	.arguments = "",
	.summary = "counters and gauges in Prometheus' text format",
	.run = run,
};
