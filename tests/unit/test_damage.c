/* Every byte of an image matters, and none of them brings a reader down. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <uffd-snap.h>

#include "imagefixture.h"

static unsigned char *load(int fd, size_t *ret_len)
{
	struct stat st;
	unsigned char *p;

	cr_assert_eq(fstat(fd, &st), 0);
	*ret_len = (size_t)st.st_size;
	p = malloc(*ret_len);
	cr_assert_eq(pread(fd, p, *ret_len, 0), (ssize_t)*ret_len);
	return p;
}

static int verify(int fd, unsigned nr_threads)
{
	struct usnap_verify_options o = {.size = sizeof(o), .nr_threads = nr_threads};
	struct usnap_image *img = usnap_image_new();
	int r = usnap_image_open_fd(img, fd, "test");

	if (r == 0)
		r = usnap_image_verify(img, &o);
	if (r < 0) {
		cr_assert_neq(*usnap_image_error(img), '\0');
		if (r == -EBADMSG)
			cr_assert_neq(usnap_image_error_offset(img), USNAP_NO_OFFSET);
	}
	usnap_image_free(img);
	return r;
}

/* A damaged image yields the right bytes or none. */
static void expect_right_or_refused(int fd, uint64_t addr, uint64_t key)
{
	unsigned char got[PAGE], want[PAGE];
	struct usnap_image *img = usnap_image_new();

	if (usnap_image_open_fd(img, fd, "test") == 0 &&
	    usnap_image_read(img, addr, got, PAGE) == 0) {
		fixture_page(key, want);
		cr_assert_arr_eq(got, want, PAGE);
	}
	usnap_image_free(img);
}

Test(damage, a_sound_image_verifies)
{
	int fd = fixture_image(20);

	cr_assert_eq(verify(fd, 1), 0);
	cr_assert_eq(verify(fd, 4), 0);
}

Test(damage, every_flipped_byte_is_found, .timeout = 120)
{
	int fd = fixture_image(12);
	size_t len;
	unsigned char *p = load(fd, &len);

	for (size_t i = 0; i < len; i++) {
		unsigned char flipped = p[i] ^ (unsigned char)(1u << (i % 8));

		cr_assert_eq(pwrite(fd, &flipped, 1, (off_t)i), 1);
		cr_assert_lt(verify(fd, 1), 0, "byte %zu", i);
		expect_right_or_refused(fd, HEAP + PAGE, HEAP + PAGE);
		cr_assert_eq(pwrite(fd, &p[i], 1, (off_t)i), 1);
	}
	cr_assert_eq(verify(fd, 1), 0);
	free(p);
}

Test(damage, every_truncation_is_found, .timeout = 120)
{
	int fd = fixture_image(12);
	size_t len;
	unsigned char *p = load(fd, &len);

	for (size_t i = len; i-- > 0;) {
		cr_assert_eq(ftruncate(fd, (off_t)i), 0);
		cr_assert_eq(verify(fd, 1), -EBADMSG, "cut to %zu", i);
	}
	free(p);
}

Test(damage, what_follows_the_end_is_found)
{
	char garbage[1536] = {0};
	int fd = fixture_image(12);
	size_t len;
	unsigned char *p = load(fd, &len);

	for (size_t n = 1; n <= sizeof(garbage); n += 511) {
		cr_assert_eq(pwrite(fd, garbage, n, (off_t)len), (ssize_t)n);
		cr_assert_eq(verify(fd, 1), -EBADMSG);
		cr_assert_eq(ftruncate(fd, (off_t)len), 0);
	}
	free(p);
}

struct noted {
	unsigned nr;
	uint64_t offset;
	char what[200];
};

static void note(void *ctx, uint64_t offset, const char *what)
{
	struct noted *n = ctx;

	n->nr++;
	if (strstr(what, "frame") || strstr(what, "page 0x")) {
		n->offset = offset;
		snprintf(n->what, sizeof(n->what), "%s", what);
	}
}

Test(damage, names_the_frame)
{
	struct noted n = {0};
	struct usnap_verify_options o = {.size = sizeof(o), .ctx = &n, .finding = note};
	struct usnap_image *img = usnap_image_new();
	int fd = fixture_image(20);
	size_t len, at = 0;
	unsigned char *p = load(fd, &len);

	for (; memcmp(p + at, "pages/000000.zst", 16); at += 512)
		;
	at += 512;
	p[at + 40] ^= 1;
	cr_assert_eq(pwrite(fd, p, len, 0), (ssize_t)len);
	cr_assert_eq(usnap_image_open_fd(img, fd, "test"), 0);
	cr_assert_eq(usnap_image_verify(img, &o), -EBADMSG);
	cr_assert_eq(n.nr, 1);
	cr_assert_eq(n.offset, at);
	cr_assert_not_null(strstr(n.what, "frame 0"));
	usnap_image_free(img);
	free(p);
}

Test(damage, an_image_without_commit_is_not_complete)
{
	struct usnap_image *img = usnap_image_new();
	int fd = memfd_create("image", MFD_CLOEXEC);
	struct usnap_err err = {0};
	struct image_writer *w;

	cr_assert_eq(fixture_open_writer(&w, fd, &err), 0);
	cr_assert_eq(image_writer_begin(w, &err), 0);
	cr_assert_eq(fixture_members(w, &err), 0);
	cr_assert_eq(fixture_encode(w, HEAP, 20, 0), 0);
	cr_assert_eq(image_writer_flush(w, &err), 0);
	image_writer_close(w);
	cr_assert_eq(usnap_image_open_fd(img, fd, "test"), -EBADMSG);
	cr_assert_not_null(strstr(usnap_image_error(img), "not a complete image"));
	usnap_image_free(img);
}
