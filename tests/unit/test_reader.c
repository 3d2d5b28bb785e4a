#include <criterion/criterion.h>
#include <errno.h>
#include <uffd-snap.h>

#include "imagefixture.h"

static struct usnap_image *open_image(int fd)
{
	struct usnap_image *img = usnap_image_new();

	cr_assert_eq(usnap_image_open_fd(img, fd, "test"), 0, "%s", usnap_image_error(img));
	return img;
}

static void expect_page(struct usnap_image *img, uint64_t addr, uint64_t key)
{
	unsigned char got[PAGE], want[PAGE] = {0};

	if (key)
		fixture_page(key, want);
	cr_assert_eq(usnap_image_read(img, addr, got, PAGE), 0, "%s", usnap_image_error(img));
	cr_assert_arr_eq(got, want, PAGE, "page 0x%llx", (unsigned long long)addr);
}

Test(reader, returns_what_was_written_and_zeros_elsewhere)
{
	struct usnap_image *img = open_image(fixture_image(20));

	for (unsigned i = 0; i < HEAP_PAGES; i++) {
		uint64_t addr = HEAP + (uint64_t)i * PAGE;

		expect_page(img, addr, i < 20 && i % 5 ? addr : 0);
	}
	usnap_image_free(img);
}

Test(reader, shows_shared_memory_at_each_address)
{
	struct usnap_image *img = open_image(fixture_image(20));

	for (uint64_t i = 0; i < SHARED_PAGES; i++) {
		expect_page(img, SHARED_A + i * PAGE, SHARED_A + i * PAGE);
		expect_page(img, SHARED_B + i * PAGE, SHARED_A + i * PAGE);
	}
	usnap_image_free(img);
}

Test(reader, reads_across_pages_and_at_any_alignment)
{
	unsigned char want[8 * PAGE] = {0}, got[8 * PAGE];
	struct usnap_image *img = open_image(fixture_image(20));

	for (unsigned i = 0; i < 8; i++)
		if (i % 5)
			fixture_page(HEAP + (uint64_t)i * PAGE, want + i * PAGE);
	for (size_t from = 0; from < 3 * PAGE; from += 1021) {
		size_t len = 5 * PAGE - from / 3;

		cr_assert_eq(usnap_image_read(img, HEAP + from, got, len), 0);
		cr_assert_arr_eq(got, want + from, len);
	}
	cr_assert_eq(usnap_image_read(img, 1, got, 0), 0, "nothing of nowhere is nothing");
	usnap_image_free(img);
}

Test(reader, names_the_address_that_was_not_mapped)
{
	static unsigned char buf[2 * PAGE];
	struct usnap_image *img = open_image(fixture_image(20));

	cr_assert_eq(usnap_image_read(img, 0x1000, buf, 1), -EFAULT);
	cr_assert_not_null(strstr(usnap_image_error(img), "0x1000"));
	cr_assert_eq(usnap_image_read(img, SHARED_A + SHARED_PAGES * PAGE - 8, buf, 16), -EFAULT);
	cr_assert_not_null(strstr(usnap_image_error(img), "0x20004000"));
	cr_assert_eq(usnap_image_read(img, UINT64_MAX - 4, buf, 16), -EFAULT);
	usnap_image_free(img);
}

Test(reader, does_not_invent_what_lies_in_files_and_devices)
{
	unsigned char buf[16];
	struct usnap_image *img = open_image(fixture_image(20));

	expect_page(img, FILE_MAP, FILE_MAP); /* written: stored */
	cr_assert_eq(usnap_image_read(img, FILE_MAP + PAGE, buf, 16), -ENODATA);
	cr_assert_not_null(strstr(usnap_image_error(img), "/bin/server"));
	cr_assert_not_null(strstr(usnap_image_error(img), "offset 12288"));
	cr_assert_eq(usnap_image_read(img, DEVICE_MAP, buf, 16), -ENODATA);
	usnap_image_free(img);
}

Test(reader, describes_image_regions_and_threads)
{
	struct usnap_image *img = open_image(fixture_image(20));
	struct usnap_info info;
	struct usnap_region g;
	struct usnap_thread t;
	const void *notes;
	const char *text;
	size_t n, len;

	cr_assert_eq(usnap_image_get_info(img, &info, sizeof(info)), 0);
	cr_assert_str_eq(info.id, FIXTURE_ID);
	cr_assert_null(info.parent);
	cr_assert_eq(info.t0_realtime_ns, 1700000000123456789ull);
	cr_assert_eq(info.pid, 123);
	cr_assert_eq(info.page_size, PAGE);
	cr_assert_eq(info.nr_pages, 16 + 2 * SHARED_PAGES + 1);
	cr_assert_eq(usnap_image_get_nr_regions(img, &n), 0);
	cr_assert_eq(n, 5);
	cr_assert_eq(usnap_image_get_region(img, 3, &g, sizeof(g)), 0);
	cr_assert_eq(g.start, FILE_MAP);
	cr_assert_eq(g.offset, 8192);
	cr_assert_eq(g.dev_major, 0xfe);
	cr_assert_eq(g.inode, 7);
	cr_assert_eq(g.prot, PROT_READ | PROT_EXEC);
	cr_assert_eq(g.content, USNAP_CONTENT_FILE);
	cr_assert_eq(usnap_image_get_region(img, 4, &g, sizeof(g)), 0);
	cr_assert_str_eq(g.path, "/dev/gp\xff", "not UTF-8, as in a file system");
	cr_assert_eq(usnap_image_find_region(img, HEAP + 5, &n), 1);
	cr_assert_eq(n, 0);
	cr_assert_eq(usnap_image_find_region(img, HEAP - 1, &n), 0);
	cr_assert_eq(usnap_image_find_region(img, DEVICE_MAP + PAGE, &n), -ENOENT);
	cr_assert_eq(usnap_image_get_nr_threads(img, &n), 0);
	cr_assert_eq(n, 2);
	cr_assert_eq(usnap_image_get_thread(img, 1, &t, sizeof(t)), 0);
	cr_assert_eq(t.tid, 124);
	cr_assert_str_eq(t.comm, "io");
	cr_assert_eq(usnap_image_get_notes(img, 1, &notes, &len), 0);
	cr_assert_eq(len, sizeof(fixture_notes) - 1);
	cr_assert_eq(usnap_image_get_member(img, "stats.json", &text, &len), 0);
	cr_assert_str_eq(text, "{\"pause_ns\":412000}");
	cr_assert_eq(usnap_image_get_member(img, "none", &text, &len), -ENOENT);
	usnap_image_free(img);
}

Test(reader, walks_the_runs_of_stored_pages)
{
	struct usnap_image *img = open_image(fixture_image(10));
	uint64_t start, len, at = 0;
	const struct {
		uint64_t start, pages;
	} want[] = {{HEAP + PAGE, 4},
		    {HEAP + 6 * PAGE, 4},
		    {SHARED_A, SHARED_PAGES},
		    {SHARED_B, SHARED_PAGES},
		    {FILE_MAP, 1}};

	for (size_t i = 0; i < 5; i++, at = start + len) {
		cr_assert_eq(usnap_image_next_run(img, at, &start, &len), 1);
		cr_assert_eq(start, want[i].start);
		cr_assert_eq(len, want[i].pages * PAGE);
	}
	cr_assert_eq(usnap_image_next_run(img, at, &start, &len), 0);
	cr_assert_eq(usnap_image_next_run(img, HEAP + PAGE + 5, &start, &len), 1);
	cr_assert_eq(start, HEAP + PAGE + 5);
	cr_assert_eq(len, 4 * PAGE - 5);
	usnap_image_free(img);
}

Test(reader, knows_hashes_without_reading_pages)
{
	struct usnap_image *img = open_image(fixture_image(10));
	unsigned char a[16], b[16];

	cr_assert_eq(usnap_image_page_hash(img, SHARED_A, a), 1);
	cr_assert_eq(usnap_image_page_hash(img, SHARED_B + 77, b), 1);
	cr_assert_arr_eq(a, b, 16);
	cr_assert_eq(usnap_image_page_hash(img, HEAP, a), 0);
	usnap_image_free(img);
}

Test(reader, serves_callers_older_and_newer_than_itself)
{
	struct {
		struct usnap_info info;
		char more[64];
	} newer;
	struct usnap_image *img = open_image(fixture_image(10));
	const char *id = NULL;

	memset(&newer, 0x55, sizeof(newer));
	cr_assert_eq(usnap_image_get_info(img, (struct usnap_info *)&newer, sizeof(newer)), 0);
	cr_assert_eq(newer.more[0], 0);
	cr_assert_eq(newer.more[63], 0);
	cr_assert_eq(usnap_image_get_info(img, (struct usnap_info *)&id, sizeof(id)), 0);
	cr_assert_str_eq(id, FIXTURE_ID);
	usnap_image_free(img);
}

Test(reader, refuses_pipes_directories_and_other_files)
{
	struct usnap_image *img;
	int p[2], r;
	const struct {
		const char *path;
		int code;
	} bad[] = {{"/nonexistent", -ENOENT},
		   {"/", -EISDIR},
		   {"/dev/null", -ESPIPE},
		   {"/proc/self/exe", -EINVAL}};

	cr_assert_eq(pipe(p), 0);
	img = usnap_image_new();
	cr_assert_eq(usnap_image_open_fd(img, p[0], NULL), -ESPIPE);
	cr_assert_neq(*usnap_image_hint(img), '\0');
	usnap_image_free(img);
	for (size_t i = 0; i < 4; i++) {
		img = usnap_image_new();
		r = usnap_image_open(img, bad[i].path);
		/* The program's size may be no multiple of a block: cut off, then. */
		cr_assert(r == bad[i].code, "%s: %d %s", bad[i].path, r, usnap_image_error(img));
		cr_assert_not_null(strstr(usnap_image_error(img), bad[i].path));
		usnap_image_free(img);
	}
}

Test(reader, answers_on_an_empty_handle)
{
	struct usnap_image *img = usnap_image_new();
	struct usnap_info info;
	char c;
	size_t n;

	cr_assert_eq(usnap_image_get_info(img, &info, sizeof(info)), -EINVAL);
	cr_assert_eq(usnap_image_read(img, 0, &c, 1), -EINVAL);
	cr_assert_eq(usnap_image_get_nr_regions(img, &n), -EINVAL);
	cr_assert_null(usnap_image_member_name(img, 0));
	usnap_image_free(img);
	usnap_image_free(NULL);
	cr_assert_neq(*usnap_image_error(NULL), '\0');
}

/* What has the reader do the same again and again, or keep much for little. */

Test(reader, refuses_a_thread_that_is_there_twice)
{
	int fd = fixture_image_of("{\"pid\":1,\"maps\":[],\"threads\":[{\"tid\":7},{\"tid\":8},"
				  "{\"tid\":7}]}");
	struct usnap_image *img = open_image(fd);
	size_t n;

	cr_assert_eq(usnap_image_get_nr_threads(img, &n), -EBADMSG);
	cr_assert(strstr(usnap_image_error(img), "thread 7"), "%s", usnap_image_error(img));
	usnap_image_free(img);
}

Test(reader, decodes_a_long_path_in_one_go, .timeout = 60)
{
	const size_t len = 8 << 20;
	char *hex = malloc(len + 1), *process;
	struct usnap_region region;
	struct usnap_image *img;

	memset(hex, '6', len);
	hex[len] = '\0';
	cr_assert_geq(asprintf(&process,
			       "{\"pid\":1,\"threads\":[],\"maps\":[" FIXTURE_MAP(
				       "0x10000000", "0x10040000", "rw-", "false", "anonymous",
				       "image", "\"path\":\"?\",\"path_hex\":\"%s\"") "]}",
			       hex),
		      0);
	img = open_image(fixture_image_of(process));
	cr_assert_eq(usnap_image_get_region(img, 0, &region, sizeof(region)), 0, "%s",
		     usnap_image_error(img));
	cr_assert_eq(strlen(region.path), len / 2);
	cr_assert_eq(region.path[0], 'f');
	usnap_image_free(img);
	free(process);
	free(hex);
}
