# Tests of the model folder and of the compute threads it runs on.
if HAVE_CHECK
check_PROGRAMS += tests/unit/test-os-team
TESTS += tests/unit/test-os-team
tests_unit_test_os_team_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_os_team_LDADD = daemon/os/libos.la daemon/base/libbase.la $(CHECK_LIBS)
endif
