/*
 * joinwork: threads that start others and join them, all the time. Prints "ready"; at SIGTERM what
 * each has done, and whether one still waits for a thread that has ended.
 *
 * joinwork late: one thread that ends at SIGUSR1 and has not written to its stack since "ready". It
 * says at once whether the thread could be joined, and stays until SIGTERM.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
	LOOPS = 4,
	STACK_USED = 20000, /* bytes */
	PATIENCE = 30, /* seconds */
	BALLAST = 4 << 20, /* bytes, so that a slow snapshot takes some seconds */
};

static volatile sig_atomic_t over, started;
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

/* Deep enough for the page of the control block to be none of those that a stop opens. */
static void *end_late(void *arg)
{
	volatile char deep[65536];

	memset((void *)deep, 1, sizeof(deep));
	started = 1;
	while (!over)
		__asm__ volatile("pause");
	for (;;)
		__asm__ volatile("syscall" : : "a"(SYS_exit), "D"(0) : "rcx", "r11");
	return arg;
}

static int late(sigset_t *set)
{
	struct timespec until;
	pthread_t tid;
	int sig;

	sigaddset(set, SIGUSR1);
	sigaddset(set, SIGTERM);
	pthread_sigmask(SIG_BLOCK, set, NULL);
	if (pthread_create(&tid, NULL, end_late, NULL))
		return 1;
	while (!started)
		usleep(1000);
	/* Below the stack, so that it is copied before. */
	unsigned char *ballast =
		mmap(NULL, BALLAST, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (ballast == MAP_FAILED)
		return 1;
	for (size_t i = 0; i < BALLAST; i++)
		ballast[i] = (unsigned char)(i * i >> 9);
	printf("ready\n");
	fflush(stdout);
	sigwait(set, &sig);
	over = 1;
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += PATIENCE;
	int r = pthread_timedjoin_np(tid, NULL, &until);
	printf("%s\n", r ? "failed" : "ok");
	fflush(stdout);
	/* A snapshot of it may still be under way. */
	sigemptyset(set);
	sigaddset(set, SIGTERM);
	sigwait(set, &sig);
	return r != 0;
}

int main(int argc, char **argv)
{
	pthread_t tids[LOOPS];
	struct timespec until;
	sigset_t term;
	int sig, status = 0;

	sigemptyset(&term);
	if (argc > 1 && strcmp(argv[1], "late") == 0)
		return late(&term);
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
