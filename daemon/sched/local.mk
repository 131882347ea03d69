# Layer 5: admission, batching, preemption, the step loop.
noinst_LTLIBRARIES += daemon/sched/libsched.la
daemon_sched_libsched_la_SOURCES = \
	daemon/sched/admit.c daemon/sched/admit.h \
	daemon/sched/answer.c daemon/sched/answer.h \
	daemon/sched/batch.c daemon/sched/batch.h \
	daemon/sched/charge.c daemon/sched/charge.h \
	daemon/sched/engine.c daemon/sched/engine.h \
	daemon/sched/estimate.c daemon/sched/estimate.h \
	daemon/sched/fair.c daemon/sched/fair.h \
	daemon/sched/inbox.c daemon/sched/inbox.h \
	daemon/sched/late.c \
	daemon/sched/listing.c daemon/sched/listing.h \
	daemon/sched/memory.c \
	daemon/sched/request.c daemon/sched/request.h \
	daemon/sched/runner.c \
	daemon/sched/sched.c daemon/sched/sched.h \
	daemon/sched/start.c \
	daemon/sched/stops.c daemon/sched/stops.h
