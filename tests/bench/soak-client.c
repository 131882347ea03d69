/* SPDX-License-Identifier: MIT */
/*
 * One client of the soak, in a process of its own
 *
 * usage: soak-client SOCKET
 *
 * Each line it reads is a request, `ADAPTER N TOKEN...`: a prompt and how many tokens are to follow it, chosen greedily. It
 * is answered with a line, `ok DIGEST TOKEN...` (the version of the adapter and the answer), or `error CODE TEXT`.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libclient/loraclient.h"

#define PROMPT_MAX 4096

struct answer {
	uint32_t *token;
	size_t n, room;
	bool ended;
};

static void die(const char *what, const char *why)
{
	(void)fprintf(stderr, "soak-client: %s: %s\n", what, why);
	exit(EXIT_FAILURE);
}

static void add_token(struct answer *answer, uint32_t token)
{
	if (answer->n == answer->room) {
		answer->room = answer->room * 2 + 64;
		answer->token = reallocarray(answer->token, answer->room, sizeof(*answer->token));
		if (!answer->token)
			die("an answer", "no memory");
	}
	answer->token[answer->n++] = token;
}

static void print_done(const struct answer *answer, const struct lc_event *event)
{
	if (event->n_adapters != 1 || event->finish != LC_FINISH_LENGTH)
		die("an answer", "not of one adapter, or not of the length asked for");
	printf("ok %s", event->adapters[0].digest);
	for (size_t i = 0; i < answer->n; ++i)
		printf(" %u", (unsigned)answer->token[i]);
	printf("\n");
}

static void on_event(lc_connection *connection, const struct lc_event *event)
{
	struct answer *answer = event->userdata;

	(void)connection;
	if (event->type == LC_EVENT_TOKEN) {
		add_token(answer, event->token);
		return;
	}
	answer->ended = true;
	if (event->type == LC_EVENT_DONE)
		print_done(answer, event);
	else
		printf("error %d %s\n", event->code, event->error);
}

/* A line as a request. */
static lc_request *read_request(char *line)
{
	static uint32_t prompt[PROMPT_MAX];
	const char *name = strtok(line, " \n"), *length = strtok(NULL, " \n"), *word;
	lc_request *request = NULL;
	size_t n = 0;

	while (n < PROMPT_MAX && (word = strtok(NULL, " \n")))
		prompt[n++] = (uint32_t)strtoul(word, NULL, 10);
	if (!name || !length || !n)
		die("a line", "not a request");
	if (lc_request_new(&request, LC_GENERATE) || lc_request_set_tokens(request, prompt, n) ||
	    lc_request_add_adapter(request, name, 1))
		die(name, "no request can be made of it");
	lc_request_set_max_tokens(request, (uint32_t)strtoul(length, NULL, 10));
	lc_request_set_ignore_eos(request, true);
	return request;
}

static void ask(lc_connection *connection, char *line)
{
	struct answer answer = { .n = 0 };
	lc_request *request = read_request(line);
	uint64_t id;
	int r = 0;

	lc_request_set_userdata(request, &answer);
	if (lc_submit(connection, request, &id) < 0)
		die("submit", lc_error_text(connection));
	lc_request_free(request);
	while (!answer.ended && r >= 0)
		r = lc_wait(connection, -1);
	if (r < 0)
		die("wait", lc_error_text(connection));
	free(answer.token);
	(void)fflush(stdout);
}

int main(int argc, char **argv)
{
	lc_connection *connection = NULL;
	char error[256] = "", *line = NULL;
	size_t room = 0;

	if (argc != 2)
		return 2;
	if (lc_connect(&connection, argv[1], on_event, error, sizeof(error)) < 0)
		die(argv[1], error);
	while (getline(&line, &room, stdin) > 0)
		ask(connection, line);
	free(line);
	lc_disconnect(connection);
	return EXIT_SUCCESS;
}
