#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <uffd-snap.h>

#include "common/io.h"
#include "common/util.h"
#include "imagefixture.h"

static int verify(int fd)
{
	struct usnap_verify_options o = {.size = sizeof(o)};
	struct usnap_image *img = usnap_image_new();
	int r = usnap_image_open_fd(img, fd, "test");

	if (r == 0)
		r = usnap_image_verify(img, &o);
	if (r < 0)
		fprintf(stderr, "%s\n", usnap_image_error(img));
	usnap_image_free(img);
	return r;
}

Test(writer, begins_again_in_a_file_without_a_trace)
{
	int fd = memfd_create("image", MFD_CLOEXEC), once = fixture_image(20);
	struct usnap_err err = {0};
	struct stat a, b;
	struct image_writer *w;

	cr_assert_eq(fixture_open_writer(&w, fd, &err), 0);
	cr_assert_eq(image_writer_begin(w, &err), 0);
	cr_assert_eq(fixture_members(w, &err), 0);
	cr_assert_eq(fixture_encode(w, HEAP, 60, 0), 0);
	cr_assert_eq(fixture_write(w, 20, &err), 0, "%s", err.text);
	image_writer_close(w);
	cr_assert_eq(verify(fd), 0);
	cr_assert_eq(fstat(fd, &a) | fstat(once, &b), 0);
	cr_assert_eq(a.st_size, b.st_size);
}

struct drain {
	int from, to;
	unsigned slow_us;
};

static void *drain_thread(void *ctx)
{
	struct drain *d = ctx;
	char buf[65536];
	ssize_t n;

	while ((n = read(d->from, buf, sizeof(buf))) > 0) {
		if (write(d->to, buf, (size_t)n) != n)
			break;
		if (d->slow_us)
			usleep(d->slow_us);
	}
	return NULL;
}

Test(writer, goes_on_in_a_stream_and_the_last_attempt_counts)
{
	struct drain d = {.to = memfd_create("image", MFD_CLOEXEC)};
	struct usnap_err err = {0};
	struct image_writer *w;
	pthread_t t;
	int p[2];

	cr_assert_eq(pipe(p), 0);
	d.from = p[0];
	pthread_create(&t, NULL, drain_thread, &d);
	cr_assert_eq(fixture_open_writer(&w, p[1], &err), 0);
	cr_assert_eq(image_writer_begin(w, &err), 0);
	cr_assert_eq(fixture_members(w, &err), 0);
	cr_assert_eq(fixture_encode(w, HEAP, 60, 0), 0);
	cr_assert_eq(image_writer_flush(w, &err), 0);
	cr_assert_eq(fixture_write(w, 20, &err), 0, "%s", err.text);
	image_writer_close(w);
	close(p[1]);
	pthread_join(t, NULL);
	cr_assert_eq(verify(d.to), 0);
}

Test(writer, counts_what_it_stores)
{
	int fd = memfd_create("image", MFD_CLOEXEC);
	struct image_writer_stats s;
	struct usnap_err err = {0};
	struct image_writer *w;
	struct stat st;

	cr_assert_eq(fixture_open_writer(&w, fd, &err), 0);
	cr_assert_eq(fixture_write(w, 20, &err), 0);
	image_writer_get_stats(w, &s);
	image_writer_close(w);
	cr_assert_eq(fstat(fd, &st), 0);
	cr_assert_eq(s.nr_pages_zero, 4);
	cr_assert_eq(s.nr_pages_stored, 16 + 2 * SHARED_PAGES + 1);
	cr_assert_eq(s.nr_pages_equal, SHARED_PAGES, "both mappings of the shared object");
	cr_assert_eq(s.nr_pages_referred, 0);
	cr_assert_eq(s.raw_bytes, (s.nr_pages_stored - s.nr_pages_equal) * PAGE);
	cr_assert_lt(s.compressed_bytes, s.raw_bytes);
	cr_assert_eq(s.file_bytes, (uint64_t)st.st_size);
}

Test(writer, stores_zero_pages_where_absent_ones_are_not_zero)
{
	static const unsigned char zeros[4 * PAGE];
	const struct image_run runs[] = {{.addr = HEAP, .nr_pages = 2},
					 {.addr = FILE_MAP, .nr_pages = 2, .keep_zero = true}};
	int fd = memfd_create("image", MFD_CLOEXEC);
	struct usnap_err err = {0};
	struct image_encoder *e;
	struct image_writer *w;
	struct image_writer_stats s;

	cr_assert_eq(fixture_open_writer(&w, fd, &err), 0);
	cr_assert_eq(image_writer_begin(w, &err), 0);
	cr_assert_eq(image_encoder_new(&e, w), 0);
	cr_assert_eq(image_encode(e, runs, 2, zeros), 0);
	image_encoder_free(e);
	cr_assert_eq(image_writer_flush(w, &err), 0);
	image_writer_get_stats(w, &s);
	cr_assert_eq(s.nr_pages_stored, 2);
	cr_assert_eq(s.nr_pages_zero, 2);
	image_writer_close(w);
	close(fd);
}

static int commit_heap(bool twice)
{
	int fd = memfd_create("image", MFD_CLOEXEC), r;
	struct usnap_err err = {0};
	struct image_writer *w;

	cr_assert_eq(fixture_open_writer(&w, fd, &err), 0);
	cr_assert_eq(image_writer_begin(w, &err), 0);
	cr_assert_eq(fixture_members(w, &err), 0);
	cr_assert_eq(fixture_encode(w, HEAP, 20, 0), 0);
	if (twice)
		cr_assert_eq(fixture_encode(w, HEAP + 19 * PAGE, 1, 0), 0);
	r = image_writer_commit(w, "{}", 2, &err);
	image_writer_close(w);
	close(fd);
	return r;
}

Test(writer, refuses_an_index_that_would_be_ambiguous)
{
	cr_assert_eq(commit_heap(false), 0);
	cr_assert_eq(commit_heap(true), -EINVAL);
}

Test(writer, remembers_a_reader_that_went_away)
{
	struct usnap_err err = {0};
	struct image_writer *w;
	int p[2], r = 0;

	cr_assert_eq(pipe(p), 0);
	close(p[0]);
	cr_assert_eq(fixture_open_writer(&w, p[1], &err), 0);
	cr_assert_eq(image_writer_begin(w, &err), 0);
	cr_assert_eq(fixture_members(w, &err), -EPIPE); /* and no SIGPIPE */
	cr_assert_neq(err.hint[0], '\0');
	cr_assert_eq(fixture_encode(w, HEAP, 20, 0), -EPIPE);
	err = (struct usnap_err){0};
	r = image_writer_commit(w, "{}", 2, &err);
	cr_assert_eq(r, -EPIPE);
	cr_assert_not_null(strstr(err.text, "Broken pipe"));
	image_writer_close(w);
}

Test(writer, survives_a_file_size_limit)
{
	struct rlimit l = {.rlim_cur = 10000, .rlim_max = 10000};
	int fd = memfd_create("image", MFD_CLOEXEC);
	struct usnap_err err = {0};
	struct image_writer *w;

	cr_assert_eq(setrlimit(RLIMIT_FSIZE, &l), 0);
	cr_assert_eq(fixture_open_writer(&w, fd, &err), 0);
	cr_assert_eq(fixture_write(w, 60, &err), -EFBIG); /* and no SIGXFSZ */
	image_writer_close(w);
}

Test(writer, reports_a_full_disk)
{
	int fd = open("/dev/full", O_WRONLY | O_CLOEXEC);
	struct usnap_err err = {0};
	struct image_writer *w;

	cr_assert_eq(fixture_open_writer(&w, fd, &err), 0);
	cr_assert_eq(fixture_write(w, 20, &err), -ENOSPC);
	cr_assert_not_null(strstr(err.text, "No space left"));
	image_writer_close(w);
}

static void *abort_soon(void *ctx)
{
	usleep(50000);
	image_writer_abort(ctx);
	return NULL;
}

Test(writer, gives_up_while_nobody_reads, .timeout = 10)
{
	struct usnap_err err = {0};
	struct image_writer *w;
	pthread_t t;
	int p[2], r = 0;

	cr_assert_eq(pipe(p), 0);
	cr_assert_eq(fixture_open_writer(&w, p[1], &err), 0);
	cr_assert_eq(image_writer_begin(w, &err), 0);
	cr_assert_eq(fixture_members(w, &err), 0);
	pthread_create(&t, NULL, abort_soon, w);
	for (uint64_t i = 0; i < 100000 && r == 0; i++)
		r = fixture_encode(w, HEAP + i * 8 * PAGE, 8, 0);
	cr_assert_eq(r, -ECANCELED);
	cr_assert_eq(image_writer_flush(w, &err), -ECANCELED);
	pthread_join(t, NULL);
	image_writer_close(w);
}

Test(writer, closes_while_nobody_reads, .timeout = 10)
{
	struct usnap_err err = {0};
	struct image_writer *w;
	int p[2];

	cr_assert_eq(pipe(p), 0);
	cr_assert_eq(fixture_open_writer(&w, p[1], &err), 0);
	cr_assert_eq(image_writer_begin(w, &err), 0);
	cr_assert_eq(fixture_members(w, &err), 0);
	cr_assert_eq(fixture_encode(w, HEAP, 2000, 0), 0);
	image_writer_close(w);
}

struct encoding {
	struct image_writer *w;
	uint64_t key;
	unsigned nr;
	int result;
};

static void *encode_thread(void *ctx)
{
	struct encoding *e = ctx;

	e->result = fixture_encode(e->w, e->key, e->nr, 0);
	return NULL;
}

Test(writer, takes_pages_from_many_threads_through_a_slow_pipe, .timeout = 60)
{
	struct drain d = {.to = memfd_create("image", MFD_CLOEXEC), .slow_us = 200};
	struct encoding e[4];
	struct usnap_err err = {0};
	struct image_writer *w;
	pthread_t t, enc[4];
	int p[2];

	cr_assert_eq(pipe(p), 0);
	d.from = p[0];
	pthread_create(&t, NULL, drain_thread, &d);
	cr_assert_eq(fixture_open_writer(&w, p[1], &err), 0);
	cr_assert_eq(image_writer_begin(w, &err), 0);
	cr_assert_eq(fixture_members(w, &err), 0);
	for (unsigned i = 0; i < 4; i++) {
		e[i] = (struct encoding){.w = w, .key = HEAP + (uint64_t)i * 16 * PAGE, .nr = 16};
		pthread_create(&enc[i], NULL, encode_thread, &e[i]);
	}
	for (unsigned i = 0; i < 4; i++) {
		pthread_join(enc[i], NULL);
		cr_assert_eq(e[i].result, 0);
	}
	cr_assert_eq(image_writer_commit(w, "{}", 2, &err), 0, "%s", err.text);
	image_writer_close(w);
	close(p[1]);
	pthread_join(t, NULL);
	cr_assert_eq(verify(d.to), 0);
}

Test(writer, refuses_what_makes_no_sense)
{
	struct image_run run = {.addr = HEAP + 1, .nr_pages = 1};
	int fd = memfd_create("image", MFD_CLOEXEC);
	unsigned char page[PAGE] = {1};
	struct usnap_err err = {0};
	struct image_encoder *e;
	struct image_writer *w;

	cr_assert_eq(fixture_open_writer(&w, fd, &err), 0);
	cr_assert_eq(image_encoder_new(&e, w), 0);
	cr_assert_eq(image_encode(e, &run, 1, page), -EINVAL, "before it began");
	cr_assert_eq(image_writer_begin(w, &err), 0);
	cr_assert_eq(image_encode(e, &run, 1, page), -EINVAL, "not aligned");
	run = (struct image_run){.addr = HEAP, .nr_pages = FRAME_PAGES + 1};
	cr_assert_eq(image_encode(e, &run, 1, page), -EINVAL, "too many");
	run = (struct image_run){.addr = HEAP, .nr_pages = 0};
	cr_assert_eq(image_encode(e, &run, 1, page), -EINVAL, "none");
	image_encoder_free(e);
	cr_assert_eq(image_writer_member(w, "commit.json", "x", 1, &err), -EINVAL);
	err = (struct usnap_err){0};
	cr_assert_eq(image_writer_member(w, "snapshot.json", "{}", 2, &err), -EINVAL);
	err = (struct usnap_err){0};
	cr_assert_eq(image_writer_commit(w, "{}", 2, &err), -EINVAL, "no snapshot.json");
	image_writer_close(w);
}
