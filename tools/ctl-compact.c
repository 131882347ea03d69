/* SPDX-License-Identifier: MIT */
/* loractl compact: give the space of removed adapters back to the file system. */
#include <stdio.h>

#include "tools/ctl.h"
#include "tools/progress.h"

static void show_progress(void *userdata, const json_t *parameters)
{
	progress_draw(userdata, json_number_value(json_object_get(parameters, "fraction")), "copying");
}

static int run(struct ctl *ctl, void *state, char **args, size_t n_args)
{
	_cleanup_(json_decrefp) json_t *parameters = json_object();
	_cleanup_(control_closep) struct control *control = NULL;
	_cleanup_(control_reply_deinit) struct control_reply reply = { .n_fds = 0 };
	struct progress progress;
	json_int_t before, bytes;
	int r;

	(void)state;
	(void)args;
	(void)n_args;
	progress_init(&progress, !ctl->json);
	r = control_open(&control, ctl->socket, ctl->diag);
	if (!r)
		r = control_call(control,
				 &(struct control_call){ .method = "Compact", .parameters = parameters,
							 .progress = show_progress, .userdata = &progress },
				 &reply, ctl->diag);
	progress_clear(&progress);
	if (r)
		return diag_prefix(ctl->diag, r, "compact");
	before = json_integer_value(json_object_get(reply.parameters, "bytes_before"));
	bytes = json_integer_value(json_object_get(reply.parameters, "bytes"));
	if (ctl->json)
		ctl_print_json(reply.parameters);
	else
		(void)printf("data.mdb has %lld bytes, %lld less than before\n", (long long)bytes,
			     (long long)(before - bytes));
	return TOOL_OK;
}

const struct ctl_verb ctl_compact = {
	.name = "compact",
	.arguments = "",
	.summary = "give the space of removed adapters back to the file system",
	.run = run,
};
