/* SPDX-License-Identifier: MIT */
/* What the verbs share: names, printing, and a call to the control socket. */
#include "tools/ctl.h"

#include <stdio.h>
#include <string.h>

#define NAME_BYTES_MAX 128

/** ctl_name_valid() - is it [A-Za-z0-9][A-Za-z0-9._-]{0,127}? */
bool ctl_name_valid(const char *name)
{
	static const char first[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
	static const char rest[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
	size_t length = strnlen(name, NAME_BYTES_MAX + 1);

	return length >= 1 && length <= NAME_BYTES_MAX && strchr(first, name[0]) && strspn(name, rest) == length;
}

int ctl_check_name(struct ctl *ctl, const char *name)
{
	if (ctl_name_valid(name))
		return TOOL_OK;
	return diag_set(ctl->diag, TOOL_FAILED, "'%s' is no adapter name: letters, digits and ._- (not first), at most %d",
			name, NAME_BYTES_MAX);
}

/** ctl_print_json() - one line of JSON; nine digits bring every float back exactly */
void ctl_print_json(const json_t *value)
{
	(void)json_dumpf(value, stdout, JSON_REAL_PRECISION(9) | JSON_ENCODE_ANY);
	(void)putchar('\n');
}

static void print_scalar(const json_t *value)
{
	if (json_is_string(value))
		(void)printf("%s\n", json_string_value(value));
	else
		ctl_print_json(value);
}

/**
 * ctl_print_fields() - print an object for people
 * @object:  what to print
 * @prefix:  put before each name; objects inside add theirs
 *
 * One `name: value` a line, names of objects inside objects joined by dots, so that whatever a daemon has to tell is
 * shown by an older loractl too.
 */
void ctl_print_fields(json_t *object, const char *prefix)
{
	const char *key;
	json_t *value;

	json_object_foreach(object, key, value) {
		char name[128];

		(void)snprintf(name, sizeof(name), "%s%s%s", prefix, *prefix ? "." : "", key);
		if (json_is_object(value)) {
			ctl_print_fields(value, name);
			continue;
		}
		(void)printf("%-28s ", name);
		print_scalar(value);
	}
}

/** ctl_text() - a text member of a reply, "" where it is missing */
const char *ctl_text(const json_t *object, const char *key)
{
	const char *text = json_string_value(json_object_get(object, key));

	return text ? text : "";
}

/**
 * ctl_call() - one call on a connection of its own
 * @ctl:         which daemon
 * @method:      "Status"
 * @parameters:  taken over; NULL means that there was no memory for it
 * @ret:         the reply's parameters, the caller's
 */
int ctl_call(struct ctl *ctl, const char *method, json_t *parameters, json_t **ret)
{
	_cleanup_(json_decrefp) json_t *owned = parameters;
	_cleanup_(control_closep) struct control *control = NULL;
	_cleanup_(control_reply_deinit) struct control_reply reply = { .n_fds = 0 };
	struct control_call call = { .method = method, .parameters = parameters };
	int r;

	if (!parameters)
		return tool_no_memory(ctl->diag);
	r = control_open(&control, ctl->socket, ctl->diag);
	if (!r)
		r = control_call(control, &call, &reply, ctl->diag);
	if (!r)
		*ret = TAKE_PTR(reply.parameters);
	return r;
}

/**
 * ctl_call_on_name() - the verbs that do one thing to one adapter and have nothing to tell but that it is done
 * @ctl:     which daemon
 * @method:  "Pin"
 * @name:    of the adapter
 * @done:    "pinned"
 * @loading: what to say instead while the daemon is still reading the adapter, or NULL
 */
int ctl_call_on_name(struct ctl *ctl, const char *method, const char *name, const char *done, const char *loading)
{
	_cleanup_(json_decrefp) json_t *reply = NULL;
	_cleanup_(json_decrefp) json_t *result = NULL;
	int r;

	r = ctl_check_name(ctl, name);
	if (!r)
		r = ctl_call(ctl, method, json_pack("{s:s}", "name", name), &reply);
	if (r)
		return r;
	if (loading && strcmp(ctl_text(reply, "result"), "loading") == 0)
		done = loading;
	if (!ctl->json) {
		(void)printf("%s: %s\n", name, done);
		return TOOL_OK;
	}
	result = json_pack("{s:s, s:s}", "name", name, "result", done);
	if (!result)
		return tool_no_memory(ctl->diag);
	ctl_print_json(result);
	return TOOL_OK;
}
