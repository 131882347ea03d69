/* SPDX-License-Identifier: MIT */
/*
 * Kills a writer in the middle of imports, again and again, and looks at what it leaves.
 *
 * usage: store-crash [ROUNDS [SEED]]      (default 25, 1)
 *
 * A child opens the store and puts, replaces and removes versions of random sizes, and compacts the file now and then,
 * until it is killed (SIGKILL) after a random time. The parent then opens the store and checks: every name leads to a whole version (all bytes of it verified,
 * and equal to what its digest stands for), a name whose change the child had confirmed has that change, no chunk is left
 * that belongs to no version, and the file does not grow without bound. Exit status: 0 good, 1 not, 77 cannot run here.
 */
#include <errno.h>
#include <lmdb.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "daemon/store/store-internal.h"
#include "daemon/store/store.h"

#define NAMES 4u
#define SIZES 6u
#define VERSIONS 24u

/* What the child confirmed: for each name the seed it has (0: none), and the one it may have by now. */
struct confirmed {
	volatile unsigned seed[NAMES], next[NAMES];
	volatile unsigned changes, compactions;
};

static const uint64_t sizes[SIZES] = {
	IMAGE_PAGE, IMAGE_CHUNK_PAYLOAD, IMAGE_CHUNK_PAYLOAD + IMAGE_PAGE, 4 * (uint64_t)IMAGE_CHUNK_PAYLOAD,
	6 * (uint64_t)IMAGE_CHUNK_PAYLOAD, 9 * (uint64_t)IMAGE_CHUNK_PAYLOAD + 7 * IMAGE_PAGE,
};

static uint64_t next_random(uint64_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 7;
	*x ^= *x << 17;
	return *x;
}

static uint64_t bytes_of(unsigned seed)
{
	return sizes[seed % SIZES];
}

/* Two versions of three have a packed image beside the source's, about half as large. */
static uint64_t packed_bytes_of(unsigned seed)
{
	return seed % 3 ? (bytes_of(seed) / 2 + IMAGE_PAGE - 1) / IMAGE_PAGE * IMAGE_PAGE : 0;
}

static unsigned packed_seed(unsigned seed)
{
	return seed + 500009;
}

static void fill(uint8_t *to, uint64_t bytes, unsigned seed)
{
	uint64_t x = seed * 0x9e3779b97f4a7c15u + 1;

	for (uint64_t i = 0; i < bytes; i += sizeof(x)) {
		(void)next_random(&x);
		memcpy(to + i, &x, sizeof(x));
	}
}

static struct store_digest digest_of(unsigned seed)
{
	struct store_digest digest;

	fill(digest.bytes, sizeof(digest.bytes), seed + 1000003);
	return digest;
}

static void name_of(unsigned name, char text[8])
{
	(void)snprintf(text, 8, "n%u", name);
}

/* ---- the child ---- */

static int put(struct store *store, unsigned name, unsigned seed, uint8_t *payload, uint8_t *packed)
{
	struct store_record record = {
		.kind = IMAGE_KIND_LORA,
		.digest = digest_of(seed),
		.payload_bytes = bytes_of(seed),
		.n_chunks = (uint32_t)((bytes_of(seed) + IMAGE_CHUNK_PAYLOAD - 1) / IMAGE_CHUNK_PAYLOAD),
		.n_modules = 1,
		.max_rank = 1,
		.geometry = { .n_layers = 1, .hidden = 64 },
		.config_bytes = 2,
		.packed_bytes = packed_bytes_of(seed),
	};
	char text[8];
	struct store_item item = { .name = text, .replace = true, .record = &record, .config = "{}", .payload = payload,
				   .packed = record.packed_bytes ? packed : NULL };
	int r;

	fill(payload, bytes_of(seed), seed);
	fill(packed, packed_bytes_of(seed), packed_seed(seed));
	name_of(name, text);
	r = store_put_many(store, &item, 1);
	return r ? r : item.result;
}

static void write_until_killed(const char *folder, struct confirmed *confirmed, uint64_t x)
{
	uint8_t *payload = malloc(bytes_of(5)), *packed = malloc(bytes_of(5));
	struct store *store = NULL;
	char text[8];

	if (!payload || !packed || store_open(&store, folder, NULL))
		return;
	for (;;) {
		unsigned name = (unsigned)(next_random(&x) % NAMES), seed = (unsigned)(next_random(&x) % VERSIONS);
		struct store_space before, after;
		int r;

		confirmed->next[name] = seed;
		name_of(name, text);
		r = seed ? put(store, name, seed, payload, packed) : store_remove(store, text);
		if (r && r != STORE_E_SAME && r != STORE_E_NOT_FOUND)
			return;
		confirmed->seed[name] = seed;
		++confirmed->changes;
		if (next_random(&x) % 4 == 0) {
			if (store_compact(store, NULL, &before, &after, NULL))
				return;
			confirmed->compactions += after.file_bytes < before.file_bytes;
		}
	}
}

/* ---- the parent ---- */

/* The packed image's, as the map shows them; verified before. */
static bool same_packed(struct store *store, unsigned seed)
{
	_cleanup_(store_snapshot_closep) struct store_snapshot *snapshot = NULL;
	const struct store_digest digest = digest_of(seed);
	_cleanup_free_ uint8_t *expected = malloc(bytes_of(seed));
	const struct store_chunk *chunks;
	uint64_t at = 0;
	uint32_t n;
	int r;

	r = store_snapshot_open(store, &digest, IMAGE_PACKED, &snapshot);
	if (r || !expected)
		return r == STORE_E_NOT_FOUND && !packed_bytes_of(seed);
	fill(expected, packed_bytes_of(seed), packed_seed(seed));
	n = store_snapshot_chunks(snapshot, &chunks);
	for (uint32_t i = 0; i < n; at += chunks[i++].bytes)
		if (at + chunks[i].bytes > packed_bytes_of(seed) ||
		    memcmp(chunks[i].value + IMAGE_HEADER_BYTES, expected + at, chunks[i].bytes) != 0)
			return false;
	return at == packed_bytes_of(seed);
}

static bool same_bytes(struct store *store, unsigned seed)
{
	const struct store_digest digest = digest_of(seed);
	uint8_t *expected = malloc(bytes_of(seed)), *payload = NULL;
	struct diag diag = { "" };
	bool same = false;
	int r;

	r = store_read(store, &digest, &payload, NULL, &diag);
	if (!r)
		r = store_verify(store, &digest, NULL, &diag);
	if (r) {
		printf("version %u: %d %s\n", seed, r, diag.text);
	} else if (expected) {
		fill(expected, bytes_of(seed), seed);
		same = memcmp(expected, payload, bytes_of(seed)) == 0 && same_packed(store, seed);
		if (!same)
			printf("version %u: other bytes than were put\n", seed);
	}
	free(payload);
	free(expected);
	return same;
}

/* The seed a name leads to; 0: there is no such name; VERSIONS: to none of ours. */
static unsigned seed_of(struct store *store, unsigned name)
{
	struct store_digest found;
	char text[8];
	int r;

	name_of(name, text);
	r = store_find(store, text, &found, NULL);
	if (r == STORE_E_NOT_FOUND)
		return 0;
	for (unsigned seed = 1; !r && seed < VERSIONS; ++seed) {
		struct store_digest digest = digest_of(seed);

		if (memcmp(&digest, &found, sizeof(found)) == 0)
			return seed;
	}
	return VERSIONS;
}

static bool check_names(struct store *store, struct confirmed *confirmed)
{
	bool good = true;

	for (unsigned name = 0; name < NAMES; ++name) {
		unsigned seed = seed_of(store, name);

		if (seed == VERSIONS || (seed != confirmed->seed[name] && seed != confirmed->next[name])) {
			printf("name %u: leads to %u, confirmed was %u, under way %u\n", name, seed,
			       confirmed->seed[name], confirmed->next[name]);
			good = false;
		} else if (seed && !same_bytes(store, seed)) {
			good = false;
		}
		confirmed->seed[name] = confirmed->next[name] = seed;
	}
	return good;
}

static size_t entries(struct store *store, MDB_dbi dbi)
{
	_cleanup_(store_read_end) struct store_read read = {};
	MDB_stat stat = { .ms_entries = 0 };

	if (store_read_begin(&read, store))
		return SIZE_MAX;
	(void)mdb_stat(read.txn, dbi, &stat);
	return stat.ms_entries;
}

/* Chunks, records and configs are those of the versions with a name, and nothing is pending. */
static bool check_leftovers(struct store *store, const struct confirmed *confirmed)
{
	size_t versions = 0, chunks = 0;

	for (unsigned name = 0; name < NAMES; ++name) {
		unsigned seed = confirmed->seed[name];
		bool counted = seed == 0;

		for (unsigned other = 0; other < name; ++other)
			counted |= confirmed->seed[other] == seed;
		versions += !counted;
		chunks += counted ? 0 : store_chunks(bytes_of(seed)) + store_chunks(packed_bytes_of(seed));
	}
	if (entries(store, store->file.records) == versions && entries(store, store->file.configs) == versions &&
	    entries(store, store->file.chunks) == chunks && entries(store, store->file.pending) == 0)
		return true;
	printf("left over: %zu records, %zu configs of %zu versions, %zu chunks of %zu, %zu pending\n",
	       entries(store, store->file.records), entries(store, store->file.configs), versions, entries(store, store->file.chunks),
	       chunks, entries(store, store->file.pending));
	return false;
}

static bool check(const char *folder, struct confirmed *confirmed)
{
	struct store *store = NULL;
	struct diag diag = { "" };
	bool good;
	int r;

	r = store_open(&store, folder, &diag);
	if (r) {
		printf("open: %d %s\n", r, diag.text);
		return false;
	}
	good = check_names(store, confirmed);
	good = check_leftovers(store, confirmed) && good;
	store_close(store);
	return good;
}

static void sleep_us(uint64_t us)
{
	struct timespec t = { .tv_sec = (time_t)(us / 1000000), .tv_nsec = (long)(us % 1000000 * 1000) };

	while (nanosleep(&t, &t) < 0 && errno == EINTR)
		;
}

static bool run_round(const char *folder, struct confirmed *confirmed, uint64_t *x)
{
	uint64_t seed = next_random(x);
	int status;
	pid_t pid;

	pid = fork();
	if (pid < 0)
		return false;
	if (pid == 0) {
		write_until_killed(folder, confirmed, seed);
		_exit(3);
	}
	sleep_us(5000 + next_random(x) % 250000);
	(void)kill(pid, SIGKILL);
	if (waitpid(pid, &status, 0) != pid || !WIFSIGNALED(status)) {
		printf("the writer ended by itself\n");
		return false;
	}
	return check(folder, confirmed);
}

static void remove_store(const char *folder)
{
	static const char *const files[] = { "data.mdb", "lock.mdb", "lorad.lock" };
	char path[4096];

	for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); ++i) {
		(void)snprintf(path, sizeof(path), "%s/%s", folder, files[i]);
		(void)unlink(path);
	}
	(void)rmdir(folder);
}

int main(int argc, char **argv)
{
	unsigned long rounds = argc > 1 ? strtoul(argv[1], NULL, 10) : 25;
	uint64_t x = (argc > 2 ? strtoul(argv[2], NULL, 10) : 1) * 0x9e3779b97f4a7c15u | 1;
	const char *base = getenv("TMPDIR");
	struct confirmed *confirmed;
	char folder[4096];
	struct stat st;
	bool good = true;

	(void)snprintf(folder, sizeof(folder), "%s/lorad-crash-XXXXXX", base ? base : "/tmp");
	confirmed = mmap(NULL, sizeof(*confirmed), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (!mkdtemp(folder) || confirmed == MAP_FAILED) {
		printf("skipped: no folder for the store\n");
		return 77;
	}
	for (unsigned long i = 0; i < rounds && good; ++i)
		good = run_round(folder, confirmed, &x);
	(void)snprintf(folder + strlen(folder), sizeof(folder) - strlen(folder), "/data.mdb");
	if (stat(folder, &st) == 0 && st.st_size > 400l << 20) {
		printf("data.mdb grew to %ld MiB\n", (long)(st.st_size >> 20));
		good = false;
	}
	printf("%lu kills, %u confirmed changes, %u compactions, data.mdb %ld MiB: %s\n", rounds, confirmed->changes,
	       confirmed->compactions, (long)(st.st_size >> 20), good ? "good" : "NOT GOOD");
	*strrchr(folder, '/') = '\0';
	if (good)
		remove_store(folder);
	return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
