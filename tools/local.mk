# Layer 7: the programs for people. They see libclient, kernels, base, os and format only.
bin_PROGRAMS += tools/loractl tools/lorabench

noinst_LTLIBRARIES += tools/libtools.la
tools_libtools_la_SOURCES = \
	tools/control.c tools/control.h \
	tools/number.c tools/number.h \
	tools/options.c tools/options.h \
	tools/progress.c tools/progress.h \
	tools/tool.c tools/tool.h \
	tools/top-frame.c tools/top-frame.h
tools_libtools_la_CFLAGS = $(AM_CFLAGS) $(JANSSON_CFLAGS)
tools_libtools_la_LIBADD = daemon/base/libbase.la $(JANSSON_LIBS) -lm

noinst_LTLIBRARIES += tools/libbench.la
tools_libbench_la_SOURCES = \
	tools/bench.h \
	tools/bench-adapters.c \
	tools/bench-load.c \
	tools/bench-plan.c \
	tools/bench-random.c \
	tools/bench-trace.c \
	tools/talk.c tools/talk.h
tools_libbench_la_CFLAGS = $(AM_CFLAGS) $(JANSSON_CFLAGS)
tools_libbench_la_LIBADD = tools/libtools.la libclient/libloraclient.la -lm

tools_loractl_SOURCES = \
	tools/ask.c tools/ask.h \
	tools/ctl.c tools/ctl.h \
	tools/ctl-compact.c \
	tools/ctl-export.c \
	tools/ctl-generate.c \
	tools/ctl-import.c \
	tools/ctl-list.c \
	tools/ctl-metrics.c \
	tools/ctl-pin.c \
	tools/ctl-prefetch.c \
	tools/ctl-remove.c \
	tools/ctl-score.c \
	tools/ctl-show.c \
	tools/ctl-status.c \
	tools/ctl-top.c \
	tools/ctl-unpin.c \
	tools/ctl-verify.c \
	tools/loractl.c \
	tools/talk.c tools/talk.h
tools_loractl_CFLAGS = $(AM_CFLAGS) $(JANSSON_CFLAGS)
tools_loractl_LDADD = tools/libtools.la daemon/format/libformat.la libclient/libloraclient.la

tools_lorabench_SOURCES = tools/lorabench.c
tools_lorabench_CFLAGS = $(AM_CFLAGS) $(JANSSON_CFLAGS)
tools_lorabench_LDADD = tools/libbench.la

EXTRA_DIST += tools/loractl.bash
install-data-local: install-completion
install-completion:
	$(MKDIR_P) '$(DESTDIR)$(bashcompletiondir)'
	$(INSTALL_DATA) $(top_srcdir)/tools/loractl.bash '$(DESTDIR)$(bashcompletiondir)/loractl'

uninstall-local: uninstall-completion
uninstall-completion:
	rm -f '$(DESTDIR)$(bashcompletiondir)/loractl'

.PHONY: install-completion uninstall-completion
