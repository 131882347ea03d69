/* SPDX-License-Identifier: MIT */
/* From bytes to a checked request: every item's round trip, a table of malformed items, truncations and bit flips. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/ipc/session.h"
#include "libclient/message.h"
#include "tests/lib/run-suite.h"

struct built {
	struct message_writer w;
	_Alignas(8) uint8_t bytes[16384];
};

static void begin(struct built *b)
{
	message_begin(&b->w, b->bytes, sizeof(b->bytes));
}

static void put(struct built *b, uint16_t type, const void *payload, size_t bytes)
{
	message_put(&b->w, type, LORAD_CRITICAL, payload, bytes);
}

static int parse(struct built *b, struct ipc_request **ret, struct diag *diag)
{
	*ret = NULL;
	diag->text[0] = 0;
	ck_assert(message_end(&b->w, LORAD_GENERATE, 7));
	return request_parse(ret, b->bytes, b->w.bytes, diag);
}

static void put_text(struct built *b)
{
	put(b, LORAD_ITEM_TEXT, "hello", 5);
}

static void put_i64(struct built *b, uint16_t type, int64_t value)
{
	put(b, type, &value, sizeof(value));
}

static void put_f64(struct built *b, uint16_t type, double value)
{
	put(b, type, &value, sizeof(value));
}

static void put_adapter(struct built *b, double scale, const char *name, size_t n)
{
	message_put_pair(&b->w, LORAD_ITEM_USE, LORAD_CRITICAL, &scale, sizeof(scale), name, n);
}

START_TEST(defaults)
{
	struct ipc_request *request;
	struct built b;
	struct diag diag;

	begin(&b);
	put_text(&b);
	ck_assert_int_eq(parse(&b, &request, &diag), 0);
	ck_assert_uint_eq(request->id, 7);
	ck_assert_int_eq(request->kind, IPC_GENERATE);
	ck_assert(request->has_text && !request->chat && !request->ignore_eos);
	ck_assert_str_eq(request->text, "hello");
	ck_assert_uint_eq(request->text_bytes, 5);
	ck_assert_int_eq(request->max_tokens, 128);
	ck_assert_int_eq(request->top_k, 0);
	ck_assert_double_eq(request->temperature, 0);
	ck_assert_double_eq(request->top_p, 1);
	ck_assert_double_eq(request->min_p, 0);
	ck_assert_double_eq(request->repetition_penalty, 1);
	ck_assert_int_eq(request->logprobs, -1);
	ck_assert_int_eq(request->first_token_ms, 0);
	ck_assert_int_eq(request->deadline_ms, 0);
	ck_assert_uint_eq(request->n_adapters + request->n_stops, 0);
	ipc_request_free(request);
}
END_TEST

START_TEST(every_item)
{
	const uint32_t tokens[] = { 1, 0, UINT32_MAX };
	struct ipc_request *request;
	struct built b;
	struct diag diag;

	begin(&b);
	put_i64(&b, LORAD_ITEM_MAX_TOKENS, -5);
	put_i64(&b, LORAD_ITEM_TOP_K, INT64_MIN);
	put_i64(&b, LORAD_ITEM_LOGPROBS, 64);
	put_i64(&b, LORAD_ITEM_SEED, -1);
	put_i64(&b, LORAD_ITEM_FIRST_TOKEN_MS, -7);
	put_i64(&b, LORAD_ITEM_DEADLINE_MS, INT64_MAX);
	put_f64(&b, LORAD_ITEM_TEMPERATURE, 0.25);
	put_f64(&b, LORAD_ITEM_TOP_P, 0.5);
	put_f64(&b, LORAD_ITEM_MIN_P, 0.75);
	put_f64(&b, LORAD_ITEM_REPETITION_PENALTY, 1.25);
	put(&b, LORAD_ITEM_CHAT, NULL, 0);
	put(&b, LORAD_ITEM_IGNORE_EOS, NULL, 0);
	put_adapter(&b, 0.5, "a", 1);
	put_adapter(&b, -2, "B.c_d-9", 7);
	put(&b, LORAD_ITEM_STOP, "\n\n", 2);
	put(&b, LORAD_ITEM_STOP, "\xf0\x9f\x90\xa7", 4);
	put(&b, LORAD_ITEM_TOKENS, tokens, sizeof(tokens));
	ck_assert_int_eq(parse(&b, &request, &diag), 0);
	ck_assert_int_eq(request->max_tokens, -5); /* values are not judged here */
	ck_assert_int_eq(request->top_k, INT64_MIN);
	ck_assert_int_eq(request->logprobs, 64);
	ck_assert_uint_eq(request->seed, UINT64_MAX);
	ck_assert_int_eq(request->first_token_ms, -7);
	ck_assert_int_eq(request->deadline_ms, INT64_MAX);
	ck_assert_double_eq(request->temperature, 0.25);
	ck_assert_double_eq(request->top_p, 0.5);
	ck_assert_double_eq(request->min_p, 0.75);
	ck_assert_double_eq(request->repetition_penalty, 1.25);
	ck_assert(request->chat && request->ignore_eos && !request->has_text);
	ck_assert_uint_eq(request->n_adapters, 2);
	ck_assert_str_eq(request->adapters[1].name, "B.c_d-9");
	ck_assert_float_eq(request->adapters[1].scale, -2);
	ck_assert_uint_eq(request->n_stops, 2);
	ck_assert_str_eq(request->stop[1], "\xf0\x9f\x90\xa7");
	ck_assert_uint_eq(request->n_tokens, 3);
	ck_assert_uint_eq(request->tokens[2], UINT32_MAX);
	ipc_request_free(request);
}
END_TEST

static void expect_refusal(struct built *b, int code, const char *words)
{
	struct ipc_request *request;
	struct diag diag;

	ck_assert_int_eq(parse(b, &request, &diag), code);
	ck_assert_ptr_null(request);
	ck_assert_msg(strstr(diag.text, words) != NULL, "\"%s\" is not in \"%s\"", words, diag.text);
}

START_TEST(malformed)
{
	static const char zeros[8192];
	struct built b;

	begin(&b);
	expect_refusal(&b, EINVAL, "neither text nor tokens");
	begin(&b), put_text(&b), put(&b, LORAD_ITEM_TOKENS, zeros, 4);
	expect_refusal(&b, EINVAL, "both text and tokens");
	begin(&b), put(&b, LORAD_ITEM_TOKENS, zeros, 5);
	expect_refusal(&b, EINVAL, "multiple of 4");
	begin(&b), put_text(&b), put_text(&b);
	expect_refusal(&b, EINVAL, "twice");
	begin(&b), put_text(&b), put(&b, LORAD_ITEM_SEED, zeros, 4);
	expect_refusal(&b, EINVAL, "not 8");
	begin(&b), put_text(&b), put(&b, LORAD_ITEM_TOP_P, zeros, 16);
	expect_refusal(&b, EINVAL, "not 8");
	begin(&b), put_text(&b), put(&b, LORAD_ITEM_DEADLINE_MS, zeros, 4);
	expect_refusal(&b, EINVAL, "not 8");
	begin(&b), put_text(&b), put_i64(&b, LORAD_ITEM_FIRST_TOKEN_MS, 1), put_i64(&b, LORAD_ITEM_FIRST_TOKEN_MS, 1);
	expect_refusal(&b, EINVAL, "twice");
	begin(&b), put_text(&b), put(&b, 999, zeros, 4);
	expect_refusal(&b, EOPNOTSUPP, "item 999");
	begin(&b), put_text(&b), put(&b, LORAD_ITEM_STOP, zeros, 0);
	expect_refusal(&b, EINVAL, "stop text");
	begin(&b), put_text(&b), put(&b, LORAD_ITEM_STOP, "a\0b", 3);
	expect_refusal(&b, EINVAL, "NUL");
	begin(&b), put_text(&b), put(&b, LORAD_ITEM_STOP, zeros, LORAD_STOP_BYTES_MAX + 1);
	expect_refusal(&b, EINVAL, "stop text");
	begin(&b), put_text(&b), put(&b, LORAD_ITEM_USE, zeros, 7);
	expect_refusal(&b, EINVAL, "adapter");
}
END_TEST

START_TEST(too_many)
{
	struct built b;

	begin(&b), put_text(&b);
	for (int i = 0; i < 9; ++i)
		put_adapter(&b, 1, "x", 1);
	expect_refusal(&b, EINVAL, "more than 8 adapters");
	begin(&b), put_text(&b);
	for (int i = 0; i < 17; ++i)
		put(&b, LORAD_ITEM_STOP, "x", 1);
	expect_refusal(&b, EINVAL, "more than 16 stop texts");
}
END_TEST

START_TEST(unknown_optional_items_are_skipped)
{
	struct ipc_request *request;
	struct built b;
	struct diag diag;

	begin(&b);
	message_put(&b.w, 999, 0, "?", 1);
	message_put(&b.w, 999, 0, "?", 1);
	put_text(&b);
	ck_assert_int_eq(parse(&b, &request, &diag), 0);
	ipc_request_free(request);
}
END_TEST

START_TEST(names)
{
	static const char *const bad[] = { "", ".a", "-a", "_a", "a/b", "a b", "a\n", "\xc3\xa9", "../x" };
	char longest[IPC_NAME_MAX + 2];
	struct ipc_request *request;
	struct built b;
	struct diag diag;

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); ++i) {
		begin(&b), put_text(&b), put_adapter(&b, 1, bad[i], strlen(bad[i]));
		expect_refusal(&b, EINVAL, "adapter name");
	}
	begin(&b), put_text(&b), put_adapter(&b, 1, "a\0b", 3);
	expect_refusal(&b, EINVAL, "adapter name");
	memset(longest, 'x', sizeof(longest));
	begin(&b), put_text(&b), put_adapter(&b, 1, longest, IPC_NAME_MAX + 1);
	expect_refusal(&b, EINVAL, "adapter name");
	begin(&b), put_text(&b), put_adapter(&b, 1, longest, IPC_NAME_MAX);
	ck_assert_int_eq(parse(&b, &request, &diag), 0);
	ck_assert_uint_eq(strlen(request->adapters[0].name), IPC_NAME_MAX);
	ipc_request_free(request);
}
END_TEST

START_TEST(utf8)
{
	static const struct {
		const char *text;
		bool good;
	} table[] = {
		{ "", true }, { "a", true }, { "\x7f", true }, { "\xc2\x80", true }, { "\xdf\xbf", true },
		{ "\xe0\xa0\x80", true }, { "\xed\x9f\xbf", true }, { "\xee\x80\x80", true }, { "\xf0\x90\x80\x80", true },
		{ "\xf4\x8f\xbf\xbf", true }, { "\x80", false }, { "\xbf", false }, { "\xc0\x80", false },
		{ "\xc1\xbf", false }, { "\xc2", false }, { "\xc2\x41", false }, { "\xe0\x9f\xbf", false },
		{ "\xe2\x82", false }, { "\xed\xa0\x80", false }, { "\xed\xbf\xbf", false }, { "\xf0\x8f\xbf\xbf", false },
		{ "\xf4\x90\x80\x80", false }, { "\xf5\x80\x80\x80", false }, { "\xff", false }, { "\xfe", false },
		{ "\xf0\x9f\x90", false }, { "ok\xf8\x88\x80\x80\x80", false },
	};
	struct ipc_request *request;
	struct built b;
	struct diag diag;

	for (size_t i = 0; i < sizeof(table) / sizeof(*table); ++i) {
		begin(&b), put(&b, LORAD_ITEM_TEXT, table[i].text, strlen(table[i].text));
		ck_assert_msg((parse(&b, &request, &diag) == 0) == table[i].good, "row %zu", i);
		ipc_request_free(request);
	}
	begin(&b), put(&b, LORAD_ITEM_TEXT, "a\0b", 3); /* NUL is a character; the length tells the end */
	ck_assert_int_eq(parse(&b, &request, &diag), 0);
	ck_assert_uint_eq(request->text_bytes, 3);
	ipc_request_free(request);
}
END_TEST

START_TEST(truncated_and_flipped)
{
	struct ipc_request *request;
	struct diag diag;
	struct built b;
	size_t whole;

	begin(&b);
	put_f64(&b, LORAD_ITEM_TEMPERATURE, 1);
	put_adapter(&b, 1, "style", 5);
	put(&b, LORAD_ITEM_STOP, "###", 3);
	put_text(&b);
	ck_assert_int_eq(parse(&b, &request, &diag), 0);
	ipc_request_free(request);
	whole = b.w.bytes;
	for (size_t bytes = sizeof(struct lorad_message); bytes < whole; ++bytes) {
		uint8_t *exact = malloc(bytes);

		memcpy(exact, b.bytes, bytes);
		request = NULL;
		ck_assert_int_gt(request_parse(&request, exact, bytes, &diag), 0);
		ck_assert_ptr_null(request);
		(void)request_check_bare(exact, bytes, &diag);
		free(exact);
	}
	for (size_t bit = 8 * sizeof(struct lorad_message); bit < 8 * whole; ++bit) {
		uint8_t *flipped = malloc(whole);

		memcpy(flipped, b.bytes, whole);
		flipped[bit / 8] ^= (uint8_t)(1u << bit % 8);
		request = NULL;
		if (request_parse(&request, flipped, whole, &diag) == 0)
			ck_assert_ptr_nonnull(request);
		ipc_request_free(request);
		free(flipped);
	}
}
END_TEST

START_TEST(noise)
{
	struct ipc_request *request;
	struct diag diag;

	srand(1);
	for (int round = 0; round < 20000; ++round) {
		size_t bytes = sizeof(struct lorad_message) + (size_t)rand() % 200;
		uint8_t *message = malloc(bytes);

		for (size_t i = 0; i < bytes; ++i)
			message[i] = (uint8_t)(rand() % (round % 2 ? 256 : 12));
		request = NULL;
		if (request_parse(&request, message, bytes, &diag) == 0)
			ck_assert(request->has_text != (request->tokens != NULL));
		ipc_request_free(request);
		free(message);
	}
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("ipc-request");
	TCase *tcase = tcase_create("request");

	tcase_add_test(tcase, defaults);
	tcase_add_test(tcase, every_item);
	tcase_add_test(tcase, malformed);
	tcase_add_test(tcase, too_many);
	tcase_add_test(tcase, unknown_optional_items_are_skipped);
	tcase_add_test(tcase, names);
	tcase_add_test(tcase, utf8);
	tcase_add_test(tcase, truncated_and_flipped);
	tcase_add_test(tcase, noise);
	suite_add_tcase(suite, tcase);
	return run_suite(suite);
}
