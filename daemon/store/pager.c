/* SPDX-License-Identifier: MIT */
/*
 * The pager
 *
 * One thread reads images from data.mdb straight into the memory they are used from. A load is cut into pieces of up to
 * 1 MiB; up to `depth` pieces are in flight, those of the oldest load first. So the disk stays busy across loads (the
 * next one's pieces fill the queue while the last of this one are still out), and no load waits for a younger one.
 *
 * A load is: a snapshot that pins its pages, the header page of chunk 0 (a piece of its own, into a page of the pager's),
 * the payload pages of all chunks back to back. The header holds the sums of all chunks; each chunk is checked once it is
 * complete and the header is there, but only after all reads that can be in flight are: the disk works meanwhile. Any failure, read error,
 * short read, wrong sum, ends that load only: its remaining pieces are not read, those in flight are waited for, and only
 * then is the snapshot closed and done() called. Until then the kernel may write to the target.
 *
 * How pieces are read is chosen once, at start, by doing it: the first way of the ladder (ring with registered buffers,
 * ring, pread, map) that brings the store's probe value in correctly is taken. The trial of the first way writes to the
 * first bytes of the region.
 *
 * Compaction puts another file in data.mdb's place while no snapshot is open: before the first read after it the pager opens
 * that one and makes its reader anew, in the way that was proven.
 *
 * Threads: pager_submit() only queues. All else belongs to the pager's thread.
 */
#include "daemon/store/pager.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>

#include "daemon/base/clock.h"
#include "daemon/store/reader.h"
#include "daemon/store/store-internal.h"

#define DEPTH_DEFAULT 8u
#define DEPTH_MOST 64u
#define ACTIVE_MOST 64u /* snapshots the pager holds at once: an old one keeps deleted pages from reuse */

const char *const pager_method_names[_PAGER_METHOD_N] = {
	[PAGER_URING_FIXED] = "io_uring, registered buffers",
	[PAGER_URING] = "io_uring",
	[PAGER_PREAD] = "pread",
	[PAGER_MAP] = "map",
};

#define HEADER_PIECE UINT32_MAX /* reader_piece.chunk of the header page */
#define CHECKED UINT32_MAX      /* job.missing of a chunk whose sum was right */

/* A load under way. */
struct job {
	struct list link;
	struct pager_load *load;
	struct store_snapshot *snapshot;
	const struct store_chunk *chunks;
	uint32_t n_chunks;
	uint8_t *header_page;
	bool header_asked, header_read;
	uint32_t next_chunk, next_at; /* the first byte not asked for yet */
	uint32_t *missing;            /* [n_chunks] bytes not there yet, or CHECKED */
	uint32_t n_checked;           /* all chunks before this one are */
	unsigned in_flight;           /* pieces */
	int result;
};

struct pager {
	struct store *store;
	struct pager_options options;
	pthread_t thread;
	bool started;
	int data_fd, event_fd;
	bool direct;
	struct reader *reader;
	struct reader_piece *pieces;  /* [depth] */
	struct reader_piece *idle;    /* those not in flight */
	struct list active;           /* of struct job, oldest first */
	unsigned n_active;
	uint64_t busy_since_ns;
	uint64_t generation;          /* of the store's file that is open */

	_Atomic(enum pager_method) method;
	pthread_mutex_t lock;         /* the rest */
	pthread_cond_t ready;
	bool is_ready, stopping;
	struct pager_load *first, **last; /* queued, not begun */
	struct pager_stats stats;
};

/* ---- one load ---- */

static struct job *job_free(struct job *job)
{
	if (!job)
		return NULL;
	assert(job->in_flight == 0);
	store_snapshot_close(job->snapshot);
	free(job->missing);
	free(job->header_page);
	free(job);
	return NULL;
}

DEFINE_CLEANUP(struct job *, job_free)

static int job_new(struct job **ret, struct pager *pager, struct pager_load *load)
{
	_cleanup_(job_freep) struct job *job = calloc(1, sizeof(*job));
	int r;

	if (!job)
		return error_origin(-ENOMEM);
	r = store_snapshot_open(pager->store, &load->digest, load->encoding, &job->snapshot);
	if (r == STORE_E_NOT_FOUND)
		return diag_set(&load->diag, r, "it is not in the store any more%s",
				load->encoding == IMAGE_PACKED ? ", or has no packed image there" : "");
	if (r == STORE_E_CORRUPT)
		return diag_set(&load->diag, r, "its record or its list of chunks is damaged");
	if (r)
		return error_trace(r);
	job->n_chunks = store_snapshot_chunks(job->snapshot, &job->chunks);
	if (store_image_bytes(store_snapshot_record(job->snapshot), load->encoding) > load->room)
		return diag_set(&load->diag, STORE_E_CORRUPT, "its record changed its size");
	job->load = load;
	job->missing = calloc(job->n_chunks, sizeof(*job->missing));
	job->header_page = aligned_alloc(IMAGE_PAGE, IMAGE_PAGE);
	if (!job->missing || !job->header_page)
		return error_origin(-ENOMEM);
	for (uint32_t i = 0; i < job->n_chunks; ++i)
		job->missing[i] = job->chunks[i].bytes;
	*ret = TAKE_PTR(job);
	return 0;
}

static bool job_all_asked(const struct job *job)
{
	return job->result || (job->header_asked && job->next_chunk == job->n_chunks);
}

static uint8_t *chunk_target(const struct job *job, uint32_t chunk)
{
	return (uint8_t *)job->load->to + (size_t)chunk * IMAGE_CHUNK_PAYLOAD;
}

/* The page of the file that ends where chunk 0's payload begins. */
static void next_header_piece(struct job *job, struct reader_piece *piece)
{
	const struct store_chunk *chunk = &job->chunks[0];

	piece->file_offset = chunk->file_offset - IMAGE_PAGE;
	piece->mapped = chunk->value - STORE_PAGE_HEADER;
	piece->to = job->header_page;
	piece->bytes = IMAGE_PAGE;
	piece->chunk = HEADER_PIECE;
	job->header_asked = true;
}

static void next_payload_piece(struct job *job, const struct reader *reader, struct reader_piece *piece)
{
	const struct store_chunk *chunk = &job->chunks[job->next_chunk];
	uint8_t *to = chunk_target(job, job->next_chunk) + job->next_at;
	size_t bytes = chunk->bytes - job->next_at;

	if (bytes > READER_PIECE_BYTES)
		bytes = READER_PIECE_BYTES;
	if (reader->window && to >= reader->region) {
		size_t to_edge = reader->window - (size_t)(to - reader->region) % reader->window;

		if (bytes > to_edge)
			bytes = to_edge;
	}
	piece->file_offset = chunk->file_offset + job->next_at;
	piece->mapped = chunk->value + IMAGE_HEADER_BYTES + job->next_at;
	piece->to = to;
	piece->bytes = (uint32_t)bytes;
	piece->chunk = job->next_chunk;
	job->next_at += (uint32_t)bytes;
	if (job->next_at == chunk->bytes) {
		++job->next_chunk;
		job->next_at = 0;
	}
}

static void job_fail_chunk(struct job *job, uint32_t chunk, int result, const char *what)
{
	job->result = diag_set(&job->load->diag, result, "%s %u of %u at byte %llu of data.mdb: %s",
			       store_chunk_word(job->load->encoding), chunk, job->n_chunks,
			       (unsigned long long)job->chunks[chunk].file_offset, what);
}

static void job_check_chunk(struct job *job, uint32_t chunk)
{
	uint32_t sum = crc32c(0, chunk_target(job, chunk), job->chunks[chunk].bytes);

	job->missing[chunk] = CHECKED;
	if (sum != job->load->header.chunk_crc[chunk])
		job_fail_chunk(job, chunk, STORE_E_CORRUPT, "its checksum is wrong");
}

/* All chunks whose last byte is there, once the sums are. */
static void job_check_chunks(struct job *job)
{
	for (uint32_t i = job->n_checked; job->header_read && i < job->n_chunks && i <= job->next_chunk; ++i) {
		if (job->missing[i] == 0 && !job->result)
			job_check_chunk(job, i);
		if (job->missing[i] == CHECKED && i == job->n_checked)
			++job->n_checked;
	}
}

static bool job_is_done(const struct job *job)
{
	return job->in_flight == 0 && (job->result || job->n_checked == job->n_chunks);
}

static void job_take_header(struct job *job)
{
	const struct store_record *record = store_snapshot_record(job->snapshot);
	const struct image_header *header;
	int r;

	r = store_check_header(record, job->load->encoding, 0, job->header_page + STORE_PAGE_HEADER,
			       IMAGE_HEADER_BYTES + job->chunks[0].bytes, &header, &job->load->diag);
	if (r) {
		job->result = r;
		return;
	}
	job->load->header = *header;
	job->header_read = true;
}

static void job_take_piece(struct job *job, const struct reader_piece *piece)
{
	uint32_t chunk = piece->chunk == HEADER_PIECE ? 0 : piece->chunk;

	--job->in_flight;
	if (job->result)
		return;
	if (piece->result < 0) {
		job_fail_chunk(job, chunk, piece->result, strerror(-piece->result));
	} else if ((uint32_t)piece->result != piece->bytes) {
		job_fail_chunk(job, chunk, -EIO, "the read came back short");
	} else if (piece->chunk == HEADER_PIECE) {
		job_take_header(job);
	} else {
		job->missing[chunk] -= piece->bytes;
	}
}

/* ---- the thread ---- */

static void finish(struct pager *pager, struct pager_load *load, int result)
{
	load->finished_ns = clock_ns();
	pthread_mutex_lock(&pager->lock);
	++pager->stats.loads;
	if (result)
		++pager->stats.failed;
	else
		pager->stats.bytes += load->header.payload_bytes;
	pthread_mutex_unlock(&pager->lock);
	load->done(load, result);
}

static void finish_job(struct pager *pager, struct job *job)
{
	struct pager_load *load = job->load;
	int result = job->result;

	list_unlink(&job->link);
	if (--pager->n_active == 0) {
		pthread_mutex_lock(&pager->lock);
		pager->stats.busy_ns += clock_ns() - pager->busy_since_ns;
		pthread_mutex_unlock(&pager->lock);
	}
	job_free(job);
	finish(pager, load, result);
}

/* The next queued load, or NULL. When the pager is to end, queued loads fail here. */
static struct pager_load *take_queued(struct pager *pager, bool *ret_stopping)
{
	struct pager_load *load;

	pthread_mutex_lock(&pager->lock);
	*ret_stopping = pager->stopping;
	load = pager->first;
	if (load) {
		pager->first = load->next;
		if (!pager->first)
			pager->last = &pager->first;
	}
	pthread_mutex_unlock(&pager->lock);
	return load;
}

static struct reader_options reader_options(const struct pager *pager)
{
	return (struct reader_options){
		.fd = pager->data_fd,
		.event_fd = pager->event_fd,
		.region = pager->options.region,
		.region_bytes = pager->options.region_bytes,
		.depth = pager->options.depth,
	};
}

/*
 * Opens data.mdb anew if it became another file. A snapshot is open, but nothing of the file before is in flight. On failure
 * all is as before, and the next load tries again.
 */
static int follow_store(struct pager *pager)
{
	uint64_t generation = store_generation(pager->store);
	struct reader_options options = reader_options(pager);
	struct reader *reader = NULL;
	int r = -EIO;

	if (generation == pager->generation)
		return 0;
	assert(pager->n_active == 0);
	options.fd = store_open_direct(pager->store, &pager->direct);
	if (options.fd < 0)
		return error_trace(options.fd);
	for (enum pager_method method = pager->reader->method; method < _PAGER_METHOD_N && r; ++method)
		r = reader_new(&reader, method, &options);
	if (r) {
		close(options.fd);
		return error_origin(r);
	}
	reader_free(pager->reader);
	pager->reader = reader;
	close(pager->data_fd);
	pager->data_fd = options.fd;
	pager->generation = generation;
	return 0;
}

static void begin_load(struct pager *pager, struct pager_load *load)
{
	struct job *job = NULL;
	int r;

	load->started_ns = clock_ns();
	r = job_new(&job, pager, load);
	if (!r)
		r = follow_store(pager);
	if (r) {
		job_free(job);
		finish(pager, load, r);
		return;
	}
	if (pager->n_active++ == 0)
		pager->busy_since_ns = load->started_ns;
	list_append(&pager->active, &job->link);
}

/* Begins queued loads while there is room. Return: false when the pager is to end and nothing is left to do. */
static bool begin_loads(struct pager *pager)
{
	struct pager_load *load;
	bool stopping = false;

	while (pager->n_active < ACTIVE_MOST && store_may_read(pager->store, pager->n_active > 0) &&
	       (load = take_queued(pager, &stopping))) {
		if (stopping)
			finish(pager, load, -ECANCELED);
		else
			begin_load(pager, load);
	}
	return !stopping || pager->n_active > 0;
}

static void submit_pieces(struct pager *pager)
{
	struct job *job;

	list_for_each(job, &pager->active, link) {
		while (pager->idle && !job_all_asked(job)) {
			struct reader_piece *piece = pager->idle;

			pager->idle = piece->next;
			piece->owner = job;
			if (!job->header_asked)
				next_header_piece(job, piece);
			else
				next_payload_piece(job, pager->reader, piece);
			++job->in_flight;
			pager->reader->ops->submit(pager->reader, piece);
		}
	}
	pager->reader->ops->start(pager->reader);
	atomic_store_explicit(&pager->method, pager->reader->method, memory_order_relaxed);
}

/* Return: whether a load ended, so that another one may begin. */
static bool check_chunks(struct pager *pager)
{
	bool ended = false;
	struct job *job;

	list_for_each(job, &pager->active, link) {
		job_check_chunks(job);
		if (job_is_done(job)) {
			finish_job(pager, job);
			ended = true;
		}
	}
	return ended;
}

static void reap_pieces(struct pager *pager, bool block)
{
	struct reader_piece *piece = pager->reader->ops->reap(pager->reader, block);

	for (; piece; piece = pager->reader->ops->reap(pager->reader, /* block= */ false)) {
		job_take_piece(piece->owner, piece);
		piece->next = pager->idle;
		pager->idle = piece;
	}
}

/* ---- choosing a reader ---- */

static void probe_piece(struct pager *pager, struct reader_piece *piece, uint8_t *to)
{
	const struct store_chunk *probe = &pager->store->file.probe;

	*piece = (struct reader_piece){
		.file_offset = probe->file_offset,
		.mapped = probe->value + IMAGE_HEADER_BYTES,
		.to = to,
		.bytes = probe->bytes,
	};
}

/* Reads the probe. The method must still be the one that was asked for: registering may have been refused. */
static bool works(struct pager *pager, struct reader *reader, enum pager_method method)
{
	_cleanup_free_ uint8_t *own = aligned_alloc(IMAGE_PAGE, pager->store->file.probe.bytes);
	struct reader_piece piece;

	if (!own)
		return false;
	probe_piece(pager, &piece, method == PAGER_URING_FIXED ? pager->options.region : own);
	memset(piece.to, 0, piece.bytes);
	reader->ops->submit(reader, &piece);
	while (!reader->ops->reap(reader, /* block= */ true))
		;
	return reader->method == method && piece.result == (int)piece.bytes &&
	       memcmp(piece.to, piece.mapped, piece.bytes) == 0;
}

/* The ring without O_DIRECT would only move the copying to kernel threads: then pread does it here. */
static bool possible(const struct pager *pager, enum pager_method method)
{
	if (method == PAGER_MAP)
		return true;
	if (!pager->store->file.map)
		return false;
	return pager->direct || method == PAGER_PREAD;
}

static int choose_reader(struct pager *pager)
{
	const struct reader_options options = reader_options(pager);

	for (enum pager_method method = pager->options.best; method < _PAGER_METHOD_N; ++method) {
		_cleanup_(reader_freep) struct reader *reader = NULL;

		if (!possible(pager, method) || reader_new(&reader, method, &options) || !works(pager, reader, method))
			continue;
		pager->reader = TAKE_PTR(reader);
		atomic_store(&pager->method, method);
		return 0;
	}
	return error_origin(-EIO);
}

static int init_pieces(struct pager *pager)
{
	unsigned n = pager->reader->depth;

	pager->pieces = calloc(n, sizeof(*pager->pieces));
	if (!pager->pieces)
		return error_origin(-ENOMEM);
	for (unsigned i = 0; i < n; ++i) {
		pager->pieces[i].next = pager->idle;
		pager->idle = &pager->pieces[i];
	}
	return 0;
}

/* The reader is made, used and freed on this thread: a ring belongs to the one that made it. */
static void *pager_main(void *userdata)
{
	struct pager *pager = userdata;
	int r;

	r = choose_reader(pager);
	if (!r)
		r = init_pieces(pager);
	pthread_mutex_lock(&pager->lock);
	pager->is_ready = true;
	pthread_cond_signal(&pager->ready);
	pthread_mutex_unlock(&pager->lock);
	while (!r && begin_loads(pager)) {
		submit_pieces(pager);
		reap_pieces(pager, /* block= */ !check_chunks(pager));
	}
	pager->reader = reader_free(pager->reader);
	return (void *)(intptr_t)r;
}

/* ---- the interface ---- */

static void wake(struct pager *pager)
{
	const uint64_t one = 1;
	ssize_t n = write(pager->event_fd, &one, sizeof(one));

	assert(n == (ssize_t)sizeof(one));
}

static int start(struct pager *pager)
{
	int r;

	r = pthread_create(&pager->thread, NULL, pager_main, pager);
	if (r)
		return error_origin(-r);
	pager->started = true;
	(void)pthread_setname_np(pager->thread, "lorad-pager");
	pthread_mutex_lock(&pager->lock);
	while (!pager->is_ready)
		pthread_cond_wait(&pager->ready, &pager->lock);
	pthread_mutex_unlock(&pager->lock);
	return pager->pieces ? 0 : error_origin(-EIO);
}

/**
 * pager_new() - start a pager
 * @store:      outlives it
 * @options:    the region stays the caller's and outlives it; its first bytes are written to during the trial
 *
 * Returns once a way to read is chosen, see pager_method(). Return: 0, -errno.
 */
int pager_new(struct pager **ret, struct store *store, const struct pager_options *options)
{
	_cleanup_(pager_freep) struct pager *pager = calloc(1, sizeof(*pager));
	int r;

	if (!pager)
		return error_origin(-ENOMEM);
	pager->store = store;
	pager->options = *options;
	if (!pager->options.depth)
		pager->options.depth = DEPTH_DEFAULT;
	if (pager->options.depth > DEPTH_MOST)
		pager->options.depth = DEPTH_MOST;
	pager->data_fd = -1;
	pager->last = &pager->first;
	list_init(&pager->active);
	pthread_mutex_init(&pager->lock, NULL);
	pthread_cond_init(&pager->ready, NULL);
	pager->event_fd = eventfd(0, EFD_CLOEXEC);
	if (pager->event_fd < 0)
		return error_origin(-errno);
	pager->data_fd = store_open_direct(store, &pager->direct);
	if (pager->data_fd < 0)
		return error_trace(pager->data_fd);
	r = start(pager);
	if (r)
		return error_trace(r);
	*ret = TAKE_PTR(pager);
	return 0;
}

/** pager_free() - end the loads in flight, fail the queued ones with -ECANCELED, stop the thread */
struct pager *pager_free(struct pager *pager)
{
	if (!pager)
		return NULL;
	if (pager->started) {
		pthread_mutex_lock(&pager->lock);
		pager->stopping = true;
		pthread_mutex_unlock(&pager->lock);
		wake(pager);
		pthread_join(pager->thread, NULL);
	}
	assert(list_empty(&pager->active) && !pager->first);
	free(pager->pieces);
	close_cleanup(&pager->data_fd);
	close_cleanup(&pager->event_fd);
	pthread_cond_destroy(&pager->ready);
	pthread_mutex_destroy(&pager->lock);
	free(pager);
	return NULL;
}

/**
 * pager_submit() - queue a load
 * @load:       digest, encoding, to, room and done are set; load and target are the pager's until done() was called
 */
void pager_submit(struct pager *pager, struct pager_load *load)
{
	assert(load->done && (uintptr_t)load->to % IMAGE_PAGE == 0);
	load->next = NULL;
	load->diag.text[0] = '\0';
	pthread_mutex_lock(&pager->lock);
	*pager->last = load;
	pager->last = &load->next;
	pthread_mutex_unlock(&pager->lock);
	wake(pager);
}

/** pager_method() - how pieces are read now; FIXED may become URING when the kernel registers no more memory */
enum pager_method pager_method(const struct pager *pager)
{
	return atomic_load_explicit(&pager->method, memory_order_relaxed);
}

void pager_read_stats(struct pager *pager, struct pager_stats *ret)
{
	pthread_mutex_lock(&pager->lock);
	*ret = pager->stats;
	pthread_mutex_unlock(&pager->lock);
}
