/* SPDX-License-Identifier: MIT */
/* Weights on their way from the files into the backend's layout, in host memory or on a device. See upload.c. */
#ifndef LORAD_MODEL_UPLOAD_H
#define LORAD_MODEL_UPLOAD_H

#include <stddef.h>
#include <stdint.h>

#include "daemon/base/error.h"
#include "daemon/model/source.h"
#include "kernels/kernels.h"

struct team;

/* A weight and the tensor it is made of. */
struct weight_load {
	struct kern_weight *w;    /* planned */
	struct kern_matrix m;     /* data: in a mapped file of the source */
	enum source_kind kind;
};

struct upload_options {
	const struct kern_device_ops *ops;
	struct kern_device *device;
	struct team *team;
	const struct source *source;
	size_t buffer_bytes;      /* of each of the four; 0: UPLOAD_BUFFER */
	void (*progress)(void *userdata, double fraction); /* or NULL */
	void *userdata;
};

#define UPLOAD_BUFFER ((size_t)16 << 20)

int upload_weights(const struct upload_options *options, const struct weight_load *loads, size_t n, struct diag *diag);

/* Packs packed rows [first, first + n) of w to `to`, by the whole team; first is a multiple of w->grain. */
void upload_pack(const struct kern_device_ops *ops, struct team *team, const struct kern_weight *w,
		 const struct kern_matrix *m, uint32_t first, uint32_t n, void *to);

/* Why the device gave us r < 0: MODEL_E_INVALID with its own words, or r where it has none. */
int upload_failed(const struct kern_device_ops *ops, struct kern_device *device, int r, struct diag *diag);

#endif
