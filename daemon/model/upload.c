/* SPDX-License-Identifier: MIT */
/*
 * Weights into a device's memory
 *
 * The weights go over in panels: whole grains of one matrix, as many as a staging buffer holds. Two lanes take turns,
 * each with a buffer to read into, a staging buffer and a panel on its way: while the team packs a panel from one lane's
 * read buffer into its staging buffer and the device fetches it from there, the next panel is read into the other lane's.
 * So disk, processors and bus work at the same time, and the host needs four buffers whatever the model's size. The
 * device registers the staging buffers once (pins them).
 *
 * Files are read by io_uring past the page cache (O_DIRECT) where the file system can: a model is read once, and may be
 * as large as the host's memory. A panel is up to PIECES reads, all in flight together. Such reads begin and end on whole
 * pages, so the bytes around a panel's rows come along. Without io_uring the kernel is told of the next panel and this
 * one is read from the page cache. Either way a file that was cut off, or that cannot be read, ends the load with its
 * name; the mapping of the file, which would end the process then, is not touched.
 *
 * Rows that llama.cpp permuted move within their head (struct kern_matrix): packed rows of a panel come from the heads
 * they lie in. weight_pack() counts rows as those of the whole matrix, so it gets a matrix that would begin so far
 * before the buffer that the panel's rows lie in it.
 *
 * A staging buffer is used again once its upload has arrived: join() and fence() tell that, and done(), which may come a
 * little later, that the upload itself is ours again. On a failed device done() never comes, but fence() says so. What such
 * a device may still read, the staging buffers and the uploads, stays mapped: the process is about to end.
 */
#include "daemon/model/upload.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "daemon/base/list.h"
#include "daemon/model/model.h"
#include "daemon/os/team.h"
#include "daemon/os/uring.h"

#define PAGE ((size_t)4096) /* what O_DIRECT asks of offsets, sizes and memory, and more than most file systems need */
#define LANES 2u
#define PIECES 8u           /* reads of one panel in flight */
#define TOO_SHORT (-ENODATA)

/* Rows of a matrix that travel together. */
struct panel {
	const struct weight_load *load;
	uint32_t first, n;   /* packed rows */
	uint32_t from, end;  /* rows in the file that they are made of */
};

/* What the device may look at for as long as it lives: in the mapping of the staging buffers, before them. */
struct parcel {
	struct kern_upload upload;
	atomic_bool done;
};

struct lane {
	struct panel panel;
	uint8_t *buffer;     /* [buffer_bytes] */
	size_t file;         /* number of the file that is read */
	uint64_t offset;     /* where in it the buffer's first byte lies */
	size_t wanted;       /* bytes of the file from there on */
	size_t got[PIECES];  /* of each read */
	unsigned missing;    /* reads in flight */
	int error;           /* of the first read that failed: -errno or TOO_SHORT */
	struct parcel *parcel;
	uint8_t *staging;    /* [staging_bytes] */
	bool uploading;
};

struct upload {
	const struct upload_options *o;
	const struct weight_load *loads;
	size_t n_loads, at;  /* at, row: where the next panel begins */
	uint32_t row;
	size_t staging_bytes, buffer_bytes, piece_bytes;
	void *staging, *buffers; /* mappings, of all lanes */
	bool registered;
	bool lost;           /* the device failed with something of ours on its way */
	struct uring uring;
	bool has_ring, fixed;
	struct lane lane[LANES];
	double total, done;  /* bytes of packed weights */
};

static size_t page_up(size_t bytes)
{
	return (bytes + PAGE - 1) / PAGE * PAGE;
}

static size_t row_bytes(const struct kern_matrix *m)
{
	return kern_row_bytes(m->dtype, m->cols);
}

static size_t grains_of(const struct kern_weight *w, uint32_t rows)
{
	return ((size_t)rows + w->grain - 1) / w->grain;
}

/* ---- packing ---- */

struct pack {
	const struct kern_device_ops *ops;
	const struct kern_weight *w;
	const struct kern_matrix *m;
	uint32_t first, n;
	uint8_t *to;
};

/* Grains go to the parts in pairs, as products share them out: a thread touches first the memory it will read. */
static void pack_part(const void *args, unsigned part, unsigned n_parts)
{
	const struct pack *pack = args;
	uint64_t pairs = (grains_of(pack->w, pack->n) + 1) / 2, grain = pack->w->grain;
	uint64_t first = pairs * part / n_parts * 2, end = pairs * (part + 1) / n_parts * 2;
	uint64_t row = first * grain, row_end = end * grain < pack->n ? end * grain : pack->n;

	if (row < row_end)
		pack->ops->weight_pack(pack->w, pack->m, pack->first + (uint32_t)row, (uint32_t)(row_end - row),
				       pack->to + first * pack->w->grain_bytes);
}

void upload_pack(const struct kern_device_ops *ops, struct team *team, const struct kern_weight *w,
		 const struct kern_matrix *m, uint32_t first, uint32_t n, void *to)
{
	struct pack pack = { ops, w, m, first, n, to };

	assert(first % w->grain == 0 && n <= w->rows - first);
	team_run(team, pack_part, &pack);
}

/* ---- panels ---- */

/* Most rows of a file that a panel may need beside its own: the rest of the heads at both ends. */
static size_t rows_around(const struct kern_matrix *m)
{
	return 2 * (size_t)m->permuted_head;
}

/* Rows of a panel: whole heads, too, where those are whole grains, so that nothing is read twice. */
static uint32_t panel_rows(const struct upload *up, const struct weight_load *load)
{
	uint32_t grain = load->w->grain, e = load->m.permuted_head;
	size_t grains = up->staging_bytes / load->w->grain_bytes;
	size_t readable = (up->buffer_bytes - 2 * PAGE) / row_bytes(&load->m) - rows_around(&load->m);
	uint64_t rows;

	if (grains > readable / grain)
		grains = readable / grain;
	assert(grains > 0); /* see size_buffers() */
	rows = (uint64_t)grains * grain < load->m.rows ? (uint64_t)grains * grain : load->m.rows;
	return (uint32_t)(e && e % grain == 0 && rows > e ? rows - rows % e : rows);
}

static bool next_panel(struct upload *up, struct panel *ret)
{
	const struct weight_load *load = &up->loads[up->at];
	uint32_t e, left, most;

	if (up->at == up->n_loads)
		return false;
	e = load->m.permuted_head ? load->m.permuted_head : 1;
	left = load->m.rows - up->row;
	most = panel_rows(up, load);
	*ret = (struct panel){ .load = load, .first = up->row, .n = left < most ? left : most };
	ret->from = ret->first / e * e;
	ret->end = (ret->first + ret->n + e - 1) / e * e;
	up->row += ret->n;
	if (up->row == load->m.rows) {
		up->row = 0;
		++up->at;
	}
	return true;
}

/* ---- reading ---- */

static const struct source_file *file_of(const struct upload *up, const struct lane *lane)
{
	return &up->o->source->files[lane->file];
}

static void read_piece(struct upload *up, struct lane *lane, unsigned piece)
{
	unsigned number = (unsigned)(lane - up->lane);
	size_t at = piece * up->piece_bytes + lane->got[piece], end = (piece + 1) * up->piece_bytes;
	struct uring_read read = {
		.file = (unsigned)lane->file,
		.buffer = up->fixed ? (int)number : URING_NO_BUFFER,
		.to = lane->buffer + at,
		.offset = lane->offset + at,
		.tag = number * PIECES + piece,
	};
	int r;

	end = end < page_up(lane->wanted) ? end : page_up(lane->wanted);
	read.bytes = (uint32_t)(end - at);
	r = uring_read(&up->uring, &read);
	assert(r == 0); /* the ring has room for all pieces of all lanes */
	++lane->missing;
}

/* A read may end early at will; but only at the file's end with less than a page. */
static void piece_done(struct upload *up, uint64_t tag, int result)
{
	struct lane *lane = &up->lane[tag / PIECES];
	unsigned piece = tag % PIECES;
	size_t at = piece * up->piece_bytes, end = at + up->piece_bytes;

	--lane->missing;
	if (result < 0) {
		lane->error = lane->error ? lane->error : result;
		return;
	}
	lane->got[piece] += (size_t)result;
	if (at + lane->got[piece] >= (end < lane->wanted ? end : lane->wanted))
		return;
	if ((size_t)result < PAGE) {
		lane->error = lane->error ? lane->error : TOO_SHORT;
		return;
	}
	lane->got[piece] -= lane->got[piece] % PAGE;
	read_piece(up, lane, piece);
}

static int wait_for_reads(struct upload *up, struct lane *lane)
{
	uint64_t tag;
	int r, result;

	while (lane->missing > 0) {
		r = uring_wait(&up->uring);
		if (r)
			return error_origin(r);
		while (uring_reap(&up->uring, &tag, &result))
			piece_done(up, tag, result);
	}
	return 0;
}

/* The way without a ring: by now the kernel has begun to read ahead. */
static void read_now(const struct upload *up, struct lane *lane)
{
	int fd = file_of(up, lane)->fd;
	size_t at = 0;

	while (at < lane->wanted && !lane->error) {
		ssize_t n = pread(fd, lane->buffer + at, lane->wanted - at, (off_t)(lane->offset + at));

		if (n > 0)
			at += (size_t)n;
		else if (n == 0 || errno != EINTR)
			lane->error = n == 0 ? TOO_SHORT : -errno;
	}
}

/* Sets out to read the lane's panel. */
static int begin_read(struct upload *up, struct lane *lane)
{
	const struct kern_matrix *m = &lane->panel.load->m;
	uint64_t offset;

	lane->file = source_locate(up->o->source, m->data, &offset);
	offset += lane->panel.from * row_bytes(m);
	lane->offset = offset / PAGE * PAGE;
	lane->wanted = (size_t)(offset - lane->offset) + (lane->panel.end - lane->panel.from) * row_bytes(m);
	assert(lane->missing == 0 && lane->wanted <= up->buffer_bytes);
	if (!up->has_ring) {
		(void)posix_fadvise(file_of(up, lane)->fd, (off_t)lane->offset, (off_t)lane->wanted,
				    POSIX_FADV_WILLNEED);
		return 0;
	}
	memset(lane->got, 0, sizeof(lane->got));
	for (unsigned i = 0; i * up->piece_bytes < lane->wanted; ++i)
		read_piece(up, lane, i);
	return error_origin(uring_start(&up->uring));
}

static int finish_read(struct upload *up, struct lane *lane, struct diag *diag)
{
	const struct source_file *file = file_of(up, lane);
	struct stat st = { 0 };
	int r = 0;

	if (up->has_ring)
		r = wait_for_reads(up, lane);
	else
		read_now(up, lane);
	if (r)
		return error_trace(r);
	if (lane->error == TOO_SHORT && fstat(file->fd, &st) == 0)
		return diag_set(diag, MODEL_E_INVALID, "%s: cut off while it was loaded: %jd of %zu bytes are left",
				file->name, (intmax_t)st.st_size, file->n);
	if (lane->error)
		return diag_set(diag, MODEL_E_INVALID, "%s: cannot be read: %s", file->name, strerror(-lane->error));
	return 0;
}

/* ---- the device ---- */

/**
 * upload_failed() - put a failure of the device into words
 * @r:          what its function returned, negative
 *
 * Return: MODEL_E_INVALID with the device's own words in @diag; @r where the device is well and memory is what lacks.
 */
int upload_failed(const struct kern_device_ops *ops, struct kern_device *device, int r, struct diag *diag)
{
	struct kern_failure why = { 0 };

	ops->failure(device, &why);
	if (!why.code)
		return error_origin(r);
	return diag_set(diag, MODEL_E_INVALID, "the device failed while the weights were loaded: %s", why.text);
}

static void mark_done(struct kern_upload *upload)
{
	struct parcel *parcel = container_of(upload, struct parcel, upload);

	atomic_store(&parcel->done, true);
}

/* Waits until the device has fetched the lane's last panel and has done with the parcel. */
static int settle(struct upload *up, struct lane *lane)
{
	const struct kern_device_ops *ops = up->o->ops;
	int r;

	if (!lane->uploading)
		return 0;
	lane->uploading = false;
	r = ops->join(up->o->device, &lane->parcel->upload);
	if (!r)
		r = ops->fence(up->o->device);
	while (!r && !atomic_load(&lane->parcel->done)) { /* about to be called */
		(void)sched_yield();
		r = ops->fence(up->o->device);
	}
	up->lost = up->lost || r;
	return r;
}

/* Packs the lane's panel from its buffer and sends it off. */
static int send_panel(struct upload *up, struct lane *lane)
{
	const struct panel *panel = &lane->panel;
	const struct kern_weight *w = panel->load->w;
	struct kern_matrix m = panel->load->m;
	uint64_t offset;
	int r;

	(void)source_locate(up->o->source, m.data, &offset);
	m.data = (const void *)((uintptr_t)lane->buffer + (uintptr_t)offset - (uintptr_t)lane->offset);
	upload_pack(up->o->ops, up->o->team, w, &m, panel->first, panel->n, lane->staging);

	lane->parcel->upload = (struct kern_upload){
		.to = (void *)((uintptr_t)w->data + panel->first / w->grain * w->grain_bytes),
		.from = lane->staging,
		.bytes = grains_of(w, panel->n) * w->grain_bytes,
		.done = mark_done,
	};
	atomic_store(&lane->parcel->done, false);
	up->done += (double)lane->parcel->upload.bytes;
	r = up->o->ops->upload(up->o->device, &lane->parcel->upload);
	lane->uploading = r == 0;
	return r;
}

static int load_panel(struct upload *up, struct lane *lane, struct diag *diag)
{
	int r = finish_read(up, lane, diag);

	if (r)
		return error_trace(r);
	r = settle(up, lane);
	if (!r)
		r = send_panel(up, lane);
	if (r)
		return upload_failed(up->o->ops, up->o->device, r, diag);
	if (up->o->progress)
		up->o->progress(up->o->userdata, up->done / up->total);
	return 0;
}

static int load_panels(struct upload *up, struct diag *diag)
{
	unsigned now = 0;
	bool more = next_panel(up, &up->lane[now].panel);
	int r = more ? begin_read(up, &up->lane[now]) : 0;

	while (more && !r) {
		unsigned next = (now + 1) % LANES;

		more = next_panel(up, &up->lane[next].panel);
		if (more)
			r = begin_read(up, &up->lane[next]);
		if (!r)
			r = load_panel(up, &up->lane[now], diag);
		now = next;
	}
	for (unsigned i = 0; i < LANES && !r; ++i) {
		r = settle(up, &up->lane[i]);
		if (r)
			r = upload_failed(up->o->ops, up->o->device, r, diag);
	}
	return error_trace(r);
}

/* ---- buffers ---- */

/* What was asked for, but at least one grain of every weight, with the rows of the file it may need. */
static void size_buffers(struct upload *up)
{
	size_t bytes = page_up(up->o->buffer_bytes ? up->o->buffer_bytes : UPLOAD_BUFFER);

	up->staging_bytes = bytes;
	up->buffer_bytes = bytes;
	for (size_t i = 0; i < up->n_loads; ++i) {
		const struct weight_load *load = &up->loads[i];
		size_t rows = load->w->grain + rows_around(&load->m);
		size_t staging = page_up(load->w->grain_bytes), buffer = page_up(rows * row_bytes(&load->m)) + 2 * PAGE;

		up->staging_bytes = staging > up->staging_bytes ? staging : up->staging_bytes;
		up->buffer_bytes = buffer > up->buffer_bytes ? buffer : up->buffer_bytes;
	}
	up->piece_bytes = page_up((up->buffer_bytes + PIECES - 1) / PIECES);
}

static void *map(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return NULL;
	(void)madvise(p, bytes, MADV_HUGEPAGE); /* fewer pages to pin */
	return p;
}

static size_t staging_mapping(const struct upload *up)
{
	return PAGE + LANES * up->staging_bytes;
}

static int init_buffers(struct upload *up, struct diag *diag)
{
	struct parcel *parcels;
	int r;

	_Static_assert(LANES * sizeof(*parcels) <= PAGE, "parcels fit before the staging buffers");
	up->buffers = map(LANES * up->buffer_bytes);
	up->staging = map(staging_mapping(up));
	if (!up->buffers || !up->staging)
		return error_origin(-ENOMEM);
	parcels = up->staging;
	for (unsigned i = 0; i < LANES; ++i) {
		up->lane[i].buffer = (uint8_t *)up->buffers + i * up->buffer_bytes;
		up->lane[i].staging = (uint8_t *)up->staging + PAGE + i * up->staging_bytes;
		up->lane[i].parcel = &parcels[i];
	}
	r = up->o->ops->register_host(up->o->device, up->staging, staging_mapping(up));
	up->registered = r == 0;
	if (r < 0)
		return upload_failed(up->o->ops, up->o->device, r, diag);
	return 0; /* refused: the device takes its detour */
}

/* Found out by doing it: some file systems promise more than they keep. */
static void try_direct(int fd, void *page)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags >= 0 && fcntl(fd, F_SETFL, flags | O_DIRECT) == 0 && pread(fd, page, PAGE, 0) <= 0)
		(void)fcntl(fd, F_SETFL, flags);
}

/* Without a ring (or with more shards than it takes) there is pread. */
static int init_ring(struct upload *up)
{
	const struct source *source = up->o->source;
	_cleanup_free_ int *fds = NULL;

	if (source->n_files > URING_FILES_MAX)
		return 0;
	fds = calloc(source->n_files, sizeof(*fds));
	if (!fds)
		return error_origin(-ENOMEM);
	for (size_t i = 0; i < source->n_files; ++i)
		fds[i] = source->files[i].fd;
	if (uring_init(&up->uring, LANES * PIECES, fds, (unsigned)source->n_files, LANES) < 0)
		return 0;
	up->has_ring = true;
	up->fixed = true;
	for (unsigned i = 0; i < LANES && up->fixed; ++i)
		up->fixed = uring_set_buffer(&up->uring, i, up->lane[i].buffer, up->buffer_bytes) == 0;
	for (size_t i = 0; i < source->n_files; ++i)
		try_direct(fds[i], up->buffers);
	return 0;
}

/* Memory that a read or the device may still touch is kept. */
static void upload_deinit(struct upload *up)
{
	bool reading = false;

	for (unsigned i = 0; i < LANES; ++i) {
		struct lane *lane = &up->lane[i];

		reading = (lane->missing > 0 && wait_for_reads(up, lane) < 0) || reading;
		(void)settle(up, lane);
	}
	uring_deinit(&up->uring);
	if (up->registered && !up->lost)
		up->o->ops->unregister_host(up->o->device, up->staging);
	if (up->staging && !up->lost)
		(void)munmap(up->staging, staging_mapping(up));
	if (up->buffers && !reading)
		(void)munmap(up->buffers, LANES * up->buffer_bytes);
}

static int alloc_weights(struct upload *up, struct diag *diag)
{
	for (size_t i = 0; i < up->n_loads; ++i) {
		struct kern_weight *w = up->loads[i].w;
		int r;

		assert(w->bytes >= grains_of(w, w->rows) * w->grain_bytes); /* nothing is used in place on a device */
		r = up->o->ops->alloc(up->o->device, NULL, w->bytes, &w->data);
		if (r == -ENOMEM)
			return diag_set(diag, MODEL_E_INVALID,
					"out of device memory: %.2f GiB of the weights have a place, the next %.2f not",
					up->total / (1u << 30), (double)w->bytes / (1u << 30));
		if (r)
			return upload_failed(up->o->ops, up->o->device, r, diag);
		up->total += (double)(grains_of(w, w->rows) * w->grain_bytes);
	}
	return 0;
}

/**
 * upload_weights() - read, pack and upload the weights of a model
 * @options:    progress is called from this thread, after each panel
 * @loads:      weights as planned; their data is allocated here and belongs to the caller, also where this fails
 *
 * On success all weights are in device memory, and nothing of it goes on.
 *
 * Return: 0; MODEL_E_INVALID with one line in @diag that names the file or tells what the device said; negative errno.
 */
int upload_weights(const struct upload_options *options, const struct weight_load *loads, size_t n, struct diag *diag)
{
	_cleanup_(upload_deinit) struct upload up = {
		.o = options, .loads = loads, .n_loads = n, .uring = URING_NULL,
	};
	int r;

	size_buffers(&up);
	r = alloc_weights(&up, diag);
	if (!r)
		r = init_buffers(&up, diag);
	if (!r)
		r = init_ring(&up);
	if (!r)
		r = load_panels(&up, diag);
	return error_trace(r);
}
