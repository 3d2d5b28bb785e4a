/*
 * Pipes and what gives events after a restore; see restorework.h.
 */
#include "restorework.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

static int queued(int fd)
{
	int n = -1;

	must(ioctl(fd, FIONREAD, &n) == 0);
	return n;
}

static bool readable(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	must(poll(&p, 1, 0) >= 0);
	return p.revents & POLLIN;
}

/* ---- pipes --------------------------------------------------------------------- */

static void pipe_content(void)
{
	int a[2], b[2];
	char buf[50000];

	must(pipe2(a, O_CLOEXEC) == 0 && pipe2(b, O_NONBLOCK) == 0);
	work_fill(buf, sizeof(buf), 1);
	must(write(a[1], buf, sizeof(buf)) == sizeof(buf) && write(b[1], "short", 5) == 5);
	/* Partly read: the first buffer begins in its middle. */
	must(read(a[0], buf, 5001) == 5001);
	work_wait();
	must_equal(queued(a[0]), sizeof(buf) - 5001);
	must(read(a[0], buf + 5001, sizeof(buf) - 5001) == (ssize_t)sizeof(buf) - 5001);
	must(work_filled(buf, sizeof(buf), 1));
	must(read(b[0], buf, sizeof(buf)) == 5 && memcmp(buf, "short", 5) == 0);
	must(read(b[0], buf, 1) < 0 && errno == EAGAIN);
	must(write(a[1], "go on", 5) == 5 && queued(a[0]) == 5);
	must(fcntl(a[0], F_GETFD) == FD_CLOEXEC && fcntl(b[1], F_GETFD) == 0);
	must((fcntl(a[1], F_GETFL) & O_ACCMODE) == O_WRONLY && fcntl(b[1], F_GETFL) & O_NONBLOCK);
}

static void pipe_size(void)
{
	int small[2], large[2], size;
	char c = 0;

	must(pipe2(small, O_NONBLOCK) == 0 && pipe2(large, O_NONBLOCK) == 0);
	must(fcntl(small[0], F_SETPIPE_SZ, 4096) == 4096);
	must((size = fcntl(large[0], F_SETPIPE_SZ, 1 << 20)) == 1 << 20);
	while (write(large[1], &c, 1) == 1 && queued(large[0]) < 3000)
		c++;
	work_wait();
	must_equal(fcntl(small[1], F_GETPIPE_SZ), 4096);
	must_equal(fcntl(large[1], F_GETPIPE_SZ), size);
	must_equal(queued(large[0]), 3000);
	for (int i = 0; i < 3000; i++)
		must(read(large[0], &c, 1) == 1 && c == (char)i);
}

static void pipe_full(void)
{
	int fds[2];
	char buf[4096];
	size_t full = 0;

	must(pipe2(fds, O_NONBLOCK) == 0);
	memset(buf, 7, sizeof(buf));
	while (write(fds[1], buf, sizeof(buf)) > 0)
		full += sizeof(buf);
	must(full == 65536);
	work_wait();
	must(write(fds[1], buf, 1) < 0 && errno == EAGAIN);
	must_equal(queued(fds[0]), full);
	must(read(fds[0], buf, sizeof(buf)) == sizeof(buf) && buf[99] == 7);
	must(write(fds[1], buf, sizeof(buf)) == sizeof(buf));
}

static void pipe_ends(void)
{
	int no_writer[2], no_reader[2];
	char buf[16];

	signal(SIGPIPE, SIG_IGN);
	must(pipe(no_writer) == 0 && pipe(no_reader) == 0);
	must(write(no_writer[1], "last", 4) == 4);
	close(no_writer[1]);
	close(no_reader[0]);
	work_wait();
	must(read(no_writer[0], buf, sizeof(buf)) == 4 && memcmp(buf, "last", 4) == 0);
	must(read(no_writer[0], buf, sizeof(buf)) == 0);
	must(write(no_reader[1], "x", 1) < 0 && errno == EPIPE);
}

static bool is_null_device(int fd)
{
	struct stat st;

	must(fstat(fd, &st) == 0);
	return S_ISCHR(st.st_mode) && st.st_rdev == makedev(1, 3);
}

static ino_t inode(int fd)
{
	struct stat st;

	must(fstat(fd, &st) == 0);
	return st.st_ino;
}

/* Without a restore it is the pipe that it was. */
static void pipe_outside(void)
{
	int from[2], to[2], again;
	char buf[16];

	signal(SIGPIPE, SIG_IGN);
	must(pipe2(from, O_CLOEXEC) == 0 && pipe2(to, O_NONBLOCK) == 0);
	must((again = dup(to[1])) >= 0);
	must(write(from[1], "unread", 6) == 6);
	const ino_t was_from = inode(from[0]), was_to = inode(to[1]);

	work_hold_outside((int[]){from[1], to[0]}, 2);
	work_wait();
	bool null = is_null_device(from[0]);

	must(null || (inode(from[0]) == was_from && inode(to[1]) == was_to));
	must(is_null_device(to[1]) == null && is_null_device(again) == null);
	must((fcntl(from[0], F_GETFL) & O_ACCMODE) == O_RDONLY);
	must((fcntl(to[1], F_GETFL) & O_ACCMODE) == O_WRONLY);
	must(fcntl(from[0], F_GETFD) == FD_CLOEXEC && fcntl(again, F_GETFD) == 0);
	if (null) {
		must(read(from[0], buf, sizeof(buf)) == 0);
		must(write(to[1], "x", 1) == 1 && write(again, "x", 1) == 1);
	}
}

/* Not without a restore. The restorer has a file as its standard error. */
static void standard_outside(void)
{
	int err[2], in[2], other[2], again;
	struct stat st, same;

	signal(SIGPIPE, SIG_IGN);
	must(pipe(err) == 0 && dup2(err[1], STDERR_FILENO) == STDERR_FILENO);
	must(close(err[1]) == 0);
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, in) == 0);
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, other) == 0);
	must(dup2(in[1], STDIN_FILENO) == STDIN_FILENO && (again = dup(in[1])) >= 0);
	must(close(in[1]) == 0);
	work_hold_outside((int[]){err[0], in[0], other[0]}, 3);
	work_wait();
	must(fstat(STDIN_FILENO, &st) == 0 && fstat(again, &same) == 0);
	must(!S_ISSOCK(st.st_mode) && st.st_dev == same.st_dev && st.st_ino == same.st_ino);
	must(write(other[1], "x", 1) == -1 && errno == EPIPE);
	must(fstat(STDERR_FILENO, &st) == 0);
	must(S_ISREG(st.st_mode));
	must(write(STDERR_FILENO, "from the process\n", 17) == 17);
	must(fstat(STDERR_FILENO, &st) == 0 && st.st_size >= 17);
}

static void pipe_packets(void)
{
	int fds[2];
	char buf[4096];

	must(pipe2(fds, O_DIRECT | O_CLOEXEC) == 0);
	must(write(fds[1], "one", 3) == 3 && write(fds[1], "three", 5) == 5);
	work_wait();
	must(fcntl(fds[1], F_GETFL) & O_DIRECT);
	must(read(fds[0], buf, sizeof(buf)) == 3 && memcmp(buf, "one", 3) == 0);
	must(read(fds[0], buf, 2) == 2 && memcmp(buf, "th", 2) == 0);
	must(write(fds[1], "next", 4) == 4);
	must(read(fds[0], buf, sizeof(buf)) == 4 && memcmp(buf, "next", 4) == 0);
}

static void fifo(void)
{
	int reader, writer, both, again;
	char buf[64];

	must(mkfifo("fifo", 0640) == 0 && mkfifo("fifo2", 0600) == 0);
	must((reader = open("fifo", O_RDONLY | O_NONBLOCK | O_CLOEXEC)) >= 0);
	must((writer = open("fifo", O_WRONLY)) >= 0 && (both = open("fifo2", O_RDWR)) >= 0);
	must(write(writer, "in the fifo", 11) == 11 && write(both, "self", 4) == 4);
	work_wait();
	must(read(reader, buf, sizeof(buf)) == 11 && memcmp(buf, "in the fifo", 11) == 0);
	must(read(both, buf, sizeof(buf)) == 4 && memcmp(buf, "self", 4) == 0);
	must((fcntl(both, F_GETFL) & O_ACCMODE) == O_RDWR);
	/* Found by its name. */
	must((again = open("fifo", O_WRONLY | O_NONBLOCK | O_CLOEXEC)) >= 0);
	must(write(again, "later", 5) == 5 && read(reader, buf, sizeof(buf)) == 5);
	close(again);
	close(writer);
	must(read(reader, buf, sizeof(buf)) == 0);
}

/* ---- eventfd, signalfd, inotify --------------------------------------------------- */

static void event_counter(void)
{
	int fd = eventfd(5, EFD_NONBLOCK), big = eventfd(0, EFD_NONBLOCK), twin;
	uint64_t n = 0xfffffffffffffff0;

	must(fd >= 0 && big >= 0 && write(big, &n, 8) == 8);
	must((twin = dup(fd)) >= 0);
	work_wait();
	must(write(twin, &(uint64_t){2}, 8) == 8);
	must(read(fd, &n, 8) == 8 && n == 7);
	must(read(fd, &n, 8) < 0 && errno == EAGAIN);
	must(read(big, &n, 8) == 8 && n == 0xfffffffffffffff0);
}

static void event_semaphore(void)
{
	int fd = eventfd(3, EFD_NONBLOCK | EFD_SEMAPHORE | EFD_CLOEXEC);
	uint64_t n;

	must(fd >= 0);
	work_wait();
	for (int i = 0; i < 3; i++)
		must(read(fd, &n, 8) == 8 && n == 1);
	must(read(fd, &n, 8) < 0 && errno == EAGAIN);
	must(fcntl(fd, F_GETFD) == FD_CLOEXEC);
}

static void signal_fd(void)
{
	struct signalfd_siginfo si;
	sigset_t mask;
	int fd;

	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR1);
	sigaddset(&mask, SIGRTMIN + 1);
	must(sigprocmask(SIG_BLOCK, &mask, NULL) == 0);
	must((fd = signalfd(-1, &mask, SFD_NONBLOCK | SFD_CLOEXEC)) >= 0);
	must(sigqueue(getpid(), SIGRTMIN + 1, (union sigval){.sival_int = 12}) == 0);
	work_wait();
	must(read(fd, &si, sizeof(si)) == sizeof(si));
	must((int)si.ssi_signo == SIGRTMIN + 1 && si.ssi_int == 12 &&
	     (pid_t)si.ssi_pid == getpid());
	must(read(fd, &si, sizeof(si)) < 0 && errno == EAGAIN);
	must(kill(getpid(), SIGUSR1) == 0 && read(fd, &si, sizeof(si)) == sizeof(si));
	must(si.ssi_signo == SIGUSR1);
}

static void expect_event(int fd, int wd, uint32_t mask, const char *name)
{
	_Alignas(struct inotify_event) char buf[4096];
	const struct inotify_event *e = (void *)buf;

	must(read(fd, buf, sizeof(struct inotify_event) + (name ? 16 : 0)) > 0);
	must_equal(e->wd, wd);
	must_equal(e->mask, mask);
	must(!name || strcmp(e->name, name) == 0);
}

static void watches(void)
{
	int fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC), dir, skipped, file;
	char buf[64];

	must(fd >= 0 && mkdir("watched", 0755) == 0 && mkdir("other", 0755) == 0);
	close(open("watched-file", O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
	must((skipped = inotify_add_watch(fd, "other", IN_ALL_EVENTS)) > 0);
	must((dir = inotify_add_watch(fd, "watched", IN_CREATE | IN_DELETE)) > 0);
	must((file = inotify_add_watch(fd, "watched-file", IN_MODIFY)) > 0);
	/* So that the numbers have a gap. */
	must(inotify_rm_watch(fd, skipped) == 0 && read(fd, buf, sizeof(buf)) > 0);
	work_wait();
	must(read(fd, buf, sizeof(buf)) < 0 && errno == EAGAIN);
	int made = open("watched/new", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

	must(made >= 0);
	expect_event(fd, dir, IN_CREATE, "new");
	must((made = open("watched-file", O_WRONLY | O_CLOEXEC)) >= 0 && write(made, "x", 1) == 1);
	expect_event(fd, file, IN_MODIFY, NULL);
	must(inotify_rm_watch(fd, dir) == 0);
	expect_event(fd, dir, IN_IGNORED, NULL);
	must(inotify_add_watch(fd, "other", IN_CREATE) > file);
}

/* ---- epoll ------------------------------------------------------------------------------- */

static void add(int ep, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event e = {.events = events, .data.u64 = data};

	must(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) == 0);
}

/* The data of the one event there is now; 0: none. */
static uint64_t event_of(int ep, uint32_t *ret_events)
{
	struct epoll_event e[8];
	int n = epoll_wait(ep, e, 8, 0);

	must(n == 0 || n == 1);
	if (n && ret_events)
		*ret_events = e[0].events;
	return n ? e[0].data.u64 : 0;
}

static void epoll_set(void)
{
	int ep = epoll_create1(EPOLL_CLOEXEC), a[2], b[2], ev = eventfd(0, 0);
	uint32_t events = 0;
	char c;

	must(ep >= 0 && pipe(a) == 0 && pipe(b) == 0 && ev >= 0);
	add(ep, a[0], EPOLLIN, 0xaaaaaaaaaaaaaaaa);
	add(ep, b[0], EPOLLIN | EPOLLRDHUP, 0xbbbbbbbbbbbbbbbb);
	add(ep, ev, EPOLLIN | EPOLLEXCLUSIVE, 0xcc);
	must(write(a[1], "x", 1) == 1);
	work_wait();
	must(event_of(ep, &events) == 0xaaaaaaaaaaaaaaaa && events == EPOLLIN);
	must(event_of(ep, NULL) != 0 && read(a[0], &c, 1) == 1 && event_of(ep, NULL) == 0);
	must(write(ev, &(uint64_t){1}, 8) == 8 && event_of(ep, NULL) == 0xcc);
	must(read(ev, &(uint64_t){0}, 8) == 8 && close(b[1]) == 0);
	must(event_of(ep, &events) == 0xbbbbbbbbbbbbbbbb && events == EPOLLHUP);
	must(epoll_ctl(ep, EPOLL_CTL_DEL, b[0], NULL) == 0 && event_of(ep, NULL) == 0);
	must(epoll_ctl(ep, EPOLL_CTL_DEL, b[0], NULL) < 0 && errno == ENOENT);
}

static void epoll_edge(void)
{
	int ep = epoll_create1(0), fds[2];
	char c;

	must(ep >= 0 && pipe2(fds, O_NONBLOCK) == 0);
	add(ep, fds[0], EPOLLIN | EPOLLET, 0xe);
	must(write(fds[1], "x", 1) == 1 && event_of(ep, NULL) == 0xe && event_of(ep, NULL) == 0);
	work_wait();
	/* An edge may be told once more, never be lost: that is what programs must be ready for. */
	event_of(ep, NULL);
	must(event_of(ep, NULL) == 0);
	must(write(fds[1], "y", 1) == 1 && event_of(ep, NULL) == 0xe && event_of(ep, NULL) == 0);
	must(read(fds[0], &c, 1) == 1 && c == 'x' && read(fds[0], &c, 1) == 1 && c == 'y');
}

static void epoll_oneshot(void)
{
	int ep = epoll_create1(0), fired[2], waiting[2];
	struct epoll_event e = {.events = EPOLLIN | EPOLLONESHOT, .data.u64 = 1};

	must(ep >= 0 && pipe(fired) == 0 && pipe(waiting) == 0);
	add(ep, fired[0], EPOLLIN | EPOLLONESHOT, 1);
	add(ep, waiting[0], EPOLLIN | EPOLLONESHOT, 2);
	must(write(fired[1], "x", 1) == 1 && event_of(ep, NULL) == 1);
	work_wait();
	must(event_of(ep, NULL) == 0);
	must(write(waiting[1], "x", 1) == 1 && event_of(ep, NULL) == 2 && event_of(ep, NULL) == 0);
	must(epoll_ctl(ep, EPOLL_CTL_MOD, fired[0], &e) == 0 && event_of(ep, NULL) == 1);
}

static void epoll_nested(void)
{
	int inner = epoll_create1(0), outer = epoll_create1(0), fds[2];

	must(inner >= 0 && outer >= 0 && pipe(fds) == 0);
	add(inner, fds[0], EPOLLIN, 5);
	add(outer, inner, EPOLLIN, 6);
	work_wait();
	must(!readable(outer) && event_of(outer, NULL) == 0);
	must(write(fds[1], "x", 1) == 1);
	must(readable(outer) && event_of(outer, NULL) == 6 && event_of(inner, NULL) == 5);
}

static const struct work works[] = {
	{"pipe", pipe_content, "pipes with what is in them"},
	{"pipe-size", pipe_size, "the capacity of pipes, smaller or larger than usual"},
	{"pipe-full", pipe_full, "pipes that are full"},
	{"pipe-ends", pipe_ends, "pipes whose other end is closed: end of file, EPIPE"},
	{"pipe-outside", pipe_outside, "pipes whose other end others hold, as /dev/null"},
	{"standard-outside", standard_outside,
	 "standard descriptors that led to pipes or connections of others, as the restorer's own"},
	{"pipe-packets", pipe_packets, "pipes in packet mode (O_DIRECT) with their packets"},
	{"fifo", fifo, "FIFOs with what is in them"},
	{"eventfd", event_counter, "eventfds with their counts"},
	{"eventfd-semaphore", event_semaphore, "eventfds that are semaphores"},
	{"signalfd", signal_fd, "signalfds, and signals waiting for them"},
	{"inotify", watches, "inotify watches under their numbers, which go on reporting"},
	{"epoll", epoll_set, "epoll sets with their events and data"},
	{"epoll-edge", epoll_edge, "epoll, edge-triggered"},
	{"epoll-oneshot", epoll_oneshot, "epoll, one-shot, fired or not"},
	{"epoll-nested", epoll_nested, "epoll sets in epoll sets"},
};

int main(int argc, char **argv)
{
	return work_main(argc, argv, works, WORK_COUNT(works));
}
