/* SPDX-License-Identifier: MIT */
/* stream [ADAPTER] "PROMPT": stream an answer to standard output. Build: cc stream.c $(pkg-config --cflags --libs loraclient) */
#include <loraclient.h>

#include <stdio.h>
#include <string.h>

static void on_event(lc_connection *connection, const struct lc_event *event)
{
	int *status = event->userdata; /* -1: not over yet */

	(void)connection;
	if (event->type == LC_EVENT_TOKEN) {
		fwrite(event->text, 1, event->text_bytes, stdout);
		fflush(stdout);
	} else if (event->type == LC_EVENT_DONE) {
		putchar('\n');
		*status = 0;
	} else if (event->type == LC_EVENT_ERROR) {
		fprintf(stderr, "stream: %s\n", event->error);
		*status = 1;
	}
}

int main(int argc, char **argv)
{
	lc_connection *connection;
	lc_request *request;
	char error[256];
	int status = -1, r;

	if (argc < 2 || argc > 3) {
		fprintf(stderr, "usage: stream [ADAPTER] \"PROMPT\"\n");
		return 2;
	}
	if (lc_connect(&connection, NULL, on_event, error, sizeof(error)) < 0) {
		fprintf(stderr, "stream: %s\n", error);
		return 1;
	}
	r = lc_request_new(&request, LC_GENERATE);
	if (r == 0) {
		r = lc_request_set_text(request, argv[argc - 1], strlen(argv[argc - 1]));
		if (r == 0 && argc == 3)
			r = lc_request_add_adapter(request, argv[1], 1.0);
		lc_request_set_chat(request, true);
		lc_request_set_userdata(request, &status);
		if (r == 0)
			r = lc_submit(connection, request, NULL);
		lc_request_free(request);
	}
	while (r >= 0 && status < 0)
		r = lc_wait(connection, -1);
	if (r < 0)
		fprintf(stderr, "stream: %s\n", *lc_error_text(connection) ? lc_error_text(connection) : strerror(-r));
	lc_disconnect(connection);
	return r < 0 ? 1 : status;
}
