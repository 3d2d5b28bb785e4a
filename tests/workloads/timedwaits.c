/*
 * timedwaits [MAIN]: threads that wait for 60 s each, in one system call each;
 * with MAIN (a word from the table) only the main thread, in that. Prints
 * "WORD TID START_NS" for each (CLOCK_MONOTONIC), then "ready".
 */
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
	SECONDS = 60
};

static void wait_poll(void)
{
	syscall(SYS_poll, NULL, 0, SECONDS * 1000);
}

static void wait_nanosleep(void)
{
	struct timespec ts = {.tv_sec = SECONDS};

	syscall(SYS_nanosleep, &ts, NULL);
}

static void wait_nanosleep_rest(void)
{
	struct timespec ts = {.tv_sec = SECONDS};

	syscall(SYS_nanosleep, &ts, &ts);
}

static void wait_clock_nanosleep(void)
{
	struct timespec ts = {.tv_sec = SECONDS};

	syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &ts, NULL);
}

static void wait_futex(void)
{
	static uint32_t word;
	struct timespec ts = {.tv_sec = SECONDS};

	syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &ts, NULL, 0);
}

static void wait_condition(void)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	static pthread_cond_t never = PTHREAD_COND_INITIALIZER;
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	ts.tv_sec += SECONDS;
	pthread_mutex_lock(&lock);
	pthread_cond_timedwait(&never, &lock, &ts);
	pthread_mutex_unlock(&lock);
}

static void wait_forever(void)
{
	syscall(SYS_poll, NULL, 0, -1);
}

static const struct {
	const char *name;
	void (*fn)(void);
} waits[] = {
	{"poll", wait_poll},
	{"nanosleep", wait_nanosleep},
	{"nanosleep-rest", wait_nanosleep_rest},
	{"clock_nanosleep", wait_clock_nanosleep},
	{"futex", wait_futex},
	{"condition", wait_condition},
	{"forever", wait_forever},
};

static void wait_so(size_t i)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	printf("%s %d %lld\n", waits[i].name, (int)gettid(),
	       now.tv_sec * 1000000000ll + now.tv_nsec);
	fflush(stdout);
	waits[i].fn();
	puts("over");
	fflush(stdout);
}

static void *thread(void *arg)
{
	wait_so((size_t)(uintptr_t)arg);
	return NULL;
}

int main(int argc, char **argv)
{
	size_t n = sizeof(waits) / sizeof(waits[0]);
	pthread_t t;

	for (size_t i = 0; i < n; i++) {
		if (argc > 1 && !strcmp(argv[1], waits[i].name)) {
			puts("ready");
			wait_so(i);
			return 0;
		}
		if (argc == 1)
			pthread_create(&t, NULL, thread, (void *)(uintptr_t)i);
	}
	usleep(100000);
	puts("ready");
	fflush(stdout);
	pause();
	return 0;
}
