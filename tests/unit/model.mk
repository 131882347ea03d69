# Tests of the model folder and of the compute threads it runs on.
if HAVE_CHECK
model_tests = tests/unit/test-model-load tests/unit/test-model-pool tests/unit/test-model-step tests/unit/test-os-team
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

tests_unit_test_model_load_SOURCES = tests/unit/test-model-load.c $(model_rig) $(model_tiny)
tests_unit_test_model_load_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_model_load_LDADD = $(model_libs)
tests_unit_test_model_step_SOURCES = tests/unit/test-model-step.c $(model_rig) $(model_tiny)
tests_unit_test_model_step_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_model_step_LDADD = $(model_libs)
endif
