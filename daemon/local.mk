# Layer 6: the daemon itself.
sbin_PROGRAMS += daemon/lorad

noinst_LTLIBRARIES += daemon/libdaemon.la
daemon_libdaemon_la_SOURCES = \
	daemon/compute.c daemon/compute.h \
	daemon/control.c daemon/control.h \
	daemon/control-adapters.c \
	daemon/control-call.h \
	daemon/control-files.c \
	daemon/control-import.c \
	daemon/control-peer.c daemon/control-peer.h \
	daemon/control-status.c \
	daemon/control-upkeep.c \
	daemon/mailbox.c daemon/mailbox.h \
	daemon/metrics.c daemon/metrics.h \
	daemon/options.c daemon/options.h \
	daemon/parts.h \
	daemon/server.c daemon/server.h \
	daemon/worker.c daemon/worker.h
daemon_libdaemon_la_CFLAGS = $(AM_CFLAGS) $(JANSSON_CFLAGS)

daemon_lorad_SOURCES = daemon/main.c
daemon_lorad_LDADD = $(DAEMON_PARTS) $(KERN_CUDA) $(KERN_CUDA_LIBS) $(DAEMON_LIBS)
DAEMON_PARTS = \
	daemon/libdaemon.la \
	daemon/import/libimport.la \
	daemon/sched/libsched.la \
	daemon/cache/libcache.la \
	daemon/ipc/libipc.la \
	daemon/model/libmodel.la \
	daemon/model/libtokenizer.la \
	daemon/store/libstore.la \
	daemon/format/libformat.la \
	daemon/os/libos.la \
	daemon/base/libbase.la \
	kernels/libkernels.la
DAEMON_LIBS = $(JANSSON_LIBS) $(LMDB_LIBS) $(URING_LIBS) $(SYSTEMD_LIBS) $(CRYPTO_LIBS) $(PCRE2_LIBS) -lm
