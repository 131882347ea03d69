/* SPDX-License-Identifier: MIT */
/* What a verb of loractl is, and what verbs share. See loractl.c, ctl.c. */
#ifndef LORAD_TOOLS_CTL_H
#define LORAD_TOOLS_CTL_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "daemon/base/cleanup.h"
#include "tools/control.h"
#include "tools/options.h"
#include "tools/tool.h"

/* What holds for every verb. */
struct ctl {
	const char *given_socket;     /* --socket */
	char socket[TOOL_PATH_MAX];
	bool json, help, version;
	struct diag *diag;            /* where a failure is put in words */
};

/* One verb, in a file of its own: ctl-<name>.c. */
struct ctl_verb {
	const char *name;
	const char *arguments;        /* as --help shows them */
	const char *summary;          /* one line */
	size_t least_args, most_args; /* words after the verb that are no options */
	const struct option *options; /* or NULL */
	size_t state_bytes;           /* of the struct that the options set */
	const void *defaults;         /* its first values, or NULL: zero */
	int (*run)(struct ctl *ctl, void *state, char **args, size_t n_args);
};

#define CTL_ANY_NUMBER ((size_t)-1)

extern const struct ctl_verb ctl_import, ctl_list, ctl_show, ctl_verify, ctl_compact, ctl_remove, ctl_export, ctl_pin,
	ctl_unpin, ctl_prefetch, ctl_status, ctl_metrics, ctl_top, ctl_generate, ctl_score;


bool ctl_name_valid(const char *name);
int ctl_check_name(struct ctl *ctl, const char *name);
void ctl_print_json(const json_t *value);
void ctl_print_fields(json_t *object, const char *prefix);
const char *ctl_text(const json_t *object, const char *key);

int ctl_call(struct ctl *ctl, const char *method, json_t *parameters, json_t **ret);
int ctl_call_on_name(struct ctl *ctl, const char *method, const char *name, const char *done, const char *loading);

#endif
