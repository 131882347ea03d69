# Tests of the compute ops: every backend against the scalar reference; what a token is drawn from. The same sources are
# linked to the simulated GPU in tests/cudasim/local.mk.
OPS_TEST_SOURCES = \
	tests/kernels/test-ops.c tests/kernels/ops.h \
	tests/kernels/test-ops-attention.c \
	tests/kernels/test-ops-lora.c \
	tests/kernels/test-ops-matmul.c \
	tests/kernels/test-ops-rows.c \
	tests/kernels/fixture.c tests/kernels/fixture.h
SAMPLE_TEST_SOURCES = tests/kernels/test-sample.c tests/kernels/fixture.c tests/kernels/fixture.h

if HAVE_CHECK
EXTRA_DIST += tests/golden/make-blocks.py
kernel_tests = tests/kernels/test-host tests/kernels/test-ops tests/kernels/test-sample
check_PROGRAMS += $(kernel_tests)
TESTS += $(kernel_tests)

tests_kernels_test_host_SOURCES = tests/kernels/test-host.c tests/kernels/blocks.h
tests_kernels_test_host_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_kernels_test_host_LDADD = kernels/libkernels.la $(CHECK_LIBS) -lm
tests_kernels_test_ops_SOURCES = $(OPS_TEST_SOURCES) tests/kernels/fixture-host.c tests/kernels/fixture-cpu.c
tests_kernels_test_ops_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_kernels_test_ops_LDADD = kernels/libkernels.la $(CHECK_LIBS) -lm
tests_kernels_test_sample_SOURCES = $(SAMPLE_TEST_SOURCES) tests/kernels/fixture-host.c tests/kernels/fixture-cpu.c
tests_kernels_test_sample_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_kernels_test_sample_LDADD = kernels/libkernels.la $(CHECK_LIBS) -lm
endif

# Achieved and attainable speed of every op: make tests/bench/ops
EXTRA_PROGRAMS += tests/bench/ops
tests_bench_ops_SOURCES = tests/bench/ops.c tests/bench/peak.c tests/bench/peak.h
tests_bench_ops_LDADD = daemon/os/libos.la daemon/base/libbase.la kernels/libkernels.la -lm
