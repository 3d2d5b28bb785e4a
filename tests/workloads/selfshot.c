/*
 * A program that takes snapshots of itself, with the agent preloaded:
 *
 *	selfshot cycle IMAGE	everything at once: callbacks, excludes, what the call leaves behind
 *	selfshot threads IMAGE	another thread meanwhile: -EBUSY, children, small stacks
 *	selfshot nowait IMAGE	returns at T0
 *	selfshot closed IMAGE	with no descriptor open
 *	selfshot init IMAGE	as the one that orphans are given to
 *	selfshot torn IMAGE	while memory is discarded behind the agent's back
 *	selfshot generations IMAGE	is restored, and takes second.usnap
 *	selfshot child IMAGE	in a child of fork()
 *	selfshot killed IMAGE	the command is killed; its PID is in command.pid
 *	selfshot idle		excludes, says where, and waits to be looked at from outside
 *	selfshot fail IMAGE	says what is wrong
 *
 * What is not as promised is printed as "wrong: ..."; the last line is "end" and
 * in a process that was restored "end restored".
 */
#define USNAP_AGENT_WEAK
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <uffd-snap.h>
#include <unistd.h>

#define PAGE ((size_t)4096)
#define MEMORY ((size_t)8 << 20)

static char path[4096], error[512], trail[256];
static unsigned nr_chld, nr_alarms;

#define CHECK(what)                                                                                \
	do {                                                                                       \
		if (!(what))                                                                       \
			printf("wrong: line %d: %s\n", __LINE__, #what);                           \
	} while (0)

static struct usnap_checkpoint_options options_for(const char *image)
{
	return (struct usnap_checkpoint_options){
		.size = sizeof(struct usnap_checkpoint_options),
		.output = image,
		.path = path,
		.path_size = sizeof(path),
		.error = error,
		.error_size = sizeof(error),
	};
}

static void leave_trail(void *arg)
{
	strncat(trail, arg, sizeof(trail) - strlen(trail) - 1);
}

static void again(void *arg)
{
	CHECK(usnap_checkpoint(NULL) == -EBUSY);
}

static void on_chld(int sig)
{
	nr_chld++;
}

static void on_alarm(int sig)
{
	nr_alarms++;
}

static unsigned count_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned n = 0;

	while (d && readdir(d))
		n++;
	if (d)
		closedir(d);
	return n;
}

static bool is_filled(const char *p, size_t len, char with)
{
	for (size_t i = 0; i < len; i++)
		if (p[i] != with)
			return false;
	return true;
}

static void fill(char *p, size_t len, char with)
{
	if (p == MAP_FAILED)
		abort();
	memset(p, with, len);
}

static char *map(int flags, int fd)
{
	return mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, flags, fd, 0);
}

/* 0: taken, 1: restored; anything else ends here. */
static int take(const struct usnap_checkpoint_options *o)
{
	int r = usnap_checkpoint(o);

	if (r < 0) {
		printf("failed: %d: %s\n", r, error);
		exit(1);
	}
	return r;
}

static int end(bool restored)
{
	printf("end%s\n", restored ? " restored" : "");
	return 0;
}

/* ---- cycle ------------------------------------------------------------------------------------ */

struct part {
	char *at;
	char back; /* what the excluded half holds when it comes back */
};

static int cycle(const char *image)
{
	struct usnap_checkpoint_options o = options_for(image);
	struct sigaction chld = {.sa_handler = on_chld}, alrm = {.sa_handler = on_alarm};
	const struct itimerval often = {{0, 1000}, {0, 1000}}, never = {0};
	char file[] = "mapped.XXXXXX";
	int fd = mkstemp(file);
	sigset_t mask, mask_after;

	if (fd < 0 || ftruncate(fd, (off_t)MEMORY) < 0)
		return 1;
	struct part parts[] = {
		{map(MAP_PRIVATE | MAP_ANONYMOUS, -1), 0},
		{map(MAP_SHARED | MAP_ANONYMOUS, -1), 0},
		{map(MAP_PRIVATE, fd), 0},
		{aligned_alloc((size_t)2 << 20, MEMORY), 0},
	};
	madvise(parts[3].at, MEMORY, MADV_HUGEPAGE);
	for (size_t i = 0; i < 4; i++) {
		fill(parts[i].at, MEMORY, 'a');
		/* The second half, less a page that has to be there again. */
		CHECK(usnap_exclude(parts[i].at + MEMORY / 2 - 1, MEMORY / 2 + 1) == 0);
		CHECK(usnap_include(parts[i].at + MEMORY / 4 * 3 + 10, 1) == 0);
	}
	sigaction(SIGCHLD, &chld, NULL);
	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR1);
	sigprocmask(SIG_SETMASK, &mask, NULL);
	usnap_on(USNAP_BEFORE_FREEZE, leave_trail, "b2");
	usnap_on(USNAP_BEFORE_FREEZE, leave_trail, "b1");
	usnap_on(USNAP_BEFORE_FREEZE, again, NULL);
	usnap_on(USNAP_AFTER_FREEZE, leave_trail, "a1");
	usnap_on(USNAP_AFTER_FREEZE, leave_trail, "a2");
	usnap_on(USNAP_RESTORED, leave_trail, "r1");
	usnap_on(USNAP_RESTORED, leave_trail, "gone");
	CHECK(usnap_off(USNAP_RESTORED, leave_trail, "nobody") == -ENOENT);
	CHECK(usnap_off(USNAP_RESTORED, leave_trail, "gone") == 0);
	unsigned fds = count_fds(), restored = usnap_restored();

	/* It is interrupted all the time. */
	sigaction(SIGALRM, &alrm, NULL);
	setitimer(ITIMER_REAL, &often, NULL);
	errno = 77;
	int r = take(&o);
	CHECK(errno == 77);
	setitimer(ITIMER_REAL, &never, NULL);
	CHECK(nr_alarms > 5);
	CHECK(count_fds() == fds);
	CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
	CHECK(nr_chld == 0);
	sigprocmask(SIG_SETMASK, NULL, &mask_after);
	CHECK(sigismember(&mask_after, SIGUSR1) == 1 && sigismember(&mask_after, SIGINT) == 0);
	printf("trail %s, path %s\n", trail, path);
	for (size_t i = 0; i < 4; i++) {
		const char *p = parts[i].at, *kept = p + MEMORY / 4 * 3;
		char want = r ? parts[i].back : 'a';

		CHECK(is_filled(p, MEMORY / 2, 'a'));
		CHECK(is_filled(p + MEMORY / 2, MEMORY / 4, want));
		CHECK(is_filled(kept, PAGE, 'a'));
		CHECK(is_filled(kept + PAGE, MEMORY / 4 - PAGE, want));
	}
	CHECK(usnap_restored() == restored + (unsigned)r);
	if (r == 0) {
		CHECK(strcmp(trail, "b1b2a1a2") == 0);
		CHECK(strcmp(path, image) == 0);
	} else {
		CHECK(strcmp(trail, "b1b2r1") == 0);
		CHECK(path[0] == '\0');
	}
	return end(r);
}

/* ---- threads ---------------------------------------------------------------------------------- */

static volatile bool stop, taking;
static unsigned busy;

static void *disturb(void *arg)
{
	while (!stop) {
		if (taking && usnap_checkpoint(NULL) == -EBUSY)
			busy++;
		pid_t pid = fork();

		if (pid == 0) {
			/* In a child nobody holds a lock. */
			usnap_exclude(path, sizeof(path));
			usnap_include(path, sizeof(path));
			_exit(42);
		}
		int status = 0;
		CHECK(pid > 0 && waitpid(-1, &status, 0) == pid);
		CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 42);
		usnap_exclude(trail, sizeof(trail));
		usnap_include(trail, sizeof(trail));
	}
	return NULL;
}

static void begin_taking(void *arg)
{
	taking = true;
	/* With the other at a standstill: what it waits for would not come back. */
	while (!busy)
		usleep(1000);
	stop = true;
	pthread_join(*(pthread_t *)arg, NULL);
}

static void *take_small(void *arg)
{
	struct usnap_checkpoint_options o = options_for(arg);

	return (void *)(intptr_t)take(&o);
}

static int threads(const char *image)
{
	pthread_t t, small;
	pthread_attr_t attr;
	void *r;

	usnap_on(USNAP_BEFORE_FREEZE, begin_taking, &t);
	pthread_create(&t, NULL, disturb, NULL);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 16384);
	pthread_create(&small, &attr, take_small, (void *)(uintptr_t)image);
	pthread_join(small, &r);
	return end(r);
}

/* ---- others ----------------------------------------------------------------------------------- */

static int no_wait(const char *image)
{
	struct usnap_checkpoint_options o = options_for(image);

	usnap_on(USNAP_AFTER_FREEZE, leave_trail, "a");
	o.no_wait = 1;
	int r = take(&o);
	CHECK(strcmp(trail, r ? "" : "a") == 0);
	for (int i = 0; r == 0 && i < 1000 && access(image, F_OK) < 0; i++)
		usleep(10000);
	CHECK(r || access(image, F_OK) == 0);
	return end(r);
}

static int closed(const char *image)
{
	struct usnap_checkpoint_options o = options_for(image);
	FILE *said = fopen("said", "a");

	setvbuf(said, NULL, _IONBF, 0);
	for (int i = 0; i < 1024; i++)
		if (i != fileno(said))
			close(i);
	int r = usnap_checkpoint(&o);
	fprintf(said, "result %d %s\n", r, error);
	for (int i = 0; i < 1024; i++)
		if (i != fileno(said) && fcntl(i, F_GETFD) >= 0)
			fprintf(said, "wrong: %d is open\n", i);
	fclose(said);
	return 0;
}

static int init(const char *image)
{
	struct usnap_checkpoint_options o = options_for(image);

	prctl(PR_SET_CHILD_SUBREAPER, 1);
	int r = take(&o);
	return end(r);
}

/* Under the lock they are equal. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
	volatile unsigned long one;
	char between[1 << 20];
	volatile unsigned long other;
} pair;
static unsigned nr_before, nr_after;
/* Lies before what is mapped: the sweep is at it for a while. */
static volatile char ballast[(size_t)64 << 20];

static void *change(void *arg)
{
	while (!stop) {
		pthread_mutex_lock(&lock);
		pair.one++;
		pair.between[pair.one * 4096 % sizeof(pair.between)]++;
		pair.other++;
		pthread_mutex_unlock(&lock);
	}
	return NULL;
}

/* The agent knows libc's way into the kernel, not everybody's. */
static void raw_munmap(char *p, size_t len)
{
	long r = SYS_munmap;

	__asm__ volatile("syscall" : "+a"(r) : "D"(p), "S"(len) : "rcx", "r11", "memory");
}

static void *discard(void *arg)
{
	while (!stop) {
		char *p = map(MAP_PRIVATE | MAP_ANONYMOUS, -1);

		fill(p, MEMORY, 'd');
		usleep(5000);
		raw_munmap(p, MEMORY);
	}
	return NULL;
}

static void lock_pair(void *arg)
{
	pthread_mutex_lock(&lock);
	nr_before++;
}

static void unlock_pair(void *arg)
{
	nr_after++;
	pthread_mutex_unlock(&lock);
}

static int torn(const char *image)
{
	struct usnap_checkpoint_options o = options_for(image);
	pthread_t t[2];

	for (size_t i = 0; i < sizeof(ballast); i++)
		ballast[i] = (char)(i * 2654435761u >> 13);
	usnap_on(USNAP_BEFORE_FREEZE, lock_pair, NULL);
	usnap_on(USNAP_AFTER_FREEZE, unlock_pair, NULL);
	usnap_on(USNAP_RESTORED, unlock_pair, NULL);
	pthread_create(&t[0], NULL, change, NULL);
	pthread_create(&t[1], NULL, discard, NULL);
	usleep(50000);
	int r = take(&o);
	stop = true;
	pthread_join(t[0], NULL);
	pthread_join(t[1], NULL);
	CHECK(pair.one == pair.other);
	CHECK(nr_before == nr_after);
	printf("attempts %u\n", nr_before);
	return end(r);
}

static int generations(const char *image)
{
	struct usnap_checkpoint_options o = options_for(image);

	if (take(&o) == 0)
		return end(false);
	printf("restored %u times\n", usnap_restored());
	o = options_for("second.usnap");
	o.parent = image;
	if (take(&o) == 0) {
		puts("taken again");
		return 0;
	}
	printf("restored %u times\n", usnap_restored());
	return end(true);
}

static int child(const char *image)
{
	struct usnap_checkpoint_options o = options_for(image);
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		setsid();
		return end(take(&o));
	}
	CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
	return 0;
}

static void kill_command(void *arg)
{
	FILE *f = fopen("command.pid", "r");
	int pid = 0;

	CHECK(f && fscanf(f, "%d", &pid) == 1 && kill(pid, SIGKILL) == 0);
	if (f)
		fclose(f);
}

static int killed(const char *image)
{
	struct usnap_checkpoint_options o = options_for(image);
	unsigned fds = count_fds();

	usnap_on(USNAP_BEFORE_FREEZE, kill_command, NULL);
	usnap_on(USNAP_BEFORE_FREEZE, lock_pair, NULL);
	usnap_on(USNAP_AFTER_FREEZE, unlock_pair, NULL);
	CHECK(usnap_checkpoint(&o) == -ECANCELED);
	printf("%s\n", error);
	CHECK(nr_before == 1 && nr_after == 1);
	CHECK(count_fds() == fds);
	/* Nothing of it is left: the next one succeeds. */
	CHECK(usnap_off(USNAP_BEFORE_FREEZE, kill_command, NULL) == 0);
	return end(take(&o));
}

static int idle(void)
{
	char *p = map(MAP_PRIVATE | MAP_ANONYMOUS, -1);

	fill(p, MEMORY, 'a');
	CHECK(usnap_exclude(p, MEMORY / 2) == 0);
	printf("ready %p %zu\n", (void *)p, MEMORY / 2);
	fflush(stdout);
	/* Written all the time: nobody waits for it, and nothing is torn by it. */
	while (!usnap_restored()) {
		static unsigned n;
		char *at = p + n++ * 7919 % (MEMORY / 2 / PAGE) * PAGE;

		madvise(at, PAGE, MADV_DONTNEED);
		*at = 'b';
	}
	CHECK(is_filled(p + MEMORY / 2, MEMORY / 2, 'a'));
	unsigned old = 0;
	for (size_t i = 0; i < MEMORY / 2; i += PAGE)
		old += p[i] == 'a';
	CHECK(old == 0);
	return end(true);
}

static void be_slow(void *arg)
{
	const struct timespec t = {5, 0};

	while (clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL))
		;
	leave_trail("b");
}

static void expect(struct usnap_checkpoint_options *o, int want)
{
	int r = usnap_checkpoint(o);

	CHECK(r == want);
	printf("%d %s\n", r, error);
}

static int fail(const char *image)
{
	struct usnap_checkpoint_options o = options_for(image), wrong = o;

	wrong.output = "missing/directory/image";
	expect(&wrong, -ECANCELED);
	wrong.output = "";
	expect(&wrong, -EINVAL);
	wrong.output = image;
	wrong.store = "store";
	expect(&wrong, -EINVAL);
	wrong = o;
	wrong.size = 3;
	CHECK(usnap_checkpoint(&wrong) == -EINVAL);
	wrong = o;
	wrong.parent = "missing.usnap";
	expect(&wrong, -ECANCELED);
	wrong = o;
	wrong.timeout_s = 4;
	usnap_on(USNAP_BEFORE_FREEZE, be_slow, NULL);
	usnap_on(USNAP_AFTER_FREEZE, leave_trail, "a");
	expect(&wrong, -ECANCELED);
	CHECK(strcmp(trail, "ba") == 0);
	CHECK(usnap_exclude((void *)-100, 200) == -EINVAL);
	CHECK(usnap_exclude(path, 0) == 0);
	CHECK(usnap_on((enum usnap_phase)3, leave_trail, "") == -EINVAL);
	CHECK(usnap_on(USNAP_RESTORED, NULL, NULL) == -EINVAL);
	setenv("UFFD_SNAP_COMMAND", "/missing/uffd-snap", 1);
	expect(&o, -ENOENT);
	return end(false);
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "", *image = argc > 2 ? argv[2] : NULL;
	static const struct {
		const char *name;
		int (*fn)(const char *image);
	} all[] = {
		{"cycle", cycle},
		{"threads", threads},
		{"nowait", no_wait},
		{"closed", closed},
		{"torn", torn},
		{"killed", killed},
		{"generations", generations},
		{"child", child},
		{"init", init},
		{"fail", fail},
	};

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!usnap_checkpoint) {
		puts("no agent");
		return 1;
	}
	if (!strcmp(what, "idle"))
		return idle();
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		if (!strcmp(what, all[i].name) && image)
			return all[i].fn(image);
	return 2;
}
