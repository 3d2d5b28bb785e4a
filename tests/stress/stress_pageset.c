/*
 * The page set under threads that add pages and claim them, as fault and sweep thread do: of two
 * that want a page one gets it (I2), and who gets it after it was given back sees what the other
 * did with it.
 *
 * What is done with a page while it is held goes to a plain variable: were two threads to hold
 * it, or were a claim to order nothing, ThreadSanitizer would say so.
 */
#include "capture/pageset.h"
#include "stress.h"

enum {
	NR_RUNS = 24,
	RUN_PAGES = 700, /* crosses chunks */
	NR_PAGES = NR_RUNS * RUN_PAGES,
	NR_THREADS = 3,
	MAX_CLUSTER = 40
};

static struct round {
	struct pageset *ps;
	uint64_t run[NR_RUNS]; /* keys, ascending */
	pthread_barrier_t added;
	unsigned touched[NR_PAGES], saved[NR_PAGES]; /* by who holds the page */
	_Atomic unsigned nr_left;
} round_;

struct claimer {
	uint64_t chance;
	unsigned nr, touches;
};

static uint64_t key_of(const struct round *r, unsigned page)
{
	return r->run[page / RUN_PAGES] + page % RUN_PAGES * PAGE_BYTES;
}

/* Claims, and either keeps the page or gives it back for another to take. */
static void take(struct round *r, struct claimer *c, unsigned page)
{
	uint64_t key = key_of(r, page);
	struct chunk *ch = pageset_chunk(r->ps, key, false);
	unsigned p = chunk_page(key);

	if (!ch)
		die("a chunk has gone");
	if (!chunk_claim(ch, p))
		return;
	r->touched[page]++;
	c->touches++;
	if (random_below(&c->chance, 8) == 0) {
		atomic_fetch_and(&ch->claimed[p / 64], ~((uint64_t)1 << (p % 64)));
		return;
	}
	r->saved[page]++;
	chunk_set(ch->saved, p);
	atomic_fetch_sub(&r->nr_left, 1);
}

/* Everything, in pieces that overlap those of the others: two make the same nodes. */
static void add(struct round *r, struct claimer *c)
{
	for (unsigned i = 0; i < NR_RUNS; i++) {
		unsigned run = (i + c->nr * 7) % NR_RUNS;

		for (unsigned at = 0, n; at < RUN_PAGES; at += n) {
			n = 1 + (unsigned)random_below(&c->chance, RUN_PAGES - at);
			if (pageset_populate(r->ps, r->run[run] + at * PAGE_BYTES, n) < 0)
				die("no memory for pages");
		}
	}
}

static void *claimer_thread(void *arg)
{
	struct claimer *c = arg;
	struct round *r = &round_;

	add(r, c);
	pthread_barrier_wait(&r->added);
	/* One goes from the first page to the last, the others where chance leads them. */
	for (unsigned at = 0; atomic_load(&r->nr_left);) {
		unsigned n = 1 + (unsigned)random_below(&c->chance, MAX_CLUSTER);

		if (c->nr)
			at = (unsigned)random_below(&c->chance, NR_PAGES);
		for (; n && at < NR_PAGES; n--)
			take(r, c, at++);
		at %= NR_PAGES;
	}
	return NULL;
}

static void choose_runs(struct round *r, uint64_t *chance)
{
	/* Near each other and far apart, in 47 bits. */
	uint64_t at = (1 + random_below(chance, 1000)) * PAGE_BYTES;

	for (unsigned i = 0; i < NR_RUNS; i++) {
		r->run[i] = at;
		at += (RUN_PAGES + random_below(chance, 3)) * PAGE_BYTES;
		at += random_below(chance, (uint64_t)1 << (21 + random_below(chance, 21)));
		at = ALIGN_DOWN(at, PAGE_BYTES);
	}
}

static void check(struct round *r, unsigned touches)
{
	uint64_t first = 0, seen = 0;

	if (pageset_count_populated(r->ps) != NR_PAGES)
		die("%llu pages instead of %d", (unsigned long long)pageset_count_populated(r->ps),
		    NR_PAGES);
	if (pageset_count_unsaved(r->ps, &first))
		die("the page at %#llx is not saved", (unsigned long long)first);
	for (unsigned i = 0; i < NR_PAGES; i++) {
		if (r->saved[i] != 1)
			die("page %u was saved %u times", i, r->saved[i]);
		seen += r->touched[i];
	}
	if (seen != touches)
		die("%u claims, of which %llu were seen", touches, (unsigned long long)seen);
}

int main(int argc, char **argv)
{
	uint64_t chance = stress_begin(argc, argv);
	struct round *r = &round_;

	r->ps = pageset_new();
	if (!r->ps)
		die("no memory");
	pthread_barrier_init(&r->added, NULL, NR_THREADS);
	while (stress_round("claiming")) {
		struct claimer c[NR_THREADS];
		pthread_t tid[NR_THREADS];
		unsigned touches = 0;

		choose_runs(r, &chance);
		memset(r->touched, 0, sizeof(r->touched));
		memset(r->saved, 0, sizeof(r->saved));
		r->nr_left = NR_PAGES;
		for (unsigned i = 0; i < NR_THREADS; i++) {
			c[i] = (struct claimer){.chance = random64(&chance), .nr = i};
			tid[i] = stress_thread(claimer_thread, &c[i]);
		}
		for (unsigned i = 0; i < NR_THREADS; i++) {
			pthread_join(tid[i], NULL);
			touches += c[i].touches;
		}
		check(r, touches);
		/* A new attempt has the nodes of the last one; now and then all is new. */
		pageset_reset(r->ps);
		if (random_below(&chance, 4) == 0) {
			pageset_free(r->ps);
			r->ps = pageset_new();
			if (!r->ps)
				die("no memory");
		}
	}
	pthread_barrier_destroy(&r->added);
	pageset_free(r->ps);
	return 0;
}
