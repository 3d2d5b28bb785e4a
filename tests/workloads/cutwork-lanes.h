/*
 * The lanes of cutwork (cut.h): who writes what where, and the checks a
 * writer makes of its own memory with every write.
 *
 * Threads: a lane has one owner at a time; pub counters, the mailbox and the
 * pipes between lanes are where two meet.
 */
#ifndef TESTS_CUTWORK_LANES_H
#define TESTS_CUTWORK_LANES_H

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "cut.h"

/* What one lane's owner knows; ordinary memory, not checked in the image. */
struct lane_run {
	unsigned id;
	struct cut_lane *lane;
	uint64_t n; /* last number written */
	uint64_t seen[CUT_MAX_LANES]; /* largest number seen of others */
	int pipe_in[2]; /* numbers handed over by the lane before */
	int feed[2]; /* kernel lanes: where their slots come from */
	unsigned rate; /* numbers a second; 0: full speed */
	uint64_t stamp_ns, longest_ns; /* longest time between two steps */
	uint64_t longest_at_ns;
	unsigned chunk_flavour; /* of the next chunk of a table lane */
};

static struct {
	struct cut_header *header;
	struct cut_counter *pub, *shm;
	struct cut_mailbox *mailbox;
	struct lane_run run[CUT_MAX_LANES];
	unsigned nr_handing; /* lanes 0 ... nr - 1 hand numbers to each other */
	atomic_bool stop, failed;
} work;

/* In .data, so a page of a private file mapping; and in .bss. */
static struct cut_counter data_counters[CUT_MAX_LANES]
	__attribute__((aligned(CUT_PAGE))) = {[CUT_MAX_LANES - 1] = {.pad = {1}}};
static struct cut_counter bss_counters[CUT_MAX_LANES] __attribute__((aligned(CUT_PAGE)));

static uint64_t clock_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void sleep_ns(uint64_t ns)
{
	struct timespec ts = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};

	nanosleep(&ts, NULL);
}

static bool stopping(void)
{
	return atomic_load_explicit(&work.stop, memory_order_relaxed);
}

/* The workload's own memory or timing is not what it must be. */
__attribute__((format(printf, 1, 2))) static void violation(const char *fmt, ...)
{
	char text[512];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(text, sizeof(text) - 1, fmt, ap);
	va_end(ap);
	if (n > (int)sizeof(text) - 2)
		n = (int)sizeof(text) - 2;
	text[n++] = '\n';
	if (write(2, "cutwork: violation: ", 20) < 0 || write(2, text, (size_t)n) < 0)
		_exit(4);
	atomic_store(&work.failed, true);
	atomic_store(&work.stop, true);
}

/* sbrk() is not made for threads. malloc keeps off the heap's end (main()). */
static pthread_mutex_t brk_lock = PTHREAD_MUTEX_INITIALIZER;

static void *grow_brk(size_t len)
{
	void *p;

	pthread_mutex_lock(&brk_lock);
	p = sbrk((intptr_t)len);
	pthread_mutex_unlock(&brk_lock);
	return p;
}

/* Gives [p, p + len) back if it is still the heap's end. */
static int shrink_brk(char *p, size_t len)
{
	int r = 0;

	pthread_mutex_lock(&brk_lock);
	if (sbrk(0) == p + len && sbrk(-(intptr_t)len) == (void *)-1)
		r = -1;
	pthread_mutex_unlock(&brk_lock);
	return r;
}

static void fatal(const char *what)
{
	fprintf(stderr, "cutwork: cannot %s: %s\n", what, strerror(errno));
	exit(2);
}

static void *map_memory(size_t len, int prot, int flags, int fd)
{
	void *p = mmap(NULL, len, prot, flags, fd, 0);

	if (p == MAP_FAILED)
		fatal("map memory");
	return p;
}

/* --- the mailbox: a futex lock and two words on two pages ------------------ */

static void mailbox_lock(struct cut_mailbox *m)
{
	uint32_t free_word = 0;

	if (__atomic_compare_exchange_n(&m->lock, &free_word, 1, false, __ATOMIC_ACQUIRE,
					__ATOMIC_RELAXED))
		return;
	while (__atomic_exchange_n(&m->lock, 2, __ATOMIC_ACQUIRE))
		syscall(SYS_futex, &m->lock, FUTEX_WAIT_PRIVATE, 2, NULL, NULL, 0);
}

static void mailbox_unlock(struct cut_mailbox *m)
{
	if (__atomic_exchange_n(&m->lock, 0, __ATOMIC_RELEASE) == 2)
		syscall(SYS_futex, &m->lock, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* Takes what is there and leaves a number of our own. */
static uint64_t mailbox_swap(uint64_t mine)
{
	struct cut_mailbox *m = work.mailbox;
	uint64_t value, check;

	mailbox_lock(m);
	value = m->value;
	check = m->check;
	__atomic_store_n(&m->value, mine, __ATOMIC_RELEASE);
	__atomic_store_n(&m->check, ~mine, __ATOMIC_RELEASE);
	mailbox_unlock(m);
	if (value && check != ~value)
		violation("mailbox holds 0x%llx beside 0x%llx", (unsigned long long)value,
			  (unsigned long long)~check);
	return value;
}

/* --- handing numbers over --------------------------------------------------- */

static void check_seen(struct lane_run *r, uint64_t from)
{
	unsigned src = (unsigned)(from >> 56) - 1;
	uint64_t n = from & ((1ull << 56) - 1);

	if (src >= CUT_MAX_LANES)
		violation("lane %u was handed 0x%llx", r->id, (unsigned long long)from);
	else if (n > r->seen[src])
		r->seen[src] = n;
}

/* A number of another lane, and from where it was handed over. */
static uint64_t derive(struct lane_run *r, uint64_t n)
{
	unsigned src;
	uint64_t got = 0;

	if (work.nr_handing < 2)
		return 0;
	if (n % 1024 == 0) {
		/* The neighbour may be slow: then the pipe is full. */
		struct lane_run *next = &work.run[(r->id + 1) % work.nr_handing];
		uint64_t mine = cut_from(r->id, r->n);

		if (write(next->pipe_in[1], &mine, 8) < 0 && errno != EAGAIN)
			violation("cannot hand over through a pipe: %s", strerror(errno));
		if (read(r->pipe_in[0], &got, 8) == 8) {
			check_seen(r, got);
			return got;
		}
	} else if (n % 256 == 0) {
		got = mailbox_swap(cut_from(r->id, r->n));
		if (got) {
			check_seen(r, got);
			return got;
		}
	}
	src = (r->id + 1 + (unsigned)(n % (work.nr_handing - 1))) % work.nr_handing;
	got = __atomic_load_n(&work.pub[src].n, __ATOMIC_ACQUIRE);
	if (got < r->seen[src])
		violation("lane %u sees %llu of lane %u after %llu", r->id, (unsigned long long)got,
			  src, (unsigned long long)r->seen[src]);
	r->seen[src] = got;
	return cut_from(src, got);
}

static void publish(struct lane_run *r, uint64_t n)
{
	__atomic_store_n(&data_counters[r->id].n, n, __ATOMIC_RELEASE);
	__atomic_store_n(&bss_counters[r->id].n, n, __ATOMIC_RELEASE);
	__atomic_store_n(&work.shm[r->id].n, n, __ATOMIC_RELEASE);
	__atomic_store_n(&work.pub[r->id].n, n, __ATOMIC_RELEASE);
	r->n = n;
}

/* Notes how long the owner did not come here, up to an instant of CLOCK_MONOTONIC. */
static void lane_tick_at(struct lane_run *r, uint64_t now)
{
	if (r->stamp_ns && now - r->stamp_ns > r->longest_ns) {
		r->longest_ns = now - r->stamp_ns;
		r->longest_at_ns = now;
	}
	r->stamp_ns = now;
}

static void lane_tick(struct lane_run *r)
{
	lane_tick_at(r, clock_ns());
}

/* --- one number ------------------------------------------------------------- */

static struct cut_slot *lane_slot(struct lane_run *r, uint64_t n)
{
	struct cut_lane *l = r->lane;
	uint64_t slot = cut_slot_of(l, n), base = l->base;

	if (l->table) {
		base = ((uint64_t *)l->table)[slot / l->chunk_slots];
		slot %= l->chunk_slots;
	} else if (l->alias && n % 2) {
		base = l->alias;
	}
	return (struct cut_slot *)(base + slot * l->stride);
}

static void check_before(struct lane_run *r, const struct cut_slot *s, uint64_t n)
{
	uint64_t have = __atomic_load_n(&s->n, __ATOMIC_RELAXED);
	uint64_t want = n > r->lane->nr_slots ? n - r->lane->nr_slots : 0;

	if (have != want)
		violation("lane %u (%s): slot of %llu at %p holds %llu, not %llu", r->id,
			  r->lane->name, (unsigned long long)n, (const void *)s,
			  (unsigned long long)have, (unsigned long long)want);
}

static void step_cpu(struct lane_run *r)
{
	uint64_t n = r->n + 1;
	struct cut_slot *s = lane_slot(r, n);

	check_before(r, s, n);
	__atomic_store_n(&s->from, derive(r, n), __ATOMIC_RELEASE);
	__atomic_store_n(&s->n, n, __ATOMIC_RELEASE);
	publish(r, n);
	if (n % 16 == 0)
		lane_tick(r);
}

/* The kernel writes the slot: read(2) from a pipe. */
static void step_pipe(struct lane_run *r)
{
	uint64_t n = r->n + 1;
	struct cut_slot s = {n, derive(r, n)}, *slot = lane_slot(r, n);

	check_before(r, slot, n);
	if (write(r->feed[1], &s, sizeof(s)) != sizeof(s) ||
	    read(r->feed[0], slot, sizeof(s)) != sizeof(s))
		violation("lane %u: read(2) into the heap: %s", r->id, strerror(errno));
	publish(r, n);
	lane_tick(r);
}

/* The kernel writes many slots: pread(2) from a file, over several pages. */
static void step_file(struct lane_run *r)
{
	static _Thread_local unsigned char *buf;
	struct cut_lane *l = r->lane;
	size_t len = (size_t)(l->batch * l->stride), done = 0;
	struct cut_slot *first = lane_slot(r, r->n + 1);

	if (!buf)
		buf = calloc(1, len);
	for (uint64_t i = 0; i < l->batch; i++) {
		struct cut_slot s = {r->n + 1 + i, i ? 0 : derive(r, r->n + 1)};

		check_before(r, (void *)((char *)first + i * l->stride), s.n);
		memcpy(buf + i * l->stride, &s, sizeof(s));
	}
	if (pwrite(r->feed[1], buf, len, 0) != (ssize_t)len)
		violation("lane %u: pwrite: %s", r->id, strerror(errno));
	while (done < len) {
		ssize_t got = pread(r->feed[1], (char *)first + done, len - done, (off_t)done);

		if (got <= 0 && errno != EINTR) {
			violation("lane %u: pread into the heap: %s", r->id,
				  got ? strerror(errno) : "end of file");
			return;
		}
		done += got > 0 ? (size_t)got : 0;
	}
	publish(r, r->n + l->batch);
	lane_tick(r);
}

static void lane_step(struct lane_run *r)
{
	if (r->lane->kind != CUT_LANE_KERNEL)
		step_cpu(r);
	else if (r->lane->batch > 1)
		step_file(r);
	else
		step_pipe(r);
}

/* Keeps to r->rate numbers a second, give or take a few ms. */
static void lane_pace(struct lane_run *r)
{
	unsigned burst = r->rate < 1000 ? 1 : r->rate / 1000;

	if (r->rate && r->n % burst == 0)
		sleep_ns(1000000000ull * burst / r->rate);
}

/* --- making lanes ------------------------------------------------------------ */

static uint64_t inverse(uint64_t odd)
{
	uint64_t x = odd;

	for (int i = 0; i < 6; i++) /* Newton: each round doubles the right bits */
		x *= 2 - odd * x;
	return x;
}

static uint64_t round_down_power(uint64_t n)
{
	while (n & (n - 1))
		n &= n - 1;
	return n;
}

/* A lane over len bytes at base. mul 1: in the order of addresses. */
static struct lane_run *lane_add(const char *name, enum cut_lane_kind kind, void *base,
				 uint64_t len, uint64_t stride, uint64_t mul)
{
	struct cut_header *h = work.header;
	struct lane_run *r = &work.run[h->nr_lanes];
	struct cut_lane *l = &h->lanes[h->nr_lanes];

	if (h->nr_lanes == CUT_MAX_LANES) {
		fprintf(stderr, "cutwork: too many lanes\n");
		exit(2);
	}
	r->id = h->nr_lanes++;
	r->lane = l;
	l->base = (uint64_t)(uintptr_t)base;
	l->stride = stride;
	l->nr_slots = round_down_power(len / stride);
	l->mul = mul;
	l->inv = inverse(mul);
	l->batch = 1;
	l->kind = kind;
	l->is_private = 1;
	snprintf(l->name, sizeof(l->name), "%s", name);
	if (pipe2(r->pipe_in, O_NONBLOCK | O_CLOEXEC))
		fatal("make a pipe");
	return r;
}

/* About the golden section of the slots: neighbours in time are far apart. */
static uint64_t scatter(uint64_t len, uint64_t stride)
{
	return (uint64_t)((double)round_down_power(len / stride) * 0.6180339887) | 1;
}

/* Fills every slot, so that no page is zero. */
static void lane_fill(struct lane_run *r)
{
	struct cut_lane *l = r->lane;

	for (uint64_t i = 0; i < l->nr_slots; i++) {
		uint64_t n = (i * l->inv) & (l->nr_slots - 1);

		((struct cut_slot *)(l->base + i * l->stride))->n = n ? n : l->nr_slots;
	}
	l->first = l->nr_slots;
	publish(r, l->nr_slots);
}

#endif
