# Layer 0: compute ops behind const tables. No I/O, no logging, no allocation in ops.
noinst_LTLIBRARIES += kernels/libkernels.la
kernels_libkernels_la_SOURCES = \
	kernels/dispatch.c \
	kernels/host.c kernels/host.h \
	kernels/kernels.h \
	kernels/philox.h \
	kernels/quant.c kernels/quant.h \
	kernels/ref.c \
	kernels/sample.c kernels/sample.h
kernels_libkernels_la_CFLAGS = $(AM_CFLAGS) -O3 -fno-math-errno -fno-trapping-math
kernels_libkernels_la_LIBADD = -lm
