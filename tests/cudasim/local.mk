# The simulated GPU: the CUDA backend, compiled as C++ and linked to the stand-ins. Needs neither nvcc nor a GPU. Built twice:
# with this build's own sanitizers, or none (libcudasim.a), and with the accesses of kernels instrumented and checked
# against shadow memory (CUDASHADOW_LIBS: its kernels come before the archive's; not where sanitizers are, whose place it
# takes).
if HAVE_CBLAS
CUDASIM_CPPFLAGS = $(AM_CPPFLAGS) -I$(top_srcdir)/tests/cudasim/include
CUDASIM_CXXFLAGS = -std=c++17 -pthread -ffp-contract=off -Wall -Wextra -Wno-unknown-pragmas $(SAN_CFLAGS)
CUDASIM_KERNELS = $(CUDA_KERNELS:kernels/cuda/%.cu=tests/cudasim/%.cu.o)
CUDASHADOW_KERNELS = $(CUDA_KERNELS:kernels/cuda/%.cu=tests/cudasim/%.shadow.o)
CUDASIM_LIBS = tests/cudasim/libcudasim.a $(CBLAS_LIBS) -lstdc++ -ldl -lm
CUDASHADOW_LIBS = $(CUDASHADOW_KERNELS) tests/cudasim/libcudashadow.a $(CUDASIM_LIBS)

check_LIBRARIES = tests/cudasim/libcudasim.a
tests_cudasim_libcudasim_a_SOURCES = \
	$(CUDA_HOST_SOURCES) \
	tests/cudasim/api.c \
	tests/cudasim/blas.c \
	tests/cudasim/engine.cc tests/cudasim/engine.h tests/cudasim/inside.h \
	tests/cudasim/faults.c \
	tests/cudasim/memory.c \
	tests/cudasim/runtime.c tests/cudasim/runtime.h \
	tests/cudasim/warp.cc
tests_cudasim_libcudasim_a_CPPFLAGS = $(CUDASIM_CPPFLAGS)
tests_cudasim_libcudasim_a_CXXFLAGS = -O2 -g $(CUDASIM_CXXFLAGS)
tests_cudasim_libcudasim_a_LIBADD = $(CUDASIM_KERNELS)
tests_cudasim_libcudasim_a_DEPENDENCIES = $(CUDASIM_KERNELS)
EXTRA_DIST += tests/cudasim/README tests/cudasim/check-values tests/cudasim/include
CLEANFILES += $(CUDASIM_KERNELS) $(CUDASHADOW_KERNELS) $(CUDASIM_KERNELS:.o=.d) $(CUDASHADOW_KERNELS:.o=.d)

tests/cudasim/%.cu.o: $(top_srcdir)/kernels/cuda/%.cu Makefile
	@$(MKDIR_P) $(@D)
	$(AM_V_CXX)$(CXX) $(CUDASIM_CPPFLAGS) -O2 -g $(CUDASIM_CXXFLAGS) -MD -MP -c -x c++ $< -o $@
tests/cudasim/%.shadow.o: $(top_srcdir)/kernels/cuda/%.cu Makefile
	@$(MKDIR_P) $(@D)
	$(AM_V_CXX)$(CXX) $(CUDASIM_CPPFLAGS) -O1 -g $(CUDASIM_CXXFLAGS) -fsanitize=thread -MD -MP -c -x c++ $< -o $@
-include $(CUDASIM_KERNELS:.o=.d)
-include $(CUDASHADOW_KERNELS:.o=.d)

# The daemon with a simulated GPU: the same program, the same options.
check_PROGRAMS += tests/lorad-cudasim
tests_lorad_cudasim_SOURCES = daemon/main.c
tests_lorad_cudasim_LDADD = $(DAEMON_PARTS) $(CUDASIM_LIBS) $(DAEMON_LIBS)

if HAVE_CHECK
cudasim_tests = tests/unit/test-kernels-cuda-device tests/unit/test-kernels-cuda-failure
cuda_rig = tests/unit/cuda-rig.c tests/unit/cuda-rig.h
check_PROGRAMS += $(cudasim_tests)
TESTS += $(cudasim_tests)
tests_unit_test_kernels_cuda_device_SOURCES = tests/unit/test-kernels-cuda-device.c $(cuda_rig)
tests_unit_test_kernels_cuda_device_CPPFLAGS = $(CUDASIM_CPPFLAGS)
tests_unit_test_kernels_cuda_device_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_kernels_cuda_device_LDFLAGS = $(AM_LDFLAGS) -Wl,--wrap=cuda_api
tests_unit_test_kernels_cuda_device_LDADD = $(CUDASIM_LIBS) kernels/libkernels.la $(CHECK_LIBS)
tests_unit_test_kernels_cuda_failure_SOURCES = tests/unit/test-kernels-cuda-failure.c $(cuda_rig)
tests_unit_test_kernels_cuda_failure_CPPFLAGS = $(CUDASIM_CPPFLAGS)
tests_unit_test_kernels_cuda_failure_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_kernels_cuda_failure_LDFLAGS = $(AM_LDFLAGS) -Wl,--wrap=cuda_api
tests_unit_test_kernels_cuda_failure_LDADD = $(CUDASIM_LIBS) kernels/libkernels.la $(CHECK_LIBS)
endif

# The ops table test on the simulated GPU, with the sources of tests/unit/kernels.mk.
if HAVE_CHECK
cuda_op_tests = tests/kernels/test-ops-cuda tests/kernels/test-sample-cuda
tests_kernels_test_ops_cuda_SOURCES = $(OPS_TEST_SOURCES) tests/kernels/fixture-cuda.c
tests_kernels_test_ops_cuda_CPPFLAGS = $(CUDASIM_CPPFLAGS)
tests_kernels_test_ops_cuda_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_kernels_test_ops_cuda_LDADD = $(CUDASIM_LIBS) kernels/libkernels.la $(CHECK_LIBS)
tests_kernels_test_sample_cuda_SOURCES = $(SAMPLE_TEST_SOURCES) tests/kernels/fixture-cuda.c
tests_kernels_test_sample_cuda_CPPFLAGS = $(CUDASIM_CPPFLAGS)
tests_kernels_test_sample_cuda_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_kernels_test_sample_cuda_LDADD = $(CUDASIM_LIBS) kernels/libkernels.la $(CHECK_LIBS)

if !SANITIZED
check_LIBRARIES += tests/cudasim/libcudashadow.a
tests_cudasim_libcudashadow_a_SOURCES = tests/cudasim/tsan.cc
tests_cudasim_libcudashadow_a_CPPFLAGS = $(CUDASIM_CPPFLAGS)
tests_cudasim_libcudashadow_a_CXXFLAGS = -O2 -g $(CUDASIM_CXXFLAGS)
cuda_op_tests += tests/kernels/test-ops-shadow tests/kernels/test-sample-shadow
tests_kernels_test_ops_shadow_SOURCES = $(tests_kernels_test_ops_cuda_SOURCES)
tests_kernels_test_ops_shadow_CPPFLAGS = $(CUDASIM_CPPFLAGS)
tests_kernels_test_ops_shadow_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_kernels_test_ops_shadow_LDADD = $(CUDASHADOW_LIBS) kernels/libkernels.la $(CHECK_LIBS)
EXTRA_tests_kernels_test_ops_shadow_DEPENDENCIES = $(CUDASHADOW_KERNELS)
tests_kernels_test_sample_shadow_SOURCES = $(tests_kernels_test_sample_cuda_SOURCES)
tests_kernels_test_sample_shadow_CPPFLAGS = $(CUDASIM_CPPFLAGS)
tests_kernels_test_sample_shadow_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_kernels_test_sample_shadow_LDADD = $(CUDASHADOW_LIBS) kernels/libkernels.la $(CHECK_LIBS)
EXTRA_tests_kernels_test_sample_shadow_DEPENDENCIES = $(CUDASHADOW_KERNELS)
endif
check_PROGRAMS += $(cuda_op_tests)
TESTS += $(cuda_op_tests)
endif

check_PROGRAMS += tests/cudasim/mutants tests/cudasim/test-engine tests/cudasim/test-runtime
TESTS += tests/cudasim/mutants tests/cudasim/test-engine tests/cudasim/test-runtime tests/cudasim/check-fragments \
	tests/cudasim/check-values
EXTRA_DIST += tests/cudasim/check-fragments tests/cudasim/fragments.cc tests/cudasim/mutate
tests_cudasim_mutants_SOURCES = tests/cudasim/mutants.cc
tests_cudasim_mutants_CPPFLAGS = $(CUDASIM_CPPFLAGS)
tests_cudasim_mutants_CXXFLAGS = -O2 -g $(CUDASIM_CXXFLAGS)
tests_cudasim_mutants_LDADD = $(CUDASIM_LIBS) kernels/libkernels.la
tests_cudasim_test_engine_SOURCES = tests/cudasim/test-engine.cc
tests_cudasim_test_engine_CPPFLAGS = $(CUDASIM_CPPFLAGS)
tests_cudasim_test_engine_CXXFLAGS = -O2 -g $(CUDASIM_CXXFLAGS)
tests_cudasim_test_engine_LDADD = $(CUDASIM_LIBS) kernels/libkernels.la
tests_cudasim_test_runtime_SOURCES = tests/cudasim/test-runtime.c
tests_cudasim_test_runtime_CPPFLAGS = $(CUDASIM_CPPFLAGS)
tests_cudasim_test_runtime_LDADD = $(CUDASIM_LIBS) kernels/libkernels.la
endif
