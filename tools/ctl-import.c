/* SPDX-License-Identifier: MIT */
/*
 * loractl import: put adapters into the store
 *
 * A PATH is a folder as PEFT writes it. Its two files are opened here, with the caller's rights, and handed to the daemon
 * as file descriptors: the daemon never opens a path that someone else named. Links are followed (Hugging Face caches
 * are made of them), but only regular files pass; O_NONBLOCK keeps a FIFO from hanging the open.
 *
 * One path's failure does not stop the others; it is told on stderr, and the whole ends with status 1.
 *
 * Several paths go over several connections, each with one call in flight: the daemon puts imports that are queued
 * together into one commit, and reads the next files while this program opens more. A path's descriptors are closed as
 * soon as they are sent, so that there may be any number of paths. Paths of one name are imported one after the other, in
 * their order.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "daemon/base/clock.h"
#include "tools/ctl.h"
#include "tools/progress.h"

static const char *const file_names[] = { "adapter_config.json", "adapter_model.safetensors" };

#define N_FILES (sizeof(file_names) / sizeof(file_names[0]))
#define PICKLE_NAME "adapter_model.bin"

#define LANES 12 /* the daemon lets a user have 32 connections */

/* A connection and what it is at. */
struct lane {
	struct control *control;
	bool busy;
	size_t number;    /* of the path */
	char name[NAME_MAX + 1];
};

struct import {
	const char *name; /* --name */
	bool replace;
	/* while it runs */
	struct progress progress;
	struct lane lanes[LANES];
	char **paths;
	size_t of, next;  /* paths, and the first that is not begun */
	size_t n_unchanged, n_failed, n_done;
	uint64_t began_ns;
	json_t **results; /* [of], NULL: failed or not there yet */
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

/* Of the one import there is. */
static void show_fraction(void *userdata, const json_t *parameters)
{
	struct import *import = userdata;

	progress_draw(&import->progress, json_number_value(json_object_get(parameters, "fraction")), "%.40s: %.20s",
		      import->lanes[0].name, ctl_text(parameters, "stage"));
}

static void show_count(struct import *import)
{
	double s = (double)(clock_ns() - import->began_ns) / 1e9, rate = s > 0 ? (double)import->n_done / s : 0;

	if (import->of > 1 && rate > 0)
		progress_draw(&import->progress, (double)import->n_done / (double)import->of,
			      "%zu of %zu, %.0f/s, %.0f s left", import->n_done, import->of, rate,
			      (double)(import->of - import->n_done) / rate);
}

/* Counts a path that failed; the only one's failure is told by main. */
static void note_failure(struct ctl *ctl, struct import *import)
{
	++import->n_done;
	++import->n_failed;
	if (import->of == 1)
		return;
	progress_clear(&import->progress);
	(void)fprintf(stderr, "loractl: %s\n", ctl->diag->text);
}

static bool name_in_flight(const struct import *import, const char *name)
{
	for (size_t i = 0; i < LANES; ++i)
		if (import->lanes[i].busy && strcmp(import->lanes[i].name, name) == 0)
			return true;
	return false;
}

static struct control_call call_of(struct import *import, json_t *parameters, const int *fds)
{
	return (struct control_call){ .method = "Import", .parameters = parameters, .fds = fds, .n_fds = fds ? N_FILES : 0,
				      .progress = import->of == 1 ? show_fraction : NULL, .userdata = import };
}

/* Opens a path's files and sends them. */
static int send_path(struct ctl *ctl, struct import *import, struct lane *lane, const char *path)
{
	_cleanup_(json_decrefp) json_t *parameters = NULL;
	_cleanup_close_ int folder = -1, config = -1, model = -1;
	struct control_call call;
	int r;

	r = open_folder(ctl, path, &folder);
	if (!r)
		r = open_file(ctl, path, folder, file_names[0], &config);
	if (!r)
		r = open_file(ctl, path, folder, file_names[1], &model);
	if (r)
		return r;
	parameters = json_pack("{s:s, s:b, s:[s, s]}", "name", lane->name, "replace", import->replace, "files",
			       file_names[0], file_names[1]);
	if (!parameters)
		return tool_no_memory(ctl->diag);
	call = call_of(import, parameters, (const int[N_FILES]){ config, model });
	r = control_send(lane->control, &call, ctl->diag);
	return r ? diag_prefix(ctl->diag, r, "%s", path) : TOOL_OK;
}

/* Gives an idle lane the next path that can be begun; none is left, or it has to wait: the lane stays idle. */
static int begin_next(struct ctl *ctl, struct import *import, struct lane *lane)
{
	int r;

	while (!lane->busy && import->next < import->of) {
		const char *path = import->paths[import->next];

		r = import->name ? TOOL_OK : default_name(ctl, path, lane->name);
		if (import->name)
			(void)snprintf(lane->name, sizeof(lane->name), "%s", import->name);
		if (!r && name_in_flight(import, lane->name))
			return TOOL_OK;
		if (!lane->control && control_open(&lane->control, ctl->socket, ctl->diag))
			return TOOL_FAILED;
		lane->number = import->next++;
		if (!r)
			r = send_path(ctl, import, lane, path);
		if (r)
			note_failure(ctl, import);
		lane->busy = !r;
	}
	return TOOL_OK;
}

/* Takes a lane's answer. After a failure its connection may be no good: the next path gets another one. */
static void end_path(struct ctl *ctl, struct import *import, struct lane *lane)
{
	_cleanup_(control_reply_deinit) struct control_reply reply = { .n_fds = 0 };
	const struct control_call call = call_of(import, NULL, NULL);

	lane->busy = false;
	if (control_await(lane->control, &call, &reply, ctl->diag)) {
		(void)diag_prefix(ctl->diag, 0, "%s", import->paths[lane->number]);
		lane->control = control_close(lane->control);
		note_failure(ctl, import);
		return;
	}
	++import->n_done;
	import->n_unchanged += strcmp(ctl_text(reply.parameters, "result"), "unchanged") == 0;
	import->results[lane->number] = json_incref(reply.parameters);
}

/* Waits until an answer comes, and takes all that are there. */
static int end_some(struct ctl *ctl, struct import *import)
{
	struct pollfd fds[LANES];

	for (size_t i = 0; i < LANES; ++i)
		fds[i] = (struct pollfd){ .fd = import->lanes[i].busy ? control_fd(import->lanes[i].control) : -1,
					  .events = POLLIN };
	if (poll(fds, LANES, -1) < 0)
		return errno == EINTR ? TOOL_OK : diag_set(ctl->diag, TOOL_FAILED, "poll: %s", strerror(errno));
	for (size_t i = 0; i < LANES; ++i)
		if (import->lanes[i].busy && fds[i].revents)
			end_path(ctl, import, &import->lanes[i]);
	show_count(import);
	return TOOL_OK;
}

static int import_all(struct ctl *ctl, struct import *import)
{
	int r = TOOL_OK;

	while (!r && import->n_done < import->of) {
		for (size_t i = 0; i < LANES && !r; ++i)
			r = begin_next(ctl, import, &import->lanes[i]);
		if (!r && import->n_done < import->of)
			r = end_some(ctl, import);
	}
	progress_clear(&import->progress);
	return r;
}

static int print_results(struct ctl *ctl, const struct import *import)
{
	_cleanup_(json_decrefp) json_t *all = json_array();

	for (size_t i = 0; i < import->of && !ctl->json; ++i)
		(void)printf("%s: %s %.12s\n", ctl_text(import->results[i], "name"),
			     ctl_text(import->results[i], "result"), ctl_text(import->results[i], "digest"));
	if (!ctl->json && import->of > 1)
		(void)printf("%zu adapters, %zu of them unchanged\n", import->of, import->n_unchanged);
	for (size_t i = 0; i < import->of && ctl->json; ++i)
		if (json_array_append(all, import->results[i]) < 0)
			return tool_no_memory(ctl->diag);
	if (ctl->json)
		ctl_print_json(all);
	return TOOL_OK;
}

static int run(struct ctl *ctl, void *state, char **args, size_t n_args)
{
	struct import *import = state;
	int r;

	if (import->name && n_args > 1)
		return diag_set(ctl->diag, TOOL_USAGE, "import: --name with %zu paths: they cannot all have it", n_args);
	if (import->name && ctl_check_name(ctl, import->name))
		return TOOL_FAILED;
	import->results = calloc(n_args, sizeof(*import->results));
	if (!import->results)
		return tool_no_memory(ctl->diag);
	progress_init(&import->progress, !ctl->json);
	import->paths = args;
	import->of = n_args;
	import->began_ns = clock_ns();
	r = import_all(ctl, import);
	if (!r && import->n_failed && n_args > 1)
		r = diag_set(ctl->diag, TOOL_FAILED, "%zu of %zu adapters failed; %zu are in the store, %zu of them unchanged",
			     import->n_failed, n_args, n_args - import->n_failed, import->n_unchanged);
	else if (!r)
		r = import->n_failed ? TOOL_FAILED : print_results(ctl, import);
	for (size_t i = 0; i < LANES; ++i)
		control_close(import->lanes[i].control);
	for (size_t i = 0; i < n_args; ++i)
		json_decref(import->results[i]);
	free(import->results);
	return r;
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
