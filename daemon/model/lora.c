/* SPDX-License-Identifier: MIT */
/*
 * A resident adapter as the step sees it
 *
 * An image's payload holds a table of the modules it changes; the ops look a module up by number. So the table is spread
 * out to one kern_lora per module of the model, with NULL where the adapter changes nothing. The matrices stay in the
 * payload.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "daemon/base/error.h"
#include "daemon/model/step.h"

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
	uint32_t n = geometry->n_layers * _KERN_MODULE_N + 1, max_rank = 0;
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
		};
		max_rank = m->rank > max_rank ? m->rank : max_rank;
	}
	*lora = (struct step_lora){ .modules = table, .n_modules = n, .max_rank = max_rank };
	return 0;
}

void step_lora_deinit(struct step_lora *lora)
{
	free(lora->modules);
	*lora = (struct step_lora){ 0 };
}
