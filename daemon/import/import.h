/* SPDX-License-Identifier: MIT */
/* Imports: a stranger's PEFT files -> checked, converted, committed image, on a thread of their own. See import.c. */
#ifndef LORAD_IMPORT_IMPORT_H
#define LORAD_IMPORT_IMPORT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "daemon/base/cleanup.h"
#include "daemon/base/list.h"
#include "daemon/store/store.h"

struct importer;

enum import_outcome {
	IMPORT_IMPORTED,
	IMPORT_REPLACED,   /* the name had other content */
	IMPORT_UNCHANGED,  /* the name had this content already */
	IMPORT_REFUSED,    /* why is in diag */
	IMPORT_CANCELLED,
	IMPORT_FAILED,     /* something is broken here, in words in diag */
	_IMPORT_OUTCOME_N,
};
extern const char *const import_outcome_names[_IMPORT_OUTCOME_N];

/* One import. The caller's memory, who keeps it until done() was called; both functions run on the importer's thread. */
struct import_job {
	char name[STORE_NAME_MAX + 1];
	bool replace;
	int config_fd, weights_fd;    /* adapter_config.json, adapter_model.safetensors; closed before done() */
	void (*progress)(struct import_job *job, uint64_t bytes, uint64_t total); /* or NULL */
	void (*done)(struct import_job *job);
	void *userdata;
	atomic_bool cancelled;        /* may be set at any time, from any thread */

	enum import_outcome outcome;
	struct store_record record;   /* IMPORTED, REPLACED, UNCHANGED */
	struct diag diag;
	struct list link;             /* the importer's own */
};

int importer_new(struct importer **ret, struct store *store, const struct image_geometry *geometry, bool pack);
struct importer *importer_free(struct importer *importer); /* cancels what is queued and what runs */
DEFINE_CLEANUP(struct importer *, importer_free)
void importer_submit(struct importer *importer, struct import_job *job); /* any thread */

#endif
