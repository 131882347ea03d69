/* SPDX-License-Identifier: MIT */
/* The store: names and versions, deletion, what survives damage, a full disk and a second daemon. */
#include "tests/unit/store-util.h"
#include "tests/lib/run-suite.h"

#include <fcntl.h>
#include <lmdb.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/store/store-internal.h"

#define SMALL ((uint64_t)3 * IMAGE_PAGE)
#define LARGE ((uint64_t)5 * IMAGE_CHUNK_PAYLOAD + IMAGE_PAGE) /* more than one transaction's chunks */

/* The linker sends the store's calls here. This many commits go well, then a writer is killed; -1: it is not. */
static int die_after = -1;

int __real_store_write_commit(struct store_write *write, struct diag *diag);
int __wrap_store_write_commit(struct store_write *write, struct diag *diag);

int __wrap_store_write_commit(struct store_write *write, struct diag *diag)
{
	if (die_after == 0)
		(void)raise(SIGKILL);
	die_after -= die_after > 0;
	return __real_store_write_commit(write, diag);
}

static char *folder;
static struct store *store;

static void setup(void)
{
	folder = test_folder();
	store = test_open(folder);
}

static void teardown(void)
{
	store_close(store);
	test_folder_free(folder);
}

static void reopen(void)
{
	store_close(store);
	store = test_open(folder);
}

static bool has_name(const char *name, uint64_t seed)
{
	const struct store_digest digest = test_digest(seed);
	struct store_digest found;

	return store_find(store, name, &found, NULL) == 0 && memcmp(&found, &digest, sizeof(found)) == 0;
}

static bool has_version(uint64_t seed)
{
	const struct store_digest digest = test_digest(seed);
	struct store_record record;

	return store_record(store, &digest, &record) == 0;
}

static void assert_content(uint64_t seed, uint64_t bytes)
{
	const struct store_digest digest = test_digest(seed);
	uint8_t *expected = test_payload(seed, bytes), *payload = NULL;
	struct diag diag = { "" };
	struct store_record record;
	int r = store_read(store, &digest, &payload, &record, &diag);

	ck_assert_msg(r == 0, "store_read: %d %s", r, diag.text);
	ck_assert_uint_eq(record.payload_bytes, bytes);
	ck_assert_mem_eq(payload, expected, bytes);
	free(payload);
	free(expected);
}

static int open_packed(uint64_t seed, struct store_snapshot **ret)
{
	const struct store_digest digest = test_digest(seed);

	return store_snapshot_open(store, &digest, IMAGE_PACKED, ret);
}

/* The packed image, as it lies in the file. */
static void assert_packed(uint64_t seed, uint64_t bytes)
{
	uint8_t *expected = test_packed(seed, bytes), *found = malloc(IMAGE_CHUNK_PAYLOAD);
	struct store_snapshot *snapshot = NULL;
	const struct store_chunk *chunks;
	uint64_t at = 0;
	uint32_t n;
	int fd;

	ck_assert_int_eq(open_packed(seed, &snapshot), 0);
	ck_assert_uint_eq(store_snapshot_record(snapshot)->packed_bytes, bytes);
	n = store_snapshot_chunks(snapshot, &chunks);
	fd = open(store_data_path(store), O_RDONLY | O_CLOEXEC);
	for (uint32_t i = 0; i < n; at += chunks[i++].bytes) {
		ck_assert_uint_le(at + chunks[i].bytes, bytes);
		ck_assert_int_eq(pread(fd, found, chunks[i].bytes, (off_t)chunks[i].file_offset), chunks[i].bytes);
		ck_assert_mem_eq(found, expected + at, chunks[i].bytes);
	}
	ck_assert_uint_eq(at, bytes);
	close(fd);
	store_snapshot_close(snapshot);
	free(found);
	free(expected);
}

static void assert_verified(uint64_t seed)
{
	const struct store_digest digest = test_digest(seed);
	struct diag diag = { "" };
	int r = store_verify(store, &digest, NULL, &diag);

	ck_assert_msg(r == 0, "store_verify: %d %s", r, diag.text);
}

static size_t entries(MDB_env *env, MDB_dbi dbi)
{
	MDB_stat stat;
	MDB_txn *txn;

	ck_assert_int_eq(mdb_txn_begin(env, NULL, MDB_RDONLY, &txn), 0);
	ck_assert_int_eq(mdb_stat(txn, dbi, &stat), 0);
	mdb_txn_abort(txn);
	return stat.ms_entries;
}

static size_t chunk_entries(void)
{
	return entries(store->file.env, store->file.chunks);
}

static off_t data_bytes(void)
{
	struct stat st;

	ck_assert_int_eq(stat(store_data_path(store), &st), 0);
	return st.st_size;
}

/* Transactions that were committed in the store's life. */
static size_t commits(void)
{
	MDB_envinfo info;

	ck_assert_int_eq(mdb_env_info(store->file.env, &info), 0);
	return info.me_last_txnid;
}

START_TEST(names_lead_to_versions)
{
	struct diag diag = { "" };
	struct store_record record;
	char *config;
	size_t bytes;

	ck_assert_int_eq(store_find(store, "a", NULL, NULL), STORE_E_NOT_FOUND);
	ck_assert_int_eq(test_put(store, "a", 1, SMALL, false, &diag), 0);
	ck_assert_int_eq(test_put(store, "a", 1, SMALL, false, &diag), STORE_E_SAME);
	ck_assert_int_eq(test_put(store, "a", 2, SMALL, false, &diag), STORE_E_EXISTS);
	ck_assert_ptr_nonnull(strstr(diag.text, "a: the name is taken"));
	ck_assert(!has_version(2));
	ck_assert(has_name("a", 1));
	ck_assert_int_eq(test_put(store, "a", 2, SMALL, true, &diag), 0);
	ck_assert(has_name("a", 2));
	ck_assert(!has_version(1));
	reopen();
	ck_assert(has_name("a", 2));
	assert_content(2, SMALL);
	ck_assert_int_eq(store_find(store, "a", NULL, &record), 0);
	ck_assert_int_eq(store_config(store, &record.digest, &config, &bytes), 0);
	ck_assert_uint_eq(bytes, strlen(TEST_CONFIG));
	ck_assert_str_eq(config, TEST_CONFIG);
	free(config);
}
END_TEST

START_TEST(a_version_lives_as_long_as_a_name)
{
	ck_assert_int_eq(test_put(store, "a", 1, LARGE, false, NULL), 0);
	ck_assert_int_eq(test_put(store, "b", 1, LARGE, false, NULL), 0);
	ck_assert_int_eq(store_remove(store, "a"), 0);
	ck_assert_int_eq(store_remove(store, "a"), STORE_E_NOT_FOUND);
	ck_assert(has_name("b", 1));
	assert_content(1, LARGE);
	ck_assert_int_eq(store_remove(store, "b"), 0);
	ck_assert(!has_version(1));
}
END_TEST

START_TEST(a_held_version_outlives_its_names)
{
	const struct store_digest digest = test_digest(1);
	struct store_record record;

	ck_assert_int_eq(store_hold(store, &digest, &record), STORE_E_NOT_FOUND);
	ck_assert_int_eq(test_put(store, "a", 1, LARGE, false, NULL), 0);
	ck_assert_int_eq(store_hold(store, &digest, &record), 0);
	ck_assert_uint_eq(record.payload_bytes, LARGE);
	ck_assert_int_eq(store_remove(store, "a"), 0);
	ck_assert_int_eq(test_put(store, "b", 2, SMALL, false, NULL), 0);
	assert_content(1, LARGE);
	store_release(store, &digest);
	ck_assert_int_eq(test_put(store, "c", 3, SMALL, false, NULL), 0);
	ck_assert(!has_version(1));
	ck_assert(has_version(2) && has_version(3));
}
END_TEST

START_TEST(a_nameless_version_can_get_a_name_again)
{
	const struct store_digest digest = test_digest(1);
	struct store_record record;

	ck_assert_int_eq(test_put(store, "a", 1, SMALL, false, NULL), 0);
	ck_assert_int_eq(store_hold(store, &digest, &record), 0);
	ck_assert_int_eq(store_remove(store, "a"), 0);
	ck_assert_int_eq(test_put(store, "b", 1, SMALL, false, NULL), 0);
	store_release(store, &digest);
	ck_assert_int_eq(test_put(store, "c", 2, SMALL, false, NULL), 0);
	ck_assert(has_name("b", 1));
	assert_content(1, SMALL);
}
END_TEST

/* A daemon that ends while a nameless version is held leaves it to the next open. */
START_TEST(open_sweeps_nameless_versions)
{
	const struct store_digest digest = test_digest(1);
	struct store_record record;

	ck_assert_int_eq(test_put(store, "a", 1, SMALL, false, NULL), 0);
	ck_assert_int_eq(test_put(store, "b", 2, SMALL, false, NULL), 0);
	ck_assert_int_eq(store_hold(store, &digest, &record), 0);
	ck_assert_int_eq(store_remove(store, "a"), 0);
	ck_assert(has_version(1));
	store_release(store, &digest);
	reopen();
	ck_assert(!has_version(1));
	ck_assert(has_version(2));
}
END_TEST

static int note_name(void *userdata, const char *name, const struct store_record *record)
{
	ck_assert_uint_eq(record->payload_bytes, SMALL);
	strcat(userdata, name);
	return 0;
}

START_TEST(each_goes_in_byte_order)
{
	char names[64] = "";

	ck_assert_int_eq(store_each(store, note_name, names), 0);
	ck_assert_str_eq(names, "");
	ck_assert_int_eq(test_put(store, "b", 1, SMALL, false, NULL), 0);
	ck_assert_int_eq(test_put(store, "a.1", 2, SMALL, false, NULL), 0);
	ck_assert_int_eq(test_put(store, "Z", 1, SMALL, false, NULL), 0);
	ck_assert_int_eq(store_each(store, note_name, names), 0);
	ck_assert_str_eq(names, "Za.1b");
}
END_TEST

START_TEST(sizes_around_pages_and_chunks)
{
	const uint64_t chunk = IMAGE_CHUNK_PAYLOAD, page = IMAGE_PAGE;
	const uint64_t sizes[] = { page, 2 * page, chunk - page, chunk, chunk + page, 4 * chunk, 4 * chunk + page };

	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); ++i) {
		char name[8];

		snprintf(name, sizeof(name), "n%zu", i);
		ck_assert_int_eq(test_put(store, name, i, sizes[i], false, NULL), 0);
	}
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); ++i)
		assert_content(i, sizes[i]);
}
END_TEST

/* Chunks of one size: what a deleted version leaves is filled by the next one. */
START_TEST(space_is_reused)
{
	off_t before;

	for (uint64_t i = 0; i < 4; ++i)
		ck_assert_int_eq(test_put(store, "a", i, 2 * IMAGE_CHUNK_PAYLOAD, true, NULL), 0);
	before = data_bytes();
	for (uint64_t i = 4; i < 24; ++i)
		ck_assert_int_eq(test_put(store, "a", i, 2 * IMAGE_CHUNK_PAYLOAD, true, NULL), 0);
	ck_assert_int_le(data_bytes(), before + 2 * (off_t)IMAGE_VALUE_BYTES);
}
END_TEST

#define BULK 12u

/* Takes the names from..n away, puts other content under them, BULK at a time. */
static void replace_names(unsigned from, unsigned n, uint64_t seed, uint64_t bytes)
{
	struct store_item items[BULK];
	struct store_record records[BULK];
	char names[BULK][8];

	for (unsigned i = from; i < n; ++i) {
		char name[8];

		snprintf(name, sizeof(name), "n%u", i);
		(void)store_remove(store, name);
	}
	for (unsigned at = from; at < n; at += BULK) {
		unsigned k = n - at < BULK ? n - at : BULK;

		for (unsigned i = 0; i < k; ++i) {
			snprintf(names[i], sizeof(names[i]), "n%u", at + i);
			records[i] = test_record(seed + at + i, bytes);
			items[i] = (struct store_item){ .name = names[i], .record = &records[i], .config = TEST_CONFIG,
							.payload = test_payload(seed + at + i, bytes) };
		}
		ck_assert_int_eq(store_put_many(store, items, k), 0);
		for (unsigned i = 0; i < k; ++i) {
			ck_assert_int_eq(items[i].result, 0);
			free((void *)(uintptr_t)items[i].payload);
		}
	}
}

/* All, or half of them, are replaced ten times: the file stays within a tenth of what lives, and one import. */
START_TEST(ten_rounds_reuse_space)
{
	const unsigned n = 48;
	const uint64_t bytes = 225 * IMAGE_PAGE, value = bytes + IMAGE_HEADER_BYTES; /* as of rank 8 on q and v of 135M */

	replace_names(0, n, 1000, bytes);
	for (unsigned round = 1; round <= 10; ++round)
		replace_names(round % 2 ? 0 : n / 2, n, 1000 + (uint64_t)round * n, bytes);
	ck_assert_int_le(data_bytes(), (off_t)(n * value * 11 / 10 + value));
	for (unsigned i = 0; i < n; ++i)
		assert_content(1000 + (i < n / 2 ? 9 : 10) * (uint64_t)n + i, bytes);
}
END_TEST

START_TEST(a_snapshot_pins_what_it_shows)
{
	const struct store_digest digest = test_digest(1);
	uint8_t *expected = test_payload(1, LARGE), *bytes = malloc(IMAGE_CHUNK_PAYLOAD);
	struct store_snapshot *snapshot = NULL;
	const struct store_chunk *chunks;
	int fd;

	ck_assert_int_eq(test_put(store, "a", 1, LARGE, false, NULL), 0);
	ck_assert_int_eq(store_snapshot_open(store, &digest, IMAGE_SOURCE, &snapshot), 0);
	ck_assert_int_eq(store_remove(store, "a"), 0);
	for (uint64_t i = 2; i < 6; ++i)
		ck_assert_int_eq(test_put(store, "b", i, LARGE, true, NULL), 0);
	fd = open(store_data_path(store), O_RDONLY | O_CLOEXEC);
	ck_assert_int_eq(store_snapshot_chunks(snapshot, &chunks), 6);
	for (size_t i = 0; i < 6; ++i) {
		ck_assert_uint_gt(chunks[i].file_offset, 0);
		ck_assert_uint_eq(chunks[i].file_offset % IMAGE_PAGE, 0);
		ck_assert_int_eq(pread(fd, bytes, chunks[i].bytes, (off_t)chunks[i].file_offset), chunks[i].bytes);
		ck_assert_mem_eq(bytes, expected + i * IMAGE_CHUNK_PAYLOAD, chunks[i].bytes);
	}
	close(fd);
	store_snapshot_close(snapshot);
	free(bytes);
	free(expected);
}
END_TEST

START_TEST(verify_names_the_damage)
{
	const struct store_digest digest = test_digest(1), other = test_digest(2);
	uint64_t header, payload;
	struct diag diag = { "" };

	ck_assert_int_eq(test_put(store, "a", 1, LARGE, false, NULL), 0);
	ck_assert_int_eq(test_put(store, "b", 2, SMALL, false, NULL), 0);
	ck_assert_int_eq(store_verify(store, &digest, NULL, &diag), 0);
	payload = test_chunk_offset(store, 1, 3) + 12345;
	test_flip(store, payload);
	ck_assert_int_eq(store_verify(store, &digest, NULL, &diag), STORE_E_CORRUPT);
	ck_assert_ptr_nonnull(strstr(diag.text, "chunk 3 of 6"));
	ck_assert_ptr_nonnull(strstr(diag.text, "checksum"));
	test_flip(store, payload);
	ck_assert_int_eq(store_verify(store, &digest, NULL, &diag), 0);
	header = test_chunk_offset(store, 1, 5) - IMAGE_HEADER_BYTES + 20;
	test_flip(store, header);
	ck_assert_int_eq(store_verify(store, &digest, NULL, &diag), STORE_E_CORRUPT);
	ck_assert_ptr_nonnull(strstr(diag.text, "chunk 5 of 6"));
	ck_assert_int_eq(store_verify(store, &other, NULL, &diag), 0);
}
END_TEST

START_TEST(one_daemon_at_a_time)
{
	struct store *second = NULL;
	struct diag diag = { "" };

	ck_assert_int_eq(store_open(&second, folder, &diag), STORE_E_BUSY);
	ck_assert_ptr_nonnull(strstr(diag.text, folder));
}
END_TEST

START_TEST(parents_are_made)
{
	char *path = NULL;
	struct store *second;
	struct stat st;

	ck_assert_int_gt(asprintf(&path, "%s/x/y/z", folder), 0);
	second = test_open(path);
	ck_assert_int_eq(stat(path, &st), 0);
	ck_assert_int_eq(st.st_mode & 0777, 0700);
	store_close(second);
	free(path);
}
END_TEST

static void write_file(const char *in, const char *name, const char *text)
{
	char *path = NULL;
	FILE *file;

	ck_assert_int_gt(asprintf(&path, "%s/%s", in, name), 0);
	file = fopen(path, "w");
	ck_assert_ptr_nonnull(file);
	fputs(text, file);
	fclose(file);
	free(path);
}

static void assert_invalid(const char *path)
{
	struct store *second = NULL;
	struct diag diag = { "" };

	ck_assert_int_eq(store_open(&second, path, &diag), STORE_E_INVALID);
	ck_assert_msg(strstr(diag.text, path) != NULL, "%s", diag.text);
}

START_TEST(what_is_no_store_is_refused)
{
	char *path = test_folder(), *file = NULL;
	MDB_env *env;
	MDB_txn *txn;
	MDB_dbi dbi;

	/* no LMDB file at all */
	write_file(path, "data.mdb", "certainly not a database, though it is long enough to be looked at ............");
	assert_invalid(path);
	/* a file where the folder should be */
	ck_assert_int_gt(asprintf(&file, "%s/data.mdb", path), 0);
	assert_invalid(file);
	ck_assert_int_eq(unlink(file), 0);
	/* another program's environment */
	ck_assert_int_eq(mdb_env_create(&env), 0);
	ck_assert_int_eq(mdb_env_set_maxdbs(env, 2), 0);
	ck_assert_int_eq(mdb_env_open(env, path, 0, 0600), 0);
	ck_assert_int_eq(mdb_txn_begin(env, NULL, 0, &txn), 0);
	ck_assert_int_eq(mdb_dbi_open(txn, "recipes", MDB_CREATE, &dbi), 0);
	ck_assert_int_eq(mdb_txn_commit(txn), 0);
	mdb_env_close(env);
	assert_invalid(path);
	free(file);
	test_folder_free(path);
}
END_TEST

/* The end of the file is lost: no crash, and what was there is known to be damaged. */
START_TEST(a_truncated_file_is_no_crash)
{
	const struct store_digest digest = test_digest(1);
	uint64_t offset;
	struct diag diag = { "" };
	int r;

	ck_assert_int_eq(test_put(store, "a", 1, LARGE, false, NULL), 0);
	offset = test_chunk_offset(store, 1, 2);
	store_close(store);
	store = NULL;
	{
		char *path = NULL;

		ck_assert_int_gt(asprintf(&path, "%s/data.mdb", folder), 0);
		ck_assert_int_eq(truncate(path, (off_t)offset), 0);
		free(path);
	}
	r = store_open(&store, folder, &diag);
	ck_assert_msg(r == 0 || r == STORE_E_CORRUPT, "%d %s", r, diag.text);
	if (r == 0)
		ck_assert_int_ne(store_verify(store, &digest, NULL, &diag), 0);
}
END_TEST

/* As on a full disk: writes fail beyond a size. Nothing is visible, nothing is lost, and space comes back. */
START_TEST(a_full_disk_is_refused_cleanly)
{
	struct rlimit limit;
	struct diag diag = { "" };

	ck_assert_int_eq(test_put(store, "a", 1, SMALL, false, NULL), 0);
	signal(SIGXFSZ, SIG_IGN);
	ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &limit), 0);
	limit.rlim_cur = (rlim_t)data_bytes() + 18 * 1024 * 1024; /* after the first transaction */
	ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
	ck_assert_int_eq(test_put(store, "b", 2, LARGE, false, &diag), STORE_E_FULL);
	ck_assert_ptr_nonnull(strstr(diag.text, "no space left"));
	ck_assert(!has_version(2));
	assert_content(1, SMALL);
	/* LMDB reuses the pages that a transaction freed from the one after the next on. */
	ck_assert_int_eq(test_put(store, "d", 4, SMALL, false, &diag), 0);
	ck_assert_int_eq(test_put(store, "c", 3, IMAGE_CHUNK_PAYLOAD, false, &diag), 0);
	assert_content(3, IMAGE_CHUNK_PAYLOAD);
	limit.rlim_cur = limit.rlim_max;
	ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
	ck_assert_int_eq(test_put(store, "b", 2, LARGE, false, &diag), 0);
	assert_content(2, LARGE);
	reopen();
	assert_content(1, SMALL);
	assert_content(2, LARGE);
}
END_TEST

START_TEST(names_are_checked)
{
	static const char *const good[] = { "a", "A.b-c_9", "0" };
	static const char *const bad[] = { "", ".a", "-a", "_a", "a/b", "a b", "a\n", "\xc3\xa4", "a:b" };
	char longest[STORE_NAME_MAX + 2];

	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); ++i)
		ck_assert_msg(store_name_valid(good[i]), "%s", good[i]);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); ++i)
		ck_assert_msg(!store_name_valid(bad[i]), "%s", bad[i]);
	memset(longest, 'x', sizeof(longest));
	longest[STORE_NAME_MAX] = '\0';
	ck_assert(store_name_valid(longest));
	longest[STORE_NAME_MAX] = 'x';
	longest[STORE_NAME_MAX + 1] = '\0';
	ck_assert(!store_name_valid(longest));
	ck_assert_int_eq(store_find(store, longest, NULL, NULL), STORE_E_NOT_FOUND);
}
END_TEST

/* Six at once: what each is told, what is there afterwards, and that it was one commit. */
START_TEST(many_are_put_at_once)
{
	static const struct {
		const char *name;
		uint64_t seed;
		bool replace;
		int result;
	} rows[] = {
		{ "new", 10, false, 0 },     { "same", 1, false, STORE_E_SAME }, { "taken", 11, false, STORE_E_EXISTS },
		{ "old", 12, true, 0 },      { "twin", 10, false, 0 },           { "back", 3, false, 0 },
	};
	enum { N = sizeof(rows) / sizeof(rows[0]) };
	struct store_item items[N];
	struct store_record records[N];
	uint8_t *payloads[N];
	struct diag diags[N];
	size_t before;

	ck_assert_int_eq(test_put(store, "same", 1, SMALL, false, NULL), 0);
	ck_assert_int_eq(test_put(store, "taken", 2, SMALL, false, NULL), 0);
	ck_assert_int_eq(test_put(store, "old", 3, SMALL, false, NULL), 0);
	for (size_t i = 0; i < N; ++i) {
		records[i] = test_record(rows[i].seed, SMALL);
		payloads[i] = test_payload(rows[i].seed, SMALL);
		items[i] = (struct store_item){ .name = rows[i].name, .replace = rows[i].replace, .record = &records[i],
						.config = TEST_CONFIG, .payload = payloads[i], .diag = &diags[i] };
	}
	before = commits();
	ck_assert_int_eq(store_put_many(store, items, N), 0);
	ck_assert_uint_eq(commits(), before + 1);
	for (size_t i = 0; i < N; ++i) {
		ck_assert_msg(items[i].result == rows[i].result, "%s: %d", rows[i].name, items[i].result);
		ck_assert_int_eq(has_name(rows[i].name, rows[i].seed), rows[i].result != STORE_E_EXISTS);
		free(payloads[i]);
	}
	ck_assert(!has_version(11));
	assert_content(10, SMALL);
	assert_content(12, SMALL);
	assert_content(3, SMALL); /* retired and put again by one transaction */
	reopen();
	assert_content(3, SMALL);
}
END_TEST

/* As on a full disk: the one that does not fit is refused, those before and after it are put. */
START_TEST(one_of_many_that_does_not_fit)
{
	const uint64_t sizes[] = { SMALL, 3 * (uint64_t)IMAGE_CHUNK_PAYLOAD, SMALL };
	struct store_item items[3];
	struct store_record records[3];
	struct diag diags[3] = { { "" } };
	struct rlimit limit;

	for (size_t i = 0; i < 3; ++i) {
		static const char *const names[] = { "a", "b", "c" };

		records[i] = test_record(i, sizes[i]);
		items[i] = (struct store_item){ .name = names[i], .record = &records[i], .config = TEST_CONFIG,
						.payload = test_payload(i, sizes[i]), .diag = &diags[i] };
	}
	signal(SIGXFSZ, SIG_IGN);
	ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &limit), 0);
	limit.rlim_cur = (rlim_t)data_bytes() + 4 * 1024 * 1024;
	ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
	ck_assert_int_eq(store_put_many(store, items, 3), 0);
	ck_assert_int_eq(items[0].result, 0);
	ck_assert_int_eq(items[1].result, STORE_E_FULL);
	ck_assert_ptr_nonnull(strstr(diags[1].text, "no space left"));
	ck_assert_int_eq(items[2].result, 0);
	assert_content(0, SMALL);
	assert_content(2, SMALL);
	ck_assert(!has_version(1));
	for (size_t i = 0; i < 3; ++i)
		free((void *)(uintptr_t)items[i].payload);
}
END_TEST

static bool count_bytes(void *userdata, uint64_t bytes)
{
	uint64_t *left = userdata;

	*left = *left > bytes ? *left - bytes : 0;
	return *left > 0;
}

static void assert_no_copy(void)
{
	char *path = NULL;
	struct stat st;

	ck_assert_int_gt(asprintf(&path, "%s/compact.mdb", folder), 0);
	ck_assert_int_ne(stat(path, &st), 0);
	free(path);
}

static struct store_space assert_compacts(void)
{
	struct store_space before, after;
	struct diag diag = { "" };
	int r = store_compact(store, NULL, &before, &after, &diag);

	ck_assert_msg(r == 0, "store_compact: %d %s", r, diag.text);
	ck_assert_uint_eq(after.file_bytes, (uint64_t)data_bytes());
	ck_assert_uint_le(after.file_bytes, before.file_bytes - before.free_bytes + 16 * IMAGE_PAGE);
	return after;
}

START_TEST(compaction_gives_space_back)
{
	off_t full;

	for (uint64_t i = 0; i < 8; ++i) {
		char name[8];

		snprintf(name, sizeof(name), "n%u", (unsigned)i);
		ck_assert_int_eq(test_put(store, name, i, i == 5 ? LARGE : IMAGE_CHUNK_PAYLOAD, false, NULL), 0);
	}
	for (unsigned i = 0; i < 5; ++i) {
		char name[8];

		snprintf(name, sizeof(name), "n%u", i);
		ck_assert_int_eq(store_remove(store, name), 0);
	}
	full = data_bytes();
	(void)assert_compacts();
	ck_assert_int_lt(data_bytes(), full - 4 * (off_t)IMAGE_VALUE_BYTES);
	assert_no_copy();
	assert_content(5, LARGE);
	ck_assert(has_name("n6", 6) && !has_name("n0", 0));
	/* and it is a store as before: also for writing, and for the next daemon */
	ck_assert_int_eq(test_put(store, "new", 20, LARGE, false, NULL), 0);
	assert_content(20, LARGE);
	ck_assert_int_eq(store_remove(store, "n6"), 0);
	reopen();
	assert_content(5, LARGE);
	assert_content(20, LARGE);
	ck_assert(has_name("n7", 7) && !has_name("n6", 6));
	full = data_bytes();
	(void)assert_compacts();
	ck_assert_int_lt(data_bytes(), full);
	full = data_bytes();
	(void)assert_compacts(); /* nothing to gain */
	ck_assert_int_eq(data_bytes(), full);
	assert_content(20, LARGE);
}
END_TEST

START_TEST(compaction_can_be_ended)
{
	uint64_t left = 3 * IMAGE_CHUNK_PAYLOAD;
	const struct store_watch watch = { count_bytes, &left };
	struct store_space before, after;
	struct diag diag = { "" };
	off_t size;

	ck_assert_int_eq(test_put(store, "a", 1, LARGE, false, NULL), 0);
	ck_assert_int_eq(test_put(store, "b", 2, LARGE, false, NULL), 0);
	ck_assert_int_eq(store_remove(store, "a"), 0);
	size = data_bytes();
	ck_assert_int_eq(store_compact(store, &watch, &before, &after, &diag), STORE_E_CANCELLED);
	assert_no_copy();
	ck_assert_int_eq(data_bytes(), size);
	assert_content(2, LARGE);
	ck_assert_int_eq(test_put(store, "c", 3, SMALL, false, NULL), 0);
	(void)assert_compacts();
	assert_content(2, LARGE);
	assert_content(3, SMALL);
}
END_TEST

/* As on a full disk: the copy fails, everything is as before. */
START_TEST(compaction_without_room_changes_nothing)
{
	struct store_space before, after;
	struct diag diag = { "" };
	struct rlimit limit;

	ck_assert_int_eq(test_put(store, "a", 1, LARGE, false, NULL), 0);
	ck_assert_int_eq(test_put(store, "b", 2, LARGE, false, NULL), 0);
	ck_assert_int_eq(store_remove(store, "a"), 0);
	signal(SIGXFSZ, SIG_IGN);
	ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &limit), 0);
	limit.rlim_cur = 4 * IMAGE_CHUNK_PAYLOAD;
	ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
	ck_assert_int_eq(store_compact(store, NULL, &before, &after, &diag), STORE_E_FULL);
	ck_assert_ptr_nonnull(strstr(diag.text, "no space left"));
	assert_no_copy();
	assert_content(2, LARGE);
}
END_TEST

static void *compact_main(void *userdata)
{
	(void)userdata;
	(void)assert_compacts();
	return NULL;
}

/* A snapshot's offsets are of the file before: the new one waits for it. Short reads do not wait, nor is it waited for. */
START_TEST(compaction_waits_for_snapshots)
{
	const struct store_digest digest = test_digest(2);
	struct store_snapshot *snapshot = NULL;
	pthread_t thread;
	uint64_t inode;
	struct stat st;

	ck_assert_int_eq(test_put(store, "a", 1, LARGE, false, NULL), 0);
	ck_assert_int_eq(test_put(store, "b", 2, SMALL, false, NULL), 0);
	ck_assert_int_eq(store_remove(store, "a"), 0);
	ck_assert_int_eq(stat(store_data_path(store), &st), 0);
	inode = st.st_ino;
	ck_assert(store_may_read(store, true));
	ck_assert_int_eq(store_snapshot_open(store, &digest, IMAGE_SOURCE, &snapshot), 0);
	ck_assert_int_eq(pthread_create(&thread, NULL, compact_main, NULL), 0);
	while (store_may_read(store, true))
		usleep(1000);
	ck_assert(has_name("b", 2));
	usleep(20000);
	ck_assert_int_eq(stat(store_data_path(store), &st), 0);
	ck_assert_uint_eq(st.st_ino, inode);
	ck_assert_uint_eq(store_generation(store), 0);
	store_snapshot_close(snapshot);
	ck_assert(store_may_read(store, false));
	ck_assert_int_eq(pthread_join(thread, NULL), 0);
	ck_assert_uint_eq(store_generation(store), 1);
	assert_content(2, SMALL);
}
END_TEST

/* ---- packed images ---- */

#define PACKED ((uint64_t)3 * IMAGE_CHUNK_PAYLOAD + IMAGE_PAGE) /* with LARGE: ten chunks, three transactions */

/* Of all sizes, in one transaction and in several; one transaction has chunks of both images. */
START_TEST(packed_images_stand_beside)
{
	const uint64_t chunk = IMAGE_CHUNK_PAYLOAD, page = IMAGE_PAGE;
	const struct {
		uint64_t bytes, packed;
		size_t chunks, commits;
	} rows[] = {
		{ page, page, 2, 1 },           { SMALL, 2 * page, 2, 1 },         { 3 * chunk, chunk, 4, 1 },
		{ 4 * chunk, page, 5, 2 },      { 4 * chunk, 4 * chunk, 8, 2 },    { LARGE, PACKED, 10, 3 },
		{ page, 5 * chunk, 6, 2 },      { 2 * chunk - page, chunk + page, 4, 1 },
	};
	const size_t n = sizeof(rows) / sizeof(rows[0]);

	for (size_t i = 0; i < n; ++i) {
		size_t chunks = chunk_entries(), before = commits();
		char name[8];

		snprintf(name, sizeof(name), "n%zu", i);
		ck_assert_int_eq(test_put_packed(store, name, i, rows[i].bytes, rows[i].packed, NULL), 0);
		ck_assert_uint_eq(chunk_entries(), chunks + rows[i].chunks);
		ck_assert_uint_eq(commits(), before + rows[i].commits);
	}
	reopen();
	for (size_t i = 0; i < n; ++i) {
		assert_content(i, rows[i].bytes);
		assert_packed(i, rows[i].packed);
		assert_verified(i);
	}
}
END_TEST

/* What is there stays as it is: another name does not bring a packed image along. */
START_TEST(a_version_may_have_no_packed_image)
{
	struct store_snapshot *snapshot = NULL;

	ck_assert_int_eq(open_packed(1, &snapshot), STORE_E_NOT_FOUND);
	ck_assert_int_eq(test_put(store, "a", 1, SMALL, false, NULL), 0);
	ck_assert_int_eq(open_packed(1, &snapshot), STORE_E_NOT_FOUND);
	ck_assert_int_eq(test_put_packed(store, "b", 1, SMALL, IMAGE_PAGE, NULL), 0);
	ck_assert_int_eq(open_packed(1, &snapshot), STORE_E_NOT_FOUND);
	ck_assert_ptr_null(snapshot);
	ck_assert_uint_eq(chunk_entries(), 1);
	assert_verified(1);
}
END_TEST

/* As an importer gives a name back to what it had: the bytes of a version that is there are not needed. */
START_TEST(a_name_for_what_is_there)
{
	struct store_record record;

	ck_assert_int_eq(test_put_packed(store, "a", 1, SMALL, IMAGE_PAGE, NULL), 0);
	ck_assert_int_eq(test_put(store, "b", 2, SMALL, false, NULL), 0);
	ck_assert_int_eq(store_find(store, "a", NULL, &record), 0);
	record.packed_bytes = record.config_bytes = 0;
	ck_assert_int_eq(store_put(store, "b", true, &record, "", NULL, NULL), 0);
	ck_assert_int_eq(store_find(store, "b", NULL, &record), 0);
	ck_assert_uint_eq(record.packed_bytes, IMAGE_PAGE);
	assert_content(1, SMALL);
	assert_packed(1, IMAGE_PAGE);
	ck_assert_uint_eq(chunk_entries(), 2);
}
END_TEST

/* Two of two images each: what one transaction takes is all of their bytes. _i: they are too many for one. */
START_TEST(packed_images_count_for_what_fits_together)
{
	const uint64_t chunk = IMAGE_CHUNK_PAYLOAD, packed = chunk + (_i ? 3 : 1) * IMAGE_PAGE;
	static const char *const names[] = { "a", "b" };
	struct store_record records[2];
	struct store_item items[2];
	size_t before = commits();

	for (size_t i = 0; i < 2; ++i) {
		records[i] = test_record(i, chunk);
		records[i].packed_bytes = packed;
		items[i] = (struct store_item){ .name = names[i], .record = &records[i], .config = TEST_CONFIG,
						.payload = test_payload(i, chunk), .packed = test_packed(i, packed) };
	}
	ck_assert_int_eq(2 * (chunk + packed) > STORE_TOGETHER_BYTES, _i);
	ck_assert_int_eq(store_put_many(store, items, 2), 0);
	ck_assert_uint_eq(commits(), before + (_i ? 2 : 1));
	for (size_t i = 0; i < 2; ++i) {
		ck_assert_int_eq(items[i].result, 0);
		assert_content(i, chunk);
		assert_packed(i, packed);
		free((void *)(uintptr_t)items[i].payload);
		free((void *)(uintptr_t)items[i].packed);
	}
}
END_TEST

START_TEST(both_images_go_together)
{
	const struct store_digest digest = test_digest(1);
	struct store_snapshot *snapshot = NULL;
	struct store_record record;
	off_t before = 0;

	ck_assert_int_eq(test_put_packed(store, "a", 1, LARGE, PACKED, NULL), 0);
	ck_assert_int_eq(test_put(store, "b", 2, SMALL, false, NULL), 0);
	ck_assert_int_eq(store_hold(store, &digest, &record), 0);
	ck_assert_uint_eq(record.packed_bytes, PACKED);
	ck_assert_int_eq(store_remove(store, "a"), 0);
	assert_packed(1, PACKED); /* while it is held */
	store_release(store, &digest);
	ck_assert_int_eq(test_put(store, "b", 3, SMALL, true, NULL), 0);
	ck_assert_int_eq(open_packed(1, &snapshot), STORE_E_NOT_FOUND);
	ck_assert_uint_eq(chunk_entries(), 1);
	for (uint64_t i = 0; i < 8; ++i) { /* and their space is used again */
		ck_assert_int_eq(test_put_packed(store, "a", 10 + i, LARGE, PACKED, NULL), 0);
		ck_assert_uint_eq(chunk_entries(), 11);
		before = i == 2 ? data_bytes() : before;
	}
	ck_assert_int_le(data_bytes(), before + 2 * (off_t)IMAGE_VALUE_BYTES);
}
END_TEST

/* In a process of its own, which does not get to the last of three transactions. */
static void put_until_killed(void)
{
	store = test_open(folder);
	die_after = 2;
	(void)test_put_packed(store, "b", 2, LARGE, PACKED, NULL);
	_exit(1);
}

/* Looks at what the writer left before the store is opened, which deletes it. Return: chunks of packed images. */
static size_t packed_left(size_t *ret_pending)
{
	MDB_dbi chunks, pending;
	MDB_cursor *cursor;
	MDB_val key, value;
	MDB_env *env;
	MDB_txn *txn;
	size_t n = 0;

	ck_assert_int_eq(mdb_env_create(&env), 0);
	ck_assert_int_eq(mdb_env_set_maxdbs(env, 16), 0);
	ck_assert_int_eq(mdb_env_open(env, folder, MDB_RDONLY, 0600), 0);
	ck_assert_int_eq(mdb_txn_begin(env, NULL, MDB_RDONLY, &txn), 0);
	ck_assert_int_eq(mdb_dbi_open(txn, "chunks", 0, &chunks), 0);
	ck_assert_int_eq(mdb_dbi_open(txn, "pending", 0, &pending), 0);
	ck_assert_int_eq(mdb_cursor_open(txn, chunks, &cursor), 0);
	while (mdb_cursor_get(cursor, &key, &value, MDB_NEXT) == 0)
		n += ((const struct store_chunk_key *)key.mv_data)->encoding == IMAGE_PACKED;
	mdb_cursor_close(cursor);
	mdb_txn_commit(txn);
	*ret_pending = entries(env, pending);
	mdb_env_close(env);
	return n;
}

START_TEST(a_killed_import_leaves_no_packed_chunk)
{
	size_t pending;
	int status;
	pid_t pid;

	ck_assert_int_eq(test_put_packed(store, "a", 1, SMALL, IMAGE_PAGE, NULL), 0);
	store = store_close(store);
	pid = fork();
	ck_assert_int_ge(pid, 0);
	if (pid == 0)
		put_until_killed();
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_msg(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "status %x", (unsigned)status);
	ck_assert_uint_eq(packed_left(&pending), 1 + 2); /* in the second transaction */
	ck_assert_uint_eq(pending, 1);
	store = test_open(folder);
	ck_assert_uint_eq(chunk_entries(), 2);
	ck_assert_uint_eq(entries(store->file.env, store->file.pending), 0);
	ck_assert(!has_version(2));
	assert_packed(1, IMAGE_PAGE);
	ck_assert_int_eq(test_put_packed(store, "b", 2, LARGE, PACKED, NULL), 0);
	assert_packed(2, PACKED);
}
END_TEST

/* As on a full disk, when the source's image and half of the packed one are there already. */
START_TEST(a_packed_image_that_does_not_fit)
{
	struct diag diag = { "" };
	struct rlimit limit;

	signal(SIGXFSZ, SIG_IGN);
	ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &limit), 0);
	limit.rlim_cur = (rlim_t)data_bytes() + 15 * (rlim_t)IMAGE_VALUE_BYTES / 2; /* two transactions of the three */
	ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
	ck_assert_int_eq(test_put_packed(store, "a", 1, LARGE, PACKED, &diag), STORE_E_FULL);
	ck_assert_ptr_nonnull(strstr(diag.text, "no space left"));
	ck_assert(!has_version(1));
	ck_assert_uint_eq(chunk_entries(), 0);
	limit.rlim_cur = limit.rlim_max;
	ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
	ck_assert_int_eq(test_put_packed(store, "a", 1, LARGE, PACKED, &diag), 0);
	assert_packed(1, PACKED);
}
END_TEST

static bool sum_bytes(void *userdata, uint64_t bytes)
{
	*(uint64_t *)userdata += bytes;
	return true;
}

START_TEST(verify_reads_the_packed_image_too)
{
	const struct store_digest digest = test_digest(1);
	const uint32_t chunks[] = { 0, 2, 3 };
	uint64_t sum = 0, left = LARGE + IMAGE_CHUNK_PAYLOAD;
	const struct store_watch summing = { sum_bytes, &sum }, ending = { count_bytes, &left };
	struct diag diag = { "" };

	ck_assert_int_eq(test_put_packed(store, "a", 1, LARGE, PACKED, NULL), 0);
	ck_assert_int_eq(store_verify(store, &digest, &summing, &diag), 0);
	ck_assert_uint_eq(sum, LARGE + PACKED);
	ck_assert_int_eq(store_verify(store, &digest, &ending, &diag), STORE_E_CANCELLED);
	for (size_t i = 0; i < sizeof(chunks) / sizeof(chunks[0]); ++i) {
		uint64_t payload = test_image_offset(store, 1, IMAGE_PACKED, chunks[i]);
		uint64_t header = payload - IMAGE_HEADER_BYTES;
		char words[32];

		snprintf(words, sizeof(words), "packed chunk %u of 4", chunks[i]);
		test_flip(store, payload + IMAGE_PAGE - 1);
		ck_assert_int_eq(store_verify(store, &digest, NULL, &diag), STORE_E_CORRUPT);
		ck_assert_msg(strstr(diag.text, words) && strstr(diag.text, "checksum"), "%s", diag.text);
		assert_content(1, LARGE);
		test_flip(store, payload + IMAGE_PAGE - 1);
		test_flip(store, header + 20);
		ck_assert_int_eq(store_verify(store, &digest, NULL, &diag), STORE_E_CORRUPT);
		ck_assert_msg(strstr(diag.text, words) != NULL, "%s", diag.text);
		test_flip(store, header + 20);
	}
	assert_verified(1);
	test_flip(store, test_chunk_offset(store, 1, 3));
	ck_assert_int_eq(store_verify(store, &digest, NULL, &diag), STORE_E_CORRUPT);
	ck_assert_msg(strncmp(diag.text, "chunk 3 of 6", 12) == 0, "%s", diag.text);
}
END_TEST

/* The chunks of the two images are not taken for each other: here the packed one's are those of the source's. */
START_TEST(another_images_header_is_seen)
{
	_cleanup_(store_write_end) struct store_write write = {};
	const struct store_digest digest = test_digest(1);
	struct store_chunk_key from = store_chunk_key(&digest, IMAGE_SOURCE, 0);
	struct store_chunk_key to = store_chunk_key(&digest, IMAGE_PACKED, 0);
	MDB_val key = store_val(&from, sizeof(from)), value;
	uint8_t *copy = malloc(IMAGE_VALUE_BYTES);
	const uint64_t chunk = IMAGE_CHUNK_PAYLOAD;
	struct diag diag = { "" };

	/* a full chunk each, of two and of one */
	ck_assert_int_eq(test_put_packed(store, "a", 1, chunk + IMAGE_PAGE, chunk, NULL), 0);
	ck_assert_int_eq(store_write_begin(&write, store), 0);
	ck_assert_int_eq(mdb_get(write.txn, store->file.chunks, &key, &value), 0);
	ck_assert_uint_eq(value.mv_size, IMAGE_VALUE_BYTES);
	memcpy(copy, value.mv_data, value.mv_size);
	key = store_val(&to, sizeof(to));
	value = store_val(copy, IMAGE_VALUE_BYTES);
	ck_assert_int_eq(mdb_put(write.txn, store->file.chunks, &key, &value, 0), 0);
	ck_assert_int_eq(store_write_commit(&write, NULL), 0);
	ck_assert_int_eq(store_verify(store, &digest, NULL, &diag), STORE_E_CORRUPT);
	ck_assert_msg(strstr(diag.text, "packed chunk 0 of 1") && strstr(diag.text, "another one's"), "%s", diag.text);
	free(copy);
}
END_TEST

/* The record of a version becomes those bytes. */
static void write_record(uint64_t seed, const void *bytes, size_t n)
{
	_cleanup_(store_write_end) struct store_write write = {};
	const struct store_digest digest = test_digest(seed);
	MDB_val key = store_val_digest(&digest), value = store_val(bytes, n);

	ck_assert_int_eq(store_write_begin(&write, store), 0);
	ck_assert_int_eq(mdb_put(write.txn, store->file.records, &key, &value, 0), 0);
	ck_assert_int_eq(store_write_commit(&write, NULL), 0);
}

/* Stores from before there were packed images have records of 104 bytes. */
START_TEST(records_of_older_stores_are_read)
{
	const struct store_digest digest = test_digest(1);
	struct store_snapshot *snapshot = NULL;
	struct store_record record;

	ck_assert_int_eq(test_put(store, "a", 1, LARGE, false, NULL), 0);
	ck_assert_int_eq(store_find(store, "a", NULL, &record), 0);
	write_record(1, &record, 104);
	reopen();
	memset(&record, 0xff, sizeof(record));
	ck_assert_int_eq(store_record(store, &digest, &record), 0);
	ck_assert_uint_eq(record.payload_bytes, LARGE);
	ck_assert_uint_eq(record.imported_at, 1);
	ck_assert_uint_eq(record.packed_bytes, 0);
	ck_assert_int_eq(open_packed(1, &snapshot), STORE_E_NOT_FOUND);
	assert_content(1, LARGE);
	assert_verified(1);
	ck_assert_int_eq(test_put(store, "b", 1, LARGE, false, NULL), 0);
	ck_assert_int_eq(store_remove(store, "a"), 0);
	ck_assert_int_eq(store_remove(store, "b"), 0);
	ck_assert_uint_eq(chunk_entries(), 0);
}
END_TEST

START_TEST(records_that_cannot_be_are_damaged)
{
	const uint64_t most = (uint64_t)IMAGE_CHUNKS_MAX * IMAGE_CHUNK_PAYLOAD;
	const uint64_t bad[] = { 1, IMAGE_PAGE + 8, most + IMAGE_PAGE, UINT64_MAX - IMAGE_PAGE + 1 };
	const struct store_digest digest = test_digest(1);
	struct store_snapshot *snapshot = NULL;
	struct store_record record, found;

	ck_assert_int_eq(test_put(store, "a", 1, SMALL, false, NULL), 0);
	ck_assert_int_eq(store_find(store, "a", NULL, &record), 0);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); ++i) {
		record.packed_bytes = bad[i];
		write_record(1, &record, sizeof(record));
		ck_assert_int_eq(store_record(store, &digest, &found), STORE_E_CORRUPT);
	}
	record.packed_bytes = most; /* it can be, but its chunks are not there */
	write_record(1, &record, sizeof(record));
	ck_assert_int_eq(store_record(store, &digest, &found), 0);
	ck_assert_int_eq(open_packed(1, &snapshot), STORE_E_CORRUPT);
	record.packed_bytes = 0;
	write_record(1, &record, sizeof(record) - 4);
	ck_assert_int_eq(store_record(store, &digest, &found), STORE_E_CORRUPT);
	record.payload_bytes = UINT64_MAX - IMAGE_PAGE + 1; /* whose chunks, rounded up, overflow to none */
	record.n_chunks = 0;
	write_record(1, &record, sizeof(record));
	ck_assert_int_eq(store_record(store, &digest, &found), STORE_E_CORRUPT);
}
END_TEST

START_TEST(compaction_takes_packed_images_along)
{
	struct store_space before, after;

	ck_assert_int_eq(test_put_packed(store, "a", 1, LARGE, PACKED, NULL), 0);
	ck_assert_int_eq(test_put_packed(store, "b", 2, LARGE, PACKED, NULL), 0);
	ck_assert_int_eq(store_space(store, &before), 0);
	ck_assert_int_eq(store_remove(store, "a"), 0);
	ck_assert_int_eq(store_space(store, &after), 0);
	ck_assert_uint_ge(after.free_bytes, before.free_bytes + LARGE + PACKED);
	(void)assert_compacts();
	ck_assert_int_lt(data_bytes(), (off_t)(LARGE + PACKED + 2 * IMAGE_VALUE_BYTES));
	assert_content(2, LARGE);
	assert_packed(2, PACKED);
	reopen();
	assert_packed(2, PACKED);
	assert_verified(2);
}
END_TEST

static Suite *suite(void)
{
	Suite *s = suite_create("store");
	TCase *tc = tcase_create("store");

	tcase_set_timeout(tc, 120);
	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, names_lead_to_versions);
	tcase_add_test(tc, a_version_lives_as_long_as_a_name);
	tcase_add_test(tc, a_held_version_outlives_its_names);
	tcase_add_test(tc, a_nameless_version_can_get_a_name_again);
	tcase_add_test(tc, open_sweeps_nameless_versions);
	tcase_add_test(tc, each_goes_in_byte_order);
	tcase_add_test(tc, sizes_around_pages_and_chunks);
	tcase_add_test(tc, space_is_reused);
	tcase_add_test(tc, ten_rounds_reuse_space);
	tcase_add_test(tc, a_snapshot_pins_what_it_shows);
	tcase_add_test(tc, verify_names_the_damage);
	tcase_add_test(tc, one_daemon_at_a_time);
	tcase_add_test(tc, parents_are_made);
	tcase_add_test(tc, what_is_no_store_is_refused);
	tcase_add_test(tc, a_truncated_file_is_no_crash);
	tcase_add_test(tc, a_full_disk_is_refused_cleanly);
	tcase_add_test(tc, names_are_checked);
	tcase_add_test(tc, many_are_put_at_once);
	tcase_add_test(tc, one_of_many_that_does_not_fit);
	tcase_add_test(tc, compaction_gives_space_back);
	tcase_add_test(tc, compaction_can_be_ended);
	tcase_add_test(tc, compaction_without_room_changes_nothing);
	tcase_add_test(tc, compaction_waits_for_snapshots);
	tcase_add_test(tc, packed_images_stand_beside);
	tcase_add_test(tc, a_version_may_have_no_packed_image);
	tcase_add_test(tc, a_name_for_what_is_there);
	tcase_add_loop_test(tc, packed_images_count_for_what_fits_together, 0, 2);
	tcase_add_test(tc, both_images_go_together);
	tcase_add_test(tc, a_killed_import_leaves_no_packed_chunk);
	tcase_add_test(tc, a_packed_image_that_does_not_fit);
	tcase_add_test(tc, verify_reads_the_packed_image_too);
	tcase_add_test(tc, another_images_header_is_seen);
	tcase_add_test(tc, records_of_older_stores_are_read);
	tcase_add_test(tc, records_that_cannot_be_are_damaged);
	tcase_add_test(tc, compaction_takes_packed_images_along);
	suite_add_tcase(s, tc);
	return s;
}

int main(void)
{
	return run_suite(suite());
}
