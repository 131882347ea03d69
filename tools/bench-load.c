/* SPDX-License-Identifier: MIT */
/*
 * The load
 *
 * C clients, each a connection of its own, all in one thread that sleeps in one poll(): on a small machine the generator
 * must not compete with the daemon for cores. Closed loop: a client asks again when it is answered. Open loop: requests
 * arrive by a Poisson process whoever is busy, the clients take turns, and a request's time starts at its arrival, so that
 * a daemon that falls behind shows it.
 *
 * Times are taken when an event is handled here: first token minus submission, then from token to token.
 * With a time limit, what is in flight at the end is left out but for the tokens that had come.
 */
#include <errno.h>
#include <math.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/clock.h"
#include "daemon/base/list.h"
#include "libclient/loraclient.h"
#include "tools/bench.h"

struct client {
	lc_connection *connection;
	struct run *run;
	unsigned in_flight;
	bool ready;               /* there are events to dispatch */
};

/* One request on its way. */
struct flight {
	struct list link;
	struct client *client;
	struct bench_adapter *adapter;
	uint64_t started_ns, last_ns; /* asked for; latest token */
	uint64_t n_tokens;
};

struct run {
	struct bench_load *load;
	struct bench_result *result;
	struct diag *diag;
	struct client *clients;
	struct pollfd *fds;
	lc_request *request;      /* filled anew for each */
	uint32_t *prompt;
	struct lc_model model;
	struct list flights;
	uint64_t submitted, begun_ns, end_ns, next_arrival_ns;
	int error;                /* no memory inside an event */
};

int bench_samples_add(struct bench_samples *samples, double ms)
{
	if (samples->n == samples->room) {
		size_t room = samples->room * 2 + 1024;
		float *larger = reallocarray(samples->ms, room, sizeof(*larger));

		if (!larger)
			return -ENOMEM;
		samples->ms = larger;
		samples->room = room;
	}
	samples->ms[samples->n++] = (float)ms;
	return 0;
}

static int compare_floats(const void *a, const void *b)
{
	const float *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

/** bench_samples_percentile() - by nearest rank; sorts the samples */
double bench_samples_percentile(struct bench_samples *samples, double percent)
{
	size_t rank;

	if (!samples->n)
		return (double)NAN;
	qsort(samples->ms, samples->n, sizeof(*samples->ms), compare_floats);
	rank = (size_t)ceil(percent / 100 * (double)samples->n);
	return (double)samples->ms[rank ? rank - 1 : 0];
}

void bench_samples_deinit(struct bench_samples *samples)
{
	free(samples->ms);
	*samples = (struct bench_samples){ .ms = NULL };
}

void bench_result_deinit(struct bench_result *result)
{
	bench_samples_deinit(&result->ttft);
	bench_samples_deinit(&result->itl);
}

static void on_token(struct run *run, struct flight *flight)
{
	uint64_t now = clock_ns();
	int r;

	if (flight->n_tokens++ == 0)
		r = bench_samples_add(&run->result->ttft, clock_ms(now - flight->started_ns));
	else
		r = bench_samples_add(&run->result->itl, clock_ms(now - flight->last_ns));
	flight->last_ns = now;
	++run->result->tokens;
	run->error = r < 0 ? r : run->error;
}

static void count_error(struct bench_result *result, const char *text)
{
	if (result->errors++ == 0)
		(void)snprintf(result->first_error, sizeof(result->first_error), "%s", text);
}

/* Where the adapter came from: from the store if this request had to wait for it, else where it was when last seen. */
static void count_hit(struct bench_result *result, struct flight *flight, double page_in_ms)
{
	if (!flight->adapter)
		return;
	if (page_in_ms > 0) {
		++result->hits[BENCH_STORE];
		flight->adapter->tier = BENCH_DEVICE;
		return;
	}
	if (flight->adapter->tier == BENCH_STORE) /* another request has brought it in since */
		flight->adapter->tier = BENCH_DEVICE;
	++result->hits[flight->adapter->tier];
}

static void on_done(struct run *run, struct flight *flight, const struct lc_event *event)
{
	char text[80];

	if (event->finish == LC_FINISH_LENGTH && flight->n_tokens == (uint64_t)run->load->gen_tokens) {
		count_hit(run->result, flight, event->page_in_ms);
		++run->result->requests;
		return;
	}
	(void)snprintf(text, sizeof(text), "an answer ended after %llu of %lld tokens",
		       (unsigned long long)flight->n_tokens, (long long)run->load->gen_tokens);
	count_error(run->result, text);
}

static void on_event(lc_connection *connection, const struct lc_event *event)
{
	struct flight *flight = event->userdata;
	struct run *run = flight->client->run;

	(void)connection;
	if (event->type == LC_EVENT_TOKEN) {
		on_token(run, flight);
		return;
	}
	if (event->type == LC_EVENT_DONE)
		on_done(run, flight, event);
	else if (event->type == LC_EVENT_ERROR)
		count_error(run->result, event->error);
	else
		return;
	--flight->client->in_flight;
	list_unlink(&flight->link);
	free(flight);
}

/* Fills the request with random ordinary tokens; `adapter` may be NULL. */
static int fill_request(struct run *run, const struct bench_adapter *adapter)
{
	int r;

	lc_request_free(run->request);
	run->request = NULL;
	r = lc_request_new(&run->request, LC_GENERATE);
	for (int64_t i = 0; !r && i < run->load->prompt_tokens; ++i)
		run->prompt[i] = run->model.plain_first +
				 (uint32_t)(bench_random_next(&run->load->random) % run->model.n_plain);
	if (!r)
		r = lc_request_set_tokens(run->request, run->prompt, (size_t)run->load->prompt_tokens);
	if (!r && adapter)
		r = lc_request_add_adapter(run->request, adapter->name, 1);
	if (r)
		return diag_set(run->diag, TOOL_FAILED, "cannot make a request: %s", strerror(-r));
	lc_request_set_max_tokens(run->request, (uint32_t)run->load->gen_tokens);
	lc_request_set_ignore_eos(run->request, true);
	return TOOL_OK;
}

/* Submits the next request for a client. *ret_full: its ring has no room, try again after dispatching. */
static int submit(struct run *run, struct client *client, uint64_t started_ns, bool *ret_full)
{
	_cleanup_free_ struct flight *flight = calloc(1, sizeof(*flight));
	uint64_t id;
	int r;

	if (!flight)
		return tool_no_memory(run->diag);
	*flight = (struct flight){ .client = client, .started_ns = started_ns };
	flight->adapter = bench_adapters_choose(run->load->adapters, run->submitted, &run->load->random);
	r = fill_request(run, flight->adapter);
	if (r)
		return r;
	lc_request_set_userdata(run->request, flight);
	r = lc_submit(client->connection, run->request, &id);
	*ret_full = r == -EAGAIN;
	if (r == -EAGAIN)
		return TOOL_OK;
	if (r < 0)
		return diag_set(run->diag, TOOL_FAILED, "%s", lc_error_text(client->connection));
	list_append(&run->flights, &flight->link);
	++client->in_flight;
	++run->submitted;
	(void)TAKE_PTR(flight);
	return TOOL_OK;
}

static bool all_submitted(const struct run *run)
{
	return run->load->n_requests && run->submitted >= (uint64_t)run->load->n_requests;
}

static int submit_closed(struct run *run)
{
	bool full;
	int r = TOOL_OK;

	for (int64_t i = 0; !r && i < run->load->n_clients && !all_submitted(run); ++i)
		if (!run->clients[i].in_flight)
			r = submit(run, &run->clients[i], clock_ns(), &full);
	return r;
}

static int submit_open(struct run *run)
{
	bool full = false;
	int r = TOOL_OK;

	while (!r && !full && !all_submitted(run) && clock_ns() >= run->next_arrival_ns) {
		struct client *client = &run->clients[run->submitted % (uint64_t)run->load->n_clients];
		double pause_s = -log1p(-bench_random_unit(&run->load->random)) / run->load->rate;

		r = submit(run, client, run->next_arrival_ns, &full);
		if (!full)
			run->next_arrival_ns += (uint64_t)(pause_s * (double)NS_PER_S);
	}
	return r;
}

/* How long the loop may sleep: to the next arrival or the end. A tenth of a second keeps the progress line alive. */
static struct timespec sleep_time(const struct run *run, bool ready)
{
	uint64_t now = clock_ns(), until = now + 100 * NS_PER_MS;

	if (run->load->rate > 0 && !all_submitted(run) && run->next_arrival_ns < until)
		until = run->next_arrival_ns;
	if (run->end_ns && run->end_ns < until)
		until = run->end_ns;
	if (ready || until < now)
		until = now;
	return (struct timespec){ .tv_sec = (time_t)((until - now) / NS_PER_S), .tv_nsec = (long)((until - now) % NS_PER_S) };
}

static int lost(struct run *run, struct client *client, int error)
{
	const char *text = lc_error_text(client->connection);

	return diag_set(run->diag, TOOL_FAILED, "%s", text && *text ? text : strerror(-error));
}

static int dispatch(struct run *run)
{
	bool ready = false;
	struct timespec sleep;

	for (int64_t i = 0; i < run->load->n_clients; ++i) {
		struct client *client = &run->clients[i];
		int r = lc_poll_begin(client->connection);

		if (r < 0)
			return lost(run, client, r);
		client->ready = r > 0;
		ready |= client->ready;
	}
	sleep = sleep_time(run, ready);
	if (ppoll(run->fds, (nfds_t)run->load->n_clients, &sleep, NULL) < 0 && errno != EINTR)
		return diag_set(run->diag, TOOL_FAILED, "poll: %s", strerror(errno));
	for (int64_t i = 0; i < run->load->n_clients; ++i) {
		struct client *client = &run->clients[i];
		int r = client->ready || run->fds[i].revents ? lc_dispatch(client->connection) : 0;

		if (r < 0)
			return lost(run, client, r);
	}
	return run->error < 0 ? tool_no_memory(run->diag) : TOOL_OK;
}

static void report(struct run *run)
{
	uint64_t answered = run->result->requests + run->result->errors;
	double seconds = (double)(clock_ns() - run->begun_ns) / (double)NS_PER_S;
	double fraction = run->end_ns ? seconds / run->load->seconds : (double)answered / (double)run->load->n_requests;

	run->load->progress(run->load->userdata, fraction, answered, (double)run->result->tokens / seconds);
}

static bool finished(const struct run *run)
{
	if (run->end_ns)
		return clock_ns() >= run->end_ns;
	return all_submitted(run) && list_empty(&run->flights);
}

static int connect_clients(struct run *run)
{
	struct bench_load *load = run->load;
	char error[sizeof(run->diag->text)];

	for (int64_t i = 0; i < load->n_clients; ++i) {
		struct client *client = &run->clients[i];
		int r;

		client->run = run;
		r = lc_connect(&client->connection, load->socket, on_event, error, sizeof(error));
		if (r < 0)
			return diag_set(run->diag, TOOL_FAILED, "client %lld: %s", (long long)i + 1, error);
		run->fds[i] = (struct pollfd){ .fd = lc_fd(client->connection), .events = POLLIN };
	}
	lc_read_model(run->clients[0].connection, &run->model);
	if (!run->model.n_plain)
		return diag_set(run->diag, TOOL_FAILED, "the model has no ordinary tokens");
	if (load->prompt_tokens > run->model.context || load->gen_tokens > run->model.context - load->prompt_tokens)
		return diag_set(run->diag, TOOL_FAILED,
				"--prompt-tokens %lld and --gen-tokens %lld are beyond the context of %u tokens",
				(long long)load->prompt_tokens, (long long)load->gen_tokens, run->model.context);
	return TOOL_OK;
}

static int run_all(struct run *run)
{
	int r;

	r = connect_clients(run);
	if (r)
		return r;
	run->begun_ns = run->next_arrival_ns = clock_ns();
	if (!run->load->n_requests)
		run->end_ns = run->begun_ns + (uint64_t)(run->load->seconds * (double)NS_PER_S);
	while (!r && !finished(run)) {
		r = run->load->rate > 0 ? submit_open(run) : submit_closed(run);
		if (!r)
			r = dispatch(run);
		report(run);
	}
	run->result->seconds = (double)(clock_ns() - run->begun_ns) / (double)NS_PER_S;
	return r;
}

/**
 * bench_load_run() - put the load on the daemon and measure
 * @load:    what to do
 * @result:  the figures; zeroed before, the caller ends it with bench_result_deinit()
 * @diag:    why it could not be done; single requests that fail are counted in the result instead
 */
int bench_load_run(struct bench_load *load, struct bench_result *result, struct diag *diag)
{
	struct run run = { .load = load, .result = result, .diag = diag };
	struct flight *flight;
	int r;

	list_init(&run.flights);
	run.clients = calloc((size_t)load->n_clients, sizeof(*run.clients));
	run.fds = calloc((size_t)load->n_clients, sizeof(*run.fds));
	run.prompt = calloc((size_t)load->prompt_tokens, sizeof(*run.prompt));
	r = run.clients && run.fds && run.prompt ? run_all(&run) : tool_no_memory(diag);
	for (int64_t i = 0; run.clients && i < load->n_clients; ++i)
		if (run.clients[i].connection)
			lc_disconnect(run.clients[i].connection);
	list_for_each(flight, &run.flights, link)
		free(flight);
	lc_request_free(run.request);
	free(run.clients);
	free(run.fds);
	free(run.prompt);
	return r;
}
