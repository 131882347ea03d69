# Layer 7: the programs for people. They see libclient, kernels, base, os and format only.
noinst_LTLIBRARIES += tools/libtools.la
tools_libtools_la_SOURCES = \
	tools/control.c tools/control.h \
	tools/number.c tools/number.h \
	tools/options.c tools/options.h \
	tools/progress.c tools/progress.h \
	tools/tool.c tools/tool.h
tools_libtools_la_CFLAGS = $(AM_CFLAGS) $(JANSSON_CFLAGS)
tools_libtools_la_LIBADD = daemon/base/libbase.la $(JANSSON_LIBS)
