# Layer 3: the model: weights, forward step, paged KV, pool, tokenizer.
noinst_LTLIBRARIES += daemon/model/libmodel.la
daemon_model_libmodel_la_SOURCES = \
	daemon/model/kv.c daemon/model/kv.h \
	daemon/model/pool.c daemon/model/pool.h
