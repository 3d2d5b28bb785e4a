#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"
#include "image/output.h"

static char dir[4096];

static void enter(void)
{
	const char *tmp = getenv("TMPDIR");

	snprintf(dir, sizeof(dir), "%s/output.XXXXXX", tmp ? tmp : "/tmp");
	cr_assert_not_null(mkdtemp(dir));
	cr_assert_eq(chdir(dir), 0);
}

/* Everything in the directory, hidden files too. */
static unsigned count_entries(void)
{
	DIR *d = opendir(".");
	unsigned n = 0;

	while (readdir(d))
		n++;
	closedir(d);
	return n - 2;
}

static void leave(void)
{
	DIR *d = opendir(".");
	struct dirent *e;

	while ((e = readdir(d)))
		unlink(e->d_name);
	closedir(d);
	rmdir(dir);
}

TestSuite(output, .init = enter, .fini = leave);

static void put(const char *name, const char *text)
{
	int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0644);

	cr_assert_eq(write(fd, text, strlen(text)), (ssize_t)strlen(text));
	close(fd);
}

static void expect(const char *name, const char *text)
{
	char *got;

	cr_assert_eq(io_read_file_at(AT_FDCWD, name, 1000, &got, NULL), 0);
	cr_assert_str_eq(got, text);
	free(got);
}

static struct output *open_output(const char *path)
{
	struct usnap_err err = {0};
	struct output *o;

	cr_assert_eq(output_open(&o, path, &err), 0, "%s", err.text);
	return o;
}

Test(output, is_invisible_until_committed)
{
	struct usnap_err err = {0};
	struct output *o = open_output("a");
	struct stat st;

	cr_assert_not(output_is_stream(o));
	cr_assert_eq(write(output_fd(o), "new", 3), 3);
	cr_assert_neq(access("a", F_OK), 0);
	cr_assert_eq(output_commit(o, &err), 0, "%s", err.text);
	output_close(o);
	expect("a", "new");
	cr_assert_eq(stat("a", &st), 0);
	cr_assert_eq(st.st_mode & 07777, 0600);
	cr_assert_eq(count_entries(), 1);
}

Test(output, replaces_at_commit_only)
{
	struct usnap_err err = {0};
	struct output *o;

	put("a", "old");
	o = open_output("a");
	cr_assert_eq(write(output_fd(o), "new", 3), 3);
	expect("a", "old");
	output_close(o);
	expect("a", "old");
	cr_assert_eq(count_entries(), 1);
	o = open_output("a");
	cr_assert_eq(write(output_fd(o), "new", 3), 3);
	cr_assert_eq(output_commit(o, &err), 0);
	output_close(o);
	expect("a", "new");
	cr_assert_eq(count_entries(), 1);
}

Test(output, writes_where_a_link_leads)
{
	struct usnap_err err = {0};
	struct output *o;
	struct stat st;

	put("real", "old");
	cr_assert_eq(symlink("real", "link"), 0);
	o = open_output("link");
	cr_assert_eq(write(output_fd(o), "new", 3), 3);
	cr_assert_eq(output_commit(o, &err), 0);
	output_close(o);
	expect("real", "new");
	cr_assert_eq(lstat("link", &st), 0);
	cr_assert(S_ISLNK(st.st_mode));
}

static int open_code(const char *path)
{
	struct usnap_err err = {0};
	struct output *o;
	int r = output_open(&o, path, &err);

	cr_assert_lt(r, 0);
	cr_assert_eq(err.code, r);
	cr_assert_not_null(strstr(err.text, "cannot "));
	return r;
}

Test(output, refuses_what_is_no_place_for_a_file)
{
	cr_assert_eq(mkdir("dir", 0700), 0);
	cr_assert_eq(open_code("dir"), -EISDIR);
	cr_assert_eq(open_code("dir/"), -EISDIR);
	cr_assert_eq(open_code("nothere/a"), -ENOENT);
	cr_assert_eq(open_code("nothere/"), -EISDIR);
	cr_assert_eq(open_code(""), -EINVAL);
	cr_assert_eq(symlink("nowhere", "dangling"), 0);
	cr_assert_eq(open_code("dangling"), -ENOENT);
	put("file", "x");
	cr_assert_eq(open_code("file/a"), -ENOTDIR);
	rmdir("dir");
}

Test(output, writes_through_devices)
{
	struct usnap_err err = {0};
	struct output *o = open_output("/dev/null");
	struct stat st;

	cr_assert(output_is_stream(o));
	cr_assert_eq(write(output_fd(o), "x", 1), 1);
	cr_assert_eq(output_commit(o, &err), 0);
	output_close(o);
	cr_assert_eq(stat("/dev/null", &st), 0);
	cr_assert(S_ISCHR(st.st_mode));
}

Test(output, keeps_long_names)
{
	struct usnap_err err = {0};
	char name[256];
	struct output *o;

	memset(name, 'n', 255);
	name[255] = '\0';
	o = open_output(name);
	cr_assert_eq(output_commit(o, &err), 0, "%s", err.text);
	output_close(o);
	cr_assert_eq(access(name, F_OK), 0);
}
