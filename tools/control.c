/* SPDX-License-Identifier: MIT */
/*
 * The control socket
 *
 * A stream socket at `<client socket>.control` that carries JSON objects, each ended by a NUL byte, in Varlink's form:
 *
 *   {"method":"io.lorad.Verify","parameters":{...},"more":true}
 *   {"parameters":{...},"continues":true}                              progress, any number of times
 *   {"parameters":{...}}                                               the result
 *   {"error":"io.lorad.Failed","parameters":{"code":22,"message":"one line"}}
 *
 * File descriptors travel beside the first byte of the message they belong to. One call is in flight at a time, so that
 * whatever arrives belongs to it; the descriptors of an answer that nobody asked for are closed.
 */
#include "tools/control.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "tools/tool.h"

#define MESSAGE_BYTES_MAX (64u << 20) /* a list of 200,000 adapters has half of it */
#define READ_BYTES (64u << 10)

struct control {
	int fd;
	char path[TOOL_PATH_MAX];
	char *in;                 /* bytes read and not yet consumed */
	size_t n_in, room;
	int fds[CONTROL_FDS_MAX]; /* that arrived with them */
	size_t n_fds;
};

static void close_fds(int *fds, size_t *n)
{
	while (*n)
		close(fds[--*n]);
}

/**
 * control_open() - connect to a daemon's control socket
 * @ret:            the connection
 * @client_socket:  path of the socket that clients use; control's has ".control" behind it
 * @diag:           why not
 */
int control_open(struct control **ret, const char *client_socket, struct diag *diag)
{
	_cleanup_(control_closep) struct control *control = NULL;
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	control = calloc(1, sizeof(*control));
	if (!control)
		return tool_no_memory(diag);
	control->fd = -1;
	if (snprintf(control->path, sizeof(control->path), "%s.control", client_socket) >= TOOL_PATH_MAX)
		return diag_set(diag, TOOL_FAILED, "%s.control: longer than a socket's path can be", client_socket);
	memcpy(address.sun_path, control->path, sizeof(address.sun_path));
	control->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (control->fd < 0 || connect(control->fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		return diag_set(diag, TOOL_FAILED, "%s: %s%s", control->path, strerror(errno),
				errno == ENOENT || errno == ECONNREFUSED ? " (is lorad running?)" : "");
	*ret = TAKE_PTR(control);
	return TOOL_OK;
}

struct control *control_close(struct control *control)
{
	if (!control)
		return NULL;
	close_fds(control->fds, &control->n_fds);
	if (control->fd >= 0)
		close(control->fd);
	free(control->in);
	free(control);
	return NULL;
}

static int send_all(struct control *control, struct msghdr *message, struct diag *diag)
{
	struct iovec *part = message->msg_iov;

	while (part->iov_len) {
		ssize_t n = sendmsg(control->fd, message, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return diag_set(diag, TOOL_FAILED, "%s: %s", control->path, strerror(errno));
		part->iov_base = (char *)part->iov_base + n;
		part->iov_len -= (size_t)n;
		message->msg_control = NULL; /* the descriptors went with the first byte */
		message->msg_controllen = 0;
	}
	return TOOL_OK;
}

/** control_fd() - what becomes readable when an answer comes */
int control_fd(const struct control *control)
{
	return control->fd;
}

/**
 * control_send() - begin a call; control_await() ends it
 * @control:  the connection; has no call in flight
 * @call:     what to call; its descriptors may be closed afterwards
 * @diag:     what went wrong
 */
int control_send(struct control *control, const struct control_call *call, struct diag *diag)
{
	_Alignas(struct cmsghdr) char ancillary[CMSG_SPACE(sizeof(int) * CONTROL_FDS_MAX)] = { 0 };
	_cleanup_free_ char *text = NULL;
	struct iovec part;
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };
	json_t *object;

	object = json_pack("{s:s+, s:O}", "method", "io.lorad.", call->method, "parameters", call->parameters);
	if (object && call->progress)
		json_object_set_new(object, "more", json_true());
	text = object ? json_dumps(object, JSON_COMPACT) : NULL;
	json_decref(object);
	if (!text)
		return tool_no_memory(diag);
	part = (struct iovec){ text, strlen(text) + 1 };
	if (call->n_fds) {
		struct cmsghdr *head = (struct cmsghdr *)ancillary;

		message.msg_control = ancillary;
		message.msg_controllen = CMSG_SPACE(sizeof(int) * call->n_fds);
		*head = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof(int) * call->n_fds),
					  .cmsg_level = SOL_SOCKET,
					  .cmsg_type = SCM_RIGHTS };
		memcpy(CMSG_DATA(head), call->fds, sizeof(int) * call->n_fds);
	}
	return send_all(control, &message, diag);
}

/* Keeps the descriptors that came with a read; more than there is room for are closed by the kernel (MSG_CTRUNC). */
static void keep_fds(struct control *control, struct msghdr *message)
{
	for (struct cmsghdr *head = CMSG_FIRSTHDR(message); head; head = CMSG_NXTHDR(message, head)) {
		size_t n = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t i = 0; i < n; ++i) {
			int fd;

			memcpy(&fd, CMSG_DATA(head) + i * sizeof(int), sizeof(int));
			if (control->n_fds < CONTROL_FDS_MAX)
				control->fds[control->n_fds++] = fd;
			else
				close(fd);
		}
	}
}

static int read_some(struct control *control, struct diag *diag)
{
	_Alignas(struct cmsghdr) char ancillary[CMSG_SPACE(sizeof(int) * CONTROL_FDS_MAX)];
	struct iovec part;
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = ancillary,
				  .msg_controllen = sizeof(ancillary) };
	ssize_t n;

	if (control->room - control->n_in < READ_BYTES) {
		size_t room = control->room * 2 + READ_BYTES;
		char *in = room <= 2 * MESSAGE_BYTES_MAX ? realloc(control->in, room) : NULL;

		if (!in)
			return diag_set(diag, TOOL_FAILED, "%s: the answer is too long", control->path);
		control->in = in;
		control->room = room;
	}
	part = (struct iovec){ control->in + control->n_in, control->room - control->n_in };
	do
		n = recvmsg(control->fd, &message, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return diag_set(diag, TOOL_FAILED, "%s: %s", control->path, strerror(errno));
	if (n == 0)
		return diag_set(diag, TOOL_FAILED, "%s: the daemon closed the connection", control->path);
	keep_fds(control, &message);
	control->n_in += (size_t)n;
	return TOOL_OK;
}

/* Reads up to the next NUL and parses what is before it. */
static int read_message(struct control *control, json_t **ret, struct diag *diag)
{
	_cleanup_(json_decrefp) json_t *message = NULL;
	json_error_t error;
	size_t searched = 0;
	char *end;
	int r;

	while (!(end = control->n_in ? memchr(control->in + searched, 0, control->n_in - searched) : NULL)) {
		searched = control->n_in;
		r = read_some(control, diag);
		if (r)
			return r;
	}
	message = json_loadb(control->in, (size_t)(end - control->in), JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
	control->n_in -= (size_t)(end + 1 - control->in);
	memmove(control->in, end + 1, control->n_in);
	if (!json_is_object(message))
		return diag_set(diag, TOOL_FAILED, "%s: the daemon's answer is no JSON object", control->path);
	*ret = TAKE_PTR(message);
	return TOOL_OK;
}

static int refused(const json_t *message, const char *error, struct diag *diag)
{
	const char *text = json_string_value(json_object_get(json_object_get(message, "parameters"), "message"));

	return diag_set(diag, TOOL_FAILED, "%s", text && *text ? text : error);
}

/**
 * control_await() - wait for the result of the call that control_send() began
 * @control:  the connection
 * @call:     the call; with progress() set, it gets the parameters of each reply but the last
 * @ret:      the last reply; the caller ends it with control_reply_deinit()
 * @diag:     the daemon's words when it refuses, else what went wrong on the way
 */
int control_await(struct control *control, const struct control_call *call, struct control_reply *ret, struct diag *diag)
{
	int r;

	for (;;) {
		_cleanup_(json_decrefp) json_t *message = NULL;
		json_t *parameters;
		const char *error;

		r = read_message(control, &message, diag);
		if (r)
			return r;
		error = json_string_value(json_object_get(message, "error"));
		if (error)
			return refused(message, error, diag);
		parameters = json_object_get(message, "parameters");
		if (!json_is_true(json_object_get(message, "continues"))) {
			ret->parameters = parameters ? json_incref(parameters) : json_object();
			memcpy(ret->fds, control->fds, sizeof(ret->fds));
			ret->n_fds = control->n_fds;
			control->n_fds = 0;
			return TOOL_OK;
		}
		if (call->progress)
			call->progress(call->userdata, parameters);
		close_fds(control->fds, &control->n_fds);
	}
}

/** control_call() - call a method and wait for its result: control_send() and control_await() */
int control_call(struct control *control, const struct control_call *call, struct control_reply *ret, struct diag *diag)
{
	int r;

	r = control_send(control, call, diag);
	return r ? r : control_await(control, call, ret, diag);
}

void control_reply_deinit(struct control_reply *reply)
{
	close_fds(reply->fds, &reply->n_fds);
	json_decref(reply->parameters);
	reply->parameters = NULL;
}
