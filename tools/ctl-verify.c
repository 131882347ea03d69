/* SPDX-License-Identifier: MIT */
/* loractl verify: read every byte of adapters in the store and compare it with its checksums; all of them by default. */
#include <stdio.h>

#include "daemon/format/conf.h"
#include "tools/ctl.h"
#include "tools/progress.h"

struct verify {
	const char *rate; /* --rate */
};

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
	const struct verify *verify = state;
	json_t *names = json_array();
	struct progress progress;
	const json_t *failed;
	json_int_t checked;
	uint64_t rate = 0;
	int r = TOOL_OK;

	if (verify->rate && (conf_bytes("--rate", verify->rate, &rate, ctl->diag) || !rate || rate > INT64_MAX))
		r = diag_set(ctl->diag, TOOL_FAILED, "--rate %s: must be a number of bytes, as 64M, above 0", verify->rate);
	for (size_t i = 0; i < n_args && !r; ++i) {
		r = ctl_check_name(ctl, args[i]);
		if (!r)
			json_array_append_new(names, json_string(args[i]));
	}
	parameters = json_pack("{s:o}", "names", names);
	if (r || !parameters)
		return r ? r : tool_no_memory(ctl->diag);
	if (rate)
		json_object_set_new(parameters, "rate", json_integer((json_int_t)rate));
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

static const struct option options[] = {
	{ "rate", 0, "BYTES", "read at most that many a second (K, M, G; default: 200 million)", OPTION_TEXT,
	  offsetof(struct verify, rate) },
	OPTIONS_END,
};

const struct ctl_verb ctl_verify = {
	.name = "verify",
	.arguments = "[NAME...]",
	.summary = "read every byte of adapters and compare the checksums",
	.most_args = CTL_ANY_NUMBER,
	.options = options,
	.state_bytes = sizeof(struct verify),
	.run = run,
};
