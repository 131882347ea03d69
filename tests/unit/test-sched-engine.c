/* SPDX-License-Identifier: MIT */
/*
 * Description: the engine on stand-ins: answers, unlike adapters in a step, page-ins, preemption, slow clients, ends.
 *
 * The stand-in model's tokens depend on everything that must not get lost (sched-fakes.c), so most cases compare the
 * answer of a request among difficulties with its answer alone.
 */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/sched/admit.h"
#include "daemon/sched/engine.h"
#include "libclient/loraclient.h"
#include "tests/unit/sched-fakes.h"
#include "tests/lib/run-suite.h"

#define LONG 200

static struct engine engine;
static struct charges charges;
static struct ipc_session *session;
static uint64_t now;

static void start(uint32_t rows, uint32_t seqs)
{
	const struct sched_options options = { .kv = fakes.kv, .limits = { .rows = rows, .seqs = seqs } };

	ck_assert_int_eq(engine_init(&engine, &options), 0);
}

static void setup(void)
{
	fakes_reset();
	session = calloc(1, sizeof(*session));
	session->room = FAKE_SENT_MAX;
	now = 1000000;
	ck_assert_int_eq(charges_init(&charges), 0);
	start(16, 8);
}

/* While nobody runs. */
static void memory(unsigned blocks, unsigned cache_blocks)
{
	fakes_memory(blocks, cache_blocks);
	engine.options.kv = fakes.kv;
}

/* Nothing may be left of any request. */
static void teardown(void)
{
	ck_assert(engine_empty(&engine));
	ck_assert(list_empty(&engine.unsent));
	engine_deinit(&engine);
	charges_deinit(&charges);
	ck_assert_uint_eq(session->refs, 0);
	ck_assert_uint_eq(fakes.requests, 0);
	fakes_end();
	for (int i = 0; i < 8; ++i) {
		ck_assert_uint_eq(fakes.adapter[i].refs, 0);
		ck_assert_uint_eq(fakes.adapter[i].holds, 0);
	}
	free(session);
}

static int admit_one(struct ipc_request *ipc, struct request **ret, struct diag *diag)
{
	const struct admit admit = { .kv = fakes.kv, .charges = &charges };

	return admit_request(&admit, ipc, ret, diag);
}

static void add(struct ipc_request *ipc)
{
	struct request *request;
	struct diag diag = { 0 };

	ck_assert_msg(admit_one(ipc, &request, &diag) == 0, "%s", diag.text);
	engine_add(&engine, request);
}

static void turns(unsigned n)
{
	for (unsigned i = 0; i < n; ++i)
		(void)engine_turn(&engine, now += 1000000);
}

static void run_out(void)
{
	for (unsigned i = 0; i < 10000 && !engine_empty(&engine); ++i)
		(void)engine_turn(&engine, now += 1000000);
	ck_assert(engine_empty(&engine));
}

/* The text of one request alone on a fresh engine; session, engine and counters are as before. */
static void alone(struct ipc_request *ipc, char *text)
{
	uint64_t id = ipc->id;

	run_out();
	session->n_sent = 0;
	add(ipc);
	run_out();
	fake_text(session, id, text);
	session->n_sent = 0;
	engine.stats = (struct sched_stats){ 0 };
}

static const struct ipc_done *ends(uint64_t id, enum lc_finish finish, unsigned tokens)
{
	const struct ipc_done *done = fake_done(session, id);

	ck_assert_ptr_nonnull(done);
	ck_assert_uint_eq(done->finish, finish);
	ck_assert_uint_eq(done->generated_tokens, tokens);
	ck_assert_uint_eq(fake_count(session, id, 't'), tokens);
	ck_assert_uint_eq(fake_count(session, id, 'd') + fake_count(session, id, 'e'), 1);
	return done;
}

/* ---- answers ---- */

START_TEST(one_answer)
{
	char text[LONG];

	add(fake_request(session, 1, "hello", 12));
	run_out();
	ck_assert_uint_eq(ends(1, LC_FINISH_LENGTH, 12)->prompt_tokens, 5);
	ck_assert_uint_eq(fake_text(session, 1, text), 12);
	ck_assert_uint_eq(session->sent[session->n_sent - 1].kind, 'd');
	ck_assert_uint_gt(session->flushes, 0);
	ck_assert_uint_eq(engine.stats.generated_tokens, 12);
	ck_assert_uint_eq(engine.stats.prompt_tokens, 5);
}
END_TEST

/* Chunked or whole, beside others or alone: the same. */
START_TEST(answers_depend_on_nobody_else)
{
	char prompt[101], wanted[3][LONG], text[LONG];

	memset(prompt, 'p', 100);
	prompt[100] = '\0';
	alone(fake_request(session, 1, "a", 20), wanted[0]);
	alone(fake_request(session, 2, prompt, 20), wanted[1]);
	alone(fake_request(session, 3, "third", 20), wanted[2]);
	add(fake_request(session, 1, "a", 20));
	turns(3);
	add(fake_request(session, 2, prompt, 20));
	add(fake_request(session, 3, "third", 20));
	run_out();
	for (uint64_t id = 1; id <= 3; ++id) {
		fake_text(session, id, text);
		ck_assert_str_eq(text, wanted[id - 1]);
	}
}
END_TEST

static int draw_end(uint32_t hash)
{
	(void)hash;
	return 0;
}

START_TEST(stop_id_is_a_token_without_text)
{
	char text[LONG];

	fakes.draw = draw_end;
	add(fake_request(session, 1, "x", 12));
	run_out();
	ends(1, LC_FINISH_STOP, 1);
	ck_assert_uint_eq(fake_text(session, 1, text), 0);
}
END_TEST

START_TEST(stop_id_ignored)
{
	struct ipc_request *ipc = fake_request(session, 1, "x", 5);

	fakes.draw = draw_end;
	ipc->ignore_eos = true;
	add(ipc);
	run_out();
	ends(1, LC_FINISH_LENGTH, 5);
}
END_TEST

START_TEST(stop_string_across_tokens)
{
	struct ipc_request *ipc = fake_request(session, 1, "x", 30);
	char whole[LONG], text[LONG];

	alone(fake_request(session, 1, "x", 30), whole);
	ipc->stop[ipc->n_stops++] = strndup(whole + 7, 3);
	add(ipc);
	run_out();
	ends(1, LC_FINISH_STOP, 10);
	ck_assert_uint_eq(fake_text(session, 1, text), 7);
	ck_assert_int_eq(strncmp(text, whole, 7), 0);
}
END_TEST

START_TEST(half_a_stop_string_is_text_in_the_end)
{
	struct ipc_request *ipc = fake_request(session, 1, "x", 10);
	char whole[LONG], text[LONG];

	alone(fake_request(session, 1, "x", 10), whole);
	ck_assert_int_gt(asprintf(&ipc->stop[0], "%s!", whole + 6), 0);
	ipc->n_stops = 1;
	add(ipc);
	run_out();
	ends(1, LC_FINISH_LENGTH, 10);
	fake_text(session, 1, text);
	ck_assert_str_eq(text, whole);
}
END_TEST

static void check_scores(uint64_t id, const char *prompt)
{
	unsigned n = 0;

	for (unsigned i = 0; i < session->n_sent; ++i) {
		if (session->sent[i].kind != 's')
			continue;
		ck_assert_uint_eq(session->sent[i].token, (uint8_t)prompt[n]);
		ck_assert_int_eq(isnan(session->sent[i].logprob) != 0, n == 0);
		n++;
	}
	ck_assert_uint_eq(n, strlen(prompt));
	ck_assert_ptr_nonnull(fake_done(session, id));
}

START_TEST(scores_of_every_length)
{
	for (unsigned length = 1; length <= 150; length += length < 20 ? 1 : 13) {
		char prompt[LONG] = "";
		struct ipc_request *ipc;

		for (unsigned i = 0; i < length; ++i)
			prompt[i] = (char)('A' + i % 50);
		session->n_sent = 0;
		ipc = fake_request(session, 1, prompt, 0);
		ipc->kind = IPC_SCORE;
		add(ipc);
		run_out();
		check_scores(1, prompt);
	}
}
END_TEST

/* ---- adapters ---- */

static struct ipc_request *with_adapter(uint64_t id, unsigned number, float scale)
{
	struct ipc_request *ipc = fake_request(session, id, "same prompt", 10);

	fake_adapter(ipc, number, scale);
	return ipc;
}

START_TEST(unlike_adapters_share_a_step)
{
	char wanted[4][LONG], text[LONG];

	for (unsigned i = 0; i < 4; ++i)
		alone(with_adapter(i, i, 1), wanted[i]);
	for (unsigned i = 0; i < 4; ++i)
		add(with_adapter(i, i, 1));
	run_out();
	ck_assert_uint_eq(engine.stats.max_adapters, 4);
	for (unsigned i = 0; i < 4; ++i) {
		fake_text(session, i, text);
		ck_assert_str_eq(text, wanted[i]);
		ck_assert_int_eq(fake_done(session, i)->n_adapters, 1);
	}
	ck_assert_str_ne(wanted[0], wanted[1]);
}
END_TEST

START_TEST(page_in_lets_others_pass)
{
	fakes.adapter[1].result = CACHE_E_PENDING;
	add(with_adapter(1, 1, 1));
	add(with_adapter(2, 2, 1));
	turns(12);
	ck_assert_ptr_nonnull(fake_done(session, 2));
	ck_assert_uint_eq(fake_count(session, 1, 't'), 0);
	fakes.adapter[1].result = CACHE_OK;
	run_out();
	ck_assert_double_gt(ends(1, LC_FINISH_LENGTH, 10)->page_in_ms, 0);
	ck_assert_double_le(fake_done(session, 2)->page_in_ms, 0);
}
END_TEST

START_TEST(all_adapters_or_none_are_held)
{
	struct ipc_request *ipc = with_adapter(1, 1, 1);

	fake_adapter(ipc, 2, 0.5F);
	fakes.adapter[2].result = CACHE_E_PENDING;
	add(ipc);
	turns(3);
	ck_assert_uint_eq(fakes.adapter[1].holds, 0);
	fakes.adapter[2].result = CACHE_OK;
	run_out();
	ends(1, LC_FINISH_LENGTH, 10);
}
END_TEST

START_TEST(failed_page_in_fails_its_request_alone)
{
	fakes.adapter[1].result = CACHE_E_FAILED;
	add(with_adapter(1, 1, 1));
	add(with_adapter(2, 2, 1));
	run_out();
	ck_assert_uint_eq(fake_count(session, 1, 'e'), 1);
	ck_assert_ptr_nonnull(strstr(session->sent[0].text, "\"a1\": the reason"));
	ck_assert_int_eq(session->sent[0].code, EIO);
	ends(2, LC_FINISH_LENGTH, 10);
}
END_TEST

START_TEST(no_room_waits_then_bars_others)
{
	fakes.adapter[1].result = CACHE_E_NO_ROOM;
	add(fake_request(session, 0, "keeps the engine busy", 100));
	add(with_adapter(1, 1, 1));
	turns(1);
	add(with_adapter(2, 2, 1));
	turns(2);
	ck_assert_uint_gt(fake_count(session, 2, 't'), 0); /* passed */
	now += ENGINE_NO_ROOM_NS;
	turns(1);
	add(with_adapter(3, 3, 1));
	turns(5);
	ck_assert_uint_eq(fake_count(session, 3, 't'), 0); /* barred */
	fakes.adapter[1].result = CACHE_OK;
	run_out();
	ends(1, LC_FINISH_LENGTH, 10);
	ends(3, LC_FINISH_LENGTH, 10);
}
END_TEST

START_TEST(no_room_for_ever_is_an_error)
{
	fakes.adapter[1].result = CACHE_E_NO_ROOM;
	fakes.loading = 1;
	add(with_adapter(1, 1, 1));
	turns(3);
	ck_assert_uint_eq(session->n_sent, 0);
	fakes.loading = 0;
	turns(1);
	ck_assert_uint_eq(fake_count(session, 1, 'e'), 1);
}
END_TEST

/* ---- memory ---- */

START_TEST(preempted_requests_lose_nothing)
{
	char wanted[5][LONG], text[LONG];

	for (unsigned i = 0; i < 5; ++i)
		alone(with_adapter(i, i, 1), wanted[i]);
	memory(6, 0); /* five requests come to two blocks each */
	for (unsigned i = 0; i < 5; ++i)
		add(with_adapter(i, i, 1));
	run_out();
	ck_assert_uint_gt(engine.stats.preempted, 0);
	for (unsigned i = 0; i < 5; ++i) {
		ends(i, LC_FINISH_LENGTH, 10);
		fake_text(session, i, text);
		ck_assert_str_eq(text, wanted[i]);
	}
}
END_TEST

START_TEST(preempted_scores_are_sent_once)
{
	struct ipc_request *ipc = fake_request(session, 9, "a prompt that takes several chunks to get through", 0);

	engine_deinit(&engine);
	start(4, 4);
	memory(5, 0);
	add(fake_request(session, 1, "old", 30));
	ipc->kind = IPC_SCORE;
	add(ipc);
	run_out();
	check_scores(9, "a prompt that takes several chunks to get through");
}
END_TEST

START_TEST(unused_adapters_go_before_requests)
{
	memory(1, 20);
	add(fake_request(session, 1, "12345678", 30));
	run_out();
	ends(1, LC_FINISH_LENGTH, 30);
	ck_assert_uint_eq(engine.stats.preempted, 0);
}
END_TEST

/* It has to wait for the one that runs in any case, so adapters that were read ahead stay. */
START_TEST(nobody_yields_in_vain)
{
	memory(2, 2);
	add(fake_request(session, 1, "12345678", 7));
	turns(1);
	add(fake_request(session, 2, "a prompt that takes more than two blocks, and waits", 2));
	turns(5);
	ck_assert_uint_eq(fakes.cache_blocks, 2);
	run_out();
	ends(1, LC_FINISH_LENGTH, 7);
	ends(2, LC_FINISH_LENGTH, 2);
}
END_TEST

START_TEST(alone_without_memory_is_an_error)
{
	add(fake_request(session, 1, "12345678", 30));
	memory(2, 0);
	run_out();
	ck_assert_uint_eq(fake_count(session, 1, 'e'), 1);
}
END_TEST

/* ---- prompts that begin alike ---- */

static const char alike[] = "A beginning of some length that many requests have in common, and then ";

static void add_alike(uint64_t id, uint32_t uid, float scale)
{
	char prompt[LONG];
	struct ipc_request *ipc;

	(void)snprintf(prompt, sizeof(prompt), "%sno. %u", alike, (unsigned)id % 8);
	ipc = fake_request(session, id, prompt, 10);
	ipc->uid = uid;
	fake_adapter(ipc, 2, scale);
	add(ipc);
}

START_TEST(a_common_beginning_is_computed_once)
{
	uint32_t n = sizeof(alike) - 1 + 5, hits = 0;
	char wanted[8][LONG], text[LONG];

	for (uint64_t id = 0; id < 8; ++id) {
		memory(4096, 0); /* forgets */
		add_alike(id, 1, 1);
		run_out();
		fake_text(session, id, wanted[id]);
		ck_assert_uint_eq(ends(id, LC_FINISH_LENGTH, 10)->cached_tokens, 0);
	}
	memory(4096, 0);
	session->n_sent = 0;
	engine.stats = (struct sched_stats){ 0 };
	for (uint64_t id = 0; id < 8; ++id)
		add_alike(id, 1, 1);
	turns(2); /* of 16 rows each: the others wait for the first, and compute nothing */
	ck_assert_uint_eq(engine.n_running, 1);
	run_out();
	for (uint64_t id = 0; id < 8; ++id) {
		fake_text(session, id, text);
		ck_assert_str_eq(text, wanted[id]);
		hits += ends(id, LC_FINISH_LENGTH, 10)->cached_tokens;
		ck_assert_uint_ge(ends(id, LC_FINISH_LENGTH, 10)->cached_tokens, id ? 64 : 0);
	}
	ck_assert_uint_eq(engine.stats.prompt_tokens, 8 * n - hits);
	ck_assert_uint_eq(engine.stats.prefix_hit_tokens, hits);
	session->n_sent = 0;
	add_alike(9, 1, 1); /* as no. 1, and found to the last token but one */
	run_out();
	ck_assert_uint_eq(ends(9, LC_FINISH_LENGTH, 10)->cached_tokens, n - 1);
}
END_TEST

START_TEST(who_may_share)
{
	add_alike(1, 1, 1);
	run_out();
	add_alike(2, 1, 0.5F); /* another scale: other keys and values */
	run_out();
	ck_assert_uint_eq(ends(2, LC_FINISH_LENGTH, 10)->cached_tokens, 0);
	add_alike(3, 2, 1);    /* another user could learn by the clock what others ask */
	run_out();
	ck_assert_uint_eq(ends(3, LC_FINISH_LENGTH, 10)->cached_tokens, 0);
	engine.options.prefix = SCHED_PREFIX_SHARED;
	add_alike(4, 1, 1);
	run_out();
	add_alike(5, 2, 1);
	run_out();
	ck_assert_uint_ge(ends(5, LC_FINISH_LENGTH, 10)->cached_tokens, 64);
	engine.options.prefix = SCHED_PREFIX_OFF;
	add_alike(6, 1, 1);
	run_out();
	ck_assert_uint_eq(ends(6, LC_FINISH_LENGTH, 10)->cached_tokens, 0);
}
END_TEST

/* The one the others wait for is cancelled: the next computes it. */
START_TEST(nobody_waits_for_one_who_left)
{
	for (uint64_t id = 0; id < 3; ++id)
		add_alike(id, 1, 1);
	turns(2);
	engine_cancel(&engine, session, 0, now);
	run_out();
	for (uint64_t id = 1; id < 3; ++id)
		ends(id, LC_FINISH_LENGTH, 10);
}
END_TEST

/* ---- clients ---- */

START_TEST(slow_client_loses_nothing)
{
	char wanted[LONG], text[LONG];
	struct ipc_session *quick = calloc(1, sizeof(*quick));

	quick->room = FAKE_SENT_MAX;
	alone(fake_request(session, 1, "slow", 20), wanted);
	session->room = 3;
	add(fake_request(session, 1, "slow", 20));
	add(fake_request(quick, 2, "quick", 20));
	turns(40);
	ck_assert_uint_eq(fake_count(session, 1, 't'), 3);
	ck_assert_ptr_nonnull(fake_done(quick, 2));
	while (!fake_done(session, 1)) {
		session->room = 2;
		turns(4);
	}
	ends(1, LC_FINISH_LENGTH, 20);
	fake_text(session, 1, text);
	ck_assert_str_eq(text, wanted);
	free(quick);
}
END_TEST

START_TEST(client_that_never_reads_is_cancelled)
{
	struct ipc_request *ipc = fake_request(session, 2, "score that is computed all the same", 0);

	session->room = 0;
	add(fake_request(session, 1, "stuck", 20));
	ipc->kind = IPC_SCORE;
	add(ipc);
	turns(20);
	ck_assert_uint_eq(session->n_sent, 0);
	now += ENGINE_STUCK_NS;
	turns(2);
	ck_assert_uint_eq(fake_done(session, 1)->finish, LC_FINISH_CANCELLED);
	ck_assert_uint_eq(fake_done(session, 2)->finish, LC_FINISH_CANCELLED);
}
END_TEST

START_TEST(cancel_in_any_place)
{
	fakes.adapter[1].result = CACHE_E_PENDING;
	add(fake_request(session, 1, "running", 50));
	add(with_adapter(2, 1, 1));
	turns(5);
	engine_cancel(&engine, session, 1, now);
	engine_cancel(&engine, session, 2, now);
	engine_cancel(&engine, session, 3, now);
	ck_assert(engine_empty(&engine));
	ck_assert_uint_eq(fake_done(session, 1)->finish, LC_FINISH_CANCELLED);
	ck_assert_uint_eq(fake_done(session, 2)->finish, LC_FINISH_CANCELLED);
	ck_assert_ptr_null(fake_done(session, 3));
	engine_flush(&engine);
}
END_TEST

START_TEST(closed_client_is_told_nothing)
{
	session->room = 2;
	add(fake_request(session, 1, "stuck and running", 50));
	add(fake_request(session, 2, "also", 50));
	turns(6);
	engine_close(&engine, session);
	ck_assert(engine_empty(&engine));
	ck_assert_ptr_null(fake_done(session, 1));
}
END_TEST

START_TEST(failed_step_fails_its_requests)
{
	add(fake_request(session, 1, "one", 50));
	turns(2);
	fakes.step_result = -EIO;
	turns(1);
	ck_assert_uint_eq(fake_count(session, 1, 'e'), 1);
	ck_assert(engine_empty(&engine));
}
END_TEST

static unsigned lost;

static void on_lost(void *userdata, const struct kern_failure *why)
{
	(void)userdata;
	ck_assert_int_eq(why->code, 700);
	++lost;
}

/* A device that failed takes all requests with it, those that wait too, and whoever comes later; it is told once. */
START_TEST(lost_device_fails_everything)
{
	lost = 0;
	engine.options.device_lost = on_lost;
	add(fake_request(session, 1, "one", 50));
	turns(2);
	fakes.adapter[3].result = CACHE_E_PENDING;
	add(with_adapter(2, 3, 1));
	fakes.step_result = -EIO;
	fakes.failure = (struct kern_failure){ .code = 700, .text = "attention: cudaErrorIllegalAddress" };
	turns(1);
	ck_assert_uint_eq(fake_count(session, 1, 'e'), 1);
	ck_assert_uint_eq(fake_count(session, 2, 'e'), 1);
	ck_assert_uint_eq(lost, 1);
	fakes.step_result = 0;
	add(fake_request(session, 3, "late", 50));
	turns(2);
	ck_assert_uint_eq(fake_count(session, 3, 'e'), 1);
	ck_assert_uint_eq(fake_count(session, 3, 't'), 0);
	ck_assert_uint_eq(lost, 1);
	ck_assert(engine_empty(&engine));
}
END_TEST

START_TEST(more_requests_than_places)
{
	engine_deinit(&engine);
	start(4, 2);
	for (unsigned i = 0; i < 20; ++i)
		add(with_adapter(i, i % 8, 1));
	turns(4);
	ck_assert_uint_eq(engine.n_running, 2);
	ck_assert_uint_gt(fakes.adapter[7].asked, 0); /* fetched ahead */
	ck_assert_uint_eq(fakes.adapter[7].holds, 0);
	run_out();
	for (unsigned i = 0; i < 20; ++i)
		ends(i, LC_FINISH_LENGTH, 10);
}
END_TEST

/* ---- admission ---- */

static void refuse(struct ipc_request *ipc, int code, const char *word)
{
	struct request *request = NULL;
	struct diag diag = { 0 };

	ck_assert_int_eq(admit_one(ipc, &request, &diag), code);
	ck_assert_msg(strstr(diag.text, word), "\"%s\" does not name %s", diag.text, word);
	ck_assert_ptr_null(request);
	ipc_request_free(ipc);
}

#define REFUSE(code, word, ...)                                             \
	do {                                                                \
		struct ipc_request *ipc = fake_request(session, 1, "x", 5); \
		__VA_ARGS__;                                                \
		refuse(ipc, code, word);                                    \
	} while (0)

START_TEST(values_are_judged)
{
	REFUSE(EINVAL, "empty", ipc->n_tokens = 0);
	REFUSE(EINVAL, "n 0", ipc->max_tokens = 0);
	REFUSE(EINVAL, "n -9223372036854775808", ipc->max_tokens = INT64_MIN);
	REFUSE(EINVAL, "n 9223372036854775807", ipc->max_tokens = INT64_MAX);
	REFUSE(EINVAL, "n 4096", ipc->max_tokens = FAKE_CONTEXT);
	REFUSE(EINVAL, "temperature", ipc->temperature = -0.1);
	REFUSE(EINVAL, "temperature", ipc->temperature = NAN);
	REFUSE(EINVAL, "temperature", ipc->temperature = INFINITY);
	REFUSE(EINVAL, "top-p", ipc->top_p = 0);
	REFUSE(EINVAL, "top-p", ipc->top_p = 1.001);
	REFUSE(EINVAL, "top-p", ipc->top_p = NAN);
	REFUSE(EINVAL, "top-k", ipc->top_k = -1);
	REFUSE(EINVAL, "min-p", ipc->min_p = -0.1);
	REFUSE(EINVAL, "min-p", ipc->min_p = 1.1);
	REFUSE(EINVAL, "repetition-penalty", ipc->repetition_penalty = 0);
	REFUSE(EINVAL, "first-token-ms -1", ipc->first_token_ms = -1);
	REFUSE(EINVAL, "first-token-ms 604800001", ipc->first_token_ms = 604800001);
	REFUSE(EINVAL, "deadline-ms -9223372036854775808", ipc->deadline_ms = INT64_MIN);
	REFUSE(EINVAL, "deadline-ms 604800001", ipc->deadline_ms = 604800001);
	REFUSE(EINVAL, "logprobs", ipc->logprobs = 65);
	REFUSE(EINVAL, "logprobs", ipc->logprobs = -2);
	REFUSE(EINVAL, "chat", ipc->chat = true);
	REFUSE(EINVAL, "stop", ipc->stop[ipc->n_stops++] = strdup(""));
	REFUSE(EINVAL, "256", ipc->tokens[0] = FAKE_VOCAB);
	REFUSE(EINVAL, "a1", fake_adapter(ipc, 1, 64.5F));
	REFUSE(EINVAL, "a1", fake_adapter(ipc, 1, NAN));
	REFUSE(ENOENT, "a9", fake_adapter(ipc, 9, 1));
	REFUSE(EINVAL, "another base", fakes.adapter[3].result = CACHE_E_UNFIT; fake_adapter(ipc, 3, 1));
	REFUSE(EINVAL, "memory holds 32", memory(2, 0); ipc->max_tokens = 32);
}
END_TEST

START_TEST(the_edges_are_admitted)
{
	struct ipc_request *ipc = fake_request(session, 1, "x", FAKE_CONTEXT - 1);

	ipc->top_p = 1;
	ipc->min_p = 1;
	ipc->logprobs = 64;
	ipc->top_k = INT64_MAX;
	ipc->temperature = 1e300;
	ipc->first_token_ms = 604800000;
	ipc->deadline_ms = 604800000;
	fake_adapter(ipc, 1, -64);
	fake_adapter(ipc, 2, 64);
	add(ipc);
	turns(3);
	ck_assert_uint_eq(fake_count(session, 1, 't'), 3);
	engine_close(&engine, session);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("sched-engine");
	TCase *tc = tcase_create("engine");

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, one_answer);
	tcase_add_test(tc, answers_depend_on_nobody_else);
	tcase_add_test(tc, stop_id_is_a_token_without_text);
	tcase_add_test(tc, stop_id_ignored);
	tcase_add_test(tc, stop_string_across_tokens);
	tcase_add_test(tc, half_a_stop_string_is_text_in_the_end);
	tcase_add_test(tc, scores_of_every_length);
	tcase_add_test(tc, unlike_adapters_share_a_step);
	tcase_add_test(tc, page_in_lets_others_pass);
	tcase_add_test(tc, all_adapters_or_none_are_held);
	tcase_add_test(tc, failed_page_in_fails_its_request_alone);
	tcase_add_test(tc, no_room_waits_then_bars_others);
	tcase_add_test(tc, no_room_for_ever_is_an_error);
	tcase_add_test(tc, preempted_requests_lose_nothing);
	tcase_add_test(tc, preempted_scores_are_sent_once);
	tcase_add_test(tc, unused_adapters_go_before_requests);
	tcase_add_test(tc, nobody_yields_in_vain);
	tcase_add_test(tc, alone_without_memory_is_an_error);
	tcase_add_test(tc, a_common_beginning_is_computed_once);
	tcase_add_test(tc, who_may_share);
	tcase_add_test(tc, nobody_waits_for_one_who_left);
	tcase_add_test(tc, slow_client_loses_nothing);
	tcase_add_test(tc, client_that_never_reads_is_cancelled);
	tcase_add_test(tc, cancel_in_any_place);
	tcase_add_test(tc, closed_client_is_told_nothing);
	tcase_add_test(tc, failed_step_fails_its_requests);
	tcase_add_test(tc, lost_device_fails_everything);
	tcase_add_test(tc, more_requests_than_places);
	tcase_add_test(tc, values_are_judged);
	tcase_add_test(tc, the_edges_are_admitted);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
