/* SPDX-License-Identifier: MIT */
/* Exports: a version -> the PEFT files it came from, its tensors bit by bit the same. See export.c. */
#ifndef LORAD_IMPORT_EXPORT_H
#define LORAD_IMPORT_EXPORT_H

#include "daemon/store/store.h"

struct export_files {
	int config_fd, weights_fd; /* memfds at offset 0: adapter_config.json, adapter_model.safetensors */
};

/* 0, STORE_E_NOT_FOUND, STORE_E_CORRUPT (in words in diag), -errno. Blocks for disk reads. Both fds are the caller's. */
int export_version(struct store *store, const struct store_digest *digest, struct export_files *ret, struct diag *diag);

#endif
