/* SPDX-License-Identifier: MIT */
/*
 * Launches, blocks and fibers
 *
 * Blocks run one after the other, in an order shuffled by the seed. Within a block each thread is a fiber on a stack of
 * its own; a thread runs until it waits in a collective or exits, and then hands over to the next lane of its warp, or
 * to the scheduler, which picks a warp by chance. A kernel without collectives never switches: lanes follow each other
 * on one stack. All state is global: one launch at a time, under a mutex.
 */
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#include "tests/cudasim/inside.h"

struct cudasim_view cudasim_view;
struct launch cudasim_launch;
struct thread *cudasim_now;
alignas(16) unsigned char cudasim_param[CUDASIM_PARAM_BYTES]; /* pointers to the arguments, and these */
void (*cudasim_on_violation)(const char *line);

#define SHARED_MARGIN 4096u
alignas(128) static unsigned char shared_room[SHARED_MARGIN + CUDASIM_SHARED_MAX + SHARED_MARGIN];

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct thread threads[BLOCK_MAX];
static struct warp warps[BLOCK_MAX / WARP];
static struct warp *ready[BLOCK_MAX / WARP];
static unsigned n_ready, n_exited, n_at_barrier;
static const struct cudasim_site *barrier_site;
static void *scheduler_sp;
static unsigned char *free_stack[BLOCK_MAX];
static unsigned n_free_stacks, n_stacks;
static unsigned char *all_stacks[BLOCK_MAX];

/* ---- chance ---- */

#define N_ORDERS 256
static uint8_t orders[N_ORDERS][WARP];
static uint64_t random_state;

static uint64_t random_next(void)
{
	uint64_t x = random_state += 0x9e3779b97f4a7c15u; /* splitmix64 */

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

static void seed_locked(uint64_t seed)
{
	random_state = seed;
	for (unsigned i = 0; i < N_ORDERS; ++i) {
		for (unsigned k = 0; k < WARP; ++k) {
			unsigned at = (unsigned)(random_next() % (k + 1));

			orders[i][k] = orders[i][at];
			orders[i][at] = (uint8_t)k;
		}
	}
}

static void seed_first(void)
{
	static bool done;
	const char *seed = getenv("CUDASIM_SEED");

	if (!done && orders[0][0] == orders[0][1])
		seed_locked(seed ? strtoull(seed, NULL, 0) : 1);
	done = true;
}

extern "C" void cudasim_seed(uint64_t seed)
{
	pthread_mutex_lock(&lock);
	seed_locked(seed);
	pthread_mutex_unlock(&lock);
}

/* ---- sites that can be switched off ---- */

static unsigned generation = 1;
static char *sites_off;

extern "C" void cudasim_switch_off(const char *sites)
{
	pthread_mutex_lock(&lock);
	free(sites_off);
	sites_off = strdup(sites ? sites : "");
	++generation;
	pthread_mutex_unlock(&lock);
}

static bool listed(const struct cudasim_site *site)
{
	char name[512];
	size_t n = (size_t)snprintf(name, sizeof(name), "%s:%d", site->file, site->line);

	if (!sites_off)
		sites_off = strdup(getenv("CUDASIM_OFF") ? getenv("CUDASIM_OFF") : "");
	for (const char *at = sites_off; *at;) {
		size_t length = strcspn(at, ",");

		if (length > 0 && length <= n && memcmp(name + n - length, at, length) == 0 &&
		    (length == n || name[n - length - 1] == '/'))
			return true;
		at += length + (at[length] == ',');
	}
	return false;
}

struct cudasim_site *cudasim_site_at(struct cudasim_site *site, const char *file, int line)
{
	if (site->generation == generation)
		return site;
	site->file = file;
	site->line = line;
	site->off = listed(site);
	site->generation = generation;
	if (!site->met && getenv("CUDASIM_SITES")) {
		FILE *to = fopen(getenv("CUDASIM_SITES"), "a");

		if (to) {
			fprintf(to, "%s %s:%d\n", site->kind, file, line);
			fclose(to);
		}
	}
	site->met = true;
	return site;
}

bool cudasim_guard_is_off(struct cudasim_site *site)
{
	return site->off;
}

/* ---- fibers ---- */

extern "C" void cudasim_switch(void **save_sp, void *load_sp);

asm(".text\n"
    ".globl cudasim_switch\n"
    ".type cudasim_switch, @function\n"
    "cudasim_switch:\n"
    "	pushq %rbp\n"
    "	pushq %rbx\n"
    "	pushq %r12\n"
    "	pushq %r13\n"
    "	pushq %r14\n"
    "	pushq %r15\n"
    "	movq %rsp, (%rdi)\n"
    "	movq %rsi, %rsp\n"
    "	popq %r15\n"
    "	popq %r14\n"
    "	popq %r13\n"
    "	popq %r12\n"
    "	popq %rbx\n"
    "	popq %rbp\n"
    "	ret\n"
    ".size cudasim_switch, .-cudasim_switch\n");

#ifdef __SANITIZE_ADDRESS__
static thread_local const void *host_stack;
static thread_local size_t host_stack_bytes;

static void find_host_stack(void)
{
	pthread_attr_t attributes;
	void *base;

	if (host_stack || pthread_getattr_np(pthread_self(), &attributes) != 0)
		return;
	pthread_attr_getstack(&attributes, &base, &host_stack_bytes);
	pthread_attr_destroy(&attributes);
	host_stack = base;
}
#else
static void find_host_stack(void)
{
}
#endif

static void fiber_main(void);

static unsigned char *take_stack(void)
{
	const size_t guard = 4096;
	unsigned char *p;

	if (n_free_stacks > 0)
		return free_stack[--n_free_stacks];
	p = (unsigned char *)mmap(NULL, guard + CUDASIM_STACK_BYTES, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED || mprotect(p, guard, PROT_NONE) != 0) {
		perror("cudasim: no stack");
		abort();
	}
	return all_stacks[n_stacks++] = p + guard;
}

/* The frame that cudasim_switch() pops. Tops differ, or all fibers would share few lines of the cache. */
static void start_fiber(struct thread *t)
{
	void **top;

	t->stack = take_stack();
	top = (void **)(t->stack + CUDASIM_STACK_BYTES - 64 - (t->number % 64) * 64);
#ifdef __SANITIZE_ADDRESS__
	__asan_unpoison_memory_region((unsigned char *)top - 8192, 8192); /* frames of the one that ended here */
#endif
	*--top = NULL; /* where fiber_main() would return to */
	*--top = (void *)fiber_main;
	t->sp = top - 6;
	memset(t->sp, 0, 6 * sizeof(void *));
}

static void jump(void **save_sp, struct thread *to, bool for_good)
{
	if (to && !to->sp)
		start_fiber(to);
	cudasim_now = to;
	if (to)
		cudasim_view.thread = to->index;
#ifdef __SANITIZE_ADDRESS__
	void *fake = NULL;

	__sanitizer_start_switch_fiber(for_good ? NULL : &fake, to ? to->stack : host_stack,
				       to ? CUDASIM_STACK_BYTES : host_stack_bytes);
#endif
	(void)for_good;
	cudasim_switch(save_sp, to ? to->sp : scheduler_sp);
#ifdef __SANITIZE_ADDRESS__
	__sanitizer_finish_switch_fiber(fake, NULL, NULL);
#endif
}

static struct thread *next_lane(struct warp *w)
{
	while (w->next < WARP) {
		unsigned lane = w->order[w->next++];

		if (lane < w->n)
			return w->thread + lane;
	}
	return NULL;
}

static void new_phase(struct warp *w)
{
	w->order = orders[random_next() % N_ORDERS];
	w->next = 0;
}

/* ---- rules ---- */

static const char *describe(char *to, size_t room)
{
	const struct cudasim_uint3 b = cudasim_view.block, t = cudasim_view.thread;

	snprintf(to, room, "cudasim: kernel %s, block (%u,%u,%u), thread (%u,%u,%u)", cudasim_launch.name, b.x, b.y,
		 b.z, t.x, t.y, t.z);
	return to;
}

static void report(const char *format, va_list list)
{
	char line[1024];
	size_t n;

	describe(line, sizeof(line));
	n = strlen(line);
	n += (size_t)snprintf(line + n, sizeof(line) - n, ": ");
	vsnprintf(line + n, sizeof(line) - n, format, list);
	cudasim_launch.broken = true;
	cudasim_now = NULL; /* the kernel does not go on */
	if (!cudasim_on_violation) {
		fprintf(stderr, "%s\n", line);
		abort();
	}
	cudasim_on_violation(line);
}

void cudasim_violation(const char *format, ...)
{
	void *never;
	va_list list;

	va_start(list, format);
	report(format, list);
	va_end(list);
	jump(&never, NULL, true);
	abort();
}

static void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void complain(const char *format, ...) /* outside of a thread */
{
	va_list list;

	va_start(list, format);
	report(format, list);
	va_end(list);
}

#ifdef __SANITIZE_ADDRESS__
extern "C" void __asan_on_error(void)
{
	char line[512];

	if (cudasim_now)
		fprintf(stderr, "%s\n", describe(line, sizeof(line)));
}
#endif

static bool same_place(const struct warp *w, const char *what, const char *file, int line)
{
	return w->what == what && w->line == line && (w->file == file || strcmp(w->file, file) == 0);
}

void cudasim_meet(const char *what, const char *file, int line, void (*complete)(struct warp *w))
{
	struct thread *self = cudasim_now, *next;
	struct warp *w = self->warp;

	if (w->n < WARP)
		cudasim_violation("%s:%d: %s by a warp of %u lanes", file, line, what, w->n);
	if (w->n_exited > 0)
		cudasim_violation("%s:%d: %s, but %u lanes of the warp have exited", file, line, what, w->n_exited);
	if (w->n_at_barrier > 0)
		cudasim_violation("%s:%d: %s, but %u lanes of the warp wait at %s:%d: barrier", file, line, what,
				  w->n_at_barrier, barrier_site->file, barrier_site->line);
	if (w->n_arrived > 0 && !same_place(w, what, file, line))
		cudasim_violation("%s:%d: %s, but %u lanes of the warp wait at %s:%d: %s", file, line, what,
				  w->n_arrived, w->file, w->line, w->what);
	w->what = what;
	w->file = file;
	w->line = line;
	if (++w->n_arrived == WARP) {
		complete(w);
		w->n_arrived = 0;
		new_phase(w);
		if (n_ready > 0 && random_next() % 8 == 0) { /* let another warp go on */
			ready[n_ready++] = w;
			jump(&self->sp, NULL, false);
			return;
		}
	}
	next = next_lane(w);
	if (next != self)
		jump(&self->sp, next, false);
}

void cudasim_barrier(struct cudasim_site *site)
{
	struct thread *self = cudasim_now;
	struct warp *w = self->warp;

	if (site->off)
		return;
	if (n_exited > 0)
		cudasim_violation("%s:%d: barrier, but %u threads of the block have exited", site->file, site->line,
				  n_exited);
	if (w->n_arrived > 0)
		cudasim_violation("%s:%d: barrier, but %u lanes of the warp wait at %s:%d: %s", site->file, site->line,
				  w->n_arrived, w->file, w->line, w->what);
	if (n_at_barrier > 0 && site != barrier_site)
		cudasim_violation("%s:%d: barrier, but %u threads wait at the barrier of %s:%d", site->file, site->line,
				  n_at_barrier, barrier_site->file, barrier_site->line);
	barrier_site = site;
	++w->n_at_barrier;
	if (++n_at_barrier < cudasim_launch.n_threads) {
		jump(&self->sp, next_lane(w), false);
		return;
	}
	CUDASIM_WATCH(barrier(NULL));
	n_at_barrier = 0;
	for (unsigned i = 0; i < cudasim_launch.n_warps; ++i) {
		warps[i].n_at_barrier = 0;
		new_phase(&warps[i]);
		ready[n_ready++] = &warps[i];
	}
	jump(&self->sp, NULL, false);
}

void cudasim_bounds(unsigned n)
{
	if (cudasim_launch.n_threads > n)
		cudasim_violation("%u threads, but the kernel is bound to %u", cudasim_launch.n_threads, n);
	cudasim_launch.bounded = true;
}

static void exit_thread(struct thread *t)
{
	struct warp *w = t->warp;

	if (t->n_copies > 0)
		cudasim_violation("%s:%d: copy still under way at the thread's end", t->copy->file, t->copy->line);
	if (w->n_arrived > 0)
		cudasim_violation("thread exits, but %u lanes of its warp wait at %s:%d: %s", w->n_arrived, w->file,
				  w->line, w->what);
	if (n_at_barrier > 0)
		cudasim_violation("thread exits, but %u threads wait at %s:%d: barrier", n_at_barrier,
				  barrier_site->file, barrier_site->line);
	++w->n_exited;
	++n_exited;
}

static void fiber_main(void)
{
	struct thread *next, *self;

#ifdef __SANITIZE_ADDRESS__
	__sanitizer_finish_switch_fiber(NULL, NULL, NULL);
#endif
	for (;;) {
		cudasim_launch.kernel->call((void **)cudasim_param);
		self = cudasim_now;
		exit_thread(self);
		next = next_lane(self->warp);
		if (!next || next->sp)
			break;
		next->stack = self->stack; /* the next lane starts right here */
		next->sp = self->stack; /* to be set when it waits */
		cudasim_now = next;
		cudasim_view.thread = next->index;
	}
	free_stack[n_free_stacks++] = self->stack;
	jump(&self->sp, next, true);
}

/* ---- blocks ---- */

static void prepare_threads(const unsigned block[3])
{
	for (unsigned i = 0; i < cudasim_launch.n_threads; ++i) {
		struct thread *t = &threads[i];

		t->index.x = i % block[0];
		t->index.y = i / block[0] % block[1];
		t->index.z = i / block[0] / block[1];
		t->number = i;
		t->lane = i % WARP;
		t->warp = &warps[i / WARP];
	}
	for (unsigned i = 0; i < cudasim_launch.n_warps; ++i) {
		warps[i].thread = &threads[i * WARP];
		warps[i].number = i;
		warps[i].n = cudasim_launch.n_threads - i * WARP < WARP ? cudasim_launch.n_threads - i * WARP : WARP;
	}
}

static void prepare_block(void)
{
	n_ready = n_exited = n_at_barrier = 0;
	for (unsigned i = 0; i < cudasim_launch.n_threads; ++i) {
		threads[i].sp = NULL;
		threads[i].n_copies = 0;
		threads[i].n_groups = 0;
	}
	for (unsigned i = 0; i < cudasim_launch.n_warps; ++i) {
		warps[i].n_exited = warps[i].n_at_barrier = warps[i].n_arrived = 0;
		new_phase(&warps[i]);
		ready[n_ready++] = &warps[i];
	}
	memset(cudasim_view.shared, 0xff, cudasim_launch.shared_bytes);
}

static void run_block(void)
{
	prepare_block();
	CUDASIM_WATCH(block(true));
	while (n_ready > 0 && !cudasim_launch.broken) {
		unsigned at = (unsigned)(random_next() % n_ready);
		struct warp *w = ready[at];

		ready[at] = ready[--n_ready];
		jump(&scheduler_sp, next_lane(w), false);
	}
	if (!cudasim_launch.broken && n_exited < cudasim_launch.n_threads)
		complain("the block does not end");
	CUDASIM_WATCH(block(false));
}

static void abandon(void)
{
	n_free_stacks = n_stacks;
	memcpy(free_stack, all_stacks, n_stacks * sizeof(all_stacks[0]));
#ifdef __SANITIZE_ADDRESS__
	for (unsigned i = 0; i < n_stacks; ++i)
		__asan_unpoison_memory_region(all_stacks[i], CUDASIM_STACK_BYTES);
#endif
}

/* The end of shared memory is where ASan sees it. */
static void shape_shared(size_t bytes)
{
	cudasim_view.shared = shared_room + SHARED_MARGIN;
#ifdef __SANITIZE_ADDRESS__
	__asan_poison_memory_region(shared_room, sizeof(shared_room));
	__asan_unpoison_memory_region(cudasim_view.shared, bytes);
#endif
	(void)bytes;
}

static uint64_t gcd(uint64_t a, uint64_t b)
{
	while (b > 0) {
		uint64_t rest = a % b;

		a = b;
		b = rest;
	}
	return a;
}

/* Every block once, from anywhere and in large steps. */
static void run_blocks(const unsigned grid[3])
{
	uint64_t n = (uint64_t)grid[0] * grid[1] * grid[2], at = random_next() % n, step = random_next() % n;

	while (gcd(step, n) != 1)
		step = random_next() % n;
	for (uint64_t i = 0; i < n && !cudasim_launch.broken; ++i) {
		cudasim_view.block.x = (unsigned)(at % grid[0]);
		cudasim_view.block.y = (unsigned)(at / grid[0] % grid[1]);
		cudasim_view.block.z = (unsigned)(at / grid[0] / grid[1]);
		run_block();
		at = (unsigned __int128)(at + step) % n;
	}
}

/* ---- launches ---- */

/* g++: "... [with auto Kernel = {anonymous}::name<args>; ...]"; clang++: "[Kernel = &(anonymous namespace)::name]" */
static void kernel_name(const char *pretty, char *to, size_t room)
{
	const char *at = strstr(pretty, "Kernel = "), *end, *nameless;
	size_t n;

	at = at ? at + strlen("Kernel = ") : pretty;
	at += *at == '&';
	nameless = strstr(at, "::");
	if (nameless && (*at == '{' || *at == '('))
		at = nameless + 2;
	end = strchr(at, ';');
	n = end ? (size_t)(end - at) : strlen(at) - (strchr(at, ']') != NULL);
	snprintf(to, room, "%.*s", (int)n, at);
}

static bool copy_args(const struct cudasim_kernel *kernel, void **from)
{
	void **args = (void **)cudasim_param;
	size_t at = kernel->n_args * sizeof(args[0]);

	for (unsigned i = 0; i < kernel->n_args; ++i) {
		at = (at + 15) / 16 * 16;
		if (at + kernel->arg_bytes[i] > CUDASIM_PARAM_BYTES)
			return false;
		args[i] = memcpy(cudasim_param + at, from[i], kernel->arg_bytes[i]);
		at += kernel->arg_bytes[i];
	}
	return true;
}

extern "C" int cudasim_check_launch(const void *handle, const unsigned grid[3], const unsigned block[3],
				    size_t shared_bytes)
{
	const struct cudasim_kernel *kernel = (const struct cudasim_kernel *)handle;
	uint64_t n = (uint64_t)block[0] * block[1] * block[2];

	if (block[0] > BLOCK_MAX || block[1] > BLOCK_MAX || block[2] > 64 || n < 1 || n > BLOCK_MAX)
		return CUDASIM_INVALID_CONFIGURATION;
	if (grid[0] < 1 || grid[1] < 1 || grid[2] < 1 || grid[0] > 0x7fffffffu || grid[1] > 65535 || grid[2] > 65535)
		return CUDASIM_INVALID_CONFIGURATION;
	if (shared_bytes > (kernel->max_shared > CUDASIM_SHARED_DEFAULT ? kernel->max_shared : CUDASIM_SHARED_DEFAULT))
		return CUDASIM_INVALID_VALUE;
	return 0;
}

static int run_locked(const struct cudasim_kernel *kernel, const unsigned grid[3], const unsigned block[3],
		      size_t shared_bytes, void **from)
{
	int r = cudasim_check_launch(kernel, grid, block, shared_bytes);

	if (r != 0)
		return r;
	if (!copy_args(kernel, from))
		return CUDASIM_INVALID_VALUE;
	seed_first();
	find_host_stack();
	memset(&cudasim_launch, 0, sizeof(cudasim_launch));
	cudasim_launch.kernel = kernel;
	kernel_name(kernel->name, cudasim_launch.name, sizeof(cudasim_launch.name));
	cudasim_launch.n_threads = block[0] * block[1] * block[2];
	cudasim_launch.n_warps = (cudasim_launch.n_threads + WARP - 1) / WARP;
	cudasim_launch.shared_bytes = shared_bytes;
	cudasim_view.block_size = { block[0], block[1], block[2] };
	cudasim_view.grid_size = { grid[0], grid[1], grid[2] };
	shape_shared(shared_bytes);
	CUDASIM_WATCH(launch(true));
	prepare_threads(block);
	run_blocks(grid);
	if (!cudasim_launch.broken && !cudasim_launch.bounded)
		complain("no DEV_BOUNDS()");
	if (!cudasim_launch.broken)
		CUDASIM_WATCH(launch(false));
	if (cudasim_launch.broken)
		abandon();
	shape_shared(0);
	return cudasim_launch.broken ? CUDASIM_LAUNCH_FAILURE : 0;
}

extern "C" int cudasim_run(const void *handle, const unsigned grid[3], const unsigned block[3], size_t shared_bytes,
			   void **arguments)
{
	int r;

	pthread_mutex_lock(&lock);
	r = run_locked((const struct cudasim_kernel *)handle, grid, block, shared_bytes, arguments);
	pthread_mutex_unlock(&lock);
	return r;
}

extern "C" unsigned cudasim_args(const void *handle)
{
	return ((const struct cudasim_kernel *)handle)->n_args;
}

extern "C" size_t cudasim_arg_bytes(const void *handle, unsigned i)
{
	return ((const struct cudasim_kernel *)handle)->arg_bytes[i];
}

extern "C" int cudasim_allow_shared(const void *handle, size_t bytes)
{
	if (bytes > CUDASIM_SHARED_MAX)
		return CUDASIM_INVALID_VALUE;
	((struct cudasim_kernel *)(uintptr_t)handle)->max_shared = bytes;
	return 0;
}

extern "C" void cudasim_memory(const void *base, size_t bytes, bool live)
{
	pthread_mutex_lock(&lock);
	CUDASIM_WATCH(memory(base, bytes, live));
	pthread_mutex_unlock(&lock);
}
