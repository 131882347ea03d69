/* SPDX-License-Identifier: MIT */
/* The table of an x86 instruction set: the ops of the other x86 files, on the host's own memory. */
#include "kernels/x86.h"

#define STRING_(x) #x
#define STRING(x) STRING_(x)

static const struct kern_device_ops device = {
	HOST_MEMORY_OPS,
	.weight_plan = X86(weight_plan),
	.weight_pack = X86(weight_pack),
	.weight_release = X86(weight_release),
	.activation_bytes = X86(activation_bytes),
	.attention_bytes = X86(attention_bytes),
};

static const struct kern_ops ops = {
	.embed = X86(embed),
	.rms_norm = X86(rms_norm),
	.activate = X86(activate),
	.matmul = X86(matmul),
	.lora_shrink = X86(lora_shrink),
	.lora_expand = X86(lora_expand),
	.row_scale = host_row_scale,
	.rope = X86(rope),
	.kv_write = X86(kv_write),
	.kv_copy = host_kv_copy,
	.attention = X86(attention),
	.swiglu = X86(swiglu),
	.sample = X86(sample),
};

const struct kern_backend X86(kern) = {
	.name = STRING(X86_ISA), .exact_rows = true, .lora_i8 = true, .device = &device, .ops = &ops,
};
