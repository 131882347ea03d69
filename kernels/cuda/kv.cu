/* SPDX-License-Identifier: MIT */
/*
 * The KV cache's blocks: writing a step's keys and values into them, and copying whole blocks.
 *
 * Inside a block: [layer], then keys [KV head][token][e], then values [KV head][token][e], as f32 or bf16. Blocks start
 * at multiples of 16 bytes; so does every token's key and value where e is a multiple of 8 and layers are aligned, too.
 */
#include "kernels/cuda/launch.h"

#define WRITE_THREADS 128
#define COPY_THREADS 256
#define COPY_EACH 4 /* 16 bytes, loaded by a thread before it stores the first */

/* Numbers [0, WIDTH) of a token, f32 to what the block holds. */
template <bool BF16, unsigned WIDTH> DEV_INLINE void put(void *to, const float *from)
{
	if (WIDTH == 1) {
		if (BF16)
			*(uint16_t *)to = dev_to_bf16(*from);
		else
			*(float *)to = *from;
		return;
	}
	struct dev_u32x4 a = dev_load16(from), b = dev_load16(from + 4);
	if (BF16) {
		dev_store16(to, { { dev_to_bf16x2(dev_float(a.x[0]), dev_float(a.x[1])),
				    dev_to_bf16x2(dev_float(a.x[2]), dev_float(a.x[3])),
				    dev_to_bf16x2(dev_float(b.x[0]), dev_float(b.x[1])),
				    dev_to_bf16x2(dev_float(b.x[2]), dev_float(b.x[3])) } });
	} else {
		dev_store16(to, a);
		dev_store16((float *)to + 4, b);
	}
}

/* Block x: row x of the step, k and v [n][KV head][e]. */
template <bool BF16, unsigned WIDTH>
static DEV_KERNEL(WRITE_THREADS) kv_write(struct kern_kv_write a, struct kern_kv_layout kv)
{
	DEV_BOUNDS(WRITE_THREADS);
	const struct kern_step *step = a.step;
	uint32_t row = blockIdx.x, pieces = kv.head_dim / WIDTH, of_row = kv.n_kv_heads * pieces;

	if (!DEV_GUARD(row < step->n_rows))
		return;
	uint32_t position = step->position[row], token = position % kv.block_tokens;
	uint32_t first_block = step->seq[step->row_seq[row]].block_index;
	uint8_t *layer = (uint8_t *)step->kv_block[first_block + position / kv.block_tokens] + a.layer * kv.layer_bytes;
	for (uint32_t i = threadIdx.x; i < 2 * of_row; i += WRITE_THREADS) {
		uint32_t value = i >= of_row, in_row = i - value * of_row;
		uint32_t head = in_row / pieces, j = in_row % pieces * WIDTH;
		size_t number = ((size_t)(value * kv.n_kv_heads + head) * kv.block_tokens + token) * kv.head_dim + j;
		const float *from = (value ? a.v : a.k) + ((size_t)row * kv.n_kv_heads + head) * kv.head_dim + j;
		put<BF16, WIDTH>(layer + number * (BF16 ? 2 : 4), from);
	}
}

template <unsigned WIDTH> static void start(struct kern_device *device, const struct kern_kv_write *a)
{
	dim3 grid(a->extent->n_rows);

	if (a->kv->dtype == KERN_BF16)
		CUDA_LAUNCH(device, (kv_write<true, WIDTH>), grid, WRITE_THREADS, 0, *a, *a->kv);
	else
		CUDA_LAUNCH(device, (kv_write<false, WIDTH>), grid, WRITE_THREADS, 0, *a, *a->kv);
}

extern "C" void cuda_kv_write(struct kern_device *device, const void *args, unsigned, unsigned)
{
	const struct kern_kv_write *a = (const struct kern_kv_write *)args;
	bool aligned = (((uintptr_t)a->k | (uintptr_t)a->v | a->kv->layer_bytes) % 16) == 0;

	if (aligned && a->kv->head_dim % 8 == 0)
		start<8>(device, a);
	else
		start<1>(device, a);
}

/* Block (x, y): piece y of KV block x; words: its size in 16 bytes */
static DEV_KERNEL(COPY_THREADS) kv_copy(void *const *from, void *const *to, size_t words)
{
	DEV_BOUNDS(COPY_THREADS);
	const struct dev_u32x4 *source = (const struct dev_u32x4 *)from[blockIdx.x];
	struct dev_u32x4 *target = (struct dev_u32x4 *)to[blockIdx.x];
	size_t first = (size_t)blockIdx.y * COPY_THREADS * COPY_EACH + threadIdx.x;
	struct dev_u32x4 word[COPY_EACH];

	for (unsigned i = 0; i < COPY_EACH; i++)
		if (DEV_GUARD(first + i * COPY_THREADS < words))
			word[i] = dev_load16(source + first + i * COPY_THREADS);
	for (unsigned i = 0; i < COPY_EACH; i++)
		if (DEV_GUARD(first + i * COPY_THREADS < words))
			dev_store16(target + first + i * COPY_THREADS, word[i]);
}

extern "C" void cuda_kv_copy(struct kern_device *device, const void *args, unsigned, unsigned)
{
	const struct kern_kv_copy *a = (const struct kern_kv_copy *)args;
	size_t words = a->block_bytes / 16, of_block = (size_t)COPY_THREADS * COPY_EACH;
	dim3 grid(a->n, (unsigned)((words + of_block - 1) / of_block));

	CUDA_LAUNCH(device, (kv_copy), grid, COPY_THREADS, 0, a->from, a->to, words);
}
