/* SPDX-License-Identifier: MIT */
/*
 * Loading a model: one file or shards, tied or not; and every way a folder can be wrong ends in one line that names it.
 *
 * Loading into a device's memory is tested with a device of our own on top of a CPU backend's packing: its memory has
 * addresses that the host cannot touch, and it fetches uploads late and out of order, at a fence at the latest.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "daemon/model/upload.h"
#include "tests/unit/format-gguf.h"
#include "tests/unit/model-rig.h"
#include "tests/unit/model-tiny.h"
#include "tests/lib/run-suite.h"

#define N_TOKENS 20

static struct tiny tiny;

static void setup(void)
{
	tiny_init(&tiny, false);
}

static void teardown(void)
{
	tiny_deinit(&tiny);
}

static void score_folder(const char *folder, float *ret)
{
	struct rig *rig = rig_new(folder, MODEL_AUTO, &kern_ref, 2);
	uint32_t tokens[N_TOKENS];

	for (uint32_t i = 0; i < N_TOKENS; ++i)
		tokens[i] = i * 5 % 128;
	ck_assert_int_eq(model_precision(rig->model), KERN_PRECISION_F32);
	rig_score(rig, tokens, N_TOKENS, NULL, 0, N_TOKENS, ret);
	rig_free(rig);
}

START_TEST(shards_equal_one_file)
{
	float one[N_TOKENS], two[N_TOKENS];

	tiny_write(&tiny, 1);
	score_folder(tiny.folder, one);
	tiny_write(&tiny, 2);
	score_folder(tiny.folder, two);
	ck_assert(!memcmp(one, two, sizeof(one)));
}
END_TEST

START_TEST(tied_head_is_the_embedding)
{
	float tied[N_TOKENS], untied[N_TOKENS];
	struct tiny_tensor *head = tiny_find(&tiny, "lm_head.weight");

	memcpy(head->data, tiny_find(&tiny, "model.embed_tokens.weight")->data, (size_t)head->rows * head->cols * sizeof(float));
	tiny_write(&tiny, 1);
	score_folder(tiny.folder, untied);
	tiny.tied = true;
	tiny_write(&tiny, 1);
	score_folder(tiny.folder, tied);
	ck_assert(!memcmp(tied, untied, sizeof(tied)));
}
END_TEST

/* Opens; on refusal returns false with the reason in diag. */
static bool try_open(const char *path, uint32_t context, struct diag *diag)
{
	struct model_options options = { .path = path, .context = context, .backend = &kern_ref };
	struct kern_device *device = NULL;
	struct model *model = NULL;
	struct team *team = NULL;
	int r;

	diag->text[0] = '\0';
	ck_assert_int_eq(kern_ref.device->open(&device, 0, NULL), 0);
	ck_assert_int_eq(team_new(&team, 1), 0);
	options.device = device;
	options.team = team;
	r = model_open(&model, &options, diag);
	ck_assert_int_ge(r, 0);
	if (r == MODEL_OK)
		ck_assert_uint_eq(model_config(model)->context, context ? context : 512);
	model_free(model);
	team_free(team);
	kern_ref.device->close(device);
	return r == MODEL_OK;
}

static void refused(const char *path, uint32_t context, const char *word)
{
	struct diag diag;

	ck_assert_msg(!try_open(path, context, &diag), "accepted, but wanted: %s", word);
	ck_assert_msg(strstr(diag.text, word), "\"%s\" does not say \"%s\"", diag.text, word);
	ck_assert_msg(strstr(diag.text, path), "\"%s\" does not name %s", diag.text, path);
}

START_TEST(what_is_no_model_is_named)
{
	char path[128];

	refused("/nowhere/at/all", 0, "No such file");
	refused(tiny.folder, 0, "config.json");
	(void)snprintf(path, sizeof(path), "%s/config.json", tiny.folder);
	ck_assert_int_eq(mkfifo(path, 0600), 0);
	refused(path, 0, "not a regular file");
	refused(tiny.folder, 0, "not a regular file");
	ck_assert_int_eq(unlink(path), 0);
	tiny_write(&tiny, 1);
	refused(tiny.folder, 513, "513");
	tiny_write_text(&tiny, "model.safetensors", "");
	refused(tiny.folder, 0, "empty");
	tiny_write_text(&tiny, "model.safetensors", "short");
	refused(tiny.folder, 0, "too short");
	(void)snprintf(path, sizeof(path), "%s/model.safetensors", tiny.folder);
	ck_assert_int_eq(unlink(path), 0);
	refused(tiny.folder, 0, "model.safetensors");
}
END_TEST

START_TEST(what_is_no_gguf_is_named)
{
	char path[128];

	tiny_write_text(&tiny, "generation_config.json", "GGUF but not really");
	(void)snprintf(path, sizeof(path), "%s/generation_config.json", tiny.folder);
	refused(path, 0, path);
}
END_TEST

START_TEST(wrong_tensors_are_named)
{
	struct tiny_tensor *up = tiny_find(&tiny, "model.layers.1.mlp.up_proj.weight");
	struct tiny_tensor *norm = tiny_find(&tiny, "model.norm.weight");

	up->rows -= 1;
	tiny_write(&tiny, 1);
	refused(tiny.folder, 0, "model.layers.1.mlp.up_proj.weight: 95 x 64");
	up->rows += 1;
	norm->cols -= 1;
	tiny_write(&tiny, 1);
	refused(tiny.folder, 0, "model.norm.weight");
	norm->cols += 1;
	(void)snprintf(up->name, sizeof(up->name), "model.layers.1.mlp.other");
	tiny_write(&tiny, 1);
	refused(tiny.folder, 0, "model.layers.1.mlp.up_proj.weight is missing");
	(void)snprintf(up->name, sizeof(up->name), "model.layers.1.mlp.up_proj.weight");
	(void)snprintf(tiny.tensors[tiny.n_tensors].name, sizeof(up->name), "model.layers.1.self_attn.q_proj.bias");
	tiny.tensors[tiny.n_tensors].cols = 2;
	tiny.tensors[tiny.n_tensors++].data = calloc(2, sizeof(float));
	tiny_write(&tiny, 1);
	refused(tiny.folder, 0, "q_proj.bias: not part of");
}
END_TEST

/* A file cut off anywhere is refused: in its header, and in its data, whatever the page it ends on. */
START_TEST(truncations_are_refused)
{
	char path[128];
	struct stat st;

	tiny_write(&tiny, 1);
	(void)snprintf(path, sizeof(path), "%s/model.safetensors", tiny.folder);
	ck_assert_int_eq(stat(path, &st), 0);
	for (off_t n = st.st_size - 1; n > 0; n = n > 4096 ? n - 4001 : n - 97) {
		ck_assert_int_eq(truncate(path, n), 0);
		refused(tiny.folder, 0, "model.safetensors");
	}
}
END_TEST

/* ---- a device with memory of its own ---- */

#define ELSEWHERE ((uintptr_t)1 << 62) /* no address of this process */
#define UPLOADS_MAX 8u

struct kern_device {
	size_t room, used;            /* bytes */
	bool lies_about_room, refuses_registering, dead;
	const uint8_t *registered;
	size_t registered_bytes;
	struct {
		struct kern_upload *upload;
		bool joined, fetched;
	} queue[UPLOADS_MAX];
	unsigned n_queued, n_uploads, n_joins;
	unsigned dies_at;             /* number of the upload that ends the device; 0: never */
	unsigned refuses_at;          /* number of the upload that is refused; the device has ended then, too */
	const char *cut;              /* a file that loses its end with the first upload */
	uint64_t random;
};

#define PLENTY ((size_t)1 << 30)
#define DEVICE(bytes, ...) ((struct kern_device){ .room = (bytes), .random = 88172645463325252ull, __VA_ARGS__ })

static const struct kern_backend *base; /* whose layouts the device has */

static uint32_t draw(uint64_t *state, uint32_t n)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return (uint32_t)((*state >> 32) % n);
}

static void *reach(const void *p)
{
	ck_assert((uintptr_t)p & ELSEWHERE);
	return (void *)((uintptr_t)p & ~ELSEWHERE);
}

static int device_memory(struct kern_device *device, size_t *ret_free, size_t *ret_total)
{
	*ret_free = (device->lies_about_room ? SIZE_MAX : device->room) - device->used;
	*ret_total = device->room;
	return 0;
}

static int device_alloc(struct kern_device *device, void *host, size_t bytes, void **ret)
{
	void *p;

	ck_assert_ptr_null(host);
	if (bytes > device->room - device->used)
		return -ENOMEM;
	p = malloc(bytes);
	ck_assert_ptr_nonnull(p);
	memset(p, 0xa5, bytes);
	device->used += bytes;
	*ret = (void *)((uintptr_t)p | ELSEWHERE);
	return 0;
}

static void device_free(struct kern_device *device, void *p, size_t bytes)
{
	free(reach(p));
	device->used -= bytes;
}

static int device_register(struct kern_device *device, void *p, size_t bytes)
{
	ck_assert_ptr_null(device->registered); /* once for the whole load */
	if (device->refuses_registering)
		return 1;
	device->registered = p;
	device->registered_bytes = bytes;
	return 0;
}

static void device_unregister(struct kern_device *device, void *p)
{
	ck_assert_ptr_eq(device->registered, p);
	ck_assert_uint_eq(device->n_queued, 0);
	device->registered = NULL;
}

static int device_copy(struct kern_device *device, void *to, const void *from, size_t bytes)
{
	(void)device;
	memcpy(reach(to), from, bytes);
	return 0;
}

static int device_upload(struct kern_device *device, struct kern_upload *upload)
{
	size_t at = (size_t)((const uint8_t *)upload->from - device->registered);
	unsigned number = ++device->n_uploads;

	ck_assert(device->refuses_registering || at < device->registered_bytes);
	ck_assert(device->refuses_registering || upload->bytes <= device->registered_bytes - at);
	if (number == 1 && device->cut)
		ck_assert_int_eq(truncate(device->cut, 4096 + 17), 0);
	device->dead = device->dead || number == device->dies_at || number == device->refuses_at;
	if (number == device->refuses_at)
		return -EIO;
	ck_assert_uint_lt(device->n_queued, UPLOADS_MAX);
	device->queue[device->n_queued].upload = upload;
	device->queue[device->n_queued].joined = false;
	device->queue[device->n_queued++].fetched = false;
	return 0;
}

static int device_join(struct kern_device *device, struct kern_upload *upload)
{
	for (unsigned i = 0; i < device->n_queued; ++i)
		device->queue[i].joined = device->queue[i].joined || device->queue[i].upload == upload;
	++device->n_joins;
	return device->dead ? -EIO : 0;
}

static void finish_upload(struct kern_device *device, unsigned i)
{
	struct kern_upload *upload = device->queue[i].upload;

	device->queue[i] = device->queue[--device->n_queued];
	upload->done(upload);
}

/* What was joined is fetched, and by chance something else; done() comes with this fence or with a later one. */
static int device_fence(struct kern_device *device)
{
	if (device->dead)
		return -EIO;
	for (unsigned i = device->n_queued; i-- > 0;) {
		const struct kern_upload *upload = device->queue[i].upload;
		bool late = draw(&device->random, 2);

		if (!device->queue[i].fetched && !device->queue[i].joined && draw(&device->random, 2))
			continue;
		if (!device->queue[i].fetched)
			memcpy(reach(upload->to), upload->from, upload->bytes);
		else
			late = false;
		device->queue[i].fetched = true;
		if (!late)
			finish_upload(device, i);
	}
	return 0;
}

static void device_failure(struct kern_device *device, struct kern_failure *ret)
{
	*ret = (struct kern_failure){ 0 };
	if (device->dead)
		*ret = (struct kern_failure){ .code = 700, .text = "an illegal memory access was encountered" };
}

static int device_plan(struct kern_device *device, const struct kern_matrix *m, enum kern_precision precision,
		       struct kern_weight *ret)
{
	int r = base->device->weight_plan(device, m, precision, ret); /* CPU backends do not look at the device */

	if (!r && ret->bytes == 0)
		ret->bytes = ret->rows / ret->grain * ret->grain_bytes;
	return r;
}

static void device_pack(const struct kern_weight *w, const struct kern_matrix *m, uint32_t first, uint32_t n, void *to)
{
	base->device->weight_pack(w, m, first, n, to);
}

static void device_release(struct kern_weight *w)
{
	base->device->weight_release(w);
}

static const struct kern_device_ops device_ops = {
	.memory = device_memory, .alloc = device_alloc, .free = device_free, .register_host = device_register,
	.unregister_host = device_unregister, .copy_async = device_copy, .fence = device_fence, .upload = device_upload,
	.join = device_join, .failure = device_failure, .weight_plan = device_plan, .weight_pack = device_pack,
	.weight_release = device_release,
};

static const struct kern_backend device_backend = { .name = "device", .queued = true, .device = &device_ops };

/* A dead device may still read what it was given, and call done() late. What was started was joined, once. */
static void device_close(struct kern_device *device)
{
	ck_assert_uint_eq(device->n_joins, device->n_uploads - (device->refuses_at > 0));
	ck_assert_uint_eq(device->used, 0);
	ck_assert(device->dead || (!device->registered && device->n_queued == 0));
	while (device->n_queued > 0) {
		(void)*(const volatile uint8_t *)device->queue[0].upload->from;
		finish_upload(device, 0);
	}
}

/* ---- models into it ---- */

static void check_progress(void *userdata, double fraction)
{
	double *last = userdata;

	ck_assert(fraction > *last && fraction <= 1);
	*last = fraction;
}

static int open_on_device(struct model **ret, const char *path, struct kern_device *device, struct diag *diag)
{
	_cleanup_(team_freep) struct team *team = NULL;
	double progress = 0;
	struct model_options options = {
		.path = path, .backend = &device_backend, .device = device,
		.progress = check_progress, .userdata = &progress,
	};
	int r;

	ck_assert_int_eq(team_new(&team, 2), 0);
	options.team = team;
	r = model_open(ret, &options, diag);
	ck_assert(r != MODEL_OK || progress == 1);
	ck_assert(r != MODEL_OK || !device->registered); /* the buffers are gone */
	return r;
}

static void compare_weight(const struct kern_weight *a, const struct kern_weight *b)
{
	size_t grains = (a->rows + a->grain - 1) / a->grain;

	ck_assert_uint_eq(a->layout, b->layout);
	ck_assert_uint_eq(a->rows, b->rows);
	ck_assert(!memcmp(reach(a->data), b->data, grains * a->grain_bytes));
}

static void compare_norm(const float *a, const float *b)
{
	ck_assert(!memcmp(reach(a), b, tiny.geometry.hidden * sizeof(*b)));
}

/*
 * Loads into the device and into the host's memory: the same bytes must be there. stored_plain: and those of the scalar
 * backend are the tiny model's own, in whatever order the file has them.
 */
static void compare_ways(const char *path, bool stored_plain)
{
	struct rig *rig = rig_new(path, MODEL_AUTO, base, 2);
	const struct model_weights *b = model_weights(rig->model), *a;
	struct kern_device device = DEVICE(PLENTY);
	struct model *model = NULL;
	struct diag diag = { "" };

	ck_assert_msg(open_on_device(&model, path, &device, &diag) == MODEL_OK, "%s", diag.text);
	a = model_weights(model);
	compare_weight(&a->embed, &b->embed);
	compare_weight(&a->head, &b->head);
	compare_norm(a->norm, b->norm);
	for (uint32_t l = 0; l < 2; ++l) {
		compare_norm(a->layer[l].attn_norm, b->layer[l].attn_norm);
		compare_norm(a->layer[l].ffn_norm, b->layer[l].ffn_norm);
		for (uint32_t i = 0; i < _KERN_MODULE_N; ++i) {
			const struct kern_weight *w = &a->layer[l].w[i];
			const struct tiny_tensor *t = &tiny.tensors[kern_module(l, i)];

			compare_weight(w, &b->layer[l].w[i]);
			if (stored_plain && base == &kern_ref)
				ck_assert(!memcmp(reach(w->data), t->data, (size_t)t->rows * t->cols * sizeof(float)));
		}
	}
	model_free(model);
	device_close(&device);
	rig_free(rig);
}

/* ---- a GGUF file of the tiny model ---- */

static const char *gguf_path(void)
{
	static char path[128];

	(void)snprintf(path, sizeof(path), "%s/generation_config.json", tiny.folder); /* a name that is cleaned up */
	return path;
}

static void put_metadata(struct gguf_writer *w)
{
	const struct image_geometry *g = &tiny.geometry;

	put_key_text(w, "general.architecture", "llama");
	put_key_u32(w, "llama.block_count", g->n_layers);
	put_key_u32(w, "llama.context_length", 512);
	put_key_u32(w, "llama.embedding_length", g->hidden);
	put_key_u32(w, "llama.feed_forward_length", g->intermediate);
	put_key_u32(w, "llama.attention.head_count", g->n_heads);
	put_key_u32(w, "llama.attention.head_count_kv", g->n_kv_heads);
	put_key_f32(w, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
	put_key_f32(w, "llama.rope.freq_base", 10000);
	put_key_text(w, "tokenizer.ggml.model", "gpt2");
	put_key_text(w, "tokenizer.ggml.pre", "gpt-2");
	put_key_array(w, "tokenizer.ggml.tokens", GGUF_STRING, 1);
	put_text(w, "a");
	put_key_array(w, "tokenizer.ggml.token_type", GGUF_I32, 1);
	put_u32(w, 1);
	put_key_array(w, "tokenizer.ggml.merges", GGUF_STRING, 0);
}

/* The tiny model's tensor i under llama.cpp's name. */
static void gguf_name(uint32_t i, char *ret, size_t bytes)
{
	static const char *const module[] = {
		"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down",
	};
	static const char *const rest[] = {
		"output", "token_embd", "output_norm", "blk.0.attn_norm", "blk.0.ffn_norm", "blk.1.attn_norm",
		"blk.1.ffn_norm",
	};

	if (i < 2 * _KERN_MODULE_N)
		(void)snprintf(ret, bytes, "blk.%u.%s.weight", i / _KERN_MODULE_N, module[i % _KERN_MODULE_N]);
	else
		(void)snprintf(ret, bytes, "%s.weight", rest[i - 2 * _KERN_MODULE_N]);
}

static enum kern_dtype gguf_dtype(uint32_t i, bool quantised)
{
	static const enum kern_dtype of_module[] = {
		KERN_Q8_0, KERN_Q4_1, KERN_F32, KERN_Q4_0, KERN_Q8_0, KERN_Q4_0, KERN_Q4_1,
	};

	return quantised && i < 2 * _KERN_MODULE_N ? of_module[(i + i / _KERN_MODULE_N) % _KERN_MODULE_N] : KERN_F32;
}

/* Rows of q and k lie as llama.cpp's converter leaves them; quantised ones hold anything. */
static void write_gguf_rows(FILE *file, uint32_t i, enum kern_dtype dtype)
{
	const struct tiny_tensor *t = &tiny.tensors[i];
	uint32_t e = tiny.geometry.head_dim, rows = t->rows ? t->rows : 1;
	bool permuted = i < 2 * _KERN_MODULE_N && i % _KERN_MODULE_N <= KERN_K;
	size_t row_bytes = kern_row_bytes(dtype, t->cols);

	for (uint32_t row = 0; row < rows; ++row) {
		uint32_t of_head = row % e, from = permuted ? row - of_head + of_head % 2 * (e / 2) + of_head / 2 : row;
		uint8_t bytes[512];
		static uint64_t state = 4711;

		for (size_t j = 0; j < row_bytes; ++j)
			bytes[j] = (uint8_t)draw(&state, 256);
		if (dtype == KERN_F32)
			memcpy(bytes, t->data + (size_t)from * t->cols, row_bytes);
		ck_assert_uint_eq(fwrite(bytes, 1, row_bytes, file), row_bytes);
	}
}

static void write_gguf(bool quantised)
{
	static const uint32_t type_number[_KERN_DTYPE_N] = { [KERN_Q4_0] = 2, [KERN_Q4_1] = 3, [KERN_Q8_0] = 8 };
	_cleanup_(fclosep) FILE *file = fopen(gguf_path(), "we");
	struct gguf_writer w;
	uint64_t offset = 0;

	put_head(&w, 3);
	put_metadata(&w);
	for (uint32_t i = 0; i < tiny.n_tensors; ++i) {
		const struct tiny_tensor *t = &tiny.tensors[i];
		enum kern_dtype dtype = gguf_dtype(i, quantised);
		char name[64];

		gguf_name(i, name, sizeof(name));
		++w.n_tensors;
		memcpy(w.bytes + 8, &w.n_tensors, sizeof(w.n_tensors));
		put_text(&w, name);
		put_u32(&w, t->rows ? 2 : 1);
		put_u64(&w, t->cols);
		if (t->rows)
			put_u64(&w, t->rows);
		put_u32(&w, type_number[dtype]);
		put_u64(&w, offset);
		offset += (t->rows ? t->rows : 1) * kern_row_bytes(dtype, t->cols);
	}
	put_data(&w, 0);
	ck_assert_ptr_nonnull(file);
	ck_assert_uint_eq(fwrite(w.bytes, 1, w.n, file), w.n);
	for (uint32_t i = 0; i < tiny.n_tensors; ++i)
		write_gguf_rows(file, i, gguf_dtype(i, quantised));
}

START_TEST(device_holds_what_the_host_holds)
{
	base = _i ? kern_cpu(kern_cpu_best()) : &kern_ref;
	tiny_write(&tiny, 1);
	compare_ways(tiny.folder, /* stored_plain= */ true);
	tiny_write(&tiny, 2);
	compare_ways(tiny.folder, /* stored_plain= */ true);
	write_gguf(/* quantised= */ false);
	compare_ways(gguf_path(), /* stored_plain= */ true);
	write_gguf(/* quantised= */ true);
	compare_ways(gguf_path(), /* stored_plain= */ false);
}
END_TEST

static void refused_by(struct kern_device *device, const char *path, const char *word)
{
	struct model *model = NULL;
	struct diag diag = { "" };

	ck_assert_int_eq(open_on_device(&model, path, device, &diag), MODEL_E_INVALID);
	ck_assert_msg(strstr(diag.text, word), "\"%s\" does not say \"%s\"", diag.text, word);
	ck_assert_msg(strstr(diag.text, path), "\"%s\" does not name %s", diag.text, path);
	device_close(device);
}

START_TEST(too_little_device_memory)
{
	base = kern_cpu(kern_cpu_best());
	tiny_write(&tiny, 1);
	refused_by(&DEVICE(200000), tiny.folder, "the weights need 0.0 GiB of device memory, 0.0 GiB are free");
	refused_by(&DEVICE(200000, .lies_about_room = true), tiny.folder, "out of device memory");
}
END_TEST

START_TEST(device_that_fails)
{
	base = &kern_ref;
	tiny_write(&tiny, 1);
	for (unsigned at = 1; at <= 16; ++at) {
		refused_by(&DEVICE(PLENTY, .dies_at = at), tiny.folder, "the device failed while the weights were load");
		refused_by(&DEVICE(PLENTY, .refuses_at = at), tiny.folder, "an illegal memory access was encountered");
	}
}
END_TEST

/* As a sandbox does it; for the rest of this process, which is this test's own. */
static void forbid_io_uring(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { .len = sizeof(code) / sizeof(*code), .filter = code };

	ck_assert_int_eq(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
	ck_assert_int_eq(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), 0);
}

START_TEST(file_cut_off_while_it_is_read)
{
	char path[128];

	base = &kern_ref;
	if (_i)
		forbid_io_uring();
	tiny_write(&tiny, 1);
	(void)snprintf(path, sizeof(path), "%s/model.safetensors", tiny.folder);
	refused_by(&DEVICE(PLENTY, .cut = path), tiny.folder, "model.safetensors: cut off while it was loaded: 4113");
	write_gguf(/* quantised= */ true);
	refused_by(&DEVICE(PLENTY, .cut = gguf_path()), gguf_path(), "generation_config.json: cut off");
}
END_TEST

/* ---- matrices of all shapes through small buffers ---- */

#define N_FILES 2u
#define N_LOADS 5u

/* Files of random bytes that no model is in. */
static struct source *random_source(uint64_t *state)
{
	struct source *source = calloc(1, sizeof(*source));

	ck_assert_ptr_nonnull(source);
	source->files = calloc(N_FILES, sizeof(*source->files));
	source->n_files = N_FILES;
	for (unsigned i = 0; i < N_FILES; ++i) {
		size_t n = 200000 + draw(state, 100000);
		_cleanup_free_ uint8_t *bytes = malloc(n);
		struct diag diag;
		char path[128];
		FILE *file;

		(void)snprintf(path, sizeof(path), "%s/model-%u.safetensors", tiny.folder, i);
		for (size_t j = 0; j < n; ++j)
			bytes[j] = (uint8_t)draw(state, 256);
		file = fopen(path, "we");
		ck_assert_uint_eq(fwrite(bytes, 1, n, file), n);
		fclose(file);
		ck_assert_int_eq(source_map(path, &source->files[i], &diag), SOURCE_OK);
	}
	return source;
}

/* A matrix somewhere in a file; sometimes it ends where the file ends. */
static void random_load(struct weight_load *ret, struct kern_weight *w, const struct source *source, uint64_t *state)
{
	const struct source_file *file = &source->files[draw(state, N_FILES)];
	struct kern_matrix *m = &ret->m;
	enum kern_precision precision = draw(state, 2) ? KERN_PRECISION_F32 : KERN_PRECISION_INT8;
	size_t bytes, room;

	*m = (struct kern_matrix){ .dtype = draw(state, _KERN_DTYPE_N), .cols = 32 * (1 + draw(state, 9)) };
	if (!kern_row_bytes(m->dtype, m->cols)) /* blocks of 256 */
		m->cols = 256 * (1 + draw(state, 2));
	m->rows = 1 + draw(state, 100);
	if (draw(state, 2)) {
		m->permuted_head = 2 * (1 + draw(state, 20));
		m->rows = m->permuted_head * (1 + draw(state, 4));
	}
	bytes = m->rows * kern_row_bytes(m->dtype, m->cols);
	ck_assert_uint_le(bytes, file->n);
	room = file->n - bytes;
	m->data = file->bytes + (draw(state, 4) ? draw(state, (uint32_t)room + 1) : room);
	ck_assert_int_eq(device_plan(NULL, m, precision, w), 0);
	ret->w = w;
}

static void check_load(struct kern_device *device, const struct weight_load *load)
{
	const struct kern_weight *w = load->w;
	size_t bytes = (w->rows + w->grain - 1) / w->grain * w->grain_bytes;
	_cleanup_free_ void *whole = aligned_alloc(64, (bytes + 63) / 64 * 64);

	base->device->weight_pack(w, &load->m, 0, w->rows, whole);
	ck_assert(!memcmp(reach(w->data), whole, bytes));
	device_free(device, w->data, w->bytes);
}

static void upload_random(uint64_t *state, struct team *team)
{
	struct kern_device device = DEVICE(PLENTY, .refuses_registering = draw(state, 4) == 0);
	_cleanup_(source_freep) struct source *source = random_source(state);
	double progress = 0;
	struct upload_options options = {
		.ops = &device_ops, .device = &device, .team = team, .source = source,
		.buffer_bytes = 1 + draw(state, 60000), .progress = check_progress, .userdata = &progress,
	};
	struct weight_load loads[N_LOADS] = { 0 };
	struct kern_weight w[N_LOADS];
	struct diag diag = { "" };

	for (unsigned i = 0; i < N_LOADS; ++i)
		random_load(&loads[i], &w[i], source, state);
	ck_assert_msg(upload_weights(&options, loads, N_LOADS, &diag) == 0, "%s", diag.text);
	ck_assert(progress == 1);
	for (unsigned i = 0; i < N_LOADS; ++i)
		check_load(&device, &loads[i]);
	device_close(&device);
}

START_TEST(panels_make_the_whole)
{
	_cleanup_(team_freep) struct team *team = NULL;
	uint64_t state = 20011 + (uint64_t)_i;

	base = _i & 1 ? kern_cpu(kern_cpu_best()) : &kern_ref;
	if (_i & 2)
		forbid_io_uring();
	ck_assert_int_eq(team_new(&team, 1 + (unsigned)_i % 3), 0);
	for (unsigned i = 0; i < 40; ++i)
		upload_random(&state, team);
}
END_TEST

START_TEST(file_that_cannot_be_read)
{
	uint64_t state = 5;
	_cleanup_(source_freep) struct source *source = random_source(&state);
	_cleanup_(team_freep) struct team *team = NULL;
	struct kern_device device = DEVICE(PLENTY);
	struct upload_options options = { .ops = &device_ops, .device = &device, .source = source };
	struct weight_load load = { 0 };
	struct kern_weight w;
	struct diag diag = { "" };

	base = &kern_ref;
	if (_i)
		forbid_io_uring();
	ck_assert_int_eq(team_new(&team, 1), 0);
	options.team = team;
	for (unsigned i = 0; i < N_FILES; ++i) {
		ck_assert_int_eq(close(source->files[i].fd), 0);
		source->files[i].fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
	}
	random_load(&load, &w, source, &state);
	ck_assert_int_eq(upload_weights(&options, &load, 1, &diag), MODEL_E_INVALID);
	ck_assert_msg(strstr(diag.text, ".safetensors: cannot be read: Bad file descriptor"), "%s", diag.text);
	device_free(&device, w.data, w.bytes);
	device_close(&device);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("model-load");
	TCase *tc = tcase_create("load");

	tcase_set_timeout(tc, 60);
	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, shards_equal_one_file);
	tcase_add_test(tc, tied_head_is_the_embedding);
	tcase_add_test(tc, what_is_no_model_is_named);
	tcase_add_test(tc, what_is_no_gguf_is_named);
	tcase_add_test(tc, wrong_tensors_are_named);
	tcase_add_test(tc, truncations_are_refused);
	tcase_add_loop_test(tc, device_holds_what_the_host_holds, 0, 2);
	tcase_add_test(tc, too_little_device_memory);
	tcase_add_test(tc, device_that_fails);
	tcase_add_loop_test(tc, file_cut_off_while_it_is_read, 0, 2);
	tcase_add_loop_test(tc, panels_make_the_whole, 0, 4);
	tcase_add_loop_test(tc, file_that_cannot_be_read, 0, 2);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
