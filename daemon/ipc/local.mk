# Layer 3: clients, sessions, rings.
noinst_LTLIBRARIES += daemon/ipc/libipc.la
daemon_ipc_libipc_la_SOURCES = \
	daemon/ipc/endpoint.c \
	daemon/ipc/ipc.h \
	daemon/ipc/listener.c \
	daemon/ipc/request.c \
	daemon/ipc/send.c \
	daemon/ipc/session.c daemon/ipc/session.h
