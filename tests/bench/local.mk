# Benchmarks of thousands of adapters, run by hand: see tests/bench/residency.
EXTRA_DIST += tests/bench/rig.py tests/bench/residency tests/bench/curves tests/bench/soak

# What the scheduler costs in each step: make tests/bench/turn
EXTRA_PROGRAMS += tests/bench/turn
tests_bench_turn_SOURCES = tests/bench/turn.c
tests_bench_turn_LDADD = daemon/sched/libsched.la daemon/cache/libcache.la daemon/model/libmodel.la daemon/model/libtokenizer.la \
	daemon/store/libstore.la daemon/os/libos.la daemon/format/libformat.la kernels/libkernels.la daemon/base/libbase.la

# One client of tests/bench/soak: make tests/bench/soak-client
EXTRA_PROGRAMS += tests/bench/soak-client
tests_bench_soak_client_SOURCES = tests/bench/soak-client.c
tests_bench_soak_client_LDADD = libclient/libloraclient.la
