/* SPDX-License-Identifier: MIT */
/* Which backend a machine can run: asked of cpuid (through the compiler's runtime, which also asks the system). */
#include "kernels/kernels.h"

const char *const kern_isa_names[_KERN_ISA_N] = { "scalar", "avx2", "avx512", "vnni", "bf16" };

#ifdef __x86_64__

extern const struct kern_backend kern_avx2, kern_avx512, kern_vnni, kern_bf16; /* x86-table.c */
extern bool amx_allowed_bf16(void);                                            /* x86-amx.c */

static bool has_avx2(void)
{
	return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

static bool has_avx512(void)
{
	return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
	       __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

static bool has_vnni(void)
{
	return has_avx512() && __builtin_cpu_supports("avx512vnni");
}

static bool has_bf16(void)
{
	return has_vnni() && __builtin_cpu_supports("avx512bf16");
}

/*
 * Whether bf16 products are worth choosing. Intel's vdpbf16ps takes four times as long as a multiply-add of half as many
 * products (81 and 170 GFLOP/s a core, Emerald Rapids), so without tiles f32 is twice as fast.
 */
static bool prefers_bf16(void)
{
	return amx_allowed_bf16() || !__builtin_cpu_is("intel");
}

const struct kern_backend *kern_cpu(enum kern_isa isa)
{
	switch (isa) {
	case KERN_ISA_SCALAR:
		return &kern_ref;
	case KERN_ISA_AVX2:
		return has_avx2() ? &kern_avx2 : NULL;
	case KERN_ISA_AVX512:
		return has_avx512() ? &kern_avx512 : NULL;
	case KERN_ISA_VNNI:
		return has_vnni() ? &kern_vnni : NULL;
	case KERN_ISA_BF16:
		return has_bf16() ? &kern_bf16 : NULL;
	case _KERN_ISA_N:
		break;
	}
	return NULL;
}

#else

static bool prefers_bf16(void)
{
	return false;
}

const struct kern_backend *kern_cpu(enum kern_isa isa)
{
	return isa == KERN_ISA_SCALAR ? &kern_ref : NULL;
}

#endif

enum kern_isa kern_cpu_best(void)
{
	unsigned isa = _KERN_ISA_N - 1;

	while (!kern_cpu((enum kern_isa)isa) || (isa == KERN_ISA_BF16 && !prefers_bf16()))
		isa--;
	return (enum kern_isa)isa;
}
