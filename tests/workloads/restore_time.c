/*
 * Time after a restore: clocks, timers, sleeps; see restorework.h.
 *
 * What is early is measured from before the start of a wait, on the clock of
 * the wait: the time that the process did not exist can only make it later.
 */
#include "restorework.h"

#include <linux/futex.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/time.h>
#include <sys/timerfd.h>

#define MS 1000000LL
/* Nothing may be as late as that. */
#define LATE (30 * WORK_SECOND)

/* ---- waits with an end -------------------------------------------------------------- */

enum {
	WAIT_MS = 1500
};

struct wait {
	int64_t (*fn)(int64_t end_ns); /* 0, or what is wrong */
	clockid_t clock;
};

static void *in_wait(struct work_thread *t)
{
	const struct wait *w = t->arg;
	int64_t end = work_now(w->clock) + WAIT_MS * MS;

	must(w->fn(end) == 0);
	must(work_now(w->clock) >= end);
	t->state = 1;
	return t;
}

static void waiting(int64_t (*fn)(int64_t), clockid_t clock)
{
	static struct work_thread t;
	struct wait w = {fn, clock};

	work_thread_start(&t, in_wait, &w);
	work_wait();
	int64_t limit = work_now(CLOCK_MONOTONIC) + WAIT_MS * MS + LATE;

	while (t.state == 0) {
		must_say(work_now(CLOCK_MONOTONIC) < limit, "the wait ends in time");
		usleep(2000);
	}
	must(pthread_join(t.thread, NULL) == 0);
}

static struct timespec to_timespec(int64_t ns)
{
	return (struct timespec){ns / WORK_SECOND, ns % WORK_SECOND};
}

static int64_t sleep_relative(int64_t end)
{
	struct timespec t = to_timespec(WAIT_MS * MS);

	return nanosleep(&t, NULL);
}

static int64_t sleep_absolute(int64_t end)
{
	struct timespec t = to_timespec(end);

	return clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &t, NULL);
}

static int64_t poll_limited(int64_t end)
{
	return poll(NULL, 0, WAIT_MS);
}

static int64_t select_limited(int64_t end)
{
	struct timeval t = {.tv_sec = WAIT_MS / 1000, .tv_usec = WAIT_MS % 1000 * 1000};

	return select(0, NULL, NULL, NULL, &t);
}

/* Each may be cut short by any stop, as signal(7) says, and is then called again. */
static int64_t epoll_limited(int64_t end)
{
	int ep = epoll_create1(EPOLL_CLOEXEC), n = 0;
	struct epoll_event e;
	int64_t now;

	while ((now = work_now(CLOCK_MONOTONIC)) < end)
		if ((n = epoll_wait(ep, &e, 1, (int)((end - now + MS - 1) / MS))) < 0)
			must(errno == EINTR);
	return n > 0;
}

static int64_t sigwait_limited(int64_t end)
{
	sigset_t set;
	int64_t now;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	while ((now = work_now(CLOCK_MONOTONIC)) < end) {
		struct timespec t = to_timespec(end - now);

		must(sigtimedwait(&set, NULL, &t) < 0 && (errno == EAGAIN || errno == EINTR));
	}
	return 0;
}

static uint32_t word;

static int64_t futex_limited(int64_t end)
{
	struct timespec t = to_timespec(WAIT_MS * MS);
	long r = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &t, NULL, 0);

	return !(r < 0 && errno == ETIMEDOUT);
}

static int64_t cond_limited(int64_t end)
{
	pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
	pthread_cond_t c = PTHREAD_COND_INITIALIZER;
	struct timespec t = to_timespec(end);
	int r;

	pthread_mutex_lock(&m);
	while ((r = pthread_cond_timedwait(&c, &m, &t)) == 0)
		continue;
	return r != ETIMEDOUT;
}

static void do_sleep(void)
{
	waiting(sleep_relative, CLOCK_MONOTONIC);
}

static void do_sleep_absolute(void)
{
	waiting(sleep_absolute, CLOCK_REALTIME);
}

static void do_poll(void)
{
	waiting(poll_limited, CLOCK_MONOTONIC);
}

static void do_select(void)
{
	waiting(select_limited, CLOCK_MONOTONIC);
}

static void do_epoll(void)
{
	waiting(epoll_limited, CLOCK_MONOTONIC);
}

static void do_sigwait(void)
{
	waiting(sigwait_limited, CLOCK_MONOTONIC);
}

static void do_futex(void)
{
	waiting(futex_limited, CLOCK_MONOTONIC);
}

static void do_cond(void)
{
	waiting(cond_limited, CLOCK_REALTIME);
}

/* ---- clocks -------------------------------------------------------------------------- */

static void clocks(void)
{
	static const clockid_t ids[] = {CLOCK_REALTIME,		CLOCK_MONOTONIC,
					CLOCK_MONOTONIC_COARSE, CLOCK_MONOTONIC_RAW,
					CLOCK_BOOTTIME,		CLOCK_REALTIME_COARSE};
	int64_t was[WORK_COUNT(ids)], now;

	for (size_t i = 0; i < WORK_COUNT(ids); i++)
		was[i] = work_now(ids[i]);
	work_wait();
	for (int round = 0; round < 200; round++) {
		for (size_t i = 0; i < WORK_COUNT(ids); i++) {
			must((now = work_now(ids[i])) >= was[i]);
			was[i] = now;
		}
		usleep(100);
	}
	for (size_t i = 0; i < WORK_COUNT(ids); i++)
		must(work_now(ids[i]) - was[i] < LATE);
}

/* ---- timers with hours to go: the time that was left ------------------------------------ */

#define HOUR (3600 * WORK_SECOND)

/* begun: CLOCK_MONOTONIC when it was set to an hour; frozen: when a part of that had passed. */
static void time_left(int64_t left, int64_t begun, int64_t frozen)
{
	int64_t now = work_now(CLOCK_MONOTONIC);

	if (left > HOUR - (frozen - begun) + 20 * MS)
		work_end(1, "FAIL: %lld ns too much are left",
			 (long long)(left - HOUR + frozen - begun));
	if (left < HOUR - (now - begun) - 20 * MS)
		work_end(1, "FAIL: %lld ns too little are left",
			 (long long)(HOUR - (now - begun) - left));
}

static int64_t from_timespec(struct timespec t)
{
	return t.tv_sec * WORK_SECOND + t.tv_nsec;
}

static void timer_left(void)
{
	struct itimerspec hour = {.it_value = {3600, 0}, .it_interval = {7, 8}}, now;
	struct sigevent e = {.sigev_notify = SIGEV_NONE};
	timer_t first, second, third;
	int64_t begun = work_now(CLOCK_MONOTONIC);

	/* So that the number of the second has a gap before it. */
	must(timer_create(CLOCK_MONOTONIC, &e, &first) == 0);
	must(timer_create(CLOCK_MONOTONIC, &e, &second) == 0);
	must(timer_create(CLOCK_REALTIME, NULL, &third) == 0);
	must(timer_delete(first) == 0 && timer_settime(second, 0, &hour, NULL) == 0);
	work_pause_ms(300);
	int64_t frozen = work_now(CLOCK_MONOTONIC);

	work_wait();
	must(timer_gettime(second, &now) == 0);
	must_equal(from_timespec(now.it_interval), 7 * WORK_SECOND + 8);
	time_left(from_timespec(now.it_value), begun, frozen);
	must(timer_gettime(third, &now) == 0 && from_timespec(now.it_value) == 0);
	must(timer_delete(third) == 0 && timer_delete(second) == 0);
	must(timer_create(CLOCK_MONOTONIC, &e, &first) == 0);
}

static void itimer_left(void)
{
	struct itimerval hour = {.it_value = {3600, 0}, .it_interval = {11, 22}}, now;
	int64_t begun = work_now(CLOCK_MONOTONIC);

	must(setitimer(ITIMER_REAL, &hour, NULL) == 0);
	must(setitimer(ITIMER_VIRTUAL, &hour, NULL) == 0 &&
	     setitimer(ITIMER_PROF, &hour, NULL) == 0);
	work_pause_ms(300);
	int64_t frozen = work_now(CLOCK_MONOTONIC);

	work_wait();
	for (int which = ITIMER_REAL; which <= ITIMER_PROF; which++) {
		must(getitimer((__itimer_which_t)which, &now) == 0);
		must(now.it_interval.tv_sec == 11 && now.it_interval.tv_usec == 22);
		/* The others count time on a CPU only: all but a little is left. */
		if (which == ITIMER_REAL)
			time_left(now.it_value.tv_sec * WORK_SECOND + now.it_value.tv_usec * 1000,
				  begun, frozen);
		else
			must(now.it_value.tv_sec >= 3500 && now.it_value.tv_sec <= 3600);
	}
}

static void alarm_left(void)
{
	int64_t begun = work_now(CLOCK_MONOTONIC);

	must_equal(alarm(3600), 0);
	work_wait();
	unsigned left = alarm(0);

	must(left <= 3600);
	must(left >= 3600 - (work_now(CLOCK_MONOTONIC) - begun) / WORK_SECOND - 1);
}

static void timerfd_left(void)
{
	struct itimerspec hour = {.it_value = {3600, 0}, .it_interval = {5, 6}}, now;
	struct itimerspec date = {.it_value = to_timespec(work_now(CLOCK_REALTIME) + HOUR)};
	int relative = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	int absolute = timerfd_create(CLOCK_REALTIME, 0), off = timerfd_create(CLOCK_BOOTTIME, 0);
	int64_t begun = work_now(CLOCK_MONOTONIC), left;
	uint64_t n;

	must(relative >= 0 && absolute >= 0 && off >= 0);
	must(timerfd_settime(relative, 0, &hour, NULL) == 0);
	must(timerfd_settime(absolute, TFD_TIMER_ABSTIME, &date, NULL) == 0);
	work_pause_ms(300);
	int64_t frozen = work_now(CLOCK_MONOTONIC);

	work_wait();
	must(timerfd_gettime(relative, &now) == 0);
	must_equal(from_timespec(now.it_interval), 5 * WORK_SECOND + 6);
	time_left(from_timespec(now.it_value), begun, frozen);
	must(timerfd_gettime(absolute, &now) == 0);
	left = from_timespec(now.it_value) -
	       (from_timespec(date.it_value) - work_now(CLOCK_REALTIME));
	/* It goes by the date, whatever the process has slept through. */
	must(left > -WORK_SECOND && left < WORK_SECOND);
	must(timerfd_gettime(off, &now) == 0 && from_timespec(now.it_value) == 0);
	must(read(relative, &n, 8) < 0 && errno == EAGAIN);
	must(fcntl(relative, F_GETFD) == FD_CLOEXEC && fcntl(absolute, F_GETFD) == 0);
}

/* ---- timers that expire --------------------------------------------------------------------- */

static volatile int fired;
static volatile pid_t fired_in;
static volatile int fired_value;

static void on_timer(int signo, siginfo_t *si, void *context)
{
	fired_in = (pid_t)syscall(SYS_gettid);
	fired_value = si->si_value.sival_int;
	fired++;
}

static void handle(int signo)
{
	struct sigaction act = {.sa_sigaction = on_timer, .sa_flags = SA_SIGINFO | SA_RESTART};

	must(sigaction(signo, &act, NULL) == 0);
}

/* Until it has fired n times; none was before its time. */
static void fires(int n, int64_t begun, int64_t first_ns, int64_t interval_ns)
{
	int64_t limit = work_now(CLOCK_MONOTONIC) + first_ns + n * interval_ns + LATE;

	while (fired < n) {
		must_say(work_now(CLOCK_MONOTONIC) < limit, "the timer fires");
		usleep(1000);
	}
	must(work_now(CLOCK_MONOTONIC) >= begun + first_ns + (n - 1) * interval_ns);
}

static void itimer_fires(void)
{
	struct itimerval t = {.it_value = {1, 500000}, .it_interval = {0, 200000}}, now;
	int64_t begun = work_now(CLOCK_MONOTONIC);

	handle(SIGALRM);
	must(setitimer(ITIMER_REAL, &t, NULL) == 0);
	work_wait();
	fires(5, begun, 1500 * MS, 200 * MS);
	must(getitimer(ITIMER_REAL, &now) == 0 && now.it_interval.tv_usec == 200000);
}

static void cpu_timers(void)
{
	struct itimerval t = {.it_value = {1, 0}};

	handle(SIGVTALRM);
	handle(SIGPROF);
	must(setitimer(ITIMER_VIRTUAL, &t, NULL) == 0 && setitimer(ITIMER_PROF, &t, NULL) == 0);
	work_wait();
	/* Runs until both are through; elapsed time would do for one of them at most. */
	int64_t limit = work_now(CLOCK_MONOTONIC) + 2 * LATE;

	while (fired < 2)
		must_say(work_now(CLOCK_MONOTONIC) < limit, "the timers fire");
	must_equal(fired, 2);
}

static void alarm_fires(void)
{
	int64_t begun = work_now(CLOCK_MONOTONIC);

	handle(SIGALRM);
	must_equal(alarm(2), 0);
	work_wait();
	fires(1, begun, 2000 * MS, 0);
	must_equal(alarm(0), 0);
}

static void timer_fires(void)
{
	struct itimerspec t = {.it_value = {1, 500 * MS}, .it_interval = {0, 100 * MS}};
	struct sigevent e = {.sigev_notify = SIGEV_SIGNAL,
			     .sigev_signo = SIGRTMIN + 6,
			     .sigev_value.sival_int = 2718};
	timer_t timer;
	int64_t begun = work_now(CLOCK_MONOTONIC);

	handle(SIGRTMIN + 6);
	must(timer_create(CLOCK_MONOTONIC, &e, &timer) == 0);
	must(timer_settime(timer, 0, &t, NULL) == 0);
	work_wait();
	fires(1, begun, 1500 * MS, 100 * MS);
	must_equal(fired_value, 2718);
	must(timer_delete(timer) == 0);
}

static void *takes_timer(struct work_thread *t)
{
	while (!fired)
		usleep(1000);
	return t;
}

static void timer_thread(void)
{
	static struct work_thread t;
	struct itimerspec spec = {.it_value = {1, 200 * MS}};
	struct sigevent e = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN + 7};
	timer_t timer;
	int64_t begun = work_now(CLOCK_MONOTONIC);

	handle(SIGRTMIN + 7);
	work_thread_start(&t, takes_timer, NULL);
	e._sigev_un._tid = t.tid;
	must(timer_create(CLOCK_MONOTONIC, &e, &timer) == 0);
	must(timer_settime(timer, 0, &spec, NULL) == 0);
	work_wait();
	fires(1, begun, 1200 * MS, 0);
	must_equal(fired_in, t.tid);
	must(pthread_join(t.thread, NULL) == 0);
}

static volatile int notified;

static void on_notify(union sigval v)
{
	notified = v.sival_int;
}

/* The C library has a thread for these. */
static void timer_callback(void)
{
	struct itimerspec spec = {.it_value = {1, 200 * MS}};
	struct sigevent e = {.sigev_notify = SIGEV_THREAD,
			     .sigev_notify_function = on_notify,
			     .sigev_value.sival_int = 99};
	timer_t timer;

	must(timer_create(CLOCK_MONOTONIC, &e, &timer) == 0);
	must(timer_settime(timer, 0, &spec, NULL) == 0);
	work_wait();
	work_until(notified == 99);
}

static void timerfd_periodic(void)
{
	struct itimerspec t = {.it_value = {1, 0}, .it_interval = {0, 100 * MS}};
	int fd = timerfd_create(CLOCK_MONOTONIC, 0);
	int64_t begun = work_now(CLOCK_MONOTONIC);
	uint64_t n, sum = 0;

	must(fd >= 0 && timerfd_settime(fd, 0, &t, NULL) == 0);
	work_wait();
	for (int i = 0; i < 5; i++) {
		must(read(fd, &n, 8) == 8 && n > 0);
		sum += n;
	}
	/* As many as there was time for at most. */
	int64_t passed = work_now(CLOCK_MONOTONIC) - begun;

	must(passed >= 1000 * MS + 4 * 100 * MS);
	must((int64_t)sum <= (passed - 1000 * MS) / (100 * MS) + 1);
}

static void timerfd_expired(void)
{
	struct itimerspec t = {.it_value = {0, 10 * MS}};
	struct itimerspec hour = {.it_value = {0, 10 * MS}, .it_interval = {3600, 0}};
	int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
	int periodic = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
	struct pollfd p = {.fd = fd, .events = POLLIN};
	uint64_t n;

	must(fd >= 0 && timerfd_settime(fd, 0, &t, NULL) == 0);
	must(poll(&p, 1, 60000) == 1);
	p.fd = periodic;
	must(periodic >= 0 && timerfd_settime(periodic, 0, &hour, NULL) == 0);
	must(poll(&p, 1, 60000) == 1);
	must(nanosleep(&(struct timespec){1, 0}, NULL) == 0);
	work_wait();
	must(poll(&p, 1, 60000) == 1);
	p.fd = fd;
	must(poll(&p, 1, 60000) == 1);
	must(read(fd, &n, 8) == 8 && n == 1);
	must(read(fd, &n, 8) < 0 && errno == EAGAIN);
	/* Of a period, the part that was over stays over. */
	must(timerfd_gettime(periodic, &t) == 0);
	int64_t left = from_timespec(t.it_value);
	must(left <= 3599 * WORK_SECOND && left > 3000 * WORK_SECOND);
	must(from_timespec(t.it_interval) == 3600 * WORK_SECOND);
	must(read(periodic, &n, 8) == 8 && n == 1);
	must(read(periodic, &n, 8) < 0 && errno == EAGAIN);
}

static const struct work works[] = {
	{"clocks", clocks, "clocks that never go back"},
	{"nanosleep", do_sleep, "nanosleep(), with the time that was left"},
	{"sleep-absolute", do_sleep_absolute, "clock_nanosleep() to a point in time"},
	{"poll-limit", do_poll, "poll() with a time limit"},
	{"select-limit", do_select, "select() with a time limit"},
	{"epoll-limit", do_epoll, "epoll_wait() with a time limit"},
	{"sigwait-limit", do_sigwait, "sigtimedwait()"},
	{"futex-limit", do_futex, "futex waits with a time limit"},
	{"cond-limit", do_cond, "pthread_cond_timedwait()"},
	{"posix-timer", timer_left, "POSIX timers under their numbers, with the time left"},
	{"timer-signal", timer_fires, "POSIX timers that send a signal with a value"},
	{"timer-thread", timer_thread, "POSIX timers that signal one thread (SIGEV_THREAD_ID)"},
	{"timer-callback", timer_callback, "POSIX timers that call a function (SIGEV_THREAD)"},
	{"itimer", itimer_left, "interval timers (real, virtual, prof) with the time left"},
	{"itimer-fires", itimer_fires, "interval timers that go on firing"},
	{"cpu-timers", cpu_timers, "interval timers of CPU time that expire"},
	{"alarm", alarm_left, "alarm() with the time left"},
	{"alarm-fires", alarm_fires, "alarm() that goes off"},
	{"timerfd", timerfd_left, "timerfds, relative with the time left, absolute by the date"},
	{"timerfd-periodic", timerfd_periodic, "timerfds that go on ticking"},
	{"timerfd-expired", timerfd_expired, "timerfds that expired and were not read"},
};

int main(int argc, char **argv)
{
	return work_main(argc, argv, works, WORK_COUNT(works));
}
