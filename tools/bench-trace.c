/* SPDX-License-Identifier: MIT */
/*
 * Traces: requests as they once came
 *
 *	# seconds from the start   adapter   tokens of the prompt   tokens of the answer
 *	0.25 17 128 32
 *	0.31 pirate 40 64
 *	0.31 - 40 64
 *
 * An adapter is the index (from 0) of a candidate, its name, or - for the bare base. Times never go back. A file is
 * checked as a whole before the first request is sent.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/clock.h"
#include "tools/bench.h"
#include "tools/number.h"

#define N_FIELDS 4
#define SECONDS_MAX 1e6

/* Where in which file; for messages. */
struct place {
	const char *path;
	size_t line;
	struct diag *diag;
};

static int wrong(const struct place *place, const char *what, const char *field)
{
	return diag_set(place->diag, TOOL_FAILED, "%s:%zu: %s: %s", place->path, place->line, field, what);
}

static int parse_adapter(const struct place *place, const struct bench_adapters *adapters, const char *field,
			 struct bench_adapter **ret)
{
	uint64_t index;

	*ret = NULL;
	if (strcmp(field, "-") == 0)
		return TOOL_OK;
	if (number_uint(field, &index) == NUMBER_OK) {
		*ret = index < adapters->n ? &adapters->list[index] : NULL;
		return *ret ? TOOL_OK : wrong(place, "no index of an adapter, --adapters has fewer", field);
	}
	for (size_t i = 0; !*ret && i < adapters->n; ++i)
		if (strcmp(adapters->list[i].name, field) == 0)
			*ret = &adapters->list[i];
	return *ret ? TOOL_OK : wrong(place, "no adapter of --adapters", field);
}

static int parse_tokens(const struct place *place, const char *field, uint32_t *ret)
{
	uint64_t n;

	if (number_uint(field, &n) != NUMBER_OK || n < 1 || n > BENCH_TOKENS_MAX)
		return wrong(place, "must be from 1 to 16777216 tokens", field);
	*ret = (uint32_t)n;
	return TOOL_OK;
}

static int parse_line(const struct place *place, const struct bench_adapters *adapters, char **fields,
		      struct bench_trace *trace)
{
	struct bench_ask ask = { .number = 0 };
	double seconds;
	int r;

	if (number_real(fields[0], &seconds) != NUMBER_OK || seconds < 0 || seconds > SECONDS_MAX)
		return wrong(place, "must be from 0 to 1000000 seconds", fields[0]);
	ask.at_ns = (uint64_t)(seconds * (double)NS_PER_S);
	if (trace->n && ask.at_ns < trace->asks[trace->n - 1].at_ns)
		return wrong(place, "before the line above it", fields[0]);
	r = parse_adapter(place, adapters, fields[1], &ask.adapter);
	if (!r)
		r = parse_tokens(place, fields[2], &ask.prompt_tokens);
	if (!r)
		r = parse_tokens(place, fields[3], &ask.gen_tokens);
	if (r)
		return r;
	if (trace->n == trace->room) {
		size_t room = trace->room * 2 + 256;
		struct bench_ask *larger = reallocarray(trace->asks, room, sizeof(*larger));

		if (!larger)
			return tool_no_memory(place->diag);
		trace->asks = larger;
		trace->room = room;
	}
	trace->asks[trace->n++] = ask;
	return TOOL_OK;
}

/* Splits a line, without its comment, into fields; their number, N_FIELDS + 1 for more than that. */
static size_t split(char *line, char *fields[N_FIELDS + 1])
{
	char *state = NULL, *field;
	size_t n = 0;

	line[strcspn(line, "#")] = 0;
	for (field = strtok_r(line, " \t\r\n", &state); field && n <= N_FIELDS; field = strtok_r(NULL, " \t\r\n", &state))
		fields[n++] = field;
	return n;
}

/**
 * bench_trace_load() - read a trace
 * @trace:    filled; zeroed before, the caller ends it with bench_trace_deinit()
 * @path:     the file
 * @adapters: candidates that it may name; they stay where they are as long as the trace lives
 * @diag:     why not, with file and line
 */
int bench_trace_load(struct bench_trace *trace, const char *path, const struct bench_adapters *adapters,
		     struct diag *diag)
{
	_cleanup_(fclosep) FILE *file = fopen(path, "re");
	struct place place = { path, 0, diag };
	_cleanup_free_ char *line = NULL;
	char *fields[N_FIELDS + 1];
	size_t room = 0, n;
	int r = TOOL_OK;

	if (!file)
		return diag_set(diag, TOOL_FAILED, "%s: %s", path, strerror(errno));
	while (!r && getline(&line, &room, file) >= 0) {
		++place.line;
		n = split(line, fields);
		if (n == N_FIELDS)
			r = parse_line(&place, adapters, fields, trace);
		else if (n)
			r = wrong(&place, "a line has a time, an adapter, and tokens of the prompt and of the answer", fields[0]);
	}
	if (!r && ferror(file))
		return diag_set(diag, TOOL_FAILED, "%s: %s", path, strerror(errno));
	if (!r && !trace->n)
		return diag_set(diag, TOOL_FAILED, "%s: a trace without requests", path);
	return r;
}

void bench_trace_deinit(struct bench_trace *trace)
{
	free(trace->asks);
	*trace = (struct bench_trace){ .asks = NULL };
}
