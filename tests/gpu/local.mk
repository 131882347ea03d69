# What the CUDA backend costs. check-counts holds the cost model against what the instrumented simulator counts, and is
# skipped where there is none (sanitizers; no CBLAS or Check). cost-model, plan (docs/PLAN.md) and kernel-report are run by hand, see
# docs/CUDA-COST.md.
if HAVE_CBLAS
if HAVE_CHECK
if !SANITIZED
check_PROGRAMS += tests/gpu/count-ops
tests_gpu_count_ops_SOURCES = tests/gpu/count-ops.c
tests_gpu_count_ops_CPPFLAGS = $(CUDASIM_CPPFLAGS)
tests_gpu_count_ops_LDADD = $(CUDASHADOW_LIBS) kernels/libkernels.la
endif
endif
endif
dist_check_SCRIPTS += tests/gpu/check-counts
TESTS += tests/gpu/check-counts
EXTRA_DIST += tests/gpu/cost.py tests/gpu/cost-model tests/gpu/plan tests/gpu/kernel-report

# On a GPU, without this build: tests/gpu/run.
EXTRA_DIST += tests/gpu/run tests/gpu/serve tests/gpu/probe.cu tests/gpu/bench-ops.c tests/gpu/no-simulator.c tests/gpu/check/check.h
