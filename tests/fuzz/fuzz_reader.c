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
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <uffd-snap.h>
#include <unistd.h>

#include "fuzzarchive.h"

static void build(struct archive *a, const uint8_t *p, size_t left)
{
	const uint8_t *s[5];
	size_t len[5];

	for (int i = 0; i < 5; i++)
		s[i] = section(&p, &left, &len[i]);
	archive_build(a, s, len);
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
