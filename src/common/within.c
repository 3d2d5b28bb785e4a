#include "common/within.h"

#include <errno.h>
#include <time.h>

#include "common/util.h"

#ifdef __SANITIZE_THREAD__

/* ThreadSanitizer does not know of the call below (gcc 12), but of the one that does not wait. */
int join_within(pthread_t thread, uint64_t ns)
{
	uint64_t end = now_ns() + ns;
	int r;

	while ((r = pthread_tryjoin_np(thread, NULL)) == EBUSY && now_ns() < end)
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	return r == EBUSY ? ETIMEDOUT : r;
}

#else

int join_within(pthread_t thread, uint64_t ns)
{
	const uint64_t end = now_ns() + ns;
	const struct timespec until = {.tv_sec = (time_t)(end / 1000000000u),
				       .tv_nsec = (long)(end % 1000000000u)};

	return pthread_clockjoin_np(thread, NULL, CLOCK_MONOTONIC, &until);
}

#endif
