/* What prune decides where images refer to each other. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/prune_carry.h"
#include "image/merge.h"
#include "imagefixture.h"
#include "store/store.h"
#include "store/storelock.h"

#define HOUR_MS UINT64_C(3600000)
/* 2023-11-14T21:13:20: the third image is the first of a day. */
#define START_MS UINT64_C(1699996400000)
#define NAME "one"
#define ALL_SPARE UINT64_MAX

static char dir[4096];
static struct store *store;
static struct prune_plan plan;

static void enter(void)
{
	const char *tmp = getenv("TMPDIR");
	struct usnap_err err = {0};

	setenv("TZ", "UTC", 1);
	snprintf(dir, sizeof(dir), "%s/prune.XXXXXX", tmp ? tmp : "/tmp");
	cr_assert_not_null(mkdtemp(dir));
	cr_assert_eq(chdir(dir), 0);
	cr_assert_eq(store_open(&store, "store", true, &err), 0, "%s", err.text);
	cr_assert_eq(mkdir("store/" NAME, 0700), 0);
}

static void leave(void)
{
	char command[5000];

	prune_plan_free(&plan);
	store_close(store);
	snprintf(command, sizeof(command), "rm -rf '%s'", dir);
	cr_assert_eq(system(command), 0);
}

TestSuite(prune, .init = enter, .fini = leave, .timeout = 60);

static void path_of(unsigned nr, char path[128])
{
	char id[STORE_ID_LEN + 1], file[STORE_FILE_LEN + 1];

	snprintf(id, sizeof(id), "%032x", nr);
	cr_assert_eq(store_file_name(START_MS + nr * HOUR_MS, id, file), 0);
	snprintf(path, 128, "store/" NAME "/%s", file);
}

/* Whatever its id is by now. */
static void path_there(unsigned nr, char path[128])
{
	struct store_images images;
	struct usnap_err err = {0};

	cr_assert_eq(store_scan(store, NAME, &images, &err), 0);
	path[0] = '\0';
	for (size_t i = 0; i < images.nr; i++)
		if (images.image[i].t0_ms == START_MS + nr * HOUR_MS)
			snprintf(path, 128, "store/" NAME "/%s", images.image[i].file);
	store_images_free(&images);
}

static size_t nr_pages; /* of each image */
static bool random_pages; /* they do not compress; of one letter and place they are the same */

static void fill_page(unsigned char *page, size_t nr, char letter)
{
	unsigned seed = (unsigned)(nr << 8 | (unsigned char)letter);

	memset(page, letter, PAGE);
	for (size_t i = 0; random_pages && i < PAGE; i++)
		page[i] = (unsigned char)(rand_r(&seed) >> 7);
}

/* Image nr, one an hour. content: a letter per page; what the parent (0: none) has there as well is
 * referred to. */
static void put(unsigned nr, unsigned parent, const char *content)
{
	struct image_writer_options o = {.page_size = PAGE, .level = 1, .frame_pages = FRAME_PAGES};
	static unsigned char pages[64 * PAGE];
	char path[128], text[512];
	struct usnap_image *p = usnap_image_new();
	struct usnap_err err = {0};
	struct image_encoder *e;
	struct image_writer *w;

	nr_pages = strlen(content);
	path_of(nr, path);
	o.fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
	cr_assert_eq(image_writer_open(&w, &o, &err), 0, "%s", err.text);
	if (parent) {
		path_there(parent, path);
		cr_assert_eq(usnap_image_open(p, path), 0);
		cr_assert_eq(image_writer_set_parent(w, p, &err), 0, "%s", err.text);
	}
	cr_assert_eq(image_writer_begin(w, &err), 0);
	snprintf(text, sizeof(text),
		 "{\"format\":\"uffd-snap image\",\"version\":1,\"id\":\"%032x\",\"parent\":null,"
		 "\"t0\":{\"realtime_ns\":%llu},\"page_size\":4096,\"target\":{\"pid\":123}}",
		 nr, (unsigned long long)(START_MS + nr * HOUR_MS) * 1000000);
	cr_assert_eq(image_writer_member(w, "snapshot.json", text, strlen(text), &err), 0);
	cr_assert_eq(image_writer_member(w, "process.json", fixture_process,
					 sizeof(fixture_process) - 1, &err),
		     0);
	for (size_t i = 0; content[i]; i++)
		fill_page(pages + i * PAGE, i, content[i]);
	cr_assert_eq(image_encoder_new(&e, w), 0);
	for (size_t i = 0; i < nr_pages; i += FRAME_PAGES) {
		const struct image_run run = {
			.addr = HEAP + i * PAGE,
			.nr_pages =
				(uint32_t)(nr_pages - i < FRAME_PAGES ? nr_pages - i : FRAME_PAGES),
		};

		cr_assert_eq(image_encode(e, &run, 1, pages + i * PAGE), 0);
	}
	image_encoder_free(e);
	cr_assert_eq(image_writer_commit(w, "{}", 2, &err), 0, "%s", err.text);
	image_writer_close(w);
	usnap_image_free(p);
	close(o.fd);
}

/* The plan in letters: k kept by a rule, o for others, - to be removed; m: to be merged. spare:
 * images that may stay for others. */
static const char *planned(const struct retention *keep, uint64_t spare)
{
	const struct prune_rules rules = {.keep = *keep, .spare = spare};
	static char ret[32];
	struct usnap_err err = {0};

	prune_plan_free(&plan);
	cr_assert_eq(prune_plan_make(&plan, store, NAME, &rules, &err), 0, "%s", err.text);
	cr_assert_lt(plan.images.nr, sizeof(ret));
	for (size_t i = 0; i < plan.images.nr; i++)
		ret[i] = plan.remove[i] ? '-' : plan.must[i] ? 'm' : plan.why[i] ? 'k' : 'o';
	ret[plan.images.nr] = '\0';
	return ret;
}

/* Does it, as planned before. Returns how many were merged. */
static size_t done(const struct retention *keep, uint64_t spare)
{
	const struct prune_rules rules = {.keep = *keep, .spare = spare};
	struct prune_carry c = {.store = store, .name = NAME};
	struct usnap_err err = {0};

	planned(keep, spare);
	cr_assert_eq(store_lock(&c.lock, store, NAME, STORE_REMOVE, NULL, &err), 0);
	cr_assert_eq(prune_carry_out(&c, &plan, &rules, &err), 0, "%s", err.text);
	store_unlock(c.lock);
	return c.merged;
}

/* What is there: "1ab 3Ab", numbers and contents. */
static const char *there(void)
{
	static char ret[1024];
	struct store_images images;
	struct usnap_err err = {0};
	size_t len = 0;

	ret[0] = '\0';
	cr_assert_eq(store_scan(store, NAME, &images, &err), 0);
	for (size_t i = 0; i < images.nr; i++) {
		struct usnap_image *img = usnap_image_new();
		unsigned char page[PAGE];
		char path[128];

		snprintf(path, sizeof(path), "store/" NAME "/%s", images.image[i].file);
		cr_assert_eq(usnap_image_open(img, path), 0, "%s", usnap_image_error(img));
		len += (size_t)sprintf(ret + len, "%s%u", i ? " " : "",
				       (unsigned)((images.image[i].t0_ms - START_MS) / HOUR_MS));
		for (size_t k = 0; k < nr_pages; k++) {
			cr_assert_eq(usnap_image_read(img, HEAP + k * PAGE, page, PAGE), 0, "%s",
				     usnap_image_error(img));
			cr_assert_eq(memcmp(page, page + 1, PAGE - 1), 0);
			ret[len++] = (char)page[0];
		}
		ret[len] = '\0';
		usnap_image_free(img);
	}
	store_images_free(&images);
	return ret;
}

Test(prune, merges_what_needs_an_image_that_goes)
{
	put(1, 0, "ab");
	put(2, 1, "Ab");
	put(3, 0, "xy");
	cr_assert_str_eq(planned(&(struct retention){.last = 2}, 0), "omk");
	cr_assert_str_eq(planned(&(struct retention){.last = 2}, 1), "okk");
	cr_assert_str_eq(planned(&(struct retention){.last = 1}, 0), "--k");
	cr_assert_eq(done(&(struct retention){.last = 2}, 0), 1);
	cr_assert_str_eq(there(), "2Ab 3xy");
}

/* Not the first one only: what needs a merged image needs another one then. */
Test(prune, leaves_of_a_chain_what_the_rules_keep)
{
	const struct retention rules = {.last = 2};

	put(1, 0, "abcd");
	put(2, 1, "Abcd");
	put(3, 2, "ABcd");
	put(4, 3, "ABCd");
	put(5, 4, "ABCD");
	cr_assert_str_eq(planned(&rules, ALL_SPARE), "oookk");
	cr_assert_str_eq(planned(&rules, 3), "oookk");
	cr_assert_str_eq(planned(&rules, 2), "ooomm");
	for (size_t i = 0; i < 5; i++)
		cr_assert_eq(plan.stays[i], i >= 3);
	cr_assert_eq(done(&rules, 2), 2);
	cr_assert_str_eq(there(), "4ABCd 5ABCD");
	/* The second goes on to refer to the first. */
	cr_assert_str_eq(planned(&rules, 0), "kk");
	cr_assert_eq(plan.links[0].nr_needs, 0);
	cr_assert_eq(plan.links[1].nr_needs, 1);
	cr_assert_eq(plan.links[1].parent, 0);
	cr_assert_eq(done(&rules, 0), 0);
}

Test(prune, merges_only_after_what_goes)
{
	const struct retention rules = {.daily = 2};

	put(1, 0, "abcd");
	put(2, 1, "Abcd");
	put(3, 2, "ABcd");
	put(4, 3, "!Bcd");
	cr_assert_str_eq(planned(&rules, 0), "omom");
	cr_assert_eq(done(&rules, 0), 2);
	cr_assert_str_eq(there(), "2Abcd 4!Bcd");
}

/* The images of two chains do not come to refer to each other. */
Test(prune, keeps_chains_apart)
{
	const struct retention rules = {.last = 4};

	put(1, 0, "abcd");
	put(2, 1, "Abcd");
	put(3, 2, "ABcd");
	put(4, 0, "ABcd");
	put(5, 4, "ABxd");
	cr_assert_str_eq(planned(&rules, 0), "ommkk");
	cr_assert_eq(done(&rules, 0), 2);
	cr_assert_str_eq(there(), "2Abcd 3ABcd 4ABcd 5ABxd");
	cr_assert_str_eq(planned(&rules, 0), "kkkk");
	cr_assert_eq(plan.links[0].nr_needs + plan.links[2].nr_needs, 0);
	cr_assert_eq(plan.links[1].needs[0], 0);
	cr_assert_eq(plan.links[3].needs[0], 2);
}

/* Whatever is taken and pruned, what stays is what was planned, and holds what it held. */
Test(prune, loses_nothing_at_random)
{
	char content[64][5], want[1024];
	unsigned last = 0;

	srand(7);
	for (unsigned nr = 1; nr < 64; nr++) {
		struct retention rules = {.last = 1 + (uint64_t)rand() % 6,
					  .daily = (uint64_t)rand() % 3};
		uint64_t spare = rand() % 3 ? 0 : (uint64_t)rand() % 5;
		size_t len = 0, held = 0;

		memcpy(content[nr], nr > 1 ? content[nr - 1] : "abcd", 5);
		content[nr][rand() % 4] = (char)('a' + rand() % 26);
		put(nr, rand() % 8 ? last : 0, content[nr]);
		last = nr;
		if (rand() % 3)
			continue;
		planned(&rules, spare);
		want[0] = '\0';
		for (size_t i = 0; i < plan.images.nr; i++) {
			unsigned k = (unsigned)((plan.images.image[i].t0_ms - START_MS) / HOUR_MS);

			held += plan.stays[i] && !plan.why[i];
			if (plan.stays[i])
				len += (size_t)sprintf(want + len, "%s%u%s", len ? " " : "", k,
						       content[k]);
		}
		cr_assert(held <= spare);
		done(&rules, spare);
		cr_assert_str_eq(there(), want);
		/* The newest may be another image now. */
		last = nr;
	}
}

/* With less than the least of a full image there is one too many always. */
Test(prune, merges_to_meet_a_size)
{
	struct retention rules = {.last = 9};

	put(1, 0, "abcd");
	put(2, 1, "Abcd");
	put(3, 2, "ABcd");
	put(4, 3, "ABCd");
	planned(&rules, ALL_SPARE);
	rules.max_bytes = plan.bytes_after - 1;
	done(&rules, ALL_SPARE);
	cr_assert(plan.bytes_after <= rules.max_bytes);
	cr_assert(plan.keep[plan.images.nr - 1]);
	cr_assert_eq(plan.held, 0);
	cr_assert_not_null(strstr(there(), "4ABCd"));
	rules.max_bytes = 1;
	done(&rules, ALL_SPARE);
	cr_assert_str_eq(there(), "4ABCd");
	cr_assert(plan.bytes_after > rules.max_bytes);
}

static void fill(char *content, size_t nr)
{
	memset(content, 0, 65);
	for (size_t i = 0; i < nr; i++)
		content[i] = (char)('a' + i % 26);
}

/* A full image of what has grown is the sum of what was taken of it; and the original of one that
 * was merged is there beside it meanwhile, and takes nothing of the size. */
Test(prune, gives_up_nothing_that_fits_when_all_is_merged)
{
	struct retention rules = {.last = 6};
	char content[65];
	uint64_t guess, fits;

	random_pages = true;
	for (unsigned i = 1; i <= 9; i++) {
		fill(content, 4 * i);
		put(i, i > 1 ? i - 1 : 0, content);
	}
	planned(&rules, 0);
	guess = plan.bytes_after;
	cr_assert_eq(system("cp -rp store saved"), 0);
	cr_assert_eq(done(&rules, 0), 6);
	planned(&rules, 0);
	fits = plan.bytes_after;
	cr_assert(guess > fits - fits / 20 && guess < fits + fits / 20, "%llu of %llu",
		  (unsigned long long)guess, (unsigned long long)fits);
	cr_assert_eq(system("rm -r store/" NAME "; cp -rp saved/" NAME " store"), 0);
	rules.max_bytes = fits + fits / 10;
	done(&rules, 0);
	planned(&rules, 0);
	cr_assert_eq(plan.images.nr, 6);
	random_pages = false;
}

Test(prune, keeps_all_before_what_cannot_be_read)
{
	char path[128];

	put(1, 0, "ab");
	put(2, 1, "Ab");
	put(3, 2, "AB");
	put(4, 0, "xy");
	path_of(3, path);
	cr_assert_eq(truncate(path, 1000), 0);
	cr_assert_str_eq(planned(&(struct retention){.last = 2}, 0), "okok");
	cr_assert_str_eq(planned(&(struct retention){.last = 2}, 0), "okok");
}

Test(prune, does_not_count_on_an_image_that_lacks_others)
{
	char path[128];

	put(1, 0, "ab");
	put(2, 0, "cd");
	put(3, 1, "aB");
	path_of(1, path);
	cr_assert_eq(unlink(path), 0);
	cr_assert_str_eq(planned(&(struct retention){.last = 1}, 0), "ko");
	cr_assert_str_eq(planned(&(struct retention){.max_bytes = 1}, 0), "ko");
}

/* What merging makes of image nr, beside it, as a run leaves it that is killed there. */
static void merge_beside(unsigned nr, unsigned parent)
{
	struct usnap_image *img = usnap_image_new(), *p = usnap_image_new();
	struct usnap_err err = {0};
	struct merge_options o = {.level = 1};
	char path[128], to[128], file[STORE_FILE_LEN + 1];
	struct usnap_info info;

	path_of(nr, path);
	cr_assert_eq(usnap_image_open(img, path), 0);
	if (parent) {
		path_there(parent, path);
		cr_assert_eq(usnap_image_open(p, path), 0);
		o.parent = p;
	}
	o.fd = open("merged", O_CREAT | O_RDWR | O_CLOEXEC, 0600);
	cr_assert_eq(image_merge(img, &o, NULL, &err), 0, "%s", err.text);
	usnap_image_free(img);
	img = usnap_image_new();
	cr_assert_eq(usnap_image_open_fd(img, o.fd, "merged"), 0);
	cr_assert_eq(usnap_image_get_info(img, &info, sizeof(info)), 0);
	cr_assert_eq(store_file_name(START_MS + nr * HOUR_MS, info.id, file), 0);
	snprintf(to, sizeof(to), "store/" NAME "/%s", file);
	cr_assert_eq(rename("merged", to), 0);
	close(o.fd);
	usnap_image_free(img);
	usnap_image_free(p);
}

Test(prune, counts_an_image_once_that_a_killed_run_had_merged)
{
	put(1, 0, "ab");
	put(2, 0, "cd");
	put(3, 2, "cD");
	merge_beside(3, 0);
	planned(&(struct retention){.last = 2}, 0);
	cr_assert_eq(plan.images.nr, 4);
	/* By id, which orders the two of one time. */
	for (size_t i = 2; i < 4; i++)
		cr_assert_eq(plan.keep[i], plan.links[i].times_merged == 1);
	cr_assert(plan.remove[0]);
	cr_assert(plan.keep[1]);
}

/* The merged ones are merged again, while the next snapshot keeps the originals there. */
Test(prune, loses_nothing_after_a_killed_run)
{
	const struct retention rules = {.last = 4};
	size_t full = 0;
	char originals[3][128];

	put(1, 0, "abcd");
	put(2, 1, "Abcd");
	put(3, 2, "ABcd");
	put(4, 3, "ABCd");
	put(5, 4, "ABCD");
	for (unsigned i = 0; i < 3; i++)
		path_of(2 + i, originals[i]);
	cr_assert_eq(mkdir("saved", 0700), 0);
	cr_assert_eq(system("cp -p store/" NAME "/* saved"), 0);
	done(&rules, 0);
	cr_assert_str_eq(there(), "2Abcd 3ABcd 4ABCd 5ABCD");
	/* The killed run had not come to the fifth. */
	path_there(5, originals[0]);
	cr_assert_eq(unlink(originals[0]), 0);
	cr_assert_eq(system("cp -p saved/* store/" NAME), 0);
	put(6, 5, "xBCD");
	planned(&rules, 0);
	cr_assert_eq(plan.images.nr, 9);
	for (size_t i = 0; i < plan.images.nr; i++)
		cr_assert(plan.why[i] == 0 || plan.images.image[i].t0_ms >= START_MS + 3 * HOUR_MS);
	done(&rules, 0);
	cr_assert_str_eq(there(), "3ABcd 4ABCd 5ABCD 6xBCD");
	cr_assert_str_eq(planned(&rules, 0), "kkkk");
	for (size_t i = 0; i < plan.images.nr; i++)
		full += !plan.links[i].nr_needs;
	cr_assert_eq(full, 1);
}

/* One version of an image can lack the one that it was made of. */
Test(prune, counts_the_versions_of_an_image_once)
{
	const struct retention rules = {.last = 2};
	char path[128];

	put(1, 0, "abcd");
	put(2, 1, "Abcd");
	put(3, 2, "ABcd");
	path_of(3, path);
	cr_assert_eq(mkdir("saved", 0700), 0);
	cr_assert_eq(system("cp -p store/" NAME "/* saved"), 0);
	done(&rules, 0);
	put(4, 3, "ABCd");
	done(&rules, 0);
	cr_assert_str_eq(there(), "3ABcd 4ABCd");
	cr_assert_eq(system("cp -p saved/* store/" NAME), 0);
	done(&rules, 0);
	cr_assert_str_eq(there(), "3ABcd 4ABCd");
	cr_assert_str_eq(planned(&rules, 0), "kk");
	cr_assert_eq(plan.links[0].times_merged, 2);
}

/* Nor can one take the place of another that it is no version of, or that lacks something itself. */
Test(prune, replaces_no_image_by_one_that_lacks_another)
{
	char path[128];

	put(1, 0, "ab");
	put(2, 1, "Ab");
	put(3, 2, "AB");
	merge_beside(2, 0);
	merge_beside(3, 2);
	planned(&(struct retention){.last = 3}, 0);
	cr_assert_eq(plan.images.nr, 5);
	cr_assert_eq(plan.links[1].replaced + plan.links[2].replaced, 1);
	cr_assert_eq(plan.links[3].replaced + plan.links[4].replaced, 1);
	for (size_t i = 1; i < 3; i++)
		if (!plan.links[i].replaced)
			snprintf(path, sizeof(path), "store/" NAME "/%s",
				 plan.images.image[i].file);
	cr_assert_eq(truncate(path, 1000), 0);
	planned(&(struct retention){.last = 3}, 0);
	for (size_t i = 3; i < 5; i++) {
		cr_assert_eq(plan.links[i].replaced, plan.links[i].times_merged > 0);
		cr_assert_eq(plan.why[i] != 0, plan.links[i].times_merged == 0);
	}
}

/* It would be merged into one of another name, for ever. */
Test(prune, merges_nothing_under_a_wrong_name)
{
	char from[128], to[128], file[STORE_FILE_LEN + 1], id[STORE_ID_LEN + 1];

	put(1, 0, "ab");
	put(2, 1, "Ab");
	put(4, 0, "xy");
	path_of(2, from);
	snprintf(id, sizeof(id), "%032x", 2);
	cr_assert_eq(store_file_name(START_MS + 3 * HOUR_MS, id, file), 0);
	snprintf(to, sizeof(to), "store/" NAME "/%s", file);
	cr_assert_eq(rename(from, to), 0);
	cr_assert_str_eq(planned(&(struct retention){.last = 2}, 0), "kok");
	cr_assert(plan.links[1].damaged);
	cr_assert_eq(done(&(struct retention){.last = 1}, 0), 0);
	cr_assert_str_eq(planned(&(struct retention){.last = 1}, 0), "ook");
}

/* A chain of two images a day, of which the last is wanted. */
static void put_days(void)
{
	put(1, 0, "abcd");
	put(2, 1, "Abcd");
	put(3, 0, "efgh");
	put(26, 3, "Efgh");
	put(27, 0, "ijkl");
	put(50, 27, "Ijkl");
}

/* When the first of several chains is through there are fewer than may be there. */
Test(prune, merges_all_when_it_has_begun)
{
	const struct retention rules = {.daily = 3};

	put_days();
	cr_assert_str_eq(planned(&rules, 3), "okokok");
	cr_assert_str_eq(planned(&rules, 2), "omomom");
	cr_assert_eq(done(&rules, 2), 3);
	cr_assert_str_eq(there(), "2Abcd 26Efgh 50Ijkl");
}

/* What is in a frame shows only when that is read. */
static void damage_a_frame(unsigned nr)
{
	static char buf[1 << 16];
	char path[128], *at;
	ssize_t n;
	int fd;

	path_of(nr, path);
	fd = open(path, O_RDWR | O_CLOEXEC);
	n = pread(fd, buf, sizeof(buf), 0);
	cr_assert(n > 0);
	cr_assert_not_null(at = memmem(buf, (size_t)n, "pages/000000.zst", 16));
	/* A tar header, and that of a frame. */
	at += 512 + 12;
	*at = (char)~*at;
	cr_assert_eq(pwrite(fd, at, 1, at - buf), 1);
	close(fd);
}

Test(prune, merges_the_others_when_one_is_damaged)
{
	const struct prune_rules rules = {.keep = {.daily = 3}};
	struct prune_carry c = {.store = store, .name = NAME};
	struct usnap_err err = {0};

	put_days();
	damage_a_frame(3);
	cr_assert_str_eq(planned(&rules.keep, 0), "omomom");
	cr_assert_eq(store_lock(&c.lock, store, NAME, STORE_REMOVE, NULL, &err), 0);
	cr_assert_eq(prune_carry_out(&c, &plan, &rules, &err), -EBADMSG);
	store_unlock(c.lock);
	cr_assert_eq(err.code, -EBADMSG);
	cr_assert(c.is_through);
	cr_assert_eq(c.merged, 2);
	cr_assert_str_eq(planned(&rules.keep, 0), "komk");
}

Test(prune, gives_up_as_few_as_the_size_takes)
{
	struct retention rules = {.last = 9};
	uint64_t bytes[9], before = 0;

	for (unsigned i = 1; i <= 9; i++)
		put(i, i > 1 && i % 3 != 1 ? i - 1 : 0, i % 2 ? "ab" : "aB");
	cr_assert_str_eq(planned(&rules, ALL_SPARE), "kkkkkkkkk");
	for (size_t i = 0; i < 9; i++)
		bytes[i] = plan.images.image[i].bytes;
	for (size_t stay = 1; stay <= 9; stay++) {
		uint64_t kept;

		rules.max_bytes = 0;
		for (size_t i = 9 - stay; i < 9; i++)
			rules.max_bytes += bytes[i];
		planned(&rules, ALL_SPARE);
		kept = plan.bytes_after;
		cr_assert(plan.keep[8]);
		cr_assert(kept >= before);
		/* The last needs one more, and a chain has three. */
		cr_assert(kept <= rules.max_bytes || stay < 2, "%zu", stay);
		cr_assert(kept + bytes[0] + bytes[1] + bytes[2] > rules.max_bytes, "%zu", stay);
		before = kept;
	}
	cr_assert_str_eq(planned(&rules, ALL_SPARE), "kkkkkkkkk");
}

Test(prune, gives_up_no_sound_image_for_a_damaged_one_that_is_too_large)
{
	struct retention rules = {.last = 9};
	uint64_t bytes[6];
	char path[128];

	random_pages = true;
	put(1, 0, "abcdefghijklmnop");
	for (unsigned i = 2; i <= 6; i++)
		put(i, 0, "z");
	planned(&rules, 0);
	for (size_t i = 0; i < 6; i++)
		bytes[i] = plan.images.image[i].bytes;
	path_of(1, path);
	cr_assert_eq(truncate(path, (off_t)bytes[0] - 512), 0);
	bytes[0] -= 512;
	/* Enough for it and two: the limit holds. */
	rules.max_bytes = bytes[0] + bytes[4] + bytes[5];
	cr_assert_str_eq(planned(&rules, 0), "o---kk");
	/* Not for it alone: the others have what they would have without it. */
	rules.max_bytes = bytes[3] + bytes[4] + bytes[5];
	cr_assert_lt(rules.max_bytes, bytes[0]);
	cr_assert_str_eq(planned(&rules, 0), "o--kkk");
	cr_assert_gt(plan.bytes_after, rules.max_bytes);
	rules.max_bytes = 1;
	cr_assert_str_eq(planned(&rules, 0), "o----k");
	random_pages = false;
}

static bool reads(unsigned nr, size_t pages)
{
	struct usnap_image *img = usnap_image_new();
	unsigned char page[PAGE];
	char path[128];

	path_there(nr, path);
	bool ok = *path && usnap_image_open(img, path) == 0;
	for (size_t k = 0; ok && k < pages; k++)
		ok = usnap_image_read(img, HEAP + k * PAGE, page, PAGE) == 0;
	usnap_image_free(img);
	return ok;
}

Test(prune, counts_no_image_that_needs_a_damaged_one)
{
	const struct retention rules = {.last = 1};
	char path[128];

	put(1, 0, "ab");
	put(2, 0, "cd");
	put(3, 1, "aB");
	path_of(1, path);
	cr_assert_eq(truncate(path, 1000), 0);
	cr_assert_str_eq(planned(&rules, 0), "oko");
	done(&rules, 0);
	cr_assert(reads(2, 2));
}

Test(prune, gives_up_no_page_for_one_that_is_damaged)
{
	const struct retention rules = {.daily = 2};

	put(2, 0, "abcdefghijklmnop");
	put(3, 2, "ABCDEFGHIJKLMNOp");
	/* What was there before is in a frame of its own again. */
	put(4, 3, "abcdefghIJKLMNOp");
	damage_a_frame(2);
	cr_assert(reads(4, 16));
	done(&rules, 0);
	cr_assert(reads(4, 16));
}
