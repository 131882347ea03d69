/* SPDX-License-Identifier: MIT */
/*
 * AMX-TILE and AMX-BF16 for isasim.h: eight tiles of up to 16 rows of up to 64 bytes, as Intel's manual has them (volume 2,
 * TDPBF16PS and its like), and a processor and a kernel that grant them. One thread; each source file has its own.
 */
#ifndef LORAD_TESTS_ISASIM_TILES_H
#define LORAD_TESTS_ISASIM_TILES_H

#include "tests/isasim/isasim.h"

#define __AMX_TILE__ 1
#define __AMX_BF16__ 1

struct isasim_tile {
	unsigned rows, bytes; /* 0: not configured */
	_Alignas(64) uint8_t row[16][64];
};

static struct isasim_tile isasim_tile[8];
static bool isasim_granted; /* the process has asked for the state */

/* What a processor faults on. */
static inline void isasim_check(bool ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "isasim: %s\n", what);
	abort();
}

static inline struct isasim_tile *isasim_configured(unsigned t)
{
	isasim_check(t < 8 && isasim_tile[t].rows, "a tile that is not configured");
	return &isasim_tile[t];
}

static inline void isasim_tile_release(void)
{
	memset(isasim_tile, 0, sizeof isasim_tile);
}

/* Bytes: palette, start row, 14 reserved, u16 bytes of a row [8], 16 reserved, rows [8], 8 reserved. */
static inline void isasim_tile_loadconfig(const void *config)
{
	uint8_t c[64], reserved = 0;

	isasim_check(isasim_granted, "tiles that the kernel did not grant");
	memcpy(c, config, sizeof c);
	for (unsigned i = 1; i < 16; i++)
		reserved |= c[i] | c[i + 31] | (i <= 8 ? c[i + 55] : 0);
	reserved |= c[47];
	isasim_check(c[0] == 1 && !reserved, "a configuration of another palette, or with reserved bytes");
	isasim_tile_release();
	for (unsigned t = 0; t < 8; t++) {
		unsigned bytes = c[16 + 2 * t] | (unsigned)c[17 + 2 * t] << 8, rows = c[48 + t];
		isasim_check(rows <= 16 && bytes <= 64 && !rows == !bytes, "a configuration with a tile that cannot be");
		isasim_tile[t].rows = rows;
		isasim_tile[t].bytes = bytes;
	}
}

static inline void isasim_tile_zero(unsigned t)
{
	memset(isasim_configured(t)->row, 0, sizeof isasim_tile[t].row);
}

static inline void isasim_tile_loadd(unsigned t, const void *from, size_t stride)
{
	isasim_tile_zero(t);
	for (unsigned i = 0; i < isasim_tile[t].rows; i++)
		memcpy(isasim_tile[t].row[i], (const uint8_t *)from + i * stride, isasim_tile[t].bytes);
}

static inline void isasim_tile_stored(unsigned t, void *to, size_t stride)
{
	const struct isasim_tile *tile = isasim_configured(t);

	for (unsigned i = 0; i < tile->rows; i++)
		memcpy((uint8_t *)to + i * stride, tile->row[i], tile->bytes);
}

/* Even and odd products are summed apart from zero on, then with one another, then with what was there. */
static inline void isasim_tile_dpbf16ps(unsigned to, unsigned a, unsigned b)
{
	struct isasim_tile *sum = isasim_configured(to), *x = isasim_configured(a), *w = isasim_configured(b);

	isasim_check(to != a && to != b && a != b, "a tile that is an operand twice");
	isasim_check(sum->rows == x->rows && sum->bytes == w->bytes && x->bytes == 4 * w->rows && w->bytes % 4 == 0,
		     "a product of tiles of unlike shape");
	for (unsigned m = 0; m < sum->rows; m++) {
		__m512 even = _mm512_setzero_ps(), odd = even, before = _mm512_loadu_ps(sum->row[m]);
		for (unsigned k = 0; k < w->rows; k++) {
			int32_t pair;
			memcpy(&pair, x->row[m] + 4 * k, sizeof pair);
			__m512i left = _mm512_set1_epi32(pair), right = _mm512_loadu_si512(w->row[k]);
			even = isasim_fma_flushed(isasim_bf16_even(left), isasim_bf16_even(right), even);
			odd = isasim_fma_flushed(isasim_bf16_odd(left), isasim_bf16_odd(right), odd);
		}
		even = isasim_flush(_mm512_add_ps(even, odd));
		before = isasim_flush(_mm512_add_ps(isasim_flush(before), even));
		_mm512_storeu_ps(sum->row[m], before); /* behind sum->bytes there were zeros, and w's */
	}
}

/* A processor that has tiles, for which a process has to ask. */
static inline int isasim_cpuid(unsigned leaf, unsigned subleaf, unsigned *a, unsigned *b, unsigned *c, unsigned *d)
{
	*a = *b = *c = 0;
	*d = leaf == 7 && subleaf == 0 ? 1u << 22 | 1u << 24 : 0; /* AMX-BF16, AMX-TILE */
	return 1;
}

static inline long isasim_syscall(long number, long code, long feature)
{
	isasim_granted = number == SYS_arch_prctl && code == 0x1023 && feature == 18; /* a request for XTILEDATA */
	return isasim_granted ? 0 : -1;
}

#define __get_cpuid_count isasim_cpuid
#define syscall isasim_syscall
#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig isasim_tile_loadconfig
#define _tile_release isasim_tile_release
#define _tile_zero isasim_tile_zero
#define _tile_loadd isasim_tile_loadd
#define _tile_stored isasim_tile_stored
#define _tile_dpbf16ps isasim_tile_dpbf16ps

#endif
