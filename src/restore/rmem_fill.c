/*
 * The pages come.
 *
 * DESIGN. The unit of work is a frame: it is read and decoded once, whatever
 * the order of its pages in memory. A counting sort of the page numbers by
 * frame gives each frame its pages, ascending by address. Threads take frames
 * in the order in which they lie in the file; each has its own decoder and
 * buffers, compares every page with its hash and hands runs of pages to
 * process_vm_writev(2), which makes the fresh pages on the way. Nothing
 * grows but the sorted numbers, 8 bytes a page.
 *
 * The process is idle meanwhile: nothing of it waits for anything here.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/util.h"
#include "image/hash.h"
#include "image/image.h"
#include "restore/rmem_internal.h"

enum {
	MAX_THREADS = 64,
	MAX_RUNS = 512, /* of one process_vm_writev() */
};

struct fill {
	struct restore *r;
	struct rmem *m;
	struct usnap_image *img;
	uint64_t *pages; /* numbers, sorted by frame */
	uint64_t *first; /* of each frame, into pages; one more at the end */
	struct rmem_object **contents; /* to be filled, ascending by address */
	size_t nr_contents;
	_Atomic uint64_t next_frame, done_bytes;
	_Atomic bool stop;
	pthread_mutex_t lock; /* over the rest */
	pthread_cond_t ended;
	unsigned nr_running;
	struct usnap_err err; /* the first failure */
};

struct worker {
	struct fill *f;
	ZSTD_DCtx *dctx;
	unsigned char *compressed, *raw;
	struct iovec local[MAX_RUNS], remote[MAX_RUNS];
	size_t nr_runs;
};

__attribute__((format(printf, 3, 4))) static int fail(struct fill *f, int code, const char *fmt,
						      ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	pthread_mutex_lock(&f->lock);
	if (!f->err.code)
		usnap_fail(&f->err, code, "%s", text);
	pthread_mutex_unlock(&f->lock);
	f->stop = true;
	return code;
}

/* ---- writing ---------------------------------------------------------------------------- */

static int flush(struct worker *w)
{
	struct fill *f = w->f;
	size_t at = 0;

	while (at < w->nr_runs) {
		ssize_t n = process_vm_writev(f->r->builder, w->local + at, w->nr_runs - at,
					      w->remote + at, w->nr_runs - at, 0);
		if (n < 0) {
			int code = -errno;
			return fail(f, code, "cannot fill the memory at 0x%" PRIxPTR ": %s",
				    (uintptr_t)w->remote[at].iov_base, strerror(-code));
		}
		f->done_bytes += (uint64_t)n;
		/* It stops at the page that it cannot write; the next call says why. */
		for (size_t left = (size_t)n; left;) {
			size_t part = MIN(left, w->local[at].iov_len);

			w->local[at].iov_base = (char *)w->local[at].iov_base + part;
			w->remote[at].iov_base = (char *)w->remote[at].iov_base + part;
			w->local[at].iov_len -= part;
			w->remote[at].iov_len -= part;
			left -= part;
			at += !w->local[at].iov_len;
		}
	}
	w->nr_runs = 0;
	return 0;
}

static int put_memory(struct worker *w, uint64_t addr, unsigned char *data, size_t len)
{
	if (w->nr_runs) {
		struct iovec *l = &w->local[w->nr_runs - 1], *t = &w->remote[w->nr_runs - 1];

		if ((unsigned char *)l->iov_base + l->iov_len == data &&
		    (uintptr_t)t->iov_base + t->iov_len == addr) {
			l->iov_len += len;
			t->iov_len += len;
			return 0;
		}
	}
	if (w->nr_runs == MAX_RUNS) {
		int r = flush(w);
		if (r < 0)
			return r;
	}
	w->local[w->nr_runs] = (struct iovec){data, len};
	w->remote[w->nr_runs++] = (struct iovec){(void *)(uintptr_t)addr, len};
	return 0;
}

static int put_file(struct fill *f, int fd, uint64_t offset, const unsigned char *data, size_t len)
{
	while (len) {
		ssize_t n = pwrite(fd, data, len, (off_t)offset);
		if (n <= 0) {
			int code = n < 0 ? -errno : -EIO;
			return fail(f, code, "cannot fill a file without a name: %s",
				    strerror(-code));
		}
		f->done_bytes += (uint64_t)n;
		data += n;
		offset += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}

static struct rmem_object *find_content(const struct fill *f, uint64_t addr)
{
	size_t a = 0, b = f->nr_contents;

	while (a < b) {
		size_t mid = a + (b - a) / 2;

		if (f->contents[mid]->content_addr + f->contents[mid]->content_bytes <= addr)
			a = mid + 1;
		else
			b = mid;
	}
	return a < f->nr_contents && f->contents[a]->content_addr <= addr ? f->contents[a] : NULL;
}

/* Where the bytes of a page go. */
struct place {
	uint64_t start, end; /* addresses that this holds for */
	const struct rmem_region *region; /* memory of the process */
	int fd; /* or a file, whose byte 0 would be at addr - offset */
	uint64_t offset;
	bool skip;
};

static struct place find_place(struct fill *f, uint64_t addr)
{
	struct place p = {.start = addr, .end = addr, .fd = -1, .skip = true};

	if (addr >= RMEM_CONTENT) {
		const struct rmem_object *ob = find_content(f, addr);

		if (ob) {
			p.end = ob->content_addr + MIN(ob->content_bytes, ob->bytes);
			p.fd = ob->content_fd;
			p.offset = -ob->content_addr;
			p.skip = addr >= p.end;
		}
		return p;
	}
	const struct rmem_region *g = rmem_find(f->m, addr);
	if (!g)
		return p;
	p.end = g->end;
	p.region = g;
	p.skip = g->skip;
	if (g->by_file) {
		p.fd = f->m->objects[g->object].content_fd;
		p.offset = g->offset - g->start;
	}
	return p;
}

static int put_page(struct worker *w, struct place *p, uint64_t addr, unsigned char *data,
		    size_t len)
{
	if (addr < p->start || addr >= p->end)
		*p = find_place(w->f, addr);
	if (p->skip)
		return 0;
	if (p->fd >= 0)
		return put_file(w->f, p->fd, addr + p->offset, data,
				(size_t)MIN((uint64_t)len, p->end - addr));
	return put_memory(w, addr, data, len);
}

/* ---- a frame ---------------------------------------------------------------------------- */

static int read_frame(struct worker *w, uint64_t nr, struct img_frame *fr)
{
	struct fill *f = w->f;

	img_get_frame(f->img, nr, fr);
	struct usnap_err err = {0};
	int r = img_pread_frame(f->img, fr, w->compressed, &err);
	if (r < 0)
		return fail(f, r, "%s", err.text);
	const char *what = img_decode(w->dctx, fr, w->compressed, w->raw);
	if (what) {
		img_frame_damaged(f->img, fr, &err, "frame %" PRIu64 ": %s", nr, what);
		return fail(f, -EBADMSG, "%s", err.text);
	}
	return 0;
}

static int fill_frame(struct worker *w, uint64_t nr)
{
	struct fill *f = w->f;
	const size_t ps = f->img->info.page_size;
	struct place place = {0};
	struct img_frame fr;
	int r;

	if (f->first[nr] == f->first[nr + 1])
		return 0;
	if ((r = read_frame(w, nr, &fr)) < 0)
		return r;
	for (uint64_t i = f->first[nr]; i < f->first[nr + 1]; i++) {
		uint64_t page = f->pages[i], addr = img_page_addr(f->img, page);
		unsigned char *data = w->raw + (size_t)img_page_slot(f->img, page) * ps;
		unsigned char hash[FORMAT_HASH_BYTES];

		hash_page(hash, f->img->seed, data, ps);
		if (memcmp(hash, img_page_hash(f->img, page), sizeof(hash)) != 0) {
			struct usnap_err err = {0};

			img_frame_damaged(f->img, &fr, &err,
					  "page 0x%" PRIx64 " differs from its hash", addr);
			return fail(f, -EBADMSG, "%s", err.text);
		}
		if ((r = put_page(w, &place, addr, data, ps)) < 0)
			return r;
	}
	return flush(w);
}

static void *work(void *arg)
{
	struct fill *f = arg;
	cleanup_free struct worker *w = calloc(1, sizeof(*w));

	if (w) {
		w->f = f;
		w->dctx = ZSTD_createDCtx();
		w->compressed = malloc(ZSTD_COMPRESSBOUND(FORMAT_MAX_FRAME_RAW));
		w->raw = malloc(FORMAT_MAX_FRAME_RAW);
	}
	if (!w || !w->dctx || !w->compressed || !w->raw)
		fail(f, -ENOMEM, "cannot fill the memory: %s", strerror(ENOMEM));
	while (!f->stop) {
		uint64_t nr = f->next_frame++;

		if (nr >= f->img->nr_frames || fill_frame(w, nr) < 0)
			break;
	}
	if (w) {
		ZSTD_freeDCtx(w->dctx);
		free(w->compressed);
		free(w->raw);
	}
	pthread_mutex_lock(&f->lock);
	f->nr_running--;
	pthread_cond_signal(&f->ended);
	pthread_mutex_unlock(&f->lock);
	return NULL;
}

/* ---- all of them ------------------------------------------------------------------------ */

/* A counting sort: pages of a frame keep their order, which is that of addresses. */
static int sort_pages(struct fill *f)
{
	const struct usnap_image *img = f->img;

	f->first = calloc(img->nr_frames + 2, sizeof(*f->first));
	f->pages = malloc((img->nr_pages + 1) * sizeof(*f->pages));
	if (!f->first || !f->pages)
		return -ENOMEM;
	for (uint64_t i = 0; i < img->nr_pages; i++)
		f->first[img_page_frame(img, i) + 2]++;
	for (uint64_t i = 2; i < img->nr_frames + 2; i++)
		f->first[i] += f->first[i - 1];
	for (uint64_t i = 0; i < img->nr_pages; i++)
		f->pages[f->first[img_page_frame(img, i) + 1]++] = i;
	return 0;
}

static int by_content(const void *a, const void *b)
{
	const struct rmem_object *x = *(struct rmem_object *const *)a;
	const struct rmem_object *y = *(struct rmem_object *const *)b;

	return x->content_addr < y->content_addr ? -1 : x->content_addr > y->content_addr;
}

static int list_contents(struct fill *f)
{
	f->contents = calloc(f->m->nr_objects + 1, sizeof(struct rmem_object *));
	if (!f->contents)
		return -ENOMEM;
	for (size_t i = 0; i < f->m->nr_objects; i++)
		if (f->m->objects[i].fill_content)
			f->contents[f->nr_contents++] = &f->m->objects[i];
	qsort(f->contents, f->nr_contents, sizeof(struct rmem_object *), by_content);
	return 0;
}

static unsigned count_threads(const struct fill *f)
{
	unsigned n = f->r->o->nr_threads;
	cpu_set_t set;

	if (!n && sched_getaffinity(0, sizeof(set), &set) == 0)
		n = (unsigned)CPU_COUNT(&set);
	n = MIN(MAX(n, 1u), (unsigned)MAX_THREADS);
	return (unsigned)MIN((uint64_t)n, f->img->nr_frames);
}

/* Until all have ended; the caller's thread tells how far it is. */
static void wait_for_workers(struct fill *f)
{
	const struct restore_options *o = f->r->o;
	const uint64_t total = f->m->fill_pages * f->img->info.page_size;

	pthread_mutex_lock(&f->lock);
	while (f->nr_running) {
		struct timespec until;

		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_nsec += 100 * 1000 * 1000;
		until.tv_sec += until.tv_nsec / 1000000000;
		until.tv_nsec %= 1000000000;
		pthread_cond_timedwait(&f->ended, &f->lock, &until);
		/* Who made us run looks at it next, and gives up. */
		if (o->cancel && *o->cancel)
			f->stop = true;
		if (!o->progress)
			continue;
		pthread_mutex_unlock(&f->lock);
		o->progress(o->ctx, MIN(f->done_bytes, total), total);
		pthread_mutex_lock(&f->lock);
	}
	pthread_mutex_unlock(&f->lock);
}

static int run_workers(struct fill *f)
{
	pthread_t threads[MAX_THREADS];
	unsigned n = count_threads(f), started = 0;
	sigset_t all, old;
	int r = 0;

	/* Signals are the caller's thread's. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	f->nr_running = n;
	while (started < n && (r = -pthread_create(&threads[started], NULL, work, f)) == 0)
		started++;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_mutex_lock(&f->lock);
	f->nr_running -= n - started;
	pthread_mutex_unlock(&f->lock);
	if (!started && n)
		return fail(f, r, "cannot start a thread: %s", strerror(-r));
	wait_for_workers(f);
	for (unsigned i = 0; i < started; i++)
		pthread_join(threads[i], NULL);
	return f->err.code;
}

static void close_contents(struct rmem *m)
{
	for (size_t i = 0; i < m->nr_objects; i++) {
		if (m->objects[i].content_fd >= 0)
			close(m->objects[i].content_fd);
		m->objects[i].content_fd = -1;
	}
}

int rmem_fill(struct restore *r, struct usnap_err *err)
{
	struct fill f = {.r = r, .m = r->mem, .img = r->img};

	pthread_mutex_init(&f.lock, NULL);
	pthread_cond_init(&f.ended, NULL);
	int ret = sort_pages(&f);
	if (ret == 0)
		ret = list_contents(&f);
	if (ret < 0)
		fail(&f, ret, "cannot fill the memory: %s", strerror(-ret));
	else
		ret = run_workers(&f);
	pthread_cond_destroy(&f.ended);
	pthread_mutex_destroy(&f.lock);
	close_contents(r->mem);
	free(f.pages);
	free(f.first);
	free(f.contents);
	return ret < 0 ? usnap_fail(err, ret, "%s", f.err.text) : rmem_tell_agent(r, err);
}
