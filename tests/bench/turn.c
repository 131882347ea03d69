/* SPDX-License-Identifier: MIT */
/*
 * What the scheduler costs in each step
 *
 * usage: turn [--running N] [--waiting N] [--adapters N] [--users N] [--turns N] [--dir DIR] [--json]
 *
 * The engine with the real store, pager, cache, pool and KV blocks; stand-ins for the model, whose step takes no time, for
 * the tokenizer and for ipc, which drops what it is to send. N adapters (10,000) with content of their own are in the store
 * and in memory; N requests (256) run, each with an adapter of its own choice, and N more (512: as many as a turn looks at)
 * wait. Requests of 16 + 32 tokens end and start all the while, and others take their place between turns.
 *
 * Printed: microseconds of a turn without its step, median and percentiles, by the wall clock and by the thread's own.
 */
#include <errno.h>
#include <ftw.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "daemon/sched/admit.h"
#include "daemon/sched/engine.h"
#include "daemon/model/model.h"

#define VOCAB 256u
#define PROMPT 16u
#define ANSWER 32u
#define SESSIONS 64u
#define HUGE_PAGE ((size_t)2 << 20)
#define KV_BLOCKS 4096u
#define PUT_AT_ONCE 100u

struct ipc_session {
	unsigned refs;
};

struct settings {
	unsigned running, waiting, adapters, users, turns;
	const char *dir;
	bool json;
};

static const struct image_geometry geometry = {
	.n_layers = 1, .hidden = 64, .intermediate = 128, .n_heads = 8, .n_kv_heads = 8, .head_dim = 64, .vocab = VOCAB,
};

static struct {
	char folder[4096];
	struct store *store;
	struct pager *pager;
	struct pool *pool;
	struct cache *cache;
	struct kv *kv;
	void *region;
	size_t region_bytes;
	struct charges charges;
	struct engine engine;
	struct ipc_session session[SESSIONS];
	uint64_t n_asked, random;
	uint64_t step_wall_ns, step_own_ns; /* that the stand-in of the step took in this turn */
} bench = { .random = 88172645463325252u };

static void must(bool is, const char *what)
{
	if (is)
		return;
	(void)fprintf(stderr, "turn: %s\n", what);
	exit(EXIT_FAILURE);
}

static uint64_t random_next(void)
{
	bench.random ^= bench.random << 13;
	bench.random ^= bench.random >> 7;
	bench.random ^= bench.random << 17;
	return bench.random;
}

static uint64_t own_ns(void)
{
	struct timespec ts;

	(void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

/* ---- stand-ins ---- */

const struct model_config *model_config(const struct model *model)
{
	static const struct model_config config = { .geometry = geometry, .context = 4096, .chat = CHAT_NONE };

	(void)model;
	return &config;
}

const struct tokenizer *model_tokenizer(const struct model *model)
{
	(void)model;
	return NULL;
}

bool tokenizer_is_special(const struct tokenizer *tokenizer, uint32_t token)
{
	(void)tokenizer;
	return token < 2;
}

const char *tokenizer_bytes(const struct tokenizer *tokenizer, uint32_t token, size_t *ret_bytes)
{
	static char byte;

	(void)tokenizer;
	byte = (char)token;
	*ret_bytes = 1;
	return &byte;
}

int tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t bytes, uint32_t **ret, size_t *ret_n)
{
	(void)tokenizer, (void)text, (void)bytes, (void)ret, (void)ret_n;
	return error_origin(-ENOSYS);
}

int chat_render(enum chat_template chat, const char *text, size_t bytes, char **ret, size_t *ret_bytes)
{
	(void)chat, (void)text, (void)bytes, (void)ret, (void)ret_bytes;
	return error_origin(-ENOSYS);
}

static struct step_stats last;

int step_run(struct step *step, struct step_seq *seqs, uint32_t n_seqs)
{
	uint64_t wall = clock_ns(), own = own_ns();

	(void)step;
	last = (struct step_stats){ .seqs = n_seqs, .adapters = n_seqs };
	for (uint32_t i = 0; i < n_seqs; ++i) {
		last.rows += seqs[i].n_tokens;
		if (seqs[i].output == STEP_OUTPUT_LAST)
			seqs[i].result[0].token = 'a' + (uint32_t)(random_next() % 26);
	}
	bench.step_own_ns = own_ns() - own;
	bench.step_wall_ns = clock_ns() - wall;
	return 0;
}

void step_failure(const struct step *step, struct kern_failure *ret)
{
	(void)step;
	*ret = (struct kern_failure){ 0 };
}

const struct step_stats *step_last(const struct step *step)
{
	(void)step;
	return &last;
}

struct ipc_request *ipc_request_free(struct ipc_request *request)
{
	if (request) {
		ipc_session_unref(request->session);
		free(request->tokens);
		free(request);
	}
	return NULL;
}

struct ipc_session *ipc_session_ref(struct ipc_session *session)
{
	session->refs++;
	return session;
}

struct ipc_session *ipc_session_unref(struct ipc_session *session)
{
	session->refs--;
	return NULL;
}

void ipc_flush(struct ipc_session *session)
{
	(void)session;
}

int ipc_send_token(struct ipc_session *session, uint64_t id, const struct ipc_token *token)
{
	(void)session, (void)id, (void)token;
	return IPC_OK;
}

int ipc_send_scores(struct ipc_session *session, uint64_t id, const struct ipc_scores *scores)
{
	(void)session, (void)id, (void)scores;
	return IPC_OK;
}

int ipc_send_adapter(struct ipc_session *session, uint64_t id, const struct ipc_listed *adapter)
{
	(void)session, (void)id, (void)adapter;
	return IPC_OK;
}

int ipc_send_done(struct ipc_session *session, uint64_t id, const struct ipc_done *done)
{
	(void)session, (void)id, (void)done;
	return IPC_OK;
}

int ipc_send_error(struct ipc_session *session, uint64_t id, int code, uint32_t retry_ms, const char *text)
{
	(void)session, (void)id, (void)code, (void)retry_ms;
	must(false, text);
	return IPC_OK;
}

/* ---- the rig ---- */

static struct store_digest digest_of(uint32_t number)
{
	struct store_digest digest;
	uint64_t x = number * UINT64_C(0x9e3779b97f4a7c15) + 1;

	for (size_t at = 0; at < sizeof(digest.bytes); at += sizeof(x)) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		memcpy(digest.bytes + at, &x, sizeof(x));
	}
	return digest;
}

static void put_some(uint32_t first, uint32_t n, const void *payload, const struct store_record *like)
{
	struct store_record record[PUT_AT_ONCE];
	struct store_item item[PUT_AT_ONCE];
	char name[PUT_AT_ONCE][16];

	for (uint32_t i = 0; i < n; ++i) {
		(void)snprintf(name[i], sizeof(name[i]), "a%u", first + i);
		record[i] = *like;
		record[i].digest = digest_of(first + i);
		item[i] = (struct store_item){ .name = name[i], .record = &record[i], .config = "{}", .payload = payload };
	}
	must(store_put_many(bench.store, item, n) == 0, "the store cannot be filled");
	for (uint32_t i = 0; i < n; ++i)
		must(item[i].result == STORE_OK, "the store cannot be filled");
}

static void fill_store(unsigned n)
{
	struct image_module module = { .module = 0, .rank = 1, .dtype = KERN_F32, .scale = 1 };
	struct store_record record = {
		.kind = IMAGE_KIND_LORA, .n_chunks = 1, .n_modules = 1, .max_rank = 1, .geometry = geometry, .config_bytes = 2,
	};
	void *payload;

	must(image_plan(&module, 1, &geometry, &record.payload_bytes, NULL) == 0, "no plan of an image");
	payload = calloc(1, record.payload_bytes);
	must(payload, "no memory");
	image_begin(payload, record.payload_bytes, &module, 1);
	for (unsigned i = 0; i < n; i += PUT_AT_ONCE)
		put_some(i, n - i < PUT_AT_ONCE ? n - i : PUT_AT_ONCE, payload, &record);
	free(payload);
}

static void on_changed(void *userdata)
{
	(void)userdata;
}

static void make_cache(unsigned n)
{
	const struct kv_shape shape = { .n_layers = 1, .n_kv_heads = 8, .head_dim = 64, .dtype = KERN_F32 };
	size_t bytes = ((size_t)n + KV_BLOCKS) * POOL_PAGE / HUGE_PAGE * HUGE_PAGE + HUGE_PAGE;
	struct cache_options options = { .device_bytes = (size_t)n * POOL_PAGE, .geometry = geometry, .changed = on_changed };
	struct pager_options pager_options = { .region_bytes = bytes };

	bench.region_bytes = bytes + HUGE_PAGE;
	bench.region = mmap(NULL, bench.region_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(bench.region != MAP_FAILED, "no memory");
	pager_options.region = (void *)(((uintptr_t)bench.region + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1));
	must(pool_new(&bench.pool, pager_options.region, bytes) == 0, "no pool");
	must(pager_new(&bench.pager, bench.store, &pager_options) == 0, "no pager");
	options.store = bench.store;
	options.pager = bench.pager;
	options.pool = bench.pool;
	must(cache_new(&bench.cache, &options) == 0, "no cache");
	must(kv_new(&bench.kv, bench.pool, &shape) == 0, "no KV cache");
}

/* All adapters in memory. */
static void read_all(unsigned n)
{
	struct cache_stats stats;

	for (unsigned i = 0; i < n; ++i) {
		const struct store_digest digest = digest_of(i);

		must(cache_prefetch(bench.cache, &digest, NULL) <= CACHE_E_PENDING, "an adapter cannot be read");
	}
	do {
		(void)usleep(1000);
		cache_begin_turn(bench.cache);
		cache_read_stats(bench.cache, &stats);
	} while (stats.loading);
	must(stats.tier[CACHE_TIER_DEVICE].adapters == n, "some adapters are not in memory");
}

static void set_up(const struct settings *settings)
{
	struct sched_options options = { .limits = { .rows = 2 * settings->running, .seqs = settings->running } };
	struct diag diag = { "" };

	(void)snprintf(bench.folder, sizeof(bench.folder), "%s/turn-bench-XXXXXX", settings->dir);
	must(mkdtemp(bench.folder), "no folder for the store");
	must(store_open(&bench.store, bench.folder, &diag) == 0, diag.text);
	fill_store(settings->adapters);
	make_cache(settings->adapters);
	read_all(settings->adapters);
	options.store = bench.store;
	options.cache = bench.cache;
	options.kv = bench.kv;
	must(charges_init(&bench.charges) == 0 && engine_init(&bench.engine, &options) == 0, "no engine");
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st, (void)type, (void)ftw;
	return remove(path);
}

static void tear_down(void)
{
	for (unsigned i = 0; i < SESSIONS; ++i)
		engine_close(&bench.engine, &bench.session[i]);
	engine_deinit(&bench.engine);
	charges_deinit(&bench.charges);
	pager_free(bench.pager);
	cache_free(bench.cache);
	kv_free(bench.kv);
	pool_free(bench.pool);
	(void)munmap(bench.region, bench.region_bytes);
	store_close(bench.store);
	(void)nftw(bench.folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

/* ---- the load ---- */

static struct ipc_request *make_request(const struct settings *settings)
{
	struct ipc_request *ipc = calloc(1, sizeof(*ipc));

	must(ipc && (ipc->tokens = calloc(PROMPT, sizeof(*ipc->tokens))), "no memory");
	ipc->id = ++bench.n_asked;
	ipc->session = ipc_session_ref(&bench.session[ipc->id % SESSIONS]);
	ipc->uid = (uid_t)(ipc->id % settings->users);
	ipc->arrived_ns = clock_ns();
	ipc->kind = IPC_GENERATE;
	ipc->n_tokens = PROMPT;
	for (unsigned i = 0; i < PROMPT; ++i)
		ipc->tokens[i] = 'a' + (uint32_t)(random_next() % 26);
	ipc->max_tokens = ANSWER;
	ipc->ignore_eos = true;
	ipc->top_p = ipc->repetition_penalty = 1;
	ipc->logprobs = -1;
	ipc->n_adapters = 1;
	ipc->adapters[0].scale = 1;
	(void)snprintf(ipc->adapters[0].name, sizeof(ipc->adapters[0].name), "a%u",
		       (unsigned)(random_next() % settings->adapters));
	return ipc;
}

/* As many requests as there shall be, running and waiting. */
static void refill(const struct settings *settings)
{
	const struct admit admit = {
		.store = bench.store, .cache = bench.cache, .kv = bench.kv, .charges = &bench.charges
	};

	while (bench.engine.n_running + bench.engine.n_waiting < settings->running + settings->waiting) {
		struct request *request;
		struct diag diag = { "" };

		must(admit_request(&admit, make_request(settings), &request, &diag) == 0, diag.text);
		engine_add(&bench.engine, request);
	}
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* In microseconds. The first turns, until answers end as fast as others start, are not counted. */
static void measure(const struct settings *settings, double *wall_us, double *own_us)
{
	for (unsigned i = 0; i < settings->turns + 4 * ANSWER; ++i) {
		uint64_t wall, own;

		refill(settings);
		bench.step_wall_ns = bench.step_own_ns = 0;
		wall = clock_ns();
		own = own_ns();
		(void)engine_turn(&bench.engine, wall);
		own = own_ns() - own - bench.step_own_ns;
		wall = clock_ns() - wall - bench.step_wall_ns;
		if (i < 4 * ANSWER)
			continue;
		wall_us[i - 4 * ANSWER] = (double)wall / 1e3;
		own_us[i - 4 * ANSWER] = (double)own / 1e3;
	}
	qsort(wall_us, settings->turns, sizeof(*wall_us), compare);
	qsort(own_us, settings->turns, sizeof(*own_us), compare);
}

static void report(const struct settings *settings, const double *wall_us, const double *own_us)
{
	unsigned half = settings->turns / 2, p99 = settings->turns / 100 * 99;
	double running = (double)bench.engine.stats.rows / (double)bench.engine.stats.steps;
	double starts = (double)bench.engine.stats.finished / (double)bench.engine.stats.steps;

	printf(settings->json ? "{\"running\": %u, \"waiting\": %u, \"adapters\": %u, \"turns\": %u, \"rows\": %.1f, \"ends\": %.2f, "
				"\"median_us\": %.1f, \"p99_us\": %.1f, \"cpu_median_us\": %.1f, \"cpu_p99_us\": %.1f}\n" :
				"%u running, %u waiting, %u adapters, %u turns; %.1f rows and %.2f ends in a step\n"
				"wall: median %.1f us, p99 %.1f us; CPU: median %.1f us, p99 %.1f us\n",
	       settings->running, settings->waiting, settings->adapters, settings->turns, running, starts, wall_us[half],
	       wall_us[p99], own_us[half], own_us[p99]);
}

static bool read_options(int argc, char **argv, struct settings *settings)
{
	static const struct option longs[] = {
		{ "running", 1, NULL, 'r' }, { "waiting", 1, NULL, 'w' }, { "adapters", 1, NULL, 'a' }, { "users", 1, NULL, 'u' },
		{ "turns", 1, NULL, 't' },   { "dir", 1, NULL, 'd' },	  { "json", 0, NULL, 'j' },	{ 0 },
	};
	unsigned numbers[128] = { ['r'] = 256, ['w'] = 512, ['a'] = 10000, ['u'] = 4, ['t'] = 5000 };
	int c;

	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		if (c == '?')
			return false;
		if (c == 'd')
			settings->dir = optarg;
		else if (c == 'j')
			settings->json = true;
		else
			numbers[c] = (unsigned)strtoul(optarg, NULL, 10);
	}
	settings->running = numbers['r'];
	settings->waiting = numbers['w'];
	settings->adapters = numbers['a'];
	settings->users = numbers['u'];
	settings->turns = numbers['t'];
	return numbers['r'] && numbers['r'] <= 1024 && numbers['a'] && numbers['u'] && numbers['t'];
}

int main(int argc, char **argv)
{
	struct settings settings = { .dir = "/var/tmp" };
	double *wall_us, *own_us;

	if (!read_options(argc, argv, &settings)) {
		(void)fprintf(stderr, "turn: an option or a number is out of range\n");
		return 2;
	}
	wall_us = calloc(settings.turns, sizeof(*wall_us));
	own_us = calloc(settings.turns, sizeof(*own_us));
	must(wall_us && own_us, "no memory");
	set_up(&settings);
	measure(&settings, wall_us, own_us);
	report(&settings, wall_us, own_us);
	tear_down();
	free(wall_us);
	free(own_us);
	return EXIT_SUCCESS;
}
