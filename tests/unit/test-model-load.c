/* SPDX-License-Identifier: MIT */
/* Loading a model: one file or shards, tied or not; and every way a folder can be wrong ends in one line that names it. */
#include <check.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

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
	ck_assert_int_eq(kern_ref.device->open(&device, 0), 0);
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
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
