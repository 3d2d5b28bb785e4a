#include "common/hurry.h"

#include <sched.h>
#include <sys/resource.h>

enum {
	HURRY_PRIORITY = 1,
	PREFERRED_NICE = -5
};

static bool realtime_by_user;

/* By the first caller, before anything here has had an effect. The class is the
 * process's: threads inherit it. */
static void look_at_class(void)
{
	int policy = sched_getscheduler(0) & ~SCHED_RESET_ON_FORK;

	realtime_by_user = policy == SCHED_FIFO || policy == SCHED_RR || policy == SCHED_DEADLINE;
}

void thread_hurry(pthread_t thread, bool on)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	struct sched_param param = {.sched_priority = on ? HURRY_PRIORITY : 0};

	pthread_once(&once, look_at_class);
	if (!realtime_by_user)
		pthread_setschedparam(thread, on ? SCHED_RR : SCHED_OTHER, &param);
}

void thread_prefer(void)
{
	/* Of this thread, on Linux. */
	if (getpriority(PRIO_PROCESS, 0) > PREFERRED_NICE)
		setpriority(PRIO_PROCESS, 0, PREFERRED_NICE);
}
