/*
 * System calls that wait while the process is restored; see restorework.h.
 * A thread waits in the call; afterwards it waits there again, and what it
 * waits for happens.
 */
#include "restorework.h"

#include <linux/futex.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>

static int fds[2];
static int listener;
static struct sockaddr_in address;
static uint32_t word;

static void join(struct work_thread *t)
{
	must(pthread_join(t->thread, NULL) == 0);
	must_equal(t->state, 1);
}

/* Across the restore a thread is in fn, which waits in the call nr; wake lets it go on. */
static void waiting(void *(*fn)(struct work_thread *), long nr, void (*wake)(void))
{
	static struct work_thread t;

	work_thread_start(&t, fn, NULL);
	work_until(work_call_of(t.tid) == nr);
	work_wait();
	/* It has not come back for nothing. */
	work_pause_ms(50);
	must_equal(t.state, 0);
	long now = work_call_of(t.tid);

	/* Any stop makes the kernel go on with a wait under another name. */
	must(now == nr || now == SYS_restart_syscall);
	wake();
	join(&t);
}

static void make_pipe(void)
{
	must(pipe2(fds, O_CLOEXEC) == 0);
}

static void make_pair(void)
{
	must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
}

static void write_one(void)
{
	must(write(fds[1], "x", 1) == 1);
}

/* ---- read and write ------------------------------------------------------------ */

static void *reads(struct work_thread *t)
{
	char buf[100];

	must_equal(read(fds[0], buf, sizeof(buf)), 1);
	must(buf[0] == 'x');
	t->state = 1;
	return t;
}

static void read_pipe(void)
{
	make_pipe();
	waiting(reads, SYS_read, write_one);
}

static void read_socket(void)
{
	make_pair();
	waiting(reads, SYS_read, write_one);
}

static void *reads_event(struct work_thread *t)
{
	uint64_t n;

	must_equal(read(fds[0], &n, sizeof(n)), 8);
	must_equal(n, 5);
	t->state = 1;
	return t;
}

static void add_five(void)
{
	must(write(fds[0], &(uint64_t){5}, 8) == 8);
}

static void read_eventfd(void)
{
	must((fds[0] = eventfd(0, EFD_CLOEXEC)) >= 0);
	waiting(reads_event, SYS_read, add_five);
}

enum {
	CHUNK = 1 << 20
};

/* write() comes back early with what was written before it was interrupted, restored or not. What it
 * says must be true. */
static void *writes(struct work_thread *t)
{
	char *buf = malloc(CHUNK);
	size_t done = 0;

	work_fill(buf, CHUNK, 1);
	while (done < CHUNK) {
		ssize_t n = write(fds[1], buf + done, CHUNK - done);

		must(n > 0);
		done += (size_t)n;
	}
	t->state = 1;
	return t;
}

static void drain(void)
{
	char *buf = malloc(CHUNK);
	size_t got = 0;

	while (got < CHUNK) {
		ssize_t n = read(fds[0], buf + got, CHUNK - got);

		must(n > 0);
		got += (size_t)n;
	}
	must(work_filled(buf, CHUNK, 1));
}

static void write_pipe(void)
{
	make_pipe();
	waiting(writes, SYS_write, drain);
}

static void write_socket(void)
{
	make_pair();
	waiting(writes, SYS_write, drain);
}

static void *opens_fifo(struct work_thread *t)
{
	fds[0] = open("fifo", O_RDONLY | O_CLOEXEC);
	must(fds[0] >= 0);
	t->state = 1;
	return t;
}

static void open_other_end(void)
{
	must((fds[1] = open("fifo", O_WRONLY | O_CLOEXEC)) >= 0);
}

static void open_fifo(void)
{
	must(mkfifo("fifo", 0600) == 0);
	waiting(opens_fifo, SYS_openat, open_other_end);
}

/* ---- sockets --------------------------------------------------------------------- */

static void *accepts(struct work_thread *t)
{
	char c;
	int fd = accept(listener, NULL, NULL);

	must(fd >= 0 && read(fd, &c, 1) == 1 && c == 'x');
	t->state = 1;
	return t;
}

static void connect_there(void)
{
	must((fds[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) >= 0);
	must(connect(fds[1], (struct sockaddr *)&address, sizeof(address)) == 0);
	write_one();
}

static void bind_there(int type)
{
	socklen_t len = sizeof(address);

	address.sin_family = AF_INET;
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	must((listener = socket(AF_INET, type | SOCK_CLOEXEC, 0)) >= 0);
	must(bind(listener, (struct sockaddr *)&address, len) == 0);
	must(getsockname(listener, (struct sockaddr *)&address, &len) == 0);
}

static void accept_tcp(void)
{
	bind_there(SOCK_STREAM);
	must(listen(listener, 5) == 0);
	waiting(accepts, SYS_accept, connect_there);
}

static void *receives(struct work_thread *t)
{
	struct sockaddr_in from;
	socklen_t len = sizeof(from);
	char buf[100];

	must_equal(recvfrom(listener, buf, sizeof(buf), 0, (struct sockaddr *)&from, &len), 1);
	must(buf[0] == 'x' && from.sin_addr.s_addr == htonl(INADDR_LOOPBACK));
	t->state = 1;
	return t;
}

static void send_there(void)
{
	must((fds[1] = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)) >= 0);
	must_equal(sendto(fds[1], "x", 1, 0, (struct sockaddr *)&address, sizeof(address)), 1);
}

static void recv_udp(void)
{
	bind_there(SOCK_DGRAM);
	waiting(receives, SYS_recvfrom, send_there);
}

/* ---- waiting for several things ------------------------------------------------------ */

static void *polls(struct work_thread *t)
{
	struct pollfd p = {.fd = fds[0], .events = POLLIN};

	must_equal(poll(&p, 1, -1), 1);
	must_equal(p.revents, POLLIN);
	t->state = 1;
	return t;
}

static void poll_forever(void)
{
	make_pipe();
	waiting(polls, SYS_poll, write_one);
}

static volatile int handled;

static void on_signal(int signo)
{
	handled = signo;
}

/* With a mask that lasts as long as the call. */
static void *ppolls(struct work_thread *t)
{
	struct pollfd p = {.fd = fds[0], .events = POLLIN};
	struct timespec hour = {.tv_sec = 3600};
	sigset_t set, now;

	sigfillset(&set);
	sigdelset(&set, SIGUSR1);
	must_equal(ppoll(&p, 1, &hour, &set), 1);
	must(pthread_sigmask(SIG_SETMASK, NULL, &now) == 0);
	must(!sigismember(&now, SIGUSR2));
	t->state = 1;
	return t;
}

static void ppoll_mask(void)
{
	make_pipe();
	waiting(ppolls, SYS_ppoll, write_one);
}

static void *selects(struct work_thread *t)
{
	struct timeval hour = {.tv_sec = 3600};
	fd_set set;

	FD_ZERO(&set);
	FD_SET(fds[0], &set);
	must_equal(select(fds[0] + 1, &set, NULL, NULL, &hour), 1);
	must(FD_ISSET(fds[0], &set));
	t->state = 1;
	return t;
}

static void select_hour(void)
{
	make_pipe();
	waiting(selects, SYS_pselect6, write_one);
}

static void *epolls(struct work_thread *t)
{
	struct epoll_event e = {.events = EPOLLIN, .data.u64 = 0x1234567890abcdef};
	int ep = epoll_create1(EPOLL_CLOEXEC), n;

	must(ep >= 0 && epoll_ctl(ep, EPOLL_CTL_ADD, fds[0], &e) == 0);
	memset(&e, 0, sizeof(e));
	/* signal(7): any stop makes it come back. */
	while ((n = epoll_wait(ep, &e, 1, -1)) < 0)
		must(errno == EINTR);
	must_equal(n, 1);
	must(e.data.u64 == 0x1234567890abcdef && e.events == EPOLLIN);
	t->state = 1;
	return t;
}

static void epoll_forever(void)
{
	make_pipe();
	waiting(epolls, SYS_epoll_wait, write_one);
}

/* ---- futexes, locks ---------------------------------------------------------------------- */

static void *waits(struct work_thread *t)
{
	must(syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0) == 0);
	t->state = 1;
	return t;
}

static void wake(void)
{
	must_equal(syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0), 1);
}

static void futex(void)
{
	waiting(waits, SYS_futex, wake);
}

static void *locks(struct work_thread *t)
{
	must(flock(fds[1], LOCK_EX) == 0);
	t->state = 1;
	return t;
}

static void unlock(void)
{
	must(flock(fds[0], LOCK_UN) == 0);
}

static void flock_wait(void)
{
	must((fds[0] = open("locked", O_RDWR | O_CREAT | O_CLOEXEC, 0600)) >= 0);
	must((fds[1] = open("locked", O_RDWR | O_CLOEXEC)) >= 0);
	must(flock(fds[0], LOCK_EX) == 0);
	waiting(locks, SYS_flock, unlock);
}

/* ---- signals -------------------------------------------------------------------------------- */

static pthread_t sleeper;

static void *suspends(struct work_thread *t)
{
	sigset_t none, now;

	sleeper = t->thread;
	sigemptyset(&none);
	must(sigsuspend(&none) < 0 && errno == EINTR);
	must_equal(handled, SIGUSR1);
	must(pthread_sigmask(SIG_SETMASK, NULL, &now) == 0);
	must(sigismember(&now, SIGUSR1) && !sigismember(&now, SIGUSR2));
	t->state = 1;
	return t;
}

static void send_signal(void)
{
	must(pthread_kill(sleeper, SIGUSR1) == 0);
}

static void suspend(void)
{
	struct sigaction act = {.sa_handler = on_signal};
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	must(sigaction(SIGUSR1, &act, NULL) == 0 && sigprocmask(SIG_BLOCK, &set, NULL) == 0);
	waiting(suspends, SYS_rt_sigsuspend, send_signal);
}

static void *pauses(struct work_thread *t)
{
	sleeper = t->thread;
	must(pause() < 0 && errno == EINTR);
	must_equal(handled, SIGUSR1);
	t->state = 1;
	return t;
}

static void pause_wait(void)
{
	struct sigaction act = {.sa_handler = on_signal, .sa_flags = SA_RESTART};

	must(sigaction(SIGUSR1, &act, NULL) == 0);
	waiting(pauses, SYS_pause, send_signal);
}

static void *takes_signal(struct work_thread *t)
{
	sigset_t set;
	siginfo_t si;
	int n;

	sleeper = t->thread;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	/* signal(7): any stop makes it come back. */
	while ((n = sigwaitinfo(&set, &si)) < 0)
		must(errno == EINTR);
	must_equal(n, SIGUSR1);
	t->state = 1;
	return t;
}

static void sigwait_wait(void)
{
	sigset_t set;

	sigfillset(&set);
	must(sigprocmask(SIG_SETMASK, &set, NULL) == 0);
	waiting(takes_signal, SYS_rt_sigtimedwait, send_signal);
}

static const struct work works[] = {
	{"read", read_pipe, "read() that waits for a pipe"},
	{"read-socket", read_socket, "read() that waits for a socket"},
	{"read-eventfd", read_eventfd, "read() that waits for an eventfd"},
	{"write", write_pipe, "write() that waits for room in a pipe"},
	{"write-socket", write_socket, "write() that waits for room in a socket"},
	{"open-fifo", open_fifo, "open() that waits for the other end of a FIFO"},
	{"accept", accept_tcp, "accept() that waits for a connection"},
	{"recvfrom", recv_udp, "recvfrom() that waits for a datagram"},
	{"poll", poll_forever, "poll() without a time limit"},
	{"ppoll", ppoll_mask, "ppoll() with a signal mask of its own, and the mask after it"},
	{"select", select_hour, "select() with hours to go"},
	{"epoll-wait", epoll_forever, "epoll_wait(), which may see EINTR as with any stop"},
	{"futex", futex, "a futex that is waited for"},
	{"flock-wait", flock_wait, "flock() that waits for the lock"},
	{"sigsuspend", suspend, "sigsuspend(), and the signal mask after it"},
	{"pause", pause_wait, "pause()"},
	{"sigwaitinfo", sigwait_wait, "sigwaitinfo(), which may see EINTR as with any stop"},
};

int main(int argc, char **argv)
{
	return work_main(argc, argv, works, WORK_COUNT(works));
}
