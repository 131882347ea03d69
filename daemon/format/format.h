/* SPDX-License-Identifier: MIT */
/* What all parsers of this folder share: their result, and text that is not terminated. */
#ifndef LORAD_FORMAT_FORMAT_H
#define LORAD_FORMAT_FORMAT_H

#include <stddef.h>

#include "daemon/base/error.h"

enum format_result {
	FORMAT_OK,
	FORMAT_E_INVALID, /* refused; the reason, with the offending thing's name, is in the diag */
	FORMAT_E_MISSING, /* an optional thing is not there; the diag is untouched */
};

/* Bytes inside somebody else's buffer: no terminator. */
struct format_text {
	const char *bytes;
	size_t n;
};

#endif
