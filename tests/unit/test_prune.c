/* What prune decides where images refer to each other. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/prune_plan.h"
#include "image/merge.h"
#include "imagefixture.h"
#include "store/store.h"

#define HOUR_MS UINT64_C(3600000)
/* 2023-11-14T21:13:20: the third image is the first of a day. */
#define START_MS UINT64_C(1699996400000)
#define NAME "one"

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

/* Image nr, one an hour. content: a letter per page; what the parent (0: none) has there as well is
 * referred to. */
static void put(unsigned nr, unsigned parent, const char *content)
{
	struct image_writer_options o = {.page_size = PAGE, .level = 1, .frame_pages = FRAME_PAGES};
	unsigned char pages[4 * PAGE];
	char path[128], text[512];
	struct image_run run = {.addr = HEAP, .nr_pages = (uint32_t)strlen(content)};
	struct usnap_image *p = usnap_image_new();
	struct usnap_err err = {0};
	struct image_encoder *e;
	struct image_writer *w;

	path_of(nr, path);
	o.fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
	cr_assert_eq(image_writer_open(&w, &o, &err), 0, "%s", err.text);
	if (parent) {
		path_of(parent, path);
		cr_assert_eq(usnap_image_open(p, path), 0);
		cr_assert_eq(image_writer_set_parent(w, p, &err), 0, "%s", err.text);
	}
	cr_assert_eq(image_writer_begin(w, &err), 0);
	snprintf(text, sizeof(text),
		 "{\"format\":\"uffd-snap image\",\"version\":1,\"id\":\"%032x\",\"parent\":null,"
		 "\"t0\":{\"realtime_ns\":%u},\"page_size\":4096,\"target\":{\"pid\":123}}",
		 nr, nr);
	cr_assert_eq(image_writer_member(w, "snapshot.json", text, strlen(text), &err), 0);
	cr_assert_eq(image_writer_member(w, "process.json", fixture_process,
					 sizeof(fixture_process) - 1, &err),
		     0);
	for (size_t i = 0; content[i]; i++)
		memset(pages + i * PAGE, content[i], PAGE);
	cr_assert_eq(image_encoder_new(&e, w), 0);
	cr_assert_eq(image_encode(e, &run, 1, pages), 0);
	image_encoder_free(e);
	cr_assert_eq(image_writer_commit(w, "{}", 2, &err), 0, "%s", err.text);
	image_writer_close(w);
	usnap_image_free(p);
	close(o.fd);
}

/* The plan in letters: k kept by a rule, o for others, - to be removed; m: to be merged. */
static const char *planned(const struct retention *rules, bool strict)
{
	static char ret[32];
	struct usnap_err err = {0};

	prune_plan_free(&plan);
	cr_assert_eq(prune_plan_make(&plan, store, NAME, rules, strict, &err), 0, "%s", err.text);
	cr_assert_lt(plan.images.nr, sizeof(ret));
	for (size_t i = 0; i < plan.images.nr; i++)
		ret[i] = plan.remove[i]		 ? '-'
			 : (long)i == plan.merge ? 'm'
			 : plan.why[i]		 ? 'k'
						 : 'o';
	ret[plan.images.nr] = '\0';
	return ret;
}

Test(prune, merges_what_alone_needs_another)
{
	put(1, 0, "ab");
	put(2, 1, "Ab");
	put(3, 0, "xy");
	cr_assert_str_eq(planned(&(struct retention){.last = 2}, false), "omk");
	cr_assert_str_eq(planned(&(struct retention){.last = 1}, false), "--k");
}

/* The third is kept for the fourth, and needs the second: that may not become another image. */
Test(prune, merges_nothing_that_an_image_kept_for_others_needs)
{
	const struct retention rules = {.daily = 2};

	put(1, 0, "ab");
	put(2, 1, "Ab");
	put(3, 2, "AB");
	put(4, 3, "!B");
	cr_assert_str_eq(planned(&rules, false), "okok");
	cr_assert_str_eq(planned(&rules, true), "okom");
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
	cr_assert_str_eq(planned(&(struct retention){.last = 2}, false), "okok");
	cr_assert_str_eq(planned(&(struct retention){.last = 2}, true), "okok");
}

Test(prune, does_not_count_on_an_image_that_lacks_others)
{
	char path[128];

	put(1, 0, "ab");
	put(2, 0, "cd");
	put(3, 1, "aB");
	path_of(1, path);
	cr_assert_eq(unlink(path), 0);
	cr_assert_str_eq(planned(&(struct retention){.last = 1}, false), "ko");
	cr_assert_str_eq(planned(&(struct retention){.max_bytes = 1}, false), "ko");
}

Test(prune, counts_an_image_once_that_a_killed_run_had_merged)
{
	struct usnap_image *img = usnap_image_new();
	struct usnap_err err = {0};
	char path[128], to[128], file[STORE_FILE_LEN + 1];
	struct merge_options o = {.level = 1};
	struct usnap_info info;

	put(1, 0, "ab");
	put(2, 0, "cd");
	put(3, 2, "cD");
	path_of(3, path);
	o.fd = open("merged", O_CREAT | O_RDWR | O_CLOEXEC, 0600);
	cr_assert_eq(usnap_image_open(img, path), 0);
	cr_assert_eq(image_merge(img, &o, NULL, &err), 0, "%s", err.text);
	usnap_image_free(img);
	img = usnap_image_new();
	cr_assert_eq(usnap_image_open_fd(img, o.fd, "merged"), 0);
	cr_assert_eq(usnap_image_get_info(img, &info, sizeof(info)), 0);
	cr_assert_eq(store_file_name(START_MS + 3 * HOUR_MS, info.id, file), 0);
	snprintf(to, sizeof(to), "store/" NAME "/%s", file);
	cr_assert_eq(rename("merged", to), 0);
	close(o.fd);
	planned(&(struct retention){.last = 2}, false);
	cr_assert_eq(plan.images.nr, 4);
	/* By id, which orders the two of one time. */
	for (size_t i = 2; i < 4; i++)
		cr_assert_eq(plan.keep[i], !strcmp(plan.images.image[i].id, info.id));
	cr_assert(plan.remove[0]);
	cr_assert(plan.keep[1]);
	usnap_image_free(img);
}

Test(prune, gives_up_as_few_as_the_size_takes)
{
	struct retention rules = {.last = 9};
	uint64_t bytes[9], before = 0;

	for (unsigned i = 1; i <= 9; i++)
		put(i, i > 1 && i % 3 != 1 ? i - 1 : 0, i % 2 ? "ab" : "aB");
	cr_assert_str_eq(planned(&rules, false), "kkkkkkkkk");
	for (size_t i = 0; i < 9; i++)
		bytes[i] = plan.images.image[i].bytes;
	for (size_t stay = 1; stay <= 9; stay++) {
		uint64_t kept = 0;

		rules.max_bytes = 0;
		for (size_t i = 9 - stay; i < 9; i++)
			rules.max_bytes += bytes[i];
		planned(&rules, false);
		for (size_t i = 0; i < 9; i++)
			kept += plan.keep[i] ? bytes[i] : 0;
		cr_assert(plan.keep[8]);
		cr_assert(kept >= before);
		/* The last needs one more, and a chain has three. */
		cr_assert(kept <= rules.max_bytes || stay < 2, "%zu", stay);
		cr_assert(kept + bytes[0] + bytes[1] + bytes[2] > rules.max_bytes, "%zu", stay);
		before = kept;
	}
	cr_assert_str_eq(planned(&rules, false), "kkkkkkkkk");
}
