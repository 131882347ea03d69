/* SPDX-License-Identifier: MIT */
/* A PEFT adapter's two files -> image payload and digest. See convert.c. */
#ifndef LORAD_IMPORT_CONVERT_H
#define LORAD_IMPORT_CONVERT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "daemon/store/store.h"

enum convert_result {
	CONVERT_OK,
	CONVERT_E_REFUSED,   /* why is in the diag */
	CONVERT_E_CANCELLED,
};

struct convert_source {
	int config_fd, weights_fd;  /* adapter_config.json, adapter_model.safetensors */
	bool pack;                  /* make a packed image, too, if int8 is fine enough for it */
	const atomic_bool *cancelled;
	void (*progress)(void *userdata, uint64_t bytes, uint64_t total); /* or NULL */
	void *userdata;
};

struct converted {
	struct store_record record; /* ready for store_put() */
	char *config;               /* record.config_bytes */
	uint8_t *payload;           /* record.payload_bytes */
	uint8_t *packed;            /* record.packed_bytes; NULL: 0 */
};

int convert(struct converted *ret, const struct convert_source *source, const struct image_geometry *geometry,
	    struct diag *diag);
void converted_deinit(struct converted *converted);

#endif
