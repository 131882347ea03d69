/* SPDX-License-Identifier: MIT */
/* What computes: device, model, memory, step. See compute.c. */
#ifndef LORAD_COMPUTE_H
#define LORAD_COMPUTE_H

#include "daemon/base/error.h"
#include "daemon/model/kv.h"
#include "daemon/model/model.h"
#include "daemon/model/pool.h"
#include "daemon/model/step.h"
#include "daemon/os/mem.h"
#include "daemon/os/team.h"

struct options;

enum compute_result {
	COMPUTE_OK,
	COMPUTE_E_REFUSED, /* not on this machine as asked; why is in diag */
};

struct compute {
	const struct kern_backend *backend;
	struct kern_device *device;
	char name[16];            /* cpu, cuda:N */
	const char *isa;          /* of the CPU, or the backend's name */
	uint32_t threads;
	struct team *team;
	struct model *model;
	struct mem_region region; /* host memory that adapters are read to; on the CPU also the pool's */
	void *arena;              /* device memory of the pool */
	size_t arena_bytes;
	struct pool *pool;        /* KV blocks and adapters, on the device */
	struct pool *host_pool;   /* adapters in the region; NULL on the CPU, where they are in the pool at once */
	size_t adapter_bytes;     /* most of the pool that adapters may take */
	bool packed_adapters;     /* their packed images are used, and made at import */
	struct kv *kv;
	struct step *step;
	struct step_limits limits;
};

#define COMPUTE_NULL { .region = MEM_REGION_NULL }

int compute_init(struct compute *compute, const struct options *options, void (*progress)(void *, double), void *userdata,
		 struct diag *diag);
void compute_deinit(struct compute *compute);

#endif
