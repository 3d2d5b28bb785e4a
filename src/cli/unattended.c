#include "cli/unattended.h"

#include <errno.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "common/util.h"

/* include/uapi/linux/ioprio.h, which older headers lack */
enum {
	IOPRIO_OF_THREAD = 1,
	IOPRIO_IDLE = 3 << 13
};

static volatile sig_atomic_t interrupted;
static unsigned nr_ends;

static void on_signal(int sig)
{
	if (sig != SIGALRM)
		__atomic_add_fetch(&nr_ends, 1, __ATOMIC_RELAXED);
	/* The limit does not hide that somebody wanted an end. */
	if (!interrupted || sig != SIGALRM)
		__atomic_store_n(&interrupted, sig, __ATOMIC_RELAXED);
}

const volatile sig_atomic_t *unattended_catch_signals(void)
{
	static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGALRM};
	struct sigaction sa = {.sa_handler = on_signal}, old;

	for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
		/* What nohup or a shell without job control ignores stays ignored. */
		if (sigaction(signals[i], NULL, &old) == 0 &&
		    (old.sa_handler != SIG_IGN || signals[i] == SIGALRM))
			sigaction(signals[i], &sa, NULL);
	sa.sa_handler = SIG_IGN;
	sigaction(SIGPIPE, &sa, NULL); /* a closed pipe is an error of write(2) */
	return &interrupted;
}

unsigned unattended_ends(void)
{
	return __atomic_load_n(&nr_ends, __ATOMIC_RELAXED);
}

void unattended_limit_time(uint64_t seconds)
{
	/* Again and again: the first can come just before a wait. */
	struct itimerval it = {.it_value.tv_sec = (time_t)seconds, .it_interval.tv_sec = 1};

	setitimer(ITIMER_REAL, &it, NULL);
}

int unattended_be_modest(int nice_, bool idle, struct usnap_err *err)
{
	if (idle)
		nice_ = 19;
	/* Of this thread, on Linux. SCHED_IDLE would be less still, but who waits for a page
	 * must not wait for a thread that never runs. */
	if (nice_ && nice_ > getpriority(PRIO_PROCESS, 0) &&
	    setpriority(PRIO_PROCESS, 0, nice_) < 0)
		return usnap_fail_errno(err, -errno, "cannot set niceness %d", nice_);
	if (idle && syscall(SYS_ioprio_set, IOPRIO_OF_THREAD, 0, IOPRIO_IDLE) < 0 &&
	    errno != ENOSYS)
		return usnap_fail_errno(err, -errno, "cannot use the disk as an idle one");
	return 0;
}
