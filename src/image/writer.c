/*
 * DESIGN. Encoders compress each in their own thread and copy the finished
 * frame into the current segment under `lock`, together with its entries of
 * the index. There are two segments: while one fills, the writer thread
 * writes the other; when both are full, encoders wait. Where a segment comes
 * to lie in the file is known only when it is written (metadata members may
 * slip in between), so frames remember segment and offset, and `base` says
 * afterwards where each segment begins.
 *
 * Two locks. `lock` guards segments, index, figures and the failure; never
 * held during I/O. `io_lock` guards the archive, the sink and the list of
 * members; `lock` may be taken inside it, not the other way round.
 *
 * The first failure is kept, wakes everybody and is what every later call
 * returns. Nothing is retried: an image with a hole is no image.
 */
#include "image/writer.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <jansson.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>
#include <zstd.h>

#include "common/util.h"
#include "image/format.h"
#include "image/hash.h"
#include "image/pageindex.h"
#include "image/sink.h"

enum {
	SEGMENT_BYTES = 4 << 20,
	NR_SEGMENTS = 2
};

enum segment_state {
	SEGMENT_FREE,
	SEGMENT_FULL,
	SEGMENT_WRITING
};

struct segment {
	unsigned char *buf;
	size_t used;
	uint32_t nr; /* in the archive */
	enum segment_state state;
};

struct member {
	char name[FORMAT_MAX_NAME + 1];
	uint64_t offset, size; /* of the content */
	XXH128_hash_t hash;
};

struct image_writer {
	struct image_writer_options o;
	pthread_t thread;
	bool have_thread;

	pthread_mutex_t lock;
	pthread_cond_t to_encoders; /* a segment is free, or all is lost */
	pthread_cond_t to_writer; /* a segment is full, or it is over */
	struct segment seg[NR_SEGMENTS];
	struct segment *current; /* being filled, or NULL */
	uint32_t next_segment;
	struct pageindex index;
	struct growing base; /* uint64_t per segment: file offset of its content */
	struct image_writer_stats stats;
	struct usnap_err failure;
	atomic_int failed; /* failure.code, to be read without the lock */
	bool begun, closing, committed;

	pthread_mutex_t io_lock;
	struct sink sink;
	int sink_error; /* what libarchive's callback met */
	struct archive *archive;
	struct member *members;
	size_t nr_members, room_members;
	unsigned char id[FORMAT_ID_BYTES];
	char id_text[2 * FORMAT_ID_BYTES + 1];
	int64_t mtime;
};

struct image_encoder {
	struct image_writer *w;
	ZSTD_CCtx *cctx;
	unsigned char *raw; /* pages without the zero pages among them */
	unsigned char *out;
	size_t out_room;
	struct page_hash *hashes;
	struct image_run *runs; /* without the zero pages */
};

/* Keeps the first failure. Needs lock. Returns what is kept. */
static int fail_locked(struct image_writer *w, const struct usnap_err *err)
{
	if (!w->failure.code) {
		w->failure = *err;
		atomic_store(&w->failed, err->code);
	}
	pthread_cond_broadcast(&w->to_encoders);
	pthread_cond_broadcast(&w->to_writer);
	return w->failure.code;
}

static int fail_with(struct image_writer *w, const struct usnap_err *err)
{
	int r;

	pthread_mutex_lock(&w->lock);
	r = fail_locked(w, err);
	pthread_mutex_unlock(&w->lock);
	return r;
}

/* What is remembered, for the caller. */
static int report(struct image_writer *w, struct usnap_err *err)
{
	pthread_mutex_lock(&w->lock);
	int r = w->failure.code;

	if (r && err && !err->code)
		*err = w->failure;
	pthread_mutex_unlock(&w->lock);
	return r;
}

/* ---- the archive; all of it under io_lock ---- */

static la_ssize_t on_write(struct archive *a, void *ctx, const void *buf, size_t len)
{
	struct image_writer *w = ctx;
	int r = w->sink_error ? w->sink_error : sink_write(&w->sink, buf, len);

	if (r < 0) {
		w->sink_error = r;
		archive_set_error(a, -r, "write failed");
		return -1;
	}
	return (la_ssize_t)len;
}

static int archive_failed(struct image_writer *w)
{
	struct usnap_err err = {0};
	int code = w->sink_error;

	if (code == -ECANCELED)
		usnap_fail(&err, code, "cannot write the image: given up");
	else if (code)
		usnap_fail_errno(&err, code, "cannot write the image");
	else
		usnap_fail(&err, -EIO, "cannot write the image: %s",
			   archive_error_string(w->archive) ? archive_error_string(w->archive)
							    : "the archive is broken");
	if (code == -ENOSPC || code == -EDQUOT)
		usnap_hint(&err, "free some space, or write to another file system");
	else if (code == -EFBIG)
		usnap_hint(&err, "raise the limit on file sizes (ulimit -f)");
	else if (code == -EPIPE)
		usnap_hint(&err, "the program that reads the image ended before it was complete");
	return fail_with(w, &err);
}

static void archive_drop(struct image_writer *w)
{
	if (!w->archive)
		return;
	archive_write_fail(w->archive); /* or freeing it would write its end */
	archive_write_free(w->archive);
	w->archive = NULL;
}

static int archive_begin(struct image_writer *w)
{
	struct archive *a = archive_write_new();
	struct usnap_err err = {0};

	if (!a) {
		usnap_fail_errno(&err, -ENOMEM, "cannot write the image");
		return fail_with(w, &err);
	}
	w->archive = a;
	/* Unbuffered: the sink's position must be the archive's. */
	if (archive_write_set_format_pax_restricted(a) != ARCHIVE_OK ||
	    archive_write_set_bytes_per_block(a, 0) != ARCHIVE_OK ||
	    archive_write_set_bytes_in_last_block(a, 1) != ARCHIVE_OK ||
	    archive_write_open(a, w, NULL, on_write, NULL) != ARCHIVE_OK)
		return archive_failed(w);
	return 0;
}

static int member_header(struct image_writer *w, const char *name, uint64_t size)
{
	struct archive_entry *e = archive_entry_new();
	int r = ARCHIVE_FATAL;

	if (e) {
		archive_entry_set_pathname(e, name);
		archive_entry_set_filetype(e, AE_IFREG);
		archive_entry_set_perm(e, 0600);
		archive_entry_set_mtime(e, w->mtime, 0);
		archive_entry_set_size(e, (la_int64_t)size);
		r = archive_write_header(w->archive, e);
		archive_entry_free(e);
	}
	return r == ARCHIVE_OK ? 0 : archive_failed(w);
}

static int member_data(struct image_writer *w, const void *buf, size_t len)
{
	if (len && archive_write_data(w->archive, buf, len) != (la_ssize_t)len)
		return archive_failed(w);
	return 0;
}

static int member_end(struct image_writer *w)
{
	return archive_write_finish_entry(w->archive) == ARCHIVE_OK ? 0 : archive_failed(w);
}

static int member_note(struct image_writer *w, const char *name, uint64_t offset, uint64_t size,
		       XXH128_hash_t hash)
{
	struct member *m = NULL;

	for (size_t i = 0; i < w->nr_members && !m; i++)
		if (!strcmp(w->members[i].name, name))
			m = &w->members[i];
	if (!m) {
		if (w->nr_members == w->room_members) {
			size_t room = w->room_members ? 2 * w->room_members : 32;
			struct member *v = reallocarray(w->members, room, sizeof(*v));

			if (!v)
				return -ENOMEM;
			w->members = v;
			w->room_members = room;
		}
		m = &w->members[w->nr_members++];
	}
	snprintf(m->name, sizeof(m->name), "%s", name);
	m->offset = offset;
	m->size = size;
	m->hash = hash;
	return 0;
}

static int member_whole(struct image_writer *w, const char *name, const void *buf, size_t len)
{
	uint64_t offset;
	int r;

	if ((r = member_header(w, name, len)) < 0)
		return r;
	offset = w->sink.position;
	if ((r = member_data(w, buf, len)) < 0 || (r = member_end(w)) < 0)
		return r;
	r = member_note(w, name, offset, len, XXH3_128bits(buf, len));
	if (r < 0) {
		struct usnap_err err = {0};

		usnap_fail_errno(&err, r, "cannot write the image");
		return fail_with(w, &err);
	}
	return 0;
}

/* ---- segments ---- */

static int note_base(struct image_writer *w, uint32_t nr, uint64_t offset)
{
	size_t need = ((size_t)nr + 1) * sizeof(uint64_t);
	int r;

	if (need > w->base.used && (r = growing_reserve(&w->base, need - w->base.used)) < 0)
		return r;
	w->base.used = MAX(w->base.used, need);
	((uint64_t *)w->base.p)[nr] = offset;
	return 0;
}

static void write_segment(struct image_writer *w, struct segment *s)
{
	char name[32];
	uint64_t offset;
	int r = 0;

	snprintf(name, sizeof(name), FORMAT_PAGES_DIR "%06u.zst", s->nr);
	pthread_mutex_lock(&w->io_lock);
	if (!w->archive || member_header(w, name, s->used) < 0)
		goto out;
	offset = w->sink.position;
	if (member_data(w, s->buf, s->used) < 0 || member_end(w) < 0)
		goto out;
	pthread_mutex_lock(&w->lock);
	r = note_base(w, s->nr, offset);
	if (r < 0) {
		struct usnap_err err = {0};

		usnap_fail_errno(&err, r, "cannot write the image");
		fail_locked(w, &err);
	}
	pthread_mutex_unlock(&w->lock);
out:
	pthread_mutex_unlock(&w->io_lock);
}

/* The full segment that comes first, or NULL. Needs lock. */
static struct segment *next_full(struct image_writer *w)
{
	struct segment *s = NULL;

	for (int i = 0; i < NR_SEGMENTS; i++)
		if (w->seg[i].state == SEGMENT_FULL && &w->seg[i] != w->current &&
		    (!s || w->seg[i].nr < s->nr))
			s = &w->seg[i];
	return s;
}

static void *writer_thread(void *ctx)
{
	struct image_writer *w = ctx;
	struct segment *s;

	pthread_mutex_lock(&w->lock);
	for (;;) {
		while (!w->closing && !(s = next_full(w)))
			pthread_cond_wait(&w->to_writer, &w->lock);
		if (w->closing)
			break;
		s->state = SEGMENT_WRITING;
		bool skip = w->failure.code != 0;
		pthread_mutex_unlock(&w->lock);
		if (!skip)
			write_segment(w, s);
		pthread_mutex_lock(&w->lock);
		s->state = SEGMENT_FREE;
		s->used = 0;
		pthread_cond_broadcast(&w->to_encoders);
	}
	pthread_mutex_unlock(&w->lock);
	return NULL;
}

static void seal_current(struct image_writer *w)
{
	if (w->current && w->current->used)
		pthread_cond_signal(&w->to_writer);
	else if (w->current)
		w->current->state = SEGMENT_FREE;
	w->current = NULL;
}

/* A segment with room for len more bytes; waits. Needs lock. */
static int segment_with_room(struct image_writer *w, size_t len)
{
	while (!w->failure.code) {
		if (w->current && w->current->used + len <= SEGMENT_BYTES)
			return 0;
		seal_current(w);
		for (int i = 0; i < NR_SEGMENTS && !w->current; i++)
			if (w->seg[i].state == SEGMENT_FREE)
				w->current = &w->seg[i];
		if (w->current) {
			w->current->state = SEGMENT_FULL; /* once it is current no more */
			w->current->used = 0;
			w->current->nr = w->next_segment++;
		} else {
			pthread_cond_wait(&w->to_encoders, &w->lock);
		}
	}
	return w->failure.code;
}

/* ---- encoders ---- */

int image_encoder_new(struct image_encoder **ret, struct image_writer *w)
{
	size_t frame_bytes = (size_t)w->o.frame_pages * w->o.page_size;
	struct image_encoder *e = calloc(1, sizeof(*e));

	if (!e)
		return -ENOMEM;
	e->w = w;
	e->out_room = ZSTD_compressBound(frame_bytes);
	e->raw = malloc(frame_bytes);
	e->out = malloc(e->out_room);
	e->hashes = calloc(w->o.frame_pages, sizeof(*e->hashes));
	e->runs = calloc(w->o.frame_pages, sizeof(*e->runs));
	e->cctx = ZSTD_createCCtx();
	if (!e->raw || !e->out || !e->hashes || !e->runs || !e->cctx ||
	    ZSTD_isError(ZSTD_CCtx_setParameter(e->cctx, ZSTD_c_compressionLevel, w->o.level)) ||
	    ZSTD_isError(ZSTD_CCtx_setParameter(e->cctx, ZSTD_c_checksumFlag, 1)) ||
	    ZSTD_isError(ZSTD_CCtx_setParameter(e->cctx, ZSTD_c_contentSizeFlag, 1))) {
		image_encoder_free(e);
		return -ENOMEM;
	}
	*ret = e;
	return 0;
}

void image_encoder_free(struct image_encoder *e)
{
	if (!e)
		return;
	ZSTD_freeCCtx(e->cctx);
	free(e->raw);
	free(e->out);
	free(e->hashes);
	free(e->runs);
	free(e);
}

static bool page_is_zero(const unsigned char *p, size_t len)
{
	uint64_t first;

	memcpy(&first, p, sizeof(first));
	return first == 0 && memcmp(p, p + sizeof(first), len - sizeof(first)) == 0;
}

static int check_encode(const struct image_writer *w, const struct image_run *runs, size_t nr_runs)
{
	uint64_t pages = 0;

	for (size_t i = 0; i < nr_runs; i++) {
		uint64_t n = runs[i].nr_pages;

		pages += n;
		if (!n || pages > w->o.frame_pages || runs[i].addr % w->o.page_size ||
		    runs[i].addr > UINT64_MAX - n * w->o.page_size)
			return -EINVAL;
	}
	return 0;
}

/* Hashes what is not zero and describes it in e->runs. Moves the pages
 * together in e->raw only when there are zero pages among them. *ret_data:
 * where the pages to be stored lie. */
static uint32_t sift(struct image_encoder *e, const struct image_run *runs, size_t nr_runs,
		     const unsigned char *data, size_t *ret_runs, const unsigned char **ret_data,
		     uint32_t *ret_zero)
{
	size_t ps = e->w->o.page_size, nr = 0;
	uint32_t pages = 0, zero = 0;
	const unsigned char *p = data;

	for (size_t i = 0; i < nr_runs; i++) {
		bool open = false;

		for (uint32_t k = 0; k < runs[i].nr_pages; k++, p += ps) {
			if (page_is_zero(p, ps)) {
				if (!zero++)
					memcpy(e->raw, data, (size_t)(p - data));
				open = false;
				continue;
			}
			if (!open)
				e->runs[nr++] =
					(struct image_run){.addr = runs[i].addr + (uint64_t)k * ps};
			open = true;
			e->runs[nr - 1].nr_pages++;
			if (zero)
				memcpy(e->raw + (size_t)pages * ps, p, ps);
			hash_canonical(&e->hashes[pages++], XXH3_128bits(p, ps));
		}
	}
	*ret_runs = nr;
	*ret_zero = zero;
	*ret_data = zero ? e->raw : data;
	return pages;
}

int image_encode(struct image_encoder *e, const struct image_run *runs, size_t nr_runs,
		 const void *data)
{
	struct image_writer *w = e->w;
	const unsigned char *stored;
	size_t nr_stored_runs, out = 0;
	struct page_frame frame = {0};
	uint32_t zero, pages;
	int r = atomic_load(&w->failed);

	if (r < 0)
		return r;
	if (!w->begun || check_encode(w, runs, nr_runs) < 0)
		return -EINVAL;
	pages = sift(e, runs, nr_runs, data, &nr_stored_runs, &stored, &zero);
	if (pages) {
		out = ZSTD_compress2(e->cctx, e->out, e->out_room, stored,
				     (size_t)pages * w->o.page_size);
		if (ZSTD_isError(out)) {
			struct usnap_err err = {0};

			usnap_fail(&err, -EIO, "cannot compress pages: %s", ZSTD_getErrorName(out));
			return fail_with(w, &err);
		}
	}

	pthread_mutex_lock(&w->lock);
	if (pages && (r = segment_with_room(w, out)) == 0) {
		frame.segment = w->current->nr;
		frame.offset = (uint32_t)w->current->used;
		frame.compressed_bytes = (uint32_t)out;
		frame.nr_pages = pages;
		r = pageindex_add(&w->index, &frame, e->runs, nr_stored_runs, e->hashes);
		if (r < 0) {
			struct usnap_err err = {0};

			usnap_fail_errno(&err, r, "cannot grow the page index");
			fail_locked(w, &err);
		} else {
			memcpy(w->current->buf + w->current->used, e->out, out);
			w->current->used += out;
			w->stats.nr_pages_stored += pages;
			w->stats.raw_bytes += (uint64_t)pages * w->o.page_size;
			w->stats.compressed_bytes += out;
		}
	}
	if (r == 0)
		w->stats.nr_pages_zero += zero;
	pthread_mutex_unlock(&w->lock);
	return r;
}

/* ---- the controlling thread ---- */

int image_writer_open(struct image_writer **ret, const struct image_writer_options *options,
		      struct usnap_err *err)
{
	struct image_writer *w;
	uint64_t frame_bytes = (uint64_t)options->frame_pages * options->page_size;
	int r;

	if (options->page_size < FORMAT_MIN_PAGE || options->page_size > FORMAT_MAX_PAGE ||
	    (options->page_size & (options->page_size - 1)) || !frame_bytes ||
	    frame_bytes > FORMAT_MAX_FRAME_RAW || options->level < ZSTD_minCLevel() ||
	    options->level > ZSTD_maxCLevel())
		return usnap_fail_errno(err, -EINVAL, "cannot begin an image");
	w = calloc(1, sizeof(*w));
	if (!w)
		return usnap_fail_errno(err, -ENOMEM, "cannot begin an image");
	w->o = *options;
	pthread_mutex_init(&w->lock, NULL);
	pthread_mutex_init(&w->io_lock, NULL);
	pthread_cond_init(&w->to_encoders, NULL);
	pthread_cond_init(&w->to_writer, NULL);
	pageindex_init(&w->index, options->page_size);
	r = sink_open(&w->sink, options->fd, options->rate_bytes_s);
	for (int i = 0; i < NR_SEGMENTS && r == 0; i++)
		if (!(w->seg[i].buf = malloc(SEGMENT_BYTES)))
			r = -ENOMEM;
	if (r == 0) {
		sigset_t all, before;

		/* Signals are for the threads that know what to do with them. */
		sigfillset(&all);
		pthread_sigmask(SIG_SETMASK, &all, &before);
		r = -pthread_create(&w->thread, NULL, writer_thread, w);
		pthread_sigmask(SIG_SETMASK, &before, NULL);
		w->have_thread = r == 0;
	}
	if (r < 0) {
		image_writer_close(w);
		return usnap_fail_errno(err, r, "cannot begin an image");
	}
	*ret = w;
	return 0;
}

int image_writer_begin(struct image_writer *w, struct usnap_err *err)
{
	bool writing = true;
	int r = report(w, err);

	if (r < 0)
		return r;
	/* What is full and not yet written need not be any more. */
	pthread_mutex_lock(&w->lock);
	w->current = NULL;
	while (writing) {
		writing = false;
		for (int i = 0; i < NR_SEGMENTS; i++) {
			if (w->seg[i].state == SEGMENT_FULL)
				w->seg[i].state = SEGMENT_FREE;
			writing |= w->seg[i].state == SEGMENT_WRITING;
		}
		if (writing)
			pthread_cond_wait(&w->to_encoders, &w->lock);
	}
	pageindex_clear(&w->index);
	memset(&w->stats, 0, sizeof(w->stats));
	if (w->sink.rewindable)
		w->next_segment = 0;
	w->begun = true;
	w->committed = false;
	pthread_mutex_unlock(&w->lock);

	pthread_mutex_lock(&w->io_lock);
	w->nr_members = 0;
	w->id_text[0] = '\0';
	w->mtime = (int64_t)(wall_ns() / 1000000000u);
	if (w->sink.rewindable) {
		archive_drop(w);
		r = sink_rewind(&w->sink);
		if (r < 0) {
			w->sink_error = r;
			archive_failed(w);
		}
	}
	if (r == 0 && !w->archive)
		archive_begin(w);
	pthread_mutex_unlock(&w->io_lock);
	return report(w, err);
}

/* The identity of the image, which the index and commit.json repeat. */
static int learn_identity(struct image_writer *w, const void *buf, size_t len,
			  struct usnap_err *err)
{
	json_t *j = json_loadb(buf, len, JSON_REJECT_DUPLICATES, NULL);
	const char *id = json_string_value(json_object_get(j, "id"));
	json_int_t t0 =
		json_integer_value(json_object_get(json_object_get(j, "t0"), "realtime_ns"));
	int r = 0;

	if (!id || hash_parse(id, w->id) < 0) {
		r = usnap_fail(err, -EINVAL, "cannot write '" FORMAT_SNAPSHOT "': it holds no id");
	} else {
		snprintf(w->id_text, sizeof(w->id_text), "%s", id);
		if (t0 > 0)
			w->mtime = t0 / 1000000000;
	}
	json_decref(j);
	return r;
}

int image_writer_member(struct image_writer *w, const char *name, const void *buf, size_t len,
			struct usnap_err *err)
{
	int r = report(w, err);

	if (r < 0)
		return r;
	if (!w->begun || w->committed || !*name || strlen(name) > FORMAT_MAX_NAME ||
	    len > FORMAT_MAX_JSON || !strncmp(name, FORMAT_PAGES_DIR, strlen(FORMAT_PAGES_DIR)) ||
	    !strcmp(name, FORMAT_INDEX) || !strcmp(name, FORMAT_COMMIT))
		return usnap_fail_errno(err, -EINVAL, "cannot write '%s' into the image", name);
	pthread_mutex_lock(&w->io_lock);
	if (!strcmp(name, FORMAT_SNAPSHOT))
		r = learn_identity(w, buf, len, err);
	if (r == 0)
		r = member_whole(w, name, buf, len);
	pthread_mutex_unlock(&w->io_lock);
	report(w, err);
	return r;
}

int image_writer_flush(struct image_writer *w, struct usnap_err *err)
{
	pthread_mutex_lock(&w->lock);
	seal_current(w);
	while (!w->failure.code &&
	       (w->seg[0].state != SEGMENT_FREE || w->seg[1].state != SEGMENT_FREE))
		pthread_cond_wait(&w->to_encoders, &w->lock);
	pthread_mutex_unlock(&w->lock);
	return report(w, err);
}

void image_writer_get_stats(struct image_writer *w, struct image_writer_stats *ret)
{
	pthread_mutex_lock(&w->lock);
	*ret = w->stats;
	pthread_mutex_unlock(&w->lock);
	ret->file_bytes = w->sink.total_bytes;
}

/* ---- the index and commit.json ---- */

/* The index goes through zstd twice: once to learn the size that its tar
 * header must state, once to be written. Keeping the result would cost the
 * memory that the promise of 40 bytes per page does not have, and zstd gives
 * the same bytes for the same calls. */
struct index_pass {
	struct image_writer *w;
	ZSTD_CCtx *cctx;
	XXH3_state_t *hash;
	uint64_t size;
	bool write;
	size_t room;
	unsigned char *out;
};

static int index_feed(struct index_pass *p, const void *buf, size_t len, ZSTD_EndDirective end)
{
	ZSTD_inBuffer in = {.src = buf, .size = len};
	size_t left;

	do {
		ZSTD_outBuffer out = {.dst = p->out, .size = p->room};
		int r;

		left = ZSTD_compressStream2(p->cctx, &out, &in, end);
		if (ZSTD_isError(left)) {
			struct usnap_err err = {0};

			usnap_fail(&err, -EIO, "cannot compress the page index: %s",
				   ZSTD_getErrorName(left));
			return fail_with(p->w, &err);
		}
		p->size += out.pos;
		XXH3_128bits_update(p->hash, p->out, out.pos);
		if (p->write && (r = member_data(p->w, p->out, out.pos)) < 0)
			return r;
	} while (in.pos < in.size || (end == ZSTD_e_end && left));
	return 0;
}

static int on_index(void *ctx, const void *buf, size_t len)
{
	struct index_pass *p = ctx;

	return index_feed(p, buf, len, ZSTD_e_continue);
}

static int index_run(struct index_pass *p)
{
	struct image_writer *w = p->w;
	int r;

	p->size = 0;
	XXH3_128bits_reset(p->hash);
	ZSTD_CCtx_reset(p->cctx, ZSTD_reset_session_and_parameters);
	if (ZSTD_isError(ZSTD_CCtx_setParameter(p->cctx, ZSTD_c_compressionLevel, 1)) ||
	    ZSTD_isError(ZSTD_CCtx_setParameter(p->cctx, ZSTD_c_checksumFlag, 1)) ||
	    ZSTD_isError(ZSTD_CCtx_setPledgedSrcSize(p->cctx, pageindex_bytes(&w->index))))
		return -ENOMEM;
	r = pageindex_emit(&w->index, w->id, w->base.p, on_index, p);
	return r < 0 ? r : index_feed(p, NULL, 0, ZSTD_e_end);
}

static int write_index(struct image_writer *w)
{
	struct index_pass p = {.w = w, .room = ZSTD_CStreamOutSize()};
	XXH128_hash_t first;
	uint64_t size, offset;
	int r = -ENOMEM;

	p.cctx = ZSTD_createCCtx();
	p.hash = XXH3_createState();
	p.out = malloc(p.room);
	if (!p.cctx || !p.hash || !p.out)
		goto out;
	if ((r = index_run(&p)) < 0)
		goto out;
	size = p.size;
	first = XXH3_128bits_digest(p.hash);
	if ((r = member_header(w, FORMAT_INDEX, size)) < 0)
		goto out;
	offset = w->sink.position;
	p.write = true;
	if ((r = index_run(&p)) < 0 || (r = member_end(w)) < 0)
		goto out;
	if (p.size != size || !XXH128_isEqual(first, XXH3_128bits_digest(p.hash)))
		r = -EIO;
	else
		r = member_note(w, FORMAT_INDEX, offset, size, first);
out:
	if (r < 0) {
		struct usnap_err err = {0};

		usnap_fail_errno(&err, r, "cannot write the page index");
		fail_with(w, &err); /* the first failure stays */
	}
	ZSTD_freeCCtx(p.cctx);
	XXH3_freeState(p.hash);
	free(p.out);
	return r;
}

/* commit.json without its last two fields: they are hashes of a part of the
 * file that ends where they stand. */
static char *commit_text(struct image_writer *w)
{
	json_t *j = json_object(), *members = json_object();
	char hex[FORMAT_HASH_HEX + 1];
	char *body, *text = NULL;

	for (size_t i = 0; i < w->nr_members; i++) {
		const struct member *m = &w->members[i];

		json_object_set_new(members, m->name,
				    json_pack("{s:I,s:I,s:s}", "offset", (json_int_t)m->offset,
					      "bytes", (json_int_t)m->size, "xxh3",
					      hash_format(hex, m->hash)));
	}
	json_object_set_new(j, "version", json_integer(FORMAT_VERSION));
	json_object_set_new(j, "id", json_string(w->id_text));
	json_object_set_new(j, "pages", json_integer((json_int_t)w->index.nr_records));
	json_object_set_new(j, "frames", json_integer((json_int_t)pageindex_nr_frames(&w->index)));
	json_object_set_new(j, "bytes", json_integer((json_int_t)w->sink.position));
	json_object_set_new(j, "members", members);
	body = json_dumps(j, JSON_COMPACT);
	json_decref(j);
	if (body) {
		memset(hex, '0', FORMAT_HASH_HEX);
		hex[FORMAT_HASH_HEX] = '\0';
		body[strlen(body) - 1] = '\0'; /* the brace */
		if (asprintf(&text, "%s," FORMAT_COMMIT_TAIL, body, hex, hex) < 0)
			text = NULL;
		free(body);
	}
	return text;
}

static int write_commit(struct image_writer *w)
{
	cleanup_free char *text = commit_text(w);
	size_t len = text ? strlen(text) : 0;
	char hex[FORMAT_HASH_HEX + 1];
	int r;

	if (!text || len > FORMAT_MAX_COMMIT) {
		struct usnap_err err = {0};

		usnap_fail_errno(&err, text ? -E2BIG : -ENOMEM, "cannot write '" FORMAT_COMMIT "'");
		return fail_with(w, &err);
	}
	if ((r = member_header(w, FORMAT_COMMIT, len)) < 0)
		return r;
	memcpy(text + len - FORMAT_COMMIT_ARCHIVE,
	       hash_format(hex, XXH3_128bits_digest(w->sink.hash)), FORMAT_HASH_HEX);
	memcpy(text + len - FORMAT_COMMIT_SELF,
	       hash_format(hex, XXH3_128bits(text, len - FORMAT_COMMIT_SELF)), FORMAT_HASH_HEX);
	if ((r = member_data(w, text, len)) < 0 || (r = member_end(w)) < 0)
		return r;
	return archive_write_close(w->archive) == ARCHIVE_OK ? 0 : archive_failed(w);
}

int image_writer_commit(struct image_writer *w, const struct image_alias *aliases,
			size_t nr_aliases, const char *stats_json, size_t stats_len,
			struct usnap_err *err)
{
	int r = image_writer_flush(w, err);

	if (r < 0)
		return r;
	if (!w->begun || w->committed || !w->id_text[0])
		return usnap_fail(err, -EINVAL, "cannot commit the image: it has no '%s'",
				  FORMAT_SNAPSHOT);
	/* The encoders are done: index and base are ours alone from here on. */
	r = pageindex_finish(&w->index, aliases, nr_aliases, err);
	if (r < 0)
		return r;
	pthread_mutex_lock(&w->io_lock);
	if ((r = write_index(w)) == 0 &&
	    (r = member_whole(w, FORMAT_STATS, stats_json, stats_len)) == 0)
		r = write_commit(w);
	w->committed = r == 0;
	pthread_mutex_unlock(&w->io_lock);
	report(w, err);
	return r;
}

void image_writer_abort(struct image_writer *w)
{
	int none = 0;

	sink_stop(&w->sink);
	atomic_compare_exchange_strong(&w->failed, &none, -ECANCELED);
}

void image_writer_close(struct image_writer *w)
{
	if (!w)
		return;
	if (w->have_thread) {
		pthread_mutex_lock(&w->lock);
		w->closing = true;
		pthread_cond_broadcast(&w->to_writer);
		pthread_mutex_unlock(&w->lock);
		if (!w->committed)
			sink_stop(&w->sink);
		pthread_join(w->thread, NULL);
	}
	if (w->committed)
		archive_write_free(w->archive);
	else
		archive_drop(w);
	sink_close(&w->sink);
	for (int i = 0; i < NR_SEGMENTS; i++)
		free(w->seg[i].buf);
	pageindex_clear(&w->index);
	growing_free(&w->base);
	free(w->members);
	pthread_cond_destroy(&w->to_encoders);
	pthread_cond_destroy(&w->to_writer);
	pthread_mutex_destroy(&w->io_lock);
	pthread_mutex_destroy(&w->lock);
	free(w);
}
