/* An image that refers to others reads as a full one would, or says which is missing. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <sys/stat.h>

#include "chainfixture.h"
#include "common/le.h"
#include "common/util.h"
#include "export/diff.h"
#include "image/commit.h"
#include "image/merge.h"
#include "image/tarball.h"

static void enter_fresh_directory(void)
{
	char dir[] = "/tmp/uffd-snap-unit.XXXXXX";

	cr_assert_not_null(mkdtemp(dir));
	cr_assert_eq(chdir(dir), 0);
}

static void leave_directory(void)
{
	char dir[256];

	cr_assert_not_null(getcwd(dir, sizeof(dir)));
	if (system("rm -rf -- \"$PWD\"") != 0)
		cr_log_warn("%s stays", dir);
}

TestSuite(chain, .init = enter_fresh_directory, .fini = leave_directory, .timeout = 60);

/* g1.usnap ... gN.usnap, each the child of the one before. */
static void make_chain(unsigned n)
{
	for (unsigned g = 1; g <= n; g++) {
		struct usnap_err err = {0};
		char path[32], parent[32];

		snprintf(path, sizeof(path), "g%u.usnap", g);
		snprintf(parent, sizeof(parent), "g%u.usnap", g - 1);
		cr_assert_eq(chain_write(path, g, g > 1 ? parent : NULL, NULL, &err), 0, "%s",
			     err.text);
	}
}

static int read_page(struct usnap_image *img, unsigned page, unsigned char *got)
{
	return usnap_image_read(img, HEAP + (uint64_t)page * PAGE, got, PAGE);
}

static struct usnap_image *open_image(const char *path)
{
	struct usnap_image *img = usnap_image_new();

	cr_assert_eq(usnap_image_open(img, path), 0, "%s", usnap_image_error(img));
	return img;
}

static void expect_generation(const char *path, unsigned generation)
{
	struct usnap_image *img = open_image(path);
	unsigned char want[PAGE], got[PAGE];

	for (unsigned i = 0; i < CHAIN_PAGES; i++) {
		chain_page(generation, i, want);
		cr_assert_eq(read_page(img, i, got), 0, "%s", usnap_image_error(img));
		cr_assert_arr_eq(got, want, PAGE, "page %u of generation %u", i, generation);
	}
	usnap_image_free(img);
}

static int verify(const char *path, unsigned no_chain)
{
	struct usnap_verify_options o = {.size = sizeof(o), .nr_threads = 2, .no_chain = no_chain};
	struct usnap_image *img = open_image(path);
	int r = usnap_image_verify(img, &o);

	usnap_image_free(img);
	return r;
}

Test(chain, every_generation_reads_as_it_was)
{
	char path[32];

	make_chain(9);
	for (unsigned g = 1; g <= 9; g++) {
		snprintf(path, sizeof(path), "g%u.usnap", g);
		expect_generation(path, g);
		cr_assert_eq(verify(path, 0), 0);
		cr_assert_eq(verify(path, 1), 0);
	}
}

Test(chain, stores_what_changed_and_refers_to_the_rest)
{
	struct image_writer_stats s;
	struct usnap_err err = {0};
	unsigned char page[PAGE];
	unsigned stored = 0;

	make_chain(3);
	for (unsigned i = 0; i < CHAIN_PAGES; i++)
		stored += chain_page(4, i, page);
	cr_assert_eq(chain_write("g4.usnap", 4, "g3.usnap", &s, &err), 0, "%s", err.text);
	/* Pages 0, 1 and 3 change, and page 23 was zero in generation 3. */
	cr_assert_eq(s.nr_pages_stored, 4);
	cr_assert_eq(s.nr_pages_referred, stored - 4);
	cr_assert_eq(s.raw_bytes, 4 * PAGE);
}

Test(chain, a_zero_page_is_not_the_parents)
{
	unsigned char got[PAGE], zero[PAGE] = {0};
	struct usnap_image *img;

	make_chain(2);
	img = open_image("g2.usnap");
	cr_assert_eq(usnap_image_page_hash(img, HEAP + 22 * PAGE, got), 0, "stored though zero");
	cr_assert_eq(read_page(img, 22, got), 0);
	cr_assert_arr_eq(got, zero, PAGE);
	usnap_image_free(img);
}

Test(chain, an_index_is_one_level_deep)
{
	struct usnap_image *img;
	struct usnap_ancestor a;
	char id[33];
	size_t n;

	make_chain(4);
	cr_assert_eq(rename("g1.usnap", "other name.usnap"), 0);
	img = open_image("g4.usnap");
	cr_assert_eq(usnap_image_get_nr_ancestors(img, &n), 0);
	cr_assert_eq(n, 3);
	for (unsigned i = 0; i < 3; i++) {
		bool known = false;

		cr_assert_eq(usnap_image_get_ancestor(img, i, &a, sizeof(a)), 0);
		for (unsigned g = 1; g < 4; g++) {
			chain_id(g, id);
			known |= !strcmp(a.id, id);
		}
		cr_assert(known);
		cr_assert_not_null(a.path);
		cr_assert_gt(a.nr_pages, 0);
	}
	usnap_image_free(img);
	/* What nothing refers to any more is not needed. */
	expect_generation("g4.usnap", 4);
}

Test(chain, an_attempt_that_was_given_up_leaves_no_reference)
{
	struct image_writer_options o = {.page_size = PAGE, .level = 1, .frame_pages = FRAME_PAGES};
	struct usnap_image *parent;
	struct usnap_err err = {0};
	struct usnap_info info;
	struct image_writer *w;

	make_chain(1);
	parent = open_image("g1.usnap");
	usnap_image_get_info(parent, &info, sizeof(info));
	o.fd = open("g2.usnap", O_CREAT | O_RDWR, 0600);
	cr_assert_eq(image_writer_open(&w, &o, &err), 0);
	cr_assert_eq(image_writer_set_parent(w, parent, &err), 0);
	cr_assert_eq(image_writer_begin(w, &err), 0);
	cr_assert_eq(chain_encode(w, 1), 0);
	cr_assert_eq(image_writer_begin(w, &err), 0);
	cr_assert_eq(chain_members(w, 2, info.id, NULL, &err), 0);
	cr_assert_eq(chain_encode(w, 2), 0);
	cr_assert_eq(image_writer_flush(w, &err), 0);
	image_writer_drop(w, HEAP + 24 * PAGE, 8 * PAGE);
	cr_assert_eq(image_writer_commit(w, "{}", 2, &err), 0, "%s", err.text);
	image_writer_close(w);
	usnap_image_free(parent);

	unsigned char want[PAGE], got[PAGE];
	struct usnap_image *img = open_image("g2.usnap");

	for (unsigned i = 0; i < CHAIN_PAGES; i++) {
		chain_page(2, i, want);
		if (i >= 24 && i < 32)
			memset(want, 0, PAGE);
		cr_assert_eq(read_page(img, i, got), 0, "%s", usnap_image_error(img));
		cr_assert_arr_eq(got, want, PAGE, "page %u", i);
	}
	usnap_image_free(img);
}

Test(chain, pages_kept_though_zero_are_referred_to)
{
	static const unsigned char zeros[PAGE];
	const struct image_run run = {.addr = FILE_MAP, .nr_pages = 1, .keep_zero = true};
	struct image_writer_options o = {.page_size = PAGE, .level = 1, .frame_pages = FRAME_PAGES};
	struct usnap_err err = {0};

	for (unsigned g = 1; g <= 2; g++) {
		struct usnap_image *parent = g == 2 ? open_image("g1.usnap") : NULL;
		struct usnap_info info = {0};
		struct image_writer_stats s;
		struct image_encoder *e;
		struct image_writer *w;

		o.fd = open(g == 1 ? "g1.usnap" : "g2.usnap", O_CREAT | O_RDWR, 0600);
		cr_assert_eq(image_writer_open(&w, &o, &err), 0);
		if (parent) {
			cr_assert_eq(image_writer_set_parent(w, parent, &err), 0);
			usnap_image_get_info(parent, &info, sizeof(info));
		}
		cr_assert_eq(image_writer_begin(w, &err), 0);
		cr_assert_eq(chain_members(w, g, info.id, NULL, &err), 0);
		cr_assert_eq(image_encoder_new(&e, w), 0);
		cr_assert_eq(image_encode(e, &run, 1, zeros), 0);
		image_encoder_free(e);
		cr_assert_eq(image_writer_commit(w, "{}", 2, &err), 0, "%s", err.text);
		image_writer_get_stats(w, &s);
		cr_assert_eq(s.nr_pages_referred, g - 1);
		image_writer_close(w);
		usnap_image_free(parent);
	}

	unsigned char got[PAGE];
	struct usnap_image *img = open_image("g2.usnap");

	memset(got, 1, PAGE);
	cr_assert_eq(usnap_image_read(img, FILE_MAP, got, PAGE), 0, "%s", usnap_image_error(img));
	cr_assert_arr_eq(got, zeros, PAGE);
	usnap_image_free(img);
}

/* What is readable of g3.usnap is right; what is not is refused with this error. */
static void expect_partly(int code, const char *in_text)
{
	struct usnap_image *img = open_image("g3.usnap");
	unsigned char want[PAGE], got[PAGE];
	unsigned refused = 0, read = 0;

	for (unsigned i = 0; i < CHAIN_PAGES; i++) {
		int r = read_page(img, i, got);

		chain_page(3, i, want);
		if (r < 0) {
			cr_assert_eq(r, code, "%s", usnap_image_error(img));
			cr_assert_not_null(strstr(usnap_image_error(img), in_text), "%s",
					   usnap_image_error(img));
			refused++;
		} else {
			cr_assert_arr_eq(got, want, PAGE);
			read++;
		}
	}
	cr_assert_gt(refused, 0);
	cr_assert_gt(read, 0, "what needs no ancestor works");
	usnap_image_free(img);
	cr_assert_eq(verify("g3.usnap", 0), -EBADMSG);
	cr_assert_eq(verify("g3.usnap", 1), 0);
}

Test(chain, names_a_missing_ancestor)
{
	char id[33];

	make_chain(3);
	chain_id(1, id);
	cr_assert_eq(unlink("g1.usnap"), 0);
	expect_partly(-ESTALE, id);
}

Test(chain, names_a_truncated_ancestor)
{
	struct stat st;

	make_chain(3);
	cr_assert_eq(stat("g1.usnap", &st), 0);
	cr_assert_eq(truncate("g1.usnap", st.st_size - 512), 0);
	expect_partly(-ESTALE, "g1.usnap");
}

Test(chain, names_a_foreign_image_under_the_ancestors_name)
{
	char id[33], name[64];

	make_chain(3);
	chain_id(1, id);
	snprintf(name, sizeof(name), "x-%s.usnap", id);
	cr_assert_eq(unlink("g1.usnap"), 0);
	cr_assert_eq(link("g2.usnap", name), 0);
	expect_partly(-ESTALE, name);
}

/* Of two files with its name the sound one is taken, and a third's damage is not to blame. */
Test(chain, blames_no_other_image)
{
	char id[33], name[3][64];
	struct usnap_image *img;
	unsigned char got[PAGE];

	make_chain(3);
	chain_id(1, id);
	snprintf(name[0], sizeof(name[0]), "a-%s.usnap", id);
	snprintf(name[1], sizeof(name[1]), "b-%s.usnap", id);
	snprintf(name[2], sizeof(name[2]), "c-%032x.usnap", 0xdead);
	for (unsigned i = 0; i < 3; i += 2)
		close(open(name[i], O_CREAT | O_WRONLY, 0600));
	cr_assert_eq(rename("g1.usnap", name[1]), 0);
	expect_generation("g3.usnap", 3);
	unlink(name[0]);
	unlink(name[1]);
	img = open_image("g3.usnap");
	cr_assert_eq(read_page(img, 40, got), -ESTALE);
	cr_assert_not_null(strstr(usnap_image_error(img), id));
	cr_assert_null(strstr(usnap_image_error(img), "dead"), "%s", usnap_image_error(img));
	usnap_image_free(img);
}

Test(chain, finds_ancestors_whose_names_were_swapped)
{
	make_chain(3);
	cr_assert_eq(rename("g1.usnap", "x"), 0);
	cr_assert_eq(rename("g2.usnap", "g1.usnap"), 0);
	cr_assert_eq(rename("x", "g2.usnap"), 0);
	expect_generation("g3.usnap", 3);
}

Test(chain, finds_ancestors_where_it_is_told)
{
	struct usnap_image *img;
	unsigned char want[PAGE], got[PAGE];

	make_chain(3);
	cr_assert_eq(mkdir("a", 0700), 0);
	cr_assert_eq(mkdir("b", 0700), 0);
	cr_assert_eq(rename("g1.usnap", "a/g1"), 0);
	cr_assert_eq(rename("g2.usnap", "b/g2.usnap"), 0);
	img = open_image("g3.usnap");
	cr_assert_eq(usnap_image_add_ancestors(img, "a/none"), -ENOENT);
	cr_assert_eq(usnap_image_add_ancestors(img, "a/g1"), 0);
	cr_assert_eq(usnap_image_add_ancestors(img, "b"), 0);
	for (unsigned i = 0; i < CHAIN_PAGES; i++) {
		chain_page(3, i, want);
		cr_assert_eq(read_page(img, i, got), 0, "%s", usnap_image_error(img));
		cr_assert_arr_eq(got, want, PAGE);
	}
	usnap_image_free(img);
}

Test(chain, every_damaged_byte_of_an_ancestor_is_found_or_makes_no_difference, .timeout = 120)
{
	unsigned char want[PAGE], got[PAGE];
	struct stat st;
	int fd;

	make_chain(3);
	fd = open("g1.usnap", O_RDWR);
	cr_assert_eq(fstat(fd, &st), 0);
	for (off_t at = 0; at < st.st_size; at += 7) {
		struct usnap_image *img = open_image("g3.usnap");
		unsigned char byte, flipped;

		cr_assert_eq(pread(fd, &byte, 1, at), 1);
		flipped = byte ^ (unsigned char)(1u << (at % 8));
		cr_assert_eq(pwrite(fd, &flipped, 1, at), 1);
		for (unsigned i = 0; i < CHAIN_PAGES; i++) {
			int r = read_page(img, i, got);

			chain_page(3, i, want);
			if (r == 0)
				cr_assert_arr_eq(got, want, PAGE);
			else
				cr_assert(strstr(usnap_image_error(img), "g1.usnap") ||
						  r == -ESTALE,
					  "%s", usnap_image_error(img));
		}
		usnap_image_free(img);
		cr_assert_eq(pwrite(fd, &byte, 1, at), 1);
	}
	close(fd);
}

Test(chain, a_long_one_needs_few_descriptors)
{
	struct usnap_image *img;
	unsigned char want[PAGE], got[PAGE];

	make_chain(60);
	img = open_image("g60.usnap");
	for (unsigned round = 0; round < 3; round++) {
		for (unsigned i = 0; i < CHAIN_PAGES; i++) {
			chain_page(60, i, want);
			cr_assert_eq(read_page(img, i, got), 0, "%s", usnap_image_error(img));
			cr_assert_arr_eq(got, want, PAGE);
		}
	}
	cr_assert_leq(img->nr_open, IMG_OPEN_ANCESTORS);
	usnap_image_free(img);
	cr_assert_eq(verify("g60.usnap", 0), 0);
}

Test(chain, refuses_a_parent_that_it_cannot_continue)
{
	const uint64_t seed = 1;
	struct image_writer_options o = {.page_size = 8192, .level = 1, .frame_pages = FRAME_PAGES};
	struct usnap_image *parent;
	struct usnap_err err = {0};
	struct image_writer *w;

	make_chain(1);
	parent = open_image("g1.usnap");
	o.fd = open("x", O_CREAT | O_RDWR, 0600);
	cr_assert_eq(image_writer_open(&w, &o, &err), 0);
	cr_assert_eq(image_writer_set_parent(w, parent, &err), -ESTALE, "another page size");
	image_writer_close(w);
	o.page_size = PAGE;
	o.seed = &seed;
	err = (struct usnap_err){0};
	cr_assert_eq(image_writer_open(&w, &o, &err), 0);
	cr_assert_eq(image_writer_set_parent(w, parent, &err), -ESTALE, "another secret");
	image_writer_close(w);
	usnap_image_free(parent);
}

struct reader {
	struct usnap_image *img;
	uint64_t failed;
};

static void *read_frames(void *arg)
{
	struct reader *rd = arg;
	unsigned char *buf = malloc(ZSTD_COMPRESSBOUND(FORMAT_MAX_FRAME_RAW));

	for (unsigned round = 0; round < 200; round++) {
		for (uint64_t i = 0; i < rd->img->nr_frames; i++) {
			struct usnap_err err = {0};
			struct img_frame f;

			img_get_frame(rd->img, i, &f);
			rd->failed += img_pread_frame(rd->img, &f, buf, &err) < 0;
		}
	}
	free(buf);
	return NULL;
}

Test(chain, any_thread_reads_frames)
{
	struct reader rd[4];
	pthread_t t[4];

	make_chain(40);
	struct usnap_image *img = open_image("g40.usnap");

	cr_assert_eq(img_load_index(img), 0);
	for (unsigned i = 0; i < 4; i++) {
		rd[i] = (struct reader){.img = img};
		pthread_create(&t[i], NULL, read_frames, &rd[i]);
	}
	for (unsigned i = 0; i < 4; i++) {
		pthread_join(t[i], NULL);
		cr_assert_eq(rd[i].failed, 0);
	}
	usnap_image_free(img);
}

/* An image like the sound one in img, but with this page index. */
static void write_with_index(const char *path, const struct usnap_image *img,
			     const unsigned char *index, size_t len)
{
	cleanup_free char *packed = malloc(ZSTD_compressBound(len));
	size_t n = ZSTD_compress(packed, ZSTD_compressBound(len), index, len, 1);
	struct pageindex pi = {.page_size = PAGE,
			       .nr_pages = img->nr_pages,
			       .refs = {.nr_frames = img->nr_frames}};
	struct usnap_err err = {0};
	struct tarball t = {0};
	int fd = open(path, O_CREAT | O_TRUNC | O_RDWR, 0600);

	cr_assert_eq(tarball_open(&t, fd, 0), 0);
	cr_assert_eq(tarball_begin(&t, &err), 0);
	for (size_t i = 0; i < img->nr_members; i++) {
		const char *data;
		size_t data_len;

		if (usnap_image_get_member((struct usnap_image *)(uintptr_t)img,
					   img->members[i].name, &data, &data_len) == 0)
			cr_assert_eq(tarball_member(&t, img->members[i].name, data, data_len, &err),
				     0);
	}
	cr_assert_eq(tarball_member(&t, "index.zst", packed, n, &err), 0);
	cr_assert_eq(commit_write(&t, &pi, img->id, &err), 0, "%s", err.text);
	tarball_close(&t);
	close(fd);
}

/* Opens, reads and verifies a hostile image; returns what reading a page says. */
static int try_hostile(const char *path, char *ret_text, size_t size)
{
	struct usnap_verify_options o = {.size = sizeof(o), .nr_threads = 2};
	struct usnap_image *img = open_image(path);
	unsigned char got[PAGE];
	int r = read_page(img, 9, got);

	snprintf(ret_text, size, "%s", usnap_image_error(img));
	cr_assert_eq(usnap_image_verify(img, &o), -EBADMSG);
	usnap_image_free(img);
	return r;
}

Test(chain, hostile_tables_are_refused)
{
	struct usnap_err err = {0};
	struct usnap_image *img;
	unsigned char *images, *frames, *copy;
	char text[600];

	cr_assert_eq(chain_write("parent.usnap", 1, NULL, NULL, &err), 0);
	struct usnap_image *parent = open_image("parent.usnap");
	struct image_writer_options o = {.page_size = PAGE, .level = 1, .frame_pages = FRAME_PAGES};
	struct image_writer *w;

	/* All of its pages are the parent's. */
	o.fd = open("child.usnap", O_CREAT | O_RDWR, 0600);
	cr_assert_eq(image_writer_open(&w, &o, &err), 0);
	cr_assert_eq(image_writer_set_parent(w, parent, &err), 0);
	cr_assert_eq(image_writer_begin(w, &err), 0);
	cr_assert_eq(chain_members(w, 2, parent->id, NULL, &err), 0);
	cr_assert_eq(chain_encode(w, 1), 0);
	cr_assert_eq(image_writer_commit(w, "{}", 2, &err), 0);
	image_writer_close(w);
	usnap_image_free(parent);

	img = open_image("child.usnap");
	cr_assert_eq(img_load_index(img), 0);
	cr_assert_eq(img->nr_images, 2);
	copy = malloc(img->index_len);
	images = copy + FORMAT_INDEX_HEADER;
	frames = images + 2 * FORMAT_INDEX_RECORD;

	memcpy(copy, img->index, img->index_len);
	write_with_index("bad.usnap", img, copy, img->index_len);
	expect_generation("bad.usnap", 1); /* nothing was changed yet */

	memcpy(images + FORMAT_INDEX_RECORD, images, 16);
	write_with_index("bad.usnap", img, copy, img->index_len);
	cr_assert_eq(try_hostile("bad.usnap", text, sizeof(text)), -EBADMSG);
	cr_assert_not_null(strstr(text, "its own ancestor"), "%s", text);

	memcpy(copy, img->index, img->index_len);
	le_put32(frames, 2);
	write_with_index("bad.usnap", img, copy, img->index_len);
	cr_assert_eq(try_hostile("bad.usnap", text, sizeof(text)), -EBADMSG);
	cr_assert_not_null(strstr(text, "is impossible"), "%s", text);

	memcpy(copy, img->index, img->index_len);
	images[FORMAT_INDEX_RECORD] ^= 1;
	write_with_index("bad.usnap", img, copy, img->index_len);
	cr_assert_eq(try_hostile("bad.usnap", text, sizeof(text)), -ESTALE, "a foreign id");

	/* Offsets anywhere in the ancestor: its end, its metadata, beyond all. */
	for (int i = 0; i < 4; i++) {
		static const uint64_t offsets[] = {0, 512, 1 << 20, UINT64_MAX - 4};

		memcpy(copy, img->index, img->index_len);
		for (uint64_t f = 0; f < img->nr_frames; f++)
			le_put64(frames + f * FORMAT_INDEX_RECORD + 16, offsets[i]);
		write_with_index("bad.usnap", img, copy, img->index_len);
		cr_assert_lt(try_hostile("bad.usnap", text, sizeof(text)), 0);
		cr_assert_not_null(strstr(text, "parent.usnap"), "%s", text);
	}
	/* Bytes of another frame of the ancestor are not the page's. */
	memcpy(copy, img->index, img->index_len);
	le_put64(frames + 16, le_get64(frames + FORMAT_INDEX_RECORD + 16));
	le_put32(frames + 4, le_get32(frames + FORMAT_INDEX_RECORD + 4));
	le_put32(frames + 8, le_get32(frames + FORMAT_INDEX_RECORD + 8));
	le_put64(frames + FORMAT_INDEX_RECORD + 16, le_get64(img->frames + 16));
	le_put32(frames + FORMAT_INDEX_RECORD + 4, le_get32(img->frames + 4));
	le_put32(frames + FORMAT_INDEX_RECORD + 8, le_get32(img->frames + 8));
	write_with_index("bad.usnap", img, copy, img->index_len);
	cr_assert_eq(try_hostile("bad.usnap", text, sizeof(text)), -EBADMSG);
	free(copy);
	usnap_image_free(img);
}

static int merge_into(const char *from, const char *to, struct usnap_err *err)
{
	struct merge_options o = {.level = 1,
				  .fd = open(to, O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0600)};
	struct usnap_image *img = open_image(from);
	int r = image_merge(img, &o, NULL, err);

	usnap_image_free(img);
	close(o.fd);
	return r;
}

Test(chain, a_merged_image_stands_alone)
{
	struct usnap_err err = {0};
	struct usnap_image *img;
	struct usnap_info info;
	char id[33];
	size_t n;

	make_chain(7);
	cr_assert_eq(merge_into("g7.usnap", "full.usnap", &err), 0, "%s", err.text);
	for (unsigned g = 1; g <= 6; g++) {
		char path[32];

		snprintf(path, sizeof(path), "g%u.usnap", g);
		cr_assert_eq(unlink(path), 0);
	}
	expect_generation("full.usnap", 7);
	cr_assert_eq(verify("full.usnap", 0), 0);
	img = open_image("full.usnap");
	cr_assert_eq(usnap_image_get_info(img, &info, sizeof(info)), 0);
	chain_id(7, id);
	cr_assert_str_neq(info.id, id);
	cr_assert_null(info.parent);
	cr_assert_str_eq(info.run, CHAIN_RUN);
	cr_assert_eq(usnap_image_get_nr_ancestors(img, &n), 0);
	cr_assert_eq(n, 0);
	usnap_image_free(img);
	/* The chain goes on from it. */
	cr_assert_eq(chain_write("g8.usnap", 8, "full.usnap", NULL, &err), 0, "%s", err.text);
	expect_generation("g8.usnap", 8);
}

Test(chain, merging_takes_no_damaged_byte, .timeout = 120)
{
	struct stat st;
	int fd;

	make_chain(3);
	fd = open("g1.usnap", O_RDWR);
	cr_assert_eq(fstat(fd, &st), 0);
	for (off_t at = 0; at < st.st_size; at += 41) {
		struct usnap_err err = {0};
		unsigned char byte, flipped;

		cr_assert_eq(pread(fd, &byte, 1, at), 1);
		flipped = byte ^ 1;
		cr_assert_eq(pwrite(fd, &flipped, 1, at), 1);
		if (merge_into("g3.usnap", "full.usnap", &err) == 0)
			expect_generation("full.usnap", 3);
		else
			cr_assert(strstr(err.text, "g1.usnap") || err.code == -ESTALE, "%s",
				  err.text);
		cr_assert_eq(pwrite(fd, &byte, 1, at), 1);
	}
	close(fd);
}

Test(chain, a_difference_is_what_changed)
{
	unsigned char p3[PAGE], p4[PAGE];
	struct usnap_image *a, *b;
	struct usnap_err err = {0};
	struct diff_run run;
	struct diff *d;
	uint64_t changed = 0;
	unsigned want = 0;

	make_chain(4);
	a = open_image("g3.usnap");
	b = open_image("g4.usnap");
	for (unsigned i = 0; i < CHAIN_PAGES; i++) {
		chain_page(3, i, p3);
		chain_page(4, i, p4);
		want += memcmp(p3, p4, PAGE) != 0;
	}
	cr_assert_eq(diff_new(&d, a, b, &err), 0);
	while (diff_next(d, &run, &err) == 1) {
		cr_assert_eq(run.kind, DIFF_CHANGED);
		for (uint64_t at = run.start; at < run.start + run.len; at += PAGE) {
			unsigned page = (unsigned)((at - HEAP) / PAGE);

			chain_page(3, page, p3);
			chain_page(4, page, p4);
			cr_assert(memcmp(p3, p4, PAGE) != 0, "page %u", page);
			changed++;
		}
	}
	cr_assert_eq(err.code, 0);
	cr_assert_eq(changed, want);
	diff_free(d);
	/* An image of another chain, whose hashes have another seed. */
	usnap_image_free(b);
	cr_assert_eq(chain_write("other.usnap", 3, NULL, NULL, &err), 0);
	b = open_image("other.usnap");
	cr_assert_eq(diff_new(&d, a, b, &err), 0);
	cr_assert_eq(diff_next(d, &run, &err), 0, "%s", err.text);
	diff_free(d);
	usnap_image_free(a);
	usnap_image_free(b);
}
