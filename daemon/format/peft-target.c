/* SPDX-License-Identifier: MIT */
/*
 * PEFT's matching rules
 *
 * target_modules   a list: a module's name is an item or ends in "." and an item; a string: the name as a whole matches it
 *                  as a regular expression, but "all-linear" means every linear module except the output head; not
 *                  given: q_proj and v_proj, PEFT's default for Llama
 * exclude_modules  the same, and wins
 * layers_to_transform, layers_pattern
 *                  only for items of a list that matched as a suffix: the layer's number must be among these
 * rank_pattern, alpha_pattern
 *                  the first key, in the file's order, for which re.match("(.*\.)?(KEY)$", name) is true
 *
 * The expressions are Python's. PCRE2 reads nearly the same language; where the two part (or where Python would refuse
 * the expression) it is refused, so that no adapter is served with other modules or scales than PEFT would give it.
 * Names are ASCII, so neither side's ideas of Unicode matter.
 */
#include "daemon/format/peft-target.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <ctype.h>
#include <errno.h>
#include <pcre2.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "daemon/format/json.h"

#define REGEX_MAX 2048u
#define ITEMS_MAX 8192u
#define MATCH_LIMIT 100000u /* steps of one match; honest expressions take a few dozen */

struct name_set {          /* target_modules or exclude_modules */
	const json_t *list;
	pcre2_code *regex;
	bool all_linear;
};

struct value_pattern {     /* one entry of rank_pattern or alpha_pattern */
	pcre2_code *regex;
	double value;
};

struct value_patterns {
	struct value_pattern *entry;
	size_t n;
};

struct peft_rules {
	json_t *config;        /* keeps the lists */
	struct name_set target, exclude;
	const json_t *layers;  /* an integer or an array, NULL: any */
	pcre2_code **layer_regex; /* group 1: the number */
	size_t n_layer_regex;
	struct value_patterns rank, alpha;
	pcre2_match_data *match;
	pcre2_match_context *context;
};

static bool starts_with(const char *text, const char *const *heads)
{
	for (; *heads; ++heads)
		if (!strncmp(text, *heads, strlen(*heads)))
			return true;
	return false;
}

/* Escapes that mean the same to both: \A, \d ... and signs. No references to groups: these are numbered differently. */
static bool shared_escape(char c)
{
	return c && (strchr("AbBdDsSwWnrtf", c) || !isalnum((unsigned char)c));
}

/* Does Python's re read this as PCRE2 does? NULL, or the place where it may not. */
static const char *find_foreign(const char *regex)
{
	static const char *const groups[] = { "(?:", "(?=", "(?!", "(?<=", "(?<!", "(?P<", NULL };
	static const char *const posix[] = { "[:", "[.", "[=", NULL };
	bool in_class = false;
	const char *p;

	for (p = regex; *p; ++p) {
		if (*p == '\\') {
			if (!shared_escape(p[1]))
				return p;
			++p;
		} else if (in_class) {
			if (starts_with(p, posix))
				return p;
			in_class = *p != ']';
		} else if (*p == '[') {
			in_class = true;
			p += p[1] == '^';
			p += p[1] == ']'; /* as the first sign it stands for itself */
		} else if (*p == '(' && (p[1] == '*' || (p[1] == '?' && !starts_with(p, groups)))) {
			return p;
		} else if (*p == '{' && p[1] == ',') {
			return p;
		}
	}
	return NULL;
}

/* head REGEX tail, compiled. */
static int compile(pcre2_code **ret, const char *what, const char *head, const char *regex, const char *tail,
		   struct diag *diag)
{
	const char *foreign = find_foreign(regex);
	char pattern[REGEX_MAX + 64], reason[120] = "";
	PCRE2_SIZE offset;
	int error;

	if (strlen(regex) > REGEX_MAX)
		return diag_set(diag, FORMAT_E_INVALID, "%s: an expression of more than %u bytes", what, REGEX_MAX);
	if (foreign)
		return diag_set(diag, FORMAT_E_INVALID, "%s: '%.100s': not supported at '%.12s'", what, regex, foreign);
	(void)snprintf(pattern, sizeof(pattern), "%s%s%s", head, regex, tail);
	*ret = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, 0, &error, &offset, NULL);
	if (*ret)
		return FORMAT_OK;
	pcre2_get_error_message(error, (PCRE2_UCHAR *)reason, sizeof(reason));
	return diag_set(diag, FORMAT_E_INVALID, "%s: '%.100s': %s", what, regex, reason);
}

/* ---- reading the rules ---- */

static int check_strings(const char *key, const json_t *list, struct diag *diag)
{
	size_t i;

	if (json_array_size(list) > ITEMS_MAX)
		return diag_set(diag, FORMAT_E_INVALID, "%s: more than %u items", key, ITEMS_MAX);
	for (i = 0; i < json_array_size(list); ++i)
		if (!json_is_string(json_array_get(list, i)))
			return diag_set(diag, FORMAT_E_INVALID, "%s: item %zu is no string", key, i);
	return FORMAT_OK;
}

static int read_name_set(struct name_set *set, const char *key, const json_t *value, struct diag *diag)
{
	if (json_is_string(value))
		return compile(&set->regex, key, "^(?:", json_string_value(value), ")\\z", diag);
	if (!json_is_array(value))
		return diag_set(diag, FORMAT_E_INVALID, "%s: neither a string nor a list", key);
	set->list = value;
	return check_strings(key, value, diag);
}

static int read_targets(struct peft_rules *rules, json_t *config, struct diag *diag)
{
	const json_t *target = json_object_get(config, "target_modules"), *exclude = json_object_get(config, "exclude_modules");
	int r = FORMAT_OK;

	if (json_is_string(target) && !strcasecmp(json_string_value(target), "all-linear"))
		rules->target.all_linear = true;
	else if (target && !json_is_null(target))
		r = read_name_set(&rules->target, "target_modules", target, diag);
	if (!r && json_truthy(exclude))
		r = read_name_set(&rules->exclude, "exclude_modules", exclude, diag);
	return r;
}

static int check_layers(const json_t *layers, struct diag *diag)
{
	size_t i;

	if (json_is_integer(layers))
		return FORMAT_OK;
	for (i = 0; i < json_array_size(layers); ++i)
		if (!json_is_integer(json_array_get(layers, i)))
			break;
	if (!json_is_array(layers) || i < json_array_size(layers) || i > ITEMS_MAX)
		return diag_set(diag, FORMAT_E_INVALID, "layers_to_transform: neither a number nor a list of them");
	return FORMAT_OK;
}

static int read_layers(struct peft_rules *rules, json_t *config, struct diag *diag)
{
	const json_t *layers = json_object_get(config, "layers_to_transform");
	const json_t *pattern = json_object_get(config, "layers_pattern");
	size_t n = json_is_array(pattern) ? json_array_size(pattern) : 1, i;
	bool given = layers && !json_is_null(layers);
	int r;

	if (json_truthy(pattern) && !given)
		return diag_set(diag, FORMAT_E_INVALID, "layers_pattern: given without layers_to_transform");
	if (!given)
		return FORMAT_OK;
	if (json_is_string(json_object_get(config, "target_modules")))
		return diag_set(diag, FORMAT_E_INVALID, "layers_to_transform: given, but target_modules is a string");
	r = check_layers(layers, diag);
	if (r)
		return r;
	rules->layers = json_is_array(layers) && !json_array_size(layers) ? NULL : layers;
	rules->layer_regex = calloc(n + 1, sizeof(*rules->layer_regex));
	if (!rules->layer_regex)
		return error_origin(-ENOMEM);
	if (!json_truthy(pattern))
		return compile(&rules->layer_regex[rules->n_layer_regex++], "layers_pattern", "^.*?\\.[^.]*", "",
			       "\\.(?<idx>[0-9]+)\\.", diag);
	for (i = 0; i < n; ++i) {
		const char *text = json_string_value(json_is_array(pattern) ? json_array_get(pattern, i) : pattern);

		if (!text || n > ITEMS_MAX)
			return diag_set(diag, FORMAT_E_INVALID, "layers_pattern: neither a string nor a list of them");
		r = compile(&rules->layer_regex[rules->n_layer_regex++], "layers_pattern", "^(?:|.*?\\.)", text,
			    "\\.(?<idx>[0-9]+)\\.", diag); /* not grouped: a | in it cuts PEFT's pattern too */
		if (r)
			return r;
	}
	return FORMAT_OK;
}

static int read_values(struct value_patterns *patterns, const char *key, json_t *object, struct diag *diag)
{
	void *it;
	int r;

	if (!json_truthy(object))
		return FORMAT_OK;
	if (!json_is_object(object) || json_object_size(object) > ITEMS_MAX)
		return diag_set(diag, FORMAT_E_INVALID, "%s: no object, or one with more than %u keys", key, ITEMS_MAX);
	patterns->entry = calloc(json_object_size(object), sizeof(*patterns->entry));
	if (!patterns->entry)
		return error_origin(-ENOMEM);
	for (it = json_object_iter(object); it; it = json_object_iter_next(object, it)) {
		struct value_pattern *entry = &patterns->entry[patterns->n++];

		if (!json_is_number(json_object_iter_value(it)))
			return diag_set(diag, FORMAT_E_INVALID, "%s: '%.100s' is no number", key, json_object_iter_key(it));
		entry->value = json_number_value(json_object_iter_value(it));
		r = compile(&entry->regex, key, "^(?:.*\\.)?(?:", json_object_iter_key(it), ")$", diag);
		if (r)
			return r;
	}
	return FORMAT_OK;
}

/**
 * peft_rules_new() - read what a configuration says about names
 * @ret:        the rules
 * @config:     the root of adapter_config.json; referenced
 * @diag:       the key that cannot be honoured
 *
 * Return: 0, -ENOMEM or FORMAT_E_INVALID.
 */
int peft_rules_new(struct peft_rules **ret, json_t *config, struct diag *diag)
{
	_cleanup_(peft_rules_freep) struct peft_rules *rules = calloc(1, sizeof(*rules));
	int r;

	if (!rules)
		return error_origin(-ENOMEM);
	rules->config = json_incref(config);
	rules->match = pcre2_match_data_create(16, NULL);
	rules->context = pcre2_match_context_create(NULL);
	if (!rules->match || !rules->context)
		return error_origin(-ENOMEM);
	pcre2_set_match_limit(rules->context, MATCH_LIMIT);
	if ((r = read_targets(rules, config, diag)) || (r = read_layers(rules, config, diag)) ||
	    (r = read_values(&rules->rank, "rank_pattern", json_object_get(config, "rank_pattern"), diag)) ||
	    (r = read_values(&rules->alpha, "alpha_pattern", json_object_get(config, "alpha_pattern"), diag)))
		return error_trace(r);
	*ret = TAKE_PTR(rules);
	return FORMAT_OK;
}

static void free_values(struct value_patterns *patterns)
{
	size_t i;

	for (i = 0; i < patterns->n; ++i)
		pcre2_code_free(patterns->entry[i].regex);
	free(patterns->entry);
}

struct peft_rules *peft_rules_free(struct peft_rules *rules)
{
	size_t i;

	if (!rules)
		return NULL;
	for (i = 0; i < rules->n_layer_regex; ++i)
		pcre2_code_free(rules->layer_regex[i]);
	free(rules->layer_regex);
	pcre2_code_free(rules->target.regex);
	pcre2_code_free(rules->exclude.regex);
	free_values(&rules->rank);
	free_values(&rules->alpha);
	pcre2_match_data_free(rules->match);
	pcre2_match_context_free(rules->context);
	json_decref(rules->config);
	free(rules);
	return NULL;
}

/* ---- applying them: 0, 1 or a negative errno ---- */

static int matches(const struct peft_rules *rules, const pcre2_code *regex, const char *name)
{
	int r = pcre2_match(regex, (PCRE2_SPTR)name, strlen(name), 0, 0, rules->match, rules->context);

	if (r == PCRE2_ERROR_NOMATCH)
		return 0;
	if (r < 0)
		return r == PCRE2_ERROR_NOMEMORY ? error_origin(-ENOMEM) : -E2BIG;
	return 1;
}

enum list_match { LIST_NONE, LIST_SUFFIX, LIST_EXACT };

static enum list_match match_list(const json_t *list, const char *name)
{
	enum list_match best = LIST_NONE;
	size_t i, length = strlen(name);

	for (i = 0; i < json_array_size(list); ++i) {
		const char *item = json_string_value(json_array_get(list, i));
		size_t n = strlen(item);

		if (!strcmp(name, item))
			return LIST_EXACT;
		if (n < length && name[length - n - 1] == '.' && !strcmp(name + length - n, item))
			best = LIST_SUFFIX;
	}
	return best;
}

static bool layer_listed(const struct peft_rules *rules, json_int_t layer)
{
	size_t i;

	if (json_is_integer(rules->layers))
		return json_integer_value(rules->layers) == layer;
	for (i = 0; i < json_array_size(rules->layers); ++i)
		if (json_integer_value(json_array_get(rules->layers, i)) == layer)
			return true;
	return false;
}

static int layer_wanted(const struct peft_rules *rules, const char *name)
{
	PCRE2_UCHAR text[24];
	PCRE2_SIZE n;
	size_t i;
	int r = 0;

	if (!rules->layers)
		return 1;
	for (i = 0; i < rules->n_layer_regex && !r; ++i)
		r = matches(rules, rules->layer_regex[i], name);
	if (r <= 0)
		return error_trace(r);
	n = sizeof(text);
	if (pcre2_substring_copy_byname(rules->match, (PCRE2_SPTR) "idx", text, &n))
		return 0;
	return layer_listed(rules, strtoll((const char *)text, NULL, 10));
}

/**
 * peft_rules_target() - would PEFT put a LoRA on this module?
 * @rules:      the rules
 * @name:       of a linear module
 *
 * Return: 1 or 0; -E2BIG where an expression takes absurdly long.
 */
int peft_rules_target(const struct peft_rules *rules, const char *name)
{
	enum list_match how;
	int r;

	if (rules->exclude.regex) {
		r = matches(rules, rules->exclude.regex, name);
		if (r)
			return r < 0 ? error_trace(r) : 0;
	}
	if (rules->exclude.list && match_list(rules->exclude.list, name))
		return 0;
	if (rules->target.all_linear)
		return strcmp(name, "lm_head") != 0;
	if (rules->target.regex)
		return error_trace(matches(rules, rules->target.regex, name));
	if (!rules->target.list) {
		const char *last = strrchr(name, '.');

		how = last && (!strcmp(last, ".q_proj") || !strcmp(last, ".v_proj")) ? LIST_SUFFIX : LIST_NONE;
	} else {
		how = match_list(rules->target.list, name);
	}
	return how == LIST_SUFFIX ? error_trace(layer_wanted(rules, name)) : how == LIST_EXACT;
}

static int find_value(const struct peft_rules *rules, const struct value_patterns *patterns, const char *name, double *ret)
{
	size_t i;
	int r;

	for (i = 0; i < patterns->n; ++i) {
		r = matches(rules, patterns->entry[i].regex, name);
		if (r < 0)
			return error_trace(r);
		if (r) {
			*ret = patterns->entry[i].value;
			break;
		}
	}
	return 0;
}

int peft_rules_rank(const struct peft_rules *rules, const char *name, double *ret)
{
	return error_trace(find_value(rules, &rules->rank, name, ret));
}

int peft_rules_alpha(const struct peft_rules *rules, const char *name, double *ret)
{
	return error_trace(find_value(rules, &rules->alpha, name, ret));
}
