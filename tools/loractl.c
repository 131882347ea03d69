/* SPDX-License-Identifier: MIT */
/*
 * loractl: talk to lorad from the shell
 *
 * The table of verbs, the global options, --help and the exit status are here; each verb is a file of its own,
 * ctl-<verb>.c, that exports one const struct. list, generate and score use the daemon's client socket, as any program
 * may; all others its control socket, which authorises each verb by the caller's uid.
 *
 * A verb returns 0, 1 (failed) or 2 (usage), with the reason in a struct diag; it is printed here as the one line on
 * stderr. A verb that fails has printed nothing on stdout but the text that a generation had streamed until then.
 */
#include <stdio.h>
#include <string.h>

#include "config.h"
#include "tools/ctl.h"

static const struct ctl_verb *const verbs[] = {
	&ctl_import, &ctl_list,     &ctl_show,   &ctl_verify,  &ctl_compact, &ctl_remove,   &ctl_export, &ctl_pin,
	&ctl_unpin,  &ctl_prefetch, &ctl_status, &ctl_metrics, &ctl_top,     &ctl_generate, &ctl_score,
};

#define N_VERBS (sizeof(verbs) / sizeof(verbs[0]))

static const struct option global_options[] = {
	{ "socket", 0, "PATH", "the daemon's client socket", OPTION_TEXT, offsetof(struct ctl, given_socket) },
	{ "json", 0, NULL, "print the result as JSON", OPTION_FLAG, offsetof(struct ctl, json) },
	{ "help", 'h', NULL, "print this help", OPTION_FLAG, offsetof(struct ctl, help) },
	{ "version", 0, NULL, "print the version", OPTION_FLAG, offsetof(struct ctl, version) },
	OPTIONS_END,
};

static void print_help(void)
{
	(void)printf("usage: loractl [OPTION]... VERB ...\n\nVerbs (loractl VERB --help says more):\n");
	for (size_t i = 0; i < N_VERBS; ++i) {
		char left[64];

		(void)snprintf(left, sizeof(left), "%s %s", verbs[i]->name, verbs[i]->arguments);
		(void)printf("  %-25s %s\n", left, verbs[i]->summary);
	}
	(void)printf("\nOptions, before or after the verb:\n");
	options_help(global_options, stdout);
}

static void print_version(void)
{
	(void)printf("loractl %s\n", PACKAGE_VERSION);
}

static void print_verb_help(const struct ctl_verb *verb)
{
	(void)printf("usage: loractl [OPTION]... %s%s%s\n\n%s\n\nOptions:\n", verb->name, *verb->arguments ? " " : "",
		     verb->arguments, verb->summary);
	if (verb->options)
		options_help(verb->options, stdout);
	options_help(global_options, stdout);
}

static const struct ctl_verb *find_verb(const char *name)
{
	for (size_t i = 0; i < N_VERBS; ++i)
		if (strcmp(verbs[i]->name, name) == 0)
			return verbs[i];
	return NULL;
}

static int check_arguments(const struct ctl_verb *verb, char **args, size_t n_args, struct diag *diag)
{
	if (n_args < verb->least_args)
		return diag_set(diag, TOOL_USAGE, "%s: usage: loractl %s %s", verb->name, verb->name, verb->arguments);
	if (n_args > verb->most_args)
		return diag_set(diag, TOOL_USAGE, "%s: one argument too many: %s", verb->name, args[verb->most_args]);
	for (size_t i = 0; i < n_args; ++i)
		if (!args[i][0])
			return diag_set(diag, TOOL_FAILED, "%s %s: an argument is empty", verb->name, verb->arguments);
	return TOOL_OK;
}

static int run_verb(struct ctl *ctl, const struct ctl_verb *verb, char **args, size_t n_args)
{
	static const struct option no_options[] = { OPTIONS_END };
	_cleanup_free_ void *state = calloc(1, verb->state_bytes + 1);
	const struct option_set sets[] = { { verb->options ? verb->options : no_options, state },
					   { global_options, ctl } };
	size_t used;
	int r;

	if (!state)
		return tool_no_memory(ctl->diag);
	if (verb->defaults)
		memcpy(state, verb->defaults, verb->state_bytes);
	r = options_parse(&(struct options){ sets, 2, .stop_at_word = false }, args, &n_args, &used, ctl->diag);
	if (!r && (ctl->help || ctl->version)) {
		if (ctl->help)
			print_verb_help(verb);
		else
			print_version();
		return TOOL_OK;
	}
	if (!r)
		r = check_arguments(verb, args, n_args, ctl->diag);
	if (!r)
		r = tool_socket_path(ctl->given_socket, getenv("XDG_RUNTIME_DIR"), ctl->socket, ctl->diag);
	return r ? r : verb->run(ctl, state, args, n_args);
}

static int run(struct ctl *ctl, char **args, size_t n_args)
{
	const struct option_set set = { global_options, ctl };
	const struct ctl_verb *verb;
	size_t n_words = n_args, used;
	int r;

	r = options_parse(&(struct options){ &set, 1, .stop_at_word = true }, args, &n_words, &used, ctl->diag);
	if (r)
		return r;
	if (ctl->version) {
		print_version();
		return TOOL_OK;
	}
	verb = used < n_args ? find_verb(args[used]) : NULL;
	if (verb)
		return run_verb(ctl, verb, args + used + 1, n_args - used - 1);
	if (ctl->help) {
		print_help();
		return TOOL_OK;
	}
	if (used < n_args)
		return diag_set(ctl->diag, TOOL_USAGE, "unknown verb %s (see loractl --help)", args[used]);
	return diag_set(ctl->diag, TOOL_USAGE, "a verb is missing (see loractl --help)");
}

int main(int argc, char **argv)
{
	struct diag diag = { .text = "" };
	struct ctl ctl = { .diag = &diag };
	int r;

	r = run(&ctl, argv + 1, argc > 0 ? (size_t)argc - 1 : 0);
	if (!r)
		r = tool_flush(&diag);
	if (r)
		(void)fprintf(stderr, "loractl: %s\n", diag.text);
	return r;
}
