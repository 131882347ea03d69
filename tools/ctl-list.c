/* SPDX-License-Identifier: MIT */
/* loractl list: the adapters by name, over the client socket, as any program sees them. */
#include <stdio.h>

#include "tools/ctl.h"
#include "tools/talk.h"

static int on_event(struct talk *talk, const struct lc_event *event)
{
	json_t *adapter;

	if (event->type != LC_EVENT_ADAPTER)
		return TOOL_OK;
	adapter = json_pack("{s:s, s:s, s:s, s:I, s:s}", "name", event->name, "digest", event->digest, "kind", event->kind,
			    "bytes", (json_int_t)event->bytes, "state", event->state);
	return json_array_append_new(talk->userdata, adapter) < 0 ? tool_no_memory(talk->diag) : TOOL_OK;
}

static void print_table(const json_t *list)
{
	json_t *adapter;
	size_t i;

	(void)printf("%-32s %-6s %12s  %-8s %s\n", "NAME", "KIND", "BYTES", "STATE", "DIGEST");
	json_array_foreach(list, i, adapter)
		(void)printf("%-32s %-6s %12lld  %-8s %.16s\n", ctl_text(adapter, "name"), ctl_text(adapter, "kind"),
			     (long long)json_integer_value(json_object_get(adapter, "bytes")),
			     ctl_text(adapter, "state"), ctl_text(adapter, "digest"));
}

static int run(struct ctl *ctl, void *state, char **args, size_t n_args)
{
	_cleanup_(json_decrefp) json_t *list = json_array();
	struct talk talk = { .socket = ctl->socket, .event = on_event, .userdata = list, .diag = ctl->diag };
	int r;

	(void)state;
	(void)args;
	(void)n_args;
	r = talk_run(&talk);
	if (r)
		return r;
	if (ctl->json)
		ctl_print_json(list);
	else
		print_table(list);
	return TOOL_OK;
}

const struct ctl_verb ctl_list = {
	.name = "list",
	.arguments = "",
	.summary = "the adapters: name, kind, bytes, state, digest",
	.run = run,
};
