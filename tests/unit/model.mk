# Tests of the model folder and of the compute threads it runs on.
if HAVE_CHECK
model_tests = tests/unit/test-model-golden tests/unit/test-model-load tests/unit/test-model-perplexity \
	tests/unit/test-model-pool tests/unit/test-model-prefix tests/unit/test-model-step tests/unit/test-os-team
check_PROGRAMS += $(model_tests)
TESTS += $(model_tests)

model_rig = tests/unit/model-rig.c tests/unit/model-rig.h
model_tiny = tests/unit/model-tiny.c tests/unit/model-tiny.h
model_libs = daemon/model/libmodel.la daemon/model/libtokenizer.la daemon/os/libos.la daemon/format/libformat.la \
	daemon/base/libbase.la kernels/libkernels.la $(CHECK_LIBS) -lm

tests_unit_test_os_team_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_os_team_LDADD = daemon/os/libos.la daemon/base/libbase.la $(CHECK_LIBS)
tests_unit_test_model_pool_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_model_pool_LDADD = daemon/model/libmodel.la kernels/libkernels.la daemon/base/libbase.la $(CHECK_LIBS)
tests_unit_test_model_prefix_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_model_prefix_LDADD = daemon/model/libmodel.la kernels/libkernels.la daemon/base/libbase.la $(CHECK_LIBS)

tests_unit_test_model_golden_SOURCES = tests/unit/test-model-golden.c tests/unit/model-peft.c $(model_rig)
tests_unit_test_model_golden_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS) $(JANSSON_CFLAGS)
tests_unit_test_model_golden_LDADD = $(model_libs) $(JANSSON_LIBS)
tests_unit_test_model_load_SOURCES = tests/unit/test-model-load.c $(model_rig) $(model_tiny)
tests_unit_test_model_load_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_model_load_LDADD = $(model_libs)
tests_unit_test_model_perplexity_SOURCES = tests/unit/test-model-perplexity.c $(model_rig)
tests_unit_test_model_perplexity_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_model_perplexity_LDADD = $(model_libs)
tests_unit_test_model_step_SOURCES = tests/unit/test-model-step.c $(model_rig) $(model_tiny)
tests_unit_test_model_step_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_model_step_LDADD = $(model_libs)

# Not a test: where the time of a step goes.
check_PROGRAMS += tests/bench/step-profile
tests_bench_step_profile_SOURCES = tests/bench/step-profile.c tests/unit/model-peft.c $(model_rig)
tests_bench_step_profile_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_bench_step_profile_LDADD = $(model_libs)
endif

EXTRA_DIST += tests/golden/logprobs.json tests/golden/make-adapters.py tests/golden/make-logprobs.py \
	tests/golden/perplexity.txt tests/golden/variants.json
