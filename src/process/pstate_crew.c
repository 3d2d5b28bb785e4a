/*
 * Reading /proc in the freeze, by two threads.
 *
 * DESIGN. While the tracer's thread speaks to the stopped threads (only it
 * may), a second thread reads texts: the CPUs that the target ran on are
 * idle. The work is a row of pieces, taken in order by an atomic counter:
 * the status of the first thread, the facts of the process, the status of
 * every other thread, then descriptors in small bundles. The tracer's thread takes pieces as well when it needs
 * their result: it waits for the piece that the other has in hand, and never
 * for the second thread to be scheduled at all. Whoever takes a number beyond
 * the row stops. Results are published by `done` and `done_first`.
 *
 * Between two collects the second thread sleeps on a condition. A collect
 * that is repeated resets the counters only when the second thread is idle.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "common/hurry.h"
#include "common/util.h"
#include "process/pstate_internal.h"

#define BUNDLE 8

/* The status of the first thread and the facts of the process: what questions to the threads
 * depend on. */
#define FIRST_PIECES 2

struct crew {
	pthread_t thread;
	bool has_thread;
	pthread_mutex_t lock;
	pthread_cond_t wake, idle;
	/* under lock */
	unsigned round; /* counts collects */
	bool busy, quit;

	/* of the round; written before it begins */
	size_t nr_pieces;
	atomic_size_t taken, done_first, done;
	atomic_int error; /* the first */
};

static int do_piece(struct pstate *ps, struct arena *a, size_t i)
{
	if (i == 1)
		return process_collect(ps, a);
	if (i <= ps->nr_threads)
		return thread_collect_status(ps, a, i ? i - 1 : 0);
	i -= ps->nr_threads;
	size_t from = (i - 1) * BUNDLE, to = MIN(from + BUNDLE, ps->prepared.n);
	int first = 0;
	for (; from < to; from++) {
		int r = files_collect_known(ps, a, from);
		if (first == 0)
			first = r;
	}
	return first;
}

/* Takes pieces while there are any in the first end. */
static void work(struct pstate *ps, struct arena *a, size_t end)
{
	struct crew *c = ps->crew;

	while (atomic_load_explicit(&c->taken, memory_order_relaxed) < end) {
		size_t i = atomic_fetch_add(&c->taken, 1);
		int none = 0;

		if (i >= c->nr_pieces)
			return;
		int r = do_piece(ps, a, i);
		if (r < 0)
			atomic_compare_exchange_strong(&c->error, &none, r);
		if (i < FIRST_PIECES)
			atomic_fetch_add(&c->done_first, 1);
		atomic_fetch_add(&c->done, 1);
	}
}

static void *crew_main(void *arg)
{
	struct pstate *ps = arg;
	struct crew *c = ps->crew;
	unsigned seen = 0;

	/* The tracer, in a hurry itself, may wait for the piece in hand. */
	thread_hurry(pthread_self(), true);
	pthread_mutex_lock(&c->lock);
	for (;;) {
		while (c->round == seen && !c->quit)
			pthread_cond_wait(&c->wake, &c->lock);
		if (c->quit)
			break;
		seen = c->round;
		c->busy = true;
		pthread_mutex_unlock(&c->lock);
		work(ps, &ps->crew_arena, c->nr_pieces);
		pthread_mutex_lock(&c->lock);
		c->busy = false;
		pthread_cond_signal(&c->idle);
	}
	pthread_mutex_unlock(&c->lock);
	return NULL;
}

/* Without the second thread everything works, a little slower. */
int crew_start(struct pstate *ps)
{
	struct crew *c = calloc(1, sizeof(*c));
	sigset_t all, before;

	if (!c)
		return -ENOMEM;
	pthread_mutex_init(&c->lock, NULL);
	pthread_cond_init(&c->wake, NULL);
	pthread_cond_init(&c->idle, NULL);
	ps->crew = c;
	/* Signals are for the thread that has asked for them. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	c->has_thread = pthread_create(&c->thread, NULL, crew_main, ps) == 0;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return 0;
}

void crew_stop(struct pstate *ps)
{
	struct crew *c = ps->crew;

	if (!c)
		return;
	if (c->has_thread) {
		pthread_mutex_lock(&c->lock);
		c->quit = true;
		pthread_cond_signal(&c->wake);
		pthread_mutex_unlock(&c->lock);
		pthread_join(c->thread, NULL);
	}
	pthread_cond_destroy(&c->idle);
	pthread_cond_destroy(&c->wake);
	pthread_mutex_destroy(&c->lock);
	free(c);
	ps->crew = NULL;
}

void crew_begin(struct pstate *ps)
{
	struct crew *c = ps->crew;

	pthread_mutex_lock(&c->lock);
	while (c->busy)
		pthread_cond_wait(&c->idle, &c->lock);
	c->nr_pieces = ps->nr_threads + 1 + (ps->prepared.n + BUNDLE - 1) / BUNDLE;
	atomic_store(&c->taken, 0);
	atomic_store(&c->done_first, 0);
	atomic_store(&c->done, 0);
	atomic_store(&c->error, 0);
	c->round++;
	pthread_cond_signal(&c->wake);
	pthread_mutex_unlock(&c->lock);
}

static int finish(struct pstate *ps, size_t end, atomic_size_t *done)
{
	work(ps, &ps->arena, end);
	while (atomic_load(done) < end)
		sched_yield();
	return atomic_load(&ps->crew->error);
}

int crew_finish_first(struct pstate *ps)
{
	return finish(ps, FIRST_PIECES, &ps->crew->done_first);
}

int crew_finish(struct pstate *ps)
{
	return finish(ps, ps->crew->nr_pieces, &ps->crew->done);
}
