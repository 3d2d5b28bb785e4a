/*
 * DESIGN. Encoders compress each in their own thread and copy the finished
 * frame into the current segment under `lock`, together with its entries of
 * the index. There are few segments: while one fills, the writer thread
 * writes another; when all are full, encoders wait. Where a segment comes
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

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <xxhash.h>
#include <zstd.h>

#include "common/util.h"
#include "image/append.h"
#include "image/commit.h"
#include "image/format.h"
#include "image/hash.h"
#include "image/image.h"
#include "image/pageindex.h"
#include "image/tarball.h"

enum {
	SEGMENT_BYTES = 4 << 20,
	NR_SEGMENTS = 4 /* a disk that stands still for a moment should hold nobody up */
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
	bool runs, begun, closing, indexed, committed;
	bool seeded; /* the index's seed was given */

	pthread_mutex_t io_lock;
	struct tarball tar;
	unsigned char id[FORMAT_ID_BYTES];
	char id_text[2 * FORMAT_ID_BYTES + 1];
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

static int write_segment(struct image_writer *w, const struct segment *s, struct usnap_err *err)
{
	char name[32];
	uint64_t offset;
	int r;

	snprintf(name, sizeof(name), FORMAT_PAGES_DIR "%06u.zst", s->nr);
	pthread_mutex_lock(&w->io_lock);
	r = tarball_header(&w->tar, name, s->used, err);
	offset = w->tar.sink.position;
	if (r == 0)
		r = tarball_data(&w->tar, s->buf, s->used, err);
	if (r == 0)
		r = tarball_end_member(&w->tar, err);
	pthread_mutex_unlock(&w->io_lock);
	if (r < 0)
		return r;
	pthread_mutex_lock(&w->lock);
	r = note_base(w, s->nr, offset);
	pthread_mutex_unlock(&w->lock);
	return r < 0 ? usnap_fail_errno(err, r, "cannot write the image") : 0;
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

/* A table of descriptors of its own, with no more than it writes to: a write to a file system that does not
 * answer lasts beyond SIGKILL, and would keep what the others have open, such as a userfaultfd that a
 * process waits at, or a socket or pipe at the standard descriptors whose end somebody waits for. */
static void keep_output_only(const struct image_writer *w)
{
	const struct sink *s = &w->tar.sink;
	const unsigned first = STDERR_FILENO + 1, kept[] = {(unsigned)MIN(s->fd, s->stop_fd),
							    (unsigned)MAX(s->fd, s->stop_fd)};
	unsigned from = first;

	if (unshare(CLONE_FILES) < 0)
		return;
	for (int fd = STDIN_FILENO, null; fd <= STDERR_FILENO; fd++) {
		if (fd == s->fd || fd == s->stop_fd || fcntl(fd, F_GETFD) < 0)
			continue;
		null = open("/dev/null", O_RDWR | O_CLOEXEC);
		if (null >= 0 && null != fd && dup2(null, fd) >= 0)
			close(null);
	}
	for (size_t i = 0; i < ARRAY_SIZE(kept); i++) {
		if (kept[i] > from)
			syscall(SYS_close_range, from, kept[i] - 1, 0);
		from = MAX(from, kept[i] + 1);
	}
	syscall(SYS_close_range, from, ~0u, 0);
}

static void *writer_thread(void *ctx)
{
	struct image_writer *w = ctx;
	struct segment *s;

	keep_output_only(w);
	sink_flush_early(&w->tar.sink);
	pthread_mutex_lock(&w->lock);
	w->runs = true;
	pthread_cond_broadcast(&w->to_encoders);
	for (;;) {
		while (!w->closing && !(s = next_full(w)))
			pthread_cond_wait(&w->to_writer, &w->lock);
		if (w->closing)
			break;
		s->state = SEGMENT_WRITING;
		bool skip = w->failure.code != 0;
		pthread_mutex_unlock(&w->lock);
		struct usnap_err err = {0};
		if (!skip)
			write_segment(w, s, &err);
		pthread_mutex_lock(&w->lock);
		if (err.code)
			fail_locked(w, &err);
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

/* ---- for the encoders ---- */

const struct image_writer_options *writer_options(const struct image_writer *w)
{
	return &w->o;
}

int writer_ready(struct image_writer *w)
{
	int r = atomic_load(&w->failed);

	return r < 0 ? r : w->begun ? 0 : -EINVAL;
}

int writer_fail(struct image_writer *w, const struct usnap_err *err)
{
	int r;

	pthread_mutex_lock(&w->lock);
	r = fail_locked(w, err);
	pthread_mutex_unlock(&w->lock);
	return r;
}

const struct usnap_image *writer_parent(const struct image_writer *w)
{
	return w->index.refs.parent;
}

uint64_t writer_seed(const struct image_writer *w)
{
	return w->index.seed;
}

void writer_find(struct image_writer *w, struct sifted *pages, size_t n)
{
	pthread_mutex_lock(&w->lock);
	for (size_t i = 0; i < n; i++)
		if (pages[i].frame == PAGE_NEW_FRAME)
			pageindex_find(&w->index, &pages[i].hash, &pages[i].frame, &pages[i].slot);
	pthread_mutex_unlock(&w->lock);
}

static int append_locked(struct image_writer *w, const struct encoded *e)
{
	struct page_frame frame = {.nr_pages = e->nr_pages, .compressed_bytes = (uint32_t)e->len};
	int r = e->len ? segment_with_room(w, e->len) : w->failure.code;

	if (r < 0)
		return r;
	if (e->len) {
		frame.segment = w->current->nr;
		frame.offset = (uint32_t)w->current->used;
	}
	r = pageindex_add(&w->index, e->len ? &frame : NULL, e->runs, e->nr_runs, e->hashes,
			  e->find);
	if (r < 0) {
		struct usnap_err err = {0};

		usnap_fail_errno(&err, r, "cannot grow the page index");
		return fail_locked(w, &err);
	}
	if (e->len) {
		memcpy(w->current->buf + w->current->used, e->data, e->len);
		w->current->used += e->len;
	}
	w->stats.nr_pages_equal += e->nr_equal;
	w->stats.nr_pages_zero += e->nr_zero;
	w->stats.raw_bytes += (uint64_t)e->nr_pages * w->o.page_size;
	w->stats.compressed_bytes += e->len;
	return 0;
}

int writer_append(struct image_writer *w, const struct encoded *e)
{
	int r;

	pthread_mutex_lock(&w->lock);
	r = append_locked(w, e);
	pthread_mutex_unlock(&w->lock);
	return r;
}

/* ---- the controlling thread ---- */

static int choose_seed(struct image_writer *w, const uint64_t *given)
{
	w->seeded = given != NULL;
	if (given)
		w->index.seed = *given;
	else if (getrandom(&w->index.seed, sizeof(w->index.seed), 0) != sizeof(w->index.seed))
		return -EIO;
	return 0;
}

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
	w->o.seed = NULL;
	pthread_mutex_init(&w->lock, NULL);
	pthread_mutex_init(&w->io_lock, NULL);
	pthread_cond_init(&w->to_encoders, NULL);
	pthread_cond_init(&w->to_writer, NULL);
	pageindex_init(&w->index, options->page_size);
	r = tarball_open(&w->tar, options->fd, options->rate_bytes_s);
	if (r == 0)
		r = choose_seed(w, options->seed);
	w->tar.sink.cancel = options->cancel;
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
		pthread_mutex_lock(&w->lock);
		while (r == 0 && !w->runs)
			pthread_cond_wait(&w->to_encoders, &w->lock);
		pthread_mutex_unlock(&w->lock);
	}
	if (r < 0) {
		image_writer_close(w);
		return usnap_fail_errno(err, r, "cannot begin an image");
	}
	*ret = w;
	return 0;
}

int image_writer_set_parent(struct image_writer *w, struct usnap_image *parent,
			    struct usnap_err *err)
{
	int r = img_require_open(parent);

	if (r == 0)
		r = img_load_index(parent);
	if (r < 0)
		return usnap_fail(err, r, "%s", parent->err.text);
	if (w->begun)
		return usnap_fail_errno(err, -EINVAL, "cannot continue '%s'", parent->name);
	if (parent->info.page_size != w->o.page_size)
		return usnap_fail(err, -ESTALE, "cannot continue '%s': its pages have another size",
				  parent->name);
	if (w->seeded && parent->seed != w->index.seed)
		return usnap_fail(err, -ESTALE,
				  "cannot continue '%s': it was made with another secret",
				  parent->name);
	if (parent->nr_images >= FORMAT_MAX_IMAGES)
		return usnap_fail(err, -ESTALE, "cannot continue '%s': it has too many ancestors",
				  parent->name);
	w->index.seed = parent->seed;
	w->index.refs.parent = parent;
	return 0;
}

int image_writer_begin(struct image_writer *w, struct usnap_err *err)
{
	struct usnap_err failure = {0};
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
	if (w->tar.sink.rewindable)
		w->next_segment = 0;
	w->begun = true;
	w->indexed = w->committed = false;
	pthread_mutex_unlock(&w->lock);

	pthread_mutex_lock(&w->io_lock);
	w->id_text[0] = '\0';
	r = tarball_begin(&w->tar, &failure);
	pthread_mutex_unlock(&w->io_lock);
	if (r < 0)
		writer_fail(w, &failure);
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
			w->tar.mtime = t0 / 1000000000;
	}
	json_decref(j);
	return r;
}

int image_writer_member(struct image_writer *w, const char *name, const void *buf, size_t len,
			struct usnap_err *err)
{
	struct usnap_err failure = {0};
	int r = report(w, err);

	if (r < 0)
		return r;
	if (!w->begun || w->indexed || !*name || strlen(name) > FORMAT_MAX_NAME ||
	    len > FORMAT_MAX_JSON || !strncmp(name, FORMAT_PAGES_DIR, strlen(FORMAT_PAGES_DIR)) ||
	    !strcmp(name, FORMAT_INDEX) || !strcmp(name, FORMAT_COMMIT))
		return usnap_fail_errno(err, -EINVAL, "cannot write '%s' into the image", name);
	pthread_mutex_lock(&w->io_lock);
	if (!strcmp(name, FORMAT_SNAPSHOT))
		r = learn_identity(w, buf, len, err);
	if (r == 0)
		r = tarball_member(&w->tar, name, buf, len, &failure);
	pthread_mutex_unlock(&w->io_lock);
	if (failure.code)
		writer_fail(w, &failure);
	report(w, err);
	return r;
}

static bool all_free(const struct image_writer *w)
{
	for (int i = 0; i < NR_SEGMENTS; i++)
		if (w->seg[i].state != SEGMENT_FREE)
			return false;
	return true;
}

int image_writer_flush(struct image_writer *w, struct usnap_err *err)
{
	pthread_mutex_lock(&w->lock);
	seal_current(w);
	while (!w->failure.code && !all_free(w))
		pthread_cond_wait(&w->to_encoders, &w->lock);
	pthread_mutex_unlock(&w->lock);
	return report(w, err);
}

void image_writer_get_stats(struct image_writer *w, struct image_writer_stats *ret)
{
	pthread_mutex_lock(&w->lock);
	*ret = w->stats;
	ret->nr_pages_stored = w->index.nr_pages - w->index.nr_referred;
	ret->nr_pages_referred = w->index.nr_referred;
	pthread_mutex_unlock(&w->lock);
	ret->file_bytes = w->tar.sink.total_bytes;
	ret->longest_write_ns = w->tar.sink.longest_ns;
}

void image_writer_drop(struct image_writer *w, uint64_t addr, uint64_t len)
{
	pthread_mutex_lock(&w->lock);
	pageindex_drop(&w->index, addr, len);
	pthread_mutex_unlock(&w->lock);
}

/* Once the encoders are done: index and base are ours alone. Needs io_lock. */
static int write_index(struct image_writer *w, struct usnap_err *err)
{
	int r = w->indexed ? 0 : pageindex_finish(&w->index, err);

	if (r == 0 && !w->indexed)
		r = commit_write_index(&w->tar, &w->index, w->id, w->base.p, err);
	w->indexed = r == 0;
	return r;
}

int image_writer_index(struct image_writer *w, struct usnap_err *err)
{
	struct usnap_err failure = {0};
	int r = image_writer_flush(w, err);

	if (r < 0)
		return r;
	if (!w->begun || w->committed || !w->id_text[0])
		return usnap_fail(err, -EINVAL, "cannot commit the image: it has no '%s'",
				  FORMAT_SNAPSHOT);
	pthread_mutex_lock(&w->io_lock);
	r = write_index(w, &failure);
	pthread_mutex_unlock(&w->io_lock);
	if (r < 0)
		writer_fail(w, &failure);
	report(w, err);
	return r;
}

int image_writer_commit(struct image_writer *w, const char *stats_json, size_t stats_len,
			struct usnap_err *err)
{
	struct usnap_err failure = {0};
	int r = image_writer_index(w, err);

	if (r < 0)
		return r;
	pthread_mutex_lock(&w->io_lock);
	r = tarball_member(&w->tar, FORMAT_STATS, stats_json, stats_len, &failure);
	if (r == 0)
		r = commit_write(&w->tar, &w->index, w->id_text, &failure);
	w->committed = r == 0;
	pthread_mutex_unlock(&w->io_lock);
	if (r < 0)
		writer_fail(w, &failure);
	report(w, err);
	return r;
}

void image_writer_abort(struct image_writer *w)
{
	int none = 0;

	sink_stop(&w->tar.sink);
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
			sink_stop(&w->tar.sink);
		pthread_join(w->thread, NULL);
	}
	tarball_close(&w->tar);
	for (int i = 0; i < NR_SEGMENTS; i++)
		free(w->seg[i].buf);
	pageindex_clear(&w->index);
	growing_free(&w->base);
	pthread_cond_destroy(&w->to_encoders);
	pthread_cond_destroy(&w->to_writer);
	pthread_mutex_destroy(&w->io_lock);
	pthread_mutex_destroy(&w->lock);
	free(w);
}
