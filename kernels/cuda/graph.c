/* SPDX-License-Identifier: MIT */
/*
 * Recorded steps
 *
 * A step of a few rows is hundreds of kernels of a few microseconds each, which the host can hardly start fast enough.
 * CUDA can record what is put on a stream and start it all at once, with the same arguments: everything that changes
 * from step to step must lie in device memory (struct kern_step does) and the launches must be large enough for every
 * step that shares the recording (struct kern_extent). What a key stands for is the caller's.
 *
 * A key is recorded when it comes for the second time. The first time its step runs as it is: kernels are loaded into
 * the device when they are first used, which a recording does not allow, and a key that never comes back is not worth
 * the work.
 *
 * Recording is for speed alone. Where any of it fails, the step runs eagerly, and so do all steps from then on.
 */
#include <assert.h>
#include <errno.h>

#include "kernels/cuda/device.h"

static struct cuda_graph *find(struct kern_device *device, uint64_t key)
{
	for (unsigned i = 0; i < CUDA_GRAPHS; i++) {
		struct cuda_graph *graph = &device->graph[i];
		if (graph->used && graph->key == key)
			return graph;
	}
	return NULL;
}

/* A graph that still runs is freed once it has ended: the driver sees to that. */
static void drop(struct kern_device *device, struct cuda_graph *graph)
{
	if (graph->exec)
		(void)device->api->GraphExecDestroy(graph->exec);
	*graph = (struct cuda_graph){ 0 };
}

static void note_key(struct kern_device *device, uint64_t key)
{
	struct cuda_graph *oldest = &device->graph[0];

	for (unsigned i = 1; i < CUDA_GRAPHS; i++)
		if (device->graph[i].used < oldest->used)
			oldest = &device->graph[i];
	drop(device, oldest);
	*oldest = (struct cuda_graph){ .key = key, .used = ++device->graph_clock };
}

/* Return: 1: from now on all steps run eagerly. */
static int give_up(struct kern_device *device)
{
	device->no_recording = true;
	(void)device->api->GetLastError(); /* or a later call would report it as its own */
	return 1;
}

/* 0: the step is under way, 1: it is not, -EIO. */
static int launch(struct kern_device *device, struct cuda_graph *graph)
{
	cudaError_t error = device->api->GraphLaunch(graph->exec, device->compute);

	graph->used = ++device->graph_clock;
	if (error == cudaErrorMemoryAllocation) { /* of the graph's own; other errors may be earlier kernels' */
		drop(device, graph);
		return give_up(device);
	}
	return cuda_keep(device, error, "cudaGraphLaunch");
}

/**
 * cuda_replay() - runs a recorded step again
 *
 * Return: 1: it is under way, 0: there is no recording for the key, -EIO: the device failed.
 */
int cuda_replay(struct kern_device *device, uint64_t key)
{
	struct cuda_graph *graph = find(device, key);

	assert(device->recording == CUDA_EAGER);
	int r = cuda_enter(device);
	if (r < 0 || !graph || !graph->exec || device->no_recording)
		return r;
	r = launch(device, graph);
	return r < 0 ? r : !r;
}

/**
 * cuda_record() - from now to cuda_play() ops are recorded, not run
 *
 * Only ops may come in between: no copies, joins or fences. Uploads on other threads go on.
 * Return: 0, or 1: not this time, ops run as ever and cuda_play() is nothing to do; -EIO: the device failed.
 */
int cuda_record(struct kern_device *device, uint64_t key)
{
	const struct cuda_api *api = device->api;

	assert(device->recording == CUDA_EAGER);
	int r = cuda_enter(device);
	if (r < 0)
		return r;
	if (device->no_recording)
		return 1;
	if (!find(device, key)) {
		note_key(device, key);
		return 1;
	}
	if (api->StreamBeginCapture(device->compute, cudaStreamCaptureModeThreadLocal) != cudaSuccess)
		return give_up(device);
	device->recording = CUDA_RECORDING;
	device->recording_key = key;
	return 0;
}

/* What was recorded, ready to run; 0 or 1: it was in vain. */
static int end_recording(struct kern_device *device, cudaGraphExec_t *ret)
{
	const struct cuda_api *api = device->api;
	bool broken = device->recording == CUDA_RECORDING_BROKEN;
	cudaGraph_t graph = NULL;
	cudaGraphExec_t exec = NULL;

	device->recording = CUDA_EAGER;
	cudaError_t error = api->StreamEndCapture(device->compute, &graph);
	if (error == cudaSuccess && !broken)
		error = api->GraphInstantiate(&exec, graph, 0);
	if (graph)
		(void)api->GraphDestroy(graph);
	if (error != cudaSuccess || broken)
		return give_up(device);
	*ret = exec;
	return 0;
}

/**
 * cuda_play() - ends a recording, keeps it and runs it
 *
 * Return: 0: the step is under way, 1: it is not: the caller runs its ops again, as they are; -EIO: the device failed
 */
int cuda_play(struct kern_device *device)
{
	struct cuda_graph *graph = find(device, device->recording_key);
	cudaGraphExec_t exec;

	if (device->recording == CUDA_EAGER) /* cuda_record() declined, so the ops have run */
		return cuda_failed(device) ? -EIO : 0;
	assert(graph);
	int r = end_recording(device, &exec);
	if (r != 0)
		return r;
	if (graph->exec)
		(void)device->api->GraphExecDestroy(graph->exec);
	graph->exec = exec;
	return cuda_failed(device) ? -EIO : launch(device, graph); /* ops do nothing on a failed device: half a step */
}

/** cuda_release_graphs() - all of them, at the end */
void cuda_release_graphs(struct kern_device *device)
{
	for (unsigned i = 0; i < CUDA_GRAPHS; i++)
		drop(device, &device->graph[i]);
}
