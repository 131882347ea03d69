# Tests of daemon/format and of the tokenizer made from its vocabularies.
if HAVE_CHECK
format_tests = tests/unit/test-format-config tests/unit/test-format-peft \
	tests/unit/test-format-image tests/unit/test-format-safetensors \
	tests/unit/test-format-gguf \
	tests/unit/test-model-tokenizer tests/unit/test-model-tokenizer-golden
check_PROGRAMS += $(format_tests)
TESTS += $(format_tests)
format_libs = daemon/format/libformat.la kernels/libkernels.la $(JANSSON_LIBS) $(CHECK_LIBS)

tests_unit_test_model_tokenizer_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_model_tokenizer_LDADD = daemon/model/libtokenizer.la $(format_libs)
tests_unit_test_model_tokenizer_golden_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS) $(JANSSON_CFLAGS)
tests_unit_test_model_tokenizer_golden_LDADD = daemon/model/libtokenizer.la $(format_libs)

tests_unit_test_format_gguf_SOURCES = tests/unit/test-format-gguf.c tests/unit/format-gguf.h tests/unit/format-mutate.h
tests_unit_test_format_gguf_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_format_gguf_LDADD = $(format_libs)

tests_unit_test_format_image_SOURCES = tests/unit/test-format-image.c tests/unit/format-mutate.h
tests_unit_test_format_image_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_format_image_LDADD = $(format_libs)
tests_unit_test_format_safetensors_SOURCES = tests/unit/test-format-safetensors.c tests/unit/format-mutate.h
tests_unit_test_format_safetensors_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS) $(JANSSON_CFLAGS)
tests_unit_test_format_safetensors_LDADD = $(format_libs)

tests_unit_test_format_config_SOURCES = tests/unit/test-format-config.c tests/unit/format-mutate.h
tests_unit_test_format_config_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_format_config_LDADD = $(format_libs) -lm
tests_unit_test_format_peft_SOURCES = tests/unit/test-format-peft.c tests/unit/format-mutate.h
tests_unit_test_format_peft_CFLAGS = $(AM_CFLAGS) $(CHECK_CFLAGS)
tests_unit_test_format_peft_LDADD = $(format_libs) -lm
endif

EXTRA_DIST += tests/golden/make-tokenizer.py tests/golden/tokenizer.json
