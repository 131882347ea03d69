/* SPDX-License-Identifier: MIT */
/* What the two readers of vocabularies share; private to daemon/format. See vocab.c. */
#ifndef LORAD_FORMAT_VOCAB_BUILD_H
#define LORAD_FORMAT_VOCAB_BUILD_H

#include "daemon/format/vocab.h"

#define VOCAB_TOKENS_MAX (1u << 22)
#define VOCAB_MERGES_MAX (1u << 22)

/* Token texts as the file spells them -> ids. The texts stay the file's. */
struct lexicon {
	struct format_text *text;  /* [n_tokens] by id */
	uint32_t *slot;            /* id + 1, or 0; a power of two of them */
	uint32_t n_slots;
};

int lexicon_init(struct lexicon *lexicon, uint32_t n_tokens);
void lexicon_deinit(struct lexicon *lexicon);
int lexicon_add(struct lexicon *lexicon, uint32_t id, struct format_text text, struct diag *diag);
int64_t lexicon_find(const struct lexicon *lexicon, struct format_text text); /* -1: there is none */

int vocab_new(struct vocab **ret, uint32_t n_tokens, size_t text_bytes, uint32_t n_merges, uint32_t n_added);
void vocab_put_tokens(struct vocab *vocab, const struct lexicon *lexicon);
int vocab_put_merge(struct vocab *vocab, const struct lexicon *lexicon, struct format_text left, struct format_text right,
		    struct diag *diag);
int vocab_put_added(struct vocab *vocab, const struct vocab_added *added, bool special, struct diag *diag);
int vocab_put_step(struct vocab *vocab, const struct vocab_step *step, const char *pattern, struct diag *diag);

#endif
