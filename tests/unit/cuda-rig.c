/* SPDX-License-Identifier: MIT */
/* A machine with a simulated GPU, and what the tests let it do. See cuda-rig.h. */
#include "tests/unit/cuda-rig.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/cuda.h"
#include "tests/cudasim/engine.h"

const struct kern_device_ops *on;
struct kern_device *device;

/* ---- a GPU of any age ---- */

int rig_capability; /* 0: the simulator's own */

static cudaError_t get_attribute(int *ret, enum cudaDeviceAttr attribute, int number)
{
	if (rig_capability &&
	    (attribute == cudaDevAttrComputeCapabilityMajor || attribute == cudaDevAttrComputeCapabilityMinor)) {
		*ret = attribute == cudaDevAttrComputeCapabilityMajor ? rig_capability / 10 : rig_capability % 10;
		return cudaSuccess;
	}
	return cudasim_DeviceGetAttribute(ret, attribute, number);
}

const struct cuda_api *__real_cuda_api(struct kern_failure *why);
const struct cuda_api *__wrap_cuda_api(struct kern_failure *why);

const struct cuda_api *__wrap_cuda_api(struct kern_failure *why)
{
	static struct cuda_api table;
	const struct cuda_api *real = __real_cuda_api(why);

	if (!real)
		return NULL;
	table = *real;
	table.DeviceGetAttribute = get_attribute;
	return &table;
}

/* ---- the machine ---- */

void rig_boot(const char *devices, const char *driver)
{
	setenv("CUDASIM_MEMORY", "256M", 1);
	setenv("CUDASIM_DEVICES", devices, 1);
	setenv("CUDASIM_DRIVER", driver, 1);
	setenv("CUDASIM_SEED", "1", 1);
	cudasim_reset();
	rig_capability = 0;
	on = kern_cuda()->device;
}

void rig_start(void)
{
	struct kern_failure why = { 0 };

	rig_boot("1", "13000");
	ck_assert_msg(on->open(&device, 0, &why) == 0, "%s", why.text);
}

void rig_stop(void)
{
	device = on->close(device);
	ck_assert_ptr_null(device);
	ck_assert_msg(!cudasim_leaks(), "%s", cudasim_leaks());
}

void rig_fill(void *p, size_t bytes, uint32_t seed)
{
	uint32_t x = seed * 2654435761u + 1;

	for (size_t i = 0; i < bytes; i++) {
		x = x * 1664525 + 1013904223;
		((uint8_t *)p)[i] = (uint8_t)(x >> 24);
	}
}

bool rig_is_filled(const void *p, size_t bytes, uint32_t seed)
{
	uint32_t x = seed * 2654435761u + 1;

	for (size_t i = 0; i < bytes; i++) {
		x = x * 1664525 + 1013904223;
		if (((const uint8_t *)p)[i] != (uint8_t)(x >> 24))
			return false;
	}
	return true;
}

void *rig_host_memory(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	ck_assert_ptr_ne(p, MAP_FAILED);
	return p;
}

void *rig_device_memory(size_t bytes)
{
	void *p;

	ck_assert_int_eq(on->alloc(device, NULL, bytes, &p), 0);
	return p;
}

/* ---- uploads ---- */

void rig_note_done(struct kern_upload *upload)
{
	struct rig_upload *u = (struct rig_upload *)((char *)upload - offsetof(struct rig_upload, upload));

	atomic_fetch_add(&u->done, 1);
}

struct rig_upload rig_uploads[CUDA_UPLOADS + 1];

/* Host memory of every second one is registered. */
void rig_make_uploads(void)
{
	for (size_t i = 0; i < CUDA_UPLOADS + 1; i++) {
		struct rig_upload *u = &rig_uploads[i];
		*u = (struct rig_upload){
			.host = rig_host_memory(RIG_BYTES),
			.there = rig_device_memory(RIG_BYTES),
			.back = rig_host_memory(RIG_BYTES),
		};
		u->upload = (struct kern_upload){
			.to = u->there,
			.from = u->host,
			.bytes = RIG_BYTES - i,
			.done = rig_note_done,
		};
		if (i % 2 == 0)
			ck_assert_int_eq(on->register_host(device, u->host, RIG_BYTES), 0);
		ck_assert_int_eq(on->register_host(device, u->back, RIG_BYTES), 0);
	}
}

void rig_forget_uploads(void)
{
	for (size_t i = 0; i < CUDA_UPLOADS + 1; i++) {
		struct rig_upload *u = &rig_uploads[i];
		on->unregister_host(device, u->host);
		on->unregister_host(device, u->back);
		munmap(u->host, RIG_BYTES);
		munmap(u->back, RIG_BYTES);
	}
}

void rig_await_done(struct rig_upload *u)
{
	while (!atomic_load(&u->done))
		ck_assert_int_eq(on->fence(device), 0);
}

/* ---- recorded steps ---- */

void rig_make_copier(struct rig_copier *c)
{
	c->memory = rig_device_memory(4 * RIG_BLOCK);
	c->table = rig_device_memory(sizeof c->host_table);
	c->host = malloc(RIG_BLOCK);
	ck_assert_ptr_nonnull(c->host);
}

int rig_aim(struct rig_copier *c, unsigned from, unsigned to, uint32_t seed)
{
	c->host_table[0] = c->memory + from * RIG_BLOCK;
	c->host_table[1] = c->memory + to * RIG_BLOCK;
	rig_fill(c->host, RIG_BLOCK, seed);
	int r = on->copy_async(device, c->table, c->host_table, sizeof c->host_table);
	return r < 0 ? r : on->copy_async(device, c->memory + from * RIG_BLOCK, c->host, RIG_BLOCK);
}

void rig_step(struct rig_copier *c)
{
	struct kern_kv_copy args = { .from = c->table, .to = c->table + 1, .n = 1, .block_bytes = RIG_BLOCK };

	kern_cuda()->ops->kv_copy(device, &args, 0, 1);
}

int rig_arrived(struct rig_copier *c, unsigned to, uint32_t seed)
{
	int r = on->copy_async(device, c->host, c->memory + to * RIG_BLOCK, RIG_BLOCK);

	if (r < 0)
		return r;
	r = on->fence(device);
	if (r == 0)
		ck_assert(rig_is_filled(c->host, RIG_BLOCK, seed));
	return r;
}

/* As the model does it. Return: 0: it ran, and how; or -EIO. */
int rig_run_step(struct rig_copier *c, uint64_t key, enum rig_how *ret)
{
	int r = on->replay(device, key);

	*ret = RIG_REPLAYED;
	if (r != 0)
		return r < 0 ? r : 0;
	r = on->record(device, key);
	if (r < 0)
		return r;
	*ret = r > 0 ? RIG_EAGER : RIG_RECORDED;
	rig_step(c);
	r = on->play(device);
	if (r <= 0)
		return r;
	*ret = RIG_TWICE;
	rig_step(c);
	return 0;
}

void rig_assert_step(struct rig_copier *c, uint64_t key, enum rig_how expected, uint32_t seed)
{
	unsigned from = seed % 4, to = (from + 1 + seed / 4 % 3) % 4;
	enum rig_how how;

	ck_assert_int_eq(rig_aim(c, from, to, seed), 0);
	ck_assert_int_eq(rig_run_step(c, key, &how), 0);
	ck_assert_int_eq(how, expected);
	ck_assert_int_eq(rig_arrived(c, to, seed), 0);
}

