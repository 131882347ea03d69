/* SPDX-License-Identifier: MIT */
/* What each client has in flight, and the most it may have: see charge.c. */
#ifndef LORAD_SCHED_CHARGE_H
#define LORAD_SCHED_CHARGE_H

#include <pthread.h>
#include <stdint.h>

#include "daemon/base/error.h"
#include "daemon/base/list.h"

#define CHARGE_REQUESTS_MAX 4096u          /* of one client */
#define CHARGE_TOKENS_MAX (8u << 20)       /* of one client: prompts and the answers asked for */

struct charges {
	pthread_mutex_t lock;
	struct list clients;
};

struct charge_client;

/* One request's share, embedded in it. */
struct charge {
	struct charge_client *client; /* NULL: nothing is charged */
	uint32_t tokens;
};

enum charge_result { CHARGE_OK, CHARGE_E_QUOTA };

int charges_init(struct charges *charges);
void charges_deinit(struct charges *charges);
int charge_take(struct charges *charges, const void *session, uint32_t tokens, struct charge *ret, struct diag *diag);
void charge_drop(struct charges *charges, struct charge *charge);

#endif
