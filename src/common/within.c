#include "common/within.h"

#include <errno.h>
#include <time.h>

#include "common/util.h"

#ifdef __SANITIZE_THREAD__

/* ThreadSanitizer does not know of the calls below (gcc 12), but of those that do not wait. */
static int repeat(int (*attempt)(void *), void *arg, uint64_t ns)
{
	uint64_t end = now_ns() + ns;
	int r;

	while ((r = attempt(arg)) == EBUSY && now_ns() < end)
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	return r == EBUSY ? ETIMEDOUT : r;
}

static int try_lock(void *arg)
{
	return pthread_mutex_trylock(arg);
}

static int try_join(void *arg)
{
	return pthread_tryjoin_np(*(pthread_t *)arg, NULL);
}

int lock_within(pthread_mutex_t *m, uint64_t ns)
{
	return repeat(try_lock, m, ns);
}

int join_within(pthread_t thread, uint64_t ns)
{
	return repeat(try_join, &thread, ns);
}

#else

static struct timespec in(uint64_t ns)
{
	ns += now_ns();
	return (struct timespec){.tv_sec = (time_t)(ns / 1000000000u),
				 .tv_nsec = (long)(ns % 1000000000u)};
}

int lock_within(pthread_mutex_t *m, uint64_t ns)
{
	const struct timespec until = in(ns);

	return pthread_mutex_clocklock(m, CLOCK_MONOTONIC, &until);
}

int join_within(pthread_t thread, uint64_t ns)
{
	const struct timespec until = in(ns);

	return pthread_clockjoin_np(thread, NULL, CLOCK_MONOTONIC, &until);
}

#endif
