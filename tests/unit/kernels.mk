# Tests of the compute ops: every backend against the scalar reference.
if HAVE_CHECK
kernel_tests = tests/kernels/test-ops
check_PROGRAMS += $(kernel_tests)
TESTS += $(kernel_tests)

tests_kernels_test_ops_SOURCES = tests/kernels/test-ops.c tests/kernels/fixture.c tests/kernels/fixture.h
tests_kernels_test_ops_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_kernels_test_ops_LDADD = kernels/libkernels.la $(CHECK_LIBS) -lm
endif
