# Layer 3: the model: weights, forward step, paged KV, pool, tokenizer.
noinst_LTLIBRARIES += daemon/model/libmodel.la
daemon_model_libmodel_la_CPPFLAGS = $(AM_CPPFLAGS) $(URING_CFLAGS)
daemon_model_libmodel_la_SOURCES = \
	daemon/model/batch.c daemon/model/batch.h \
	daemon/model/load-gguf.c \
	daemon/model/load-hf.c \
	daemon/model/lora.c \
	daemon/model/model.c daemon/model/model.h \
	daemon/model/source.c daemon/model/source.h \
	daemon/model/step.c daemon/model/step.h \
	daemon/model/upload.c daemon/model/upload.h
daemon_model_libmodel_la_LIBADD = daemon/model/libkv.la

# Memory for keys, values and adapters; of use without a model.
noinst_LTLIBRARIES += daemon/model/libkv.la
daemon_model_libkv_la_SOURCES = \
	daemon/model/kv.c daemon/model/kv.h daemon/model/kv-internal.h \
	daemon/model/pool.c daemon/model/pool.h \
	daemon/model/prefix.c daemon/model/prefix.h

include daemon/model/tokenizer.mk
