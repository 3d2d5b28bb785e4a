#include <criterion/criterion.h>
#include <errno.h>
#include <uffd-snap.h>

#include "image/format.h"
#include "image/image.h"
#include "imagefixture.h"

#define FIRST FORMAT_CONTENT_START
#define SECOND (FORMAT_CONTENT_START + 16 * PAGE)

static const char two_files[] =
	"{\"pid\":123,\"maps\":[],\"threads\":[],\"unlinked\":["
	"{\"inode\":2,\"content\":{\"address\":\"0xff00000000010000\",\"size\":8192}},"
	"{\"inode\":3,\"content\":null},"
	"{\"inode\":1,\"content\":{\"address\":\"0xff00000000000000\",\"size\":32768}}]}";

/* An image with pages at 0 and 2 of the first file, the last of the second, and one at extra. */
static int make_image(const char *process, uint64_t extra, uint64_t dropped)
{
	int fd = memfd_create("image", MFD_CLOEXEC);
	struct usnap_err err = {0};
	struct image_writer *w;
	const uint64_t pages[] = {FIRST, FIRST + 2 * PAGE, SECOND + PAGE, extra, dropped};

	cr_assert_eq(fixture_open_writer(&w, fd, &err), 0);
	cr_assert_eq(image_writer_begin(w, &err), 0);
	cr_assert_eq(image_writer_member(w, "snapshot.json", fixture_snapshot,
					 sizeof(fixture_snapshot) - 1, &err),
		     0);
	cr_assert_eq(image_writer_member(w, "process.json", process, strlen(process), &err), 0);
	for (size_t i = 0; i < sizeof(pages) / sizeof(pages[0]); i++)
		if (pages[i])
			cr_assert_eq(fixture_encode(w, pages[i], 1, 0), 0);
	cr_assert_eq(image_writer_flush(w, &err), 0);
	if (dropped)
		image_writer_drop(w, dropped, PAGE);
	cr_assert_eq(image_writer_commit(w, "{}", 2, &err), 0, "%s", err.text);
	image_writer_close(w);
	return fd;
}

static struct usnap_image *open_image(int fd)
{
	struct usnap_image *img = usnap_image_new();

	cr_assert_eq(usnap_image_open_fd(img, fd, "test"), 0, "%s", usnap_image_error(img));
	close(fd);
	return img;
}

static int verify(int fd)
{
	struct usnap_verify_options o = {.size = sizeof(o), .nr_threads = 1};
	struct usnap_image *img = open_image(fd);
	int r = usnap_image_verify(img, &o);

	usnap_image_free(img);
	return r;
}

Test(unlinked, contents_are_read_at_their_addresses)
{
	unsigned char got[3 * PAGE], want[3 * PAGE] = {0};
	struct usnap_image *img = open_image(make_image(two_files, 0, 0));

	fixture_page(FIRST, want);
	fixture_page(FIRST + 2 * PAGE, want + 2 * PAGE);
	cr_assert_eq(usnap_image_read(img, FIRST, got, sizeof(got)), 0, "%s",
		     usnap_image_error(img));
	cr_assert_arr_eq(got, want, sizeof(got));
	cr_assert_eq(usnap_image_read(img, FIRST + 17, got, 2 * PAGE), 0);
	cr_assert_arr_eq(got, want + 17, 2 * PAGE);
	cr_assert_eq(usnap_image_read(img, SECOND, got, 2 * PAGE), 0);
	usnap_image_free(img);
}

Test(unlinked, nothing_is_read_beyond_a_content)
{
	unsigned char got[16];
	struct usnap_image *img = open_image(make_image(two_files, 0, 0));

	cr_assert_eq(usnap_image_read(img, FIRST + 8 * PAGE - 15, got, 16), -EFAULT);
	cr_assert_eq(usnap_image_read(img, FIRST + 8 * PAGE, got, 1), -EFAULT);
	cr_assert_eq(usnap_image_read(img, SECOND - 1, got, 2), -EFAULT);
	cr_assert_eq(usnap_image_read(img, SECOND + 2 * PAGE, got, 1), -EFAULT);
	cr_assert_eq(usnap_image_read(img, FORMAT_CONTENT_END - 1, got, 1), -EFAULT);
	usnap_image_free(img);
}

Test(unlinked, contents_are_no_memory)
{
	struct usnap_image *img = open_image(make_image(two_files, 0, 0));
	uint64_t start, len;

	cr_assert_eq(usnap_image_next_run(img, 0, &start, &len), 0);
	cr_assert_eq(usnap_image_next_run(img, FIRST, &start, &len), 0);
	cr_assert_eq(img_next_content_run(img, 0, &start, &len), 1);
	cr_assert_eq(start, FIRST);
	cr_assert_eq(len, PAGE);
	cr_assert_eq(img_next_content_run(img, FIRST + 3ull * PAGE, &start, &len), 1);
	cr_assert_eq(start, SECOND + PAGE);
	cr_assert_eq(img_next_content_run(img, SECOND + 2 * PAGE, &start, &len), 0);
	usnap_image_free(img);
}

Test(unlinked, every_page_belongs_to_a_file)
{
	cr_assert_eq(verify(make_image(two_files, 0, 0)), 0);
	cr_assert_eq(verify(make_image(two_files, FIRST + 8 * PAGE, 0)), -EBADMSG);
	cr_assert_eq(verify(make_image(two_files, SECOND + 2 * PAGE, 0)), -EBADMSG);
	cr_assert_eq(verify(make_image(two_files, FORMAT_CONTENT_END, 0)), -EBADMSG);
	cr_assert_eq(verify(make_image(two_files, 0x1000, 0)), -EBADMSG);
}

Test(unlinked, what_was_dropped_is_gone)
{
	struct usnap_image *img = open_image(make_image(two_files, 0, SECOND + 4 * PAGE));
	struct usnap_info info;

	cr_assert_eq(usnap_image_get_info(img, &info, sizeof(info)), 0);
	cr_assert_eq(info.nr_pages, 3);
	usnap_image_free(img);
	cr_assert_eq(verify(make_image(two_files, 0, SECOND + 4 * PAGE)), 0);
}

static int load(const char *contents)
{
	char process[512];

	snprintf(process, sizeof(process),
		 "{\"pid\":1,\"maps\":[],\"threads\":[],\"unlinked\":[%s]}", contents);
	struct usnap_image *img = open_image(make_image(process, 0, 0));
	int r = img_load_contents(img);

	usnap_image_free(img);
	return r;
}

Test(unlinked, impossible_contents_are_refused)
{
#define CONTENT(address, size) "{\"content\":{\"address\":\"" address "\",\"size\":" size "}}"
	cr_assert_eq(load(CONTENT("0xff00000000000000", "0")), 0);
	cr_assert_eq(load(CONTENT("0xfeff000000000000", "4096")), -EBADMSG);
	cr_assert_eq(load(CONTENT("0xff00000000000001", "4096")), -EBADMSG);
	cr_assert_eq(load(CONTENT("0xff00000000000000", "4095")), -EBADMSG);
	cr_assert_eq(load(CONTENT("0xff00000000000000", "-4096")), -EBADMSG);
	cr_assert_eq(load(CONTENT("0xfffefffffffff000", "4096")), 0);
	cr_assert_eq(load(CONTENT("0xfffefffffffff000", "8192")), -EBADMSG);
	cr_assert_eq(load(CONTENT("0xffff000000000000", "4096")), -EBADMSG);
	cr_assert_eq(load("{\"content\":7}"), -EBADMSG);
	cr_assert_eq(load(CONTENT("0xff00000000002000", "4096") "," CONTENT("0xff00000000000000",
									    "12288")),
		     -EBADMSG);
	cr_assert_eq(load(CONTENT("0xff00000000003000", "4096") "," CONTENT("0xff00000000000000",
									    "12288")),
		     0);
}

Test(unlinked, private_mappings_show_what_the_file_has)
{
	static const char process[] =
		"{\"pid\":1,\"threads\":[],\"maps\":["
		"{\"start\":\"0x10000\",\"end\":\"0x14000\",\"prot\":\"rw-\",\"shared\":false,"
		"\"kind\":\"shmem-private\",\"content\":\"file\",\"dev\":\"00:01\",\"inode\":7,"
		"\"offset\":4096}],"
		"\"unlinked\":[{\"map_dev\":\"00:01\",\"map_inode\":7,\"content\":"
		"{\"address\":\"0xff00000000000000\",\"size\":16384}},"
		"{\"content\":{\"address\":\"0xff00000000010000\",\"size\":8192}}]}";
	struct usnap_image *img = open_image(make_image(process, 0x10000, 0));
	unsigned char got[PAGE], want[PAGE] = {0};

	/* Written through the mapping; absent in the file; in the file; behind its end. */
	fixture_page(0x10000, want);
	cr_assert_eq(usnap_image_read(img, 0x10000, got, PAGE), 0);
	cr_assert_arr_eq(got, want, PAGE);
	fixture_page(FIRST + 2 * PAGE, want);
	cr_assert_eq(usnap_image_read(img, 0x11000, got, PAGE), 0, "%s", usnap_image_error(img));
	cr_assert_arr_eq(got, want, PAGE);
	memset(want, 0, PAGE);
	cr_assert_eq(usnap_image_read(img, 0x12000, got, PAGE), 0);
	cr_assert_arr_eq(got, want, PAGE);
	cr_assert_eq(usnap_image_read(img, 0x13000, got, PAGE), -ENODATA);
	usnap_image_free(img);
}
