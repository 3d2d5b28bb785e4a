/*
 * Archives for fuzzers: sound around members that are not, so that what lies
 * behind tar headers and hashes is reached.
 */
#ifndef TESTS_FUZZ_FUZZARCHIVE_H
#define TESTS_FUZZ_FUZZARCHIVE_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>
#include <zstd.h>

#include "common/le.h"
#include "image/format.h"
#include "image/hash.h"

enum {
	ROOM = 1 << 20
};

struct archive { /* as tar */
	unsigned char b[ROOM];
	size_t len;
	char members[4096];
	size_t members_len;
};

static void tar_header(struct archive *a, const char *name, size_t size)
{
	unsigned char *h = a->b + a->len;
	unsigned sum = 0;

	memset(h, 0, 512);
	snprintf((char *)h, 100, "%s", name);
	snprintf((char *)h + 124, 12, "%011zo", size);
	memcpy(h + 257,
	       "ustar\0"
	       "00",
	       8);
	h[156] = '0';
	memset(h + 148, ' ', 8);
	for (int i = 0; i < 512; i++)
		sum += h[i];
	snprintf((char *)h + 148, 8, "%06o", sum);
	a->len += 512;
}

static void tar_content(struct archive *a, const void *p, size_t len)
{
	size_t padded = (len + 511) & ~(size_t)511;

	memcpy(a->b + a->len, p, len);
	memset(a->b + a->len + len, 0, padded - len);
	a->len += padded;
}

static void member(struct archive *a, const char *name, const void *p, size_t len)
{
	char hex[FORMAT_HASH_HEX + 1];

	tar_header(a, name, len);
	a->members_len +=
		(size_t)snprintf(a->members + a->members_len, sizeof(a->members) - a->members_len,
				 "%s\"%s\":{\"offset\":%zu,\"bytes\":%zu,\"xxh3\":\"%s\"}",
				 a->members_len ? "," : "", name, a->len, len,
				 hash_format(hex, XXH3_128bits(p, len)));
	tar_content(a, p, len);
}

static void commit(struct archive *a, uint64_t pages, uint64_t frames)
{
	char text[8192], hex[FORMAT_HASH_HEX + 1], zero[FORMAT_HASH_HEX + 1];
	size_t len;

	memset(zero, '0', FORMAT_HASH_HEX);
	zero[FORMAT_HASH_HEX] = '\0';
	len = (size_t)snprintf(text, sizeof(text),
			       "{\"version\":1,\"id\":\"00112233445566778899aabbccddeeff\","
			       "\"pages\":%llu,\"frames\":%llu,\"bytes\":%zu,\"members\":{%s}," //
			       FORMAT_COMMIT_TAIL,
			       (unsigned long long)(pages & INT64_MAX),
			       (unsigned long long)(frames & INT64_MAX), a->len, a->members, zero,
			       zero);
	tar_header(a, FORMAT_COMMIT, len);
	memcpy(text + len - FORMAT_COMMIT_ARCHIVE, hash_format(hex, XXH3_128bits(a->b, a->len)),
	       FORMAT_HASH_HEX);
	memcpy(text + len - FORMAT_COMMIT_SELF,
	       hash_format(hex, XXH3_128bits(text, len - FORMAT_COMMIT_SELF)), FORMAT_HASH_HEX);
	tar_content(a, text, len);
	memset(a->b + a->len, 0, FORMAT_TAR_END);
	a->len += FORMAT_TAR_END;
}

/* u16 length (little-endian) and bytes. */
static const uint8_t *section(const uint8_t **p, size_t *left, size_t *ret_len)
{
	const uint8_t *at = *p + 2;

	*ret_len = 0;
	if (*left < 2)
		return *p;
	*ret_len = le_get16(*p);
	*left -= 2;
	if (*ret_len > *left)
		*ret_len = *left;
	*left -= *ret_len;
	*p = at + *ret_len;
	return at;
}

/* The page index is compressed; segments begin at file offset 512. */
static void archive_build(struct archive *a, const uint8_t *const s[5], const size_t len[5])
{
	static unsigned char packed[1 << 17];
	size_t n;

	a->len = a->members_len = 0;
	a->members[0] = '\0';
	tar_header(a, FORMAT_PAGES_DIR "000000.zst", len[4]);
	tar_content(a, s[4], len[4]);
	member(a, FORMAT_SNAPSHOT, s[0], len[0]);
	member(a, FORMAT_PROCESS, s[1], len[1]);
	member(a, "threads/123.notes", s[2], len[2]);
	n = ZSTD_compress(packed, sizeof(packed), s[3], len[3], 1);
	member(a, FORMAT_INDEX, packed, n);
	commit(a, len[3] >= 64 ? le_get64(s[3] + 32) : 0, len[3] >= 64 ? le_get64(s[3] + 24) : 0);
}

#endif
