/* SPDX-License-Identifier: MIT */
/*
 * The checks of the instrumented build: g++ -fsanitize=thread calls a hook before every access to memory, and these
 * hooks, instead of a runtime's, look the address up and note the access in shadow memory.
 *
 * Two bytes of memory have a cell: who wrote last, and two who read since, from different warps if there are such, so
 * that any later writer that is not ordered behind all readers meets one that it is not ordered behind. What orders two
 * accesses of a launch is a barrier of the block, or of the warp where both are of one warp; the clock counts barriers
 * of either kind.
 *
 * With $CUDASIM_COUNT accesses to global memory are counted too. Lanes run one after the other, so an access of a warp
 * is put together again: the k-th execution of one instruction by each of its lanes.
 */
#include <dlfcn.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include <map>
#include <unordered_map>
#include <vector>

#include "tests/cudasim/inside.h"

#define CALLER __builtin_return_address(0)

/* An access: launch and block | thread | clock | which of the cell's bytes | atomic. 0: none. */
typedef uint64_t stamp;

#define SERIAL_BITS 28
#define THREAD_BITS 10
#define CLOCK_BITS 22

struct cell {
	stamp write, read[2];
};

struct counts {
	uint64_t read[5], written[5]; /* bytes, by size of the access: 1, 2, 4, 8, 16 */
	uint64_t sectors_read, sectors_written, accesses, sectors, sectors_ideal;
};

struct region { /* global memory */
	uintptr_t base, end;
	struct cell *cell; /* mapped lazily */
	std::vector<uint32_t> *read, *written; /* the launch that did last, for each 32 bytes */
	struct counts counts;
};

static std::map<uintptr_t, struct region> regions; /* by end */
static struct region *last_region;

static struct cell shared_cell[CUDASIM_SHARED_MAX / 2];
static uint8_t shared_state[CUDASIM_SHARED_MAX];
enum { NEVER_WRITTEN, WRITTEN, COPY_UNDER_WAY };

static uint64_t serial, first_serial; /* of the running block, and of the launch's first */
static uint64_t clock_now, block_since, warp_since[BLOCK_MAX / WARP];
static uint32_t launch_number;
static const char *count_to;

/* ---- words for a report ---- */

static int base_of_program(struct dl_phdr_info *info, size_t, void *ret)
{
	*(uintptr_t *)ret = info->dlpi_addr;
	return 1; /* the first is the program */
}

/* file:line of an access, innermost first where functions were inlined. */
static const char *place(const void *pc)
{
	static char text[512];
	char command[512], exe[256] = "";
	uintptr_t base = 0;
	size_t n;
	FILE *pipe;

	dl_iterate_phdr(base_of_program, &base);
	if (readlink("/proc/self/exe", exe, sizeof(exe) - 1) < 0)
		return "?";
	snprintf(command, sizeof(command), "addr2line -s -i -e '%s' 0x%lx | tr '\\n' ' '", exe,
		 (uintptr_t)pc - 1 - base);
	pipe = popen(command, "r");
	n = pipe ? fread(text, 1, sizeof(text) - 1, pipe) : 0;
	text[n > 0 ? n - 1 : 0] = 0;
	if (pipe)
		pclose(pipe);
	return text;
}

static const char *verb(unsigned how)
{
	return how & TOUCH_ATOMIC ? "atomic" : how & TOUCH_COPY ? "copy" : how & TOUCH_WRITE ? "write" : "read";
}

/* ---- order ---- */

static stamp make_stamp(const struct thread *t, unsigned bytes, bool atomic)
{
	return ((((serial << THREAD_BITS | t->number) << CLOCK_BITS | clock_now) << 2 | bytes) << 1) | atomic;
}

static bool stamp_atomic(stamp s)
{
	return s & 1;
}

static unsigned stamp_bytes(stamp s)
{
	return s >> 1 & 3;
}

static uint64_t stamp_clock(stamp s)
{
	return s >> 3 & ((1u << CLOCK_BITS) - 1);
}

static unsigned stamp_thread(stamp s)
{
	return s >> (3 + CLOCK_BITS) & (BLOCK_MAX - 1);
}

static uint64_t stamp_serial(stamp s)
{
	return s >> (3 + CLOCK_BITS + THREAD_BITS);
}

static bool same_warp(stamp s, const struct thread *t)
{
	return stamp_serial(s) == serial && stamp_thread(s) / WARP == t->number / WARP;
}

/* Is what t does now sure to come behind s? */
static bool is_ordered(stamp s, const struct thread *t)
{
	if (stamp_serial(s) != serial)
		return stamp_serial(s) < first_serial;
	return stamp_thread(s) == t->number || stamp_clock(s) < block_since ||
	       (same_warp(s, t) && stamp_clock(s) < warp_since[t->warp->number]);
}

static bool races(stamp old, stamp now, const struct thread *t)
{
	return (stamp_bytes(old) & stamp_bytes(now)) && !(stamp_atomic(old) && stamp_atomic(now)) &&
	       !is_ordered(old, t);
}

[[noreturn]] static void report_race(stamp old, const char *old_verb, const void *p, unsigned how, const void *pc)
{
	cudasim_violation("%s: race on %p: %s without a barrier behind the %s of thread %u of %s", place(pc), p,
			  verb(how), old_verb, stamp_thread(old),
			  stamp_serial(old) == serial ? "this block" : "another block");
}

static void note_read(struct cell *c, stamp now, const struct thread *t)
{
	stamp *r = c->read;

	for (unsigned i = 0; i < 2; ++i) { /* the same thread again: one slot is enough */
		if (r[i] >> (3 + CLOCK_BITS) == now >> (3 + CLOCK_BITS)) {
			if (stamp_clock(r[i]) == stamp_clock(now))
				now = (now & (r[i] | ~(stamp)1)) | stamp_bytes(r[i]) << 1;
			r[i] = now;
			return;
		}
	}
	for (unsigned i = 0; i < 2; ++i) {
		if (r[i] == 0 || is_ordered(r[i], t)) {
			r[i] = now;
			return;
		}
	}
	r[same_warp(r[1], t) ? 1 : 0] = now;
}

static void note(struct cell *c, stamp now, const void *p, unsigned how, const struct thread *t, const void *pc)
{
	if (races(c->write, now, t))
		report_race(c->write, "write", p, how, pc);
	if (how & TOUCH_WRITE) {
		for (unsigned i = 0; i < 2; ++i) {
			if (races(c->read[i], now, t))
				report_race(c->read[i], "read", p, how, pc);
		}
		c->write = now;
	}
	if (!(how & TOUCH_WRITE) || (how & TOUCH_ATOMIC))
		note_read(c, now, t);
}

static void note_range(struct cell *cell, size_t at, const void *p, size_t bytes, unsigned how, const struct thread *t,
		       const void *pc)
{
	const size_t end = at + bytes;

	while (at < end) {
		const unsigned covered = at % 2 ? 2 : end - at == 1 ? 1 : 3;

		note(&cell[at / 2], make_stamp(t, covered, how & TOUCH_ATOMIC), p, how, t, pc);
		at += covered == 3 ? 2 : 1;
	}
}

/* ---- counters ---- */

struct piece { /* of a warp's access: a sector and which of its bytes */
	uintptr_t sector; /* counted from the region's base: on a device that is aligned well */
	uint32_t bytes;
};

struct access {
	unsigned n_lanes;
	struct region *region;
	std::vector<struct piece> piece;
};

struct stream { /* one instruction of one warp */
	uint32_t n_seen[WARP];
	std::unordered_map<uint32_t, struct access> open;
};

static std::map<std::pair<const void *, unsigned>, struct stream> streams;

static void close_access(const struct access *a)
{
	unsigned bytes = 0;

	for (const struct piece &piece : a->piece)
		bytes += (unsigned)__builtin_popcount(piece.bytes);
	++a->region->counts.accesses;
	a->region->counts.sectors += a->piece.size();
	a->region->counts.sectors_ideal += (bytes + 31) / 32;
}

static void add_piece(struct access *a, uintptr_t sector, uint32_t bytes)
{
	for (size_t i = a->piece.size(); i > 0; --i) {
		if (a->piece[i - 1].sector == sector) {
			a->piece[i - 1].bytes |= bytes;
			return;
		}
	}
	a->piece.push_back({ sector, bytes });
}

static void count_warp(struct region *r, uintptr_t p, size_t bytes, const struct thread *t, const void *pc)
{
	struct stream *s = &streams[{ pc, t->warp->number }];
	uint32_t k = s->n_seen[t->lane]++;
	struct access *a = &s->open[k];

	a->region = r;
	p -= r->base;
	for (size_t i = 0; i < bytes;) {
		size_t n = 32 - (p + i) % 32 < bytes - i ? 32 - (p + i) % 32 : bytes - i;

		add_piece(a, (p + i) / 32, (uint32_t)((((uint64_t)1 << n) - 1) << (p + i) % 32));
		i += n;
	}
	if (++a->n_lanes == t->warp->n) {
		close_access(a);
		s->open.erase(k);
	}
}

static void count_sectors(struct region *r, std::vector<uint32_t> **last, uint64_t *n, uintptr_t p, size_t bytes)
{
	p -= r->base;
	if (!*last)
		*last = new std::vector<uint32_t>((r->end - r->base) / 32 + 1);
	for (uintptr_t at = p / 32; at <= (p + bytes - 1) / 32; ++at) {
		if ((**last)[at] != launch_number)
			++*n;
		(**last)[at] = launch_number;
	}
}

static void count(struct region *r, uintptr_t p, size_t bytes, unsigned how, const struct thread *t, const void *pc)
{
	const unsigned size = bytes >= 16 ? 4 : bytes >= 8 ? 3 : bytes >= 4 ? 2 : bytes >= 2 ? 1 : 0;

	if (how & TOUCH_READ) {
		r->counts.read[size] += bytes;
		count_sectors(r, &r->read, &r->counts.sectors_read, p, bytes);
	}
	if (how & TOUCH_WRITE) {
		r->counts.written[size] += bytes;
		count_sectors(r, &r->written, &r->counts.sectors_written, p, bytes);
	}
	count_warp(r, p, bytes, t, pc);
}

static void close_streams(void)
{
	for (auto &s : streams) {
		for (auto &a : s.second.open)
			close_access(&a.second);
	}
	streams.clear();
}

static void print_counts(FILE *to, const struct counts *c)
{
	const char *const name[2] = { "bytes_read", "bytes_written" };

	for (unsigned i = 0; i < 2; ++i) {
		const uint64_t *n = i == 0 ? c->read : c->written;

		fprintf(to,
			"\"%s\": %lu, \"%s_by_size\": {\"1\": %lu, \"2\": %lu, \"4\": %lu, \"8\": %lu, \"16\": %lu}, ",
			name[i], n[0] + n[1] + n[2] + n[3] + n[4], name[i], n[0], n[1], n[2], n[3], n[4]);
	}
	fprintf(to,
		"\"sectors_read\": %lu, \"sectors_written\": %lu, \"warp_accesses\": %lu, \"warp_sectors\": %lu, "
		"\"warp_sectors_ideal\": %lu",
		c->sectors_read, c->sectors_written, c->accesses, c->sectors, c->sectors_ideal);
}

static void print_launch(void)
{
	const struct cudasim_uint3 g = cudasim_view.grid_size, b = cudasim_view.block_size;
	struct counts sum = {};
	const char *separator = "";
	FILE *to = fopen(count_to, "a");

	if (!to)
		return;
	for (auto &r : regions) {
		const uint64_t *from = (const uint64_t *)&r.second.counts;

		for (size_t i = 0; i < sizeof(sum) / sizeof(uint64_t); ++i)
			((uint64_t *)&sum)[i] += from[i];
	}
	fprintf(to, "{\"kernel\": \"%s\", \"grid\": [%u, %u, %u], \"block\": [%u, %u, %u], \"shared\": %zu, ",
		cudasim_launch.name, g.x, g.y, g.z, b.x, b.y, b.z, cudasim_launch.shared_bytes);
	print_counts(to, &sum);
	fprintf(to, ", \"mma\": %lu, \"copy_bytes\": %lu, \"regions\": [", cudasim_launch.n_mma,
		cudasim_launch.copy_bytes);
	for (auto &r : regions) {
		if (r.second.counts.accesses == 0)
			continue;
		fprintf(to, "%s{\"base\": \"0x%lx\", \"bytes\": %lu, ", separator, r.second.base,
			r.second.end - r.second.base);
		print_counts(to, &r.second.counts);
		fprintf(to, "}");
		separator = ", ";
		r.second.counts = {};
	}
	fprintf(to, "]}\n");
	fclose(to);
}

/* ---- which memory ---- */

static struct region *find_region(uintptr_t p)
{
	if (last_region && p >= last_region->base && p < last_region->end)
		return last_region;

	auto at = regions.upper_bound(p);

	if (at == regions.end() || p < at->second.base)
		return NULL;
	return last_region = &at->second;
}

static int find_constant(struct dl_phdr_info *info, size_t, void *ret)
{
	uintptr_t *p = (uintptr_t *)ret;

	for (unsigned i = 0; i < info->dlpi_phnum; ++i) {
		const ElfW(Phdr) *h = &info->dlpi_phdr[i];
		bool constant = (h->p_type == PT_LOAD && !(h->p_flags & PF_W)) || h->p_type == PT_GNU_RELRO;

		if (constant && *p >= info->dlpi_addr + h->p_vaddr && *p < info->dlpi_addr + h->p_vaddr + h->p_memsz)
			return 1;
	}
	return 0;
}

/* The compiler's tables of constants. */
static bool is_constant(uintptr_t p)
{
	static uintptr_t known; /* the page that was asked for last */

	if (p / 4096 == known)
		return true;
	if (!dl_iterate_phdr(find_constant, &p))
		return false;
	known = p / 4096;
	return true;
}

static bool within(uintptr_t p, size_t bytes, const void *base, size_t room)
{
	return p - (uintptr_t)base < room && p - (uintptr_t)base + bytes <= room;
}

static void touch_shared(const void *p, size_t bytes, unsigned how, const struct thread *t, const void *pc)
{
	const size_t at = (uintptr_t)p - (uintptr_t)cudasim_view.shared;

	for (size_t i = at; i < at + bytes; ++i) {
		if ((how & TOUCH_READ) && shared_state[i] == NEVER_WRITTEN)
			cudasim_violation("%s: read of shared memory (byte %zu) that nobody wrote", place(pc), i);
		if ((how & TOUCH_READ) && shared_state[i] == COPY_UNDER_WAY)
			cudasim_violation("%s: read of shared memory (byte %zu) whose copy is under way", place(pc), i);
		if (how & TOUCH_WRITE)
			shared_state[i] = how & TOUCH_COPY ? COPY_UNDER_WAY : WRITTEN;
	}
	note_range(shared_cell, at, p, bytes, how, t, pc);
}

static void touch_global(struct region *r, const void *p, size_t bytes, unsigned how, const struct thread *t,
			 const void *pc)
{
	if (!r->cell) {
		void *room = mmap(NULL, ((r->end - r->base) / 2 + 1) * sizeof(struct cell), PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

		if (room == MAP_FAILED) {
			perror("cudasim: no shadow memory");
			abort();
		}
		r->cell = (struct cell *)room;
	}
	if (count_to && !(how & TOUCH_COPY))
		count(r, (uintptr_t)p, bytes, how, t, pc);
	note_range(r->cell, (uintptr_t)p - r->base, p, bytes, how, t, pc);
}

static void touch(const void *p, size_t bytes, unsigned how, const struct thread *t, const void *pc)
{
	const uintptr_t at = (uintptr_t)p;
	struct region *r;

	if (bytes == 0 || within(at, bytes, t->stack, CUDASIM_STACK_BYTES))
		return;
	if (within(at, bytes, cudasim_view.shared, cudasim_launch.shared_bytes)) {
		touch_shared(p, bytes, how, t, pc);
		return;
	}
	if (!(how & TOUCH_WRITE) && (within(at, bytes, &cudasim_view, sizeof(cudasim_view)) ||
				     within(at, bytes, cudasim_param, CUDASIM_PARAM_BYTES)))
		return;
	r = find_region(at);
	if (r && at + bytes <= r->end) {
		touch_global(r, p, bytes, how, t, pc);
		return;
	}
	if (!(how & TOUCH_WRITE) && is_constant(at))
		return;
	if (within(at, 1, cudasim_view.shared - 4096, CUDASIM_SHARED_MAX))
		cudasim_violation("%s: %s of %zu bytes at byte %ld of %zu bytes of shared memory", place(pc), verb(how),
				  bytes, (long)(at - (uintptr_t)cudasim_view.shared), cudasim_launch.shared_bytes);
	cudasim_violation("%s: %s of %zu bytes at %p, which is not memory of the device", place(pc), verb(how), bytes,
			  p);
}

/* ---- what the engine tells ---- */

static void watch_launch(bool begin)
{
	if (begin) {
		count_to = getenv("CUDASIM_COUNT");
		++launch_number;
		first_serial = serial + 1;
	} else if (count_to) {
		print_launch();
	}
}

static void watch_block(bool begin)
{
	if (!begin) {
		close_streams();
		return;
	}
	if (++serial >= (uint64_t)1 << SERIAL_BITS) {
		fprintf(stderr, "cudasim: too many blocks for the instrumented build\n");
		abort();
	}
	clock_now = 1;
	block_since = 0;
	memset(warp_since, 0, sizeof(warp_since));
	memset(shared_state, NEVER_WRITTEN, cudasim_launch.shared_bytes);
	memset(shared_cell, 0, (cudasim_launch.shared_bytes + 1) / 2 * sizeof(struct cell));
}

static void watch_barrier(const struct warp *w)
{
	if (++clock_now >= (uint64_t)1 << CLOCK_BITS) {
		fprintf(stderr, "cudasim: too many barriers for the instrumented build\n");
		abort();
	}
	if (w)
		warp_since[w->number] = clock_now;
	else
		block_since = clock_now;
}

static void watch_memory(const void *base, size_t bytes, bool live)
{
	const uintptr_t begin = (uintptr_t)base, end = begin + bytes;

	last_region = NULL;
	if (bytes == 0)
		return;
	if (!live) {
		auto at = regions.find(end);

		if (at == regions.end())
			return;
		if (at->second.cell)
			munmap(at->second.cell, (bytes / 2 + 1) * sizeof(struct cell));
		delete at->second.read;
		delete at->second.written;
		regions.erase(at);
		return;
	}

	auto next = regions.upper_bound(begin);

	if (next != regions.end() && next->second.base < end) {
		fprintf(stderr, "cudasim: memory at %p, %zu bytes, overlaps other memory\n", base, bytes);
		abort();
	}
	regions[end] = { begin, end, NULL, NULL, NULL, {} };
}

extern const struct cudasim_watch cudasim_watch = { watch_launch, watch_block, watch_barrier, touch, watch_memory };

/* ---- what g++ calls ---- */

static inline void hook(const void *p, size_t bytes, size_t alignment, unsigned how, const void *pc)
{
	if (!cudasim_now)
		return;
	if ((uintptr_t)p % alignment)
		cudasim_violation("%s: %s at %p, not aligned to %zu bytes", place(pc), verb(how), p, alignment);
	touch(p, bytes, how, cudasim_now, pc);
}

#define HOOKS(bytes) \
	extern "C" void __tsan_read##bytes(void *p) \
	{ \
		hook(p, bytes, bytes, TOUCH_READ, CALLER); \
	} \
	extern "C" void __tsan_write##bytes(void *p) \
	{ \
		hook(p, bytes, bytes, TOUCH_WRITE, CALLER); \
	} \
	extern "C" void __tsan_volatile_read##bytes(void *p) \
	{ \
		hook(p, bytes, bytes, TOUCH_READ, CALLER); \
	} \
	extern "C" void __tsan_volatile_write##bytes(void *p) \
	{ \
		hook(p, bytes, bytes, TOUCH_WRITE, CALLER); \
	}
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

extern "C" void __tsan_read_range(void *p, size_t bytes)
{
	hook(p, bytes, 1, TOUCH_READ, CALLER);
}

extern "C" void __tsan_write_range(void *p, size_t bytes)
{
	hook(p, bytes, 1, TOUCH_WRITE, CALLER);
}

extern "C" void __tsan_init(void)
{
}

extern "C" void __tsan_func_entry(void *)
{
}

extern "C" void __tsan_func_exit(void)
{
}

/* Of the host code beside the kernels: cuda_failed(). */
extern "C" uint32_t __tsan_atomic32_load(const volatile uint32_t *p, int)
{
	return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
