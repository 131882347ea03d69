/* SPDX-License-Identifier: MIT */
/*
 * z = x A^T: the first half of a low-rank product, for every segment with its adapter's own rank
 *
 * A block takes a tile of a segment's rows, one of LORA_SPLITS pieces of their columns, and up to RANKS rows of A. With one
 * row a segment (decodes) time goes into reading A, each number once: many loads are under way before the first is used.
 *
 * Tensor cores (CUDA_BF16): ranks are the rows of the mma and rows of x its columns, so that a rank of 16 with one row is
 * one mma for 16 columns. The sum over k may run in any order as long as A and x agree: a lane's 16 bytes of a row are 8
 * neighbours, which two mma take as if they were the columns their layout names. So neither goes through shared memory.
 * The warps of a block take steps of 32 columns in turn; their sums meet in shared memory.
 *
 * Plain: a lane multiplies 8 columns of a few ranks and rows, and the lanes' sums are added up at the end.
 *
 * Which columns a lane adds up, and in which order, depends on the width of x alone: not on ranks, rows or the grid.
 */
#include "kernels/cuda/launch.h"

#include "kernels/cuda/lora.h"

namespace
{

#define RANKS 32u    /* of a block */
#define STEP 32u     /* columns of a warp's step on tensor cores */
#define FMA_RANKS 4u /* of a warp, in plain math */
#define FMA_STEP 256u

#define BLOCKS_AN_SM(plain) ((plain) ? 3 : 4) /* for enough bytes under way; leaves 168 or 128 registers */

struct shrink {
	const struct kern_step *step;
	const void *x;        /* [n][pitch], bf16 or f32 */
	float *scratch;       /* [planes][scratch rows][width] */
	size_t plane;         /* floats */
	uint32_t module, in, pitch, width;
};

struct piece { /* columns [from, end) of n rows times n_ranks rows of A */
	const uint8_t *a;     /* the first of them, column 0 */
	const void *x;
	float *z;             /* [.][width], of the first row and rank */
	bool adds;            /* to what is there */
	uint32_t n, n_ranks, from, end;
	uint32_t in, pitch, width;
};

DEV_INLINE void store(const struct piece *p, uint32_t row, uint32_t rank, float sum)
{
	float *z = p->z + (size_t)row * p->width + rank;

	*z = p->adds ? *z + sum : sum;
}

/* ---- tensor cores ---- */

/* Of a warp's sums in shared memory: [KERN_TILE][RANKS], shuffled so that neither side meets itself in a bank. */
DEV_INLINE uint32_t room_at(uint32_t row, uint32_t rank)
{
	return row * RANKS + (rank ^ (row / 2 % 4 * 8));
}

/* A lane's 8 columns of a row of x, in the order in which it has those of A. */
template <enum kern_dtype Dtype>
DEV_INLINE void load_x(const struct piece *p, uint32_t row, uint32_t k, unsigned t, uint32_t end, uint32_t ret[4])
{
	const uint16_t *x = (const uint16_t *)p->x + (DEV_GUARD(row < p->n) ? row : p->n - 1) * p->pitch + k;

	for (unsigned i = 0; i < (Dtype == KERN_F32 ? 2 : 1); ++i) {
		const unsigned column = lora_column<Dtype>(t, 4, 4 * i);

		if constexpr (Dtype == KERN_F32) {
			const struct dev_u32x2 v = DEV_GUARD(k + column < end) ? dev_load8(x + column) : dev_u32x2{};

			ret[2 * i] = v.x[0];
			ret[2 * i + 1] = v.x[1];
		} else {
			const struct dev_u32x4 v = DEV_GUARD(k + column < end) ? dev_load16(x + column) : dev_u32x4{};

			for (unsigned j = 0; j < 4; ++j)
				ret[j] = v.x[j];
		}
	}
}

/*
 * sum[m][n] += A x^T: `Deep` steps of a warp from column k on, whose loads are all under way at once; none from `end` on.
 * M: tiles of 16 ranks, N: of 8 rows. Ranks and rows that are not there are read as the last one, for nothing.
 */
template <enum kern_dtype Dtype, unsigned M, unsigned N, unsigned Deep, bool Last>
DEV_INLINE void multiply(const struct piece *p, uint32_t row, uint32_t k, uint32_t end, float sum[M][N][4])
{
	const unsigned lane = threadIdx.x % DEV_WARP, g = lane / 4, t = lane % 4;
	struct lora_eight<Dtype> a[Deep][M][2]; /* rows g and g + 8 of a tile */
	uint32_t x[Deep][N][4];

	for (unsigned u = 0; u < Deep; ++u) {
		const uint32_t at = k + u * LORA_WARPS * STEP;

		for (unsigned i = 0; i < 2 * M; ++i) {
			const uint32_t rank = DEV_GUARD(8 * i + g < p->n_ranks) ? 8 * i + g : p->n_ranks - 1;

			a[u][i / 2][i % 2] = lora_load<Dtype>(p->a + rank * (uint32_t)lora_stride<Dtype>(p->in), at, t, 4, end);
			if (Last)
				lora_trim<Dtype>(&a[u][i / 2][i % 2], at, t, 4, end);
		}
		for (unsigned n = 0; n < N; ++n)
			load_x<Dtype>(p, row + 8 * n + g, at, t, end, x[u][n]);
	}
	for (unsigned u = 0; u < Deep; ++u)
		for (unsigned m = 0; m < M; ++m)
			for (unsigned c = 0; c < 8; c += 4) { /* one mma takes columns c .. c + 3 of each lane's 8 */
				const struct lora_eight<Dtype> *of = a[u][m];
				const uint32_t word[4] = { lora_pair<Dtype>(of[0], c), lora_pair<Dtype>(of[1], c),
							   lora_pair<Dtype>(of[0], c + 2), lora_pair<Dtype>(of[1], c + 2) };

				for (unsigned n = 0; n < N; ++n)
					dev_mma_bf16(sum[m][n], word, x[u][n] + c / 2);
			}
}

/* This warp's steps of a piece for 8 N rows from `row` on, to its part of room. */
template <enum kern_dtype Dtype, unsigned M, unsigned N>
DEV_INLINE void shrink_warp(const struct piece *p, uint32_t row, unsigned warp, float *room)
{
	constexpr unsigned deep = N > 1 ? 1 : (Dtype == KERN_F32 ? 2 : 4) / M;
	const unsigned lane = threadIdx.x % DEV_WARP, g = lane / 4, t = lane % 4;
	const uint32_t full = p->end / STEP * STEP;
	float sum[M][N][4] = {};
	uint32_t k = p->from + warp * STEP;

	for (; k < full; k += deep * LORA_WARPS * STEP)
		multiply<Dtype, M, N, deep, false>(p, row, k, full, sum);
	if (p->from <= full && full < p->end && (full - p->from) / STEP % LORA_WARPS == warp)
		multiply<Dtype, M, N, 1, true>(p, row, full, p->end, sum);
	for (unsigned m = 0; m < M; ++m)
		for (unsigned n = 0; n < N; ++n)
			for (unsigned i = 0; i < 4; ++i)
				room[room_at(row + 8 * n + 2 * t + i % 2, 16 * m + 8 * (i / 2) + g)] = sum[m][n][i];
}

template <enum kern_dtype Dtype> DEV_INLINE void shrink_mma(const struct piece *p)
{
	const unsigned lane = threadIdx.x % DEV_WARP, warp = threadIdx.x / DEV_WARP;
	float *room = (float *)(void *)dev_shared(), *mine = room + warp * KERN_TILE * RANKS;

	if (p->n <= 8 && p->n_ranks <= 16)
		shrink_warp<Dtype, 1, 1>(p, 0, warp, mine);
	else if (p->n <= 8)
		shrink_warp<Dtype, 2, 1>(p, 0, warp, mine);
	for (uint32_t row = 0; p->n > 8 && row < p->n; row += 32) {
		if (p->n_ranks <= 16)
			shrink_warp<Dtype, 1, 4>(p, row, warp, mine);
		else
			shrink_warp<Dtype, 2, 4>(p, row, warp, mine);
	}
	DEV_BARRIER();
	for (uint32_t row = warp; row < p->n && DEV_GUARD(lane < p->n_ranks); row += LORA_WARPS) {
		float sum = 0;

		for (unsigned w = 0; w < LORA_WARPS; ++w)
			sum += room[w * KERN_TILE * RANKS + room_at(row, lane)];
		store(p, row, lane, sum);
	}
	DEV_BARRIER(); /* room may be used again */
}

/* ---- plain ---- */

DEV_INLINE void load_x(const struct piece *p, uint32_t row, uint32_t column, float ret[4])
{
	const float *x = (const float *)p->x + (size_t)(DEV_GUARD(row < p->n) ? row : p->n - 1) * p->pitch + column;
	const struct lora_four four = lora_read(x, DEV_GUARD(column < p->end) ? p->end - column : 0, p->in % 4 == 0);

	for (unsigned i = 0; i < 4; ++i)
		ret[i] = four.x[i];
}

/* FMA_RANKS ranks from `rank` on, N rows from `row` on, by one warp. */
template <enum kern_dtype Dtype, unsigned N>
DEV_INLINE void shrink_dots(const struct piece *p, uint32_t rank, uint32_t row)
{
	const unsigned lane = threadIdx.x % DEV_WARP;
	const size_t stride = lora_stride<Dtype>(p->in);
	float sum[FMA_RANKS][N] = {};

	for (uint32_t k = p->from; k < p->end; k += FMA_STEP) {
		struct lora_eight<Dtype> a[FMA_RANKS];

		for (unsigned r = 0; r < FMA_RANKS; ++r) {
			const uint32_t at = DEV_GUARD(rank + r < p->n_ranks) ? rank + r : p->n_ranks - 1;

			a[r] = lora_load<Dtype>(p->a + at * stride, k, lane, DEV_WARP, p->end);
			if (k + FMA_STEP > p->end)
				lora_trim<Dtype>(&a[r], k, lane, DEV_WARP, p->end);
		}
		for (unsigned n = 0; n < N; ++n)
			for (unsigned half = 0; half < 2; ++half) {
				float x[4];

				load_x(p, row + n, k + lora_column<Dtype>(lane, DEV_WARP, 4 * half), x);
				for (unsigned r = 0; r < FMA_RANKS; ++r)
					for (unsigned i = 0; i < 4; ++i)
						sum[r][n] = fmaf(lora_number<Dtype>(a[r], 4 * half + i), x[i], sum[r][n]);
			}
	}
	for (unsigned r = 0; r < FMA_RANKS; ++r)
		for (unsigned n = 0; n < N; ++n) {
			const float all = dev_warp_sum(sum[r][n]);

			if (lane == r * N + n && DEV_GUARD(rank + r < p->n_ranks) &&
			    DEV_GUARD(row + n < p->n))
				store(p, row + n, rank + r, all);
		}
}

template <enum kern_dtype Dtype> DEV_INLINE void shrink_fma(const struct piece *p)
{
	const unsigned warp = threadIdx.x / DEV_WARP;

	for (uint32_t rank = warp * FMA_RANKS; rank < p->n_ranks; rank += LORA_WARPS * FMA_RANKS) {
		if (p->n == 1)
			shrink_dots<Dtype, 1>(p, rank, 0);
		for (uint32_t row = 0; p->n > 1 && row < p->n; row += 4)
			shrink_dots<Dtype, 4>(p, rank, row);
	}
}

/* ---- both ---- */

/* grid: tiles, planes, and as many as share the ranks */
template <bool Plain, enum kern_dtype Dtype>
DEV_INLINE void shrink_block(const struct shrink *s, const struct lora_rows *rows, const struct kern_lora *lora)
{
	const uint32_t first_row = rows->segment->first_row + rows->first, scratch_row = rows->segment->scratch_row + rows->first;
	const uint32_t columns = ((s->in + LORA_SPLITS - 1) / LORA_SPLITS + STEP - 1) / STEP * STEP;
	struct piece p = {};

	p.x = (const uint8_t *)s->x + (size_t)first_row * s->pitch * (Plain ? sizeof(float) : sizeof(uint16_t));
	p.n = rows->n;
	p.in = s->in;
	p.pitch = s->pitch;
	p.width = s->width;
	for (uint32_t rank = blockIdx.z * RANKS; rank < lora->rank; rank += gridDim.z * RANKS) {
		p.a = (const uint8_t *)lora->a + rank * lora_stride<Dtype>(s->in);
		p.n_ranks = lora->rank - rank < RANKS ? lora->rank - rank : RANKS;
		for (unsigned split = blockIdx.y; split < LORA_SPLITS; split += gridDim.y) {
			p.from = split * columns;
			p.end = DEV_GUARD(p.from + columns < s->in) ? p.from + columns : s->in;
			p.z = s->scratch + (gridDim.y > 1 ? split * s->plane : 0) + (size_t)scratch_row * s->width + rank;
			p.adds = gridDim.y == 1 && split > 0;
			if constexpr (Plain)
				shrink_fma<Dtype>(&p);
			else
				shrink_mma<Dtype>(&p);
		}
	}
}

template <bool Plain> DEV_KERNEL(LORA_THREADS, BLOCKS_AN_SM(Plain)) lora_shrink(struct shrink s)
{
	DEV_BOUNDS(LORA_THREADS);
	const struct lora_rows rows = lora_tile(s.step, blockIdx.x);

	if (!DEV_GUARD(rows.n > 0))
		return;
	const struct kern_lora lora = rows.segment->modules[s.module];

	if (!DEV_GUARD(lora.a != NULL))
		return;
	if (lora.dtype == KERN_F32)
		shrink_block<Plain, KERN_F32>(&s, &rows, &lora);
	else if (lora.dtype == KERN_F16)
		shrink_block<Plain, KERN_F16>(&s, &rows, &lora);
	else
		shrink_block<Plain, KERN_BF16>(&s, &rows, &lora);
}

} /* namespace */

#define RANK_BLOCKS 16u /* at most, beside each other */

extern "C" void cuda_lora_shrink(struct kern_device *device, const void *args, unsigned part, unsigned n_parts)
{
	const struct kern_lora_shrink *a = (const struct kern_lora_shrink *)args;
	const bool plain = a->activation == CUDA_PLAIN;
	const unsigned rank_blocks = (a->extent->max_rank + RANKS - 1) / RANKS;
	const dim3 grid(a->extent->n_segment_tiles, lora_planes(a->extent, a->scratch_width, a->scratch_floats),
			rank_blocks < RANK_BLOCKS ? rank_blocks : RANK_BLOCKS);
	struct shrink s = {};

	(void)part, (void)n_parts;
	s.step = a->step;
	s.x = plain ? a->x : a->activated;
	s.scratch = a->scratch;
	s.plane = (size_t)a->extent->n_scratch_rows * a->scratch_width;
	s.module = a->module;
	s.in = a->in;
	s.pitch = plain ? a->in : (a->in + 7) / 8 * 8;
	s.width = a->scratch_width;
	if (plain)
		CUDA_LAUNCH(device, (lora_shrink<true>), grid, LORA_THREADS, 0, s);
	else
		CUDA_LAUNCH(device, (lora_shrink<false>), grid, LORA_THREADS, LORA_WARPS * KERN_TILE * RANKS * sizeof(float), s);
}
