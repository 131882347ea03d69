/* SPDX-License-Identifier: MIT */
/* Which modules a PEFT configuration names: PEFT's matching rules. Private to peft*.c. */
#ifndef LORAD_FORMAT_PEFT_TARGET_H
#define LORAD_FORMAT_PEFT_TARGET_H

#include <jansson.h>
#include <stdbool.h>

#include "daemon/base/cleanup.h"
#include "daemon/format/format.h"

struct peft_rules; /* target_modules, exclude_modules, layers_*, rank_pattern, alpha_pattern of one configuration */

int peft_rules_new(struct peft_rules **ret, json_t *config, struct diag *diag);
struct peft_rules *peft_rules_free(struct peft_rules *rules);
DEFINE_CLEANUP(struct peft_rules *, peft_rules_free)

/* name: the module's in transformers, "model.layers.0.self_attn.q_proj". Return: 0, 1 or a negative errno. */
int peft_rules_target(const struct peft_rules *rules, const char *name);

/* The value of rank_pattern / alpha_pattern for a module, or *ret as it is where no key matches. */
int peft_rules_rank(const struct peft_rules *rules, const char *name, double *ret);
int peft_rules_alpha(const struct peft_rules *rules, const char *name, double *ret);

#endif
