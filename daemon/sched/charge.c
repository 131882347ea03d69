/* SPDX-License-Identifier: MIT */
/*
 * Charges
 *
 * Every request is charged with its prompt and all the tokens it asked for from the moment it is admitted until it ends,
 * because that is what it may come to take. One client's requests are added up under its session, so that a client that
 * submits without end is refused instead of filling the daemon's memory.
 *
 * A client is known here while it has requests in flight. Taken on the loop's thread, dropped on the engine's: one lock.
 */
#include "daemon/sched/charge.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

struct charge_client {
	struct list link;
	const void *session; /* only compared: every request in flight holds a reference to it */
	uint64_t tokens;
	uint32_t requests;
};

int charges_init(struct charges *charges)
{
	list_init(&charges->clients);
	return error_origin(-pthread_mutex_init(&charges->lock, NULL));
}

void charges_deinit(struct charges *charges)
{
	assert(list_empty(&charges->clients));
	pthread_mutex_destroy(&charges->lock);
}

static struct charge_client *find(struct charges *charges, const void *session)
{
	struct charge_client *client;

	list_for_each(client, &charges->clients, link)
		if (client->session == session)
			return client;
	client = calloc(1, sizeof(*client));
	if (!client)
		return NULL;
	client->session = session;
	list_append(&charges->clients, &client->link);
	return client;
}

static void forget_idle(struct charge_client *client)
{
	if (client->requests)
		return;
	list_unlink(&client->link);
	free(client);
}

static int take(struct charge_client *client, uint32_t tokens, struct diag *diag)
{
	if (client->requests >= CHARGE_REQUESTS_MAX)
		return diag_set(diag, CHARGE_E_QUOTA, "this client has %u requests in flight, the most there may be",
				(unsigned)client->requests);
	if (tokens > CHARGE_TOKENS_MAX - client->tokens)
		return diag_set(diag, CHARGE_E_QUOTA,
				"this client's requests in flight would come to more than %u tokens",
				(unsigned)CHARGE_TOKENS_MAX);
	client->requests++;
	client->tokens += tokens;
	return CHARGE_OK;
}

/**
 * charge_take() - charge a client with one more request
 * @charges:    all clients
 * @session:    the client
 * @tokens:     what the request may come to take
 * @ret:        the charge, to be dropped when the request ends
 * @diag:       why not
 *
 * Return: CHARGE_OK, CHARGE_E_QUOTA, or -ENOMEM.
 */
int charge_take(struct charges *charges, const void *session, uint32_t tokens, struct charge *ret, struct diag *diag)
{
	struct charge_client *client;
	int r = -ENOMEM;

	pthread_mutex_lock(&charges->lock);
	client = find(charges, session);
	if (client)
		r = take(client, tokens, diag);
	if (r == CHARGE_OK)
		*ret = (struct charge){ .client = client, .tokens = tokens };
	else if (client)
		forget_idle(client);
	pthread_mutex_unlock(&charges->lock);
	return error_origin(r);
}

void charge_drop(struct charges *charges, struct charge *charge)
{
	struct charge_client *client = charge->client;

	if (!client)
		return;
	pthread_mutex_lock(&charges->lock);
	assert(client->requests && client->tokens >= charge->tokens);
	client->requests--;
	client->tokens -= charge->tokens;
	forget_idle(client);
	pthread_mutex_unlock(&charges->lock);
	charge->client = NULL;
}
