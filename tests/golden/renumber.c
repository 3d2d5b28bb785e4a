/*
 * Makes of an image one that says to be of a format of the future, every hash being right.
 *
 *	renumber IMAGE snapshot.json|index.zst|commit.json VERSION >NEWER
 *
 * A version has one digit, so that nothing moves.
 */
#include <err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include <zstd.h>

#include "image/format.h"

static unsigned char image[1 << 20];
static size_t size;

/* The content of a member: the last that has the name. */
static unsigned char *find(const char *name, size_t *ret_len)
{
	for (size_t at = size / FORMAT_TAR_BLOCK * FORMAT_TAR_BLOCK; at; at -= FORMAT_TAR_BLOCK)
		if (!strcmp((char *)image + at - FORMAT_TAR_BLOCK, name)) {
			*ret_len = strtoul((char *)image + at - FORMAT_TAR_BLOCK + 124, NULL, 8);
			return image + at;
		}
	errx(1, "there is no '%s'", name);
}

static void put_hash(unsigned char *at, const void *p, size_t len)
{
	XXH128_hash_t h = XXH3_128bits(p, len);
	char hex[FORMAT_HASH_HEX + 1];

	snprintf(hex, sizeof(hex), "%016llx%016llx", (unsigned long long)h.high64,
		 (unsigned long long)h.low64);
	memcpy(at, hex, FORMAT_HASH_HEX);
}

static void set_number(unsigned char *text, size_t len, char version)
{
	static const char key[] = "\"version\":";
	unsigned char *at = memmem(text, len, key, sizeof(key) - 1);

	if (!at)
		errx(1, "there is no version");
	at += sizeof(key) - 1;
	*(at + (*at == ' ')) = (unsigned char)version;
}

/* In two blocks, the first of which holds so much. */
static size_t compress(unsigned char *out, size_t room, const unsigned char *p, size_t n,
		       size_t first)
{
	ZSTD_CCtx *c = ZSTD_createCCtx();
	ZSTD_outBuffer to = {out, room, 0};
	ZSTD_inBuffer a = {p, first, 0}, b = {p + first, n - first, 0};

	ZSTD_CCtx_setParameter(c, ZSTD_c_checksumFlag, 1);
	ZSTD_CCtx_setPledgedSrcSize(c, n);
	if (ZSTD_compressStream2(c, &to, &a, ZSTD_e_flush) ||
	    ZSTD_compressStream2(c, &to, &b, ZSTD_e_end))
		errx(1, "cannot compress the index");
	ZSTD_freeCCtx(c);
	return to.pos;
}

/* Compressed again, it must be as long as it was: there is a way to cut it that makes it so. */
static void set_index(unsigned char *p, size_t len, char version)
{
	static unsigned char plain[1 << 20], packed[1 << 20];
	size_t n = ZSTD_decompress(plain, sizeof(plain), p, len);

	if (ZSTD_isError(n))
		errx(1, "the index is none");
	plain[8] = (unsigned char)(version - '0');
	for (size_t first = 1; first < n; first++)
		if (compress(packed, sizeof(packed), plain, n, first) == len) {
			memcpy(p, packed, len);
			return;
		}
	errx(1, "the index has changed its length");
}

int main(int argc, char **argv)
{
	FILE *f = argc == 4 ? fopen(argv[1], "rb") : NULL;
	size_t len, commit_len;

	if (!f)
		errx(2, "usage: renumber IMAGE MEMBER VERSION");
	size = fread(image, 1, sizeof(image), f);
	fclose(f);
	unsigned char *p = find(argv[2], &len), *commit = find("commit.json", &commit_len);

	if (!strcmp(argv[2], "index.zst"))
		set_index(p, len, *argv[3]);
	else
		set_number(p, len, *argv[3]);
	if (p != commit) {
		unsigned char *at = memmem(commit, commit_len, argv[2], strlen(argv[2]));

		at = memmem(at, commit_len - (size_t)(at - commit), "\"xxh3\":\"", 8);
		put_hash(at + 8, p, len);
	}
	/* First what stands before the content of commit.json, then that. */
	put_hash(commit + commit_len - FORMAT_COMMIT_ARCHIVE, image, (size_t)(commit - image));
	put_hash(commit + commit_len - FORMAT_COMMIT_SELF, commit, commit_len - FORMAT_COMMIT_SELF);
	return fwrite(image, 1, size, stdout) != size;
}
