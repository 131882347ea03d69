# Tests of libclient, the event loop and ipc.
if HAVE_CHECK
check_PROGRAMS += tests/unit/test-os-loop
TESTS += tests/unit/test-os-loop
tests_unit_test_os_loop_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_os_loop_LDADD = daemon/os/libos.la daemon/base/libbase.la $(CHECK_LIBS)
endif
