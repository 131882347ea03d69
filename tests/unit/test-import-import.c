/* SPDX-License-Identifier: MIT */
/* Imports and exports: what is accepted comes back bit by bit, what is bad is refused by name and leaves no trace. */
#include "tests/unit/adapter-util.h"

#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <sys/stat.h>

#include "daemon/import/export.h"
#include "daemon/import/import.h"
#include "daemon/store/store-internal.h"
#include "tests/lib/run-suite.h"

static char *folder;
static struct store *store;
static struct importer *importer;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t ended = PTHREAD_COND_INITIALIZER;

struct test_job {
	struct import_job job;
	unsigned calls;
	uint64_t last_bytes, total;
};

static void on_done(struct import_job *job)
{
	struct test_job *tj = container_of(job, struct test_job, job);

	pthread_mutex_lock(&lock);
	++tj->calls;
	pthread_cond_broadcast(&ended);
	pthread_mutex_unlock(&lock);
}

static void on_progress(struct import_job *job, uint64_t bytes, uint64_t total)
{
	struct test_job *tj = container_of(job, struct test_job, job);

	ck_assert_uint_ge(bytes, tj->last_bytes);
	ck_assert_uint_le(bytes, total);
	tj->last_bytes = bytes;
	tj->total = total;
}

static void setup(void)
{
	folder = test_folder();
	store = test_open(folder);
	ck_assert_int_eq(importer_new(&importer, store, test_geometry(), /* pack= */ true), 0);
}

static void teardown(void)
{
	importer = importer_free(importer);
	store_close(store);
	test_folder_free(folder);
}

static void submit(struct test_job *tj, const char *name, bool replace, int config_fd, int weights_fd)
{
	*tj = (struct test_job){};
	snprintf(tj->job.name, sizeof(tj->job.name), "%s", name);
	tj->job.replace = replace;
	tj->job.config_fd = config_fd;
	tj->job.weights_fd = weights_fd;
	tj->job.progress = on_progress;
	tj->job.done = on_done;
	importer_submit(importer, &tj->job);
}

static enum import_outcome await(struct test_job *tj)
{
	pthread_mutex_lock(&lock);
	while (!tj->calls)
		pthread_cond_wait(&ended, &lock);
	pthread_mutex_unlock(&lock);
	return tj->job.outcome;
}

static enum import_outcome import(struct test_job *tj, const char *name, bool replace, const struct adapter *a)
{
	submit(tj, name, replace, adapter_config_fd(a), adapter_weights_fd(a));
	return await(tj);
}

static void assert_outcome(const struct adapter *a, const char *name, bool replace, enum import_outcome expected)
{
	struct test_job tj;
	enum import_outcome outcome = import(&tj, name, replace, a);

	ck_assert_msg(outcome == expected, "%s, not %s: %s", import_outcome_names[outcome],
		      import_outcome_names[expected], tj.job.diag.text);
}

START_TEST(outcomes)
{
	struct adapter *a = adapter_new(1), *b = adapter_new(2);
	struct store_record record;
	struct test_job tj;

	ck_assert_int_eq(import(&tj, "x", false, a), IMPORT_IMPORTED);
	ck_assert_uint_eq(tj.total, a->data_bytes);
	ck_assert_uint_eq(tj.last_bytes, a->data_bytes);
	ck_assert_int_eq(tj.job.config_fd, -1);
	ck_assert_int_eq(store_find(store, "x", NULL, &record), 0);
	ck_assert_mem_eq(&record.digest, &tj.job.record.digest, sizeof(record.digest));
	ck_assert_uint_eq(record.n_modules, 4);
	ck_assert_uint_eq(record.max_rank, ADAPTER_RANK);
	assert_outcome(a, "x", false, IMPORT_UNCHANGED);
	assert_outcome(a, "x", true, IMPORT_UNCHANGED);
	assert_outcome(b, "x", false, IMPORT_REFUSED);
	ck_assert_int_eq(store_find(store, "x", NULL, &record), 0);
	ck_assert_mem_eq(&record.digest, &tj.job.record.digest, sizeof(record.digest));
	assert_outcome(b, "x", true, IMPORT_REPLACED);
	assert_outcome(a, "y", false, IMPORT_IMPORTED);
	adapter_free(a);
	adapter_free(b);
}
END_TEST

/* The digest is the content's: order of keys and training settings do not count, alpha and each bit of a tensor do. */
START_TEST(identity_is_content)
{
	struct adapter *a = adapter_new(1);

	assert_outcome(a, "x", false, IMPORT_IMPORTED);
	strcpy(a->config, "{\"lora_alpha\": 8.0, \"target_modules\": [\"v_proj\", \"q_proj\"], \"lora_dropout\": 0.1,"
			  " \"r\": 4, \"peft_type\": \"LORA\", \"base_model_name_or_path\": \"elsewhere\"}");
	assert_outcome(a, "x", false, IMPORT_UNCHANGED);
	strcpy(a->config, ADAPTER_CONFIG(", \"use_rslora\": true"));
	assert_outcome(a, "x", false, IMPORT_REFUSED);
	strcpy(a->config, ADAPTER_CONFIG(", \"alpha_pattern\": {\"layers.1.self_attn.v_proj\": 4}"));
	assert_outcome(a, "x", false, IMPORT_REFUSED);
	strcpy(a->config, ADAPTER_CONFIG(""));
	a->data[a->data_bytes - 4] ^= 1;
	assert_outcome(a, "x", false, IMPORT_REFUSED);
	assert_outcome(a, "x", true, IMPORT_REPLACED);
	adapter_free(a);
}
END_TEST

/* The packed image is of the same modules and can be read; an adapter that int8 is too coarse for has none. */
START_TEST(packed_beside)
{
	_cleanup_(store_snapshot_closep) struct store_snapshot *snapshot = NULL;
	struct adapter *a = adapter_new(1);
	const struct store_chunk *chunks;
	const struct image_module *modules;
	const struct image_header *header;
	struct store_record record;
	struct diag diag;
	uint8_t *packed;
	float *number = (float *)(void *)a->data;

	assert_outcome(a, "x", false, IMPORT_IMPORTED);
	ck_assert_int_eq(store_find(store, "x", NULL, &record), 0);
	ck_assert_uint_gt(record.packed_bytes, 0);
	ck_assert_int_eq(store_snapshot_open(store, &record.digest, IMAGE_PACKED, &snapshot), 0);
	ck_assert_uint_eq(store_snapshot_chunks(snapshot, &chunks), 1);
	ck_assert_int_eq(image_header_check(chunks->value, IMAGE_HEADER_BYTES, &header, &diag), 0);
	packed = aligned_alloc(IMAGE_PAGE, chunks->bytes);
	memcpy(packed, chunks->value + IMAGE_HEADER_BYTES, chunks->bytes);
	ck_assert_msg(image_modules(packed, header, IMAGE_PACKED, &modules, &diag) == 0, "%s", diag.text);
	ck_assert_uint_eq(header->n_modules, record.n_modules);
	free(packed);
	number[0] = 1e6f;
	assert_outcome(a, "y", false, IMPORT_IMPORTED);
	ck_assert_int_eq(store_find(store, "y", NULL, &record), 0);
	ck_assert_uint_eq(record.packed_bytes, 0);
	adapter_free(a);
}
END_TEST

static size_t read_fd(int fd, char **ret)
{
	struct stat st;

	ck_assert_int_eq(fstat(fd, &st), 0);
	*ret = malloc((size_t)st.st_size + 1);
	ck_assert_int_eq(read(fd, *ret, (size_t)st.st_size), st.st_size);
	close(fd);
	return (size_t)st.st_size;
}

/* _i: dtype. Everything comes back as it was; imported again it is the same version. */
START_TEST(exports_are_bit_exact)
{
	static const char *const names[] = { "F32", "F16", "BF16" };
	static const enum kern_dtype dtypes[] = { KERN_F32, KERN_F16, KERN_BF16 };
	struct adapter *a = adapter_new(1);
	struct export_files files;
	struct diag diag = { "" };
	struct test_job tj;
	char *config, *weights;
	size_t n;

	if (_i > 0) {
		for (size_t i = 0; i < a->n_tensors; ++i) {
			a->tensors[i].dtype_name = names[_i];
			a->tensors[i].dtype = dtypes[_i];
			a->tensors[i].bytes /= 2;
		}
		a->data_bytes /= 2;
		for (size_t i = 1; i < a->data_bytes; i += 2)
			a->data[i] &= 0xbb; /* finite in both */
	}
	ck_assert_int_eq(import(&tj, "x", false, a), IMPORT_IMPORTED);
	ck_assert_int_eq(export_version(store, &tj.job.record.digest, &files, &diag), 0);
	n = read_fd(files.config_fd, &config);
	ck_assert_uint_eq(n, strlen(a->config));
	ck_assert_mem_eq(config, a->config, n);
	n = read_fd(files.weights_fd, &weights);
	ck_assert_mem_eq(weights + n - a->data_bytes, a->data, a->data_bytes);
	submit(&tj, "x", false, adapter_memfd(config, strlen(a->config)), adapter_memfd(weights, n));
	ck_assert_int_eq(await(&tj), IMPORT_UNCHANGED);
	free(config);
	free(weights);
	adapter_free(a);
}
END_TEST

START_TEST(exports_of_damage_are_refused)
{
	struct adapter *a = adapter_new(1);
	struct store_snapshot *snapshot;
	const struct store_chunk *chunks;
	struct export_files files;
	struct diag diag = { "" };
	struct test_job tj;

	ck_assert_int_eq(import(&tj, "x", false, a), IMPORT_IMPORTED);
	ck_assert_int_eq(store_snapshot_open(store, &tj.job.record.digest, IMAGE_SOURCE, &snapshot), 0);
	store_snapshot_chunks(snapshot, &chunks);
	test_flip(store, chunks[0].file_offset + 4096);
	store_snapshot_close(snapshot);
	ck_assert_int_eq(export_version(store, &tj.job.record.digest, &files, &diag), STORE_E_CORRUPT);
	ck_assert_ptr_nonnull(strstr(diag.text, "checksum"));
	adapter_free(a);
}
END_TEST

/* ---- what is refused ---- */

static void put_float(struct adapter *a, size_t at, float value)
{
	memcpy(a->data + at * sizeof(value), &value, sizeof(value));
}

static void spoil_nan(struct adapter *a)
{
	put_float(a, 5, NAN);
}

static void spoil_infinity(struct adapter *a)
{
	put_float(a, a->data_bytes / 4 - 1, -INFINITY);
}

static void spoil_rank(struct adapter *a)
{
	a->tensors[0].shape[0] = 2;
	a->tensors[0].shape[1] = 128;
}

static void spoil_out(struct adapter *a)
{
	a->tensors[1].shape[0] = 32;
	a->tensors[1].shape[1] = 8;
}

static void spoil_dims(struct adapter *a)
{
	a->tensors[2].n_dims = 3;
	a->tensors[2].shape[0] = 2;
	a->tensors[2].shape[1] = 2;
	a->tensors[2].shape[2] = 64;
}

static void spoil_dtype(struct adapter *a)
{
	a->tensors[3].dtype_name = "I32";
	a->tensors[3].dtype = _KERN_DTYPE_N;
}

static void spoil_pair(struct adapter *a)
{
	a->tensors[0].dtype_name = "BF16";
	a->tensors[0].dtype = KERN_BF16;
	a->tensors[0].bytes /= 2;
	a->data_bytes -= a->tensors[0].bytes;
}

static void spoil_missing(struct adapter *a)
{
	a->data_bytes -= a->tensors[--a->n_tensors].bytes;
}

static void rename_first(struct adapter *a, const char *name)
{
	snprintf(a->names[0], sizeof(a->names[0]), "%s", name);
}

static void spoil_module(struct adapter *a)
{
	rename_first(a, "base_model.model.model.layers.0.self_attn.z_proj.lora_A.weight");
}

static void spoil_layer(struct adapter *a)
{
	rename_first(a, "base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight");
}

static void spoil_magnitude(struct adapter *a)
{
	rename_first(a, "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector");
}

static void spoil_saved_module(struct adapter *a)
{
	rename_first(a, "base_model.model.lm_head.weight");
}

static void spoil_tail(struct adapter *a)
{
	a->data_bytes += 8;
}

static void spoil_truncated(struct adapter *a)
{
	a->data_bytes -= 8;
}

/* A config (NULL: the good one) and something done to the tensors (or NULL) -> what the reason must name. */
static const struct refusal {
	const char *config;
	void (*spoil)(struct adapter *a);
	const char *names;
} refusals[] = {
	{ NULL, spoil_nan, "layers.0.self_attn.q_proj.lora_A" },
	{ NULL, spoil_infinity, "layers.1.self_attn.v_proj.lora_B" },
	{ NULL, spoil_rank, "layers.0.self_attn.q_proj.lora_A" },
	{ NULL, spoil_out, "layers.0.self_attn.q_proj.lora_B" },
	{ NULL, spoil_dims, "layers.0.self_attn.v_proj.lora_A" },
	{ NULL, spoil_dtype, "layers.0.self_attn.v_proj.lora_B" },
	{ NULL, spoil_pair, "layers.0.self_attn.q_proj.lora_A" },
	{ NULL, spoil_missing, "layers.1.self_attn.v_proj.lora_B" },
	{ NULL, spoil_module, "z_proj.lora_A" },
	{ NULL, spoil_layer, "layers.2" },
	{ NULL, spoil_magnitude, "lora_magnitude_vector" },
	{ NULL, spoil_saved_module, "lm_head.weight" },
	{ NULL, spoil_tail, "adapter_model.safetensors" },
	{ NULL, spoil_truncated, "adapter_model.safetensors" },
	{ "", NULL, "adapter_config.json" },
	{ "{\"peft_type\": \"LORA\"", NULL, "adapter_config.json" },
	{ "[]", NULL, "adapter_config.json" },
	{ "{\"r\": 4}", NULL, "peft_type" },
	{ "{\"peft_type\": \"LOHA\", \"r\": 4}", NULL, "LOHA" },
	{ "{\"peft_type\": \"LORA\", \"r\": \"4\", \"lora_alpha\": 8, \"target_modules\": [\"q_proj\", \"v_proj\"]}", NULL, "r" },
	{ "{\"peft_type\": \"LORA\", \"r\": 8, \"lora_alpha\": 8, \"target_modules\": [\"q_proj\", \"v_proj\"]}", NULL, "rank 4" },
	{ "{\"peft_type\": \"LORA\", \"r\": 4, \"lora_alpha\": 8, \"target_modules\": [\"q_proj\"]}", NULL, "v_proj" },
	{ "{\"peft_type\": \"LORA\", \"r\": 4, \"lora_alpha\": 8, \"target_modules\": [\"q_proj\", \"v_proj\", \"k_proj\"]}",
	  NULL, "k_proj" },
	{ "{\"peft_type\": \"LORA\", \"r\": 4, \"lora_alpha\": 8, \"target_modules\": \"(\"}", NULL, "target_modules" },
	{ ADAPTER_CONFIG(", \"use_dora\": true"), NULL, "use_dora" },
	{ ADAPTER_CONFIG(", \"lora_bias\": true"), NULL, "lora_bias" },
	{ ADAPTER_CONFIG(", \"bias\": \"all\""), NULL, "bias" },
	{ ADAPTER_CONFIG(", \"modules_to_save\": [\"lm_head\"]"), NULL, "modules_to_save" },
	{ ADAPTER_CONFIG(", \"init_lora_weights\": \"pissa\""), NULL, "init_lora_weights" },
	{ ADAPTER_CONFIG(", \"init_lora_weights\": \"olora\""), NULL, "init_lora_weights" },
	{ ADAPTER_CONFIG(", \"alora_invocation_tokens\": [1]"), NULL, "alora_invocation_tokens" },
	{ ADAPTER_CONFIG(", \"trainable_token_indices\": [3]"), NULL, "trainable_token_indices" },
	{ ADAPTER_CONFIG(", \"layer_replication\": [[0, 1]]"), NULL, "layer_replication" },
	{ ADAPTER_CONFIG(", \"fan_in_fan_out\": true"), NULL, "fan_in_fan_out" },
	{ ADAPTER_CONFIG(", \"a_key_of_the_future\": 1"), NULL, "a_key_of_the_future" },
	{ ADAPTER_CONFIG(", \"rank_pattern\": {\"q_proj\": 2}"), NULL, "q_proj.lora_A" },
	{ ADAPTER_CONFIG(", \"layers_to_transform\": [0]"), NULL, "layers.1" },
	{ ADAPTER_CONFIG(", \"alpha_pattern\": {\"q_proj\": 1e999}"), NULL, "adapter_config.json" },
};

START_TEST(bad_adapters_are_refused_by_name)
{
	const struct refusal *refusal = &refusals[_i];
	struct adapter *a = adapter_new(1);
	struct test_job tj;
	enum import_outcome outcome;

	if (refusal->config)
		snprintf(a->config, sizeof(a->config), "%s", refusal->config);
	if (refusal->spoil)
		refusal->spoil(a);
	outcome = import(&tj, "x", false, a);
	ck_assert_msg(outcome == IMPORT_REFUSED, "%s: %s", import_outcome_names[outcome], tj.job.diag.text);
	ck_assert_msg(strstr(tj.job.diag.text, refusal->names) != NULL, "'%s' does not name %s", tj.job.diag.text,
		      refusal->names);
	ck_assert_int_eq(store_find(store, "x", NULL, NULL), STORE_E_NOT_FOUND);
	adapter_free(a);
}
END_TEST

static void assert_fds_refused(int config_fd, int weights_fd, const char *names)
{
	struct test_job tj;

	submit(&tj, "x", false, config_fd, weights_fd);
	ck_assert_int_eq(await(&tj), IMPORT_REFUSED);
	ck_assert_msg(strstr(tj.job.diag.text, names) != NULL, "'%s' does not name %s", tj.job.diag.text, names);
	ck_assert_int_eq(store_find(store, "x", NULL, NULL), STORE_E_NOT_FOUND);
}

START_TEST(only_regular_files)
{
	struct adapter *a = adapter_new(1);
	char *large = calloc(1, (2u << 20));
	int fds[2];

	ck_assert_int_eq(pipe(fds), 0);
	assert_fds_refused(fds[0], adapter_weights_fd(a), "adapter_config.json: not a regular file");
	close(fds[1]);
	assert_fds_refused(adapter_config_fd(a), open("/dev/zero", O_RDONLY | O_CLOEXEC),
			   "adapter_model.safetensors: not a regular file");
	assert_fds_refused(adapter_config_fd(a), open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC),
			   "adapter_model.safetensors: not a regular file");
	assert_fds_refused(adapter_config_fd(a), adapter_memfd("", 0), "adapter_model.safetensors");
	assert_fds_refused(adapter_config_fd(a), adapter_memfd("\377\377\377\377\377\377\377\377{}", 10),
			   "adapter_model.safetensors");
	assert_fds_refused(adapter_memfd(large, 2u << 20), adapter_weights_fd(a), "adapter_config.json");
	assert_fds_refused(adapter_config_fd(a), open("/dev/null", O_WRONLY | O_CLOEXEC), "adapter_model.safetensors");
	free(large);
	adapter_free(a);
}
END_TEST

/* Queued together: each has its own outcome, in far fewer commits; two of one name are judged one after the other. */
START_TEST(queued_imports_share_commits)
{
	enum { N = 60 };
	struct test_job *jobs = calloc(N, sizeof(*jobs));
	struct adapter *adapters[N];
	MDB_envinfo before, after;

	ck_assert_ptr_nonnull(jobs);
	ck_assert_int_eq(mdb_env_info(store->file.env, &before), 0);
	for (unsigned i = 0; i < N; ++i) {
		char name[8];

		snprintf(name, sizeof(name), "n%u", i == 50 ? 49 : i);
		adapters[i] = adapter_new(100 + i);
		submit(&jobs[i], name, false, adapter_config_fd(adapters[i]),
		       i == 20 ? adapter_config_fd(adapters[i]) : adapter_weights_fd(adapters[i]));
	}
	for (unsigned i = 0; i < N; ++i) {
		enum import_outcome outcome = await(&jobs[i]), expected = i == 20 || i == 50 ? IMPORT_REFUSED : IMPORT_IMPORTED;

		ck_assert_msg(outcome == expected, "%u: %s: %s", i, import_outcome_names[outcome], jobs[i].job.diag.text);
		ck_assert_int_eq(store_find(store, jobs[i].job.name, NULL, NULL), i == 20 ? STORE_E_NOT_FOUND : 0);
		ck_assert_uint_eq(jobs[i].calls, 1);
	}
	ck_assert_int_eq(mdb_env_info(store->file.env, &after), 0);
	ck_assert_uint_le(after.me_last_txnid - before.me_last_txnid, N / 2);
	for (unsigned i = 0; i < N; ++i)
		adapter_free(adapters[i]);
	free(jobs);
}
END_TEST

START_TEST(cancelled_before_it_begins)
{
	enum { N = 20 };
	struct adapter *a = adapter_new(1);
	struct test_job jobs[N];
	unsigned cancelled = 0;

	for (size_t i = 0; i < N; ++i) {
		char name[16];

		snprintf(name, sizeof(name), "n%zu", i);
		submit(&jobs[i], name, false, adapter_config_fd(a), adapter_weights_fd(a));
	}
	importer = importer_free(importer);
	for (size_t i = 0; i < N; ++i) {
		char name[16];

		snprintf(name, sizeof(name), "n%zu", i);
		ck_assert_uint_eq(jobs[i].calls, 1);
		ck_assert_int_eq(jobs[i].job.config_fd, -1);
		ck_assert_int_eq(store_find(store, name, NULL, NULL) == 0, jobs[i].job.outcome == IMPORT_IMPORTED);
		cancelled += jobs[i].job.outcome == IMPORT_CANCELLED;
	}
	ck_assert_uint_gt(cancelled, 0);
	adapter_free(a);
}
END_TEST

/* Whatever byte of either file is turned over: no crash, and what is imported can be read. */
START_TEST(flipped_bytes_never_crash)
{
	for (uint64_t i = 0; i < 300; ++i) {
		struct adapter *a = adapter_new(1);
		int config_fd = adapter_config_fd(a), weights_fd = adapter_weights_fd(a), fd;
		struct test_job tj;
		uint64_t random[2];
		uint8_t byte;
		off_t at;

		test_fill(random, sizeof(random), i);
		fd = random[0] & 1 ? config_fd : weights_fd;
		at = (off_t)(random[1] % (fd == config_fd ? strlen(a->config) : 1200));
		ck_assert_int_eq(pread(fd, &byte, 1, at), 1);
		byte = (uint8_t)(byte ^ (1u << (random[0] >> 8 & 7)));
		ck_assert_int_eq(pwrite(fd, &byte, 1, at), 1);
		submit(&tj, "x", true, config_fd, weights_fd);
		if (await(&tj) == IMPORT_REFUSED)
			ck_assert_str_ne(tj.job.diag.text, "");
		else
			ck_assert_int_ne(tj.job.outcome, IMPORT_FAILED);
		adapter_free(a);
	}
}
END_TEST

static Suite *suite(void)
{
	Suite *s = suite_create("import");
	TCase *tc = tcase_create("import");

	tcase_set_timeout(tc, 120);
	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, outcomes);
	tcase_add_test(tc, identity_is_content);
	tcase_add_test(tc, packed_beside);
	tcase_add_loop_test(tc, exports_are_bit_exact, 0, 3);
	tcase_add_test(tc, exports_of_damage_are_refused);
	tcase_add_loop_test(tc, bad_adapters_are_refused_by_name, 0, sizeof(refusals) / sizeof(refusals[0]));
	tcase_add_test(tc, only_regular_files);
	tcase_add_test(tc, cancelled_before_it_begins);
	tcase_add_test(tc, queued_imports_share_commits);
	tcase_add_test(tc, flipped_bytes_never_crash);
	suite_add_tcase(s, tc);
	return s;
}

int main(void)
{
	return run_suite(suite());
}
