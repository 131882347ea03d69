/* SPDX-License-Identifier: MIT */
/*
 * Memory of a CUDA device
 *
 * CUDA's addresses say nothing about what lies there, and a wrong guess is an error that ends the device. So two lists
 * are kept: the memory that was given out here, which tells the direction of a copy and what is left to free at the
 * end, and the host memory that the driver agreed to pin, from which the device reads by itself. All else takes the
 * detour in upload.c. Both lists change at start and end only and are looked up by binary search.
 *
 * Nothing here runs inside a step: allocating and freeing wait for the device.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/device.h"

#define ALIGN ((size_t)256) /* what cudaMalloc aligns to; kernels may load whole 16 bytes at the end of a row */

/* ---- ranges ---- */

/* Number of ranges that start at p or before. */
static size_t count_up_to(const struct cuda_ranges *ranges, const void *p)
{
	size_t low = 0, high = ranges->n;

	while (low < high) {
		size_t middle = low + (high - low) / 2;
		if (ranges->range[middle].first <= (uintptr_t)p)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* Room for one more, so that add() cannot fail. */
static int make_room(struct cuda_ranges *ranges)
{
	if (ranges->n < ranges->room)
		return 0;
	size_t room = ranges->room ? 2 * ranges->room : 16;
	struct cuda_range *range = realloc(ranges->range, room * sizeof *range);
	if (!range)
		return -ENOMEM;
	ranges->range = range;
	ranges->room = room;
	return 0;
}

static void add(struct cuda_ranges *ranges, const void *p, size_t bytes)
{
	size_t i = count_up_to(ranges, p);
	struct cuda_range *at = ranges->range + i;

	memmove(at + 1, at, (ranges->n - i) * sizeof *at);
	*at = (struct cuda_range){ .first = (uintptr_t)p, .bytes = bytes };
	ranges->n++;
}

/* Was there one that starts at p? */
static bool take_out(struct cuda_ranges *ranges, const void *p)
{
	size_t i = count_up_to(ranges, p);

	if (i == 0 || ranges->range[i - 1].first != (uintptr_t)p)
		return false;
	memmove(ranges->range + i - 1, ranges->range + i, (ranges->n - i) * sizeof *ranges->range);
	ranges->n--;
	return true;
}

static bool holds(const struct cuda_ranges *ranges, const void *p, size_t bytes)
{
	size_t i = count_up_to(ranges, p);

	if (i == 0)
		return false;
	const struct cuda_range *range = &ranges->range[i - 1];
	size_t offset = (uintptr_t)p - range->first;
	return offset < range->bytes && bytes <= range->bytes - offset;
}

/** cuda_is_device() - do these bytes lie in memory that cuda_alloc() gave out? */
bool cuda_is_device(struct kern_device *device, const void *p, size_t bytes)
{
	pthread_mutex_lock(&device->lock);
	bool yes = holds(&device->memory, p, bytes);
	pthread_mutex_unlock(&device->lock);
	return yes;
}

/** cuda_is_registered() - may the device read and write these bytes of host memory by itself? */
bool cuda_is_registered(struct kern_device *device, const void *p, size_t bytes)
{
	pthread_mutex_lock(&device->lock);
	bool yes = holds(&device->registered, p, bytes);
	pthread_mutex_unlock(&device->lock);
	return yes;
}

/* ---- device memory ---- */

/**
 * cuda_alloc() - device memory, 256-byte aligned, its contents undefined
 * @host: ignored: the device has memory of its own, and the caller registers its host memory itself
 *
 * Return: 0, -ENOMEM, or -EIO: the device failed.
 */
int cuda_alloc(struct kern_device *device, void *host, size_t bytes, void **ret)
{
	void *p = NULL;

	(void)host;
	if (cuda_enter(device) < 0)
		return -EIO;
	if (bytes > SIZE_MAX / 2)
		return -ENOMEM;
	bytes = bytes ? (bytes + ALIGN - 1) / ALIGN * ALIGN : ALIGN;
	pthread_mutex_lock(&device->lock);
	int r = make_room(&device->memory);
	pthread_mutex_unlock(&device->lock);
	if (r < 0)
		return r;
	cudaError_t error = device->api->Malloc(&p, bytes);
	if (error == cudaErrorMemoryAllocation) {
		(void)device->api->GetLastError();
		return -ENOMEM;
	}
	if (error != cudaSuccess)
		return cuda_keep(device, error, "cudaMalloc");
	pthread_mutex_lock(&device->lock);
	add(&device->memory, p, bytes);
	pthread_mutex_unlock(&device->lock);
	*ret = p;
	return 0;
}

/** cuda_free() - gives back what cuda_alloc() gave; NULL is nothing to do. Waits for the device. */
void cuda_free(struct kern_device *device, void *p, size_t bytes)
{
	(void)bytes;
	if (!p)
		return;
	pthread_mutex_lock(&device->lock);
	bool known = take_out(&device->memory, p);
	pthread_mutex_unlock(&device->lock);
	if (!known)
		return;
	(void)cuda_enter(device);
	(void)cuda_keep(device, device->api->Free(p), "cudaFree");
}

/* ---- host memory ---- */

/**
 * cuda_register_host() - pins host memory, so that copies from and to it need no detour
 *
 * The driver may refuse: too much pinned already, or a mapping it does not like. Copies work all the same, slower.
 * Return: 0, 1: refused, -ENOMEM, or -EIO: the device failed.
 */
int cuda_register_host(struct kern_device *device, void *p, size_t bytes)
{
	if (cuda_enter(device) < 0)
		return -EIO;
	pthread_mutex_lock(&device->lock);
	int r = make_room(&device->registered);
	pthread_mutex_unlock(&device->lock);
	if (r < 0)
		return r;
	if (device->api->HostRegister(p, bytes, cudaHostRegisterPortable) != cudaSuccess) {
		(void)device->api->GetLastError();
		return 1;
	}
	pthread_mutex_lock(&device->lock);
	add(&device->registered, p, bytes);
	pthread_mutex_unlock(&device->lock);
	return 0;
}

/**
 * cuda_unregister_host() - before the memory goes; what was refused or never asked for is ignored
 *
 * Waits for all copies, which may be reading there still: after a failure nobody else can know that they have ended.
 */
void cuda_unregister_host(struct kern_device *device, void *p)
{
	pthread_mutex_lock(&device->lock);
	bool known = take_out(&device->registered, p);
	pthread_mutex_unlock(&device->lock);
	if (!known)
		return;
	(void)cuda_enter(device);
	(void)cuda_keep(device, device->api->StreamSynchronize(device->copy), "cudaStreamSynchronize");
	(void)cuda_keep(device, device->api->StreamSynchronize(device->compute), "cudaStreamSynchronize");
	(void)cuda_keep(device, device->api->HostUnregister(p), "cudaHostUnregister");
}

/** cuda_release_memory() - what was not freed and unregistered, at the end; a failed device answers with errors */
void cuda_release_memory(struct kern_device *device)
{
	for (size_t i = 0; i < device->memory.n; i++)
		(void)device->api->Free((void *)device->memory.range[i].first);
	for (size_t i = 0; i < device->registered.n; i++)
		(void)device->api->HostUnregister((void *)device->registered.range[i].first);
	free(device->memory.range);
	free(device->registered.range);
}
