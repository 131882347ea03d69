/* SPDX-License-Identifier: MIT */
/*
 * y += scale z B: the second half of a low-rank product, for every segment with its adapter's own rank
 *
 * A block takes a tile of rows, all segments on them in order (lora.h), and PANEL columns; a warp columns of 64 at a time.
 * B goes from memory to registers, 16 ranks in one step, each number once for up to 16 rows (decodes) or 32.
 *
 * Lane l = 4 g + t reads ranks 2t, 2t + 1, 2t + 8, 2t + 9 of a step, of each the g-th eight columns (lora_column()). These
 * are b of an mma whose column g is one of the lane's eight; after eight mma all are done. z goes through shared memory,
 * scaled and as two bf16 terms, its value and what rounding left of it: two mma, and z is as good as f32.
 *
 * Plain: the same numbers of B, the same steps; a lane multiplies what it read, and the lanes of a g add up.
 */
#include "kernels/cuda/launch.h"

#include "kernels/cuda/lora.h"

namespace
{

#define COLUMNS 64u  /* of a warp at a time */
#define PANEL (2 * LORA_WARPS * COLUMNS)
#define STEP 16u     /* ranks */
#define STAGE 64u    /* ranks whose z lie in shared memory */
#define ROWS 32u     /* most rows there */
#define FMA_ROWS 4u
#define PITCH (STAGE + 8) /* bf16 of a row there: no two rows of an ldmatrix meet in a bank */
#define FMA_PITCH (STAGE + 2)
#define BLOCKS_AN_SM 3 /* for enough bytes under way; leaves 168 registers */

struct expand {
	const struct kern_step *step;
	const float *scratch; /* [planes][scratch rows][width] */
	float *y;             /* [n][out] */
	size_t plane;         /* floats */
	uint32_t module, planes, width, out;
};

struct part { /* of a block's work: rows [row, row + n) of its tile, this warp's columns from `column` on */
	const struct expand *e;
	const struct lora_rows *rows;
	uint32_t row, n, column;
};

/* ---- z ---- */

DEV_INLINE float z_number(const struct expand *e, const float *z)
{
	float piece[LORA_SPLITS], sum = 0;

	for (unsigned i = 0; i < LORA_SPLITS; ++i, z += e->plane)
		piece[i] = DEV_GUARD(i < e->planes) ? *z : 0;
	for (unsigned i = 0; i < LORA_SPLITS; ++i)
		sum += piece[i];
	return sum;
}

/*
 * To shared memory, by all threads: up to STAGE ranks of a segment from `first` on, scaled, for `height` rows; zeros for rows
 * and ranks that are not there, up to a whole step. Plain: f32 [height][FMA_PITCH]. Else bf16 [2][ROWS][PITCH], first the
 * values.
 */
template <bool Plain>
DEV_INLINE void stage(const struct part *p, const struct kern_segment *segment, uint32_t first, uint32_t height)
{
	const struct kern_lora *lora = segment->modules + p->e->module;
	const float *z = p->e->scratch + (size_t)(segment->scratch_row + p->rows->first + p->row) * p->e->width + first;
	const float scale = segment->scale * lora->scale;
	const uint32_t n_ranks = lora->rank - first;
	const uint32_t width = n_ranks < STAGE ? (n_ranks + STEP - 1) / STEP * STEP : STAGE;

	DEV_BARRIER(); /* what was there has been used */
	for (uint32_t i = threadIdx.x; i < height * width; i += LORA_THREADS) {
		const uint32_t row = i / width, rank = i % width;
		const bool there = DEV_GUARD(row < p->n) &&
				   DEV_GUARD(rank < n_ranks);
		const float x = there ? z_number(p->e, z + (size_t)row * p->e->width + rank) * scale : 0;

		if constexpr (Plain) {
			float *room = (float *)(void *)dev_shared() + row * FMA_PITCH + rank;

			*room = x;
		} else {
			uint16_t *room = (uint16_t *)(void *)dev_shared() + row * PITCH + rank;
			const uint16_t value = dev_to_bf16(x);

			room[0] = value;
			room[ROWS * PITCH] = dev_to_bf16(x - dev_from_bf16(value));
		}
	}
	DEV_BARRIER();
}

/* ---- B ---- */

/* This lane's four of n_ranks rows (at most 16 of them), its eight columns of 64. */
template <enum kern_dtype Dtype>
DEV_INLINE void load_b(const struct part *p, const uint8_t *b, uint32_t n_ranks, uint32_t column,
		       struct lora_eight<Dtype> ret[4])
{
	const unsigned lane = threadIdx.x % DEV_WARP, g = lane / 4, t = lane % 4;

	for (unsigned i = 0; i < 4; ++i) {
		const uint32_t row = 2 * t + i % 2 + i / 2 * 8;

		ret[i] = lora_load<Dtype>(b + row * (uint32_t)lora_stride<Dtype>(p->e->out), column, g, 8,
					  DEV_GUARD(row < n_ranks) ? p->e->out : 0);
	}
}

/* ---- y ---- */

/*
 * What a lane adds to a row of y: four times four columns, at these distances from its first. Two lanes (t and t ^ 1) share
 * 32 bytes and take 16 each, so that a warp's access touches whole sectors.
 */
template <enum kern_dtype Dtype> DEV_INLINE uint32_t strip_at(unsigned i)
{
	return Dtype == KERN_F32 ? i % 2 * 8 + i / 2 * 32 : i % 2 * 16 + i / 2 * 8;
}

struct strip {
	float *y;
	uint32_t n; /* columns that there are from the first on */
};

/* row: of the part. */
template <enum kern_dtype Dtype> DEV_INLINE struct strip strip(const struct part *p, uint32_t row, uint32_t column)
{
	const uint32_t t = threadIdx.x % 4, out = p->e->out;
	const uint32_t first = column + t / 2 * (2 * strip_at<Dtype>(1)) + t % 2 * 4;
	const uint32_t y_row = p->rows->segment->first_row + p->rows->first + p->row + row;

	const bool there = DEV_GUARD(row < p->n) &&
			   DEV_GUARD(first < out);

	return { p->e->y + (size_t)y_row * out + first, there ? out - first : 0 };
}

/* All is read before anything is written: the compiler cannot know that no two are the same. */
template <enum kern_dtype Dtype>
DEV_INLINE void add_wide(const struct strip strips[2], const struct lora_four sum[2][4])
{
	struct dev_u32x4 y[2][4] = {};

	for (unsigned i = 0; i < 8; ++i)
		if (DEV_GUARD(strip_at<Dtype>(i % 4) < strips[i / 4].n))
			y[i / 4][i % 4] = dev_load16(strips[i / 4].y + strip_at<Dtype>(i % 4));
	for (unsigned i = 0; i < 8; ++i) {
		for (unsigned j = 0; j < 4; ++j)
			y[i / 4][i % 4].x[j] = dev_bits(dev_float(y[i / 4][i % 4].x[j]) + sum[i / 4][i % 4].x[j]);
		if (DEV_GUARD(strip_at<Dtype>(i % 4) < strips[i / 4].n))
			dev_store16(strips[i / 4].y + strip_at<Dtype>(i % 4), y[i / 4][i % 4]);
	}
}

/* Rows that are not aligned. */
template <enum kern_dtype Dtype>
DEV_INLINE void add_narrow(const struct strip strips[2], const struct lora_four sum[2][4])
{
	for (unsigned i = 0; i < 8; ++i)
		for (unsigned j = 0; j < 4; ++j)
			if (DEV_GUARD(strip_at<Dtype>(i % 4) + j < strips[i / 4].n))
				strips[i / 4].y[strip_at<Dtype>(i % 4) + j] += sum[i / 4][i % 4].x[j];
}

/* ---- tensor cores ---- */

/* A lane's 16 numbers of a row (half 0: g, 1: g + 8), of eight mma, to its strip: half of them go to its neighbour. */
template <enum kern_dtype Dtype>
DEV_INLINE void trade(const float d[8][4], unsigned half, struct lora_four sum[4])
{
	const unsigned odd = threadIdx.x % 2;

	for (unsigned k = 0; k < 2; ++k) /* the lane's 32 bytes number k */
		for (unsigned j = 0; j < 4; ++j) {
			const float lower = Dtype == KERN_F32 ? d[4 * k + j][2 * half] : d[j][2 * half + k];
			const float upper = Dtype == KERN_F32 ? d[4 * k + j][2 * half + 1] : d[4 + j][2 * half + k];
			const float keep = odd ? upper : lower, got = dev_shuffle_xor(odd ? lower : upper, 1);

			sum[2 * k].x[j] = odd ? got : keep;
			sum[2 * k + 1].x[j] = odd ? keep : got;
		}
}

/*
 * Segments from number s on, as long as they are of this type; returns the first that is not. M: tiles of 16 rows, B: of
 * COLUMNS columns, LORA_WARPS * COLUMNS apart.
 */
template <enum kern_dtype Dtype, unsigned M, unsigned B> DEV_INLINE uint32_t expand_mma(const struct part *p, uint32_t s)
{
	const unsigned lane = threadIdx.x % DEV_WARP, g = lane / 4;
	const uint16_t *room = (const uint16_t *)(void *)dev_shared() + lane % 16 * PITCH + lane / 16 * 8;
	float sum[B][M][8][4] = {};

	for (; s < p->rows->n_segments; ++s) {
		const struct kern_segment *segment = p->rows->segment + s;
		const struct kern_lora *lora = segment->modules + p->e->module;
		const uint32_t n_ranks = lora->rank;
		const uint8_t *at = (const uint8_t *)lora->b;

		if (!lora->a)
			continue;
		if (lora->dtype != Dtype)
			break;
		for (uint32_t rank = 0; rank < n_ranks; rank += STEP, at += STEP * lora_stride<Dtype>(p->e->out)) {
			struct lora_eight<Dtype> b[B][4];
			uint32_t value[M][4], rest[M][4];

			for (unsigned i = 0; i < B; ++i)
				load_b<Dtype>(p, at, n_ranks - rank, p->column + i * LORA_WARPS * COLUMNS, b[i]);
			if (rank % STAGE == 0)
				stage<false>(p, segment, rank, 16 * M);
			for (unsigned m = 0; m < M; ++m) {
				dev_ldmatrix(value[m], room + 16 * m * PITCH + rank % STAGE);
				dev_ldmatrix(rest[m], room + (ROWS + 16 * m) * PITCH + rank % STAGE);
			}
			for (unsigned i = 0; i < B; ++i)
				for (unsigned c = 0; c < 8; ++c) {
					const uint32_t word[2] = { lora_pair<Dtype>(b[i][0], b[i][1], c),
								   lora_pair<Dtype>(b[i][2], b[i][3], c) };

					for (unsigned m = 0; m < M; ++m) {
						dev_mma_bf16(sum[i][m][c], value[m], word);
						dev_mma_bf16(sum[i][m][c], rest[m], word);
					}
				}
		}
	}
#pragma unroll
	for (unsigned i = 0; i < 2 * M * B; i += 2) {
		struct strip strips[2];
		struct lora_four four[2][4];

		for (unsigned j = 0; j < 2; ++j) {
			const unsigned block = (i + j) % B, half = (i + j) / B % 2, m = i / B / 2;

			trade<Dtype>(sum[block][m], half, four[j]);
			strips[j] = strip<Dtype>(p, 16 * m + 8 * half + g, p->column + block * LORA_WARPS * COLUMNS);
		}
		if (p->e->out % 4 == 0)
			add_wide<Dtype>(strips, four);
		else
			add_narrow<Dtype>(strips, four);
	}
	return s;
}

/* ---- plain ---- */

template <enum kern_dtype Dtype, unsigned N> DEV_INLINE uint32_t expand_fma(const struct part *p, uint32_t s)
{
	const unsigned lane = threadIdx.x % DEV_WARP, g = lane / 4, t = lane % 4;
	const float *room = (const float *)(void *)dev_shared() + 2 * t;
	float sum[N][8] = {};

	for (; s < p->rows->n_segments; ++s) {
		const struct kern_segment *segment = p->rows->segment + s;
		const struct kern_lora *lora = segment->modules + p->e->module;
		const uint32_t n_ranks = lora->rank;
		const uint8_t *at = (const uint8_t *)lora->b;

		if (!lora->a)
			continue;
		if (lora->dtype != Dtype)
			break;
		for (uint32_t rank = 0; rank < n_ranks; rank += STEP, at += STEP * lora_stride<Dtype>(p->e->out)) {
			struct lora_eight<Dtype> b[4];

			load_b<Dtype>(p, at, n_ranks - rank, p->column, b);
			if (rank % STAGE == 0)
				stage<true>(p, segment, rank, N);
			for (unsigned i = 0; i < 4; ++i)
				for (unsigned n = 0; n < N; ++n) {
					const float x = room[n * FMA_PITCH + rank % STAGE + i % 2 + i / 2 * 8];

					for (unsigned c = 0; c < 8; ++c)
						sum[n][c] = fmaf(x, lora_number<Dtype>(b[i], c), sum[n][c]);
				}
		}
	}
	for (unsigned n = 0; n < N; ++n)
		for (unsigned c = 0; c < 8; ++c) {
			sum[n][c] += dev_shuffle_xor(sum[n][c], 1);
			sum[n][c] += dev_shuffle_xor(sum[n][c], 2);
		}
	for (unsigned n = 0; n < N; ++n) { /* lane t: two columns of the g-th eight */
		float *y = p->e->y + (size_t)(p->rows->segment->first_row + p->rows->first + p->row + n) * p->e->out;

		for (unsigned i = 0; i < 2; ++i) {
			const uint32_t column = p->column + lora_column<Dtype>(g, 8, 4 * i + t);
			const float lower = t % 2 ? sum[n][4 * i + 1] : sum[n][4 * i];
			const float upper = t % 2 ? sum[n][4 * i + 3] : sum[n][4 * i + 2];

			if (DEV_GUARD(n < p->n) &&
			    DEV_GUARD(column < p->e->out))
				y[column] += t / 2 ? upper : lower;
		}
	}
	return s;
}

/* ---- both ---- */

/* Segments from s on that have this type, for all rows of the tile; returns the first that has not. */
template <bool Plain, enum kern_dtype Dtype>
DEV_INLINE uint32_t expand_block(const struct expand *e, const struct lora_rows *rows, uint32_t s)
{
	const uint32_t panel = blockIdx.y * PANEL, first = panel + threadIdx.x / DEV_WARP * COLUMNS;
	const bool few = rows->n <= (Plain ? 1 : 16);
	uint32_t height = Plain ? FMA_ROWS : ROWS, blocks = 1, ret = s;

	if (!Plain && Dtype == KERN_F32)
		height = 16; /* twice the registers for the same of B */
	else if (!Plain && few)
		blocks = 2;
	for (uint32_t row = 0; row < rows->n; row += height)
		for (uint32_t i = 0; i < 2 && panel + i * LORA_WARPS * COLUMNS < e->out; i += blocks) {
			const struct part p = { e, rows, row, rows->n - row, first + i * LORA_WARPS * COLUMNS };

			if constexpr (Plain)
				ret = few ? expand_fma<Dtype, 1>(&p, s) : expand_fma<Dtype, FMA_ROWS>(&p, s);
			else if constexpr (Dtype == KERN_F32)
				ret = expand_mma<Dtype, 1, 1>(&p, s);
			else
				ret = few ? expand_mma<Dtype, 1, 2>(&p, s) : expand_mma<Dtype, ROWS / 16, 1>(&p, s);
		}
	return ret;
}

/* grid: tiles, panels of columns */
template <bool Plain> DEV_KERNEL(LORA_THREADS, BLOCKS_AN_SM) lora_expand(struct expand e)
{
	DEV_BOUNDS(LORA_THREADS);
	const struct lora_rows rows = lora_group(e.step, blockIdx.x);

	/* Numbers of another type lie in other lanes, which add to what these wrote: stage()'s barriers are between. */
	for (uint32_t s = 0; rows.n > 0 && s < rows.n_segments;) {
		const struct kern_lora *lora = rows.segment[s].modules + e.module;

		if (!lora->a) {
			++s;
			continue;
		}
		if (lora->dtype == KERN_F32)
			s = expand_block<Plain, KERN_F32>(&e, &rows, s);
		else if (lora->dtype == KERN_F16)
			s = expand_block<Plain, KERN_F16>(&e, &rows, s);
		else
			s = expand_block<Plain, KERN_BF16>(&e, &rows, s);
	}
}

} /* namespace */

extern "C" void cuda_lora_expand(struct kern_device *device, const void *args, unsigned part, unsigned n_parts)
{
	const struct kern_lora_expand *a = (const struct kern_lora_expand *)args;
	const dim3 grid(a->extent->n_segment_tiles, (a->out + PANEL - 1) / PANEL);
	struct expand e = {};

	(void)part, (void)n_parts;
	e.step = a->step;
	e.scratch = a->scratch;
	e.y = a->y;
	e.plane = (size_t)a->extent->n_scratch_rows * a->scratch_width;
	e.module = a->module;
	e.planes = lora_planes(a->extent, a->scratch_width, a->scratch_floats);
	e.width = a->scratch_width;
	e.out = a->out;
	if (a->activation == CUDA_PLAIN)
		CUDA_LAUNCH(device, (lora_expand<true>), grid, LORA_THREADS, FMA_ROWS * FMA_PITCH * sizeof(float), e);
	else
		CUDA_LAUNCH(device, (lora_expand<false>), grid, LORA_THREADS, 2 * ROWS * PITCH * sizeof(uint16_t), e);
}
