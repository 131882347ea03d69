/* SPDX-License-Identifier: MIT */
/* From a step's results to messages for the client: see answer.c. */
#ifndef LORAD_SCHED_ANSWER_H
#define LORAD_SCHED_ANSWER_H

#include "daemon/sched/request.h"

enum answer_finish { ANSWER_STOP, ANSWER_LENGTH, ANSWER_CANCELLED, ANSWER_ERROR }; /* enum lc_finish */

int answer_token(struct request *request, const struct model *model, const struct kern_result *result);
void answer_scores(struct request *request, const struct kern_result *results, uint32_t n);
bool answer_send_unsent(struct request *request);
void answer_done(struct request *request, enum answer_finish finish, uint64_t now_ns);
void answer_error(struct request *request, int code, uint32_t retry_ms, const char *text);

#endif
