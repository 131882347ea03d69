/* SPDX-License-Identifier: MIT */
/*
 * Attention of decodes: sequences with one row in the step. Bound by the bytes of keys and values, so the query heads
 * of a KV head share one pass over them, and long contexts are cut into splits, a block each: of device->split_positions
 * positions (a multiple of 16), or more where that made more than CUDA_SPLIT_MAX of them. The cut follows from the length
 * of the sequence alone, hence a row's bits do not follow the batch.
 *
 * A sequence of one split gets its result at once. Of more, each block leaves a record in device->partial,
 * [split][sequence][head][e + 2]: the sum of weight x value, the largest score (base 2) and the sum of weights;
 * combine() makes one of them.
 *
 * A grid is as large as the extent; what the step does not hold exits at once. The extent may count more positions than
 * a context has, but not more sequences than reserve() was told: so splits come first in the order of the records.
 */
#include "kernels/cuda/attention.h"

#define COMBINE_THREADS 64u
#define SPLIT_GRAIN 16u
/* Threads of a block, and blocks an SM shall hold: told to ptxas, which else spills a few registers to hold more. */
#define DECODE_BLOCKS_AN_SM(g) ((g) > 4 ? 3 : 4)

namespace
{

struct splits {
	uint32_t positions; /* of one, at least */
	float *partial;
};

/* Positions of one split of a sequence. */
DEV_INLINE uint32_t split_of(const struct splits *splits, uint32_t n_positions)
{
	uint32_t each = (n_positions + CUDA_SPLIT_MAX - 1) / CUDA_SPLIT_MAX;

	each = (each + SPLIT_GRAIN - 1) / SPLIT_GRAIN * SPLIT_GRAIN;
	return each > splits->positions ? each : splits->positions;
}

DEV_INLINE float *record(const struct splits *splits, const struct attention_shape *shape, uint32_t seq, uint32_t head,
			 uint32_t split)
{
	size_t number = ((size_t)split * gridDim.x + seq) * shape->n_heads + head;

	return splits->partial + number * (shape->e + 2);
}

/* Grid: sequences, query groups of at most G heads of one KV head, splits. q, y [n][h][e]. */
template <typename T, unsigned G>
DEV_KERNEL(ATTENTION_THREADS, DECODE_BLOCKS_AN_SM(G))
decode(const struct kern_step *step, struct attention_shape shape, struct attention_plan plan, struct splits splits,
       const float *q, float *y)
{
	DEV_BOUNDS(ATTENTION_THREADS);
	uint32_t heads = shape.n_heads / shape.n_kv_heads, groups = (heads + G - 1) / G;
	uint32_t kv_head = blockIdx.y / groups, of_group = blockIdx.y % groups * G, head = kv_head * heads + of_group;

	if (!DEV_GUARD(blockIdx.x < step->n_seqs))
		return;
	const struct kern_seq seq = step->seq[blockIdx.x];
	uint32_t n_positions = seq.first_position + 1, each = split_of(&splits, n_positions), first = blockIdx.z * each;
	if (seq.n_rows != 1 || !DEV_GUARD(first < n_positions))
		return;
	size_t at = ((size_t)seq.first_row * shape.n_heads + head) * shape.e;
	struct attention_job job = {};
	job.kv = attention_keys(step, &shape, &seq, kv_head, sizeof(T));
	job.q = q + at;
	job.y = y + at;
	job.stride = shape.e;
	job.record = n_positions > each ? record(&splits, &shape, blockIdx.x, head, blockIdx.z) : NULL;
	job.n = heads - of_group < G ? heads - of_group : G;
	job.e = shape.e;
	job.scale = shape.scale;
	job.first = first;
	job.end = n_positions - first < each ? n_positions : first + each;
	job.limit = n_positions;
	attention_simt<T, G>(&job, &plan);
}

/* Grid: sequences, heads. */
DEV_KERNEL(COMBINE_THREADS)
combine(const struct kern_step *step, struct attention_shape shape, struct splits splits, float *y)
{
	DEV_BOUNDS(COMBINE_THREADS);

	if (!DEV_GUARD(blockIdx.x < step->n_seqs))
		return;
	const struct kern_seq seq = step->seq[blockIdx.x];
	uint32_t n_positions = seq.first_position + 1, each = split_of(&splits, n_positions);
	uint32_t n = (n_positions + each - 1) / each;
	if (seq.n_rows != 1 || n == 1)
		return;
	const float *from = record(&splits, &shape, blockIdx.x, blockIdx.y, 0);
	size_t stride = (size_t)gridDim.x * shape.n_heads * (shape.e + 2); /* from split to split */
	float *to = y + ((size_t)seq.first_row * shape.n_heads + blockIdx.y) * shape.e;
	float *factor = (float *)dev_shared(); /* [n] */
	float most = -INFINITY, sum = 0;

	for (uint32_t i = 0; i < n; ++i)
		most = fmaxf(most, from[i * stride + shape.e]);
	for (uint32_t i = threadIdx.x; i < n; i += COMBINE_THREADS)
		factor[i] = exp2f(from[i * stride + shape.e] - most);
	DEV_BARRIER();
	for (uint32_t i = 0; i < n; ++i)
		sum += factor[i] * from[i * stride + shape.e + 1];
	float inverse = 1 / sum;
	for (uint32_t j = threadIdx.x; j < shape.e; j += COMBINE_THREADS) {
		float mixed = 0;
		for (uint32_t i = 0; i < n; ++i)
			mixed += factor[i] * from[i * stride + j];
		to[j] = mixed * inverse;
	}
}

struct splits splits_of(const struct kern_device *device)
{
	return { device->split_positions, device->partial };
}

template <typename T, unsigned G>
void start(struct kern_device *device, const struct kern_attention *args, uint32_t n_splits)
{
	const struct kern_kv_layout *kv = args->kv;
	uint32_t heads = args->n_heads / kv->n_kv_heads;
	struct attention_plan plan = attention_plan(kv->head_dim, sizeof(T), G);

	CUDA_LAUNCH(device, (decode<T, G>),
		    dim3(args->extent->n_seqs, kv->n_kv_heads * ((heads + G - 1) / G), n_splits), ATTENTION_THREADS,
		    plan.bytes, args->step, attention_shape(args), plan, splits_of(device), args->q, args->y);
}

template <typename T> void start_group(struct kern_device *device, const struct kern_attention *args, uint32_t n_splits)
{
	uint32_t heads = args->n_heads / args->kv->n_kv_heads;

	if (heads == 1)
		start<T, 1>(device, args, n_splits);
	else if (heads == 2)
		start<T, 2>(device, args, n_splits);
	else if (heads <= 4)
		start<T, 4>(device, args, n_splits);
	else
		start<T, 8>(device, args, n_splits);
}

/* The most splits that sequences of up to so many positions have: a shorter one can have more than the longest. */
uint32_t count_splits(uint32_t n_positions, uint32_t split_positions)
{
	uint32_t n = (n_positions + split_positions - 1) / split_positions;

	return n > CUDA_SPLIT_MAX ? CUDA_SPLIT_MAX : n > 0 ? n : 1;
}

} /* namespace */

extern "C" size_t cuda_attention_partial_floats(const struct kern_limits *limits, uint32_t split_positions)
{
	uint32_t n = count_splits(limits->context, split_positions);

	return n == 1 ? 0 : (size_t)limits->seqs * limits->n_heads * n * (limits->head_dim + 2);
}

extern "C" void cuda_attention_decode(struct kern_device *device, const struct kern_attention *args)
{
	uint32_t n_splits = count_splits(args->extent->n_positions, device->split_positions);

	if (args->kv->dtype == KERN_F32)
		start_group<float>(device, args, n_splits);
	else
		start_group<uint16_t>(device, args, n_splits);
	if (n_splits > 1)
		CUDA_LAUNCH(device, (combine), dim3(args->extent->n_seqs, args->n_heads), COMBINE_THREADS,
			    n_splits * sizeof(float), args->step, attention_shape(args), splits_of(device), args->y);
}
