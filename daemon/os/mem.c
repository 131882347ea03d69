/* SPDX-License-Identifier: MIT */
/*
 * Large regions in huge pages
 *
 * The pool is one region of many gigabytes that the pager reads into with O_DIRECT and the kernels walk. Pages of 2 MiB
 * make both cheap: a read of 4 MiB is a handful of segments for the device instead of a thousand, and a walk hardly ever
 * misses the TLB. Which memory can have them is the machine's choice (/sys/kernel/mm/transparent_hugepage):
 *
 *   1. memfd, where shmem_enabled permits huge pages on request; it could outlive the process in systemd's fd store.
 *   2. private memory with MADV_HUGEPAGE, where `enabled` permits that. Most distributions ship this and not the first.
 *   3. memfd in small pages: works everywhere, slower.
 *
 * Nothing is touched in advance: the region costs what is in use. It is left out of forks (memory that a device reads
 * into must not become copy-on-write) and of core dumps.
 */
#include "daemon/os/mem.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>

#include "daemon/base/error.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008u /* Linux 6.3; refused with EINVAL before */
#endif

/* Whether a setting of transparent huge pages, "always [madvise] never", stands at one of the words given. */
static bool setting_is_one_of(const char *path, const char *const *words)
{
	_cleanup_(fclosep) FILE *file = fopen(path, "re");
	char line[256], *start, *end;

	if (!file || !fgets(line, sizeof(line), file))
		return false;
	start = strchr(line, '[');
	end = start ? strchr(start, ']') : NULL;
	if (!end)
		return false;
	*end = '\0';
	for (; *words; ++words)
		if (!strcmp(start + 1, *words))
			return true;
	return false;
}

static enum mem_kind best_kind(void)
{
	static const char *const shmem[] = { "always", "within_size", "advise", "force", NULL };
	static const char *const anon[] = { "always", "madvise", NULL };

	if (setting_is_one_of("/sys/kernel/mm/transparent_hugepage/shmem_enabled", shmem))
		return MEM_SHARED_HUGE;
	if (setting_is_one_of("/sys/kernel/mm/transparent_hugepage/enabled", anon))
		return MEM_ANON_HUGE;
	return MEM_SHARED;
}

static int open_memfd(const char *name, size_t bytes, int *ret)
{
	_cleanup_close_ int fd = memfd_create(name, MFD_CLOEXEC | MFD_NOEXEC_SEAL);

	if (fd < 0 && errno == EINVAL)
		fd = memfd_create(name, MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0)
		return error_origin(-errno);
	*ret = TAKE_FD(fd);
	return 0;
}

/* Address space of `bytes` on a huge page boundary, nothing behind it yet. */
static int reserve_aligned(size_t bytes, void **ret)
{
	size_t room = bytes + MEM_HUGE_PAGE;
	uint8_t *p = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	size_t before, after;

	if (p == MAP_FAILED)
		return error_origin(-errno);
	before = (MEM_HUGE_PAGE - (uintptr_t)p % MEM_HUGE_PAGE) % MEM_HUGE_PAGE;
	after = room - before - bytes;
	if (before)
		(void)munmap(p, before);
	if (after)
		(void)munmap(p + before + bytes, after);
	*ret = p + before;
	return 0;
}

/**
 * mem_region_init() - make a region
 * @region:     filled on success, left alone otherwise
 * @name:       shown in /proc/self/maps
 * @bytes:      how much, rounded up to huge pages
 *
 * The region is zero and not yet backed: pages come as they are touched. See region->kind for what it got.
 */
int mem_region_init(struct mem_region *region, const char *name, size_t bytes)
{
	enum mem_kind kind = best_kind();
	_cleanup_close_ int fd = -1;
	int flags = MAP_FIXED | MAP_NORESERVE;
	void *base = NULL;
	int r;

	if (bytes == 0 || bytes > SIZE_MAX / 4)
		return error_origin(-EINVAL);
	bytes = (bytes + MEM_HUGE_PAGE - 1) / MEM_HUGE_PAGE * MEM_HUGE_PAGE;
	if (kind != MEM_ANON_HUGE) {
		r = open_memfd(name, bytes, &fd);
		if (r)
			return error_trace(r);
	}
	r = reserve_aligned(bytes, &base);
	if (r)
		return error_trace(r);

	flags |= fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
	if (mmap(base, bytes, PROT_READ | PROT_WRITE, flags, fd, 0) == MAP_FAILED) {
		r = -errno;
		(void)munmap(base, bytes);
		return error_origin(r);
	}
	assert((uintptr_t)base % MEM_HUGE_PAGE == 0);
	if (kind != MEM_SHARED)
		(void)madvise(base, bytes, MADV_HUGEPAGE);
	(void)madvise(base, bytes, MADV_DONTFORK);
	(void)madvise(base, bytes, MADV_DONTDUMP);
	*region = (struct mem_region){ .base = base, .bytes = bytes, .fd = TAKE_FD(fd), .kind = kind };
	return 0;
}

void mem_region_deinit(struct mem_region *region)
{
	if (region->base)
		(void)munmap(region->base, region->bytes);
	if (region->fd >= 0)
		close(region->fd);
	*region = (struct mem_region)MEM_REGION_NULL;
}

/* How a kind of region is named in the log. */
const char *mem_kind_name(enum mem_kind kind)
{
	static const char *const names[_MEM_KIND_N] = {
		[MEM_SHARED_HUGE] = "memfd, 2 MiB pages",
		[MEM_ANON_HUGE] = "anonymous memory, 2 MiB pages",
		[MEM_SHARED] = "memfd, 4 KiB pages",
	};

	assert(kind < _MEM_KIND_N);
	return names[kind];
}

/**
 * mem_available() - how much memory can be taken without swapping
 *
 * Return: bytes; the kernel's MemAvailable, else the free memory. Control group limits are not seen here.
 */
uint64_t mem_available(void)
{
	_cleanup_(fclosep) FILE *file = fopen("/proc/meminfo", "re");
	struct sysinfo info;
	uint64_t kib;
	char line[256];

	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "MemAvailable: %" SCNu64 " kB", &kib) == 1)
			return kib * 1024;
	return sysinfo(&info) ? 0 : (uint64_t)info.freeram * info.mem_unit;
}
