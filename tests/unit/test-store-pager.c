/* SPDX-License-Identifier: MIT */
/*
 * The pager: every method brings in the bytes that were put, a failure stays with its load, and the ladder of fallbacks
 * is gone down where the machine forbids a way.
 *
 * Faults are injected behind the pager's back: the linker sends its calls of uring_reap(), pread() and
 * store_open_direct() to the __wrap functions here.
 */
#include "tests/unit/store-util.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "daemon/os/uring.h"
#include "daemon/store/pager.h"
#include "daemon/store/store-internal.h"

#define REGION_BYTES ((size_t)64 << 20)
#define CHUNK ((uint64_t)IMAGE_CHUNK_PAYLOAD)
#define PAGE ((uint64_t)IMAGE_PAGE)

/* ---- faults ---- */

enum fault { FAULT_NONE, FAULT_ERROR, FAULT_SHORT, FAULT_BYTES };

static struct {
	enum fault kind;
	int after;             /* this many reads of payload go well before it */
	bool refuse_direct;
} fault;

/* Is this read the one that goes wrong? Small reads are the trial's, the header's and the event file's. */
static bool hits(long bytes)
{
	return fault.kind != FAULT_NONE && bytes > 3 * (long)IMAGE_PAGE && fault.after-- == 0;
}

static int faulty(int result, void *to)
{
	switch (fault.kind) {
	case FAULT_ERROR:
		return -EIO;
	case FAULT_SHORT:
		return result - (int)IMAGE_PAGE;
	default:
		((uint8_t *)to)[result / 2] ^= 1;
		return result;
	}
}

bool __real_uring_reap(struct uring *uring, uint64_t *ret_tag, int *ret_result);
bool __wrap_uring_reap(struct uring *uring, uint64_t *ret_tag, int *ret_result);

/* The tag of a piece is its address, see reader-uring.c. */
#include "daemon/store/reader.h"
#include "tests/lib/run-suite.h"

bool __wrap_uring_reap(struct uring *uring, uint64_t *ret_tag, int *ret_result)
{
	if (!__real_uring_reap(uring, ret_tag, ret_result))
		return false;
	if (*ret_tag && hits(*ret_result))
		*ret_result = faulty(*ret_result, ((struct reader_piece *)(uintptr_t)*ret_tag)->to);
	return true;
}

ssize_t __real_pread(int fd, void *to, size_t bytes, off_t offset);
ssize_t __wrap_pread(int fd, void *to, size_t bytes, off_t offset);

ssize_t __wrap_pread(int fd, void *to, size_t bytes, off_t offset)
{
	ssize_t n = __real_pread(fd, to, bytes, offset);
	int result;

	if (!hits(n))
		return n;
	result = faulty((int)n, to);
	errno = result < 0 ? -result : 0;
	return result < 0 ? -1 : result;
}

int __real_store_open_direct(const struct store *store, bool *ret_direct);
int __wrap_store_open_direct(const struct store *store, bool *ret_direct);

int __wrap_store_open_direct(const struct store *store, bool *ret_direct)
{
	if (!fault.refuse_direct)
		return __real_store_open_direct(store, ret_direct);
	*ret_direct = false;
	return open(store_data_path(store), O_RDONLY | O_CLOEXEC);
}

/* ---- loads ---- */

static char *folder;
static struct store *store;
static uint8_t *region;
static struct pager *pager;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t ended = PTHREAD_COND_INITIALIZER;

struct test_load {
	struct pager_load load;
	uint64_t seed, bytes;
	int result;
	unsigned calls;
};

static void note_done(struct pager_load *load, int result)
{
	struct test_load *tl = container_of(load, struct test_load, load);

	pthread_mutex_lock(&lock);
	tl->result = result;
	++tl->calls;
	pthread_cond_broadcast(&ended);
	pthread_mutex_unlock(&lock);
}

static void submit_image(struct test_load *tl, uint64_t seed, enum image_encoding encoding, uint64_t bytes, void *to)
{
	*tl = (struct test_load){ .seed = seed, .bytes = bytes };
	tl->load.digest = test_digest(seed);
	tl->load.encoding = encoding;
	tl->load.to = to;
	tl->load.room = bytes;
	tl->load.done = note_done;
	pager_submit(pager, &tl->load);
}

static void submit(struct test_load *tl, uint64_t seed, uint64_t bytes, void *to)
{
	submit_image(tl, seed, IMAGE_SOURCE, bytes, to);
}

static int await(struct test_load *tl)
{
	pthread_mutex_lock(&lock);
	while (!tl->calls)
		pthread_cond_wait(&ended, &lock);
	pthread_mutex_unlock(&lock);
	ck_assert_uint_eq(tl->calls, 1);
	return tl->result;
}

static void assert_loaded(struct test_load *tl)
{
	uint8_t *expected = (tl->load.encoding == IMAGE_PACKED ? test_packed : test_payload)(tl->seed, tl->bytes);
	int r = await(tl);

	ck_assert_msg(r == 0, "load of %lu bytes: %d %s", (unsigned long)tl->bytes, r, tl->load.diag.text);
	ck_assert_mem_eq(tl->load.to, expected, tl->bytes);
	ck_assert_uint_eq(tl->load.header.payload_bytes, tl->bytes);
	ck_assert_uint_ge(tl->load.finished_ns, tl->load.started_ns);
	free(expected);
}

static void start(enum pager_method best)
{
	struct pager_options options = { .region = region, .region_bytes = REGION_BYTES, .best = best };

	ck_assert_int_eq(pager_new(&pager, store, &options), 0);
}

static void setup(void)
{
	fault.kind = FAULT_NONE;
	fault.refuse_direct = false;
	folder = test_folder();
	store = test_open(folder);
	region = mmap(NULL, REGION_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ck_assert_ptr_ne(region, MAP_FAILED);
}

static void teardown(void)
{
	pager = pager_free(pager);
	munmap(region, REGION_BYTES);
	store_close(store);
	test_folder_free(folder);
}

/* ---- tests ---- */

/* _i: the method. Sizes around all edges, at odd places of the region and outside of it. */
START_TEST(every_method_brings_the_same_bytes)
{
	const uint64_t sizes[] = { PAGE, 2 * PAGE, 7 * PAGE, CHUNK - PAGE, CHUNK, CHUNK + PAGE, 2 * CHUNK, 3 * CHUNK + 5 * PAGE };
	const size_t n = sizeof(sizes) / sizeof(sizes[0]);
	struct test_load loads[sizeof(sizes) / sizeof(sizes[0])], outside;
	uint8_t *own = aligned_alloc(PAGE, 2 * CHUNK), *at = region + 3 * 65536;

	start((enum pager_method)_i);
	ck_assert_msg((int)pager_method(pager) >= _i, "%s", pager_method_names[pager_method(pager)]);
	for (size_t i = 0; i < n; ++i) {
		char name[8];

		snprintf(name, sizeof(name), "n%zu", i);
		ck_assert_int_eq(test_put(store, name, i, sizes[i], false, NULL), 0);
	}
	for (size_t i = 0; i < n; at += sizes[i++] + 65536) {
		at = region + (size_t)(at - region + 65535) / 65536 * 65536;
		submit(&loads[i], i, sizes[i], at);
	}
	for (size_t i = 0; i < n; ++i)
		assert_loaded(&loads[i]);
	submit(&outside, 6, sizes[6], own);
	assert_loaded(&outside);
	free(own);
}
END_TEST

/* _i: the method. Both images of one version at once, and again; each into no more room than it needs. */
START_TEST(both_images_are_loaded)
{
	const uint64_t sizes[_IMAGE_ENCODING_N] = { 2 * CHUNK + PAGE, CHUNK + 3 * PAGE };
	struct test_load loads[2 * _IMAGE_ENCODING_N];
	struct pager_stats stats;

	ck_assert_int_eq(test_put_packed(store, "a", 1, sizes[IMAGE_SOURCE], sizes[IMAGE_PACKED], NULL), 0);
	start((enum pager_method)_i);
	for (size_t i = 0; i < 2 * _IMAGE_ENCODING_N; ++i) {
		enum image_encoding encoding = i % _IMAGE_ENCODING_N;

		submit_image(&loads[i], 1, encoding, sizes[encoding], region + i * (16 << 20));
	}
	for (size_t i = 0; i < 2 * _IMAGE_ENCODING_N; ++i) {
		assert_loaded(&loads[i]);
		ck_assert_uint_eq(loads[i].load.header.n_chunks, loads[i].load.encoding == IMAGE_PACKED ? 2 : 3);
	}
	pager_read_stats(pager, &stats);
	ck_assert_uint_eq(stats.bytes, 2 * (sizes[IMAGE_SOURCE] + sizes[IMAGE_PACKED]));
}
END_TEST

struct churn {
	atomic_bool stop;
	unsigned n; /* compactions that made the file another one */
};

/* Makes garbage and compacts it away, until it is told to stop. */
static void *churn_main(void *userdata)
{
	struct churn *churn = userdata;
	struct store_space before, after;
	uint64_t generation;

	for (uint64_t i = 0; !atomic_load(&churn->stop) || churn->n < 3; ++i) {
		generation = store_generation(store);
		ck_assert_int_eq(test_put(store, "churn", 1000 + i % 2, 2 * CHUNK, true, NULL), 0);
		ck_assert_int_eq(store_remove(store, "churn"), 0);
		ck_assert_int_eq(store_compact(store, NULL, &before, &after, NULL), 0);
		churn->n += store_generation(store) > generation;
	}
	return NULL;
}

/* _i: the method. Loads keep coming while the file becomes another one again and again: all bring the right bytes. */
START_TEST(loads_go_on_during_compaction)
{
	enum { VERSIONS = 6, LOADS = 12, ROUNDS = 25 };
	struct test_load loads[LOADS];
	struct churn churn = {};
	pthread_t thread;

	start((enum pager_method)_i);
	ck_assert_int_eq(test_put(store, "below", 500, CHUNK, false, NULL), 0);
	for (uint64_t i = 0; i < VERSIONS; ++i) {
		char name[8];

		snprintf(name, sizeof(name), "n%u", (unsigned)i);
		ck_assert_int_eq(test_put(store, name, i, (3 + 240 * i) * PAGE, false, NULL), 0);
	}
	ck_assert_int_eq(store_remove(store, "below"), 0); /* everything moves */
	ck_assert_int_eq(pthread_create(&thread, NULL, churn_main, &churn), 0);
	for (unsigned round = 0; round < ROUNDS; ++round) {
		for (unsigned i = 0; i < LOADS; ++i)
			submit(&loads[i], i % VERSIONS, (3 + 240 * (i % VERSIONS)) * PAGE, region + i * (REGION_BYTES / LOADS / PAGE * PAGE));
		for (unsigned i = 0; i < LOADS; ++i)
			assert_loaded(&loads[i]);
	}
	atomic_store(&churn.stop, true);
	ck_assert_int_eq(pthread_join(thread, NULL), 0);
	ck_assert_uint_ge(churn.n, 3);
	ck_assert_int_eq(pager_method(pager), _i);
}
END_TEST

START_TEST(random_sizes_and_methods)
{
	uint64_t random[2];

	for (uint64_t i = 0; i < 24; ++i) {
		struct test_load tl;

		test_fill(random, sizeof(random), i + 77);
		start((enum pager_method)(random[1] % _PAGER_METHOD_N));
		random[0] = (random[0] % 1500 + 1) * PAGE;
		ck_assert_int_eq(test_put(store, "a", 100 + i, random[0], true, NULL), 0);
		submit(&tl, 100 + i, random[0], region + random[1] % 500 * 65536);
		assert_loaded(&tl);
		pager = pager_free(pager);
	}
}
END_TEST

START_TEST(many_loads_at_once)
{
	enum { N = 50 };
	struct test_load loads[N], again;
	struct pager_stats stats;

	start((enum pager_method)_i);
	for (uint64_t i = 0; i < 5; ++i) {
		char name[8];

		snprintf(name, sizeof(name), "n%d", (int)i);
		ck_assert_int_eq(test_put(store, name, i, (i + 1) * 40 * PAGE, false, NULL), 0);
	}
	for (uint64_t i = 0; i < N; ++i)
		submit(&loads[i], i % 5, (i % 5 + 1) * 40 * PAGE, region + i * (1 << 20));
	for (uint64_t i = 0; i < N; ++i)
		assert_loaded(&loads[i]);
	submit(&again, 1, 80 * PAGE, region);
	assert_loaded(&again);
	pager_read_stats(pager, &stats);
	ck_assert_uint_eq(stats.loads, N + 1);
	ck_assert_uint_eq(stats.failed, 0);
	ck_assert_uint_gt(stats.busy_ns, 0);
}
END_TEST

START_TEST(what_is_not_there)
{
	struct test_load tl;

	start(PAGER_URING_FIXED);
	submit(&tl, 1, PAGE, region);
	ck_assert_int_eq(await(&tl), STORE_E_NOT_FOUND);
	ck_assert_str_ne(tl.load.diag.text, "");
	ck_assert_int_eq(test_put(store, "a", 1, 4 * PAGE, false, NULL), 0);
	submit(&tl, 1, PAGE, region); /* less room than it needs */
	ck_assert_int_eq(await(&tl), STORE_E_CORRUPT);
	submit_image(&tl, 1, IMAGE_PACKED, 4 * PAGE, region);
	ck_assert_int_eq(await(&tl), STORE_E_NOT_FOUND);
	ck_assert_msg(strstr(tl.load.diag.text, "no packed image") != NULL, "%s", tl.load.diag.text);
	ck_assert_int_eq(test_put_packed(store, "b", 2, 2 * PAGE, 4 * PAGE, NULL), 0);
	submit_image(&tl, 2, IMAGE_PACKED, 3 * PAGE, region);
	ck_assert_int_eq(await(&tl), STORE_E_CORRUPT);
}
END_TEST

START_TEST(damage_fails_its_load_only)
{
	struct test_load bad, good;

	ck_assert_int_eq(test_put(store, "a", 1, 2 * CHUNK + PAGE, false, NULL), 0);
	ck_assert_int_eq(test_put(store, "b", 2, 2 * CHUNK + PAGE, false, NULL), 0);
	test_flip(store, test_chunk_offset(store, 1, 1) + CHUNK - 1);
	start((enum pager_method)_i);
	submit(&bad, 1, 2 * CHUNK + PAGE, region);
	submit(&good, 2, 2 * CHUNK + PAGE, region + (32 << 20));
	ck_assert_int_eq(await(&bad), STORE_E_CORRUPT);
	ck_assert_msg(strstr(bad.load.diag.text, "chunk 1 of 3") != NULL, "%s", bad.load.diag.text);
	assert_loaded(&good);
	/* the header page of chunk 0 */
	test_flip(store, test_chunk_offset(store, 2, 0) - IMAGE_HEADER_BYTES + 40);
	submit(&bad, 2, 2 * CHUNK + PAGE, region);
	ck_assert_int_eq(await(&bad), STORE_E_CORRUPT);
}
END_TEST

START_TEST(damage_of_one_image_fails_its_loads_only)
{
	struct test_load bad, good;

	ck_assert_int_eq(test_put_packed(store, "a", 1, 2 * CHUNK + PAGE, CHUNK + PAGE, NULL), 0);
	test_flip(store, test_image_offset(store, 1, IMAGE_PACKED, 1) + 17);
	start((enum pager_method)_i);
	submit_image(&bad, 1, IMAGE_PACKED, CHUNK + PAGE, region);
	submit(&good, 1, 2 * CHUNK + PAGE, region + (32 << 20));
	ck_assert_int_eq(await(&bad), STORE_E_CORRUPT);
	ck_assert_msg(strstr(bad.load.diag.text, "packed chunk 1 of 2") != NULL, "%s", bad.load.diag.text);
	assert_loaded(&good);
}
END_TEST

/* _i: method * 4 + fault. The read in the middle fails, the load beside it does not; one is of a packed image. */
START_TEST(a_fault_fails_one_load)
{
	enum fault kind = (enum fault)(_i % 4);
	struct test_load loads[2];
	unsigned failed = 0;

	if (kind == FAULT_NONE)
		return;
	ck_assert_int_eq(test_put(store, "a", 1, 2 * CHUNK, false, NULL), 0);
	ck_assert_int_eq(test_put_packed(store, "b", 2, PAGE, 2 * CHUNK, NULL), 0);
	start((enum pager_method)(_i / 4));
	fault.kind = kind;
	fault.after = 5;
	submit(&loads[0], 1, 2 * CHUNK, region);
	submit_image(&loads[1], 2, IMAGE_PACKED, 2 * CHUNK, region + (32 << 20));
	for (size_t i = 0; i < 2; ++i) {
		int r = await(&loads[i]);

		if (r == 0)
			assert_loaded(&loads[i]);
		else
			ck_assert_int_eq(r, kind == FAULT_BYTES ? STORE_E_CORRUPT : -EIO);
		if (r)
			ck_assert_ptr_nonnull(strstr(loads[i].load.diag.text, "data.mdb"));
		failed += r != 0;
	}
	ck_assert_uint_eq(failed, 1);
	fault.kind = FAULT_NONE;
	submit(&loads[0], 1, 2 * CHUNK, region);
	assert_loaded(&loads[0]);
}
END_TEST

/* A load that began before its version was deleted still gets it. */
START_TEST(deletion_waits_for_nobody_and_breaks_nobody)
{
	struct test_load tl;

	start(PAGER_URING_FIXED);
	for (uint64_t i = 0; i < 30; ++i) {
		int r;

		ck_assert_int_eq(test_put(store, "a", i, 2 * CHUNK, false, NULL), 0);
		submit(&tl, i, 2 * CHUNK, region);
		ck_assert_int_eq(store_remove(store, "a"), 0);
		ck_assert_int_eq(test_put(store, "b", 1000 + i, CHUNK, true, NULL), 0);
		r = await(&tl);
		ck_assert_msg(r == 0 || r == STORE_E_NOT_FOUND, "%d %s", r, tl.load.diag.text);
		if (r == 0)
			assert_loaded(&tl);
	}
}
END_TEST

START_TEST(free_gives_every_load_back)
{
	enum { N = 60 };
	struct test_load loads[N];
	unsigned cancelled = 0;

	ck_assert_int_eq(test_put(store, "a", 1, 2 * CHUNK, false, NULL), 0);
	start((enum pager_method)_i);
	for (size_t i = 0; i < N; ++i)
		submit(&loads[i], 1, 2 * CHUNK, region + i % 4 * (16 << 20));
	pager = pager_free(pager);
	for (size_t i = 0; i < N; ++i) {
		ck_assert_uint_eq(loads[i].calls, 1);
		ck_assert(loads[i].result == 0 || loads[i].result == -ECANCELED);
		cancelled += loads[i].result != 0;
	}
	ck_assert_uint_gt(cancelled, 0);
}
END_TEST

/* A filter as container runtimes have it: io_uring_setup is not permitted. */
static void forbid_io_uring(void)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { .len = sizeof(filter) / sizeof(filter[0]), .filter = filter };

	ck_assert_int_eq(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
	ck_assert_int_eq(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), 0);
}

START_TEST(without_io_uring_it_is_pread)
{
	struct test_load tl;

	forbid_io_uring();
	start(PAGER_URING_FIXED);
	ck_assert_int_eq(pager_method(pager), PAGER_PREAD);
	ck_assert_int_eq(test_put(store, "a", 1, CHUNK + PAGE, false, NULL), 0);
	submit(&tl, 1, CHUNK + PAGE, region);
	assert_loaded(&tl);
}
END_TEST

START_TEST(without_o_direct_it_is_pread)
{
	struct test_load tl;

	fault.refuse_direct = true;
	start(PAGER_URING_FIXED);
	ck_assert_int_eq(pager_method(pager), PAGER_PREAD);
	ck_assert_int_eq(test_put(store, "a", 1, CHUNK + PAGE, false, NULL), 0);
	submit(&tl, 1, CHUNK + PAGE, region);
	assert_loaded(&tl);
}
END_TEST

START_TEST(without_a_region_nothing_is_registered)
{
	struct pager_options options = { .best = PAGER_URING_FIXED };
	struct test_load tl;

	ck_assert_int_eq(pager_new(&pager, store, &options), 0);
	ck_assert_int_ne(pager_method(pager), PAGER_URING_FIXED);
	ck_assert_int_eq(test_put(store, "a", 1, CHUNK + PAGE, false, NULL), 0);
	submit(&tl, 1, CHUNK + PAGE, region);
	assert_loaded(&tl);
}
END_TEST

START_TEST(unproven_offsets_mean_the_map)
{
	struct test_load tl;

	store->file.map = NULL;
	store->file.probe.file_offset = 0;
	start(PAGER_URING_FIXED);
	ck_assert_int_eq(pager_method(pager), PAGER_MAP);
	ck_assert_int_eq(test_put(store, "a", 1, CHUNK + PAGE, false, NULL), 0);
	submit(&tl, 1, CHUNK + PAGE, region);
	assert_loaded(&tl);
}
END_TEST

static Suite *suite(void)
{
	Suite *s = suite_create("pager");
	TCase *tc = tcase_create("pager");

	tcase_set_timeout(tc, 120);
	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_loop_test(tc, every_method_brings_the_same_bytes, 0, _PAGER_METHOD_N);
	tcase_add_loop_test(tc, both_images_are_loaded, 0, _PAGER_METHOD_N);
	tcase_add_test(tc, random_sizes_and_methods);
	tcase_add_loop_test(tc, loads_go_on_during_compaction, 0, _PAGER_METHOD_N);
	tcase_add_loop_test(tc, many_loads_at_once, 0, _PAGER_METHOD_N);
	tcase_add_test(tc, what_is_not_there);
	tcase_add_loop_test(tc, damage_fails_its_load_only, 0, _PAGER_METHOD_N);
	tcase_add_loop_test(tc, damage_of_one_image_fails_its_loads_only, 0, _PAGER_METHOD_N);
	tcase_add_loop_test(tc, a_fault_fails_one_load, 0, 4 * PAGER_MAP);
	tcase_add_test(tc, deletion_waits_for_nobody_and_breaks_nobody);
	tcase_add_loop_test(tc, free_gives_every_load_back, 0, _PAGER_METHOD_N);
	tcase_add_test(tc, without_io_uring_it_is_pread);
	tcase_add_test(tc, without_o_direct_it_is_pread);
	tcase_add_test(tc, without_a_region_nothing_is_registered);
	tcase_add_test(tc, unproven_offsets_mean_the_map);
	suite_add_tcase(s, tc);
	return s;
}

int main(void)
{
	return run_suite(suite());
}
