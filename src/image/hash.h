/* XXH3-128 as the image holds it: 16 canonical (big-endian) bytes, or 32
 * lower-case hex digits. Of pages it is seeded: a process chooses what its
 * memory holds, and should not be able to choose two pages with one hash. */
#ifndef USNAP_IMAGE_HASH_H
#define USNAP_IMAGE_HASH_H

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <xxhash.h>

#include "image/format.h"

static inline void hash_canonical(void *ret, XXH128_hash_t h)
{
	XXH128_canonical_t c;

	XXH128_canonicalFromHash(&c, h);
	memcpy(ret, &c, FORMAT_HASH_BYTES);
}

static inline void hash_page(void *ret, uint64_t seed, const void *page, size_t len)
{
	hash_canonical(ret, XXH3_128bits_withSeed(page, len, seed));
}

static inline const char *hash_hex(char hex[FORMAT_HASH_HEX + 1], const unsigned char *b)
{
	static const char digits[] = "0123456789abcdef";

	for (int i = 0; i < FORMAT_HASH_BYTES; i++) {
		hex[2 * i] = digits[b[i] >> 4];
		hex[2 * i + 1] = digits[b[i] & 15];
	}
	hex[FORMAT_HASH_HEX] = '\0';
	return hex;
}

static inline const char *hash_format(char hex[FORMAT_HASH_HEX + 1], XXH128_hash_t h)
{
	unsigned char b[FORMAT_HASH_BYTES];

	hash_canonical(b, h);
	return hash_hex(hex, b);
}

/* 32 lower-case hex digits (an id or a hash) as bytes. -EINVAL for anything
 * else: what has two spellings cannot be compared. */
static inline int hash_parse(const char *hex, unsigned char ret[FORMAT_HASH_BYTES])
{
	static const char digits[] = "0123456789abcdef";

	if (strlen(hex) != FORMAT_HASH_HEX)
		return -EINVAL;
	for (int i = 0; i < FORMAT_HASH_BYTES; i++) {
		const char *hi = strchr(digits, hex[2 * i]), *lo = strchr(digits, hex[2 * i + 1]);

		if (!hi || !lo)
			return -EINVAL;
		ret[i] = (unsigned char)((hi - digits) << 4 | (lo - digits));
	}
	return 0;
}

#endif
