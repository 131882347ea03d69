/* SPDX-License-Identifier: MIT */
/* The table of the CUDA backend. */
#include "kernels/cuda.h"
#include "kernels/cuda/device.h"

static const struct kern_device_ops device = {
	.open = cuda_open,
	.close = cuda_close,
	.memory = cuda_memory,
	.reserve = cuda_reserve,
	.alloc = cuda_alloc,
	.free = cuda_free,
	.register_host = cuda_register_host,
	.unregister_host = cuda_unregister_host,
	.copy_async = cuda_copy_async,
	.fence = cuda_fence,
	.upload = cuda_upload,
	.join = cuda_join,
	.failure = cuda_failure,
	.replay = cuda_replay,
	.record = cuda_record,
	.play = cuda_play,
	.weight_plan = cuda_weight_plan,
	.weight_pack = cuda_weight_pack,
	.weight_release = cuda_weight_release,
	.activation_bytes = cuda_activation_bytes,
};

static const struct kern_ops ops = {
	.embed = cuda_embed,
	.rms_norm = cuda_rms_norm,
	.activate = cuda_activate,
	.matmul = cuda_matmul,
	.lora_shrink = cuda_lora_shrink,
	.lora_expand = cuda_lora_expand,
	.row_scale = cuda_row_scale,
	.rope = cuda_rope,
	.kv_write = cuda_kv_write,
	.kv_copy = cuda_kv_copy,
	.attention = cuda_attention,
	.swiglu = cuda_swiglu,
	.sample = cuda_sample,
};

static const struct kern_backend cuda = { .name = "cuda", .queued = true, .device = &device, .ops = &ops };

const struct kern_backend *kern_cuda(void)
{
	return &cuda;
}
