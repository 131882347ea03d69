# Layer 0: what programs link to talk to lorad, and the ABI that the daemon shares with it.
include_HEADERS += libclient/loraclient.h
pkgconfig_DATA += libclient/loraclient.pc

lib_LTLIBRARIES += libclient/libloraclient.la
libclient_libloraclient_la_SOURCES = \
	libclient/client.c libclient/client.h \
	libclient/request.c \
	libclient/dispatch.c \
	libclient/event.c \
	libclient/lorad-abi.h \
	libclient/message.h \
	libclient/ring.h \
	libclient/wire.h
libclient_libloraclient_la_LDFLAGS = $(AM_LDFLAGS) -version-info 2:0:1 \
	-Wl,--version-script=$(top_srcdir)/libclient/libloraclient.map
EXTRA_libclient_libloraclient_la_DEPENDENCIES = libclient/libloraclient.map
EXTRA_DIST += libclient/libloraclient.map

noinst_PROGRAMS += libclient/examples/stream
libclient_examples_stream_SOURCES = libclient/examples/stream.c
libclient_examples_stream_CPPFLAGS = -I$(top_srcdir)/libclient
libclient_examples_stream_LDADD = libclient/libloraclient.la
