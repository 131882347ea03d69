/* SPDX-License-Identifier: MIT */
/* A PEFT folder as the step wants it: what an import, the store and the pager do, without all three. */
#include <check.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/format/peft.h"
#include "daemon/format/safetensors.h"
#include "tests/unit/model-rig.h"

/* A file's bytes, terminated; malloc'd. */
static char *read_file(const char *folder, const char *name, size_t *ret_bytes)
{
	char path[PATH_MAX], *bytes;
	FILE *file;
	long n;

	(void)snprintf(path, sizeof(path), "%s/%s", folder, name);
	file = fopen(path, "re");
	ck_assert_msg(file != NULL, "%s: cannot be opened", path);
	(void)fseek(file, 0, SEEK_END);
	n = ftell(file);
	rewind(file);
	bytes = malloc((size_t)n + 1);
	ck_assert_uint_eq(fread(bytes, 1, (size_t)n, file), (size_t)n);
	bytes[n] = '\0';
	(void)fclose(file);
	*ret_bytes = (size_t)n;
	return bytes;
}

/* A stays as it is but for the stride; B, [out][rank] in the file, becomes [rank][out]. */
static void copy_matrix(uint8_t *to, const uint8_t *from, size_t item, uint32_t rank, uint32_t width, bool transpose)
{
	size_t stride = (item * width + 63) / 64 * 64;

	for (uint32_t i = 0; i < rank; ++i)
		for (uint32_t j = 0; j < width; ++j)
			memcpy(to + i * stride + j * item, from + (transpose ? (size_t)j * rank + i : (size_t)i * width + j) * item,
			       item);
}

/* The packed form in its place. */
static void pack(struct rig_lora *lora, const struct image_geometry *g, const struct image_module *modules, uint32_t n)
{
	struct image_packed packed = { 0 };
	int r = image_pack(lora->payload, modules, n, g, &packed);

	ck_assert_msg(r == IMAGE_PACK_OK, "cannot be packed: %g off", (double)packed.error);
	printf("packed, a module %.4f off: ", (double)packed.error);
	free(lora->payload);
	lora->payload = packed.payload;
	ck_assert_int_eq(step_lora_init(&lora->lora, g, lora->payload, n, lora->payload), 0);
}

static void place_modules(struct rig_lora *ret, const struct image_geometry *g, const struct peft_lora *peft,
			  const uint8_t *file, bool packed)
{
	struct image_module *modules = calloc(peft->n_modules, sizeof(*modules));
	size_t bytes = 0;

	for (uint32_t i = 0; i < peft->n_modules; ++i) {
		const struct peft_module *m = &peft->modules[i];
		uint32_t in, out;

		model_module_shape(g, m->module, &in, &out);
		modules[i] = (struct image_module){
			.module = m->module,
			.rank = (uint16_t)m->rank,
			.dtype = (uint8_t)m->dtype,
			.in = in,
			.out = out,
			.scale = m->scale,
			.a_offset = bytes,
			.b_offset = bytes + m->rank * kern_lora_stride(m->dtype, in),
		};
		bytes = modules[i].b_offset + m->rank * kern_lora_stride(m->dtype, out);
	}
	ret->payload = aligned_alloc(64, bytes);
	for (uint32_t i = 0; i < peft->n_modules; ++i) {
		const struct image_module *m = &modules[i];
		size_t item = kern_dtype_bytes(peft->modules[i].dtype);
		uint8_t *payload = ret->payload;

		copy_matrix(payload + m->a_offset, file + peft->modules[i].a->offset, item, m->rank, m->in, false);
		copy_matrix(payload + m->b_offset, file + peft->modules[i].b->offset, item, m->rank, m->out, true);
	}
	if (packed)
		pack(ret, g, modules, peft->n_modules);
	else
		ck_assert_int_eq(step_lora_init(&ret->lora, g, modules, peft->n_modules, ret->payload), 0);
	free(modules);
}

void rig_lora_open(struct rig_lora *ret, const struct image_geometry *geometry, const char *folder, bool packed)
{
	_cleanup_(safetensors_freep) struct safetensors *st = NULL;
	_cleanup_(peft_freep) struct peft_lora *peft = NULL;
	_cleanup_free_ char *file = NULL, *config = NULL;
	size_t file_bytes, config_bytes;
	uint64_t header_bytes = 0;
	struct diag diag = { "" };

	file = read_file(folder, "adapter_model.safetensors", &file_bytes);
	config = read_file(folder, "adapter_config.json", &config_bytes);
	ck_assert_int_eq(safetensors_header_bytes((const uint8_t *)file, file_bytes, &header_bytes, &diag), 0);
	ck_assert_int_eq(safetensors_parse(&st, file + 8, header_bytes, file_bytes, &diag), 0);
	ck_assert_msg(peft_parse(&peft, config, config_bytes, st, geometry, &diag) == 0, "%s", diag.text);
	place_modules(ret, geometry, peft, (const uint8_t *)file, packed);
}

void rig_lora_close(struct rig_lora *lora)
{
	step_lora_deinit(&lora->lora);
	free(lora->payload);
	lora->payload = NULL;
}
