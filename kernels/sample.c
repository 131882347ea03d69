/* SPDX-License-Identifier: MIT */
/*
 * From logits to a token: transformers' filters in transformers' order.
 *
 *   plain logits -> log-probabilities, the n_top list
 *   repetition penalty -> temperature -> top-k -> top-p -> min-p -> softmax -> draw
 *
 * Every filter keeps a prefix of one order: larger logit first, on ties the lower id. So a filter is a threshold and the
 * number of ties it still takes, found by counting (or weighing) tokens in a histogram over the bits of their logits;
 * what it drops becomes -inf. No list of candidates, no sorting, no memory.
 *
 * The loops over the vocabulary work on each number alone, or sum into 16 lanes in a fixed order, and contain no fused
 * multiply-adds: compilers turn them into vectors of any width without changing a bit, so that equal logits give equal
 * tokens on every backend.
 */
#include <float.h>
#include <math.h>

#include "kernels/host.h"
#include "kernels/philox.h"
#include "kernels/quant.h"

#ifdef X86_ISA
#include "kernels/x86.h"
#define SAMPLE_NAME X86(sample)
#else
#define SAMPLE_NAME sample_scalar
kern_op sample_scalar;
#endif

#define LANES 16
#define CHUNK 256 /* tokens that are weighed and summed at a time */

/* e^x for x <= 0 within 2 ulp; 0 below -87. Cody-Waite reduction to [-ln2/2, ln2/2], then a Taylor polynomial. */
static inline float exp_negative(float x)
{
	float clamped = x < -87 ? -87 : x;
	float shifted = clamped * 0x1.715476p0f + 0x1.8p23f; /* rounds x / ln 2 to an integer, in the low bits */
	float n = shifted - 0x1.8p23f;
	float r = (clamped - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
	float p = 1.0f / 720;

	p = p * r + 1.0f / 120;
	p = p * r + 1.0f / 24;
	p = p * r + 1.0f / 6;
	p = p * r + 0.5f;
	p = p * r * r + r + 1;
	float e = p * quant_float((quant_bits(shifted) + 127) << 23);
	return x < -87 ? 0 : e;
}

static float largest(const float *x, uint32_t n)
{
	float lane[4 * LANES], most = -INFINITY;
	uint32_t i = 0;

	for (unsigned j = 0; j < 4 * LANES; j++)
		lane[j] = -INFINITY;
	for (; i + 4 * LANES <= n; i += 4 * LANES) {
		const float *at = x + i; /* indices that may wrap would become gathers */
		for (unsigned j = 0; j < 4 * LANES; j++)
			lane[j] = at[j] > lane[j] ? at[j] : lane[j];
	}
	for (; i < n; i++)
		most = x[i] > most ? x[i] : most;
	for (unsigned width = 2 * LANES; width > 0; width /= 2)
		for (unsigned j = 0; j < width; j++)
			lane[j] = lane[j + width] > lane[j] ? lane[j + width] : lane[j];
	return lane[0] > most ? lane[0] : most;
}

/* Whether any of 16 numbers reaches a limit. */
static inline bool any_reaches(const float *x, float limit)
{
	unsigned any = 0;

	for (unsigned j = 0; j < LANES; j++)
		any |= x[j] >= limit;
	return any;
}

static uint32_t first_of(const float *x, uint32_t n, float value)
{
	uint32_t i = 0;

	while (i + 1 < n && !(x[i] == value))
		i++;
	return i;
}

/* w[i] = e^((x[i] - most) * inverse_temperature), for n <= CHUNK; returns their sum. x and w may be the same. */
static double weigh_chunk(const float *x, uint32_t n, float most, float inverse_temperature, float *w)
{
	float lane[LANES] = { 0 };
	double sum = 0;
	uint32_t i = 0;

	for (i = 0; i < n; i++)
		w[i] = exp_negative((x[i] - most) * inverse_temperature);
	for (i = 0; i + LANES <= n; i += LANES) {
		const float *at = w + i;
		for (unsigned j = 0; j < LANES; j++)
			lane[j] += at[j];
	}
	for (; i < n; i++)
		sum += w[i];
	for (unsigned j = 0; j < LANES; j++)
		sum += lane[j];
	return sum;
}

static double total_weight(const float *x, uint32_t n, float most, float inverse_temperature)
{
	float w[CHUNK];
	double sum = 0;

	for (uint32_t i = 0; i < n; i += CHUNK)
		sum += weigh_chunk(x + i, n - i < CHUNK ? n - i : CHUNK, most, inverse_temperature, w);
	return sum;
}

/* Puts a token into the descending list if it belongs there; an equal one that came earlier stays before it. */
static void top_insert(struct kern_result *result, uint32_t *n, uint32_t room, uint32_t token, float logit)
{
	uint32_t at = *n < room ? (*n)++ : room - 1;

	for (; at > 0 && result->top_logprob[at - 1] < logit; at--) {
		result->top_token[at] = result->top_token[at - 1];
		result->top_logprob[at] = result->top_logprob[at - 1];
	}
	result->top_token[at] = token;
	result->top_logprob[at] = logit;
}

static void list_top(const float *logits, uint32_t vocab, uint32_t n_top, float log_total, struct kern_result *result)
{
	uint32_t room = n_top < KERN_TOP_MAX ? n_top : KERN_TOP_MAX, n = 0;

	room = room < vocab ? room : vocab;
	for (uint32_t i = 0; room && i < vocab; i += CHUNK) {
		uint32_t end = vocab - i < CHUNK ? vocab : i + CHUNK;
		if (n == room && largest(logits + i, end - i) <= result->top_logprob[n - 1])
			continue;
		for (uint32_t t = i; t < end; t++)
			if (n < room || logits[t] > result->top_logprob[n - 1])
				top_insert(result, &n, room, t, logits[t]);
	}
	for (uint32_t i = 0; i < n; i++)
		result->top_logprob[i] -= log_total;
}

static void penalise(const struct kern_sampling *s, uint32_t vocab, float *logits)
{
	for (uint32_t i = 0; i < s->n_seen; i++) {
		if (s->seen[i] >= vocab)
			continue;
		float *l = &logits[s->seen[i]];
		*l = *l > 0 ? *l / s->repetition_penalty : *l * s->repetition_penalty;
	}
}

/* What a penalised token's logit was, up to one rounding. */
static float unpenalised(const struct kern_sampling *s, uint32_t token, float logit)
{
	if (s->repetition_penalty == 1)
		return logit;
	for (uint32_t i = 0; i < s->n_seen; i++)
		if (s->seen[i] == token)
			return logit > 0 ? logit * s->repetition_penalty : logit / s->repetition_penalty;
	return logit;
}

/* ---- filters ---- */

struct filter { /* keep the shortest prefix whose count (or weight) reaches the goal */
	float *x;
	uint32_t n;
	float most, inverse_temperature;
	bool by_weight;
	double goal;
};

struct histogram {
	double size[2048];
};

/* Orders like the floats do, with both zeros equal. */
static inline uint32_t order_key(float x)
{
	uint32_t bits = quant_bits(x + 0.0f);

	return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

static inline float order_value(uint32_t key)
{
	return quant_float(key & 0x80000000 ? key & 0x7fffffff : ~key);
}

/* Adds every token of at least `lowest` and below `highest` to the bin that `bits` bits of its key from `shift` on name. */
static void fill(const struct filter *f, float lowest, float highest, unsigned shift, unsigned bits, struct histogram *h)
{
	memset(h->size, 0, sizeof h->size);
	for (uint32_t i = 0; i < f->n; i += LANES) {
		uint32_t end = f->n - i < LANES ? f->n : i + LANES;
		if (end - i == LANES && !any_reaches(f->x + i, lowest))
			continue;
		for (uint32_t t = i; t < end; t++) {
			if (!(f->x[t] >= lowest && f->x[t] <= highest))
				continue;
			uint32_t bin = order_key(f->x[t]) >> shift & ((1u << bits) - 1);
			h->size[bin] += f->by_weight ? exp_negative((f->x[t] - f->most) * f->inverse_temperature) : 1;
		}
	}
}

/*
 * Finds the last token of the prefix: its logit and how many tokens of just that logit belong. The key's 32 bits are
 * settled in three passes, 11 + 11 + 10, each over the tokens that share what is settled so far.
 * False: even all tokens of at least `lowest` do not reach the goal.
 */
static bool find_cut(const struct filter *f, float lowest, float *ret_threshold, uint32_t *ret_ties)
{
	static const struct { unsigned char shift, bits; } passes[] = { { 21, 11 }, { 10, 11 }, { 0, 10 } };
	struct histogram h;
	double reached = 0;
	float highest = INFINITY;
	uint32_t key = 0;

	for (unsigned p = 0; p < 3; p++) {
		unsigned shift = passes[p].shift;
		uint32_t bin = 1u << passes[p].bits;
		fill(f, lowest, highest, shift, passes[p].bits, &h);
		while (bin > 0 && reached + h.size[bin - 1] < f->goal)
			reached += h.size[--bin];
		if (bin == 0)
			return false;
		key |= (bin - 1) << shift;
		lowest = order_value(key);
		highest = order_value(key | ((1u << shift) - 1));
	}
	float each = f->by_weight ? exp_negative((lowest - f->most) * f->inverse_temperature) : 1;
	*ret_threshold = lowest;
	*ret_ties = f->goal > reached && each > 0 ? (uint32_t)ceil((f->goal - reached) / each) : 1;
	return true;
}

static void drop_below(const struct filter *f, float threshold, uint32_t ties)
{
	uint32_t equal = 0;

	for (uint32_t i = 0; i < f->n; i++) {
		equal += f->x[i] == threshold;
		f->x[i] = f->x[i] < threshold ? -INFINITY : f->x[i];
	}
	for (uint32_t i = f->n; equal > ties && i-- > 0;)
		if (f->x[i] == threshold) {
			f->x[i] = -INFINITY;
			equal--;
		}
}

/* Most prefixes end among the likely tokens: look there first, and at all only if that was not enough. */
static void apply(const struct filter *f)
{
	float threshold, likely = f->most - 16 / f->inverse_temperature;
	uint32_t ties;

	if (find_cut(f, likely, &threshold, &ties) || find_cut(f, -FLT_MAX, &threshold, &ties))
		drop_below(f, threshold, ties);
}

/* ---- the draw ---- */

/* The first token at which the running sum of weights passes u of the whole. */
static uint32_t draw(float *x, uint32_t n, const struct kern_sampling *s, float most)
{
	float inverse = 1 / s->temperature, w[CHUNK];
	double total = total_weight(x, n, most, inverse), sum = 0, goal = philox_uniform(s->seed, s->draw) * total;
	uint32_t last = first_of(x, n, most);

	for (uint32_t i = 0; i < n; i += CHUNK) {
		uint32_t width = n - i < CHUNK ? n - i : CHUNK;
		double weight = weigh_chunk(x + i, width, most, inverse, w);
		if (sum + weight <= goal) {
			sum += weight;
			continue;
		}
		for (uint32_t j = 0; j < width; j++) {
			if (!(w[j] > 0))
				continue;
			last = i + j;
			sum += w[j];
			if (sum > goal)
				return last;
		}
	}
	return last;
}

static uint32_t filter_and_draw(float *x, uint32_t n, const struct kern_sampling *s)
{
	float most = largest(x, n);
	struct filter f = { .x = x, .n = n, .most = most, .inverse_temperature = 1 / s->temperature };

	if (s->top_k > 0 && s->top_k < n) {
		f.by_weight = false;
		f.goal = s->top_k;
		apply(&f);
	}
	if (s->top_p < 1) {
		f.by_weight = true;
		f.goal = s->top_p * total_weight(x, n, most, f.inverse_temperature);
		apply(&f);
	}
	for (uint32_t i = 0; s->min_p > 0 && i < n; i++)
		x[i] = exp_negative((x[i] - most) * f.inverse_temperature) < s->min_p ? -INFINITY : x[i];
	return draw(x, n, s, most);
}

static void sample_row(const struct kern_sampling *s, float *logits, uint32_t vocab, struct kern_result *result)
{
	float most = largest(logits, vocab);
	float log_total = most + (float)log(total_weight(logits, vocab, most, 1));

	list_top(logits, vocab, s->n_top, log_total, result);
	if (s->target >= 0) {
		result->token = (uint32_t)s->target;
		result->logprob = result->token < vocab ? logits[result->token] - log_total : -INFINITY;
		return;
	}
	if (s->repetition_penalty != 1) {
		penalise(s, vocab, logits);
		most = largest(logits, vocab);
	}
	float *x = logits;
	uint32_t token = s->temperature > 0 ? filter_and_draw(x, vocab, s) : first_of(x, vocab, most);
	result->token = token; /* never dropped, so its logit still stands */
	result->logprob = unpenalised(s, token, x[token]) - log_total;
}

/** One part: every n_parts-th output. */
void SAMPLE_NAME(struct kern_device *device, const void *args, unsigned part, unsigned n_parts)
{
	const struct kern_sample *a = args;

	(void)device;
	for (uint32_t i = part; i < a->n; i += n_parts)
		sample_row(&a->step->sampling[a->first + i], a->logits + (size_t)i * a->vocab, a->vocab,
			   &a->step->result[a->first + i]);
}
