/* SPDX-License-Identifier: MIT */
/*
 * What computes
 *
 * Bottom up: backend and device, compute threads, the model's weights, the pool, KV cache, the step's work space. Memory is
 * budgeted in this order, so that what is left for the pool is known and whatever does not fit is named.
 *
 * On the CPU one region of host memory is the pool: adapters are read from the disk to where the ops read them. On a GPU the
 * pool is an arena of device memory, and the region is the host tier above it, registered with the device so that it
 * copies from there by itself. A region it refuses is copied from in a detour; that is said in the log.
 *
 * `--device auto` tries the GPU first, all of it: a GPU that does not work or cannot hold the model leaves the CPU, and the
 * log says why. `--device cuda` never falls back.
 */
#include "daemon/compute.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysinfo.h>

#include "daemon/base/log.h"
#include "daemon/options.h"
#include "kernels/cuda.h"

#define POOL_DEFAULT_MAX (UINT64_C(4) << 30) /* of host memory */
#define DEVICE_SPARE (UINT64_C(1) << 30)     /* of device memory: for the step's work space and the device's own */
#define KV_LEAST_PART 16                     /* of the pool that adapters never take */
#define STEP_ROWS 512
#define STEP_SEQS 128

struct order { /* what compute_init() was asked for */
	const struct options *options;
	void (*progress)(void *, double);
	void *userdata;
};

/* ---- device ---- */

static int open_cpu(struct compute *c, const struct options *options, struct diag *diag)
{
	enum kern_isa isa = options->isa == OPTIONS_ISA_AUTO ? kern_cpu_best() : (enum kern_isa)options->isa;

	c->backend = kern_cpu(isa);
	if (!c->backend)
		return diag_set(diag, COMPUTE_E_REFUSED, "isa: %s: this machine does not have it", kern_isa_names[isa]);
	c->isa = kern_isa_names[isa];
	(void)snprintf(c->name, sizeof(c->name), "cpu");
	return error_trace(c->backend->device->open(&c->device, 0, NULL));
}

static int open_cuda(struct compute *c, const struct options *options, struct diag *diag)
{
	unsigned number = options->cuda_number;
	struct kern_failure why = { 0 };
	int r;

	c->backend = kern_cuda();
	if (!c->backend)
		return diag_set(diag, COMPUTE_E_REFUSED, "device: this build has no CUDA backend");
	if (options->kv_type == MODEL_INT8)
		return diag_set(diag, COMPUTE_E_REFUSED, "kv-type: int8: a GPU keeps keys and values in bf16 or f32 only");
	c->isa = c->backend->name;
	(void)snprintf(c->name, sizeof(c->name), "cuda:%u", number);
	r = c->backend->device->open(&c->device, number, &why);
	return r ? diag_set(diag, COMPUTE_E_REFUSED, "device: %s: %s", c->name, why.code ? why.text : strerror(-r)) : 0;
}

/* A device's error as words; a fatal one without words of its own stays what it is. */
static int explain(const struct compute *c, int r, const char *what, struct diag *diag)
{
	struct kern_failure why = { 0 };
	size_t unused = 0, total = 0;

	if (r >= 0 || !c->device)
		return r;
	c->backend->device->failure(c->device, &why);
	if (why.code)
		return diag_set(diag, COMPUTE_E_REFUSED, "device: %s: %s", c->name, why.text);
	if (r == -ENOMEM && c->backend->device->memory(c->device, &unused, &total) == 0)
		return diag_set(diag, COMPUTE_E_REFUSED,
				"device-memory: %s does not fit: %zu MiB of %zu MiB are free on %s, the pool has taken %zu MiB", what,
				unused >> 20, total >> 20, c->name, c->arena_bytes >> 20);
	return error_trace(r);
}

/* ---- model ---- */

static int load_model(struct compute *c, const struct order *order, struct diag *diag)
{
	const struct model_options options = {
		.path = order->options->model,
		.precision = order->options->precision,
		.context = (uint32_t)order->options->context,
		.backend = c->backend,
		.device = c->device,
		.team = c->team,
		.progress = order->progress,
		.userdata = order->userdata,
	};
	int r = model_open(&c->model, &options, diag);

	return r > 0 ? COMPUTE_E_REFUSED : explain(c, r, "the model", diag);
}

/* ---- memory ---- */

static uint64_t total_memory(void)
{
	struct sysinfo info;

	return sysinfo(&info) == 0 ? (uint64_t)info.totalram * info.mem_unit : 0;
}

static int too_much(const char *option, uint64_t wanted, uint64_t available, struct diag *diag)
{
	return diag_set(diag, COMPUTE_E_REFUSED, "%s: %" PRIu64 " MiB asked for, %" PRIu64 " MiB are available", option,
			wanted >> 20, available >> 20);
}

/* Bytes of host memory for the region. wanted: by option, 0: not given. */
static int host_bytes(const char *option, uint64_t wanted, uint64_t *ret, struct diag *diag)
{
	uint64_t available = mem_available();

	if (wanted > available)
		return too_much(option, wanted, available, diag);
	if (!wanted) {
		wanted = total_memory() / 4;
		wanted = wanted < POOL_DEFAULT_MAX ? wanted : POOL_DEFAULT_MAX;
		wanted = wanted < available / 2 ? wanted : available / 2;
	}
	*ret = wanted;
	return COMPUTE_OK;
}

/* Adapters and KV blocks take what they need of one pool. A little is left to KV blocks, so that pins cannot take it all. */
static uint64_t adapter_share(uint64_t pool)
{
	return pool - pool / KV_LEAST_PART;
}

static int make_cpu_pool(struct compute *c, const struct options *options, struct diag *diag)
{
	uint64_t bytes = 0;
	int r;

	r = host_bytes("device-memory", options->device_memory, &bytes, diag);
	if (r)
		return r;
	r = mem_region_init(&c->region, "lorad-pool", bytes);
	if (!r)
		r = c->backend->device->alloc(c->device, c->region.base, c->region.bytes, &c->arena);
	c->arena_bytes = c->region.bytes;
	if (!r)
		r = pool_new(&c->pool, c->arena, c->arena_bytes);
	if (r < 0)
		return error_trace(r);
	c->adapter_bytes = options->host_cache ? options->host_cache : adapter_share(c->arena_bytes);
	if (c->adapter_bytes > c->arena_bytes) {
		log_warning("host-cache is larger than device-memory, which bounds it on the CPU");
		c->adapter_bytes = c->arena_bytes;
	}
	return COMPUTE_OK;
}

/* The pool wants to start on a huge page: so much more is taken. */
static int make_arena(struct compute *c, uint64_t wanted, struct diag *diag)
{
	size_t available = 0, total = 0, spare;
	uintptr_t base;
	int r;

	r = c->backend->device->memory(c->device, &available, &total);
	if (r)
		return explain(c, r, "the pool", diag);
	if (wanted > available)
		return too_much("device-memory", wanted, available, diag);
	spare = available / 10 > DEVICE_SPARE ? available / 10 : DEVICE_SPARE;
	wanted = wanted ? wanted : available > 2 * spare ? available - spare : available / 2;
	r = c->backend->device->alloc(c->device, NULL, wanted + MEM_HUGE_PAGE, &c->arena);
	if (r)
		return explain(c, r, "the pool", diag);
	c->arena_bytes = wanted + MEM_HUGE_PAGE;
	base = ((uintptr_t)c->arena + MEM_HUGE_PAGE - 1) / MEM_HUGE_PAGE * MEM_HUGE_PAGE;
	r = pool_new(&c->pool, (void *)base, wanted);
	if (r == -EINVAL)
		return diag_set(diag, COMPUTE_E_REFUSED, "device-memory: %" PRIu64 " KiB are too few", wanted >> 10);
	c->adapter_bytes = r ? 0 : adapter_share(pool_size(c->pool));
	return error_trace(r);
}

static int make_device_pool(struct compute *c, const struct options *options, struct diag *diag)
{
	uint64_t bytes = 0;
	int r;

	r = make_arena(c, options->device_memory, diag);
	if (!r)
		r = host_bytes("host-cache", options->host_cache, &bytes, diag);
	if (r)
		return r;
	r = mem_region_init(&c->region, "lorad-host", bytes);
	if (!r)
		r = pool_new(&c->host_pool, c->region.base, c->region.bytes);
	if (!r)
		r = c->backend->device->register_host(c->device, c->region.base, c->region.bytes);
	if (r > 0)
		log_warning("the device refuses to register the host cache; uploads take the detour through pinned staging");
	return r > 0 ? COMPUTE_OK : explain(c, r, "the host cache", diag);
}

static enum kern_dtype kv_dtype(const struct compute *c, const struct options *options)
{
	switch (options->kv_type) {
	case MODEL_F32:
		return KERN_F32;
	case MODEL_BF16:
		return KERN_BF16;
	case MODEL_INT8:
		return KERN_I8;
	case MODEL_AUTO:
		break;
	}
	return model_precision(c->model) == KERN_PRECISION_F32 ? KERN_F32 : KERN_BF16;
}

static int make_kv(struct compute *c, const struct options *options, struct diag *diag)
{
	const struct model_config *config = model_config(c->model);
	const struct kv_shape shape = {
		.n_layers = config->geometry.n_layers,
		.n_kv_heads = config->geometry.n_kv_heads,
		.head_dim = config->geometry.head_dim,
		.dtype = kv_dtype(c, options),
	};
	int r = kv_new(&c->kv, c->pool, &shape);

	if (r < 0)
		return error_trace(r);
	if (!kv_max_tokens(c->kv))
		return diag_set(diag, COMPUTE_E_REFUSED, "device-memory: too small for the keys and values of one token");
	if (kv_max_tokens(c->kv) < config->context)
		log_warning("device-memory holds %" PRIu64 " tokens of one request, less than the context of %u",
			    kv_max_tokens(c->kv), (unsigned)config->context);
	return COMPUTE_OK;
}

static int make_step(struct compute *c, const struct options *options, struct diag *diag)
{
	const struct step_options step_options = {
		.model = c->model,
		.backend = c->backend,
		.device = c->device,
		.team = c->team,
		.kv = kv_layout(c->kv),
		.limits = c->limits,
		.records = options->cuda_graphs,
	};

	return explain(c, step_new(&c->step, &step_options), "the work space of a step", diag);
}

/* ---- life ---- */

static int init_on(struct compute *c, bool cuda, const struct order *order, struct diag *diag)
{
	const struct options *options = order->options;
	int r;

	c->threads = options->threads ? (uint32_t)options->threads : team_processors();
	c->limits = (struct step_limits){ .rows = STEP_ROWS, .seqs = STEP_SEQS };
	r = cuda ? open_cuda(c, options, diag) : open_cpu(c, options, diag);
	if (!r)
		r = team_new(&c->team, c->threads);
	if (!r)
		r = load_model(c, order, diag);
	if (!r)
		c->packed_adapters = c->backend->lora_i8 && !options->source_adapters &&
				     model_precision(c->model) != KERN_PRECISION_F32;
	if (!r)
		r = cuda ? make_device_pool(c, options, diag) : make_cpu_pool(c, options, diag);
	if (!r)
		r = make_kv(c, options, diag);
	if (!r)
		r = make_step(c, options, diag);
	return error_trace(r);
}

/**
 * compute_init() - a device with a model on it, ready for steps
 * @compute:    COMPUTE_NULL; compute_deinit() also after a failure
 * @options:    what was asked for
 * @progress:   of loading the model; called on this thread
 * @diag:       why it cannot be
 *
 * Return: COMPUTE_OK, COMPUTE_E_REFUSED, or -errno.
 */
int compute_init(struct compute *compute, const struct options *options, void (*progress)(void *, double), void *userdata,
		 struct diag *diag)
{
	const struct order order = { options, progress, userdata };
	struct diag why = { 0 };
	int r;

	if (options->device == OPTIONS_DEVICE_CPU)
		return init_on(compute, /* cuda= */ false, &order, diag);
	if (options->device == OPTIONS_DEVICE_CUDA)
		return init_on(compute, /* cuda= */ true, &order, diag);
	r = init_on(compute, /* cuda= */ true, &order, &why);
	if (r) {
		log_info("the CPU computes; %s", *why.text ? why.text : "the GPU could not be used");
		compute_deinit(compute);
		*compute = (struct compute)COMPUTE_NULL;
		r = init_on(compute, /* cuda= */ false, &order, diag);
	}
	return error_trace(r);
}

void compute_deinit(struct compute *c)
{
	step_free(c->step);
	kv_free(c->kv);
	pool_free(c->pool);
	pool_free(c->host_pool);
	if (c->host_pool)
		c->backend->device->unregister_host(c->device, c->region.base);
	if (c->arena)
		c->backend->device->free(c->device, c->arena, c->arena_bytes);
	mem_region_deinit(&c->region);
	model_free(c->model);
	if (c->device)
		c->backend->device->close(c->device);
	team_free(c->team);
}
