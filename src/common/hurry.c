#include "common/hurry.h"

#include <pthread.h>
#include <sched.h>

void thread_hurry(bool on)
{
	struct sched_param param = {.sched_priority = on ? 1 : 0};

	pthread_setschedparam(pthread_self(), on ? SCHED_RR : SCHED_OTHER, &param);
}
