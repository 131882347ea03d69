/* SPDX-License-Identifier: MIT */
/* The pager: reads images from data.mdb into memory by io_uring O_DIRECT, checks every chunk. See pager.c. */
#ifndef LORAD_STORE_PAGER_H
#define LORAD_STORE_PAGER_H

#include <stddef.h>
#include <stdint.h>

#include "daemon/store/store.h"

struct pager;

/* One load. Embedded in its owner, who keeps it and the target memory alive until done() was called. */
struct pager_load {
	struct store_digest digest;
	enum image_encoding encoding; /* which of its images */
	void *to;                 /* 4 KiB aligned, room for all of that image's payload */
	size_t room;
	/* Called once, on the pager's thread: 0, -errno, or STORE_E_NOT_FOUND / STORE_E_CORRUPT with the reason in diag. */
	void (*done)(struct pager_load *load, int result);
	struct diag diag;
	struct image_header header; /* of chunk 0, checked, once done(0) was called */
	uint64_t started_ns, finished_ns;
	struct pager_load *next;  /* the pager's own */
};

enum pager_method { PAGER_URING_FIXED, PAGER_URING, PAGER_PREAD, PAGER_MAP, _PAGER_METHOD_N };
extern const char *const pager_method_names[_PAGER_METHOD_N];

struct pager_options {
	void *region;             /* the memory loads go to (the pool's), to be registered where possible */
	size_t region_bytes;
	enum pager_method best;   /* start the ladder of fallbacks here; PAGER_URING_FIXED: take the best */
	unsigned depth;           /* reads in flight, 0: 8 */
};

struct pager_stats {
	uint64_t loads, failed, bytes, busy_ns;
};

int pager_new(struct pager **ret, struct store *store, const struct pager_options *options);
struct pager *pager_free(struct pager *pager);  /* waits for loads in flight, fails the queued ones with -ECANCELED */
DEFINE_CLEANUP(struct pager *, pager_free)
void pager_submit(struct pager *pager, struct pager_load *load); /* any thread */
enum pager_method pager_method(const struct pager *pager);
void pager_read_stats(struct pager *pager, struct pager_stats *ret);

#endif
