# Tests of the store, the pager, the cache and imports.
STORE_TEST_LIBS = daemon/store/libstore.la daemon/os/libos.la daemon/format/libformat.la kernels/libkernels.la \
	daemon/base/libbase.la $(CHECK_LIBS)
EXTRA_DIST += tests/unit/adapter-util.h tests/unit/cache-rig.h tests/unit/cache-util.h tests/unit/store-util.h
if HAVE_CHECK
store_tests = tests/unit/test-store-store tests/unit/test-store-pager tests/unit/test-cache-cache tests/unit/test-cache-faults \
	tests/unit/test-cache-policy tests/unit/test-cache-share \
	tests/unit/test-cache-turn tests/unit/test-cache-upload \
	tests/unit/test-import-import
check_PROGRAMS += $(store_tests)
TESTS += $(store_tests)
tests_unit_test_store_store_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_store_store_LDFLAGS = $(AM_LDFLAGS) -Wl,--wrap=store_write_commit
tests_unit_test_store_store_LDADD = $(STORE_TEST_LIBS)
tests_unit_test_store_pager_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_store_pager_LDFLAGS = $(AM_LDFLAGS) -Wl,--wrap=uring_reap,--wrap=pread,--wrap=store_open_direct
tests_unit_test_store_pager_LDADD = $(STORE_TEST_LIBS)
tests_unit_test_cache_cache_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_cache_cache_LDADD = daemon/cache/libcache.la daemon/model/libmodel.la $(STORE_TEST_LIBS)
tests_unit_test_cache_faults_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_cache_faults_LDFLAGS = $(AM_LDFLAGS) -Wl,--wrap=malloc,--wrap=calloc,--wrap=aligned_alloc
tests_unit_test_cache_faults_LDADD = daemon/cache/libcache.la daemon/model/libmodel.la $(STORE_TEST_LIBS)
tests_unit_test_cache_share_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_cache_share_LDADD = daemon/cache/libcache.la daemon/model/libmodel.la $(STORE_TEST_LIBS)
tests_unit_test_cache_policy_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_cache_policy_LDADD = daemon/cache/libcache.la $(CHECK_LIBS)
tests_unit_test_cache_turn_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_cache_turn_LDADD = daemon/cache/libcache.la daemon/model/libmodel.la $(STORE_TEST_LIBS)
tests_unit_test_cache_upload_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_cache_upload_LDADD = daemon/cache/libcache.la daemon/model/libmodel.la $(STORE_TEST_LIBS)
tests_unit_test_import_import_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_import_import_LDADD = daemon/import/libimport.la $(STORE_TEST_LIBS)
endif

# Kills a writer in mid-import; needs no Check.
check_PROGRAMS += tests/stress/store-crash
TESTS += tests/stress/store-crash
tests_stress_store_crash_LDADD = daemon/store/libstore.la daemon/os/libos.la daemon/format/libformat.la \
	kernels/libkernels.la daemon/base/libbase.la

# The pager beside fio: make tests/bench/page, see docs/BENCH-paging.md.
EXTRA_PROGRAMS += tests/bench/page
tests_bench_page_SOURCES = tests/bench/page.c
tests_bench_page_LDFLAGS = $(AM_LDFLAGS) -Wl,--wrap=crc32c
tests_bench_page_CFLAGS = $(AM_CFLAGS) $(JANSSON_CFLAGS)
tests_bench_page_LDADD = daemon/store/libstore.la daemon/os/libos.la daemon/format/libformat.la \
	kernels/libkernels.la daemon/base/libbase.la $(JANSSON_LIBS)

# What the cache's eviction order is worth, and what its calls cost: see docs/RESIDENCY.md.
EXTRA_PROGRAMS += tests/bench/cache-sim
tests_bench_cache_sim_SOURCES = tests/bench/cache-sim.c tests/bench/cache-sim.h tests/bench/cache-sim-policies.c \
	tests/bench/cache-sim-trace.c
tests_bench_cache_sim_LDADD = daemon/cache/libcache.la daemon/model/libmodel.la kernels/libkernels.la daemon/base/libbase.la
EXTRA_PROGRAMS += tests/bench/cache-cost
tests_bench_cache_cost_LDADD = daemon/cache/libcache.la daemon/model/libmodel.la daemon/format/libformat.la \
	kernels/libkernels.la daemon/base/libbase.la
