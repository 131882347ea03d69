/* SPDX-License-Identifier: MIT */
/*
 * The frame of `loractl top`
 *
 * Two Status replies become one object of figures (top_figures(), which is also what --json prints), and the figures become
 * lines (top_render()). Nothing here talks to the daemon or to the terminal.
 *
 * Members that a daemon does not have are null and shown as "-"; a counter that went back means that the daemon began anew,
 * and counts from 0. Names and words come from others: each line is cut to the screen and cleared of all that is not
 * printable ASCII in one place, line().
 */
#include "tools/top-frame.h"

#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/cleanup.h"

#define BAR_CELLS 24
#define LIST_ROWS 20 /* of a list, where the screen has no end */
#define LINE_BYTES 512

/* ---- figures ---- */

enum figure_kind {
	NOW,   /* the value */
	RATE,  /* its growth a second */
	RATIO, /* its growth for each of `per` */
};

static const struct figure {
	const char *name;
	enum figure_kind kind;
	const char *path, *per;
	double factor;
} table[] = {
	{ "uptime_s", NOW, "uptime_s", NULL, 1 },
	{ "clients", NOW, "clients", NULL, 1 },
	{ "running", NOW, "requests.running", NULL, 1 },
	{ "waiting", NOW, "requests.waiting", NULL, 1 },
	{ "requests_s", RATE, "requests.finished", NULL, 1 },
	{ "failed_s", RATE, "requests.failed", NULL, 1 },
	{ "cancelled_s", RATE, "requests.cancelled", NULL, 1 },
	{ "turned_away_s", RATE, "requests.turned_away", NULL, 1 },
	{ "preempted_s", RATE, "requests.preempted", NULL, 1 },
	{ "prompt_tokens_s", RATE, "steps.prompt_tokens", NULL, 1 },
	{ "generated_tokens_s", RATE, "steps.generated_tokens", NULL, 1 },
	{ "prefix_hit_tokens_s", RATE, "steps.prefix_hit_tokens", NULL, 1 },
	{ "steps_s", RATE, "steps.count", NULL, 1 },
	{ "step_ms", RATIO, "steps.seconds", "steps.count", 1e3 },
	{ "rows_per_step", RATIO, "steps.rows", "steps.count", 1 },
	{ "adapters_per_step", RATIO, "steps.adapters", "steps.count", 1 },
	{ "pool_bytes", NOW, "pool.bytes", NULL, 1 },
	{ "pool_kv_bytes", NOW, "pool.kv", NULL, 1 },
	{ "pool_adapter_bytes", NOW, "pool.adapters", NULL, 1 },
	{ "kv_blocks_used", NOW, "kv.used", NULL, 1 },
	{ "kv_blocks_cached", NOW, "kv.cached", NULL, 1 },
	{ "resident", NOW, "cache.resident", NULL, 1 },
	{ "host_bytes", NOW, "cache.host_bytes", NULL, 1 },
	{ "loading", NOW, "cache.loading", NULL, 1 },
	{ "hits_device_s", RATE, "cache.hits_device", NULL, 1 },
	{ "hits_host_s", RATE, "cache.hits_host", NULL, 1 },
	{ "misses_s", RATE, "cache.misses", NULL, 1 },
	{ "evictions_device_s", RATE, "cache.evictions_device", NULL, 1 },
	{ "evictions_host_s", RATE, "cache.evictions_host", NULL, 1 },
	{ "loads_s", RATE, "cache.loads", NULL, 1 },
	{ "page_in_ms", RATIO, "cache.load_seconds", "cache.loads", 1e3 },
};

/* Counters and values of the entries of a list. */
struct column {
	const char *name, *from;
	bool rate;
};

static const struct column user_columns[] = {
	{ "running", "running", false },
	{ "waiting", "waiting", false },
	{ "prompt_tokens_s", "prompt_tokens", true },
	{ "generated_tokens_s", "generated_tokens", true },
	{ "service_s", "service", true },
	{ "weight", "weight", false },
	{ "refused_s", "refused", true },
	{ "aborted_s", "aborted", true },
};

static const struct column adapter_columns[] = {
	{ "running", "running", false },
	{ "requests_s", "requests", true },
	{ "tokens_s", "tokens", true },
};

#define N_OF(array) (sizeof(array) / sizeof((array)[0]))

/* The number at "a.b" of an object, or NULL. */
static json_t *value_at(const json_t *object, const char *path)
{
	const char *dot = strchr(path, '.');
	json_t *value;
	char key[64];

	(void)snprintf(key, sizeof(key), "%.*s", dot ? (int)(dot - path) : (int)strlen(path), path);
	value = json_object_get(object, key);
	if (dot)
		return value_at(value, dot + 1);
	return json_is_number(value) ? value : NULL;
}

/* NaN: there is none. */
static double number_at(const json_t *object, const char *path)
{
	const json_t *value = value_at(object, path);

	return value ? json_number_value(value) : (double)NAN;
}

static json_t *number(double value)
{
	return isfinite(value) ? json_real(value) : json_null();
}

/* How much a counter has grown; what was not there before has grown from 0. */
static double growth(const json_t *before, const json_t *now, const char *path)
{
	double was = number_at(before, path), is = number_at(now, path);

	return isnan(was) || was > is ? is : is - was;
}

/* As it is, or null. */
static json_t *copy_number(const json_t *object, const char *path)
{
	json_t *value = value_at(object, path);

	return value ? json_incref(value) : json_null();
}

static json_t *make_figure(const struct figure *figure, const json_t *before, const json_t *now, double seconds)
{
	double per;

	if (figure->kind == NOW)
		return copy_number(now, figure->path);
	per = figure->kind == RATE ? seconds : growth(before, now, figure->per);
	return number(per > 0 ? figure->factor * growth(before, now, figure->path) / per : (double)NAN);
}

static const json_t *find_user(const json_t *list, const json_t *uid)
{
	json_t *user;
	size_t i;

	json_array_foreach(list, i, user)
		if (json_equal(json_object_get(user, "uid"), uid))
			return user;
	return NULL;
}

/* The entries of a list by digest. */
static json_t *index_digests(const json_t *list)
{
	json_t *index = json_object(), *entry;
	size_t i;

	json_array_foreach(list, i, entry)
		if (json_is_string(json_object_get(entry, "digest")))
			json_object_set(index, json_string_value(json_object_get(entry, "digest")), entry);
	return index;
}

static void set_word(json_t *to, const char *key, json_t *word)
{
	json_object_set_new(to, key, json_is_string(word) ? json_incref(word) : json_null());
}

static json_t *entry_figures(const json_t *before, json_t *now, const struct column *columns, size_t n, double seconds)
{
	json_t *entry = json_object();

	for (size_t i = 0; i < n; ++i)
		json_object_set_new(entry, columns[i].name,
				    columns[i].rate ? number(growth(before, now, columns[i].from) / seconds) :
						      copy_number(now, columns[i].from));
	return entry;
}

static json_t *user_figures(const json_t *before, const json_t *now, double seconds)
{
	json_t *list = json_array(), *user;
	size_t i;

	json_array_foreach(json_object_get(now, "users"), i, user) {
		json_t *uid = json_object_get(user, "uid"), *entry;
		const json_t *was = find_user(json_object_get(before, "users"), uid);

		entry = entry_figures(was, user, user_columns, N_OF(user_columns), seconds);
		json_object_set(entry, "uid", uid);
		json_array_append_new(list, entry);
	}
	return list;
}

static int compare_use(const void *a, const void *b)
{
	const json_t *x = *(json_t *const *)a, *y = *(json_t *const *)b;
	static const char *const keys[] = { "tokens_s", "requests_s", "running" };

	for (size_t i = 0; i < N_OF(keys); ++i) {
		double p = fmax(number_at(x, keys[i]), 0), q = fmax(number_at(y, keys[i]), 0); /* null: 0 */

		if (p != q)
			return p < q ? 1 : -1;
	}
	return strcmp(json_string_value(json_object_get(x, "digest")), json_string_value(json_object_get(y, "digest")));
}

static bool was_used(const json_t *entry)
{
	return number_at(entry, "tokens_s") > 0 || number_at(entry, "requests_s") > 0 || number_at(entry, "running") > 0;
}

/* Those that were used between the two, the most used first. An entry without a digest is left out. */
static json_t *adapter_figures(const json_t *before, const json_t *now, const json_t *names, double seconds)
{
	const json_t *all = json_object_get(now, "adapters");
	_cleanup_(json_decrefp) json_t *old = index_digests(json_object_get(before, "adapters"));
	_cleanup_free_ json_t **used = calloc(json_array_size(all) + 1, sizeof(json_t *));
	json_t *list = json_array(), *adapter;
	size_t i, n = 0;

	json_array_foreach(all, i, adapter) {
		json_t *digest = json_object_get(adapter, "digest"), *entry;

		if (!used || !json_is_string(digest))
			continue;
		entry = entry_figures(json_object_get(old, json_string_value(digest)), adapter, adapter_columns,
				      N_OF(adapter_columns), seconds);
		json_object_set(entry, "digest", digest);
		set_word(entry, "name", json_object_get(names, json_string_value(digest)));
		set_word(entry, "state", json_object_get(adapter, "state"));
		if (was_used(entry))
			used[n++] = entry;
		else
			json_decref(entry);
	}
	if (n)
		qsort(used, n, sizeof(json_t *), compare_use);
	for (i = 0; i < n; ++i)
		json_array_append_new(list, used[i]);
	return list;
}

/**
 * top_figures() - what happened between two Status replies
 * @before:  the earlier reply
 * @now:     the later one
 * @known:   from top_known(), or NULL
 * @seconds: between them, above 0
 *
 * Return: an object, the caller's: rates are `..._s` (a second), times `..._ms`; null where the daemon does not tell.
 */
json_t *top_figures(const json_t *before, const json_t *now, const json_t *known, double seconds)
{
	json_t *figures = json_object();
	double free_bytes = number_at(now, "pool.bytes") - number_at(now, "pool.kv") - number_at(now, "pool.adapters");
	static const char *const words[] = { "version", "device" };

	for (size_t i = 0; i < N_OF(words); ++i)
		set_word(figures, words[i], json_object_get(now, words[i]));
	set_word(figures, "model", json_object_get(json_object_get(now, "model"), "name"));
	json_object_set_new(figures, "seconds", json_real(seconds));
	for (size_t i = 0; i < N_OF(table); ++i)
		json_object_set_new(figures, table[i].name, make_figure(&table[i], before, now, seconds));
	json_object_set_new(figures, "pool_free_bytes", isnan(free_bytes) ? json_null() : json_integer((json_int_t)free_bytes));
	json_object_set_new(figures, "users", user_figures(before, now, seconds));
	json_object_set_new(figures, "adapters",
			    adapter_figures(before, now, json_object_get(known, "names"), seconds));
	json_object_set(figures, "states", json_object_get(known, "states"));
	return figures;
}

/** top_known() - what List's adapters tell: { "names": by digest, "states": how many in each }, the caller's */
json_t *top_known(const json_t *list)
{
	json_t *counts = json_object(), *names = json_object(), *adapter;
	size_t i;

	json_array_foreach(list, i, adapter) {
		const char *state = json_string_value(json_object_get(adapter, "state"));
		const char *digest = json_string_value(json_object_get(adapter, "digest"));

		if (state)
			json_object_set_new(counts, state,
					    json_integer(json_integer_value(json_object_get(counts, state)) + 1));
		if (digest && !json_object_get(names, digest)) /* of several names the first */
			json_object_set(names, digest, json_object_get(adapter, "name"));
	}
	return json_pack("{s:o, s:o}", "names", names, "states", counts);
}

/* ---- the picture ---- */

struct picture {
	const struct top_screen *screen;
	const json_t *figures;
	FILE *to;
	unsigned n_rows;
};

static unsigned rows_left(const struct picture *picture)
{
	if (!picture->screen->rows)
		return LIST_ROWS + 1;
	return picture->screen->rows > picture->n_rows ? picture->screen->rows - picture->n_rows : 0;
}

/* One line, cut to the screen and free of anything a terminal would obey. */
static __attribute__((format(printf, 2, 3))) void line(struct picture *picture, const char *format, ...)
{
	char text[LINE_BYTES];
	unsigned columns = picture->screen->columns;
	bool terminal = picture->screen->terminal;
	va_list args;

	if (!rows_left(picture))
		return;
	va_start(args, format);
	(void)vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	for (char *c = text; *c; ++c)
		*c = *c < ' ' || *c > '~' ? '?' : *c;
	if (columns && columns < sizeof(text))
		text[columns - terminal] = 0; /* in the last column a terminal waits with its wrap, and erases that cell */
	if (terminal) /* no line break after the last row: it would scroll */
		(void)fprintf(picture->to, "%s%s\033[K", picture->n_rows ? "\n" : "", text);
	else
		(void)fprintf(picture->to, "%s\n", text);
	++picture->n_rows;
}

/* A number in so little room that a column holds it: "-", 0.05, 12.3, 1234, 56.7k, 1.2M. */
struct short_number {
	char text[16];
};

static struct short_number brief(double value)
{
	struct short_number ret;
	double size = fabs(value);

	if (!isfinite(value))
		(void)snprintf(ret.text, sizeof(ret.text), "-");
	else if (size >= 99950)
		(void)snprintf(ret.text, sizeof(ret.text), size >= 1e13 ? "%.1e" : "%.1fM", size >= 1e13 ? value : value / 1e6);
	else if (size >= 9999.5)
		(void)snprintf(ret.text, sizeof(ret.text), "%.1fk", value / 1e3);
	else
		(void)snprintf(ret.text, sizeof(ret.text), "%.*f", value == floor(value) || size >= 100 ? 0 : size < 1 ? 2 : 1, value);
	return ret;
}

static struct short_number figure_of(const json_t *object, const char *name)
{
	return brief(number_at(object, name));
}

#define SHOW(name) (figure_of(picture->figures, name).text)

static const char *text_of(const json_t *object, const char *key)
{
	const char *text = json_string_value(json_object_get(object, key));

	return text ? text : "-";
}

static void draw_title(struct picture *picture)
{
	uint64_t up = (uint64_t)fmax(number_at(picture->figures, "uptime_s"), 0);

	line(picture, "lorad %s  up %llu:%02llu:%02llu  clients %s  on %s: %s", text_of(picture->figures, "version"),
	     (unsigned long long)up / 3600, (unsigned long long)up / 60 % 60, (unsigned long long)up % 60, SHOW("clients"),
	     text_of(picture->figures, "device"), text_of(picture->figures, "model"));
}

/* How the pool's bytes are spent: # KV of requests, + KV kept for prompts that begin alike, = adapters, . free. */
static void draw_pool(struct picture *picture)
{
	double bytes = number_at(picture->figures, "pool_bytes"), kv = number_at(picture->figures, "pool_kv_bytes") / bytes,
	       adapters = number_at(picture->figures, "pool_adapter_bytes") / bytes;
	double used = number_at(picture->figures, "kv_blocks_used"), cached = number_at(picture->figures, "kv_blocks_cached");
	double kept = cached > 0 ? kv * cached / (used + cached) : 0;
	char bar[BAR_CELLS + 1];

	if (!(bytes > 0) || !(kv >= 0) || !(adapters >= 0))
		return;
	for (int i = 0; i < BAR_CELLS; ++i) {
		double at = (i + 0.5) / BAR_CELLS;

		bar[i] = at < kv - kept ? '#' : at < kv ? '+' : at < kv + adapters ? '=' : '.';
	}
	bar[BAR_CELLS] = 0;
	line(picture, "pool      [%s] %.1f MiB: # KV %.0f %%, + kept %.0f %%, = adapters %.0f %%", bar, bytes / (1 << 20),
	     100 * (kv - kept), 100 * kept, 100 * adapters);
}

static void draw_states(struct picture *picture)
{
	json_t *states = json_object_get(picture->figures, "states"), *count;
	char text[LINE_BYTES] = "";
	json_int_t all = 0;
	const char *state;
	size_t n = 0;

	json_object_foreach(states, state, count) {
		all += json_integer_value(count);
		if (n < sizeof(text))
			n += (size_t)snprintf(text + n, sizeof(text) - n, "%s%s %lld", n ? ", " : "", state,
					      (long long)json_integer_value(count));
	}
	if (states)
		line(picture, "adapters  %lld: %s", (long long)all, text);
}

static void draw_summary(struct picture *picture)
{
	draw_title(picture);
	line(picture, "requests  %s/s  running %s  waiting %s  failed/s %s  turned away/s %s  preempted/s %s", SHOW("requests_s"),
	     SHOW("running"), SHOW("waiting"), SHOW("failed_s"), SHOW("turned_away_s"), SHOW("preempted_s"));
	line(picture, "tokens/s  prompt %s  from prefixes %s  generated %s", SHOW("prompt_tokens_s"),
	     SHOW("prefix_hit_tokens_s"), SHOW("generated_tokens_s"));
	line(picture, "steps     %s/s of %s ms  rows %s  adapters %s", SHOW("steps_s"), SHOW("step_ms"), SHOW("rows_per_step"),
	     SHOW("adapters_per_step"));
	draw_pool(picture);
	line(picture, "device    hits/s %s  evictions/s %s  resident %s", SHOW("hits_device_s"), SHOW("evictions_device_s"),
	     SHOW("resident"));
	if (number_at(picture->figures, "host_bytes") > 0 || number_at(picture->figures, "hits_host_s") > 0)
		line(picture, "host      hits/s %s  evictions/s %s  %.1f MiB", SHOW("hits_host_s"), SHOW("evictions_host_s"),
		     number_at(picture->figures, "host_bytes") / (1 << 20));
	line(picture, "store     misses/s %s  page-ins/s %s of %s ms  loading %s", SHOW("misses_s"), SHOW("loads_s"),
	     SHOW("page_in_ms"), SHOW("loading"));
	draw_states(picture);
}

static void draw_users(struct picture *picture, unsigned most)
{
	json_t *users = json_object_get(picture->figures, "users"), *user;
	size_t i;

	if (!json_array_size(users) || most < 3)
		return;
	line(picture, "%s", "");
	line(picture, "%10s %5s %5s %9s %9s %10s %7s %10s %10s", "UID", "RUN", "WAIT", "PROMPT/s", "GEN/s", "SERVICE/s",
	     "WEIGHT", "REFUSED/s", "ABORTED/s");
	json_array_foreach(users, i, user) {
		if (i + 2 >= most)
			break;
		line(picture, "%10lld %5s %5s %9s %9s %10s %7s %10s %10s",
		     (long long)json_integer_value(json_object_get(user, "uid")), figure_of(user, "running").text,
		     figure_of(user, "waiting").text, figure_of(user, "prompt_tokens_s").text,
		     figure_of(user, "generated_tokens_s").text, figure_of(user, "service_s").text,
		     figure_of(user, "weight").text, figure_of(user, "refused_s").text, figure_of(user, "aborted_s").text);
	}
}

static const char *name_of(const json_t *adapter)
{
	const char *name = json_string_value(json_object_get(adapter, "name"));

	return name ? name : text_of(adapter, "digest");
}

static void draw_adapters(struct picture *picture, unsigned most)
{
	json_t *adapters = json_object_get(picture->figures, "adapters"), *adapter;
	size_t i;

	if (!json_array_size(adapters) || most < 3)
		return;
	line(picture, "%s", "");
	line(picture, "%-40s %-8s %5s %9s %9s", "ADAPTER", "STATE", "RUN", "REQ/s", "TOKENS/s");
	json_array_foreach(adapters, i, adapter) {
		if (i + 2 >= most)
			break;
		line(picture, "%-40.40s %-8.8s %5s %9s %9s", name_of(adapter), text_of(adapter, "state"),
		     figure_of(adapter, "running").text, figure_of(adapter, "requests_s").text,
		     figure_of(adapter, "tokens_s").text);
	}
}

/**
 * top_render() - draw figures
 * @figures: as top_figures() made them
 * @screen:  how large, and for whom
 *
 * Return: the text, malloc'd; NULL: no memory.
 */
char *top_render(const json_t *figures, const struct top_screen *screen)
{
	struct picture picture = { .screen = screen, .figures = figures };
	char *text = NULL;
	size_t bytes = 0;

	picture.to = open_memstream(&text, &bytes);
	if (!picture.to)
		return NULL;
	if (screen->terminal)
		(void)fputs("\033[H", picture.to);
	draw_summary(&picture);
	draw_users(&picture, screen->rows ? rows_left(&picture) / 2 : LIST_ROWS);
	draw_adapters(&picture, rows_left(&picture));
	if (screen->terminal)
		(void)fputs("\033[J", picture.to);
	if (fclose(picture.to) == EOF) {
		free(text);
		return NULL;
	}
	return text;
}
