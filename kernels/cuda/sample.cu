/* SPDX-License-Identifier: MIT */
/*
 * From logits to a token, with the meaning of kernels/sample.c. A block takes an output row and goes over it several
 * times (it lies in L2): greedy and scores twice, a draw once more, a filter two more times, the n_top list three.
 *
 *   plain logits -> log-probabilities, the n_top list
 *   repetition penalty -> temperature -> top-k -> top-p -> min-p -> softmax -> draw
 *
 * A filter keeps a prefix of the order of tokens (larger logit first, on ties the lower id), so all of them together
 * are one place in that order, the cut; nothing is written back to the logits. The place is found by a histogram over a
 * span of the order, then over the bin where the goal is reached, until a bin's tokens fit into a list, where each
 * thread weighs all that come before its own token. The first histogram is linear in the logit, so that the bins are
 * narrow where the goal most often lies. The others, which ties and goals among unlikely tokens need, take the bits of
 * places.
 *
 * Weights are integers (sample.h), so that sums come out the same in any order, the draw's sum included.
 */
#include "kernels/cuda/launch.h"
#include "kernels/cuda/sample.h"

#define LIST 1024

struct bin {
	uint32_t low, high; /* halves of its size */
};

struct shared {
	union {
		struct bin bin[SAMPLE_BINS];
		struct {
			uint64_t place[LIST], weight[LIST];
		} list;
	} u;
	uint64_t of_warp[SAMPLE_WARPS], of_thread[SAMPLE_THREADS];
	uint64_t cut;
	uint32_t n_listed, was_seen;
};

static_assert(sizeof(struct shared) <= 48 << 10 && LIST >= KERN_TOP_MAX, "");

/* The first token of the order; its place. */
DEV_INLINE uint64_t first_token(const struct row *row, struct shared *sh)
{
	float most = -INFINITY;
	uint32_t at = 0;

	for (uint32_t quad = threadIdx.x; quad < row->n_quads; quad += 2 * SAMPLE_THREADS) {
		struct quads q = load_quads(row, quad, SAMPLE_THREADS, row->n_quads);
		for (uint32_t i = 0; i < 8; i++)
			if (q.x[i] > most) {
				most = q.x[i];
				at = id_of(&q, i);
			}
	}
	return block_min(place_of(most, at), sh->of_warp);
}

/* The weight of quads [first, end); that of each warp's share, slice quads, stays in of_warp. */
DEV_INLINE uint64_t weigh_quads(const struct row *row, const struct filter *f, uint32_t first, uint32_t end,
				uint32_t slice, struct shared *sh)
{
	uint32_t warp = threadIdx.x / DEV_WARP, lane = threadIdx.x % DEV_WARP;
	uint32_t from = min(first + warp * slice, end), to = min(from + slice, end);
	uint64_t sum = 0;

	for (uint32_t quad = from + lane; quad < to; quad += 2 * DEV_WARP) {
		struct quads q = load_quads(row, quad, DEV_WARP, to);
		for (uint32_t i = 0; i < 8; i++)
			sum += weigh(f, q.x[i], id_of(&q, i));
	}
	return block_sums(sum, sh->of_warp);
}

DEV_INLINE uint64_t weigh_row(const struct row *row, const struct filter *f, struct shared *sh)
{
	uint64_t sum = weigh_quads(row, f, 0, row->n_quads, (row->n_quads + SAMPLE_WARPS - 1) / SAMPLE_WARPS, sh);

	DEV_BARRIER();
	return sum;
}

/* The first of n sizes with which *reached comes to the goal; those before it are added to *reached. n: none. */
DEV_INLINE uint32_t reach(const uint64_t *size, uint32_t n, uint64_t goal, uint64_t *reached)
{
	uint32_t i = 0;

	for (; i < n && *reached + size[i] < goal; i++)
		*reached += size[i];
	return i;
}

/* ---- the place where a filter cuts ---- */

/* Halves are added with the carry between them, which makes one exact sum of them, in any order. */
DEV_INLINE void add_to_bin(struct shared *sh, uint32_t bin, uint64_t weight)
{
	if (!DEV_GUARD(bin < SAMPLE_BINS))
		return;
	uint32_t low = (uint32_t)weight, carry = dev_atomic_add(&sh->u.bin[bin].low, low) > UINT32_MAX - low;
	uint32_t high = (uint32_t)(weight >> 32) + carry;
	if (high > 0)
		(void)dev_atomic_add(&sh->u.bin[bin].high, high);
}

/* Fills the bins of a span with the tokens that are left; returns the weight of these, outside the span, too. */
DEV_INLINE uint64_t fill(const struct row *row, const struct filter *f, const struct span *span, struct shared *sh)
{
	uint64_t sum = 0;

	for (uint32_t i = threadIdx.x; i < SAMPLE_BINS; i += SAMPLE_THREADS)
		sh->u.bin[i] = { 0, 0 };
	DEV_BARRIER();
	for (uint32_t quad = threadIdx.x; quad < row->n_quads; quad += 2 * SAMPLE_THREADS) {
		struct quads q = load_quads(row, quad, SAMPLE_THREADS, row->n_quads);
		for (uint32_t i = 0; i < 8; i++) {
			uint64_t weight = weigh(f, q.x[i], id_of(&q, i));
			sum += weight;
			if (weight > 0)
				add_to_bin(sh, bin_of(span, q.x[i], id_of(&q, i)), weight);
		}
	}
	sum = block_sums(sum, sh->of_warp);
	DEV_BARRIER();
	return sum;
}

DEV_INLINE uint64_t bin_size(const struct shared *sh, uint32_t bin)
{
	return (uint64_t)sh->u.bin[bin].high << 32 | sh->u.bin[bin].low;
}

/*
 * The bin where the goal is reached, or SAMPLE_BINS; what comes before is added to *reached. The bins may go behind the
 * next barrier, and at once if it is SAMPLE_BINS.
 */
DEV_INLINE uint32_t reach_bin(uint64_t goal, uint64_t *reached, struct shared *sh)
{
	const uint32_t each = SAMPLE_BINS / SAMPLE_THREADS;
	uint32_t bin = SAMPLE_BINS;
	uint64_t mine = 0;

	for (uint32_t i = 0; i < each; i++)
		mine += bin_size(sh, threadIdx.x * each + i);
	sh->of_thread[threadIdx.x] = mine;
	(void)block_sums(mine, sh->of_warp);
	uint32_t warp = reach(sh->of_warp, SAMPLE_WARPS, goal, reached);
	if (DEV_GUARD(warp < SAMPLE_WARPS)) {
		uint32_t thread = warp * DEV_WARP + reach(sh->of_thread + warp * DEV_WARP, DEV_WARP, goal, reached);
		for (bin = thread * each; *reached + bin_size(sh, bin) < goal; bin++)
			*reached += bin_size(sh, bin);
	}
	return bin;
}

/* Lists the tokens that are left in a span of places, in any order, LIST at most. Returns how many there are. */
DEV_INLINE uint32_t list(const struct row *row, const struct filter *f, const struct span *span, struct shared *sh)
{
	if (threadIdx.x == 0)
		sh->n_listed = 0;
	DEV_BARRIER();
	for (uint32_t quad = threadIdx.x; quad < row->n_quads; quad += 2 * SAMPLE_THREADS) {
		struct quads q = load_quads(row, quad, SAMPLE_THREADS, row->n_quads);
		for (uint32_t i = 0; i < 8; i++) {
			float x = q.x[i];
			uint32_t id = id_of(&q, i);
			if (!is_kept(f, x, id) || bin_of(span, x, id) == SAMPLE_BINS)
				continue;
			uint32_t at = dev_atomic_add(&sh->n_listed, 1u);
			if (!DEV_GUARD(at < LIST))
				continue;
			sh->u.list.place[at] = place_of(x, id);
			sh->u.list.weight[at] = weigh(f, x, id);
		}
	}
	DEV_BARRIER();
	return sh->n_listed;
}

/* The place in the list, of n, where the goal is reached. */
DEV_INLINE uint64_t reach_in_list(uint32_t n, uint64_t goal, uint64_t reached, struct shared *sh)
{
	for (uint32_t t = threadIdx.x; t < n; t += SAMPLE_THREADS) {
		uint64_t place = sh->u.list.place[t], before = reached;
		for (uint32_t i = 0; i < n; i++)
			before += sh->u.list.place[i] < place ? sh->u.list.weight[i] : 0;
		if (before < goal && before + sh->u.list.weight[t] >= goal)
			sh->cut = place;
	}
	DEV_BARRIER();
	return sh->cut;
}

/*
 * Moves the cut so that the shortest prefix is left whose weight is at least `share` of what is left now, or, where
 * tokens weigh 1 each, of `count` tokens. Stays where it is if that is all.
 */
DEV_INLINE void cut(const struct row *row, struct filter *f, float share, uint32_t count, struct shared *sh)
{
	struct span span = likely_span(f);
	uint64_t reached = 0, goal = count;
	uint32_t n = UINT32_MAX;

	while (n > LIST) {
		uint64_t total = fill(row, f, &span, sh);
		if (f->by_weight)
			goal = max((uint64_t)((double)share * (double)total), (uint64_t)1);
		if (goal >= total)
			return;
		uint32_t bin = reach_bin(goal, &reached, sh);
		if (bin == SAMPLE_BINS) { /* even all likely ones are not enough */
			reached = 0;
			span = span_of_places(place_of(f->most, 0), place_of(-INFINITY, UINT32_MAX));
			continue;
		}
		span = span_of_bin(&span, bin);
		n = list(row, f, &span, sh);
	}
	uint64_t place = reach_in_list(n, goal, reached, sh);
	f->cut_logit = place_logit(place);
	f->cut_id = (uint32_t)place;
}

/* ---- what a row is asked ---- */

DEV_INLINE void list_top(const struct row *row, float most, uint32_t n_top, float log_total, struct kern_result *result,
			 struct shared *sh)
{
	struct filter f = all_tokens(most, 1);
	struct span span;
	uint32_t n;

	f.by_weight = false;
	if (n_top < row->n)
		cut(row, &f, 1, n_top, sh);
	span = span_of_places(place_of(most, 0), place_of(-INFINITY, UINT32_MAX));
	n = min(min(list(row, &f, &span, sh), n_top), row->n);
	if (DEV_GUARD(threadIdx.x < n)) {
		uint64_t place = sh->u.list.place[threadIdx.x];
		uint32_t rank = 0;
		for (uint32_t i = 0; i < n; i++)
			rank += sh->u.list.place[i] < place;
		result->top_token[rank] = (uint32_t)place;
		result->top_logprob[rank] = place_logit(place) - log_total;
	}
	DEV_BARRIER();
}

DEV_INLINE void penalise(const struct kern_sampling *s, uint32_t vocab, float *logits)
{
	for (uint32_t i = threadIdx.x; i < s->n_seen; i += SAMPLE_THREADS) { /* distinct tokens: no two threads meet */
		if (!DEV_GUARD(s->seen[i] < vocab))
			continue;
		float *l = &logits[s->seen[i]];
		*l = *l > 0 ? *l / s->repetition_penalty : *l * s->repetition_penalty;
	}
	DEV_BARRIER();
}

/* What a penalised token's logit was, up to one rounding. */
DEV_INLINE float unpenalised(const struct kern_sampling *s, uint32_t token, float logit, struct shared *sh)
{
	if (s->repetition_penalty == 1)
		return logit;
	if (threadIdx.x == 0)
		sh->was_seen = 0;
	DEV_BARRIER();
	for (uint32_t i = threadIdx.x; i < s->n_seen; i += SAMPLE_THREADS)
		if (s->seen[i] == token)
			sh->was_seen = 1;
	DEV_BARRIER();
	if (!sh->was_seen)
		return logit;
	return logit > 0 ? logit * s->repetition_penalty : logit / s->repetition_penalty;
}

/* The first token, by id, at which the running sum of weights passes u of the whole; `otherwise` if that is nothing. */
DEV_INLINE uint32_t draw(const struct row *row, const struct filter *f, double u, uint32_t otherwise, struct shared *sh)
{
	uint32_t first = 0, end = row->n_quads, slice = (end + SAMPLE_WARPS - 1) / SAMPLE_WARPS;
	uint64_t total = weigh_quads(row, f, first, end, slice, sh), reached = 0;
	uint64_t goal = (uint64_t)(u * (double)total) + 1;
	float x[4];

	goal = goal < total ? goal : total; /* (double)total may be rounded up */
	if (total == 0)
		return otherwise;
	first = slice * reach(sh->of_warp, SAMPLE_WARPS, goal, &reached);
	while (slice > 1) {
		end = min(first + slice, end);
		slice = (end - first + SAMPLE_WARPS - 1) / SAMPLE_WARPS;
		DEV_BARRIER();
		(void)weigh_quads(row, f, first, end, slice, sh);
		first += slice * reach(sh->of_warp, SAMPLE_WARPS, goal, &reached);
	}
	uint32_t id = load_quad(row, first, x), ret = otherwise;
	for (uint32_t i = 0; i < 4; i++) {
		uint64_t weight = weigh(f, x[i], id + i);
		ret = reached < goal && reached + weight >= goal ? id + i : ret;
		reached += weight;
	}
	return ret;
}

DEV_INLINE uint32_t filter_and_draw(const struct row *row, const struct kern_sampling *s, uint64_t first,
				    struct shared *sh)
{
	struct filter f = all_tokens(place_logit(first), 1 / s->temperature);

	if (s->top_k > 0 && s->top_k < row->n) {
		f.by_weight = false;
		cut(row, &f, 1, s->top_k, sh);
		f.by_weight = true;
	}
	if (s->top_p < 1)
		cut(row, &f, s->top_p, 0, sh);
	f.min_p = s->min_p;
	return draw(row, &f, philox_uniform(s->seed, s->draw), (uint32_t)first, sh);
}

DEV_INLINE void sample_row(const struct kern_sampling *s, float *logits, uint32_t vocab, struct kern_result *result,
			   struct shared *sh)
{
	struct row row = row_at(logits, vocab);
	uint64_t first = first_token(&row, sh); /* of the plain logits, then of the penalised ones */
	struct filter f = all_tokens(place_logit(first), 1);
	float log_total = f.most + logf((float)weigh_row(&row, &f, sh) / WEIGHT_ONE);
	uint32_t token = (uint32_t)s->target;
	float logprob = -INFINITY;

	if (s->n_top > 0)
		list_top(&row, f.most, min(s->n_top, KERN_TOP_MAX), log_total, result, sh);
	if (s->target >= 0) {
		if (DEV_GUARD(token < vocab))
			logprob = logits[token] - log_total;
	} else {
		if (s->repetition_penalty != 1) {
			penalise(s, vocab, logits);
			first = first_token(&row, sh);
		}
		token = s->temperature > 0 ? filter_and_draw(&row, s, first, sh) : (uint32_t)first;
		logprob = unpenalised(s, token, logits[token], sh) - log_total;
	}
	if (threadIdx.x == 0) {
		result->token = token;
		result->logprob = logprob;
	}
}

static DEV_KERNEL(SAMPLE_THREADS) sample(struct kern_sample a)
{
	DEV_BOUNDS(SAMPLE_THREADS);
	uint32_t output = a.first + blockIdx.x;

	if (DEV_GUARD(output < a.step->n_outputs))
		sample_row(&a.step->sampling[output], a.logits + (size_t)blockIdx.x * a.vocab, a.vocab,
			   &a.step->result[output], (struct shared *)dev_shared());
}

extern "C" void cuda_sample(struct kern_device *device, const void *args, unsigned, unsigned)
{
	const struct kern_sample *a = (const struct kern_sample *)args;

	CUDA_LAUNCH(device, (sample), dim3(a->n), SAMPLE_THREADS, sizeof(struct shared), *a);
}
