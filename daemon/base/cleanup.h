/* SPDX-License-Identifier: MIT */
/*
 * Cleanup attributes: every owned local names its destructor at its declaration, so each return path frees it.
 *
 *   _cleanup_(pager_freep) struct pager *pager = NULL;
 *   ...
 *   *ret = TAKE_PTR(pager);          // hand over: the local is NULL from here on
 *
 * DEFINE_CLEANUP(type, fn) makes fn##p(), which calls fn() on the local unless it is NULL. Destructors themselves take
 * NULL too, so half-built objects may be passed to them.
 */
#ifndef LORAD_BASE_CLEANUP_H
#define LORAD_BASE_CLEANUP_H

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define _cleanup_(fn) __attribute__((cleanup(fn)))

#define DEFINE_CLEANUP(type, fn)            \
	static inline void fn##p(type *p)   \
	{                                   \
		if (*p)                     \
			(void)fn(*p);       \
	}

#define TAKE_PTR(p)                         \
	({                                  \
		__typeof__(p) take_ = (p);  \
		(p) = NULL;                 \
		take_;                      \
	})

#define TAKE_FD(fd)                         \
	({                                  \
		int take_ = (fd);           \
		(fd) = -1;                  \
		take_;                      \
	})

static inline void free_cleanup(void *p)
{
	free(*(void **)p);
}

static inline void close_cleanup(int *fd)
{
	if (*fd >= 0)
		close(*fd);
}

DEFINE_CLEANUP(FILE *, fclose)
DEFINE_CLEANUP(DIR *, closedir)

#define _cleanup_free_ _cleanup_(free_cleanup)
#define _cleanup_close_ _cleanup_(close_cleanup)

#endif
