/* SPDX-License-Identifier: MIT */
/*
 * A base model on disk
 *
 * A source is what GGUF files and Hugging Face folders have in common: a configuration, a table of named tensors over
 * mapped files, a vocabulary. The two loaders (load-gguf.c, load-hf.c) fill it; everything after
 * asks for tensors by kind and layer and states the shape they must have. A tensor that nobody asked for is refused,
 * too: a bias or an extra norm that is silently left out would give wrong answers.
 *
 * Files are mapped read-only and must be regular. They are trusted to stay as they are while we read: a model file that
 * is truncated in place under a running daemon ends it with SIGBUS. Packages and downloads replace files by rename,
 * which leaves the mapped one whole; guarding against the rest would mean copying every weight. With the x86 backends,
 * which repack weights, the files are unmapped once the model is loaded and the question does not arise. For a device
 * with memory of its own weights are read through the files' descriptors (upload.c), where it does not arise either.
 */
#include "daemon/model/source.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/format/vocab.h"

static int open_regular(const char *path, int *ret, size_t *ret_bytes, struct diag *diag)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	struct stat st;

	if (fd < 0 && (errno == ENOENT || errno == ENOTDIR))
		return diag_set(diag, SOURCE_E_MISSING, "%s: %s", path, strerror(errno));
	if (fd < 0 || fstat(fd, &st) < 0)
		return diag_set(diag, SOURCE_E_INVALID, "%s: %s", path, strerror(errno));
	if (!S_ISREG(st.st_mode))
		return diag_set(diag, SOURCE_E_INVALID, "%s: not a regular file", path);
	if (st.st_size == 0)
		return diag_set(diag, SOURCE_E_INVALID, "%s: empty file", path);
	*ret_bytes = (size_t)st.st_size;
	*ret = TAKE_FD(fd);
	return SOURCE_OK;
}

/**
 * source_map() - map a whole regular file for reading
 * @ret:        the mapping, an entry of source->files: source_free() releases it
 */
int source_map(const char *path, struct source_file *ret, struct diag *diag)
{
	_cleanup_free_ char *name = strdup(basename(path));
	_cleanup_close_ int fd = -1;
	size_t n = 0;
	void *bytes;
	int r;

	if (!name)
		return error_origin(-ENOMEM);
	r = open_regular(path, &fd, &n, diag);
	if (r)
		return r;
	bytes = mmap(NULL, n, PROT_READ, MAP_PRIVATE, fd, 0);
	if (bytes == MAP_FAILED)
		return diag_set(diag, SOURCE_E_INVALID, "%s: cannot be mapped: %s", path, strerror(errno));
	*ret = (struct source_file){ .bytes = bytes, .n = n, .fd = TAKE_FD(fd), .name = TAKE_PTR(name) };
	return SOURCE_OK;
}

/* As much of a file as there is, up to n bytes. */
static ssize_t read_all(int fd, char *to, size_t n)
{
	size_t at = 0;

	while (at < n) {
		ssize_t got = read(fd, to + at, n - at);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		if (got == 0)
			break;
		at += (size_t)got;
	}
	return (ssize_t)at;
}

/**
 * source_read_text() - copy a small file of a folder
 * @most:       refused beyond that many bytes
 * @ret:        its bytes, terminated; malloc'd
 *
 * Return: SOURCE_OK, SOURCE_E_MISSING, SOURCE_E_INVALID, negative errno.
 */
int source_read_text(const char *folder, const char *name, size_t most, char **ret, size_t *ret_bytes, struct diag *diag)
{
	_cleanup_close_ int fd = -1;
	_cleanup_free_ char *text = NULL;
	char path[PATH_MAX];
	size_t n = 0;
	ssize_t got;
	int r;

	if ((size_t)snprintf(path, sizeof(path), "%s/%s", folder, name) >= sizeof(path))
		return diag_set(diag, SOURCE_E_INVALID, "%s/%s: path too long", folder, name);
	r = open_regular(path, &fd, &n, diag);
	if (r)
		return r;
	if (n > most)
		return diag_set(diag, SOURCE_E_INVALID, "%s: larger than %zu bytes", path, most);
	text = malloc(n + 1);
	if (!text)
		return error_origin(-ENOMEM);
	got = read_all(fd, text, n);
	if (got < 0)
		return diag_set(diag, SOURCE_E_INVALID, "%s: %s", path, strerror((int)-got));
	text[got] = '\0';
	*ret_bytes = (size_t)got;
	*ret = TAKE_PTR(text);
	return SOURCE_OK;
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(((const struct source_tensor *)a)->name, ((const struct source_tensor *)b)->name);
}

/**
 * source_open() - open a GGUF file or a Hugging Face folder
 * @ret:        the source; its tensors point into mapped files that live as long as it
 * @path:       which of the two it is shows in whether it is a folder
 *
 * Return: SOURCE_OK; SOURCE_E_INVALID with the reason and the file's name in @diag; negative errno.
 */
int source_open(struct source **ret, const char *path, struct diag *diag)
{
	_cleanup_(source_freep) struct source *source = calloc(1, sizeof(*source));
	struct stat st;
	int r;

	if (!source)
		return error_origin(-ENOMEM);
	if (stat(path, &st) < 0)
		return diag_set(diag, SOURCE_E_INVALID, "%s: %s", path, strerror(errno));
	r = S_ISDIR(st.st_mode) ? source_open_hf(source, path, diag) : source_open_gguf(source, path, diag);
	if (r < 0)
		return error_trace(r);
	if (r)
		return SOURCE_E_INVALID;
	qsort(source->tensors, source->n_tensors, sizeof(*source->tensors), compare_names);
	*ret = TAKE_PTR(source);
	return SOURCE_OK;
}

struct source *source_free(struct source *source)
{
	if (!source)
		return NULL;
	for (size_t i = 0; i < source->n_files; ++i) {
		if (source->parsed && source->parsed[i])
			source->free_parsed(source->parsed[i]);
		if (!source->files[i].bytes)
			continue;
		(void)munmap(source->files[i].bytes, source->files[i].n);
		(void)close(source->files[i].fd);
		free(source->files[i].name);
	}
	vocab_free(source->vocab);
	free(source->parsed);
	free(source->files);
	free(source->tensors);
	free(source);
	return NULL;
}

static void spell_name(const struct source *source, enum source_kind kind, uint32_t layer, char *ret, size_t bytes)
{
	if (kind < SOURCE_ATTN_NORM)
		(void)snprintf(ret, bytes, "%s", source->names->suffix[kind]);
	else
		(void)snprintf(ret, bytes, "%s%u%s", source->names->layer_prefix, layer, source->names->suffix[kind]);
}

/**
 * source_matrix() - find a tensor and check it
 * @layer:      for kinds that every layer has
 * @m:          rows (1: a vector) and cols are given; type, data and permutation are filled
 *
 * Return: SOURCE_OK, SOURCE_E_MISSING, SOURCE_E_INVALID.
 */
int source_matrix(struct source *source, enum source_kind kind, uint32_t layer, struct kern_matrix *m, struct diag *diag)
{
	bool permuted = kind == SOURCE_MODULE + KERN_Q || kind == SOURCE_MODULE + KERN_K;
	struct source_tensor key = { 0 }, *t;
	char name[160];

	assert(kind < _SOURCE_KIND_N);
	spell_name(source, kind, layer, name, sizeof(name));
	key.name = name;
	t = source->n_tensors ? bsearch(&key, source->tensors, source->n_tensors, sizeof(*t), compare_names) : NULL;
	if (!t)
		return diag_set(diag, SOURCE_E_MISSING, "tensor %s is missing", name);
	if (t->dtype == _KERN_DTYPE_N)
		return diag_set(diag, SOURCE_E_INVALID, "tensor %s: type %s is not supported", name, t->dtype_name);
	if (t->rows != m->rows || t->cols != m->cols || t->n_dims != (m->rows > 1 ? 2 : 1))
		return diag_set(diag, SOURCE_E_INVALID,
				"tensor %s: %" PRIu64 " x %" PRIu64 " in %u dimensions, where %u x %u is expected", name, t->rows,
				t->cols, t->n_dims, m->rows, m->cols);
	if (kern_row_bytes(t->dtype, m->cols) == 0)
		return diag_set(diag, SOURCE_E_INVALID, "tensor %s: %u columns are no whole quantised blocks", name, m->cols);
	t->used = true;
	m->dtype = t->dtype;
	m->permuted_head = permuted ? source->permuted_head : 0;
	m->data = t->data;
	return SOURCE_OK;
}

static bool ends_with(const char *text, const char *end)
{
	size_t n = strlen(text), m = strlen(end);

	return n >= m && !strcmp(text + n - m, end);
}

static bool is_ignored(const struct source *source, const char *name)
{
	if (source->config.tied && !strcmp(name, source->names->suffix[SOURCE_HEAD]))
		return true; /* the same as the embedding, as the configuration says */
	for (const char *const *end = source->names->ignored; *end; ++end)
		if (ends_with(name, *end))
			return true;
	return false;
}

const char *source_unused(const struct source *source)
{
	for (size_t i = 0; i < source->n_tensors; ++i)
		if (!source->tensors[i].used && !is_ignored(source, source->tensors[i].name))
			return source->tensors[i].name;
	return NULL;
}

const char *source_name(const struct source *source, const void *data)
{
	size_t i = 0;

	while (source->tensors[i].data != data) {
		++i;
		assert(i < source->n_tensors); /* the caller has it from source_matrix() */
	}
	return source->tensors[i].name;
}

size_t source_locate(const struct source *source, const void *data, uint64_t *ret_offset)
{
	size_t i = 0;

	while ((uintptr_t)data - (uintptr_t)source->files[i].bytes >= source->files[i].n) {
		++i;
		assert(i < source->n_files); /* tensors lie in files */
	}
	*ret_offset = (uintptr_t)data - (uintptr_t)source->files[i].bytes;
	return i;
}

/* Applies advice to the whole pages of a tensor; those it shares with a neighbour are left out where that hurts. */
static void advise(const struct kern_matrix *m, int advice, bool only_whole)
{
	uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), at = (uintptr_t)m->data;
	uintptr_t end = at + m->rows * kern_row_bytes(m->dtype, m->cols);

	at = (only_whole ? at + page - 1 : at) / page * page;
	end = only_whole ? end / page * page : end;
	if (end > at)
		(void)madvise((void *)at, end - at, advice);
}

void source_prefetch(const struct kern_matrix *m)
{
	advise(m, MADV_WILLNEED, false);
}

void source_drop(const struct kern_matrix *m)
{
	advise(m, MADV_DONTNEED, true);
}
