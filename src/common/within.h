/*
 * Waits for another thread that end after a time, by CLOCK_MONOTONIC.
 */
#ifndef USNAP_COMMON_WITHIN_H
#define USNAP_COMMON_WITHIN_H

#include <pthread.h>
#include <stdint.h>

/* 0 or ETIMEDOUT. */
int join_within(pthread_t thread, uint64_t ns);

#endif
