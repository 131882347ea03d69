# The tokenizer, apart from the model: programs and tests can have it without weights and kernels.
noinst_LTLIBRARIES += daemon/model/libtokenizer.la
daemon_model_libtokenizer_la_SOURCES = \
	daemon/model/chat.c \
	daemon/model/detokenizer.c \
	daemon/model/tokenizer-added.c \
	daemon/model/tokenizer-merge.c \
	daemon/model/tokenizer-private.h \
	daemon/model/tokenizer.c daemon/model/tokenizer.h
daemon_model_libtokenizer_la_CFLAGS = $(AM_CFLAGS) $(PCRE2_CFLAGS)
daemon_model_libtokenizer_la_LIBADD = daemon/format/libformat.la $(PCRE2_LIBS)
