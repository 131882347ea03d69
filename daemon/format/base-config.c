/* SPDX-License-Identifier: MIT */
/*
 * The base model's configuration
 *
 * One struct for both containers: config.json of a Hugging Face folder (hf-config.c) and the metadata of a GGUF file
 * (gguf-config.c). Both readers refuse by key what the forward step does not compute, fill the struct and end in
 * base_config_check(). What has no safe default is not defaulted: a wrong rope base gives plausible nonsense.
 */
#include "daemon/format/base-config.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#define LAYERS_MAX 1024u
#define WIDTH_MAX (1u << 20)
#define VOCAB_MAX (1u << 24)
#define CONTEXT_MAX (1u << 27)

static int check_range(const char *what, uint32_t value, uint32_t most, struct diag *diag)
{
	if (value && value <= most)
		return FORMAT_OK;
	return diag_set(diag, FORMAT_E_INVALID, "%s: %u is not in 1..%u", what, value, most);
}

static int check_shape(const struct image_geometry *g, struct diag *diag)
{
	int r;

	if ((r = check_range("number of layers", g->n_layers, LAYERS_MAX, diag)) ||
	    (r = check_range("hidden size", g->hidden, WIDTH_MAX, diag)) ||
	    (r = check_range("intermediate size", g->intermediate, WIDTH_MAX, diag)) ||
	    (r = check_range("number of attention heads", g->n_heads, WIDTH_MAX, diag)) ||
	    (r = check_range("number of key-value heads", g->n_kv_heads, g->n_heads, diag)) ||
	    (r = check_range("head size", g->head_dim, BASE_HEAD_DIM_MAX, diag)) ||
	    (r = check_range("vocabulary size", g->vocab, VOCAB_MAX, diag)))
		return r;
	if (g->n_heads % g->n_kv_heads)
		return diag_set(diag, FORMAT_E_INVALID, "%u attention heads are no multiple of %u key-value heads",
				g->n_heads, g->n_kv_heads);
	if (g->head_dim % 2)
		return diag_set(diag, FORMAT_E_INVALID, "head size %u is odd", g->head_dim);
	return check_range("attention width", g->n_heads * g->head_dim, WIDTH_MAX, diag);
}

static int check_rope(const struct base_config *c, struct diag *diag)
{
	if (!(c->rope_theta > 0))
		return diag_set(diag, FORMAT_E_INVALID, "rope theta: %g is not positive", c->rope_theta);
	if ((c->rope == BASE_ROPE_LINEAR || c->rope == BASE_ROPE_LLAMA3) && !(c->rope_factor >= 1))
		return diag_set(diag, FORMAT_E_INVALID, "rope factor: %g is below 1", c->rope_factor);
	if (c->rope != BASE_ROPE_LLAMA3)
		return FORMAT_OK;
	if (!(c->rope_low > 0) || !(c->rope_high > c->rope_low) || !c->rope_context)
		return diag_set(diag, FORMAT_E_INVALID,
				"rope scaling llama3: low_freq_factor %g, high_freq_factor %g, original context %u do not fit",
				c->rope_low, c->rope_high, c->rope_context);
	return FORMAT_OK;
}

/** base_config_check() - what every base model must fulfil, whichever file it came from */
int base_config_check(const struct base_config *config, struct diag *diag)
{
	uint32_t i;
	int r;

	r = check_shape(&config->geometry, diag);
	if (r)
		return r;
	r = check_range("context", config->context, CONTEXT_MAX, diag);
	if (r)
		return r;
	if (!(config->norm_eps > 0 && config->norm_eps < 1))
		return diag_set(diag, FORMAT_E_INVALID, "norm epsilon: %g is not in (0, 1)", config->norm_eps);
	for (i = 0; i < config->n_stops; ++i)
		if (config->stop[i] >= config->geometry.vocab)
			return diag_set(diag, FORMAT_E_INVALID, "end-of-sequence id %u is outside the vocabulary of %u",
					config->stop[i], config->geometry.vocab);
	return check_rope(config, diag);
}

/** base_config_add_stop() - one more end-of-sequence id; one that is there already is not added again */
int base_config_add_stop(struct base_config *config, uint32_t id, struct diag *diag)
{
	uint32_t i;

	for (i = 0; i < config->n_stops; ++i)
		if (config->stop[i] == id)
			return FORMAT_OK;
	if (config->n_stops == BASE_STOPS_MAX)
		return diag_set(diag, FORMAT_E_INVALID, "more than %d end-of-sequence ids", BASE_STOPS_MAX);
	config->stop[config->n_stops++] = id;
	return FORMAT_OK;
}

/*
 * Llama 3.1's scaling: waves shorter than original_context / high keep their frequency, waves longer than
 * original_context / low are slowed by factor, those between pass smoothly from one to the other.
 */
static double llama3_scale(const struct base_config *c, double frequency)
{
	double wavelength = 2 * M_PI / frequency, smooth;

	if (wavelength > c->rope_context / c->rope_low)
		return frequency / c->rope_factor;
	if (wavelength < c->rope_context / c->rope_high)
		return frequency;
	smooth = (c->rope_context / wavelength - c->rope_low) / (c->rope_high - c->rope_low);
	return (1 - smooth) * frequency / c->rope_factor + smooth * frequency;
}

/**
 * base_config_inv_freq() - rope frequencies, scaling applied
 * @config:     a checked configuration
 * @inv_freq:   [head_dim / 2], radians per position of pair i: theta^(-2i / head_dim), then scaled
 *
 * Computed in double precision; transformers computes the same formulas in single.
 */
void base_config_inv_freq(const struct base_config *config, float *inv_freq)
{
	uint32_t half = config->geometry.head_dim / 2, i;
	float divisor;

	assert(half && config->rope_theta > 0);
	for (i = 0; i < half; ++i) {
		double f = pow(config->rope_theta, -2.0 * i / config->geometry.head_dim);

		switch (config->rope) {
		case BASE_ROPE_DEFAULT:
			break;
		case BASE_ROPE_LINEAR:
			f /= config->rope_factor;
			break;
		case BASE_ROPE_LLAMA3:
			f = llama3_scale(config, f);
			break;
		case BASE_ROPE_FACTORS:
			memcpy(&divisor, (const char *)config->rope_factors + i * sizeof(divisor), sizeof(divisor));
			f /= divisor;
			break;
		}
		inv_freq[i] = (float)f;
	}
}
