# Tests of base, the scheduler and the daemon.
if HAVE_CHECK
engine_tests = \
	tests/unit/test-base-log \
	tests/unit/test-sched-batch \
	tests/unit/test-sched-engine \
	tests/unit/test-sched-stops
check_PROGRAMS += $(engine_tests)
TESTS += $(engine_tests)
tests_unit_test_base_log_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_base_log_LDADD = daemon/base/libbase.la $(CHECK_LIBS)
tests_unit_test_sched_batch_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_sched_batch_LDADD = daemon/sched/libsched.la daemon/base/libbase.la $(CHECK_LIBS)
tests_unit_test_sched_engine_SOURCES = tests/unit/test-sched-engine.c tests/unit/sched-fakes.c tests/unit/sched-fakes.h
tests_unit_test_sched_engine_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_sched_engine_LDADD = daemon/sched/libsched.la daemon/model/libtokenizer.la daemon/base/libbase.la $(CHECK_LIBS)
tests_unit_test_sched_stops_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_sched_stops_LDADD = daemon/sched/libsched.la daemon/base/libbase.la $(CHECK_LIBS)
endif
