/* SPDX-License-Identifier: MIT */
/*
 * Attention of prefills: tiles of at most KERN_TILE rows of sequences with more than one row, causal.
 *
 * bf16 keys and values run on the tensor cores: a block has one query head of a tile, a warp 16 of its rows. Keys and
 * values come in tiles of KEYS positions, the next one on its way while one is in use. Scores and probabilities of a
 * warp stay in its registers: what an mma leaves as sums is what the next one takes as its a, once rounded. Head sizes
 * are rounded up to E; the columns behind are zeros.
 *
 * f32, and head sizes whose rows are no whole 16-byte pieces: attention_simt(), with neighbouring rows as its queries.
 */
#include "kernels/cuda/attention.h"

#define SIMT_ROWS 8u
#define WARP_ROWS 16u
/* Threads of a block, and blocks an SM shall hold: told to ptxas, which else spills a few registers to hold more. */
#define MMA_BLOCKS_AN_SM(e) ((e) > 128 ? 2 : 3)
#define SIMT_BLOCKS_AN_SM 3

namespace
{

/* Of a tile: what fits into 48 KiB twice, keys and values. */
template <unsigned E> constexpr unsigned KEYS = E <= 64 ? 64 : E <= 128 ? 32 : 16;
/* Of a row in shared memory: an odd number of pieces, so that the rows of an ldmatrix lie in different banks. */
template <unsigned E> constexpr unsigned ROW_BYTES = (E * 2 / ATTENTION_PIECE | 1) * ATTENTION_PIECE;

struct rows { /* of a warp */
	uint32_t first;         /* in q and y */
	uint32_t position, end; /* of the first, behind the last of its 16 that is there */
};

/* Where a row's query of the block's head lies in q, and its result in y. */
DEV_INLINE size_t place(const struct rows *rows, const struct attention_shape *shape, uint32_t row)
{
	return ((size_t)(rows->first + row) * shape->n_heads + blockIdx.x) * shape->e;
}

/* q [16][E], scaled and rounded, as the a of E / 16 products. */
template <unsigned E>
DEV_INLINE void load_q(const struct rows *rows, const struct attention_shape *shape, const float *q, uint32_t (*ret)[4])
{
	uint32_t lane = threadIdx.x % DEV_WARP;

	for (unsigned k = 0; k < E / 16; ++k)
		for (unsigned i = 0; i < 4; ++i) {
			uint32_t row = lane / 4 + i % 2 * 8, col = k * 16 + i / 2 * 8 + lane % 4 * 2;
			struct dev_u32x2 pair = { { 0, 0 } };
			if (DEV_GUARD(rows->position + row < rows->end) &&
			    DEV_GUARD(col < shape->e))
				pair = dev_load8(q + place(rows, shape, row) + col);
			float lo = dev_float(pair.x[0]) * shape->scale, hi = dev_float(pair.x[1]) * shape->scale;
			ret[k][i] = dev_to_bf16x2(lo, hi);
		}
}

/* Keys and values from position `first` on, 8 rows of one of them at a time and warp. */
template <unsigned E>
DEV_INLINE void copy_tile(const struct attention_keys *kv, uint32_t first, uint32_t end, uint8_t *to)
{
	constexpr unsigned PARTS = KEYS<E> / 8;

	for (unsigned i = 0; i < 2 * PARTS / ATTENTION_WARPS; ++i) {
		uint32_t part = threadIdx.x / DEV_WARP + i * ATTENTION_WARPS;
		attention_copy(kv, part >= PARTS, first + part % PARTS * 8, end, 8, E * 2 / ATTENTION_PIECE,
			       to + part * 8 * ROW_BYTES<E>, ROW_BYTES<E>);
	}
}

/* scores [KEYS / 8][4] = q keys^T, as sums of mma: 16 rows x 8 keys each. */
template <unsigned E> DEV_INLINE void score(const uint32_t (*q)[4], const uint8_t *keys, float (*scores)[4])
{
	uint32_t lane = threadIdx.x % DEV_WARP;

	/* matrices: keys 0..7 x columns 0..7, x columns 8..15, keys 8..15 x columns 0..7, x columns 8..15 */
	keys += (lane / 16 * 8 + lane % 8) * ROW_BYTES<E> + lane / 8 % 2 * ATTENTION_PIECE;
	for (unsigned n = 0; n < KEYS<E> / 8; ++n)
		for (unsigned i = 0; i < 4; ++i)
			scores[n][i] = 0;
	for (unsigned k = 0; k < E / 16; ++k)
		for (unsigned n = 0; n < KEYS<E> / 16; ++n) {
			uint32_t b[4];
			dev_ldmatrix(b, keys + n * 16 * ROW_BYTES<E> + k * 2 * ATTENTION_PIECE);
			dev_mma_bf16(scores[2 * n], q[k], b);
			dev_mma_bf16(scores[2 * n + 1], q[k], b + 2);
		}
}

/* A lane's rows are lane / 4 and 8 below; most and sum are theirs. */
template <unsigned E>
DEV_INLINE void soften(const struct rows *rows, uint32_t first_key, float (*scores)[4], float most[2], float sum[2],
		       float (*mixed)[4])
{
	uint32_t lane = threadIdx.x % DEV_WARP;
	float now[2] = { most[0], most[1] }, down[2];

	if (rows->position + 1 < first_key + KEYS<E>) /* not all rows see all keys */
		for (unsigned n = 0; n < KEYS<E> / 8; ++n)
			for (unsigned i = 0; i < 4; ++i)
				if (first_key + n * 8 + lane % 4 * 2 + i % 2 > rows->position + lane / 4 + i / 2 * 8)
					scores[n][i] = -INFINITY;
	for (unsigned n = 0; n < KEYS<E> / 8; ++n)
		for (unsigned i = 0; i < 4; ++i)
			now[i / 2] = fmaxf(now[i / 2], scores[n][i]);
	for (unsigned i = 0; i < 2; ++i) {
		now[i] = fmaxf(now[i], dev_shuffle_xor(now[i], 1));
		now[i] = fmaxf(now[i], dev_shuffle_xor(now[i], 2));
		down[i] = exp2f((most[i] - now[i]) * ATTENTION_LOG2E);
		most[i] = now[i];
		sum[i] *= down[i];
	}
	for (unsigned n = 0; n < KEYS<E> / 8; ++n)
		for (unsigned i = 0; i < 4; ++i) {
			scores[n][i] = exp2f(scores[n][i] * ATTENTION_LOG2E - most[i / 2] * ATTENTION_LOG2E);
			sum[i / 2] += scores[n][i]; /* of the lane's columns; the lanes' sums are added at the end */
		}
	if (dev_vote(down[0] != 1 || down[1] != 1) == 0) /* mostly, once the largest keys were seen */
		return;
	for (unsigned n = 0; n < E / 8; ++n)
		for (unsigned i = 0; i < 4; ++i)
			mixed[n][i] *= down[i / 2];
}

/* mixed [E / 8][4] += probabilities x values, 16 rows x 8 columns each. */
template <unsigned E> DEV_INLINE void mix(const float (*probabilities)[4], const uint8_t *values, float (*mixed)[4])
{
	uint32_t lane = threadIdx.x % DEV_WARP;

	/* matrices, transposed: keys 0..7 x columns 0..7, keys 8..15, then both of columns 8..15 */
	values += lane % 16 * ROW_BYTES<E> + lane / 16 * ATTENTION_PIECE;
	for (unsigned k = 0; k < KEYS<E> / 16; ++k) {
		const float *lo = probabilities[2 * k], *hi = probabilities[2 * k + 1];
		uint32_t a[4] = { dev_to_bf16x2(lo[0], lo[1]), dev_to_bf16x2(lo[2], lo[3]), dev_to_bf16x2(hi[0], hi[1]),
				  dev_to_bf16x2(hi[2], hi[3]) };
		for (unsigned n = 0; n < E / 16; ++n) {
			uint32_t b[4];
			dev_ldmatrix_trans(b, values + k * 16 * ROW_BYTES<E> + n * 2 * ATTENTION_PIECE);
			dev_mma_bf16(mixed[2 * n], a, b);
			dev_mma_bf16(mixed[2 * n + 1], a, b + 2);
		}
	}
}

template <unsigned E>
DEV_INLINE void store(const struct rows *rows, const struct attention_shape *shape, const float (*mixed)[4],
		      const float sum[2], float *y)
{
	uint32_t lane = threadIdx.x % DEV_WARP;

	for (unsigned i = 0; i < 2; ++i) {
		uint32_t row = lane / 4 + i * 8;
		float all = sum[i] + dev_shuffle_xor(sum[i], 1);
		all += dev_shuffle_xor(all, 2);
		float inverse = 1 / all, *to = y + place(rows, shape, row) + lane % 4 * 2;
		for (unsigned n = 0; n < E / 8; ++n)
			if (DEV_GUARD(rows->position + row < rows->end) &&
			    DEV_GUARD(n * 8 < shape->e)) {
				to[n * 8] = mixed[n][2 * i] * inverse;
				to[n * 8 + 1] = mixed[n][2 * i + 1] * inverse;
			}
	}
}

/* Grid: heads, tiles. q, y [n][h][e]. */
template <unsigned E>
DEV_KERNEL(ATTENTION_THREADS, MMA_BLOCKS_AN_SM(E))
prefill_mma(const struct kern_step *step, struct attention_shape shape, const float *q, float *y)
{
	DEV_BOUNDS(ATTENTION_THREADS);
	constexpr unsigned HALF = KEYS<E> * ROW_BYTES<E>; /* bytes of a tile's keys, and of its values */
	uint32_t n_tile = gridDim.y - 1 - blockIdx.y;    /* a sequence's last tiles see most: they go first */

	if (!DEV_GUARD(n_tile < step->n_seq_tiles))
		return;
	const struct kern_tile tile = step->seq_tile[n_tile];
	const struct kern_seq seq = step->seq[tile.of];
	uint32_t head = blockIdx.x, own = tile.first_row + threadIdx.x / DEV_WARP * WARP_ROWS;
	uint32_t n_rows = seq.n_rows - tile.first_row < KERN_TILE ? seq.n_rows : tile.first_row + KERN_TILE;
	uint32_t end = seq.first_position + n_rows; /* of the keys that the tile sees */
	struct attention_keys kv = attention_keys(step, &shape, &seq, head / (shape.n_heads / shape.n_kv_heads), 2);
	struct rows rows = {};
	uint32_t a[E / 16][4];
	float mixed[E / 8][4] = {}, most[2] = { -INFINITY, -INFINITY }, sum[2] = {};

	rows.first = seq.first_row + own;
	rows.position = seq.first_position + own;
	rows.end = DEV_GUARD(own + WARP_ROWS < n_rows) ? rows.position + WARP_ROWS : end;
	copy_tile<E>(&kv, 0, end, dev_shared());
	dev_copy_commit();
	load_q<E>(&rows, &shape, q, a);
	for (uint32_t first = 0; first < end; first += KEYS<E>) {
		uint32_t half = first / KEYS<E> % 2;
		uint8_t *now = dev_shared() + half * 2 * HALF;

		DEV_COPY_WAIT(0);
		DEV_BARRIER(); /* and the tile before this one is used up */
		if (first + KEYS<E> < end)
			copy_tile<E>(&kv, first + KEYS<E>, end, dev_shared() + (half ^ 1) * 2 * HALF);
		dev_copy_commit();
		if (rows.position >= rows.end || first >= rows.end) /* all of the warp: nothing for it here */
			continue;
		float scores[KEYS<E> / 8][4];
		score<E>(a, now, scores);
		soften<E>(&rows, first, scores, most, sum, mixed);
		mix<E>(scores, now + HALF, mixed);
	}
	store<E>(&rows, &shape, mixed, sum, y);
}

/* Grid: heads, tiles x KERN_TILE / SIMT_ROWS. */
template <typename T>
DEV_KERNEL(ATTENTION_THREADS, SIMT_BLOCKS_AN_SM)
prefill_simt(const struct kern_step *step, struct attention_shape shape, struct attention_plan plan, const float *q,
	     float *y)
{
	DEV_BOUNDS(ATTENTION_THREADS);
	uint32_t n_tile = blockIdx.y / (KERN_TILE / SIMT_ROWS), head = blockIdx.x;

	if (!DEV_GUARD(n_tile < step->n_seq_tiles))
		return;
	const struct kern_tile tile = step->seq_tile[n_tile];
	const struct kern_seq seq = step->seq[tile.of];
	uint32_t row = tile.first_row + blockIdx.y % (KERN_TILE / SIMT_ROWS) * SIMT_ROWS;
	if (!DEV_GUARD(row < seq.n_rows))
		return;
	size_t at = ((size_t)(seq.first_row + row) * shape.n_heads + head) * shape.e;
	struct attention_job job = {};
	job.kv = attention_keys(step, &shape, &seq, head / (shape.n_heads / shape.n_kv_heads), sizeof(T));
	job.q = q + at;
	job.y = y + at;
	job.stride = shape.n_heads * shape.e;
	job.n = seq.n_rows - row < SIMT_ROWS ? seq.n_rows - row : SIMT_ROWS;
	job.e = shape.e;
	job.scale = shape.scale;
	job.end = seq.first_position + row + job.n;
	job.limit = seq.first_position + row + 1;
	job.limit_step = 1;
	attention_simt<T, SIMT_ROWS>(&job, &plan);
}

template <unsigned E> void start_mma(struct kern_device *device, const struct kern_attention *args)
{
	CUDA_LAUNCH(device, (prefill_mma<E>), dim3(args->n_heads, args->extent->n_seq_tiles), ATTENTION_THREADS,
		    4 * KEYS<E> * ROW_BYTES<E>, args->step, attention_shape(args), args->q, args->y);
}

template <typename T> void start_simt(struct kern_device *device, const struct kern_attention *args)
{
	struct attention_plan plan = attention_plan(args->kv->head_dim, sizeof(T), SIMT_ROWS);

	CUDA_LAUNCH(device, (prefill_simt<T>), dim3(args->n_heads, args->extent->n_seq_tiles * (KERN_TILE / SIMT_ROWS)),
		    ATTENTION_THREADS, plan.bytes, args->step, attention_shape(args), plan, args->q, args->y);
}

} /* namespace */

extern "C" void cuda_attention_prefill(struct kern_device *device, const struct kern_attention *args)
{
	uint32_t e = args->kv->head_dim;

	if (args->kv->dtype == KERN_F32)
		start_simt<float>(device, args);
	else if (e % 8 != 0) /* rows are no whole pieces */
		start_simt<uint16_t>(device, args);
	else if (e <= 64)
		start_mma<64>(device, args);
	else if (e <= 80)
		start_mma<80>(device, args);
	else if (e <= 96)
		start_mma<96>(device, args);
	else if (e <= 128)
		start_mma<128>(device, args);
	else
		start_mma<256>(device, args);
}
