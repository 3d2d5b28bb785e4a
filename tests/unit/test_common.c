#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "common/err.h"
#include "common/io.h"
#include "common/le.h"
#include "common/util.h"

/* --- err --- */

Test(err, first_failure_wins)
{
	struct usnap_err err = {0};

	cr_assert_eq(usnap_fail(&err, -EIO, "cannot read '%s': broken", "a"), -EIO);
	cr_assert_eq(usnap_fail(&err, -ENOMEM, "later"), -ENOMEM);
	cr_assert_eq(err.code, -EIO);
	cr_assert_str_eq(err.text, "cannot read 'a': broken");
}

Test(err, errno_is_put_into_words)
{
	struct usnap_err err = {0};

	usnap_fail_errno(&err, -ENOENT, "cannot open '%s'", "x");
	cr_assert_str_eq(err.text, "cannot open 'x': No such file or directory");
}

Test(err, unknown_errno_has_words_too)
{
	struct usnap_err err = {0};

	usnap_fail_errno(&err, -4000, "cannot");
	cr_assert_str_eq(err.text, "cannot: unknown error");
}

Test(err, long_text_is_cut_not_overrun)
{
	struct usnap_err err = {0};
	char longer[2000];

	memset(longer, 'x', sizeof(longer) - 1);
	longer[sizeof(longer) - 1] = '\0';
	usnap_fail_errno(&err, -EIO, "%s", longer);
	cr_assert_eq(strlen(err.text), sizeof(err.text) - 1);
	usnap_hint(&err, "%s", longer);
	cr_assert_eq(strlen(err.hint), sizeof(err.hint) - 1);
}

Test(err, first_hint_stays_and_code_comes_back)
{
	struct usnap_err err = {0};

	usnap_fail(&err, -EPERM, "no");
	cr_assert_eq(usnap_hint(&err, "do %d", 1), -EPERM);
	usnap_hint(&err, "do 2");
	cr_assert_str_eq(err.hint, "do 1");
}

Test(err, nobody_listening_is_fine)
{
	cr_assert_eq(usnap_fail(NULL, -EIO, "x"), -EIO);
	cr_assert_eq(usnap_fail_errno(NULL, -EIO, "x"), -EIO);
	cr_assert_lt(usnap_hint(NULL, "x"), 0);
}

/* --- le --- */

Test(le, bytes_lie_little_end_first)
{
	unsigned char b[8];

	le_put16(b, 0x0102);
	cr_assert_arr_eq(b, ((unsigned char[]){2, 1}), 2);
	le_put32(b, 0x01020304);
	cr_assert_arr_eq(b, ((unsigned char[]){4, 3, 2, 1}), 4);
	le_put64(b, 0x0102030405060708);
	cr_assert_arr_eq(b, ((unsigned char[]){8, 7, 6, 5, 4, 3, 2, 1}), 8);
}

Test(le, reads_what_was_put_at_any_alignment)
{
	unsigned char b[16];

	for (size_t i = 0; i < 8; i++) {
		le_put64(b + i, 0xfedcba9876543210);
		cr_assert_eq(le_get64(b + i), 0xfedcba9876543210);
		cr_assert_eq(le_get32(b + i), 0x76543210);
		cr_assert_eq(le_get16(b + i), 0x3210);
	}
}

/* --- io --- */

static int scratch_dir(void)
{
	char name[] = "/tmp/usnap-unit.XXXXXX";

	cr_assert_not_null(mkdtemp(name));
	int fd = open(name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cr_assert_geq(fd, 0);
	/* The directory lives on through its descriptor as long as it is needed. */
	cr_assert_eq(chdir(name), 0);
	return fd;
}

static void scratch_remove(int dir, const char *file)
{
	char *name = NULL;

	unlinkat(dir, file, 0);
	cr_assert_eq(io_readlink_at(AT_FDCWD, "/proc/self/cwd", &name), 0);
	cr_assert_eq(chdir("/"), 0);
	rmdir(name);
	free(name);
	close(dir);
}

static void put_file(int dir, const char *name, const void *data, size_t len)
{
	int fd = openat(dir, name, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	cr_assert_geq(fd, 0);
	cr_assert_eq(io_write_full(fd, data, len), 0);
	close(fd);
}

Test(io, short_file_is_enodata)
{
	char buf[8];
	int dir = scratch_dir();

	put_file(dir, "f", "abcd", 4);
	cleanup_fd int fd = openat(dir, "f", O_RDONLY);
	cr_assert_eq(io_pread_full(fd, buf, 4, 0), 0);
	cr_assert_arr_eq(buf, "abcd", 4);
	cr_assert_eq(io_pread_full(fd, buf, 4, 1), -ENODATA);
	cr_assert_eq(io_read_full(fd, buf, 5), -ENODATA);
	scratch_remove(dir, "f");
}

Test(io, whole_file_at_and_beyond_the_limit)
{
	enum {
		LEN = 100000
	};
	char *data = malloc(LEN), *got = NULL;
	size_t len = 0;
	int dir = scratch_dir();

	memset(data, 'z', LEN);
	put_file(dir, "f", data, LEN);
	cr_assert_eq(io_read_file_at(dir, "f", LEN, &got, &len), 0);
	cr_assert_eq(len, LEN);
	cr_assert_eq(got[LEN], '\0');
	cr_assert_arr_eq(got, data, LEN);
	free(got);
	got = NULL;
	cr_assert_eq(io_read_file_at(dir, "f", LEN - 1, &got, &len), -EFBIG);
	cr_assert_null(got);
	free(data);
	scratch_remove(dir, "f");
}

Test(io, empty_file_and_empty_limit)
{
	char *got = NULL;
	size_t len = 1;
	int dir = scratch_dir();

	put_file(dir, "f", "", 0);
	cr_assert_eq(io_read_file_at(dir, "f", 0, &got, &len), 0);
	cr_assert_eq(len, 0);
	cr_assert_str_eq(got, "");
	free(got);
	scratch_remove(dir, "f");
}

Test(io, files_of_proc_have_no_size_and_are_read_whole)
{
	char *got = NULL;

	cr_assert_eq(io_read_file_at(AT_FDCWD, "/proc/self/status", KIB(64), &got, NULL), 0);
	cr_assert_not_null(strstr(got, "\nPid:"));
	free(got);
	cr_assert_eq(io_read_file_at(AT_FDCWD, "/proc/self/none", KIB(64), &got, NULL), -ENOENT);
}

struct slow_reader {
	int fd;
	size_t total;
};

static void *read_slowly(void *arg)
{
	struct slow_reader *r = arg;
	char buf[777];
	ssize_t n;

	while ((n = read(r->fd, buf, sizeof(buf))) > 0)
		r->total += (size_t)n;
	return NULL;
}

Test(io, write_goes_on_after_short_writes)
{
	enum {
		LEN = 1 << 20
	};
	int p[2];
	pthread_t thread;
	char *data = calloc(1, LEN);

	cr_assert_eq(pipe(p), 0);
	struct slow_reader r = {.fd = p[0]};
	cr_assert_eq(pthread_create(&thread, NULL, read_slowly, &r), 0);
	cr_assert_eq(io_write_full(p[1], data, LEN), 0);
	close(p[1]);
	pthread_join(thread, NULL);
	close(p[0]);
	cr_assert_eq(r.total, LEN);
	free(data);
}

Test(io, write_error_is_reported)
{
	cleanup_fd int full = open("/dev/full", O_WRONLY);

	cr_assert_eq(io_write_full(full, "x", 1), -ENOSPC);
	cr_assert_eq(io_write_full(-1, "x", 1), -EBADF);
	cr_assert_eq(io_write_full(-1, "x", 0), 0);
}

Test(io, links_are_read_and_others_refused)
{
	char *name = NULL;
	int dir = scratch_dir();

	cr_assert_eq(symlinkat("where it leads", dir, "l"), 0);
	cr_assert_eq(io_readlink_at(dir, "l", &name), 0);
	cr_assert_str_eq(name, "where it leads");
	free(name);
	cr_assert_eq(io_readlink_at(dir, ".", &name), -EINVAL);
	scratch_remove(dir, "l");
}

/* --- util --- */

Test(util, alignment)
{
	cr_assert_eq(ALIGN_DOWN((uint64_t)0xfffffffffffff, 4096), 0xffffffffff000);
	cr_assert_eq(ALIGN_UP((uint64_t)1, 4096), 4096);
	cr_assert_eq(ALIGN_UP((uint64_t)4096, 4096), 4096);
	cr_assert_eq(ALIGN_UP((uint64_t)0xffffffff00000001, 4096), 0xffffffff00001000);
}

Test(util, taken_descriptor_is_not_closed)
{
	int kept;
	{
		cleanup_fd int fd = open("/dev/null", O_RDONLY);
		kept = take_fd(&fd);
	}
	cr_assert_geq(fcntl(kept, F_GETFD), 0);
	close(kept);
}

Test(util, clock_goes_forward)
{
	uint64_t a = now_ns(), b = now_ns();

	cr_assert_leq(a, b);
	cr_assert_gt(wall_ns(), 1600000000ull * 1000000000ull);
}
