/* SPDX-License-Identifier: MIT */
/* The ring's algorithm and the message codec, each in private memory: wrap, full, violations, truncations. */
#include "libclient/ring.h"

#include <check.h>
#include <stdlib.h>

#include "libclient/message.h"
#include "tests/lib/run-suite.h"

#define SLOTS 8u

static uint8_t slots[SLOTS * LORAD_SLOT_BYTES];
static lorad_word head, tail;
static struct ring_writer w;
static struct ring_reader r;

static void begin_at(uint32_t start)
{
	word_hint(&head, start);
	word_hint(&tail, start);
	w = (struct ring_writer){ &tail, &head, SLOTS, start, start };
	r = (struct ring_reader){ &tail, &head, SLOTS, start, start };
}

static void check_cycle(uint32_t start)
{
	uint32_t n, sent = 0, taken = 0, value;
	uint8_t in[3 * LORAD_SLOT_BYTES], out[3 * LORAD_SLOT_BYTES];

	begin_at(start);
	for (uint32_t round = 0; round < 1000; ++round) {
		uint32_t size = 1 + round % 3;

		while (ring_reserve(&w, size) == RING_OK) {
			memset(in, (int)(sent & 0xff), sizeof(in));
			memcpy(in, &sent, sizeof(sent));
			ring_copy_in(slots, SLOTS, w.at, in, (size_t)size * LORAD_SLOT_BYTES);
			ring_publish(&w, size);
			++sent;
		}
		ck_assert_int_eq(ring_peek(&r, &n), RING_OK);
		ck_assert_uint_gt(n, SLOTS - size);
		ck_assert_uint_eq(n % size, 0);
		for (; n; n -= size) {
			ring_copy_out(out, slots, SLOTS, r.at, (size_t)size * LORAD_SLOT_BYTES);
			memcpy(&value, out, sizeof(value));
			ck_assert_uint_eq(value, taken);
			ck_assert_uint_eq(out[size * LORAD_SLOT_BYTES - 1], taken & 0xff);
			ring_release(&r, size);
			++taken;
		}
	}
	ck_assert_uint_eq(sent, taken);
}

START_TEST(cycles_through_both_wraps)
{
	check_cycle(0);
	check_cycle(LORAD_RING_START);
	check_cycle(UINT32_MAX - 2);
	check_cycle(UINT32_C(0x80000000) - 5);
}
END_TEST

START_TEST(full_to_the_last_slot)
{
	uint32_t n;

	begin_at(UINT32_MAX - 3);
	ck_assert_int_eq(ring_reserve(&w, SLOTS), RING_OK);
	ck_assert_int_eq(ring_reserve(&w, SLOTS + 1), RING_E_FULL);
	ring_publish(&w, SLOTS);
	ck_assert_int_eq(ring_reserve(&w, 1), RING_E_FULL);
	ck_assert_int_eq(ring_reserve(&w, 0), RING_OK);
	ck_assert_int_eq(ring_peek(&r, &n), RING_OK);
	ck_assert_uint_eq(n, SLOTS);
	ring_release(&r, 1);
	ck_assert_int_eq(ring_reserve(&w, 1), RING_OK);
	ck_assert_int_eq(ring_reserve(&w, 2), RING_E_FULL);
}
END_TEST

START_TEST(impossible_indices)
{
	uint32_t n = 99;

	/* the reader: a tail beyond the ring, or behind what was seen */
	begin_at(1000);
	word_hint(&tail, 1000 + SLOTS + 1);
	ck_assert_int_eq(ring_peek(&r, &n), RING_E_VIOLATION);
	word_hint(&tail, 999);
	ck_assert_int_eq(ring_peek(&r, &n), RING_E_VIOLATION);
	word_hint(&tail, 1005);
	ck_assert_int_eq(ring_peek(&r, &n), RING_OK);
	word_hint(&tail, 1004);
	ck_assert_int_eq(ring_peek(&r, &n), RING_E_VIOLATION);
	ck_assert_uint_eq(n, 5);
	/* the reader does not care what its own shared word says */
	word_hint(&tail, 1005);
	word_hint(&head, 77777);
	ck_assert_int_eq(ring_peek(&r, &n), RING_OK);
	ring_release(&r, 2);
	ck_assert_uint_eq(word_glance(&head), 1002);

	/* the writer: a head beyond what was written, or behind what was seen */
	begin_at(1000);
	ring_publish(&w, SLOTS);
	word_hint(&head, 1000 + SLOTS + 1);
	ck_assert_int_eq(ring_reserve(&w, 1), RING_E_VIOLATION);
	word_hint(&head, 999);
	ck_assert_int_eq(ring_reserve(&w, 1), RING_E_VIOLATION);
	word_hint(&head, 1004);
	ck_assert_int_eq(ring_reserve(&w, 4), RING_OK);
	ring_publish(&w, 4);
	word_hint(&head, 1003);
	ck_assert_int_eq(ring_reserve(&w, 1), RING_E_VIOLATION);
	word_hint(&head, 1012);
	ck_assert_int_eq(ring_reserve(&w, SLOTS), RING_OK);
}
END_TEST

START_TEST(slots_of_bytes)
{
	ck_assert_uint_eq(ring_slots(1), 1);
	ck_assert_uint_eq(ring_slots(64), 1);
	ck_assert_uint_eq(ring_slots(65), 2);
	ck_assert_uint_eq(ring_slots(UINT32_MAX), UINT32_C(1) << 26);
}
END_TEST

/* --- messages ----------------------------------------------------------------------------------------------------- */

static size_t build(uint8_t *buffer, size_t room)
{
	struct message_writer m;
	uint32_t tokens[3] = { 1, 2, 3 };

	message_begin(&m, buffer, room);
	message_put(&m, LORAD_ITEM_CHAT, 0, NULL, 0);
	message_put(&m, LORAD_ITEM_TOKENS, LORAD_CRITICAL, tokens, sizeof(tokens));
	message_put_pair(&m, LORAD_ITEM_USE, 0, &(struct lorad_use){ 2.0 }, 8, "name", 4);
	return message_end(&m, LORAD_GENERATE, 42) ? m.bytes : 0;
}

START_TEST(message_round_trip)
{
	_Alignas(8) uint8_t buffer[256];
	size_t bytes = build(buffer, sizeof(buffer));
	struct message_reader reader;
	struct message_item item;
	struct lorad_message at_head;

	ck_assert_uint_eq(bytes, 16 + 8 + 8 + 16 + 8 + 16);
	memcpy(&at_head, buffer, sizeof(at_head));
	ck_assert_uint_eq(at_head.bytes, bytes);
	ck_assert_uint_eq(at_head.id, 42);
	message_open(&reader, buffer, bytes);
	ck_assert_int_eq(message_next(&reader, &item), MESSAGE_ITEM);
	ck_assert_uint_eq(item.type, LORAD_ITEM_CHAT);
	ck_assert_uint_eq(item.bytes, 0);
	ck_assert_int_eq(message_next(&reader, &item), MESSAGE_ITEM);
	ck_assert_uint_eq(item.bytes, 12);
	ck_assert_uint_eq(item.flags, LORAD_CRITICAL);
	ck_assert_uint_eq(item.payload[8], 3);
	ck_assert_int_eq(message_next(&reader, &item), MESSAGE_ITEM);
	ck_assert_int_eq(memcmp(item.payload + 8, "name", 4), 0);
	ck_assert_int_eq(message_next(&reader, &item), MESSAGE_END);
}
END_TEST

START_TEST(message_that_does_not_fit)
{
	_Alignas(8) uint8_t buffer[256];
	size_t whole = build(buffer, sizeof(buffer));

	for (size_t room = 16; room < whole; ++room) {
		memset(buffer, 0xee, sizeof(buffer));
		ck_assert_uint_eq(build(buffer, room), 0);
		for (size_t i = room; i < sizeof(buffer); ++i)
			ck_assert_uint_eq(buffer[i], 0xee);
	}
	ck_assert_uint_eq(build(buffer, whole), whole);
}
END_TEST

START_TEST(message_cut_short)
{
	_Alignas(8) uint8_t buffer[256];
	size_t whole = build(buffer, sizeof(buffer));
	struct message_reader reader;
	struct message_item item;

	for (size_t bytes = 16; bytes < whole; ++bytes) {
		uint8_t *exact = malloc(bytes); /* so that a read beyond shows */
		enum message_step step;

		memcpy(exact, buffer, bytes);
		message_open(&reader, exact, bytes);
		while ((step = message_next(&reader, &item)) == MESSAGE_ITEM)
			continue;
		ck_assert_int_eq(step, bytes == 16 || bytes == 24 || bytes == 48 ? MESSAGE_END : MESSAGE_MALFORMED);
		free(exact);
	}
}
END_TEST

START_TEST(item_lengths_that_wrap)
{
	static const uint32_t lengths[] = { UINT32_MAX, UINT32_MAX - 7, UINT32_MAX - 8, 0x80000000, 25, 17 };
	_Alignas(8) uint8_t buffer[40];
	struct message_reader reader;
	struct message_item item;

	for (size_t i = 0; i < sizeof(lengths) / sizeof(*lengths); ++i) {
		struct lorad_item bad = { lengths[i], LORAD_ITEM_TEXT, 0 };

		memset(buffer, 0, sizeof(buffer));
		memcpy(buffer + 16, &bad, sizeof(bad));
		message_open(&reader, buffer, sizeof(buffer));
		ck_assert_int_eq(message_next(&reader, &item), MESSAGE_MALFORMED);
	}
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("libclient-ring");
	TCase *tcase = tcase_create("ring");

	tcase_add_test(tcase, cycles_through_both_wraps);
	tcase_add_test(tcase, full_to_the_last_slot);
	tcase_add_test(tcase, impossible_indices);
	tcase_add_test(tcase, slots_of_bytes);
	tcase_add_test(tcase, message_round_trip);
	tcase_add_test(tcase, message_that_does_not_fit);
	tcase_add_test(tcase, message_cut_short);
	tcase_add_test(tcase, item_lengths_that_wrap);
	suite_add_tcase(suite, tcase);
	return run_suite(suite);
}
