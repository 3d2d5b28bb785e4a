#include "image/tarball.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/util.h"

static la_ssize_t on_write(struct archive *a, void *ctx, const void *buf, size_t len)
{
	struct tarball *t = ctx;
	int r;

	if (t->discard)
		return (la_ssize_t)len;
	r = t->sink_error ? t->sink_error : sink_write(&t->sink, buf, len);

	if (r < 0) {
		t->sink_error = r;
		archive_set_error(a, -r, "write failed");
		return -1;
	}
	return (la_ssize_t)len;
}

static int failed(struct tarball *t, struct usnap_err *err)
{
	int code = t->sink_error;

	if (!code)
		return usnap_fail(err, -EIO, "cannot write the image: %s",
				  t->archive && archive_error_string(t->archive)
					  ? archive_error_string(t->archive)
					  : "the archive is broken");
	if (code == -ECANCELED)
		return usnap_fail(err, code, "cannot write the image: given up");
	usnap_fail_errno(err, code, "cannot write the image");
	/* How much room it takes is known to who has it written. */
	if (code == -EFBIG)
		usnap_hint(err, "raise the limit on file sizes (ulimit -f)");
	else if (code == -EPIPE)
		usnap_hint(err, "the program that reads the image ended before it was complete");
	return code;
}

int tarball_open(struct tarball *t, int fd, uint64_t rate_bytes_s)
{
	memset(t, 0, sizeof(*t));
	return sink_open(&t->sink, fd, rate_bytes_s);
}

static void drop(struct tarball *t)
{
	if (!t->archive)
		return;
	/* libarchive frees all its memory only when it closes, and closing
	 * writes an end. archive_write_fail(3) keeps it from both. */
	t->discard = true;
	archive_write_close(t->archive);
	archive_write_free(t->archive);
	t->archive = NULL;
	t->discard = false;
}

int tarball_begin(struct tarball *t, struct usnap_err *err)
{
	struct archive *a;
	int r;

	t->nr_members = 0;
	t->mtime = (int64_t)(wall_ns() / 1000000000u);
	if (t->sink.rewindable) {
		drop(t);
		r = sink_rewind(&t->sink);
		if (r < 0) {
			t->sink_error = r;
			return failed(t, err);
		}
	}
	if (t->archive)
		return 0;
	a = t->archive = archive_write_new();
	if (!a)
		return usnap_fail_errno(err, -ENOMEM, "cannot write the image");
	/* Unbuffered: the sink's position must be the archive's. */
	if (archive_write_set_format_pax_restricted(a) != ARCHIVE_OK ||
	    archive_write_set_bytes_per_block(a, 0) != ARCHIVE_OK ||
	    archive_write_set_bytes_in_last_block(a, 1) != ARCHIVE_OK ||
	    archive_write_open(a, t, NULL, on_write, NULL) != ARCHIVE_OK)
		return failed(t, err);
	return 0;
}

int tarball_header(struct tarball *t, const char *name, uint64_t size, struct usnap_err *err)
{
	struct archive_entry *e = archive_entry_new();
	int r = ARCHIVE_FATAL;

	if (e) {
		archive_entry_set_pathname(e, name);
		archive_entry_set_filetype(e, AE_IFREG);
		archive_entry_set_perm(e, 0600);
		archive_entry_set_mtime(e, t->mtime, 0);
		archive_entry_set_size(e, (la_int64_t)size);
		r = archive_write_header(t->archive, e);
		archive_entry_free(e);
	}
	return r == ARCHIVE_OK ? 0 : failed(t, err);
}

int tarball_data(struct tarball *t, const void *buf, size_t len, struct usnap_err *err)
{
	if (len && archive_write_data(t->archive, buf, len) != (la_ssize_t)len)
		return failed(t, err);
	return 0;
}

int tarball_end_member(struct tarball *t, struct usnap_err *err)
{
	return archive_write_finish_entry(t->archive) == ARCHIVE_OK ? 0 : failed(t, err);
}

int tarball_note(struct tarball *t, const char *name, uint64_t offset, uint64_t size,
		 XXH128_hash_t hash, struct usnap_err *err)
{
	struct tarball_member *m = NULL;

	for (size_t i = 0; i < t->nr_members && !m; i++)
		if (!strcmp(t->members[i].name, name))
			m = &t->members[i];
	if (!m) {
		if (t->nr_members == t->room_members) {
			size_t room = t->room_members ? 2 * t->room_members : 32;
			struct tarball_member *v = reallocarray(t->members, room, sizeof(*v));

			if (!v)
				return usnap_fail_errno(err, -ENOMEM, "cannot write the image");
			t->members = v;
			t->room_members = room;
		}
		m = &t->members[t->nr_members++];
	}
	snprintf(m->name, sizeof(m->name), "%s", name);
	m->offset = offset;
	m->size = size;
	m->hash = hash;
	return 0;
}

int tarball_member(struct tarball *t, const char *name, const void *buf, size_t len,
		   struct usnap_err *err)
{
	uint64_t offset;
	int r;

	if ((r = tarball_header(t, name, len, err)) < 0)
		return r;
	offset = t->sink.position;
	if ((r = tarball_data(t, buf, len, err)) < 0 || (r = tarball_end_member(t, err)) < 0)
		return r;
	return tarball_note(t, name, offset, len, XXH3_128bits(buf, len), err);
}

int tarball_finish(struct tarball *t, struct usnap_err *err)
{
	int r = archive_write_close(t->archive) == ARCHIVE_OK ? 0 : failed(t, err);

	if (r == 0) {
		archive_write_free(t->archive);
		t->archive = NULL;
	}
	return r;
}

void tarball_close(struct tarball *t)
{
	drop(t);
	sink_close(&t->sink);
	free(t->members);
	t->members = NULL;
}
