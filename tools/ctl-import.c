/* SPDX-License-Identifier: MIT */
/*
 * loractl import: put adapters into the store
 *
 * A PATH is a folder as PEFT writes it. Its two files are opened here, with the caller's rights, and handed to the daemon
 * as file descriptors: the daemon never opens a path that someone else named. Links are followed (Hugging Face caches
 * are made of them), but only regular files pass; O_NONBLOCK keeps a FIFO from hanging the open.
 *
 * One path's failure does not stop the others; it is told on stderr, and the whole ends with status 1.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "tools/ctl.h"
#include "tools/progress.h"

static const char *const file_names[] = { "adapter_config.json", "adapter_model.safetensors" };

#define N_FILES (sizeof(file_names) / sizeof(file_names[0]))
#define PICKLE_NAME "adapter_model.bin"

struct import {
	const char *name; /* --name */
	bool replace;
	/* while it runs */
	struct progress progress;
	const char *current;
	size_t number, of;
};

static int fail_path(struct ctl *ctl, const char *path, const char *file, const char *reason)
{
	return diag_set(ctl->diag, TOOL_FAILED, "%s%s%s: %s", path, file ? "/" : "", file ? file : "", reason);
}

/* Opens one file of a folder, a regular one. */
static int open_file(struct ctl *ctl, const char *path, int folder, const char *name, int *ret)
{
	_cleanup_close_ int fd = -1;
	struct stat info;

	fd = openat(folder, name, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
	if (fd < 0 && errno == ENOENT && faccessat(folder, PICKLE_NAME, F_OK, 0) == 0)
		return fail_path(ctl, path, PICKLE_NAME, "is a pickle, which can run code and is never read; save it as "
							 "safetensors");
	if (fd < 0 || fstat(fd, &info) < 0)
		return fail_path(ctl, path, name, strerror(errno));
	if (!S_ISREG(info.st_mode))
		return fail_path(ctl, path, name, "is no regular file");
	*ret = TAKE_FD(fd);
	return TOOL_OK;
}

static int open_folder(struct ctl *ctl, const char *path, int *ret)
{
	size_t length = strlen(path);

	*ret = open(path, O_RDONLY | O_DIRECTORY | O_NONBLOCK | O_CLOEXEC);
	if (*ret >= 0)
		return TOOL_OK;
	if (errno != ENOTDIR)
		return fail_path(ctl, path, NULL, strerror(errno));
	if (length > 4 && strcmp(path + length - 4, ".bin") == 0)
		return fail_path(ctl, path, NULL, "is a pickle, which can run code and is never read; save it as safetensors");
	return fail_path(ctl, path, NULL, "is no folder; give the PEFT folder that holds adapter_config.json");
}

/* The adapter's name where --name does not say it: the last part of the path, of the real one for "." and "..". */
static int default_name(struct ctl *ctl, const char *path, char ret[NAME_MAX + 1])
{
	_cleanup_free_ char *real = NULL;
	size_t end = strlen(path), start;

	while (end > 1 && path[end - 1] == '/')
		--end;
	for (start = end; start > 0 && path[start - 1] != '/'; --start)
		;
	if (end - start <= 2 && strspn(path + start, ".") >= end - start) {
		real = realpath(path, NULL);
		if (!real)
			return fail_path(ctl, path, NULL, strerror(errno));
		path = real;
		end = strlen(path);
		start = (size_t)(strrchr(path, '/') + 1 - path);
	}
	if (end - start > NAME_MAX)
		end = start + NAME_MAX;
	memcpy(ret, path + start, end - start);
	ret[end - start] = 0;
	if (!ctl_name_valid(ret))
		return fail_path(ctl, path, NULL, "its last part is no adapter name; give one with --name");
	return TOOL_OK;
}

static void show_progress(void *userdata, const json_t *parameters)
{
	struct import *import = userdata;
	double fraction = json_number_value(json_object_get(parameters, "fraction"));

	if (import->of == 1)
		progress_draw(&import->progress, fraction, "%.40s: %.20s", import->current,
			      ctl_text(parameters, "stage"));
	else
		progress_draw(&import->progress, ((double)import->number + fraction) / (double)import->of,
			      "%zu of %zu, %.40s: %.20s", import->number + 1, import->of, import->current,
			      ctl_text(parameters, "stage"));
}

/* Sends one folder's files; the result goes into results. */
static int import_folder(struct ctl *ctl, struct import *import, struct control *control, const char *path,
			 json_t *results)
{
	_cleanup_(control_reply_deinit) struct control_reply reply = { .n_fds = 0 };
	_cleanup_(json_decrefp) json_t *parameters = NULL;
	_cleanup_close_ int folder = -1, config = -1, model = -1;
	char base_name[NAME_MAX + 1];
	int r, fds[N_FILES];

	r = open_folder(ctl, path, &folder);
	if (!r)
		r = open_file(ctl, path, folder, file_names[0], &config);
	if (!r)
		r = open_file(ctl, path, folder, file_names[1], &model);
	if (!r && !import->name)
		r = default_name(ctl, path, base_name);
	if (r)
		return r;
	fds[0] = config;
	fds[1] = model;
	import->current = import->name ? import->name : base_name;
	parameters = json_pack("{s:s, s:b, s:[s, s]}", "name", import->current, "replace", import->replace, "files",
			       file_names[0], file_names[1]);
	if (!parameters)
		return tool_no_memory(ctl->diag);
	r = control_call(control,
			 &(struct control_call){ "Import", parameters, fds, N_FILES, show_progress, import },
			 &reply, ctl->diag);
	if (r)
		return diag_prefix(ctl->diag, r, "%s", path);
	return json_array_append(results, reply.parameters) < 0 ? tool_no_memory(ctl->diag) : TOOL_OK;
}

static void print_results(const json_t *results)
{
	size_t i, n = json_array_size(results);
	json_t *result;

	json_array_foreach(results, i, result)
		(void)printf("%s: %s %.12s\n", ctl_text(result, "name"), ctl_text(result, "result"),
			     ctl_text(result, "digest"));
	if (n > 1)
		(void)printf("%zu adapters\n", n);
}

static int run(struct ctl *ctl, void *state, char **args, size_t n_args)
{
	_cleanup_(json_decrefp) json_t *results = json_array();
	struct import *import = state;
	size_t n_failed = 0;
	int r;

	if (!results)
		return tool_no_memory(ctl->diag);
	if (import->name && n_args > 1)
		return diag_set(ctl->diag, TOOL_USAGE, "import: --name with %zu paths: they cannot all have it", n_args);
	if (import->name && ctl_check_name(ctl, import->name))
		return TOOL_FAILED;
	progress_init(&import->progress, !ctl->json);
	import->of = n_args;
	for (import->number = 0; import->number < n_args; ++import->number) {
		_cleanup_(control_closep) struct control *control = NULL;

		r = control_open(&control, ctl->socket, ctl->diag);
		if (r)
			return r;
		r = import_folder(ctl, import, control, args[import->number], results);
		progress_clear(&import->progress);
		n_failed += r != TOOL_OK;
		if (r && n_args > 1)
			(void)fprintf(stderr, "loractl: %s\n", ctl->diag->text);
	}
	if (n_failed && n_args > 1)
		return diag_set(ctl->diag, TOOL_FAILED, "%zu of %zu adapters imported", n_args - n_failed, n_args);
	if (n_failed)
		return TOOL_FAILED;
	if (ctl->json)
		ctl_print_json(results);
	else
		print_results(results);
	return TOOL_OK;
}

static const struct option options[] = {
	{ "name", 0, "NAME", "what to call it (default: the folder's name)", OPTION_TEXT, offsetof(struct import, name) },
	{ "replace", 0, NULL, "let the name point to this content from now on", OPTION_FLAG,
	  offsetof(struct import, replace) },
	OPTIONS_END,
};

const struct ctl_verb ctl_import = {
	.name = "import",
	.arguments = "PATH...",
	.summary = "put PEFT folders into the store",
	.least_args = 1,
	.most_args = CTL_ANY_NUMBER,
	.options = options,
	.state_bytes = sizeof(struct import),
	.run = run,
};
