/*
 * sigcount: prints "signal N" for the Nth SIGRTMIN+1 that it handles, in a
 * thread that waits for a minute at a time; another one waits for nothing and
 * takes no signals. Ends by SIGTERM.
 */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void take_signal(int sig)
{
	static unsigned count;
	char line[32];
	int len = snprintf(line, sizeof(line), "signal %u\n", ++count);

	(void)sig;
	if (write(STDOUT_FILENO, line, (size_t)len) != len)
		_exit(1);
}

static void *wait_for_nothing(void *arg)
{
	for (;;)
		pause();
	return arg;
}

int main(void)
{
	struct sigaction sa = {.sa_handler = take_signal};
	pthread_t other;
	sigset_t set;

	sigfillset(&set);
	sigprocmask(SIG_BLOCK, &set, NULL);
	if (pthread_create(&other, NULL, wait_for_nothing, NULL))
		return 1;
	sigaction(SIGRTMIN + 1, &sa, NULL);
	sigprocmask(SIG_UNBLOCK, &set, NULL);
	puts("ready");
	fflush(stdout);
	for (;;)
		nanosleep(&(struct timespec){.tv_sec = 60}, NULL);
}
