/* SPDX-License-Identifier: MIT */
/* Text <-> token ids: byte-level BPE. See tokenizer.c. Immutable once made: any thread may use it. */
#ifndef LORAD_MODEL_TOKENIZER_H
#define LORAD_MODEL_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/base/error.h"

struct vocab; /* daemon/format/vocab.h */
struct tokenizer;

enum tokenizer_result { TOKENIZER_OK, TOKENIZER_E_INVALID };

int tokenizer_new(struct tokenizer **ret, struct vocab *vocab, struct diag *diag); /* takes over vocab on success */
struct tokenizer *tokenizer_free(struct tokenizer *tokenizer);

/* Special tokens in the text are recognised; nothing is added unless the model's metadata says so. *ret is malloc'd. */
int tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t bytes, uint32_t **ret, size_t *ret_n);

/* The bytes of one token (special tokens: their text); may be part of a character. The pointer lives as the tokenizer. */
const char *tokenizer_bytes(const struct tokenizer *tokenizer, uint32_t token, size_t *ret_bytes);
bool tokenizer_is_special(const struct tokenizer *tokenizer, uint32_t token);
uint32_t tokenizer_size(const struct tokenizer *tokenizer);

/* Streaming detokenisation: holds back the bytes of a character until it is whole; U+FFFD for what never becomes one. */
struct detokenizer {
	char held[4];
	uint8_t n_held;
};

/* Writes valid UTF-8 to out (room for 3 * (bytes + 4)); returns its length. end: flush what is held. */
size_t detokenizer_push(struct detokenizer *d, const char *bytes, size_t n, bool end, char *out);

/* The chat template, recognised from the model's own template text. */
enum chat_template { CHAT_NONE, CHAT_UNKNOWN, CHAT_SMOLLM2 };
enum chat_template chat_recognise(const char *template_text);

/* One user message with the model's default system message and generation prompt, as transformers renders it; malloc'd. */
int chat_render(enum chat_template chat, const char *text, size_t bytes, char **ret, size_t *ret_bytes);

#endif
