# Layer 3: the LMDB store and the pager that reads images out of it.
noinst_LTLIBRARIES += daemon/store/libstore.la
daemon_store_libstore_la_CPPFLAGS = $(AM_CPPFLAGS) $(LMDB_CFLAGS) $(URING_CFLAGS)
daemon_store_libstore_la_LIBADD = $(LMDB_LIBS) $(URING_LIBS)
daemon_store_libstore_la_SOURCES = \
	daemon/store/compact.c \
	daemon/store/open.c \
	daemon/store/pager.c daemon/store/pager.h \
	daemon/store/probe.c \
	daemon/store/put.c \
	daemon/store/reader.c daemon/store/reader.h \
	daemon/store/reader-uring.c \
	daemon/store/snapshot.c \
	daemon/store/store-internal.h \
	daemon/store/store.c daemon/store/store.h \
	daemon/store/sweep.c \
	daemon/store/verify.c
