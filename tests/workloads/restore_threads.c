/*
 * Threads after a restore; see restorework.h.
 */
#include "restorework.h"

#include <stddef.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#ifndef PR_GET_TID_ADDRESS
#define PR_GET_TID_ADDRESS 40
#endif

enum {
	MANY = 64
};

static volatile int released;

static void release_threads(void)
{
	released = 1;
}

static void wait_released(void)
{
	while (!released)
		usleep(2000);
}

static void join(struct work_thread *t)
{
	void *r;

	must(pthread_join(t->thread, &r) == 0);
	must(r == t);
}

/* ---- identity and storage --------------------------------------------------- */

static __thread int tls_word = 7;
static __thread char tls_zero[300];
static pthread_key_t key;

static void *one_of_many(struct work_thread *t)
{
	char name[16], wanted[16];
	int i = (int)(intptr_t)t->arg;

	snprintf(wanted, sizeof(wanted), "many-%d", i);
	must(pthread_setname_np(t->thread, wanted) == 0);
	tls_word += i;
	memset(tls_zero, i, sizeof(tls_zero));
	must(pthread_setspecific(key, t) == 0);
	t->state = 1;
	wait_released();
	must_equal(syscall(SYS_gettid), t->tid);
	must(pthread_equal(pthread_self(), t->thread));
	must_equal(tls_word, 7 + i);
	for (size_t k = 0; k < sizeof(tls_zero); k++)
		must_equal(tls_zero[k], i);
	must(pthread_getspecific(key) == t);
	must(prctl(PR_GET_NAME, name) == 0 && strcmp(name, wanted) == 0);
	return t;
}

static void many_threads(void)
{
	static struct work_thread t[MANY];
	pid_t pid = getpid();

	must(pthread_key_create(&key, NULL) == 0);
	for (int i = 0; i < MANY; i++)
		work_thread_start(&t[i], one_of_many, (void *)(intptr_t)i);
	for (int i = 0; i < MANY; i++)
		work_until(t[i].state == 1);
	work_wait();
	must_equal(getpid(), pid);
	must_equal(syscall(SYS_gettid), pid);
	release_threads();
	for (int i = 0; i < MANY; i++)
		join(&t[i]);
}

static void *leave(struct work_thread *t)
{
	return t;
}

static void new_threads(void)
{
	static struct work_thread before, t[20];

	work_thread_start(&before, leave, NULL);
	work_wait();
	join(&before);
	for (int round = 0; round < 5; round++) {
		for (int i = 0; i < 20; i++) {
			t[i].tid = 0;
			work_thread_start(&t[i], leave, NULL);
		}
		for (int i = 0; i < 20; i++)
			join(&t[i]);
	}
}

static void *wait_for_release(struct work_thread *t)
{
	wait_released();
	return t;
}

static void *join_other(struct work_thread *t)
{
	join(t->arg);
	return t;
}

static void join_waiting(void)
{
	static struct work_thread a, b;

	work_thread_start(&a, wait_for_release, NULL);
	work_thread_start(&b, join_other, &a);
	work_until(work_call_of(b.tid) == SYS_futex);
	work_wait();
	must_equal(work_call_of(b.tid), SYS_futex);
	release_threads();
	join(&b);
}

static void tid_address(void)
{
	int *before, *after;

	if (prctl(PR_GET_TID_ADDRESS, &before))
		work_skip("no PR_GET_TID_ADDRESS");
	work_wait();
	must(prctl(PR_GET_TID_ADDRESS, &after) == 0 && before == after);
}

/* ---- signal masks, handlers, alternate stacks ----------------------------------- */

static void *with_mask(struct work_thread *t)
{
	sigset_t set, now;
	int i = (int)(intptr_t)t->arg;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1 + i % 3);
	sigaddset(&set, SIGRTMIN + i);
	must(pthread_sigmask(SIG_SETMASK, &set, NULL) == 0);
	t->state = 1;
	wait_released();
	must(pthread_sigmask(SIG_SETMASK, NULL, &now) == 0);
	for (int s = 1; s <= SIGRTMAX; s++)
		must_equal(sigismember(&now, s), sigismember(&set, s));
	return t;
}

static void masks(void)
{
	static struct work_thread t[8];

	for (int i = 0; i < 8; i++)
		work_thread_start(&t[i], with_mask, (void *)(intptr_t)i);
	for (int i = 0; i < 8; i++)
		work_until(t[i].state == 1);
	work_wait();
	release_threads();
	for (int i = 0; i < 8; i++)
		join(&t[i]);
}

static volatile int in_handler;
static char *handler_stack;
enum {
	STACK = 64 << 10
};

static void handler_waits(int signo, siginfo_t *si, void *context)
{
	char here;
	stack_t ss;
	sigset_t now;

	in_handler = signo;
	wait_released();
	must(pthread_sigmask(SIG_SETMASK, NULL, &now) == 0);
	must(sigismember(&now, SIGUSR1) && sigismember(&now, SIGUSR2) &&
	     !sigismember(&now, SIGHUP));
	must_equal(si->si_value.sival_int, 4711);
	if (handler_stack) {
		must(&here > handler_stack && &here < handler_stack + STACK);
		must(sigaltstack(NULL, &ss) == 0 && ss.ss_flags == SS_ONSTACK);
	}
}

static void *take_signal(struct work_thread *t)
{
	stack_t ss = {.ss_sp = handler_stack, .ss_size = STACK}, now;
	sigset_t set;
	volatile long kept = 0x1122334455667788;

	if (handler_stack)
		must(sigaltstack(&ss, NULL) == 0);
	must(pthread_sigqueue(t->thread, SIGUSR1, (union sigval){.sival_int = 4711}) == 0);
	t->state = 1;
	must_equal(in_handler, SIGUSR1);
	must(kept == 0x1122334455667788);
	must(pthread_sigmask(SIG_SETMASK, NULL, &set) == 0);
	must(!sigismember(&set, SIGUSR1) && !sigismember(&set, SIGUSR2));
	if (handler_stack) {
		must(sigaltstack(NULL, &now) == 0);
		must(now.ss_sp == handler_stack && now.ss_size == STACK && now.ss_flags == 0);
		/* It is used again. */
		in_handler = 0;
		must(pthread_sigqueue(t->thread, SIGUSR1, (union sigval){.sival_int = 4711}) == 0);
		must_equal(in_handler, SIGUSR1);
	}
	return t;
}

static void in_a_handler(int flags)
{
	static struct work_thread t;
	struct sigaction act = {.sa_sigaction = handler_waits, .sa_flags = SA_SIGINFO | flags};

	sigaddset(&act.sa_mask, SIGUSR2);
	must(sigaction(SIGUSR1, &act, NULL) == 0);
	work_thread_start(&t, take_signal, NULL);
	work_until(in_handler != 0);
	work_wait();
	release_threads();
	join(&t);
}

static void altstack(void)
{
	handler_stack = malloc(STACK);
	in_a_handler(SA_ONSTACK);
}

static void handler(void)
{
	in_a_handler(0);
}

/* ---- signals that wait ---------------------------------------------------------- */

static void expect_signal(const sigset_t *set, int signo, int code, int value, pid_t from)
{
	struct timespec none = {0};
	siginfo_t si;

	must_equal(sigtimedwait(set, &si, &none), signo);
	must_equal(si.si_code, code);
	must_equal(si.si_pid, from);
	must_equal(si.si_uid, getuid());
	if (code == SI_QUEUE)
		must_equal(si.si_value.sival_int, value);
}

static void *has_pending(struct work_thread *t)
{
	sigset_t set;

	sigfillset(&set);
	must(pthread_sigmask(SIG_SETMASK, &set, NULL) == 0);
	for (int i = 0; i < 50; i++)
		must(pthread_sigqueue(t->thread, SIGRTMIN + 3,
				      (union sigval){.sival_int = i * 1000}) == 0);
	must(pthread_kill(t->thread, SIGUSR2) == 0);
	t->state = 1;
	wait_released();
	expect_signal(&set, SIGUSR2, SI_USER, 0, getpid()); /* says the C library of SI_TKILL */
	for (int i = 0; i < 50; i++)
		expect_signal(&set, SIGRTMIN + 3, SI_QUEUE, i * 1000, getpid());
	must(sigtimedwait(&set, NULL, &(struct timespec){0}) < 0 && errno == EAGAIN);
	return t;
}

static void pending_thread(void)
{
	static struct work_thread t;

	work_thread_start(&t, has_pending, NULL);
	work_until(t.state == 1);
	work_wait();
	release_threads();
	join(&t);
}

static void pending_process(void)
{
	sigset_t set;
	pid_t pid = getpid();

	sigfillset(&set);
	must(sigprocmask(SIG_SETMASK, &set, NULL) == 0);
	for (int i = 0; i < 20; i++) {
		must(sigqueue(pid, SIGRTMIN + 5, (union sigval){.sival_int = i}) == 0);
		must(sigqueue(pid, SIGRTMIN + 4, (union sigval){.sival_int = -i}) == 0);
	}
	must(kill(pid, SIGHUP) == 0 && kill(pid, SIGHUP) == 0);
	work_wait();
	expect_signal(&set, SIGHUP, SI_USER, 0, pid);
	for (int i = 0; i < 20; i++)
		expect_signal(&set, SIGRTMIN + 4, SI_QUEUE, -i, pid);
	for (int i = 0; i < 20; i++)
		expect_signal(&set, SIGRTMIN + 5, SI_QUEUE, i, pid);
	must(sigtimedwait(&set, NULL, &(struct timespec){0}) < 0 && errno == EAGAIN);
}

/* ---- scheduling --------------------------------------------------------------------- */

struct sched_want {
	int policy, priority, nice, cpu;
	unsigned long slack;
};

static void *scheduled(struct work_thread *t)
{
	const struct sched_want *w = t->arg;
	struct sched_param p = {.sched_priority = w->priority}, got;
	cpu_set_t cpus, now;

	CPU_ZERO(&cpus);
	CPU_SET(w->cpu, &cpus);
	must(sched_setaffinity(0, sizeof(cpus), &cpus) == 0);
	must(setpriority(PRIO_PROCESS, (id_t)t->tid, w->nice) == 0);
	must(prctl(PR_SET_TIMERSLACK, w->slack) == 0);
	if (sched_setscheduler(0, w->policy, &p) && errno == EPERM)
		work_skip("no real-time scheduling here");
	t->state = 1;
	wait_released();
	must_equal(sched_getscheduler(0), w->policy);
	must(sched_getparam(0, &got) == 0);
	must_equal(got.sched_priority, w->priority);
	must_equal(getpriority(PRIO_PROCESS, (id_t)t->tid), w->nice);
	/* Real-time threads have none. */
	must_equal(prctl(PR_GET_TIMERSLACK), w->priority ? 0 : w->slack);
	must(sched_getaffinity(0, sizeof(now), &now) == 0 && CPU_EQUAL(&now, &cpus));
	must_equal(sched_getcpu(), w->cpu);
	return t;
}

static void scheduling(void)
{
	static struct sched_want w[] = {
		{SCHED_OTHER, 0, 5, 0, 50000},
		{SCHED_BATCH, 0, -3, 0, 123456},
		{SCHED_IDLE, 0, 0, 0, 50000},
		{SCHED_FIFO, 3, 0, 0, 50000},
		{SCHED_RR, 7, 0, 0, 1000},
		{SCHED_OTHER | SCHED_RESET_ON_FORK, 0, 0, 0, 50000},
		{SCHED_OTHER, 0, 19, 0, 1000000},
	};
	static struct work_thread t[WORK_COUNT(w)];
	int cpus = (int)sysconf(_SC_NPROCESSORS_ONLN);

	for (size_t i = 0; i < WORK_COUNT(w); i++) {
		w[i].cpu = (int)i % cpus;
		work_thread_start(&t[i], scheduled, &w[i]);
		work_until(t[i].state == 1);
	}
	work_wait();
	release_threads();
	for (size_t i = 0; i < WORK_COUNT(w); i++)
		join(&t[i]);
}

static void io_priority(void)
{
	int want = (2 << 13) | 6; /* best effort, 6 */

	must(syscall(SYS_ioprio_set, 1, 0, want) == 0);
	work_wait();
	must_equal(syscall(SYS_ioprio_get, 1, 0), want);
}

/* struct rseq lies at a fixed distance from the thread pointer (glibc 2.35). */
extern const ptrdiff_t __rseq_offset __attribute__((weak));
extern const unsigned int __rseq_size __attribute__((weak));

static void *moves_about(struct work_thread *t)
{
	const volatile uint32_t *rseq =
		(void *)((char *)__builtin_thread_pointer() + __rseq_offset);
	int cpus = (int)sysconf(_SC_NPROCESSORS_ONLN);

	t->state = 1;
	wait_released();
	for (int i = 0; i < 20; i++) {
		cpu_set_t one;
		unsigned cpu;

		CPU_ZERO(&one);
		CPU_SET(i % cpus, &one);
		must(sched_setaffinity(0, sizeof(one), &one) == 0);
		must(syscall(SYS_getcpu, &cpu, NULL, NULL) == 0);
		must_equal(cpu, i % cpus);
		must_equal(rseq[0], cpu); /* cpu_id_start */
		must_equal(rseq[1], cpu); /* cpu_id */
		must_equal(sched_getcpu(), cpu);
	}
	return t;
}

static void rseq(void)
{
	static struct work_thread t;

	if (!&__rseq_size || !__rseq_size)
		work_skip("the C library registers no rseq area");
	work_thread_start(&t, moves_about, NULL);
	work_until(t.state == 1);
	work_wait();
	release_threads();
	join(&t);
	work_thread_start(&t, moves_about, NULL);
	join(&t);
	moves_about(&t);
}

#ifdef __x86_64__

/* struct rseq_cs of linux/rseq.h */
struct sequence {
	uint32_t version, flags;
	uint64_t start, length, abort;
} __attribute__((aligned(32)));

/* Goes round in a sequence, which only the kernel can make it leave. */
static void *in_sequence(struct work_thread *t)
{
	struct sequence **current =
		(void *)((char *)__builtin_thread_pointer() + __rseq_offset + 8);
	static struct sequence s;
	uint64_t end;

	__asm__("leaq 1f(%%rip), %0\n\tleaq 2f(%%rip), %1\n\tleaq 3f(%%rip), %2"
		: "=r"(s.start), "=r"(end), "=r"(s.abort));
	s.length = end - s.start;
	t->state = 1;
	while (!released)
		__asm__ volatile("movq %0, %1\n"
				 "1:\tpause\n\tjmp 1b\n"
				 "2:\tnop\n\tud2\n"
				 /* RSEQ_SIG, as an instruction that is never reached */
				 "\t.byte 0x0f, 0xb9, 0x3d\n\t.long 0x53053053\n"
				 "3:\n"
				 :
				 : "r"(&s), "m"(*current)
				 : "memory");
	t->state = 2;
	return t;
}

static void sequence(void)
{
	static struct work_thread t;
	int cpus = (int)sysconf(_SC_NPROCESSORS_ONLN);

	if (!&__rseq_size || !__rseq_size)
		work_skip("the C library registers no rseq area");
	work_thread_start(&t, in_sequence, NULL);
	work_until(t.state == 1);
	usleep(10000);
	work_wait();
	release_threads();
	/* To be moved to another CPU ends a sequence. */
	for (int i = 0; i < 10000 && t.state != 2; i++) {
		cpu_set_t one;

		CPU_ZERO(&one);
		CPU_SET(i % cpus, &one);
		/* It may have ended since we looked. */
		must(sched_setaffinity(t.tid, sizeof(one), &one) == 0 || t.state == 2);
		usleep(1000);
	}
	must_equal(t.state, 2);
	join(&t);
}

#else

static void sequence(void)
{
	work_skip("written for x86-64");
}

#endif

/* ---- users ----------------------------------------------------------------- */

static void *other_user(struct work_thread *t)
{
	uid_t uid = (uid_t)(intptr_t)t->arg;

	/* This thread alone: the C library would change all of them. */
	must(syscall(SYS_setfsuid, uid) == 0);
	must(syscall(SYS_setresuid, (uid_t)-1, uid, (uid_t)-1) == 0);
	t->state = 1;
	wait_released();
	must_equal(syscall(SYS_geteuid), uid);
	must_equal(setfsuid((uid_t)-1), uid);
	must_equal(syscall(SYS_getuid), 0);
	return t;
}

static void thread_users(void)
{
	static struct work_thread a, b;

	if (geteuid() != 0)
		work_skip("only for root");
	work_thread_start(&a, other_user, (void *)1234);
	work_thread_start(&b, other_user, (void *)4321);
	work_until(a.state && b.state);
	work_wait();
	must_equal(geteuid(), 0);
	release_threads();
	join(&a);
	join(&b);
}

static const struct work works[] = {
	{"many-threads", many_threads, "threads with their TIDs, names and thread-local storage"},
	{"new-threads", new_threads, "threads that end are joined; new ones can be made"},
	{"join", join_waiting, "threads that wait in pthread_join()"},
	{"tid-address", tid_address, "the address cleared when a thread ends (set_tid_address)"},
	{"masks", masks, "signal masks, one for each thread"},
	{"handler", handler, "a signal handler that is running, and what it interrupted"},
	{"altstack", altstack, "alternate signal stacks, also while a handler runs on one"},
	{"pending-thread", pending_thread,
	 "signals queued for a thread, in order, with their values"},
	{"pending-process", pending_process,
	 "signals queued for the process, in order, with their values"},
	{"scheduling", scheduling,
	 "scheduling class, priority, nice, CPU affinity and timer slack"},
	{"io-priority", io_priority, "I/O priority"},
	{"rseq", rseq, "restartable sequences: the current CPU is known without a system call"},
	{"rseq-section", sequence, "threads in a restartable sequence go on at its abort handler"},
	{"thread-users", thread_users, "threads that run as different users"},
};

int main(int argc, char **argv)
{
	return work_main(argc, argv, works, WORK_COUNT(works));
}
