/* SPDX-License-Identifier: MIT */
/*
 * loractl top: what the daemon does right now
 *
 * One control connection, asked for Status each interval and for List now and then: with many adapters that is a long
 * answer. A frame is what happened between the last two replies (top-frame.c). A daemon that goes away is waited for.
 *
 * The terminal shows frames on its second screen, without echo and line editing, and gets back its first screen and its
 * settings however this ends. SIGINT, SIGTERM and SIGHUP do that in their handler, so that they also end a program that
 * waits for a daemon which does not answer.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "tools/ctl.h"
#include "tools/top-frame.h"

#define LIST_EVERY_NS (10 * NS_PER_S)
#define SCREEN_ON "\033[?1049h\033[?25l"
#define SCREEN_OFF "\033[?25h\033[?1049l"

struct top {
	double interval;
	bool once;
	/* the daemon */
	struct ctl *ctl;
	struct control *control;
	json_t *before, *now, *known;  /* Status replies; what List told */
	uint64_t before_ns, now_ns, listed_ns;
};

/* The terminal's settings as they were, for the handler. */
static struct termios terminal_before;
static bool terminal_taken;

/* ---- the daemon ---- */

static int call(struct top *top, const char *method, json_t **ret)
{
	_cleanup_(json_decrefp) json_t *nothing = json_object();
	_cleanup_(control_reply_deinit) struct control_reply reply = { .n_fds = 0 };
	struct control_call what = { .method = method, .parameters = nothing };
	int r = TOOL_OK;

	if (!nothing)
		return tool_no_memory(top->ctl->diag);
	if (!top->control)
		r = control_open(&top->control, top->ctl->socket, top->ctl->diag);
	if (!r)
		r = control_call(top->control, &what, &reply, top->ctl->diag);
	if (r)
		return r;
	json_decref(*ret);
	*ret = TAKE_PTR(reply.parameters);
	return TOOL_OK;
}

static int list_adapters(struct top *top)
{
	_cleanup_(json_decrefp) json_t *reply = NULL;
	int r;

	if (top->known && clock_ns() - top->listed_ns < LIST_EVERY_NS)
		return TOOL_OK;
	r = call(top, "List", &reply);
	if (r)
		return r;
	json_decref(top->known);
	top->known = top_known(json_object_get(reply, "adapters"));
	top->listed_ns = clock_ns();
	return TOOL_OK;
}

/* Looks again: what was now is before. */
static int look(struct top *top)
{
	int r;

	json_decref(top->before);
	top->before = TAKE_PTR(top->now);
	top->before_ns = top->now_ns;
	r = call(top, "Status", &top->now);
	top->now_ns = clock_ns();
	return r ? r : list_adapters(top);
}

static void forget(struct top *top)
{
	top->control = control_close(top->control);
	json_decref(top->before);
	json_decref(top->now);
	json_decref(top->known);
	top->before = top->now = top->known = NULL;
}

static json_t *make_figures(const struct top *top)
{
	return top_figures(top->before, top->now, top->known, (double)(top->now_ns - top->before_ns) / (double)NS_PER_S);
}

/* ---- one frame ---- */

static void read_size(struct top_screen *screen)
{
	struct winsize size;

	if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) < 0)
		return;
	screen->columns = size.ws_col;
	screen->rows = size.ws_row;
}

static int print_once(struct top *top)
{
	_cleanup_(json_decrefp) json_t *figures = NULL;
	struct top_screen screen = { .columns = 0 };
	_cleanup_free_ char *text = NULL;
	int r;

	r = look(top);
	if (!r) {
		(void)poll(NULL, 0, (int)(top->interval * 1000));
		r = look(top);
	}
	if (r)
		return r;
	figures = make_figures(top);
	if (top->ctl->json) {
		ctl_print_json(figures);
		return TOOL_OK;
	}
	text = top_render(figures, &screen);
	if (!text)
		return tool_no_memory(top->ctl->diag);
	(void)fputs(text, stdout);
	return TOOL_OK;
}

/* ---- the terminal ---- */

static void give_terminal_back(void)
{
	if (!terminal_taken)
		return;
	terminal_taken = false;
	(void)!write(STDOUT_FILENO, SCREEN_OFF, sizeof(SCREEN_OFF) - 1);
	(void)tcsetattr(STDOUT_FILENO, TCSAFLUSH, &terminal_before);
}

static void on_signal(int number)
{
	give_terminal_back();
	(void)raise(number); /* SA_RESETHAND: as if there had been no handler */
}

static void on_resize(int number)
{
	(void)number; /* ends the sleep; the next frame asks for the size */
}

static int take_terminal(struct diag *diag)
{
	struct sigaction ends = { .sa_handler = on_signal, .sa_flags = (int)(SA_RESETHAND | SA_NODEFER) };
	struct sigaction resize = { .sa_handler = on_resize };
	struct termios settings;

	if (!isatty(STDOUT_FILENO) || tcgetattr(STDOUT_FILENO, &terminal_before) < 0)
		return diag_set(diag, TOOL_FAILED, "standard output is no terminal: see --once and --json");
	(void)sigaction(SIGINT, &ends, NULL);
	(void)sigaction(SIGTERM, &ends, NULL);
	(void)sigaction(SIGHUP, &ends, NULL);
	(void)sigaction(SIGWINCH, &resize, NULL);
	settings = terminal_before;
	settings.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
	settings.c_cc[VSUSP] = _POSIX_VDISABLE; /* a stopped program could not give the terminal back */
	settings.c_cc[VMIN] = 1;
	settings.c_cc[VTIME] = 0;
	terminal_taken = true;
	(void)!write(STDOUT_FILENO, SCREEN_ON, sizeof(SCREEN_ON) - 1);
	(void)tcsetattr(STDOUT_FILENO, TCSAFLUSH, &settings);
	return TOOL_OK;
}

static int draw(const struct top *top)
{
	_cleanup_(json_decrefp) json_t *figures = make_figures(top);
	struct top_screen screen = { .columns = 80, .rows = 24, .terminal = true };
	_cleanup_free_ char *text = NULL;

	read_size(&screen);
	text = top_render(figures, &screen);
	if (!text)
		return tool_no_memory(top->ctl->diag);
	(void)fputs(text, stdout);
	return tool_flush(top->ctl->diag);
}

/* Sleeps until the time. False: someone pressed q. *ret_resized: woken by another size. */
static bool sleep_until(uint64_t until_ns, bool *ret_resized)
{
	uint64_t now;

	*ret_resized = false;
	while ((now = clock_ns()) < until_ns) {
		struct pollfd keys = { .fd = STDIN_FILENO, .events = POLLIN };
		struct timespec pause = { (time_t)((until_ns - now) / NS_PER_S), (long)((until_ns - now) % NS_PER_S) };
		int n = ppoll(&keys, isatty(STDIN_FILENO), &pause, NULL);
		char key = 0;

		if (n < 0 && errno == EINTR) {
			*ret_resized = true;
			return true;
		}
		if (n > 0 && (read(STDIN_FILENO, &key, 1) != 1 || key == 'q' || key == 'Q'))
			return false;
	}
	return true;
}

/* A daemon that is being restarted is back soon: says so, and looks anew. */
static void tell_lost(struct top *top)
{
	(void)printf("\033[H%s; trying again\033[K\n\033[J", top->ctl->diag->text);
	(void)fflush(stdout);
	forget(top);
}

static int show_frames(struct top *top)
{
	uint64_t pause_ns = (uint64_t)(top->interval * (double)NS_PER_S);
	uint64_t next_ns = clock_ns() + pause_ns / 4; /* the first frame comes soon */
	bool resized;
	int r = TOOL_OK;

	while (!r && sleep_until(next_ns, &resized)) {
		if (!resized) {
			next_ns = clock_ns() + pause_ns;
			if (look(top))
				tell_lost(top);
		}
		if (top->before && top->now)
			r = draw(top);
	}
	return r;
}

static int run_live(struct top *top)
{
	int r;

	r = look(top); /* without a daemon there is nothing to draw over */
	if (!r)
		r = take_terminal(top->ctl->diag);
	if (!r)
		r = show_frames(top);
	give_terminal_back();
	return r;
}

static int run(struct ctl *ctl, void *state, char **args, size_t n_args)
{
	struct top *top = state;
	int r;

	(void)args;
	(void)n_args;
	top->ctl = ctl;
	r = top->once || ctl->json ? print_once(top) : run_live(top);
	forget(top);
	return r;
}

static const struct option options[] = {
	{ "interval", 0, "S", "seconds from frame to frame (1)", OPTION_REAL, offsetof(struct top, interval),
	  "from 0.1 to 3600", 0.1, 3600 },
	{ "once", 0, NULL, "print one frame and end", OPTION_FLAG, offsetof(struct top, once) },
	OPTIONS_END,
};

static const struct top defaults = { .interval = 1 };

const struct ctl_verb ctl_top = {
	.name = "top",
	.arguments = "",
	.summary = "what the daemon does right now, on a live screen",
	.options = options,
	.state_bytes = sizeof(struct top),
	.defaults = &defaults,
	.run = run,
};
