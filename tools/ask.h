/* SPDX-License-Identifier: MIT */
/* What generate and score have in common: prompt and adapters. See ask.c. */
#ifndef LORAD_TOOLS_ASK_H
#define LORAD_TOOLS_ASK_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "libclient/loraclient.h"
#include "tools/options.h"

#define ASK_ADAPTERS_MAX 8
#define ASK_NAME_BYTES 129
#define ASK_WEEK_MS 604800000

struct ask_adapter {
	char name[ASK_NAME_BYTES];
	double scale;
};

struct ask {
	const char *prompt, *prompt_file, *tokens;
	bool chat;
	int64_t first_token_ms, deadline_ms; /* 0: none */
	struct ask_adapter adapters[ASK_ADAPTERS_MAX];
	size_t n_adapters;
};

int ask_set_adapter(void *ask, const char *value, struct diag *diag);
int ask_make_request(const struct ask *ask, enum lc_kind kind, lc_request **ret, struct diag *diag);
json_t *ask_number(double value);

/* The options of a struct ask that lies first in a verb's state. */
#define ASK_OPTIONS                                                                                                     \
	{ "adapter", 0, "NAME[:SCALE]", "answer with this adapter; given up to 8 times: with their weighted sum",       \
	  OPTION_CALL, 0, .set = ask_set_adapter },                                                                     \
	{ "prompt", 0, "TEXT", "the prompt", OPTION_TEXT, offsetof(struct ask, prompt), .may_be_empty = true },         \
	{ "prompt-file", 0, "FILE", "the prompt is in a file; - is standard input", OPTION_TEXT,                        \
	  offsetof(struct ask, prompt_file) },                                                                          \
	{ "tokens", 0, "1,2,3", "the prompt as token ids", OPTION_TEXT, offsetof(struct ask, tokens),                   \
	  .may_be_empty = true },                                                                                       \
	{ "first-token-ms", 0, "N", "drop the request if its first token would come later than this", OPTION_INT,       \
	  offsetof(struct ask, first_token_ms), "from 0 (never) to 604800000, a week", 0, ASK_WEEK_MS },                \
	{ "deadline-ms", 0, "N", "give the answer up if it is not complete after this time", OPTION_INT,                \
	  offsetof(struct ask, deadline_ms), "from 0 (never) to 604800000, a week", 0, ASK_WEEK_MS }

static inline void ask_request_freep(lc_request **request)
{
	lc_request_free(*request);
}

#endif
