/* SPDX-License-Identifier: MIT */
/* Checksums, adapter images there and back, headers, and lorad.conf. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/format/conf.h"
#include "daemon/format/image.h"
#include "kernels/kernels.h"
#include "tests/unit/format-mutate.h"
#include "tests/lib/run-suite.h"

static const struct image_geometry geometry = { 2, 96, 160, 3, 1, 32, 50 };
static struct diag diag;

START_TEST(crc32c_of_rfc3720)
{
	uint8_t bytes[32] = { 0 };

	ck_assert_uint_eq(crc32c(0, bytes, 32), 0x8a9136aa);
	ck_assert_uint_eq(crc32c_table(0, bytes, 32), 0x8a9136aa);
	memset(bytes, 0xff, 32);
	ck_assert_uint_eq(crc32c(0, bytes, 32), 0x62a8ab43);
	for (unsigned i = 0; i < 32; ++i)
		bytes[i] = (uint8_t)i;
	ck_assert_uint_eq(crc32c(0, bytes, 32), 0x46dd794e);
	for (unsigned i = 0; i < 32; ++i)
		bytes[i] = (uint8_t)(31 - i);
	ck_assert_uint_eq(crc32c(0, bytes, 32), 0x113fdb5c);
	ck_assert_uint_eq(crc32c(0, "123456789", 9), 0xe3069283);
}
END_TEST

/* Lanes and table agree around the sizes where lanes begin, at any alignment, and in parts. */
START_TEST(crc32c_lanes)
{
	const size_t n = 3 * 3 * 8192 + 100;
	uint8_t *bytes = malloc(n);

	for (size_t i = 0; i < n; ++i)
		bytes[i] = (uint8_t)(i * 7 + (i >> 8) * 13);
	for (size_t size = 3 * 8192 - 3; size < n; size += size < 3 * 8192 + 3 ? 1 : 4999)
		for (size_t at = 0; at < 9 && at + size <= n; at += 4)
			ck_assert_uint_eq(crc32c(5, bytes + at, size), crc32c_table(5, bytes + at, size));
	ck_assert_uint_eq(crc32c(crc32c(0, bytes, 30001), bytes + 30001, n - 30001), crc32c(0, bytes, n));
	free(bytes);
}
END_TEST

/* ---- images ---- */

struct source {
	struct image_module modules[3];
	void *a[3], *b[3]; /* by module number's order after image_plan() */
	uint64_t bytes;
	uint8_t *payload;
	struct image_header header;
};

static void *numbers(size_t n)
{
	uint8_t *p = malloc(n);

	for (size_t i = 0; i < n; ++i)
		p[i] = (uint8_t)(i * 31 + n) & 0x3f; /* exponents stay small */
	return p;
}

static void make(struct source *s)
{
	static const struct image_module given[3] = {
		{ .module = 14, .rank = 3, .dtype = KERN_F32, .scale = 2 },   /* the head */
		{ .module = 1, .rank = 16, .dtype = KERN_BF16, .scale = 0.5f }, /* layer 0, k */
		{ .module = 13, .rank = 5, .dtype = KERN_F16, .scale = -1 },  /* layer 1, down */
	};

	*s = (struct source){ 0 };
	memcpy(s->modules, given, sizeof(given));
	ck_assert_msg(image_plan(s->modules, 3, &geometry, &s->bytes, &diag) == 0, "%s", diag.text);
	s->payload = aligned_alloc(IMAGE_PAGE, s->bytes);
	image_begin(s->payload, s->bytes, s->modules, 3);
	for (int i = 0; i < 3; ++i) {
		const struct image_module *m = &s->modules[i];
		size_t number = kern_dtype_bytes((enum kern_dtype)m->dtype);

		s->a[i] = numbers(number * m->rank * m->in);
		s->b[i] = numbers(number * m->rank * m->out);
		ck_assert_int_eq(image_put_a(s->payload, m, s->a[i], "A", &diag), 0);
		ck_assert_int_eq(image_put_b(s->payload, m, s->b[i], "B", &diag), 0);
	}
	s->header = (struct image_header){ .layout_version = IMAGE_LAYOUT_VERSION, .kind = IMAGE_KIND_LORA,
					   .payload_bytes = s->bytes, .n_chunks = 1, .n_modules = 3, .max_rank = 16,
					   .geometry = geometry };
}

static void drop(struct source *s)
{
	for (int i = 0; i < 3; ++i) {
		free(s->a[i]);
		free(s->b[i]);
	}
	free(s->payload);
}

START_TEST(there_and_back)
{
	const struct image_module *table;
	struct source s;

	make(&s);
	ck_assert_uint_eq(s.modules[0].module, 1);
	ck_assert_uint_eq(s.modules[0].in, 96);
	ck_assert_uint_eq(s.modules[0].out, 32);
	ck_assert_uint_eq(s.modules[1].in, 160);
	ck_assert_uint_eq(s.modules[2].out, 50);
	ck_assert_msg(image_modules(s.payload, &s.header, IMAGE_SOURCE, &table, &diag) == 0, "%s", diag.text);
	for (int i = 0; i < 3; ++i) {
		const struct image_module *m = &table[i];
		size_t number = kern_dtype_bytes((enum kern_dtype)m->dtype), na = number * m->rank * m->in,
		       nb = number * m->rank * m->out, stride = kern_lora_stride((enum kern_dtype)m->dtype, m->out);
		uint8_t *got = malloc(na > nb ? na : nb);

		ck_assert_uint_eq(m->a_offset % 64, 0);
		image_get_a(s.payload, m, got);
		ck_assert_mem_eq(got, s.a[i], na);
		image_get_b(s.payload, m, got);
		ck_assert_mem_eq(got, s.b[i], nb);
		/* B stands transposed: row 1, output 7 */
		ck_assert_mem_eq(s.payload + m->b_offset + stride + 7 * number, (uint8_t *)s.b[i] + (7 * m->rank + 1u) * number,
				 number);
		free(got);
	}
	drop(&s);
}
END_TEST

START_TEST(not_finite)
{
	static const uint32_t f32[] = { 0x7f800000, 0xff800000, 0x7fc00000, 0x7f800001 };
	static const uint16_t bf16[] = { 0x7f80, 0xff80, 0x7fc0, 0x7f81 };
	struct source s;

	make(&s);
	for (int i = 0; i < 4; ++i) {
		memcpy((uint32_t *)s.a[2] + 3, &f32[i], 4);
		ck_assert_int_eq(image_put_a(s.payload, &s.modules[2], s.a[2], "x.lora_A", &diag), IMAGE_E_INVALID);
		ck_assert_str_eq(diag.text, "tensor 'x.lora_A': number 3 is NaN or infinite");
		memcpy((uint16_t *)s.b[0] + 5, &bf16[i], 2);
		ck_assert_int_eq(image_put_b(s.payload, &s.modules[0], s.b[0], "x.lora_B", &diag), IMAGE_E_INVALID);
	}
	((uint16_t *)s.b[1])[9] = 0x7c00;
	ck_assert_int_eq(image_put_b(s.payload, &s.modules[1], s.b[1], "x", &diag), IMAGE_E_INVALID);
	((uint16_t *)s.b[1])[9] = 0x7bff; /* the largest F16 */
	ck_assert_int_eq(image_put_b(s.payload, &s.modules[1], s.b[1], "x", &diag), IMAGE_OK);
	drop(&s);
}
END_TEST

static bool read_table(const void *bytes, size_t n, void *userdata)
{
	const struct source *s = userdata;
	uint8_t *payload = aligned_alloc(IMAGE_PAGE, s->bytes);
	const struct image_module *table;
	bool accepted;

	memcpy(payload, s->payload, s->bytes);
	memcpy(payload, bytes, n);
	accepted = image_modules(payload, &s->header, IMAGE_SOURCE, &table, &diag) == 0;
	free(payload);
	return accepted;
}

/* Whatever of the table changes is noticed, but for rank (others' offsets notice), scale and dtype of equal width. */
START_TEST(damaged_tables)
{
	const struct image_module *table;
	struct image_geometry other = geometry;
	struct source s;

	make(&s);
	ck_assert_uint_lt(mutate_flip(read_table, s.payload, sizeof(s.modules), 5000, &s), 1500);
	for (size_t i = 0; i < sizeof(s.modules); ++i) {
		bool free_field = i % 40 >= 16 && i % 40 < 20; /* scale: any finite number will do */

		s.payload[i] ^= 1;
		ck_assert_msg(free_field || i % 40 == 6 ||
				      image_modules(s.payload, &s.header, IMAGE_SOURCE, &table, &diag) == IMAGE_E_INVALID,
			      "byte %zu", i);
		s.payload[i] ^= 1;
	}
	other.hidden = 128;
	s.header.geometry = other;
	ck_assert_int_eq(image_modules(s.payload, &s.header, IMAGE_SOURCE, &table, &diag), IMAGE_E_INVALID);
	drop(&s);
}
END_TEST

/* ---- packed images ---- */

/* A source of one module, layer 1's down in f32, of numbers in [-size, size]; the first of A is `peak`. */
static void make_one(struct source *s, float size, float peak)
{
	struct image_module *m = s->modules;
	float *a, *b;

	*s = (struct source){ .modules = { { .module = 13, .rank = 5, .dtype = KERN_F32, .scale = 1 } } };
	ck_assert_int_eq(image_plan(m, 1, &geometry, &s->bytes, &diag), 0);
	s->payload = aligned_alloc(IMAGE_PAGE, s->bytes);
	image_begin(s->payload, s->bytes, m, 1);
	a = s->a[0] = malloc(sizeof(float) * m->rank * m->in);
	b = s->b[0] = malloc(sizeof(float) * m->rank * m->out);
	for (uint32_t i = 0; i < m->rank * m->in; ++i)
		a[i] = size * ((float)(i * 7919u % 2001) - 1000) / 1000;
	for (uint32_t i = 0; i < m->rank * m->out; ++i)
		b[i] = size * ((float)(i * 6007u % 2001) - 1000) / 1000;
	a[0] = peak;
	ck_assert_int_eq(image_put_a(s->payload, m, a, "A", &diag), 0);
	ck_assert_int_eq(image_put_b(s->payload, m, b, "B", &diag), 0);
}

/* Every product of the change is the source's within what half a step of either factor can do. */
START_TEST(packed_products)
{
	const struct image_module *m;
	struct image_packed packed = { 0 };
	struct source s;

	make_one(&s, 1, 1);
	ck_assert_int_eq(image_pack(s.payload, s.modules, 1, &geometry, &packed), IMAGE_PACK_OK);
	ck_assert(packed.error > 0.001f && packed.error < 0.02f);
	ck_assert_uint_lt(packed.bytes, s.bytes / 2 + IMAGE_PAGE);
	s.header = (struct image_header){ .payload_bytes = packed.bytes, .n_modules = 1, .max_rank = 5, .geometry = geometry };
	ck_assert_int_eq(image_modules(packed.payload, &s.header, IMAGE_SOURCE, &m, &diag), IMAGE_E_INVALID);
	ck_assert_msg(image_modules(packed.payload, &s.header, IMAGE_PACKED, &m, &diag) == 0, "%s", diag.text);
	ck_assert_ptr_null(image_scales(s.payload, s.modules));
	for (uint32_t j = 0; j < 5; ++j) {
		const int8_t *a = (int8_t *)packed.payload + m->a_offset + j * kern_lora_stride(KERN_I8, m->in);
		const int8_t *b = (int8_t *)packed.payload + m->b_offset + j * kern_lora_stride(KERN_I8, m->out);

		for (uint32_t i = 0; i < m->in; ++i)
			for (uint32_t o = 0; o < m->out; ++o) {
				float is = image_scales(packed.payload, m)[j] * (float)(a[i] * b[o]);
				float was = ((float *)s.a[0])[j * m->in + i] * ((float *)s.b[0])[o * 5 + j];

				ck_assert_float_le(fabsf(is - was), 2 * 0.004f);
			}
	}
	free(packed.payload);
	drop(&s);
}
END_TEST

/* What int8 cannot hold stays as it is: one number a hundred times the others, numbers too large to be scaled. */
START_TEST(packed_too_coarse)
{
	static const struct {
		float size, peak;
		int result;
	} tries[] = {
		{ 1, 100, IMAGE_PACK_E_COARSE },
		{ 1e-33f, 1e-33f, IMAGE_PACK_OK }, /* no change, in f32 as well */
		{ 1e20f, 1e20f, IMAGE_PACK_E_COARSE },
		{ 1e-15f, 1e-15f, IMAGE_PACK_OK },
	};
	struct source s;

	for (unsigned i = 0; i < sizeof(tries) / sizeof(*tries); ++i) {
		struct image_packed packed = { 0 };

		make_one(&s, tries[i].size, tries[i].peak);
		ck_assert_msg(image_pack(s.payload, s.modules, 1, &geometry, &packed) == tries[i].result,
			      "%u: %g off", i, (double)packed.error);
		ck_assert(tries[i].result == IMAGE_PACK_OK ? packed.error < 0.02f : packed.error > 0.03f && !packed.payload);
		free(packed.payload);
		drop(&s);
	}
}
END_TEST

/* An adapter that was not trained: B is all zeros, and so is its packed form. */
START_TEST(packed_zeros)
{
	const struct image_module *m;
	struct image_packed packed = { 0 };
	struct source s;

	make_one(&s, 1, 1);
	memset(s.payload + s.modules->b_offset, 0, 5 * kern_lora_stride(KERN_F32, s.modules->out));
	ck_assert_int_eq(image_pack(s.payload, s.modules, 1, &geometry, &packed), IMAGE_PACK_OK);
	ck_assert_float_eq(packed.error, 0);
	m = (const struct image_module *)(void *)packed.payload;
	for (uint32_t j = 0; j < 5; ++j)
		ck_assert_float_eq(image_scales(packed.payload, m)[j], 0);
	free(packed.payload);
	drop(&s);
}
END_TEST

START_TEST(plans_refused)
{
	struct image_module twice[2] = { { .module = 3, .rank = 1 }, { .module = 3, .rank = 1 } };
	struct image_module beyond = { .module = 15, .rank = 1 }, no_rank = { .module = 3 };
	uint64_t bytes;

	ck_assert_int_eq(image_plan(twice, 2, &geometry, &bytes, &diag), IMAGE_E_INVALID);
	ck_assert_int_eq(image_plan(&beyond, 1, &geometry, &bytes, &diag), IMAGE_E_INVALID);
	ck_assert_int_eq(image_plan(&no_rank, 1, &geometry, &bytes, &diag), IMAGE_E_INVALID);
	ck_assert_int_eq(image_plan(&beyond, 0, &geometry, &bytes, &diag), IMAGE_E_INVALID);
}
END_TEST

static bool read_header(const void *bytes, size_t n, void *userdata)
{
	const struct image_header *header;

	(void)userdata;
	return image_header_check(bytes, n, &header, &diag) == 0;
}

START_TEST(headers)
{
	union {
		struct image_header header;
		uint8_t bytes[IMAGE_HEADER_BYTES];
	} v = { .bytes = { 0 } };

	v.header = (struct image_header){ .layout_version = IMAGE_LAYOUT_VERSION, .kind = IMAGE_KIND_LORA,
					  .payload_bytes = 2 * (uint64_t)IMAGE_CHUNK_PAYLOAD + IMAGE_PAGE, .chunk = 2,
					  .n_chunks = 3, .n_modules = 1, .max_rank = 8, .geometry = geometry };
	image_header_seal(&v.header);
	ck_assert_msg(read_header(v.bytes, sizeof(v.bytes), NULL), "%s", diag.text);
	ck_assert_uint_eq(image_chunk_bytes(&v.header, 0), IMAGE_CHUNK_PAYLOAD);
	ck_assert_uint_eq(image_chunk_bytes(&v.header, 2), IMAGE_PAGE);
	ck_assert_uint_eq(image_chunk_bytes(&v.header, 3), 0);
	ck_assert_uint_eq(mutate_truncate(read_header, v.bytes, sizeof(v.bytes), NULL), 0);
	ck_assert_uint_eq(mutate_flip(read_header, &v.header, sizeof(v.header), 100, NULL), 0);
	for (size_t i = 0; i < sizeof(v.header); ++i) {
		v.bytes[i] ^= 0x10;
		ck_assert_msg(!read_header(v.bytes, sizeof(v.bytes), NULL), "byte %zu", i);
		v.bytes[i] ^= 0x10;
	}
	v.header.chunk = 3;
	image_header_seal(&v.header);
	ck_assert(!read_header(v.bytes, sizeof(v.bytes), NULL));
}
END_TEST

/* ---- lorad.conf ---- */

static const char *const known[] = { "model", "threads", "socket", NULL };

static bool read_conf(const void *bytes, size_t n, void *userdata)
{
	struct conf *conf = NULL;
	int r = conf_parse(&conf, bytes, n, known, &diag);

	(void)userdata;
	conf_free(conf);
	return r == 0;
}

START_TEST(conf_files)
{
	static const char good[] = "# a comment\n\nmodel = /srv/a b=c#d.gguf  # why\r\n\tthreads=4";
	static const struct {
		const char *text, *words;
	} bad[] = {
		{ "model = a\nfoo = 1\n", "line 2: unknown key 'foo'" },
		{ "model\n", "line 1: 'model' is no 'key = value'" },
		{ "model = # nothing\n", "line 1: 'model' has no value" },
		{ "model = a\n\nmodel = b\n", "line 3: 'model' was given before" },
		{ "= a\n", "line 1: unknown key ''" },
	};
	struct conf *conf = NULL;

	ck_assert_msg(conf_parse(&conf, good, strlen(good), known, &diag) == 0, "%s", diag.text);
	ck_assert_str_eq(conf_get(conf, "model"), "/srv/a b=c#d.gguf");
	ck_assert_str_eq(conf_get(conf, "threads"), "4");
	ck_assert_uint_eq(conf->entries[1].line, 4);
	ck_assert_ptr_null(conf_get(conf, "socket"));
	conf_free(conf);
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); ++i) {
		ck_assert(!read_conf(bad[i].text, strlen(bad[i].text), NULL));
		ck_assert_str_eq(diag.text, bad[i].words);
	}
	ck_assert(!read_conf("model = a\0b", 11, NULL));
	(void)mutate_truncate(read_conf, good, strlen(good), NULL);
	ck_assert_uint_lt(mutate_flip(read_conf, good, strlen(good), 5000, NULL), 5000);
}
END_TEST

START_TEST(conf_numbers)
{
	static const char *const no_size[] = { "", "K", "4X", "4KB", "-1", " 4", "0x10", "17179869184G", "18446744073709551616" };
	static const char *const no_double[] = { "", "nan", "inf", "1e999", "0x1p3", "1,5", "1 ", "--1" };
	uint64_t n = 0;
	double d = 0;

	ck_assert_int_eq(conf_bytes("x", "4096", &n, &diag), 0);
	ck_assert_uint_eq(n, 4096);
	ck_assert_int_eq(conf_bytes("x", "3K", &n, &diag), 0);
	ck_assert_uint_eq(n, 3072);
	ck_assert_int_eq(conf_bytes("x", "2g", &n, &diag), 0);
	ck_assert_uint_eq(n, UINT64_C(2) << 30);
	for (size_t i = 0; i < sizeof(no_size) / sizeof(*no_size); ++i)
		ck_assert_msg(conf_bytes("x", no_size[i], &n, &diag) == FORMAT_E_INVALID, "'%s'", no_size[i]);
	ck_assert_int_eq(conf_u64("threads", "9", 8, &n, &diag), FORMAT_E_INVALID);
	ck_assert_str_eq(diag.text, "threads: '9' is no whole number of 0..8");
	ck_assert_int_eq(conf_u64("x", "8", 8, &n, &diag), 0);
	ck_assert_int_eq(conf_double("x", "-1.5e2", &d, &diag), 0);
	ck_assert_double_eq(d, -150);
	for (size_t i = 0; i < sizeof(no_double) / sizeof(*no_double); ++i)
		ck_assert_msg(conf_double("x", no_double[i], &d, &diag) == FORMAT_E_INVALID, "'%s'", no_double[i]);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("format-image");
	TCase *tests = tcase_create("image");

	tcase_set_timeout(tests, 60);
	tcase_add_test(tests, crc32c_of_rfc3720);
	tcase_add_test(tests, crc32c_lanes);
	tcase_add_test(tests, there_and_back);
	tcase_add_test(tests, not_finite);
	tcase_add_test(tests, damaged_tables);
	tcase_add_test(tests, packed_products);
	tcase_add_test(tests, packed_too_coarse);
	tcase_add_test(tests, packed_zeros);
	tcase_add_test(tests, plans_refused);
	tcase_add_test(tests, headers);
	tcase_add_test(tests, conf_files);
	tcase_add_test(tests, conf_numbers);
	suite_add_tcase(suite, tests);
	return run_suite(suite);
}
