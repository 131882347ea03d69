/* SPDX-License-Identifier: MIT */
/* A small PEFT adapter in memory, to be spoilt and written into memfds: q_proj and v_proj of both layers, rank 4. */
#ifndef LORAD_TESTS_ADAPTER_UTIL_H
#define LORAD_TESTS_ADAPTER_UTIL_H

#include <sys/mman.h>
#include <unistd.h>

#include "daemon/format/safetensors.h"
#include "tests/unit/store-util.h"

#define ADAPTER_TENSORS 8
#define ADAPTER_RANK 4
#define ADAPTER_CONFIG(more) \
	"{\"peft_type\": \"LORA\", \"r\": 4, \"lora_alpha\": 8, \"target_modules\": [\"q_proj\", \"v_proj\"]" more "}"

struct adapter {
	char config[1024];
	char names[ADAPTER_TENSORS][96];
	struct safetensors_tensor tensors[ADAPTER_TENSORS];
	size_t n_tensors;
	uint8_t *data;               /* of all tensors, in order; room for twice as much */
	size_t data_bytes;
};

static inline struct adapter *adapter_new(uint64_t seed)
{
	static const char *const modules[] = { "q_proj", "v_proj" };
	struct adapter *a = calloc(1, sizeof(*a));
	size_t n = 0;
	float *numbers;

	snprintf(a->config, sizeof(a->config), "%s", ADAPTER_CONFIG(""));
	for (unsigned layer = 0; layer < 2; ++layer) {
		for (unsigned m = 0; m < 2; ++m) {
			for (unsigned which = 0; which < 2; ++which, ++n) {
				struct safetensors_tensor *t = &a->tensors[n];

				snprintf(a->names[n], sizeof(a->names[n]),
					 "base_model.model.model.layers.%u.self_attn.%s.lora_%c.weight", layer,
					 modules[m], which ? 'B' : 'A');
				*t = (struct safetensors_tensor){ .name = a->names[n], .dtype_name = "F32",
								  .dtype = KERN_F32, .n_dims = 2 };
				t->shape[0] = which ? (m ? 32 : 64) : ADAPTER_RANK;
				t->shape[1] = which ? ADAPTER_RANK : 64;
				t->bytes = t->shape[0] * t->shape[1] * 4;
				a->data_bytes += t->bytes;
			}
		}
	}
	a->n_tensors = n;
	a->data = calloc(2, a->data_bytes);
	numbers = (float *)(void *)a->data;
	for (size_t i = 0; i < a->data_bytes / 4; ++i)
		numbers[i] = (float)((i * 7 + seed * 13) % 101) / 64.0f - 0.75f;
	return a;
}

static inline void adapter_free(struct adapter *a)
{
	free(a->data);
	free(a);
}

static inline int adapter_memfd(const void *bytes, size_t n)
{
	int fd = memfd_create("test", MFD_CLOEXEC);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(write(fd, bytes, n), (ssize_t)n);
	return fd;
}

static inline int adapter_config_fd(const struct adapter *a)
{
	return adapter_memfd(a->config, strlen(a->config));
}

static inline int adapter_weights_fd(const struct adapter *a)
{
	char *header = NULL;
	size_t bytes;
	int fd;

	ck_assert_int_eq(safetensors_write_header(a->tensors, a->n_tensors, &header, &bytes), 0);
	fd = adapter_memfd(header, bytes);
	ck_assert_int_eq(write(fd, a->data, a->data_bytes), (ssize_t)a->data_bytes);
	free(header);
	return fd;
}

#endif
