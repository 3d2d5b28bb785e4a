/*
 * What the stress programs share: chance that can be repeated, an end after the seconds that were
 * asked for, a hang that does not pass for work, and pages known from a number.
 *
 * Rounds follow each other until the time is over. Each must end within HANG_S, which a thread of
 * its own watches: it ends the program even when every other thread waits for something that
 * never comes. SEED in the environment repeats what a run printed.
 */
#ifndef TESTS_STRESS_STRESS_H
#define TESTS_STRESS_STRESS_H

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/util.h"

enum {
	HANG_S = 40
};

static uint64_t stress_end_ns, stress_seed;
static _Atomic uint64_t stress_rounds;
static _Atomic(const char *) stress_doing = "starting";

static inline _Noreturn __attribute__((format(printf, 1, 2))) void die(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, " (round %llu, %s, seed %llu)\n", (unsigned long long)stress_rounds,
		stress_doing, (unsigned long long)stress_seed);
	_exit(1);
}

/* splitmix64: each thread has a state of its own. */
static inline uint64_t random64(uint64_t *state)
{
	uint64_t x = *state += 0x9e3779b97f4a7c15ull;

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

static inline uint64_t random_below(uint64_t *state, uint64_t n)
{
	return random64(state) % n;
}

/* The bytes of a page of 4 KiB: of five in eight nobody else's, of others zero or the same as many. */
static inline void stress_page(uint64_t number, unsigned char *p)
{
	uint64_t x = random64(&number), kind = x % 8;

	if (kind < 3) {
		memset(p, kind < 2 ? 0 : (int)(x >> 62) + 1, 4096);
		return;
	}
	for (size_t i = 0; i < 4096; i += sizeof(x)) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		memcpy(p + i, &x, sizeof(x));
	}
}

static void *stress_watch(void *arg)
{
	for (uint64_t seen = stress_rounds;; seen = stress_rounds) {
		sleep(HANG_S);
		if (seen == stress_rounds)
			die("nothing has moved for %d seconds", HANG_S);
	}
	return arg;
}

/* Call first. Returns the state for the main thread's chance. */
static inline uint64_t stress_begin(int argc, char **argv)
{
	const char *seed = getenv("SEED");
	pthread_t watch;

	stress_seed = seed ? strtoull(seed, NULL, 0) : now_ns();
	stress_end_ns = now_ns() + strtoull(argc > 1 ? argv[1] : "10", NULL, 10) * 1000000000u;
	if (pthread_create(&watch, NULL, stress_watch, NULL))
		die("cannot start a thread");
	pthread_detach(watch);
	return stress_seed;
}

/* Begins a round of this kind, or says that there is to be none. The first one always is. */
static inline bool stress_round(const char *doing)
{
	if (stress_rounds && now_ns() >= stress_end_ns) {
		printf("%llu rounds, seed %llu\n", (unsigned long long)stress_rounds,
		       (unsigned long long)stress_seed);
		return false;
	}
	stress_doing = doing;
	stress_rounds++;
	return true;
}

static inline pthread_t stress_thread(void *(*fn)(void *), void *arg)
{
	pthread_t tid;

	if (pthread_create(&tid, NULL, fn, arg))
		die("cannot start a thread");
	return tid;
}

#endif
