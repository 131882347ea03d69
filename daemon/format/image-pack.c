/* SPDX-License-Identifier: MIT */
/*
 * Packing: a source image -> the same modules in int8
 *
 * Row j of A and row j of B only ever meet as a product, so one scale covers both: with A[j][i] = p a[j][i] and
 * B[j][o] = q b[j][o] for integers a, b within 127 the change of a module's weight is sum over j of (p q) b[j][o] a[j][i].
 * Rows are scaled by their largest number, one by one: a rank whose numbers are small loses no more than others.
 *
 * Whether that is good enough is found out here, before anybody uses it: the packed change D' is compared with the source's D
 * on vectors x of random signs. The mean of |D x|^2 over such x is the squared Frobenius norm of D (Hutchinson, "A stochastic
 * estimator of the trace of the influence matrix", 1990), so |(D - D') x| / |D x| over a few of them estimates the relative
 * error of the whole change, including what ranks that cancel each other would hide from a look at single rows. Such a norm
 * is blind where a few numbers dwarf all others, so a row whose largest number is too far above the usual ones counts as
 * wholly wrong. An adapter one module of which is too far off stays as it is, whole: one type per image.
 *
 * Rounding errors are independent of the input, so what an error of the weights does to outputs is known without prompts;
 * docs/SPEED.md has what it does to log-probabilities, and tests/unit/test-model-golden holds them to PEFT's.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/cleanup.h"
#include "daemon/format/image.h"
#include "kernels/kernels.h"
#include "kernels/quant.h"

#define PROBES 16u        /* of rank 1 each gives one number: fewer would call one of many good modules too coarse */
#define TINY 0x1p-100f    /* rows of smaller numbers than this: 127 divided by them need not be finite */
#define CREST_MOST 32     /* largest number over mean of those not zero; a rounding error is then 7 % of that mean */
#define ERROR_MOST 0.03f  /* of a module's change, relative: nearly three times what adapters of rank 3 and more have */

/* One pack. Widths: the widest module's. */
struct packing {
	const uint8_t *source;
	uint8_t *packed;
	float *sign;     /* [in][PROBES]: the vectors, 1 or -1 */
	float *numbers;  /* [in or out]: a row of the source */
	float *change;   /* [out][PROBES]: D x */
	float *off;      /* [out][PROBES]: (D - D') x */
};

static void packing_deinit(struct packing *p)
{
	free(p->packed);
	free(p->sign);
	free(p->numbers);
	free(p->change);
	free(p->off);
}

static void draw_signs(float *sign, size_t n)
{
	uint32_t x = 2463534242u; /* xorshift: the same signs for every adapter */

	for (size_t i = 0; i < n; ++i) {
		x ^= x << 13;
		x ^= x >> 17;
		x ^= x << 5;
		sign[i] = x & 0x10000 ? 1 : -1;
	}
}

static int packing_init(struct packing *p, const void *source, const struct image_module *modules, uint32_t n_modules,
			uint64_t bytes)
{
	size_t in = 0, out = 0;

	for (uint32_t i = 0; i < n_modules; ++i) {
		in = modules[i].in > in ? modules[i].in : in;
		out = modules[i].out > out ? modules[i].out : out;
	}
	*p = (struct packing){
		.source = source,
		.packed = aligned_alloc(IMAGE_PAGE, bytes),
		.sign = malloc(in * PROBES * sizeof(float)),
		.numbers = malloc((in > out ? in : out) * sizeof(float)),
		.change = malloc(out * PROBES * sizeof(float)),
		.off = malloc(out * PROBES * sizeof(float)),
	};
	if (!p->packed || !p->sign || !p->numbers || !p->change || !p->off)
		return error_origin(-ENOMEM);
	draw_signs(p->sign, in * PROBES);
	return 0;
}

/*
 * A row -> integers; returns what they are to be multiplied with: infinite if they are no good. A row of next to nothing
 * becomes zeros.
 */
static float pack_row(const float *from, uint32_t n, int8_t *to)
{
	float most = 0, sum = 0, by;
	uint32_t n_not_zero = 0;

	for (uint32_t i = 0; i < n; ++i) {
		most = fabsf(from[i]) > most ? fabsf(from[i]) : most;
		sum += fabsf(from[i]);
		n_not_zero += from[i] != 0;
	}
	if (most * (float)n_not_zero > CREST_MOST * sum)
		return INFINITY;
	by = most > TINY ? 127 / most : 0;
	for (uint32_t i = 0; i < n; ++i)
		to[i] = (int8_t)(from[i] * by + (from[i] < 0 ? -0.5f : 0.5f));
	return most / 127;
}

/* Rank row j of a module: both matrices, the scale, and its part of change and off. */
static void pack_rank(const struct packing *p, const struct image_module *from, const struct image_module *to, uint32_t j)
{
	const enum kern_dtype dtype = (enum kern_dtype)from->dtype;
	int8_t *a = (int8_t *)p->packed + to->a_offset + j * kern_lora_stride(KERN_I8, to->in);
	int8_t *b = (int8_t *)p->packed + to->b_offset + j * kern_lora_stride(KERN_I8, to->out);
	float x[PROBES] = { 0 }, packed_x[PROBES] = { 0 }, scale;

	quant_decode(dtype, p->source + from->a_offset + j * kern_lora_stride(dtype, from->in), 0, from->in, p->numbers);
	scale = pack_row(p->numbers, from->in, a);
	for (uint32_t i = 0; i < from->in; ++i) {
		const float *sign = p->sign + i * PROBES, number = p->numbers[i], packed = a[i];

		for (unsigned v = 0; v < PROBES; ++v) {
			x[v] += sign[v] * number;
			packed_x[v] += sign[v] * packed;
		}
	}
	quant_decode(dtype, p->source + from->b_offset + j * kern_lora_stride(dtype, from->out), 0, from->out, p->numbers);
	scale *= pack_row(p->numbers, from->out, b);
	for (uint32_t o = 0; o < from->out; ++o) {
		float *change = p->change + o * PROBES, *off = p->off + o * PROBES;
		const float number = p->numbers[o], packed = scale * b[o];

		for (unsigned v = 0; v < PROBES; ++v) {
			change[v] += x[v] * number;
			off[v] += x[v] * number - packed_x[v] * packed;
		}
	}
	memcpy(p->packed + (to->a_offset - image_scales_bytes(to)) + j * sizeof(scale), &scale, sizeof(scale));
}

/* Returns the relative error of the module. */
static float pack_module(const struct packing *p, const struct image_module *from, const struct image_module *to)
{
	const size_t n = (size_t)from->out * PROBES;
	double change = 0, off = 0;

	memset(p->change, 0, n * sizeof(float));
	memset(p->off, 0, n * sizeof(float));
	for (uint32_t j = 0; j < from->rank; ++j)
		pack_rank(p, from, to, j);
	for (size_t i = 0; i < n; ++i) {
		change += (double)p->change[i] * p->change[i];
		off += (double)p->off[i] * p->off[i];
	}
	if (off == 0)
		return 0;
	return off <= change ? (float)sqrt(off / change) : INFINITY; /* also where either is no number */
}

/**
 * image_pack() - make an image's packed form
 * @source:     a whole payload, filled
 * @modules:    its table, from image_plan()
 * @n_modules:  how many
 * @geometry:   the model's shape
 * @ret:        the packed payload and how far it is off
 *
 * Return: IMAGE_PACK_OK; IMAGE_PACK_E_COARSE: int8 is too coarse for it, only the error is returned; -ENOMEM.
 */
int image_pack(const void *source, const struct image_module *modules, uint32_t n_modules,
	       const struct image_geometry *geometry, struct image_packed *ret)
{
	_cleanup_free_ struct image_module *to = malloc(n_modules * sizeof(*to));
	_cleanup_(packing_deinit) struct packing p = {};
	float error = 0;
	uint64_t bytes;
	int r;

	if (!to)
		return error_origin(-ENOMEM);
	memcpy(to, modules, n_modules * sizeof(*to));
	for (uint32_t i = 0; i < n_modules; ++i)
		to[i].dtype = KERN_I8;
	r = image_plan(to, n_modules, geometry, &bytes, NULL);
	if (r)
		return r < 0 ? error_trace(r) : IMAGE_PACK_E_COARSE; /* no module is refused for being smaller */
	r = packing_init(&p, source, modules, n_modules, bytes);
	if (r)
		return error_trace(r);
	image_begin(p.packed, bytes, to, n_modules);
	for (uint32_t i = 0; i < n_modules; ++i) {
		float of_module = pack_module(&p, &modules[i], &to[i]);

		error = of_module > error ? of_module : error;
	}
	*ret = (struct image_packed){ .error = error };
	if (error > ERROR_MOST)
		return IMAGE_PACK_E_COARSE;
	ret->payload = TAKE_PTR(p.packed);
	ret->bytes = bytes;
	return IMAGE_PACK_OK;
}
