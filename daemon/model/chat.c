/* SPDX-License-Identifier: MIT */
/*
 * Chat templates
 *
 * A model brings its template as a Jinja program. lorad runs no stranger's programs; it recognises templates it knows by
 * a hash of their text and renders those itself, to the byte as transformers' apply_chat_template() does. A template
 * that is not known is no error until somebody asks for --chat.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/model/tokenizer.h"

/*
 * SmolLM2-*-Instruct: ChatML; a default system message unless the first message is one. FNV-1a of the template's text,
 * with each "\n" inside its string literals as a line feed and no white space at its end.
 */
#define SMOLLM2_HASH 0x45ec583d4d25bc3au

static const char smollm2_before[] = "<|im_start|>system\n"
				     "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
				     "<|im_start|>user\n";
static const char smollm2_after[] = "<|im_end|>\n<|im_start|>assistant\n";

static uint64_t hash_template(const char *text)
{
	size_t n = strlen(text), i;
	uint64_t h = 0xcbf29ce484222325u;

	while (n && strchr(" \t\r\n", text[n - 1]))
		--n;
	for (i = 0; i < n; ++i) {
		uint8_t c = (uint8_t)text[i];

		if (c == '\\' && i + 1 < n && text[i + 1] == 'n') {
			c = '\n';
			++i;
		}
		h = (h ^ c) * 0x100000001b3u;
	}
	return h;
}

/** chat_recognise() - which of the known templates this is; NULL or an empty text is none */
enum chat_template chat_recognise(const char *template_text)
{
	if (!template_text || !*template_text)
		return CHAT_NONE;
	return hash_template(template_text) == SMOLLM2_HASH ? CHAT_SMOLLM2 : CHAT_UNKNOWN;
}

/**
 * chat_render() - a prompt from one user message
 * @chat:       a template that is known
 * @text:       the message
 * @bytes:      its length
 * @ret:        the prompt, malloc'd, not terminated
 * @ret_bytes:  its length
 *
 * Return: 0, -ENOMEM, or TOKENIZER_E_INVALID where the template is none or not known.
 */
int chat_render(enum chat_template chat, const char *text, size_t bytes, char **ret, size_t *ret_bytes)
{
	const size_t before = sizeof(smollm2_before) - 1, after = sizeof(smollm2_after) - 1;
	char *out;

	if (chat != CHAT_SMOLLM2)
		return TOKENIZER_E_INVALID;
	assert(bytes < SIZE_MAX - before - after);
	out = malloc(before + bytes + after);
	if (!out)
		return error_origin(-ENOMEM);
	memcpy(out, smollm2_before, before);
	if (bytes)
		memcpy(out + before, text, bytes);
	memcpy(out + before + bytes, smollm2_after, after);
	*ret = out;
	*ret_bytes = before + bytes + after;
	return TOKENIZER_OK;
}
