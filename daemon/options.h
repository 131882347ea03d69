/* SPDX-License-Identifier: MIT */
/* lorad's options, from the command line and lorad.conf: see options.c. */
#ifndef LORAD_OPTIONS_H
#define LORAD_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "daemon/base/cleanup.h"
#include "daemon/base/error.h"
#include "daemon/format/conf.h"
#include "daemon/model/model.h"
#include "daemon/sched/sched.h"

#define OPTIONS_ISA_AUTO (-1)

enum options_device { OPTIONS_DEVICE_AUTO, OPTIONS_DEVICE_CPU, OPTIONS_DEVICE_CUDA };

/* What was asked for. Strings live as long as argv and the struct itself; NULL and 0: not given. */
struct options {
	const char *model, *store, *socket, *config;
	enum options_device device;
	uint32_t cuda_number;
	bool cuda_graphs;
	enum model_precision precision, kv_type;
	bool source_adapters;     /* adapters are never used packed */
	enum sched_prefix prefix;
	struct sched_fairness fairness;
	int isa;                  /* enum kern_isa or OPTIONS_ISA_AUTO */
	uint64_t threads, context;
	uint64_t device_memory, host_cache;
	struct conf *conf;        /* owns what came from the file */
	char *default_paths[2];
};

enum options_result {
	OPTIONS_OK,
	OPTIONS_E_USAGE,   /* not how lorad is called */
	OPTIONS_E_INVALID, /* a value is wrong, or the file */
	OPTIONS_E_HELP,    /* --help was given */
	OPTIONS_E_VERSION,
};

/* The environment, as far as default paths depend on it; NULL: not set. */
struct options_environment {
	bool root;
	const char *runtime_dir, *state_home, *home;
	const char *config;       /* read if it exists and --config is not given */
};

#define OPTIONS_QUEUE_LIMIT 4096u
#define OPTIONS_NULL { .isa = OPTIONS_ISA_AUTO, .fairness = { .queue_limit = OPTIONS_QUEUE_LIMIT } }

int options_read(struct options *options, int argc, char **argv, const struct options_environment *environment,
		 struct diag *diag);
void options_deinit(struct options *options);
void options_print_help(FILE *to);

#endif
