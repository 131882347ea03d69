/* SPDX-License-Identifier: MIT */
/* Large regions of memory in huge pages: see mem.c. */
#ifndef LORAD_OS_MEM_H
#define LORAD_OS_MEM_H

#include <stddef.h>
#include <stdint.h>

#include "daemon/base/cleanup.h"

#define MEM_HUGE_PAGE (2u << 20)

enum mem_kind {
	MEM_SHARED_HUGE, /* memfd, huge pages */
	MEM_ANON_HUGE,   /* private memory, huge pages */
	MEM_SHARED,      /* memfd, pages of 4 KiB */
	_MEM_KIND_N,
};

struct mem_region {
	void *base;      /* aligned to MEM_HUGE_PAGE */
	size_t bytes;    /* a multiple of MEM_HUGE_PAGE */
	int fd;          /* the memfd, or -1 */
	enum mem_kind kind;
};

#define MEM_REGION_NULL { .fd = -1 }

int mem_region_init(struct mem_region *region, const char *name, size_t bytes);
void mem_region_deinit(struct mem_region *region);
const char *mem_kind_name(enum mem_kind kind);

uint64_t mem_available(void); /* bytes that can be had without swapping */

#endif
