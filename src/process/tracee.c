/*
 * DESIGN. PTRACE_SEIZE does not stop; PTRACE_INTERRUPT does, and a thread
 * that a signal has come to stops with that instead (signal-delivery-stop).
 * It is let go with the signal, and stops anew before it has run an
 * instruction: at the first one of the handler, or where it was if there is
 * none. Until then the kernel has the signal and delivers it, should we die:
 * the report of such a stop is left (wait_task_stopped() in kernel/exit.c
 * clears what the thread goes on with when it is taken).
 *
 * Threads are waited for one by one, by ID, and for stops only: that leaves
 * the reports of others alone, and a thread that has ended is told at once,
 * even where its end could not be reported yet (a leader whose fellows have
 * not been reaped).
 *
 * Waiting must end even when a thread cannot stop: a parent in vfork() sits
 * in a wait that only a fatal signal breaks. A POSIX timer aimed at this
 * thread interrupts the wait once a millisecond.
 *
 * A thread that calls execve(2) has the others killed, also those that have
 * stopped, and waits until those that we trace have been reaped; meanwhile
 * PTRACE_SEIZE of any thread waits for it (cred_guard_mutex). So the timer's
 * signal also reaps what there is to be reaped while that call lasts.
 */
#include "process/tracee.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
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
	REAP_AT_ONCE = 256,
	SEIZE_PASSES = 3,
	POLL_NS = 100000,
};

/* Whose threads are being seized by this thread, in ticks since that began, and which is the next one to
 * be looked at. */
static _Thread_local const struct tracees *volatile seizing;
static _Thread_local unsigned seizing_ticks;
static _Thread_local size_t seizing_next;

/* Those that tracees_release() has had to leave to the kernel. */
static _Thread_local pid_t abandoned[8];

/* Takes an end, and nothing else: the stop of a thread that is traced is reported whatever was asked for
 * (wait_task_stopped() in kernel/exit.c), and once taken nobody would hear of it, nor the thread of its
 * signal. */
static void reap(pid_t tid)
{
	siginfo_t si = {0};

	if (tid && waitid(P_PID, (id_t)tid, &si, WEXITED | WNOHANG | WNOWAIT | __WALL) == 0 &&
	    (si.si_code == CLD_EXITED || si.si_code == CLD_KILLED || si.si_code == CLD_DUMPED))
		waitid(P_PID, (id_t)tid, NULL, WEXITED | WNOHANG | __WALL);
}

/* Interrupts waitid(), at any rate. It must be over before the next one: a call that does not wait
 * would never get to its end. */
static void on_tick(int sig)
{
	const struct tracees *ts = seizing;
	int saved = errno;

	(void)sig;
	if (ts && seizing_ticks++ > 0) {
		for (size_t i = 0; i < MIN(ts->n, (size_t)REAP_AT_ONCE); i++)
			reap(ts->t[seizing_next++ % ts->n].tid);
		for (size_t i = 0; i < ARRAY_SIZE(abandoned); i++)
			reap(abandoned[i]);
	}
	errno = saved;
}

static int ticks_begin(timer_t *ret)
{
	struct sigaction sa = {.sa_handler = on_tick};
	struct sigevent ev = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMAX - 1};

	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGRTMAX - 1);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
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

static int make_room(struct tracees *ts)
{
	if (ts->n < ts->room)
		return 0;
	size_t room = ts->room ? ts->room * 2 : 16;
	struct tracee *bigger = realloc(ts->t, room * sizeof(*bigger));

	if (!bigger)
		return -ENOMEM;
	ts->t = bigger;
	ts->room = room;
	return 0;
}

static int seize(const struct tracees *ts, pid_t tid)
{
	seizing_ticks = 0;
	atomic_signal_fence(memory_order_seq_cst);
	seizing = ts;
	int r = ptrace(PTRACE_SEIZE, tid, NULL, NULL) < 0 ? -errno : 0;
	seizing = NULL;
	atomic_signal_fence(memory_order_seq_cst);
	return r;
}

int tracees_seize_one(struct tracees *ts, const struct target *target, pid_t tid,
		      struct usnap_err *err)
{
	int r = make_room(ts);

	if (r < 0)
		return usnap_fail_errno(err, r, "cannot trace thread %d", tid);
	r = seize(ts, tid);
	pid_t tracer = r == -EPERM ? target_tracer_of(target, tid) : 0;
	if (r == -EPERM && !tracer)
		r = seize(ts, tid); /* it may have had one that is gone by now */
	if (r < 0) {
		char state = task_state(target, tid);

		/* Gone or going. A leader that has called pthread_exit() stays as a zombie. */
		if (r == -ESRCH || state == 0 || state == 'Z' || state == 'X')
			return -ESRCH;
		/* It has called execve(2), and that ID was the leader's before. */
		if (tid == target->pid && tracer == gettid()) {
			ts->lost = true;
			return usnap_fail(err, r,
					  "cannot snapshot process %d: it runs another program now",
					  target->pid);
		}
		if (tracer && tracer != gettid())
			return target_refuse_traced(target, tracer, err);
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

/* 1 when it has become one of ts, 0 when not. */
typedef int thread_fn(struct tracees *ts, const struct target *target, pid_t tid,
		      struct usnap_err *err);

/*
 * Calls fn for every thread that is not one of ts. Returns how often that was 1. The list of them ends
 * early where a thread ends while it is made (next_tid() in fs/proc/base.c), so they are counted,
 * which the links of the directory do too; one more when some are missing.
 */
static int each_other(struct tracees *ts, const struct target *target, thread_fn *fn,
		      struct usnap_err *err)
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
	nlink_t listed = 0;
	struct stat st;
	size_t known = 0; /* the kernel lists threads in the order we keep them */
	const struct dirent *e;
	while ((e = readdir(d))) {
		pid_t tid = (pid_t)strtol(e->d_name, NULL, 10);

		if (tid <= 0)
			continue;
		listed++;
		if (known < ts->n && ts->t[known].tid == tid) {
			known++;
			continue;
		}
		if (tracee_find(ts, tid))
			continue;
		int r = fn(ts, target, tid, err);
		if (r < 0)
			return r;
		nr_new += r;
	}
	if (fstat(dirfd(d), &st) == 0 && st.st_nlink > 2 + listed)
		nr_new++;
	return nr_new;
}

static int seize_other(struct tracees *ts, const struct target *target, pid_t tid,
		       struct usnap_err *err)
{
	struct usnap_err why = {0};
	int r = tracees_seize_one(ts, target, tid, &why);

	if (r == -ESRCH || (r == -EPERM && is_io_worker(target, tid)))
		return 0;
	if (r < 0 && err && !err->code)
		*err = why;
	return r < 0 ? r : 1;
}

int tracees_seize(struct tracees *ts, const struct target *target, struct usnap_err *err)
{
	timer_t timer;
	int r = ticks_begin(&timer);

	if (r < 0)
		return usnap_fail_errno(err, r, "cannot set a timer");
	/* Those that come and go all the time are for tracees_stop(), when nobody makes new ones. */
	for (int i = 0; i < SEIZE_PASSES && (r > 0 || i == 0); i++)
		r = each_other(ts, target, seize_other, err);
	timer_delete(timer);
	r = MIN(r, 0);
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
	reap(tid);
	return -ESRCH;
}

bool tracee_is_pending(pid_t tid, bool shared, int sig)
{
	siginfo_t info[16];
	struct __ptrace_peeksiginfo_args args = {.flags = shared ? PTRACE_PEEKSIGINFO_SHARED : 0,
						 .nr = ARRAY_SIZE(info)};
	long n;

	do {
		n = ptrace(PTRACE_PEEKSIGINFO, tid, &args, info);
		for (long i = 0; i < n; i++)
			if (info[i].si_signo == sig)
				return true;
		args.off += ARRAY_SIZE(info);
	} while (n == (long)ARRAY_SIZE(info));
	return false;
}

/* Looks at or waits for the stop of a thread. *ret_sig: what it has stopped for the delivery of, or 0.
 * One that stood still may do so no longer: killed, it is on its way out. */
static int wait_one(struct tracee *t, int flags, int *ret_sig)
{
	int status, r = tracee_wait(t->tid, WNOWAIT | flags, &status);

	*ret_sig = 0;
	if (r == 0) {
		*t = (struct tracee){.tid = t->tid, .stopped = true, .before = t->before};
		if (!(status >> 16))
			*ret_sig = WSTOPSIG(status);
		else if (status >> 16 == PTRACE_EVENT_STOP && WSTOPSIG(status) != SIGTRAP)
			t->group_stop = WSTOPSIG(status);
	} else if (r != -EINTR) {
		t->stopped = false;
	}
	t->gone = r == -ESRCH;
	return r;
}

/* The same, with signals delivered: -EAGAIN, also after WNOHANG, when there is another stop to come. */
static int stop_one(struct tracee *t, int flags)
{
	int sig, r = wait_one(t, flags, &sig);

	if (r < 0 || !sig)
		return r;
	ptrace(PTRACE_GETREGS, t->tid, NULL, &t->before);
	/* In this order, so that it cannot get away. */
	ptrace(PTRACE_INTERRUPT, t->tid, NULL, NULL);
	ptrace(PTRACE_CONT, t->tid, NULL, (void *)(long)sig);
	t->stopped = false;
	return -EAGAIN;
}

static void forget_gone(struct tracees *ts)
{
	size_t n = 0;

	for (size_t i = 0; i < ts->n; i++)
		if (!ts->t[i].gone)
			ts->t[n++] = ts->t[i];
		else
			ts->lost = true;
	ts->n = n;
}

static bool is_running(const struct tracee *t)
{
	return !t->stopped && !t->gone;
}

/*
 * Waits until every thread that was interrupted stands still or is gone. All
 * are looked at now and then: after execve(2) those that had stopped are gone,
 * and the leader's ID is that of the thread which called it.
 */
static int wait_all(struct tracees *ts, uint64_t deadline_ns)
{
	for (size_t i = ts->n; i > 0;) {
		struct tracee *t = &ts->t[i - 1];
		int r = is_running(t) ? stop_one(t, 0) : 0;

		i -= r == 0 || r == -ESRCH;
		if (r == 0 || r == -ESRCH || r == -EAGAIN)
			continue;
		if (r != -EINTR)
			return r;
		bool late = now_ns() >= deadline_ns, running = false;

		for (i = ts->n; i-- > 0;) {
			stop_one(&ts->t[i], WNOHANG);
			running |= is_running(&ts->t[i]);
		}
		if (!running)
			return 0;
		if (late)
			return -EAGAIN;
		i = ts->n;
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
		r = wait_all(ts, deadline_ns);
		forget_gone(ts);
		if (r < 0)
			break;
		asked = ts->n;
		if (all)
			r = each_other(ts, target, seize_other, err);
		if (r > 0 && asked == ts->n && now_ns() >= deadline_ns)
			r = usnap_fail(err, -EAGAIN,
				       "cannot stop process %d: threads of it are hidden",
				       target->pid);
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

/* SIGCONT has come after the SIGSTOP that the thread is owed, and undoes it. */
static bool is_undone(const struct tracee *t)
{
	return tracee_is_pending(t->tid, false, SIGCONT) ||
	       tracee_is_pending(t->tid, true, SIGCONT);
}

/* Before any of them goes on, and takes what tells. */
static void pay_owed(struct tracees *ts, const struct target *target)
{
	const uint64_t stop = 1ull << (SIGSTOP - 1);

	for (size_t i = 0; i < ts->n; i++) {
		struct tracee *t = &ts->t[i];

		if (t->owed & stop && t->stopped && is_undone(t))
			t->owed &= ~stop;
		for (int sig = 1; t->owed; sig++, t->owed >>= 1)
			if (t->owed & 1)
				syscall(SYS_tgkill, target->pid, t->tid, sig);
	}
}

static void detach(struct tracee *t, int sig)
{
	t->let_go = t->gone = ptrace(PTRACE_DETACH, t->tid, NULL, (void *)(long)sig) == 0;
	/* If it has been killed, there is a zombie to be reaped. */
	t->stopped = false;
}

static int adopt_other(struct tracees *ts, const struct target *target, pid_t tid,
		       struct usnap_err *err)
{
	(void)err;
	if (target_tracer_of(target, tid) != gettid() || make_room(ts) < 0)
		return 0;
	ts->t[ts->n++] = (struct tracee){.tid = tid};
	return 1;
}

/*
 * A thread can be detached only while it stands still: interrupt, wait, let
 * go. Returns how many do not stop in good time. When some have been killed
 * there may be others that we trace: the one that did it by execve(2), under a
 * new ID, and a helper of which we had not heard yet.
 */
static size_t release_running(struct tracees *ts, const struct target *target)
{
	const struct timespec pause = {.tv_nsec = POLL_NS};
	uint64_t deadline_ns = now_ns() + STRAGGLER_NS;
	size_t asked = 0, running;

	/* Once more when all are gone: a leader can be reaped only then. */
	for (bool last = false;; last = !running) {
		bool more = ts->lost && each_other(ts, target, adopt_other, NULL) > 0;

		for (; asked < ts->n; asked++)
			ptrace(PTRACE_INTERRUPT, ts->t[asked].tid, NULL, NULL);
		running = 0;
		for (size_t i = 0; i < ts->n; i++) {
			struct tracee *t = &ts->t[i];
			int sig;

			if (t->let_go)
				continue;
			if (wait_one(t, WNOHANG, &sig) == 0)
				detach(t, sig);
			ts->lost |= t->gone && !t->let_go;
			running += !t->gone;
		}
		if (now_ns() >= deadline_ns || (!running && !more && (last || !ts->lost)))
			return running;
		if (running)
			nanosleep(&pause, NULL);
	}
}

size_t tracees_release(struct tracees *ts, const struct target *target)
{
	size_t running = 0;

	pay_owed(ts, target);
	for (size_t i = 0; i < ts->n; i++) {
		if (ts->t[i].stopped)
			detach(&ts->t[i], 0);
		running += !ts->t[i].let_go;
	}
	if (running || ts->lost)
		running = release_running(ts, target);
	for (size_t i = 0, k = 0; i < ts->n && k < ARRAY_SIZE(abandoned) && running; i++)
		if (!ts->t[i].gone)
			abandoned[k++] = ts->t[i].tid;
	free(ts->t);
	*ts = (struct tracees){0};
	return running;
}
