/* SPDX-License-Identifier: MIT */
/*
 * Options
 *
 * One table has every option: its name, its argument's name, its help line, and how its value is judged and stored. The
 * command line, lorad.conf and --help are all read off it, so an option that exists is a key of the file too.
 *
 * A key is the option's name without the dashes: `host_cache`, which may also be spelled `host-cache`. The command line
 * wins over the file. A value is judged where it stands, with its name in front: "threads: 0: must be at least 1",
 * and the file and line where there is one. How lorad is called is usage (exit status 2); a value is not.
 */
#include "daemon/options.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/kernels.h"

#define THREADS_MAX 1024
#define CONTEXT_MAX (1u << 24)
#define KEY_MAX 32
#define WEIGHT_LEAST 0.01
#define WEIGHT_MOST 1000.0

typedef int judge_fn(const char *what, const char *value, void *to, struct diag *diag);

struct option {
	const char *name, *argument, *help;
	judge_fn *judge;
	size_t offset;            /* of what it is stored to, in struct options */
};

/* ---- judges: 0 or OPTIONS_E_INVALID ---- */

static int judge_text(const char *what, const char *value, void *to, struct diag *diag)
{
	(void)what;
	(void)diag;
	*(const char **)to = value;
	return OPTIONS_OK;
}

static int judge_number(const char *what, const char *value, uint64_t most, uint64_t *to, struct diag *diag)
{
	uint64_t number;

	if (conf_u64(what, value, most, &number, diag))
		return OPTIONS_E_INVALID;
	if (!number)
		return diag_set(diag, OPTIONS_E_INVALID, "%s: %s: must be at least 1", what, value);
	*to = number;
	return OPTIONS_OK;
}

static int judge_threads(const char *what, const char *value, void *to, struct diag *diag)
{
	return judge_number(what, value, THREADS_MAX, to, diag);
}

static int judge_context(const char *what, const char *value, void *to, struct diag *diag)
{
	return judge_number(what, value, CONTEXT_MAX, to, diag);
}

static int judge_bytes(const char *what, const char *value, void *to, struct diag *diag)
{
	uint64_t bytes;

	if (conf_bytes(what, value, &bytes, diag))
		return OPTIONS_E_INVALID;
	if (!bytes)
		return diag_set(diag, OPTIONS_E_INVALID, "%s: %s: must be above 0", what, value);
	*(uint64_t *)to = bytes;
	return OPTIONS_OK;
}

/* One of several words, up to a NULL; *ret: which. */
static int judge_word(const char *what, const char *value, const char *const *words, unsigned *ret, struct diag *diag)
{
	char all[80] = "";
	size_t n = 0;

	for (unsigned i = 0; words[i]; ++i) {
		const char *before = i == 0 ? "" : words[i + 1] ? ", " : " or ";

		if (strcmp(value, words[i]) == 0) {
			*ret = i;
			return OPTIONS_OK;
		}
		n += (size_t)snprintf(all + n, sizeof(all) - n, "%s%s", before, words[i]);
		assert(n < sizeof(all));
	}
	return diag_set(diag, OPTIONS_E_INVALID, "%s: %s: must be %s", what, value, all);
}

/* Of products (precision) or of keys and values (kv-type). */
static int judge_precision(const char *what, const char *value, void *to, struct diag *diag)
{
	static const char *const words[] = {
		[MODEL_AUTO] = "auto", [MODEL_F32] = "f32", [MODEL_BF16] = "bf16", [MODEL_INT8] = "int8", NULL
	};

	return judge_word(what, value, words, to, diag);
}

static int judge_adapter_type(const char *what, const char *value, void *to, struct diag *diag)
{
	static const char *const words[] = { "auto", "source", NULL };
	unsigned word = 0;
	int r = judge_word(what, value, words, &word, diag);

	*(bool *)to = word == 1;
	return r;
}

static int judge_prefix(const char *what, const char *value, void *to, struct diag *diag)
{
	static const char *const words[] = {
		[SCHED_PREFIX_USER] = "user", [SCHED_PREFIX_SHARED] = "shared", [SCHED_PREFIX_OFF] = "off", NULL
	};

	return judge_word(what, value, words, to, diag);
}

static int judge_schedule(const char *what, const char *value, void *to, struct diag *diag)
{
	static const char *const words[] = { "fair", "fcfs", NULL };
	struct sched_fairness *fairness = to;
	unsigned word = 0;
	int r = judge_word(what, value, words, &word, diag);

	fairness->first_come = word == 1;
	return r;
}

/* A user by name or number. */
static bool find_uid(const char *text, uid_t *ret)
{
	const struct passwd *user = getpwnam(text);
	uint64_t number = 0;

	if (user)
		*ret = user->pw_uid;
	else if (conf_u64("", text, UINT32_MAX - 1, &number, NULL) == 0)
		*ret = (uid_t)number;
	else
		return false;
	return true;
}

/* One USER=WEIGHT. */
static int judge_weight(const char *what, char *word, struct sched_fairness *to, struct diag *diag)
{
	struct sched_weight *weight = &to->weight[to->n_weights];
	char *value = strchr(word, '='), *end;

	if (!value)
		return diag_set(diag, OPTIONS_E_INVALID, "%s: %s: must be USER=WEIGHT", what, word);
	*value++ = '\0';
	if (!find_uid(word, &weight->uid))
		return diag_set(diag, OPTIONS_E_INVALID, "%s: %s: there is no such user", what, word);
	weight->weight = strtod(value, &end);
	if (end == value || *end || !(weight->weight >= WEIGHT_LEAST && weight->weight <= WEIGHT_MOST))
		return diag_set(diag, OPTIONS_E_INVALID, "%s: %s=%s: a weight is from %g to %g", what, word, value,
				WEIGHT_LEAST, WEIGHT_MOST);
	to->n_weights++;
	return OPTIONS_OK;
}

static int judge_weights(const char *what, const char *value, void *to, struct diag *diag)
{
	_cleanup_free_ char *copy = strdup(value);
	struct sched_fairness *fairness = to;
	char *rest = copy, *word;
	int r = OPTIONS_OK;

	if (!copy)
		return error_origin(-ENOMEM);
	fairness->n_weights = 0;
	while (!r && (word = strsep(&rest, ","))) {
		if (fairness->n_weights == SCHED_WEIGHTS_MAX)
			return diag_set(diag, OPTIONS_E_INVALID, "%s: more than %d users", what, SCHED_WEIGHTS_MAX);
		r = judge_weight(what, word, fairness, diag);
	}
	return r;
}

static int judge_count(const char *what, const char *value, uint64_t most, uint32_t *to, struct diag *diag)
{
	uint64_t number = 0;
	int r = conf_u64(what, value, most, &number, diag);

	*to = (uint32_t)number;
	return r ? OPTIONS_E_INVALID : OPTIONS_OK;
}

static int judge_queue_limit(const char *what, const char *value, void *to, struct diag *diag)
{
	return judge_count(what, value, UINT32_MAX, to, diag);
}

static int judge_batch_adapters(const char *what, const char *value, void *to, struct diag *diag)
{
	return judge_count(what, value, SCHED_BATCH_ADAPTERS_MAX, to, diag);
}

static int judge_isa(const char *what, const char *value, void *to, struct diag *diag)
{
	if (strcmp(value, "auto") == 0) {
		*(int *)to = OPTIONS_ISA_AUTO;
		return OPTIONS_OK;
	}
	for (int i = 0; i < _KERN_ISA_N; ++i)
		if (strcmp(value, kern_isa_names[i]) == 0) {
			*(int *)to = i;
			return OPTIONS_OK;
		}
	return diag_set(diag, OPTIONS_E_INVALID, "%s: %s: must be auto, scalar, avx2, avx512, vnni or bf16", what, value);
}

static int judge_device(const char *what, const char *value, void *to, struct diag *diag)
{
	struct options *options = to;
	uint64_t number = 0;

	options->cuda_number = 0;
	options->device = strcmp(value, "auto") == 0 ? OPTIONS_DEVICE_AUTO :
			  strcmp(value, "cpu") == 0  ? OPTIONS_DEVICE_CPU :
						       OPTIONS_DEVICE_CUDA;
	if (options->device != OPTIONS_DEVICE_CUDA || strcmp(value, "cuda") == 0)
		return OPTIONS_OK;
	if (strncmp(value, "cuda:", 5) != 0 || conf_u64(what, value + 5, 1023, &number, NULL))
		return diag_set(diag, OPTIONS_E_INVALID, "%s: %s: must be auto, cpu, cuda or cuda:N", what, value);
	options->cuda_number = (uint32_t)number;
	return OPTIONS_OK;
}

static int judge_switch(const char *what, const char *value, void *to, struct diag *diag)
{
	static const char *const words[] = { "on", "off", NULL };
	unsigned word = 0;
	int r = judge_word(what, value, words, &word, diag);

	*(bool *)to = r == OPTIONS_OK && word == 0;
	return r;
}

static const struct option table[] = {
	{ "model", "PATH", "the base model: a GGUF file or a Hugging Face folder", judge_text,
	  offsetof(struct options, model) },
	{ "store", "DIR", "folder of the adapter store; made if missing", judge_text, offsetof(struct options, store) },
	{ "socket", "PATH", "socket for clients; control's is PATH.control", judge_text,
	  offsetof(struct options, socket) },
	{ "device", "auto|cpu|cuda[:N]", "where the model runs", judge_device, 0 },
	{ "precision", "auto|f32|bf16|int8", "what products of weights and activations are made in", judge_precision,
	  offsetof(struct options, precision) },
	{ "kv-type", "auto|f32|bf16|int8", "what keys and values are kept in; int8 on the CPU only", judge_precision,
	  offsetof(struct options, kv_type) },
	{ "adapter-type", "auto|source",
	  "what adapters' numbers are kept in: int8 where that is exact enough, on the CPU, or as they came", judge_adapter_type,
	  offsetof(struct options, source_adapters) },
	{ "config", "FILE", "options as `key = value` lines (default " SYSCONFDIR "/lorad/lorad.conf)", judge_text,
	  offsetof(struct options, config) },
	{ "threads", "N", "compute threads (default: all processors)", judge_threads,
	  offsetof(struct options, threads) },
	{ "isa", "auto|scalar|avx2|avx512|vnni|bf16", "instruction set of the CPU backend", judge_isa,
	  offsetof(struct options, isa) },
	{ "device-memory", "BYTES",
	  "memory for keys, values and adapters (K, M, G; default: 1/4 of RAM, at most 4G; what a GPU has left)",
	  judge_bytes, offsetof(struct options, device_memory) },
	{ "host-cache", "BYTES",
	  "the part of it that adapters may take (default: 15/16); with a GPU host memory of their own", judge_bytes,
	  offsetof(struct options, host_cache) },
	{ "prefix-cache", "user|shared|off",
	  "keys and values of a prompt's beginning serve later requests of that user, of all, of none (default: user)",
	  judge_prefix, offsetof(struct options, prefix) },
	{ "schedule", "fair|fcfs",
	  "whose request starts next: the user's that was served least, or whoever came first (default: fair)",
	  judge_schedule, offsetof(struct options, fairness) },
	{ "user-weights", "USER=W[,USER=W]...",
	  "users (names or numbers) that are to be served more or less than others (default: 1 each)", judge_weights,
	  offsetof(struct options, fairness) },
	{ "queue-limit", "N", "most requests of one user that wait (default: 4096; 0: no limit)", judge_queue_limit,
	  offsetof(struct options, fairness.queue_limit) },
	{ "batch-adapters", "N", "most distinct adapters that run at once, up to 256 (default: 0, no limit)",
	  judge_batch_adapters, offsetof(struct options, fairness.batch_adapters) },
	{ "cuda-graphs", "on|off", "record steps of decodes and replay them (default: off)", judge_switch,
	  offsetof(struct options, cuda_graphs) },
	{ "context", "N", "most tokens of one request (default: the model's)", judge_context,
	  offsetof(struct options, context) },
};

#define N_OPTIONS (sizeof(table) / sizeof(*table))

/* Sets one option. Return: OPTIONS_OK or OPTIONS_E_INVALID. */
static int set_option(struct options *options, const struct option *option, const char *value, struct diag *diag)
{
	if (!*value)
		return diag_set(diag, OPTIONS_E_INVALID, "%s: the value is empty", option->name);
	return option->judge(option->name, value, (char *)options + option->offset, diag);
}

/* ---- command line ---- */

static const struct option *find_option(const char *name, size_t length)
{
	for (size_t i = 0; i < N_OPTIONS; ++i)
		if (strlen(table[i].name) == length && memcmp(table[i].name, name, length) == 0)
			return &table[i];
	return NULL;
}

/* `--name value` or `--name=value`; *at is the argument's number and moves past what was used. */
static int read_argument(struct options *options, int argc, char **argv, int *at, bool *given, struct diag *diag)
{
	const char *word = argv[(*at)++], *name = word + 2, *value = strchr(word, '=');
	const struct option *option;
	size_t length;

	if (strncmp(word, "--", 2) != 0 || !*name)
		return diag_set(diag, OPTIONS_E_USAGE, "%s: is no option (see lorad --help)", word);
	length = value ? (size_t)(value - name) : strlen(name);
	option = find_option(name, length);
	if (!option)
		return diag_set(diag, OPTIONS_E_USAGE, "--%.*s: unknown option (see lorad --help)", (int)length, name);
	if (!value && *at >= argc)
		return diag_set(diag, OPTIONS_E_USAGE, "--%s: needs a value (%s)", option->name, option->argument);
	given[option - table] = true;
	return set_option(options, option, value ? value + 1 : argv[(*at)++], diag);
}

static int read_arguments(struct options *options, int argc, char **argv, bool *given, struct diag *diag)
{
	int r = OPTIONS_OK;

	for (int at = 1; at < argc; ++at) {
		if (strcmp(argv[at], "--help") == 0)
			return OPTIONS_E_HELP;
		if (strcmp(argv[at], "--version") == 0)
			return OPTIONS_E_VERSION;
	}
	for (int at = 1; at < argc && !r;)
		r = read_argument(options, argc, argv, &at, given, diag);
	return r;
}

/* ---- file ---- */

/* A key as it is compared: dashes are underscores. */
static void key_of(const char *name, char dash, char key[KEY_MAX])
{
	size_t n = 0;

	for (; name[n] && n < KEY_MAX - 1; ++n)
		key[n] = name[n] == '-' || name[n] == '_' ? dash : name[n];
	key[n] = '\0';
}

static int apply_entry(struct options *options, const struct conf_entry *entry, bool *given, bool *in_file,
		       struct diag *diag)
{
	const struct option *option = NULL;
	char name[KEY_MAX];

	key_of(entry->key, '-', name);
	option = find_option(name, strlen(name));
	assert(option);
	if (in_file[option - table])
		return diag_set(diag, OPTIONS_E_INVALID, "%s: is given twice", entry->key);
	in_file[option - table] = true;
	if (given[option - table])
		return OPTIONS_OK;
	return set_option(options, option, entry->value, diag);
}

static int apply_conf(struct options *options, const char *path, bool *given, struct diag *diag)
{
	bool in_file[N_OPTIONS] = { false };

	for (size_t i = 0; i < options->conf->n_entries; ++i) {
		const struct conf_entry *entry = &options->conf->entries[i];
		int r = apply_entry(options, entry, given, in_file, diag);

		if (r)
			return diag_prefix(diag, r, "%s:%u", path, entry->line);
	}
	return OPTIONS_OK;
}

static int parse_conf(struct options *options, const char *text, size_t bytes, const char *path, struct diag *diag)
{
	char dashed[N_OPTIONS][KEY_MAX], plain[N_OPTIONS][KEY_MAX];
	const char *known[2 * N_OPTIONS + 1];
	size_t n = 0;
	int r;

	for (size_t i = 0; i < N_OPTIONS; ++i) {
		if (strcmp(table[i].name, "config") == 0)
			continue; /* a file does not name itself */
		key_of(table[i].name, '_', plain[i]);
		key_of(table[i].name, '-', dashed[i]);
		known[n++] = plain[i];
		if (strcmp(plain[i], dashed[i]) != 0)
			known[n++] = dashed[i];
	}
	known[n] = NULL;
	r = conf_parse(&options->conf, text, bytes, known, diag);
	if (r < 0)
		return error_trace(r);
	return r ? diag_prefix(diag, OPTIONS_E_INVALID, "%s", path) : OPTIONS_OK;
}

/* *ret is malloc'd. OPTIONS_E_INVALID: it cannot be read; errno is set. */
static int read_file(const char *path, char **ret, size_t *ret_bytes, struct diag *diag)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	_cleanup_free_ char *text = malloc(CONF_BYTES_MAX + 1);
	size_t used = 0;
	ssize_t n = 1;

	if (!text)
		return error_origin(-ENOMEM);
	if (fd < 0)
		return diag_set(diag, OPTIONS_E_INVALID, "%s: %s", path, strerror(errno));
	while (n > 0 && used <= CONF_BYTES_MAX) {
		n = read(fd, text + used, CONF_BYTES_MAX + 1 - used);
		used += n > 0 ? (size_t)n : 0;
	}
	if (n < 0)
		return diag_set(diag, OPTIONS_E_INVALID, "%s: %s", path, strerror(errno));
	*ret = TAKE_PTR(text);
	*ret_bytes = used;
	return OPTIONS_OK;
}

static int read_conf(struct options *options, const struct options_environment *environment, bool *given,
		     struct diag *diag)
{
	const char *path = options->config ? options->config : environment->config;
	_cleanup_free_ char *text = NULL;
	size_t bytes = 0;
	int r;

	if (!path || (!options->config && access(path, F_OK) != 0))
		return OPTIONS_OK;
	r = read_file(path, &text, &bytes, diag);
	if (r)
		return r;
	r = parse_conf(options, text, bytes, path, diag);
	if (r)
		return r;
	return apply_conf(options, path, given, diag);
}

/* ---- defaults ---- */

static int join(char **ret, const char *first, const char *second)
{
	return asprintf(ret, "%s%s", first, second) < 0 ? error_origin(-ENOMEM) : 0;
}

static int default_socket(struct options *options, const struct options_environment *environment)
{
	bool user = !environment->root && environment->runtime_dir;

	options->socket = "/run/lorad/lorad.sock";
	if (!user)
		return 0;
	if (join(&options->default_paths[0], environment->runtime_dir, "/lorad/lorad.sock") < 0)
		return -ENOMEM;
	options->socket = options->default_paths[0];
	return 0;
}

static int default_store(struct options *options, const struct options_environment *environment)
{
	bool user = !environment->root && environment->runtime_dir;
	int r;

	options->store = "/var/lib/lorad";
	if (!user || (!environment->state_home && !environment->home))
		return 0;
	if (environment->state_home)
		r = join(&options->default_paths[1], environment->state_home, "/lorad");
	else
		r = join(&options->default_paths[1], environment->home, "/.local/state/lorad");
	if (r < 0)
		return r;
	options->store = options->default_paths[1];
	return 0;
}

/**
 * options_read() - read the command line, then the file, then fill in default paths
 * @options:      OPTIONS_NULL; options_deinit() also after a failure
 * @argc:         main's
 * @argv:         main's; strings are kept
 * @environment:  what main found in the environment
 * @diag:         what is wrong
 *
 * Return: an enum options_result, or -errno.
 */
int options_read(struct options *options, int argc, char **argv, const struct options_environment *environment,
		 struct diag *diag)
{
	bool given[N_OPTIONS] = { false };
	int r;

	r = read_arguments(options, argc, argv, given, diag);
	if (r)
		return r;
	r = read_conf(options, environment, given, diag);
	if (r)
		return r;
	if (!options->model)
		return diag_set(diag, OPTIONS_E_INVALID, "no model: give --model PATH, or `model = PATH` in the file");
	if (!options->socket)
		r = default_socket(options, environment);
	if (!r && !options->store)
		r = default_store(options, environment);
	return error_trace(r);
}

void options_deinit(struct options *options)
{
	for (size_t i = 0; i < sizeof(options->default_paths) / sizeof(*options->default_paths); ++i)
		free(options->default_paths[i]);
	options->conf = conf_free(options->conf);
}

void options_print_help(FILE *to)
{
	(void)fprintf(to, "usage: lorad --model PATH [OPTION]...\n\n"
			  "Keep one base model resident and answer local programs with any of its LoRA adapters.\n\n");
	for (size_t i = 0; i < N_OPTIONS; ++i)
		(void)fprintf(to, "  --%s %s\n        %s\n", table[i].name, table[i].argument, table[i].help);
	(void)fprintf(to, "  --help\n        print this\n  --version\n        print the version\n\n"
			  "Every option but --config is also a key of the file. BYTES take K, M, G. See lorad(8).\n");
}
