/*
 * What the programs restore_*.c share. Each of them has cases:
 *
 *	restore_AREA --list		"case<TAB>what a restore brings back"
 *	restore_AREA CASE
 *
 * A case sets something up, prints "ready" and waits until the file "go", in
 * the directory it was started in and empty so far, has a byte in it. Meanwhile the process may be snapshotted, killed and
 * restored, any number of times, or nothing at all may happen to it. Then it
 * looks whether everything is as it was and still works, and writes "ok",
 * "FAIL: ..." or "SKIP: why this machine has no such thing" into "result".
 *
 * Standard output must be a file. It and the other two are held open, so that a
 * case may change its directory, its root, its user.
 *
 * No case depends on how long anything takes: what ends too early is wrong,
 * what ends late is so only after many seconds.
 */
#ifndef RESTOREWORK_H
#define RESTOREWORK_H

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct work {
	const char *name;
	void (*run)(void);
	const char *behaviour;
};

#define WORK_COUNT(a) (sizeof(a) / sizeof((a)[0]))
#define WORK_SECOND 1000000000LL

enum {
	WORK_GO_FD = 100,
	WORK_RESULT_FD = 101
};

static bool work_restored;

__attribute__((format(printf, 2, 3))) _Noreturn static inline void work_end(int status,
									    const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	int n = vsnprintf(text, sizeof(text) - 1, fmt, ap);
	va_end(ap);
	if (n > (int)sizeof(text) - 2)
		n = (int)sizeof(text) - 2;
	text[n++] = '\n';
	if (write(WORK_RESULT_FD, text, (size_t)n) != n)
		status = 3;
	_exit(status);
}

_Noreturn static inline void work_fail(int line, const char *what)
{
	int e = errno;

	work_end(1, "FAIL: %s, line %d: not so: %s (errno %d: %s)",
		 work_restored ? "afterwards" : "at the start", line, what, e, strerror(e));
}

/* What has to hold, before the snapshot as afterwards. */
#define must_say(cond, what) ((cond) ? (void)0 : work_fail(__LINE__, what))
#define must(cond) must_say(cond, #cond)

/* must() with two numbers that are shown. */
#define must_equal(a, b)                                                                           \
	do {                                                                                       \
		long long a_ = (long long)(a), b_ = (long long)(b);                                \
		if (a_ != b_)                                                                      \
			work_end(1, "FAIL: %s, line %d: %s is %lld (0x%llx), not %lld (0x%llx)",   \
				 work_restored ? "afterwards" : "at the start", __LINE__, #a, a_,  \
				 a_, b_, b_);                                                      \
	} while (0)

#define work_skip(...) work_end(0, "SKIP: " __VA_ARGS__)

static inline int64_t work_now(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * WORK_SECOND + t.tv_nsec;
}

static inline void work_pause_ms(int ms)
{
	int64_t end = work_now(CLOCK_MONOTONIC) + ms * 1000000LL;

	do
		usleep(2000);
	while (work_now(CLOCK_MONOTONIC) < end);
}

/* Without a file: there are cases that could not make one any more. */
static inline void work_wait(void)
{
	char c;

	must(write(STDOUT_FILENO, "ready\n", 6) == 6);
	while (pread(WORK_GO_FD, &c, 1, 0) != 1)
		usleep(5000);
	work_restored = true;
}

/* At most a minute: only what never happens fails. */
#define work_until(cond)                                                                           \
	do {                                                                                       \
		int64_t end_ = work_now(CLOCK_MONOTONIC) + 60 * WORK_SECOND;                       \
		while (!(cond)) {                                                                  \
			must_say(work_now(CLOCK_MONOTONIC) < end_, "within a minute: " #cond);     \
			usleep(2000);                                                              \
		}                                                                                  \
	} while (0)

/* A pattern that tells every byte's place. */
static inline unsigned char work_byte(size_t i, unsigned seed)
{
	return (unsigned char)(i * 131 + (i >> 8) * 17 + (i >> 16) + seed);
}

static inline void work_fill(void *p, size_t n, unsigned seed)
{
	for (size_t i = 0; i < n; i++)
		((volatile unsigned char *)p)[i] = work_byte(i, seed);
}

static inline bool work_filled(const void *p, size_t n, unsigned seed)
{
	for (size_t i = 0; i < n; i++)
		if (((const volatile unsigned char *)p)[i] != work_byte(i, seed))
			return false;
	return true;
}

static inline bool work_zero(const void *p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (((const volatile unsigned char *)p)[i])
			return false;
	return true;
}

/* What fn(arg) returns in a child, 256 + signal when that ended it. */
static inline int work_in_child(int (*fn)(void *), void *arg)
{
	int status;
	pid_t pid = fork();

	must(pid >= 0);
	if (!pid)
		_exit(fn(arg));
	while (waitpid(pid, &status, 0) < 0)
		must(errno == EINTR);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

/* Gives these descriptors to a process that is none of this one's. It has nothing else of it, and ends
 * when the case goes on. */
static inline void work_hold_outside(const int *fds, size_t n)
{
	int status;
	pid_t pid = fork();

	must(pid >= 0);
	if (!pid) {
		if (setsid() < 0 || (pid = fork()) != 0)
			_exit(pid < 0 ? 1 : 0);
		for (int fd = 0; fd < 1024; fd++) {
			bool keep = fd == WORK_GO_FD;

			for (size_t i = 0; i < n; i++)
				keep |= fd == fds[i];
			if (!keep)
				close(fd);
		}
		char c;

		for (int i = 0; i < 40000 && pread(WORK_GO_FD, &c, 1, 0) != 1; i++)
			usleep(5000);
		_exit(0);
	}
	must(waitpid(pid, &status, 0) == pid && status == 0);
	for (size_t i = 0; i < n; i++)
		must(close(fds[i]) == 0);
}

/* ---- threads ------------------------------------------------------------ */

struct work_thread {
	pthread_t thread;
	volatile pid_t tid;
	void *(*fn)(struct work_thread *);
	void *arg;
	volatile int state; /* free for the case */
	volatile int64_t value;
};

static inline void *work_thread_main(void *p)
{
	struct work_thread *t = p;

	t->tid = (pid_t)syscall(SYS_gettid);
	return t->fn(t);
}

static inline void work_thread_start(struct work_thread *t, void *(*fn)(struct work_thread *),
				     void *arg)
{
	t->fn = fn;
	t->arg = arg;
	must(pthread_create(&t->thread, NULL, work_thread_main, t) == 0);
	work_until(t->tid != 0);
}

/* The call that a thread waits in; -1: none. */
static inline long work_call_of(pid_t tid)
{
	char path[64], text[64] = "";

	snprintf(path, sizeof(path), "/proc/self/task/%d/syscall", (int)tid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	must(fd >= 0);
	ssize_t n = read(fd, text, sizeof(text) - 1);

	close(fd);
	return n > 0 && text[0] >= '0' && text[0] <= '9' ? strtol(text, NULL, 10) : -1;
}

/* ---- /proc ---------------------------------------------------------------- */

static inline char *work_read_file(const char *path)
{
	size_t size = 8 << 20, len = 0;
	char *text = malloc(size);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	must(text && fd >= 0);
	while ((n = read(fd, text + len, size - len - 1)) > 0) {
		len += (size_t)n;
		must(len + 1 < size);
	}
	must(n == 0);
	close(fd);
	text[len] = '\0';
	return text;
}

/* The rest of the line "KEY:" of a file of /proc, without blanks before it. */
static inline char *work_field(const char *path, const char *key)
{
	static char value[512];
	char *text = work_read_file(path), *line = text;
	size_t len = strlen(key);

	while (line && !(strncmp(line, key, len) == 0 && line[len] == ':'))
		line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL;
	if (!line)
		work_end(1, "FAIL: %s has no %s", path, key);
	line += len + 1;
	line += strspn(line, " \t");
	snprintf(value, sizeof(value), "%.*s", (int)strcspn(line, "\n"), line);
	free(text);
	return value;
}

/* A field of the mapping that addr lies in, from smaps: "" when there is none. */
static inline const char *work_smaps(const void *addr, const char *key)
{
	static char value[512];
	char *text = work_read_file("/proc/self/smaps"), *save = NULL;
	size_t len = strlen(key);
	bool in = false;

	value[0] = '\0';
	for (char *l = strtok_r(text, "\n", &save); l; l = strtok_r(NULL, "\n", &save)) {
		unsigned long start, end;

		if (sscanf(l, "%lx-%lx ", &start, &end) == 2) {
			in = (uintptr_t)addr >= start && (uintptr_t)addr < end;
			if (in && !len)
				snprintf(value, sizeof(value), "%s", l);
		} else if (in && len && strncmp(l, key, len) == 0 && l[len] == ':') {
			snprintf(value, sizeof(value), "%s ", l + len + 1);
		}
	}
	free(text);
	return value;
}

static inline bool work_vmflag(const void *addr, const char *flag)
{
	char word[8];

	snprintf(word, sizeof(word), " %s ", flag);
	return strstr(work_smaps(addr, "VmFlags"), word) != NULL;
}

/* ---- main ----------------------------------------------------------------- */

static inline void work_hold(const char *path, int flags, int at)
{
	int fd = open(path, flags, 0644);

	if (fd < 0 || dup2(fd, at) != at) {
		fprintf(stderr, "cannot open '%s': %s\n", path, strerror(errno));
		exit(2);
	}
	close(fd);
}

static inline int work_main(int argc, char **argv, const struct work *works, size_t n)
{
	if (argc == 2 && strcmp(argv[1], "--list") == 0) {
		for (size_t i = 0; i < n; i++)
			printf("%s\t%s\n", works[i].name, works[i].behaviour);
		return 0;
	}
	for (size_t i = 0; argc >= 2 && i < n; i++) {
		if (strcmp(argv[1], works[i].name) != 0)
			continue;
		/* What was inherited is none of its own. */
		syscall(SYS_close_range, 3U, ~0U, 0U);
		work_hold("go", O_RDONLY, WORK_GO_FD);
		work_hold("result", O_WRONLY | O_CREAT | O_APPEND, WORK_RESULT_FD);
		works[i].run();
		work_end(0, "ok");
	}
	fprintf(stderr, "usage: %s --list | CASE\n", argv[0]);
	return 2;
}

#endif
