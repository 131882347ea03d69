/* SPDX-License-Identifier: MIT */
/*
 * The control socket
 *
 * `<client socket>.control`, a stream of JSON messages in Varlink's form, one interface io.lorad:
 *
 *   {"method":"io.lorad.Verify","parameters":{...},"more":true}
 *   {"parameters":{...},"continues":true}                              progress, only if "more" was given
 *   {"parameters":{...}}                                               the result
 *   {"error":"io.lorad.Failed","parameters":{"code":22,"message":"one line"}}
 *
 * This file accepts connections, takes messages apart, finds their verb in one table, asks whether the caller may, and
 * puts answers together. The verbs are in control-*.c; what may block runs on the importer's or the worker's thread.
 *
 * Who may connect is up to the socket's permissions. Verbs that change something are for root and the daemon's own user;
 * the caller's uid is what the kernel says it was at connect().
 */
#include "daemon/control.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "daemon/base/clock.h"
#include "daemon/base/error.h"
#include "daemon/base/log.h"
#include "daemon/control-call.h"
#include "daemon/format/json.h"
#include "daemon/os/sock.h"

#define PEERS_MAX 256
#define PEERS_PER_UID 32
#define METHOD_PREFIX "io.lorad."

struct control {
	const struct parts *parts;
	struct loop_source source; /* the listening socket */
	struct list peers;
	struct log_limit limit;
};

struct control_verb {
	const char *name;
	control_verb_fn *fn;
	bool changes;              /* for root and the daemon's user only */
};

static const struct control_verb verbs[] = {
	{ "Import", control_import, true },     { "List", control_list, false },
	{ "Show", control_show, false },        { "Verify", control_verify, false },
	{ "Remove", control_remove, true },     { "Export", control_export, false },
	{ "Pin", control_pin, true },           { "Unpin", control_unpin, true },
	{ "Prefetch", control_prefetch, true }, { "Status", control_status, false },
	{ "Metrics", control_metrics, false },  { "Compact", control_compact, true },
};

/* ---- calls ---- */

static void free_call(struct control_call *call)
{
	for (size_t i = 0; i < call->n_fds; ++i)
		if (call->fd[i] >= 0)
			close(call->fd[i]);
	json_decref(call->parameters);
	free(call);
}

/* The peer may send its next call. */
static void end_call(struct control_call *call)
{
	struct control_peer *peer = call->peer;

	free_call(call);
	if (!peer)
		return;
	peer->call = NULL;
	control_peer_go_on(peer);
}

static char *text_of(const json_t *message)
{
	char *text = message ? json_dumps(message, JSON_COMPACT) : NULL;

	return text ? text : strdup("{\"error\":\"" METHOD_PREFIX "Failed\",\"parameters\":{\"code\":5,\"message\":"
				    "\"the answer could not be put together\"}}");
}

/* Takes over the message and the descriptors. A caller that waits gets something in any case. */
static void send_message(struct control_call *call, json_t *message, const int *fds, size_t n_fds)
{
	char *text = call->peer ? text_of(message) : NULL;

	json_decref(message);
	if (text)
		(void)control_peer_send(call->peer, text, fds, n_fds);
	else
		for (size_t i = 0; i < n_fds; ++i)
			close(fds[i]);
}

/**
 * control_reply_files() - end a call with its result and descriptors beside it
 * @call:       the call; gone afterwards
 * @parameters: the result; taken over
 * @fds:        taken over
 * @n_fds:      how many
 */
void control_reply_files(struct control_call *call, json_t *parameters, const int *fds, size_t n_fds)
{
	send_message(call, json_pack("{s:o}", "parameters", parameters), fds, n_fds);
	end_call(call);
}

void control_reply(struct control_call *call, json_t *parameters)
{
	control_reply_files(call, parameters, NULL, 0);
}

/**
 * control_progress() - report how far a call is
 * @call:       the call
 * @parameters: the report; taken over
 *
 * Dropped if the caller did not ask for it or has not read the last one.
 */
void control_progress(struct control_call *call, json_t *parameters)
{
	if (!call->more || !call->peer || control_peer_is_slow(call->peer)) {
		json_decref(parameters);
		return;
	}
	send_message(call, json_pack("{s:o, s:b}", "parameters", parameters, "continues", 1), NULL, 0);
}

/* A reason as JSON: what a stranger's file put into it may be no UTF-8, or be cut within a character. */
static json_t *reason_of(struct diag *diag)
{
	json_t *reason = json_string(diag->text);

	if (reason)
		return reason;
	for (char *c = diag->text; *c; ++c)
		if ((unsigned char)*c >= 0x80)
			*c = '?';
	return json_string(diag->text);
}

/**
 * control_fail() - end a call with the reason why it failed
 * @call:       the call; gone afterwards
 * @code:       a positive errno
 * @format:     printf format of one line
 */
void control_fail(struct control_call *call, int code, const char *format, ...)
{
	struct diag diag;
	va_list args;

	va_start(args, format);
	(void)vsnprintf(diag.text, sizeof(diag.text), format, args);
	va_end(args);
	send_message(call,
		     json_pack("{s:s, s:{s:i, s:o}}", "error", METHOD_PREFIX "Failed", "parameters", "code", code,
			       "message", reason_of(&diag)),
		     NULL, 0);
	end_call(call);
}

const char *control_text(struct control_call *call, const char *key)
{
	const char *text = json_string_value(json_object_get(call->parameters, key));

	if (!text || !*text)
		control_fail(call, EINVAL, "%s: the parameter %s must be a string that is not empty", call->verb, key);
	return text && *text ? text : NULL;
}

/* ---- from message to verb ---- */

static bool may_change(const struct control_peer *peer)
{
	return peer->uid == 0 || peer->uid == geteuid();
}

static const struct control_verb *find_verb(const char *method)
{
	if (strncmp(method, METHOD_PREFIX, strlen(METHOD_PREFIX)) != 0)
		return NULL;
	for (size_t i = 0; i < sizeof(verbs) / sizeof(*verbs); ++i)
		if (strcmp(method + strlen(METHOD_PREFIX), verbs[i].name) == 0)
			return &verbs[i];
	return NULL;
}

static void run_verb(struct control_call *call, const json_t *message)
{
	const char *method = json_string_value(json_object_get(message, "method"));
	const struct control_verb *verb = method ? find_verb(method) : NULL;

	if (!method) {
		control_fail(call, EINVAL, "the message names no method");
	} else if (!verb) {
		control_fail(call, ENOSYS, "%s: there is no such method", method);
	} else if (verb->changes && !may_change(call->peer)) {
		control_fail(call, EPERM, "%s: only root and the user that lorad runs as may do this", verb->name);
	} else {
		call->verb = verb->name;
		verb->fn(call);
	}
}

/* The call of a message, with whatever descriptors came along. */
static struct control_call *new_call(struct control_peer *peer, const struct parts *parts, const json_t *message)
{
	struct control_call *call = calloc(1, sizeof(*call));
	json_t *parameters = json_object_get(message, "parameters");

	if (!call)
		return NULL;
	call->peer = peer;
	call->parts = parts;
	call->verb = "";
	call->parameters = json_is_object(parameters) ? json_incref(parameters) : json_object();
	call->more = json_is_true(json_object_get(message, "more"));
	memcpy(call->fd, peer->fds, sizeof(call->fd));
	call->n_fds = peer->n_fds;
	peer->n_fds = 0;
	peer->call = call;
	return call;
}

static void on_message(struct control_peer *peer, const char *text, size_t bytes)
{
	struct control *control = peer->owner;
	_cleanup_(json_decrefp) json_t *message = NULL;
	struct diag diag = { 0 };
	struct control_call *call;
	int r;

	r = json_parse(&message, text, bytes, CONTROL_MESSAGE_MAX, JSON_PLAIN, "message", &diag);
	call = new_call(peer, control->parts, message);
	if (!call)
		return;
	if (r)
		control_fail(call, r < 0 ? EIO : EINVAL, "%s", diag.text);
	else
		run_verb(call, message);
}

static void hang_up(struct control_peer *peer)
{
	struct control_call *call = peer->call;

	if (call) {
		call->peer = NULL;
		if (call->gone)
			call->gone(call);
	}
	control_peer_free(peer);
}

static const struct control_peer_ops peer_ops = {
	.message = on_message,
	.hung_up = hang_up,
};

/* ---- connections ---- */

static bool is_full(const struct control *control, uid_t uid)
{
	const struct control_peer *peer;
	unsigned all = 0, same = 0;

	list_for_each(peer, &control->peers, link) {
		all++;
		same += peer->uid == uid;
	}
	return all >= PEERS_MAX || same >= PEERS_PER_UID;
}

static void add_peer(struct control *control, int fd, uid_t uid)
{
	struct control_peer *peer;

	if (is_full(control, uid)) {
		if (log_limit_pass(&control->limit, clock_ns()))
			log_warning("control: too many connections, uid %u is turned away", (unsigned)uid);
		close(fd);
		return;
	}
	if (control_peer_new(&peer, control->parts->loop, fd, uid, &peer_ops, control) < 0) {
		close(fd);
		return;
	}
	list_append(&control->peers, &peer->link);
}

static void on_connection(struct loop_source *source, uint32_t events)
{
	struct control *control = container_of(source, struct control, source);
	struct ucred creds;
	int fd;

	(void)events;
	while (sock_accept(source->fd, &fd, &creds) == SOCK_OK)
		add_peer(control, fd, creds.uid);
}

/**
 * control_new() - serve the control socket
 * @ret:        the control socket's server
 * @parts:      what the verbs work on; must outlive it
 * @listen_fd:  a listening stream socket; stays the caller's
 */
int control_new(struct control **ret, const struct parts *parts, int listen_fd)
{
	_cleanup_(control_freep) struct control *control = calloc(1, sizeof(*control));
	int r;

	if (!control)
		return error_origin(-ENOMEM);
	control->parts = parts;
	control->source = (struct loop_source)LOOP_SOURCE_NULL;
	control->limit = (struct log_limit)LOG_LIMIT_CLIENT;
	list_init(&control->peers);
	r = loop_add(parts->loop, &control->source, listen_fd, EPOLLIN, on_connection);
	if (r < 0)
		return error_trace(r);
	*ret = TAKE_PTR(control);
	return 0;
}

void control_hang_up(struct control *control)
{
	struct control_peer *peer;

	list_for_each(peer, &control->peers, link)
		hang_up(peer);
}

struct control *control_free(struct control *control)
{
	if (!control)
		return NULL;
	control_hang_up(control);
	loop_remove(&control->source);
	free(control);
	return NULL;
}
