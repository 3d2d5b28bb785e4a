/*
 * Threads that wait for mutexes with priority inheritance, each mutex in a page
 * that nobody writes meanwhile. SIGUSR1: the owner lets go of all, every waiter
 * has each in turn, and it says "ok". The C library ends the program when the
 * kernel answers what it does not expect.
 */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
	MUTEXES = 8,
	WAITERS = 3,
	PAGE = 4096
};

static pthread_mutex_t *mutex[MUTEXES];
static int had[MUTEXES];

static void *waiter(void *arg)
{
	long i = (long)arg;

	if (pthread_mutex_lock(mutex[i]) != 0)
		abort();
	had[i]++;
	if (pthread_mutex_unlock(mutex[i]) != 0)
		abort();
	return NULL;
}

int main(void)
{
	pthread_t threads[MUTEXES * WAITERS];
	pthread_mutexattr_t attr;
	sigset_t set;
	int sig;

	char *memory = mmap(NULL, (size_t)MUTEXES * PAGE, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return 1;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	pthread_mutexattr_init(&attr);
	if (pthread_mutexattr_setprotocol(&attr, PTHREAD_PRIO_INHERIT) != 0)
		return 1;
	for (long i = 0; i < MUTEXES; i++) {
		mutex[i] = (pthread_mutex_t *)(memory + i * PAGE);
		if (pthread_mutex_init(mutex[i], &attr) != 0 || pthread_mutex_lock(mutex[i]) != 0)
			return 1;
		for (long k = 0; k < WAITERS; k++)
			if (pthread_create(&threads[i * WAITERS + k], NULL, waiter, (void *)i) != 0)
				return 1;
	}
	usleep(300000);
	printf("ready\n");
	fflush(stdout);
	sigwait(&set, &sig);
	for (long i = 0; i < MUTEXES; i++)
		if (pthread_mutex_unlock(mutex[i]) != 0)
			return 1;
	for (int i = 0; i < MUTEXES * WAITERS; i++)
		pthread_join(threads[i], NULL);
	for (int i = 0; i < MUTEXES; i++)
		if (had[i] != WAITERS)
			return 1;
	printf("ok\n");
	return 0;
}
