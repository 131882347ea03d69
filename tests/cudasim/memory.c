/* SPDX-License-Identifier: MIT */
/*
 * Memory of the simulated device and host memory that it may reach
 *
 * The device's is an arena of address space. Each allocation has its exact size and a gap behind it. Memory that is not
 * allocated holds 0xff throughout and so does what was just allocated: as floats these are NaN. The pages come from one
 * file of 0xff mapped privately again and again, so that memory nobody writes costs none, and dropping pages fills them
 * anew. Outside of ops on the device the arena is closed to the host (mprotect): code that takes a device pointer for
 * its own crashes, as it would with a GPU. With AddressSanitizer, gaps and freed memory are poisoned.
 *
 * All ranges stand in one list, by address. Everything here runs under the lock of runtime.c.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine.h"
#include "runtime.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n)
#define ASAN_UNPOISON_MEMORY_REGION(p, n)
#endif

#define PAGE ((size_t)4096)
#define CHUNK ((size_t)16 << 20) /* of the file */
#define ALIGN ((size_t)256)
#define GAP ((size_t)256)

struct range {
	struct range *next;
	unsigned char *base;
	size_t bytes;
	enum cudasim_place place;
};

static struct range *ranges;
static unsigned char *arena;
static size_t arena_bytes, top; /* top: pages behind it were never used and stay closed */
static bool guarded, window;

static size_t round_up(size_t n, size_t to)
{
	return (n + to - 1) / to * to;
}

/* What an allocation takes of the arena. */
static size_t slot(size_t bytes)
{
	return round_up(bytes, ALIGN) + GAP;
}

void cudasim_window(bool open)
{
	if (open == window || (!open && !guarded))
		return;
	if (top > 0 && mprotect(arena, top, open ? PROT_READ | PROT_WRITE : PROT_NONE) < 0)
		abort();
	window = open;
}

void cudasim_memory_setup(size_t bytes, bool guard)
{
	unsigned char *ff;
	int fd;

	guarded = guard;
	if (arena && arena_bytes == round_up(bytes, PAGE)) {
		cudasim_window(!guarded);
		return;
	}
	if (arena) {
		ASAN_UNPOISON_MEMORY_REGION(arena, top);
		(void)munmap(arena, arena_bytes);
	}
	ff = malloc(CHUNK);
	fd = memfd_create("cudasim", MFD_CLOEXEC);
	top = 0;
	arena_bytes = round_up(bytes, PAGE);
	arena = mmap(NULL, arena_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (!ff || fd < 0 || arena == MAP_FAILED)
		abort();
	memset(ff, 0xff, CHUNK);
	if (write(fd, ff, CHUNK) != (ssize_t)CHUNK)
		abort();
	for (size_t at = 0; at < arena_bytes; at += CHUNK) {
		size_t n = arena_bytes - at < CHUNK ? arena_bytes - at : CHUNK;

		if (mmap(arena + at, n, PROT_NONE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, fd, 0) == MAP_FAILED)
			abort();
	}
	close(fd);
	free(ff);
}

static struct range *find(const void *base)
{
	for (struct range *r = ranges; r; r = r->next)
		if (r->base == base)
			return r;
	return NULL;
}

static void add(void *base, size_t bytes, enum cudasim_place place)
{
	struct range **link = &ranges, *r = malloc(sizeof(*r));

	if (!r)
		abort();
	while (*link && (*link)->base < (unsigned char *)base)
		link = &(*link)->next;
	*r = (struct range){ *link, base, bytes, place };
	*link = r;
	if (place != CUDASIM_REGISTERED)
		cudasim_memory(base, bytes, true);
}

/* 0xff throughout: what whole pages there are by dropping them. */
static void wipe(size_t at, size_t bytes)
{
	size_t first = round_up(at, PAGE), end = (at + bytes) / PAGE * PAGE;

	cudasim_window(true);
	if (first >= end) {
		memset(arena + at, 0xff, bytes);
		return;
	}
	memset(arena + at, 0xff, first - at);
	memset(arena + end, 0xff, at + bytes - end);
	if (madvise(arena + first, end - first, MADV_DONTNEED) < 0)
		abort();
}

/* Gives the range back to where it came from. */
static void drop(struct range *r)
{
	struct range **link = &ranges;

	if (r->place != CUDASIM_REGISTERED)
		cudasim_memory(r->base, r->bytes, false);
	if (r->place == CUDASIM_PINNED)
		free(r->base);
	if (r->place == CUDASIM_DEVICE) {
		wipe((size_t)(r->base - arena), r->bytes);
		ASAN_POISON_MEMORY_REGION(r->base, r->bytes);
	}
	while (*link != r)
		link = &(*link)->next;
	*link = r->next;
	free(r);
}

/* All is given back; the arena stays for the next setup. */
void cudasim_memory_reset(void)
{
	while (ranges)
		drop(ranges);
}

/* Where this memory lies, if it lies whole in one range. */
enum cudasim_place cudasim_where(const void *base, size_t bytes)
{
	const unsigned char *p = base;

	for (const struct range *r = ranges; r && r->base <= p; r = r->next)
		if ((size_t)(p - r->base) <= r->bytes && bytes <= r->bytes - (size_t)(p - r->base))
			return r->place;
	return CUDASIM_NOWHERE;
}

unsigned cudasim_memory_count(enum cudasim_place place)
{
	unsigned n = 0;

	for (const struct range *r = ranges; r; r = r->next)
		n += r->place == place;
	return n;
}

cudaError_t cudasim_MemGetInfo(size_t *ret_free, size_t *ret_total)
{
	int error = cudasim_enter("MemGetInfo", CUDASIM_USUAL);

	if (!error) {
		*ret_total = *ret_free = arena_bytes;
		for (const struct range *r = ranges; r; r = r->next)
			if (r->place == CUDASIM_DEVICE)
				*ret_free -= slot(r->bytes);
	}
	return cudasim_leave(error);
}

/* The first place in the arena that is large enough; NULL: none. */
static unsigned char *take(size_t bytes)
{
	unsigned char *at = arena;

	if (bytes > arena_bytes - GAP)
		return NULL;
	for (const struct range *r = ranges; r; r = r->next) {
		if (r->place != CUDASIM_DEVICE)
			continue;
		if ((size_t)(r->base - at) >= slot(bytes))
			return at;
		at = r->base + slot(r->bytes);
	}
	return arena_bytes - (size_t)(at - arena) >= slot(bytes) ? at : NULL;
}

cudaError_t cudasim_Malloc(void **ret, size_t bytes)
{
	int error = cudasim_enter("Malloc", CUDASIM_NOT_RECORDED);
	unsigned char *p = NULL;

	if (!error && bytes > 0) {
		p = take(bytes);
		if (!p)
			error = cudaErrorMemoryAllocation;
	}
	if (p) {
		size_t end = round_up((size_t)(p - arena) + slot(bytes), PAGE);

		if (end > top) {
			ASAN_POISON_MEMORY_REGION(arena + top, end - top);
			top = end;
			window = false;
			cudasim_window(true);
		}
		ASAN_UNPOISON_MEMORY_REGION(p, bytes);
		add(p, bytes, CUDASIM_DEVICE);
	}
	if (!error)
		*ret = p;
	return cudasim_leave(error);
}

/* free() by the table's rules; the place of the range must be this one. */
static int give_back(void *p, enum cudasim_place place, const char *name)
{
	struct range *r = find(p);

	if (!r || r->place != place)
		return cudasim_broken("%s of %p, which is none of its own (or no more)", name, p);
	if (place != CUDASIM_DEVICE && cudasim_in_use(r->base, r->bytes))
		return cudasim_broken("%s of %p, which ops that are queued use", name, p);
	drop(r);
	return 0;
}

cudaError_t cudasim_Free(void *p)
{
	int error = cudasim_enter("Free", CUDASIM_NOT_RECORDED);

	if (!error && p) {
		cudasim_finish();
		error = give_back(p, CUDASIM_DEVICE, "Free");
	}
	return cudasim_leave(error);
}

cudaError_t cudasim_HostAlloc(void **ret, size_t bytes, unsigned flags)
{
	int error = cudasim_enter("HostAlloc", CUDASIM_NOT_RECORDED);
	void *p = NULL;

	if (!error && flags > (cudaHostAllocPortable | cudaHostAllocMapped | cudaHostAllocWriteCombined))
		error = cudaErrorInvalidValue;
	if (!error && bytes > 0 && posix_memalign(&p, PAGE, bytes) != 0)
		error = cudaErrorMemoryAllocation;
	if (!error && bytes > 0) {
		memset(p, 0xff, bytes);
		add(p, bytes, CUDASIM_PINNED);
	}
	if (!error)
		*ret = p;
	return cudasim_leave(error);
}

cudaError_t cudasim_FreeHost(void *p)
{
	int error = cudasim_enter("FreeHost", CUDASIM_NOT_RECORDED);

	if (!error && p)
		error = give_back(p, CUDASIM_PINNED, "FreeHost");
	return cudasim_leave(error);
}

/* Whole pages are registered: a page that two ranges share is refused. */
cudaError_t cudasim_HostRegister(void *p, size_t bytes, unsigned flags)
{
	int error = cudasim_enter("HostRegister", CUDASIM_NOT_RECORDED);
	uintptr_t first = (uintptr_t)p / PAGE, last = ((uintptr_t)p + bytes - 1) / PAGE;

	if (!error && (!p || bytes == 0 ||
		       flags > (cudaHostRegisterPortable | cudaHostRegisterMapped | cudaHostRegisterReadOnly)))
		error = cudaErrorInvalidValue;
	for (const struct range *r = ranges; !error && r; r = r->next)
		if (r->place == CUDASIM_REGISTERED && (uintptr_t)r->base / PAGE <= last &&
		    ((uintptr_t)r->base + r->bytes - 1) / PAGE >= first)
			error = cudaErrorHostMemoryAlreadyRegistered;
	if (!error)
		add(p, bytes, CUDASIM_REGISTERED);
	return cudasim_leave(error);
}

cudaError_t cudasim_HostUnregister(void *p)
{
	int error = cudasim_enter("HostUnregister", CUDASIM_NOT_RECORDED);

	if (!error)
		error = give_back(p, CUDASIM_REGISTERED, "HostUnregister");
	return cudasim_leave(error);
}
