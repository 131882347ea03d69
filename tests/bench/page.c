/* SPDX-License-Identifier: MIT */
/*
 * How fast the pager reads, beside fio on the same file
 *
 * usage: page [--dir DIR] [--mib MIB] [--image-mib N | --image-kib N] [--rounds R] [--method M] [--depth D] [--faults F]
 *
 * Makes a store of MIB (default 768) in images of N MiB (default 8) or KiB, then for each round, back to back: fio reads
 * data.mdb with O_DIRECT and depth D (default 8), in blocks of 1 MiB, or in random ones of an image where images are
 * smaller, and the pager reads all images into a region of huge pages, each into one of F places (default 32), as a cache
 * does: so many loads are under way. Printed: GB/s of both and their ratio (median of the rounds), CPU
 * time per GB of this process, the part of it that checksums take, and by how much of the bytes read the page cache of
 * data.mdb grew (mincore). The first round, which faults memory in and registers it,
 * is not counted. Without fio the ratio is left out.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <jansson.h>
#include <pthread.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "daemon/os/mem.h"
#include "daemon/store/pager.h"

#define FAULTS_MAX 1024u
#define ROUNDS_MAX 64u
#define GB 1e9

struct bench {
	char folder[4096];
	uint64_t image_bytes;
	unsigned n_images, rounds, depth, places;
	enum pager_method best;
	struct store *store;
	struct pager *pager;
	struct mem_region region;
	uint8_t *seen;         /* mincore's bytes */
};

struct sample {
	double gb_s, cpu_ms_gb, sums_ms_gb, cached;
};

/* The linker sends the pager's calls of crc32c() here, so that their time can be told from the reading's. */
static _Atomic uint64_t sums_ns;

uint32_t __real_crc32c(uint32_t crc, const void *data, size_t bytes);
uint32_t __wrap_crc32c(uint32_t crc, const void *data, size_t bytes);

static uint64_t thread_ns(void)
{
	struct timespec ts;

	(void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

uint32_t __wrap_crc32c(uint32_t crc, const void *data, size_t bytes)
{
	uint64_t begin = thread_ns();

	crc = __real_crc32c(crc, data, bytes);
	sums_ns += thread_ns() - begin;
	return crc;
}

/* ---- the store ---- */

static struct store_digest digest_of(unsigned image)
{
	struct store_digest digest = { { (uint8_t)image, (uint8_t)(image >> 8), 1 } };

	return digest;
}

static int fill_store(struct bench *bench)
{
	uint8_t *payload = malloc(bench->image_bytes);
	struct diag diag = { "" };
	uint64_t x = 88172645463325252u;
	int r = payload ? 0 : -ENOMEM;

	for (unsigned i = 0; i < bench->n_images && !r; ++i) {
		struct store_record record = {
			.kind = IMAGE_KIND_LORA,
			.digest = digest_of(i),
			.payload_bytes = bench->image_bytes,
			.n_chunks = (uint32_t)((bench->image_bytes + IMAGE_CHUNK_PAYLOAD - 1) / IMAGE_CHUNK_PAYLOAD),
			.n_modules = 1,
			.max_rank = 1,
			.config_bytes = 2,
		};
		char name[16];

		for (uint64_t at = 0; at < bench->image_bytes; at += sizeof(x)) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
			memcpy(payload + at, &x, sizeof(x));
		}
		(void)snprintf(name, sizeof(name), "n%u", i);
		r = store_put(bench->store, name, false, &record, "{}", payload, &diag);
	}
	if (r)
		fprintf(stderr, "page: cannot fill the store: %d %s\n", r, diag.text);
	free(payload);
	return r;
}

static void drop_cache(const struct bench *bench)
{
	int fd = open(store_data_path(bench->store), O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return;
	(void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	close(fd);
}

/* Bytes of data.mdb in the page cache. */
static double cached_bytes(const struct bench *bench)
{
	int fd = open(store_data_path(bench->store), O_RDONLY | O_CLOEXEC);
	struct stat st;
	size_t pages, n = 0;
	void *map;

	if (fd < 0 || fstat(fd, &st) < 0)
		return 0;
	map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
	close(fd);
	if (map == MAP_FAILED)
		return 0;
	pages = ((size_t)st.st_size + 4095) / 4096;
	if (mincore(map, (size_t)st.st_size, bench->seen) == 0)
		for (size_t i = 0; i < pages; ++i)
			n += bench->seen[i] & 1;
	(void)munmap(map, (size_t)st.st_size);
	return (double)n * 4096;
}

/* ---- the pager ---- */

struct bench_load {
	struct pager_load load;
	pthread_mutex_t *lock;
	pthread_cond_t *ended;
	bool done;
	int result;
};

static void on_done(struct pager_load *load, int result)
{
	struct bench_load *bl = (struct bench_load *)(void *)load; /* its first member */

	pthread_mutex_lock(bl->lock);
	bl->done = true;
	bl->result = result;
	pthread_cond_signal(bl->ended);
	pthread_mutex_unlock(bl->lock);
}

/* All images in a scattered order. Return: how many failed. */
static unsigned load_all(struct bench *bench, struct bench_load *loads)
{
	pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	pthread_cond_t ended = PTHREAD_COND_INITIALIZER;
	size_t place_bytes = bench->region.bytes / bench->places;
	unsigned failed = 0;

	for (unsigned i = 0; i < bench->n_images + bench->places; ++i) {
		if (i >= bench->places) {
			struct bench_load *old = &loads[i - bench->places];

			pthread_mutex_lock(&lock);
			while (!old->done)
				pthread_cond_wait(&ended, &lock);
			pthread_mutex_unlock(&lock);
			failed += old->result != 0;
		}
		if (i >= bench->n_images)
			continue;
		loads[i] = (struct bench_load){ .lock = &lock, .ended = &ended };
		loads[i].load.digest = digest_of((unsigned)((uint64_t)i * 7919 % bench->n_images));
		loads[i].load.to = (uint8_t *)bench->region.base + i % bench->places * place_bytes;
		loads[i].load.room = place_bytes;
		loads[i].load.done = on_done;
		pager_submit(bench->pager, &loads[i].load);
	}
	return failed;
}

static double cpu_ms(void)
{
	struct rusage u;

	(void)getrusage(RUSAGE_SELF, &u);
	return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1e3 +
	       (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e3;
}

static int run_pager(struct bench *bench, struct sample *ret)
{
	struct bench_load *loads = calloc(bench->n_images, sizeof(*loads));
	double bytes = (double)bench->image_bytes * bench->n_images, cpu, cached;
	uint64_t begin, end;
	unsigned failed;

	if (!loads)
		return -ENOMEM;
	drop_cache(bench);
	cached = cached_bytes(bench);
	sums_ns = 0;
	cpu = cpu_ms();
	begin = clock_ns();
	failed = load_all(bench, loads);
	end = clock_ns();
	ret->cpu_ms_gb = (cpu_ms() - cpu) / (bytes / GB);
	ret->sums_ms_gb = (double)sums_ns / 1e6 / (bytes / GB);
	ret->gb_s = bytes / (double)(end - begin);
	ret->cached = (cached_bytes(bench) - cached) / bytes;
	free(loads);
	return failed ? -EIO : 0;
}

/* ---- fio ---- */

static size_t read_pipe(int fd, char *text, size_t room)
{
	size_t at = 0;
	ssize_t n;

	while (at + 1 < room && (n = read(fd, text + at, room - 1 - at)) > 0)
		at += (size_t)n;
	text[at] = '\0';
	return at;
}

/* Runs fio over data.mdb. Return: 0; -ENOENT where there is none. */
static int fio_output(const struct bench *bench, char *text, size_t room)
{
	uint64_t image = (bench->image_bytes + 4095) / 4096 * 4096;
	bool small = image < 1 << 20;
	char file[4200], depth[32], block[32];
	const char *const argv[] = { "fio", "--name=page", file, "--readonly", small ? "--rw=randread" : "--rw=read", block, depth,
				     "--direct=1", "--ioengine=io_uring", "--fixedbufs=1", "--output-format=json", NULL };
	posix_spawn_file_actions_t actions;
	int fds[2], status = -1, r;
	pid_t pid;

	(void)snprintf(file, sizeof(file), "--filename=%s", store_data_path(bench->store));
	(void)snprintf(depth, sizeof(depth), "--iodepth=%u", bench->depth);
	(void)snprintf(block, sizeof(block), "--bs=%llu", (unsigned long long)(small ? image : 1 << 20));
	if (pipe2(fds, O_CLOEXEC) < 0)
		return -errno;
	(void)posix_spawn_file_actions_init(&actions);
	(void)posix_spawn_file_actions_adddup2(&actions, fds[1], STDOUT_FILENO);
	r = posix_spawnp(&pid, "fio", &actions, NULL, (char *const *)(uintptr_t)argv, environ);
	(void)posix_spawn_file_actions_destroy(&actions);
	close(fds[1]);
	if (!r) {
		(void)read_pipe(fds[0], text, room);
		(void)waitpid(pid, &status, 0);
	}
	close(fds[0]);
	return r ? -r : status == 0 ? 0 : -EIO;
}

static int run_fio(const struct bench *bench, struct sample *ret)
{
	static char text[1 << 18];
	json_t *root, *job, *read;
	double bytes, ms;
	int r;

	drop_cache(bench);
	r = fio_output(bench, text, sizeof(text));
	if (r)
		return r;
	root = json_loads(text, 0, NULL);
	job = json_array_get(json_object_get(root, "jobs"), 0);
	read = json_object_get(job, "read");
	bytes = json_number_value(json_object_get(read, "io_bytes"));
	ms = json_number_value(json_object_get(job, "job_runtime"));
	ret->gb_s = json_number_value(json_object_get(read, "bw_bytes")) / GB;
	ret->cpu_ms_gb = (json_number_value(json_object_get(job, "usr_cpu")) +
			  json_number_value(json_object_get(job, "sys_cpu"))) / 100 * ms / (bytes / GB);
	json_decref(root);
	return ret->gb_s > 0 ? 0 : -EIO;
}

/* ---- the rounds ---- */

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static double median(double *values, unsigned n)
{
	qsort(values, n, sizeof(*values), compare);
	return values[n / 2];
}

static int run(struct bench *bench)
{
	double gb_s[ROUNDS_MAX], cpu[ROUNDS_MAX], cached[ROUNDS_MAX], ratio[ROUNDS_MAX], fio_gb_s[ROUNDS_MAX],
		sums[ROUNDS_MAX], reading[ROUNDS_MAX];
	unsigned n = 0;
	bool has_fio = true;

	for (unsigned i = 0; i <= bench->rounds; ++i) {
		struct sample ours, fio = { 0 };
		int r = has_fio ? run_fio(bench, &fio) : 0;

		if (r)
			has_fio = false;
		r = run_pager(bench, &ours);
		if (r) {
			fprintf(stderr, "page: loads failed: %s\n", strerror(-r));
			return r;
		}
		if (i == 0)
			continue;
		gb_s[n] = ours.gb_s;
		cpu[n] = ours.cpu_ms_gb;
		sums[n] = ours.sums_ms_gb;
		reading[n] = ours.cpu_ms_gb - ours.sums_ms_gb;
		cached[n] = ours.cached;
		fio_gb_s[n] = fio.gb_s;
		ratio[n++] = has_fio ? ours.gb_s / fio.gb_s : 0;
		printf("round %u: pager %.2f GB/s, %.1f ms CPU/GB; fio %.2f GB/s, %.1f ms CPU/GB\n", i, ours.gb_s,
		       ours.cpu_ms_gb, fio.gb_s, fio.cpu_ms_gb);
	}
	printf("method %s, %s, depth %u, %u loads at once, %u images of %.2f MiB, median of %u rounds\n",
	       pager_method_names[pager_method(bench->pager)], mem_kind_name(bench->region.kind), bench->depth,
	       bench->places, bench->n_images, (double)bench->image_bytes / (1 << 20), n);
	printf("pager_gb_s %.2f\n", median(gb_s, n));
	if (has_fio)
		printf("fio_gb_s %.2f\nratio %.3f\n", median(fio_gb_s, n), median(ratio, n));
	else
		printf("fio is not installed: no ratio\n");
	printf("cpu_ms_per_gb %.1f\ncpu_ms_per_gb_checksums %.1f\ncpu_ms_per_gb_reading %.1f\n", median(cpu, n),
	       median(sums, n), median(reading, n));
	printf("page_cache_growth %.2f %%\n", median(cached, n) * 100);
	return 0;
}

static int set_up(struct bench *bench)
{
	struct pager_options options = { .best = bench->best, .depth = bench->depth };
	struct diag diag = { "" };
	int r;

	if (!mkdtemp(bench->folder)) {
		perror("page: a folder for the store");
		return -errno;
	}
	r = store_open(&bench->store, bench->folder, &diag);
	if (r) {
		fprintf(stderr, "page: %s\n", diag.text);
		return r;
	}
	r = fill_store(bench);
	if (!r)
		r = mem_region_init(&bench->region, "page-bench", bench->places * ((bench->image_bytes + 65535) / 65536 * 65536));
	if (r)
		return r;
	bench->seen = malloc((size_t)((double)bench->n_images * (double)bench->image_bytes / 4096 * 1.5) + (1 << 20));
	if (!bench->seen)
		return -ENOMEM;
	options.region = bench->region.base;
	options.region_bytes = bench->region.bytes;
	return pager_new(&bench->pager, bench->store, &options);
}

static void tear_down(struct bench *bench)
{
	static const char *const files[] = { "data.mdb", "lock.mdb", "lorad.lock" };
	char path[4200];

	pager_free(bench->pager);
	mem_region_deinit(&bench->region);
	store_close(bench->store);
	free(bench->seen);
	for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); ++i) {
		(void)snprintf(path, sizeof(path), "%s/%s", bench->folder, files[i]);
		(void)unlink(path);
	}
	(void)rmdir(bench->folder);
}

/* What was asked for; false: a number is out of range, or there is no such option. */
static bool read_options(int argc, char **argv, struct bench *bench)
{
	static const struct option longs[] = {
		{ "dir", 1, NULL, 'd' },    { "mib", 1, NULL, 'm' },    { "image-mib", 1, NULL, 'i' }, { "image-kib", 1, NULL, 'k' },
		{ "rounds", 1, NULL, 'r' }, { "method", 1, NULL, 'M' }, { "depth", 1, NULL, 'D' },     { "faults", 1, NULL, 'f' }, { 0 },
	};
	unsigned long numbers[128] = { ['m'] = 768, ['i'] = 8, ['r'] = 5, ['D'] = 8, ['f'] = 32 };
	const char *dir = ".";
	uint64_t bytes;
	int c;

	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		if (c == '?')
			return false;
		if (c == 'd')
			dir = optarg;
		else
			numbers[c] = strtoul(optarg, NULL, 10);
	}
	bytes = numbers['k'] ? numbers['k'] << 10 : numbers['i'] << 20;
	if (!bytes || bytes > UINT64_C(2) << 30 || numbers['m'] << 20 < bytes || !numbers['r'] || numbers['r'] >= ROUNDS_MAX ||
	    !numbers['D'] || numbers['M'] >= _PAGER_METHOD_N || !numbers['f'] || numbers['f'] > FAULTS_MAX)
		return false;
	(void)snprintf(bench->folder, sizeof(bench->folder), "%s/page-bench-XXXXXX", dir);
	bench->image_bytes = bytes;
	bench->n_images = (unsigned)((numbers['m'] << 20) / bytes);
	bench->rounds = (unsigned)numbers['r'];
	bench->depth = (unsigned)numbers['D'];
	bench->places = (unsigned)numbers['f'];
	bench->best = (enum pager_method)numbers['M'];
	return true;
}

int main(int argc, char **argv)
{
	struct bench bench = { .region = MEM_REGION_NULL };
	int r;

	if (!read_options(argc, argv, &bench)) {
		fprintf(stderr, "page: an option or a number is out of range\n");
		return 2;
	}
	r = set_up(&bench);
	if (!r)
		r = run(&bench);
	tear_down(&bench);
	return r ? EXIT_FAILURE : EXIT_SUCCESS;
}
