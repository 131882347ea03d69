# Layer 5: a stranger's files -> a committed image, and back.
noinst_LTLIBRARIES += daemon/import/libimport.la
daemon_import_libimport_la_CPPFLAGS = $(AM_CPPFLAGS) $(CRYPTO_CFLAGS) $(JANSSON_CFLAGS)
daemon_import_libimport_la_LIBADD = $(CRYPTO_LIBS)
daemon_import_libimport_la_SOURCES = \
	daemon/import/convert.c daemon/import/convert.h \
	daemon/import/export.c daemon/import/export.h \
	daemon/import/import.c daemon/import/import.h
