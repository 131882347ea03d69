/* SPDX-License-Identifier: MIT */
/*
 * Conversion of a PEFT adapter
 *
 * Both files come as descriptors from a stranger: only regular files are read, by pread into memory of our own, never
 * mapped, and each byte once (what was checked is what is used). A file that changes meanwhile is found by its sums
 * later or simply is the adapter it was when its bytes were read; one that shrinks is refused.
 *
 * The tensors are walked once, in the order of their names: read, hashed, put into the payload.
 *
 * The digest is SHA-256 over the content, not over the files: a line that names the scheme; for every tensor, in byte
 * order of the names, its name, dtype, shape and bytes; for every module, in order, its number and its scale. The config
 * so enters by what it means: the order of its keys, its comments on where the adapter comes from or the settings of the
 * training run make no other version, another alpha does. Lengths are hashed in front of what varies in length, numbers
 * are little-endian.
 */
#include "daemon/import/convert.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "daemon/format/peft.h"
#include "daemon/format/safetensors.h"

#define SCHEME "lorad adapter 1: lora\n"
#define READ_BYTES ((size_t)1 << 20) /* between two looks at cancelled */
#define WEIGHTS_MAX ((uint64_t)IMAGE_CHUNKS_MAX * IMAGE_CHUNK_PAYLOAD)

DEFINE_CLEANUP(EVP_MD_CTX *, EVP_MD_CTX_free)

/* Everything one conversion works with. */
struct conversion {
	const struct convert_source *source;
	const struct image_geometry *geometry;
	struct diag *diag;
	uint64_t weights_bytes;
	struct safetensors *tensors;
	struct peft_lora *lora;
	struct image_module *modules; /* [lora->n_modules] */
	EVP_MD_CTX *hash;
	uint8_t *scratch;             /* the largest tensor */
	uint64_t read_bytes;
};

static void conversion_deinit(struct conversion *c)
{
	free(c->scratch);
	EVP_MD_CTX_free(c->hash);
	free(c->modules);
	peft_free(c->lora);
	safetensors_free(c->tensors);
}

/* ---- reading ---- */

static int check_file(int fd, const char *what, uint64_t most, uint64_t *ret_bytes, struct diag *diag)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return diag_set(diag, CONVERT_E_REFUSED, "%s: %s", what, strerror(errno));
	if (!S_ISREG(st.st_mode))
		return diag_set(diag, CONVERT_E_REFUSED, "%s: not a regular file", what);
	if ((uint64_t)st.st_size > most)
		return diag_set(diag, CONVERT_E_REFUSED, "%s: %" PRIu64 " bytes are more than the %" PRIu64 " allowed",
				what, (uint64_t)st.st_size, most);
	*ret_bytes = (uint64_t)st.st_size;
	return 0;
}

static int read_all(int fd, const char *what, void *to, uint64_t bytes, uint64_t offset, struct diag *diag)
{
	uint8_t *at = to;

	while (bytes > 0) {
		ssize_t n = pread(fd, at, bytes, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return diag_set(diag, CONVERT_E_REFUSED, "%s: %s", what, strerror(errno));
		if (n == 0)
			return diag_set(diag, CONVERT_E_REFUSED, "%s: it became shorter while it was read", what);
		at += n;
		bytes -= (uint64_t)n;
		offset += (uint64_t)n;
	}
	return 0;
}

static int read_config(struct conversion *c, struct converted *converted)
{
	static const char what[] = "adapter_config.json";
	uint64_t bytes;
	int r;

	r = check_file(c->source->config_fd, what, PEFT_CONFIG_MAX, &bytes, c->diag);
	if (r)
		return r;
	converted->config = calloc(1, bytes + 1);
	if (!converted->config)
		return error_origin(-ENOMEM);
	converted->record.config_bytes = (uint32_t)bytes;
	return read_all(c->source->config_fd, what, converted->config, bytes, 0, c->diag);
}

static int read_table(struct conversion *c)
{
	static const char what[] = "adapter_model.safetensors";
	uint8_t prefix[SAFETENSORS_PREFIX_BYTES];
	_cleanup_free_ char *header = NULL;
	int fd = c->source->weights_fd, r;
	uint64_t bytes;

	r = check_file(fd, what, WEIGHTS_MAX, &c->weights_bytes, c->diag);
	if (r)
		return r;
	if (c->weights_bytes < sizeof(prefix))
		return diag_set(c->diag, CONVERT_E_REFUSED, "%s: %" PRIu64 " bytes are too short for a safetensors file",
				what, c->weights_bytes);
	r = read_all(fd, what, prefix, sizeof(prefix), 0, c->diag);
	if (r)
		return r;
	r = safetensors_header_bytes(prefix, c->weights_bytes, &bytes, c->diag);
	if (r)
		return r < 0 ? error_trace(r) : diag_prefix(c->diag, CONVERT_E_REFUSED, "%s", what);
	header = malloc(bytes + 1);
	if (!header)
		return error_origin(-ENOMEM);
	r = read_all(fd, what, header, bytes, sizeof(prefix), c->diag);
	if (r)
		return r;
	r = safetensors_parse(&c->tensors, header, bytes, c->weights_bytes, c->diag);
	return r > 0 ? diag_prefix(c->diag, CONVERT_E_REFUSED, "%s", what) : error_trace(r);
}

/* ---- the digest ---- */

static int hash_bytes(struct conversion *c, const void *data, size_t bytes)
{
	return EVP_DigestUpdate(c->hash, data, bytes) == 1 ? 0 : error_origin(-EIO);
}

static int hash_number(struct conversion *c, uint64_t number)
{
	uint64_t le = htole64(number);

	return hash_bytes(c, &le, sizeof(le));
}

static int hash_text(struct conversion *c, const char *text)
{
	int r = hash_number(c, strlen(text));

	return r ? r : hash_bytes(c, text, strlen(text));
}

static int hash_begin(struct conversion *c)
{
	c->hash = EVP_MD_CTX_new();
	if (!c->hash)
		return error_origin(-ENOMEM);
	if (EVP_DigestInit_ex(c->hash, EVP_sha256(), NULL) != 1)
		return error_origin(-EIO);
	return hash_bytes(c, SCHEME, strlen(SCHEME));
}

static int hash_tensor_head(struct conversion *c, const struct safetensors_tensor *tensor)
{
	int r = hash_text(c, tensor->name);

	if (!r)
		r = hash_text(c, tensor->dtype_name);
	if (!r)
		r = hash_number(c, tensor->n_dims);
	for (uint32_t i = 0; i < tensor->n_dims && !r; ++i)
		r = hash_number(c, tensor->shape[i]);
	return r;
}

static int hash_end(struct conversion *c, struct store_digest *ret)
{
	unsigned bytes = 0;
	int r = 0;

	for (uint32_t i = 0; i < c->lora->n_modules && !r; ++i) {
		uint32_t bits;

		memcpy(&bits, &c->modules[i].scale, sizeof(bits));
		r = hash_number(c, c->modules[i].module);
		if (!r)
			r = hash_number(c, bits);
	}
	if (!r && (EVP_DigestFinal_ex(c->hash, ret->bytes, &bytes) != 1 || bytes != sizeof(ret->bytes)))
		r = error_origin(-EIO);
	return r;
}

/* ---- the payload ---- */

static int plan(struct conversion *c, struct store_record *record)
{
	int r;

	c->modules = calloc(c->lora->n_modules, sizeof(*c->modules));
	if (!c->modules)
		return error_origin(-ENOMEM);
	for (uint32_t i = 0; i < c->lora->n_modules; ++i) {
		const struct peft_module *from = &c->lora->modules[i];

		c->modules[i] = (struct image_module){
			.module = from->module,
			.rank = (uint16_t)from->rank,
			.dtype = (uint8_t)from->dtype,
			.scale = from->scale,
		};
	}
	r = image_plan(c->modules, c->lora->n_modules, c->geometry, &record->payload_bytes, c->diag);
	if (r)
		return r < 0 ? error_trace(r) : CONVERT_E_REFUSED;
	if (record->payload_bytes > WEIGHTS_MAX)
		return diag_set(c->diag, CONVERT_E_REFUSED, "the adapter is too large: its image takes %" PRIu64 " bytes",
				record->payload_bytes);
	record->kind = IMAGE_KIND_LORA;
	record->n_chunks = (uint32_t)((record->payload_bytes + IMAGE_CHUNK_PAYLOAD - 1) / IMAGE_CHUNK_PAYLOAD);
	record->n_modules = c->lora->n_modules;
	record->max_rank = c->lora->max_rank;
	record->geometry = *c->geometry;
	record->imported_at = (uint64_t)time(NULL);
	return 0;
}

/* Reads a tensor into scratch in pieces, hashing each while it is warm. */
static int read_tensor(struct conversion *c, const struct safetensors_tensor *tensor)
{
	int r = 0;

	for (uint64_t at = 0, n; at < tensor->bytes && !r; at += n) {
		n = tensor->bytes - at < READ_BYTES ? tensor->bytes - at : READ_BYTES;
		if (atomic_load(c->source->cancelled))
			return CONVERT_E_CANCELLED;
		r = read_all(c->source->weights_fd, tensor->name, c->scratch + at, n, tensor->offset + at, c->diag);
		if (!r)
			r = hash_bytes(c, c->scratch + at, n);
		c->read_bytes += n;
		if (c->source->progress)
			c->source->progress(c->source->userdata, c->read_bytes, c->weights_bytes - c->tensors->data_offset);
	}
	return r;
}

static int put_tensor(struct conversion *c, uint8_t *payload, const struct safetensors_tensor *tensor)
{
	for (uint32_t i = 0; i < c->lora->n_modules; ++i) {
		const struct peft_module *from = &c->lora->modules[i];

		assert(from->module == c->modules[i].module);
		if (from->a == tensor)
			return image_put_a(payload, &c->modules[i], c->scratch, tensor->name, c->diag);
		if (from->b == tensor)
			return image_put_b(payload, &c->modules[i], c->scratch, tensor->name, c->diag);
	}
	return diag_set(c->diag, IMAGE_E_INVALID, "%s: a tensor of no module", tensor->name);
}

static int convert_tensors(struct conversion *c, uint8_t *payload)
{
	size_t largest = 1;
	int r = 0;

	for (size_t i = 0; i < c->tensors->n_tensors; ++i)
		if (c->tensors->tensors[i].bytes > largest)
			largest = c->tensors->tensors[i].bytes;
	c->scratch = malloc(largest);
	if (!c->scratch)
		return error_origin(-ENOMEM);
	for (size_t i = 0; i < c->tensors->n_tensors && !r; ++i) {
		const struct safetensors_tensor *tensor = &c->tensors->tensors[i];

		r = hash_tensor_head(c, tensor);
		if (!r)
			r = read_tensor(c, tensor);
		if (r)
			return r;
		r = put_tensor(c, payload, tensor);
		if (r > 0)
			return CONVERT_E_REFUSED;
	}
	return error_trace(r);
}

/* The image in int8 beside it. One that is too coarse is not made: the adapter is served as it came. */
static int pack(struct conversion *c, struct converted *converted)
{
	struct image_packed packed = {};
	int r;

	if (!c->source->pack)
		return 0;
	r = image_pack(converted->payload, c->modules, c->lora->n_modules, c->geometry, &packed);
	converted->packed = packed.payload;
	converted->record.packed_bytes = packed.bytes;
	return r == IMAGE_PACK_E_COARSE ? 0 : error_trace(r);
}

/**
 * convert() - read and check an adapter, make its image
 * @ret:        set on success; converted_deinit() it
 * @source:     its descriptors stay the caller's
 * @geometry:   the running model's: every tensor must fit it
 *
 * Return: CONVERT_OK, CONVERT_E_REFUSED, CONVERT_E_CANCELLED, -errno.
 */
int convert(struct converted *ret, const struct convert_source *source, const struct image_geometry *geometry,
	    struct diag *diag)
{
	_cleanup_(conversion_deinit) struct conversion c = { .source = source, .geometry = geometry, .diag = diag };
	_cleanup_(converted_deinit) struct converted converted = {};
	int r;

	r = read_config(&c, &converted);
	if (!r)
		r = read_table(&c);
	if (r)
		return error_trace(r);
	r = peft_parse(&c.lora, converted.config, converted.record.config_bytes, c.tensors, geometry, diag);
	if (r)
		return r > 0 ? CONVERT_E_REFUSED : error_trace(r);
	r = plan(&c, &converted.record);
	if (r)
		return error_trace(r);
	converted.payload = aligned_alloc(IMAGE_PAGE, converted.record.payload_bytes);
	if (!converted.payload)
		return diag_set(diag, CONVERT_E_REFUSED, "no memory for its image of %" PRIu64 " bytes",
				converted.record.payload_bytes);
	image_begin(converted.payload, converted.record.payload_bytes, c.modules, c.lora->n_modules);
	r = hash_begin(&c);
	if (!r)
		r = convert_tensors(&c, converted.payload);
	if (!r)
		r = hash_end(&c, &converted.record.digest);
	if (!r)
		r = pack(&c, &converted);
	if (r)
		return error_trace(r);
	*ret = converted;
	converted = (struct converted){};
	return CONVERT_OK;
}

void converted_deinit(struct converted *converted)
{
	free(converted->config);
	free(converted->payload);
	free(converted->packed);
}
