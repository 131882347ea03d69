/* SPDX-License-Identifier: MIT */
/*
 * Each op of the CUDA backend on its smallest shapes, against the scalar reference: what tests/cudasim/mutate runs with
 * a site of a kernel switched off, to see that somebody notices. Arguments: families of ops; none: all of them.
 *
 * What a kernel could touch by mistake shall be seen: device memory has the exact size of what lies in it and holds
 * 0xff, the last row, segment or sequence of a step is one that does not fill its tile, and a step holds less than its
 * extent. Numbers are multiples of 1/128 below 1, which bf16 and f16 hold exactly, so there is little rounding to allow
 * for.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "kernels/cuda/lora.h"
#include "kernels/cuda/quant.h"
#include "tests/cudasim/engine.h"

static struct cuda_api api;
static struct kern_device device;
static unsigned n_failed;

static cudaError_t launch(const cudaLaunchConfig_t *c, const void *kernel, void **args)
{
	const unsigned grid[3] = { c->gridDim.x, c->gridDim.y, c->gridDim.z };
	const unsigned block[3] = { c->blockDim.x, c->blockDim.y, c->blockDim.z };

	return (cudaError_t)cudasim_run(kernel, grid, block, c->dynamicSmemBytes, args);
}

/* ---- memory ---- */

struct piece {
	uint8_t *base;
	size_t skew, bytes;
};

static std::vector<struct piece> pieces;

/* Device memory, until drop(). skew: bytes off 256. */
template <typename T> static T *room(size_t n, size_t skew = 0)
{
	void *base;
	size_t bytes = n * sizeof(T) > 0 ? n * sizeof(T) : 1;

	if (posix_memalign(&base, 256, skew + bytes) != 0)
		abort();
	memset(base, 0xff, skew + bytes);
	cudasim_memory((uint8_t *)base + skew, bytes, true);
	pieces.push_back({ (uint8_t *)base, skew, bytes });
	return (T *)((uint8_t *)base + skew);
}

template <typename T> static T *put(const std::vector<T> &from, size_t skew = 0)
{
	T *to = room<T>(from.size(), skew);

	if (!from.empty())
		memcpy((void *)to, (const void *)from.data(), from.size() * sizeof(T));
	return to;
}

static void drop(void)
{
	for (const struct piece &p : pieces) {
		cudasim_memory(p.base + p.skew, p.bytes, false);
		free(p.base);
	}
	pieces.clear();
}

/* ---- numbers ---- */

static uint32_t chance(uint32_t below)
{
	static uint64_t state = 88172645463325252u;

	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (uint32_t)(state >> 32) % below;
}

static float number(void)
{
	return ((float)chance(256) - 128) / 128;
}

static std::vector<float> numbers(size_t n)
{
	std::vector<float> ret(n);

	for (float &x : ret)
		x = number();
	return ret;
}

/* One that has no more bits than f16, and no denormal. */
static uint16_t half(float x)
{
	const uint32_t bits = dev_bits(x);

	return x == 0 ? 0 : (uint16_t)((bits >> 16 & 0x8000) | ((bits & 0x7fffffff) - 0x38000000) >> 13);
}

static void expect(bool yes, const char *what, size_t at)
{
	if (!yes && n_failed++ < 5)
		fprintf(stderr, "mutants: %s: number %zu is wrong\n", what, at);
}

/* NaN: nobody should have written there. */
static void compare(const char *what, const float *got, const std::vector<float> &want, float tolerance)
{
	float most = 1;

	for (float x : want)
		most = fmaxf(most, fabsf(x));
	for (size_t i = 0; i < want.size(); i++)
		expect(isnan(want[i]) ? isnan(got[i]) : fabsf(got[i] - want[i]) <= tolerance * most, what, i);
}

/* ---- weights: embed, activate, skinny, panel ---- */

struct table { /* the same matrix twice */
	struct kern_weight cuda, ref;
	std::vector<uint8_t> stored;
};

static void make_table(struct table *t, enum kern_dtype dtype, enum kern_precision precision, uint32_t rows,
		       uint32_t cols)
{
	const size_t block = dtype == KERN_Q8_0 ? 34 : dtype == KERN_Q4_0 ? 18 : dtype == KERN_Q4_1 ? 20 : 4;
	const bool packed = precision == KERN_PRECISION_INT8;

	t->stored.resize(rows * kern_row_bytes(dtype, cols));
	for (size_t at = 0; at < t->stored.size(); at += block) {
		const float x = number();
		const uint16_t scale[2] = { half((float)(1 + chance(100)) / 2048), half(-0.25f) };

		for (size_t i = 0; i < block; i++)
			t->stored[at + i] = (uint8_t)chance(256);
		if (dtype == KERN_F32)
			memcpy(&t->stored[at], &x, 4);
		else
			memcpy(&t->stored[at], scale, dtype == KERN_Q4_1 ? 4 : 2);
	}
	const struct kern_matrix m = { dtype, rows, cols, 0, t->stored.data() };
	if (cuda_weight_plan(&device, &m, precision, &t->cuda) != 0 ||
	    kern_ref.device->weight_plan(NULL, &m, packed ? KERN_PRECISION_BF16 : precision, &t->ref) != 0)
		abort();
	t->cuda.data = room<uint8_t>(t->cuda.bytes);
	cuda_weight_pack(&t->cuda, &m, 0, rows, t->cuda.data);
	t->ref.data = t->stored.data();
}

static const enum kern_dtype dtypes[] = { KERN_F32, KERN_Q8_0, KERN_Q4_0, KERN_Q4_1 };

static void test_embed(void)
{
	for (enum kern_dtype dtype : dtypes)
		for (uint32_t cols : { 5u, 8u, 160u }) {
			struct table t;
			struct kern_step step = {};
			struct kern_extent extent = {};

			if (dtype != KERN_F32 && cols != 160)
				continue;
			make_table(&t, dtype, dtype == KERN_F32 ? KERN_PRECISION_F32 : KERN_PRECISION_INT8, 18, cols);
			extent.n_rows = 5;
			step.n_rows = 3;
			step.token = put<uint32_t>({ 0, 17, 9 });
			std::vector<float> want(3 * cols);
			struct kern_embed a = { &t.cuda, put<struct kern_step>({ step }), room<float>(3 * cols),
						&extent };
			const struct kern_embed r = { &t.ref, &step, want.data(), &extent };
			cuda_embed(&device, &a, 0, 1);
			kern_ref.ops->embed(NULL, &r, 0, 1);
			compare("embed", a.x, want, 0);
			drop();
		}
}

static void test_activate(void)
{
	for (uint32_t cols : { 5u, 12u, 16u }) {
		const uint32_t n = 3, pitch = CUDA_DENSE_COLS(cols);
		const std::vector<float> x = numbers(n * cols);
		uint16_t *to = room<uint16_t>(n * pitch);
		const struct kern_activate a = { put(x), n, cols, CUDA_BF16, to };

		cuda_activate(&device, &a, 0, 1);
		for (uint32_t i = 0; i < n * pitch; i++) {
			const uint32_t col = i % pitch;

			expect(dev_from_bf16(to[i]) == (col < cols ? x[i / pitch * cols + col] : 0), "activate", i);
		}
		drop();
	}
}

/* Few columns, and so many that each warp's ring goes round. */
static void test_skinny(void)
{
	static const struct {
		uint32_t n, rows, cols;
	} shapes[] = { { 2, 40, 4256 }, { 9, 40, 2208 }, { 17, 40, 96 }, { 33, 72, 160 } };

	for (enum kern_dtype dtype : { KERN_Q8_0, KERN_Q4_0, KERN_Q4_1 })
		for (auto shape : shapes) {
			struct table t;
			const std::vector<float> x = numbers(shape.n * shape.cols);
			std::vector<float> want = numbers(shape.n * shape.rows);
			std::vector<uint16_t> activated(x.size());

			make_table(&t, dtype, KERN_PRECISION_INT8, shape.rows, shape.cols);
			for (size_t i = 0; i < x.size(); i++)
				activated[i] = dev_to_bf16(x[i]);
			struct kern_matmul a = { &t.cuda, NULL, put(activated), shape.n, shape.n != 9, put(want) };
			const struct kern_matmul r = { &t.ref, x.data(), NULL, a.n, a.accumulate, want.data() };
			cuda_skinny(&device, &a);
			kern_ref.ops->matmul(NULL, &r, 0, 1);
			compare("skinny", a.y, want, 1e-5f);
			drop();
		}
}

/* The last 18 rows of 50, all columns. */
static void test_panel(void)
{
	for (enum kern_dtype dtype : { KERN_Q8_0, KERN_Q4_0, KERN_Q4_1 })
		for (uint32_t cols : { 160u, 2208u }) {
			struct table t;
			struct kern_step step = {};
			const uint32_t n = 18;
			std::vector<float> want(n * cols);
			std::vector<uint32_t> token(n);
			uint16_t *to = room<uint16_t>(n * cols);

			make_table(&t, dtype, KERN_PRECISION_INT8, 32 + n, cols);
			for (uint32_t i = 0; i < n; i++)
				token[i] = 32 + i;
			step.n_rows = n;
			step.token = token.data();
			const struct kern_embed r = { &t.ref, &step, want.data(), NULL };
			kern_ref.ops->embed(NULL, &r, 0, 1);
			cuda_decode_panel(&device, &t.cuda, 32, n, to);
			for (size_t i = 0; i < want.size(); i++)
				expect(dev_from_bf16(to[i]) == want[i], "panel", i);
			drop();
		}
}

/* ---- adapters: shrink, expand, scale ---- */

#define N_ROWS 97u
#define N_SCRATCH 117u
#define WIDTH 40u /* the largest rank */

struct batch {
	struct kern_step *step;
	struct kern_extent extent;
};

/* modules: of the adapters 0..4, two each, of which the second is used. */
static struct batch make_batch(const struct kern_lora *modules)
{
	const std::vector<struct kern_segment> segment = {
		{ 0, 1, modules, 1.5f, 113 },  { 1, 3, modules + 2, 1, 110 },  { 4, 20, modules + 4, 0.5f, 0 },
		{ 4, 20, modules + 6, 2, 20 }, { 24, 70, modules + 8, 1, 40 }, { 94, 3, modules + 4, 1, 114 },
	};
	struct kern_step step = {};
	struct batch ret = {};

	step.n_rows = N_ROWS;
	step.n_segments = 6;
	step.segment = put(segment);
	step.segment_tile =
		put<struct kern_tile>({ { 0, 0 }, { 1, 0 }, { 2, 0 }, { 3, 0 }, { 4, 0 }, { 4, 64 }, { 5, 0 } });
	step.n_segment_tiles = 7;
	ret.step = put<struct kern_step>({ step });
	ret.extent.n_segment_tiles = 9;
	ret.extent.n_scratch_rows = N_SCRATCH;
	ret.extent.max_rank = WIDTH;
	return ret;
}

/* A matrix of an adapter: rows at a stride, with 0xff behind their ends. */
static void *make_low_rank(enum kern_dtype dtype, uint32_t rank, uint32_t width)
{
	const size_t stride = kern_lora_stride(dtype, width);
	uint8_t *to = room<uint8_t>(rank * stride);

	for (uint32_t i = 0; i < rank * width; i++) {
		const float x = number();
		const uint16_t bits = dtype == KERN_F16 ? half(x) : dev_to_bf16(x);
		uint8_t *at = to + i / width * stride;

		if (dtype == KERN_F32)
			memcpy(at + i % width * 4, &x, 4);
		else
			memcpy(at + i % width * 2, &bits, 2);
	}
	return to;
}

#define MIXED 9u /* each adapter is of another type */

static struct kern_lora *make_adapters(unsigned kind, uint32_t in, uint32_t out)
{
	static const uint16_t rank[5] = { 8, 8, 24, 1, WIDTH };
	struct kern_lora *modules = room<struct kern_lora>(10);

	for (unsigned i = 0; i < 5; i++) {
		const enum kern_dtype dtype = (enum kern_dtype)(kind == MIXED ? i % 3 : kind);
		struct kern_lora lora = { NULL, NULL, 0.25f * (float)(i + 1), rank[i], (uint8_t)dtype, 0, NULL };

		if (i != 1) { /* this one is not adapted */
			lora.a = make_low_rank(dtype, rank[i], in);
			lora.b = make_low_rank(dtype, rank[i], out);
		}
		modules[2 * i + 1] = lora;
	}
	return modules;
}

static void test_shrink(void)
{
	for (unsigned kind : { (unsigned)KERN_F32, (unsigned)KERN_BF16, MIXED })
		for (unsigned variant = 0; variant < 6; variant++) {
			const uint32_t in = variant / 2 == 0   ? 33
					    : variant / 2 == 1 ? 36
							       : 300,
				       pitch = CUDA_DENSE_COLS(in);
			const bool plain = variant % 2;
			const unsigned n_planes = in == 36 ? 1 : LORA_SPLITS;
			const struct batch b = make_batch(make_adapters(kind, in, 4));
			const std::vector<float> x = numbers(N_ROWS * in);
			std::vector<uint16_t> activated(N_ROWS * pitch, 0);
			std::vector<float> want(N_SCRATCH * WIDTH, NAN);
			const size_t plane = want.size();

			for (size_t i = 0; i < x.size(); i++)
				activated[i / in * pitch + i % in] = dev_to_bf16(x[i]);
			struct kern_lora_shrink a = { b.step,
						      1,
						      plain ? put(x) : NULL,
						      in,
						      WIDTH,
						      room<float>(n_planes * plane),
						      plain ? NULL : put(activated),
						      (uint8_t)(plain ? CUDA_PLAIN : CUDA_BF16),
						      n_planes * plane,
						      &b.extent };
			struct kern_lora_shrink r = a;
			r.x = x.data();
			r.scratch = want.data();
			cuda_lora_shrink(&device, &a, 0, 1);
			kern_ref.ops->lora_shrink(NULL, &r, 0, 1);
			for (size_t i = 0; i < plane; i++)
				for (unsigned k = 1; k < n_planes; k++)
					a.scratch[i] += a.scratch[k * plane + i];
			compare("shrink", a.scratch, want, 1e-5f);
			drop();
		}
}

static void test_expand(void)
{
	for (unsigned kind : { (unsigned)KERN_F32, (unsigned)KERN_BF16, MIXED })
		for (unsigned variant = 0; variant < 6; variant++) {
			const uint32_t out = variant / 2 == 0 ? 35 : variant / 2 == 1 ? 36 : 516;
			const unsigned n_planes = out == 36 ? 1 : LORA_SPLITS;
			const struct batch b = make_batch(make_adapters(kind, 4, out));
			const size_t plane = N_SCRATCH * WIDTH;
			std::vector<float> z(n_planes * plane, NAN), sum(plane, 0), want = numbers(N_ROWS * out);

			for (uint32_t s = 0; s < b.step->n_segments; s++) /* numbers where a shrink leaves some */
				for (uint32_t i = 0; i < b.step->segment[s].n_rows * n_planes; i++) {
					const size_t at = (b.step->segment[s].scratch_row + i / n_planes) * WIDTH;

					for (size_t k = at; k < at + b.step->segment[s].modules[1].rank; k++)
						sum[k] += z[i % n_planes * plane + k] = number();
				}
			struct kern_lora_expand a = { b.step,
						      1,
						      put(z),
						      WIDTH,
						      out,
						      put(want),
						      (uint8_t)(variant % 2 ? CUDA_PLAIN : CUDA_BF16),
						      z.size(),
						      &b.extent };
			struct kern_lora_expand r = a;
			r.scratch = sum.data();
			r.y = want.data();
			cuda_lora_expand(&device, &a, 0, 1);
			kern_ref.ops->lora_expand(NULL, &r, 0, 1);
			compare("expand", a.y, want, 1e-5f);
			drop();
		}
}

static void test_scale(void)
{
	for (uint32_t width : { 7u, 36u, 516u })
		for (size_t skew : { 0u, 4u }) {
			const struct batch b = make_batch(room<struct kern_lora>(10));
			std::vector<float> want = numbers(N_ROWS * width);
			std::vector<const float *> vector;

			for (unsigned i = 0; i < 6; i++)
				vector.push_back(i == 1 ? NULL : put(numbers(width), skew));
			struct kern_row_scale a = { b.step, put(vector), width, put(want), &b.extent };
			struct kern_row_scale r = a;
			r.y = want.data();
			cuda_row_scale(&device, &a, 0, 1);
			kern_ref.ops->row_scale(NULL, &r, 0, 1);
			compare("scale", a.y, want, 0);
			drop();
		}
}

/* ---- keys and values: write, copy, attention ---- */

struct share {
	uint32_t past, rows;
};

struct cache { /* a step, and the blocks of its sequences for both sides */
	struct kern_kv_layout kv;
	struct kern_step step;
	struct kern_extent extent;
	std::vector<uint32_t> row_seq, position;
	std::vector<struct kern_seq> seq;
	std::vector<void *> block, ref_block;
	std::vector<std::vector<uint8_t>> ref_store;
	size_t block_bytes;
};

#define N_LAYERS 2u
#define LAYER 1u

static void make_cache(struct cache *c, enum kern_dtype dtype, uint32_t n_kv_heads, uint32_t e,
		       const std::vector<struct share> &shares)
{
	const size_t layer_bytes = (size_t)2 * n_kv_heads * 16 * e * (dtype == KERN_F32 ? 4 : 2);

	c->kv = { dtype, 16, n_kv_heads, e, layer_bytes };
	c->block_bytes = N_LAYERS * layer_bytes;
	for (const struct share &s : shares) {
		c->seq.push_back({ c->extent.n_rows, s.rows, s.past, (uint32_t)c->block.size() });
		for (uint32_t i = 0; i < s.rows; i++) {
			c->row_seq.push_back((uint32_t)c->seq.size() - 1);
			c->position.push_back(s.past + i);
		}
		for (uint32_t i = 0; i < s.past + s.rows; i += 16) {
			c->block.push_back(room<uint8_t>(c->block_bytes));
			c->ref_store.push_back(std::vector<uint8_t>(c->block_bytes, 0xff));
			c->ref_block.push_back(c->ref_store.back().data());
		}
		c->extent.n_rows += s.rows;
		c->extent.n_single += s.rows == 1;
		c->extent.n_positions = max(c->extent.n_positions, s.past + s.rows);
	}
	c->step.n_rows = c->extent.n_rows;
	c->step.n_seqs = (uint32_t)shares.size();
	c->extent.n_seqs = c->step.n_seqs + 2;
}

/* The step as kernels see it, or the reference. */
static struct kern_step *step_of(const struct cache *c, bool ref)
{
	struct kern_step step = c->step;

	step.position = put(c->position);
	step.row_seq = put(c->row_seq);
	step.seq = put(c->seq);
	step.kv_block = put(ref ? c->ref_block : c->block);
	return put<struct kern_step>({ step });
}

/* Where a number lies in a block of the backend's: docs/CUDA.md. */
static size_t place(const struct kern_kv_layout *kv, uint32_t value, uint32_t head, uint32_t token, uint32_t j)
{
	return ((size_t)(value * kv->n_kv_heads + head) * 16 + token) * kv->head_dim + j;
}

static float stored(enum kern_dtype dtype, const void *p, size_t i)
{
	return dtype == KERN_F32 ? ((const float *)p)[i] : dev_from_bf16(((const uint16_t *)p)[i]);
}

static void test_write(void)
{
	for (enum kern_dtype dtype : { KERN_F32, KERN_BF16 })
		for (uint32_t e : { 5u, 16u }) {
			struct cache c = {};

			make_cache(&c, dtype, 3, e, { { 14, 1 }, { 0, 19 }, { 31, 3 } });
			const std::vector<float> of[2] = { numbers(c.step.n_rows * 3 * e),
							   numbers(c.step.n_rows * 3 * e) };
			c.extent.n_rows += 2;
			const struct kern_kv_write a = { step_of(&c, false), &c.kv,	 LAYER,
							 put(of[0]),	     put(of[1]), &c.extent };
			cuda_kv_write(&device, &a, 0, 1);
			for (size_t i = 0; i < 2 * of[0].size(); i++) {
				const uint32_t value = i % 2, j = i / 2 % e, head = i / 2 / e % 3, row = i / 2 / e / 3;
				const uint32_t at = c.position[row],
					       block = c.seq[c.row_seq[row]].block_index + at / 16;

				expect(stored(dtype, (uint8_t *)c.block[block] + c.kv.layer_bytes,
					      place(&c.kv, value, head, at % 16, j)) == of[value][i / 2],
				       "kv_write", i);
			}
			drop();
		}
}

static void test_copy(void)
{
	for (size_t words : { 3u, 1030u }) {
		std::vector<void *> from, to;

		for (unsigned i = 0; i < 3; i++) {
			from.push_back(put(numbers(words * 4)));
			to.push_back(room<float>(words * 4));
		}
		const struct kern_kv_copy a = { put(from), put(to), 3, words * 16 };
		cuda_kv_copy(&device, &a, 0, 1);
		for (unsigned i = 0; i < 3; i++)
			expect(memcmp(from[i], to[i], words * 16) == 0, "kv_copy", i);
		drop();
	}
}

static void attend(enum kern_dtype dtype, uint32_t n_heads, uint32_t n_kv_heads, uint32_t e,
		   const std::vector<struct share> &shares)
{
	struct cache c = {};
	std::vector<struct kern_tile> tile;

	make_cache(&c, dtype, n_kv_heads, e, shares);
	for (uint32_t i = 0; i < c.step.n_seqs; i++)
		for (uint32_t row = 0; c.seq[i].n_rows > 1 && row < c.seq[i].n_rows; row += KERN_TILE)
			tile.push_back({ i, row });
	c.step.seq_tile = put(tile);
	c.step.n_seq_tiles = (uint32_t)tile.size();
	c.extent.n_seq_tiles = c.step.n_seq_tiles + (tile.size() > 0);
	const size_t n_q = (size_t)c.step.n_rows * n_heads * e;
	for (uint32_t i = 0; i < c.step.n_seqs; i++) /* keys and values of all positions */
		for (uint32_t p = 0; p < c.seq[i].first_position + c.seq[i].n_rows; p++)
			for (uint32_t k = 0; k < 2 * n_kv_heads * e; k++) {
				const uint32_t value = k % 2, j = k / 2 % e, head = k / 2 / e,
					       at = c.seq[i].block_index + p / 16;
				const size_t ref =
					value ? place(&c.kv, 1, head, p % 16, j) : (size_t)(head * e + j) * 16 + p % 16;
				float *to = (float *)((uint8_t *)c.block[at] + c.kv.layer_bytes);
				float *ref_to = (float *)((uint8_t *)c.ref_block[at] + c.kv.layer_bytes), x = number();

				if (dtype == KERN_F32)
					to[place(&c.kv, value, head, p % 16, j)] = ref_to[ref] = x;
				else
					((uint16_t *)to)[place(&c.kv, value, head, p % 16, j)] =
						((uint16_t *)ref_to)[ref] = dev_to_bf16(x);
			}
	const struct kern_limits limits = { 0, c.extent.n_seqs, 0, c.extent.n_positions, n_heads, e, 0 };
	device.split_positions = 48;
	device.partial = room<float>(cuda_attention_partial_floats(&limits, device.split_positions));
	c.extent.n_positions += 100; /* of a recorded step */
	std::vector<float> want(n_q);
	struct kern_attention a = { step_of(&c, false), &c.kv,	  LAYER, n_heads, put(numbers(n_q)),
				    room<float>(n_q),	&c.extent, nullptr, 0 };
	struct kern_attention r = a;
	r.step = step_of(&c, true);
	r.y = want.data();
	cuda_attention(&device, &a, 0, 1);
	kern_ref.ops->attention(NULL, &r, 0, 1);
	compare("attention", a.y, want, tile.size() > 0 && dtype == KERN_BF16 && e % 8 == 0 ? 1e-2f : 1e-5f);
	drop();
}

static void test_decode(void)
{
	static const struct {
		enum kern_dtype dtype;
		uint32_t n_heads, n_kv_heads, e;
	} shapes[] = { { KERN_F32, 2, 2, 16 },	{ KERN_BF16, 4, 2, 16 }, { KERN_BF16, 9, 3, 64 },
		       { KERN_BF16, 9, 1, 80 }, { KERN_F32, 3, 1, 132 }, { KERN_BF16, 6, 2, 12 },
		       { KERN_F32, 3, 1, 5 },	{ KERN_BF16, 1, 1, 20 }, { KERN_F32, 1, 1, 80 } };

	for (auto s : shapes)
		attend(s.dtype, s.n_heads, s.n_kv_heads, s.e,
		       { { 0, 1 }, { 15, 1 }, { 50, 1 }, { 129, 1 }, { 100, 1 } });
}

static void test_prefill(void)
{
	static const struct {
		enum kern_dtype dtype;
		uint32_t n_heads, n_kv_heads, e;
	} shapes[] = { { KERN_BF16, 3, 1, 64 }, { KERN_BF16, 2, 2, 40 },  { KERN_BF16, 1, 1, 72 },
		       { KERN_BF16, 1, 1, 88 }, { KERN_BF16, 1, 1, 104 }, { KERN_BF16, 1, 1, 136 },
		       { KERN_F32, 4, 2, 16 },	{ KERN_F32, 1, 1, 132 },  { KERN_BF16, 2, 1, 20 } };

	for (auto s : shapes)
		attend(s.dtype, s.n_heads, s.n_kv_heads, s.e, { { 5, 2 }, { 30, 70 }, { 3, 9 } });
}

/* ---- the rest: norm, rope, swiglu, sample ---- */

static void test_norm(void)
{
	for (uint32_t d : { 6u, 8u, 1027u, 1028u })
		for (bool gathers : { false, true }) {
			const uint32_t n = 3;
			const std::vector<float> x = numbers(n * d);
			std::vector<float> want(n * d);
			struct kern_rms_norm a = {
				put(x), put(numbers(d)),   gathers ? put<uint32_t>({ 2, 0, 2 }) : NULL, n, d,
				1e-5f,	room<float>(n * d)
			};
			struct kern_rms_norm r = a;
			r.y = want.data();
			cuda_rms_norm(&device, &a, 0, 1);
			kern_ref.ops->rms_norm(NULL, &r, 0, 1);
			compare("norm", a.y, want, 1e-5f);
			drop();
		}
}

static void test_rope(void)
{
	for (uint32_t e : { 6u, 8u }) {
		struct kern_step step = {};
		struct kern_extent extent = {};
		std::vector<float> want = numbers(3 * 3 * e);

		extent.n_rows = 5;
		step.n_rows = 3;
		step.position = put<uint32_t>({ 0, 3, 77 });
		struct kern_rope a = { put<struct kern_step>({ step }), put(numbers(e / 2)), 3, e, put(want), &extent };
		struct kern_rope r = a;
		for (uint32_t i = 0; i < e / 2; i++)
			((float *)a.inv_freq)[i] = 1 / (float)(i + 1);
		r.x = want.data();
		cuda_rope(&device, &a, 0, 1);
		kern_ref.ops->rope(NULL, &r, 0, 1);
		compare("rope", a.x, want, 1e-6f);
		drop();
	}
}

static void test_swiglu(void)
{
	for (uint32_t width : { 7u, 8u }) {
		std::vector<float> want(3 * width);
		struct kern_swiglu a = { put(numbers(want.size())), put(numbers(want.size())), 3, width,
					 room<float>(want.size()) };
		struct kern_swiglu r = a;
		r.y = want.data();
		cuda_swiglu(&device, &a, 0, 1);
		kern_ref.ops->swiglu(NULL, &r, 0, 1);
		compare("swiglu", a.y, want, 1e-6f);
		drop();
	}
}

static void sample_rows(uint32_t vocab, float spread, const std::vector<struct kern_sampling> &rows)
{
	const uint32_t n = (uint32_t)rows.size();
	std::vector<float> logits = numbers(n * vocab);
	std::vector<struct kern_result> want(n);
	std::vector<struct kern_sampling> sampling = rows;
	struct kern_step step = {};

	for (float &x : logits)
		x *= spread;
	for (struct kern_sampling &s : sampling)
		s.seen = put<uint32_t>({ vocab - 1, vocab, 0, vocab + 1000 });
	memset(want.data(), 0, n * sizeof(want[0]));
	step.n_outputs = n;
	step.sampling = put(sampling);
	step.result = put(want);
	const struct kern_sample a = { put<struct kern_step>({ step }), 0, n + 1, vocab, put(logits) };
	struct kern_sample r = a;
	const struct kern_result *got = step.result;
	step.result = want.data();
	r.step = &step;
	r.n = n;
	r.logits = logits.data();
	cuda_sample(&device, &a, 0, 1);
	kern_ref.ops->sample(NULL, &r, 0, 1);
	for (uint32_t i = 0; i < n; i++) {
		expect(got[i].token == want[i].token, "sample: token", i);
		expect(got[i].logprob == want[i].logprob ||
			       fabsf(got[i].logprob - want[i].logprob) < 1e-4f * (1 + spread),
		       "sample: logprob", i);
		for (unsigned k = 0; k < KERN_TOP_MAX; k++) {
			expect(got[i].top_token[k] == want[i].top_token[k], "sample: top token", k);
			expect(fabsf(got[i].top_logprob[k] - want[i].top_logprob[k]) < 1e-4f * (1 + spread),
			       "sample: top", k);
		}
	}
	drop();
}

static void test_sample(void)
{
	static const struct {
		uint32_t vocab;
		float spread; /* of the logits; 0: all are one */
	} shapes[] = { { 5, 0 }, { 5, 4 }, { 1003, 4 }, { 1003, 500 }, { 2501, 0 } };

	for (auto shape : shapes) {
		const struct kern_sampling plain = { 1, 1, 0, 1, 0, 0, 7, 0, -1, 4, NULL };
		std::vector<struct kern_sampling> rows(7, plain);

		rows[0].temperature = 0;
		rows[0].n_top = 20;
		rows[0].repetition_penalty = 1.25f; /* of a token that is drawn, where all logits are one */
		rows[1].top_k = 3;
		rows[1].n_top = 3;
		rows[2].top_p = 0.7f;
		rows[2].repetition_penalty = 1.25f;
		rows[3].top_k = shape.vocab - 1;
		rows[3].top_p = 0.9f;
		rows[3].min_p = 0.01f;
		rows[4].target = (int32_t)shape.vocab + 1000;
		rows[5].target = 2;
		rows[6].draw = 3;
		sample_rows(shape.vocab, shape.spread, rows);
	}
}

static const struct {
	const char *name;
	void (*run)(void);
} families[] = {
	{ "embed", test_embed },   { "activate", test_activate }, { "skinny", test_skinny },
	{ "panel", test_panel },   { "shrink", test_shrink },	  { "expand", test_expand },
	{ "scale", test_scale },   { "kv-write", test_write },	  { "kv-copy", test_copy },
	{ "decode", test_decode }, { "prefill", test_prefill },	  { "norm", test_norm },
	{ "rope", test_rope },	   { "swiglu", test_swiglu },	  { "sample", test_sample },
};

int main(int argc, char **argv)
{
	int n_run = 0;

	api.LaunchKernelExC = launch;
	device.api = &api;
	for (auto family : families) {
		bool wanted = argc == 1;

		for (int i = 1; i < argc; i++)
			wanted = wanted || strcmp(argv[i], family.name) == 0;
		if (argc == 2 && strcmp(argv[1], "--list") == 0) {
			puts(family.name);
		} else if (wanted) {
			family.run();
			n_run++;
		}
	}
	return n_failed > 0 || (argc > 1 && argv[1][0] != '-' && n_run != argc - 1);
}
