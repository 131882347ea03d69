/* SPDX-License-Identifier: MIT */
/*
 * bf16 weights through tile registers (AMX), where a processor with AVX512-BF16 has them: one instruction multiplies 16
 * rows x 32 columns by 32 columns x 16 outputs. A panel of x86-float.c, 16 pairs of columns at a time, is just such a
 * tile of weights, and the activations are tiles as they lie.
 *
 * A tile sums in an order of its own, so where there are tiles all numbers of rows go through them. A tile covers 16
 * rows; the last one is moved up to end with the last row, and rows it shares with the one before are computed twice (to
 * the same bits) and stored once. Fewer rows than 16 get a tile of that height.
 *
 * Quantised weights stay with vpdpbusd: tried, and no faster (0.9 to 1.1 times), because each block of 32 columns has
 * scales of its own, so that every tile product has to be stored, loaded and scaled.
 */
#include "kernels/x86.h"

#include <sys/syscall.h>
#include <unistd.h>

#ifdef __AMX_TILE__

#include <cpuid.h>

#define REQUEST_STATE 0x1023 /* ARCH_REQ_XCOMP_PERM of arch_prctl(2) */
#define TILE_DATA 18         /* XFEATURE_XTILEDATA */

/**
 * amx_allowed() - whether this process may use tiles
 *
 * Asks cpuid, then the kernel: since the state is large, Linux (5.16) grants it to a process on request only.
 */
bool X86(amx_allowed)(void)
{
	const unsigned wanted = 1u << 22 | 1u << 24; /* AMX-BF16, AMX-TILE */
	unsigned a, b, c, d;

	return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & wanted) == wanted &&
	       syscall(SYS_arch_prctl, REQUEST_STATE, TILE_DATA) == 0;
}

/* gcc's tile intrinsics do not say that they read memory: what was written for them must be made to matter. */
#define WRITTEN(p) __asm__ volatile("" ::"r"(p) : "memory")

struct tile_config {
	uint8_t palette, start_row, zero[14];
	uint16_t row_bytes[16];
	uint8_t rows[16];
};

/* Tiles 0-3: sums, 4 and 5: activations, 6 and 7: weights. */
static void configure(uint32_t rows)
{
	struct tile_config config = { .palette = 1 };

	for (unsigned t = 0; t < 8; t++) {
		config.row_bytes[t] = 64;
		config.rows[t] = t < 6 ? (uint8_t)rows : 16;
	}
	WRITTEN(&config);
	_tile_loadconfig(&config);
}

/* What a tile register of sums holds: 16 outputs of panel p for the tile of rows from `row` on, stored from `from` on. */
static void store_tile(const struct kern_matmul *a, const float (*sum)[16], uint32_t p, uint32_t row, uint32_t from,
		       uint32_t rows)
{
	for (uint32_t i = from - row; i < rows; i++)
		x86_store(a, row + i, p * PANEL, v_load(sum[i]));
}

/*
 * Two tiles of rows (at row0 and row1) x two panels; one of either if both are the same. Rows before `from`, and those
 * that the second tile shares with the first, are stored already.
 */
static void run_square(const struct kern_matmul *a, uint32_t p0, uint32_t p1, uint32_t row0, uint32_t row1, uint32_t rows,
		       uint32_t from)
{
	const size_t x_bytes = x86_half_bytes(a->w->cols), panel_bytes = x86_panel_bytes(X86_BF16, a->w->cols);
	const uint8_t *x0 = (const uint8_t *)a->activated + row0 * x_bytes, *x1 = (const uint8_t *)a->activated + row1 * x_bytes;
	const uint8_t *w0 = (const uint8_t *)a->w->data + p0 * panel_bytes, *w1 = (const uint8_t *)a->w->data + p1 * panel_bytes;
	bool tall = row1 != row0, wide = p1 != p0;
	_Alignas(64) float sum[16][16];

	_tile_zero(0);
	_tile_zero(1);
	_tile_zero(2);
	_tile_zero(3);
	for (size_t k = 0; k < a->w->cols / 32; k++) {
		_tile_loadd(4, x0 + 64 * k, x_bytes);
		_tile_loadd(6, w0 + 1024 * k, 64);
		_tile_dpbf16ps(0, 4, 6);
		if (wide) {
			_tile_loadd(7, w1 + 1024 * k, 64);
			_tile_dpbf16ps(1, 4, 7);
		}
		if (!tall)
			continue;
		_tile_loadd(5, x1 + 64 * k, x_bytes);
		_tile_dpbf16ps(2, 5, 6);
		if (wide)
			_tile_dpbf16ps(3, 5, 7);
	}
	_tile_stored(0, sum, 64);
	store_tile(a, (const float (*)[16])sum, p0, row0, from, rows);
	_tile_stored(1, sum, 64);
	if (wide)
		store_tile(a, (const float (*)[16])sum, p1, row0, from, rows);
	if (!tall)
		return;
	_tile_stored(2, sum, 64);
	store_tile(a, (const float (*)[16])sum, p0, row1, from + rows, rows);
	_tile_stored(3, sum, 64);
	if (wide)
		store_tile(a, (const float (*)[16])sum, p1, row1, from + rows, rows);
}

void X86(amx_bf16)(const struct kern_matmul *a, uint32_t first, uint32_t end)
{
	uint32_t rows = a->n < 16 ? a->n : 16;

	configure(rows);
	for (uint32_t p = first; p < end; p += 2)
		for (uint32_t row = 0; row < a->n; row += 2 * rows) {
			uint32_t left = a->n - row, row0 = left < rows ? a->n - rows : row;
			uint32_t row1 = left <= rows ? row0 : left < 2 * rows ? a->n - rows : row + rows;
			run_square(a, p, p + 1 < end ? p + 1 : p, row0, row1, rows, row);
		}
	_tile_release();
}

#else

bool X86(amx_allowed)(void)
{
	return false;
}

void X86(amx_bf16)(const struct kern_matmul *a, uint32_t first, uint32_t end)
{
	X86(matmul_float)(a, first, end);
}

#endif
