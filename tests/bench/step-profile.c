/* SPDX-License-Identifier: MIT */
/*
 * step-profile MODEL [ISA [THREADS [ADAPTER_FOLDER [packed]]]]: where the time of a forward step goes, op by op.
 *
 * The backend's ops are wrapped in clocks that run on the calling thread only. What its parts leave of the step's wall
 * time is waiting for the parts of others, the team's barriers, and the description of the step. Steps differ where other
 * programs share the machine: the quickest one is the machine's own figure.
 */
#include <check.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/clock.h"
#include "tests/unit/model-rig.h"

#define OPS(X) X(embed) X(rms_norm) X(activate) X(matmul) X(lora_shrink) X(lora_expand) X(rope) X(kv_write) X(attention) \
	X(swiglu) X(sample)

enum op {
#define X(name) OP_##name,
	OPS(X)
#undef X
	_OP_N,
};

static const char *const op_names[_OP_N] = {
#define X(name) #name,
	OPS(X)
#undef X
};

static const struct kern_ops *inner;
static uint64_t spent[_OP_N], calls[_OP_N];
static pthread_t caller;

#define X(name)                                                                     \
	static void timed_##name(struct kern_device *device, const void *args, unsigned part, unsigned n_parts) \
	{                                                                           \
		uint64_t start = clock_ns();                                        \
                                                                                    \
		inner->name(device, args, part, n_parts);                                 \
		if (pthread_equal(pthread_self(), caller)) {                        \
			spent[OP_##name] += clock_ns() - start;                     \
			++calls[OP_##name];                                         \
		}                                                                   \
	}
OPS(X)
#undef X

static const struct kern_ops timed_ops = {
#define X(name) .name = timed_##name,
	OPS(X)
#undef X
};

struct load { /* a kind of step to measure */
	const char *what;
	uint32_t n_seqs, rows, context, n_steps; /* rows of each sequence at position context */
};

static void report(const struct load *load, uint64_t wall, uint64_t least)
{
	uint64_t sum = 0;

	printf("\n%s: %.3f ms a step, the quickest %.3f ms\n", load->what, clock_ms(wall) / load->n_steps, clock_ms(least));
	for (unsigned i = 0; i < _OP_N; ++i) {
		sum += spent[i];
		if (calls[i] > 0)
			printf("  %-12s %9.1f us  %5.1f %%  %7.1f parts of %7.2f us\n", op_names[i],
			       clock_ms(spent[i]) * 1000 / load->n_steps, 100.0 * (double)spent[i] / (double)wall,
			       (double)calls[i] / load->n_steps, clock_ms(spent[i]) * 1000 / (double)calls[i]);
	}
	printf("  %-12s %9.1f us  %5.1f %%\n", "the rest", clock_ms(wall - sum) * 1000 / load->n_steps,
	       100.0 * (double)(wall - sum) / (double)wall);
}

/* Decodes behind a long context in both types of keys and values, as a part of the speed at a short one. */
static const struct load contexts[] = {
	{ "decode of 1, context 64", 1, 1, 64, 60 },
	{ "decode of 1, context 4096", 1, 1, 4096, 60 },
	{ "decode of 16, context 256", 16, 1, 256, 30 },
};

static uint64_t measure(struct rig *rig, const struct load *load, const struct step_adapter *adapter)
{
	static uint32_t tokens[RIG_ROWS];
	struct kern_result result[RIG_SEQS];
	struct kv_seq kv[RIG_SEQS] = { 0 };
	struct step_seq seqs[RIG_SEQS];
	uint64_t start = 0, least = UINT64_MAX;

	for (uint32_t i = 0; i < RIG_ROWS; ++i)
		tokens[i] = 1000 + i * 37;
	for (uint32_t i = 0; i < load->n_seqs; ++i) {
		ck_assert_int_eq(kv_reserve(rig->kv, &kv[i], load->context + load->rows), KV_OK);
		for (uint32_t at = 0; at < load->context; at += 64) { /* no garbage in the keys */
			seqs[0] = rig_seq(tokens, load->context - at < 64 ? load->context - at : 64, at, &kv[i], result);
			seqs[0].output = STEP_OUTPUT_NONE;
			(void)step_run(rig->step, seqs, 1);
		}
	}
	for (uint32_t i = 0; i < load->n_seqs; ++i) {
		seqs[i] = rig_seq(tokens, load->rows, load->context, &kv[i], &result[i]);
		seqs[i].adapter = adapter;
		seqs[i].n_adapters = adapter ? 1 : 0;
	}
	for (uint32_t step = 0; step <= load->n_steps; ++step) {
		uint64_t begin;

		if (step == 1) { /* the first one warms up */
			memset(spent, 0, sizeof(spent));
			memset(calls, 0, sizeof(calls));
			start = clock_ns();
		}
		begin = clock_ns();
		(void)step_run(rig->step, seqs, load->n_seqs);
		least = clock_ns() - begin < least ? clock_ns() - begin : least;
	}
	report(load, clock_ns() - start, least);
	for (uint32_t i = 0; i < load->n_seqs; ++i)
		kv_drop(rig->kv, &kv[i]);
	return least;
}

static struct settings {
	const char *model, *adapter;
	enum kern_isa isa;
	unsigned threads;
	bool packed;
} settings;

static void compare_contexts(const struct kern_backend *backend, enum kern_dtype kv_type)
{
	struct rig *rig = rig_new_kv(settings.model, MODEL_AUTO, kv_type, backend, settings.threads);
	uint64_t least[3];

	printf("\nkeys and values in %s:\n", kv_type == KERN_I8 ? "int8" : "bf16");
	for (size_t i = 0; i < 3; ++i)
		least[i] = measure(rig, &contexts[i], NULL);
	printf("\n%s: decode at context 4096 has %.0f %% of the speed at 64\n", kv_type == KERN_I8 ? "int8" : "bf16",
	       100.0 * (double)least[0] / (double)least[1]);
	rig_free(rig);
}

/* A test only because the rig's checks want to run in one. */
START_TEST(profile)
{
	static const struct load loads[] = {
		{ "decode of 1, context 128", 1, 1, 128, 60 },
		{ "decode of 16, context 128", 16, 1, 128, 40 },
		{ "prefill of 512", 1, 512, 0, 4 },
	};
	struct kern_backend timed = *kern_cpu(settings.isa);
	struct step_adapter adapter = { .scale = 1 };
	struct rig_lora lora = { 0 };
	struct rig *rig;

	caller = pthread_self();
	inner = timed.ops;
	timed.ops = &timed_ops;
	rig = rig_new(settings.model, MODEL_AUTO, &timed, settings.threads);
	if (settings.adapter) {
		rig_lora_open(&lora, &model_config(rig->model)->geometry, settings.adapter, settings.packed);
		adapter.lora = &lora.lora;
	}
	printf("%s, %u threads, %.1f MiB of weights\n", timed.name, team_size(rig->team),
	       (double)model_weight_bytes(rig->model) / (1 << 20));
	for (size_t i = 0; i < sizeof(loads) / sizeof(*loads); ++i)
		(void)measure(rig, &loads[i], settings.adapter ? &adapter : NULL);
	if (settings.adapter)
		rig_lora_close(&lora);
	rig_free(rig);
	compare_contexts(&timed, KERN_BF16);
	compare_contexts(&timed, KERN_I8);
}
END_TEST

int main(int argc, char **argv)
{
	Suite *suite = suite_create("step-profile");
	TCase *tc = tcase_create("profile");
	SRunner *runner;
	int failed;

	if (argc < 2) {
		fprintf(stderr, "usage: step-profile MODEL [ISA [THREADS [ADAPTER_FOLDER [packed]]]]\n");
		return 2;
	}
	settings = (struct settings){ .model = argv[1], .isa = kern_cpu_best(), .threads = 2 };
	for (unsigned i = 0; argc > 2 && i < _KERN_ISA_N; ++i)
		if (!strcmp(argv[2], kern_isa_names[i]) && kern_cpu((enum kern_isa)i))
			settings.isa = (enum kern_isa)i;
	if (argc > 3)
		settings.threads = (unsigned)strtoul(argv[3], NULL, 10);
	if (argc > 4)
		settings.adapter = argv[4];
	settings.packed = argc > 5 && !strcmp(argv[5], "packed");
	tcase_add_test(tc, profile);
	suite_add_tcase(suite, tc);
	runner = srunner_create(suite);
	srunner_set_fork_status(runner, CK_NOFORK);
	srunner_run_all(runner, CK_SILENT);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
