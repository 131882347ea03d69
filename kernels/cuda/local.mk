# The CUDA backend: one archive, of the host's C and of what nvcc makes of the kernels. Programs that compute link
# $(KERN_CUDA) and $(KERN_CUDA_LIBS), which is the backend or, without nvcc, the word that there is none.
CUDA_HOST_SOURCES = \
	kernels/cuda.h \
	kernels/cuda/api.h \
	kernels/cuda/attention.c kernels/cuda/attention.h \
	kernels/cuda/dev.h \
	kernels/cuda/device.c kernels/cuda/device.h \
	kernels/cuda/error.c \
	kernels/cuda/graph.c \
	kernels/cuda/launch.h \
	kernels/cuda/matmul.c \
	kernels/cuda/memory.c \
	kernels/cuda/table.c \
	kernels/cuda/upload.c \
	kernels/cuda/weight.c
CUDA_KERNELS = \
	kernels/cuda/activate.cu \
	kernels/cuda/attention-decode.cu \
	kernels/cuda/attention-prefill.cu \
	kernels/cuda/embed.cu \
	kernels/cuda/kv.cu \
	kernels/cuda/lora-expand.cu \
	kernels/cuda/lora-shrink.cu \
	kernels/cuda/norm.cu \
	kernels/cuda/quant.cu \
	kernels/cuda/rope.cu \
	kernels/cuda/sample.cu \
	kernels/cuda/scale.cu \
	kernels/cuda/skinny.cu \
	kernels/cuda/swiglu.cu
EXTRA_DIST += $(CUDA_KERNELS) kernels/cuda/lora.h kernels/cuda/quant.h kernels/cuda/sample.h

# The programs are linked by the C compiler, without the C++ runtime: hence the last line.
NVCC_FLAGS = -std=c++17 -O3 -lineinfo $(NVCC_ARCHS) -Werror all-warnings -Xptxas -warn-spills,-warn-lmem-usage \
	-Xcompiler -Wall,-Wextra,-fPIE,-fno-exceptions,-fno-rtti,-fno-threadsafe-statics -I$(top_srcdir)

if CUDA
noinst_LIBRARIES += kernels/cuda/libcuda.a
kernels_cuda_libcuda_a_SOURCES = $(CUDA_HOST_SOURCES) kernels/cuda/api-runtime.c
kernels_cuda_libcuda_a_CFLAGS = $(AM_CFLAGS) $(CUDA_CFLAGS)
kernels_cuda_libcuda_a_LIBADD = $(CUDA_KERNELS:.cu=.cu.o)
kernels_cuda_libcuda_a_DEPENDENCIES = $(kernels_cuda_libcuda_a_LIBADD)
KERN_CUDA = kernels/cuda/libcuda.a
KERN_CUDA_LIBS = $(CUDA_LIBS)
CLEANFILES += $(CUDA_KERNELS:.cu=.cu.o) $(CUDA_KERNELS:.cu=.cu.d)

kernels/cuda/%.cu.o: $(top_srcdir)/kernels/cuda/%.cu Makefile
	@$(MKDIR_P) $(@D)
	$(AM_V_GEN)$(NVCC) $(NVCC_FLAGS) -MD -MF kernels/cuda/$*.cu.d -c -o $@ $<
-include $(CUDA_KERNELS:.cu=.cu.d)
else
noinst_LIBRARIES += kernels/cuda/libcuda-none.a
kernels_cuda_libcuda_none_a_SOURCES = kernels/cuda-none.c kernels/cuda.h
KERN_CUDA = kernels/cuda/libcuda-none.a
KERN_CUDA_LIBS =
EXTRA_DIST += $(CUDA_HOST_SOURCES) kernels/cuda/api-runtime.c
endif
