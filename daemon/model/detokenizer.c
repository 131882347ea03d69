/* SPDX-License-Identifier: MIT */
/*
 * Bytes of tokens -> text, as they come
 *
 * A token may end in the middle of a character. The detokenizer gives out whole characters only and holds back a
 * beginning that may still become one. Bytes that never will are replaced as the Unicode standard recommends (and as
 * Python's errors="replace" does): one U+FFFD for each longest beginning of a character that broke off. Whatever the
 * cuts between tokens, the pieces put together are the same text.
 */
#include <assert.h>
#include <string.h>

#include "daemon/model/tokenizer-private.h"

static const char replacement[] = "\xef\xbf\xbd"; /* U+FFFD */

/**
 * utf8_step() - look at the character that starts here
 * @p:          bytes
 * @n:          how many, at least 1
 *
 * Return: its length (1..4); 0 if the end cuts it off; -k if the first k bytes are the start of none.
 */
int utf8_step(const uint8_t *p, size_t n)
{
	uint8_t low = 0x80, high = 0xbf; /* of the second byte: no overlong forms, no surrogates, nothing past U+10FFFF */
	int more, i;

	assert(n);
	if (p[0] < 0x80)
		return 1;
	if (p[0] < 0xc2 || p[0] > 0xf4)
		return -1;
	more = p[0] < 0xe0 ? 1 : p[0] < 0xf0 ? 2 : 3;
	if (p[0] == 0xe0)
		low = 0xa0;
	else if (p[0] == 0xed)
		high = 0x9f;
	else if (p[0] == 0xf0)
		low = 0x90;
	else if (p[0] == 0xf4)
		high = 0x8f;
	for (i = 1; i <= more; ++i) {
		if ((size_t)i == n)
			return 0;
		if (p[i] < low || p[i] > high)
			return -i;
		low = 0x80;
		high = 0xbf;
	}
	return more + 1;
}

/* Gives out all that is decided of @n bytes; returns how many of them that were. */
static size_t give_out(const uint8_t *p, size_t n, char **out)
{
	size_t at = 0;
	int step;

	while (at < n && (step = utf8_step(p + at, n - at))) {
		if (step > 0) {
			memcpy(*out, p + at, (size_t)step);
			*out += step;
			at += (size_t)step;
		} else {
			memcpy(*out, replacement, 3);
			*out += 3;
			at += (size_t)-step;
		}
	}
	return at;
}

/**
 * detokenizer_push() - the next bytes
 * @d:          state, zeroed before the first
 * @bytes:      of a token, or of several
 * @n:          how many
 * @end:        these are the last: give out what is held, too
 * @out:        gets valid UTF-8, room for 3 * (n + 4) bytes, no terminator
 *
 * Return: the number of bytes in @out.
 */
size_t detokenizer_push(struct detokenizer *d, const char *bytes, size_t n, bool end, char *out)
{
	char *to = out;
	size_t used;

	/* Feed a held beginning byte by byte until it is decided; what it did not need is the rest's. */
	while (d->n_held && n) {
		d->held[d->n_held++] = *bytes++;
		--n;
		used = give_out((const uint8_t *)d->held, d->n_held, &to);
		d->n_held = (uint8_t)(d->n_held - used);
		memmove(d->held, d->held + used, d->n_held);
	}
	used = n ? give_out((const uint8_t *)bytes, n, &to) : 0;
	if (n > used) {
		assert(n - used < sizeof(d->held) && !d->n_held);
		d->n_held = (uint8_t)(n - used);
		memcpy(d->held, bytes + used, d->n_held);
	}
	if (end && d->n_held) {
		memcpy(to, replacement, 3); /* a beginning that was cut off counts as one */
		to += 3;
		d->n_held = 0;
	}
	return (size_t)(to - out);
}
