# The instruction sets that few machines have, simulated: the x86 kernels once more for each, compiled on isasim.h for AVX2, and
# the ops table test on them. These two hold every line that AVX2 does not compile: VNNI's own backend is the integer products
# of BF16's and the bf16 products of AVX-512's. Rules of their own because of -O1: -O2 takes twice as long to compile.
# Sanitizers: SIMDe adds and shifts numbers that wrap in a processor, and has many pointers; what is left out here the AVX2
# build of the same sources has.
ISASIM_CPPFLAGS = $(AM_CPPFLAGS) -include $(top_srcdir)/tests/isasim/isasim.h
ISASIM_CFLAGS = -O1 -g $(AM_CFLAGS) -Wno-psabi $(AVX2_CFLAGS) -fno-sanitize-address-use-after-scope \
	-fno-sanitize=signed-integer-overflow,shift,null,object-size,pointer-overflow
ISASIM_KERNELS = $(filter %.c,$(X86_SOURCES))
ISASIM_OBJECTS = $(ISASIM_KERNELS:kernels/%.c=tests/isasim/avx512/%.o) $(ISASIM_KERNELS:kernels/%.c=tests/isasim/bf16/%.o)
EXTRA_DIST += tests/isasim/isasim.h tests/isasim/tiles.h
CLEANFILES += $(ISASIM_OBJECTS) $(ISASIM_OBJECTS:.o=.d)

tests/isasim/avx512/%.o: $(top_srcdir)/kernels/%.c Makefile
	@$(MKDIR_P) $(@D)
	$(AM_V_CC)$(CC) $(ISASIM_CPPFLAGS) -DX86_ISA=sim_avx512 $(ISASIM_CFLAGS) -MD -MP -c $< -o $@
tests/isasim/bf16/%.o: $(top_srcdir)/kernels/%.c Makefile
	@$(MKDIR_P) $(@D)
	$(AM_V_CC)$(CC) $(ISASIM_CPPFLAGS) -DISASIM_BF16 -DX86_ISA=sim_bf16 $(ISASIM_CFLAGS) -MD -MP -c $< -o $@
-include $(ISASIM_OBJECTS:.o=.d)

if HAVE_CHECK
check_PROGRAMS += tests/kernels/test-ops-isasim
TESTS += tests/kernels/test-ops-isasim
tests_kernels_test_ops_isasim_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
if HAVE_SIMDE
tests_kernels_test_ops_isasim_SOURCES = $(OPS_TEST_SOURCES) tests/kernels/fixture-host.c tests/kernels/fixture-isasim.c
tests_kernels_test_ops_isasim_LDADD = $(ISASIM_OBJECTS) kernels/libkernels.la $(CHECK_LIBS) -lm
EXTRA_tests_kernels_test_ops_isasim_DEPENDENCIES = $(ISASIM_OBJECTS)

check_PROGRAMS += tests/isasim/test-isasim
TESTS += tests/isasim/test-isasim
tests_isasim_test_isasim_SOURCES = tests/isasim/test-isasim.c
tests_isasim_test_isasim_CPPFLAGS = $(ISASIM_CPPFLAGS) -DISASIM_BF16
tests_isasim_test_isasim_CFLAGS = $(ISASIM_CFLAGS) $(CHECK_CFLAGS)
tests_isasim_test_isasim_LDADD = $(CHECK_LIBS) -lm
else
tests_kernels_test_ops_isasim_SOURCES = $(OPS_TEST_SOURCES) tests/kernels/fixture-host.c tests/kernels/fixture-none.c
tests_kernels_test_ops_isasim_LDADD = kernels/libkernels.la $(CHECK_LIBS) -lm
endif
endif
