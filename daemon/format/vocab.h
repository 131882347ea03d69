/* SPDX-License-Identifier: MIT */
/* A byte-level BPE vocabulary, from GGUF metadata or tokenizer.json, as the tokenizer wants it. See vocab.c. */
#ifndef LORAD_FORMAT_VOCAB_H
#define LORAD_FORMAT_VOCAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/base/cleanup.h"
#include "daemon/format/format.h"
#include "daemon/format/gguf.h"

#define VOCAB_STEPS_MAX 8
#define VOCAB_AFFIX_MAX 8

/* A token's own bytes: the byte-level alphabet is undone. n = 0 and bytes = NULL: the id has no token. */
struct vocab_token {
	const char *bytes;
	uint32_t n;
	bool special;              /* a control token */
};

struct vocab_merge {
	uint32_t left, right, result;
};

struct vocab_added {           /* a token recognised in the text before anything else */
	const char *text;
	uint32_t n, id;
	bool lstrip, rstrip;       /* swallows white space before / after it */
	bool single_word;          /* only where no word character is next to it */
	bool normalized;           /* looked for after those that are not */
};

/* One step of the pre-split; each works on the pieces the step before left. */
struct vocab_step {
	enum vocab_step_kind {
		VOCAB_SPLIT,        /* matches and what lies between them become pieces */
		VOCAB_PREFIX_SPACE, /* a piece that does not start with a space gets one */
	} kind;
	char *pattern;             /* SPLIT: PCRE2 with UTF and UCP */
	bool drop_matched, drop_between;
};

struct vocab {
	struct vocab_token *tokens; /* [n_tokens] by id */
	uint32_t n_tokens;
	struct vocab_merge *merges; /* best first */
	uint32_t n_merges;
	struct vocab_added *added;
	uint32_t n_added;
	struct vocab_step steps[VOCAB_STEPS_MAX];
	uint32_t n_steps;
	int32_t byte_token[256];   /* token of a single byte, or -1: such bytes are left out, as Hugging Face does */
	bool ignore_merges;        /* a piece that is a token as a whole is taken as it is */
	uint32_t prefix[VOCAB_AFFIX_MAX], suffix[VOCAB_AFFIX_MAX]; /* put before and after every text */
	uint32_t n_prefix, n_suffix;
	char *chat_template;       /* terminated; NULL: the model has none */
	char *bytes;               /* holds all texts */
	size_t n_bytes, room;
};

int vocab_from_gguf(struct vocab **ret, const struct gguf *gguf, struct diag *diag);

/* A folder: tokenizer.json, then whichever of the two files with a chat template there are. */
int vocab_from_json(struct vocab **ret, const char *text, size_t bytes, struct diag *diag);
int vocab_add_tokenizer_config(struct vocab *vocab, const char *text, size_t bytes, struct diag *diag);
int vocab_set_chat_template(struct vocab *vocab, const char *text, size_t bytes); /* chat_template.jinja; it wins */

#define VOCAB_FILE_MAX (256u << 20) /* of tokenizer.json */

struct vocab *vocab_free(struct vocab *vocab);
DEFINE_CLEANUP(struct vocab *, vocab_free)

#endif
