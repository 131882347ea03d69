# Tests of the model folder and of the compute threads it runs on.
if HAVE_CHECK
model_tests = tests/unit/test-model-pool tests/unit/test-os-team
check_PROGRAMS += $(model_tests)
TESTS += $(model_tests)

tests_unit_test_os_team_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_os_team_LDADD = daemon/os/libos.la daemon/base/libbase.la $(CHECK_LIBS)
tests_unit_test_model_pool_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_model_pool_LDADD = daemon/model/libmodel.la kernels/libkernels.la daemon/base/libbase.la $(CHECK_LIBS)
endif
