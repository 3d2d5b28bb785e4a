/*
 * joinwork: threads that start others and join them, all the time. Prints "ready"; at SIGTERM what
 * each has done, and whether one still waits for a thread that has ended.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
	LOOPS = 4,
	STACK_USED = 20000, /* bytes */
	PATIENCE = 30, /* seconds */
};

static volatile sig_atomic_t over;
static unsigned long joined[LOOPS];

static void *use_stack(void *arg)
{
	volatile char bytes[STACK_USED];

	memset((void *)bytes, 1, sizeof(bytes));
	return arg;
}

static void *start_and_join(void *arg)
{
	unsigned long *n = arg;

	while (!over) {
		pthread_t tid;

		if (pthread_create(&tid, NULL, use_stack, NULL)) {
			fprintf(stderr, "joinwork: cannot make a thread\n");
			exit(1);
		}
		pthread_join(tid, NULL);
		++*n;
	}
	return NULL;
}

int main(void)
{
	pthread_t tids[LOOPS];
	struct timespec until;
	sigset_t term;
	int sig, status = 0;

	sigemptyset(&term);
	sigaddset(&term, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &term, NULL);
	for (int i = 0; i < LOOPS; i++)
		if (pthread_create(&tids[i], NULL, start_and_join, &joined[i]))
			return 1;
	printf("ready\n");
	fflush(stdout);
	sigwait(&term, &sig);
	over = 1;
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += PATIENCE;
	for (int i = 0; i < LOOPS; i++) {
		int r = pthread_timedjoin_np(tids[i], NULL, &until);

		printf("%lu joined%s\n", joined[i], r ? ", and waiting" : "");
		status |= r != 0;
	}
	printf("%s\n", status ? "failed" : "ok");
	return status;
}
