/* SPDX-License-Identifier: MIT */
/*
 * The descriptor of a step
 *
 * A step's requests come in the scheduler's order. Here they are put in an order in which equal lists of adapters are
 * neighbours, so that the rows of one adapter are one segment however many requests use it: its matrices are then read
 * once per step. Results find their way back through `order`.
 *
 * All that the ops read about the step is cut from one block, filled front to back and sent to the device in one copy
 * (on a CPU the block is where it was written). The block is sized for the largest step when it is made; building a
 * step allocates nothing.
 *
 *   rows        0 1 2 3 | 4 | 5 | 6 7 8 9      requests, one after the other: prefill chunks and single decodes
 *   segments    ---A---- --A-      ---B----    one per adapter of a list; a weighted sum is several on the same rows
 *                                  ---C----
 *   outputs           3   4   5   6 7 8 9      rows whose logits are wanted
 *   head steps  [ 0 .. 63 ] [ 64 .. ]          outputs in groups; segments of their own, since their rows are outputs
 *   copies      blocks of keys and values that begin as copies of others (prefix.c)
 *   tiles       sequences and segments in pieces of KERN_TILE rows, for backends that give each to a block of threads
 *
 * Recording. A device that records steps replays one with everything its launches were given: addresses and sizes. So the
 * block begins with what the ops are handed addresses of (step, head steps, output rows), always at the same place; all
 * else they find through pointers in there. And a step of decodes only is sized by a bucket: the next power of two of
 * each of its counts. Those make up the key of the recording.
 */
#include "daemon/model/batch.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/error.h"

#define ALIGNMENT 64u

static size_t aligned(size_t bytes)
{
	return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static uint32_t blocks_of(const struct batch *b, uint32_t n_tokens)
{
	return (n_tokens + b->kv->block_tokens - 1) / b->kv->block_tokens;
}

static uint32_t n_head_steps(uint32_t n_outputs)
{
	return (n_outputs + BATCH_HEAD_ROWS - 1) / BATCH_HEAD_ROWS;
}

/* The most tiles that n pieces of together so many rows are cut into. */
static size_t tiles_most(size_t n, size_t rows)
{
	return n + rows / KERN_TILE;
}

/* The most a block can be asked to hold, item by item as batch_build() takes them. */
static size_t block_bytes(const struct batch *b)
{
	size_t rows = b->limits.rows, seqs = b->limits.seqs;

	return aligned(sizeof(struct kern_step)) + aligned(n_head_steps(b->limits.rows) * sizeof(struct kern_step)) +
	       4 * aligned(rows * sizeof(uint32_t)) + aligned(seqs * sizeof(struct kern_seq)) +
	       aligned(seqs * blocks_of(b, b->context) * sizeof(void *)) + 2 * aligned(seqs * sizeof(void *)) +
	       aligned(seqs * STEP_ADAPTERS_MAX * sizeof(struct kern_segment)) +
	       aligned(rows * sizeof(struct kern_sampling)) +
	       aligned(rows * STEP_ADAPTERS_MAX * sizeof(struct kern_segment)) +
	       aligned(tiles_most(seqs, rows) * sizeof(struct kern_tile)) +
	       aligned(tiles_most(seqs * STEP_ADAPTERS_MAX, rows * STEP_ADAPTERS_MAX) * sizeof(struct kern_tile)) +
	       aligned(rows * STEP_ADAPTERS_MAX * sizeof(struct kern_tile)) + seqs * aligned(b->context * sizeof(uint32_t));
}

/* Device memory with a host side to write to or read from; on a CPU both are the same. */
static int alloc_shared(struct batch *b, size_t bytes, void **ret_host, void **ret_device)
{
	void *host = aligned_alloc(ALIGNMENT, aligned(bytes)), *device;
	int r;

	if (!host)
		return error_origin(-ENOMEM);
	r = b->ops->alloc(b->device, host, bytes, &device);
	if (r) {
		free(host);
		return error_origin(r);
	}
	(void)b->ops->register_host(b->device, host, aligned(bytes)); /* refused: slower */
	*ret_host = host;
	*ret_device = device;
	return 0;
}

static void free_shared(struct batch *b, void *host, void *device, size_t bytes)
{
	if (host) {
		b->ops->unregister_host(b->device, host);
		b->ops->free(b->device, device, bytes);
	}
	free(host);
}

int batch_init(struct batch *batch, const struct step_options *options)
{
	const struct model_config *config = model_config(options->model);
	const struct step_limits *limits = &options->limits;
	void *host = NULL, *on_device = NULL;
	int r;

	assert(limits->rows > 0 && limits->seqs > 0 && limits->seqs <= limits->rows);
	*batch = (struct batch){
		.device = options->device,
		.ops = options->backend->device,
		.kv = options->kv,
		.limits = *limits,
		.records = options->records && options->backend->device->record,
	};
	batch->n_modules = config->geometry.n_layers * _KERN_MODULE_N + 1;
	batch->context = config->context;
	batch->kv_block_bytes = options->kv->layer_bytes * config->geometry.n_layers;
	batch->order = calloc(limits->seqs, sizeof(*batch->order));
	batch->adapted = calloc(batch->n_modules, sizeof(*batch->adapted));
	batch->head_extent = calloc(n_head_steps(limits->rows), sizeof(*batch->head_extent));
	if (!batch->order || !batch->adapted || !batch->head_extent)
		return error_origin(-ENOMEM);

	batch->bytes = block_bytes(batch);
	r = alloc_shared(batch, batch->bytes, &host, &on_device);
	if (r)
		return error_trace(r);
	batch->host = host;
	batch->block = on_device;

	r = alloc_shared(batch, limits->rows * sizeof(struct kern_result), &host, &on_device);
	if (r)
		return error_trace(r);
	batch->host_result = host;
	batch->result = on_device;
	return 0;
}

void batch_deinit(struct batch *batch)
{
	free_shared(batch, batch->host, batch->block, batch->bytes);
	free_shared(batch, batch->host_result, batch->result, batch->limits.rows * sizeof(struct kern_result));
	free(batch->order);
	free(batch->adapted);
	free(batch->head_extent);
	*batch = (struct batch){ 0 };
}

size_t batch_scratch_floats(const struct step_limits *limits)
{
	return (size_t)limits->rows * STEP_ADAPTERS_MAX * STEP_RANK_MAX;
}

/* Cuts the next piece off the block: where the host writes it, and (ret_device) where the ops will find it. */
static void *take(struct batch *b, size_t bytes, void *ret_device)
{
	void *host = b->host + b->used, *device = b->block + b->used;

	assert(aligned(bytes) <= b->bytes - b->used);
	b->used += aligned(bytes);
	memcpy(ret_device, &device, sizeof(device));
	return host;
}

/* ---- order ---- */

static int compare_lists(const struct step_seq *a, const struct step_seq *b)
{
	if (a->n_adapters != b->n_adapters)
		return a->n_adapters < b->n_adapters ? -1 : 1;
	for (uint32_t i = 0; i < a->n_adapters; ++i) {
		const struct step_adapter *x = &a->adapter[i], *y = &b->adapter[i];

		if (x->lora != y->lora)
			return (uintptr_t)x->lora < (uintptr_t)y->lora ? -1 : 1;
		if (x->scale < y->scale || x->scale > y->scale)
			return x->scale < y->scale ? -1 : 1;
	}
	return 0;
}

/* Insertion keeps equals in the scheduler's order, needs no memory, and from step to step there is little to move. */
static void sort_by_adapters(struct batch *b, const struct step_seq *seqs, uint32_t n)
{
	for (uint32_t i = 0; i < n; ++i) {
		uint32_t at = i;

		for (; at > 0 && compare_lists(&seqs[b->order[at - 1]], &seqs[i]) > 0; --at)
			b->order[at] = b->order[at - 1];
		b->order[at] = i;
	}
}

/* ---- rows ---- */

static uint32_t outputs_of(const struct step_seq *seq)
{
	if (seq->output == STEP_OUTPUT_ALL)
		return seq->n_tokens - (seq->sampling.target < 0);
	return seq->output == STEP_OUTPUT_LAST;
}

static void count(struct batch *b, const struct step_seq *seqs, uint32_t n_seqs)
{
	b->n_rows = b->n_outputs = 0;
	for (uint32_t i = 0; i < n_seqs; ++i) {
		assert(seqs[i].n_tokens > 0 && seqs[i].n_tokens <= b->limits.rows - b->n_rows);
		assert(seqs[i].position < b->context && seqs[i].n_tokens <= b->context - seqs[i].position);
		assert(seqs[i].kv->n_blocks >= blocks_of(b, seqs[i].position + seqs[i].n_tokens));
		b->n_rows += seqs[i].n_tokens;
		b->n_outputs += outputs_of(&seqs[i]);
	}
}

static void write_rows(struct batch *b, struct kern_step *step, const struct step_seq *seqs, uint32_t n_seqs)
{
	uint32_t *token = take(b, b->n_rows * sizeof(*token), &step->token);
	uint32_t *position = take(b, b->n_rows * sizeof(*position), &step->position);
	uint32_t *row_seq = take(b, b->n_rows * sizeof(*row_seq), &step->row_seq);
	struct kern_seq *out = take(b, n_seqs * sizeof(*out), &step->seq);
	uint32_t row = 0, block = 0;

	for (uint32_t i = 0; i < n_seqs; ++i) {
		const struct step_seq *seq = &seqs[b->order[i]];

		out[i] = (struct kern_seq){ row, seq->n_tokens, seq->position, block };
		block += blocks_of(b, seq->position + seq->n_tokens);
		memcpy(token + row, seq->token, seq->n_tokens * sizeof(*token));
		for (uint32_t j = 0; j < seq->n_tokens; ++j) {
			row_seq[row] = i;
			position[row++] = seq->position + j;
		}
	}
}

static void write_blocks(struct batch *b, struct kern_step *step, const struct step_seq *seqs, uint32_t n_seqs)
{
	uint32_t total = 0, at = 0;
	void **block;

	for (uint32_t i = 0; i < n_seqs; ++i)
		total += blocks_of(b, seqs[i].position + seqs[i].n_tokens);
	block = take(b, total * sizeof(*block), &step->kv_block);
	for (uint32_t i = 0; i < n_seqs; ++i) {
		const struct step_seq *seq = &seqs[b->order[i]];
		uint32_t n = blocks_of(b, seq->position + seq->n_tokens);

		memcpy(block + at, seq->kv->block, n * sizeof(*block));
		at += n;
	}
}

/* Blocks that begin as copies of others. */
static void write_copies(struct batch *b, const struct step_seq *seqs, uint32_t n_seqs)
{
	const void **from;
	void **to;
	uint32_t n = 0;

	b->copy = (struct kern_kv_copy){ .block_bytes = b->kv_block_bytes };
	for (uint32_t i = 0; i < n_seqs; ++i)
		b->copy.n += seqs[i].copy_from != NULL;
	if (!b->copy.n)
		return;
	from = take(b, b->copy.n * sizeof(*from), &b->copy.from);
	to = take(b, b->copy.n * sizeof(*to), &b->copy.to);
	for (uint32_t i = 0; i < n_seqs; ++i) {
		if (!seqs[i].copy_from)
			continue;
		from[n] = seqs[i].copy_from;
		to[n++] = seqs[i].kv->block[seqs[i].position / b->kv->block_tokens];
	}
}

/* ---- segments ---- */

/* Notes which modules an adapter changes, unless a segment before this one already has it. */
static void note_adapter(struct batch *b, const struct kern_segment *segments, uint32_t n, const struct step_lora *lora)
{
	assert(lora->n_modules == b->n_modules && lora->max_rank <= STEP_RANK_MAX);
	for (uint32_t i = 0; i < n; ++i)
		if (segments[i].modules == lora->on_device)
			return;
	++b->stats.adapters;
	for (uint32_t i = 0; i < b->n_modules; ++i)
		b->adapted[i] |= lora->modules[i].a != NULL;
	b->extent.max_rank = lora->max_rank > b->extent.max_rank ? lora->max_rank : b->extent.max_rank;
}

static struct kern_segment *write_segments(struct batch *b, struct kern_step *step, const struct step_seq *seqs,
					   uint32_t n_seqs)
{
	struct kern_segment *out = take(b, n_seqs * STEP_ADAPTERS_MAX * sizeof(*out), &step->segment);
	uint32_t row = 0, scratch = 0, n = 0;

	memset(b->adapted, 0, b->n_modules);
	for (uint32_t i = 0, end; i < n_seqs; i = end) {
		const struct step_seq *seq = &seqs[b->order[i]];
		uint32_t n_rows = 0;

		assert(seq->n_adapters <= STEP_ADAPTERS_MAX);
		for (end = i; end < n_seqs && !compare_lists(seq, &seqs[b->order[end]]); ++end)
			n_rows += seqs[b->order[end]].n_tokens;
		for (uint32_t j = 0; j < seq->n_adapters; ++j) {
			const struct step_lora *lora = seq->adapter[j].lora;

			note_adapter(b, out, n, lora);
			out[n++] = (struct kern_segment){ row, n_rows, lora->on_device, seq->adapter[j].scale, scratch };
			scratch += n_rows;
		}
		row += n_rows;
	}
	b->n_segments = step->n_segments = n;
	b->extent.n_scratch_rows = scratch;
	return out;
}

/* ---- tiles ---- */

/* Adds the tiles of piece number `of` and its n_rows rows. Return: how many there are now. */
static uint32_t add_tiles(struct kern_tile *tile, uint32_t n, uint32_t of, uint32_t n_rows)
{
	for (uint32_t first = 0; first < n_rows; first += KERN_TILE)
		tile[n++] = (struct kern_tile){ of, first };
	return n;
}

static void write_seq_tiles(struct batch *b, struct kern_step *step, const struct step_seq *seqs, uint32_t n_seqs)
{
	struct kern_tile *tile = take(b, tiles_most(n_seqs, b->n_rows) * sizeof(*tile), &step->seq_tile);
	uint32_t n = 0;

	for (uint32_t i = 0; i < n_seqs; ++i) {
		const struct step_seq *seq = &seqs[b->order[i]];
		uint32_t positions = seq->position + seq->n_tokens;

		b->extent.n_single += seq->n_tokens == 1;
		b->extent.n_positions = positions > b->extent.n_positions ? positions : b->extent.n_positions;
		if (seq->n_tokens > 1)
			n = add_tiles(tile, n, i, seq->n_tokens);
	}
	step->n_seq_tiles = b->extent.n_seq_tiles = n;
}

static void write_segment_tiles(struct batch *b, struct kern_step *step, const struct kern_segment *segments)
{
	size_t most = tiles_most(b->n_segments, b->extent.n_scratch_rows);
	struct kern_tile *tile = take(b, most * sizeof(*tile), &step->segment_tile);
	uint32_t n = 0;

	for (uint32_t i = 0; i < b->n_segments; ++i)
		n = add_tiles(tile, n, i, segments[i].n_rows);
	step->n_segment_tiles = b->extent.n_segment_tiles = n;
}

/* ---- outputs ---- */

static struct kern_sampling scoring(const struct step_seq *seq, int32_t target)
{
	return (struct kern_sampling){ .top_p = 1, .repetition_penalty = 1, .n_top = seq->sampling.n_top, .target = target };
}

/* The parameters of a draw; the tokens seen go into the block if the draw will look at them. */
static struct kern_sampling drawing(struct batch *b, const struct step_seq *seq)
{
	struct kern_sampling s = seq->sampling;
	const uint32_t *seen = s.seen;

	if (s.repetition_penalty < 1 || s.repetition_penalty > 1) {
		assert(s.n_seen <= b->context);
		memcpy(take(b, s.n_seen * sizeof(*seen), &s.seen), seen, s.n_seen * sizeof(*seen));
	} else {
		s.n_seen = 0;
		s.seen = NULL;
	}
	return s;
}

static void write_outputs(struct batch *b, struct kern_step *step, uint32_t *output, const struct step_seq *seqs,
			  uint32_t n_seqs)
{
	struct kern_sampling *sampling = take(b, b->n_outputs * sizeof(*sampling), &step->sampling);
	uint32_t row = 0, n = 0;

	for (uint32_t i = 0; i < n_seqs; ++i) {
		const struct step_seq *seq = &seqs[b->order[i]];

		if (seq->output == STEP_OUTPUT_LAST) {
			output[n] = row + seq->n_tokens - 1;
			sampling[n++] = drawing(b, seq);
		}
		for (uint32_t j = 0, wanted = outputs_of(seq); seq->output == STEP_OUTPUT_ALL && j < wanted; ++j) {
			bool last = j + 1 == seq->n_tokens;

			output[n] = row + j;
			sampling[n++] = scoring(seq, last ? seq->sampling.target : (int32_t)seq->token[j + 1]);
		}
		row += seq->n_tokens;
	}
	assert(n == b->n_outputs);
	step->n_outputs = n;
}

/* What is left of a segment among outputs [first, end): its rows are then numbers of outputs, counted from first. */
static bool cut_segment(struct kern_segment *segment, const uint32_t *output, uint32_t first, uint32_t end)
{
	uint32_t from = first, to;

	while (from < end && output[from] < segment->first_row)
		++from;
	for (to = from; to < end && output[to] - segment->first_row < segment->n_rows; ++to)
		;
	segment->first_row = from - first;
	segment->n_rows = to - from;
	return to > from;
}

/* One step description for each group of outputs that goes through the head: see the picture above. */
static void write_head_steps(struct batch *b, struct kern_step *step, const struct kern_segment *segments,
			     const uint32_t *output)
{
	size_t most = b->adapted[b->n_modules - 1] ? b->n_outputs * (size_t)STEP_ADAPTERS_MAX : 0;
	const struct kern_segment *on_device;
	const struct kern_tile *tile_on_device;
	struct kern_segment *segment = take(b, most * sizeof(*segment), &on_device);
	struct kern_tile *tile = take(b, most * sizeof(*tile), &tile_on_device);

	for (uint32_t i = 0; i < n_head_steps(b->n_outputs); ++i) {
		uint32_t first = i * BATCH_HEAD_ROWS, scratch = 0, n = 0, n_tiles = 0;
		uint32_t end = b->n_outputs - first < BATCH_HEAD_ROWS ? b->n_outputs : first + BATCH_HEAD_ROWS;

		for (uint32_t j = 0; most > 0 && j < b->n_segments; ++j) {
			segment[n] = segments[j];
			segment[n].scratch_row = scratch;
			if (!cut_segment(&segment[n], output, first, end))
				continue;
			n_tiles = add_tiles(tile, n_tiles, n, segment[n].n_rows);
			scratch += segment[n++].n_rows;
		}
		step[i] = (struct kern_step){
			.n_rows = end - first,
			.n_segments = n,
			.n_segment_tiles = n_tiles,
			.segment = on_device,
			.segment_tile = tile_on_device,
		};
		b->head_extent[i] = (struct kern_extent){
			.n_rows = end - first,
			.n_segment_tiles = n_tiles,
			.n_scratch_rows = scratch,
			.max_rank = b->extent.max_rank,
		};
		segment += n, on_device += n;
		tile += n_tiles, tile_on_device += n_tiles;
	}
}

/* ---- recordings ---- */

static uint32_t bucket_of(uint32_t n)
{
	uint32_t bucket = 1;

	while (bucket < n)
		bucket *= 2;
	return n ? bucket : 0;
}

/* The exponent of a bucket and one more, 0 for none: 5 bits of a key. */
static uint64_t key_of(uint32_t bucket)
{
	return bucket ? 1 + (uint64_t)__builtin_ctz(bucket) : 0;
}

/* A step of decodes only: sized by its bucket. All else keeps its own size and is not recorded. */
static void round_up(struct batch *b)
{
	struct kern_extent *e = &b->extent;

	b->key = BATCH_NO_KEY;
	if (!b->records || e->n_single != b->n_rows || b->n_outputs != b->n_rows)
		return;
	e->n_rows = e->n_seqs = e->n_single = e->n_outputs = bucket_of(b->n_rows);
	if (e->n_rows > b->limits.seqs)
		e->n_rows = e->n_seqs = e->n_single = e->n_outputs = b->limits.seqs;
	e->n_segment_tiles = bucket_of(e->n_segment_tiles);
	e->n_scratch_rows = bucket_of(e->n_scratch_rows);
	e->max_rank = bucket_of(e->max_rank);
	e->n_positions = bucket_of(e->n_positions);
	if (e->n_segment_tiles)
		memset(b->adapted, 1, b->n_modules); /* which modules it is must not matter */
	for (uint32_t i = 0; i < n_head_steps(e->n_outputs); ++i) {
		uint32_t left = e->n_outputs - i * BATCH_HEAD_ROWS;

		b->head_extent[i] = (struct kern_extent){
			.n_rows = left < BATCH_HEAD_ROWS ? left : BATCH_HEAD_ROWS,
			.n_segment_tiles = e->n_segment_tiles,
			.n_scratch_rows = e->n_scratch_rows,
			.max_rank = e->max_rank,
		};
	}
	b->key = UINT64_C(1) << 63 | (uint64_t)e->n_rows << 32 | key_of(e->n_segment_tiles) << 24 |
		 key_of(e->n_scratch_rows) << 16 | key_of(e->max_rank) << 8 | key_of(e->n_positions);
}

/**
 * batch_build() - describe a step
 * @seqs:       the requests; within the limits, KV reserved (asserted)
 *
 * Afterwards the block is on its way to the device and batch->step, head_step, the counts and the extents are valid.
 */
int batch_build(struct batch *batch, const struct step_seq *seqs, uint32_t n_seqs)
{
	const struct kern_segment *segments;
	struct kern_step *step, *head_step;
	uint32_t *output;

	assert(n_seqs > 0 && n_seqs <= batch->limits.seqs);
	batch->used = 0;
	batch->stats = (struct step_stats){ 0 };
	sort_by_adapters(batch, seqs, n_seqs);
	count(batch, seqs, n_seqs);
	batch->extent = (struct kern_extent){ .n_rows = batch->n_rows, .n_seqs = n_seqs, .n_outputs = batch->n_outputs };

	/* what the ops are handed addresses of: always at the same place, see the head of this file */
	step = take(batch, sizeof(*step), &batch->step);
	*step = (struct kern_step){ .n_rows = batch->n_rows, .n_seqs = n_seqs, .result = batch->result };
	head_step = take(batch, n_head_steps(batch->limits.rows) * sizeof(*head_step), &batch->head_step);
	memset(head_step, 0, n_head_steps(batch->limits.rows) * sizeof(*head_step));
	output = take(batch, batch->limits.rows * sizeof(*output), &step->output_row);
	memset(output, 0, batch->limits.rows * sizeof(*output));
	batch->output_row = step->output_row;

	write_rows(batch, step, seqs, n_seqs);
	write_blocks(batch, step, seqs, n_seqs);
	write_copies(batch, seqs, n_seqs);
	write_seq_tiles(batch, step, seqs, n_seqs);
	segments = write_segments(batch, step, seqs, n_seqs);
	write_segment_tiles(batch, step, segments);
	write_outputs(batch, step, output, seqs, n_seqs);
	write_head_steps(batch, head_step, segments, output);
	round_up(batch);

	batch->stats.rows = batch->n_rows;
	batch->stats.seqs = n_seqs;
	batch->stats.outputs = batch->n_outputs;
	return error_trace(batch->ops->copy_async(batch->device, batch->block, batch->host, batch->used));
}

/* Waits for the step's results and gives each request its own. */
int batch_results(struct batch *batch, struct step_seq *seqs, uint32_t n_seqs)
{
	const struct kern_result *result = batch->host_result;
	int r;

	r = batch->ops->copy_async(batch->device, batch->host_result, batch->result, batch->n_outputs * sizeof(*result));
	if (!r)
		r = batch->ops->fence(batch->device);
	if (r)
		return error_trace(r);
	for (uint32_t i = 0; i < n_seqs; ++i) {
		struct step_seq *seq = &seqs[batch->order[i]];
		uint32_t n = outputs_of(seq);

		if (n > 0)
			memcpy(seq->result, result, n * sizeof(*result));
		result += n;
	}
	return 0;
}
