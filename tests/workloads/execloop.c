/*
 * execloop: four threads, of which one or another executes the program anew
 * every few milliseconds, with arguments that take the kernel a while to copy.
 * Ends by SIGTERM: "execs N, longest NS", the time that an execve() took.
 */
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
	NR_LONG = 14, /* of 128 KiB, the most there is for one */
};

static uint64_t generation, longest;

static uint64_t clock_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void *wait_for_nothing(void *arg)
{
	for (;;)
		pause();
	return arg;
}

static void *again(void *arg)
{
	static char text[3][24], filling[128 << 10];
	char *argv[NR_LONG + 5] = {"execloop", text[0], text[1], text[2]};

	memset(filling, 'x', sizeof(filling) - 1);
	for (int i = 0; i < NR_LONG; i++)
		argv[4 + i] = filling;
	usleep(4000);
	snprintf(text[0], sizeof(text[0]), "%" PRIu64, generation + 1);
	snprintf(text[1], sizeof(text[1]), "%" PRIu64, longest);
	snprintf(text[2], sizeof(text[2]), "%" PRIu64, clock_ns());
	execv("/proc/self/exe", argv);
	perror("execv");
	exit(1);
	return arg;
}

static uint64_t number(const char *s)
{
	return s ? strtoull(s, NULL, 10) : 0;
}

int main(int argc, char **argv)
{
	pthread_t t;
	sigset_t set;

	if (argc > 3) {
		uint64_t took = clock_ns() - number(argv[3]);

		generation = number(argv[1]);
		longest = number(argv[2]);
		if (took > longest)
			longest = took;
	} else {
		puts("ready");
		fflush(stdout);
	}
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	if (sigtimedwait(&set, NULL, &(struct timespec){0}) == SIGTERM) {
		printf("execs %" PRIu64 ", longest %" PRIu64 "\n", generation, longest);
		return 0;
	}
	for (int i = 0; i < 3; i++)
		if (pthread_create(&t, NULL, i == 1 && generation % 2 ? again : wait_for_nothing,
				   NULL))
			return 1;
	if (generation % 2 == 0)
		again(NULL);
	wait_for_nothing(NULL);
}
