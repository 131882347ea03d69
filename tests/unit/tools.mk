# Tests of tools/: the parts as units, the programs as a whole against scripted and fake daemons.
if HAVE_CHECK
tools_tests = tests/unit/test-tools-number tests/unit/test-tools-options tests/unit/test-tools-control \
	tests/unit/test-tools-loractl tests/unit/test-tools-talk tests/unit/test-tools-bench \
	tests/unit/test-tools-top
check_PROGRAMS += $(tools_tests) tests/lib/fake-lorad
TESTS += $(tools_tests)
tests_lib_fake_lorad_SOURCES = tests/lib/fake-lorad.c
tests_lib_fake_lorad_LDADD = daemon/ipc/libipc.la daemon/os/libos.la daemon/base/libbase.la
tests_unit_test_tools_number_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_tools_number_LDADD = tools/libtools.la $(CHECK_LIBS)
tests_unit_test_tools_options_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_tools_options_LDADD = tools/libtools.la $(CHECK_LIBS)
tests_unit_test_tools_control_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS) $(JANSSON_CFLAGS)
tests_unit_test_tools_control_LDADD = tools/libtools.la $(CHECK_LIBS)
tests_unit_test_tools_loractl_SOURCES = tests/unit/test-tools-loractl.c tests/unit/tools-run.c tests/unit/tools-run.h
tests_unit_test_tools_loractl_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_tools_loractl_LDADD = $(CHECK_LIBS)
tests_unit_test_tools_talk_SOURCES = tests/unit/test-tools-talk.c tests/unit/tools-run.c tests/unit/tools-run.h
tests_unit_test_tools_talk_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS) $(JANSSON_CFLAGS)
tests_unit_test_tools_talk_LDADD = $(CHECK_LIBS) $(JANSSON_LIBS)
tests_unit_test_tools_top_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS) $(JANSSON_CFLAGS)
tests_unit_test_tools_top_LDADD = tools/libtools.la $(CHECK_LIBS) $(JANSSON_LIBS)
tests_unit_test_tools_bench_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_tools_bench_LDADD = tools/libbench.la $(CHECK_LIBS) -lm
endif
