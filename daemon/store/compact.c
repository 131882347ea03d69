/* SPDX-License-Identifier: MIT */
/*
 * Compaction: data.mdb without its free pages
 *
 * LMDB reuses the pages of what was deleted, but never gives them back. So all that lives is copied into a second file,
 * which then takes the first one's name:
 *
 *   1. LMDB's own compacting copy goes through a pipe into compact.mdb; that way it can be watched and ended. Nobody
 *      writes meanwhile: puts and removals wait. Reading goes on.
 *   2. compact.mdb is on the disk, opened as a store of its own, and has as many entries in each database.
 *   3. When nobody reads for a moment, rename() gives it the name data.mdb, and struct store_file is exchanged. The name is
 *      on the disk before anyone may write again.
 *
 * A daemon that dies before the rename leaves the old file and a compact.mdb, which the next open deletes; after it, the
 * new one. Both are whole. LMDB lets two environments of one process be open if their lock files differ, so compact.mdb has
 * one too; it is renamed like its file, for mdb_stat and the like.
 *
 * "For a moment": the short reads of the index end by themselves, so do exports. Only the pager could read for ever, one
 * load after the other, so it begins none on top of others while a replacement waits, and waits itself once it has none
 * (store_may_read()). What it reads next has other offsets, of another file: it looks at store_generation().
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "daemon/store/store-internal.h"

#define COPY_BYTES ((size_t)1 << 20) /* between two looks at the watch */
#define SYNC_BYTES ((size_t)64 << 20)
#define SPARE_BYTES ((uint64_t)1 << 20)
#define FREE_DBI 0                   /* LMDB's list of free pages: transaction -> count, page numbers */

static int path_in(const struct store *store, const char *name, char **ret)
{
	if (asprintf(ret, "%s/%s", store->directory, name) >= 0)
		return 0;
	*ret = NULL;
	return error_origin(-ENOMEM);
}

static int unlink_in(const struct store *store, const char *name)
{
	_cleanup_free_ char *path = NULL;
	int r;

	r = path_in(store, name, &path);
	if (r)
		return r;
	return unlink(path) < 0 && errno != ENOENT ? error_origin(-errno) : 0;
}

static int rename_in(const struct store *store, const char *from, const char *to)
{
	_cleanup_free_ char *from_path = NULL, *to_path = NULL;
	int r;

	r = path_in(store, from, &from_path);
	if (!r)
		r = path_in(store, to, &to_path);
	if (r)
		return r;
	return rename(from_path, to_path) < 0 ? error_origin(-errno) : 0;
}

int store_drop_compact(struct store *store)
{
	int r;

	r = unlink_in(store, "compact.mdb");
	if (!r)
		r = unlink_in(store, "compact.mdb-lock");
	return error_trace(r);
}

/* ---- how much there is ---- */

static int count_free(struct store *store, uint64_t *ret_pages)
{
	_cleanup_(store_read_end) struct store_read read = {};
	_cleanup_(mdb_cursor_closep) MDB_cursor *cursor = NULL;
	MDB_val key, value;
	size_t n;
	int r;

	*ret_pages = 0;
	r = store_read_begin(&read, store);
	if (!r)
		r = store_result(mdb_cursor_open(read.txn, FREE_DBI, &cursor), NULL);
	while (!r) {
		r = store_result(mdb_cursor_get(cursor, &key, &value, MDB_NEXT), NULL);
		if (!r) {
			memcpy(&n, value.mv_data, sizeof(n));
			*ret_pages += n;
		}
	}
	return r == STORE_E_NOT_FOUND ? 0 : error_trace(r);
}

/**
 * store_space() - the size of data.mdb, and how much of it is free for what comes next
 *
 * Return: 0, STORE_E_CORRUPT, -errno.
 */
int store_space(struct store *store, struct store_space *ret)
{
	uint64_t pages;
	MDB_envinfo info;
	int r;

	r = count_free(store, &pages);
	if (!r)
		r = store_result(mdb_env_info(store->file.env, &info), NULL);
	if (r)
		return error_trace(r);
	ret->file_bytes = (info.me_last_pgno + 1) * store->file.page;
	ret->free_bytes = pages * store->file.page;
	return 0;
}

static int check_room(const struct store *store, uint64_t bytes, struct diag *diag)
{
	struct statvfs vfs;
	uint64_t room;

	if (statvfs(store->directory, &vfs) < 0)
		return error_origin(-errno);
	room = (uint64_t)vfs.f_bavail * vfs.f_frsize;
	if (room >= bytes + SPARE_BYTES)
		return 0;
	return diag_set(diag, STORE_E_FULL, "the copy takes %llu bytes, and the store's folder has %llu left",
			(unsigned long long)bytes, (unsigned long long)room);
}

/* ---- the copy ---- */

struct copy {
	MDB_env *env;
	int pipe[2];
	pthread_t thread;
	int rc; /* LMDB's */
};

static void *copy_main(void *userdata)
{
	struct copy *copy = userdata;

	copy->rc = mdb_env_copyfd2(copy->env, copy->pipe[1], MDB_CP_COMPACT);
	close(copy->pipe[1]);
	return NULL;
}

static int write_all(int fd, const uint8_t *from, size_t bytes, struct diag *diag)
{
	while (bytes > 0) {
		ssize_t n = write(fd, from, bytes);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return store_result(errno, diag);
		from += n;
		bytes -= (size_t)n;
	}
	return 0;
}

/*
 * From the pipe into the file, until it ends. Synced as it grows, so that the last sync is short: what ends the daemon waits
 * for it.
 */
static int drain(const struct copy *copy, int fd, const struct store_watch *watch, struct diag *diag)
{
	_cleanup_free_ uint8_t *buffer = malloc(COPY_BYTES);
	size_t unsynced = 0;
	ssize_t n;
	int r = 0;

	if (!buffer)
		return error_origin(-ENOMEM);
	while (!r) {
		n = read(copy->pipe[0], buffer, COPY_BYTES);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_origin(-errno);
		if (n == 0)
			return fsync(fd) < 0 ? store_result(errno, diag) : 0;
		if (watch && !watch->go_on(watch->userdata, (uint64_t)n))
			return STORE_E_CANCELLED;
		r = write_all(fd, buffer, (size_t)n, diag);
		unsynced += (size_t)n;
		if (!r && unsynced >= SYNC_BYTES) {
			r = fdatasync(fd) < 0 ? store_result(errno, diag) : 0;
			unsynced = 0;
		}
	}
	return r;
}

/* A copy that is not read to its end fails with EPIPE; LMDB keeps the signal to itself. */
static int copy_to(struct store *store, int fd, const struct store_watch *watch, struct diag *diag)
{
	struct copy copy = { .env = store->file.env };
	int r;

	if (pipe2(copy.pipe, O_CLOEXEC) < 0)
		return error_origin(-errno);
	(void)fcntl(copy.pipe[1], F_SETPIPE_SZ, (int)COPY_BYTES);
	r = pthread_create(&copy.thread, NULL, copy_main, &copy);
	if (r) {
		close(copy.pipe[0]);
		close(copy.pipe[1]);
		return error_origin(-r);
	}
	r = drain(&copy, fd, watch, diag);
	close(copy.pipe[0]);
	pthread_join(copy.thread, NULL);
	return r ? r : store_result(copy.rc, diag);
}

/* LMDB copies out of the map, where read-ahead is off. Without it each page of a cold file is a read of its own. */
static void advise(const struct store *store, int advice)
{
	struct stat st;

	if (store->file.map && fstat(store->file.data_fd, &st) == 0)
		(void)madvise((void *)(uintptr_t)store->file.map, (size_t)st.st_size, advice);
}

/* None of it need stay in the page cache. */
static int make_copy(struct store *store, const char *path, const struct store_watch *watch, struct diag *diag)
{
	_cleanup_close_ int fd = -1;
	int r;

	fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return store_result(errno, diag);
	advise(store, MADV_SEQUENTIAL);
	r = copy_to(store, fd, watch, diag);
	advise(store, MADV_RANDOM);
	(void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	(void)posix_fadvise(store->file.data_fd, 0, 0, POSIX_FADV_DONTNEED);
	return error_trace(r);
}

/* ---- the replacement ---- */

static int entries(struct store *store, MDB_dbi dbi, size_t *ret)
{
	_cleanup_(store_read_end) struct store_read read = {};
	MDB_stat stat;
	int r;

	r = store_read_begin(&read, store);
	if (!r)
		r = store_result(mdb_stat(read.txn, dbi, &stat), NULL);
	if (!r)
		*ret = stat.ms_entries;
	return r;
}

static int compare(struct store *store, struct store *fresh, struct diag *diag)
{
	const MDB_dbi all[][2] = {
		{ store->file.names, fresh->file.names },     { store->file.records, fresh->file.records },
		{ store->file.configs, fresh->file.configs }, { store->file.chunks, fresh->file.chunks },
		{ store->file.pending, fresh->file.pending }, { store->file.meta, fresh->file.meta },
	};
	size_t old, new;
	int r = 0;

	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]) && !r; ++i) {
		r = entries(store, all[i][0], &old);
		if (!r)
			r = entries(fresh, all[i][1], &new);
		if (!r && old != new)
			r = diag_set(diag, STORE_E_CORRUPT, "the copy has %zu entries of %zu", new, old);
	}
	return error_trace(r);
}

/* The copy as a store that lies in one file. It is closed last, with what was data.mdb before. */
static int open_copy(struct store **ret, struct store *store, char *path, struct diag *diag)
{
	_cleanup_(store_closep) struct store *fresh = store_alloc();
	int r;

	if (fresh)
		fresh->data_path = strdup(path);
	if (!fresh || !fresh->data_path)
		return error_origin(-ENOMEM);
	r = store_open_file(fresh, path, MDB_NOSUBDIR, diag);
	if (!r && store->file.map && !fresh->file.map)
		r = diag_set(diag, STORE_E_CORRUPT, "the copy's pages do not lie where they should");
	if (!r)
		r = compare(store, fresh, diag);
	if (r)
		return error_trace(r);
	*ret = TAKE_PTR(fresh);
	return 0;
}

static int sync_directory(const struct store *store)
{
	_cleanup_close_ int fd = open(store->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	return fd < 0 || fsync(fd) < 0 ? error_origin(-errno) : 0;
}

/* Waits until nobody reads, then exchanges the files. */
static int replace(struct store *store, struct store *fresh)
{
	struct store_file file = store->file;
	int r;

	pthread_mutex_lock(&store->lock);
	store->replacing = true;
	while (store->n_reads > 0)
		pthread_cond_wait(&store->quiet, &store->lock);
	r = rename_in(store, "compact.mdb", "data.mdb");
	if (!r) {
		store->file = fresh->file;
		fresh->file = file;
		++store->generation;
	}
	store->replacing = false;
	pthread_cond_broadcast(&store->replaced);
	pthread_mutex_unlock(&store->lock);
	if (!r)
		r = rename_in(store, "compact.mdb-lock", "lock.mdb");
	return r ? error_trace(r) : error_trace(sync_directory(store));
}

static int compact_locked(struct store *store, const struct store_watch *watch, struct diag *diag)
{
	_cleanup_(store_closep) struct store *fresh = NULL;
	_cleanup_free_ char *path = NULL;
	int r;

	r = store_drop_compact(store);
	if (!r)
		r = path_in(store, "compact.mdb", &path);
	if (!r)
		r = make_copy(store, path, watch, diag);
	if (!r)
		r = open_copy(&fresh, store, path, diag);
	return r ? error_trace(r) : error_trace(replace(store, fresh));
}

/**
 * store_compact() - give data.mdb's free pages back to the file system
 * @watch:      is asked before each piece of the copy, or NULL
 * @ret_before, @ret_after: the file's size and free space
 * @diag:       says why not
 *
 * Puts and removals wait for it, reading does not. The caller's thread has no snapshot open.
 *
 * Return: 0, also where there is nothing to gain; STORE_E_FULL: no room for the copy; STORE_E_CANCELLED,
 * STORE_E_CORRUPT: the file is as it was; -errno.
 */
int store_compact(struct store *store, const struct store_watch *watch, struct store_space *ret_before,
		  struct store_space *ret_after, struct diag *diag)
{
	int r;

	pthread_mutex_lock(&store->put_lock);
	r = store_sweep_versions(store, /* all= */ true);
	pthread_mutex_lock(&store->write_lock);
	if (!r)
		r = store_space(store, ret_before);
	*ret_after = *ret_before;
	if (!r && ret_before->free_bytes >= SPARE_BYTES) {
		r = check_room(store, ret_before->file_bytes - ret_before->free_bytes, diag);
		if (!r)
			r = compact_locked(store, watch, diag);
		if (r)
			(void)store_drop_compact(store);
		else
			r = store_space(store, ret_after);
	}
	pthread_mutex_unlock(&store->write_lock);
	pthread_mutex_unlock(&store->put_lock);
	return error_trace(r);
}

/* ---- those who read all the time ---- */

/**
 * store_may_read() - may a thread open one more snapshot?
 * @has:        it has others open
 *
 * Waits for a replacement that only waits for threads like this one. Return: false: let those that are open end first.
 */
bool store_may_read(struct store *store, bool has)
{
	bool may;

	pthread_mutex_lock(&store->lock);
	while (store->replacing && !has)
		pthread_cond_wait(&store->replaced, &store->lock);
	may = !store->replacing;
	pthread_mutex_unlock(&store->lock);
	return may;
}

/** store_generation() - changes when data.mdb becomes another file; with a snapshot open it does not */
uint64_t store_generation(struct store *store)
{
	uint64_t generation;

	pthread_mutex_lock(&store->lock);
	generation = store->generation;
	pthread_mutex_unlock(&store->lock);
	return generation;
}
