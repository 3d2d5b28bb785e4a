/*
 * The other threads of cutwork: what programs do besides writing. Each
 * checks that nobody disturbs it.
 */
#ifndef TESTS_CUTWORK_ROLES_H
#define TESTS_CUTWORK_ROLES_H

#include <alloca.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "cutwork-lanes.h"

extern char **environ;

/* --- the clock: gaps that a thread sees which does nothing but look ---------- */

enum {
	GAP_LOG = 1 << 18,
	GAP_FLOOR_NS = 150000,
	CLOCK_PACE_NS = 20000
};

static struct {
	struct {
		uint64_t end_ns, ns;
	} log[GAP_LOG];
	uint64_t nr;
	uint64_t longest_ns, longest_end_ns;
	bool paced; /* real-time priority, and asleep in between */
} gaps;

static void *clock_thread(void *arg)
{
	struct timespec ts;
	uint64_t before, now;

	if (gaps.paced) {
		struct sched_param p = {.sched_priority = 2};

		if (pthread_setschedparam(pthread_self(), SCHED_FIFO, &p))
			fprintf(stderr, "cutwork: no real-time priority for the clock\n");
	}
	before = clock_ns();
	while (!stopping()) {
		if (gaps.paced) {
			ts = (struct timespec){0, CLOCK_PACE_NS};
			clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, NULL);
		}
		now = clock_ns();
		if (now - before > GAP_FLOOR_NS) {
			uint64_t i = gaps.nr++ % GAP_LOG;

			gaps.log[i].end_ns = now;
			gaps.log[i].ns = now - before;
			if (now - before > gaps.longest_ns) {
				gaps.longest_ns = now - before;
				gaps.longest_end_ns = now;
			}
		}
		before = now;
	}
	return NULL;
}

static int gap_write(const char *path)
{
	FILE *f = fopen(path, "w");

	if (!f)
		return -1;
	for (uint64_t i = gaps.nr > GAP_LOG ? gaps.nr - GAP_LOG : 0; i < gaps.nr; i++)
		fprintf(f, "%llu %llu\n", (unsigned long long)gaps.log[i % GAP_LOG].end_ns,
			(unsigned long long)gaps.log[i % GAP_LOG].ns);
	return fclose(f);
}

/* --- fork and posix_spawn ---------------------------------------------------- */

#define FORK_POISON 0xdeadbeefdeadbeefull

/* In the child: our lane reads as we left it, and our copies of everybody's
 * pages can be written without anybody noticing. *over_ns is when it has done
 * that. Async-signal-safe. */
static void fork_child(struct lane_run *r, uint64_t seed, uint64_t *over_ns)
{
	struct cut_lane *l = r->lane;

	alarm(20);
	for (uint64_t i = 0; i < l->nr_slots; i++)
		if (((struct cut_slot *)(l->base + i * l->stride))->n != cut_expect(l, i, r->n))
			_exit(1);
	for (unsigned k = 0; k < work.header->nr_lanes; k++) {
		struct cut_lane *o = &work.header->lanes[k];

		for (unsigned i = 0; i < 32 && o->is_private && !o->table; i++) {
			uint64_t slot = (seed = cut_mix(seed + 1)) & (o->nr_slots - 1);
			volatile struct cut_slot *s = (void *)(o->base + slot * o->stride);

			s->n = FORK_POISON;
			s->from = FORK_POISON;
			if (s->n != FORK_POISON)
				_exit(2);
		}
	}
	*over_ns = clock_ns();
	_exit(0);
}

static void wait_for(pid_t pid, const char *what)
{
	int status;

	if (waitpid(pid, &status, 0) != pid)
		violation("%s: wait: %s", what, strerror(errno));
	else if (status)
		violation("%s: status 0x%x", what, (unsigned)status);
}

struct forker {
	struct lane_run *run;
	bool fork, spawn;
	/* What took longest: until there was a child, until it had ended, and what it did. */
	uint64_t made_ns, ended_ns, ran_us;
	long major_faults, blocks;
	struct rusage children; /* of all so far */
};

static uint64_t usec(struct timeval tv)
{
	return (uint64_t)tv.tv_sec * 1000000u + (uint64_t)tv.tv_usec;
}

static void note_child(struct forker *f, uint64_t start_ns, uint64_t made_ns)
{
	uint64_t now = clock_ns();
	struct rusage before = f->children;

	getrusage(RUSAGE_CHILDREN, &f->children);
	if (now - start_ns <= f->made_ns + f->ended_ns)
		return;
	f->made_ns = made_ns - start_ns;
	f->ended_ns = now - made_ns;
	f->ran_us = usec(f->children.ru_utime) + usec(f->children.ru_stime) -
		    usec(before.ru_utime) - usec(before.ru_stime);
	f->major_faults = f->children.ru_majflt - before.ru_majflt;
	f->blocks = f->children.ru_inblock - before.ru_inblock;
}

static void *fork_thread(void *arg)
{
	struct forker *f = arg;
	char *argv[] = {(char *)"true", NULL};
	uint64_t seed = 1;
	uint64_t *over_ns =
		map_memory(CUT_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);

	while (!stopping()) {
		pid_t pid;

		for (int i = 0; i < 100; i++)
			lane_step(f->run);
		lane_tick(f->run);
		uint64_t start_ns = clock_ns(), made_ns = start_ns;
		if (f->fork && (seed++ % 2 || !f->spawn)) {
			pid = fork();
			if (!pid)
				fork_child(f->run, seed, over_ns);
			made_ns = clock_ns();
			if (pid < 0)
				violation("fork: %s", strerror(errno));
			else
				wait_for(pid, "forked child");
			/* That a child gives gigabytes back, when it ends, keeps nobody waiting but
			 * who waits for that. */
			if (pid > 0) {
				lane_tick_at(f->run, *over_ns);
				f->run->stamp_ns = clock_ns();
			}
		} else if (f->spawn) {
			int r = posix_spawn(&pid, "/bin/true", NULL, NULL, argv, environ);

			made_ns = clock_ns();
			if (r)
				violation("posix_spawn: %s", strerror(r));
			else
				wait_for(pid, "spawned child");
		}
		note_child(f, start_ns, made_ns);
		lane_tick(f->run);
		sleep_ns(10000000);
	}
	return NULL;
}

/* --- threads that come and go ------------------------------------------------ */

static atomic_uint relays_running;

/* Carries the lane on for a while and hands it to a new thread. */
static void *relay_thread(void *arg)
{
	struct lane_run *r = arg;
	uint64_t end = clock_ns() + 3000000;
	pthread_t next;
	int err;

	for (int i = 0; i < 2000 && !stopping() && clock_ns() < end; i++)
		lane_step(r);
	if (stopping()) {
		atomic_fetch_sub(&relays_running, 1);
		return NULL;
	}
	err = pthread_create(&next, NULL, relay_thread, r);
	if (err) {
		violation("pthread_create: %s", strerror(err));
		atomic_fetch_sub(&relays_running, 1);
		return NULL;
	}
	pthread_detach(next);
	return NULL;
}

/* --- mprotect ------------------------------------------------------------------ */

static void *mprotect_thread(void *arg)
{
	struct lane_run *r = arg;
	size_t len = (size_t)(r->lane->nr_slots * r->lane->stride) / 2;
	char *middle = (char *)r->lane->base + len / 2;

	while (!stopping()) {
		if (mprotect(middle, len, PROT_READ) ||
		    mprotect(middle, len, PROT_READ | PROT_WRITE))
			violation("mprotect: %s", strerror(errno));
		for (int i = 0; i < 64; i++)
			lane_step(r);
		lane_tick(r);
		sleep_ns(500000);
	}
	return NULL;
}

/* --- signals: queued in order, each handled once ------------------------------ */

static pthread_t signal_taker;
static atomic_ulong signal_last, signals_taken;

static void take_signal(int sig, siginfo_t *info, void *context)
{
	unsigned long n = (unsigned long)(uintptr_t)info->si_value.sival_ptr;

	if (n != atomic_load(&signal_last) + 1)
		violation("signal %lu came after %lu", n, atomic_load(&signal_last));
	atomic_store(&signal_last, n);
	atomic_fetch_add(&signals_taken, 1);
}

static void *signal_taker_thread(void *arg)
{
	stack_t st = {
		.ss_sp = map_memory(65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1),
		.ss_size = 65536};
	sigset_t set;

	sigaltstack(&st, NULL);
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 1);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	while (!stopping())
		sleep_ns(2000000);
	return NULL;
}

static void *signal_sender_thread(void *arg)
{
	unsigned long n = 0;

	while (!stopping()) {
		union sigval v = {.sival_ptr = (void *)(uintptr_t)(n + 1)};

		if (!pthread_sigqueue(signal_taker, SIGRTMIN + 1, v))
			n++;
		sleep_ns(700000);
	}
	/* Every one must have come. */
	for (int i = 0; i < 2000 && atomic_load(&signals_taken) != n; i++)
		sleep_ns(1000000);
	if (atomic_load(&signals_taken) != n)
		violation("%lu signals sent, %lu taken", n, atomic_load(&signals_taken));
	return NULL;
}

/* --- threads asleep in the kernel ---------------------------------------------- */

enum {
	SLEEP_NS_EACH = 200000000,
	SLEEP_MS = 200
};

struct sleeper {
	const char *name;
	/* Sleeps SLEEP_MS; 0, or -1 with errno. */
	int (*sleep)(struct sleeper *s);
	/* The kernel restarts it by itself when it was stopped; signal(7)
	 * lists those that fail with EINTR even then. */
	bool restarts;
	int fd[2];
	uint64_t nr_eintr, longest_ns;
};

static int sleep_nanosleep(struct sleeper *s)
{
	struct timespec ts = {0, SLEEP_NS_EACH};

	return nanosleep(&ts, NULL);
}

static int sleep_clock_nanosleep(struct sleeper *s)
{
	struct timespec ts = {0, SLEEP_NS_EACH}, rest;
	int r = clock_nanosleep(CLOCK_BOOTTIME, 0, &ts, &rest);

	errno = r;
	return r ? -1 : 0;
}

static int sleep_futex(struct sleeper *s)
{
	struct timespec ts = {0, SLEEP_NS_EACH};
	static uint32_t word;

	if (syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &ts, NULL, 0) && errno == ETIMEDOUT)
		return 0;
	return -1;
}

static int sleep_poll(struct sleeper *s)
{
	struct pollfd p = {.fd = s->fd[0], .events = POLLIN};

	return poll(&p, 1, SLEEP_MS);
}

static int sleep_select(struct sleeper *s)
{
	struct timeval tv = {0, SLEEP_MS * 1000};
	fd_set set;

	FD_ZERO(&set);
	FD_SET(s->fd[0], &set);
	return select(s->fd[0] + 1, &set, NULL, NULL, &tv);
}

static int sleep_epoll(struct sleeper *s)
{
	struct epoll_event e;

	return epoll_wait(s->fd[0], &e, 1, SLEEP_MS);
}

static int sleep_sigtimedwait(struct sleeper *s)
{
	struct timespec ts = {0, SLEEP_NS_EACH};
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	return sigtimedwait(&set, NULL, &ts) < 0 && errno == EAGAIN ? 0 : -1;
}

static void *feed_thread(void *arg)
{
	struct sleeper *s = arg;
	char c = 'x';

	while (!stopping()) {
		sleep_ns(SLEEP_NS_EACH);
		if (write(s->fd[1], &c, 1) != 1)
			violation("cannot feed the reader: %s", strerror(errno));
	}
	/* The last one may have been read just before. */
	if (write(s->fd[1], &c, 1) != 1)
		violation("cannot feed the reader: %s", strerror(errno));
	return NULL;
}

static int sleep_read(struct sleeper *s)
{
	char c;

	return read(s->fd[0], &c, 1) == 1 ? 0 : -1;
}

static struct sleeper sleepers[] = {
	{"nanosleep", sleep_nanosleep, true, {-1, -1}, 0, 0},
	{"clock_nanosleep", sleep_clock_nanosleep, true, {-1, -1}, 0, 0},
	{"futex", sleep_futex, true, {-1, -1}, 0, 0},
	{"poll", sleep_poll, true, {-1, -1}, 0, 0},
	{"select", sleep_select, true, {-1, -1}, 0, 0},
	{"epoll_wait", sleep_epoll, false, {-1, -1}, 0, 0},
	{"sigtimedwait", sleep_sigtimedwait, false, {-1, -1}, 0, 0},
	{"read", sleep_read, true, {-1, -1}, 0, 0},
};

enum {
	NR_SLEEPERS = sizeof(sleepers) / sizeof(sleepers[0])
};

static void *sleeper_thread(void *arg)
{
	struct sleeper *s = arg;

	while (!stopping()) {
		uint64_t start = clock_ns(), took;
		int r = s->sleep(s), err = errno;

		took = clock_ns() - start;
		if (r && err == EINTR && !s->restarts) {
			s->nr_eintr++;
			continue;
		}
		if (r)
			violation("%s: %s", s->name, r < 0 ? strerror(err) : "woken by nobody");
		else if (took < SLEEP_NS_EACH - 5000000 && s->sleep != sleep_read)
			violation("%s slept only %llu us", s->name,
				  (unsigned long long)took / 1000);
		if (took > SLEEP_NS_EACH && took - SLEEP_NS_EACH > s->longest_ns)
			s->longest_ns = took - SLEEP_NS_EACH;
	}
	return NULL;
}

/* --- memory first touched over time ------------------------------------------- */

static void *touch_thread(void *arg)
{
	struct lane_run *r = arg;

	while (!stopping()) {
		lane_step(r);
		lane_tick(r);
		lane_pace(r);
	}
	return NULL;
}

enum {
	GROW_CHUNK = 16,
	GROW_CHUNKS = 65536
};

/* New mappings, and the heap's end, as a program grows. */
static void *grow_thread(void *arg)
{
	struct lane_run *r = arg;
	struct cut_lane *l = r->lane;
	size_t len = GROW_CHUNK * CUT_PAGE;

	while (!stopping() && r->n + 1 < l->nr_slots) {
		uint64_t chunk = (r->n + 1) / GROW_CHUNK, *entry = (uint64_t *)l->table + chunk;

		if (!*entry) {
			void *p;

			if (r->chunk_flavour++ % 4 == 0) {
				p = grow_brk(len + CUT_PAGE);
				p = (void *)(((uint64_t)p + CUT_PAGE - 1) &
					     ~(uint64_t)(CUT_PAGE - 1));
			} else {
				p = map_memory(len, PROT_READ | PROT_WRITE,
					       MAP_PRIVATE | MAP_ANONYMOUS, -1);
			}
			__atomic_store_n(entry, (uint64_t)(uintptr_t)p, __ATOMIC_RELEASE);
		}
		lane_step(r);
		lane_tick(r);
		lane_pace(r);
	}
	return NULL;
}

enum {
	STACK_PAGES = 512
};

/* On the first thread: its stack grows by a page each time. */
static __attribute__((noinline)) void grow_stack(struct lane_run *r)
{
	while (!stopping()) {
		if (r && r->n + 1 < STACK_PAGES) {
			char *p = alloca(CUT_PAGE * 2);

			p += CUT_PAGE - (uintptr_t)p % CUT_PAGE;
			memset(p, 0, CUT_PAGE);
			__atomic_store_n((uint64_t *)r->lane->table + r->n + 1,
					 (uint64_t)(uintptr_t)p, __ATOMIC_RELEASE);
			lane_step(r);
		}
		sleep_ns(5000000);
	}
}

/* --- memory that does not change ------------------------------------------------ */

static void static_add(const char *name, void *p, size_t len, uint64_t step, int prot)
{
	struct cut_header *h = work.header;
	struct cut_static *s = &h->statics[h->nr_statics++];

	s->addr = (uint64_t)(uintptr_t)p;
	s->len = len;
	s->seed = 0x5eed + h->nr_statics;
	s->step = step;
	snprintf(s->name, sizeof(s->name), "%s", name);
	for (size_t off = 0; off < len; off += step * CUT_PAGE)
		for (size_t w = 0; w < CUT_PAGE / 8; w++)
			((uint64_t *)((char *)p + off))[w] = cut_pattern(s->seed, off / 8 + w);
	if (mprotect(p, len, prot))
		fatal("protect memory");
}

static void statics_setup(void)
{
	const int rw = PROT_READ | PROT_WRITE, anon = MAP_PRIVATE | MAP_ANONYMOUS;
	const size_t len = 1 << 20;
	int fd = memfd_create("cutwork-static", MFD_CLOEXEC);
	char *p;

	if (fd < 0 || ftruncate(fd, (off_t)len))
		fatal("make shared memory");
	static_add("memory without access", map_memory(len, rw, anon, -1), len, 1, PROT_NONE);
	static_add("read-only memory", map_memory(len, rw, anon, -1), len, 3, PROT_READ);
	static_add("shared memory", map_memory(len, rw, MAP_SHARED | MAP_ANONYMOUS, -1), len, 2,
		   rw);
	static_add("private memfd", map_memory(len, rw, MAP_PRIVATE, fd), len, 5, rw);
	p = map_memory(64 * len, PROT_NONE, anon | MAP_NORESERVE, -1);
	if (mprotect(p + 8 * len, len, rw))
		fatal("protect memory");
	static_add("island in a reservation", p + 8 * len, len, 7, rw);
	p = map_memory((size_t)1 << 40, rw, anon | MAP_NORESERVE, -1);
	static_add("sparse terabyte", p + ((size_t)1 << 39), 64 * len, 4096, rw);
	p = map_memory(len, rw, anon, -1);
	madvise(p, len, MADV_DONTFORK);
	static_add("memory that fork leaves out", p, len, 1, rw);
}

#endif
