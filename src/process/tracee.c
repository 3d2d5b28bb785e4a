/*
 * DESIGN. PTRACE_SEIZE does not stop; PTRACE_INTERRUPT does, and a thread
 * that would have been woken by a signal at that moment stops with the
 * signal in hand instead (signal-delivery-stop): it is kept here and given
 * back at the release. Everything else a seized thread can report (group
 * stops, its death) is told apart in take_stop().
 *
 * Threads are waited for one by one, by ID, and for stops only: that leaves
 * the reports of others alone, and a thread that has ended is told at once,
 * even where its end could not be reported yet (a leader whose fellows have
 * not been reaped).
 *
 * Waiting must end even when a thread cannot stop: a parent in vfork() sits
 * in a wait that only a fatal signal breaks. A POSIX timer aimed at this
 * thread interrupts the wait once a millisecond.
 */
#include "process/tracee.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/io.h"
#include "common/util.h"

#ifndef ERESTART_RESTARTBLOCK /* include/linux/errno.h of the kernel */
#define ERESTART_RESTARTBLOCK 516
#endif

#ifndef PTRACE_EVENT_STOP
#define PTRACE_EVENT_STOP 128
#endif
#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

/* How long a thread that was asked to stop and did not may take to be let go. */
#define STRAGGLER_NS 5000000000ull

enum {
	TICK_NS = 1000000,
	POLL_NS = 100000,
};

static void on_tick(int sig)
{
	(void)sig; /* only interrupts waitid() */
}

static int ticks_begin(timer_t *ret)
{
	struct sigaction sa = {.sa_handler = on_tick};
	struct sigevent ev = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMAX - 1};

	ev.sigev_notify_thread_id = gettid();
	if (sigaction(SIGRTMAX - 1, &sa, NULL) < 0 || timer_create(CLOCK_MONOTONIC, &ev, ret) < 0)
		return -errno;

	const struct itimerspec its = {.it_value.tv_nsec = TICK_NS, .it_interval.tv_nsec = TICK_NS};
	if (timer_settime(*ret, 0, &its, NULL) < 0) {
		int r = -errno;

		timer_delete(*ret);
		return r;
	}
	return 0;
}

static struct tracee *tracee_find(struct tracees *ts, pid_t tid)
{
	for (size_t i = 0; i < ts->n; i++)
		if (ts->t[i].tid == tid)
			return &ts->t[i];
	return NULL;
}

/* State letter of a thread ('R', 'S', 'D', 'Z' ...), 0 when it is gone. */
static char task_state(const struct target *target, pid_t tid)
{
	char path[64];
	cleanup_free char *text = NULL;

	snprintf(path, sizeof(path), "task/%d/stat", tid);
	if (io_read_file_at(target->procfd, path, 4096, &text, NULL) < 0)
		return 0;
	const char *paren = strrchr(text, ')');
	return paren && paren[1] == ' ' ? paren[2] : 0;
}

int tracees_seize_one(struct tracees *ts, const struct target *target, pid_t tid,
		      struct usnap_err *err)
{
	if (ts->n == ts->room) {
		size_t room = ts->room ? ts->room * 2 : 16;
		struct tracee *bigger = realloc(ts->t, room * sizeof(*bigger));

		if (!bigger)
			return usnap_fail_errno(err, -ENOMEM, "cannot trace thread %d", tid);
		ts->t = bigger;
		ts->room = room;
	}
	if (ptrace(PTRACE_SEIZE, tid, NULL, NULL) < 0) {
		int r = -errno;
		char state = task_state(target, tid);

		/* Gone or going. A leader that has called pthread_exit() stays as a zombie. */
		if (r == -ESRCH || state == 0 || state == 'Z' || state == 'X')
			return -ESRCH;
		usnap_fail_errno(err, r, "cannot trace thread %d of process %d", tid, target->pid);
		usnap_hint(err,
			   "it may be traced by another program, or belong to another user: "
			   "'uffd-snap check %d' tells",
			   target->pid);
		return r;
	}
	ts->t[ts->n++] = (struct tracee){.tid = tid};
	return 0;
}

/* Workers of io_uring appear as threads but cannot be traced; they write on
 * behalf of a thread that can. */
static bool is_io_worker(const struct target *target, pid_t tid)
{
	char path[64];
	cleanup_free char *comm = NULL;

	snprintf(path, sizeof(path), "task/%d/comm", tid);
	return io_read_file_at(target->procfd, path, 64, &comm, NULL) == 0 &&
	       strncmp(comm, "iou-", 4) == 0;
}

/* Seizes what is not seized yet. Returns how many that were. */
static int seize_new(struct tracees *ts, const struct target *target, struct usnap_err *err)
{
	cleanup_fd int fd = openat(target->procfd, "task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return usnap_fail(err, -ESRCH, "cannot snapshot process %d: it has ended",
				  target->pid);
	cleanup_dir DIR *d = fdopendir(fd);
	if (!d)
		return usnap_fail_errno(err, -errno, "cannot list the threads of process %d",
					target->pid);
	fd = -1;

	int nr_new = 0;
	size_t known = 0; /* the kernel lists threads in the order we keep them */
	const struct dirent *e;
	while ((e = readdir(d))) {
		pid_t tid = (pid_t)strtol(e->d_name, NULL, 10);

		if (tid <= 0)
			continue;
		if (known < ts->n && ts->t[known].tid == tid) {
			known++;
			continue;
		}
		if (tracee_find(ts, tid))
			continue;
		struct usnap_err why = {0};
		int r = tracees_seize_one(ts, target, tid, &why);
		if (r == -ESRCH || (r == -EPERM && is_io_worker(target, tid)))
			continue;
		if (r < 0) {
			if (err && !err->code)
				*err = why;
			return r;
		}
		nr_new++;
	}
	return nr_new;
}

int tracees_seize(struct tracees *ts, const struct target *target, struct usnap_err *err)
{
	int r;

	do
		r = seize_new(ts, target, err);
	while (r > 0);
	if (r == 0 && ts->n == 0)
		r = usnap_fail(err, -ESRCH, "cannot snapshot process %d: it has ended",
			       target->pid);
	return r;
}

int tracee_wait(pid_t tid, int flags, int *ret_status)
{
	siginfo_t si = {0};

	if (waitid(P_PID, (id_t)tid, &si, WSTOPPED | __WALL | flags) == 0) {
		*ret_status = si.si_status << 8 | 0x7f;
		return si.si_pid ? 0 : -EAGAIN;
	}
	if (errno != ECHILD)
		return -errno;
	/* There are no stops to come of one that has ended. */
	waitpid(tid, NULL, WNOHANG | __WALL);
	return -ESRCH;
}

/* What a stop says of a thread. */
static void take_stop(struct tracee *t, int status)
{
	t->stopped = true;
	if (status >> 16 == PTRACE_EVENT_STOP) {
		if (WSTOPSIG(status) != SIGTRAP)
			t->group_stop = WSTOPSIG(status);
		return;
	}
	if (status >> 16)
		return;
	t->sig = WSTOPSIG(status);
	t->in_signal_stop = true;
	if (ptrace(PTRACE_GETSIGINFO, t->tid, NULL, &t->siginfo) < 0)
		t->siginfo = (siginfo_t){.si_signo = t->sig, .si_code = SI_USER};
}

/* Its report is left with the kernel: without a tracer the thread goes on with the signal in it. */
static int wait_one(struct tracee *t, int flags)
{
	int status, r = tracee_wait(t->tid, WNOWAIT | flags, &status);

	if (r == 0)
		take_stop(t, status);
	else if (r == -ESRCH)
		t->gone = true;
	return r;
}

static void forget_gone(struct tracees *ts)
{
	size_t n = 0;

	for (size_t i = 0; i < ts->n; i++)
		if (!ts->t[i].gone)
			ts->t[n++] = ts->t[i];
	ts->n = n;
}

/*
 * Waits until every thread that was interrupted stands still or is gone. A
 * thread that calls execve(2) ends the others and takes the leader's ID, as
 * soon as they have been reaped: the leader is looked at last.
 */
static int wait_all(struct tracees *ts, const struct target *target, uint64_t deadline_ns)
{
	for (size_t i = ts->n; i-- > 0;) {
		struct tracee *t = &ts->t[i];

		while (!t->stopped && !t->gone) {
			int r = wait_one(t, 0);

			if (r == 0 || r == -ESRCH)
				continue;
			if (r != -EINTR)
				return r;
			if (now_ns() >= deadline_ns)
				return -EAGAIN;
			for (size_t k = 0; k < i; k++)
				if (!ts->t[k].stopped && !ts->t[k].gone &&
				    ts->t[k].tid != target->pid)
					wait_one(&ts->t[k], WNOHANG);
		}
	}
	return 0;
}

/*
 * A thread that was stopped twice in a row can have been on its way from the
 * first stop into restart_syscall(2) when the second one came: the kernel has
 * set it on that call already (arch_do_signal_or_restart()), which is the one
 * that goes on with a timed wait. It is shown, and left, as before that step,
 * which the kernel makes again: as a wait that was interrupted, so that nobody
 * takes the registers for those of a thread that can be led astray.
 */
static int read_registers(struct tracee *t)
{
	static const unsigned char syscall_insn[] = {0x0f, 0x05};

	if (ptrace(PTRACE_GETREGS, t->tid, NULL, &t->regs) < 0)
		return -ESRCH;
	if ((int64_t)t->regs.orig_rax < 0 || t->regs.rax != SYS_restart_syscall)
		return 0;
	errno = 0;
	long word = ptrace(PTRACE_PEEKTEXT, t->tid, (void *)(uintptr_t)t->regs.rip, NULL);
	if (errno || memcmp(&word, syscall_insn, sizeof(syscall_insn)) != 0)
		return 0;
	t->regs.rax = (uint64_t)-ERESTART_RESTARTBLOCK;
	t->regs.rip += sizeof(syscall_insn);
	return ptrace(PTRACE_SETREGS, t->tid, NULL, &t->regs) < 0 ? -ESRCH : 0;
}

int tracees_stop(struct tracees *ts, const struct target *target, bool all, uint64_t deadline_ns,
		 struct usnap_err *err)
{
	timer_t timer;
	int r = ticks_begin(&timer);

	if (r < 0)
		return usnap_fail_errno(err, r, "cannot set a timer");
	size_t asked = 0;
	do {
		for (; asked < ts->n; asked++)
			ptrace(PTRACE_INTERRUPT, ts->t[asked].tid, NULL, NULL);
		r = wait_all(ts, target, deadline_ns);
		forget_gone(ts);
		if (r < 0)
			break;
		asked = ts->n;
		if (all)
			r = seize_new(ts, target, err);
	} while (r > 0);
	timer_delete(timer);

	if (r == -EAGAIN) {
		for (size_t i = 0; i < ts->n; i++)
			if (!ts->t[i].stopped) {
				ts->straggler = task_state(target, ts->t[i].tid);
				return usnap_fail(
					err, r,
					"cannot stop thread %d of process %d: it is in state %c "
					"and does not answer",
					ts->t[i].tid, target->pid,
					ts->straggler ? ts->straggler : '?');
			}
	}
	if (r == 0 && ts->n == 0)
		r = -ESRCH;
	if (r == -ESRCH)
		usnap_fail(err, r, "cannot snapshot process %d: it has ended", target->pid);
	if (r < 0)
		return r;

	for (size_t i = 0; i < ts->n; i++)
		if (read_registers(&ts->t[i]) < 0)
			return usnap_fail(err, -ESRCH,
					  "cannot snapshot process %d: its thread %d was killed",
					  target->pid, ts->t[i].tid);
	return 0;
}

static void detach(struct tracee *t, const struct target *target)
{
	if (t->sig && t->in_signal_stop) {
		ptrace(PTRACE_SETSIGINFO, t->tid, NULL, &t->siginfo);
		ptrace(PTRACE_DETACH, t->tid, NULL, (void *)(long)t->sig);
	} else {
		ptrace(PTRACE_DETACH, t->tid, NULL, NULL);
		/* Taken on the way to a stop of another kind, where the kernel takes none back. */
		if (t->sig)
			t->more |= 1ull << (t->sig - 1);
	}
	for (int sig = 1; t->more; sig++, t->more >>= 1)
		if (t->more & 1)
			syscall(SYS_tgkill, target->pid, t->tid, sig);
}

/* A thread can be detached only while it stands still: interrupt, wait, let go. Returns how many do
 * not stop in good time. */
static size_t release_running(struct tracees *ts, const struct target *target)
{
	const struct timespec pause = {.tv_nsec = POLL_NS};
	uint64_t deadline_ns = now_ns() + STRAGGLER_NS;
	size_t running;

	for (size_t i = 0; i < ts->n; i++)
		if (!ts->t[i].stopped)
			ptrace(PTRACE_INTERRUPT, ts->t[i].tid, NULL, NULL);
	for (;;) {
		running = 0;
		for (size_t i = 0; i < ts->n; i++) {
			struct tracee *t = &ts->t[i];

			if (t->stopped || t->gone)
				continue;
			int r = wait_one(t, WNOHANG);
			if (r == 0)
				detach(t, target);
			else
				running += r != -ESRCH;
		}
		if (!running || now_ns() >= deadline_ns)
			return running;
		nanosleep(&pause, NULL);
	}
}

size_t tracees_release(struct tracees *ts, const struct target *target)
{
	size_t running = 0;

	for (size_t i = 0; i < ts->n; i++) {
		if (ts->t[i].stopped)
			detach(&ts->t[i], target);
		else
			running++;
	}
	if (running)
		running = release_running(ts, target);
	free(ts->t);
	*ts = (struct tracees){0};
	return running;
}
