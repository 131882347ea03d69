/* SPDX-License-Identifier: MIT */
/*
 * Copies between host and device
 *
 * Two ways that do not wait for each other: copy_async() on the compute stream, in line with the ops, and upload() on
 * the copy stream, for adapters. Both streams share the link to the device, which takes one copy after the other, so
 * uploads go in pieces: a step's own small copies wait for one of them at most.
 *
 * An upload takes a slot, whose event stands behind its last piece. join() lets the compute stream wait for that event:
 * ops that come after it see the bytes, ops before it are not held up. The slot is taken from upload() to join().
 *
 * The device may only read host memory that is registered. Everything else (small vectors while a model loads, a cache
 * whose registration was refused) goes piece by piece through two pinned bounce buffers, which both ways share: a
 * buffer is filled once the event behind its last copy has come, on whichever stream that was.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "kernels/cuda/device.h"

/* ---- pieces ---- */

/* A bounce buffer that no copy uses any more; bounce_lock is held. */
static int next_bounce(struct kern_device *device, unsigned *ret)
{
	unsigned i = device->bounce_next % 2;

	if (cuda_keep(device, device->api->EventSynchronize(device->bounced[i]), "cudaEventSynchronize") < 0)
		return -EIO;
	device->bounce_next++;
	*ret = i;
	return 0;
}

static int start_copy(struct kern_device *device, cudaStream_t stream, void *to, const void *from, size_t bytes,
		      enum cudaMemcpyKind kind)
{
	return cuda_keep(device, device->api->MemcpyAsync(to, from, bytes, kind, stream), "cudaMemcpyAsync");
}

static int record_event(struct kern_device *device, cudaEvent_t event, cudaStream_t stream)
{
	return cuda_keep(device, device->api->EventRecord(event, stream), "cudaEventRecord");
}

/* One piece to the device through a bounce buffer: on return the caller's memory has been read. */
static int bounce_up(struct kern_device *device, cudaStream_t stream, void *to, const void *from, size_t bytes)
{
	unsigned i;

	assert(bytes <= CUDA_PIECE_BYTES);
	pthread_mutex_lock(&device->bounce_lock);
	int r = next_bounce(device, &i);
	if (r == 0) {
		memcpy(device->bounce[i], from, bytes);
		r = start_copy(device, stream, to, device->bounce[i], bytes, cudaMemcpyHostToDevice);
	}
	if (r == 0)
		r = record_event(device, device->bounced[i], stream);
	pthread_mutex_unlock(&device->bounce_lock);
	return r;
}

/* One piece from the device, which is there on return. */
static int bounce_down(struct kern_device *device, cudaStream_t stream, void *to, const void *from, size_t bytes)
{
	unsigned i;

	assert(bytes <= CUDA_PIECE_BYTES);
	pthread_mutex_lock(&device->bounce_lock);
	int r = next_bounce(device, &i);
	if (r == 0)
		r = start_copy(device, stream, device->bounce[i], from, bytes, cudaMemcpyDeviceToHost);
	if (r == 0)
		r = record_event(device, device->bounced[i], stream);
	if (r == 0)
		r = cuda_keep(device, device->api->EventSynchronize(device->bounced[i]), "cudaEventSynchronize");
	if (r == 0)
		memcpy(to, device->bounce[i], bytes);
	pthread_mutex_unlock(&device->bounce_lock);
	return r;
}

typedef int copy_piece(struct kern_device *device, cudaStream_t stream, void *to, const void *from, size_t bytes);

static int copy_up(struct kern_device *device, cudaStream_t stream, void *to, const void *from, size_t bytes)
{
	return start_copy(device, stream, to, from, bytes, cudaMemcpyHostToDevice);
}

static int in_pieces(struct kern_device *device, copy_piece *copy, cudaStream_t stream, void *to, const void *from,
		     size_t bytes)
{
	int r = 0;

	for (size_t at = 0, n; at < bytes && r == 0; at += n) {
		n = bytes - at < CUDA_PIECE_BYTES ? bytes - at : CUDA_PIECE_BYTES;
		r = copy(device, stream, (uint8_t *)to + at, (const uint8_t *)from + at, n);
	}
	return r;
}

/* ---- in line with the ops ---- */

/**
 * cuda_copy_async() - copies from or to device memory, or within it
 *
 * Registered host memory is the device's until the next fence. Memory that is not registered has been read, or written,
 * on return; for the latter all work so far was waited for. Not while a step is being recorded.
 *
 * Return: 0, -EINVAL: neither side is device memory, or -EIO: the device failed.
 */
int cuda_copy_async(struct kern_device *device, void *to, const void *from, size_t bytes)
{
	bool up = !cuda_is_device(device, from, bytes), down = !cuda_is_device(device, to, bytes);

	assert(device->recording == CUDA_EAGER);
	if (cuda_enter(device) < 0)
		return -EIO;
	if (!bytes)
		return 0;
	if (up && down)
		return -EINVAL;
	if (up)
		return cuda_is_registered(device, from, bytes) ?
			       start_copy(device, device->compute, to, from, bytes, cudaMemcpyHostToDevice) :
			       in_pieces(device, bounce_up, device->compute, to, from, bytes);
	if (down)
		return cuda_is_registered(device, to, bytes) ?
			       start_copy(device, device->compute, to, from, bytes, cudaMemcpyDeviceToHost) :
			       in_pieces(device, bounce_down, device->compute, to, from, bytes);
	return start_copy(device, device->compute, to, from, bytes, cudaMemcpyDeviceToDevice);
}

/* ---- beside the steps ---- */

static int take_slot(struct kern_device *device, unsigned *ret)
{
	uint32_t taken = __atomic_load_n(&device->uploads_taken, __ATOMIC_RELAXED);
	unsigned slot;

	do {
		for (slot = 0; slot < CUDA_UPLOADS && taken >> slot & 1; slot++)
			;
		if (slot == CUDA_UPLOADS)
			return -EAGAIN;
	} while (!__atomic_compare_exchange_n(&device->uploads_taken, &taken, taken | 1u << slot, false,
					      __ATOMIC_ACQUIRE, __ATOMIC_RELAXED));
	*ret = slot;
	return 0;
}

static void free_slot(struct kern_device *device, unsigned slot)
{
	__atomic_fetch_and(&device->uploads_taken, ~(1u << slot), __ATOMIC_RELEASE);
}

static void call_done(void *userdata)
{
	struct kern_upload *upload = userdata;

	upload->done(upload);
}

static int start_upload(struct kern_device *device, struct kern_upload *upload)
{
	const struct cuda_api *api = device->api;
	bool registered = cuda_is_registered(device, upload->from, upload->bytes);
	int r = in_pieces(device, registered ? copy_up : bounce_up, device->copy, upload->to, upload->from,
			  upload->bytes);

	if (r == 0)
		r = record_event(device, device->uploaded[upload->slot], device->copy);
	if (r == 0)
		r = cuda_keep(device, api->LaunchHostFunc(device->copy, call_done, upload), "cudaLaunchHostFunc");
	return r;
}

/**
 * cuda_upload() - starts to copy bytes to device memory, beside the steps
 *
 * From any thread; waits for other uploads only where the memory is not registered. The target must not be in use by a
 * step. done() is called on a thread of the driver's: it must be short and must not call the device. It may come before
 * this returns. When the device fails it never comes, and the bytes at `from` must stay until close().
 *
 * Every upload that was started is joined exactly once: that frees its slot. Usually after its done(), but join() need
 * not wait for it.
 *
 * Return: 0, -EAGAIN: CUDA_UPLOADS are not joined yet, or -EIO: the device failed. No done() or join() after these.
 */
int cuda_upload(struct kern_device *device, struct kern_upload *upload)
{
	unsigned slot;

	if (cuda_enter(device) < 0)
		return -EIO;
	int r = take_slot(device, &slot);
	if (r < 0)
		return r;
	upload->slot = slot;
	r = start_upload(device, upload);
	if (r < 0) {
		(void)device->api->StreamSynchronize(device->copy); /* nothing reads upload->from any more */
		free_slot(device, slot);
	}
	return r;
}

/**
 * cuda_join() - ops from now on see what was uploaded; not while a step is being recorded
 *
 * Return: 0, or -EIO: the device failed.
 */
int cuda_join(struct kern_device *device, struct kern_upload *upload)
{
	assert(device->recording == CUDA_EAGER);
	assert(upload->slot < CUDA_UPLOADS);
	int r = cuda_enter(device);
	if (r == 0)
		r = cuda_keep(device, device->api->StreamWaitEvent(device->compute, device->uploaded[upload->slot], 0),
			      "cudaStreamWaitEvent");
	free_slot(device, upload->slot);
	return r;
}
