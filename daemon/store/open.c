/* SPDX-License-Identifier: MIT */
/*
 * Opening a store
 *
 * LMDB is used with its default, durable commits. Its map is one huge reservation of addresses, made once, because
 * growing it later would need a moment without readers. Read-ahead is off: images are not read through the map, and
 * around an index page there is nothing worth reading. A data.mdb that is shorter than its own index says is extended
 * with zeros at open, so that a lost page is a checksum error later and not a SIGBUS.
 */
#include "daemon/store/store.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "daemon/store/store-internal.h"

#define MAP_BYTES_MOST ((size_t)1 << 40)
#define MAP_BYTES_LEAST ((size_t)1 << 30)
#define READERS_MOST 1024u

/* mkdir -p, private to the daemon's user where it makes one. */
static int make_directory(const char *path, struct diag *diag)
{
	_cleanup_free_ char *copy = strdup(path);
	char *slash;

	if (!copy)
		return error_origin(-ENOMEM);
	for (slash = copy + 1; (slash = strchr(slash, '/')); ++slash) {
		*slash = '\0';
		if (mkdir(copy, 0700) < 0 && errno != EEXIST)
			return diag_set(diag, STORE_E_INVALID, "store %s: cannot make %s: %s", path, copy, strerror(errno));
		*slash = '/';
	}
	if (mkdir(path, 0700) < 0 && errno != EEXIST)
		return diag_set(diag, STORE_E_INVALID, "store %s: cannot make it: %s", path, strerror(errno));
	return 0;
}

/* Our own lock, not LMDB's: that one lets several processes in. It goes with the process, however it ends. */
static int lock_directory(struct store *store, struct diag *diag)
{
	_cleanup_free_ char *path = NULL;

	if (asprintf(&path, "%s/lorad.lock", store->directory) < 0)
		return error_origin(-ENOMEM);
	store->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (store->lock_fd < 0)
		return diag_set(diag, STORE_E_INVALID, "store %s: %s", path, strerror(errno));
	if (flock(store->lock_fd, LOCK_EX | LOCK_NB) < 0) {
		if (errno != EWOULDBLOCK)
			return error_origin(-errno);
		return diag_set(diag, STORE_E_BUSY, "store %s: another lorad is using it", store->directory);
	}
	return 0;
}

static int open_env_of(struct store *store, const char *path, unsigned flags, size_t map_bytes)
{
	int rc;

	rc = mdb_env_create(&store->file.env);
	if (rc)
		return rc;
	rc = mdb_env_set_mapsize(store->file.env, map_bytes);
	if (!rc)
		rc = mdb_env_set_maxdbs(store->file.env, 16);
	if (!rc)
		rc = mdb_env_set_maxreaders(store->file.env, READERS_MOST);
	if (!rc)
		rc = mdb_env_open(store->file.env, path, flags | MDB_NOTLS | MDB_NORDAHEAD, 0600);
	if (rc) {
		mdb_env_close(store->file.env);
		store->file.env = NULL;
	}
	return rc;
}

/* The largest map the machine's address space limits allow. */
static int open_env(struct store *store, const char *path, unsigned flags, struct diag *diag)
{
	size_t bytes;
	int rc = ENOMEM, r, dead;

	for (bytes = MAP_BYTES_MOST; bytes >= MAP_BYTES_LEAST && rc == ENOMEM; bytes /= 2)
		rc = open_env_of(store, path, flags, bytes);
	if (rc > 0)
		return diag_set(diag, STORE_E_INVALID, "store %s: %s", path, strerror(rc));
	r = store_result(rc, diag);
	if (r)
		return diag_prefix(diag, r, "store %s", path);
	return error_trace(store_result(mdb_reader_check(store->file.env, &dead), diag));
}

/* See the essay: a page that is missing at the end of the file becomes a page of zeros. */
static int extend_data(struct store *store)
{
	MDB_envinfo info;
	struct stat st;
	off_t needed;
	int rc;

	rc = mdb_env_info(store->file.env, &info);
	if (rc)
		return store_result(rc, NULL);
	needed = (off_t)((info.me_last_pgno + 1) * store->file.page);
	if (fstat(store->file.data_fd, &st) < 0)
		return error_origin(-errno);
	if (st.st_size < needed && truncate(store->data_path, needed) < 0)
		return error_origin(-errno);
	return 0;
}

static int open_data(struct store *store)
{
	MDB_stat stat;
	int rc;

	store->file.data_fd = open(store->data_path, O_RDONLY | O_CLOEXEC);
	if (store->file.data_fd < 0)
		return error_origin(-errno);
	rc = mdb_env_stat(store->file.env, &stat);
	if (rc)
		return store_result(rc, NULL);
	store->file.page = stat.ms_psize;
	return error_trace(extend_data(store));
}

/* All databases, made where they are missing; a foreign environment is left alone. */
static int open_databases(struct store *store, MDB_txn *txn, struct diag *diag)
{
	const uint32_t format = STORE_FORMAT;
	struct {
		const char *name;
		MDB_dbi *dbi;
	} all[] = {
		{ "meta", &store->file.meta },       { "names", &store->file.names },   { "records", &store->file.records },
		{ "configs", &store->file.configs }, { "chunks", &store->file.chunks }, { "pending", &store->file.pending },
	};
	MDB_val key = store_val("format", 6), value;
	MDB_stat stat;
	bool fresh;
	int rc, r;

	rc = mdb_stat(txn, 1, &stat); /* 1: LMDB's main database, which lists the named ones */
	if (rc)
		return store_result(rc, diag);
	fresh = stat.ms_entries == 0;
	if (!fresh && mdb_dbi_open(txn, "meta", 0, &store->file.meta))
		return diag_set(diag, STORE_E_INVALID, "its data.mdb is another program's");
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); ++i) {
		rc = mdb_dbi_open(txn, all[i].name, MDB_CREATE, all[i].dbi);
		if (rc)
			return store_result(rc, diag);
	}
	if (fresh) {
		value = store_val(&format, sizeof(format));
		rc = mdb_put(txn, store->file.meta, &key, &value, 0);
		if (rc)
			return store_result(rc, diag);
	}
	r = store_result(mdb_get(txn, store->file.meta, &key, &value), diag);
	if (r == STORE_E_NOT_FOUND)
		return diag_set(diag, STORE_E_INVALID, "its data.mdb is another program's");
	if (r)
		return r;
	if (value.mv_size != sizeof(format) || memcmp(value.mv_data, &format, sizeof(format)) != 0)
		return diag_set(diag, STORE_E_INVALID, "its format is not %u, the one this lorad reads", format);
	return 0;
}

static int open_schema(struct store *store, struct diag *diag)
{
	_cleanup_(store_write_end) struct store_write write = {};
	int r;

	r = store_write_begin(&write, store);
	if (!r)
		r = open_databases(store, write.txn, diag);
	if (!r)
		r = store_write_commit(&write, diag);
	return r > 0 ? diag_prefix(diag, r, "store %s", store->data_path) : r;
}

/* An empty one: nothing is open. */
struct store *store_alloc(void)
{
	struct store *store = calloc(1, sizeof(*store));

	if (!store)
		return NULL;
	store->lock_fd = store->file.data_fd = -1;
	pthread_mutex_init(&store->put_lock, NULL);
	pthread_mutex_init(&store->write_lock, NULL);
	pthread_mutex_init(&store->lock, NULL);
	pthread_cond_init(&store->died, NULL);
	pthread_cond_init(&store->quiet, NULL);
	pthread_cond_init(&store->replaced, NULL);
	for (size_t i = 0; i < STORE_HOLD_BUCKETS; ++i)
		list_init(&store->held[i]);
	return store;
}

/* The environment at env_path, whose data file is data_path: all of store->file. */
int store_open_file(struct store *store, const char *env_path, unsigned env_flags, struct diag *diag)
{
	int r;

	r = open_env(store, env_path, env_flags, diag);
	if (!r)
		r = open_data(store);
	if (!r)
		r = open_schema(store, diag);
	if (!r)
		r = store_probe_init(store);
	return error_trace(r);
}

/**
 * store_open() - open a store, making it where there is none
 * @ret:        the store; close it after every snapshot of it is closed
 * @directory:  its folder; missing parents are made too
 * @diag:       says why not
 *
 * Takes the store's lock, clears reader slots of dead processes, proves what the pager relies on and deletes what a
 * killed import left.
 *
 * Return: 0; STORE_E_BUSY, STORE_E_INVALID, STORE_E_FULL, STORE_E_CORRUPT; -errno.
 */
int store_open(struct store **ret, const char *directory, struct diag *diag)
{
	_cleanup_(store_closep) struct store *store = store_alloc();
	int r;

	if (!store)
		return error_origin(-ENOMEM);
	store->directory = strdup(directory);
	if (!store->directory || asprintf(&store->data_path, "%s/data.mdb", directory) < 0) {
		store->data_path = NULL;
		return error_origin(-ENOMEM);
	}

	r = make_directory(directory, diag);
	if (!r)
		r = lock_directory(store, diag);
	if (!r)
		r = store_drop_compact(store);
	if (!r)
		r = store_open_file(store, directory, /* env_flags= */ 0, diag);
	if (!r)
		r = store_sweep_versions(store, /* all= */ true);
	if (!r)
		r = store_sweep_pending(store);
	if (r)
		return error_trace(r);
	*ret = TAKE_PTR(store);
	return 0;
}

/** store_close() - close a store; no snapshot, hold or call may be left */
struct store *store_close(struct store *store)
{
	if (!store)
		return NULL;
	for (size_t i = 0; i < STORE_HOLD_BUCKETS; ++i)
		assert(list_empty(&store->held[i]));
	if (store->file.env)
		mdb_env_close(store->file.env);
	close_cleanup(&store->file.data_fd);
	close_cleanup(&store->lock_fd);
	pthread_cond_destroy(&store->replaced);
	pthread_cond_destroy(&store->quiet);
	pthread_cond_destroy(&store->died);
	pthread_mutex_destroy(&store->lock);
	pthread_mutex_destroy(&store->write_lock);
	pthread_mutex_destroy(&store->put_lock);
	free(store->data_path);
	free(store->directory);
	free(store);
	return NULL;
}

const char *store_data_path(const struct store *store)
{
	return store->data_path;
}
