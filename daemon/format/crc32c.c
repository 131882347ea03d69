/* SPDX-License-Identifier: MIT */
/*
 * CRC-32C (Castagnoli; RFC 3720, section 12.1)
 *
 * x86's crc32 instruction takes 8 bytes a cycle but answers after three, so one stream leaves two thirds of it idle.
 * Large inputs are cut in three lanes that run at once. The parts are joined by algebra: bits are polynomials over
 * GF(2), and putting n bytes behind a checksum multiplies it by x^(8n) modulo the polynomial, which is one
 * multiplication, as the lanes have a fixed length. Machines without the instruction use a table of nibbles.
 */
#include "daemon/format/image.h"

#include <endian.h>
#include <string.h>

#define POLYNOMIAL 0x82f63b78u /* bits reversed: the highest power is the lowest bit */
#define ONE 0x80000000u        /* the polynomial 1 */
#define LANE 8192u             /* bytes of a lane, a power of two */

/* The checksum's step for four bits. */
static const uint32_t nibble[16] = {
	0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
	0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9, 0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75,
};

static uint32_t update_table(uint32_t crc, const uint8_t *p, size_t n)
{
	for (; n; --n) {
		crc ^= *p++;
		crc = crc >> 4 ^ nibble[crc & 15];
		crc = crc >> 4 ^ nibble[crc & 15];
	}
	return crc;
}

#if defined(__x86_64__)

/* a * b modulo the polynomial. */
static uint32_t multiply(uint32_t a, uint32_t b)
{
	uint32_t product = 0, bit;

	for (bit = ONE; bit; bit >>= 1) {
		if (a & bit)
			product ^= b;
		b = b & 1 ? b >> 1 ^ POLYNOMIAL : b >> 1; /* times x */
	}
	return product;
}

/* x^(8 * LANE), by squaring x^8. */
static uint32_t lane_factor(void)
{
	uint32_t factor = ONE >> 8;
	unsigned n;

	for (n = LANE; n > 1; n /= 2)
		factor = multiply(factor, factor);
	return factor;
}

__attribute__((target("sse4.2"))) static uint32_t update_one(uint32_t crc, const uint8_t *p, size_t n)
{
	uint64_t c = crc, word;

	for (; n >= sizeof(word); n -= sizeof(word), p += sizeof(word)) {
		memcpy(&word, p, sizeof(word));
		c = __builtin_ia32_crc32di(c, word);
	}
	for (; n; --n)
		c = __builtin_ia32_crc32qi((uint32_t)c, *p++);
	return (uint32_t)c;
}

/* Three lanes at once; joined: crc(a b c) = (crc(a) * f + crc0(b)) * f + crc0(c), crc0 starting from 0. */
__attribute__((target("sse4.2"))) static uint32_t update_three(uint32_t crc, const uint8_t *p, uint32_t factor)
{
	uint64_t a = crc, b = 0, c = 0, word[3];
	size_t i;

	for (i = 0; i < LANE; i += sizeof(word[0])) {
		memcpy(&word[0], p + i, sizeof(word[0]));
		memcpy(&word[1], p + LANE + i, sizeof(word[1]));
		memcpy(&word[2], p + 2 * LANE + i, sizeof(word[2]));
		a = __builtin_ia32_crc32di(a, word[0]);
		b = __builtin_ia32_crc32di(b, word[1]);
		c = __builtin_ia32_crc32di(c, word[2]);
	}
	return multiply(multiply((uint32_t)a, factor) ^ (uint32_t)b, factor) ^ (uint32_t)c;
}

static uint32_t update(uint32_t crc, const uint8_t *p, size_t n)
{
	if (!__builtin_cpu_supports("sse4.2"))
		return update_table(crc, p, n);
	if (n >= 3 * LANE) {
		uint32_t factor = lane_factor();

		for (; n >= 3 * LANE; n -= 3 * LANE, p += 3 * LANE)
			crc = update_three(crc, p, factor);
	}
	return update_one(crc, p, n);
}

#else

static uint32_t update(uint32_t crc, const uint8_t *p, size_t n)
{
	return update_table(crc, p, n);
}

#endif

/**
 * crc32c() - checksum of bytes
 * @crc:        0, or the checksum of what comes before
 * @data:       bytes
 * @bytes:      how many
 */
uint32_t crc32c(uint32_t crc, const void *data, size_t bytes)
{
	return ~update(~crc, data, bytes);
}

/** crc32c_table() - the same without the instruction, for the test and for machines that lack it */
uint32_t crc32c_table(uint32_t crc, const void *data, size_t bytes)
{
	return ~update_table(~crc, data, bytes);
}
