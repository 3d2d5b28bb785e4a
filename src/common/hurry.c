#include "common/hurry.h"

#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>

enum {
	HURRY_PRIORITY = 1,
	PREFERRED_NICE = -5
};

void thread_hurry(pthread_t thread, bool on)
{
	struct sched_param param;
	int policy;

	if (pthread_getschedparam(thread, &policy, &param))
		return;
	if (policy == SCHED_FIFO || (policy == SCHED_RR && param.sched_priority != HURRY_PRIORITY))
		return;
	param.sched_priority = on ? HURRY_PRIORITY : 0;
	pthread_setschedparam(thread, on ? SCHED_RR : SCHED_OTHER, &param);
}

void thread_prefer(void)
{
	prctl(PR_SET_TIMERSLACK, 1ul, 0ul, 0ul, 0ul);
	/* Of this thread, on Linux. */
	if (getpriority(PRIO_PROCESS, 0) > PREFERRED_NICE)
		setpriority(PRIO_PROCESS, 0, PREFERRED_NICE);
}
