/*
 * A process whose memory can be checked for one consistent instant: threads
 * that write increasing numbers all over it, in every way that programs
 * write, create and discard memory (cut.h says what must hold).
 *
 * Prints "header 0x..." and then "ready" on stdout; runs until SIGTERM or
 * SIGINT; then verifies its own memory, reports how long anything waited and
 * exits 0. Whatever was not as it must be: "violation: ..." on stderr, exit 1.
 * SIGUSR1: prints "fork NS", the time fork() takes.
 */
#include <getopt.h>
#include <inttypes.h>
#include <malloc.h>

#include "cutverify.h"
#include "cutwork-discard.h"
#include "cutwork-lanes.h"
#include "cutwork-roles.h"

static struct {
	unsigned threads, touch_rate, rate, discards, discard_rate, seconds;
	uint64_t size, stride;
	const char *mode, *backing, *gap_log, *clock;
	bool kernel_writes, first_touch, fork, spawn, churn, mprotect, signals, sleepers, statics;
} opt = {
	.threads = 4,
	.touch_rate = 4000,
	.discard_rate = 400,
	.size = 256 << 20,
	.stride = 64,
	.mode = "random",
	.backing = "anon",
	.clock = "spin",
};

static const char usage[] =
	"usage: cutwork [OPTION]...\n"
	"  --threads N          writers (4)\n"
	"  --size BYTES[K|M|G]  memory written, all lanes together (256M)\n"
	"  --stride BYTES       between slots (64)\n"
	"  --mode MODE          random, seq, hot or mix\n"
	"  --backing KIND       anon, huge, hugetlb, shmem, memfd, file or mix\n"
	"  --rate N             numbers a second and writer (full speed)\n"
	"  --kernel-writes      two more lanes filled by read(2) and pread(2)\n"
	"  --first-touch        three more lanes of memory touched over time\n"
	"  --touch-rate N       pages a second of that (4000)\n"
	"  --fork, --spawn      a thread that forks, that spawns\n"
	"  --thread-churn       two lanes carried on by new threads all the time\n"
	"  --mprotect           a lane whose protection changes all the time\n"
	"  --discard KINDS      all, or a list of malloc,munmap,mremap,dontneed,free,\n"
	"                       fixed,brk,remove,punch,truncate\n"
	"  --discard-rate N     a second (400)\n"
	"  --signals            a thread that is sent signals in order\n"
	"  --sleepers           threads asleep in system calls\n"
	"  --statics            memory of every kind that does not change\n"
	"  --clock HOW          spin, paced or none\n"
	"  --gap-log FILE       written at the end: end and length of gaps, ns\n"
	"  --seconds N          end by itself\n";

static struct lane_run *writers[16];
static struct forker forker;

static size_t parse_size(const char *s)
{
	char *end;
	unsigned long long n = strtoull(s, &end, 0);

	switch (*end) {
	case 'G':
		n <<= 10; /* fallthrough */
	case 'M':
		n <<= 10; /* fallthrough */
	case 'K':
		n <<= 10;
	}
	return n;
}

static unsigned parse_discards(const char *list)
{
	unsigned bits = 0;

	/* All that the agentless snapshot is told of by the kernel. */
	if (!strcmp(list, "all"))
		return (1u << DISCARD_PUNCH) - 1;
	for (unsigned i = 0; i < DISCARD_NR; i++) {
		const char *p = strstr(list, discard_names[i]);

		if (p && (p == list || p[-1] == ','))
			bits |= 1u << i;
	}
	if (!bits) {
		fputs(usage, stderr);
		exit(2);
	}
	return bits;
}

static void parse(int argc, char **argv)
{
	static const struct option options[] = {
		{"threads", 1, NULL, 't'},	 {"size", 1, NULL, 's'},
		{"stride", 1, NULL, 'd'},	 {"mode", 1, NULL, 'm'},
		{"backing", 1, NULL, 'b'},	 {"rate", 1, NULL, 'r'},
		{"kernel-writes", 0, NULL, 'k'}, {"first-touch", 0, NULL, 'f'},
		{"touch-rate", 1, NULL, 'T'},	 {"fork", 0, NULL, 'F'},
		{"spawn", 0, NULL, 'S'},	 {"thread-churn", 0, NULL, 'c'},
		{"mprotect", 0, NULL, 'p'},	 {"discard", 1, NULL, 'D'},
		{"discard-rate", 1, NULL, 'R'},	 {"signals", 0, NULL, 'g'},
		{"sleepers", 0, NULL, 'l'},	 {"statics", 0, NULL, 'a'},
		{"clock", 1, NULL, 'C'},	 {"gap-log", 1, NULL, 'G'},
		{"seconds", 1, NULL, 'e'},	 {NULL, 0, NULL, 0}};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 't':
			opt.threads = (unsigned)atoi(optarg);
			break;
		case 's':
			opt.size = parse_size(optarg);
			break;
		case 'd':
			opt.stride = parse_size(optarg);
			break;
		case 'm':
			opt.mode = optarg;
			break;
		case 'b':
			opt.backing = optarg;
			break;
		case 'r':
			opt.rate = (unsigned)atoi(optarg);
			break;
		case 'k':
			opt.kernel_writes = true;
			break;
		case 'f':
			opt.first_touch = true;
			break;
		case 'T':
			opt.touch_rate = (unsigned)atoi(optarg);
			break;
		case 'F':
			opt.fork = true;
			break;
		case 'S':
			opt.spawn = true;
			break;
		case 'c':
			opt.churn = true;
			break;
		case 'p':
			opt.mprotect = true;
			break;
		case 'D':
			opt.discards = parse_discards(optarg);
			break;
		case 'R':
			opt.discard_rate = (unsigned)atoi(optarg);
			break;
		case 'g':
			opt.signals = true;
			break;
		case 'l':
			opt.sleepers = true;
			break;
		case 'a':
			opt.statics = true;
			break;
		case 'C':
			opt.clock = optarg;
			break;
		case 'G':
			opt.gap_log = optarg;
			break;
		case 'e':
			opt.seconds = (unsigned)atoi(optarg);
			break;
		default:
			fputs(usage, stderr);
			exit(2);
		}
	}
	if (optind < argc || !opt.threads || opt.threads > 16) {
		fputs(usage, stderr);
		exit(2);
	}
}

/* --- lanes ---------------------------------------------------------------------- */

/* A temporary file of this length without a name. */
static int scratch_file(size_t len)
{
	int fd = open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

	if (fd < 0 || ftruncate(fd, (off_t)len))
		fatal("make a file in the current directory");
	return fd;
}

static struct lane_run *backed_lane(unsigned i, const char *backing, size_t len, uint64_t mul)
{
	static const char *const mix[] = {"anon", "huge", "memfd", "shmem", "file"};
	const int rw = PROT_READ | PROT_WRITE, anon = MAP_PRIVATE | MAP_ANONYMOUS;
	const size_t huge = 2 << 20;
	struct lane_run *r;
	void *p, *alias = NULL;
	bool priv = true;

	if (!strcmp(backing, "mix"))
		backing = mix[i % 5];
	if (!strcmp(backing, "huge")) {
		p = map_memory(len + huge, rw, anon, -1);
		p = (void *)(((uint64_t)p + huge - 1) & ~(uint64_t)(huge - 1));
		if (madvise(p, len, MADV_HUGEPAGE))
			fatal("ask for huge pages");
	} else if (!strcmp(backing, "hugetlb")) {
		p = map_memory(len < huge ? huge : len, rw, anon | MAP_HUGETLB, -1);
		priv = false; /* a child's copy would need huge pages of its own */
	} else if (!strcmp(backing, "shmem")) {
		p = map_memory(len, rw, MAP_SHARED | MAP_ANONYMOUS, -1);
		priv = false;
	} else if (!strcmp(backing, "memfd")) {
		int fd = memfd_create("cutwork", MFD_CLOEXEC);

		if (fd < 0 || ftruncate(fd, (off_t)len))
			fatal("make shared memory");
		p = map_memory(len, rw, MAP_SHARED, fd);
		alias = map_memory(len, rw, MAP_SHARED, fd);
		priv = false;
	} else if (!strcmp(backing, "file")) {
		/* Copied while everybody stands still: not for much. */
		len = len < huge ? len : huge;
		p = map_memory(len, rw, MAP_PRIVATE, scratch_file(len));
	} else {
		backing = "anon";
		p = map_memory(len, rw, anon, -1);
	}
	r = lane_add(backing, CUT_LANE_CPU, p, len, opt.stride,
		     mul ? mul : scatter(len, opt.stride));
	r->lane->alias = (uint64_t)(uintptr_t)alias;
	r->lane->is_private = priv;
	return r;
}

static void setup_writers(void)
{
	unsigned lanes = opt.threads + (opt.kernel_writes ? 2 : 0);
	size_t len = round_down_power(opt.size / lanes);

	for (unsigned i = 0; i < opt.threads; i++) {
		static const char *const mix[] = {"random", "seq", "hot", "random"};
		const char *mode = strcmp(opt.mode, "mix") ? opt.mode : mix[i % 4];
		bool hot = !strcmp(mode, "hot");

		writers[i] = backed_lane(i, opt.backing, hot && len > 1 << 20 ? 1 << 20 : len,
					 strcmp(mode, "seq") ? 0 : 1);
		writers[i]->rate = opt.rate;
		lane_fill(writers[i]);
	}
	work.nr_handing = opt.threads;
	for (int i = 0; i < 2 && opt.kernel_writes; i++) {
		struct lane_run *r = backed_lane(0, "anon", len, i ? 1 : 0);

		r->lane->kind = CUT_LANE_KERNEL;
		lane_fill(r);
		if (i) {
			r->feed[1] = memfd_create("cutwork-feed", MFD_CLOEXEC);
			while ((r->n + 1) % 1024)
				step_cpu(r);
			r->lane->batch = 1024;
		} else if (pipe2(r->feed, O_CLOEXEC)) {
			fatal("make a pipe");
		}
		writers[opt.threads + (unsigned)i] = r;
		work.nr_handing++;
	}
}

static void *writer_thread(void *arg)
{
	struct lane_run *r = arg;

	while (!stopping()) {
		lane_step(r);
		lane_pace(r);
	}
	return NULL;
}

/* --- threads --------------------------------------------------------------------- */

static pthread_t threads[128];
static unsigned nr_threads;

static void start(void *(*f)(void *), void *arg)
{
	int r = pthread_create(&threads[nr_threads++], NULL, f, arg);

	if (r) {
		errno = r;
		fatal("start a thread");
	}
}

static struct lane_run *small_lane(const char *name, size_t len)
{
	struct lane_run *r =
		lane_add(name, CUT_LANE_CPU,
			 map_memory(len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1),
			 len, 64, scatter(len, 64));

	lane_fill(r);
	return r;
}

static struct lane_run *table_lane(const char *name, uint64_t slots, uint64_t chunk, unsigned rate)
{
	uint64_t bytes = slots / chunk * 8;
	struct lane_run *r = lane_add(name, CUT_LANE_TOUCH, NULL, slots * CUT_PAGE, CUT_PAGE, 1);

	bytes = (bytes + CUT_PAGE - 1) & ~(uint64_t)(CUT_PAGE - 1);
	r->lane->table = (uint64_t)(uintptr_t)map_memory(bytes, PROT_READ | PROT_WRITE,
							 MAP_PRIVATE | MAP_ANONYMOUS, -1);
	r->lane->chunk_slots = chunk;
	r->rate = rate;
	return r;
}

static struct lane_run *setup_touch(void)
{
	const size_t len = (size_t)4 << 30;
	struct lane_run *hole, *grow;

	hole = lane_add("hole", CUT_LANE_TOUCH,
			map_memory(len, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1),
			len, CUT_PAGE, scatter(len, CUT_PAGE));
	hole->rate = opt.touch_rate;
	grow = table_lane("grow", GROW_CHUNK * GROW_CHUNKS, GROW_CHUNK, opt.touch_rate / 2);
	start(touch_thread, hole);
	start(grow_thread, grow);
	return table_lane("stack", STACK_PAGES, 1, 0);
}

static void setup_header(void)
{
	const int rw = PROT_READ | PROT_WRITE, anon = MAP_PRIVATE | MAP_ANONYMOUS;
	const size_t counters = CUT_MAX_LANES * sizeof(struct cut_counter);
	struct cut_header *h = map_memory(sizeof(*h), rw, anon, -1);

	work.header = h;
	work.pub = map_memory(counters, rw, anon, -1);
	work.shm = map_memory(counters, rw, MAP_SHARED | MAP_ANONYMOUS, -1);
	work.mailbox = map_memory(sizeof(*work.mailbox), rw, anon, -1);
	h->self = (uint64_t)(uintptr_t)h;
	h->version = CUT_VERSION;
	h->size = sizeof(*h);
	h->data_counters = (uint64_t)(uintptr_t)data_counters;
	h->bss_counters = (uint64_t)(uintptr_t)bss_counters;
	h->shm_counters = (uint64_t)(uintptr_t)work.shm;
	h->pub_counters = (uint64_t)(uintptr_t)work.pub;
	h->mailbox = (uint64_t)(uintptr_t)work.mailbox;
}

static void start_roles(unsigned nr_discarders)
{
	unsigned lanes = opt.threads + (opt.kernel_writes ? 2 : 0);

	for (unsigned i = 0; i < lanes; i++)
		start(writer_thread, writers[i]);
	for (unsigned i = 0; i < nr_discarders; i++)
		start(discard_thread, &discarders[i]);
	if (forker.run)
		start(fork_thread, &forker);
	if (strcmp(opt.clock, "none")) {
		gaps.paced = !strcmp(opt.clock, "paced");
		start(clock_thread, NULL);
	}
	if (opt.signals) {
		struct sigaction sa = {.sa_sigaction = take_signal,
				       .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};

		sigaction(SIGRTMIN + 1, &sa, NULL);
		start(signal_taker_thread, NULL);
		signal_taker = threads[nr_threads - 1];
		start(signal_sender_thread, NULL);
	}
	for (unsigned i = 0; i < NR_SLEEPERS && opt.sleepers; i++) {
		if (sleepers[i].sleep == sleep_epoll)
			sleepers[i].fd[0] = epoll_create1(EPOLL_CLOEXEC);
		else if (pipe2(sleepers[i].fd, O_CLOEXEC))
			fatal("make a pipe");
		start(sleeper_thread, &sleepers[i]);
		if (sleepers[i].sleep == sleep_read)
			start(feed_thread, &sleepers[i]);
	}
}

/* The time that fork() itself takes. */
static void measure_fork(void)
{
	uint64_t before = clock_ns(), after;
	pid_t pid = fork();

	if (!pid)
		_exit(0);
	after = clock_ns();
	printf("fork %" PRIu64 "\n", after - before);
	fflush(stdout);
	wait_for(pid, "forked child");
}

static void *signal_thread(void *arg)
{
	uint64_t end = opt.seconds ? clock_ns() + opt.seconds * 1000000000ull : UINT64_MAX;
	struct timespec tick = {0, 100000000};

	while (!stopping() && clock_ns() < end) {
		int sig = sigtimedwait(arg, NULL, &tick);

		if (sig == SIGUSR1)
			measure_fork();
		else if (sig > 0)
			break;
	}
	atomic_store(&work.stop, true);
	return NULL;
}

/* --- the end ----------------------------------------------------------------------- */

static int read_self(void *arg, uint64_t addr, void *buf, size_t len)
{
	/* The kernel reads what we may not (PROT_NONE). */
	ssize_t r = pread(*(int *)arg, buf, len, (off_t)addr);

	return r == (ssize_t)len ? 0 : -EFAULT;
}

static void report(void)
{
	int fd = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
	struct cut_mem mem = {read_self, &fd};

	for (unsigned i = 0; i < work.header->nr_lanes; i++)
		printf("lane %u %s: %" PRIu64 " numbers, longest wait %" PRIu64 " us\n", i,
		       work.header->lanes[i].name, work.run[i].n - work.header->lanes[i].first,
		       work.run[i].longest_ns / 1000);
	for (unsigned i = 0; i < NR_SLEEPERS && opt.sleepers; i++)
		printf("sleeper %s: %" PRIu64 " interrupted, longest wait %" PRIu64 " us\n",
		       sleepers[i].name, sleepers[i].nr_eintr, sleepers[i].longest_ns / 1000);
	if (forker.run)
		printf("slowest child: there after %" PRIu64 " us, gone after %" PRIu64
		       " more; it ran %" PRIu64 " us, %ld major faults, %ld blocks read\n",
		       forker.made_ns / 1000, forker.ended_ns / 1000, forker.ran_us,
		       forker.major_faults, forker.blocks);
	if (opt.signals)
		printf("signals: %lu\n", atomic_load(&signals_taken));
	if (strcmp(opt.clock, "none"))
		printf("clock: longest wait %" PRIu64 " us\n", gaps.longest_ns / 1000);
	if (opt.gap_log && gap_write(opt.gap_log))
		fatal("write the log of gaps");
	if (cut_verify(&mem, (uint64_t)(uintptr_t)work.header, stderr, false))
		atomic_store(&work.failed, true);
	printf("%s\n", atomic_load(&work.failed) ? "failed" : "ok");
}

int main(int argc, char **argv)
{
	struct lane_run *stack = NULL, *relay[2] = {NULL, NULL};
	unsigned nr_discarders = 0;
	sigset_t set;

	parse(argc, argv);
	/* Blocks of malloc come and go all the time, and leave the end of
	 * the heap alone. */
	mallopt(M_MMAP_THRESHOLD, 256 << 10);
	mallopt(M_TOP_PAD, 1 << 20);
	setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGUSR2);
	sigaddset(&set, SIGRTMIN + 1);
	pthread_sigmask(SIG_BLOCK, &set, NULL);

	setup_header();
	setup_writers();
	if (opt.statics)
		statics_setup();
	if (opt.fork || opt.spawn) {
		forker.run = small_lane("fork", 1 << 20);
		forker.fork = opt.fork;
		forker.spawn = opt.spawn;
	}
	for (int i = 0; i < 2 && opt.churn; i++)
		relay[i] = small_lane("relay", 4 << 20);
	if (opt.discards) {
		nr_discarders = 2;
		discard_setup(opt.discards, nr_discarders, opt.discard_rate);
	}
	if (opt.mprotect) {
		struct lane_run *r = small_lane("mprotect", 4 << 20);

		r->lane->is_private = 0; /* a child may find it read-only */
		start(mprotect_thread, r);
	}
	if (opt.first_touch)
		stack = setup_touch();
	work.header->magic = CUT_MAGIC;
	printf("header 0x%" PRIx64 "\n", work.header->self);

	start_roles(nr_discarders);
	sigdelset(&set, SIGRTMIN + 1);
	start(signal_thread, &set);
	for (int i = 0; i < 2 && relay[i]; i++) {
		atomic_fetch_add(&relays_running, 1);
		start(relay_thread, relay[i]);
	}
	printf("ready\n");

	grow_stack(stack);
	for (unsigned i = 0; i < nr_threads; i++)
		pthread_join(threads[i], NULL);
	while (atomic_load(&relays_running))
		sleep_ns(1000000);
	report();
	return atomic_load(&work.failed) ? 1 : 0;
}
