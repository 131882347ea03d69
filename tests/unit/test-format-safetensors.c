/* SPDX-License-Identifier: MIT */
/* safetensors headers, shard indexes, and the JSON bounds they all share. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/format/json.h"
#include "daemon/format/safetensors.h"
#include "tests/unit/format-mutate.h"
#include "tests/lib/run-suite.h"

static struct diag diag;

/* A header alone; the file is as long as header and data_bytes. */
static int parse(const char *header, uint64_t data_bytes, struct safetensors **ret)
{
	diag.text[0] = '\0';
	return safetensors_parse(ret, header, strlen(header), 8 + strlen(header) + data_bytes, &diag);
}

static void refused(const char *header, uint64_t data_bytes, const char *words)
{
	struct safetensors *st = NULL;

	ck_assert_int_eq(parse(header, data_bytes, &st), FORMAT_E_INVALID);
	ck_assert_msg(strstr(diag.text, words) != NULL, "'%s' does not say '%s'", diag.text, words);
}

#define ENTRY(name, dtype, shape, begin, end) \
	"\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":[" shape "],\"data_offsets\":[" #begin "," #end "]}"
#define GOOD "{\"__metadata__\":{\"format\":\"pt\"}," ENTRY("b", "F32", "2,3", 0, 24) "," ENTRY("a", "BF16", "4", 24, 32) "}  "

START_TEST(a_view)
{
	const struct safetensors_tensor *t;
	struct safetensors *st = NULL;

	ck_assert_msg(parse(GOOD, 32, &st) == 0, "%s", diag.text);
	ck_assert_uint_eq(st->n_tensors, 2);
	ck_assert_str_eq(st->tensors[0].name, "a");
	t = safetensors_find(st, "b");
	ck_assert_ptr_nonnull(t);
	ck_assert_int_eq(t->dtype, KERN_F32);
	ck_assert_uint_eq(t->n_dims, 2);
	ck_assert_uint_eq(t->shape[1], 3);
	ck_assert_uint_eq(t->offset, 8 + strlen(GOOD));
	ck_assert_uint_eq(t->bytes, 24);
	ck_assert_ptr_null(safetensors_find(st, "c"));
	safetensors_free(st);
}
END_TEST

START_TEST(damage_by_name)
{
	refused("{" ENTRY("a", "F32", "2", 0, 8) "," ENTRY("b", "F32", "2", 4, 12) "}", 12, "tensor 'b': overlaps");
	refused("{" ENTRY("a", "F32", "2", 0, 8) "," ENTRY("b", "F32", "2", 12, 20) "}", 20, "tensor 'b': leaves a gap");
	refused("{" ENTRY("a", "F32", "2", 0, 8) "}", 12, "belong to none");
	refused("{" ENTRY("a", "F32", "2", 0, 8) "}", 7, "tensor 'a': ends at byte 8 of 7");
	refused("{" ENTRY("a", "F32", "3", 0, 8) "}", 8, "tensor 'a': 8 bytes, but its dtype and shape make 12");
	refused("{" ENTRY("a", "F12", "2", 0, 8) "}", 8, "tensor 'a': dtype F12");
	refused("{" ENTRY("a", "F32", "-2", 0, 8) "}", 8, "tensor 'a': shape");
	refused("{" ENTRY("a", "F32", "4611686018427387904,4", 0, 8) "}", 8, "tensor 'a': shape is wrong or too large");
	refused("{" ENTRY("a", "F32", "2", 8, 0) "}", 8, "tensor 'a': data_offsets");
	refused("{" ENTRY("a", "F32", "2", 0, 8) "," ENTRY("a", "F32", "2", 0, 8) "}", 8, "duplicate");
	refused("[]", 0, "not a JSON object");
	refused("{", 0, "line 1");
}
END_TEST

START_TEST(header_length)
{
	const uint8_t two[8] = { 2 }, huge[8] = { 0, 0, 0, 0, 0, 0, 0, 0x80 }, large[8] = { 1, 0xe1, 0xf5, 5 };
	uint64_t n = 0;

	ck_assert_int_eq(safetensors_header_bytes(two, 10, &n, &diag), 0);
	ck_assert_uint_eq(n, 2);
	ck_assert_int_eq(safetensors_header_bytes(two, 9, &n, &diag), FORMAT_E_INVALID);
	ck_assert_int_eq(safetensors_header_bytes(huge, UINT64_MAX, &n, &diag), FORMAT_E_INVALID);
	ck_assert_int_eq(safetensors_header_bytes(large, UINT64_MAX, &n, &diag), FORMAT_E_INVALID); /* 100,000,001 */
}
END_TEST

START_TEST(written_and_read)
{
	const struct safetensors_tensor out[] = {
		{ .name = "z", .dtype_name = "F16", .n_dims = 2, .shape = { 3, 5 }, .bytes = 30 },
		{ .name = "a", .dtype_name = "F32", .n_dims = 1, .shape = { 2 }, .bytes = 8 },
	};
	struct safetensors *st = NULL;
	uint64_t header;
	char *text = NULL;
	size_t n;

	ck_assert_int_eq(safetensors_write_header(out, 2, &text, &n), 0);
	ck_assert_uint_eq(n % 8, 0);
	ck_assert_int_eq(safetensors_header_bytes((uint8_t *)text, n + 38, &header, &diag), 0);
	ck_assert_uint_eq(header, n - 8);
	ck_assert_msg(safetensors_parse(&st, text + 8, n - 8, n + 38, &diag) == 0, "%s", diag.text);
	ck_assert_uint_eq(safetensors_find(st, "z")->offset, n);
	ck_assert_uint_eq(safetensors_find(st, "a")->offset, n + 30);
	safetensors_free(st);
	free(text);
}
END_TEST

START_TEST(shard_index)
{
	static const char good[] = "{\"weight_map\":{\"b\":\"m-2.safetensors\",\"a\":\"m-1.safetensors\",\"c\":\"m-2.safetensors\"}}";
	static const char *const bad[] = { "../x", "a/b", "", ".hidden", "/etc/passwd" };
	struct safetensors_index *index = NULL;
	char text[256];

	ck_assert_msg(safetensors_index_parse(&index, good, strlen(good), &diag) == 0, "%s", diag.text);
	ck_assert_uint_eq(index->n_files, 2);
	ck_assert_str_eq(index->files[1], "m-2.safetensors");
	ck_assert_str_eq(index->entries[1].tensor, "b");
	ck_assert_uint_eq(index->entries[1].file, 1);
	safetensors_index_free(index);
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); ++i) {
		(void)snprintf(text, sizeof(text), "{\"weight_map\":{\"a\":\"%s\"}}", bad[i]);
		ck_assert_int_eq(safetensors_index_parse(&index, text, strlen(text), &diag), FORMAT_E_INVALID);
		ck_assert_ptr_nonnull(strstr(diag.text, "tensor 'a' lies in"));
	}
}
END_TEST

START_TEST(json_bounds)
{
	json_t *root = NULL;
	char deep[256] = "{\"a\":";

	memset(deep + 5, '[', JSON_DEPTH_MAX);
	ck_assert_int_eq(json_parse(&root, deep, strlen(deep), 1000, JSON_PLAIN, "f", &diag), FORMAT_E_INVALID);
	ck_assert_str_eq(diag.text, "f: nested deeper than 32 levels");
	ck_assert_int_eq(json_parse(&root, "{\"a\":\"[[[[\\\"[[\"}", 17, 16, JSON_PLAIN, "f", &diag), FORMAT_E_INVALID);
	ck_assert_int_eq(json_parse(&root, "{\"a\":1,\"a\":2}", 13, 100, JSON_PLAIN, "f", &diag), FORMAT_E_INVALID);
	ck_assert_int_eq(json_parse(&root, "{\"a\":NaN}", 9, 100, JSON_PLAIN, "f", &diag), FORMAT_E_INVALID);
	ck_assert_int_eq(json_parse(&root, "{\"a\":1000000000000000000000}", 28, 100, JSON_PLAIN, "f", &diag),
			 FORMAT_E_INVALID);
	ck_assert_int_eq(json_parse(&root, "{\"a\":1000000000000000000000}", 28, 100, JSON_HUGE_INTEGERS, "f", &diag), 0);
	json_decref(root);
}
END_TEST

static bool read_header(const void *bytes, size_t n, void *userdata)
{
	struct safetensors *st = NULL;
	int r = safetensors_parse(&st, bytes, n, *(uint64_t *)userdata + n, &diag);

	safetensors_free(st);
	return r == 0;
}

static bool read_index(const void *bytes, size_t n, void *userdata)
{
	struct safetensors_index *index = NULL;
	int r = safetensors_index_parse(&index, bytes, n, &diag);

	(void)userdata;
	safetensors_index_free(index);
	return r == 0;
}

START_TEST(damage_anywhere)
{
	static const char index[] = "{\"weight_map\":{\"b\":\"m-2.safetensors\",\"a\":\"m-1.safetensors\"}}";
	const char *good = "{" ENTRY("b", "F32", "2,3", 0, 24) "," ENTRY("a", "BF16", "4", 24, 32) "}";
	uint64_t rest = 40;

	ck_assert(mutate_try(read_header, good, strlen(good), &rest));
	ck_assert_uint_eq(mutate_truncate(read_header, good, strlen(good), &rest), 0);
	ck_assert_uint_lt(mutate_flip(read_header, good, strlen(good), 20000, &rest), 20000);
	ck_assert(mutate_try(read_index, index, strlen(index), NULL));
	ck_assert_uint_eq(mutate_truncate(read_index, index, strlen(index), NULL), 0);
	ck_assert_uint_lt(mutate_flip(read_index, index, strlen(index), 5000, NULL), 5000);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("format-safetensors");
	TCase *tests = tcase_create("safetensors");

	tcase_set_timeout(tests, 60);
	tcase_add_test(tests, a_view);
	tcase_add_test(tests, damage_by_name);
	tcase_add_test(tests, header_length);
	tcase_add_test(tests, written_and_read);
	tcase_add_test(tests, shard_index);
	tcase_add_test(tests, json_bounds);
	tcase_add_test(tests, damage_anywhere);
	suite_add_tcase(suite, tests);
	return run_suite(suite);
}
