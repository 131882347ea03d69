# Layer 1: errors, cleanup, log, lists, clock, histograms. No blocking system calls.
noinst_LTLIBRARIES += daemon/base/libbase.la
daemon_base_libbase_la_SOURCES = \
	daemon/base/cleanup.h \
	daemon/base/clock.h \
	daemon/base/error.c daemon/base/error.h \
	daemon/base/hist.c daemon/base/hist.h \
	daemon/base/list.h \
	daemon/base/log.c daemon/base/log.h
