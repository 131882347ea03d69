# Tests of libclient, the event loop and ipc.
if HAVE_CHECK
ipc_tests = \
	tests/unit/test-os-loop \
	tests/unit/test-ipc-client
check_PROGRAMS += $(ipc_tests)
TESTS += $(ipc_tests)
tests_unit_test_os_loop_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_os_loop_LDADD = daemon/os/libos.la daemon/base/libbase.la $(CHECK_LIBS)
ipc_libs = daemon/ipc/libipc.la daemon/os/libos.la daemon/base/libbase.la
tests_unit_test_ipc_client_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_ipc_client_LDADD = libclient/libloraclient.la $(ipc_libs) $(CHECK_LIBS)
endif
