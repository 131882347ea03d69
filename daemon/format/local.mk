# Layer 2: pure bytes -> checked views. No I/O, no clock, no threads.
noinst_LTLIBRARIES += daemon/format/libformat.la
daemon_format_libformat_la_SOURCES = \
	daemon/format/base-config.c daemon/format/base-config.h \
	daemon/format/conf.c daemon/format/conf.h \
	daemon/format/crc32c.c \
	daemon/format/format.h \
	daemon/format/gguf-config.c \
	daemon/format/gguf.c daemon/format/gguf.h \
	daemon/format/gguf-vocab.c \
	daemon/format/hf-config.c \
	daemon/format/hf-vocab.c \
	daemon/format/image.c daemon/format/image.h \
	daemon/format/image-pack.c \
	daemon/format/json.c daemon/format/json.h \
	daemon/format/peft-target.c daemon/format/peft-target.h \
	daemon/format/peft.c daemon/format/peft.h \
	daemon/format/safetensors.c daemon/format/safetensors.h \
	daemon/format/split-regex.c daemon/format/split-regex.h \
	daemon/format/vocab-build.h \
	daemon/format/vocab.c daemon/format/vocab.h
daemon_format_libformat_la_CFLAGS = $(AM_CFLAGS) $(JANSSON_CFLAGS) $(PCRE2_CFLAGS)
daemon_format_libformat_la_LIBADD = daemon/base/libbase.la $(JANSSON_LIBS) $(PCRE2_LIBS) -lm
