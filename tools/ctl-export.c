/* SPDX-License-Identifier: MIT */
/*
 * loractl export: write an adapter as a PEFT folder
 *
 * The daemon answers with names and sealed memory files; they are written here, with the caller's rights. DIR is made, or
 * is an empty folder; nothing is ever overwritten. What was written is taken away again if the rest fails.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>

#include "tools/ctl.h"

#define COPY_BYTES (16u << 20)

/* Makes DIR, or takes it as it is if it is empty. */
static int open_empty(struct ctl *ctl, const char *path, int *ret)
{
	_cleanup_(closedirp) DIR *folder = NULL;
	struct dirent *entry;

	if (mkdir(path, 0777) < 0 && errno != EEXIST)
		return diag_set(ctl->diag, TOOL_FAILED, "%s: %s", path, strerror(errno));
	folder = opendir(path);
	if (!folder)
		return diag_set(ctl->diag, TOOL_FAILED, "%s: %s", path, strerror(errno));
	while ((entry = readdir(folder)))
		if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
			return diag_set(ctl->diag, TOOL_FAILED, "%s: is not empty", path);
	*ret = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return *ret < 0 ? diag_set(ctl->diag, TOOL_FAILED, "%s: %s", path, strerror(errno)) : TOOL_OK;
}

static int copy_all(int from, int to)
{
	off_t at = 0;
	ssize_t n;

	do
		n = sendfile(to, from, &at, COPY_BYTES);
	while (n > 0 || (n < 0 && errno == EINTR));
	return n < 0 || fsync(to) < 0 ? -errno : 0;
}

static int write_file(struct ctl *ctl, int folder, const char *name, int from)
{
	_cleanup_close_ int to = -1;
	int r;

	if (!ctl_name_valid(name))
		return diag_set(ctl->diag, TOOL_FAILED, "the daemon names a file '%s'", name);
	to = openat(folder, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
	if (to < 0)
		return diag_set(ctl->diag, TOOL_FAILED, "%s: %s", name, strerror(errno));
	r = copy_all(from, to);
	if (r < 0) {
		(void)unlinkat(folder, name, 0);
		return diag_set(ctl->diag, TOOL_FAILED, "%s: %s", name, strerror(-r));
	}
	return TOOL_OK;
}

static int write_files(struct ctl *ctl, const char *path, const json_t *files, const struct control_reply *reply)
{
	_cleanup_close_ int folder = -1;
	size_t done;
	int r;

	if (!json_is_array(files) || json_array_size(files) != reply->n_fds)
		return diag_set(ctl->diag, TOOL_FAILED, "the daemon sent %zu files but names %zu", reply->n_fds,
				json_array_size(files));
	r = open_empty(ctl, path, &folder);
	for (done = 0; !r && done < reply->n_fds; ++done) {
		const char *name = json_string_value(json_array_get(files, done));

		r = write_file(ctl, folder, name ? name : "", reply->fds[done]);
		if (r)
			r = diag_prefix(ctl->diag, r, "%s", path);
	}
	for (; r && folder >= 0 && done > 1; --done)
		(void)unlinkat(folder, json_string_value(json_array_get(files, done - 2)), 0);
	return r;
}

static int run(struct ctl *ctl, void *state, char **args, size_t n_args)
{
	_cleanup_(json_decrefp) json_t *parameters = json_pack("{s:s}", "name", args[0]);
	_cleanup_(control_closep) struct control *control = NULL;
	_cleanup_(control_reply_deinit) struct control_reply reply = { .n_fds = 0 };
	struct control_call call = { .method = "Export", .parameters = parameters };
	int r;

	(void)state;
	(void)n_args;
	r = ctl_check_name(ctl, args[0]);
	if (r)
		return r;
	if (!parameters)
		return tool_no_memory(ctl->diag);
	r = control_open(&control, ctl->socket, ctl->diag);
	if (!r)
		r = control_call(control, &call, &reply, ctl->diag);
	if (!r)
		r = write_files(ctl, args[1], json_object_get(reply.parameters, "files"), &reply);
	if (r)
		return r;
	if (ctl->json)
		ctl_print_json(reply.parameters);
	else
		(void)printf("%s: exported to %s\n", args[0], args[1]);
	return TOOL_OK;
}

const struct ctl_verb ctl_export = {
	.name = "export",
	.arguments = "NAME DIR",
	.summary = "write an adapter as a PEFT folder",
	.least_args = 2,
	.most_args = 2,
	.run = run,
};
