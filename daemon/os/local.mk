# Layer 2: the operating system: event loop, compute threads, memory, sockets.
noinst_LTLIBRARIES += daemon/os/libos.la
daemon_os_libos_la_SOURCES = \
	daemon/os/journal.c daemon/os/journal.h \
	daemon/os/loop.c daemon/os/loop.h \
	daemon/os/mem.c daemon/os/mem.h \
	daemon/os/notify.c daemon/os/notify.h \
	daemon/os/sock.c daemon/os/sock.h \
	daemon/os/team.c daemon/os/team.h \
	daemon/os/uring.c daemon/os/uring.h
daemon_os_libos_la_CPPFLAGS = $(AM_CPPFLAGS) $(URING_CFLAGS) $(SYSTEMD_CFLAGS)
daemon_os_libos_la_LIBADD = $(URING_LIBS) $(SYSTEMD_LIBS)
