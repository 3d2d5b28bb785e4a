/*
 * The image reader. The first byte of an input chooses:
 *
 *	'0'  the rest is a file
 *	'1'  the rest is five sections, each u16 length (little-endian) and
 *	     bytes: snapshot.json, process.json, a thread's notes, the page
 *	     index before compression, a page segment. A sound archive is made
 *	     of them, so that what lies behind tar headers and hashes is
 *	     reached. Segments begin at file offset 512.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <uffd-snap.h>
#include <unistd.h>
#include <xxhash.h>
#include <zstd.h>

#include "common/le.h"
#include "image/format.h"
#include "image/hash.h"

enum {
	ROOM = 1 << 20
};

struct archive {
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

static void build(struct archive *a, const uint8_t *p, size_t left)
{
	static unsigned char packed[1 << 17];
	const uint8_t *s[5];
	size_t len[5], n;

	a->len = a->members_len = 0;
	a->members[0] = '\0';
	for (int i = 0; i < 5; i++)
		s[i] = section(&p, &left, &len[i]);
	tar_header(a, FORMAT_PAGES_DIR "000000.zst", len[4]);
	tar_content(a, s[4], len[4]);
	member(a, FORMAT_SNAPSHOT, s[0], len[0]);
	member(a, FORMAT_PROCESS, s[1], len[1]);
	member(a, "threads/123.notes", s[2], len[2]);
	n = ZSTD_compress(packed, sizeof(packed), s[3], len[3], 1);
	member(a, FORMAT_INDEX, packed, n);
	commit(a, len[3] >= 64 ? le_get64(s[3] + 32) : 0, len[3] >= 64 ? le_get64(s[3] + 24) : 0);
}

static void on_finding(void *ctx, uint64_t offset, const char *what)
{
	(void)ctx;
	(void)offset;
	if (!*what)
		abort();
}

/* All that a reader can be asked. Answers may be errors; they must be said. */
static void ask(struct usnap_image *img)
{
	struct usnap_verify_options o = {.size = sizeof(o), .nr_threads = 1, .finding = on_finding};
	static unsigned char buf[3 * 65536];
	uint64_t start, len, at = 0;
	struct usnap_region g;
	struct usnap_thread t;
	const void *notes;
	const char *text;
	size_t n = 0, text_len;

	for (size_t i = 0; usnap_image_member_name(img, i); i++)
		usnap_image_get_member(img, usnap_image_member_name(img, i), &text, &text_len);
	if (usnap_image_get_nr_regions(img, &n) < 0 && !*usnap_image_error(img))
		abort();
	for (size_t i = 0; i < n && i < 64; i++) {
		if (usnap_image_get_region(img, i, &g, sizeof(g)) < 0 || g.start >= g.end)
			abort();
		len = g.end - g.start < sizeof(buf) ? g.end - g.start : sizeof(buf);
		if (usnap_image_read(img, g.start, buf, len) < 0 && !*usnap_image_error(img))
			abort();
		usnap_image_read(img, g.end - 100, buf, 200);
		usnap_image_read(img, USNAP_UNLINKED_START + (g.start & 0xfffff), buf, 200);
	}
	for (int i = 0; i < 64 && usnap_image_next_run(img, at, &start, &len) == 1; i++) {
		if (start < at || !len)
			abort();
		at = start + len;
		usnap_image_read(img, start, buf, len < sizeof(buf) ? len : sizeof(buf));
		usnap_image_page_hash(img, start, buf);
	}
	n = 0;
	usnap_image_get_nr_threads(img, &n);
	for (size_t i = 0; i < n && i < 64; i++) {
		usnap_image_get_thread(img, i, &t, sizeof(t));
		usnap_image_get_notes(img, i, &notes, &text_len);
	}
	if (usnap_image_verify(img, &o) < 0 && !*usnap_image_error(img))
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct archive a;
	struct usnap_image *img;
	int fd;

	if (size < 1 || size > ROOM / 4)
		return 0;
	if (data[0] == '1') {
		build(&a, data + 1, size - 1);
	} else {
		memcpy(a.b, data + 1, size - 1);
		a.len = size - 1;
	}
	fd = memfd_create("image", MFD_CLOEXEC);
	if (fd < 0 || write(fd, a.b, a.len) != (ssize_t)a.len)
		abort();
	img = usnap_image_new();
	if (usnap_image_open_fd(img, fd, NULL) < 0) {
		if (!*usnap_image_error(img))
			abort();
	}
	ask(img);
	usnap_image_free(img);
	close(fd);
	return 0;
}
