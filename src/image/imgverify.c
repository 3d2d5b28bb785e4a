/*
 * DESIGN. Two kinds of work go on at once. Worker threads take frames in
 * the order of the page index, which is that of the file by and large, decode
 * them and compare every page with its hash: that names what is damaged. The
 * calling thread hashes the file from its first byte to commit.json and
 * compares with the hash there: that finds what nothing else refers to (tar
 * headers, padding, pages of abandoned attempts). Both read the same bytes
 * at about the same time, so the page cache serves one of them.
 *
 * Frames of ancestors that pages refer to are among those of the index and
 * are checked as the image's own are. The rest of an ancestor is its own
 * verification's to check.
 *
 * Findings are collected under a lock and handed to the caller at the end,
 * sorted by offset, by the calling thread.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/io.h"
#include "common/util.h"
#include "image/hash.h"
#include "image/image.h"

enum {
	MAX_FINDINGS = 1000,
	MAX_WORKERS = 64
};

struct finding {
	uint64_t offset;
	char what[500];
};

struct verify {
	struct usnap_image *img;
	struct img_scan scan;

	/* Pages in the order of their frames: those of frame f are numbers
	 * by_frame[first[f]] ... by_frame[first[f + 1] - 1]. */
	uint64_t *first, *by_frame;
	atomic_uint_fast64_t next_frame;
	bool no_chain;
	/* By image: its first failure was told. What is missing is missing for every frame. */
	atomic_bool *told;
	atomic_int failed; /* out of memory, I/O error: not the image's fault */

	bool archive_differs;

	pthread_mutex_t lock;
	struct finding *findings;
	size_t nr_findings, nr_beyond;
};

static void add_finding(struct verify *v, uint64_t offset, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

static void add_finding(struct verify *v, uint64_t offset, const char *fmt, ...)
{
	va_list ap;

	pthread_mutex_lock(&v->lock);
	if (v->nr_findings < MAX_FINDINGS) {
		struct finding *f = &v->findings[v->nr_findings++];

		f->offset = offset;
		va_start(ap, fmt);
		vsnprintf(f->what, sizeof(f->what), fmt, ap);
		va_end(ap);
	} else {
		v->nr_beyond++;
	}
	pthread_mutex_unlock(&v->lock);
}

/* Turns a failure of the handle into a finding when it is damage. Returns 0
 * then, and the failure otherwise. */
static int settle(struct verify *v, int r)
{
	if (r >= 0)
		return 0;
	if (r != -EBADMSG)
		return r;
	add_finding(v, v->img->err_offset, "%s", v->img->err_what);
	img_begin(v->img);
	return 0;
}

/* ---- frames ---- */

static bool in_segment(const struct verify *v, const struct img_frame *f)
{
	size_t a = 0, b = v->scan.nr_segments;

	while (a < b) {
		size_t m = a + (b - a) / 2;
		const struct img_extent *s = &v->scan.segments[m];

		if (f->offset < s->offset)
			b = m;
		else if (f->offset - s->offset >= s->size)
			a = m + 1;
		else
			return f->compressed_bytes <= s->size - (f->offset - s->offset);
	}
	return false;
}

/* Damage of a frame; in an ancestor it is found where this image refers to it. */
static void add_frame_finding(struct verify *v, const struct img_frame *f, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

static void add_frame_finding(struct verify *v, const struct img_frame *f, const char *fmt, ...)
{
	char what[200];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(what, sizeof(what), fmt, ap);
	va_end(ap);
	if (!f->image)
		add_finding(v, f->offset, "%s", what);
	else
		add_finding(v, img_find_member(v->img, FORMAT_INDEX)->offset,
			    "in '%.200s', offset %" PRIu64 ": %s",
			    img_ancestor_path(v->img, f->image), f->offset, what);
}

static void add_frame_failure(struct verify *v, const struct img_frame *f, uint64_t nr, int r,
			      const struct usnap_err *err)
{
	uint64_t at = img_find_member(v->img, FORMAT_INDEX)->offset;

	if (r == -ESTALE) {
		if (!atomic_exchange(&v->told[f->image], true))
			add_finding(v, at, "%s", err->text);
	} else if (r == -EBADMSG) {
		add_frame_finding(v, f, "the file ends before frame %" PRIu64 " does", nr);
	} else {
		atomic_store(&v->failed, r);
	}
}

static void check_frame(struct verify *v, uint64_t nr, ZSTD_DCtx *dctx, unsigned char *compressed,
			unsigned char *raw, bool scanned)
{
	struct usnap_image *img = v->img;
	uint32_t ps = img->info.page_size;
	unsigned char hash[FORMAT_HASH_BYTES];
	struct usnap_err err = {0};
	struct img_frame f;
	const char *what;
	int r;

	img_get_frame(img, nr, &f);
	if (f.image && (v->no_chain || v->first[nr] == v->first[nr + 1]))
		return;
	if (!f.image && scanned && !in_segment(v, &f)) {
		add_finding(v, f.offset, "frame %" PRIu64 " lies in no page segment", nr);
		return;
	}
	r = img_pread_frame(img, &f, compressed, &err);
	if (r < 0) {
		add_frame_failure(v, &f, nr, r, &err);
		return;
	}
	what = img_decode(dctx, &f, compressed, raw);
	if (what) {
		add_frame_finding(v, &f, "frame %" PRIu64 ": %s", nr, what);
		return;
	}
	for (uint64_t i = v->first[nr]; i < v->first[nr + 1]; i++) {
		uint64_t page = v->by_frame[i];

		hash_page(hash, img->seed, raw + (size_t)img_page_slot(img, page) * ps, ps);
		if (memcmp(hash, img_page_hash(img, page), sizeof(hash)) != 0)
			add_frame_finding(v, &f, "page 0x%" PRIx64 " differs from its hash",
					  img_page_addr(img, page));
	}
}

static void *worker(void *ctx)
{
	struct verify *v = ctx;
	cleanup_free unsigned char *raw = malloc(FORMAT_MAX_FRAME_RAW);
	cleanup_free unsigned char *compressed = malloc(ZSTD_COMPRESSBOUND(FORMAT_MAX_FRAME_RAW));
	ZSTD_DCtx *dctx = ZSTD_createDCtx();
	bool scanned = v->scan.nr_segments || !v->img->nr_frames;

	if (!raw || !compressed || !dctx)
		atomic_store(&v->failed, -ENOMEM);
	while (!atomic_load(&v->failed)) {
		uint64_t nr = atomic_fetch_add(&v->next_frame, 1);

		if (nr >= v->img->nr_frames)
			break;
		check_frame(v, nr, dctx, compressed, raw, scanned);
	}
	ZSTD_freeDCtx(dctx);
	return NULL;
}

/* ---- the calling thread's part ---- */

/* Every page must lie in a region, as what was not mapped has no content, or in the content of a
 * file without a name. */
static int check_references(struct verify *v)
{
	struct usnap_image *img = v->img;
	uint64_t at = img_find_member(img, FORMAT_INDEX)->offset;
	size_t region = 0, content = 0, n;
	int r = usnap_image_get_nr_regions(img, &n);

	if (r < 0 || (r = img_load_contents(img)) < 0)
		return settle(v, r);
	for (uint64_t i = 0; i < img->nr_pages; i++) {
		uint64_t addr = img_page_addr(img, i);

		if (addr >= FORMAT_CONTENT_START && addr < FORMAT_CONTENT_END) {
			const struct img_content *c = img->contents;

			while (content < img->nr_contents &&
			       c[content].addr + c[content].size <= addr)
				content++;
			if (content == img->nr_contents || c[content].addr > addr)
				add_finding(v, at, "page 0x%" PRIx64 " lies in no unlinked file",
					    addr);
			continue;
		}
		while (region < n && img->regions[region].end <= addr)
			region++;
		if (region == n || img->regions[region].start > addr)
			add_finding(v, at, "page 0x%" PRIx64 " lies in no region", addr);
		else if (img->regions[region].content == USNAP_CONTENT_NONE)
			add_finding(v, at, "page 0x%" PRIx64 " lies in a region without content",
				    addr);
	}
	return 0;
}

static int check_metadata(struct verify *v)
{
	struct usnap_image *img = v->img;
	const void *notes;
	size_t n, len;
	int r;

	for (size_t i = 0; i < img->nr_members; i++) {
		struct img_member *m = &img->members[i];
		bool is_used = m->data;

		if (!strcmp(m->name, FORMAT_INDEX))
			continue;
		if ((r = settle(v, img_load_member(img, m))) < 0)
			return r;
		if (!is_used) {
			free(m->data);
			m->data = NULL;
		}
	}
	r = usnap_image_get_nr_threads(img, &n);
	if (r < 0)
		return settle(v, r);
	for (size_t i = 0; i < n; i++) {
		r = usnap_image_get_notes(img, i, &notes, &len);
		if (r == -ENOENT) {
			add_finding(v, img_find_member(img, FORMAT_PROCESS)->offset,
				    "thread %d has no registers", img->threads[i].tid);
			img_begin(img);
		} else if ((r = settle(v, r)) < 0)
			return r;
	}
	return 0;
}

/* What follows commit.json is zero, or it is not what was written. */
static int check_end(struct verify *v)
{
	unsigned char tail[FORMAT_TAR_BLOCK + FORMAT_TAR_END];
	struct usnap_image *img = v->img;
	uint64_t at = img->commit_content + img->commit_size;
	size_t len = (size_t)(img->size - at);
	int r = img_pread(img, tail, len, at);

	if (r < 0)
		return settle(v, r);
	for (size_t i = 0; i < len; i++) {
		if (tail[i]) {
			add_finding(v, at + i, "a byte after the end that is not zero");
			break;
		}
	}
	return 0;
}

static int check_archive(struct verify *v, const struct usnap_verify_options *o)
{
	struct usnap_image *img = v->img;
	unsigned char hash[FORMAT_HASH_BYTES];
	cleanup_free unsigned char *buf = malloc(MIB(1));
	XXH3_state_t *state = XXH3_createState();
	uint64_t last = 0;
	int r = buf && state ? 0 : -ENOMEM;

	if (r == 0)
		XXH3_128bits_reset(state);
	for (uint64_t at = 0; at < img->commit_content && r == 0 && !atomic_load(&v->failed);) {
		size_t n = (size_t)MIN(img->commit_content - at, (uint64_t)MIB(1));

		r = io_pread_full(img->fd, buf, n, at);
		if (r == 0)
			XXH3_128bits_update(state, buf, n);
		at += n;
		if (o->progress && now_ns() - last > 100000000u) {
			last = now_ns();
			o->progress(o->ctx, at, img->size);
		}
	}
	if (r == 0 && !atomic_load(&v->failed)) {
		hash_canonical(hash, XXH3_128bits_digest(state));
		v->archive_differs = memcmp(hash, img->archive_hash, sizeof(hash)) != 0;
	}
	XXH3_freeState(state);
	return r == -ENODATA ? 0 : r;
}

static int by_offset(const void *a, const void *b)
{
	const struct finding *x = a, *y = b;

	if (x->offset != y->offset)
		return x->offset < y->offset ? -1 : 1;
	return strcmp(x->what, y->what);
}

static int run(struct verify *v, const struct usnap_verify_options *o)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	unsigned n = o->nr_threads ? o->nr_threads : (unsigned)MAX(cpus, 1L);
	pthread_t threads[MAX_WORKERS];
	unsigned started = 0;
	bool index;
	int r;

	if ((r = settle(v, img_scan(v->img, &v->scan))) < 0 || (r = check_metadata(v)) < 0)
		return r;
	r = img_load_index(v->img);
	index = r == 0;
	if ((r = settle(v, r)) < 0)
		return r;
	if (index) {
		sigset_t all, before;

		v->told = calloc(v->img->nr_images, sizeof(*v->told));
		if (!v->told)
			return -ENOMEM;
		if ((r = check_references(v)) < 0 ||
		    (r = img_sort_by_frame(v->img, &v->first, &v->by_frame)) < 0)
			return r;
		n = (unsigned)MIN(MIN((uint64_t)n, v->img->nr_frames), (uint64_t)MAX_WORKERS);
		sigfillset(&all);
		pthread_sigmask(SIG_SETMASK, &all, &before);
		while (started < n && pthread_create(&threads[started], NULL, worker, v) == 0)
			started++;
		pthread_sigmask(SIG_SETMASK, &before, NULL);
	}
	r = check_archive(v, o);
	if (r < 0)
		atomic_store(&v->failed, r);
	if (index && !started)
		worker(v);
	for (unsigned i = 0; i < started; i++)
		pthread_join(threads[i], NULL);
	r = atomic_load(&v->failed);
	if (r < 0 || (r = check_end(v)) < 0)
		return r;
	/* Worth saying only when nothing else has said where. */
	if (v->archive_differs && !v->nr_findings)
		add_finding(v, 0,
			    "some byte before offset %" PRIu64
			    " differs, in what no page and no member is made of",
			    v->img->commit_content);
	return 0;
}

int usnap_image_verify(struct usnap_image *img, const struct usnap_verify_options *options)
{
	struct usnap_verify_options o;
	struct verify v = {.img = img, .lock = PTHREAD_MUTEX_INITIALIZER};
	int r;

	img_copy_out(&o, sizeof(o), options, MIN(options->size, sizeof(o)));
	/* Not even opened, for the damage that is remembered. */
	if (!img->info.page_size && img->err.code == -EBADMSG) {
		if (o.finding)
			o.finding(o.ctx, img->err_offset, img->err_what);
		return -EBADMSG;
	}
	if ((r = img_require_open(img)) < 0)
		return r;
	v.no_chain = o.no_chain;
	v.findings = calloc(MAX_FINDINGS, sizeof(*v.findings));
	r = v.findings ? run(&v, &o) : -ENOMEM;
	if (r < 0) {
		img_failed(img, r, NULL);
		r = img->err.code;
	}
	qsort(v.findings, v.nr_findings, sizeof(*v.findings), by_offset);
	for (size_t i = 0; i < v.nr_findings && o.finding; i++)
		o.finding(o.ctx, v.findings[i].offset, v.findings[i].what);
	if (r == 0 && v.nr_findings) {
		img_begin(img);
		r = img_damaged(img, v.findings[0].offset, "%s", v.findings[0].what);
		if (v.nr_beyond && o.finding) {
			char more[64];

			snprintf(more, sizeof(more), "and %zu findings more", v.nr_beyond);
			o.finding(o.ctx, v.findings[v.nr_findings - 1].offset, more);
		}
	}
	free(v.findings);
	free(v.first);
	free(v.by_frame);
	free(v.told);
	img_scan_free(&v.scan);
	return r;
}
