# Layer 1: errors, cleanup, lists, clock, counters. No blocking system calls.
noinst_LTLIBRARIES += daemon/base/libbase.la
daemon_base_libbase_la_SOURCES = \
	daemon/base/cleanup.h \
	daemon/base/error.c daemon/base/error.h \
	daemon/base/list.h
