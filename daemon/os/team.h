/* SPDX-License-Identifier: MIT */
/* Compute threads: see team.c. */
#ifndef LORAD_OS_TEAM_H
#define LORAD_OS_TEAM_H

#include "daemon/base/cleanup.h"

struct team;

typedef void team_fn(const void *args, unsigned part, unsigned n_parts);

int team_new(struct team **ret, unsigned n_threads);
struct team *team_free(struct team *team);
unsigned team_size(const struct team *team);
unsigned team_processors(void);
void team_run(struct team *team, team_fn *fn, const void *args);
void team_rest(struct team *team);

DEFINE_CLEANUP(struct team *, team_free)

#endif
