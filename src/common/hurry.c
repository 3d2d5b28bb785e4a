#include "common/hurry.h"

#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>

enum {
	PREFERRED_NICE = -5
};

void thread_hurry(bool on)
{
	struct sched_param param = {.sched_priority = on ? 1 : 0};

	pthread_setschedparam(pthread_self(), on ? SCHED_RR : SCHED_OTHER, &param);
}

void thread_prefer(void)
{
	/* Of this thread, on Linux. */
	if (getpriority(PRIO_PROCESS, 0) > PREFERRED_NICE)
		setpriority(PRIO_PROCESS, 0, PREFERRED_NICE);
}
