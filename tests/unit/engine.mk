# Tests of base, the scheduler and the daemon.
if HAVE_CHECK
engine_tests = \
	tests/unit/test-base-log \
	tests/unit/test-daemon-control \
	tests/unit/test-daemon-options \
	tests/unit/test-sched-batch \
	tests/unit/test-sched-engine \
	tests/unit/test-sched-fair \
	tests/unit/test-sched-sched \
	tests/unit/test-sched-stops
check_PROGRAMS += $(engine_tests)
TESTS += $(engine_tests)
engine_fakes = tests/unit/sched-fakes.c tests/unit/sched-fakes.h
engine_sched = daemon/sched/libsched.la daemon/model/libkv.la daemon/model/libtokenizer.la daemon/base/libbase.la kernels/libkernels.la
engine_daemon = daemon/libdaemon.la daemon/format/libformat.la daemon/os/libos.la daemon/base/libbase.la kernels/libkernels.la $(KERN_CUDA) $(KERN_CUDA_LIBS)
tests_unit_test_base_log_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_base_log_LDADD = daemon/base/libbase.la $(CHECK_LIBS)
tests_unit_test_daemon_control_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_daemon_control_LDADD = $(engine_daemon) $(CHECK_LIBS)
tests_unit_test_daemon_options_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_daemon_options_LDADD = $(engine_daemon) $(CHECK_LIBS)
tests_unit_test_sched_batch_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_sched_batch_LDADD = daemon/sched/libsched.la daemon/base/libbase.la $(CHECK_LIBS)
tests_unit_test_sched_engine_SOURCES = tests/unit/test-sched-engine.c $(engine_fakes)
tests_unit_test_sched_engine_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_sched_engine_LDADD = $(engine_sched) $(CHECK_LIBS)
tests_unit_test_sched_fair_SOURCES = tests/unit/test-sched-fair.c $(engine_fakes)
tests_unit_test_sched_fair_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_sched_fair_LDADD = $(engine_sched) $(CHECK_LIBS) -lm
tests_unit_test_sched_sched_SOURCES = tests/unit/test-sched-sched.c $(engine_fakes)
tests_unit_test_sched_sched_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_sched_sched_LDADD = $(engine_sched) $(CHECK_LIBS)
tests_unit_test_sched_stops_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_sched_stops_LDADD = daemon/sched/libsched.la daemon/base/libbase.la $(CHECK_LIBS)
endif
