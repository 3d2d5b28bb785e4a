/*
 * Locks and contexts of the C library after a restore; see restorework.h.
 */
#include "restorework.h"

#include <semaphore.h>
#include <setjmp.h>
#include <ucontext.h>

static volatile int released;

static void release_threads(void)
{
	released = 1;
}

static void wait_released(void)
{
	while (!released)
		usleep(2000);
}

static void join(struct work_thread *t)
{
	void *r;

	must(pthread_join(t->thread, &r) == 0);
	must(r == t);
}

/* ---- locks ------------------------------------------------------------------------------ */

static pthread_mutex_t mutex;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static sem_t sem;
static volatile int served;

static void *holds(struct work_thread *t)
{
	must(pthread_mutex_lock(&mutex) == 0);
	t->state = 1;
	wait_released();
	if (!t->arg)
		must(pthread_mutex_unlock(&mutex) == 0);
	return t;
}

static void *wants(struct work_thread *t)
{
	t->state = pthread_mutex_lock(&mutex);
	if (t->state == EOWNERDEAD)
		must(pthread_mutex_consistent(&mutex) == 0);
	must(pthread_mutex_unlock(&mutex) == 0);
	return t;
}

static void held_mutex(int robust, int protocol)
{
	static struct work_thread a, b;
	pthread_mutexattr_t attr;

	pthread_mutexattr_init(&attr);
	must(pthread_mutexattr_setrobust(&attr, robust) == 0);
	must(pthread_mutexattr_setprotocol(&attr, protocol) == 0);
	must(pthread_mutex_init(&mutex, &attr) == 0);
	work_thread_start(&a, holds, robust == PTHREAD_MUTEX_ROBUST ? &a : NULL);
	work_until(a.state == 1);
	work_thread_start(&b, wants, NULL);
	work_until(work_call_of(b.tid) == SYS_futex);
	work_wait();
	must(pthread_mutex_trylock(&mutex) == EBUSY);
	release_threads();
	join(&a);
	join(&b);
	must_equal(b.state, robust == PTHREAD_MUTEX_ROBUST ? EOWNERDEAD : 0);
}

static void mutex_held(void)
{
	held_mutex(PTHREAD_MUTEX_STALLED, PTHREAD_PRIO_NONE);
}

static void mutex_pi(void)
{
	held_mutex(PTHREAD_MUTEX_STALLED, PTHREAD_PRIO_INHERIT);
}

static void mutex_robust(void)
{
	held_mutex(PTHREAD_MUTEX_ROBUST, PTHREAD_PRIO_NONE);
}

static void *waits_for_cond(struct work_thread *t)
{
	must(pthread_mutex_lock(&mutex) == 0);
	t->state = 1;
	while (!served)
		must(pthread_cond_wait(&cond, &mutex) == 0);
	must(pthread_mutex_unlock(&mutex) == 0);
	must(sem_wait(&sem) == 0);
	return t;
}

static void condvar(void)
{
	static struct work_thread t[8];

	pthread_mutex_init(&mutex, NULL);
	must(sem_init(&sem, 0, 0) == 0);
	for (int i = 0; i < 8; i++) {
		work_thread_start(&t[i], waits_for_cond, NULL);
		work_until(t[i].state == 1 && work_call_of(t[i].tid) == SYS_futex);
	}
	work_wait();
	must(pthread_mutex_lock(&mutex) == 0);
	served = 1;
	must(pthread_mutex_unlock(&mutex) == 0);
	must(pthread_cond_broadcast(&cond) == 0);
	for (int i = 0; i < 8; i++)
		must(sem_post(&sem) == 0);
	for (int i = 0; i < 8; i++)
		join(&t[i]);
}

/* ---- contexts ------------------------------------------------------------------------------ */

enum {
	STACK = 64 << 10
};

static ucontext_t outside, inside;
static volatile int steps;

static void coroutine(void)
{
	volatile int mine = 1000;

	steps = 1;
	/* cppcheck-suppress swapcontextCalled */
	swapcontext(&inside, &outside);
	must_equal(mine, 1000);
	steps = 2;
}

static void contexts(void)
{
	static jmp_buf env;
	char *stack = malloc(STACK);

	/* cppcheck-suppress getcontextCalled */
	must(getcontext(&inside) == 0);
	inside.uc_stack.ss_sp = stack;
	inside.uc_stack.ss_size = STACK;
	inside.uc_link = &outside;
	/* cppcheck-suppress makecontextCalled */
	makecontext(&inside, coroutine, 0);
	/* cppcheck-suppress swapcontextCalled */
	must(swapcontext(&outside, &inside) == 0);
	must_equal(steps, 1);
	if (setjmp(env) == 0) {
		work_wait();
		/* cppcheck-suppress swapcontextCalled */
		must(swapcontext(&outside, &inside) == 0);
		must_equal(steps, 2);
		longjmp(env, 1);
	}
	must_equal(steps, 2);
}

static const struct work works[] = {
	{"mutex", mutex_held, "mutexes that are held, and those who wait for them"},
	{"mutex-pi", mutex_pi, "priority-inheriting mutexes that are held, and those who wait"},
	{"mutex-robust", mutex_robust, "robust mutexes: a dead owner is reported to the next"},
	{"condvar", condvar, "condition variables and semaphores that threads wait for"},
	{"contexts", contexts, "suspended coroutines (ucontext) and jump buffers"},
};

int main(int argc, char **argv)
{
	return work_main(argc, argv, works, WORK_COUNT(works));
}
