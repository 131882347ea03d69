# Tests of tools/: the parts as units, loractl as a whole against a scripted control server.
if HAVE_CHECK
tools_tests = tests/unit/test-tools-number tests/unit/test-tools-options tests/unit/test-tools-control \
	tests/unit/test-tools-loractl
check_PROGRAMS += $(tools_tests)
TESTS += $(tools_tests)
tests_unit_test_tools_number_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_tools_number_LDADD = tools/libtools.la $(CHECK_LIBS)
tests_unit_test_tools_options_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_tools_options_LDADD = tools/libtools.la $(CHECK_LIBS)
tests_unit_test_tools_control_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS) $(JANSSON_CFLAGS)
tests_unit_test_tools_control_LDADD = tools/libtools.la $(CHECK_LIBS)
tests_unit_test_tools_loractl_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_tools_loractl_LDADD = $(CHECK_LIBS)
endif
