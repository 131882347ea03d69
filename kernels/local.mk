# Layer 0: compute ops behind const tables. No I/O, no logging; memory is allocated by the device tables only.
noinst_LTLIBRARIES += kernels/libkernels.la
kernels_libkernels_la_SOURCES = \
	kernels/dispatch.c \
	kernels/host.c kernels/host.h \
	kernels/host-ops.c \
	kernels/kernels.h \
	kernels/philox.h \
	kernels/quant.c kernels/quant.h \
	kernels/ref.c \
	kernels/sample.c
kernels_libkernels_la_CFLAGS = $(AM_CFLAGS) $(KERNEL_CFLAGS)
kernels_libkernels_la_LIBADD = -lm

# What -O3 would add to a user's -O2: loops become vectors. No flag here changes a result.
KERNEL_CFLAGS = -ftree-vectorize -fvect-cost-model=dynamic -fno-math-errno -fno-trapping-math

# One body, once per instruction set. The flags of a set stand in its own CFLAGS, so the user's cannot replace them.
X86_SOURCES = \
	kernels/sample.c \
	kernels/vec-avx2.h kernels/vec-avx512.h \
	kernels/x86-amx.c \
	kernels/x86-attention.c kernels/x86-attention.h \
	kernels/x86-attention-parts.c \
	kernels/x86-float.c \
	kernels/x86-kv.c kernels/x86-kv.h \
	kernels/x86-lora.c \
	kernels/x86-panel.h \
	kernels/x86-quant.c \
	kernels/x86-rows.c \
	kernels/x86-table.c \
	kernels/x86-weight.c \
	kernels/x86.h
AVX2_CFLAGS = -mavx2 -mfma -mf16c
AVX512_CFLAGS = $(AVX2_CFLAGS) -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512

if X86_64
noinst_LTLIBRARIES += kernels/libavx2.la kernels/libavx512.la kernels/libvnni.la kernels/libbf16.la
kernels_libavx2_la_SOURCES = $(X86_SOURCES)
kernels_libavx2_la_CPPFLAGS = $(AM_CPPFLAGS) -DX86_ISA=avx2
kernels_libavx2_la_CFLAGS = $(AM_CFLAGS) $(KERNEL_CFLAGS) $(AVX2_CFLAGS)
kernels_libavx512_la_SOURCES = $(X86_SOURCES)
kernels_libavx512_la_CPPFLAGS = $(AM_CPPFLAGS) -DX86_ISA=avx512
kernels_libavx512_la_CFLAGS = $(AM_CFLAGS) $(KERNEL_CFLAGS) $(AVX512_CFLAGS)
kernels_libvnni_la_SOURCES = $(X86_SOURCES)
kernels_libvnni_la_CPPFLAGS = $(AM_CPPFLAGS) -DX86_ISA=vnni
kernels_libvnni_la_CFLAGS = $(AM_CFLAGS) $(KERNEL_CFLAGS) $(AVX512_CFLAGS) -mavx512vnni
kernels_libbf16_la_SOURCES = $(X86_SOURCES)
kernels_libbf16_la_CPPFLAGS = $(AM_CPPFLAGS) -DX86_ISA=bf16
kernels_libbf16_la_CFLAGS = $(AM_CFLAGS) $(KERNEL_CFLAGS) $(AVX512_CFLAGS) -mavx512vnni -mavx512bf16 -mamx-tile -mamx-bf16
kernels_libkernels_la_LIBADD += kernels/libavx2.la kernels/libavx512.la kernels/libvnni.la kernels/libbf16.la
endif
