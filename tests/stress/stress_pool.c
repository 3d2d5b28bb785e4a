/*
 * The pool with the real writer and its encoders, under the threads of a snapshot as session.c has
 * them: a sweep that waits for blocks, a fault thread that must not and waits for the pool's word
 * instead, a supervisor that tears attempts, gives up or is told to, and an ending thread that
 * brings everything into the image while the fault thread is still there.
 *
 * Outputs are files, full ones among them, and pipes whose readers are slow, leave or do not read.
 * Every image that was committed is read and compared, page by page, with what was handed over in
 * the attempt that counts: a page of an attempt before has other bytes.
 */
#include <signal.h>
#include <sys/eventfd.h>
#include <uffd-snap.h>

#include "shot.h"

static const char process_json[] =
	"{\"maps\":[" FIXTURE_MAP("0x10000000", "0x12010000", "rw-", "false", "anonymous", "image",
				  "\"path\":\"[heap]\"") "],\"threads\":[]}";

static uint64_t last_attempt, parent_attempt;
static int parent_fd = -1;
static volatile sig_atomic_t cancel;

/* A handler would do it. */
static void set_cancel(bool to)
{
	__atomic_store_n(&cancel, to, __ATOMIC_RELAXED);
}

static void give_up(struct shot *s, _Atomic bool *why)
{
	atomic_store(why, true);
	pool_fail(s->pool);
}

static int begin_attempt(struct shot *s)
{
	pthread_mutex_lock(&s->fault_lock);
	s->phase = ARM;
	if (s->open_block)
		s->open_block->nr_pages = s->open_block->nr_runs = 0;
	flush(s);
	pageset_reset(s->pages);
	s->attempt = ++last_attempt;
	s->next_fault = 0;
	pthread_mutex_unlock(&s->fault_lock);
	int r = pool_drain(s->pool);
	if (r < 0)
		return r;
	pool_reset(s->pool);
	s->torn = false;
	if (pageset_populate(s->pages, START, NR_PAGES) < 0)
		die("no memory for pages");
	return image_writer_begin(s->writer, &s->err);
}

static int write_members(struct shot *s)
{
	char text[1024], parent[40] = "null";

	if (s->output.kind == TO_CHILD)
		snprintf(parent, sizeof(parent), "\"%032llx\"", (unsigned long long)parent_attempt);
	int n = snprintf(text, sizeof(text),
			 "{\"format\":\"uffd-snap image\",\"version\":1,\"id\":\"%032llx\","
			 "\"parent\":%s,\"page_size\":4096}",
			 (unsigned long long)s->attempt, parent);
	int r = image_writer_member(s->writer, "snapshot.json", text, (size_t)n, &s->err);

	return r < 0 ? r
		     : image_writer_member(s->writer, "process.json", process_json,
					   sizeof(process_json) - 1, &s->err);
}

static bool join_soon(pthread_t tid)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_nsec += 1000000;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	return pthread_timedjoin_np(tid, NULL, &until) == 0;
}

/* Until the sweep is done. Where nobody reads, only the flag makes it end. */
static void supervise(struct shot *s, pthread_t sweep)
{
	for (unsigned ticks = 0;; ticks++) {
		uint64_t nr = pool_nr_pages(s->pool);

		if (pool_error(s->pool)) {
			s->error = pool_error(s->pool);
			give_up(s, &s->failed);
		}
		if (s->tear_at && nr >= s->tear_at) {
			s->tear_at = 0;
			give_up(s, &s->torn);
		}
		if ((s->cancel_at && nr >= s->cancel_at) ||
		    (s->output.kind == TO_STUCK_PIPE && ticks > 100)) {
			set_cancel(true);
			s->error = -ECANCELED;
			if (s->output.kind == TO_STUCK_PIPE && s->cancel_at) {
				pthread_join(sweep, NULL);
				s->failed = true;
				return;
			}
			give_up(s, &s->failed);
		}
		if (join_soon(sweep))
			return;
	}
}

/* What is copied while the target stands still. */
static void copy_frozen(struct shot *s)
{
	struct block *b;

	for (unsigned page = 0, end; page < NR_FROZEN;) {
		if (!(b = pool_get(s->pool)))
			die("no block, and nobody has failed");
		for (end = page + BLOCK_PAGES; page < end; page++)
			if (claim(s, page))
				copy_page(s, b, page);
		pool_put(s->pool, b);
	}
	if (!(b = pool_get(s->pool)))
		die("no block, and nobody has failed");
	memset(block_add(b, KEY(FIRST_DROPPED), NR_DROPPED), 'x', NR_DROPPED * PAGE_BYTES);
	pool_put(s->pool, b);
}

static int attempt(struct shot *s)
{
	int r = begin_attempt(s);

	if (r < 0)
		return r;
	copy_frozen(s);
	/* Meant to be beside the sweep; but a write that nobody takes would not let it end. */
	if (s->output.kind == TO_STUCK_PIPE)
		r = write_members(s);
	s->phase = PRESERVE;
	pthread_t sweep = stress_thread(sweep_thread, s);
	if (s->output.kind != TO_STUCK_PIPE)
		r = write_members(s);
	if (r < 0) {
		s->error = r;
		give_up(s, &s->failed);
	}
	supervise(s, sweep);

	uint64_t first = 0;
	pthread_mutex_lock(&s->fault_lock);
	if (!stopping(s) && pageset_count_unsaved(s->pages, &first))
		die("the page at %#llx was not saved", (unsigned long long)first);
	flush(s);
	if (!s->torn)
		s->phase = RELEASE;
	pthread_mutex_unlock(&s->fault_lock);
	return s->failed ? s->error : 0;
}

static void *ending_thread(void *arg)
{
	struct shot *s = arg;
	struct image_writer_stats st;
	int r = pool_drain(s->pool);

	s->error = image_writer_flush(s->writer, &s->err);
	if (s->error == 0)
		s->error = r;
	if (s->error < 0)
		return NULL;
	image_writer_get_stats(s->writer, &st);
	if (st.nr_pages_stored + st.nr_pages_referred + st.nr_pages_zero != NR_GIVEN)
		die("pages were lost, or are there twice");
	if (s->output.kind == TO_CHILD && st.nr_pages_referred < NR_PAGES / 4)
		die("only %llu pages of the parent", (unsigned long long)st.nr_pages_referred);
	image_writer_drop(s->writer, KEY(FIRST_DROPPED), NR_DROPPED * PAGE_BYTES);
	s->error = image_writer_index(s->writer, &s->err);
	return NULL;
}

/* All of it may have found a place, and nobody takes it: that can be given up, too. */
static int join_ending(struct shot *s, pthread_t ending)
{
	while (!join_soon(ending)) {
		if (s->output.kind != TO_STUCK_PIPE)
			continue;
		set_cancel(true);
		image_writer_abort(s->writer);
	}
	return s->error;
}

static void stop_fault_thread(struct shot *s, pthread_t fault_tid)
{
	uint64_t one = 1;

	s->quit = true;
	(void)!write(s->wake_fd, &one, sizeof(one));
	pthread_join(fault_tid, NULL);
}

static int session(struct shot *s)
{
	pthread_t fault_tid = stress_thread(fault_thread, s), ending;
	int r;

	do
		r = attempt(s);
	while (r == 0 && s->torn);
	if (r == 0)
		ending = stress_thread(ending_thread, s);
	if (r == 0 && pool_error(s->pool) && !outputs[s->output.kind].error)
		die("the pool has failed: %s", strerror(-pool_error(s->pool)));
	if (r == 0 && pool_nr_pages(s->pool) != NR_GIVEN)
		die("%llu pages were handed over", (unsigned long long)pool_nr_pages(s->pool));
	stop_fault_thread(s, fault_tid);
	if (r == 0)
		r = join_ending(s, ending);
	if (r == 0)
		r = image_writer_commit(s->writer, "{}", 2, &s->err);
	if (r < 0)
		image_writer_abort(s->writer);
	return r;
}

/* ---- afterwards ---- */

static void check_image(const struct shot *s, bool thorough)
{
	struct usnap_verify_options o = {.size = sizeof(o), .nr_threads = 2};
	struct usnap_image *img = usnap_image_new();
	static unsigned char got[64 * PAGE], want[PAGE];
	char path[64];
	int r = usnap_image_open_fd(img, s->output.image_fd, "image");

	snprintf(path, sizeof(path), "/proc/self/fd/%d", parent_fd);
	if (r == 0 && s->output.kind == TO_CHILD)
		r = usnap_image_add_ancestors(img, path);
	for (unsigned page = 0; r == 0 && page < NR_PAGES; page++) {
		unsigned char *at = got + page % 64 * PAGE;

		if (page % 64 == 0)
			r = usnap_image_read(img, KEY(page), got, sizeof(got));
		page_at(page, s->attempt, want);
		if (r == 0 && memcmp(at, want, PAGE))
			die("page %u is wrong", page);
	}
	if (r == 0 && usnap_image_page_hash(img, KEY(FIRST_DROPPED), want) != 0)
		die("what was dropped is there");
	if (r == 0 && thorough)
		r = usnap_image_verify(img, &o);
	if (r < 0)
		die("%s", usnap_image_error(img));
	usnap_image_free(img);
}

static void take_shot(struct shot *s, enum output_kind kind, uint64_t *chance)
{
	struct image_writer_options o = {.page_size = PAGE, .level = 1, .frame_pages = BLOCK_PAGES};
	struct usnap_image *parent = kind == TO_CHILD ? usnap_image_new() : NULL;
	int r;

	set_cancel(false);
	output_begin(&s->output, kind, random64(chance));
	o.fd = s->output.fd;
	s->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	pthread_mutex_init(&s->fault_lock, NULL);
	for (unsigned i = 0; i < 2; i++)
		s->chances[i] = random64(chance);
	if (kind != TO_STUCK_PIPE && random_below(chance, 3) == 0)
		s->tear_at = 1 + random_below(chance, NR_PAGES);
	if (random_below(chance, kind == TO_STUCK_PIPE ? 2 : 6) == 0)
		s->cancel_at = 1 + random_below(chance, NR_PAGES);
	r = image_writer_open(&s->writer, &o, &s->err);
	if (r == 0 && parent && (r = usnap_image_open_fd(parent, parent_fd, "parent")) == 0)
		r = image_writer_set_parent(s->writer, parent, &s->err);
	if (r == 0)
		r = pool_new(&s->pool, s->writer, MIB(random_below(chance, 2) ? 1 : 8),
			     1 + (unsigned)random_below(chance, 3), &cancel, &s->err);
	if (r < 0)
		die("%s", s->err.text);
	r = session(s);
	pool_free(s->pool);
	image_writer_close(s->writer);
	usnap_image_free(parent);
	output_end(&s->output);
	if (r != outputs[kind].error && !(r == -ECANCELED && cancel))
		die("%s instead of %s: %s", strerror(-r), strerror(-outputs[kind].error),
		    s->err.text);
	if (r == 0)
		check_image(s, random_below(chance, 4) == 0);
	/* The next child continues it. */
	if (r == 0 && kind == TO_FILE) {
		if (parent_fd >= 0)
			close(parent_fd);
		parent_fd = take_fd(&s->output.image_fd);
		parent_attempt = s->attempt;
	}
	if (s->output.image_fd >= 0)
		close(s->output.image_fd);
	pthread_mutex_destroy(&s->fault_lock);
	close(s->wake_fd);
}

int main(int argc, char **argv)
{
	uint64_t chance = stress_begin(argc, argv);
	struct pageset *pages = pageset_new();
	enum output_kind kind = TO_FILE;

	while (stress_round(outputs[kind].name)) {
		struct shot s = {.pages = pages};

		take_shot(&s, kind, &chance);
		kind = parent_fd < 0 ? TO_FILE
				     : (enum output_kind)random_below(&chance, NR_OUTPUTS);
	}
	if (parent_fd >= 0)
		close(parent_fd);
	pageset_free(pages);
	return 0;
}
