/* SPDX-License-Identifier: MIT */
/*
 * One request over the client socket
 *
 * The loop sleeps in one poll() on the connection, on a signalfd and, while there is text to print, on stdout. So a
 * reader of stdout that is slow keeps nobody waiting: tokens are taken from the ring as they come, text waits here, and
 * Ctrl-C works all the time. The first SIGINT, SIGTERM or SIGHUP cancels the request, whose last event then says so; the
 * second gives up at once, and the daemon frees what the request held because its client is gone.
 */
#include "tools/talk.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "tools/tool.h"

#define WRITE_BYTES 4096 /* PIPE_BUF: what poll() says can be written to a pipe without blocking */

static int fail(struct talk *talk, int error)
{
	const char *text = talk->connection ? lc_error_text(talk->connection) : NULL;

	return diag_set(talk->diag, TOOL_FAILED, "%s", text && *text ? text : strerror(-error));
}

/**
 * talk_print() - queue text for stdout
 * @talk:   the conversation
 * @text:   copied
 * @bytes:  of text
 */
int talk_print(struct talk *talk, const char *text, size_t bytes)
{
	if (bytes > talk->out_room - talk->n_out) {
		size_t room = (talk->n_out + bytes) * 2;
		char *out = realloc(talk->out, room);

		if (!out)
			return tool_no_memory(talk->diag);
		talk->out = out;
		talk->out_room = room;
	}
	memcpy(talk->out + talk->n_out, text, bytes);
	talk->n_out += bytes;
	return TOOL_OK;
}

static int refused(struct talk *talk, const struct lc_event *event)
{
	if (!event->retry_ms)
		return diag_set(talk->diag, TOOL_FAILED, "%s", event->error);
	return diag_set(talk->diag, TOOL_FAILED, "%s; try again in %u ms", event->error, event->retry_ms);
}

static void on_event(lc_connection *connection, const struct lc_event *event)
{
	struct talk *talk = event->userdata;

	(void)connection;
	if (talk->ended)
		return;
	talk->ended = event->type == LC_EVENT_DONE || event->type == LC_EVENT_ERROR;
	if (event->type == LC_EVENT_ERROR)
		talk->result = refused(talk, event);
	else
		talk->result = talk->event(talk, event);
	talk->ended |= talk->result != TOOL_OK;
}

static int take_signal(struct talk *talk)
{
	struct signalfd_siginfo info;

	if (read(talk->signal_fd, &info, sizeof(info)) != sizeof(info))
		return TOOL_OK;
	if (++talk->interrupts == 1 && !talk->ended && lc_cancel(talk->connection, talk->id) == 0)
		return TOOL_OK;
	return diag_set(talk->diag, TOOL_FAILED, "interrupted");
}

static int write_some(struct talk *talk)
{
	ssize_t n = write(STDOUT_FILENO, talk->out, talk->n_out < WRITE_BYTES ? talk->n_out : WRITE_BYTES);

	if (n < 0 && (errno == EINTR || errno == EAGAIN))
		return TOOL_OK;
	if (n < 0)
		return diag_set(talk->diag, TOOL_FAILED, "standard output: %s", strerror(errno));
	talk->n_out -= (size_t)n;
	memmove(talk->out, talk->out + n, talk->n_out);
	return TOOL_OK;
}

/* Sleeps until there is an event, a signal or room in stdout, and handles it. */
static int turn(struct talk *talk)
{
	struct pollfd fds[] = {
		{ .fd = talk->signal_fd, .events = POLLIN },
		{ .fd = talk->n_out ? STDOUT_FILENO : -1, .events = POLLOUT },
		{ .fd = talk->ended ? -1 : lc_fd(talk->connection), .events = POLLIN },
	};
	int n, ready = talk->ended ? 0 : lc_poll_begin(talk->connection), r = TOOL_OK;

	if (ready < 0)
		return fail(talk, ready);
	n = poll(fds, sizeof(fds) / sizeof(fds[0]), ready ? 0 : -1);
	if (n < 0 && errno != EINTR)
		return diag_set(talk->diag, TOOL_FAILED, "poll: %s", strerror(errno));
	if (n > 0 && fds[0].revents)
		r = take_signal(talk);
	if (!r && n > 0 && fds[1].revents)
		r = write_some(talk);
	if (r || talk->ended)
		return r;
	n = lc_dispatch(talk->connection);
	return n < 0 ? fail(talk, n) : TOOL_OK;
}

static int submit(struct talk *talk)
{
	int r;

	if (talk->request)
		r = lc_submit(talk->connection, talk->request, &talk->id);
	else
		r = lc_list_adapters(talk->connection, talk, &talk->id);
	return r < 0 ? fail(talk, r) : TOOL_OK;
}

static int watch_signals(struct talk *talk)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, &talk->old_signals);
	talk->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return talk->signal_fd < 0 ? diag_set(talk->diag, TOOL_FAILED, "signalfd: %s", strerror(errno)) : TOOL_OK;
}

static void end(struct talk *talk)
{
	lc_disconnect(talk->connection);
	talk->connection = NULL;
	if (talk->signal_fd >= 0)
		close(talk->signal_fd);
	sigprocmask(SIG_SETMASK, &talk->old_signals, NULL);
	free(talk->out);
	talk->out = NULL;
}

/**
 * talk_run() - connect, submit, and handle events until the request's last one
 * @talk:  what to ask and whom to tell; a request's userdata must be this talk
 *
 * Return: TOOL_OK when the request ended as asked and all text is printed; a cancelled one too (see interrupts).
 */
int talk_run(struct talk *talk)
{
	char error[sizeof(talk->diag->text)] = "";
	int r;

	r = lc_connect(&talk->connection, talk->socket, on_event, error, sizeof(error));
	if (r < 0)
		return diag_set(talk->diag, TOOL_FAILED, "%s", *error ? error : strerror(-r));
	r = watch_signals(talk);
	if (!r)
		r = submit(talk);
	while (!r && (!talk->ended || talk->n_out))
		r = turn(talk);
	end(talk);
	return r ? r : talk->result;
}
