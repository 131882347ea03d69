/* SPDX-License-Identifier: MIT */
/*
 * A prompt and adapters from the command line
 *
 * Options that contradict each other (two prompts) are a mistake in the command line; a value that is no good (a scale of
 * 100, an empty prompt) is refused as the daemon would, before it is asked.
 */
#include "tools/ask.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/cleanup.h"
#include "tools/ctl.h"
#include "tools/number.h"

#define PROMPT_BYTES_MAX (64u << 20)
#define SCALE_MAX 64.0

/** ask_set_adapter() - take `--adapter NAME[:SCALE]`; names cannot hold a colon */
int ask_set_adapter(void *ask, const char *value, struct diag *diag)
{
	struct ask *target = ask;
	struct ask_adapter *adapter;
	size_t length = strcspn(value, ":");
	int r;

	if (target->n_adapters == ASK_ADAPTERS_MAX)
		return diag_set(diag, TOOL_FAILED, "--adapter %s: more than %d adapters", value, ASK_ADAPTERS_MAX);
	adapter = &target->adapters[target->n_adapters];
	(void)snprintf(adapter->name, sizeof(adapter->name), "%.*s", (int)(length < INT16_MAX ? length : INT16_MAX),
		       value);
	if (length >= sizeof(adapter->name) || !ctl_name_valid(adapter->name))
		return diag_set(diag, TOOL_FAILED, "--adapter %s: no adapter name", value);
	adapter->scale = 1;
	if (value[length]) {
		r = number_real(value + length + 1, &adapter->scale);
		if (r == NUMBER_E_SYNTAX)
			return diag_set(diag, TOOL_FAILED, "--adapter %s: the scale is not a number", value);
		if (r == NUMBER_E_RANGE || fabs(adapter->scale) > SCALE_MAX)
			return diag_set(diag, TOOL_FAILED, "--adapter %s: the scale must be from -64 to 64", value);
	}
	++target->n_adapters;
	return TOOL_OK;
}

/* Parses "1,2,3" into ids. */
static int parse_tokens(const char *text, uint32_t **ret, size_t *ret_n, struct diag *diag)
{
	_cleanup_free_ uint32_t *tokens = NULL;
	size_t n = 0, most = 1;

	if (!*text)
		return diag_set(diag, TOOL_FAILED, "--tokens: the prompt is empty");
	for (const char *c = text; *c; ++c)
		most += *c == ',';
	tokens = calloc(most, sizeof(*tokens));
	if (!tokens)
		return tool_no_memory(diag);
	for (;; ++text) {
		size_t length = strcspn(text, ",");
		char word[24];
		int64_t token;
		int r;

		(void)snprintf(word, sizeof(word), "%.*s", length < sizeof(word) ? (int)length : (int)sizeof(word) - 1, text);
		r = length < sizeof(word) ? number_int(word, &token) : NUMBER_E_SYNTAX;
		if (r == NUMBER_E_SYNTAX)
			return diag_set(diag, TOOL_FAILED, "--tokens: '%s' is no token id", word);
		if (r || token < 0 || token > UINT32_MAX)
			return diag_set(diag, TOOL_FAILED, "--tokens: %s is outside the vocabulary", word);
		tokens[n++] = (uint32_t)token;
		text += length;
		if (!*text)
			break;
	}
	*ret = TAKE_PTR(tokens);
	*ret_n = n;
	return TOOL_OK;
}

static int read_file(const char *path, char **ret, size_t *ret_bytes, struct diag *diag)
{
	_cleanup_(fclosep) FILE *file = NULL;
	_cleanup_free_ char *text = NULL;
	size_t n = 0, room = 0;

	file = fopen(strcmp(path, "-") == 0 ? "/dev/stdin" : path, "re");
	while (file && !feof(file) && !ferror(file)) {
		if (n == room) {
			char *larger = room < PROMPT_BYTES_MAX ? realloc(text, room = room * 2 + 65536) : NULL;

			if (!larger)
				return diag_set(diag, TOOL_FAILED, "%s: too long for a prompt", path);
			text = larger;
		}
		n += fread(text + n, 1, room - n, file);
	}
	if (!file || ferror(file))
		return diag_set(diag, TOOL_FAILED, "%s: %s", path, strerror(errno));
	*ret = TAKE_PTR(text);
	*ret_bytes = n;
	return TOOL_OK;
}

static int set_text(lc_request *request, const char *option, const char *text, size_t bytes, struct diag *diag)
{
	int r;

	if (!bytes)
		return diag_set(diag, TOOL_FAILED, "%s: the prompt is empty", option);
	r = lc_request_set_text(request, text, bytes);
	return r < 0 ? diag_set(diag, TOOL_FAILED, "%s: %s", option, strerror(-r)) : TOOL_OK;
}

static int set_prompt(const struct ask *ask, lc_request *request, struct diag *diag)
{
	_cleanup_free_ uint32_t *tokens = NULL;
	_cleanup_free_ char *text = NULL;
	size_t n = 0;
	int r;

	if (ask->prompt)
		return set_text(request, "--prompt", ask->prompt, strlen(ask->prompt), diag);
	if (ask->prompt_file) {
		r = read_file(ask->prompt_file, &text, &n, diag);
		return r ? r : set_text(request, ask->prompt_file, text, n, diag);
	}
	r = parse_tokens(ask->tokens, &tokens, &n, diag);
	if (r)
		return r;
	r = lc_request_set_tokens(request, tokens, n);
	return r < 0 ? diag_set(diag, TOOL_FAILED, "--tokens: %s", strerror(-r)) : TOOL_OK;
}

/**
 * ask_make_request() - check what belongs together and make the request
 * @ask:   the options
 * @kind:  to generate or to score
 * @ret:   the request, the caller's
 * @diag:  why not
 */
int ask_make_request(const struct ask *ask, enum lc_kind kind, lc_request **ret, struct diag *diag)
{
	_cleanup_(ask_request_freep) lc_request *request = NULL;
	int r;

	if (!!ask->prompt + !!ask->prompt_file + !!ask->tokens != 1)
		return diag_set(diag, TOOL_USAGE, "give exactly one of --prompt, --prompt-file and --tokens");
	if (ask->chat && ask->tokens)
		return diag_set(diag, TOOL_USAGE, "--chat with --tokens: there is no text to put into the template");
	r = lc_request_new(&request, kind);
	if (r < 0)
		return tool_no_memory(diag);
	r = set_prompt(ask, request, diag);
	if (r)
		return r;
	lc_request_set_chat(request, ask->chat);
	lc_request_set_first_token_ms(request, ask->first_token_ms);
	lc_request_set_deadline_ms(request, ask->deadline_ms);
	for (size_t i = 0; i < ask->n_adapters; ++i) {
		r = lc_request_add_adapter(request, ask->adapters[i].name, ask->adapters[i].scale);
		if (r < 0)
			return diag_set(diag, TOOL_FAILED, "--adapter %s: %s", ask->adapters[i].name, strerror(-r));
	}
	*ret = TAKE_PTR(request);
	return TOOL_OK;
}

/** ask_number() - a JSON number, null for what JSON cannot say */
json_t *ask_number(double value)
{
	return isfinite(value) ? json_real(value) : json_null();
}
