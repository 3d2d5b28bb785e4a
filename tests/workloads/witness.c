/*
 * Has nothing to do with a snapshot, and says what the machine itself does to
 * the timing of a process that sleeps a millisecond at a time and of one that
 * computes: until SIGTERM, then "witness: longest wait N us". Prints "ready".
 */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>

static volatile sig_atomic_t ended;

static void on_signal(int sig)
{
	ended = 1;
}

static uint64_t clock_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

int main(void)
{
	uint64_t before, now, longest = 0;
	struct timespec ts = {0, 1000000};

	signal(SIGTERM, on_signal);
	printf("ready\n");
	fflush(stdout);
	before = clock_ns();
	for (unsigned i = 0; !ended; i++) {
		/* Mostly asleep; now and then busy for as long as a time slice. */
		if (i % 64)
			nanosleep(&ts, NULL);
		else
			for (uint64_t end = before + 4000000; clock_ns() < end;)
				;
		now = clock_ns();
		if (now - before > longest)
			longest = now - before;
		before = now;
	}
	printf("witness: longest wait %llu us\n", (unsigned long long)longest / 1000);
	return 0;
}
