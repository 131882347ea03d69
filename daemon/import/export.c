/* SPDX-License-Identifier: MIT */
/*
 * Exports
 *
 * The config is given back as it came. The tensors are taken out of the image, which kept their dtype and every bit,
 * transposed back, and written under the names PEFT gives them, in the order of these names.
 */
#include "daemon/import/export.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "daemon/format/peft.h"
#include "daemon/format/safetensors.h"

/* One tensor to be written: what it is called and where it comes from. */
struct item {
	char name[PEFT_NAME_MAX];
	const struct image_module *module;
	char which; /* 'A', 'B' */
};

static int compare_items(const void *a, const void *b)
{
	return strcmp(((const struct item *)a)->name, ((const struct item *)b)->name);
}

static int list_items(struct item **ret, const struct image_geometry *geometry, const struct image_module *modules,
		      uint32_t n_modules)
{
	struct item *items = calloc(2 * (size_t)n_modules, sizeof(*items));

	if (!items)
		return error_origin(-ENOMEM);
	for (uint32_t i = 0; i < 2 * n_modules; ++i) {
		items[i].module = &modules[i / 2];
		items[i].which = i % 2 ? 'B' : 'A';
		peft_tensor_name(geometry, items[i].module->module, items[i].which, items[i].name);
	}
	qsort(items, 2 * (size_t)n_modules, sizeof(*items), compare_items);
	*ret = items;
	return 0;
}

/* A is [rank][in], B is [out][rank] in PEFT's files. */
static struct safetensors_tensor tensor_of(const struct item *item)
{
	static const char *const dtype_names[_KERN_DTYPE_N] = {
		[KERN_F32] = "F32", [KERN_F16] = "F16", [KERN_BF16] = "BF16",
	};
	const struct image_module *m = item->module;
	uint64_t rows = item->which == 'A' ? m->rank : m->out, cols = item->which == 'A' ? m->in : m->rank;

	return (struct safetensors_tensor){
		.name = item->name,
		.dtype_name = dtype_names[m->dtype],
		.dtype = (enum kern_dtype)m->dtype,
		.n_dims = 2,
		.shape = { rows, cols, 1, 1, 1, 1, 1, 1 },
		.bytes = rows * cols * kern_dtype_bytes((enum kern_dtype)m->dtype),
	};
}

static int write_all(int fd, const void *data, size_t bytes)
{
	const uint8_t *at = data;

	while (bytes > 0) {
		ssize_t n = write(fd, at, bytes);

		if (n < 0)
			return error_origin(-errno);
		at += n;
		bytes -= (size_t)n;
	}
	return 0;
}

static int write_header(int fd, const struct item *items, size_t n)
{
	_cleanup_free_ struct safetensors_tensor *tensors = calloc(n, sizeof(*tensors));
	_cleanup_free_ char *header = NULL;
	size_t bytes;
	int r;

	if (!tensors)
		return error_origin(-ENOMEM);
	for (size_t i = 0; i < n; ++i)
		tensors[i] = tensor_of(&items[i]);
	r = safetensors_write_header(tensors, n, &header, &bytes);
	return error_trace(r ? r : write_all(fd, header, bytes));
}

static int write_tensor(int fd, const uint8_t *payload, const struct item *item)
{
	size_t bytes = tensor_of(item).bytes;
	_cleanup_free_ uint8_t *data = malloc(bytes);

	if (!data)
		return error_origin(-ENOMEM);
	if (item->which == 'A')
		image_get_a(payload, item->module, data);
	else
		image_get_b(payload, item->module, data);
	return error_trace(write_all(fd, data, bytes));
}

static int write_weights(int fd, const uint8_t *payload, const struct store_record *record, struct diag *diag)
{
	const struct image_header header = {
		.payload_bytes = record->payload_bytes,
		.n_modules = record->n_modules,
		.max_rank = record->max_rank,
		.geometry = record->geometry,
	};
	_cleanup_free_ struct item *items = NULL;
	const struct image_module *modules;
	size_t n = 2 * (size_t)record->n_modules;
	int r;

	r = image_modules(payload, &header, IMAGE_SOURCE, &modules, diag);
	if (r)
		return r > 0 ? STORE_E_CORRUPT : error_trace(r);
	r = list_items(&items, &record->geometry, modules, record->n_modules);
	if (!r)
		r = write_header(fd, items, n);
	for (size_t i = 0; i < n && !r; ++i)
		r = write_tensor(fd, payload, &items[i]);
	return error_trace(r);
}

static int new_file(const char *name)
{
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);

	return fd < 0 ? error_origin(-errno) : fd;
}

/**
 * export_version() - the files a version came from
 * @ret:        both descriptors are the caller's, at offset 0
 * @diag:       says what is damaged
 *
 * Return: 0, STORE_E_NOT_FOUND, STORE_E_CORRUPT, -errno.
 */
int export_version(struct store *store, const struct store_digest *digest, struct export_files *ret, struct diag *diag)
{
	_cleanup_close_ int config_fd = -1, weights_fd = -1;
	_cleanup_free_ uint8_t *payload = NULL;
	_cleanup_free_ char *config = NULL;
	struct store_record record;
	size_t config_bytes;
	int r;

	r = store_config(store, digest, &config, &config_bytes);
	if (r == STORE_E_CORRUPT)
		return diag_set(diag, r, "its config is damaged");
	if (!r)
		r = store_read(store, digest, &payload, &record, diag);
	if (r)
		return error_trace(r);
	config_fd = new_file("adapter_config.json");
	if (config_fd < 0)
		return error_trace(config_fd);
	weights_fd = new_file("adapter_model.safetensors");
	if (weights_fd < 0)
		return error_trace(weights_fd);
	r = write_all(config_fd, config, config_bytes);
	if (!r)
		r = write_weights(weights_fd, payload, &record, diag);
	if (r)
		return error_trace(r);
	(void)lseek(config_fd, 0, SEEK_SET);
	(void)lseek(weights_fd, 0, SEEK_SET);
	*ret = (struct export_files){ .config_fd = TAKE_FD(config_fd), .weights_fd = TAKE_FD(weights_fd) };
	return 0;
}
