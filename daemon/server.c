/* SPDX-License-Identifier: MIT */
/*
 * Server
 *
 * Wires the layers together, bottom up: store, compute, memory, engine, doors. Every part gets what it needs as an
 * argument and none finds another by itself, so this file is the one place that knows all of them. server_free() takes
 * them down in the opposite order; each step of it allows for parts that were never made.
 *
 * Start. The store is locked first, because that is how a second daemon is noticed before it loads anything. The sockets
 * come last: a client that can connect is served. Signals are blocked from the first line on and read from a descriptor;
 * only while the model loads do they keep their usual effect, so that a start can be interrupted.
 *
 * End. SIGTERM stops the loop; then nobody is admitted any more, requests get DRAIN_NS to finish, the rest is failed with
 * a reason, and everything is freed.
 */
#include "daemon/server.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>

#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/cache/cache.h"
#include "daemon/compute.h"
#include "daemon/control.h"
#include "daemon/import/import.h"
#include "daemon/mailbox.h"
#include "daemon/options.h"
#include "daemon/os/journal.h"
#include "daemon/os/loop.h"
#include "daemon/os/notify.h"
#include "daemon/os/sock.h"
#include "daemon/parts.h"
#include "daemon/sched/sched.h"
#include "daemon/worker.h"

#define DRAIN_NS (5 * NS_PER_S)          /* SIGTERM ends the daemon within 10 s, with room to spare */
#define LOAD_EXTEND_NS (60 * NS_PER_S)   /* asked of systemd with every report of progress */
#define SOCKET_MODE 0660
#define LOOKAHEAD_BYTES (256u << 20)      /* of page-ins for requests that wait for something else */

struct door {
	const char *name;        /* in the socket unit */
	char *path;              /* of a socket that we made and will remove; NULL: systemd's */
	int fd;
};

struct server {
	const struct options *options;
	struct parts parts;

	struct mailbox mailbox;
	bool has_mailbox;
	struct compute compute;
	_Atomic bool lost;       /* the device failed */
	struct control *control;
	struct door client, admin;

	sigset_t signals;
	int signal_fd;
	struct loop_source signal_source;
	struct loop_timer watchdog;
	uint64_t progress;       /* the engine's, when the watchdog was last fed */
	uint64_t told_ns;        /* when systemd was last told how far the model is */
	char status[256];        /* what is served and how, in words */
};

/* ---- compute ---- */

/* While it loads, systemd is told to be patient. */
static void on_load_progress(void *userdata, double fraction)
{
	struct server *server = userdata;
	uint64_t now = clock_ns();
	char status[64];

	if (now - server->told_ns < NS_PER_S)
		return;
	server->told_ns = now;
	(void)snprintf(status, sizeof(status), "Loading the model: %d %%", (int)(fraction * 100));
	notify_loading(status, LOAD_EXTEND_NS);
}

static int make_compute(struct server *server, struct diag *diag)
{
	struct compute *compute = &server->compute;
	struct parts *parts = &server->parts;
	int r;

	pthread_sigmask(SIG_UNBLOCK, &server->signals, NULL);
	r = compute_init(compute, server->options, on_load_progress, server, diag);
	pthread_sigmask(SIG_BLOCK, &server->signals, NULL);
	if (r)
		return r > 0 ? SERVER_E_REFUSED : error_trace(r);
	parts->compute = compute;
	parts->model = compute->model;
	parts->pool = compute->pool;
	parts->kv = compute->kv;
	parts->host_cache = compute->host_pool ? compute->region.bytes : compute->adapter_bytes;
	return SERVER_OK;
}

/* ---- engine ---- */

static void on_cache_changed(void *userdata)
{
	struct server *server = userdata;

	if (server->parts.sched)
		sched_wake(server->parts.sched);
}

/* Any thread: what the pool's other user has not used for so long. */
static bool yield_kv(void *userdata, size_t bytes, uint64_t idle_ns)
{
	struct server *server = userdata;
	uint64_t most = UINT64_MAX / SCHED_KV_WORTH;

	return kv_evict(server->parts.kv, bytes, idle_ns < most ? idle_ns * SCHED_KV_WORTH : UINT64_MAX);
}

static int make_cache(struct server *server)
{
	struct parts *parts = &server->parts;
	const struct pager_options pager_options = {
		.region = server->compute.region.base,
		.region_bytes = server->compute.region.bytes,
		.best = PAGER_URING_FIXED,
	};
	struct cache_options cache_options;
	int r;

	r = pager_new(&parts->pager, parts->store, &pager_options);
	if (r < 0)
		return error_trace(r);
	cache_options = (struct cache_options){
		.store = parts->store,
		.pager = parts->pager,
		.pool = parts->pool,
		.device_bytes = server->compute.adapter_bytes,
		.geometry = model_config(parts->model)->geometry,
		.packed = server->compute.packed_adapters,
		.host_pool = server->compute.host_pool,
		.memory = server->compute.backend->device,
		.device = server->compute.device,
		.changed = on_cache_changed,
		.yield = yield_kv,
		.lookahead_bytes = LOOKAHEAD_BYTES,
		.userdata = server,
	};
	return error_trace(cache_new(&parts->cache, &cache_options));
}

/* On the engine's thread: the device can do nothing more. The loop ends the daemon, systemd starts it again. */
static void on_device_lost(void *userdata, const struct kern_failure *why)
{
	struct server *server = userdata;

	journal_device_lost(server->compute.name, why->code, why->text);
	atomic_store(&server->lost, true);
	loop_stop(server->parts.loop);
}

static int make_engine(struct server *server)
{
	struct parts *parts = &server->parts;
	const struct sched_options options = {
		.model = parts->model,
		.store = parts->store,
		.cache = parts->cache,
		.kv = parts->kv,
		.step = server->compute.step,
		.limits = server->compute.limits,
		.prefix = server->options->prefix,
		.fairness = server->options->fairness,
		.device_lost = on_device_lost,
		.userdata = server,
	};

	return error_trace(sched_new(&parts->sched, &options));
}

static int make_jobs(struct server *server)
{
	struct parts *parts = &server->parts;
	int r;

	r = importer_new(&parts->importer, parts->store, &model_config(parts->model)->geometry,
			 server->compute.packed_adapters);
	if (!r)
		r = worker_new(&parts->worker, &server->mailbox, WORKER_QUICK);
	if (!r)
		r = worker_new(&parts->upkeep, &server->mailbox, WORKER_SLOW);
	return error_trace(r);
}

/* ---- doors ---- */

/* The longest run of ids without a special token: what a load generator may send. */
static void find_plain_ids(const struct model *model, uint32_t *ret_first, uint32_t *ret_n)
{
	const struct tokenizer *tokenizer = model_tokenizer(model);
	uint32_t n = tokenizer_size(tokenizer), first = 0;

	*ret_first = *ret_n = 0;
	for (uint32_t i = 0; i <= n; ++i) {
		if (i < n && !tokenizer_is_special(tokenizer, i))
			continue;
		if (i - first > *ret_n) {
			*ret_first = first;
			*ret_n = i - first;
		}
		first = i + 1;
	}
}

static int open_door(struct door *door, int type, const char *path, const char *suffix, struct diag *diag)
{
	int r;

	door->fd = notify_take_socket(door->name);
	if (door->fd >= 0)
		return SERVER_OK;
	if (asprintf(&door->path, "%s%s", path, suffix) < 0) {
		door->path = NULL;
		return error_origin(-ENOMEM);
	}
	r = sock_listen(&door->fd, type, door->path, SOCKET_MODE, diag);
	if (r) { /* not ours to remove */
		free(door->path);
		door->path = NULL;
	}
	return r > 0 ? diag_prefix(diag, SERVER_E_REFUSED, "socket") : error_trace(r);
}

static void close_door(struct door *door)
{
	if (door->fd >= 0)
		close(door->fd);
	if (door->path)
		(void)unlink(door->path);
	free(door->path);
}

static int open_doors(struct server *server, struct diag *diag)
{
	struct parts *parts = &server->parts;
	const struct model_config *config = model_config(parts->model);
	struct ipc_options options = {
		.loop = parts->loop,
		.context = config->context,
		.vocab = config->geometry.vocab,
		.ops = &sched_ipc_ops,
		.userdata = parts->sched,
	};
	int r;

	r = open_door(&server->client, SOCK_SEQPACKET, server->options->socket, "", diag);
	if (!r)
		r = open_door(&server->admin, SOCK_STREAM, server->options->socket, ".control", diag);
	if (r)
		return r;
	find_plain_ids(parts->model, &options.plain_first, &options.n_plain);
	options.listen_fd = server->client.fd;
	r = ipc_new(&parts->ipc, &options);
	if (!r)
		r = control_new(&server->control, parts, server->admin.fd);
	return error_trace(r);
}

/* ---- signals and systemd ---- */

static void on_signal(struct loop_source *source, uint32_t events)
{
	struct server *server = container_of(source, struct server, signal_source);
	struct signalfd_siginfo info;

	(void)events;
	while (read(source->fd, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
		if (info.ssi_signo == SIGHUP) {
			notify_reloading();
			log_notice("reload: every option is read at start only; restart lorad to change one");
			notify_ready(server->status);
			continue;
		}
		log_info("ending: %s", strsignal((int)info.ssi_signo));
		loop_stop(server->parts.loop);
	}
}

/* An engine that neither steps nor idles does not feed the watchdog. */
static void on_watchdog(struct loop_timer *timer)
{
	struct server *server = container_of(timer, struct server, watchdog);
	uint64_t progress = sched_progress(server->parts.sched);

	if (progress != server->progress)
		notify_watchdog();
	server->progress = progress;
}

static void block_signals(struct server *server)
{
	sigemptyset(&server->signals);
	sigaddset(&server->signals, SIGTERM);
	sigaddset(&server->signals, SIGINT);
	sigaddset(&server->signals, SIGHUP);
	pthread_sigmask(SIG_BLOCK, &server->signals, NULL);
	(void)signal(SIGPIPE, SIG_IGN);
}

static int watch_process(struct server *server)
{
	struct loop *loop = server->parts.loop;
	uint64_t interval = notify_watchdog_ns();
	int r;

	server->signal_fd = signalfd(-1, &server->signals, SFD_CLOEXEC | SFD_NONBLOCK);
	if (server->signal_fd < 0)
		return error_origin(-errno);
	r = loop_add(loop, &server->signal_source, server->signal_fd, EPOLLIN, on_signal);
	if (!r && interval)
		r = loop_timer_init(loop, &server->watchdog, on_watchdog);
	if (!r && interval)
		r = loop_timer_set(&server->watchdog, interval / 4, interval / 4);
	return error_trace(r);
}

/* ---- life ---- */

static int make_bottom(struct server *server, struct diag *diag)
{
	struct parts *parts = &server->parts;
	int r;

	r = store_open(&parts->store, server->options->store, diag);
	if (r)
		return r > 0 ? SERVER_E_REFUSED : error_trace(r);
	r = loop_new(&parts->loop);
	if (!r)
		r = mailbox_init(&server->mailbox, parts->loop);
	server->has_mailbox = r == 0;
	parts->mailbox = &server->mailbox;
	return error_trace(r);
}

static int make_all(struct server *server, struct diag *diag)
{
	int r;

	r = make_bottom(server, diag);
	if (!r)
		r = make_compute(server, diag);
	if (!r)
		r = make_cache(server);
	if (!r)
		r = make_engine(server);
	if (!r)
		r = make_jobs(server);
	if (!r)
		r = open_doors(server, diag);
	if (!r)
		r = watch_process(server);
	return error_trace(r);
}

/**
 * server_new() - make everything, ready to serve
 * @ret:        the server
 * @options:    what was asked for; must outlive it
 * @diag:       why it cannot be
 *
 * Return: SERVER_OK, SERVER_E_REFUSED, or -errno.
 */
int server_new(struct server **ret, const struct options *options, struct diag *diag)
{
	_cleanup_(server_freep) struct server *server = calloc(1, sizeof(*server));
	int r;

	if (!server)
		return error_origin(-ENOMEM);
	server->options = server->parts.options = options;
	server->compute = (struct compute)COMPUTE_NULL;
	server->client = (struct door){ .name = "client", .fd = -1 };
	server->admin = (struct door){ .name = "control", .fd = -1 };
	server->signal_fd = -1;
	server->signal_source = (struct loop_source)LOOP_SOURCE_NULL;
	server->watchdog = (struct loop_timer)LOOP_TIMER_NULL;
	server->parts.started_ns = clock_ns();
	block_signals(server);
	r = make_all(server, diag);
	if (r)
		return r;
	*ret = TAKE_PTR(server);
	return SERVER_OK;
}

/* Everything that may still call into the loop ends before the loop's objects do. */
static void stop_threads(struct server *server)
{
	struct parts *parts = &server->parts;

	if (server->control)
		control_hang_up(server->control);
	importer_free(parts->importer);
	worker_free(parts->worker);
	worker_free(parts->upkeep);
	if (server->has_mailbox)
		mailbox_deliver(&server->mailbox);
	control_free(server->control);
	ipc_free(parts->ipc);
	sched_free(parts->sched);
	parts->sched = NULL;
}

struct server *server_free(struct server *server)
{
	struct parts *parts = &server->parts;

	if (!server)
		return NULL;
	stop_threads(server);
	loop_timer_deinit(&server->watchdog);
	loop_remove(&server->signal_source);
	if (server->signal_fd >= 0)
		close(server->signal_fd);
	close_door(&server->client);
	close_door(&server->admin);

	pager_free(parts->pager);
	cache_free(parts->cache);
	compute_deinit(&server->compute);
	if (server->has_mailbox)
		mailbox_deinit(&server->mailbox);
	loop_free(parts->loop);
	store_close(parts->store);
	free(server);
	return NULL;
}

static void say_ready(struct server *server)
{
	const struct parts *parts = &server->parts;
	const struct model_config *config = model_config(parts->model);

	const struct compute *compute = &server->compute;
	char where[48];

	if (compute->host_pool)
		(void)snprintf(where, sizeof(where), "%s", compute->name);
	else
		(void)snprintf(where, sizeof(where), "%u threads (%s)", (unsigned)compute->threads, compute->isa);
	(void)snprintf(server->status, sizeof(server->status), "Serving %s on %s, pool %zu MiB (%s), page-ins by %s", config->name,
		       where, pool_size(parts->pool) >> 20, mem_kind_name(compute->region.kind),
		       pager_method_names[pager_method(parts->pager)]);
	log_info("%s", server->status);
	notify_ready(server->status);
	(void)printf("READY\n");
	(void)fflush(stdout);
}

/**
 * server_run() - serve until told to end
 *
 * Return: SERVER_OK, SERVER_E_LOST, or -errno.
 */
int server_run(struct server *server)
{
	int r;

	server->parts.started_ns = clock_ns();
	say_ready(server);
	r = loop_run(server->parts.loop);
	notify_stopping(2 * DRAIN_NS);
	sched_drain(server->parts.sched, clock_ns() + DRAIN_NS);
	return r < 0 ? error_trace(r) : atomic_load(&server->lost) ? SERVER_E_LOST : SERVER_OK;
}
