/* SPDX-License-Identifier: MIT */
/*
 * A resident adapter as the step sees it
 *
 * An image's payload holds a table of the modules it changes; the ops look a module up by number. So the table is spread
 * out to one kern_lora per module of the model, with NULL where the adapter changes nothing. The matrices stay in the
 * payload. Where the device has memory of its own, the table travels there behind the payload (step_lora_place()).
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/error.h"
#include "daemon/model/step.h"

static uint32_t n_modules_of(const struct image_geometry *geometry)
{
	return geometry->n_layers * _KERN_MODULE_N + 1;
}

/* Bytes of the table of any adapter. */
size_t step_lora_table_bytes(const struct image_geometry *geometry)
{
	return n_modules_of(geometry) * sizeof(struct kern_lora);
}

/**
 * step_lora_init() - modules of an adapter in memory
 * @lora:       filled on success
 * @geometry:   the running model's
 * @modules:    the image's module table, checked by image_modules() against that geometry
 * @payload:    device address of the payload; must stay while the adapter is in use
 */
int step_lora_init(struct step_lora *lora, const struct image_geometry *geometry, const struct image_module *modules,
		   uint32_t n_modules, const void *payload)
{
	uint32_t n = n_modules_of(geometry), max_rank = 0;
	struct kern_lora *table = calloc(n, sizeof(*table));
	const uint8_t *bytes = payload;

	if (!table)
		return error_origin(-ENOMEM);
	for (uint32_t i = 0; i < n_modules; ++i) {
		const struct image_module *m = &modules[i];

		assert(m->module < n && m->rank > 0 && m->rank <= STEP_RANK_MAX);
		table[m->module] = (struct kern_lora){
			.a = bytes + m->a_offset,
			.b = bytes + m->b_offset,
			.scale = m->scale,
			.rank = m->rank,
			.dtype = m->dtype,
			.scales = image_scales(payload, m),
		};
		max_rank = m->rank > max_rank ? m->rank : max_rank;
	}
	*lora = (struct step_lora){ .modules = table, .on_device = table, .n_modules = n, .max_rank = max_rank };
	return 0;
}

/**
 * step_lora_place() - give the table a place in device memory
 * @host:       room for step_lora_table_bytes(), whose content the caller brings there
 * @device:     where that will be
 */
void step_lora_place(struct step_lora *lora, void *host, const void *device)
{
	memcpy(host, lora->modules, lora->n_modules * sizeof(*lora->modules));
	lora->on_device = device;
}

void step_lora_deinit(struct step_lora *lora)
{
	free(lora->modules);
	*lora = (struct step_lora){ 0 };
}
