/* SPDX-License-Identifier: MIT */
/*
 * Stop strings
 *
 * An answer ends where one of its stop strings first appears in its text, however tokens cut it. So text leaves late:
 * whatever could still become a stop string is held back until the text after it decides. `held` keeps, between pushes,
 * the longest end of the text so far that begins some stop string; all before it has left. It therefore never exceeds
 * the longest stop string, and comparing everything with everything stays cheap.
 */
#include "daemon/sched/stops.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/error.h"

void stops_init(struct stops *stops, char *const *string, size_t n)
{
	*stops = (struct stops){ .string = string, .n = n };
}

void stops_deinit(struct stops *stops)
{
	free(stops->held);
	*stops = (struct stops){ 0 };
}

/* Forget what left at the last push. */
static void drop_gone(struct stops *stops)
{
	if (stops->n_gone)
		memmove(stops->held, stops->held + stops->n_gone, stops->n_held - stops->n_gone);
	stops->n_held -= stops->n_gone;
	stops->n_gone = 0;
}

static int append(struct stops *stops, const char *text, size_t bytes)
{
	size_t room = stops->room;
	char *held;

	if (bytes > room - stops->n_held) {
		room = 2 * (stops->n_held + bytes);
		held = realloc(stops->held, room);
		if (!held)
			return error_origin(-ENOMEM);
		stops->held = held;
		stops->room = room;
	}
	if (bytes)
		memcpy(stops->held + stops->n_held, text, bytes);
	stops->n_held += bytes;
	return 0;
}

/* Where the first stop string begins, or n_held if there is none. */
static size_t find_first(const struct stops *stops)
{
	size_t first = stops->n_held;

	for (size_t i = 0; i < stops->n; ++i) {
		const char *at = memmem(stops->held, stops->n_held, stops->string[i], strlen(stops->string[i]));

		if (at && (size_t)(at - stops->held) < first)
			first = (size_t)(at - stops->held);
	}
	return first;
}

/* Is the end of the text from @at on the beginning of a stop string? */
static bool may_begin(const struct stops *stops, size_t at)
{
	size_t n = stops->n_held - at;

	for (size_t i = 0; i < stops->n; ++i)
		if (strncmp(stops->string[i], stops->held + at, n) == 0 && strlen(stops->string[i]) > n)
			return true;
	return false;
}

static size_t longest_beginning(const struct stops *stops)
{
	size_t at = 0;

	while (at < stops->n_held && !may_begin(stops, at))
		++at;
	return at;
}

/**
 * stops_push() - add text, learn what may leave
 * @stops:      the matcher
 * @text:       the new text
 * @bytes:      its length
 * @end:        nothing follows: hold nothing back
 * @ret:        what may leave now; valid until the next push
 *
 * Return: 0, or -ENOMEM.
 */
int stops_push(struct stops *stops, const char *text, size_t bytes, bool end, struct stops_text *ret)
{
	size_t leave;
	bool found;
	int r;

	if (!stops->n) {
		*ret = (struct stops_text){ .text = text, .bytes = bytes };
		return 0;
	}
	drop_gone(stops);
	r = append(stops, text, bytes);
	if (r < 0)
		return error_trace(r);
	leave = find_first(stops);
	found = leave < stops->n_held;
	if (!found && !end)
		leave = longest_beginning(stops);
	assert(leave <= stops->n_held);
	stops->n_gone = leave;
	*ret = (struct stops_text){ .text = stops->held, .bytes = leave, .found = found };
	return 0;
}
