/* SPDX-License-Identifier: MIT */
/* loractl verify: read every byte of adapters in the store and compare it with its checksums; all of them by default. */
#include <stdio.h>

#include "tools/ctl.h"
#include "tools/progress.h"

static void show_progress(void *userdata, const json_t *parameters)
{
	progress_draw(userdata, json_number_value(json_object_get(parameters, "fraction")), "%.60s",
		      ctl_text(parameters, "name"));
}

static int fail(struct ctl *ctl, const json_t *failed, json_int_t checked)
{
	size_t i, n = json_array_size(failed);
	json_t *one;

	json_array_foreach(failed, i, one) {
		(void)diag_set(ctl->diag, TOOL_FAILED, "%s: %s", ctl_text(one, "name"), ctl_text(one, "message"));
		if (n > 1)
			(void)fprintf(stderr, "loractl: %s\n", ctl->diag->text);
	}
	if (n > 1)
		return diag_set(ctl->diag, TOOL_FAILED, "%zu of %lld adapters are damaged", n, (long long)checked);
	return TOOL_FAILED;
}

static int run(struct ctl *ctl, void *state, char **args, size_t n_args)
{
	_cleanup_(json_decrefp) json_t *parameters = NULL;
	_cleanup_(control_closep) struct control *control = NULL;
	_cleanup_(control_reply_deinit) struct control_reply reply = { .n_fds = 0 };
	json_t *names = json_array();
	struct progress progress;
	const json_t *failed;
	json_int_t checked;
	int r = TOOL_OK;

	(void)state;
	for (size_t i = 0; i < n_args && !r; ++i) {
		r = ctl_check_name(ctl, args[i]);
		if (!r)
			json_array_append_new(names, json_string(args[i]));
	}
	parameters = json_pack("{s:o}", "names", names);
	if (r || !parameters)
		return r ? r : tool_no_memory(ctl->diag);
	progress_init(&progress, !ctl->json);
	r = control_open(&control, ctl->socket, ctl->diag);
	if (!r)
		r = control_call(control,
				 &(struct control_call){ .method = "Verify", .parameters = parameters,
							 .progress = show_progress, .userdata = &progress },
				 &reply, ctl->diag);
	progress_clear(&progress);
	if (r)
		return r;
	checked = json_integer_value(json_object_get(reply.parameters, "checked"));
	failed = json_object_get(reply.parameters, "failed");
	if (json_array_size(failed) > 0)
		return fail(ctl, failed, checked);
	if (ctl->json)
		ctl_print_json(reply.parameters);
	else
		(void)printf("%lld adapters are as they were imported\n", (long long)checked);
	return TOOL_OK;
}

const struct ctl_verb ctl_verify = {
	.name = "verify",
	.arguments = "[NAME...]",
	.summary = "read every byte of adapters and compare the checksums",
	.most_args = CTL_ANY_NUMBER,
	.run = run,
};
