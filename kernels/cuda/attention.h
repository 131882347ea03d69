/* SPDX-License-Identifier: MIT */
/*
 * What the attention kernels share: where keys and values lie, how they come to shared memory, attention in plain f32.
 *
 * - Keys and values are copied in runs of 4 or 8 positions that never cross a KV block: runs are aligned, and
 *   block_tokens is a multiple of 16.
 * - Rows behind the last position walked are zeros in shared memory: what lies in the KV block there is not read.
 * - attention_simt(): up to G queries share one pass over keys and values, by one block of 128 threads. They are the
 *   heads of a group in one row (decode), or neighbouring rows of one head (prefill in f32, or of odd head sizes).
 * - Scores and sums are f32; weights are in base 2: exp2f(q k log2(e) / sqrt(e) - most). Sums run in an order that
 *   follows from the head size and the first position alone.
 */
#ifndef LORAD_KERNELS_CUDA_ATTENTION_H
#define LORAD_KERNELS_CUDA_ATTENTION_H

#include <math.h>

#include "kernels/cuda/launch.h"

#define ATTENTION_THREADS 128u
#define ATTENTION_WARPS (ATTENTION_THREADS / DEV_WARP)
#define ATTENTION_PIECE 16u /* bytes that move at once */
#define ATTENTION_LOG2E 1.44269504f

struct attention_shape { /* as a kernel gets it */
	uint32_t layer_offset, block_tokens, n_heads, n_kv_heads, e;
	float scale; /* 1 / sqrt(e) */
};

struct attention_keys { /* keys and values of one KV head of one sequence */
	void *const *block;         /* the sequence's, in order of position */
	uint32_t keys, values;      /* offsets in a block */
	uint32_t block_tokens, row_bytes;
};

struct attention_plan { /* shared memory of attention_simt() */
	uint32_t pieces;            /* of a row of keys or values, the last one filled up with zeros */
	uint32_t row_bytes;         /* odd number of pieces: rows below one another lie in different banks */
	uint32_t tokens;            /* of a tile: 32, or 16 where rows are long */
	uint32_t slots;             /* tiles of keys or of values under way or in use: 2, 4 or 8 */
	uint32_t bytes;             /* all of it */
};

struct attention_job { /* n queries, each [e], over positions [first, end) */
	struct attention_keys kv;
	const float *q;
	float *y;                   /* where the result of query 0 goes */
	uint32_t stride;            /* floats from one query to the next, in q and y */
	float *record;              /* or NULL: sums in place of results, [n][e + 2]: [e], maximum, weights' sum */
	uint32_t n, e, first, end;
	float scale;                /* of scores */
	uint32_t limit, limit_step; /* query i sees positions < limit + i * limit_step */
};

static inline struct attention_shape attention_shape(const struct kern_attention *args)
{
	const struct kern_kv_layout *kv = args->kv;

	return { (uint32_t)(args->layer * kv->layer_bytes), kv->block_tokens, args->n_heads, kv->n_kv_heads,
		 kv->head_dim, 1 / sqrtf((float)kv->head_dim) };
}

/* group: queries of a block; number: bytes of a stored number. */
static inline struct attention_plan attention_plan(uint32_t e, uint32_t number, uint32_t group)
{
	uint32_t per_piece = ATTENTION_PIECE / number, pieces = (e + per_piece - 1) / per_piece;
	uint32_t row_bytes = (pieces | 1) * ATTENTION_PIECE, tokens = pieces > 32 ? 16 : 32, slots = 2;
	uint32_t room = group * ATTENTION_THREADS * per_piece * sizeof(float); /* at the end, in place of the slots */
	uint32_t small = (pieces * per_piece + (ATTENTION_WARPS + 1) * DEV_WARP + 4) * group * sizeof(float);

	while (slots < 8 && 2 * slots * tokens * row_bytes <= 38 * 1024)
		slots *= 2;
	if (room < slots * tokens * row_bytes)
		room = slots * tokens * row_bytes;
	return { pieces, row_bytes, tokens, slots, small + room };
}

DEV_INLINE struct attention_keys attention_keys(const struct kern_step *step, const struct attention_shape *shape,
						const struct kern_seq *seq, uint32_t kv_head, uint32_t number)
{
	uint32_t row_bytes = shape->e * number, head_bytes = shape->block_tokens * row_bytes;
	uint32_t keys = shape->layer_offset + kv_head * head_bytes;

	return { step->kv_block + seq->block_index, keys, keys + shape->n_kv_heads * head_bytes, shape->block_tokens,
		 row_bytes };
}

DEV_INLINE const uint8_t *attention_locate(const struct attention_keys *kv, bool value, uint32_t position)
{
	const uint8_t *block = (const uint8_t *)kv->block[position / kv->block_tokens];

	return block + (value ? kv->values : kv->keys) + position % kv->block_tokens * kv->row_bytes;
}

/*
 * One warp's copy of n rows from `position` on, all in one KV block, to rows of `pieces` pieces in shared memory. Rows
 * from `end` on and pieces behind a row's own are zeros.
 */
DEV_INLINE void attention_copy(const struct attention_keys *kv, bool value, uint32_t position, uint32_t end, uint32_t n,
			       uint32_t pieces, uint8_t *to, uint32_t to_row_bytes)
{
	uint32_t lane = threadIdx.x % DEV_WARP, row = lane / pieces, piece = lane % pieces;
	/* a row that is not there needs an address too */
	const uint8_t *from = attention_locate(kv, value, DEV_GUARD(position < end) ? position : 0);

	while (row < n) {
		bool valid = DEV_GUARD(position + row < end) &&
			     DEV_GUARD(piece * ATTENTION_PIECE < kv->row_bytes);
		dev_copy_async(to + row * to_row_bytes + piece * ATTENTION_PIECE,
			       valid ? from + row * kv->row_bytes + piece * ATTENTION_PIECE : from, valid);
		row += DEV_WARP / pieces;
		piece += DEV_WARP % pieces;
		if (piece >= pieces) {
			piece -= pieces;
			++row;
		}
	}
}

/* The same number by number, for rows that are no whole pieces. T: float, or uint16_t for bf16, here and below. */
template <typename T>
DEV_INLINE void attention_copy_numbers(const struct attention_keys *kv, bool value, uint32_t position, uint32_t end,
				       uint32_t n, uint32_t pieces, uint8_t *to, uint32_t to_row_bytes)
{
	uint32_t lane = threadIdx.x % DEV_WARP;
	uint32_t e = kv->row_bytes / sizeof(T), width = pieces * ATTENTION_PIECE / sizeof(T);
	const T *from = (const T *)attention_locate(kv, value, DEV_GUARD(position < end) ? position : 0);

	for (uint32_t row = 0; row < n; ++row)
		for (uint32_t j = lane; j < width; j += DEV_WARP) {
			bool valid = DEV_GUARD(position + row < end) &&
				     DEV_GUARD(j < e);
			((T *)(to + row * to_row_bytes))[j] = valid ? from[row * e + j] : (T)0;
		}
}

/* A piece's numbers. */
template <typename T> DEV_INLINE void attention_numbers(const void *piece, float ret[ATTENTION_PIECE / sizeof(T)])
{
	struct dev_u32x4 v = dev_load16(piece);

	for (unsigned i = 0; i < 4; ++i)
		if constexpr (sizeof(T) == sizeof(float)) {
			ret[i] = dev_float(v.x[i]);
		} else {
			ret[2 * i] = dev_float(v.x[i] << 16);
			ret[2 * i + 1] = dev_float(v.x[i] & 0xffff0000u);
		}
}

/* Keys and values take turns: unit 2i is the keys of tile i, unit 2i + 1 its values; unit u lies in slot u % slots. */
template <typename T>
DEV_INLINE void attention_copy_unit(const struct attention_job *job, const struct attention_plan *plan, uint8_t *slots,
				    uint32_t unit)
{
	uint32_t n = plan->tokens / ATTENTION_WARPS, row = threadIdx.x / DEV_WARP * n;
	uint32_t tile = job->first + unit / 2 * plan->tokens;
	uint8_t *to = slots + (unit % plan->slots * plan->tokens + row) * plan->row_bytes;

	if (tile < job->end && job->kv.row_bytes % ATTENTION_PIECE == 0)
		attention_copy(&job->kv, unit % 2, tile + row, job->end, n, plan->pieces, to, plan->row_bytes);
	else if (tile < job->end)
		attention_copy_numbers<T>(&job->kv, unit % 2, tile + row, job->end, n, plan->pieces, to,
					  plan->row_bytes);
	dev_copy_commit(); /* an empty group, behind the last unit: groups and units stay in step */
}

/* All threads: unit is there, and the slot of the one before it is free and filled anew. Returns unit's slot. */
template <typename T>
DEV_INLINE const uint8_t *attention_next(const struct attention_job *job, const struct attention_plan *plan,
					 uint8_t *slots, uint32_t unit)
{
	/* slots - 1 groups were committed before unit 0's turn, then one each turn */
	if (plan->slots == 8)
		DEV_COPY_WAIT(6);
	else if (plan->slots == 4)
		DEV_COPY_WAIT(2);
	else
		DEV_COPY_WAIT(0);
	DEV_BARRIER();
	attention_copy_unit<T>(job, plan, slots, unit + plan->slots - 1);
	return slots + unit % plan->slots * plan->tokens * plan->row_bytes;
}

/* Lane: token; the pieces of the rows are dealt out to the warps. scores [warp][G][lane]: q k of a warp's pieces. */
template <typename T, unsigned G>
DEV_INLINE void attention_score(const struct attention_plan *plan, const float *q, const uint8_t *keys, float *scores)
{
	constexpr unsigned N = ATTENTION_PIECE / sizeof(T);
	uint32_t warp = threadIdx.x / DEV_WARP, lane = threadIdx.x % DEV_WARP;
	float sum[G] = {};

	keys += lane % plan->tokens * plan->row_bytes;
	for (uint32_t piece = warp; piece < plan->pieces; piece += ATTENTION_WARPS) {
		float k[N];
		attention_numbers<T>(keys + piece * ATTENTION_PIECE, k);
		for (unsigned i = 0; i < G; ++i)
			for (unsigned j = 0; j < N; j += 4) {
				float part[4];
				attention_numbers<float>(q + (i * plan->pieces + piece) * N + j, part);
				for (unsigned l = 0; l < 4; ++l)
					sum[i] += part[l] * k[j + l];
			}
	}
	for (unsigned i = 0; i < G; ++i)
		scores[(warp * G + i) * DEV_WARP + lane] = sum[i];
}

/*
 * Online softmax of a tile: warp w has queries w, w + 4, ..; most and sum are theirs so far. weights [token][G];
 * factor [G]: what earlier sums have to be multiplied by.
 */
template <unsigned G>
DEV_INLINE void attention_soften(const struct attention_job *job, const struct attention_plan *plan, uint32_t tile,
				 const float *scores, float *most, float *sum, float *weights, float *factor)
{
	uint32_t warp = threadIdx.x / DEV_WARP, lane = threadIdx.x % DEV_WARP;

	for (unsigned i = 0; i < (G + ATTENTION_WARPS - 1) / ATTENTION_WARPS; ++i) {
		uint32_t query = warp + i * ATTENTION_WARPS;
		if (!DEV_GUARD(query < G))
			continue;
		float score = 0;
		for (unsigned j = 0; j < ATTENTION_WARPS; ++j)
			score += scores[(j * G + query) * DEV_WARP + lane];
		if (!DEV_GUARD(lane < plan->tokens) ||
		    !DEV_GUARD(tile + lane < job->end) ||
		    !DEV_GUARD(tile + lane < job->limit + query * job->limit_step))
			score = -INFINITY;
		float now = fmaxf(most[i], dev_warp_max(score)), weight = exp2f(score - now);
		float down = exp2f(most[i] - now);
		most[i] = now;
		sum[i] = sum[i] * down + dev_warp_sum(weight);
		weights[lane * G + query] = weight;
		if (lane == 0)
			factor[query] = down;
	}
}

/* Thread: one piece of the values, of every n-th token. mixed [G][numbers of the piece]. */
template <typename T, unsigned G>
DEV_INLINE void attention_mix(const struct attention_plan *plan, const uint8_t *values, const float *weights,
			      const float *factor, float (*mixed)[ATTENTION_PIECE / sizeof(T)])
{
	constexpr unsigned N = ATTENTION_PIECE / sizeof(T);
	uint32_t shares = ATTENTION_THREADS / plan->pieces, share = threadIdx.x / plan->pieces;

	if (share >= shares)
		return;
	for (unsigned i = 0; i < G; ++i) {
		float down = factor[i];
		for (unsigned j = 0; j < N; ++j)
			mixed[i][j] *= down;
	}
	values += threadIdx.x % plan->pieces * ATTENTION_PIECE;
	for (uint32_t token = share; token < plan->tokens; token += shares) {
		float v[N];
		attention_numbers<T>(values + token * plan->row_bytes, v);
		for (unsigned i = 0; i < G; ++i) {
			float weight = weights[token * G + i];
			for (unsigned j = 0; j < N; ++j)
				mixed[i][j] += weight * v[j];
		}
	}
}

/* Sums of all threads' shares, through room; sum [G]: the weights' sums, most [G]. */
template <typename T, unsigned G>
DEV_INLINE void attention_finish(const struct attention_job *job, const struct attention_plan *plan,
				 const float (*mixed)[ATTENTION_PIECE / sizeof(T)], const float *most, const float *sum,
				 float *room)
{
	constexpr unsigned N = ATTENTION_PIECE / sizeof(T);
	uint32_t shares = ATTENTION_THREADS / plan->pieces, share = threadIdx.x / plan->pieces;
	uint32_t width = plan->pieces * N;

	for (unsigned i = 0; i < G && DEV_GUARD(share < shares); ++i)
		for (unsigned j = 0; j < N; j += 4)
			dev_store16(room + (share * G + i) * width + threadIdx.x % plan->pieces * N + j,
				    { { dev_bits(mixed[i][j]), dev_bits(mixed[i][j + 1]), dev_bits(mixed[i][j + 2]),
					dev_bits(mixed[i][j + 3]) } });
	DEV_BARRIER();
	for (uint32_t i = 0; i < job->n; ++i) {
		float inverse = 1 / sum[i];
		for (uint32_t j = threadIdx.x; j < job->e; j += ATTENTION_THREADS) {
			float y = 0;
			for (uint32_t k = 0; k < shares; ++k)
				y += room[(k * G + i) * width + j];
			if (job->record)
				job->record[i * (job->e + 2) + j] = y;
			else
				job->y[i * job->stride + j] = y * inverse;
		}
		if (job->record && threadIdx.x == 0) {
			job->record[i * (job->e + 2) + job->e] = most[i];
			job->record[i * (job->e + 2) + job->e + 1] = sum[i];
		}
	}
}

/* Each query sees at least one position of the first tile. */
template <typename T, unsigned G>
DEV_INLINE void attention_simt(const struct attention_job *job, const struct attention_plan *plan)
{
	constexpr unsigned N = ATTENTION_PIECE / sizeof(T), OWN = (G + ATTENTION_WARPS - 1) / ATTENTION_WARPS;
	uint32_t width = plan->pieces * N;
	float *q = (float *)dev_shared();                         /* [G][width] */
	float *scores = q + G * width;                            /* [warps][G][32] */
	float *weights = scores + ATTENTION_WARPS * G * DEV_WARP; /* [32][G] */
	float *factor = weights + DEV_WARP * G, *all_most = factor + G, *all_sum = factor + 2 * G; /* [G] each */
	uint8_t *slots = (uint8_t *)(factor + 4 * G);             /* on 16 bytes, hence not 3 * G */
	float scale = ATTENTION_LOG2E * job->scale, most[OWN], sum[OWN] = {}, mixed[G][N] = {};
	uint32_t unit = 0;

	for (uint32_t i = 0; i + 1 < plan->slots; ++i)
		attention_copy_unit<T>(job, plan, slots, i);
	for (uint32_t i = 0; i < G; ++i)
		for (uint32_t j = threadIdx.x; j < width; j += ATTENTION_THREADS) {
			bool there = DEV_GUARD(i < job->n) &&
				     DEV_GUARD(j < job->e);
			q[i * width + j] = there ? job->q[i * job->stride + j] * scale : 0;
		}
	for (unsigned i = 0; i < OWN; ++i)
		most[i] = -INFINITY;
	for (uint32_t tile = job->first; tile < job->end; tile += plan->tokens) {
		attention_score<T, G>(plan, q, attention_next<T>(job, plan, slots, unit++), scores);
		DEV_BARRIER();
		attention_soften<G>(job, plan, tile, scores, most, sum, weights, factor);
		attention_mix<T, G>(plan, attention_next<T>(job, plan, slots, unit++), weights, factor, mixed);
	}
	for (unsigned i = 0; i < OWN; ++i) {
		uint32_t query = threadIdx.x / DEV_WARP + i * ATTENTION_WARPS;
		if (DEV_GUARD(query < G) && threadIdx.x % DEV_WARP == 0) {
			all_most[query] = most[i];
			all_sum[query] = sum[i];
		}
	}
	DEV_BARRIER(); /* the slots are free: groups behind the last unit are empty, no copy is under way */
	attention_finish<T, G>(job, plan, mixed, all_most, all_sum, (float *)slots);
}

#endif
