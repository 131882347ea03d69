/* SPDX-License-Identifier: MIT */
/*
 * Memory of the CPU backends: device memory is the host's own.
 *
 * Small pieces (most weights of a small model are under 2 MiB) are cut one after the other from slabs of 32 MiB, larger
 * ones get a slab each. Slabs are 2 MiB aligned and ask for huge pages: weights are read from end to end every step, and
 * with 4 KiB pages that walk pays for page table look-ups. A slab is unmapped when its last piece is freed. Memory that
 * the caller brought along belongs to no slab, so freeing it does nothing.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/host.h"
#include "kernels/quant.h"

#define HUGE ((size_t)2 << 20)
#define SLAB ((size_t)32 << 20)
#define ALIGN ((size_t)64)

struct slab { /* at the start of its own mapping */
	struct slab *next;
	size_t bytes, used; /* both count this head */
	size_t n_pieces;    /* not yet freed */
};

struct kern_device {
	pthread_mutex_t lock; /* of the list: weights may be freed by another thread than the one that packs them */
	struct slab *slabs;
};

int host_open(struct kern_device **ret, unsigned number, struct kern_failure *why)
{
	(void)why;
	if (number > 0)
		return -ENODEV;
	struct kern_device *device = calloc(1, sizeof *device);
	if (!device)
		return -ENOMEM;
	pthread_mutex_init(&device->lock, NULL);
	*ret = device;
	return 0;
}

/** host_close() - unmaps whatever was not freed. */
struct kern_device *host_close(struct kern_device *device)
{
	if (!device)
		return NULL;
	for (struct slab *s = device->slabs, *next; s; s = next) {
		next = s->next;
		munmap(s, s->bytes);
	}
	pthread_mutex_destroy(&device->lock);
	free(device);
	return NULL;
}

/* A mapping of so many bytes that starts on a huge page; NULL: out of memory. */
static struct slab *map_slab(size_t bytes)
{
	uint8_t *p = mmap(NULL, bytes + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return NULL;
	size_t before = (HUGE - (uintptr_t)p % HUGE) % HUGE;
	if (before)
		munmap(p, before);
	munmap(p + before + bytes, HUGE - before);
	struct slab *s = (void *)(p + before);
	(void)madvise(s, bytes, MADV_HUGEPAGE); /* refused: slower, not wrong */
	*s = (struct slab){ .bytes = bytes, .used = ALIGN };
	return s;
}

/**
 * host_alloc() - a zeroed, 64-byte aligned piece of memory, or the caller's own
 * @host: memory that shall serve as device memory, or NULL
 *
 * Return: 0 or -ENOMEM.
 */
int host_alloc(struct kern_device *device, void *host, size_t bytes, void **ret)
{
	if (host) {
		*ret = host;
		return 0;
	}
	if (bytes > SIZE_MAX / 2)
		return -ENOMEM;
	bytes = (bytes + ALIGN - 1) / ALIGN * ALIGN;
	pthread_mutex_lock(&device->lock);
	struct slab *s = device->slabs;
	if (!s || bytes > s->bytes - s->used) {
		size_t wanted = (bytes + ALIGN + HUGE - 1) / HUGE * HUGE;
		s = map_slab(wanted > SLAB ? wanted : SLAB);
		if (s) {
			s->next = device->slabs;
			device->slabs = s;
		}
	}
	if (s) {
		*ret = (uint8_t *)s + s->used;
		s->used += bytes;
		s->n_pieces++;
	}
	pthread_mutex_unlock(&device->lock);
	return s ? 0 : -ENOMEM;
}

void host_free(struct kern_device *device, void *p, size_t bytes)
{
	(void)bytes;
	pthread_mutex_lock(&device->lock);
	for (struct slab **at = &device->slabs; *at; at = &(*at)->next) {
		struct slab *s = *at;
		if ((uint8_t *)p <= (uint8_t *)s || (uint8_t *)p >= (uint8_t *)s + s->bytes)
			continue;
		if (--s->n_pieces == 0) {
			*at = s->next;
			munmap(s, s->bytes);
		}
		break;
	}
	pthread_mutex_unlock(&device->lock);
}

int host_memory(struct kern_device *device, size_t *ret_free, size_t *ret_total)
{
	(void)device, (void)ret_free, (void)ret_total;
	return -ENOTSUP;
}

int host_reserve(struct kern_device *device, const struct kern_limits *limits)
{
	(void)device, (void)limits;
	return 0;
}

int host_register(struct kern_device *device, void *p, size_t bytes)
{
	(void)device, (void)p, (void)bytes;
	return 0;
}

void host_unregister(struct kern_device *device, void *p)
{
	(void)device, (void)p;
}

int host_copy(struct kern_device *device, void *to, const void *from, size_t bytes)
{
	(void)device;
	if (to != from)
		memcpy(to, from, bytes);
	return 0;
}

int host_fence(struct kern_device *device)
{
	(void)device;
	return 0;
}

void host_failure(struct kern_device *device, struct kern_failure *ret)
{
	(void)device;
	*ret = (struct kern_failure){ 0 };
}

int host_check_matrix(const struct kern_matrix *m, enum kern_precision precision)
{
	if ((unsigned)precision >= _KERN_PRECISION_N || !m->rows || !m->cols || !kern_row_bytes(m->dtype, m->cols))
		return -EINVAL;
	if (m->permuted_head && (m->permuted_head % 2 || m->rows % m->permuted_head))
		return -EINVAL;
	return 0;
}
