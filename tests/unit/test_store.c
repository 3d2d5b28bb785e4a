#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "store/store.h"
#include "store/storelock.h"
#include "store/storetime.h"

#define ID_A "00112233445566778899aabbccddeeff"
#define ID_B "00112244445566778899aabbccddeeff"
#define FILE_A "20261122T101500.123Z-" ID_A ".usnap"

static char dir[4096];
static struct store *store;

static void enter(void)
{
	const char *tmp = getenv("TMPDIR");
	struct usnap_err err = {0};

	setenv("TZ", "UTC", 1);
	tzset();
	snprintf(dir, sizeof(dir), "%s/store.XXXXXX", tmp ? tmp : "/tmp");
	cr_assert_not_null(mkdtemp(dir));
	cr_assert_eq(chdir(dir), 0);
	cr_assert_eq(store_open(&store, "a/b/store", true, &err), 0, "%s", err.text);
}

static void leave(void)
{
	char command[5000];

	store_close(store);
	snprintf(command, sizeof(command), "rm -rf '%s'", dir);
	cr_assert_eq(system(command), 0);
}

TestSuite(store, .init = enter, .fini = leave);

static void touch(const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT, 0600);

	cr_assert_geq(fd, 0, "%s", path);
	cr_assert_eq(write(fd, "x", 1), 1);
	close(fd);
}

static bool exists(const char *path)
{
	struct stat st;

	return lstat(path, &st) == 0;
}

Test(store, is_made_for_its_owner_alone)
{
	struct stat st;

	cr_assert_eq(stat("a/b/store", &st), 0);
	cr_assert_eq(st.st_mode & 0777, 0700);
	cr_assert_eq(stat("a", &st), 0);
	cr_assert_eq(st.st_mode & 0777, 0700);
}

Test(store, is_refused_where_anybody_may_write)
{
	struct usnap_err err = {0};
	struct store *s;

	chmod("a/b/store", 0777);
	cr_assert_eq(store_open(&s, "a/b/store", true, &err), -EPERM);
	cr_assert_eq(strncmp(err.text, "cannot use store", 16), 0);
	err = (struct usnap_err){0};
	cr_assert_eq(store_open(&s, "none", false, &err), -ENOENT);
}

Test(store, secret_stays_the_same)
{
	struct usnap_err err = {0};
	uint64_t a, b;
	struct stat st;

	cr_assert_eq(store_secret(store, &a, &err), 0);
	cr_assert_eq(store_secret(store, &b, &err), 0);
	cr_assert_eq(a, b);
	cr_assert_neq(a, 0);
	cr_assert_eq(stat("a/b/store/secret", &st), 0);
	cr_assert_eq(st.st_mode & 0777, 0600);
	cr_assert_not(exists("a/b/store/.secret.part"));
	touch("a/b/store/.secret.part"); /* of a killed run */
	unlink("a/b/store/secret");
	cr_assert_eq(store_secret(store, &b, &err), 0);
	cr_assert_neq(a, b);
	cr_assert_eq(truncate("a/b/store/secret", 5), 0);
	cr_assert_eq(store_secret(store, &b, &err), -EINVAL);
}

Test(store, names_are_plain)
{
	static const char *const good[] = {"redis", "a", "redis-server_1.2", "x:6379", "\xc3\xa9t"};
	static const char *const bad[] = {"",	   ".",	   "..",  ".lock",  "-x",     "a/b",
					  "a@b",   "a b",  "a\n", "secret", "a\x7f",  "*",
					  "$(id)", "../x", "a;b", "\x01",   "latest/"};
	char longest[STORE_NAME_MAX + 2];

	for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++)
		cr_assert(store_name_valid(good[i]), "%s", good[i]);
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		cr_assert_not(store_name_valid(bad[i]), "%s", bad[i]);
	memset(longest, 'x', sizeof(longest));
	longest[STORE_NAME_MAX] = '\0';
	cr_assert(store_name_valid(longest));
	longest[STORE_NAME_MAX] = 'x';
	longest[STORE_NAME_MAX + 1] = '\0';
	cr_assert_not(store_name_valid(longest));
}

Test(store, any_text_makes_a_name)
{
	static const char *const texts[][2] = {
		{"redis-server", "redis-server"},
		{"(sd-pam)", "sd-pam"},
		{"../../etc", "etc"},
		{"a b/c", "a-b-c"},
		{"", "process"},
		{"///", "process"},
		{"secret", "process"},
		{"-rf", "rf"},
		{"x\n\n y", "x-y"},
	};
	char name[STORE_NAME_MAX + 1];

	for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++) {
		store_name_from(texts[i][0], name);
		cr_assert_str_eq(name, texts[i][1]);
		cr_assert(store_name_valid(name));
	}
}

Test(store, file_names_go_there_and_back)
{
	char file[STORE_FILE_LEN + 1];
	struct store_image i;

	cr_assert_eq(store_file_name(UINT64_C(1795342500123), ID_A, file), 0);
	cr_assert(store_file_parse(file, &i));
	cr_assert_eq(i.t0_ms, UINT64_C(1795342500123));
	cr_assert_str_eq(i.id, ID_A);
	cr_assert_str_eq(file, FILE_A);
	cr_assert_eq(store_file_name(UINT64_MAX / 2, ID_A, file), -ERANGE);
}

Test(store, scan_takes_images_and_nothing_else)
{
	static const char *const others[] = {
		"20261122T101500.123Z-" ID_A ".usnap.part",
		".20261122T101500.123Z-" ID_A ".usnap.1f2e3d.part",
		"20261122T101500.123Z-0011223344556677889AAABBCCDDEEFF.usnap",
		"20261322T101500.123Z-" ID_A ".usnap",
		"20260231T101500.123Z-" ID_A ".usnap",
		"20261122T246000.123Z-" ID_A ".usnap",
		"20261122T101500.123Z-" ID_A ".usnaq",
		"20261122T101500.123X-" ID_A ".usnap",
		"20261122T101500Z-" ID_A ".usnap",
		"-rf",
		"a\nb.usnap",
		"latest.usnap",
	};
	struct store_images images;
	struct usnap_err err = {0};
	char path[300];

	cr_assert_eq(mkdir("a/b/store/n", 0700), 0);
	for (size_t i = 0; i < sizeof(others) / sizeof(*others); i++) {
		snprintf(path, sizeof(path), "a/b/store/n/%s", others[i]);
		touch(path);
	}
	/* Of the right name, and no files. */
	mkdir("a/b/store/n/20261122T101501.000Z-" ID_A ".usnap", 0700);
	mkfifo("a/b/store/n/20261122T101502.000Z-" ID_A ".usnap", 0600);
	cr_assert_eq(symlink("/etc/passwd", "a/b/store/n/20261122T101503.000Z-" ID_A ".usnap"), 0);
	touch("a/b/store/n/20261122T101500.123Z-" ID_B ".usnap");
	touch("a/b/store/n/" FILE_A);
	touch("a/b/store/n/20251122T101500.123Z-" ID_B ".usnap");
	cr_assert_eq(store_scan(store, "n", &images, &err), 0, "%s", err.text);
	cr_assert_eq(images.nr, 3);
	cr_assert_str_eq(images.image[1].file, FILE_A);
	cr_assert_str_eq(images.image[2].id, ID_B);
	store_images_free(&images);
}

Test(store, names_are_directories_in_it)
{
	struct store_names names;
	struct usnap_err err = {0};

	mkdir("a/b/store/b", 0700);
	mkdir("a/b/store/a", 0700);
	mkdir("a/b/store/.hidden", 0700);
	mkdir("a/b/store/with space", 0700);
	touch("a/b/store/file");
	cr_assert_eq(symlink("/etc", "a/b/store/etc"), 0);
	cr_assert_eq(store_list_names(store, &names, &err), 0);
	cr_assert_eq(names.nr, 2);
	cr_assert_str_eq(names.name[0], "a");
	store_names_free(&names);
	cr_assert_lt(store_open_name(store, "etc", false, &err), 0);
}

Test(store, cleans_what_killed_runs_left)
{
	int fd;

	mkdir("a/b/store/n", 0700);
	touch("a/b/store/n/" FILE_A);
	touch("a/b/store/n/.snapshot.usnap.1a2b3c.part");
	touch("a/b/store/n/.latest.part");
	touch("a/b/store/n/notes.part"); /* somebody's */
	fd = open("a/b/store/n", O_RDONLY | O_DIRECTORY);
	cr_assert_eq(store_clean(fd), 2);
	close(fd);
	cr_assert(exists("a/b/store/n/" FILE_A));
	cr_assert(exists("a/b/store/n/notes.part"));
}

static void fill(struct store_images *images)
{
	struct usnap_err err = {0};

	mkdir("a/b/store/n", 0700);
	touch("a/b/store/n/20261121T230000.500Z-" ID_B ".usnap");
	touch("a/b/store/n/" FILE_A);
	touch("a/b/store/n/20261122T102000.000Z-ff112233445566778899aabbccddeeff.usnap");
	cr_assert_eq(store_scan(store, "n", images, &err), 0);
}

Test(store, finds_the_last_image_at_or_before_a_time)
{
	static const struct {
		const char *when;
		int found; /* or -1 */
	} cases[] = {
		{NULL, 2},
		{"latest", 2},
		{"2026-11-22", 2},
		{"2026-11-21", 0},
		{"20261121", 0},
		{"2026-11-20", -1},
		{"2026-11-22T10:15", 1},
		{"2026-11-22T10:15:00", 1},
		{"2026-11-22T10:15:00.123", 1},
		{"2026-11-22T10:15:00.122", 0},
		{"20261122T101500.123Z", 1},
		{"2026-11-22 10:14", 0},
		{"2026-11-22T12:15+02:00", 1},
		{"2026-11-22T10:19:59Z", 1},
		{"10:20", 2},
		{"10:19", 1},
		{"today", 2},
		{"yesterday", 0},
		{"-10m", 2},
		{"-15m", 1},
		{"-1h", 0},
		{"-11h", 0},
		{"-2d", -1},
		{"001122", -1}, /* two of them */
		{"0011223", 1},
		{"FF1122", 2},
		{"ff112", -1}, /* too short */
		{"2026-13-01", -1},
		{"2026-02-30", -1},
		{"25:00", -1},
		{"", -1},
		{"-", -1},
		{"nonsense", -1},
	};
	const int64_t now = 1795343520; /* 2026-11-22T10:32:00Z */
	struct store_images images;

	fill(&images);
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		const struct store_image *found = NULL;
		struct usnap_err err = {0};
		int r = store_find(&images, "n", cases[i].when, now, &found, &err);

		if (cases[i].found < 0) {
			cr_assert_lt(r, 0, "%s", cases[i].when);
			cr_assert_neq(err.text[0], '\0');
		} else {
			cr_assert_eq(r, 0, "%s: %s", cases[i].when, err.text);
			cr_assert_eq(found - images.image, cases[i].found, "%s", cases[i].when);
		}
	}
	store_images_free(&images);
}

Test(store, an_image_from_the_future_is_newest_only_without_others)
{
	const int64_t now = 1795342513; /* 2026-11-22T10:15:13Z */
	const bool without[] = {true, true, false};
	const struct store_image *found;
	struct store_images images;
	struct usnap_err err = {0};

	fill(&images);
	cr_assert_eq(store_find(&images, "n", NULL, now, &found, &err), 0);
	cr_assert_eq(found - images.image, 1);
	cr_assert_eq(store_find(&images, "n", "latest", now, &found, &err), 0);
	cr_assert_eq(found - images.image, 1);
	cr_assert_eq(store_find(&images, "n", "10:20", now, &found, &err), 0);
	cr_assert_eq(found - images.image, 2);
	cr_assert_eq(store_find(&images, "n", "ff1122", now, &found, &err), 0);
	cr_assert_eq(found - images.image, 2);
	cr_assert_eq(store_find(&images, "n", NULL, now - 864000, &found, &err), 0);
	cr_assert_eq(found - images.image, 2);
	cr_assert_eq(store_newest(&images, NULL, images.image[0].t0_ms), images.image);
	cr_assert_eq(store_newest(&images, without, images.image[1].t0_ms), images.image + 2);
	images.nr = 2;
	cr_assert_null(store_newest(&images, without, images.image[1].t0_ms));
	store_images_free(&images);
}

Test(store, a_clock_that_is_behind_does_not_make_the_last_image_one_of_the_future)
{
	const struct store_image *found;
	struct store_images images;
	struct usnap_err err = {0};
	bool without[] = {false, true, false};

	fill(&images);
	uint64_t now_ms = images.image[0].t0_ms;
	images.latest_ms = images.image[1].t0_ms;
	cr_assert_eq(store_newest(&images, NULL, now_ms), images.image + 1);
	cr_assert_eq(store_find(&images, "n", NULL, (int64_t)(now_ms / 1000), &found, &err), 0);
	cr_assert_eq(found - images.image, 1);
	/* Those before it come next, and those after it last. */
	cr_assert_eq(store_newest(&images, without, now_ms), images.image);
	without[0] = true;
	cr_assert_eq(store_newest(&images, without, now_ms), images.image + 2);
	cr_assert_eq(store_time_ms(&images, now_ms), images.image[1].t0_ms);
	cr_assert_eq(store_time_ms(&images, images.latest_ms + 1), images.latest_ms + 1);
	store_images_free(&images);
}

Test(store, a_time_spans_what_it_says)
{
	static const struct {
		const char *text;
		uint64_t from_ms, until_ms;
	} cases[] = {
		{"2026-11-22", 1795305600000, 1795392000000},
		{"today", 1795305600000, 1795392000000},
		{"yesterday", 1795219200000, 1795305600000},
		{"10:15", 1795342500000, 1795342560000},
		{"2026-11-22T10:15:00", 1795342500000, 1795342501000},
		{"20261122T101500.123Z", 1795342500123, 1795342500124},
		{"-10s", 1795343510000, 1795343511000},
	};
	const int64_t now = 1795343520; /* 2026-11-22T10:32:00Z */

	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		uint64_t from_ms, until_ms;

		cr_assert_eq(storetime_parse_span(cases[i].text, now, &from_ms, &until_ms), 0);
		cr_assert_eq(from_ms, cases[i].from_ms, "%s", cases[i].text);
		cr_assert_eq(until_ms, cases[i].until_ms, "%s", cases[i].text);
	}
}

Test(store, durations_have_units_from_large_to_small)
{
	static const struct {
		const char *text;
		int64_t s; /* or -1 */
	} cases[] = {{"90", 90},      {"90s", 90},	{"5m", 300},
		     {"1h30m", 5400}, {"1d", 86400},	{"2w", 1209600},
		     {"1M", 2592000}, {"1y", 31536000}, {"0", 0},
		     {"", -1},	      {"m", -1},	{"1m1h", -1},
		     {"1h30", -1},    {"5min", -1},	{"-5", -1},
		     {"1.5h", -1},    {"+1", -1},	{"99999999999y", -1},
		     {"1h1h", -1}};

	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		uint64_t s;
		int r = storetime_duration(cases[i].text, &s);

		cr_assert_eq(r, cases[i].s < 0 ? -EINVAL : 0, "%s", cases[i].text);
		if (r == 0)
			cr_assert_eq((int64_t)s, cases[i].s, "%s", cases[i].text);
	}
}

static struct store_lock *lock(enum store_lock_kind kind, int expected)
{
	const struct store_lock_options o = {.no_wait = true};
	struct usnap_err err = {0};
	struct store_lock *l = NULL;

	cr_assert_eq(store_lock(&l, store, "n", kind, &o, &err), expected, "%s", err.text);
	return l;
}

Test(store, one_adds_while_many_read)
{
	struct store_lock *add = lock(STORE_ADD, 0), *read, *again;

	lock(STORE_ADD, -EBUSY);
	lock(STORE_REMOVE, -EBUSY);
	read = lock(STORE_READ, 0);
	again = lock(STORE_READ, 0);
	store_unlock(add);
	lock(STORE_REMOVE, -EBUSY);
	store_unlock(read);
	lock(STORE_REMOVE, -EBUSY);
	add = lock(STORE_ADD, 0);
	store_unlock(add);
	store_unlock(again);
	add = lock(STORE_REMOVE, 0);
	lock(STORE_READ, -EBUSY);
	store_unlock(add);
}

Test(store, lock_ends_with_its_holder)
{
	int pipe_fds[2], status;
	char c;

	cr_assert_eq(pipe(pipe_fds), 0);
	pid_t pid = fork();

	if (pid == 0) {
		struct store_lock *l;

		if (store_lock(&l, store, "n", STORE_ADD, NULL, NULL) < 0 ||
		    write(pipe_fds[1], "x", 1) != 1)
			_exit(1);
		pause();
		_exit(0);
	}
	cr_assert_eq(read(pipe_fds[0], &c, 1), 1);
	lock(STORE_ADD, -EBUSY);
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	store_unlock(lock(STORE_ADD, 0));
}

Test(store, name_without_images_goes)
{
	struct store_lock *l = lock(STORE_ADD, 0);

	store_unlock_empty(l);
	cr_assert_not(exists("a/b/store/n"));
	l = lock(STORE_ADD, 0);
	touch("a/b/store/n/" FILE_A);
	store_unlock_empty(l);
	cr_assert(exists("a/b/store/n/" FILE_A));
	store_unlock(lock(STORE_READ, 0));
}
