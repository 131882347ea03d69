/* SPDX-License-Identifier: MIT */
/*
 * The load
 *
 * C clients, each a connection of its own, all in one thread that sleeps in one poll(): on a small machine the generator
 * must not compete with the daemon for cores. Closed loop: a client asks again when it is answered, or turned away and the
 * daemon's hint has passed. Open loop: requests arrive as planned whoever is busy, the clients take turns, and a request's
 * time starts at its planned arrival, so that a daemon that falls behind shows it.
 *
 * Times are taken when an event is handled here: first token minus start, then from token to token. With a time limit,
 * what is in flight at the end is left out but for the tokens that had come; with a target, requests whose first token is
 * late already have missed it.
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
	uint64_t resume_ns;       /* closed loop: asks no earlier */
	bool ready;               /* there are events to dispatch */
};

/* One request on its way. */
struct flight {
	struct list link;
	struct client *client;
	struct bench_ask ask;
	uint64_t started_ns, last_ns; /* asked for; latest token */
	uint64_t n_tokens;
	bool in_target;
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
	struct bench_ask next;    /* to be submitted, if there is one */
	bool has_next, full;      /* full: there was no room for it */
	uint64_t begun_ns, end_ns;
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
	rank = (size_t)ceil(percent * (double)samples->n / 100 - 1e-6); /* 99.9 is a little more in binary */
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

static bool late(const struct run *run, uint64_t started_ns, uint64_t now)
{
	return run->load->target_ms && now - started_ns > (uint64_t)run->load->target_ms * NS_PER_MS;
}

static int on_first_token(struct run *run, struct flight *flight, uint64_t now)
{
	flight->in_target = run->load->target_ms && !late(run, flight->started_ns, now);
	run->result->in_target += flight->in_target;
	return bench_samples_add(&run->result->ttft, clock_ms(now - flight->started_ns));
}

static void on_token(struct run *run, struct flight *flight)
{
	uint64_t now = clock_ns();
	int r;

	if (flight->n_tokens++ == 0)
		r = on_first_token(run, flight, now);
	else
		r = bench_samples_add(&run->result->itl, clock_ms(now - flight->last_ns));
	flight->last_ns = now;
	++run->result->tokens;
	run->error = r < 0 ? r : run->error;
}

static void count_error(struct bench_result *result, struct flight *flight, const char *text)
{
	result->in_target -= flight->in_target;
	if (result->errors++ == 0)
		(void)snprintf(result->first_error, sizeof(result->first_error), "%s", text);
}

/* Where the adapter came from: from the store if this request had to wait for it, else where it was when last seen. */
static void count_hit(struct bench_result *result, struct flight *flight, double page_in_ms)
{
	struct bench_adapter *adapter = flight->ask.adapter;

	if (!adapter)
		return;
	if (page_in_ms > 0) {
		++result->hits[BENCH_STORE];
		adapter->tier = BENCH_DEVICE;
		return;
	}
	if (adapter->tier == BENCH_STORE) /* another request has brought it in since */
		adapter->tier = BENCH_DEVICE;
	++result->hits[adapter->tier];
}

static void on_done(struct run *run, struct flight *flight, const struct lc_event *event)
{
	char text[80];

	if (event->finish == LC_FINISH_LENGTH && flight->n_tokens == flight->ask.gen_tokens) {
		count_hit(run->result, flight, event->page_in_ms);
		++run->result->requests;
		run->result->prefix_hit_tokens += event->cached_tokens;
		return;
	}
	(void)snprintf(text, sizeof(text), "an answer ended after %llu of %u tokens",
		       (unsigned long long)flight->n_tokens, flight->ask.gen_tokens);
	count_error(run->result, flight, text);
}

static void on_error(struct run *run, struct flight *flight, const struct lc_event *event)
{
	flight->client->resume_ns = clock_ns() + event->retry_ms * NS_PER_MS;
	if (event->code != ETIME && event->code != ETIMEDOUT && event->code != EAGAIN) {
		count_error(run->result, flight, event->error);
		return;
	}
	++run->result->aborted;
	run->result->in_target -= flight->in_target;
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
		on_error(run, flight, event);
	else
		return;
	--flight->client->in_flight;
	list_unlink(&flight->link);
	free(flight);
}

/* Fills the request with what is to be asked next, in random ordinary tokens. */
static int fill_request(struct run *run)
{
	const struct bench_ask *ask = &run->next;
	int r;

	lc_request_free(run->request);
	run->request = NULL;
	bench_plan_prompt(run->load->plan, ask, run->model.plain_first, run->model.n_plain, run->prompt);
	r = lc_request_new(&run->request, LC_GENERATE);
	if (!r)
		r = lc_request_set_tokens(run->request, run->prompt, ask->prompt_tokens);
	if (!r && ask->adapter)
		r = lc_request_add_adapter(run->request, ask->adapter->name, 1);
	if (r)
		return diag_set(run->diag, TOOL_FAILED, "cannot make a request: %s", strerror(-r));
	lc_request_set_max_tokens(run->request, ask->gen_tokens);
	lc_request_set_ignore_eos(run->request, true);
	if (run->load->tell_target)
		lc_request_set_first_token_ms(run->request, run->load->target_ms);
	return TOOL_OK;
}

static void draw_next(struct run *run)
{
	run->has_next = bench_plan_next(run->load->plan, &run->next);
}

/* Submits the next request for a client. run->full: its ring has no room, try again after dispatching. */
static int submit(struct run *run, struct client *client, uint64_t started_ns)
{
	_cleanup_free_ struct flight *flight = calloc(1, sizeof(*flight));
	uint64_t id;
	int r;

	if (!flight)
		return tool_no_memory(run->diag);
	*flight = (struct flight){ .client = client, .ask = run->next, .started_ns = started_ns };
	r = fill_request(run);
	if (r)
		return r;
	lc_request_set_userdata(run->request, flight);
	r = lc_submit(client->connection, run->request, &id);
	run->full = r == -EAGAIN;
	if (r == -EAGAIN)
		return TOOL_OK;
	if (r < 0)
		return diag_set(run->diag, TOOL_FAILED, "%s", lc_error_text(client->connection));
	list_append(&run->flights, &flight->link);
	++client->in_flight;
	++run->result->offered;
	draw_next(run);
	(void)TAKE_PTR(flight);
	return TOOL_OK;
}

static bool is_open(const struct run *run)
{
	return run->load->plan->rate > 0 || run->load->plan->trace;
}

static int submit_closed(struct run *run)
{
	int r = TOOL_OK;

	for (int64_t i = 0; !r && i < run->load->n_clients && run->has_next; ++i)
		if (!run->clients[i].in_flight && clock_ns() >= run->clients[i].resume_ns)
			r = submit(run, &run->clients[i], clock_ns());
	return r;
}

static int submit_open(struct run *run)
{
	int r = TOOL_OK;

	run->full = false;
	while (!r && !run->full && run->has_next && clock_ns() >= run->begun_ns + run->next.at_ns) {
		struct client *client = &run->clients[run->next.number % (uint64_t)run->load->n_clients];

		r = submit(run, client, run->begun_ns + run->next.at_ns);
	}
	return r;
}

/* When the next request is to be tried. What found no room waits without spinning. */
static uint64_t next_ns(const struct run *run, uint64_t now)
{
	uint64_t next = UINT64_MAX;

	if (!run->has_next)
		return next;
	if (run->full)
		return now + NS_PER_MS;
	if (is_open(run))
		return run->begun_ns + run->next.at_ns;
	for (int64_t i = 0; i < run->load->n_clients; ++i)
		if (!run->clients[i].in_flight && run->clients[i].resume_ns < next)
			next = run->clients[i].resume_ns;
	return next;
}

/* How long the loop may sleep: to the next arrival or the end. A tenth of a second keeps the progress line alive. */
static struct timespec sleep_time(const struct run *run, bool ready)
{
	uint64_t now = clock_ns(), until = now + 100 * NS_PER_MS;

	if (next_ns(run, now) < until)
		until = next_ns(run, now);
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
	uint64_t answered = run->result->requests + run->result->errors + run->result->aborted;
	double seconds = (double)(clock_ns() - run->begun_ns) / (double)NS_PER_S;
	double fraction = run->end_ns ? seconds / run->load->seconds :
					(double)answered / (double)bench_plan_size(run->load->plan);

	run->load->progress(run->load->userdata, fraction, answered, (double)run->result->tokens / seconds);
}

static bool finished(const struct run *run)
{
	if (run->end_ns && clock_ns() >= run->end_ns)
		return true;
	return !run->has_next && list_empty(&run->flights);
}

/* What was not answered by the end has missed the target if it is late already; else it is left out. */
static void settle(struct run *run, uint64_t now)
{
	const struct flight *flight;

	list_for_each(flight, &run->flights, link)
		if (run->load->target_ms && !flight->n_tokens && !late(run, flight->started_ns, now))
			--run->result->offered;
	for (; is_open(run) && run->has_next && run->begun_ns + run->next.at_ns <= now; draw_next(run))
		if (!run->load->target_ms || late(run, run->begun_ns + run->next.at_ns, now))
			++run->result->offered;
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
	return TOOL_OK;
}

static int make_prompt_buffer(struct run *run)
{
	uint32_t longest;
	int r;

	r = bench_plan_check(run->load->plan, run->model.context, &longest, run->diag);
	if (r)
		return r;
	run->prompt = calloc(longest, sizeof(*run->prompt));
	return run->prompt ? TOOL_OK : tool_no_memory(run->diag);
}

static int run_all(struct run *run)
{
	uint64_t now;
	int r;

	r = connect_clients(run);
	if (!r)
		r = make_prompt_buffer(run);
	if (r)
		return r;
	bench_plan_begin(run->load->plan);
	draw_next(run);
	run->begun_ns = clock_ns();
	if (run->load->seconds > 0)
		run->end_ns = run->begun_ns + (uint64_t)(run->load->seconds * (double)NS_PER_S);
	while (!r && !finished(run)) {
		r = is_open(run) ? submit_open(run) : submit_closed(run);
		if (!r)
			r = dispatch(run);
		report(run);
	}
	now = clock_ns();
	settle(run, now);
	run->result->seconds = (double)(now - run->begun_ns) / (double)NS_PER_S;
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
	r = run.clients && run.fds ? run_all(&run) : tool_no_memory(diag);
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
