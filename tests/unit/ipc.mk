# Tests of libclient, the event loop and ipc.
if HAVE_CHECK
ipc_tests = \
	tests/unit/test-libclient-ring \
	tests/unit/test-os-loop \
	tests/unit/test-ipc-request \
	tests/unit/test-ipc-client \
	tests/unit/test-ipc-hostile
check_PROGRAMS += $(ipc_tests)
TESTS += $(ipc_tests)
ipc_libs = daemon/ipc/libipc.la daemon/os/libos.la daemon/base/libbase.la
tests_unit_test_libclient_ring_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_libclient_ring_LDADD = $(CHECK_LIBS)
tests_unit_test_os_loop_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_os_loop_LDADD = daemon/os/libos.la daemon/base/libbase.la $(CHECK_LIBS)
tests_unit_test_ipc_request_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_ipc_request_LDADD = $(ipc_libs) $(CHECK_LIBS)
tests_unit_test_ipc_client_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_ipc_client_LDADD = libclient/libloraclient.la $(ipc_libs) $(CHECK_LIBS)
tests_unit_test_ipc_hostile_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_ipc_hostile_LDADD = libclient/libloraclient.la $(ipc_libs) $(CHECK_LIBS)
endif

check_PROGRAMS += tests/stress/ring
TESTS += tests/stress/ring
tests_stress_ring_SOURCES = tests/stress/ring.c

# A benchmark, built by `make check` and run by hand: tests/bench/ring.
check_PROGRAMS += tests/bench/ring
tests_bench_ring_SOURCES = tests/bench/ring.c
tests_bench_ring_LDADD = libclient/libloraclient.la daemon/ipc/libipc.la daemon/os/libos.la daemon/base/libbase.la
